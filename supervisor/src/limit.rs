//! Which limit an execution met, where its end does not say so by itself.
//!
//! A shim that catches what a function raises names the limit. Of a program only the exit status is
//! known, and then the kernel is asked what it refused, and the last line of the log what the program
//! says of it.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use protocol::worker::{End, Limit, SCRATCH_DIR};

use crate::log::Log;
use crate::slot::Place;

/// What a shell makes of the end of a program by a signal.
const BY_SIGNAL: i32 = 128;

/// What there is to judge by.
pub struct Evidence<'a> {
    /// What the shim says.
    pub named: Option<Limit>,
    /// The exit status of the program that the shim ran.
    pub program: Option<i32>,
    pub log: &'a Log,
    pub place: &'a Place,
}

pub fn met(end: &End, evidence: &Evidence<'_>) -> Option<Limit> {
    match end {
        End::Raised { .. } | End::Exhausted { .. } | End::BadResult { .. } if evidence.named.is_some() => {
            evidence.named
        }
        End::Raised { .. } => match evidence.program {
            Some(status) => of_program(status, evidence),
            None => refused(evidence),
        },
        End::Signalled { signal: libc::SIGXFSZ } => Some(Limit::FileBytes),
        End::Exhausted { .. } | End::Signalled { .. } => refused(evidence),
        End::Exited { code } if *code != 0 => of_program(*code, evidence),
        End::Returned
        | End::BadResult { .. }
        | End::TimedOut
        | End::OutOfMemory
        | End::Exited { .. }
        | End::Misbehaved { .. }
        | End::Cancelled => None,
    }
}

fn of_program(status: i32, evidence: &Evidence<'_>) -> Option<Limit> {
    if status == BY_SIGNAL + libc::SIGXFSZ {
        return Some(Limit::FileBytes);
    }
    refused(evidence).or_else(|| Limit::said_in(&evidence.log.last_line())).or_else(|| {
        // A write that failed half way leaves less than a block.
        let is_full = statvfs(Path::new(SCRATCH_DIR)).is_ok_and(|now| now.blocks_available() == 0);
        is_full.then_some(Limit::ScratchBytes)
    })
}

fn refused(evidence: &Evidence<'_>) -> Option<Limit> {
    evidence.place.was_refused().then_some(Limit::Processes)
}
