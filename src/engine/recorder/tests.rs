use sea_orm::ConnectionTrait;

use super::*;
use crate::db::testing::{TestDb, database, empty_file, execution, function, runtime, version};
use crate::model::{FunctionId, Reason, Start, function as function_row};

async fn start() -> (TestDb, Recorder, function_row::Model) {
    start_on(database().await).await
}

async fn start_on(db: TestDb) -> (TestDb, Recorder, function_row::Model) {
    let runtime = runtime();
    let function = function(&runtime.id);
    db::runtimes::insert(&db.writer(), runtime).await.unwrap();
    db::functions::insert(&db.writer(), function.clone()).await.unwrap();
    db::versions::insert(&db.writer(), version(&function, 1)).await.unwrap();
    let (recorder, writer) = Recorder::start(db.db.clone());
    tokio::spawn(writer);
    (db, recorder, function)
}

/// As [`start`], with a database whose ends are noted before they are committed.
async fn start_with_journal() -> (TestDb, Recorder, function_row::Model) {
    let db = empty_file().await;
    db.migrate().await.unwrap();
    db.open_journal(&db.config).await.unwrap();
    start_on(db).await
}

fn row(function: &function_row::Model, status: ExecutionStatus) -> execution::Model {
    execution::Model {
        function_id: function.id.clone(),
        function_version: 0,
        epoch: i64::from(status == ExecutionStatus::Running),
        result: None,
        reason: None,
        start: None,
        ..execution(status)
    }
}

fn outcome(log: &str) -> Outcome {
    let outcome = Outcome::returned(None, 1.0);
    Outcome { log: log.to_owned(), start: Some(Start::Warm), ..outcome }
}

async fn find(db: &Db, id: &ExecutionId) -> Option<execution::Model> {
    super::find(db, id).await.unwrap()
}

async fn count(db: &Db, function: &function_row::Model) -> i64 {
    let now = db::functions::find(db.reader(), &function.id, &Scope::All).await.unwrap().unwrap();
    now.count - function.count
}

/// Keeps the writer waiting until it is committed, so that it finds all else when that is over: the
/// function's counter cannot be raised meanwhile.
async fn hold(db: &Db, function: &function_row::Model) -> db::Transaction {
    let tx = db.begin().await.unwrap();
    db::functions::find_for_update(&tx, &function.id, &Scope::All).await.unwrap().unwrap();
    tx
}

#[tokio::test]
async fn a_short_call_is_one_commit_and_one_insert() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Running);
    let before = db.commits();
    recorder.begin(row.clone());
    assert!(recorder.end(row.clone(), outcome("hello")).await.unwrap());
    assert_eq!(db.commits() - before, 1);

    let found = find(&db, &row.id).await.unwrap();
    assert_eq!((found.status, found.start), (ExecutionStatus::Success, Some(Start::Warm)));
    assert_eq!(found.result.as_deref(), Some(r#"{"output":null,"duration":0.001}"#));
    let log = db::execution_logs::find(db.reader(), &row.id).await.unwrap().unwrap();
    assert_eq!(log.log, "hello");
    assert_eq!(count(&db, &function).await, 1);

    tokio::time::sleep(LINGER * 3).await;
    assert_eq!(db.commits() - before, 1, "the start was not written for itself");
}

#[tokio::test]
async fn logs_of_a_group_are_kept_and_one_without_text_has_no_row() {
    let (db, recorder, function) = start().await;
    let texts = ["one", "", "three\0", &"x".repeat(800_000), &"y".repeat(800_000)];
    let rows: Vec<_> = texts.iter().map(|_| row(&function, ExecutionStatus::Running)).collect();
    let ends = rows.iter().zip(texts).map(|(row, text)| recorder.end(row.clone(), outcome(text)));
    assert!(futures_util::future::try_join_all(ends).await.unwrap().into_iter().all(|stored| stored));
    for (row, text) in rows.iter().zip(texts) {
        let log = db::execution_logs::find(db.reader(), &row.id).await.unwrap().map(|log| log.log);
        assert_eq!(log, (!text.is_empty()).then(|| text.replace('\0', "\u{2400}")));
    }
}

#[tokio::test]
async fn a_long_call_shows_as_running_until_it_ends() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Running);
    recorder.begin(row.clone());
    let found = loop {
        match find(&db, &row.id).await {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    assert_eq!(found.status, ExecutionStatus::Running);
    assert_eq!(count(&db, &function).await, 1, "counted whatever the end");
    assert!(recorder.end(row.clone(), outcome("")).await.unwrap());
    assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Success);
    assert_eq!(count(&db, &function).await, 1);
}

