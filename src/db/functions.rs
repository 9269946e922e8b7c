use std::collections::BTreeSet;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, UpdateMany,
};

use super::{Changes, Filter, Page, Result, Transaction, page, updated, within};
use crate::model::function::{ActiveModel, Column, Entity, Model};
use crate::model::{
    FunctionId, FunctionStatus, JobStatus, RuntimeId, Scope, Timestamp, alias, job, version, webhook,
};

pub async fn insert(db: &impl ConnectionTrait, function: Model) -> Result<()> {
    Entity::insert(function.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &FunctionId, scope: &Scope) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId)).one(db).await?)
}

/// As [`find`], in a transaction that will write what follows from the row: nobody else changes it
/// until the end. On SQLite the transaction itself sees to that.
pub async fn find_for_update(db: &Transaction, id: &FunctionId, scope: &Scope) -> Result<Option<Model>> {
    let query = Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId));
    Ok(query.lock_exclusive().one(db).await?)
}

pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    project_id: Option<&Filter>,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    let visible = Entity::find().filter(within(scope, Column::ProjectId));
    page::rows(db, visible, page::on(project_id, Column::ProjectId), page).await
}

/// Writes what `change` sets, and returns the row; `None` where it is gone.
pub async fn update(db: &impl Changes, change: ActiveModel) -> Result<Option<Model>> {
    let change = ActiveModel { updated_at: sea_orm::Set(Some(Timestamp::now())), ..change };
    let row = updated(change.update(db).await)?;
    db.note_change();
    Ok(row)
}

/// Removes the function and its versions, and takes it out of jobs that are over; `false` where it
/// is gone already. In a transaction, behind the guards below: what still refers to the function
/// makes this [`super::Error::Referenced`].
pub async fn delete(db: &impl Changes, id: &FunctionId) -> Result<bool> {
    job::Entity::update_many()
        .col_expr(job::Column::FunctionId, Expr::value(None::<FunctionId>))
        .filter(job::Column::FunctionId.eq(id.clone()))
        .filter(job::Column::Status.is_in(OVER))
        .exec(db)
        .await?;
    let deleted = Entity::delete_by_id(id.clone()).exec(db).await?;
    db.note_change();
    Ok(deleted.rows_affected == 1)
}

/// Counts executions of version 0. The time of the last one is the function's `updated_at`.
pub async fn increment_count(db: &impl ConnectionTrait, id: &FunctionId, by: u32) -> Result<()> {
    counting(id, by).exec(db).await?;
    Ok(())
}

/// What [`increment_count`] does.
pub fn counting(id: &FunctionId, by: u32) -> UpdateMany<Entity> {
    Entity::update_many()
        .col_expr(Column::Count, Expr::col(Column::Count).add(i64::from(by)))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(id.clone()))
}

/// Notes that a function's object has another content; `false` where others noted one meanwhile.
pub async fn set_object(
    db: &impl Changes,
    id: &FunctionId,
    from: Option<&str>,
    etag: &str,
    bytes: i64,
) -> Result<bool> {
    let done = Entity::update_many()
        .col_expr(Column::ObjectEtag, Expr::value(etag))
        .col_expr(Column::PackageBytes, Expr::value(bytes))
        .filter(Column::Id.eq(id.clone()))
        .filter(match from {
            Some(from) => Column::ObjectEtag.eq(from),
            None => Column::ObjectEtag.is_null(),
        })
        .exec(db)
        .await?;
    db.note_change();
    Ok(done.rows_affected == 1)
}

/// Functions whose image is still to be looked for.
pub async fn list_creating(db: &impl ConnectionTrait) -> Result<Vec<Model>> {
    let creating = Entity::find().filter(Column::Status.eq(FunctionStatus::Creating));
    Ok(creating.order_by_asc(Column::CreatedAt).all(db).await?)
}

/// Functions without a runtime, which images are.
pub async fn list_without_runtime(db: &impl ConnectionTrait) -> Result<Vec<Model>> {
    let rows = Entity::find().filter(Column::RuntimeId.is_null());
    Ok(rows.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id).all(db).await?)
}

/// Notes what came of looking for the image of a function; `false` where others noted it meanwhile.
pub async fn set_image(
    db: &impl Changes,
    id: &FunctionId,
    found: std::result::Result<&str, &str>,
) -> Result<bool> {
    let status = if found.is_ok() { FunctionStatus::Available } else { FunctionStatus::Error };
    let done = Entity::update_many()
        .col_expr(Column::Status, Expr::value(status))
        .col_expr(Column::ImageDigest, Expr::value(found.ok()))
        .col_expr(Column::StatusReason, Expr::value(found.err()))
        .filter(Column::Id.eq(id.clone()))
        .filter(Column::Status.eq(FunctionStatus::Creating))
        .exec(db)
        .await?;
    db.note_change();
    Ok(done.rows_affected == 1)
}

/// Jobs that will not run again.
pub(super) const OVER: [JobStatus; 2] = [JobStatus::Done, JobStatus::Cancelled];

