//! API to engine: HTTP/1.1 over a Unix socket on one machine, over TLS with a certificate on either
//! side between machines.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/about` | | [`About`] |
//! | `POST /v1/executions` | [`Submit`] | [`Ended`], when the execution has ended and its row says so |
//! | `DELETE /v1/executions/{id}` | | [`Cancelled`]; its end is written by whoever waits for it |
//! | `POST /v1/accepted` | | 204: pending rows are looked for now |
//! | `POST /v1/runtimes` | | 204: pools are brought into step with the table now |
//! | `GET /v1/runtimes/{id}/pool` | | [`Pool`] |
//! | `GET /v1/functions/{id}/{version}/workers` | | [`Workers`] |
//! | `POST /v1/functions/{id}/{version}/workers` | [`Scale`] | 204 |
//! | `DELETE /v1/functions/{id}/{version}/workers` | | 204: they end when they are idle |
//!
//! Everything else, and what could not be done, is answered with a [`Fault`].

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 32 << 20;

/// Which program an engine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    pub release: String,
    /// [`crate::VERSION`] of what it speaks with its workers.
    pub protocol: u32,
}

/// A synchronous call: policy is checked, and the function was there a moment ago.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// Chosen by the API, so that it can look for the row where the answer does not come.
    pub execution: String,
    /// Whose execution it is.
    pub project: String,
    pub function: String,
    /// 0 is the working copy.
    pub version: i32,
    pub alias: Option<String>,
    pub description: Option<String>,
    /// A JSON object, or nothing.
    pub input: Option<Box<RawValue>>,
    pub request_id: Option<String>,
    /// Refuse as [`FaultKind::Busy`] where calls wait for a worker already: another engine may have one.
    pub unless_crowded: bool,
}

/// The row holds everything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    pub execution: String,
}

/// `false` where the engine does not run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancelled {
    pub cancelled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// In a stable order.
    pub names: Vec<String>,
}

/// Nothing where the engine has no pool of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub workers: Option<PoolWorkers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolWorkers {
    pub total: u32,
    pub available: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scale {
    /// Bind so many more workers.
    Up(u32),
    /// Drain up to so many, but leave one.
    Down(u32),
}

/// What could not be done, for the user to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
}

/// What the API answers differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    NotFound,
    Invalid,
    Forbidden,
    Conflict,
    TooLarge,
    /// Nothing was run; another engine may have room.
    Busy,
    Unavailable,
    Internal,
}