#[tokio::test]
async fn in_one_group_the_first_claim_and_the_first_end_win() {
    fn nobody<T>() -> Reply<T> {
        oneshot::channel().0
    }
    let (db, recorder, function) = start().await;
    let (row, other) = (row(&function, ExecutionStatus::Pending), row(&function, ExecutionStatus::Pending));
    for row in [&row, &other] {
        recorder.accept(row.clone(), None).await.unwrap();
    }
    let claim = |worker: &str| Item::Claim {
        claim: Claim {
            id: row.id.clone(),
            epoch_from: 0,
            engine: EngineId::random(),
            worker: worker.into(),
            deadline: Timestamp(9),
        },
        reply: nobody(),
    };
    let finish = |epoch, log: &str| {
        let (id, outcome) = (row.id.clone(), Box::new(outcome(log)));
        Item::Finish { id, epoch, outcome, reply: nobody() }
    };
    let dismiss = |id: &ExecutionId, log: &str| {
        let (id, outcome) = (id.clone(), Box::new(outcome(log)));
        Item::Dismiss { id, outcome, reply: nobody() }
    };
    let log_of =
        async |id: &ExecutionId| db::execution_logs::find(db.reader(), id).await.unwrap().unwrap().log;

    let before = db.commits();
    let items = [claim("w1"), claim("w2"), dismiss(&row.id, "late"), dismiss(&other.id, "in time")];
    let done = write_all(&db, &items).await.unwrap();
    let (lost, first) = (Done::Claimed(None), Done::Claimed(Some(1)));
    assert_eq!(done, [first, lost, Done::Ended(false), Done::Ended(true)]);
    assert_eq!(find(&db, &row.id).await.unwrap().worker, Some("w1".into()));
    assert_eq!(log_of(&other.id).await, "in time");

    let done = write_all(&db, &[finish(2, "of nobody"), finish(1, "first\0"), finish(1, "again")]).await;
    assert_eq!(done.unwrap(), [Done::Ended(false), Done::Ended(true), Done::Ended(false)]);
    assert_eq!(log_of(&row.id).await, "first\u{2400}");
    assert_eq!(db.commits() - before, 2);
}

#[tokio::test]
async fn what_waits_goes_into_one_transaction() {
    let (db, recorder, function) = start().await;
    let tx = hold(&db, &function).await;
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..50 {
        let (recorder, mut row) = (recorder.clone(), row(&function, ExecutionStatus::Running));
        row.function_version = at % 2;
        tasks.spawn(async move { recorder.end(row, outcome("")).await.unwrap() });
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = db.commits();
    tx.commit().await.unwrap();
    assert!(tasks.join_all().await.into_iter().all(|ended| ended));
    // The one that was held, and one or two groups.
    assert!(db.commits() - before <= 4, "{} commits", db.commits() - before);
    assert_eq!(count(&db, &function).await, 25);
    let version = db::versions::find(db.reader(), &function.id, 1).await.unwrap().unwrap();
    assert_eq!(version.count, 7 + 25);
}

#[tokio::test]
async fn a_row_that_cannot_be_written_does_not_fail_its_neighbours() {
    let (db, recorder, function) = start().await;
    let there = row(&function, ExecutionStatus::Pending);
    recorder.accept(there.clone(), None).await.unwrap();

    let tx = hold(&db, &function).await;
    let (good, bad) = (row(&function, ExecutionStatus::Pending), there.clone());
    let accept = |row: execution::Model| {
        let recorder = recorder.clone();
        tokio::spawn(async move { recorder.accept(row, None).await })
    };
    let blocker = accept(row(&function, ExecutionStatus::Pending));
    let (good_done, bad_done) = (accept(good.clone()), accept(bad));
    tokio::time::sleep(Duration::from_millis(20)).await;
    tx.commit().await.unwrap();

    blocker.await.unwrap().unwrap();
    good_done.await.unwrap().unwrap();
    let error = bad_done.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "Duplicate entry for an id");
    assert!(find(&db, &good.id).await.is_some());
    assert_eq!(count(&db, &function).await, 3);
}

