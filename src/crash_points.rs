//! Every place where the service writes, by name, so that a test can have the process die right before or
//! right after.
//!
//! A release build has nothing of it: the future comes back as it is. A build with debug assertions dies at
//! the place that `TAIBAI_CRASH_AT` names, as `Claim:before`, or `Claim:after:3` for the third time. There
//! a write to the database that has no name ends the process as well, so that none is added without one.

use std::future::Future;

macro_rules! writes {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// Something that the service changes and that outlives it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Write { $($(#[$about])* $name,)* }

        impl Write {
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

writes! {
    // Executions, by the recorder.
    Accept,
    /// A synchronous one that takes long gets a row that says `running`.
    Begin,
    /// A synchronous one ends.
    End,
    /// The end of a short one is noted beside the database's file, to be written later.
    Note,
    /// What was noted is written by the next start.
    Replay,
    Claim,
    /// An asynchronous one ends.
    Finish,
    /// One that nobody had claimed ends.
    Dismiss,

    // Executions, by engines that look after them.
    PutBack,
    TakeOver,
    Retention,
    ExecutionDelete,

    // Engines.
    EngineRegister,
    EngineRenew,
    EngineWithdraw,
    EngineRemove,

    // What the loops find.
    JobStart,
    JobSkip,
    RuntimeStatus,
    RuntimeRemove,
    ImageFound,
    ObjectChanged,
    TrustEnd,

    // What users change.
    FunctionCreate,
    FunctionUpdate,
    FunctionDelete,
    VersionCreate,
    VersionDelete,
    AliasCreate,
    AliasUpdate,
    AliasDelete,
    JobCreate,
    JobUpdate,
    JobDelete,
    WebhookCreate,
    WebhookUpdate,
    WebhookDelete,
    RuntimeCreate,
    RuntimeUpdate,
    RuntimeDelete,
    TrustCreate,

    // Packages.
    PackageKeep,
    PackageForget,

    // Containers, with their directories and control groups.
    WorkerFiles,
    ContainerCreate,
    ContainerStart,
    ContainerRemove,
    FilesRemove,

    // What supervisors are told.
    Load,
    Execute,
    Acknowledge,
    Cancel,
    Fence,
}

/// Does the one write that `doing` is.
pub fn around<F: Future>(write: Write, doing: F) -> impl Future<Output = F::Output> {
    around_all([write], doing)
}

/// Does several writes, which are one.
#[cfg(not(debug_assertions))]
pub fn around_all<F: Future>(
    _writes: impl IntoIterator<Item = Write>,
    doing: F,
) -> impl Future<Output = F::Output> {
    doing
}

#[cfg(debug_assertions)]
pub use armed::{around_all, expect_name};

/// Before a write to the database; `what` is for whoever forgot its name.
#[cfg(not(debug_assertions))]
pub fn expect_name(_what: &str) {}

#[cfg(debug_assertions)]
mod armed {
    use std::future::Future;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Write;

    tokio::task_local! {
        static NAMED: ();
    }

    struct Point {
        /// `Claim:before`
        place: String,
        times: AtomicU32,
    }

    fn point() -> Option<&'static Point> {
        static POINT: OnceLock<Option<Point>> = OnceLock::new();
        POINT
            .get_or_init(|| {
                let wanted = std::env::var("TAIBAI_CRASH_AT").ok()?;
                let mut parts = wanted.splitn(3, ':');
                let (write, moment) = (parts.next()?, parts.next()?);
                let times = parts.next().and_then(|times| times.parse().ok()).unwrap_or(1);
                Some(Point { place: format!("{write}:{moment}"), times: AtomicU32::new(times) })
            })
            .as_ref()
    }

    pub async fn around_all<F: Future>(writes: impl IntoIterator<Item = Write>, doing: F) -> F::Output {
        let Some(point) = point() else { return doing.await };
        let is_here = |writes: &[Write], moment| {
            writes.iter().any(|write| point.place == format!("{write:?}:{moment}"))
                && point.times.fetch_sub(1, Ordering::SeqCst) == 1
        };
        let writes: Vec<Write> = writes.into_iter().collect();
        if is_here(&writes, "before") {
            die(&format!("as told: {}", point.place));
        }
        let done = NAMED.scope((), doing).await;
        if is_here(&writes, "after") {
            die(&format!("as told: {}", point.place));
        }
        done
    }

    pub fn expect_name(what: &str) {
        if point().is_some() && NAMED.try_get().is_err() {
            die(&format!("a write that crash_points does not name: {what}"));
        }
    }

    /// As `kill -9` does it: nothing is flushed, closed or dropped.
    fn die(why: &str) -> ! {
        eprintln!("the process dies, {why}");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        std::process::abort();
    }
}
