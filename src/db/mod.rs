//! The database: its connections here, and one file of queries per table. The only user of SQL.
//!
//! Queries are free functions over `&impl ConnectionTrait`, so that a caller can put several into one
//! transaction. Reads go to [`Db::reader`], a write of one statement to [`Db::writer`], everything
//! else into [`Db::begin`]. Where a user asks, a query takes a [`Scope`] and cannot forget it.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use migration::Migrator;
pub use sea_orm::Statement;
use sea_orm::sea_query::{Alias, IntoCondition, Query};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, Connection};
use sea_orm::{
    ColumnTrait, Condition, ConnectOptions, ConnectionTrait, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, ExecResult, QueryResult, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{MigratorTrait, SchemaManager};

use crate::model::Scope;
use crate::{config, crash_points};

mod address;
mod error;
mod file;
mod filter;
mod page;
mod server;

pub mod aliases;
pub mod engines;
pub mod execution_logs;
pub mod executions;
pub mod functions;
pub mod imports;
pub mod jobs;
pub mod journal;
pub mod qinling;
pub mod quotas;
pub mod recent;
pub mod runtimes;
pub mod trusts;
pub mod versions;
pub mod webhooks;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upgrades;

use address::Address;
pub use error::{Error, Result};
pub use filter::Filter;
#[cfg(any(test, feature = "fuzz"))]
pub use filter::fuzz_filter;
use journal::Journal;
pub use page::{Key, Listed, Page, Place};
pub use recent::Changes;
use recent::{Forgets, Recent};

/// Longest wait for a connection, and on SQLite for the lock that another program holds.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a database's tables differ from those of this program's release, by names of migrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// This program has them and the database does not.
    pub pending: Vec<String>,
    /// The database has them and this program does not.
    pub newer: Vec<String>,
}

/// The file of an SQLite database; `None` for a server's.
pub fn file_of(config: &config::Database) -> Result<Option<PathBuf>> {
    Ok(match Address::parse(&config.connection)? {
        Address::Sqlite(path) => Some(path),
        Address::Server(_) => None,
    })
}

/// Whether the database is a file, which is for one process.
pub fn is_file(config: &config::Database) -> Result<bool> {
    Ok(file_of(config)?.is_some())
}

/// The connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Db {
    /// On SQLite one connection: writers queue for it here, in order, instead of finding the file
    /// locked. Elsewhere a pool.
    writer: DatabaseConnection,
    reader: Reader,
    commits: Arc<AtomicU64>,
    recent: Recent,
    journal: Noted,
}

/// What was noted and is not in the tables yet. A file's alone, and only once somebody is there who writes it.
#[derive(Debug, Clone, Default)]
struct Noted {
    journal: Arc<OnceLock<Journal>>,
    /// Whether it is for who writes it, and waits for nobody.
    is_own: bool,
}

impl Noted {
    async fn settled(&self) {
        if !self.is_own
            && let Some(journal) = self.journal.get()
        {
            journal.settled().await;
        }
    }
}

impl Db {
    /// Connects. Creates SQLite's file and its directory where they are missing, but no table: see
    /// [`Db::migrate`].
    pub async fn connect(config: &config::Database) -> Result<Self> {
        let (writer, reader) = match Address::parse(&config.connection)? {
            Address::Sqlite(path) => {
                if let Some(directory) = path.parent() {
                    tokio::fs::create_dir_all(directory).await.map_err(|source| {
                        let directory = directory.display();
                        Error::Config(format!(
                            "[database] connection: cannot create the directory {directory}: {source}"
                        ))
                    })?;
                }
                let synchronous = match config.durability {
                    config::Durability::Process => SqliteSynchronous::Normal,
                    config::Durability::Power => SqliteSynchronous::Full,
                };
                let common = move |options: SqliteConnectOptions| {
                    options
                        .filename(&path)
                        .create_if_missing(true)
                        .journal_mode(SqliteJournalMode::Wal)
                        .synchronous(synchronous)
                        .busy_timeout(PATIENCE)
                        .foreign_keys(true)
                        .pragma("wal_autocheckpoint", file::LOG_PAGES)
                        .pragma("journal_size_limit", file::LOG_BYTES)
                };
                let mut options = connect_options("sqlite:taibai".to_owned(), 1);
                options.idle_timeout(None).max_lifetime(None).map_sqlx_sqlite_opts(common.clone());
                options.map_sqlx_sqlite_pool_opts(|pool| {
                    pool.after_release(|connection, _| Box::pin(has_no_transaction(connection)))
                });
                let writer = sea_orm::Database::connect(options).await?;

                let mut options = connect_options("sqlite:taibai".to_owned(), config.max_connections);
                options
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .map_sqlx_sqlite_opts(move |options| common(options).pragma("query_only", "ON"));
                (writer, sea_orm::Database::connect(options).await?)
            }
            Address::Server(url) => server::connect(&url, config.max_connections).await?,
        };
        let is_file = writer.get_database_backend() == DbBackend::Sqlite;
        Ok(Self::new(writer, reader, is_file))
    }

