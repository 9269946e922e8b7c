//! The clouds that executions of this worker may name, as files that every slot can read.
//!
//! An engine gives a cloud once and then names it by its digest. The last few are kept, and one that
//! is pushed out stays as long as an execution runs that named it. A function can fill the disk that
//! the files are on: then a cloud that is new is refused, and the engine takes another worker.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use protocol::openstack::Cloud;
use protocol::shim::{CA_FILE, CLOUD_FILE};

/// Clouds that are kept though nobody uses them. A project has one, and one that was changed has two.
const MAX_KEPT: usize = 4;

/// What the image trusts, as Debian arranges it.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The last one used comes first.
#[derive(Default)]
pub struct Clouds {
    kept: Vec<Rc<Kept>>,
    written: Cell<u64>,
}

/// A cloud's directory, removed with the last execution that uses it.
pub struct Kept {
    digest: String,
    directory: PathBuf,
}

impl Clouds {
    pub fn find(&self, digest: &str) -> Option<Rc<Kept>> {
        self.kept.iter().find(|kept| kept.digest == digest).cloned()
    }

    /// Keeps a cloud below `parent`. One that is known already stays as it is.
    pub fn put(&mut self, parent: &Path, digest: &str, cloud: &Cloud) -> io::Result<()> {
        if let Some(place) = self.kept.iter().position(|kept| kept.digest == digest) {
            self.kept[..=place].rotate_right(1);
            return Ok(());
        }
        // Never a name that was used before: its files may still be in use.
        self.written.set(self.written.get() + 1);
        let kept = Kept::write(parent.join(self.written.get().to_string()), digest, cloud)?;
        self.kept.insert(0, Rc::new(kept));
        self.kept.truncate(MAX_KEPT);
        Ok(())
    }
}

impl Kept {
    fn write(directory: PathBuf, digest: &str, cloud: &Cloud) -> io::Result<Self> {
        make_directory(&directory)?;
        // From here on, dropping it removes what was written.
        let kept = Self { digest: digest.to_owned(), directory };
        kept.write_file(CLOUD_FILE, &serde_json::to_vec(cloud)?)?;
        if let Some(certificates) = &cloud.cacert {
            let mut all = fs::read(SYSTEM_CERTIFICATES).unwrap_or_default();
            all.push(b'\n');
            all.extend_from_slice(certificates.as_bytes());
            kept.write_file(CA_FILE, &all)?;
        }
        Ok(kept)
    }

    fn write_file(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(self.directory.join(name))?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(content)
    }

    pub fn directory(&self) -> String {
        self.directory.display().to_string()
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    for part in [path, path.parent().unwrap_or(path)] {
        fs::set_permissions(part, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Left over, it would take some kilobytes until the worker ends.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(cacert: Option<&str>) -> Cloud {
        Cloud {
            auth_url: "https://keystone/v3".to_owned(),
            region_name: None,
            interface: None,
            catalog: serde_json::value::RawValue::from_string("[{\"type\":\"identity\"}]".to_owned())
                .unwrap(),
            cacert: cacert.map(str::to_owned),
        }
    }

    /// A directory of this test's own, removed at its end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("taibai-clouds-{}-{name}", std::process::id())))
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).map_or(0, Iterator::count)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_cloud_is_written_once_with_the_certificates_of_image_and_cloud() {
        let (place, mut clouds) = (Place::new("once"), Clouds::default());
        clouds.put(&place.0, "a", &cloud(Some("PEM of the cloud"))).unwrap();
        clouds.put(&place.0, "a", &cloud(Some("PEM of the cloud"))).unwrap();

        assert_eq!(place.entries(), 1);
        let directory = PathBuf::from(clouds.find("a").unwrap().directory());
        let written: Cloud = serde_json::from_slice(&fs::read(directory.join(CLOUD_FILE)).unwrap()).unwrap();
        assert_eq!(written.catalog.get(), "[{\"type\":\"identity\"}]");
        let certificates = fs::read_to_string(directory.join(CA_FILE)).unwrap();
        assert!(certificates.ends_with("\nPEM of the cloud"));
        let mode = fs::metadata(directory.join(CA_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "every slot reads it, none writes");
        assert!(clouds.find("b").is_none());
    }

    #[test]
    fn the_last_few_are_kept_and_one_in_use_stays_until_its_end() {
        let (place, mut clouds) = (Place::new("few"), Clouds::default());
        clouds.put(&place.0, "used", &cloud(None)).unwrap();
        let used = clouds.find("used").unwrap();
        for digest in ["a", "b", "c", "d"] {
            clouds.put(&place.0, digest, &cloud(None)).unwrap();
        }

        assert!(clouds.find("used").is_none() && clouds.find("a").is_some());
        assert_eq!(place.entries(), 5);
        assert!(Path::new(&used.directory()).join(CLOUD_FILE).exists());
        assert!(!Path::new(&used.directory()).join(CA_FILE).exists());
        drop(used);
        assert_eq!(place.entries(), 4);
        // Used again, it is not the next to go.
        clouds.put(&place.0, "a", &cloud(None)).unwrap();
        clouds.put(&place.0, "e", &cloud(None)).unwrap();
        assert!(clouds.find("a").is_some() && clouds.find("b").is_none());
    }
}
