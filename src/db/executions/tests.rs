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
        tasks
            .spawn(async move { claim(&db.writer(), &id, 0, &EngineId::random(), &nobody()).await.unwrap() });
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
    assert_eq!(take_over(&db.writer(), &row.id, second, &alive, Timestamp(9)).await.unwrap(), None, "ended");

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
        .map(|age| Model { created_at: Timestamp(1_000_000 - age), ..execution(ExecutionStatus::Pending) })
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
    assert_eq!(list(db.reader(), &Scope::Project(project()), &filters, &Page::default()).await.unwrap(), []);
}
