use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel};

use super::Result;
use crate::model::ExecutionId;
use crate::model::execution_log::{Entity, Model};

/// In the transaction that writes the execution, and after it.
///
/// A function may write what it likes, and PostgreSQL stores every character but NUL. So that is
/// kept as `␀`, on all databases.
pub async fn insert(db: &impl ConnectionTrait, mut log: Model) -> Result<()> {
    if log.log.contains('\0') {
        log.log = log.log.replace('\0', "\u{2400}");
    }
    Entity::insert(log.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// Without a scope: who may see the execution may see its log.
pub async fn find(db: &impl ConnectionTrait, id: &ExecutionId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}
