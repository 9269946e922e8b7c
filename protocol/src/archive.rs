//! What a package may hold. Pure rules over one entry after another, so that the upload and the
//! unpacking, which read the zip for themselves, refuse the same things in the same words.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bounds of a package, from `[storage]` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub max_entries: u64,
    pub max_expanded_bytes: u64,
    /// Most expanded bytes per packed byte, of the whole package, past the first MiB.
    pub max_ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_entries: 20_000, max_expanded_bytes: 512 << 20, max_ratio: 200 }
    }
}

/// One entry as the zip's directory describes it.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub packed: u64,
    pub expanded: u64,
    /// Mode bits, where the zip was made on a Unix system.
    pub mode: Option<u32>,
    pub encrypted: bool,
}

/// Where an entry goes below the package's directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Directory(PathBuf),
    File(PathBuf),
}

const FREE_EXPANSION: u64 = 1 << 20;
/// What Linux takes for a path below ours, and for a name in it, in bytes.
const MAX_NAME: usize = 2048;
const MAX_PART: usize = 255;
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// Applies the rules to the entries of one package, in order.
#[derive(Debug)]
pub struct Rules {
    limits: Limits,
    entries: u64,
    packed: u64,
    expanded: u64,
    files: HashSet<PathBuf>,
    directories: HashSet<PathBuf>,
}

impl Rules {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: 0,
            packed: 0,
            expanded: 0,
            files: HashSet::new(),
            directories: HashSet::new(),
        }
    }

    /// Where `entry` goes, or a sentence that says which rule it breaks.
    pub fn admit(&mut self, entry: &Entry<'_>) -> Result<Target, String> {
        let name = entry.name;
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(format!("it holds more than {} entries", self.limits.max_entries));
        }
        // Before anything that repeats the name.
        if name.len() > MAX_NAME || name.split('/').any(|part| part.len() > MAX_PART) {
            return Err("a file name is too long".to_owned());
        }
        if entry.encrypted {
            return Err(format!("'{name}' is encrypted"));
        }
        self.packed = self.packed.saturating_add(entry.packed);
        self.expanded = self.expanded.saturating_add(entry.expanded);
        self.check_size()?;

        let kind = entry.mode.map_or(0, |mode| mode & S_IFMT);
        let directory = name.ends_with('/') || kind == S_IFDIR;
        if kind != 0 && kind != S_IFDIR && kind != S_IFREG {
            return Err(format!("'{name}' is a link or a device; only files and directories are allowed"));
        }
        let path = relative(name)?;
        if directory {
            if path.as_os_str().is_empty() {
                return Ok(Target::Directory(path));
            }
            self.claim_directories(&path, name)?;
            Ok(Target::Directory(path))
        } else {
            if path.as_os_str().is_empty() {
                return Err("an entry has no name".to_owned());
            }
            if let Some(parent) = path.parent() {
                self.claim_directories(parent, name)?;
            }
            if self.directories.contains(&path) || !self.files.insert(path.clone()) {
                return Err(format!("'{name}' is there twice"));
            }
            Ok(Target::File(path))
        }
    }

    /// Most bytes that may still be written: what a directory claims of an entry need not be true.
    pub fn max_expanded_bytes(&self) -> u64 {
        self.limits.max_expanded_bytes
    }

    fn check_size(&self) -> Result<(), String> {
        if self.expanded > self.limits.max_expanded_bytes {
            return Err(format!("it expands to more than {} bytes", self.limits.max_expanded_bytes));
        }
        let allowed = FREE_EXPANSION.saturating_add(self.packed.saturating_mul(self.limits.max_ratio));
        if self.expanded > allowed {
            return Err(format!("it expands to more than {} times its size", self.limits.max_ratio));
        }
        Ok(())
    }

    fn claim_directories(&mut self, path: &Path, name: &str) -> Result<(), String> {
        for directory in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if self.files.contains(directory) {
                return Err(format!("'{name}' is below a file"));
            }
            if !self.directories.insert(directory.to_owned()) {
                break;
            }
        }
        Ok(())
    }
}

/// The path of an entry, if it stays below the directory that it is unpacked into.
fn relative(name: &str) -> Result<PathBuf, String> {
    if name.contains('\0') || name.contains('\\') {
        return Err(format!("'{}' is no usable file name", name.escape_debug()));
    }
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(format!("'{name}' leads out of the package"));
            }
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Entry<'_> {
        Entry { name, packed: 10, expanded: 10, mode: Some(0o100_644), encrypted: false }
    }

    fn rules() -> Rules {
        Rules::new(Limits { max_entries: 4, max_expanded_bytes: 8 << 20, max_ratio: 10 })
    }

    #[test]
    fn ordinary_entries_are_admitted() {
        let mut rules = rules();
        assert_eq!(rules.admit(&file("main.py")), Ok(Target::File("main.py".into())));
        assert_eq!(rules.admit(&file("./pkg/a.py")), Ok(Target::File("pkg/a.py".into())));
        assert_eq!(rules.admit(&file("pkg/")), Ok(Target::Directory("pkg".into())));
    }

    #[test]
    fn what_leads_out_of_the_package_is_refused() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b"] {
            assert!(rules().admit(&file(name)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn links_and_devices_are_refused() {
        for mode in [0o120_777, 0o020_666, 0o060_666, 0o010_644, 0o140_755] {
            assert!(rules().admit(&Entry { mode: Some(mode), ..file("x") }).is_err(), "{mode:o}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_not_repeated() {
        for name in ["x".repeat(256), "x/".repeat(2000)] {
            let link = Entry { mode: Some(0o120_777), ..file(&name) };
            assert_eq!(rules().admit(&link).unwrap_err(), "a file name is too long");
        }
    }

    #[test]
    fn one_name_is_one_file() {
        let mut twice = rules();
        twice.admit(&file("a")).unwrap();
        assert!(twice.admit(&file("./a")).is_err());
        let mut below = rules();
        below.admit(&file("a")).unwrap();
        assert!(below.admit(&file("a/b")).is_err());
        let mut over = rules();
        over.admit(&file("a/b")).unwrap();
        assert!(over.admit(&file("a")).is_err());
    }

    #[test]
    fn counts_sizes_and_ratio_are_bounded() {
        let mut many = rules();
        for name in ["a", "b", "c", "d"] {
            many.admit(&file(name)).unwrap();
        }
        assert!(many.admit(&file("e")).unwrap_err().contains("more than 4 entries"));
        let large = Entry { expanded: 9 << 20, packed: 9 << 20, ..file("x") };
        assert!(rules().admit(&large).unwrap_err().contains("bytes"));
        let bomb = Entry { expanded: 2 << 20, packed: 1 << 10, ..file("x") };
        assert!(rules().admit(&bomb).unwrap_err().contains("times"));
        let small = Entry { expanded: 1 << 20, packed: 1 << 10, ..file("x") };
        assert!(rules().admit(&small).is_ok());
    }
}
