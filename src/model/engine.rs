//! A row per engine process that is alive, or was until its lease ran out.

use sea_orm::entity::prelude::*;

use super::{EngineId, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "engines")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: EngineId,
    /// The machine, and with it the Docker engine, that it runs on.
    pub node: String,
    /// Whose workers on that machine are its own.
    pub deployment: String,
    /// Where an API of another process reaches it; `None` where the API is in its own.
    pub endpoint: Option<String>,
    pub started_at: Timestamp,
    /// After this, others take over what it ran.
    pub lease_until: Timestamp,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
