//! Executions. Every status moves by an update that names the status it comes from, and a running
//! row by one that names its epoch too: the first writer wins and the second is told.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use sea_orm::sea_query::{Expr, ExprTrait, Func, Query, Values};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, Iterable,
    ModelTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select, Statement, UpdateMany,
};

use super::{Filter, Page, Place, Result, execution_logs, functions, page, versions, within};
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
mod tests {
    use super::*;
    use crate::db::Db;
    use crate::db::testing::{TestDb, database, execution, own, project, stranger};
    use crate::model::Reason;

    async fn pending(db: &Db) -> Model {
        let row = Model {
            epoch: 0,
            engine_id: None,
            worker: None,
            result: None,
            reason: None,
            start: None,
            ..execution(ExecutionStatus::Pending)
        };
        insert(&db.writer(), row.clone()).await.unwrap();
        row
    }

    async fn get(db: &Db, id: &ExecutionId) -> Model {
        find(db.reader(), id, &Scope::All).await.unwrap().unwrap()
    }

    fn failed(text: &str) -> Outcome {
        let log = format!("log of {text}");
        Outcome { log, ..Outcome::failed(Reason::Raised, Some(text), None, 12.0) }
    }

    fn nobody() -> WorkerName {
        "nobody".into()
    }

    async fn claim(
        db: &impl ConnectionTrait,
        id: &ExecutionId,
        epoch: i64,
        engine: &EngineId,
        worker: &WorkerName,
    ) -> Result<Option<i64>> {
        super::claim(db, id, epoch, engine, worker, Timestamp(9)).await
    }

    #[test]
    fn an_insert_whose_text_was_kept_is_the_one_that_would_be_written() {
        let rows: Vec<_> = ExecutionStatus::iter().map(execution).collect();
        for count in 1..=rows.len() {
            let written = Entity::insert_many(rows[..count].iter().cloned().map(Model::into_active_model));
            let written = written.build(DbBackend::Sqlite);
            for _ in 0..2 {
                assert_eq!(insert_of(DbBackend::Sqlite, rows[..count].to_vec()), written);
            }
        }
        let of_server = insert_of(DbBackend::Postgres, rows[..1].to_vec());
        assert!(of_server.sql.contains("$1"), "{}", of_server.sql);
    }

    #[tokio::test]
    async fn the_first_claim_wins_and_the_second_is_told() {
        let db = database().await;
        let row = pending(&db).await;
        let (one, two) = (EngineId::random(), EngineId::random());
        let worker = WorkerName::from("w-1");

        assert_eq!(claim(&db.writer(), &row.id, 5, &one, &nobody()).await.unwrap(), None, "another epoch");
        assert_eq!(claim(&db.writer(), &row.id, 0, &one, &worker).await.unwrap(), Some(1));
        assert_eq!(claim(&db.writer(), &row.id, 0, &two, &nobody()).await.unwrap(), None);
        assert_eq!(claim(&db.writer(), &row.id, 1, &two, &nobody()).await.unwrap(), None);

        let claimed = get(&db, &row.id).await;
        let expected = Model {
            status: ExecutionStatus::Running,
            epoch: 1,
            engine_id: Some(one),
            worker: Some(worker),
            deadline_at: Some(Timestamp(9)),
            ..row
        };
        assert_eq!(claimed, expected);
    }

    /// Otherwise each of them reads all that have ended.
    #[tokio::test]
    async fn what_has_not_ended_is_found_without_a_look_at_what_has() {
        let db = database().await;
        if db.backend() != DbBackend::Sqlite {
            // Others look at how many rows there are.
            return;
        }
        let plan = async |query: Select<Entity>| {
            let mut statement = query.build(db.backend());
            statement.sql.insert_str(0, "EXPLAIN QUERY PLAN ");
            let rows = db.reader().query_all_raw(statement).await.unwrap();
            rows.iter().map(|row| row.try_get::<String>("", "detail").unwrap()).collect::<String>()
        };
        for (query, index) in [
            (running_of(&[EngineId::random()]), "ix_executions_status"),
            (overdue(Timestamp(1), 1), "ix_executions_deadline"),
            (queued_of(&project()), "ix_executions_project_status"),
        ] {
            let plan = plan(query).await;
            assert!(plan.contains(&format!("INDEX {index} ")), "{plan}");
        }
    }

