//! Supervisor to shim: frames of a four-byte big-endian length and that many bytes of JSON, an object
//! with one key, the name of the message: `{"imported": {"nonce": 7}}`. `runtimes/README.md` tells
//! authors of shims the same.
//!
//! A shim is of one of two kinds. One that is *spawned*, which the image says with [`SPAWN`] before its
//! command, is started by the supervisor once for each slot: already that slot's user, under its limits,
//! with its channel as file descriptor [`CONTROL_FD`] and its output as 1 and 2. It says
//! [`FromSlot::Ready`] with its version and then serves [`ToSlot::Run`], one at a time.
//!
//! One that *forks* is started once. The supervisor starts it, the *parent*, with a socket pair as
//! [`CONTROL_FD`]. It says [`FromParent::Ready`] once its libraries are loaded. For each slot it gets a
//! [`ToParent::Fork`] with two descriptors attached (SCM_RIGHTS): the slot's channel and the pipe for
//! its output. It forks a child that is nobody's child but the supervisor's (it forks twice), which
//! becomes the given user, gives up every capability, says [`FromSlot::Ready`] with its process id on its
//! channel and then serves [`ToSlot::Run`] as well.
//!
//! Nothing of the user's runs before a `Run`, so what comes before it can be believed. What comes
//! after can be anything.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::openstack::OpenStack;
use crate::worker::Limit;

pub const CONTROL_FD: i32 = 3;

/// Before the command of a shim that is spawned for each slot.
pub const SPAWN: &str = "--spawn";
/// Where a spawned shim finds what a forked slot is told in [`ToParent::Fork`].
pub const PACKAGE_VARIABLE: &str = "TAIBAI_PACKAGE";
pub const SCRATCH_VARIABLE: &str = "TAIBAI_SCRATCH";

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

/// Limits of a slot: the soft ones of one that is forked, whose hard ones stay as they are; both of one
/// that is spawned, since an interpreter may raise its own at its start.
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
        /// Less than 2^53, so that every reader of JSON keeps it whole.
        nonce: u64,
        execution: String,
        entry: String,
        input: Box<RawValue>,
        max_result_bytes: u64,
        request_id: Option<String>,
        /// Here the cloud is named by the directory that holds [`CLOUD_FILE`] and, where its certificates
        /// are signed by an authority of its own, [`CA_FILE`]; both are readable to every slot.
        openstack: Option<OpenStack>,
        /// The supervisor understands `limit` and `status` in an answer, which those of before do not.
        names_limits: bool,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromSlot {
    Ready {
        /// Of a forked slot; the supervisor knows that of one that it has spawned.
        #[serde(default)]
        pid: Option<i32>,
        /// Of a spawned shim; a forking one's parent has said it.
        #[serde(default)]
        version: Option<u32>,
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
    /// Something of this run would go on in the next, so this slot takes none; sent once in a run at
    /// most, before its end.
    Spent {
        nonce: u64,
    },
    Returned {
        nonce: u64,
        output: Box<RawValue>,
    },
    Raised {
        nonce: u64,
        message: String,
        /// What was raised says that this limit was met.
        #[serde(default)]
        limit: Option<Limit>,
        /// The exit status of a program, where that is all that the shim knows of why it failed.
        #[serde(default)]
        status: Option<i32>,
    },
    BadResult {
        nonce: u64,
        reason: String,
        #[serde(default)]
        limit: Option<Limit>,
    },
    Exhausted {
        nonce: u64,
        message: String,
        #[serde(default)]
        limit: Option<Limit>,
    },
    Exited {
        nonce: u64,
        code: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_says_its_process_id_where_it_was_forked_and_its_version_where_it_was_spawned() {
        let ready = |text: &str| match serde_json::from_str(text) {
            Ok(FromSlot::Ready { pid, version }) => (pid, version),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(ready(r#"{"ready": {"pid": 7}}"#), (Some(7), None));
        assert_eq!(ready(r#"{"ready": {"version": 2}}"#), (None, Some(2)));
    }

    #[test]
    fn a_message_with_a_field_too_many_is_none() {
        assert!(serde_json::from_str::<FromSlot>(r#"{"spent": {"nonce": 1}}"#).is_ok());
        assert!(serde_json::from_str::<FromSlot>(r#"{"spent": {"nonce": 1, "why": "x"}}"#).is_err());
    }
}
