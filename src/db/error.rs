use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr, SqlErr};

use crate::error::{Error as DomainError, Source};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller of the database treats differently.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A row with the same unique key exists. `what` as the v1 API names it:
    /// `function_aliases: ['project_id', 'name']`.
    #[error("Duplicate entry for {what}")]
    Duplicate { what: String },
    /// No row that the caller sees has the id behind which a list was to go on.
    #[error("marker: nothing in this list has the id {0:?}.")]
    NoSuchMarker(String),
    /// A row names one that does not exist, or is named by one that does.
    #[error("a row that is referred to is missing, or is still referred to")]
    Referenced(#[source] DbErr),
    /// `[database] connection` is wrong; the whole sentence is the message.
    #[error("{0}")]
    Config(String),
    /// The database cannot be reached, or is too busy or too full. The same may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] DbErr),
    #[error("the database refused a statement")]
    Other(#[source] DbErr),
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(message)) => {
                Self::Duplicate { what: violated_key(&message) }
            }
            Some(SqlErr::ForeignKeyConstraintViolation(_)) => Self::Referenced(error),
            _ if is_unavailable(&error) => Self::Unavailable(error),
            _ => Self::Other(error),
        }
    }
}

impl From<Error> for DomainError {
    fn from(error: Error) -> Self {
        match error {
            Error::Duplicate { .. } | Error::NoSuchMarker(_) => Self::Invalid(error.to_string()),
            Error::Referenced(_) => {
                Self::Conflict("Something that this needs was removed, or is still in use.".to_owned())
            }
            Error::Unavailable(source) => {
                Self::Unavailable { what: "The database", source: Source::from(source) }
            }
            Error::Config(_) | Error::Other(_) => Self::internal(error),
        }
    }
}

/// Unique keys, by the name that MySQL and PostgreSQL report and the columns that SQLite does.
const UNIQUE_KEYS: [(&str, &str, &[&str]); 3] = [
    ("uq_function_aliases_name", "function_aliases", &["project_id", "name"]),
    ("uq_function_aliases_version", "function_aliases", &["project_id", "function_id", "function_version"]),
    ("uq_function_versions_number", "function_versions", &["project_id", "function_id", "version_number"]),
];

fn violated_key(message: &str) -> String {
    let named = |table: &str, columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|column| format!("'{column}'")).collect();
        format!("{table}: [{}]", columns.join(", "))
    };
    // SQLite: `UNIQUE constraint failed: table.column, table.column`.
    let found = match message.split_once("UNIQUE constraint failed: ") {
        Some((_, list)) => {
            let pairs = list.split(", ").filter_map(|pair| pair.trim().split_once('.'));
            let (tables, columns): (Vec<&str>, Vec<&str>) = pairs.unzip();
            let has =
                |(_, table, of): &&(&str, &str, &[&str])| tables.first() == Some(table) && columns == *of;
            UNIQUE_KEYS.iter().find(has)
        }
        None => UNIQUE_KEYS.iter().find(|(key, ..)| message.contains(key)),
    };
    // An id, then. MySQL does not say of which table.
    found.map_or_else(|| "an id".to_owned(), |(_, table, columns)| named(table, columns))
}

fn is_unavailable(error: &DbErr) -> bool {
    match error {
        DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => true,
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            match error.as_ref() {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => true,
                sqlx::Error::Database(error) => {
                    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
                        // Too many connections, shutdown, disk full, lock wait, deadlock, killed.
                        return matches!(
                            error.number(),
                            1021 | 1040 | 1053 | 1114 | 1203 | 1205 | 1213 | 1317 | 1927
                        );
                    }
                    let code = error.code().unwrap_or_default();
                    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                        // The low byte of an extended code: busy, locked, I/O error, full, cannot open.
                        return code
                            .parse::<u32>()
                            .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14));
                    }
                    // PostgreSQL's classes: connection, resources, intervention, a lock that was not
                    // had in time, and a retry is due.
                    ["08", "53", "57P", "55P03", "40"].iter().any(|class| code.starts_with(class))
                }
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violated_key_is_named_alike_by_all_databases() {
        let name = "function_aliases: ['project_id', 'name']";
        for message in [
            "UNIQUE constraint failed: function_aliases.project_id, function_aliases.name",
            "Duplicate entry 'p-prod' for key 'uq_function_aliases_name'",
            "duplicate key value violates unique constraint \"uq_function_aliases_name\"",
        ] {
            assert_eq!(violated_key(message), name);
        }
        for message in [
            "UNIQUE constraint failed: executions.id",
            "Duplicate entry 'a' for key 'PRIMARY'",
            "duplicate key value violates unique constraint \"executions_pkey\"",
        ] {
            assert_eq!(violated_key(message), "an id");
        }
    }

    #[test]
    fn connection_trouble_is_unavailable_to_the_user() {
        let error = Error::from(DbErr::Conn(RuntimeErr::Internal("refused".into())));
        let domain = DomainError::from(error);
        assert_eq!(domain.to_string(), "The database is unavailable");
        let domain = DomainError::from(Error::from(DbErr::Custom("odd".into())));
        assert!(matches!(domain, DomainError::Internal(_)), "{domain}");
    }
}
