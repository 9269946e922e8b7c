use std::time::Duration;

use super::*;
use crate::db::testing::{self, TestDb, database};
use crate::model::{ExecutionStatus, execution, function};

fn limits(resource: Resource, limit: i64) -> Limits {
    let mut limits = Limits(Resource::ALL.map(|_| -1));
    limits.set(resource, limit);
    limits
}

fn quotas(limits: Limits) -> Quotas {
    Quotas { defaults: limits, unified: None, projects: Arc::default() }
}

async fn with_runtime() -> (TestDb, crate::model::RuntimeId) {
    let db = database().await;
    let runtime = testing::runtime();
    db::runtimes::insert(&db.writer(), runtime.clone()).await.unwrap();
    (db, runtime.id)
}

#[test]
fn every_resource_has_a_key_of_the_configuration() {
    let section = config::Config::SECTIONS.iter().find(|section| section.name == "quotas").unwrap();
    for resource in Resource::ALL {
        assert!(section.options.iter().any(|option| option.name == resource.name()), "{resource:?}");
    }
}

#[test]
fn who_is_over_is_told_the_numbers() {
    let error = Error::from(check(Resource::Jobs, 5, 4, 2).unwrap_err());
    assert_eq!(error.to_string(), "Quota exceeded for jobs: limit 5, used 4, requested 2.");
    assert!(check(Resource::Jobs, 5, 4, 1).is_ok());
    assert!(check(Resource::Jobs, 0, 0, 1).is_err());
}

/// On every database: of many that create at once, as many as the limit has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_as_many_are_admitted_as_there_is_room_for() {
    const LIMIT: usize = 7;
    let (db, runtime) = with_runtime().await;
    let limits = limits(Resource::Functions, i64::try_from(LIMIT).unwrap());
    // A second program on the same database.
    let other = Db::connect(&db.config).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..40 {
        let db = if task % 2 == 0 { db.db.clone() } else { other.clone() };
        let mut row = testing::function(&runtime);
        row.project_id = if task < 30 { "many".into() } else { format!("few-{}", task % 5).into() };
        tasks.spawn(async move {
            let tx = db.begin().await.unwrap();
            let admitted = limits.admit(&tx, &row.project_id, Resource::Functions, 1).await;
            if let Err(error) = admitted {
                assert!(matches!(error, Error::OverQuota { limit: 7, used: 7, .. }), "{error:?}");
                return;
            }
            db::functions::insert(&tx, row).await.unwrap();
            tx.commit().await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let used = async |project: &str| {
        db::quotas::used(db.reader(), &project.into(), Resource::Functions).await.unwrap()
    };
    assert_eq!(used("many").await, LIMIT as u64);
    for project in 0..5 {
        assert_eq!(used(&format!("few-{project}")).await, 2, "others do not count");
    }
}

#[tokio::test]
async fn packages_are_weighed_once_however_often_they_are_used() {
    let (db, runtime) = with_runtime().await;
    let project = testing::project();
    let limits = limits(Resource::PackageBytes, 100);
    let function = |digest: &str, bytes: i64| function::Model {
        package_digest: Some(digest.repeat(64)),
        package_bytes: Some(bytes),
        ..testing::function(&runtime)
    };
    let add = async |row: function::Model| {
        let tx = db.begin().await.unwrap();
        let scale = limits.weigh(&tx, &project).await.unwrap();
        db::functions::insert(&tx, row).await.unwrap();
        scale.settle(&tx, &project).await?;
        tx.commit().await.unwrap();
        Ok::<_, Error>(())
    };
    let first = function("a", 60);
    add(first.clone()).await.unwrap();
    add(function("a", 60)).await.unwrap();
    // An object in Swift is not kept here.
    add(function::Model { package_digest: None, ..function("b", 90) }).await.unwrap();
    let refused = add(function("b", 41)).await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::OverQuota { resource: "package_bytes", limit: 100, used: 60, requested: 41 }
        ),
        "{refused:?}"
    );
    add(function("b", 40)).await.unwrap();

    let used = async || db::quotas::used(db.reader(), &project, Resource::PackageBytes).await.unwrap();
    assert_eq!(used().await, 100);
    let version = crate::model::version::Model {
        package_digest: Some("c".repeat(64)),
        package_bytes: Some(7),
        ..testing::version(&first, 1)
    };
    db::versions::insert(&db.writer(), version).await.unwrap();
    assert_eq!(used().await, 107);
    // Over the limit, as after it was lowered: what adds nothing is admitted still.
    add(function("a", 60)).await.unwrap();
    assert!(add(function("d", 1)).await.is_err());
}

