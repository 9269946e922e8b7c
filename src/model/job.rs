use sea_orm::entity::prelude::*;

use super::{FunctionId, JobId, JobStatus, ProjectId, Timestamp};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: JobId,
    pub project_id: ProjectId,
    pub name: Option<String>,
    pub pattern: Option<String>,
    pub status: JobStatus,
    /// Why the last instant ran nothing, or why the job was cancelled by the service.
    #[sea_orm(column_type = "Text", nullable)]
    pub status_reason: Option<String>,
    pub first_execution_time: Option<Timestamp>,
    pub next_execution_time: Timestamp,
    pub count: Option<i32>,
    pub function_id: Option<FunctionId>,
    pub function_version: Option<i32>,
    pub function_alias: Option<String>,
    pub function_input: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