#[tokio::test]
async fn only_the_latest_epoch_writes_the_end() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Pending);
    recorder.accept(row.clone(), None).await.unwrap();
    assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Pending);
    let claim = |epoch_from, worker: &str| Claim {
        id: row.id.clone(),
        epoch_from,
        engine: EngineId::random(),
        worker: worker.into(),
        deadline: Timestamp(9),
    };
    assert_eq!(recorder.claim(claim(0, "w1")).await.unwrap(), Some(1));
    assert_eq!(recorder.claim(claim(0, "w2")).await.unwrap(), None);
    assert!(db::executions::put_back(&db.writer(), &row.id, 1, Timestamp(9)).await.unwrap());
    assert_eq!(recorder.claim(claim(1, "w2")).await.unwrap(), Some(2));
    assert_eq!(find(&db, &row.id).await.unwrap().worker, Some("w2".into()));

    assert!(!recorder.finish(row.id.clone(), 1, outcome("stale")).await.unwrap());
    assert!(recorder.finish(row.id.clone(), 2, outcome("mine")).await.unwrap());
    assert!(!recorder.finish(row.id.clone(), 2, outcome("again")).await.unwrap());
    assert_eq!(count(&db, &function).await, 1);
}

#[tokio::test]
async fn a_pending_execution_that_cannot_be_prepared_ends_without_having_run() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Pending);
    recorder.accept(row.clone(), None).await.unwrap();
    let refused = || Outcome::error(Reason::Preparation, "it holds a link");
    assert!(recorder.dismiss(row.id.clone(), refused()).await.unwrap());
    assert!(!recorder.dismiss(row.id.clone(), refused()).await.unwrap());
    let found = find(&db, &row.id).await.unwrap();
    assert_eq!((found.status, found.reason.as_deref()), (ExecutionStatus::Error, Some("preparation")));
}

#[tokio::test]
async fn what_was_begun_is_written_when_the_recorder_ends() {
    let (db, recorder, function) = start().await;
    let (other, writer) = Recorder::start(db.db.clone());
    drop(recorder);
    let row = row(&function, ExecutionStatus::Running);
    other.begin(row.clone());
    drop(other);
    writer.await;
    assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_writers_count_exactly() {
    const EACH: i32 = 60;
    let (db, _recorder, one) = start().await;
    let two = function_row::Model { id: FunctionId::random(), ..one.clone() };
    db::functions::insert(&db.writer(), two.clone()).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        // As eight engines would: each with its own connections, except on a file, which has one writer.
        let own = if writer % 2 == 0 { db.db.clone() } else { Db::connect(&db.config).await.unwrap() };
        let (recorder, task) = Recorder::start(own);
        tokio::spawn(task);
        let functions = [one.clone(), two.clone()];
        writers.spawn(async move {
            let mut calls = tokio::task::JoinSet::new();
            for at in 0..EACH {
                let (recorder, function) = (recorder.clone(), &functions[(at % 2) as usize]);
                let mut row = row(function, ExecutionStatus::Running);
                row.function_version = i32::from(at % 4 == 0);
                calls.spawn(async move { recorder.end(row, outcome("")).await.unwrap() });
            }
            assert!(calls.join_all().await.into_iter().all(|ended| ended));
        });
    }
    writers.join_all().await;

    let version = db::versions::find(db.reader(), &one.id, 1).await.unwrap().unwrap();
    let half = i64::from(8 * EACH / 2);
    assert_eq!((count(&db, &one).await, version.count - 7), (half / 2, half / 2));
    assert_eq!(count(&db, &two).await, half);
    let counts = db::executions::count_by_status(db.reader()).await.unwrap();
    assert_eq!(counts, [(ExecutionStatus::Success, 2 * half)]);
}