/// Jobs that name the function itself and are not over. Jobs by alias are held by the alias.
pub async fn has_live_jobs(db: &impl ConnectionTrait, id: &FunctionId) -> Result<bool> {
    let live = job::Entity::find()
        .filter(job::Column::FunctionId.eq(id.clone()))
        .filter(job::Column::Status.is_not_in(OVER));
    Ok(live.count(db).await? > 0)
}

pub async fn has_webhooks(db: &impl ConnectionTrait, id: &FunctionId) -> Result<bool> {
    let webhooks = webhook::Entity::find().filter(webhook::Column::FunctionId.eq(id.clone()));
    Ok(webhooks.count(db).await? > 0)
}

pub async fn has_aliases(db: &impl ConnectionTrait, id: &FunctionId) -> Result<bool> {
    let aliases = alias::Entity::find().filter(alias::Column::FunctionId.eq(id.clone()));
    Ok(aliases.count(db).await? > 0)
}

/// Whether a function or a version of any project is written for the runtime.
pub async fn runtime_in_use(db: &impl ConnectionTrait, id: &RuntimeId) -> Result<bool> {
    let functions = Entity::find().filter(Column::RuntimeId.eq(id.clone()));
    let versions = version::Entity::find().filter(version::Column::RuntimeId.eq(id.clone()));
    Ok(functions.count(db).await? > 0 || versions.count(db).await? > 0)
}

/// Whether a function or a version of any project has this package.
pub async fn digest_in_use(db: &impl ConnectionTrait, digest: &str) -> Result<bool> {
    let functions = Entity::find().filter(Column::PackageDigest.eq(digest));
    let versions = version::Entity::find().filter(version::Column::PackageDigest.eq(digest));
    Ok(functions.count(db).await? > 0 || versions.count(db).await? > 0)
}

