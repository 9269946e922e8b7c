//! A database of one test's own: a file of SQLite's or, where `TAIBAI_TEST_DATABASE` names a server,
//! one that is made there. On PostgreSQL it is a schema, which is a database in all that a service
//! sees, and is made in a hundredth of the time. The end-to-end tests include this file too.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use sea_orm::{ConnectionTrait, Database, DbErr};
use tempfile::TempDir;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Goes with its value.
#[derive(Debug)]
pub struct OwnDatabase {
    url: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File { _directory: TempDir },
    Server { url: String, name: String },
}

impl OwnDatabase {
    /// Makes an empty one.
    pub fn create() -> Self {
        match std::env::var("TAIBAI_TEST_DATABASE") {
            Ok(server) if !server.is_empty() => Self::on(server.trim_end_matches('/')),
            _ => Self::file(),
        }
    }

    pub fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/on/demand/taibai.sqlite");
        Self { url: format!("sqlite://{}", path.display()), place: Place::File { _directory: directory } }
    }

    fn on(server: &str) -> Self {
        let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = start(server, format!("CREATE SCHEMA {name}")).join().unwrap();
        made.expect("the server of TAIBAI_TEST_DATABASE makes a database");
        let url = match is_postgresql(server) {
            true => format!("{server}/postgres?options[search_path]={name}"),
            false => format!("{server}/{name}"),
        };
        Self { url, place: Place::Server { url: server.to_owned(), name } }
    }

    /// As `[database] connection` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is a file, for one process alone.
    #[allow(dead_code, reason = "only the end-to-end tests ask")]
    pub fn is_file(&self) -> bool {
        matches!(self.place, Place::File { .. })
    }
}

impl Drop for OwnDatabase {
    fn drop(&mut self) {
        if let Place::Server { url, name } = &self.place {
            // Not waited for: a transaction that is dropped with the test is undone after this only.
            let what = if is_postgresql(url) { " CASCADE" } else { "" };
            start(url, format!("DROP SCHEMA {name}{what}"));
        }
    }
}

fn is_postgresql(server: &str) -> bool {
    server.starts_with("postgres")
}

/// Runs one statement on the server, in a thread: a test has a runtime already, and `drop` none.
fn start(server: &str, sql: String) -> JoinHandle<Result<(), DbErr>> {
    let (scheme, rest) = server.split_once("://").expect("TAIBAI_TEST_DATABASE is a URL");
    let dialect = scheme.split('+').next().unwrap_or(scheme);
    let name = if is_postgresql(server) { "/postgres" } else { "" };
    let url = format!("{dialect}://{rest}{name}");
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let connection = Database::connect(url).await?;
            connection.execute_unprepared(&sql).await?;
            connection.close().await
        })
    })
}