#[tokio::test]
async fn calls_are_counted_here_and_what_is_queued_in_the_database() {
    let db = database().await;
    let project = testing::project();
    let quotas = quotas(limits(Resource::ConcurrentExecutions, 3));
    let row = |status, sync| execution::Model { sync, ..testing::execution(status) };
    let queued = row(ExecutionStatus::Pending, false);
    for row in [
        queued.clone(),
        row(ExecutionStatus::Running, true),
        row(ExecutionStatus::Success, false),
        execution::Model { project_id: "other".into(), ..row(ExecutionStatus::Running, false) },
    ] {
        db::executions::insert(&db.writer(), row).await.unwrap();
    }
    let now = Instant::now();
    let enter = async |now| quotas.enter_at(&db, &project, now).await;
    let first = enter(now).await.unwrap();
    quotas.enter(&db, &"third".into()).await.unwrap();
    let second = enter(now).await.unwrap();
    let refused = enter(now).await.unwrap_err();
    assert!(matches!(refused, Error::OverQuota { limit: 3, used: 3, requested: 1, .. }), "{refused:?}");
    drop(second);
    let second = enter(now).await.unwrap();
    assert!(enter(now).await.is_err(), "two calls and one that is queued");

    // What is over makes room, though nobody said so.
    let tx = db.begin().await.unwrap();
    let over = crate::model::Outcome::error(crate::model::Reason::Preparation, "over");
    assert!(db::executions::finish_unowned(&tx, &queued.id, &over).await.unwrap());
    tx.commit().await.unwrap();
    assert!(enter(now).await.is_err(), "it was counted just now");
    let third = enter(now + Duration::from_secs(1)).await.unwrap();
    let queue = quotas.queue(&project).await.unwrap();
    assert!(queue.check(0).is_err(), "calls count for what is to be queued");
    drop(third);
    assert!(queue.check(0).is_ok() && queue.check(1).is_err());
    drop((first, second));
    let usage = quotas.usage(&db, &project).await.unwrap();
    assert!(usage.iter().all(|usage| usage.used == 0), "{usage:?}");
}

/// As after a restart, and where another process queued them.
#[tokio::test]
async fn a_process_that_queued_nothing_knows_of_what_is_queued() {
    let db = database().await;
    let (project, now) = (testing::project(), Instant::now());
    let quotas = quotas(limits(Resource::ConcurrentExecutions, 10));
    let mut calls = vec![quotas.enter_at(&db, &project, now).await.unwrap()];
    for _ in 0..10 {
        let row = execution::Model { sync: false, ..testing::execution(ExecutionStatus::Pending) };
        db::executions::insert(&db.writer(), row).await.unwrap();
    }
    let restarted = self::quotas(limits(Resource::ConcurrentExecutions, 10));
    let refused = restarted.enter(&db, &project).await.unwrap_err();
    assert!(matches!(refused, Error::OverQuota { limit: 10, used: 10, .. }), "{refused:?}");

    // What is known is old by then, and looked at again before the limit is reached.
    let later = now + Duration::from_secs(60);
    let refused = loop {
        match quotas.enter_at(&db, &project, later).await {
            Ok(call) => calls.push(call),
            Err(error) => break error,
        }
    };
    assert_eq!(calls.len(), 5);
    assert!(matches!(refused, Error::OverQuota { limit: 10, used: 15, .. }), "{refused:?}");
}

#[tokio::test]
async fn without_a_limit_nothing_is_counted() {
    let db = database().await;
    let quotas = quotas(Limits(Resource::ALL.map(|_| -1)));
    assert!(quotas.enter(&db, &"p".into()).await.unwrap().is_none());
    assert!(quotas.queue(&"p".into()).await.is_none());
}

#[test]
fn limits_are_registered_in_numbers_that_keystone_takes() {
    let config = config::Quotas {
        functions: -1,
        jobs: 1 << 40,
        package_bytes: (3 << 20) + 1,
        ..config::Quotas::default()
    };
    let registered: std::collections::HashMap<_, _> = Limits::of(&config).registered().into_iter().collect();
    assert_eq!(registered["functions"], -1);
    assert_eq!(registered["jobs"], 2_147_483_647);
    assert_eq!(registered["package_mebibytes"], 3);
    assert_eq!(registered["webhooks"], 1000);
    assert_eq!(registered.len(), Resource::ALL.len());
}

#[test]
fn a_limit_is_written_as_a_number_with_or_without_a_unit_or_as_none() {
    let read = |text: &str| {
        let section = serde_json::json!({"package_bytes": text});
        serde_json::from_value::<config::Quotas>(section).map(|quotas| quotas.package_bytes)
    };
    for (text, limit) in [("5", 5), ("2GiB", 2 << 30), ("0", 0), ("-1", -1)] {
        assert_eq!(read(text).unwrap(), limit, "{text}");
    }
    for text in ["", "-2", "many", "1.5", "99999999999999999999"] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("or -1 for none"), "{text}: {error}");
    }
}
