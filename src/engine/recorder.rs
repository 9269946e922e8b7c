//! Writes executions: rows, counters, results and logs, grouped into transactions.
//!
//! One task writes. Whatever waits when it is free goes into one transaction, so the more there is
//! to write the cheaper each becomes, and a lone end is written at once. The start of a synchronous
//! execution is handed over and not awaited: it lingers for a moment, so that a short call becomes
//! one insert of a finished row, and a long one gets a row that says `running`. Where the database has
//! a [journal](crate::db::journal), the end of such a short call is noted there, which is all that its
//! caller waits for.
//!
//! The channel is bounded. Where the database is slower than what is asked of it, callers wait for a
//! place in it: executions then take longer, and nothing piles up in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use crate::crash_points::{self, Write, around};
use crate::db::executions::Moved;
use crate::db::journal::{End, Journal};
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::{
    EngineId, ExecutionId, ExecutionStatus, Outcome, ProjectId, Scope, Timestamp, WorkerName, execution,
    execution_log,
};
use crate::quota::{Excess, Queue, Resource};
use crate::telemetry::Chain;

mod starts;

use starts::Starts;

/// How long a start waits for its end, so that both become one insert.
const LINGER: Duration = Duration::from_millis(20);
/// Between two looks at starts that linger.
const LOOK: Duration = Duration::from_millis(10);
/// Most messages of one transaction.
const BATCH: usize = 256;
/// Until noted ends that could not be written are tried again.
const REFUSED: Duration = Duration::from_millis(500);
/// Noted ends of one transaction. All its statements are kept prepared, which takes memory for each size.
const GROUP: usize = 8;
/// Messages that wait for the writer.
const BACKLOG: usize = 1024;
/// Pauses before a row that could not be written is tried again, where trying may help.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(2)];

type Reply<T> = oneshot::Sender<db::Result<T>>;

/// The sending end; clones share the writer, which ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct Recorder {
    db: Db,
    messages: mpsc::Sender<Message>,
    starts: Arc<Starts>,
}

#[derive(Debug)]
enum Message {
    Write(Item),
    /// How it is written depends on whether its start was.
    End {
        row: Box<execution::Model>,
        outcome: Box<Outcome>,
        reply: Reply<bool>,
    },
}

/// Whether an execution was accepted, or why its project may have no more.
type Accepted = Result<(), Excess>;

/// Takes an execution for an engine and a worker.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: ExecutionId,
    /// As the row that was read says.
    pub epoch_from: i64,
    pub engine: EngineId,
    pub worker: WorkerName,
    /// When it must have ended at the latest.
    pub deadline: Timestamp,
}

impl Recorder {
    /// Starts the writer. The task ends once every clone is dropped and all is written.
    pub fn start(db: Db) -> (Self, impl Future<Output = ()> + Send) {
        let (messages, receiver) = mpsc::channel(BACKLOG);
        let starts = Arc::<Starts>::default();
        let writer = Writer::new(db.behind_journal(), starts.clone());
        (Self { db, messages, starts }, writer.run(receiver))
    }

    /// Commits an execution that is to be run later, if its project may have another; without a queue it
    /// may.
    pub async fn accept(&self, row: execution::Model, queue: Option<Queue>) -> Result<()> {
        let row = Box::new(row);
        let item = |reply| Item::Insert { row, log: None, queue, reply: Inserted::Accepted(reply) };
        Ok(self.ask(|reply| Message::Write(item(reply))).await??)
    }

    /// Hands over that a synchronous execution starts. Not durable when this returns.
    pub fn begin(&self, row: execution::Model) {
        // Without a writer the end will tell.
        self.starts.add(row);
    }

    /// Takes an execution; `None` where somebody else was first. Returns the epoch to end it with.
    pub async fn claim(&self, claim: Claim) -> Result<Option<i64>> {
        self.ask(|reply| Message::Write(Item::Claim { claim, reply })).await
    }