    #[tokio::test]
    async fn many_claims_at_once_have_one_winner() {
        let db = database().await;
        let row = pending(&db).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (db, id) = (db.db.clone(), row.id.clone());
            tasks.spawn(
                async move { claim(&db.writer(), &id, 0, &EngineId::random(), &nobody()).await.unwrap() },
            );
        }
        assert_eq!(tasks.join_all().await.into_iter().flatten().collect::<Vec<_>>(), [1]);
    }

    #[tokio::test]
    async fn after_a_take_over_the_older_epoch_cannot_write_the_end() {
        let db = database().await;
        let row = pending(&db).await;
        let (dead, alive) = (EngineId::random(), EngineId::random());
        assert_eq!(
            take_over(&db.writer(), &row.id, 0, &alive, Timestamp(9)).await.unwrap(),
            None,
            "still pending"
        );
        let first = claim(&db.writer(), &row.id, 0, &dead, &nobody()).await.unwrap().unwrap();

        let second = take_over(&db.writer(), &row.id, first, &alive, Timestamp(9)).await.unwrap().unwrap();
        assert_eq!(second, first + 1);
        assert_eq!(take_over(&db.writer(), &row.id, first, &dead, Timestamp(9)).await.unwrap(), None);
        assert_eq!(get(&db, &row.id).await.engine_id, Some(alive.clone()));
        let running_of = async |engine: EngineId| list_running_of(db.reader(), &[engine]).await.unwrap();
        assert_eq!(running_of(dead).await, []);
        assert_eq!(running_of(alive.clone()).await[0].id, row.id);

        assert!(!finish(&db.writer(), &row.id, first, &failed("late")).await.unwrap());
        assert_eq!(execution_logs::find(db.reader(), &row.id).await.unwrap(), None);
        assert!(finish(&db.writer(), &row.id, second, &failed("mine")).await.unwrap());
        assert!(!finish(&db.writer(), &row.id, second, &failed("again")).await.unwrap());
        assert_eq!(
            take_over(&db.writer(), &row.id, second, &alive, Timestamp(9)).await.unwrap(),
            None,
            "ended"
        );

        let ended = get(&db, &row.id).await;
        assert_eq!((ended.status, ended.reason.as_deref()), (ExecutionStatus::Failed, Some("raised")));
        assert_eq!(ended.result, Some(failed("mine").result));
        assert!(ended.updated_at > row.updated_at);
        let log = execution_logs::find(db.reader(), &row.id).await.unwrap().unwrap();
        assert_eq!((log.log.as_str(), log.truncated), ("log of mine", false));
    }

    #[tokio::test]
    async fn what_was_put_back_is_claimed_under_a_later_epoch() {
        let db = database().await;
        let row = pending(&db).await;
        let engine = EngineId::random();
        let first = claim(&db.writer(), &row.id, 0, &engine, &"w".into()).await.unwrap().unwrap();
        assert!(!put_back(&db.writer(), &row.id, first + 1, Timestamp(8)).await.unwrap(), "another epoch");
        assert!(put_back(&db.writer(), &row.id, first, Timestamp(8)).await.unwrap());
        assert!(!put_back(&db.writer(), &row.id, first, Timestamp(8)).await.unwrap(), "pending already");
        assert_eq!(
            get(&db, &row.id).await,
            Model { epoch: first, deadline_at: Some(Timestamp(8)), ..row.clone() }
        );
        assert!(!finish(&db.writer(), &row.id, first, &failed("late")).await.unwrap());
        assert_eq!(claim(&db.writer(), &row.id, first, &engine, &nobody()).await.unwrap(), Some(first + 1));
    }

    #[tokio::test]
    async fn the_oldest_of_other_projects_are_found_behind_a_long_queue() {
        let db = database().await;
        for at in 0..5 {
            let project = if at < 4 { "p1" } else { "p2" };
            let status = ExecutionStatus::Pending;
            let row = Model { project_id: project.into(), created_at: Timestamp(at), ..execution(status) };
            insert(&db.writer(), row).await.unwrap();
        }
        let others = list_pending_of_others(db.reader(), &["p1".into()], 9).await.unwrap();
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].project_id, "p2".into());
        assert_eq!(list_pending_of_others(db.reader(), &[], 2).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_cancel_wins_only_before_the_claim() {
        let db = database().await;
        let cancelled = Outcome::failed(Reason::Cancelled, Some("Cancelled."), None, 0.0);
        let engine = EngineId::random();

        let row = pending(&db).await;
        assert!(finish_unowned(&db.writer(), &row.id, &cancelled).await.unwrap());
        assert!(!finish_unowned(&db.writer(), &row.id, &cancelled).await.unwrap());
        assert_eq!(claim(&db.writer(), &row.id, 0, &engine, &nobody()).await.unwrap(), None);
        assert_eq!(get(&db, &row.id).await.status, ExecutionStatus::Cancelled);

        let row = pending(&db).await;
        let epoch = claim(&db.writer(), &row.id, 0, &engine, &nobody()).await.unwrap().unwrap();
        assert!(!finish_unowned(&db.writer(), &row.id, &cancelled).await.unwrap());
        assert!(finish(&db.writer(), &row.id, epoch, &failed("ran")).await.unwrap());
    }

    #[tokio::test]
    async fn another_projects_execution_is_neither_seen_nor_deleted() {
        let db = database().await;
        let row = pending(&db).await;
        let epoch = claim(&db.writer(), &row.id, 0, &EngineId::random(), &nobody()).await.unwrap().unwrap();
        finish(&db.writer(), &row.id, epoch, &failed("x")).await.unwrap();

        assert_eq!(find(db.reader(), &row.id, &stranger()).await.unwrap(), None);
        assert_eq!(list(db.reader(), &stranger(), &Filters::default(), &Page::default()).await.unwrap(), []);
        assert!(!delete(&db.writer(), &row.id, &stranger()).await.unwrap());
        assert!(find(db.reader(), &row.id, &own()).await.unwrap().is_some());

        assert!(delete(&db.writer(), &row.id, &own()).await.unwrap());
        assert!(!delete(&db.writer(), &row.id, &Scope::All).await.unwrap());
        assert_eq!(execution_logs::find(db.reader(), &row.id).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_end_of_a_deleted_execution_is_dropped() {
        let db = database().await;
        let row = pending(&db).await;
        let epoch = claim(&db.writer(), &row.id, 0, &EngineId::random(), &nobody()).await.unwrap().unwrap();
        delete(&db.writer(), &row.id, &own()).await.unwrap();
        assert!(!finish(&db.writer(), &row.id, epoch, &failed("x")).await.unwrap());
    }

    #[tokio::test]
    async fn many_rows_are_inserted_at_once_and_listed_by_age() {
        let db = database().await;
        let rows: Vec<Model> = (0..1200)
            .map(|age| Model {
                created_at: Timestamp(1_000_000 - age),
                ..execution(ExecutionStatus::Pending)
            })
            .collect();
        insert_many(&db.writer(), rows.clone()).await.unwrap();
        insert_many(&db.writer(), Vec::new()).await.unwrap();

        let listed = list(db.reader(), &own(), &Filters::default(), &Page::default()).await.unwrap();
        assert!(listed.iter().eq(rows.iter().rev()));
        let oldest = list_pending(db.reader(), 2).await.unwrap();
        assert!(oldest.iter().eq(rows.iter().rev().take(2)));
        let counts = count_by_status(db.reader()).await.unwrap();
        assert_eq!(counts, [(ExecutionStatus::Pending, 1200)]);

        let twice = insert_many(&db.writer(), vec![rows[0].clone()]).await.unwrap_err();
        assert!(matches!(twice, crate::db::Error::Duplicate { .. }), "{twice:?}");
    }

    /// Four executions, `a` to `d` by their alias.
    async fn some() -> TestDb {
        let db = database().await;
        let rows = [
            ("a", ExecutionStatus::Pending, "p1", Some("Created by Job 1")),
            ("b", ExecutionStatus::Success, "p1", Some("100% SURE")),
            ("c", ExecutionStatus::Cancelled, "p2", Some("snake_case!")),
            ("d", ExecutionStatus::Error, "p2", None),
        ];
        for (age, (name, status, project, description)) in rows.into_iter().enumerate() {
            let row = Model {
                function_alias: Some(name.into()),
                project_id: ProjectId::from(project),
                description: description.map(str::to_owned),
                created_at: Timestamp(age as i64),
                ..execution(status)
            };
            insert(&db.writer(), row).await.unwrap();
        }
        db
    }

    #[tokio::test]
    async fn filters_select_as_the_v1_api_says() {
        let db = some().await;
        let cases = [
            ("status", "running", "a"),
            ("status", "neq:running", "bcd"),
            ("status", "failed", "c"),
            ("status", "pending", ""),
            ("status", "gt:error", "abc"),
            ("project_id", "p1", "ab"),
            ("project_id", "in:p1,p2", "abcd"),
            ("project_id", "nin:p1", "cd"),
            ("project_id", "in:", ""),
            ("project_id", "gte:p2", "cd"),
            ("project_id", "lt:p2", "ab"),
            ("project_id", "bogus:p1", ""),
            ("description", "has:job 1", "a"),
            ("description", "has:%", "b"),
            ("description", "has:_", "c"),
            ("description", "has:!", "c"),
            ("description", "has:sure", "b"),
            ("description", "has:", "abc"),
            ("description", "neq:x", "abc"),
            ("description", "eq:100% SURE", "b"),
            ("description", "100% sure", ""),
            ("description", "' OR 1=1 --", ""),
        ];
        for (key, text, expected) in cases {
            let mut filters = Filters::default();
            let filter = match key {
                "status" => &mut filters.status,
                "project_id" => &mut filters.project_id,
                _ => &mut filters.description,
            };
            *filter = Some(Filter::parse(text));
            let rows = list(db.reader(), &Scope::All, &filters, &Page::default()).await.unwrap();
            let names: String = rows.into_iter().filter_map(|row| row.function_alias).collect();
            assert_eq!(names, expected, "{key}={text}");
        }
    }

    #[tokio::test]
    async fn a_filter_does_not_widen_the_scope() {
        let db = some().await;
        let filters = Filters { project_id: Some(Filter::parse("in:p1,p2")), ..Filters::default() };
        let rows = list(db.reader(), &Scope::Project("p2".into()), &filters, &Page::default()).await.unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            list(db.reader(), &Scope::Project(project()), &filters, &Page::default()).await.unwrap(),
            []
        );
    }
}
