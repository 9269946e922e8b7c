//! Connections to MariaDB and PostgreSQL, and what each session insists on, so that the three
//! databases treat the same statement alike whatever the server's own settings are.

use std::time::Duration;

use sea_orm::sqlx::{Executor, mysql};
use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, Statement};

use super::{Error, PATIENCE, Result, connect_options};

/// A connection over the network that idled longer is tried before it is used.
const STALE: Duration = Duration::from_secs(30);

/// Least bytes that MySQL must take in one statement. An execution's row has an input and a result
/// of some megabytes each.
const STATEMENT: u64 = 16 << 20;

/// Nothing is cut to fit or changed into something that fits: it is an error. `||` is left to mean
/// what it does elsewhere.
const MYSQL_MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,PIPES_AS_CONCAT', \
                          SESSION innodb_lock_wait_timeout = 30";
/// What PostgreSQL does by itself. MySQL's own choice locks gaps between rows, where writers meet
/// that have nothing to do with each other.
const MYSQL_WRITER: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";
const MYSQL_READER: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY";

/// Connects twice: for writing and for reading.
pub(super) async fn connect(url: &str, connections: u32) -> Result<(DatabaseConnection, DatabaseConnection)> {
    let writer = sea_orm::Database::connect(options(url, connections, false)).await?;
    if writer.get_database_backend() == DbBackend::MySql {
        check_mysql(&writer).await?;
    }
    Ok((writer, sea_orm::Database::connect(options(url, connections, true)).await?))
}

/// Connects once, to a database of somebody else's that is only read.
pub(super) async fn connect_to_read(url: &str) -> Result<DatabaseConnection> {
    Ok(sea_orm::Database::connect(options(url, 1, true)).await?)
}

fn options(url: &str, connections: u32, read_only: bool) -> ConnectOptions {
    let mut options = connect_options(url.to_owned(), connections);
    options.test_before_acquire_if_idle_for(STALE);
    options.map_sqlx_mysql_pool_opts(move |pool: mysql::MySqlPoolOptions| {
        pool.after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(MYSQL_MODE).await?;
                connection.execute(if read_only { MYSQL_READER } else { MYSQL_WRITER }).await?;
                Ok(())
            })
        })
    });
    options.map_sqlx_postgres_opts(move |options| {
        options.options([
            ("default_transaction_isolation", "read committed".to_owned()),
            ("default_transaction_read_only", if read_only { "on" } else { "off" }.to_owned()),
            ("lock_timeout", format!("{}s", PATIENCE.as_secs())),
        ])
    });
    options
}

async fn check_mysql(connection: &DatabaseConnection) -> Result<()> {
    let question = Statement::from_string(DbBackend::MySql, "SELECT @@max_allowed_packet");
    let answer = connection.query_one_raw(question).await?;
    let most: u64 = match answer {
        Some(row) => row.try_get_by_index(0)?,
        None => return Ok(()),
    };
    if most < STATEMENT {
        return Err(Error::Config(format!(
            "[database] connection: the server takes statements of {most} bytes; set its \
             max_allowed_packet to {STATEMENT} or more"
        )));
    }
    Ok(())
}
