//! Rows, ids and statuses: data without queries or I/O.

mod catalog;
mod id;
pub mod input;
mod outcome;
mod schedule;
mod scope;
mod status;
mod time;
mod token;

pub mod alias;
pub mod engine;
pub mod execution;
pub mod execution_log;
pub mod function;
pub mod job;
pub mod quota_lock;
pub mod runtime;
pub mod trust;
pub mod version;
pub mod webhook;

pub use catalog::{Catalog, CatalogEndpoint, CatalogService, Interface};
pub use function::object_digest;
pub use id::{
    EngineId, ExecutionId, FunctionId, JobId, ProjectId, RuntimeId, TrustId, WebhookId, WorkerName,
};
pub use input::{Arguments, FUNCTION_INPUT, Input};
pub use outcome::{Outcome, Reason, Usage, microseconds};
pub use schedule::Schedule;
pub use scope::{Caller, Scope};
pub use status::{
    ExecutionStatus, FunctionStatus, JobStatus, NetworkAccess, RuntimeStatus, Start, WebhookMode,
};
pub use time::Timestamp;
pub use token::{AccessRule, ApplicationCredential, Token, TokenInfo, UserToken};
