use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::inbox::Inbox;
use super::{Content, Error, PackageStore, Received, Result, Upload, blocking, is_digest};

/// Packages as files below one directory: `<first two digits>/<digest>`.
#[derive(Debug, Clone)]
pub struct LocalStore {
    directory: PathBuf,
    inbox: Inbox,
}

impl LocalStore {
    /// Opens the directory, creating it where it is missing, and removes what a process that ended
    /// in the middle of an upload left there.
    pub async fn open(directory: impl Into<PathBuf>, max_bytes: u64) -> Result<Self> {
        let directory = directory.into();
        // On the same filesystem, so that what was received is kept by giving it its name.
        let inbox = Inbox::open(directory.clone(), max_bytes).await?;
        Ok(Self { directory, inbox })
    }

    /// Those of the packages that are not in a directory. Changes nothing there.
    pub fn missing(directory: &Path, digests: impl IntoIterator<Item = String>) -> Vec<String> {
        let is_there =
            |digest: &String| is_digest(digest) && directory.join(&digest[..2]).join(digest).is_file();
        digests.into_iter().filter(|digest| !is_there(digest)).collect()
    }

    /// The place of a package; `None` for what is no digest.
    fn place(&self, digest: &str) -> Option<PathBuf> {
        is_digest(digest).then(|| self.directory.join(&digest[..2]).join(digest))
    }
}

#[async_trait]
impl PackageStore for LocalStore {
    async fn begin(&self) -> Result<Upload> {
        self.inbox.begin().await
    }

    async fn keep(&self, package: Received) -> Result<()> {
        let place = self.place(&package.digest).ok_or(Error::NotFound)?;
        let directory = self.directory.clone();
        blocking(move || {
            package.file.as_file().sync_all()?;
            let parent = place.parent().expect("a package is in a directory below the store's");
            fs::create_dir_all(parent)?;
            // The same digest means the same bytes, so replacing is harmless.
            package.file.persist(&place).map_err(|failed| failed.error)?;
            // The names must be as durable as the row that will refer to them.
            File::open(parent)?.sync_all()?;
            File::open(&directory)?.sync_all()?;
            Ok(())
        })
        .await
    }

