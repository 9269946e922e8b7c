//! What the targets share. The promises are beside the code: in `taibai::fuzz`, and in the supervisor, which is a
//! program and no library.

#[path = "../../supervisor/src/frame.rs"]
#[allow(dead_code, unused_imports, reason = "the supervisor uses the rest")]
mod frame;
#[path = "../../supervisor/src/fuzz.rs"]
pub mod supervisor;
#[path = "../../supervisor/src/unpack.rs"]
mod unpack;

/// A package at both of its ends.
pub fn package(data: &[u8]) {
    taibai::fuzz::package(data);
    // In memory: a directory for each input is what this spends its time on.
    let root = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is there");
    supervisor::package(data, root.path());
}
