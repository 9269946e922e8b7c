use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel};

use super::testing::*;
use super::*;
use crate::model::*;

#[tokio::test]
async fn migrations_bring_an_empty_database_up_once() {
    let db = empty_database().await;
    assert!(!db.pending_migrations().await.unwrap().is_empty());

    db.migrate().await.unwrap();
    assert_eq!(db.pending_migrations().await.unwrap(), Vec::<String>::new());
    runtimes::insert(&db.writer(), runtime()).await.unwrap();

    db.migrate().await.unwrap();
    assert_eq!(runtimes::list_all(db.reader()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_committed_after_a_transaction_that_sqlite_took_back_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let connection = format!("sqlite://{}", directory.path().join("taibai.sqlite").display());
    let db = Db::connect(&config::Database { connection, ..Default::default() }).await.unwrap();
    db.migrate().await.unwrap();
    let row = runtime();
    for _ in 0..2 {
        let tx = db.begin().await.unwrap();
        runtimes::insert(&tx, runtime::Model { id: RuntimeId::random(), ..row.clone() }).await.unwrap();
        // As it does where the disk is full.
        tx.execute_unprepared("ROLLBACK").await.unwrap();
        tx.commit().await.unwrap_err();
    }
    for _ in 0..2 {
        let tx = db.begin().await.unwrap();
        runtimes::insert(&tx, runtime::Model { id: RuntimeId::random(), ..row.clone() }).await.unwrap();
        tx.commit().await.unwrap();
    }
    runtimes::insert(&db.writer(), row).await.unwrap();
    // By a connection that knows of nothing but what is in the file.
    assert_eq!(runtimes::list_all(db.reader()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_migration_that_was_cut_off_is_taken_up_again() {
    let db = database().await;
    let drop_index = match db.writer().get_database_backend() {
        DbBackend::MySql => "DROP INDEX ix_executions_status ON executions",
        _ => "DROP INDEX ix_executions_status",
    };
    for sql in ["DELETE FROM seaql_migrations", drop_index, "DROP TABLE engines"] {
        db.writer().execute_unprepared(sql).await.unwrap();
    }
    assert!(!db.pending_migrations().await.unwrap().is_empty());
    db.migrate().await.unwrap();
    engines::register(&db.writer(), engine(Timestamp(1))).await.unwrap();
    assert_eq!(db.pending_migrations().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn rows_of_the_first_tables_are_brought_up_to_date() {
    let db = empty_database().await;
    let first = Migrator::migrations().remove(0);
    Migrator::up(&db.writer, Some(1)).await.unwrap();
    assert!(!db.pending_migrations().await.unwrap().contains(&first.name().to_owned()));
    let (function, webhook) = (FunctionId::random(), WebhookId::random());
    for sql in [
        "INSERT INTO runtimes (id, project_id, image, status, is_public, trusted, created_at) \
         VALUES ('r', 'demo', 'python3', 'available', TRUE, TRUE, 1)",
        &format!(
            "INSERT INTO functions \
             (id, project_id, runtime_id, cpu, memory_size, timeout, code, package_digest, count, \
              latest_version, created_at) \
             VALUES ('{function}', 'demo', 'r', 100, 1, 5, '{{}}', 'd', 0, 7, 1)"
        ),
        &format!(
            "INSERT INTO function_versions \
             (id, project_id, function_id, version_number, count, runtime_id, cpu, memory_size, timeout, \
              package_digest, created_at) \
             VALUES ('v', 'demo', '{function}', 7, 0, 'r', 100, 1, 5, 'd', 1)"
        ),
        &format!(
            "INSERT INTO function_aliases (id, project_id, name, function_id, function_version, created_at) \
             VALUES ('a', 'demo', 'prod', '{function}', 7, 1)"
        ),
        "INSERT INTO executions \
         (id, project_id, function_id, function_version, status, sync, epoch, created_at) \
         VALUES ('e', 'demo', 'f', 0, 'success', TRUE, 1, 1)",
        &format!(
            "INSERT INTO jobs (id, project_id, status, next_execution_time, function_id, created_at) \
             VALUES ('j', 'demo', 'running', 2, '{function}', 1)"
        ),
        &format!(
            "INSERT INTO webhooks (id, project_id, function_id, created_at) \
             VALUES ('{webhook}', 'demo', '{function}', 1)"
        ),
    ] {
        db.writer().execute_unprepared(sql).await.unwrap();
    }

    db.migrate().await.unwrap();
    assert_eq!(db.pending_migrations().await.unwrap(), Vec::<String>::new());
    let row = functions::find(db.reader(), &function, &Scope::All).await.unwrap().unwrap();
    assert_eq!((row.latest_version, row.version_counter), (7, 7));
    assert_eq!((row.status, row.image_digest), (FunctionStatus::Available, None));
    let row = versions::find(db.reader(), &function, 7).await.unwrap().unwrap();
    assert_eq!((row.trust_id, row.trust_reason), (None, None));
    let row = aliases::find(db.reader(), &project(), "prod").await.unwrap().unwrap();
    assert_eq!((row.canary_version, row.canary_weight, row.previous_version), (None, 0, None));
    let row = webhook::Entity::find_by_id(webhook.clone()).one(db.reader()).await.unwrap().unwrap();
    assert_eq!(row.url_key.as_deref(), Some(webhook.as_str()));
    assert_eq!((row.mode, row.is_public, row.secret), (WebhookMode::Async, true, None));
    let row = job::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!((row.status, row.status_reason), (JobStatus::Running, None));
    let row = executions::find(db.reader(), &"e".into(), &Scope::All).await.unwrap().unwrap();
    assert_eq!(row.deadline_at, None);

    // And again from a run that was cut off between the columns and what is filled in.
    let forgotten = ["DELETE FROM seaql_migrations WHERE version <> '", first.name(), "'"].concat();
    for sql in ["UPDATE functions SET version_counter = 0", "UPDATE webhooks SET url_key = NULL", &forgotten]
    {
        db.writer().execute_unprepared(sql).await.unwrap();
    }
    db.migrate().await.unwrap();
    let row = functions::find(db.reader(), &function, &Scope::All).await.unwrap().unwrap();
    assert_eq!(row.version_counter, 7);
    let row = webhook::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!(row.url_key.as_deref(), Some(webhook.as_str()));
}

#[tokio::test]
async fn every_entity_is_read_back_as_it_was_written() {
    async fn check<E>(db: &Db, row: E::Model)
    where
        E: EntityTrait,
        E::Model: IntoActiveModel<E::ActiveModel> + PartialEq + Clone,
        E::ActiveModel: ActiveModelTrait<Entity = E>,
    {
        E::insert(row.clone().into_active_model()).exec_without_returning(&db.writer()).await.unwrap();
        assert_eq!(E::find().all(db.reader()).await.unwrap(), [row]);
    }
    let db = database().await;
    let runtime = runtime();
    let function = function(&runtime.id);
    let execution = execution(ExecutionStatus::Failed);
    let log = execution_log::Model {
        execution_id: execution.id.clone(),
        log: "line\n".repeat(1 << 18),
        truncated: true,
    };
    check::<runtime::Entity>(&db, runtime).await;
    check::<function::Entity>(&db, function.clone()).await;
    check::<version::Entity>(&db, version(&function, 1)).await;
    check::<alias::Entity>(&db, alias(&function, "prod", 1)).await;
    check::<job::Entity>(&db, job(&function.id, JobStatus::Paused)).await;
    check::<webhook::Entity>(&db, webhook(&function.id)).await;
    check::<execution::Entity>(&db, execution).await;
    check::<execution_log::Entity>(&db, log).await;
    check::<engine::Entity>(&db, engine(Timestamp(9))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transactions_that_read_and_then_write_wait_for_each_other() {
    let db = database().await;
    let runtime = runtime();
    let function = function(&runtime.id);
    runtimes::insert(&db.writer(), runtime).await.unwrap();
    functions::insert(&db.writer(), function.clone()).await.unwrap();
    // A second program on the same file, beside this one's tasks.
    let other = Db::connect(&db.config).await.unwrap();

    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let db = if task % 2 == 0 { db.db.clone() } else { other.clone() };
        let id = function.id.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let transaction = db.begin().await.unwrap();
                let row = functions::find_for_update(&transaction, &id, &Scope::All).await.unwrap().unwrap();
                let change = function::ActiveModel {
                    id: sea_orm::Set(id.clone()),
                    latest_version: sea_orm::Set(row.latest_version + 1),
                    ..Default::default()
                };
                functions::update(&transaction, change).await.unwrap().unwrap();
                transaction.commit().await.unwrap();
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let row = functions::find(db.reader(), &function.id, &Scope::All).await.unwrap().unwrap();
    assert_eq!(row.latest_version, function.latest_version + 80);
    assert_eq!(db.commits() + other.commits(), 2 + 80);
}

#[tokio::test]
async fn commits_are_counted_and_reads_are_not() {
    let db = database().await;
    assert_eq!(db.commits(), 0);

    runtimes::insert(&db.writer(), runtime()).await.unwrap();
    runtimes::list_all(&db.writer()).await.unwrap();
    runtimes::list_all(db.reader()).await.unwrap();
    assert_eq!(db.commits(), 1);

    let transaction = db.begin().await.unwrap();
    let function = function(&runtimes::list_all(&transaction).await.unwrap()[0].id);
    functions::insert(&transaction, function.clone()).await.unwrap();
    executions::insert(&transaction, execution(ExecutionStatus::Pending)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(db.commits(), 2);

    let change =
        function::ActiveModel { id: sea_orm::Set(function.id), cpu: sea_orm::Set(300), ..Default::default() };
    let row = functions::update(&db.writer(), change).await.unwrap().unwrap();
    assert_eq!((row.cpu, row.name), (300, function.name));
    assert_eq!(db.commits(), 3);
}

#[tokio::test]
async fn a_transaction_that_is_dropped_or_rolled_back_leaves_nothing() {
    let db = database().await;
    let transaction = db.begin().await.unwrap();
    runtimes::insert(&transaction, runtime()).await.unwrap();
    drop(transaction);
    let transaction = db.begin().await.unwrap();
    runtimes::insert(&transaction, runtime()).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(runtimes::list_all(&db.writer()).await.unwrap(), []);
    assert_eq!(db.commits(), 0);
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let db = database().await;
    let error = runtimes::insert(db.reader(), runtime()).await.unwrap_err();
    assert!(matches!(error, Error::Other(_)), "{error:?}");
}

#[tokio::test]
async fn what_was_committed_is_there_for_the_next_program() {
    let db = database().await;
    runtimes::insert(&db.writer(), runtime()).await.unwrap();
    db.close().await.unwrap();
    let closed = runtimes::list_all(db.reader()).await.unwrap_err();
    assert!(matches!(closed, Error::Unavailable(_)), "{closed:?}");

    let next = Db::connect(&db.config).await.unwrap();
    assert_eq!(runtimes::list_all(next.reader()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn durability_decides_what_a_commit_waits_for() {
    let mut db = empty_file().await;
    for (durability, level) in [(config::Durability::Process, 1), (config::Durability::Power, 2)] {
        db.config.durability = durability;
        let connected = Db::connect(&db.config).await.unwrap();
        let pragma = async |name: &str| {
            let statement = Statement::from_string(DbBackend::Sqlite, format!("PRAGMA {name}"));
            connected.writer.query_one_raw(statement).await.unwrap().unwrap()
        };
        assert_eq!(pragma("synchronous").await.try_get_by_index::<i32>(0).unwrap(), level);
        assert_eq!(pragma("journal_mode").await.try_get_by_index::<String>(0).unwrap(), "wal");
        assert_eq!(pragma("foreign_keys").await.try_get_by_index::<i32>(0).unwrap(), 1);
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let config = config::Database { connection: "sqlite:///proc/none/x.sqlite".into(), ..Default::default() };
    let error = Db::connect(&config).await.unwrap_err().to_string();
    assert!(error.starts_with("[database] connection: cannot create the directory /proc/none"), "{error}");
}

#[tokio::test]
async fn a_text_is_stored_whole_or_refused() {
    let db = database().await;
    // Two bytes and four to a character, so that what counts bytes or takes three at most is found out.
    let (long, wide) = ("é\n".repeat(3 << 20), "\u{1f3d4}".repeat(1 << 20));
    let row = execution::Model {
        input: Some(wide.clone()),
        result: Some(long.clone()),
        description: Some("\u{1f3d4}".repeat(255)),
        ..execution(ExecutionStatus::Success)
    };
    executions::insert(&db.writer(), row.clone()).await.unwrap();
    let log = execution_log::Model { execution_id: row.id.clone(), log: wide.clone(), truncated: false };
    execution_logs::insert_many(&db.writer(), [log.clone()]).await.unwrap();
    let found = executions::find(db.reader(), &row.id, &Scope::All).await.unwrap().unwrap();
    assert!(found == row, "the row came back as another");
    let found = execution_logs::find(db.reader(), &row.id).await.unwrap().unwrap();
    assert!(found == log, "the log came back as another");

    let runtime = runtime::Model { status_reason: Some(wide), name: Some("x".repeat(400)), ..runtime() };
    match runtimes::insert(&db.writer(), runtime.clone()).await {
        Ok(()) => assert!(runtimes::list_all(db.reader()).await.unwrap() == [runtime], "it was cut"),
        Err(error) => {
            assert!(matches!(error, Error::Other(_)), "{error:?}");
            assert_eq!(runtimes::list_all(db.reader()).await.unwrap(), []);
        }
    }
}

#[tokio::test]
async fn many_long_rows_are_inserted_at_once() {
    let db = database().await;
    let long = "x".repeat(1 << 20);
    let rows: Vec<_> = (0..40)
        .map(|_| execution::Model { result: Some(long.clone()), ..execution(ExecutionStatus::Success) })
        .collect();
    let transaction = db.begin().await.unwrap();
    executions::insert_many(&transaction, rows).await.unwrap();
    transaction.commit().await.unwrap();
    let counts = executions::count_by_status(db.reader()).await.unwrap();
    assert_eq!(counts, [(ExecutionStatus::Success, 40)]);
}

#[tokio::test]
async fn texts_are_told_apart_letter_by_letter() {
    let db = database().await;
    let runtime = runtime();
    let function = function(&runtime.id);
    runtimes::insert(&db.writer(), runtime).await.unwrap();
    functions::insert(&db.writer(), function.clone()).await.unwrap();
    let names = ["prod", "Prod", "prod ", "pröd", "prod\u{301}", "PROD", "\u{1f3d4}", "\u{1f30b}", "ss", "ß"];
    for (number, name) in names.into_iter().enumerate() {
        let number = i32::try_from(number).unwrap();
        aliases::insert(&db.writer(), alias(&function, name, number)).await.unwrap();
    }
    for (number, name) in names.into_iter().enumerate() {
        let found = aliases::find(db.reader(), &project(), name).await.unwrap().unwrap();
        assert_eq!(found.function_version, i32::try_from(number).unwrap(), "{name}");
    }
    for name in ["prod  ", "pRod", "", "\u{1f3d4} "] {
        assert_eq!(aliases::find(db.reader(), &project(), name).await.unwrap(), None, "{name:?}");
    }
}

#[tokio::test]
async fn a_log_may_hold_any_character() {
    let db = database().await;
    let row = execution(ExecutionStatus::Success);
    executions::insert(&db.writer(), row.clone()).await.unwrap();
    let log = execution_log::Model {
        execution_id: row.id.clone(),
        log: "a\0b\u{1}\u{7f}\u{fffe}\u{10ffff}\r\n".to_owned(),
        truncated: false,
    };
    execution_logs::insert_many(&db.writer(), [log]).await.unwrap();
    let found = execution_logs::find(db.reader(), &row.id).await.unwrap().unwrap();
    assert_eq!(found.log, "a\u{2400}b\u{1}\u{7f}\u{fffe}\u{10ffff}\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_engines_that_claim_never_get_the_same_execution() {
    let db = database().await;
    let rows: Vec<_> = (0..120).map(|_| execution(ExecutionStatus::Pending)).collect();
    executions::insert_many(&db.writer(), rows.clone()).await.unwrap();
    let mut claimers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        // Two programs, four claims at once in each.
        let program = Db::connect(&db.config).await.unwrap();
        let engine = EngineId::random();
        for _ in 0..4 {
            let (program, engine) = (program.clone(), engine.clone());
            claimers.spawn(async move {
                let mut won = Vec::new();
                loop {
                    let pending = executions::list_pending(program.reader(), 8).await.unwrap();
                    if pending.is_empty() {
                        return won;
                    }
                    for row in pending {
                        let from = row.epoch;
                        let writer = program.writer();
                        let worker = WorkerName::from("w");
                        let claim = executions::claim(&writer, &row.id, from, &engine, &worker, Timestamp(9));
                        if claim.await.unwrap().is_some() {
                            won.push((row.id, engine.clone()));
                        }
                    }
                }
            });
        }
    }
    let won: Vec<_> = claimers.join_all().await.into_iter().flatten().collect();
    assert_eq!(won.len(), rows.len());
    for (id, engine) in won {
        let row = executions::find(db.reader(), &id, &Scope::All).await.unwrap().unwrap();
        assert_eq!((row.engine_id, row.epoch), (Some(engine), rows[0].epoch + 1));
    }
}
