//! What the domain can answer. No HTTP and no SQL: `api::error` turns it into a status, and the
//! drivers keep their own small enums.

use std::error::Error as StdError;

pub type Result<T, E = Error> = std::result::Result<T, E>;
pub type Source = Box<dyn StdError + Send + Sync>;

/// Messages are for the user and name no host, path or query; what lies beneath is the `source`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `what` as the v1 API writes it: `Function not found [id=…]` is `("Function", "id=…")`.
    #[error("{what} not found{}", bracketed(.key))]
    NotFound { what: &'static str, key: String },
    /// The request itself is wrong; the whole sentence is the message.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not do this.
    #[error("Operation not allowed")]
    Forbidden { rule: &'static str },
    /// The state of something stands in the way, in the terms of the v1 API a 403.
    #[error("{0}")]
    Guarded(String),
    /// The project has as much as it may have.
    #[error("Quota exceeded for {resource}: limit {limit}, used {used}, requested {requested}.")]
    OverQuota { resource: &'static str, limit: u64, used: u64, requested: u64 },
    /// The project asks faster than it may.
    #[error("Too many requests of project {project}. Try again in {retry_after} s.")]
    TooFast { project: String, retry_after: u64 },
    /// The state of something stands in the way for now.
    #[error("{0}")]
    Conflict(String),
    /// Not possible for this kind of thing, whoever asks.
    #[error("{0}")]
    NotSupported(String),
    #[error("{0}")]
    TooLarge(String),
    /// Everything that could run this is taken and the queue is full, or the wait was too long.
    #[error("{0}")]
    Busy(String),
    /// It may have been done and may not; the whole sentence is the message. Not to be asked again
    /// without looking.
    #[error("{0}")]
    InDoubt(String),
    #[error("{what} is unavailable")]
    Unavailable {
        what: &'static str,
        #[source]
        source: Source,
    },
    /// A fault of ours.
    #[error("Internal server error.")]
    Internal(#[source] Source),
}

impl Error {
    pub fn not_found(what: &'static str, id: impl std::fmt::Display) -> Self {
        Self::NotFound { what, key: format!("id={id}") }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    pub fn internal(source: impl Into<Source>) -> Self {
        Self::Internal(source.into())
    }
}

fn bracketed(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(" [{key}]") }
}
