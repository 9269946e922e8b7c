use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel};

use super::Result;
use crate::model::ExecutionId;
use crate::model::execution_log::{Entity, Model};

/// In the transaction that writes the execution, and after it.
pub async fn insert(db: &impl ConnectionTrait, log: Model) -> Result<()> {
    Entity::insert(log.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// Without a scope: who may see the execution may see its log.
pub async fn find(db: &impl ConnectionTrait, id: &ExecutionId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}
