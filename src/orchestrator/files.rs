//! What a worker has on the disk: the directory of its socket, and the one for its package and its
//! executions' files, which is a filesystem of its own so that no function fills the host's.
//!
//! | path | holds |
//! | --- | --- |
//! | `<worker_dir>/w/<deployment>/<worker>/run/s` | the supervisor's socket |
//! | `<work_dir>/<deployment>/<worker>/image` | the filesystem, sparse |
//! | `<work_dir>/<deployment>/<worker>/mnt` | where it is mounted; mounted again in the container |
//!
//! A worker's directory in `work_dir` is the first thing created and the last removed, so that what a
//! crash left behind is found there. Blocking.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{Whence, lseek};
use protocol::worker::{SOCKET, UNPACK_UID};

use crate::model::WorkerName;

/// Most bytes of a Unix socket's path; one more ends it.
const MAX_SOCKET_PATH: usize = 107;

const TEMPLATE: &str = "template.image";

/// Where everything of one worker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Shared with the container; holds the socket.
    pub run: PathBuf,
    /// Shared with the container; holds the package and the executions' files.
    pub work: PathBuf,
    pub socket: PathBuf,
    in_worker_dir: PathBuf,
    in_work_dir: PathBuf,
    image: PathBuf,
}

#[derive(Debug)]
pub struct Files {
    /// `<worker_dir>/w/<deployment>`
    sockets: PathBuf,
    /// `<work_dir>/<deployment>`
    works: PathBuf,
    /// An empty filesystem to copy; none where this machine cannot mount such copies.
    template: Option<PathBuf>,
}

impl Files {
    /// Knows the paths, and touches nothing.
    pub fn at(worker_dir: &Path, work_dir: &Path, deployment: &str) -> io::Result<Self> {
        Ok(Self {
            sockets: std::path::absolute(worker_dir)?.join("w").join(deployment),
            works: std::path::absolute(work_dir)?.join(deployment),
            template: None,
        })
    }

    /// Creates the directories and finds out whether filesystems of their own are possible.
    pub fn open(worker_dir: &Path, work_dir: &Path, deployment: &str, bytes: u64) -> io::Result<Self> {
        let mut files = Self::at(worker_dir, work_dir, deployment)?;
        for dir in [&files.sockets, &files.works] {
            fs::create_dir_all(dir)?;
            // Whoever reached a socket could run code in a worker.
            fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        }
        match files.make_template(bytes) {
            Ok(template) => files.template = Some(template),
            Err(error) => tracing::warn!(
                error = %error,
                "workers' files are not bounded: no filesystem of their own can be mounted"
            ),
        }
        Ok(files)
    }

    /// A file that workers have in common. Its name is none that a worker can have.
    pub fn common(&self, name: &str) -> PathBuf {
        self.sockets.join(format!(".{name}"))
    }

    pub fn places(&self, name: &WorkerName) -> Places {
        let in_worker_dir = self.sockets.join(name.as_str());
        let in_work_dir = self.works.join(name.as_str());
        let run = in_worker_dir.join("run");
        Places {
            socket: run.join(SOCKET),
            run,
            work: in_work_dir.join("mnt"),
            image: in_work_dir.join("image"),
            in_worker_dir,
            in_work_dir,
        }
    }

    /// Creates a worker's directories. An error `AlreadyExists` means that nothing was touched; after
    /// any other one `remove` is due.
    pub fn create(&self, name: &WorkerName, first_uid: u32, slots: u32) -> io::Result<Places> {
        let places = self.places(name);
        let length = places.socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("[docker] worker_dir is too long: a socket's path would take {length} bytes"),
            ));
        }
        fs::create_dir(&places.in_work_dir)?;
        directory(&places.in_worker_dir, 0o700, 0).and_then(|()| directory(&places.run, 0o700, 0)).map_err(
            // Not ours, whatever it is: told apart from what was not touched.
            |error| io::Error::other(format!("the socket's directory: {error}")),
        )?;

        directory(&places.work, 0o755, 0)?;
        if let Some(template) = &self.template {
            copy_sparse(template, &places.image)?;
            mount(&places.image, &places.work)?;
            fs::set_permissions(&places.work, Permissions::from_mode(0o755))?;
        }
        directory(&places.work.join("package"), 0o755, first_uid + UNPACK_UID)?;
        let scratch = places.work.join("scratch");
        directory(&scratch, 0o755, 0)?;
        for slot in 0..slots {
            directory(&scratch.join(slot.to_string()), 0o700, first_uid + slot)?;
        }
        Ok(places)
    }

    /// Removes whatever there is of a worker. May be called again.
    pub fn remove(&self, name: &WorkerName) -> io::Result<()> {
        let places = self.places(name);
        unmount(&places.work)?;
        gone(fs::remove_dir_all(&places.in_worker_dir))?;
        gone(fs::remove_file(&places.image))?;
        if gone(fs::remove_dir(&places.work)).is_err() {
            delete_tree(&places.work)?;
        }
        gone(fs::remove_dir(&places.in_work_dir))
    }

    /// Workers of which something is on the disk.
    pub fn list(&self) -> io::Result<Vec<WorkerName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.works)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Some(name) = entry.file_name().to_str()
                && super::is_plain(name)
            {
                names.push(WorkerName::from(name));
            }
        }
        Ok(names)
    }

    /// Makes an empty filesystem and tries it: the kernel may lack ext4 or loop devices, and a
    /// container that Taibai itself runs in may not be allowed to mount.
    fn make_template(&self, bytes: u64) -> io::Result<PathBuf> {
        let template = self.works.join(TEMPLATE);
        File::create(&template)?.set_len(bytes)?;
        // A journal would be for a crash, which no worker's files outlive.
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        run(Command::new("mkfs.ext4").args(options).arg(&template))?;

        let probe = self.works.join(format!("{TEMPLATE}.probe"));
        let mountpoint = self.works.join(format!("{TEMPLATE}.mnt"));
        let tried = (|| {
            unmount(&mountpoint)?;
            fs::create_dir_all(&mountpoint)?;
            copy_sparse(&template, &probe)?;
            mount(&probe, &mountpoint)
        })();
        let cleaned = unmount(&mountpoint)
            .and_then(|()| gone(fs::remove_dir(&mountpoint)))
            .and_then(|()| gone(fs::remove_file(&probe)));
        tried.and(cleaned).map(|()| template)
    }
}

