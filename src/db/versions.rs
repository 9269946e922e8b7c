use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use super::Result;
use crate::model::version::{Column, Entity, Model};
use crate::model::{FunctionId, Timestamp};

pub async fn insert(db: &impl ConnectionTrait, version: Model) -> Result<()> {
    Entity::insert(version.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// Without a scope: who may see the function may see its versions. Version 0 is no row.
pub async fn find(db: &impl ConnectionTrait, function: &FunctionId, number: i32) -> Result<Option<Model>> {
    Ok(Entity::find()
        .filter(Column::FunctionId.eq(function.clone()))
        .filter(Column::VersionNumber.eq(number))
        .one(db)
        .await?)
}

/// By number, from the oldest.
pub async fn list(db: &impl ConnectionTrait, function: &FunctionId) -> Result<Vec<Model>> {
    Ok(Entity::find()
        .filter(Column::FunctionId.eq(function.clone()))
        .order_by_asc(Column::VersionNumber)
        .all(db)
        .await?)
}

pub async fn increment_count(
    db: &impl ConnectionTrait,
    function: &FunctionId,
    number: i32,
    by: u32,
) -> Result<()> {
    Entity::update_many()
        .col_expr(Column::Count, Expr::col(Column::Count).add(i64::from(by)))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::FunctionId.eq(function.clone()))
        .filter(Column::VersionNumber.eq(number))
        .exec(db)
        .await?;
    Ok(())
}
