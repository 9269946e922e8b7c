//! Engine to supervisor: HTTP/1.1 over the worker's socket.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/state` | | [`State`] |
//! | `PUT /v1/package` | the zip; [`Load`] in the header `taibai-load` | 204; 409 if one is loaded; 422 [`Refusal`] if the zip is unusable |
//! | `PUT /v1/clouds/{digest}` | [`Cloud`](crate::openstack::Cloud) | 204: executions may name it from now on |
//! | `POST /v1/executions` | [`Execute`] | [`Outcome`], when the execution has ended; 409 [`Refusal`] if it cannot start |
//! | `GET /v1/executions/{id}/{epoch}` | | [`Outcome`], waiting for it if it still runs; 404 if unknown |
//! | `POST /v1/fence` | [`Attempt`] | 204: attempts with a lower epoch are refused from now on |
//! | `POST /v1/acknowledge` | [`Acknowledge`] | 204: the outcomes named are forgotten |
//! | `DELETE /v1/executions/{id}/{epoch}` | | 204: the execution is killed; 404 if it does not run |
//!
//! Anything else is 404, a body that is no such message 400, one over [`MAX_MESSAGE`] 413; each with a
//! [`Refusal`].

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::openstack::OpenStack;

/// Name of the supervisor's socket in the directory that it shares with the engine.
pub const SOCKET: &str = "s";

/// Beside the socket, what a supervisor had to say that ended before it listened.
pub const LAST_WORDS: &str = "error";

/// Header of `PUT /v1/package` that carries [`Load`] as JSON.
pub const LOAD_HEADER: &str = "taibai-load";

/// Header of an answer with an [`Outcome`], which carries its [`Account`] as JSON. A header, and not a
/// field: engines and supervisors of before refuse fields that they do not know, and pass over headers.
pub const ACCOUNT_HEADER: &str = "taibai-account";

/// Most bytes of a JSON message from the engine.
pub const MAX_MESSAGE: usize = 32 << 20;

/// What the engine gives a supervisor at its start, as JSON in the environment variable [`SETTINGS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub worker: String,
    /// Executions at once. Each slot has a user id of its own: `uid_base` + slot.
    pub slots: u32,
    /// First of [`UIDS`] user ids that nobody else on the host has.
    pub uid_base: u32,
    pub cgroup: Cgroup,
    /// Most threads and processes of one execution.
    pub max_processes: u32,
    /// A slot is replaced after this many executions.
    pub max_executions_per_slot: u32,
    /// A slot is replaced when an execution leaves more than this behind, in bytes.
    pub memory_mark: u64,
}

/// Environment variable of the supervisor with its [`Settings`].
pub const SETTINGS: &str = "TAIBAI_SETTINGS";

/// User ids that one worker owns.
pub const UIDS: u32 = 16;
/// Offset of the interpreter that forks the slots; the highest slot is the one below.
pub const PARENT_UID: u32 = 14;
/// Offset of the process that unpacks the package.
pub const UNPACK_UID: u32 = 15;

/// Files that a process of an execution may have open, and bytes that each may have.
pub const OPEN_FILES: u64 = 1024;
pub const FILE_BYTES: u64 = 524_288_000;

/// How the control groups of the host are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// A hierarchy per controller: `memory`, `cpu` and `pids` below [`CGROUP_DIR`].
    V1,
    /// One hierarchy, at [`CGROUP_DIR`].
    V2,
}

/// Where things are in every worker's container.
pub const PRIVATE_DIR: &str = "/taibai/private";
pub const RUN_DIR: &str = "/taibai/private/run";
pub const CGROUP_DIR: &str = "/taibai/private/cgroup";
pub const SUPERVISOR: &str = "/taibai/supervisor";
pub const PACKAGE_DIR: &str = "/taibai/work/package";
pub const SCRATCH_DIR: &str = "/taibai/work/scratch";
/// A directory for each cloud that executions of this worker may name.
pub const CLOUDS_DIR: &str = "/taibai/work/clouds";

/// Which function a worker is bound to. Set once, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    pub project: String,
    pub function: String,
    pub version: i32,
    /// SHA-256 of the package, in hexadecimal.
    pub digest: String,
    pub limits: super::archive::Limits,
    /// The function asked for a worker without a network. Supervisors of before know no such field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
}

/// One attempt to run an execution: the epoch rises each time another engine takes it over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub execution: String,
    pub epoch: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    pub attempt: Attempt,
    /// `module.function`; split at the last dot.
    pub entry: String,
    /// A JSON object, or null.
    pub input: Box<RawValue>,
    pub limits: ExecutionLimits,
    /// Ask for a process that has run nothing before.
    #[serde(default)]
    pub fresh: bool,
    pub request_id: Option<String>,
    /// In whose name the function may use the cloud; without it there is no session.
    #[serde(default)]
    pub openstack: Option<OpenStack>,
    /// Outcomes of earlier executions that are safely stored, to be forgotten.
    #[serde(default)]
    pub acknowledge: Vec<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionLimits {
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Time left until the deadline, from the moment that the user's code starts.
    pub timeout_ms: u64,
    pub max_result_bytes: u64,
    pub max_log_bytes: u64,
}

