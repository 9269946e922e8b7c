//! Ends of executions, in files of their own until they are in the tables.
//!
//! A commit takes about as long as all else of a warm call. Where it need not survive a power loss, it promises no
//! more than a line at the end of a file does: once that is written, the death of the process takes nothing of it. So
//! a caller is answered once the line is there, and lines go to the tables many at a time. Whoever asks the database
//! meanwhile has them go there first: an answer never says more than the tables do.
//!
//! Two files take turns. Lines go to one while those of the other are committed; then that is emptied. What a process
//! that died left in them, the next one writes before it does anything else.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::model::{ExecutionId, Outcome, execution, execution_log};

/// Beside the database's file; see [`Journal::open`].
const SUFFIXES: [&str; 2] = ["-ends.0", "-ends.1"];
/// What nobody can read of these, and what the tables will not have.
const ASIDE: &str = "-ends.aside";
/// Most bytes of lines that wait. Ends that find no room are committed by themselves, as is each that would take much
/// of it.
const ROOM: u64 = 1 << 20;
const LONGEST: usize = 64 << 10;
/// Longest wait of who asks. SQLite answers while somebody else holds its lock, and so does who reads it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// One that has no row: all of it.
    Whole { row: Box<execution::Model>, log: execution_log::Model },
    /// One whose row is to say so, if it runs under that epoch by then.
    Running { id: ExecutionId, epoch: i64, outcome: Box<Outcome> },
}

impl End {
    pub fn id(&self) -> &ExecutionId {
        match self {
            Self::Whole { row, .. } => &row.id,
            Self::Running { id, .. } => id,
        }
    }

    fn is_short(&self) -> bool {
        let bytes = match self {
            Self::Whole { row, log } => {
                let texts = [&row.input, &row.result].into_iter().flatten();
                texts.map(String::len).sum::<usize>() + log.log.len()
            }
            Self::Running { outcome, .. } => outcome.result.len() + outcome.log.len(),
        };
        bytes <= LONGEST
    }

    fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("texts and numbers are JSON");
        line.push(b'\n');
        line
    }
}

#[derive(Debug)]
pub struct Journal {
    /// Where ends are kept that cannot go to the tables.
    aside: PathBuf,
    files: Mutex<Files>,
    /// How many ends the tables have, or have refused.
    settled: watch::Sender<u64>,
    /// Somebody waits for more of them.
    asked: Notify,
}

#[derive(Debug)]
struct Files {
    /// Takes lines.
    open: Lines,
    /// Has those that are being committed.
    closed: Lines,
    /// Ends that were ever noted.
    noted: u64,
    /// Nobody takes them any more.
    is_over: bool,
}

#[derive(Debug)]
struct Lines {
    file: File,
    bytes: u64,
    ends: Vec<End>,
    /// Whether it may have part of a line at its end. Nothing comes after that.
    is_torn: bool,
    /// Whether it was to be emptied and could not: the tables refuse what it has, or the disk does.
    is_stuck: bool,
}

impl Lines {
    fn new(file: File) -> Self {
        Self { file, bytes: 0, ends: Vec::new(), is_torn: false, is_stuck: false }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(line);
        match written {
            Ok(()) => self.bytes += line.len() as u64,
            Err(_) => self.is_torn = self.file.set_len(self.bytes).is_err(),
        }
        written
    }

    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.bytes, self.is_torn) = (0, false);
        Ok(())
    }
}

