use super::*;
use crate::db::testing::{TestDb, database, execution, function, runtime, version};
use crate::model::{ExecutionStatus, Reason, Scope, Start, function as function_row};

async fn start() -> (TestDb, Recorder, function_row::Model) {
    let db = database().await;
    let runtime = runtime();
    let function = function(&runtime.id);
    db::runtimes::insert(&db.writer(), runtime).await.unwrap();
    db::functions::insert(&db.writer(), function.clone()).await.unwrap();
    db::versions::insert(&db.writer(), version(&function, 1)).await.unwrap();
    let (recorder, writer) = Recorder::start(db.db.clone());
    tokio::spawn(writer);
    (db, recorder, function)
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
    db::executions::find(db.reader(), id, &Scope::All).await.unwrap()
}

async fn count(db: &Db, function: &function_row::Model) -> i64 {
    let now = db::functions::find(db.reader(), &function.id, &Scope::All).await.unwrap().unwrap();
    now.count - function.count
}

#[tokio::test]
async fn a_short_call_is_one_commit_and_one_insert() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Running);
    let before = db.commits();
    recorder.begin(row.clone()).await;
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
async fn a_long_call_shows_as_running_until_it_ends() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Running);
    recorder.begin(row.clone()).await;
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
async fn what_waits_goes_into_one_transaction() {
    let (db, recorder, function) = start().await;
    // Held, so that the writer finds all of them when it is over.
    let tx = db.begin().await.unwrap();
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
    recorder.accept(there.clone()).await.unwrap();

    let tx = db.begin().await.unwrap();
    let (good, bad) = (row(&function, ExecutionStatus::Pending), there.clone());
    let accept = |row: execution::Model| {
        let recorder = recorder.clone();
        tokio::spawn(async move { recorder.accept(row).await })
    };
    let blocker = accept(row(&function, ExecutionStatus::Pending));
    let (good_done, bad_done) = (accept(good.clone()), accept(bad));
    tokio::time::sleep(Duration::from_millis(20)).await;
    tx.commit().await.unwrap();

    blocker.await.unwrap().unwrap();
    good_done.await.unwrap().unwrap();
    let error = bad_done.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "Duplicate entry for executions: ['id']");
    assert!(find(&db, &good.id).await.is_some());
    assert_eq!(count(&db, &function).await, 3);
}

#[tokio::test]
async fn only_the_latest_epoch_writes_the_end() {
    let (db, recorder, function) = start().await;
    let row = row(&function, ExecutionStatus::Pending);
    recorder.accept(row.clone()).await.unwrap();
    assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Pending);
    let claim = |epoch_from, worker: &str| Claim {
        id: row.id.clone(),
        epoch_from,
        engine: EngineId::random(),
        worker: worker.into(),
    };
    assert_eq!(recorder.claim(claim(0, "w1")).await.unwrap(), Some(1));
    assert_eq!(recorder.claim(claim(0, "w2")).await.unwrap(), None);
    assert!(db::executions::put_back(&db.writer(), &row.id, 1).await.unwrap());
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
    recorder.accept(row.clone()).await.unwrap();
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
    other.begin(row.clone()).await;
    drop(other);
    writer.await;
    assert_eq!(find(&db, &row.id).await.unwrap().status, ExecutionStatus::Running);
}
