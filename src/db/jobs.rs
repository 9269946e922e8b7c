//! Jobs. What fires one moves it by an update that names the instant it saw: the first wins, and nobody
//! starts an instant twice.

use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::{Filter, Page, Result, Transaction, page, updated, within};
use crate::model::job::{ActiveModel, Column, Entity, Model};
use crate::model::{JobId, JobStatus, Scope, Timestamp};

pub async fn insert(db: &impl ConnectionTrait, job: Model) -> Result<()> {
    Entity::insert(job.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &JobId, scope: &Scope) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId)).one(db).await?)
}

/// As [`find`], in a transaction that will write what follows from the row: nobody else changes it
/// until the end.
pub async fn find_for_update(db: &Transaction, id: &JobId, scope: &Scope) -> Result<Option<Model>> {
    let query = Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId));
    Ok(query.lock_exclusive().one(db).await?)
}

/// From the oldest.
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
pub async fn update(db: &impl ConnectionTrait, change: ActiveModel) -> Result<Option<Model>> {
    let change = ActiveModel { updated_at: sea_orm::Set(Some(Timestamp::now())), ..change };
    updated(change.update(db).await)
}

/// Removes a job; `false` where there is none. What it started goes on.
pub async fn delete(db: &impl ConnectionTrait, id: &JobId, scope: &Scope) -> Result<bool> {
    let done = Entity::delete_many()
        .filter(Column::Id.eq(id.clone()))
        .filter(within(scope, Column::ProjectId))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

/// Running jobs whose instant has come, those first that wait longest.
pub async fn list_due(db: &impl ConnectionTrait, now: Timestamp, limit: u64) -> Result<Vec<Model>> {
    Ok(Entity::find()
        .filter(Column::Status.eq(JobStatus::Running))
        .filter(Column::NextExecutionTime.lte(now))
        .order_by_asc(Column::NextExecutionTime)
        .limit(limit)
        .all(db)
        .await?)
}

/// The first instant of a running job that lies behind `now`.
pub async fn next_instant(db: &impl ConnectionTrait, now: Timestamp) -> Result<Option<Timestamp>> {
    let next: Option<Timestamp> = Entity::find()
        .select_only()
        .column(Column::NextExecutionTime)
        .filter(Column::Status.eq(JobStatus::Running))
        .filter(Column::NextExecutionTime.gt(now))
        .order_by_asc(Column::NextExecutionTime)
        .limit(1)
        .into_tuple()
        .one(db)
        .await?;
    Ok(next)
}

/// What becomes of a job once an instant of it is dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub status: JobStatus,
    pub next: Timestamp,
    pub count: Option<i32>,
    pub reason: Option<String>,
}

