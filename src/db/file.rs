//! What SQLite's file is spared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sea_orm::sea_query::Values;
use sea_orm::sqlx::{self, AssertSqlSafe, Executor, Row, SqlitePool};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use tokio::time::sleep;

use crate::telemetry::Chain;

/// Pages that the log may have before a commit moves them into the file and waits for the disk, as far as
/// [`fold`] has not: what it leaves is what was written meanwhile. A commit of one execution writes about ten.
pub(super) const LOG_PAGES: &str = "20000";
/// What is left of the log's file once it was moved; it may be longer meanwhile.
pub(super) const LOG_BYTES: &str = "100663296";

/// Between two looks at how much was committed.
const LOOK: Duration = Duration::from_millis(50);
/// Commits whose pages are worth a move. Each move has the disk busy for milliseconds, in which commits are slow.
const WORTH: u64 = 500;

/// Most characters of statements that are kept prepared.
const KEPT: usize = 8 << 10;

/// Moves the log into the file while others write, so that no commit has to wait for the disk. It never ends.
pub(super) async fn fold(reader: &DatabaseConnection, commits: &AtomicU64) {
    let mut folded = commits.load(Ordering::Relaxed);
    loop {
        sleep(LOOK).await;
        let committed = commits.load(Ordering::Relaxed);
        if committed - folded < WORTH {
            continue;
        }
        folded = committed;
        // A connection that may change no data may still do this.
        if let Err(error) = reader.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await {
            tracing::debug!(error = %Chain(&error), "the log cannot be moved into the file yet");
        }
    }
}

/// Writes all statements or none, with one question to the connection's thread: begin, each statement and
/// commit would be a question each, and both threads would have to be woken for every one of them. Gives the
/// first column of all rows that they return.
///
/// Dropped half way, it may leave a transaction open; who calls it awaits it.
pub(super) async fn commit_all(pool: &SqlitePool, statements: Vec<Statement>) -> Result<Vec<String>, DbErr> {
    let mut text = "BEGIN IMMEDIATE;".to_owned();
    let mut values = Vec::new();
    for statement in statements {
        text.push_str(&statement.sql);
        text.push(';');
        values.extend(statement.values.into_iter().flat_map(|values| values.0));
    }
    text.push_str("COMMIT");
    let mut connection =
        pool.acquire().await.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))?;
    let is_kept = text.len() <= KEPT;
    let values = SqlxValues(Values(values));
    let query = sqlx::query_with(AssertSqlSafe(text), values).persistent(is_kept);
    let rows = query.fetch_all(&mut *connection).await;
    let texts = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    let Err(error) = texts else { return texts.map_err(failed) };
    // Nobody else is to find the transaction open. Where SQLite ended it, or cannot, the connection ends.
    if connection.execute("ROLLBACK").await.is_err() {
        let _ = connection.close().await;
    }
    Err(failed(error))
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait, QueryTrait};

    use crate::db::testing::{database, execution, function, runtime};
    use crate::db::{Error, executions, functions, runtimes};
    use crate::model::{ExecutionStatus, Scope};

    /// What was written while nobody who writes had to move it.
    #[tokio::test]
    async fn the_log_is_moved_into_the_file_beside_those_who_write() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("db.sqlite");
        let config = crate::config::Database {
            connection: format!("sqlite:///{}", file.display()),
            ..Default::default()
        };
        let db = crate::db::Db::connect(&config).await.unwrap();
        db.migrate().await.unwrap();
        let size = || std::fs::metadata(&file).unwrap().len();
        let folding = tokio::spawn({
            let db = db.clone();
            async move { db.fold_log().await }
        });
        // Once it has looked how much there was.
        tokio::task::yield_now().await;
        let before = size();
        for _ in 0..super::WORTH {
            runtimes::insert(&db.writer(), runtime()).await.unwrap();
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while size() == before {
            assert!(std::time::Instant::now() < deadline, "nothing was moved");
            tokio::time::sleep(super::LOOK).await;
        }
        folding.abort();
    }

    #[tokio::test]
    async fn all_statements_are_committed_or_none_and_the_connection_serves_on() {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        let count = async || {
            let row = functions::find(db.reader(), &function.id, &Scope::All).await.unwrap();
            row.unwrap().count - function.count
        };
        let row = || crate::model::execution::Model {
            function_id: function.id.clone(),
            ..execution(ExecutionStatus::Success)
        };
        let counted = |by| functions::counting(&function.id, by).build(db.backend());
        let before = db.commits();
        let first = row();
        let mut statements = executions::inserts(db.backend(), vec![first.clone()]);
        statements.extend([counted(2), counted(3)]);
        db.commit_all(statements).await.unwrap();
        assert_eq!((count().await, db.commits() - before), (5, 1));

        let second = row();
        let mut statements = vec![counted(7)];
        statements.extend(executions::inserts(db.backend(), vec![second.clone()]));
        statements.extend(executions::inserts(db.backend(), vec![first]));
        let error = db.commit_all(statements).await.unwrap_err();
        assert!(matches!(error, Error::Duplicate { .. }), "{error:?}");
        assert_eq!((count().await, db.commits() - before), (5, 1));
        assert_eq!(executions::find(db.reader(), &second.id, &Scope::All).await.unwrap(), None);

        db.writer().execute_raw(counted(1)).await.unwrap();
        db.commit_all(vec![counted(1)]).await.unwrap();
        assert_eq!(count().await, 7);
    }
}
