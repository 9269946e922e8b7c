use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    UpdateMany,
};

use super::functions::OVER;
use super::{Changes, Page, Result, page};
use crate::model::version::{Column, Entity, Model};
use crate::model::{FunctionId, Timestamp, alias, job, webhook};

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
    list_page(db, function, &Page::default()).await
}

/// A part of them.
pub async fn list_page(
    db: &impl ConnectionTrait,
    function: &FunctionId,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    let visible = Entity::find().filter(Column::FunctionId.eq(function.clone()));
    page::rows(db, visible, Condition::all(), page).await
}

pub async fn increment_count(
    db: &impl ConnectionTrait,
    function: &FunctionId,
    number: i32,
    by: u32,
) -> Result<()> {
    counting(function, number, by).exec(db).await?;
    Ok(())
}

/// What [`increment_count`] does.
pub fn counting(function: &FunctionId, number: i32, by: u32) -> UpdateMany<Entity> {
    Entity::update_many()
        .col_expr(Column::Count, Expr::col(Column::Count).add(i64::from(by)))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::FunctionId.eq(function.clone()))
        .filter(Column::VersionNumber.eq(number))
}

/// Removes a version; `false` where it is gone already. In a transaction that holds the function, behind
/// the guards below. An alias that meant the version before it was changed has nothing to return to.
pub async fn delete(db: &impl Changes, function: &FunctionId, number: i32) -> Result<bool> {
    alias::Entity::update_many()
        .col_expr(alias::Column::PreviousVersion, Expr::value(None::<i32>))
        .filter(alias::Column::FunctionId.eq(function.clone()))
        .filter(alias::Column::PreviousVersion.eq(number))
        .exec(db)
        .await?;
    let deleted = Entity::delete_many()
        .filter(Column::FunctionId.eq(function.clone()))
        .filter(Column::VersionNumber.eq(number))
        .exec(db)
        .await?;
    db.note_change();
    Ok(deleted.rows_affected == 1)
}

/// Jobs that name the version itself and are not over. Jobs by alias are held by the alias.
pub async fn has_live_jobs(db: &impl ConnectionTrait, function: &FunctionId, number: i32) -> Result<bool> {
    let live = job::Entity::find()
        .filter(job::Column::FunctionId.eq(function.clone()))
        .filter(job::Column::FunctionVersion.eq(number))
        .filter(job::Column::Status.is_not_in(OVER));
    Ok(live.count(db).await? > 0)
}

pub async fn has_webhooks(db: &impl ConnectionTrait, function: &FunctionId, number: i32) -> Result<bool> {
    let webhooks = webhook::Entity::find()
        .filter(webhook::Column::FunctionId.eq(function.clone()))
        .filter(webhook::Column::FunctionVersion.eq(number));
    Ok(webhooks.count(db).await? > 0)
}

/// Aliases that give the version to all of their calls, or to some.
pub async fn has_aliases(db: &impl ConnectionTrait, function: &FunctionId, number: i32) -> Result<bool> {
    let meant = Condition::any()
        .add(alias::Column::FunctionVersion.eq(number))
        .add(alias::Column::CanaryVersion.eq(number));
    let aliases = alias::Entity::find().filter(alias::Column::FunctionId.eq(function.clone())).filter(meant);
    Ok(aliases.count(db).await? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{self, database, function, project, runtime, version};
    use crate::db::{aliases, functions, runtimes};
    use crate::model::JobStatus;

    #[tokio::test]
    async fn the_guards_of_a_version_see_what_names_it() {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        let id = &function.id;
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        for number in 1..=5 {
            insert(&db.writer(), version(&function, number)).await.unwrap();
        }
        let job_of = async |number: i32, status: JobStatus| {
            let job = job::Model { function_version: Some(number), ..testing::job(id, status) };
            job::Entity::insert(job.into_active_model()).exec_without_returning(&db.writer()).await.unwrap();
        };
        job_of(1, JobStatus::Paused).await;
        job_of(2, JobStatus::Cancelled).await;
        let webhook = webhook::Model { function_version: Some(2), ..testing::webhook(id) };
        let webhook = webhook.into_active_model();
        webhook::Entity::insert(webhook).exec_without_returning(&db.writer()).await.unwrap();
        let alias = alias::Model {
            canary_version: Some(4),
            previous_version: Some(5),
            ..testing::alias(&function, "prod", 3)
        };
        aliases::insert(&db.writer(), alias.clone()).await.unwrap();

        let other = &FunctionId::random();
        for number in 1..=5 {
            let found = (
                has_live_jobs(db.reader(), id, number).await.unwrap(),
                has_webhooks(db.reader(), id, number).await.unwrap(),
                has_aliases(db.reader(), id, number).await.unwrap(),
            );
            assert_eq!(found, (number == 1, number == 2, [3, 4].contains(&number)), "{number}");
            assert!(!has_live_jobs(db.reader(), other, number).await.unwrap());
            assert!(!has_webhooks(db.reader(), other, number).await.unwrap());
            assert!(!has_aliases(db.reader(), other, number).await.unwrap());
        }

        let transaction = db.begin().await.unwrap();
        assert!(delete(&transaction, id, 5).await.unwrap());
        assert!(!delete(&transaction, id, 5).await.unwrap());
        transaction.commit().await.unwrap();
        let left = list(db.reader(), id).await.unwrap();
        assert_eq!(left.iter().map(|row| row.version_number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let row = aliases::find(db.reader(), &project(), "prod").await.unwrap().unwrap();
        assert_eq!(row, alias::Model { previous_version: None, ..alias });
    }
}