    async fn open(&self, digest: &str) -> Result<Content> {
        let place = self.place(digest).ok_or(Error::NotFound)?;
        let file = match tokio::fs::File::open(place).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound),
            file => file?,
        };
        let bytes = file.metadata().await?.len();
        Ok(Content { bytes, reader: Box::new(file) })
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        let Some(place) = self.place(digest) else { return Ok(()) };
        match tokio::fs::remove_file(place).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => Ok(done?),
        }
    }

    async fn sweep(&self, needed: BTreeSet<String>, age: Duration) -> Result<usize> {
        let directory = self.directory.clone();
        blocking(move || {
            if needed.is_empty() || !Self::missing(&directory, needed.iter().cloned()).is_empty() {
                return Ok(0);
            }
            let mut removed = 0;
            for group in fs::read_dir(directory)?.flatten().filter(|entry| entry.path().is_dir()) {
                for entry in fs::read_dir(group.path())?.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if !is_digest(&name) || needed.contains(&name) {
                        continue;
                    }
                    // One from the future was kept just now, by a clock that was wrong.
                    let kept = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                    if kept >= age {
                        fs::remove_file(entry.path())?;
                        removed += 1;
                    }
                }
            }
            Ok(removed)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        store: LocalStore,
    }

    async fn fixture(max_bytes: u64) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path(), max_bytes).await.unwrap();
        Fixture { directory, store }
    }

    impl Fixture {
        async fn receive(&self, bytes: &[u8]) -> Result<Received> {
            let mut upload = self.store.begin().await?;
            for chunk in bytes.chunks(1000) {
                upload = upload.write(chunk).await?;
            }
            upload.finish().await
        }

        fn uploads(&self) -> usize {
            let names = fs::read_dir(self.directory.path()).unwrap();
            names
                .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".upload-"))
                .count()
        }
    }

    #[tokio::test]
    async fn a_package_is_kept_under_its_digest() {
        let fixture = fixture(1 << 20).await;
        let received = fixture.receive(b"hello world").await.unwrap();
        assert_eq!(received.md5, "5eb63bbbe01eeed093cb22bb8f5acdc3");
        assert_eq!(received.digest, "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
        assert_eq!(received.bytes, 11);
        let digest = received.digest.clone();
        fixture.store.keep(received).await.unwrap();
        assert_eq!(fixture.uploads(), 0);

        let mut content = fixture.store.open(&digest).await.unwrap();
        let mut read = Vec::new();
        content.reader.read_to_end(&mut read).await.unwrap();
        assert_eq!((content.bytes, read.as_slice()), (11, b"hello world".as_slice()));

        fixture.store.delete(&digest).await.unwrap();
        fixture.store.delete(&digest).await.unwrap();
        assert!(matches!(fixture.store.open(&digest).await, Err(Error::NotFound)));
    }

    #[tokio::test]
    async fn what_spans_several_batches_is_hashed_whole() {
        let fixture = fixture(2 << 20).await;
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let received = fixture.receive(&bytes).await.unwrap();
        assert_eq!(received.bytes, 1_000_000);
        assert_eq!(received.digest, hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes)));
        let digest = received.digest.clone();
        fixture.store.keep(received).await.unwrap();
        let mut read = Vec::new();
        fixture.store.open(&digest).await.unwrap().reader.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, bytes);
    }

    #[tokio::test]
    async fn the_same_bytes_may_be_kept_twice() {
        let fixture = fixture(1 << 20).await;
        for _ in 0..2 {
            let received = fixture.receive(b"again").await.unwrap();
            fixture.store.keep(received).await.unwrap();
        }
        assert_eq!(fixture.uploads(), 0);
    }

    #[tokio::test]
    async fn one_byte_too_many_is_refused_and_leaves_nothing() {
        let fixture = fixture(2000).await;
        drop(fixture.receive(&[7; 2000]).await.unwrap());
        assert!(matches!(fixture.receive(&[7; 2001]).await, Err(Error::TooLarge { limit: 2000 })));
        assert_eq!(fixture.uploads(), 0);
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_leaves_nothing() {
        let fixture = fixture(1 << 20).await;
        let upload = fixture.store.begin().await.unwrap();
        assert_eq!(fixture.uploads(), 1);
        drop(upload.write(b"half").await.unwrap());
        assert_eq!(fixture.uploads(), 0);
    }

    #[tokio::test]
    async fn a_start_removes_forgotten_uploads_and_no_others() {
        let fixture = fixture(1 << 20).await;
        fs::write(fixture.directory.path().join(".upload-left"), b"half").unwrap();
        let under_way = fixture.store.begin().await.unwrap();
        LocalStore::open(fixture.directory.path(), 1).await.unwrap();
        assert_eq!(fixture.uploads(), 1);
        assert!(!fixture.directory.path().join(".upload-left").exists());
        drop(under_way);
    }

    #[tokio::test]
    async fn a_sweep_removes_what_nobody_needs_once_it_is_old_and_nothing_of_another_database() {
        let fixture = fixture(1 << 20).await;
        let mut digests = Vec::new();
        for bytes in [b"needed", b"unused"] {
            let received = fixture.receive(bytes).await.unwrap();
            digests.push(received.digest.clone());
            fixture.store.keep(received).await.unwrap();
        }
        let other = fixture.directory.path().join(&digests[1][..2]).join("other");
        fs::write(&other, b"x").unwrap();
        let needed = BTreeSet::from([digests[0].clone()]);
        let foreign = BTreeSet::from([digests[0].clone(), "0".repeat(64)]);
        for others in [BTreeSet::new(), foreign] {
            assert_eq!(fixture.store.sweep(others, Duration::ZERO).await.unwrap(), 0);
        }
        assert_eq!(fixture.store.sweep(needed.clone(), Duration::from_secs(3600)).await.unwrap(), 0);
        assert_eq!(fixture.store.sweep(needed, Duration::ZERO).await.unwrap(), 1);
        assert!(fixture.store.open(&digests[0]).await.is_ok() && other.exists());
        assert!(matches!(fixture.store.open(&digests[1]).await, Err(Error::NotFound)));
    }

    #[tokio::test]
    async fn only_digests_are_looked_up() {
        let fixture = fixture(1 << 20).await;
        fs::write(fixture.directory.path().join("secret"), b"x").unwrap();
        for name in ["", "secret", "../secret", &"A".repeat(64), &"é".repeat(32)] {
            assert!(matches!(fixture.store.open(name).await, Err(Error::NotFound)), "{name:?}");
            fixture.store.delete(name).await.unwrap();
        }
        assert!(fixture.directory.path().join("secret").exists());
    }
}