/// The packages of all functions and versions.
pub async fn list_digests(db: &impl ConnectionTrait) -> Result<BTreeSet<String>> {
    let functions: Vec<String> = Entity::find()
        .select_only()
        .column(Column::PackageDigest)
        .filter(Column::PackageDigest.is_not_null())
        .into_tuple()
        .all(db)
        .await?;
    let versions: Vec<String> = version::Entity::find()
        .select_only()
        .column(version::Column::PackageDigest)
        .filter(version::Column::PackageDigest.is_not_null())
        .into_tuple()
        .all(db)
        .await?;
    Ok(functions.into_iter().chain(versions).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{self, TestDb, alias, database, function, own, runtime, stranger, version};
    use crate::db::{Error, aliases, runtimes, versions};
    use crate::model::RuntimeId;

    async fn one() -> (TestDb, Model) {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        insert(&db.writer(), function.clone()).await.unwrap();
        (db, function)
    }

    #[tokio::test]
    async fn another_projects_function_is_not_there() {
        let (db, function) = one().await;
        assert_eq!(find(db.reader(), &function.id, &stranger()).await.unwrap(), None);
        assert_eq!(find(db.reader(), &function.id, &own()).await.unwrap(), Some(function.clone()));
        assert_eq!(find(db.reader(), &function.id, &Scope::All).await.unwrap(), Some(function.clone()));

        assert_eq!(list(db.reader(), &stranger(), None, &Page::default()).await.unwrap(), []);
        let filtered = async |text: &str| {
            list(db.reader(), &Scope::All, Some(&Filter::parse(text)), &Page::default()).await.unwrap().len()
        };
        assert_eq!((filtered("in:demo,x").await, filtered("neq:demo").await), (1, 0));
    }

    #[tokio::test]
    async fn executions_are_counted_without_losing_one() {
        let (db, function) = one().await;
        versions::insert(&db.writer(), version(&function, 1)).await.unwrap();
        increment_count(&db.writer(), &function.id, 2).await.unwrap();
        increment_count(&db.writer(), &function.id, 3).await.unwrap();
        versions::increment_count(&db.writer(), &function.id, 1, 4).await.unwrap();

        let row = find(db.reader(), &function.id, &own()).await.unwrap().unwrap();
        assert_eq!(row.count, function.count + 5);
        assert!(row.updated_at > function.updated_at);
        let row = versions::find(db.reader(), &function.id, 1).await.unwrap().unwrap();
        assert_eq!(row.count, 11);
        assert_eq!(versions::find(db.reader(), &function.id, 0).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_object_is_noted_over_the_one_that_was_known() {
        let (db, function) = one().await;
        let known = function.object_etag.as_deref();
        assert!(!set_object(&db.writer(), &function.id, None, "e", 1).await.unwrap());
        assert!(set_object(&db.writer(), &function.id, known, "e", 7).await.unwrap());
        assert!(!set_object(&db.writer(), &function.id, known, "f", 8).await.unwrap());
        let row = find(db.reader(), &function.id, &own()).await.unwrap().unwrap();
        assert_eq!((row.object_etag.as_deref(), row.package_bytes), (Some("e"), Some(7)));
    }

    #[tokio::test]
    async fn versions_are_listed_by_number_and_numbers_are_unique() {
        let (db, function) = one().await;
        for number in [2, 10, 1] {
            versions::insert(&db.writer(), version(&function, number)).await.unwrap();
        }
        let listed = versions::list(db.reader(), &function.id).await.unwrap();
        assert_eq!(listed.iter().map(|row| row.version_number).collect::<Vec<_>>(), [1, 2, 10]);
        let error = versions::insert(&db.writer(), version(&function, 2)).await.unwrap_err().to_string();
        let columns = "['project_id', 'function_id', 'version_number']";
        assert_eq!(error, format!("Duplicate entry for function_versions: {columns}"));
    }

    #[tokio::test]
    async fn an_alias_is_unique_by_name_and_by_version() {
        let (db, function) = one().await;
        aliases::insert(&db.writer(), alias(&function, "prod", 1)).await.unwrap();
        let refused = async |name: &str, version: i32| {
            aliases::insert(&db.writer(), alias(&function, name, version)).await.unwrap_err().to_string()
        };
        let prefix = "Duplicate entry for function_aliases:";
        assert_eq!(refused("prod", 2).await, format!("{prefix} ['project_id', 'name']"));
        let columns = "['project_id', 'function_id', 'function_version']";
        assert_eq!(refused("test", 1).await, format!("{prefix} {columns}"));

        let find = async |project: &str, name: &str| {
            aliases::find(db.reader(), &project.into(), name).await.unwrap().is_some()
        };
        assert!(find("demo", "prod").await);
        assert!(!find("other", "prod").await && !find("demo", "Prod").await);
    }

    #[tokio::test]
    async fn the_guards_see_what_still_needs_a_function() {
        let (db, function) = one().await;
        let (id, nobody) = (&function.id, &FunctionId::random());
        for status in OVER {
            job::Entity::insert(testing::job(id, status).into_active_model())
                .exec_without_returning(&db.writer())
                .await
                .unwrap();
        }
        assert!(!has_live_jobs(db.reader(), id).await.unwrap());
        assert!(!has_webhooks(db.reader(), id).await.unwrap());
        assert!(!has_aliases(db.reader(), id).await.unwrap());

        job::Entity::insert(testing::job(id, JobStatus::Paused).into_active_model())
            .exec_without_returning(&db.writer())
            .await
            .unwrap();
        webhook::Entity::insert(testing::webhook(id).into_active_model())
            .exec_without_returning(&db.writer())
            .await
            .unwrap();
        aliases::insert(&db.writer(), alias(&function, "prod", 0)).await.unwrap();
        for (id, expected) in [(id, true), (nobody, false)] {
            assert_eq!(has_live_jobs(db.reader(), id).await.unwrap(), expected);
            assert_eq!(has_webhooks(db.reader(), id).await.unwrap(), expected);
            assert_eq!(has_aliases(db.reader(), id).await.unwrap(), expected);
        }

        let transaction = db.begin().await.unwrap();
        let error = delete(&transaction, id).await.unwrap_err();
        assert!(matches!(error, Error::Referenced(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_deleted_function_takes_its_versions_along_and_leaves_finished_jobs() {
        let (db, function) = one().await;
        versions::insert(&db.writer(), version(&function, 1)).await.unwrap();
        let done = testing::job(&function.id, JobStatus::Done);
        job::Entity::insert(done.clone().into_active_model())
            .exec_without_returning(&db.writer())
            .await
            .unwrap();

        let transaction = db.begin().await.unwrap();
        assert!(delete(&transaction, &function.id).await.unwrap());
        assert!(!delete(&transaction, &function.id).await.unwrap());
        transaction.commit().await.unwrap();

        assert_eq!(find(db.reader(), &function.id, &Scope::All).await.unwrap(), None);
        assert_eq!(versions::list(db.reader(), &function.id).await.unwrap(), []);
        let left = job::Entity::find().all(db.reader()).await.unwrap();
        assert_eq!(left, [job::Model { function_id: None, ..done }]);
    }

    #[tokio::test]
    async fn runtimes_and_packages_are_in_use_by_functions_and_by_versions() {
        let (db, function) = one().await;
        let runtime = function.runtime_id.clone().unwrap();
        let (own, old) = (function.package_digest.clone().unwrap(), "e".repeat(64));
        assert!(runtime_in_use(db.reader(), &runtime).await.unwrap());
        assert!(!runtime_in_use(db.reader(), &RuntimeId::random()).await.unwrap());
        assert!(digest_in_use(db.reader(), &own).await.unwrap());
        assert!(!digest_in_use(db.reader(), &old).await.unwrap());

        let other = testing::runtime();
        runtimes::insert(&db.writer(), other.clone()).await.unwrap();
        let version = version::Model { runtime_id: Some(other.id.clone()), ..version(&function, 1) };
        versions::insert(&db.writer(), version).await.unwrap();
        assert!(runtime_in_use(db.reader(), &other.id).await.unwrap());
        assert!(digest_in_use(db.reader(), &old).await.unwrap());
        assert_eq!(list_digests(db.reader()).await.unwrap(), BTreeSet::from([own, old]));

        let error = runtimes::delete(&db.writer(), &runtime).await.unwrap_err();
        assert!(matches!(error, Error::Referenced(_)), "{error:?}");
    }
}
