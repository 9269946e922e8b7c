//! Packages: bytes and digests, not functions.
//!
//! A package is received into a temporary file, measured and hashed on the way, checked, and only
//! then kept, under its SHA-256. Two functions with the same package share its bytes, so whoever
//! deletes one asks first whether anything else refers to it.

mod check;
mod inbox;
mod local;
mod swift;
mod upload;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncRead;

#[cfg(any(test, feature = "fuzz"))]
pub use check::fuzz_check;
pub use local::LocalStore;
pub use swift::SwiftStore;
pub use upload::{Received, Upload};

use crate::openstack;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such package")]
    NotFound,
    #[error("the package is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the package is no zip file")]
    NotZip,
    /// The sentence says which rule was broken.
    #[error("the package is not acceptable: {0}")]
    Refused(String),
    #[error("the package store failed")]
    Io(#[from] std::io::Error),
    /// The service that keeps packages does not answer, or does not let us.
    #[error("the package store is unavailable")]
    Unavailable(#[source] openstack::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A package that is being read.
pub struct Content {
    pub bytes: u64,
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
}

/// Keeps packages under their digest, SHA-256 in lower-case hexadecimal.
#[async_trait]
pub trait PackageStore: Send + Sync + 'static {
    /// Starts to receive a package. Nothing is left behind when the upload, or what it becomes, is
    /// dropped before it is kept.
    async fn begin(&self) -> Result<Upload>;
    /// Keeps a received package. Succeeds too when these bytes are kept already.
    async fn keep(&self, package: Received) -> Result<()>;
    async fn open(&self, digest: &str) -> Result<Content>;
    /// Deletes a package. Deleting one that is gone already succeeds; who has it open may read on.
    async fn delete(&self, digest: &str) -> Result<()>;
    /// Removes packages that nobody needs and that were kept longer than `age` ago: a process that ended
    /// between keeping one and writing down who needs it left them. Says how many.
    ///
    /// Only where this is plainly the store of who asks: it has all that is needed, and that is something.
    /// To a service that was given another's store, or an empty database, all would be in vain.
    async fn sweep(&self, needed: BTreeSet<String>, age: Duration) -> Result<usize>;
}

/// Whether this is a package's name. What is none might lead elsewhere.
fn is_digest(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(stopped) => Err(Error::Io(std::io::Error::other(stopped))),
    }
}