    /// Writes the end of a synchronous execution, and the row if there is none yet. `false` where
    /// others have ended it.
    pub async fn end(&self, row: execution::Model, outcome: Outcome) -> Result<bool> {
        if !self.starts.forget(&row.id) {
            let (row, outcome) = (Box::new(row), Box::new(outcome));
            return self.ask(|reply| Message::End { row, outcome, reply }).await;
        }
        // It has no row, so that nobody else can have ended it.
        let (row, log) = ended(Box::new(row), outcome);
        match self.note(End::Whole { row, log }).await {
            Err(End::Whole { row, log }) => {
                self.ask(|reply| Message::Write(Item::end(row, log, reply))).await
            }
            _ => Ok(true),
        }
    }

    /// Writes the end of an execution that runs under `epoch`; `false` where it no longer does.
    ///
    /// With a journal it is noted, and the row decides later: `true` then says that this end will be known.
    pub async fn finish(&self, id: ExecutionId, epoch: i64, outcome: Outcome) -> Result<bool> {
        let outcome = Box::new(outcome);
        match self.note(End::Running { id, epoch, outcome }).await {
            Err(End::Running { id, epoch, outcome }) => {
                self.ask(|reply| Message::Write(Item::Finish { id, epoch, outcome, reply })).await
            }
            _ => Ok(true),
        }
    }

    /// Notes an end, or gives it back to be committed.
    async fn note(&self, end: End) -> Result<(), End> {
        let Some(journal) = self.db.journal() else { return Err(end) };
        let is_first = around(Write::Note, async { journal.note(end) }).await?;
        if is_first {
            self.starts.begun.notify_one();
        }
        Ok(())
    }

