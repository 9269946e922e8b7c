//! Beside the execution, so that a list of executions does not read their logs.

use sea_orm::entity::prelude::*;

use serde::{Deserialize, Serialize};

use super::ExecutionId;

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel, Serialize, Deserialize)]
#[sea_orm(table_name = "execution_logs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub execution_id: ExecutionId,
    #[sea_orm(column_type = "Text")]
    pub log: String,
    pub truncated: bool,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