/// Moves a job on from the instant that `seen` names.
///
/// `false` means that somebody else did, or that the job was changed or removed: nothing is to be
/// started for it.
pub async fn advance(db: &impl ConnectionTrait, seen: &Model, step: &Step) -> Result<bool> {
    let done = Entity::update_many()
        .col_expr(Column::Status, Expr::value(step.status))
        .col_expr(Column::NextExecutionTime, Expr::value(step.next))
        .col_expr(Column::Count, Expr::value(step.count))
        .col_expr(Column::StatusReason, Expr::value(step.reason.clone()))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(seen.id.clone()))
        .filter(Column::Status.eq(JobStatus::Running))
        .filter(Column::NextExecutionTime.eq(seen.next_execution_time))
        .filter(match seen.count {
            Some(count) => Column::Count.eq(count),
            None => Column::Count.is_null(),
        })
        // Its next instant follows from the pattern.
        .filter(match seen.pattern.as_deref() {
            Some(pattern) => Column::Pattern.eq(pattern),
            None => Column::Pattern.is_null(),
        })
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use sea_orm::Set;

    use super::*;
    use crate::db::testing::{TestDb, database, function, job, own, runtime, stranger};
    use crate::db::{functions, runtimes};

    async fn one() -> (TestDb, Model) {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        let job = job(&function.id, JobStatus::Running);
        insert(&db.writer(), job.clone()).await.unwrap();
        (db, job)
    }

    #[tokio::test]
    async fn another_projects_job_is_not_there() {
        let (db, job) = one().await;
        assert_eq!(find(db.reader(), &job.id, &stranger()).await.unwrap(), None);
        assert_eq!(find(db.reader(), &job.id, &own()).await.unwrap(), Some(job.clone()));
        assert_eq!(find(db.reader(), &job.id, &Scope::All).await.unwrap(), Some(job.clone()));
        assert_eq!(list(db.reader(), &stranger(), None, &Page::default()).await.unwrap(), []);
        let of = |text: &str| Filter::parse(text);
        assert_eq!(
            list(db.reader(), &Scope::All, Some(&of("neq:demo")), &Page::default()).await.unwrap(),
            []
        );
        assert_eq!(
            list(db.reader(), &own(), None, &Page::default()).await.unwrap(),
            std::slice::from_ref(&job)
        );
        assert!(!delete(&db.writer(), &job.id, &stranger()).await.unwrap());
        assert!(delete(&db.writer(), &job.id, &own()).await.unwrap());
        assert!(!delete(&db.writer(), &job.id, &own()).await.unwrap());
    }

    #[tokio::test]
    async fn a_change_leaves_the_rest() {
        let (db, job) = one().await;
        let long = "é".repeat(70_000);
        let change = ActiveModel {
            id: Set(job.id.clone()),
            function_input: Set(Some(long.clone())),
            ..Default::default()
        };
        let transaction = db.begin().await.unwrap();
        assert_eq!(find_for_update(&transaction, &job.id, &own()).await.unwrap(), Some(job.clone()));
        let changed = update(&transaction, change).await.unwrap().unwrap();
        transaction.commit().await.unwrap();
        assert!(changed.updated_at > job.updated_at);
        let expected = Model { function_input: Some(long), updated_at: changed.updated_at, ..job };
        assert_eq!(find(db.reader(), &changed.id, &own()).await.unwrap(), Some(expected));
    }

    #[tokio::test]
    async fn what_is_due_is_found_in_order() {
        let (db, job) = one().await;
        let mut ids = vec![job.id.clone()];
        for (at, status) in [(9, JobStatus::Running), (2, JobStatus::Paused), (6, JobStatus::Running)] {
            let other =
                Model { id: JobId::random(), next_execution_time: Timestamp(at), status, ..job.clone() };
            ids.push(other.id.clone());
            insert(&db.writer(), other).await.unwrap();
        }
        let due = async |now, limit| {
            let due = list_due(db.reader(), Timestamp(now), limit).await.unwrap();
            due.into_iter().map(|job| job.id).collect::<Vec<_>>()
        };
        assert_eq!(due(3, 9).await, []);
        assert_eq!(due(8, 9).await, [ids[0].clone(), ids[3].clone()]);
        assert_eq!(due(9, 2).await, [ids[0].clone(), ids[3].clone()]);
        let next = async |now| next_instant(db.reader(), Timestamp(now)).await.unwrap();
        assert_eq!(
            (next(0).await, next(4).await, next(9).await),
            (Some(Timestamp(4)), Some(Timestamp(6)), None)
        );
    }

    #[tokio::test]
    async fn a_job_moves_only_from_the_instant_that_was_seen() {
        let (db, job) = one().await;
        let bare = Model { id: JobId::random(), count: None, pattern: None, ..job.clone() };
        insert(&db.writer(), bare.clone()).await.unwrap();
        for seen in [job, bare] {
            let step = Step {
                status: JobStatus::Running,
                next: Timestamp(100),
                count: seen.count.map(|count| count - 1),
                reason: None,
            };
            for other in [
                Model { next_execution_time: Timestamp(5), ..seen.clone() },
                Model { count: Some(9), ..seen.clone() },
                Model { pattern: Some("* * * * *".into()), ..seen.clone() },
                Model { id: JobId::random(), ..seen.clone() },
            ] {
                assert!(!advance(&db.writer(), &other, &step).await.unwrap());
            }
            assert!(advance(&db.writer(), &seen, &step).await.unwrap());
            assert!(!advance(&db.writer(), &seen, &step).await.unwrap(), "twice");
            let moved = find(db.reader(), &seen.id, &Scope::All).await.unwrap().unwrap();
            let expected = Model {
                next_execution_time: step.next,
                count: step.count,
                status_reason: None,
                updated_at: moved.updated_at,
                ..seen
            };
            assert_eq!(moved, expected);
            let paused = Step { status: JobStatus::Paused, ..step.clone() };
            assert!(advance(&db.writer(), &moved, &paused).await.unwrap());
            let moved = find(db.reader(), &moved.id, &Scope::All).await.unwrap().unwrap();
            assert!(!advance(&db.writer(), &moved, &step).await.unwrap(), "paused");
        }
    }
}