    /// Ends an execution that nobody has claimed; `false` where somebody has.
    pub async fn dismiss(&self, id: ExecutionId, outcome: Outcome) -> Result<bool> {
        let outcome = Box::new(outcome);
        self.ask(|reply| Message::Write(Item::Dismiss { id, outcome, reply })).await
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T> {
        let gone = || Error::Unavailable { what: "The recorder", source: "its task has ended".into() };
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

/// One thing to write and who waits for it.
#[derive(Debug)]
enum Item {
    /// A new row: pending, running, or ended with its log.
    Insert {
        row: Box<execution::Model>,
        log: Option<execution_log::Model>,
        queue: Option<Queue>,
        reply: Inserted,
    },
    Claim {
        claim: Claim,
        reply: Reply<Option<i64>>,
    },
    Finish {
        id: ExecutionId,
        epoch: i64,
        outcome: Box<Outcome>,
        reply: Reply<bool>,
    },
    Dismiss {
        id: ExecutionId,
        outcome: Box<Outcome>,
        reply: Reply<bool>,
    },
}

impl Item {
    fn end(row: Box<execution::Model>, log: execution_log::Model, reply: Reply<bool>) -> Self {
        Self::Insert { row, log: Some(log), queue: None, reply: Inserted::Ended(reply) }
    }

    fn write(&self) -> Write {
        match self {
            Self::Insert { reply: Inserted::Accepted(_), .. } => Write::Accept,
            Self::Insert { reply: Inserted::Begun, .. } => Write::Begin,
            Self::Insert { reply: Inserted::Ended(_), .. } => Write::End,
            Self::Claim { .. } => Write::Claim,
            Self::Finish { .. } => Write::Finish,
            Self::Dismiss { .. } => Write::Dismiss,
        }
    }
}

#[derive(Debug)]
enum Inserted {
    Accepted(Reply<Accepted>),
    Ended(Reply<bool>),
    /// A row that says `running`; nobody waits.
    Begun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Inserted,
    /// Not inserted: its project may have no more.
    OverQuota(Excess),
    Claimed(Option<i64>),
    Ended(bool),
}

struct Writer {
    db: Db,
    starts: Arc<Starts>,
    /// When to look at them; `None` where there are none.
    look: Option<Instant>,
    /// Synchronous executions that have a row which says `running`.
    begun: HashSet<ExecutionId>,
    /// When the database last took no noted ends, as long as it does not.
    refused: Option<Instant>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(journal) = self.db.journal() {
            journal.end();
        }
    }
}

impl Writer {
    fn new(db: Db, starts: Arc<Starts>) -> Self {
        Self { db, starts, look: None, begun: HashSet::new(), refused: None }
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut open = true;
        // The last clone may be dropped right after a start, or a noted end.
        while open || self.has_more() {
            let mut batch = Vec::new();
            let starts = self.starts.clone();
            let look = async {
                match self.look {
                    Some(look) => sleep_until(look).await,
                    None => starts.begun.notified().await,
                }
            };
            tokio::select! {
                received = messages.recv_many(&mut batch, BATCH), if open => open = received > 0,
                () = look => {}
                () = asked(self.db.journal()) => {}
            }
            let mut items = self.sort(batch);
            items.extend(self.due());
            self.write(items).await;
            self.write_noted().await;
        }
    }

    /// Whether something is to be written that comes with no message.
    fn has_more(&self) -> bool {
        self.starts.is_watched() || self.db.journal().is_some_and(Journal::has_ends)
    }

    /// What is to be written now.
    fn sort(&mut self, batch: Vec<Message>) -> Vec<Item> {
        let mut items = Vec::with_capacity(batch.len());
        for message in batch {
            match message {
                Message::Write(item) => items.push(item),
                Message::End { row, outcome, reply } if self.begun.remove(&row.id) => {
                    let (id, epoch) = (row.id, row.epoch);
                    items.push(Item::Finish { id, epoch, outcome, reply });
                }
                Message::End { row, outcome, reply } => {
                    let (row, log) = ended(row, *outcome);
                    items.push(Item::end(row, log, reply));
                }
            }
        }
        items
    }

    /// Starts that are to be written now, where it is time to look.
    fn due(&mut self) -> Vec<Item> {
        let now = Instant::now();
        match self.look {
            Some(look) if look > now => return Vec::new(),
            Some(_) => {}
            None => {
                // The first of them is to linger as well.
                self.look = self.has_more().then(|| now + LINGER);
                return Vec::new();
            }
        }
        let due = self.starts.take_due(now);
        // What is in the journal by now is written in any case; what comes later says so.
        self.look = self.starts.is_watched().then(|| now + LOOK);
        let item = |row| {
            let row = Box::new(row);
            Item::Insert { row, log: None, queue: None, reply: Inserted::Begun }
        };
        due.into_iter().map(item).collect()
    }

    /// Writes the ends that are in the journal.
    async fn write_noted(&mut self) {
        let db = self.db.clone();
        let Some(journal) = db.journal() else { return };
        if self.refused.is_some_and(|at| at.elapsed() < REFUSED) {
            return;
        }
        let Some((ends, count)) = journal.take() else { return };
        let (whole, running): (Vec<End>, Vec<End>) =
            ends.into_iter().partition(|end| matches!(end, End::Whole { .. }));
        let mut left = Vec::new();
        // Apart, so that the text of a group is one of few.
        for ends in [whole, running] {
            let mut ends = ends.into_iter();
            while left.is_empty() && ends.len() > 0 {
                let group = ends.by_ref().take(GROUP).collect();
                left = write_ends(&db, journal, group).await;
            }
            left.extend(ends);
        }
        self.refused = (!left.is_empty()).then(Instant::now);
        journal.settle(count, left);
    }

    async fn write(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        match write_again(&self.db, &items).await {
            Ok(done) => {
                for (item, done) in items.into_iter().zip(done) {
                    self.answer(item, Ok(done));
                }
            }
            Err(error @ db::Error::Unavailable(_)) => {
                tracing::warn!(items = items.len(), error = %Chain(&error), "a group of writes failed");
                for item in items {
                    self.answer(item, Err(error.clone()));
                }
            }
            Err(error) => {
                tracing::warn!(items = items.len(), error = %Chain(&error), "a group of writes failed; each is tried by itself");
                for item in items {
                    let done = write_again(&self.db, std::slice::from_ref(&item)).await;
                    self.answer(item, done.map(|done| done[0]));
                }
            }
        }
    }

    fn answer(&mut self, item: Item, done: db::Result<Done>) {
        // Where the caller went away, what was written stays written.
        match (item, done) {
            (Item::Insert { row, reply: Inserted::Begun, .. }, Ok(_)) => {
                self.begun.insert(row.id);
            }
            (Item::Insert { row, reply: Inserted::Begun, .. }, Err(error)) => {
                tracing::warn!(execution.id = %row.id, error = %Chain(&error), "a start could not be written; its end will be");
            }
            (Item::Insert { reply: Inserted::Accepted(reply), .. }, done) => {
                let _ = reply.send(done.map(|done| match done {
                    Done::OverQuota(excess) => Err(excess),
                    _ => Ok(()),
                }));
            }
            (Item::Insert { reply: Inserted::Ended(reply), .. }, done) => {
                let _ = reply.send(done.map(|_| true));
            }
            (Item::Claim { reply, .. }, done) => {
                let _ = reply.send(done.map(|done| match done {
                    Done::Claimed(epoch) => epoch,
                    Done::Inserted | Done::OverQuota(_) | Done::Ended(_) => None,
                }));
            }
            (Item::Finish { reply, .. } | Item::Dismiss { reply, .. }, done) => {
                let _ = reply.send(done.map(|done| matches!(done, Done::Ended(true))));
            }
        }
    }
}

/// Returns once somebody waits for what is in the journal.
async fn asked(journal: Option<&Journal>) {
    match journal {
        Some(journal) => journal.asked().await,
        None => std::future::pending().await,
    }
}

/// A row as it is once its execution has ended.
fn ended(
    mut row: Box<execution::Model>,
    mut outcome: Outcome,
) -> (Box<execution::Model>, execution_log::Model) {
    let log = execution_log::Model {
        execution_id: row.id.clone(),
        log: std::mem::take(&mut outcome.log),
        truncated: outcome.log_truncated,
    };
    *row = row.ended(outcome);
    (row, log)
}

/// Writes ends that were noted. Returns those for which the database is to be asked again.
async fn write_ends(db: &Db, journal: &Journal, ends: Vec<End>) -> Vec<End> {
    let write = |end: &End| match end {
        End::Whole { .. } => Write::End,
        End::Running { .. } => Write::Finish,
    };
    let writing = db.commit_all(db::executions::ends(db.backend(), &ends));
    let Err(error) = crash_points::around_all(ends.iter().map(write), writing).await else {
        return Vec::new();
    };
    tracing::warn!(items = ends.len(), error = %Chain(&error), "noted ends cannot be written yet");
    if matches!(error, db::Error::Unavailable(_)) {
        return ends;
    }
    let mut left = Vec::new();
    for end in ends {
        match db::executions::write_again(db, vec![end.clone()]).await {
            Ok(()) => {}
            Err(db::Error::Unavailable(_)) => left.push(end),
            Err(error) => {
                tracing::error!(execution.id = %end.id(), error = %Chain(&error), "the database refuses an end");
                journal.set_aside(&end);
            }
        }
    }
    left
}

/// Writes all items or none. Again, where the database may come back meanwhile, or took the
/// transaction for one side of a deadlock.
async fn write_again(db: &Db, items: &[Item]) -> db::Result<Vec<Done>> {
    let mut pauses = RETRIES.into_iter();
    let mut in_doubt = false;
    loop {
        let done = match write_all(db, items).await {
            done if in_doubt => resolve(db, items, done).await,
            done => done,
        };
        match (done, pauses.next()) {
            // The connection may have been lost after the commit and before its answer.
            (Err(db::Error::Unavailable(_)), Some(pause)) => {
                in_doubt = true;
                sleep(pause).await;
            }
            (done, _) => return done,
        }
    }
}

/// What came of writing items that may have been written before: the first time is the one that
/// counts, and the second finds its traces.
async fn resolve(db: &Db, items: &[Item], done: db::Result<Vec<Done>>) -> db::Result<Vec<Done>> {
    let mut done = match done {
        Ok(done) => done,
        Err(error @ db::Error::Duplicate { .. }) => {
            for item in items {
                // One that a quota stands before may have been refused.
                if let Item::Insert { row, queue: None, .. } = item
                    && find(db, &row.id).await?.is_none()
                {
                    return Err(error);
                }
            }
            let first = |item: &Item| match item {
                Item::Insert { queue: Some(queue), .. } => Done::OverQuota(queue.full()),
                Item::Insert { queue: None, .. } => Done::Inserted,
                Item::Claim { .. } => Done::Claimed(None),
                Item::Finish { .. } | Item::Dismiss { .. } => Done::Ended(false),
            };
            items.iter().map(first).collect()
        }
        Err(error) => return Err(error),
    };
    for (item, done) in items.iter().zip(&mut done) {
        match (item, &done) {
            (Item::Insert { row, .. }, Done::OverQuota(_)) if find(db, &row.id).await?.is_some() => {
                *done = Done::Inserted;
            }
            (Item::Claim { claim, .. }, Done::Claimed(None)) => {
                let epoch = claim.epoch_from + 1;
                let ours = find(db, &claim.id).await?.is_some_and(|row| {
                    row.engine_id.as_ref() == Some(&claim.engine)
                        && row.worker.as_ref() == Some(&claim.worker)
                        && (row.status, row.epoch) == (ExecutionStatus::Running, epoch)
                });
                *done = Done::Claimed(ours.then_some(epoch));
            }
            (Item::Finish { id, outcome, .. } | Item::Dismiss { id, outcome, .. }, Done::Ended(false)) => {
                let row = find(db, id).await?;
                let ours = |row: &execution::Model| {
                    row.status == outcome.status && row.result.as_ref() == Some(&outcome.result)
                };
                *done = Done::Ended(row.as_ref().is_some_and(ours));
            }
            _ => {}
        }
    }
    Ok(done)
}

async fn find(db: &Db, id: &ExecutionId) -> db::Result<Option<execution::Model>> {
    db::executions::find(db.reader(), id, &Scope::All).await
}

/// Which of the rows that are to be accepted their projects may not have. Before anything else is locked,
/// and project by project in one order, as everybody does who counts.
async fn over_quota(tx: &db::Transaction, items: &[Item]) -> db::Result<Vec<Option<Excess>>> {
    let mut over = vec![None; items.len()];
    let mut of_projects: BTreeMap<&ProjectId, Vec<(usize, &Queue)>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Item::Insert { row, queue: Some(queue), .. } = item {
            of_projects.entry(&row.project_id).or_default().push((at, queue));
        }
    }
    for (project, wanted) in of_projects {
        db::quotas::hold(tx, project).await?;
        let mut queued = db::quotas::used(tx, project, Resource::ConcurrentExecutions).await?;
        for (at, queue) in wanted {
            match queue.check(queued) {
                Ok(()) => queued += 1,
                Err(excess) => over[at] = Some(excess),
            }
            queue.note(queued);
        }
    }
    Ok(over)
}

/// What writes the new rows among the items, with their logs and counters.
fn additions<'a>(db: &Db, items: impl Iterator<Item = &'a Item>) -> Vec<db::Statement> {
    let (mut rows, mut logs) = (Vec::new(), Vec::new());
    for item in items {
        if let Item::Insert { row, log, .. } = item {
            rows.push((**row).clone());
            logs.extend(log.clone());
        }
    }
    db::executions::additions(db.backend(), rows, logs)
}

