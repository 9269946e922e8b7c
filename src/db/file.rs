//! What SQLite's file is spared.

use std::sync::Arc;

use sea_orm::sea_query::Values;
use sea_orm::sqlx::{self, AssertSqlSafe, Executor, SqlitePool};
use sea_orm::{DbErr, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;

/// Pages that the log may have before a commit moves them into the file and waits for the disk. A commit
/// of one execution writes about a dozen: with SQLite's own thousand each hundredth caller would wait.
pub(super) const LOG_PAGES: &str = "8000";
/// What is left of the log's file once it was moved; it may be longer meanwhile.
pub(super) const LOG_BYTES: &str = "67108864";

/// Most characters of statements that are kept prepared.
const KEPT: usize = 8 << 10;

/// Writes all statements or none, with one question to the connection's thread: begin, each statement and
/// commit would be a question each, and both threads would have to be woken for every one of them.
///
/// Dropped half way, it may leave a transaction open; who calls it awaits it.
pub(super) async fn commit_all(pool: &SqlitePool, statements: Vec<Statement>) -> Result<(), DbErr> {
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
    let Err(error) = query.execute(&mut *connection).await else { return Ok(()) };
    // Nobody else is to find the transaction open. Where SQLite ended it, or cannot, the connection ends.
    if connection.execute("ROLLBACK").await.is_err() {
        let _ = connection.close().await;
    }
    Err(DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error))))
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait, QueryTrait};

    use crate::db::testing::{database, execution, function, runtime};
    use crate::db::{Error, executions, functions, runtimes};
    use crate::model::{ExecutionStatus, Scope};

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
