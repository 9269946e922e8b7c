use sea_orm::entity::prelude::*;

use super::{NetworkAccess, ProjectId, RuntimeId, RuntimeStatus, Timestamp};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "runtimes")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: RuntimeId,
    pub project_id: ProjectId,
    pub name: Option<String>,
    pub description: Option<String>,
    /// As the administrator named it.
    pub image: String,
    /// The last image that was seen to work, as the administrator named it: what an upgrade that
    /// fails goes back to.
    pub active_image: Option<String>,
    pub status: RuntimeStatus,
    /// Why the status is `error`.
    pub status_reason: Option<String>,
    pub is_public: bool,
    pub trusted: bool,
    /// Of all its workers.
    pub network: NetworkAccess,
    /// What that was before an upgrade, which one that fails goes back to.
    pub active_network: Option<NetworkAccess>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