impl Journal {
    /// The journal beside a database's file, and what is left in it from before. That is to be written, and the
    /// journal then [cleared](Self::clear). Nobody else can open it meanwhile.
    pub fn open(database: &Path) -> io::Result<(Self, Vec<End>)> {
        let aside = beside(database, ASIDE);
        let mut left = Vec::new();
        let mut open = |suffix: &str| {
            let path = beside(database, suffix);
            let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
            // Until the process ends, however it does. Not every file system has such locks.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(io::Error::other("another process has it"));
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                match serde_json::from_slice(line) {
                    // It was never finished: nobody was told.
                    _ if !line.ends_with(b"\n") => {}
                    Ok(end) => left.push(end),
                    Err(error) => {
                        tracing::error!(%error, "the end of an execution cannot be read");
                        set_aside(&aside, line)?;
                    }
                }
            }
            Ok::<_, io::Error>(Lines::new(file))
        };
        let files = Files { open: open(SUFFIXES[0])?, closed: open(SUFFIXES[1])?, noted: 0, is_over: false };
        let (files, settled) = (Mutex::new(files), watch::Sender::new(0));
        Ok((Self { aside, files, settled, asked: Notify::new() }, left))
    }

    pub fn clear(&self) -> io::Result<()> {
        let mut files = self.lock();
        files.open.empty()?;
        files.closed.empty()
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic while it is held")
    }

    /// Notes an end, which is then as good as written. Says whether it is the first that waits; gives it back where it
    /// has to be committed by itself.
    pub fn note(&self, end: End) -> Result<bool, End> {
        if !end.is_short() {
            return Err(end);
        }
        let line = end.line();
        let mut files = self.lock();
        let Files { open, closed, noted, is_over } = &mut *files;
        let has_room = open.bytes + line.len() as u64 <= ROOM;
        if !has_room || open.is_torn || closed.is_stuck || *is_over {
            return Err(end);
        }
        if let Err(error) = open.append(&line) {
            tracing::warn!(%error, "an end cannot be noted");
            return Err(end);
        }
        open.ends.push(end);
        *noted += 1;
        Ok(open.ends.len() == 1)
    }

    /// Whether there is something to take.
    pub fn has_ends(&self) -> bool {
        let files = self.lock();
        !files.open.ends.is_empty() || files.closed.is_stuck
    }

    /// Ends that are to be committed now, and how many there were before and with them; what became of them is
    /// [told](Self::settle) before others are taken.
    pub fn take(&self) -> Option<(Vec<End>, u64)> {
        let mut files = self.lock();
        let Files { open, closed, noted, .. } = &mut *files;
        if closed.is_stuck && closed.ends.is_empty() {
            closed.is_stuck = closed.empty().is_err();
        }
        if !closed.is_stuck {
            mem::swap(open, closed);
        }
        let ends = mem::take(&mut closed.ends);
        let count = *noted - open.ends.len() as u64;
        (!ends.is_empty()).then_some((ends, count))
    }

    /// Of those that were taken, all are in the tables but what is left. Nothing is noted until that is, too.
    pub fn settle(&self, count: u64, left: Vec<End>) {
        let mut files = self.lock();
        let closed = &mut files.closed;
        closed.ends = left;
        let emptied = if closed.ends.is_empty() { closed.empty() } else { Ok(()) };
        if let Err(error) = &emptied {
            tracing::warn!(%error, "the ends that are written cannot be taken off");
        }
        // Not used as long as it has lines: the next start would write them again.
        closed.is_stuck = !closed.ends.is_empty() || emptied.is_err();
        drop(files);
        self.settled.send_replace(count);
    }

    /// Keeps an end that the tables will not have, for people to look at.
    pub fn set_aside(&self, end: &End) {
        if let Err(error) = set_aside(&self.aside, &end.line()) {
            tracing::error!(%error, "it cannot be kept either");
        }
    }

    /// Has nothing noted from now on, because nobody will take it. What is left waits for the next start.
    pub fn end(&self) {
        self.lock().is_over = true;
        self.settled.send_replace(u64::MAX);
    }

    /// Waits until what was noted by now is in the tables. Where they take nothing, until that was tried, and no
    /// longer than somebody who only reads is kept waiting.
    pub async fn settled(&self) {
        let noted = self.lock().noted;
        let mut settled = self.settled.subscribe();
        if *settled.borrow_and_update() >= noted {
            return;
        }
        self.asked.notify_one();
        // Its sender is here.
        let _ = timeout(PATIENCE, settled.wait_for(|settled| *settled >= noted)).await;
    }

    /// Waits until somebody waits.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn set_aside(file: &Path, line: &[u8]) -> io::Result<()> {
    tracing::error!(file = %file.display(), "the end of an execution is kept there");
    OpenOptions::new().append(true).create(true).mode(0o600).open(file)?.write_all(line)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::db::testing::execution;
    use crate::model::ExecutionStatus;

    fn open(directory: &TempDir) -> (Journal, Vec<End>) {
        Journal::open(&directory.path().join("db")).unwrap()
    }

    fn end(log: &str) -> End {
        let row = execution(ExecutionStatus::Success);
        let log =
            execution_log::Model { execution_id: row.id.clone(), log: log.to_owned(), truncated: false };
        End::Whole { row: Box::new(row), log }
    }

    fn file(directory: &TempDir, suffix: &str) -> PathBuf {
        beside(&directory.path().join("db"), suffix)
    }

    #[test]
    fn what_was_noted_and_not_settled_is_what_the_next_one_finds() {
        let directory = tempfile::tempdir().unwrap();
        let ends = ["one", "t\nwo\0", "three", "four"].map(end);
        let (journal, left) = open(&directory);
        assert_eq!(left, []);
        assert!(journal.note(ends[0].clone()).unwrap(), "the first that waits");
        assert!(!journal.note(ends[1].clone()).unwrap());
        assert!(journal.has_ends());
        let (taken, count) = journal.take().unwrap();
        assert_eq!((&taken[..], count), (&ends[..2], 2));
        // While these are written.
        assert!(journal.note(ends[2].clone()).unwrap());
        drop(journal);

        let (journal, mut left) = open(&directory);
        left.sort_by_key(|left| ends.iter().position(|end| end == left));
        assert_eq!(left, &ends[..3]);
        journal.clear().unwrap();
        assert!(!journal.has_ends());
        journal.note(ends[3].clone()).unwrap();
        let (taken, count) = journal.take().unwrap();
        assert_eq!((&taken[..], count), (&ends[3..], 1));
        journal.settle(count, Vec::new());
        assert_eq!(journal.take(), None);
        drop(journal);
        assert_eq!(open(&directory).1, []);
    }

    #[test]
    fn half_a_line_is_left_out_and_one_that_nobody_can_read_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let noted = end("noted");
        open(&directory).0.note(noted.clone()).unwrap();
        let line = std::fs::read(file(&directory, SUFFIXES[0])).unwrap();
        let aside = file(&directory, ASIDE);

        std::fs::write(file(&directory, SUFFIXES[0]), [&line[..], &line[..line.len() / 2]].concat()).unwrap();
        assert_eq!(open(&directory).1, std::slice::from_ref(&noted));
        assert!(!aside.exists());

        let bad = b"{\"row\": 1}\n";
        std::fs::write(file(&directory, SUFFIXES[0]), [&bad[..], &line].concat()).unwrap();
        assert_eq!(open(&directory).1, [noted]);
        assert_eq!(std::fs::read(aside).unwrap(), bad);
    }

    #[test]
    fn nobody_else_may_read_it_and_nobody_else_can_have_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let _journal = open(&directory);
        let second = Journal::open(&directory.path().join("db")).unwrap_err();
        assert_eq!(second.to_string(), "another process has it");
        for suffix in SUFFIXES {
            let mode = std::fs::metadata(file(&directory, suffix)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_long_or_finds_no_room_or_comes_while_the_tables_take_nothing_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = open(&directory);
        let long = end(&"x".repeat(LONGEST));
        assert_eq!(journal.note(long.clone()), Err(long));

        let large = || end(&"x".repeat(LONGEST / 2));
        let mut noted = 0;
        while journal.note(large()).is_ok() {
            noted += 1;
        }
        let bytes = std::fs::metadata(file(&directory, SUFFIXES[0])).unwrap().len();
        assert!(bytes <= ROOM && ROOM - bytes < LONGEST as u64, "{noted} ends, {bytes} bytes");

        let (mut taken, count) = journal.take().unwrap();
        assert_eq!(taken.len(), noted);
        journal.note(end("the other file has room")).unwrap();
        let left = taken.split_off(1);
        journal.settle(count, left.clone());
        assert!(journal.has_ends());
        journal.note(end("nothing is noted")).unwrap_err();
        assert_eq!(journal.take(), Some((left, count)));
        journal.settle(count, Vec::new());
        let again = end("again");
        journal.note(again.clone()).unwrap();
        let (taken, _) = journal.take().unwrap();
        assert_eq!((taken.len(), &taken[1]), (2, &again));
    }

    #[tokio::test]
    async fn who_asks_waits_for_what_was_noted_before_and_for_nothing_after() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = open(&directory);
        journal.settled().await;
        journal.note(end("one")).unwrap();
        let (_, first) = journal.take().unwrap();
        journal.note(end("two")).unwrap();
        let writing = async {
            journal.asked().await;
            journal.settle(first, Vec::new());
            tokio::task::yield_now().await;
            let (_, second) = journal.take().unwrap();
            journal.note(end("three")).unwrap();
            // Also where it was in vain: what is asked is not kept waiting for a database that is away.
            journal.settle(second, vec![end("two")]);
        };
        tokio::join!(biased; journal.settled(), writing);
        assert!(journal.has_ends());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_not_kept_by_a_lock_that_others_hold_or_by_a_writer_that_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = open(&directory);
        journal.note(end("one")).unwrap();
        let began = tokio::time::Instant::now();
        journal.settled().await;
        assert!(began.elapsed() >= PATIENCE);
        let began = tokio::time::Instant::now();
        journal.end();
        journal.settled().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        journal.note(end("two")).unwrap_err();
        drop(journal);
        assert_eq!(open(&directory).1.len(), 1);
    }
}
