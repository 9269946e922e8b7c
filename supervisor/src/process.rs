//! The ends of processes. As the first process of the container this one inherits every orphan, so
//! one place waits for all of them and tells whoever asked.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// Becomes the exit of one process.
pub type Exited = watch::Receiver<Option<Exit>>;

/// Exits that nobody had asked for yet are kept this long, in number: a slot can die before its
/// first message, with its process id, was read.
const UNCLAIMED: usize = 256;

#[derive(Clone, Default)]
pub struct Reaper {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    unclaimed: VecDeque<(i32, Exit)>,
}

impl Reaper {
    /// Starts the task that waits for children.
    pub fn start() -> Result<Self, String> {
        let mut signals =
            signal(SignalKind::child()).map_err(|error| format!("SIGCHLD cannot be handled: {error}"))?;
        let reaper = Self::default();
        let task = reaper.clone();
        tokio::task::spawn_local(async move {
            loop {
                task.reap();
                if signals.recv().await.is_none() {
                    break;
                }
            }
        });
        Ok(reaper)
    }

    pub fn watch(&self, pid: i32) -> Exited {
        self.reap();
        let mut inner = self.inner.borrow_mut();
        if let Some(at) = inner.unclaimed.iter().position(|(dead, _)| *dead == pid) {
            let exit = inner.unclaimed.remove(at).map(|(_, exit)| exit);
            return watch::channel(exit).1;
        }
        let (sender, receiver) = watch::channel(None);
        inner.watched.insert(pid, sender);
        receiver
    }

    fn reap(&self) {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            self.ended(pid, exit);
        }
    }

    fn ended(&self, pid: Pid, exit: Exit) {
        let mut inner = self.inner.borrow_mut();
        if let Some(sender) = inner.watched.remove(&pid.as_raw()) {
            sender.send_replace(Some(exit));
            return;
        }
        if inner.unclaimed.len() == UNCLAIMED {
            inner.unclaimed.pop_front();
        }
        inner.unclaimed.push_back((pid.as_raw(), exit));
    }
}

/// Waits for the end of a process.
pub async fn exit(exited: &mut Exited) -> Exit {
    loop {
        if let Some(exit) = *exited.borrow_and_update() {
            return exit;
        }
        if exited.changed().await.is_err() {
            // The reaper drops a sender only once it has sent.
            return exited.borrow().unwrap_or(Exit::Code(-1));
        }
    }
}
