//! A row per trust in Keystone that this service holds.

use sea_orm::entity::prelude::*;

use super::{ProjectId, Timestamp, TrustId};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "trusts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: TrustId,
    pub project_id: ProjectId,
    /// Who delegated.
    pub user_id: String,
    pub created_at: Timestamp,
    /// Since when no function and no version has it, where none has.
    pub dropped_at: Timestamp,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
