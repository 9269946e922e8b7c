//! From a package to files, by the rules of [`protocol::archive`].

use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use protocol::archive::{Entry, Limits, Rules, Target};

/// Unpacks into `root`, which is there and empty. The error is a sentence that says why the package is
/// unusable; something of it may have been written then.
pub fn into(root: &Path, package: impl Read + Seek, limits: Limits) -> Result<(), String> {
    let mut archive = zip::ZipArchive::new(package).map_err(|error| format!("it is no zip: {error}"))?;
    let mut rules = Rules::new(limits);
    let mut left = limits.max_expanded_bytes;
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(|error| format!("entry {index}: {error}"))?;
        let name = file.name().to_owned();
        let mode = file.unix_mode();
        let target = rules.admit(&Entry {
            name: &name,
            packed: file.compressed_size(),
            expanded: file.size(),
            mode,
            encrypted: file.encrypted(),
        })?;
        let at = |error: io::Error| format!("'{name}': {error}");
        match target {
            Target::Directory(path) => make_directory(&root.join(path)).map_err(at)?,
            Target::File(path) => {
                let path = root.join(path);
                if let Some(parent) = path.parent() {
                    make_directory(parent).map_err(at)?;
                }
                let executable = mode.is_some_and(|mode| mode & 0o111 != 0);
                let mut to = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(if executable { 0o755 } else { 0o644 })
                    .open(&path)
                    .map_err(at)?;
                // What the directory claims need not be true: what comes out is counted.
                let written = io::copy(&mut (&mut file).take(left + 1), &mut to).map_err(at)?;
                left = left
                    .checked_sub(written)
                    .ok_or_else(|| format!("it expands to more than {} bytes", limits.max_expanded_bytes))?;
            }
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}
