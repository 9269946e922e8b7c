//! Keeps what is known of executions within what the operator wants, and ends those that nobody ends.

use std::sync::Arc;

use tokio::time::sleep;

use super::Core;
use crate::config::{self, Executions};
use crate::crash_points::{Write, around};
use crate::db::{self, Db};
use crate::error::Result;
use crate::model::{ExecutionStatus, Outcome, Reason, Timestamp};
use crate::telemetry::Chain;

/// Rows of one transaction: others write in between.
const BATCH: u64 = 200;

/// Deletes executions that are too many or too old until the engine lets go.
pub(super) async fn keep(core: Arc<Core>, config: config::Executions) {
    loop {
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            () = sleep(config.check_interval) => {}
        }
        match trim(&core.db, &config).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "executions that ended long ago were deleted"),
            Err(error) => tracing::warn!(error = %Chain(&error), "executions could not be deleted"),
        }
    }
}

async fn trim(db: &Db, config: &Executions) -> Result<u64> {
    let mut deleted = 0;
    if !config.max_age.is_zero() {
        let before = Timestamp::now().before(config.max_age);
        loop {
            let some =
                around(Write::Retention, db::executions::delete_older(&db.writer(), before, BATCH)).await?;
            deleted += some;
            if some < BATCH {
                break;
            }
        }
    }
    if config.max_per_project > 0 {
        for project in db::executions::list_crowded(db.reader(), config.max_per_project).await? {
            // A time, and not a number: several engines may look after the same project.
            let since = db::executions::surplus_since(db.reader(), &project, config.max_per_project).await?;
            let Some(since) = since else { continue };
            loop {
                let writer = db.writer();
                let deleting = db::executions::delete_of(&writer, &project, since, BATCH);
                let some = around(Write::Retention, deleting).await?;
                deleted += some;
                if some < BATCH {
                    break;
                }
            }
        }
    }
    Ok(deleted)
}

/// Ends executions that should have ended by themselves: whoever had them is not going to say how.
pub(super) async fn end_overdue(core: &Core) -> Result<()> {
    for row in db::executions::list_overdue(core.db.reader(), Timestamp::now(), BATCH).await? {
        // Whoever runs it here keeps its time by a clock that does not jump.
        if row.status == ExecutionStatus::Running && core.cancels.has(&row.id) {
            continue;
        }
        let ended = if row.status == ExecutionStatus::Pending {
            let why = "No engine could run it within [engine] pending_timeout.";
            core.recorder.dismiss(row.id.clone(), Outcome::error(Reason::NoCapacity, why)).await?
        } else {
            let why = "It was not heard of again after its time.";
            core.recorder.finish(row.id.clone(), row.epoch, Outcome::error(Reason::WorkerLost, why)).await?
        };
        if ended {
            tracing::warn!(execution.id = %row.id, status = ?row.status, "an execution that is overdue was ended");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::db::testing::{TestDb, database, execution};
    use crate::model::{ProjectId, Scope, execution::Model};

    async fn with(rows: &[(&str, i64, ExecutionStatus)]) -> TestDb {
        let db = database().await;
        for (project, age, status) in rows {
            let row = Model {
                project_id: ProjectId::from(*project),
                created_at: Timestamp::now().before(Duration::from_secs(u64::try_from(*age).unwrap())),
                description: Some(format!("{project}{age}")),
                ..execution(*status)
            };
            db::executions::insert(&db.writer(), row).await.unwrap();
        }
        db
    }

    async fn left(db: &Db) -> Vec<String> {
        let rows = db::executions::list(db.reader(), &Scope::All, &Default::default(), &Default::default())
            .await
            .unwrap();
        rows.into_iter().filter_map(|row| row.description).collect()
    }

    #[tokio::test]
    async fn what_ended_is_deleted_once_it_is_old() {
        use ExecutionStatus::{Failed, Pending, Running, Success};
        let rows =
            [("a", 9, Success), ("a", 8, Pending), ("b", 7, Running), ("b", 6, Failed), ("b", 1, Success)];
        let db = with(&rows).await;
        let config = Executions { max_age: Duration::from_secs(5), max_per_project: 0, ..Default::default() };
        assert_eq!(trim(&db, &config).await.unwrap(), 2);
        assert_eq!(left(&db).await, ["a8", "b7", "b1"]);
        let never = Executions { max_age: Duration::ZERO, max_per_project: 0, ..Default::default() };
        assert_eq!(trim(&db, &never).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_project_keeps_its_latest() {
        use ExecutionStatus::{Running, Success};
        let rows =
            [("a", 9, Running), ("a", 8, Success), ("a", 7, Success), ("a", 6, Success), ("b", 99, Success)];
        let db = with(&rows).await;
        let config = Executions { max_age: Duration::ZERO, max_per_project: 2, ..Default::default() };
        assert_eq!(trim(&db, &config).await.unwrap(), 1);
        // What runs is kept beside them.
        assert_eq!(left(&db).await, ["b99", "a9", "a7", "a6"]);
        assert_eq!(trim(&db, &config).await.unwrap(), 0);
    }
}
