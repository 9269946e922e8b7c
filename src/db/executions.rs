//! Executions. Every status moves by an update that names the status it comes from, and a running
//! row by one that names its epoch too: the first writer wins and the second is told.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

use sea_orm::sea_query::{Expr, ExprTrait, Func, Query, Values};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, Iterable,
    ModelTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select, Statement, UpdateMany,
};

use super::journal::End;
use super::{Db, Filter, Page, Place, Result, execution_logs, functions, page, versions, within};
use crate::crash_points::{Write, around};
use crate::model::execution::{Column, Entity, Model};
use crate::model::{
    EngineId, ExecutionId, ExecutionStatus, FunctionId, Outcome, ProjectId, Scope, Timestamp, WorkerName,
    execution_log,
};

/// Rows of one INSERT; SQLite takes 32,766 values in a statement.
const INSERT_ROWS: usize = 500;
/// Groups of up to so many rows have the text of their INSERT kept.
const KEPT_TEXTS: usize = 16;
/// Bytes of input and result in one INSERT that has more than one row: MySQL takes 16 MiB.
const INSERT_BYTES: usize = 1 << 20;

pub async fn insert(db: &impl ConnectionTrait, execution: Model) -> Result<()> {
    Entity::insert(execution.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// In a transaction, where all or none are to be written.
pub async fn insert_many(db: &impl ConnectionTrait, executions: Vec<Model>) -> Result<()> {
    for statement in inserts(db.get_database_backend(), executions) {
        db.execute_raw(statement).await?;
    }
    Ok(())
}

/// What writes new rows.
pub fn inserts(backend: DbBackend, executions: Vec<Model>) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut rows = executions.into_iter().peekable();
    while rows.peek().is_some() {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next_if(|row| {
            bytes += [&row.input, &row.result].into_iter().flatten().map(String::len).sum::<usize>();
            group.is_empty() || (group.len() < INSERT_ROWS && bytes <= INSERT_BYTES)
        }) {
            group.push(row);
        }
        statements.push(insert_of(backend, group));
    }
    statements
}

/// One INSERT. Its text is the same for every group of that size, and to write it takes longer than all else
/// about a row: that of small groups is kept.
fn insert_of(backend: DbBackend, rows: Vec<Model>) -> Statement {
    static TEXTS: [OnceLock<(DbBackend, String)>; KEPT_TEXTS] = [const { OnceLock::new() }; KEPT_TEXTS];
    let kept = TEXTS.get(rows.len() - 1);
    match kept.and_then(OnceLock::get) {
        Some((of, text)) if *of == backend => {
            let values = rows.iter().flat_map(|row| Column::iter().map(|column| row.get(column))).collect();
            Statement { sql: text.clone(), values: Some(Values(values)), db_backend: backend }
        }
        _ => {
            let statement =
                Entity::insert_many(rows.into_iter().map(Model::into_active_model)).build(backend);
            if let Some(kept) = kept {
                // Another thread's is the same.
                let _ = kept.set((backend, statement.sql.clone()));
            }
            statement
        }
    }
}

/// What writes new rows with their logs, and counts them with their functions, in an order that holds.
pub fn additions(backend: DbBackend, rows: Vec<Model>, logs: Vec<execution_log::Model>) -> Vec<Statement> {
    // In one order, so that two processes that count the same functions do not wait for each other.
    let mut counts: BTreeMap<(FunctionId, i32), u32> = BTreeMap::new();
    for row in &rows {
        *counts.entry((row.function_id.clone(), row.function_version)).or_default() += 1;
    }
    let mut statements = inserts(backend, rows);
    statements.extend(execution_logs::inserts(backend, logs));
    statements.extend(counts.into_iter().map(|((function, version), by)| match version {
        0 => functions::counting(&function, by).build(backend),
        number => versions::counting(&function, number, by).build(backend),
    }));
    statements
}

/// What writes ends that were noted. Of one that has a row by then, or runs no more, it writes nothing.
pub fn ends(backend: DbBackend, ends: &[End]) -> Vec<Statement> {
    let whole = ends.iter().filter_map(|end| match end {
        End::Whole { row, log } => Some(((**row).clone(), log.clone())),
        End::Running { .. } => None,
    });
    let (rows, logs) = whole.unzip();
    let mut statements = additions(backend, rows, logs);
    for end in ends {
        if let End::Running { id, epoch, outcome } = end {
            statements.extend(finishing(backend, id, *epoch, outcome));
        }
    }
    statements
}

/// Writes ends that were noted, though some may be written already. For the one process that has the database.
pub async fn write_again(db: &Db, mut noted: Vec<End>) -> Result<()> {
    while !noted.is_empty() {
        let mut group = noted.split_off(noted.len().saturating_sub(INSERT_ROWS));
        let mut there = HashSet::new();
        for end in &group {
            if matches!(end, End::Whole { .. }) && find(db.reader(), end.id(), &Scope::All).await?.is_some() {
                there.insert(end.id().clone());
            }
        }
        group.retain(|end| !there.contains(end.id()));
        around(Write::Replay, db.commit_all(ends(db.backend(), &group))).await?;
    }
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &ExecutionId, scope: &Scope) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId)).one(db).await?)
}

