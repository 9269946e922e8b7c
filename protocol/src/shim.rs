//! Supervisor to shim: frames of a four-byte big-endian length and that many bytes of JSON, an object
//! with one key, the name of the message: `{"imported": {"nonce": 7}}`.
//!
//! The supervisor starts the shim, the *parent*, with a socket pair as file descriptor
//! [`CONTROL_FD`]. It says [`FromParent::Ready`] once its libraries are loaded. For each slot it gets a
//! [`ToParent::Fork`] with two descriptors attached (SCM_RIGHTS): the slot's channel and the pipe for
//! its output. It forks a child that is nobody's child but the supervisor's (it forks twice), which
//! becomes the given user, gives up every capability, says [`FromSlot::Ready`] on its channel and then
//! serves [`ToSlot::Run`], one at a time.
//!
//! Nothing of the user's runs before a `Run`, so what comes before it can be believed. What comes
//! after can be anything.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::openstack::OpenStack;

pub const CONTROL_FD: i32 = 3;

/// A [`crate::openstack::Cloud`] as JSON.
pub const CLOUD_FILE: &str = "cloud.json";
/// The certificates that the image trusts, and those of the cloud.
pub const CA_FILE: &str = "ca.crt";

/// Most bytes in a frame of the parent's, and of any slot's answer beside its output.
pub const MAX_FRAME: usize = 64 << 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToParent {
    Fork {
        slot: u32,
        uid: u32,
        gid: u32,
        /// Read-only for the slot; first on the search path for modules.
        package: String,
        /// A directory of the slot's own; each execution works in a fresh one below it.
        scratch: String,
        rlimits: Rlimits,
    },
}

/// Soft limits of a slot; the hard ones stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimits {
    pub open_files: u64,
    pub processes: u64,
    pub file_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromParent {
    Ready {
        version: u32,
        /// Bytes of its own that a slot would copy by writing to them; they are charged to the slot.
        private_bytes: u64,
    },
    /// The fork was refused by the operating system.
    ForkFailed { slot: u32, reason: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToSlot {
    Run {
        /// Repeated in the answer; drawn anew each time, so that an answer to an earlier run is seen as such.
        nonce: u64,
        execution: String,
        entry: String,
        input: Box<RawValue>,
        max_result_bytes: u64,
        request_id: Option<String>,
        /// Here the cloud is named by the directory that holds [`CLOUD_FILE`] and, where its certificates
        /// are signed by an authority of its own, [`CA_FILE`]; both are readable to every slot.
        openstack: Option<OpenStack>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromSlot {
    Ready {
        pid: i32,
    },
    /// The user's module was imported; sent once in the life of a slot, with the bytes of memory that
    /// the slot then had to itself.
    Imported {
        nonce: u64,
        resident_bytes: u64,
    },
    /// A service refused the token of this run; sent once in a run at most, before its end.
    TokenRefused {
        nonce: u64,
    },
    Returned {
        nonce: u64,
        output: Box<RawValue>,
    },
    Raised {
        nonce: u64,
        message: String,
    },
    BadResult {
        nonce: u64,
        reason: String,
    },
    Exhausted {
        nonce: u64,
        message: String,
    },
    Exited {
        nonce: u64,
        code: i32,
    },
}
