use sea_orm::entity::prelude::*;

use super::{FunctionId, NetworkAccess, ProjectId, RuntimeId, Timestamp, TrustId};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "function_versions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project_id: ProjectId,
    pub function_id: FunctionId,
    pub description: Option<String>,
    pub version_number: i32,
    pub count: i64,
    pub runtime_id: Option<RuntimeId>,
    pub cpu: i32,
    pub memory_size: i64,
    pub timeout: i32,
    pub package_digest: Option<String>,
    pub package_bytes: Option<i64>,
    pub entry: Option<String>,
    pub network: NetworkAccess,
    /// In whose name the version uses the cloud: whoever uploaded its code.
    pub trust_id: Option<TrustId>,
    /// Why there is no trust, as a sentence.
    pub trust_reason: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