/// What a user asks of a list.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    pub function_id: Option<Filter>,
    pub project_id: Option<Filter>,
    /// In the words that the v1 API shows.
    pub status: Option<Filter>,
    pub description: Option<Filter>,
    pub reason: Option<Filter>,
}

impl Filters {
    fn condition(&self) -> Condition {
        let columns = [
            (&self.function_id, Column::FunctionId),
            (&self.project_id, Column::ProjectId),
            (&self.description, Column::Description),
            (&self.reason, Column::Reason),
        ];
        let mut all = Condition::all();
        for (filter, column) in columns {
            all = all.add(page::on(filter.as_ref(), column));
        }
        if let Some(filter) = &self.status {
            all = all.add(filter.on_status());
        }
        all
    }
}

/// From the oldest, unless the page says otherwise.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    filters: &Filters,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    page::rows(db, Entity::find().filter(within(scope, Column::ProjectId)), filters.condition(), page).await
}

/// How many bytes of text the rows of such a list have, from a place on and at most `limit` of them.
pub async fn sizes(
    db: &impl ConnectionTrait,
    scope: &Scope,
    filters: &Filters,
    page: &Page<Entity>,
    place: Option<&Place>,
    limit: u64,
) -> Result<Vec<i64>> {
    let bytes = |column: Column| {
        let length = Func::cust("octet_length").arg(Expr::col(column.as_column_ref()));
        // As wide as what it is read into, which PostgreSQL's length is not.
        Expr::expr(Func::coalesce([length.into(), Expr::val(0_i64)]))
    };
    let query = Entity::find().filter(within(scope, Column::ProjectId)).filter(filters.condition());
    let query = query.select_only().expr_as(bytes(Column::Input).add(bytes(Column::Result)), "bytes");
    let query = page::after(query, place, page).limit(limit);
    let sizes: Vec<i64> = query.into_tuple().all(db).await?;
    Ok(sizes)
}

/// What follows a place in such a list, as far as it was there at `until`: a list comes to an end, however
/// fast executions are created.
pub async fn list_on(
    db: &impl ConnectionTrait,
    scope: &Scope,
    filters: &Filters,
    page: &Page<Entity>,
    place: &Place,
    until: Timestamp,
) -> Result<Vec<Model>> {
    let query = Entity::find().filter(within(scope, Column::ProjectId)).filter(filters.condition());
    let query = query.filter(Column::CreatedAt.lte(until));
    page::rows_after(db, query, Some(place), page).await
}

