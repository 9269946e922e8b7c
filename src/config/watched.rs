//! Whether a file is still the one that was read.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What tells two states of a file apart. A file that is replaced has another inode, one that is
/// written again another time or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file that is read again when it changes.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    /// As it was when it was read last; `None` where there was no file.
    seen: Mutex<Option<Stamp>>,
}

impl Watched {
    /// Take it before the first reading, so that a change during that is one.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: Mutex::new(stamp(path)) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is another than when this was asked last, which it counts as read.
    pub fn changed(&self) -> bool {
        let now = stamp(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, now) != now
    }

    /// What the file holds; `None` where there is none.
    pub fn read(&self) -> io::Result<Option<String>> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        inode: (metadata.dev(), metadata.ino()),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_changes_or_goes_has_changed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let watched = Watched::new(&path);
        assert!(!watched.changed());
        assert_eq!(watched.read().unwrap(), None);
        std::fs::write(&path, "one").unwrap();
        assert_eq!((watched.changed(), watched.changed()), (true, false));
        std::fs::write(&path, "three").unwrap();
        assert_eq!((watched.changed(), watched.changed()), (true, false));
        assert_eq!(watched.read().unwrap().as_deref(), Some("three"));
        let other = directory.path().join("other");
        std::fs::write(&other, "three").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!((watched.changed(), watched.changed()), (true, false));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((watched.changed(), watched.changed()), (true, false));
    }
}
