//! Upgrades of the schema: from every earlier one, with rows in it, and with the program of that time still
//! writing.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, EntityTrait, Statement};
use sea_orm_migration::MigratorTrait;

use super::testing::*;
use super::*;
use crate::model::*;

/// A row as SQL: its table, and each column with its value.
struct Row(&'static str, Vec<(&'static str, String)>);

impl Row {
    fn insert(&self) -> String {
        let Self(table, values) = self;
        let columns: Vec<&str> = values.iter().map(|(column, _)| *column).collect();
        let values: Vec<&str> = values.iter().map(|(_, value)| value.as_str()).collect();
        format!("INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), values.join(", "))
    }
}

/// What the program of a migration's release writes into each table: every column that it knew, filled.
/// A new migration needs an arm here.
fn rows_as_of(migration: &str) -> Vec<Row> {
    match migration {
        "m20260101_000001_first" => first("one"),
        "m20261121_000002_versions_jobs_webhooks" => second("two"),
        "m20261121_000003_network" => third("three"),
        "m20261121_000004_quotas" => fourth("four"),
        "m20261122_000005_usage" => fifth("five"),
        // Indexes alone.
        "m20261122_000006_live_executions" => fifth("six"),
        other => panic!(
            "the migration {other} has no rows in src/db/upgrades.rs: add what the program of its release writes"
        ),
    }
}

fn first(mark: &str) -> Vec<Row> {
    let text = |value: &str| format!("'{value}'");
    let of = |what: &str| format!("'{what}-{mark}'");
    let digest = |letter: &str| format!("'{}'", letter.repeat(64));
    let number = |value: i64| value.to_string();
    let code = || "'{\"source\": \"package\"}'".to_owned();
    let flag = |value: bool| if value { "TRUE" } else { "FALSE" }.to_owned();
    let dates =
        || [("created_at", number(1_700_000_000_000_000)), ("updated_at", number(1_700_000_000_000_001))];
    let row = |table, values: Vec<(&'static str, String)>| Row(table, values);
    let dated = |table, mut values: Vec<(&'static str, String)>| {
        values.extend(dates());
        row(table, values)
    };
    vec![
        dated(
            "runtimes",
            vec![
                ("id", of("r")),
                ("project_id", text("demo")),
                ("name", text("python3")),
                ("description", text("Python")),
                ("image", text("taibai/python3:latest")),
                ("active_image", text("taibai/python3:latest")),
                ("status", text("available")),
                ("status_reason", text("none")),
                ("is_public", flag(true)),
                ("trusted", flag(true)),
            ],
        ),
        dated(
            "functions",
            vec![
                ("id", of("f")),
                ("project_id", text("demo")),
                ("name", text("hello")),
                ("description", text("greets")),
                ("runtime_id", of("r")),
                ("cpu", number(100)),
                ("memory_size", number(8 << 30)),
                ("timeout", number(5)),
                ("code", code()),
                ("package_digest", digest("d")),
                ("package_bytes", number(6 << 30)),
                ("object_etag", text("0")),
                ("entry", text("hello.main")),
                ("count", number(3_000_000_000)),
                ("trust_id", of("t")),
                ("trust_reason", text("none")),
                ("latest_version", number(1)),
            ],
        ),
        row(
            "trusts",
            vec![
                ("id", of("t")),
                ("project_id", text("demo")),
                ("user_id", text("somebody")),
                ("created_at", number(1)),
                ("dropped_at", number(0)),
            ],
        ),
        dated(
            "function_versions",
            vec![
                ("id", of("v")),
                ("project_id", text("demo")),
                ("function_id", of("f")),
                ("description", text("the first")),
                ("version_number", number(1)),
                ("count", number(2)),
                ("runtime_id", of("r")),
                ("cpu", number(200)),
                ("memory_size", number(33_554_432)),
                ("timeout", number(6)),
                ("package_digest", digest("e")),
                ("package_bytes", number(9)),
                ("entry", text("hello.old")),
            ],
        ),
        dated(
            "function_aliases",
            vec![
                ("id", of("a")),
                ("project_id", text("demo")),
                ("name", of("prod")),
                ("function_id", of("f")),
                ("function_version", number(1)),
                ("description", text("what customers call")),
            ],
        ),
        dated(
            "executions",
            vec![
                ("id", of("e")),
                ("project_id", text("demo")),
                ("function_id", of("f")),
                ("function_version", number(1)),
                ("function_alias", of("prod")),
                ("description", text("by hand")),
                ("status", text("success")),
                ("sync", flag(true)),
                ("input", text("{}")),
                ("result", text("{\"output\": 1}")),
                ("reason", text("raised")),
                ("start", text("warm")),
                ("epoch", number(1 << 40)),
                ("engine_id", of("n")),
                ("worker", of("w")),
                ("request_id", of("req")),
            ],
        ),
        row(
            "execution_logs",
            vec![("execution_id", of("e")), ("log", text("Start execution")), ("truncated", flag(false))],
        ),
        dated(
            "jobs",
            vec![
                ("id", of("j")),
                ("project_id", text("demo")),
                ("name", text("hourly")),
                ("pattern", text("0 * * * *")),
                ("status", text("running")),
                ("first_execution_time", number(1)),
                ("next_execution_time", number(2)),
                ("count", number(3)),
                ("function_id", of("f")),
                ("function_version", number(1)),
                ("function_alias", of("prod")),
                ("function_input", text("{}")),
            ],
        ),
        dated(
            "webhooks",
            vec![
                ("id", of("h")),
                ("project_id", text("demo")),
                ("function_id", of("f")),
                ("function_version", number(1)),
                ("function_alias", of("prod")),
                ("description", text("pushes")),
            ],
        ),
        row(
            "engines",
            vec![
                ("id", of("n")),
                ("node", text("one")),
                ("deployment", text("taibai")),
                ("endpoint", text("unix:///run/engine.sock")),
                ("started_at", number(1)),
                ("lease_until", number(2)),
            ],
        ),
    ]
}

fn second(mark: &str) -> Vec<Row> {
    let text = |value: &str| format!("'{value}'");
    let of = |what: &str| format!("'{what}-{mark}'");
    let added = |table: &str| -> Vec<(&'static str, String)> {
        match table {
            "functions" => vec![
                ("version_counter", "3".to_owned()),
                ("status", text("available")),
                ("status_reason", text("none")),
                ("image_digest", text("sha256:0")),
            ],
            "function_versions" => vec![("trust_id", of("t")), ("trust_reason", text("none"))],
            "function_aliases" => vec![
                ("canary_version", "2".to_owned()),
                ("canary_weight", "10".to_owned()),
                ("previous_version", "3".to_owned()),
            ],
            "executions" => vec![("deadline_at", "4".to_owned())],
            "jobs" => vec![("status_reason", text("none"))],
            "webhooks" => vec![
                ("url_key", of("key")),
                ("mode", text("sync")),
                ("is_public", "FALSE".to_owned()),
                ("secret", text("secret")),
            ],
            _ => Vec::new(),
        }
    };
    let mut rows = first(mark);
    for Row(table, values) in &mut rows {
        values.extend(added(table));
    }
    rows
}

fn third(mark: &str) -> Vec<Row> {
    let mut rows = second(mark);
    for Row(table, values) in &mut rows {
        if ["runtimes", "functions", "function_versions"].contains(table) {
            values.push(("network", "'none'".to_owned()));
        }
        if *table == "runtimes" {
            values.push(("active_network", "'default'".to_owned()));
        }
    }
    rows
}

fn fourth(mark: &str) -> Vec<Row> {
    let mut rows = third(mark);
    rows.push(Row("quota_locks", vec![("project_id", "'demo'".to_owned())]));
    rows
}

fn fifth(mark: &str) -> Vec<Row> {
    let mut rows = fourth(mark);
    for Row(table, values) in &mut rows {
        if *table == "executions" {
            let numbers = ["queued_us", "starting_us", "run_us", "cpu_us", "peak_memory_bytes"];
            values.extend(numbers.map(|column| (column, (5_i64 << 30).to_string())));
            values.push(("log_truncated", "TRUE".to_owned()));
        }
    }
    rows
}

fn names() -> Vec<String> {
    Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect()
}

/// How many migrations there are up to each, with its name.
fn steps() -> impl Iterator<Item = (u32, String)> {
    (1..).zip(names())
}

async fn write(db: &Db, rows: &[Row]) {
    for row in rows {
        let sql = row.insert();
        db.writer().execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Reads every table through the models of today, and compares what the rows of that release say.
async fn read(db: &Db, rows: &[Row]) {
    async fn count<E: EntityTrait>(db: &Db) -> usize {
        E::find().all(db.reader()).await.unwrap().len()
    }
    let found = BTreeMap::from([
        ("runtimes", count::<runtime::Entity>(db).await),
        ("functions", count::<function::Entity>(db).await),
        ("trusts", count::<trust::Entity>(db).await),
        ("function_versions", count::<version::Entity>(db).await),
        ("function_aliases", count::<alias::Entity>(db).await),
        ("executions", count::<execution::Entity>(db).await),
        ("execution_logs", count::<execution_log::Entity>(db).await),
        ("jobs", count::<job::Entity>(db).await),
        ("webhooks", count::<webhook::Entity>(db).await),
        ("engines", count::<engine::Entity>(db).await),
        ("quota_locks", count::<quota_lock::Entity>(db).await),
    ]);
    let mut written: BTreeMap<_, _> = found.keys().map(|table| (*table, 0)).collect();
    for Row(table, _) in rows {
        *written.entry(*table).or_insert(0_usize) += 1;
    }
    assert_eq!(found, written);

    let function = function::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!((function.count, function.memory_size), (3_000_000_000, 8 << 30));
    assert_eq!(function.source().unwrap(), function::Source::Package);
    assert_eq!(function.digest(), Some("d".repeat(64)));
    let version = version::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!((&version.function_id, version.version_number), (&function.id, 1));
    let execution = execution::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!((execution.status, execution.start), (ExecutionStatus::Success, Some(Start::Warm)));
    let webhook = webhook::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!(webhook.function_id, Some(function.id));
    let job = job::Entity::find().one(db.reader()).await.unwrap().unwrap();
    assert_eq!((job.status, job.pattern.as_deref()), (JobStatus::Running, Some("0 * * * *")));
}

#[tokio::test]
async fn from_every_earlier_schema_rows_come_along() {
    for (step, name) in steps() {
        let db = empty_database().await;
        Migrator::up(&db.writer, Some(step)).await.unwrap();
        let rows = rows_as_of(&name);
        write(&db, &rows).await;

        db.migrate().await.unwrap();
        assert_eq!(db.schema().await.unwrap(), Schema { pending: Vec::new(), newer: Vec::new() }, "{name}");
        read(&db, &rows).await;
    }
}

#[tokio::test]
async fn a_program_of_every_earlier_release_still_writes_what_today_reads() {
    for (_, name) in steps() {
        let db = database().await;
        let rows = rows_as_of(&name);
        write(&db, &rows).await;
        read(&db, &rows).await;
    }
}

/// Whether a column may be left out of a row, and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    kind: String,
    may_be_left_out: bool,
}

/// Every column, by table and name.
async fn columns(db: &Db) -> BTreeMap<(String, String), Column> {
    let backend = db.reader().get_database_backend();
    let sql = match backend {
        DbBackend::Sqlite => {
            "SELECT t.name, c.name, c.type, c.\"notnull\" = 0 OR c.dflt_value IS NOT NULL FROM sqlite_master t, \
             pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'"
        }
        DbBackend::MySql => {
            "SELECT table_name, column_name, CAST(column_type AS CHAR(255)), \
             is_nullable = 'YES' OR column_default IS NOT NULL \
             FROM information_schema.columns WHERE table_schema = DATABASE()"
        }
        _ => {
            "SELECT table_name::text, column_name::text, \
             data_type || '(' || COALESCE(character_maximum_length, 0) || ')', \
             CASE WHEN is_nullable = 'YES' OR column_default IS NOT NULL THEN 1 ELSE 0 END \
             FROM information_schema.columns WHERE table_schema = current_schema()"
        }
    };
    let rows = db.reader().query_all_raw(Statement::from_string(backend, sql)).await.unwrap();
    let text = |row: &sea_orm::QueryResult, index| row.try_get_by_index::<String>(index).unwrap();
    let flag = |row: &sea_orm::QueryResult| match backend {
        DbBackend::Postgres => row.try_get_by_index::<i32>(3).unwrap() != 0,
        _ => row.try_get_by_index::<i64>(3).unwrap() != 0,
    };
    rows.iter()
        .map(|row| {
            let column = Column { kind: text(row, 2), may_be_left_out: flag(row) };
            ((text(row, 0), text(row, 1)), column)
        })
        .collect()
}

#[tokio::test]
async fn migrations_only_add_and_nothing_that_an_earlier_release_would_have_to_fill() {
    let db = empty_database().await;
    let mut before: BTreeMap<(String, String), Column> = BTreeMap::new();
    for name in names() {
        Migrator::up(&db.writer, Some(1)).await.unwrap();
        let after = columns(&db).await;
        for (place, column) in &before {
            let now = after.get(place).unwrap_or_else(|| panic!("{name} takes away {place:?}"));
            assert_eq!(now.kind, column.kind, "{name} changes {place:?}");
            let stricter = column.may_be_left_out && !now.may_be_left_out;
            assert!(!stricter, "{name} asks for {place:?}, which an earlier release may leave out");
        }
        let tables: std::collections::BTreeSet<_> = before.keys().map(|(table, _)| table.clone()).collect();
        for (place, column) in &after {
            let is_new = tables.contains(&place.0) && !before.contains_key(place);
            let fine = !is_new || column.may_be_left_out;
            assert!(
                fine,
                "{name} adds {place:?}, which an earlier release does not write, without a default"
            );
        }
        before = after;
    }
}

#[tokio::test]
async fn tables_of_a_later_release_are_used_and_never_taken_up_in_the_middle() {
    let db = database().await;
    let later = "m29990101_000001_later";
    let applied = format!("INSERT INTO seaql_migrations (version, applied_at) VALUES ('{later}', 1)");
    db.writer().execute_unprepared(&applied).await.unwrap();
    assert_eq!(db.schema().await.unwrap(), Schema { pending: Vec::new(), newer: vec![later.to_owned()] });
    db.ensure_current().await.unwrap();

    let last = names().pop().unwrap();
    let forgotten = format!("DELETE FROM seaql_migrations WHERE version = '{last}'");
    db.writer().execute_unprepared(&forgotten).await.unwrap();
    assert_eq!(db.schema().await.unwrap(), Schema { pending: vec![last], newer: vec![later.to_owned()] });
    let error = db.ensure_current().await.unwrap_err().to_string();
    assert!(error.contains("1 migrations are not applied yet; run taibai db sync"), "{error}");
}

#[tokio::test]
async fn a_database_without_tables_lacks_every_migration() {
    let db = empty_database().await;
    assert_eq!(db.schema().await.unwrap(), Schema { pending: names(), newer: Vec::new() });
}

#[tokio::test]
async fn a_copy_of_a_file_holds_what_was_committed_while_others_go_on_writing() {
    use std::os::unix::fs::PermissionsExt;

    let db = empty_file().await;
    db.migrate().await.unwrap();
    for _ in 0..20 {
        runtimes::insert(&db.writer(), runtime()).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("copy.sqlite");
    // Another program's connection, as that of the command is.
    let other = Db::connect(&db.config).await.unwrap();
    let writing = async {
        for _ in 0..20 {
            runtimes::insert(&db.writer(), runtime()).await.unwrap();
        }
    };
    let (copied, ()) = tokio::join!(other.backup(&file), writing);
    copied.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = other.backup(&file).await.unwrap_err().to_string();
    assert!(again.contains("cannot be made: File exists"), "{again}");

    let connection = format!("sqlite://{}", file.display());
    let copy = Db::connect(&config::Database { connection, ..db.config.clone() }).await.unwrap();
    assert_eq!(copy.pending_migrations().await.unwrap(), Vec::<String>::new());
    let found = runtimes::list_all(copy.reader()).await.unwrap().len();
    assert!((20..=40).contains(&found), "{found}");
    assert_eq!(runtimes::list_all(db.reader()).await.unwrap().len(), 40);
}
