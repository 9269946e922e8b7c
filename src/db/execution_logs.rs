use sea_orm::sea_query::{Expr, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, QueryTrait, Statement};

use super::Result;
use crate::model::ExecutionId;
use crate::model::execution_log::{Column, Entity, Model};

/// Rows of one INSERT; SQLite takes 32,766 values in a statement.
const INSERT_ROWS: usize = 500;
/// Bytes of text in one INSERT that has more than one row: MySQL takes 16 MiB.
const INSERT_BYTES: usize = 1 << 20;

/// In the transaction that writes the executions, and after them. An execution that wrote nothing has
/// no row, which is one statement less for most.
///
/// A function may write what it likes, and PostgreSQL stores every character but NUL. So that is
/// kept as `␀`, on all databases.
pub async fn insert_many(db: &impl ConnectionTrait, logs: impl IntoIterator<Item = Model>) -> Result<()> {
    for statement in inserts(db.get_database_backend(), logs) {
        db.execute_raw(statement).await?;
    }
    Ok(())
}

/// What [`insert_many`] does.
pub fn inserts(backend: DbBackend, logs: impl IntoIterator<Item = Model>) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut logs = logs.into_iter().filter(|log| !log.log.is_empty() || log.truncated).peekable();
    while logs.peek().is_some() {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(log) = logs.next_if(|log| {
            bytes += log.log.len();
            group.is_empty() || (group.len() < INSERT_ROWS && bytes <= INSERT_BYTES)
        }) {
            group.push(storable(log).into_active_model());
        }
        statements.push(Entity::insert_many(group).build(backend));
    }
    statements
}

/// What writes the log of an execution that `of` selects, if it does; nothing for one that wrote nothing.
pub fn insert_of(backend: DbBackend, log: Model, mut of: SelectStatement) -> Option<Statement> {
    if log.log.is_empty() && !log.truncated {
        return None;
    }
    let Model { execution_id, log, truncated } = storable(log);
    of.clear_selects().exprs([Expr::val(execution_id), Expr::val(log), Expr::val(truncated)]);
    let mut insert = Query::insert();
    insert.into_table(Entity).columns([Column::ExecutionId, Column::Log, Column::Truncated]);
    insert.select_from(of).expect("as many values as columns");
    Some(backend.build(&insert))
}

fn storable(mut log: Model) -> Model {
    if log.log.contains('\0') {
        log.log = log.log.replace('\0', "\u{2400}");
    }
    log
}

/// `None` where nothing was written, or not yet. Without a scope: who may see the execution may see its
/// log.
pub async fn find(db: &impl ConnectionTrait, id: &ExecutionId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}