/// All items in one transaction, in an order that holds: new rows, what refers to them, the rest.
async fn write_all(db: &Db, items: &[Item]) -> db::Result<Vec<Done>> {
    if items.iter().all(|item| matches!(item, Item::Insert { queue: None, .. })) {
        // Nothing is looked at between the statements: they go to the database as one.
        let writing = db.commit_all(additions(db, items.iter()));
        crash_points::around_all(items.iter().map(Item::write), writing).await?;
        return Ok(vec![Done::Inserted; items.len()]);
    }
    let is_counted = items.iter().any(|item| matches!(item, Item::Insert { queue: Some(_), .. }));
    if db.is_file() && !is_counted {
        return write_as_one(db, items).await;
    }
    let tx = db.begin().await?;
    let over = over_quota(&tx, items).await?;
    let accepted = items.iter().zip(&over).filter(|(_, over)| over.is_none());
    tx.run(additions(db, accepted.map(|(item, _)| item))).await?;
    let mut done = Vec::with_capacity(items.len());
    for (item, over) in items.iter().zip(over) {
        done.push(match item {
            Item::Insert { .. } => over.map_or(Done::Inserted, Done::OverQuota),
            Item::Claim { claim, .. } => {
                let Claim { id, epoch_from, engine, worker, deadline } = claim;
                let claimed = db::executions::claim(&tx, id, *epoch_from, engine, worker, *deadline).await?;
                Done::Claimed(claimed)
            }
            Item::Finish { id, epoch, outcome, .. } => {
                Done::Ended(db::executions::finish(&tx, id, *epoch, outcome).await?)
            }
            Item::Dismiss { id, outcome, .. } => {
                Done::Ended(db::executions::finish_unowned(&tx, id, outcome).await?)
            }
        });
    }
    crash_points::around_all(items.iter().map(Item::write), tx.commit()).await?;
    Ok(done)
}