/// Removes an execution and its log; `false` where there is none. What runs goes on running.
pub async fn delete(db: &impl ConnectionTrait, id: &ExecutionId, scope: &Scope) -> Result<bool> {
    let done = Entity::delete_many()
        .filter(Column::Id.eq(id.clone()))
        .filter(within(scope, Column::ProjectId))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

/// Takes a pending execution for an engine, which alone may then run it.
///
/// Returns the epoch under which it may write the end, or `None` where another engine was first or
/// the execution was cancelled.
pub async fn claim(
    db: &impl ConnectionTrait,
    id: &ExecutionId,
    epoch_from: i64,
    engine: &EngineId,
    worker: &WorkerName,
    deadline: Timestamp,
) -> Result<Option<i64>> {
    let done = claimed(id, epoch_from, engine, worker, deadline).exec(db).await?;
    Ok((done.rows_affected == 1).then_some(epoch_from + 1))
}

fn claimed(
    id: &ExecutionId,
    epoch_from: i64,
    engine: &EngineId,
    worker: &WorkerName,
    deadline: Timestamp,
) -> UpdateMany<Entity> {
    moving(id, ExecutionStatus::Pending)
        .col_expr(Column::Status, Expr::value(ExecutionStatus::Running))
        .col_expr(Column::Epoch, Expr::value(epoch_from + 1))
        .col_expr(Column::EngineId, Expr::value(engine.clone()))
        .col_expr(Column::Worker, Expr::value(worker.clone()))
        .col_expr(Column::DeadlineAt, Expr::value(deadline))
        .filter(Column::Epoch.eq(epoch_from))
}

/// [`claim`] as one of several statements that are committed at once: see [`Moved`].
pub fn claiming(
    backend: DbBackend,
    id: &ExecutionId,
    epoch_from: i64,
    engine: &EngineId,
    worker: &WorkerName,
    deadline: Timestamp,
) -> Statement {
    returning(backend, claimed(id, epoch_from, engine, worker, deadline))
}

/// Takes a running execution from an engine that is dead. Its worker stays: it may be alive, and
/// hold the outcome.
///
/// Returns the epoch under which the new engine may write the end, or `None` where another was
/// first or the execution ended. The dead engine, should it wake, can no longer write one.
pub async fn take_over(
    db: &impl ConnectionTrait,
    id: &ExecutionId,
    epoch_from: i64,
    engine: &EngineId,
    deadline: Timestamp,
) -> Result<Option<i64>> {
    let epoch = epoch_from + 1;
    let done = moving(id, ExecutionStatus::Running)
        .col_expr(Column::Epoch, Expr::value(epoch))
        .col_expr(Column::EngineId, Expr::value(engine.clone()))
        .col_expr(Column::DeadlineAt, Expr::value(deadline))
        .filter(Column::Epoch.eq(epoch_from))
        .exec(db)
        .await?;
    Ok((done.rows_affected == 1).then_some(epoch))
}

/// Makes a running execution pending again, because the worker it names never started it.
///
/// `false` where it no longer runs under this epoch. The epoch stays: the next claim raises it.
pub async fn put_back(
    db: &impl ConnectionTrait,
    id: &ExecutionId,
    epoch: i64,
    deadline: Timestamp,
) -> Result<bool> {
    let done = moving(id, ExecutionStatus::Running)
        .col_expr(Column::Status, Expr::value(ExecutionStatus::Pending))
        .col_expr(Column::EngineId, Expr::value(None::<EngineId>))
        .col_expr(Column::Worker, Expr::value(None::<WorkerName>))
        .col_expr(Column::DeadlineAt, Expr::value(deadline))
        .filter(Column::Epoch.eq(epoch))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

/// Records how a running execution ended, and its log. In a transaction.
///
/// `false` means that it no longer runs under this epoch: it ended, was deleted, or another engine
/// took it over.
pub async fn finish(
    db: &impl ConnectionTrait,
    id: &ExecutionId,
    epoch: i64,
    outcome: &Outcome,
) -> Result<bool> {
    end(db, id, running(id, epoch), outcome).await
}

/// [`finish`] as some of several statements that are committed at once: see [`Moved`].
pub fn finishing(backend: DbBackend, id: &ExecutionId, epoch: i64, outcome: &Outcome) -> Vec<Statement> {
    ending(backend, id, running(id, epoch), outcome)
}

/// Ends an execution that no engine has claimed, as a cancel does. In a transaction.
///
/// `false` means that an engine was first, or that it is gone.
pub async fn finish_unowned(db: &impl ConnectionTrait, id: &ExecutionId, outcome: &Outcome) -> Result<bool> {
    end(db, id, at(id, ExecutionStatus::Pending), outcome).await
}

/// [`finish_unowned`] as some of several statements that are committed at once: see [`Moved`].
pub fn dismissing(backend: DbBackend, id: &ExecutionId, outcome: &Outcome) -> Vec<Statement> {
    ending(backend, id, at(id, ExecutionStatus::Pending), outcome)
}

/// What became of rows by statements that were committed at once, as each of these says where it found its row.
#[derive(Debug, Default)]
pub struct Moved(Vec<String>);

impl Moved {
    pub fn new(returned: Vec<String>) -> Self {
        Self(returned)
    }

    /// Whether a statement moved the row to this status and epoch. Of two that would have, the first did.
    pub fn take(&mut self, id: &ExecutionId, status: ExecutionStatus, epoch: Option<i64>) -> bool {
        let start = format!("{id} {} ", status.to_value());
        let is_it = |text: &String| {
            let now = text.strip_prefix(&start);
            now.is_some_and(|now| epoch.is_none_or(|epoch| now == epoch.to_string()))
        };
        self.0.iter().position(is_it).map(|at| self.0.swap_remove(at)).is_some()
    }
}

/// The update, which says what it made of the row.
fn returning(backend: DbBackend, update: UpdateMany<Entity>) -> Statement {
    let mut update = update.into_query();
    update.returning(Query::returning().expr(Expr::cust("id || ' ' || status || ' ' || epoch")));
    backend.build(&update)
}

/// Executions that wait for an engine, from the oldest.
pub async fn list_pending(db: &impl ConnectionTrait, limit: u64) -> Result<Vec<Model>> {
    Ok(Entity::find()
        .filter(Column::Status.eq(ExecutionStatus::Pending))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(limit)
        .all(db)
        .await?)
}

/// As [`list_pending`], without those of some projects.
pub async fn list_pending_of_others(
    db: &impl ConnectionTrait,
    projects: &[ProjectId],
    limit: u64,
) -> Result<Vec<Model>> {
    Ok(Entity::find()
        .filter(Column::Status.eq(ExecutionStatus::Pending))
        .filter(Column::ProjectId.is_not_in(projects.iter().cloned()))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(limit)
        .all(db)
        .await?)
}

/// Executions that should have ended by now, those first that wait longest.
pub async fn list_overdue(db: &impl ConnectionTrait, now: Timestamp, limit: u64) -> Result<Vec<Model>> {
    Ok(overdue(now, limit).all(db).await?)
}

fn overdue(now: Timestamp, limit: u64) -> Select<Entity> {
    Entity::find()
        // In words that no index knows: found by their deadlines they are few, and by this all that wait.
        .filter(Expr::cust("COALESCE(status, '') IN ('pending', 'running')"))
        .filter(Column::DeadlineAt.lt(now))
        .order_by_asc(Column::DeadlineAt)
        .limit(limit)
}

/// Removes up to `limit` executions that have ended and were created before; says how many.
pub async fn delete_older(db: &impl ConnectionTrait, before: Timestamp, limit: u64) -> Result<u64> {
    let older = ended().filter(Column::CreatedAt.lt(before));
    delete_oldest(db, older, limit).await
}

/// As [`delete_older`], of one project, and up to that time.
pub async fn delete_of(
    db: &impl ConnectionTrait,
    project: &ProjectId,
    until: Timestamp,
    limit: u64,
) -> Result<u64> {
    let of_project = ended().filter(Column::ProjectId.eq(project.clone()));
    delete_oldest(db, of_project.filter(Column::CreatedAt.lte(until)), limit).await
}

/// When the newest of a project's executions was created that has `newer` newer ones; `None` where there
/// are no more than those.
pub async fn surplus_since(
    db: &impl ConnectionTrait,
    project: &ProjectId,
    newer: u64,
) -> Result<Option<Timestamp>> {
    let first: Option<Timestamp> = Entity::find()
        .select_only()
        .column(Column::CreatedAt)
        .filter(Column::ProjectId.eq(project.clone()))
        .order_by_desc(Column::CreatedAt)
        .order_by_desc(Column::Id)
        .offset(newer)
        .limit(1)
        .into_tuple()
        .one(db)
        .await?;
    Ok(first)
}

/// Those that have not ended. In the words of the indexes that hold these alone: with values that are given
/// beside the query, nobody could tell that such an index has all that is asked for.
fn live() -> Expr {
    Expr::cust("status IN ('pending', 'running')")
}

fn ended() -> Select<Entity> {
    Entity::find().filter(Column::Status.is_in(ExecutionStatus::iter().filter(|status| status.has_ended())))
}

async fn delete_oldest(db: &impl ConnectionTrait, which: Select<Entity>, limit: u64) -> Result<u64> {
    let oldest = which.select_only().column(Column::Id).order_by_asc(Column::CreatedAt).limit(limit);
    let ids: Vec<ExecutionId> = oldest.into_tuple().all(db).await?;
    if ids.is_empty() {
        return Ok(0);
    }
    Ok(Entity::delete_many().filter(Column::Id.is_in(ids)).exec(db).await?.rows_affected)
}

/// Projects that have more than so many executions.
pub async fn list_crowded(db: &impl ConnectionTrait, most: u64) -> Result<Vec<ProjectId>> {
    let count = || Expr::col(Column::Id).count();
    Ok(Entity::find()
        .select_only()
        .column(Column::ProjectId)
        .group_by(Column::ProjectId)
        .having(count().gt(most))
        .into_tuple()
        .all(db)
        .await?)
}

/// What the engines were running, from the oldest.
pub async fn list_running_of(db: &impl ConnectionTrait, engines: &[EngineId]) -> Result<Vec<Model>> {
    Ok(running_of(engines).all(db).await?)
}

fn running_of(engines: &[EngineId]) -> Select<Entity> {
    Entity::find()
        .filter(Column::Status.eq(ExecutionStatus::Running))
        .filter(Column::EngineId.is_in(engines.iter().cloned()))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
}

/// What was accepted of a project and has not ended, without synchronous ones.
pub(super) fn queued_of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(live()).filter(Column::ProjectId.eq(project.clone())).filter(Column::Sync.eq(false))
}

/// Whether something of the function runs or is to run.
pub async fn has_unended(db: &impl ConnectionTrait, function: &FunctionId) -> Result<bool> {
    let unended = Entity::find().filter(Column::FunctionId.eq(function.clone())).filter(live());
    Ok(unended.one(db).await?.is_some())
}

/// How many executions of all projects are how far; a status without any is left out.
pub async fn count_by_status(db: &impl ConnectionTrait) -> Result<Vec<(ExecutionStatus, i64)>> {
    Ok(Entity::find()
        .select_only()
        .column(Column::Status)
        .column_as(Column::Id.count(), "executions")
        .group_by(Column::Status)
        .into_tuple()
        .all(db)
        .await?)
}

/// The row, as long as it has that status.
fn at(id: &ExecutionId, status: ExecutionStatus) -> Condition {
    Condition::all().add(Column::Id.eq(id.clone())).add(Column::Status.eq(status))
}

fn moving(id: &ExecutionId, from: ExecutionStatus) -> UpdateMany<Entity> {
    Entity::update_many().filter(at(id, from))
}

fn running(id: &ExecutionId, epoch: i64) -> Condition {
    at(id, ExecutionStatus::Running).add(Column::Epoch.eq(epoch))
}

async fn end(
    db: &impl ConnectionTrait,
    id: &ExecutionId,
    from: Condition,
    outcome: &Outcome,
) -> Result<bool> {
    let done = ended_by(from, outcome).exec(db).await?;
    if done.rows_affected != 1 {
        return Ok(false);
    }
    execution_logs::insert_many(db, [log_of(id, outcome)]).await?;
    Ok(true)
}

/// The log comes first: it is the row's only while the update would find it.
fn ending(backend: DbBackend, id: &ExecutionId, from: Condition, outcome: &Outcome) -> Vec<Statement> {
    let found = Query::select().from(Entity).cond_where(from.clone()).to_owned();
    let log = execution_logs::insert_of(backend, log_of(id, outcome), found);
    log.into_iter().chain([returning(backend, ended_by(from, outcome))]).collect()
}

fn log_of(id: &ExecutionId, outcome: &Outcome) -> execution_log::Model {
    execution_log::Model {
        execution_id: id.clone(),
        log: outcome.log.clone(),
        truncated: outcome.log_truncated,
    }
}

fn ended_by(from: Condition, outcome: &Outcome) -> UpdateMany<Entity> {
    Entity::update_many()
        .filter(from)
        .col_expr(Column::Status, Expr::value(outcome.status))
        .col_expr(Column::Result, Expr::value(outcome.result.clone()))
        .col_expr(Column::Reason, Expr::value(outcome.reason.map(|reason| reason.as_str().to_owned())))
        .col_expr(Column::Start, Expr::value(outcome.start))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .col_expr(Column::DeadlineAt, Expr::value(None::<Timestamp>))
        .col_expr(Column::QueuedUs, Expr::value(outcome.usage.queued_us))
        .col_expr(Column::StartingUs, Expr::value(outcome.usage.starting_us))
        .col_expr(Column::RunUs, Expr::value(outcome.usage.run_us))
        .col_expr(Column::CpuUs, Expr::value(outcome.usage.cpu_us))
        .col_expr(Column::PeakMemoryBytes, Expr::value(outcome.usage.peak_memory_bytes))
        .col_expr(Column::LogTruncated, Expr::value(outcome.log_truncated))
}

#[cfg(test)]
mod tests;