fn directory(path: &Path, mode: u32, owner: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if owner != 0 { chown(path, Some(owner), Some(owner)) } else { Ok(()) }
}

/// Copies what is not a hole: of an empty filesystem less than a thousandth.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = File::create(to)?;
    to.set_len(from.metadata()?.len())?;

    let mut at = 0;
    loop {
        let data = match lseek(&from, at, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(()),
            data => data?,
        };
        let hole = lseek(&from, data, Whence::SeekHole)?;
        let mut bytes = vec![0; usize::try_from(hole - data).map_err(io::Error::other)?];
        for file in [&mut from, &mut to] {
            file.seek(SeekFrom::Start(data.unsigned_abs()))?;
        }
        from.read_exact(&mut bytes)?;
        to.write_all(&bytes)?;
        at = hole;
    }
}

/// Mounts an image by the `mount` program, which finds a free loop device and has it freed with the
/// mount. Without `noinit_itable` the kernel would write the tables of inodes that nobody uses.
fn mount(image: &Path, at: &Path) -> io::Result<()> {
    let options = "loop,nosuid,nodev,noatime,noinit_itable";
    run(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(image).arg(at))
}

/// Detaches what is mounted there, if anything is.
fn unmount(at: &Path) -> io::Result<()> {
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes by the `rm` program, since a function may have nested directories deeper than our stack is.
fn delete_tree(path: &Path) -> io::Result<()> {
    run(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(path))
}

fn run(command: &mut Command) -> io::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}: {}", output.status, said.trim())))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    fn plain(dir: &Path) -> Files {
        let files = Files { sockets: dir.join("sockets"), works: dir.join("works"), template: None };
        fs::create_dir(&files.sockets).unwrap();
        fs::create_dir(&files.works).unwrap();
        files
    }

    #[test]
    fn a_sparse_copy_is_equal_and_stays_sparse() {
        let dir = TempDir::new().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, text) in [(0, "first"), (1 << 20, "second"), ((64 << 20) - 4, "last")] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        copy_sparse(&from, &to).unwrap();

        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_socket_whose_path_is_too_long_is_refused_before_anything_is_created() {
        let dir = TempDir::new().unwrap();
        let mut files = plain(dir.path());
        files.sockets = dir.path().join("x".repeat(100));

        let error = files.create(&WorkerName::random(), 1 << 20, 1).unwrap_err();

        assert!(error.to_string().contains("worker_dir"), "{error}");
        assert!(files.list().unwrap().is_empty());
    }

    #[test]
    fn a_socket_path_may_be_as_long_as_the_kernel_allows() {
        let dir = TempDir::new().unwrap();
        let mut files = plain(dir.path());
        let name = WorkerName::from("w");
        let rest = MAX_SOCKET_PATH - dir.path().as_os_str().len() - "//w/run/s".len();
        files.sockets = dir.path().join("x".repeat(rest));
        fs::create_dir(&files.sockets).unwrap();

        let places = files.create(&name, 1 << 20, 0).unwrap();

        assert_eq!(places.socket.as_os_str().len(), MAX_SOCKET_PATH);
        std::os::unix::net::UnixListener::bind(&places.socket).unwrap();
    }

    #[test]
    fn each_slot_owns_its_scratch_and_nobody_else_reads_it() {
        let dir = TempDir::new().unwrap();
        let files = plain(dir.path());
        let places = files.create(&WorkerName::from("w"), 1 << 20, 2).unwrap();

        let look = |path: &str| {
            let found = fs::metadata(places.work.join(path)).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        let uid = 1 << 20;
        assert_eq!(look("scratch/0"), (uid, uid, 0o700));
        assert_eq!(look("scratch/1"), (uid + 1, uid + 1, 0o700));
        assert_eq!(look("package"), (uid + UNPACK_UID, uid + UNPACK_UID, 0o755));
        assert_eq!(look("scratch"), (0, 0, 0o755));
        assert_eq!(fs::metadata(&places.run).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_worker_that_is_there_already_is_not_touched() {
        let dir = TempDir::new().unwrap();
        let files = plain(dir.path());
        let name = WorkerName::from("w");
        let places = files.create(&name, 1 << 20, 1).unwrap();
        fs::write(&places.socket, "").unwrap();

        let error = files.create(&name, 1 << 20, 1).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(places.socket.exists());
    }

    #[test]
    fn removal_takes_what_functions_wrote_and_may_be_repeated() {
        let dir = TempDir::new().unwrap();
        let files = plain(dir.path());
        let name = WorkerName::from("w");
        let places = files.create(&name, 1 << 20, 1).unwrap();
        let deep = places.work.join("scratch/0").join("d/".repeat(1000));
        fs::create_dir_all(&deep).unwrap();
        std::os::unix::fs::symlink("/etc", places.work.join("scratch/0/link")).unwrap();
        assert_eq!(files.list().unwrap(), std::slice::from_ref(&name));

        files.remove(&name).unwrap();
        files.remove(&name).unwrap();

        assert!(files.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(&files.sockets).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
    }
}