    fn new(writer: DatabaseConnection, reader: DatabaseConnection, is_file: bool) -> Self {
        let journal = Noted::default();
        let reader = Reader { connection: reader, journal: journal.clone() };
        Self { writer, reader, commits: Arc::default(), recent: Recent::new(is_file), journal }
    }

    /// Connects to what is there, and changes nothing: neither SQLite's file nor what is beside it.
    pub async fn connect_to_look(config: &config::Database) -> Result<Self> {
        let path = match Address::parse(&config.connection)? {
            Address::Sqlite(path) => path,
            Address::Server(_) => return Self::connect(config).await,
        };
        if !path.exists() {
            let what = format!("there is no {}; taibai db sync makes it", path.display());
            return Err(Error::Config(format!("[database] connection: {what}")));
        }
        // With these, somebody has it open or has not closed it: they say what counts. Without them SQLite
        // would make some to read a file that has a log, so it is told that nobody writes.
        let beside = |suffix: &str| {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            Path::new(&name).exists()
        };
        let is_alone = !beside("-wal") && !beside("-journal");
        let mut options = connect_options("sqlite:taibai".to_owned(), 1);
        options.map_sqlx_sqlite_opts(move |options| {
            options.filename(&path).read_only(true).immutable(is_alone).busy_timeout(PATIENCE)
        });
        let reader = sea_orm::Database::connect(options).await?;
        Ok(Self::new(reader.clone(), reader, true))
    }

    /// Has ends of executions noted beside the file before they are committed, where the configuration asks for no
    /// more than that promises; and writes those that a process left there that died. For the one process that
    /// has the file, before it does anything else. Nothing to do for a server's database.
    pub async fn open_journal(&self, config: &config::Database) -> Result<()> {
        let Some(file) = file_of(config)? else { return Ok(()) };
        let failed = |source| {
            let file = file.display();
            Error::Config(format!(
                "[database] connection: the journal beside {file} cannot be used: {source}"
            ))
        };
        let (journal, left) = Journal::open(&file).map_err(failed)?;
        if !left.is_empty() {
            tracing::info!(ends = left.len(), "ends of executions that a process had noted are written");
            executions::write_again(self, left).await?;
        }
        journal.clear().map_err(failed)?;
        if config.durability == config::Durability::Process {
            self.journal.journal.set(journal).expect("it is opened once");
        }
        Ok(())
    }

    pub fn journal(&self) -> Option<&Journal> {
        self.journal.journal.get()
    }

    /// For who writes what is in the journal: whatever else asks waits for that.
    pub fn behind_journal(&self) -> Self {
        let mut db = self.clone();
        db.journal.is_own = true;
        db.reader.journal.is_own = true;
        db
    }

