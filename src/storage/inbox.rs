//! Where packages are received, whatever keeps them afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Result, Upload, blocking};

const UPLOAD: &str = ".upload-";

/// A directory of this machine, which other processes may use too.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    directory: PathBuf,
    max_bytes: u64,
}

impl Inbox {
    /// Opens the directory, creating it where it is missing, and removes what a process that ended
    /// in the middle of an upload left there.
    pub async fn open(directory: PathBuf, max_bytes: u64) -> Result<Self> {
        let at = directory.clone();
        blocking(move || {
            fs::create_dir_all(&at)?;
            sweep(&at)?;
            Ok(())
        })
        .await?;
        Ok(Self { directory, max_bytes })
    }

    pub async fn begin(&self) -> Result<Upload> {
        let Self { directory, max_bytes } = self.clone();
        blocking(move || {
            let file = tempfile::Builder::new().prefix(UPLOAD).tempfile_in(directory)?;
            // Tells the sweep of another process that this one is not forgotten.
            file.as_file().lock()?;
            Ok(Upload::new(file, max_bytes))
        })
        .await
    }
}

/// Removes uploads that nobody holds the lock of any more.
fn sweep(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(UPLOAD) {
            continue;
        }
        let forgotten = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if forgotten {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
