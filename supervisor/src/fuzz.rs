//! What the supervisor reads of others, given bytes that nobody meant. A promise that is broken panics.
//!
//! The targets of `fuzz/` call these, and a test feeds them all of `fuzz/corpus`.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use protocol::archive::Limits;
use protocol::openstack::Cloud;
use protocol::shim::{FromParent, FromSlot, MAX_FRAME, ToParent, ToSlot};
use protocol::worker::{Acknowledge, Attempt, Execute, Load, Settings};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{frame, unpack};

const LIMITS: Limits = Limits { max_entries: 20, max_expanded_bytes: 1 << 20, max_ratio: 100 };

/// A package, in an empty directory: whatever it is, no more comes out than may, and nothing elsewhere.
pub fn package(data: &[u8], root: &Path) {
    let unpacked = unpack::into(root, Cursor::new(data), LIMITS);
    let (mut files, mut bytes) = (0, 0);
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("it was just made") {
            let entry = entry.expect("nobody else is here");
            let found = entry.metadata().expect("nobody else is here");
            if found.is_dir() {
                directories.push(entry.path());
            } else {
                assert!(found.is_file(), "{:?} is neither file nor directory", entry.path());
                files += 1;
                bytes += found.len();
            }
        }
    }
    // The one that was too large is there up to the byte that showed it.
    let most = LIMITS.max_expanded_bytes + u64::from(unpacked.is_err());
    assert!(files <= LIMITS.max_entries && bytes <= most, "{files} files, {bytes} bytes");
    if let Err(reason) = unpacked {
        assert!(!reason.is_empty() && reason.len() < 8192, "{reason}");
    }
}

/// What a slot or the parent interpreter sends: the same messages, however it is cut into pieces.
pub fn slot_messages(data: &[u8]) {
    let [piece, data @ ..] = data else { return };
    let whole = frames(data, data.len().max(1));
    assert_eq!(whole, frames(data, usize::from(*piece).max(1)), "in pieces of {piece}");
    let _: Result<FromParent, _> = serde_json::from_slice(data);
}

/// The messages at the beginning of `data`, as they are shown, and why there is no more.
fn frames(data: &[u8], piece: usize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
    runtime.block_on(async {
        let mut pieces = pieces::Pieces { data, piece };
        let mut reader = frame::Reader::new(MAX_FRAME);
        let mut shown = Vec::new();
        loop {
            match reader.step::<FromSlot>(&mut pieces).await {
                Ok(Some(message)) => shown.push(format!("{message:?}")),
                Ok(None) => {}
                Err(error) => {
                    shown.push(error.to_string());
                    return shown;
                }
            }
        }
    })
}

mod pieces {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, ReadBuf};

    /// Bytes that come a few at a time.
    pub struct Pieces<'a> {
        pub data: &'a [u8],
        pub piece: usize,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let (now, later) = self.data.split_at(self.data.len().min(self.piece).min(into.remaining()));
            into.put_slice(now);
            self.data = later;
            Poll::Ready(Ok(()))
        }
    }
}

/// What the engine sends, and what is sent on to a shim: what is understood is understood again from what
/// would be written for it.
pub fn engine_messages(data: &[u8]) {
    read_again::<Execute>(data);
    read_again::<Load>(data);
    read_again::<Attempt>(data);
    read_again::<Acknowledge>(data);
    read_again::<Cloud>(data);
    read_again::<Settings>(data);
    read_again::<ToSlot>(data);
    read_again::<ToParent>(data);
}

fn read_again<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else { return };
    let written = serde_json::to_vec(&message).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(written, serde_json::to_vec(&again).expect("what was read can be written"));
}

#[cfg(test)]
const CORPUS: &str = "../fuzz/corpus";
#[cfg(test)]
#[path = "../../fuzz/near.rs"]
mod near;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_near_the_corpus_keep_to_their_directory() {
        near::feed("package", |data| package(data, tempfile::tempdir().unwrap().path()));
    }

    #[test]
    fn messages_near_the_corpus_are_read_or_refused() {
        near::feed("slot_messages", slot_messages);
        near::feed("engine_messages", engine_messages);
    }
}