    /// For queries that write nothing; the database refuses others here.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// For a write of one statement, which is a commit of its own.
    ///
    /// Not while holding a transaction: on SQLite both need the one connection that writes, and
    /// the wait ends with an error.
    pub fn writer(&self) -> Writer<'_> {
        Writer {
            connection: &self.writer,
            commits: &self.commits,
            recent: &self.recent,
            journal: &self.journal,
        }
    }

    /// Begins a transaction for writing; dropped without [`Transaction::commit`] it leaves nothing.
    ///
    /// On SQLite it takes the write lock at once. One that reads first and asks for it later would
    /// fail whenever another wrote in between, however long it is ready to wait. On the others it
    /// locks nothing: what is written from what was read needs [`functions::find_for_update`], or
    /// an update that names what it changes.
    pub async fn begin(&self) -> Result<Transaction> {
        self.journal.settled().await;
        let inner = self
            .writer
            .begin_with_options(TransactionOptions {
                // As `server` set for the whole session.
                isolation_level: None,
                access_mode: None,
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            })
            .await?;
        let (commits, recent) = (self.commits.clone(), self.recent.clone());
        Ok(Transaction { inner, commits, recent, is_change: AtomicBool::new(false) })
    }

    /// Writes all statements or none, in one commit. Nobody learns how many rows each of them found.
    ///
    /// To be awaited to its end: see [`file::commit_all`].
    pub async fn commit_all(&self, statements: Vec<Statement>) -> Result<()> {
        if self.is_file() {
            return self.commit_returning(statements).await.map(drop);
        }
        let tx = self.begin().await?;
        tx.run(statements).await?;
        tx.commit().await
    }

    /// As [`Db::commit_all`], with the first column of all rows that the statements return. Of a file alone.
    pub async fn commit_returning(&self, statements: Vec<Statement>) -> Result<Vec<String>> {
        crash_points::expect_name("a transaction");
        let texts = file::commit_all(self.writer.get_sqlite_connection_pool(), statements).await?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(texts)
    }

    /// Keeps SQLite's log short, beside those who write; to be run as long as there are any. Nothing to do
    /// for a server's database.
    pub async fn fold_log(&self) {
        if self.is_file() {
            file::fold(&self.reader.connection, &self.commits).await;
        }
    }

    /// Which statements are built for it.
    pub fn backend(&self) -> DbBackend {
        self.writer.get_database_backend()
    }

    /// How often something was committed through this and its clones, migrations left out.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Brings the tables up to this program's release. May be called again, but not by two
    /// programs at the same time.
    pub async fn migrate(&self) -> Result<()> {
        Ok(Migrator::up(&self.writer, None).await?)
    }

    /// Sees to it that a service finds the tables of its release. SQLite's are brought up to date on
    /// the spot, since nobody else has them; a server's are shared, and `taibai db sync` is for the
    /// operator to run once.
    ///
    /// Tables of a later release are no hindrance: migrations only add, so that processes of both
    /// releases can be there while a deployment is upgraded.
    pub async fn ensure_current(&self) -> Result<()> {
        let schema = self.schema().await?;
        if !schema.newer.is_empty() {
            tracing::warn!(migrations = ?schema.newer, "the database is of a later release");
        }
        match schema.pending.len() {
            0 => Ok(()),
            // What a later release made is not taken up in the middle.
            _ if self.is_file() && schema.newer.is_empty() => self.migrate().await,
            missing => Err(Error::Config(format!(
                "[database] connection: {missing} migrations are not applied yet; run taibai db sync"
            ))),
        }
    }

    /// Whether it is a file, which is this process's own.
    pub fn is_file(&self) -> bool {
        self.backend() == DbBackend::Sqlite
    }

    /// Which migrations the database has, beside those of this program. Writes nothing.
    pub async fn schema(&self) -> Result<Schema> {
        let table = Migrator::migration_table_name();
        let applied = match SchemaManager::new(&self.reader.connection).has_table(table.to_string()).await? {
            true => {
                let names = Query::select().column(Alias::new("version")).from(table).to_owned();
                let rows = self.reader.query_all(&names).await?;
                rows.iter().map(|row| row.try_get_by_index::<String>(0)).collect::<Result<Vec<_>, _>>()?
            }
            false => Vec::new(),
        };
        let known: Vec<_> =
            Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
        let without = |all: &[String], others: &[String]| {
            all.iter().filter(|name| !others.contains(name)).cloned().collect::<Vec<_>>()
        };
        Ok(Schema { pending: without(&known, &applied), newer: without(&applied, &known) })
    }

    /// Names of the migrations that [`Db::migrate`] would apply. Writes nothing.
    pub async fn pending_migrations(&self) -> Result<Vec<String>> {
        Ok(self.schema().await?.pending)
    }

    /// Writes the whole of an SQLite database, as of one moment, into a new file that nobody else may
    /// read. Services go on meanwhile.
    pub async fn backup(&self, file: &Path) -> Result<()> {
        if !self.is_file() {
            return Err(Error::Config(
                "[database] connection: this copies SQLite alone; use mariadb-dump or pg_dump".to_owned(),
            ));
        }
        let name =
            file.to_str().ok_or_else(|| Error::Config(format!("{}: expected UTF-8", file.display())))?;
        let mut new = std::fs::OpenOptions::new();
        // SQLite fills a file that is there and empty.
        let made = new.write(true).create_new(true).mode(0o600).open(file);
        made.map_err(|source| Error::Config(format!("{name}: cannot be made: {source}")))?;
        let copy = Statement::from_sql_and_values(DbBackend::Sqlite, "VACUUM INTO ?", [name.into()]);
        let copied = self.writer.execute_raw(copy).await;
        if copied.is_err() {
            // Empty or in part, it must not be taken for a copy.
            let _ = std::fs::remove_file(file);
        }
        Ok(copied.map(drop)?)
    }

    /// Waits until the connections are closed; SQLite then folds its log into the file.
    pub async fn close(&self) -> Result<()> {
        self.journal.settled().await;
        self.reader.connection.close_by_ref().await?;
        Ok(self.writer.close_by_ref().await?)
    }
}

