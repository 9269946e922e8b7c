use sea_orm::entity::prelude::*;

use super::{FunctionId, ProjectId, Timestamp};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "function_aliases")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project_id: ProjectId,
    pub name: String,
    pub function_id: FunctionId,
    pub function_version: i32,
    pub description: Option<String>,
    /// A second version, which gets a share of the calls.
    pub canary_version: Option<i32>,
    /// That share, in percent.
    pub canary_weight: i32,
    /// What the alias meant before it was changed last.
    pub previous_version: Option<i32>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
