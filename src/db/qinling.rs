//! The database of a Qinling deployment, read for `taibai import-qinling`: the schema of its last release,
//! on SQLite or MySQL. Nothing is written there.

use std::path::PathBuf;

use chrono::NaiveDateTime;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{ConnectionTrait, DatabaseConnection, FromQueryResult, Statement, TransactionTrait};

use super::address::Address;
use super::{Error, Result, connect_options, server};
use crate::model::Timestamp;

/// All that a deployment has, but for its executions.
#[derive(Debug, Default)]
pub struct Deployment {
    pub runtimes: Vec<Runtime>,
    pub functions: Vec<Function>,
    pub versions: Vec<Version>,
    pub aliases: Vec<Alias>,
    pub jobs: Vec<Job>,
    pub webhooks: Vec<Webhook>,
}

/// A row as it is there: what the schema lets be null may be.
macro_rules! row {
    ($(#[$doc:meta])* $name:ident from $table:literal { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, FromQueryResult)]
        pub struct $name {
            pub id: String,
            pub project_id: String,
            $(pub $field: $kind,)*
            created_at: Option<NaiveDateTime>,
            updated_at: Option<NaiveDateTime>,
        }

        impl $name {
            const QUERY: &'static str = concat!(
                "SELECT id, project_id, ", $(stringify!($field), ", ",)*
                "created_at, updated_at FROM ", $table, " ORDER BY created_at, id"
            );

            /// Now, where the row does not say.
            pub fn created_at(&self) -> Timestamp {
                self.created_at.map_or_else(Timestamp::now, timestamp)
            }

            pub fn updated_at(&self) -> Option<Timestamp> {
                self.updated_at.map(timestamp)
            }
        }
    };
}

row!(Runtime from "runtimes" {
    name: Option<String>,
    description: Option<String>,
    image: String,
    status: String,
    is_public: Option<bool>,
    trusted: Option<bool>,
});

row!(Function from "functions" {
    name: Option<String>,
    description: Option<String>,
    runtime_id: Option<String>,
    cpu: Option<i64>,
    memory_size: Option<i64>,
    timeout: Option<i64>,
    code: String,
    entry: Option<String>,
    count: Option<i64>,
    trust_id: Option<String>,
    latest_version: Option<i64>,
});

row!(Version from "function_versions" {
    function_id: Option<String>,
    description: Option<String>,
    version_number: Option<i64>,
    count: Option<i64>,
});

row!(Alias from "function_aliases" {
    name: String,
    function_id: Option<String>,
    function_version: Option<i64>,
    description: Option<String>,
});

row!(Job from "jobs" {
    name: Option<String>,
    pattern: Option<String>,
    status: String,
    first_execution_time: Option<NaiveDateTime>,
    next_execution_time: NaiveDateTime,
    count: Option<i64>,
    function_id: Option<String>,
    function_version: Option<i64>,
    function_alias: Option<String>,
    function_input: Option<String>,
});

row!(Webhook from "webhooks" {
    function_id: Option<String>,
    function_version: Option<i64>,
    function_alias: Option<String>,
    description: Option<String>,
});

/// Qinling writes times of UTC without saying so.
pub fn timestamp(time: NaiveDateTime) -> Timestamp {
    Timestamp(time.and_utc().timestamp_micros())
}

/// Reads all of a deployment, as of one moment.
pub async fn read(url: &str) -> Result<Deployment> {
    let database = connect(url).await?;
    let read = read_all(&database).await;
    database.close().await?;
    read
}

/// The URL is as `qinling.conf` has it. It is left out of messages: it holds a password.
async fn connect(url: &str) -> Result<DatabaseConnection> {
    let wrong = || {
        Error::Config(
            "--database: expected sqlite:///PATH or mysql+pymysql://USER:PASSWORD@HOST/NAME, as [database] connection \
             in qinling.conf"
                .to_owned(),
        )
    };
    match Address::parse(url).map_err(|_| wrong())? {
        Address::Sqlite(path) => open(path).await,
        Address::Server(url) if url.starts_with("mysql:") => server::connect_to_read(&url).await,
        Address::Server(_) => Err(wrong()),
    }
}

async fn open(path: PathBuf) -> Result<DatabaseConnection> {
    if !path.is_file() {
        return Err(Error::Config(format!("--database: there is no file {}", path.display())));
    }
    let mut options = connect_options("sqlite:qinling".to_owned(), 1);
    options.map_sqlx_sqlite_opts(move |options: SqliteConnectOptions| {
        options.filename(&path).create_if_missing(false).read_only(true)
    });
    Ok(sea_orm::Database::connect(options).await?)
}

async fn read_all(database: &DatabaseConnection) -> Result<Deployment> {
    let tx = database.begin().await?;
    Ok(Deployment {
        runtimes: rows(&tx, Runtime::QUERY).await?,
        functions: rows(&tx, Function::QUERY).await?,
        versions: rows(&tx, Version::QUERY).await?,
        aliases: rows(&tx, Alias::QUERY).await?,
        jobs: rows(&tx, Job::QUERY).await?,
        webhooks: rows(&tx, Webhook::QUERY).await?,
    })
}

async fn rows<R: FromQueryResult>(db: &impl ConnectionTrait, query: &str) -> Result<Vec<R>> {
    Ok(R::find_by_statement(Statement::from_string(db.get_database_backend(), query)).all(db).await?)
}