/// Whether a connection may be used again. On a full disk SQLite takes a transaction back by itself, and who
/// counts them here goes on as if there was one: what is committed later would be part of it, and be lost.
async fn has_no_transaction(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // One that was dropped is still to be rolled back.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

fn connect_options(url: String, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections.max(1))
        .acquire_timeout(PATIENCE)
        .connect_timeout(PATIENCE)
        .sqlx_logging(false)
        .test_before_acquire(false);
    options
}

/// Reads what is in the tables and what was noted by then.
#[derive(Debug, Clone)]
pub struct Reader {
    connection: DatabaseConnection,
    journal: Noted,
}

#[async_trait::async_trait]
impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.journal.settled().await;
        self.connection.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.journal.settled().await;
        self.connection.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.journal.settled().await;
        self.connection.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.journal.settled().await;
        self.connection.query_all_raw(statement).await
    }
}

/// Writes statement by statement and counts each as the commit that it is.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    connection: &'a DatabaseConnection,
    commits: &'a AtomicU64,
    recent: &'a Recent,
    journal: &'a Noted,
}

impl Writer<'_> {
    fn count<T>(&self, is_write: bool, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if is_write && result.is_ok() {
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl Writer<'_> {
    fn note(&self, statement: &Statement) {
        if writes(statement) {
            crash_points::expect_name(&statement.sql);
        }
    }
}

impl Changes for Writer<'_> {
    fn note_change(&self) {
        self.recent.forget();
    }
}

/// An insert or update that returns rows comes as a query.
fn writes(statement: &Statement) -> bool {
    !statement.sql.trim_start().to_ascii_uppercase().starts_with("SELECT")
}

#[async_trait::async_trait]
impl ConnectionTrait for Writer<'_> {
    fn get_database_backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.journal.settled().await;
        crash_points::expect_name(&statement.sql);
        self.count(true, self.connection.execute_raw(statement).await)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.journal.settled().await;
        self.count(true, self.connection.execute_unprepared(sql).await)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.journal.settled().await;
        self.note(&statement);
        self.count(writes(&statement), self.connection.query_one_raw(statement).await)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.journal.settled().await;
        self.note(&statement);
        self.count(writes(&statement), self.connection.query_all_raw(statement).await)
    }
}

/// A transaction that writes. Nothing but SQL may be awaited while it is held: on SQLite everyone
/// else who writes waits for it.
#[derive(Debug)]
pub struct Transaction {
    inner: DatabaseTransaction,
    commits: Arc<AtomicU64>,
    recent: Recent,
    is_change: AtomicBool,
}

impl Transaction {
    pub async fn commit(self) -> Result<()> {
        // Also where nobody knows whether it was, and where nobody waits for it any more.
        crash_points::expect_name("a transaction");
        let _forgets = self.is_change.into_inner().then(|| Forgets(&self.recent));
        self.inner.commit().await?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Runs statements one after the other.
    pub async fn run(&self, statements: Vec<Statement>) -> Result<()> {
        for statement in statements {
            self.inner.execute_raw(statement).await?;
        }
        Ok(())
    }

    pub async fn rollback(self) -> Result<()> {
        Ok(self.inner.rollback().await?)
    }
}

impl Changes for Transaction {
    fn note_change(&self) {
        self.is_change.store(true, Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        self.inner.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.inner.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.inner.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.inner.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.inner.query_all_raw(statement).await
    }
}

/// The rows of `column`'s table that `scope` may see.
fn within(scope: &Scope, column: impl ColumnTrait) -> Condition {
    match scope {
        Scope::Project(project) => column.eq(project.clone()).into_condition(),
        Scope::All => Condition::all(),
    }
}

/// The row that an update of one row returned; `None` where there was none to update.
fn updated<M>(result: Result<M, DbErr>) -> Result<Option<M>> {
    match result {
        Ok(row) => Ok(Some(row)),
        Err(DbErr::RecordNotUpdated) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