#[tokio::test]
async fn what_was_committed_before_the_connection_broke_counts_as_done() {
    let (db, recorder, function) = start().await;
    let (pending, removed) =
        (row(&function, ExecutionStatus::Pending), row(&function, ExecutionStatus::Pending));
    recorder.accept(pending.clone(), None).await.unwrap();
    recorder.accept(removed.clone(), None).await.unwrap();
    let claim = Claim {
        id: pending.id.clone(),
        epoch_from: 0,
        engine: EngineId::random(),
        worker: "w".into(),
        deadline: Timestamp(9),
    };
    let (new, _answers) = items(&function, &claim, &removed.id);
    let first = write_all(&db, &new).await.unwrap();
    let again = write_all(&db, &new).await;
    assert!(matches!(again, Err(db::Error::Duplicate { .. })), "{again:?}");
    assert_eq!(resolve(&db, &new, again).await.unwrap(), first);
    // The same without a new row, where nothing fails.
    let rest = &new[1..];
    let again = write_all(&db, rest).await;
    assert_ne!(again.as_deref().unwrap(), &first[1..]);
    assert_eq!(resolve(&db, rest, again).await.unwrap(), first[1..]);

    let stranger = Claim { engine: EngineId::random(), ..claim };
    let (other, _answers) = items(&function, &stranger, &removed.id);
    let refused = write_all(&db, &other[1..2]).await;
    assert_eq!(resolve(&db, &other[1..2], refused).await.unwrap(), [Done::Claimed(None)]);
}

/// A new row, a claim and an end, and who waits for them.
fn items(function: &function_row::Model, claim: &Claim, id: &ExecutionId) -> (Vec<Item>, impl Sized + use<>) {
    let (inserted, one) = oneshot::channel();
    let (claimed, two) = oneshot::channel();
    let (dismissed, three) = oneshot::channel();
    let row = Box::new(row(function, ExecutionStatus::Pending));
    let outcome = Box::new(Outcome::error(Reason::Preparation, "it holds a link"));
    let items = vec![
        Item::Insert { row, log: None, queue: None, reply: Inserted::Accepted(inserted) },
        Item::Claim { claim: claim.clone(), reply: claimed },
        Item::Dismiss { id: id.clone(), outcome, reply: dismissed },
    ];
    (items, (one, two, three))
}

