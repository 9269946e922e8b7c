//! What a project has of what is limited.

use sea_orm::sea_query::{Alias, Asterisk, Expr, ExprTrait, Func, OnConflict, Query, UnionType};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect, Select,
};

use super::functions::OVER;
use super::{Result, Transaction, executions};
use crate::model::{ProjectId, alias, function, job, quota_lock, version, webhook};
use crate::quota::Resource;

/// Keeps others from adding to what a project has, until the end of the transaction. On SQLite the
/// transaction itself does.
pub async fn hold(tx: &Transaction, project: &ProjectId) -> Result<()> {
    if tx.get_database_backend() == DbBackend::Sqlite {
        return Ok(());
    }
    let row = quota_lock::Model { project_id: project.clone() };
    // Locks the row, be it there or not.
    let locked = OnConflict::column(quota_lock::Column::ProjectId)
        .update_column(quota_lock::Column::ProjectId)
        .to_owned();
    quota_lock::Entity::insert(row.into_active_model())
        .on_conflict(locked)
        .exec_without_returning(tx)
        .await?;
    Ok(())
}

/// How much of something a project has. A job that is over counts no more; of executions those count that
/// were accepted and have not ended, without synchronous ones.
pub async fn used(db: &impl ConnectionTrait, project: &ProjectId, resource: Resource) -> Result<u64> {
    let used = match resource {
        Resource::Functions => {
            let of_project = function::Entity::find().filter(function::Column::ProjectId.eq(project.clone()));
            count(db, of_project).await?
        }
        Resource::FunctionVersions => {
            let of_project = version::Entity::find().filter(version::Column::ProjectId.eq(project.clone()));
            count(db, of_project).await?
        }
        Resource::FunctionAliases => {
            let of_project = alias::Entity::find().filter(alias::Column::ProjectId.eq(project.clone()));
            count(db, of_project).await?
        }
        Resource::Jobs => {
            let of_project = job::Entity::find().filter(job::Column::ProjectId.eq(project.clone()));
            count(db, of_project.filter(job::Column::Status.is_not_in(OVER))).await?
        }
        Resource::Webhooks => {
            let of_project = webhook::Entity::find().filter(webhook::Column::ProjectId.eq(project.clone()));
            count(db, of_project).await?
        }
        Resource::ConcurrentExecutions => count(db, executions::queued_of(project)).await?,
        Resource::PackageBytes => package_bytes(db, project).await?,
    };
    Ok(u64::try_from(used).unwrap_or(0))
}

/// Rows and not values, so that an index that has the condition is enough.
async fn count<E: EntityTrait>(db: &impl ConnectionTrait, rows: Select<E>) -> Result<i64> {
    let all = Expr::col(Asterisk).count();
    let count: Option<i64> =
        rows.select_only().column_as(all, "rows_of_project").into_tuple().one(db).await?;
    Ok(count.unwrap_or(0))
}

/// Each package once, however many functions and versions refer to it.
async fn package_bytes(db: &impl ConnectionTrait, project: &ProjectId) -> Result<i64> {
    let (digest, bytes) = (Alias::new("digest"), Alias::new("bytes"));
    let mut packages = Query::select();
    packages
        .expr_as(Expr::col(function::Column::PackageDigest), digest.clone())
        .expr_as(Expr::col(function::Column::PackageBytes), bytes.clone())
        .from(function::Entity)
        .and_where(Expr::col(function::Column::ProjectId).eq(project.clone()))
        .and_where(Expr::col(function::Column::PackageDigest).is_not_null());
    let mut published = Query::select();
    published
        .expr_as(Expr::col(version::Column::PackageDigest), digest)
        .expr_as(Expr::col(version::Column::PackageBytes), bytes.clone())
        .from(version::Entity)
        .and_where(Expr::col(version::Column::ProjectId).eq(project.clone()))
        .and_where(Expr::col(version::Column::PackageDigest).is_not_null());
    packages.union(UnionType::Distinct, published);
    // The sum of such numbers is one of another type on the servers.
    let whole = if db.get_database_backend() == DbBackend::MySql { "SIGNED" } else { "BIGINT" };
    let sum = Expr::expr(Func::coalesce([Expr::col(bytes).sum(), Expr::val(0_i64)])).cast_as(whole);
    let mut total = Query::select();
    total.expr_as(sum, Alias::new("total")).from_subquery(packages, Alias::new("packages"));
    let row = db.query_one(&total).await?;
    Ok(row.map(|row| row.try_get("", "total")).transpose()?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{self, database};
    use crate::db::{aliases, executions, functions, runtimes, versions, webhooks};
    use crate::model::{ExecutionStatus, JobStatus, execution};

    #[tokio::test]
    async fn what_a_project_has_is_counted_without_what_others_have() {
        let db = database().await;
        let runtime = testing::runtime();
        runtimes::insert(&db.writer(), runtime.clone()).await.unwrap();
        for project in ["demo", "other"] {
            let function = function::Model { project_id: project.into(), ..testing::function(&runtime.id) };
            functions::insert(&db.writer(), function.clone()).await.unwrap();
            for number in [1, 2] {
                let version =
                    version::Model { package_bytes: Some(9), ..testing::version(&function, number) };
                versions::insert(&db.writer(), version).await.unwrap();
            }
            aliases::insert(&db.writer(), testing::alias(&function, "prod", 1)).await.unwrap();
            for status in [JobStatus::Running, JobStatus::Paused, JobStatus::Done, JobStatus::Cancelled] {
                let job = job::Model { project_id: project.into(), ..testing::job(&function.id, status) };
                super::super::jobs::insert(&db.writer(), job).await.unwrap();
            }
            let webhook = webhook::Model { project_id: project.into(), ..testing::webhook(&function.id) };
            webhooks::insert(&db.writer(), webhook).await.unwrap();
            for (status, sync) in [
                (ExecutionStatus::Pending, false),
                (ExecutionStatus::Running, false),
                (ExecutionStatus::Running, true),
                (ExecutionStatus::Failed, false),
            ] {
                let row = execution::Model { project_id: project.into(), sync, ..testing::execution(status) };
                executions::insert(&db.writer(), row).await.unwrap();
            }
        }
        let used = async |project: &str| {
            let mut all = Vec::new();
            for resource in Resource::ALL {
                all.push(super::used(db.reader(), &project.into(), resource).await.unwrap());
            }
            all
        };
        assert_eq!(used("demo").await, [1, 2, 1, 2, 1, 2, (6 << 30) + 9]);
        assert_eq!(used("demo").await, used("other").await);
        assert_eq!(used("nobody").await, [0; 7]);
    }
}