/// How an execution ended. What the function did is here; what Taibai could not do is a [`Refusal`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    pub attempt: Attempt,
    pub end: End,
    /// What the function returned, as JSON, where it did.
    pub output: Option<Box<RawValue>>,
    /// Wall time of the user's code, its import included where this was the slot's first execution.
    pub duration_ms: f64,
    pub log: String,
    pub log_truncated: bool,
    /// The slot had run this function before.
    pub reused: bool,
    /// A service refused the token of this execution. The function's process says so, so it is a
    /// hint and no proof.
    #[serde(default)]
    pub token_refused: bool,
    /// Beside the message; see [`ACCOUNT_HEADER`].
    #[serde(skip)]
    pub account: Account,
}

/// What an execution took, and which limit it met. What is not known is left out, and what is not
/// understood passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// From the request to the moment that the execution was given to its slot, in microseconds.
    pub waited_us: Option<u64>,
    /// Processor time of all its processes, in microseconds.
    pub cpu_us: Option<u64>,
    /// The most memory that its processes had at once, their interpreter's own included.
    pub peak_memory_bytes: Option<u64>,
    /// Where its end was that of a limit, and the end does not say so by itself.
    pub limit: Option<Limit>,
}

/// A limit that an execution met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    Memory,
    /// Processes and threads.
    Processes,
    OpenFiles,
    /// Of one file.
    FileBytes,
    /// Of all files of a worker's executions.
    ScratchBytes,
    ResultBytes,
}

impl Limit {
    /// The limit that a program names by the system's own words, in the last line that it wrote before it
    /// failed. All else that is known of such a program is its exit status.
    pub fn said_in(line: &str) -> Option<Self> {
        const WORDS: [(&str, Limit); 5] = [
            ("Too many open files", Limit::OpenFiles),
            ("File too large", Limit::FileBytes),
            ("No space left on device", Limit::ScratchBytes),
            ("Resource temporarily unavailable", Limit::Processes),
            ("Cannot fork", Limit::Processes),
        ];
        let words = WORDS.iter().find(|(words, _)| line.contains(words));
        words.map(|(_, limit)| *limit)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum End {
    Returned,
    /// The function, or the import of its module, raised.
    Raised {
        message: String,
    },
    /// It returned something that cannot be an answer: not JSON, or too large.
    BadResult {
        reason: String,
    },
    TimedOut,
    OutOfMemory,
    /// The operating system refused a process, a thread or memory.
    Exhausted {
        message: String,
    },
    Exited {
        code: i32,
    },
    Signalled {
        signal: i32,
    },
    /// It closed or wrote into the channel between the shim and the supervisor.
    Misbehaved {
        reason: String,
    },
    Cancelled,
}

/// Why a request was not done. `reason` is for a log line, `kind` for a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// No such route, or no such execution.
    Unknown,
    /// Not a message of this protocol, or one that is too large.
    Malformed,
    /// A package is loaded already.
    Loaded,
    /// No package is loaded yet.
    NotLoaded,
    /// The package breaks a rule of [`super::archive`] or is no zip.
    BadPackage,
    /// Every slot is taken.
    NoSlot,
    /// The attempt is known already, or its epoch is lower than one seen before.
    Fenced,
    /// The execution names a cloud that was not given to this worker, or that it has forgotten.
    UnknownCloud,
    /// The supervisor could not prepare a slot.
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    pub attempts: Vec<Attempt>,
}

/// What a supervisor says of itself; an engine that adopts a worker starts here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub protocol: u32,
    pub worker: String,
    pub slots: u32,
    pub loaded: Option<Load>,
    pub running: Vec<Attempt>,
    /// Ended, and not acknowledged.
    pub ended: Vec<Attempt>,
    /// Bytes that an idle interpreter has to itself; of a parent, those that a slot could copy.
    pub parent_private_bytes: u64,
    /// Slots replaced since the start, by reason.
    pub retired: std::collections::BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_execution_took_is_beside_its_outcome_so_that_other_versions_still_read_that() {
        let attempt = Attempt { execution: "e".to_owned(), epoch: 1 };
        let account = Account { cpu_us: Some(7), limit: Some(Limit::OpenFiles), ..Account::default() };
        let outcome = Outcome {
            attempt,
            end: End::Returned,
            output: None,
            duration_ms: 1.0,
            log: String::new(),
            log_truncated: false,
            reused: false,
            token_refused: false,
            account,
        };
        let text = serde_json::to_string(&outcome).unwrap();
        // Every field that the first release of this protocol had, and not one more.
        let fields: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let first =
            ["attempt", "duration_ms", "end", "log", "log_truncated", "output", "reused", "token_refused"];
        assert_eq!(names, first);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap().account, Account::default());

        let header = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<Account>(&header).unwrap(), account);
        let of_a_later_version = r#"{"cpu_us": 7, "limit": "open_files", "energy": 1}"#;
        assert_eq!(serde_json::from_str::<Account>(of_a_later_version).unwrap(), account);
    }
}