/// As [`write_all`], with all of it one question to the database, which says what it found.
async fn write_as_one(db: &Db, items: &[Item]) -> db::Result<Vec<Done>> {
    use db::executions::{claiming, dismissing, finishing};
    let backend = db.backend();
    let mut statements = additions(db, items.iter());
    // Kind by kind: groups of as many of each are then one text, which is kept prepared.
    statements.extend(items.iter().filter_map(|item| match item {
        Item::Claim { claim, .. } => {
            let Claim { id, epoch_from, engine, worker, deadline } = claim;
            Some(claiming(backend, id, *epoch_from, engine, worker, *deadline))
        }
        _ => None,
    }));
    for item in items {
        if let Item::Finish { id, epoch, outcome, .. } = item {
            statements.extend(finishing(backend, id, *epoch, outcome));
        }
    }
    for item in items {
        if let Item::Dismiss { id, outcome, .. } = item {
            statements.extend(dismissing(backend, id, outcome));
        }
    }
    let writing = db.commit_returning(statements);
    let returned = crash_points::around_all(items.iter().map(Item::write), writing).await?;
    let mut moved = Moved::new(returned);
    let done = items.iter().map(|item| match item {
        Item::Insert { .. } => Done::Inserted,
        Item::Claim { claim, .. } => {
            let epoch = claim.epoch_from + 1;
            let is_ours = moved.take(&claim.id, ExecutionStatus::Running, Some(epoch));
            Done::Claimed(is_ours.then_some(epoch))
        }
        Item::Finish { id, epoch, outcome, .. } => Done::Ended(moved.take(id, outcome.status, Some(*epoch))),
        Item::Dismiss { id, outcome, .. } => Done::Ended(moved.take(id, outcome.status, None)),
    });
    Ok(done.collect())
}

#[cfg(test)]
mod tests;
