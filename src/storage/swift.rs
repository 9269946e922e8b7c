use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream};
use tokio_util::io::{ReaderStream, StreamReader};

use super::inbox::Inbox;
use super::{Content, Error, PackageStore, Received, Result, Upload, is_digest};
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// How much of a package is read from the disk at once.
const PIECE: usize = 256 << 10;

/// Packages as objects of one container, named by their digests, in the account of the service's own
/// project. They are received and checked on this machine.
#[derive(Debug, Clone)]
pub struct SwiftStore {
    keystone: Keystone,
    container: String,
    inbox: Inbox,
}

impl SwiftStore {
    /// Opens the directory for uploads as `LocalStore` does its own, and makes the container where it
    /// is missing. A cloud that does not answer is no reason not to start: it may come back.
    pub async fn open(
        keystone: Keystone,
        container: String,
        directory: impl Into<PathBuf>,
        max_bytes: u64,
    ) -> Result<Self> {
        let inbox = Inbox::open(directory.into(), max_bytes).await?;
        let store = Self { keystone, container, inbox };
        if let Err(error) = store.ensure_container().await {
            tracing::warn!(
                container = store.container,
                error = %Chain(&error),
                "packages cannot be kept in Swift now; a user whom Swift refuses needs another role in its project"
            );
        }
        Ok(store)
    }

    async fn ensure_container(&self) -> openstack::Result<()> {
        let ensure = |session: openstack::Session| {
            let container = self.container.clone();
            async move { session.swift().ensure_container(&container).await }
        };
        self.keystone.as_service(ensure).await
    }
}

#[async_trait]
impl PackageStore for SwiftStore {
    async fn begin(&self) -> Result<Upload> {
        self.inbox.begin().await
    }

    async fn keep(&self, package: Received) -> Result<()> {
        if !is_digest(&package.digest) {
            return Err(Error::NotFound);
        }
        // Somebody may have removed it. Asked first, too, so that a token that is refused is not
        // learned of in the middle of a package.
        self.ensure_container().await.map_err(Error::Unavailable)?;
        let package = Arc::new(package);
        let put = |session: openstack::Session| {
            let (package, container) = (Arc::clone(&package), self.container.clone());
            async move {
                // From the beginning, each time.
                let file = tokio::fs::File::open(package.file.path().to_owned());
                let pieces = |file| ReaderStream::with_capacity(file, PIECE);
                let content = stream::once(file).map_ok(pieces).try_flatten();
                let md5 = Some(package.md5.as_str());
                session.swift().put_object(&container, &package.digest, content, package.bytes, md5).await
            }
        };
        // Written also where it is there already: a copy that is about to go, which not every server
        // of Swift may know of yet, would be taken for one.
        self.keystone.as_service(put).await.map(drop).map_err(Error::Unavailable)
    }

    async fn open(&self, digest: &str) -> Result<Content> {
        if !is_digest(digest) {
            return Err(Error::NotFound);
        }
        let get = |session: openstack::Session| {
            let (digest, container) = (digest.to_owned(), self.container.clone());
            async move { session.swift().get_object(&container, &digest).await }
        };
        let object = match self.keystone.as_service(get).await {
            Ok(object) => object,
            Err(openstack::Error::NotFound) => return Err(Error::NotFound),
            Err(error) => return Err(Error::Unavailable(error)),
        };
        let content = object.content.map_err(std::io::Error::other);
        Ok(Content { bytes: object.info.bytes, reader: Box::new(StreamReader::new(content)) })
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        if !is_digest(digest) {
            return Ok(());
        }
        let delete = |session: openstack::Session| {
            let (digest, container) = (digest.to_owned(), self.container.clone());
            async move { session.swift().delete_object(&container, &digest).await }
        };
        self.keystone.as_service(delete).await.map_err(Error::Unavailable)
    }

    async fn sweep(&self, needed: BTreeSet<String>, age: Duration) -> Result<usize> {
        let sweep = |session: openstack::Session| {
            let (needed, container) = (needed.clone(), self.container.clone());
            async move {
                let swift = session.swift();
                let kept = swift.list_objects(&container).await?;
                if needed.is_empty() || !needed.is_subset(&kept) {
                    return Ok(0);
                }
                let mut removed = 0;
                for name in kept.difference(&needed).filter(|name| is_digest(name)) {
                    match swift.object_age(&container, name).await {
                        Ok(since) if since >= age => {
                            swift.delete_object(&container, name).await?;
                            removed += 1;
                        }
                        // A list of Swift's goes on naming for a while what was removed.
                        Ok(_) | Err(openstack::Error::NotFound) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(removed)
            }
        };
        self.keystone.as_service(sweep).await.map_err(Error::Unavailable)
    }
}