#[tokio::test]
async fn of_what_is_accepted_at_once_each_project_gets_what_it_may_have() {
    let (db, recorder, function) = start().await;
    let mut config = crate::config::Config::default();
    config.quotas.concurrent_executions = 5;
    let quotas = crate::quota::Quotas::new(&config, None);
    // Two processes: each has a writer of its own.
    let (other, writer) = Recorder::start(db.db.clone());
    tokio::spawn(writer);
    let tx = hold(&db, &function).await;
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..40 {
        let project = ProjectId::from(["one", "two"][at % 2]);
        let row = execution::Model {
            project_id: project.clone(),
            sync: false,
            ..row(&function, ExecutionStatus::Pending)
        };
        let recorder = if at % 4 < 2 { recorder.clone() } else { other.clone() };
        let queue = quotas.queue(&project).await;
        tasks.spawn(async move { (row.id.clone(), recorder.accept(row, queue).await) });
    }
    tx.rollback().await.unwrap();
    let mut accepted = 0;
    while let Some(done) = tasks.join_next().await {
        let (id, done) = done.unwrap();
        match &done {
            Ok(()) => accepted += 1,
            Err(Error::OverQuota { resource: "concurrent_executions", limit: 5, used: 5, requested: 1 }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(find(&db, &id).await.is_some(), done.is_ok());
    }
    assert_eq!(accepted, 10);
    assert_eq!(count(&db, &function).await, 10, "what was refused is not counted");
}

/// An asynchronous execution that runs under epoch 1.
async fn claimed(recorder: &Recorder, function: &function_row::Model) -> execution::Model {
    let row = row(function, ExecutionStatus::Pending);
    recorder.accept(row.clone(), None).await.unwrap();
    let claim = Claim {
        id: row.id.clone(),
        epoch_from: 0,
        engine: EngineId::random(),
        worker: "w".into(),
        deadline: Timestamp(9),
    };
    assert_eq!(recorder.claim(claim).await.unwrap(), Some(1));
    row
}

/// The row of a short call that has begun.
fn begun(recorder: &Recorder, function: &function_row::Model) -> execution::Model {
    let row = row(function, ExecutionStatus::Running);
    recorder.begin(row.clone());
    row
}

#[tokio::test]
async fn a_short_call_with_a_journal_waits_for_no_commit_and_who_asks_finds_it() {
    let (db, recorder, function) = start_with_journal().await;
    let tx = hold(&db, &function).await;
    let before = db.commits();
    let rows: Vec<_> = (0..40).map(|_| begun(&recorder, &function)).collect();
    for row in &rows {
        assert!(recorder.end(row.clone(), outcome("hello")).await.unwrap());
    }
    assert_eq!(db.commits(), before, "the database is taken");
    tx.rollback().await.unwrap();

    let found = find(&db, &rows[39].id).await.unwrap();
    assert_eq!((found.status, found.start), (ExecutionStatus::Success, Some(Start::Warm)));
    assert_eq!(db::execution_logs::find(db.reader(), &rows[0].id).await.unwrap().unwrap().log, "hello");
    assert_eq!(count(&db, &function).await, 40);
    assert_eq!(db.commits() - before, 5, "of eight each");

    // A delete finds it as well.
    let row = begun(&recorder, &function);
    assert!(recorder.end(row.clone(), outcome("")).await.unwrap());
    assert!(db::executions::delete(&db.writer(), &row.id, &Scope::All).await.unwrap());
    assert_eq!(find(&db, &row.id).await, None);
}

#[tokio::test]
async fn the_end_of_an_asynchronous_execution_is_noted_and_the_row_decides() {
    let (db, recorder, function) = start_with_journal().await;
    let mut rows = Vec::new();
    for _ in 0..10 {
        rows.push(claimed(&recorder, &function).await);
    }
    let before = db.commits();
    // One was deleted by then, of another the end is not the first.
    assert!(db::executions::delete(&db.writer(), &rows[8].id, &Scope::All).await.unwrap());
    for row in &rows {
        assert!(recorder.finish(row.id.clone(), 1, outcome("first")).await.unwrap());
    }
    assert!(recorder.finish(rows[9].id.clone(), 1, outcome("second")).await.unwrap());
    for row in rows.iter().filter(|row| row.id != rows[8].id) {
        assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Success);
        let log = db::execution_logs::find(db.reader(), &row.id).await.unwrap().unwrap();
        assert_eq!(log.log, "first");
    }
    assert_eq!(find(&db, &rows[8].id).await, None);
    assert_eq!(db::execution_logs::find(db.reader(), &rows[8].id).await.unwrap(), None);
    assert_eq!(db.commits() - before, 1 + 2, "of eight each");
    assert_eq!(count(&db, &function).await, 10);
}

#[tokio::test]
async fn what_was_noted_is_written_soon_though_nobody_asks() {
    let (db, recorder, function) = start_with_journal().await;
    let before = db.commits();
    let row = begun(&recorder, &function);
    assert!(recorder.end(row, outcome("")).await.unwrap());
    let limit = Instant::now() + Duration::from_secs(20);
    while db.commits() == before {
        assert!(Instant::now() < limit, "it is not written");
        sleep(LOOK).await;
    }
    assert!(!db.journal().unwrap().has_ends());
}

#[tokio::test]
async fn a_long_call_and_a_long_text_are_committed_by_themselves() {
    let (db, recorder, function) = start_with_journal().await;
    let long = begun(&recorder, &function);
    while find(&db, &long.id).await.is_none() {
        sleep(Duration::from_millis(2)).await;
    }
    let large = begun(&recorder, &function);
    let never = row(&function, ExecutionStatus::Running);
    let before = db.commits();
    for (row, log) in [(&long, ""), (&large, "x".repeat(100_000).as_str()), (&never, "")] {
        assert!(recorder.end(row.clone(), outcome(log)).await.unwrap());
        assert!(!db.journal().unwrap().has_ends());
        assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Success);
    }
    assert_eq!(db.commits() - before, 3);
    assert_eq!(count(&db, &function).await, 3);
}

