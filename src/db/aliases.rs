use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect};

use super::{Result, Transaction};
use crate::model::ProjectId;
use crate::model::alias::{Column, Entity, Model};

/// [`super::Error::Duplicate`] where the project has the name, or has another for the version.
pub async fn insert(db: &impl ConnectionTrait, alias: Model) -> Result<()> {
    Entity::insert(alias.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// A name means something within one project only, for administrators too.
pub async fn find(db: &impl ConnectionTrait, project: &ProjectId, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find()
        .filter(Column::ProjectId.eq(project.clone()))
        .filter(Column::Name.eq(name))
        .one(db)
        .await?)
}

/// As [`find`], in a transaction that will write what refers to the alias: nobody removes it until the
/// end.
pub async fn find_for_update(db: &Transaction, project: &ProjectId, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find()
        .filter(Column::ProjectId.eq(project.clone()))
        .filter(Column::Name.eq(name))
        .lock_exclusive()
        .one(db)
        .await?)
}
