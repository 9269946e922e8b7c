use sea_orm::entity::prelude::*;

use super::{FunctionId, ProjectId, Timestamp, WebhookId, WebhookMode};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhooks")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: WebhookId,
    pub project_id: ProjectId,
    pub function_id: Option<FunctionId>,
    pub function_version: Option<i32>,
    pub function_alias: Option<String>,
    pub description: Option<String>,
    /// What stands in the URL: the id at first, and something new whenever the URL is rotated. None in a
    /// row that the release before this column wrote, where it is the id.
    pub url_key: Option<String>,
    pub mode: WebhookMode,
    /// Whoever knows the URL may call it; otherwise a token is asked for.
    pub is_public: bool,
    /// The key of the signatures that callers must show, where there is one.
    pub secret: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