#[tokio::test]
async fn what_a_process_noted_that_died_is_written_once_by_the_next() {
    let db = empty_file().await;
    db.migrate().await.unwrap();
    let (db, recorder, function) = start_on(db).await;
    let (written, noted) = (begun(&recorder, &function), row(&function, ExecutionStatus::Running));
    let running = claimed(&recorder, &function).await;
    assert!(recorder.end(written.clone(), outcome("written")).await.unwrap());
    // It died before the first was taken off, and before the others were written.
    let (journal, _) = Journal::open(&db::file_of(&db.config).unwrap().unwrap()).unwrap();
    for (row, log) in [(&written, "written"), (&noted, "noted")] {
        let (row, log) = ended(Box::new(row.clone()), outcome(log));
        journal.note(End::Whole { row, log }).unwrap();
    }
    let id = running.id.clone();
    journal.note(End::Running { id, epoch: 1, outcome: Box::new(outcome("ran")) }).unwrap();
    drop(journal);

    for _ in 0..2 {
        let next = Db::connect(&db.config).await.unwrap();
        next.open_journal(&db.config).await.unwrap();
        assert_eq!(count(&next, &function).await, 3);
        for (row, log) in [(&written, "written"), (&noted, "noted"), (&running, "ran")] {
            assert_eq!(find(&next, &row.id).await.unwrap().status, ExecutionStatus::Success);
            let found = db::execution_logs::find(next.reader(), &row.id).await.unwrap().unwrap();
            assert_eq!(found.log, log);
        }
    }
}

#[tokio::test]
async fn with_the_database_gone_what_was_noted_stays_and_nothing_is_noted_beside_it() {
    let (db, recorder, function) = start_with_journal().await;
    db.close().await.unwrap();
    let noted = begun(&recorder, &function);
    assert!(recorder.end(noted.clone(), outcome("")).await.unwrap());
    let journal = db.journal().unwrap();
    // Nobody who asks is kept waiting.
    journal.settled().await;
    assert!(journal.has_ends());
    let refused = begun(&recorder, &function);
    let error = recorder.end(refused.clone(), outcome("")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");

    let mut file = db::file_of(&db.config).unwrap().unwrap().into_os_string();
    file.push("-ends.0");
    let line: End = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(line.id(), &noted.id);
}

#[tokio::test]
async fn an_end_that_the_tables_refuse_is_kept_aside_and_its_neighbours_are_written() {
    let (db, recorder, function) = start_with_journal().await;
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON executions WHEN NEW.description = 'bad' \
                  BEGIN SELECT RAISE(ABORT, 'no'); END";
    db.writer().execute_unprepared(refuse).await.unwrap();
    let rows = ["good", "bad", "good"].map(|description| {
        let description = Some(description.to_owned());
        let row = execution::Model { description, ..row(&function, ExecutionStatus::Running) };
        recorder.begin(row.clone());
        row
    });
    for row in &rows {
        assert!(recorder.end(row.clone(), outcome("")).await.unwrap());
    }
    let found = [find(&db, &rows[0].id).await, find(&db, &rows[1].id).await, find(&db, &rows[2].id).await];
    assert_eq!(found.map(|row| row.is_some()), [true, false, true]);
    let mut aside = db::file_of(&db.config).unwrap().unwrap().into_os_string();
    aside.push("-ends.aside");
    let kept: End = serde_json::from_slice(&std::fs::read(aside).unwrap()).unwrap();
    assert_eq!(kept.id(), &rows[1].id);
    assert!(!db.journal().unwrap().has_ends());
}

#[tokio::test]
async fn what_is_to_survive_a_power_loss_is_not_noted() {
    let mut db = empty_file().await;
    db.migrate().await.unwrap();
    // What was noted before that was asked for is written all the same.
    let (journal, _) = Journal::open(&db::file_of(&db.config).unwrap().unwrap()).unwrap();
    let noted = execution(ExecutionStatus::Success);
    let log = execution_log::Model { execution_id: noted.id.clone(), log: String::new(), truncated: false };
    journal.note(End::Whole { row: Box::new(noted.clone()), log }).unwrap();
    drop(journal);
    db.config.durability = crate::config::Durability::Power;
    db.open_journal(&db.config).await.unwrap();
    assert_eq!(find(&db, &noted.id).await, Some(noted));
    assert!(db.journal().is_none());

    let (db, recorder, function) = start_on(db).await;
    let before = db.commits();
    let row = begun(&recorder, &function);
    assert!(recorder.end(row, outcome("")).await.unwrap());
    assert_eq!(db.commits() - before, 1);
}
