//! Where lines of the log go: into a file that may be rotated, or to systemd's journal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How often it is looked whether the file is still the one of its name.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is written at its end, wherever that is, and opened anew under its name once it was moved
/// or removed: so logrotate may rename it or cut it off, and need not tell.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    open: Mutex<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    looked: Instant,
}

impl LogFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("[logging] file = {}: {error}", path.display()))
        };
        let file = Arc::new(append(path).map_err(named)?);
        Ok(Self { path: path.to_owned(), open: Mutex::new(Opened { file, looked: Instant::now() }) })
    }

    fn current(&self) -> Arc<File> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.looked.elapsed() >= LOOK {
            open.looked = Instant::now();
            // Where it cannot be opened the old one goes on: a log somewhere is better than none.
            if !is_at(&open.file, &self.path)
                && let Ok(file) = append(&self.path)
            {
                open.file = Arc::new(file);
            }
        }
        open.file.clone()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let named = std::fs::metadata(path).map(place).ok();
    named.is_some() && file.metadata().map(place).ok() == named
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Arc<File>;

    fn make_writer(&'a self) -> Self::Writer {
        self.current()
    }
}

/// Stderr that the journal reads, with each line's priority before it, as sd-daemon(3) has it.
#[derive(Debug)]
pub struct Journal;

/// Whether what is written to stderr goes to the journal, which then says so in the environment.
pub fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = nix::sys::stat::fstat(io::stderr());
    stderr.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Prioritized<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Prioritized { priority: priority(&Level::INFO), inner: io::stderr() }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Prioritized { priority: priority(metadata.level()), inner: io::stderr() }
    }
}

fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Writes one event, whose lines all have its priority.
#[derive(Debug)]
pub struct Prioritized<W> {
    priority: u8,
    inner: W,
}

impl<W: Write> Write for Prioritized<W> {
    /// Takes a whole event, which the subscriber gives at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut lines = Vec::with_capacity(event.len() + 3);
        for line in event.split_inclusive(|&byte| byte == b'\n') {
            write!(lines, "<{}>", self.priority)?;
            lines.extend_from_slice(line);
        }
        self.inner.write_all(&lines)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_an_event_has_its_priority() {
        let mut writer = Prioritized { priority: priority(&Level::WARN), inner: Vec::new() };
        writer.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(String::from_utf8(writer.inner).unwrap(), "<4>one\n<4>two\n");
        assert_eq!(
            [Level::ERROR, Level::INFO, Level::DEBUG, Level::TRACE].map(|l| priority(&l)),
            [3, 6, 7, 7]
        );
    }

    #[test]
    fn a_log_goes_on_after_it_was_moved_removed_or_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("log.1"));
        let log = LogFile::open(&path).unwrap();
        let say = |text: &str| {
            // As if the time had passed.
            log.open.lock().unwrap().looked = Instant::now() - LOOK;
            log.current().write_all(text.as_bytes()).unwrap();
        };
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        say("one\n");
        std::fs::rename(&path, &moved).unwrap();
        say("two\n");
        assert_eq!((read(&moved).as_str(), read(&path).as_str()), ("one\n", "two\n"));
        std::fs::remove_file(&path).unwrap();
        say("three\n");
        assert_eq!(read(&path), "three\n");
        // As logrotate's copytruncate does: no hole is left where the text was.
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        say("four\n");
        assert_eq!(read(&path), "four\n");
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_named() {
        let error = LogFile::open(Path::new("/nonexistent/log")).unwrap_err().to_string();
        assert_eq!(error, "[logging] file = /nonexistent/log: No such file or directory (os error 2)");
    }
}
