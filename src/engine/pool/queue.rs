//! The calls that wait for a worker: in order for each function, in turns between projects.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Error, Lease};
use crate::engine::worker::FunctionKey;
use crate::model::ProjectId;

#[derive(Debug)]
pub(super) struct Queue {
    functions: HashMap<Arc<FunctionKey>, VecDeque<Ticket>>,
    /// Of those that wait; one that stops waiting has no past.
    projects: HashMap<ProjectId, Project>,
    turn: u64,
    last_number: u64,
    most: usize,
}

#[derive(Debug, Default)]
struct Project {
    waiting: usize,
    /// When it last got a worker, counted in such turns; 0 for never.
    turn: u64,
}

#[derive(Debug)]
pub(super) struct Ticket {
    pub number: u64,
    pub since: Instant,
    pub caller: oneshot::Sender<Result<Lease, Error>>,
}

impl Queue {
    /// `most` is how many calls may wait.
    pub fn new(most: usize) -> Self {
        Self { functions: HashMap::new(), projects: HashMap::new(), turn: 0, last_number: 0, most }
    }

    pub fn len(&self) -> usize {
        self.projects.values().map(|project| project.waiting).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.projects.is_empty()
    }

    /// Calls that wait for this function.
    pub fn count(&self, key: &FunctionKey) -> usize {
        self.functions.get(key).map_or(0, VecDeque::len)
    }

    /// Since when the first of a function's calls waits.
    pub fn since(&self, key: &FunctionKey) -> Option<Instant> {
        Some(self.functions.get(key)?.front()?.since)
    }

    /// Puts a call at the end, and returns its number and where its answer comes.
    pub fn push(
        &mut self,
        key: &Arc<FunctionKey>,
        now: Instant,
    ) -> (u64, oneshot::Receiver<Result<Lease, Error>>) {
        let (caller, answer) = oneshot::channel();
        self.last_number += 1;
        self.projects.entry(key.project.clone()).or_default().waiting += 1;
        let ticket = Ticket { number: self.last_number, since: now, caller };
        self.functions.entry(key.clone()).or_default().push_back(ticket);
        (self.last_number, answer)
    }

    /// Keeps the queue within its bound before another call is put in. One that is full takes it only
    /// in place of the latest of a project that has more in it; that one is returned.
    pub fn make_place(&mut self, key: &FunctionKey) -> Result<Option<(Arc<FunctionKey>, Ticket)>, Error> {
        if self.len() < self.most {
            return Ok(None);
        }
        let own = self.projects.get(&key.project).map_or(0, |project| project.waiting);
        let most = self.projects.iter().max_by_key(|(name, project)| (project.waiting, *name));
        let Some((project, _)) = most.filter(|(_, project)| project.waiting > own + 1) else {
            return Err(Error::Full);
        };
        let of = self.functions.iter().filter(|(other, _)| other.project == *project);
        let latest = of
            .filter_map(|(other, tickets)| Some((tickets.back()?.number, other)))
            .max_by_key(|(number, _)| *number);
        let latest = latest.map(|(_, other)| other.clone()).ok_or(Error::Full)?;
        let last = self.count(&latest) - 1;
        let ticket = self.take(&latest, last..last + 1).pop().ok_or(Error::Full)?;
        Ok(Some((latest, ticket)))
    }

    /// Takes the call out that waits longest for the function.
    pub fn pop(&mut self, key: &FunctionKey) -> Option<Ticket> {
        self.take(key, 0..1).pop()
    }

    /// Takes the calls out that stand there, as far as there are so many.
    pub fn take(&mut self, key: &FunctionKey, range: Range<usize>) -> Vec<Ticket> {
        let Some(tickets) = self.functions.get_mut(key) else { return Vec::new() };
        let waiting = tickets.len();
        let taken: Vec<Ticket> = tickets.drain(range.start.min(waiting)..range.end.min(waiting)).collect();
        if tickets.is_empty() {
            self.functions.remove(key);
        }
        if let Some(project) = self.projects.get_mut(&key.project) {
            project.waiting -= taken.len();
            if project.waiting == 0 {
                self.projects.remove(&key.project);
            }
        }
        taken
    }

    /// A caller gives up; `false` where it has its answer already.
    pub fn leave(&mut self, key: &FunctionKey, number: u64) -> bool {
        let tickets = self.functions.get(key);
        let at = tickets.and_then(|tickets| tickets.iter().position(|ticket| ticket.number == number));
        at.is_some_and(|at| !self.take(key, at..at + 1).is_empty())
    }

    /// A project got a worker: the others go first now.
    pub fn took_turn(&mut self, project: &ProjectId) {
        if let Some(project) = self.projects.get_mut(project) {
            self.turn += 1;
            project.turn = self.turn;
        }
    }

    /// Functions for whose calls `is_short` says that more is needed, by project, in the order in
    /// which they are served.
    pub fn in_turn(&self, is_short: impl Fn(&FunctionKey) -> bool) -> VecDeque<VecDeque<Arc<FunctionKey>>> {
        let mut projects: HashMap<_, Vec<(u64, &Arc<FunctionKey>)>> = HashMap::new();
        for (key, tickets) in &self.functions {
            if let Some(first) = tickets.front()
                && is_short(key)
            {
                projects.entry(&key.project).or_default().push((first.number, key));
            }
        }
        let mut order: Vec<_> = projects
            .into_iter()
            .map(|(project, mut functions)| {
                functions.sort_unstable_by_key(|(number, _)| *number);
                ((self.projects[project].turn, functions[0].0), functions)
            })
            .collect();
        order.sort_unstable_by_key(|(turn, _)| *turn);
        let keys = |functions: Vec<(u64, &Arc<FunctionKey>)>| {
            functions.into_iter().map(|(_, key)| key.clone()).collect()
        };
        order.into_iter().map(|(_, functions)| keys(functions)).collect()
    }
}
