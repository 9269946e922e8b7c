//! Runs what was accepted: pending rows in order, in turns by project, and never more at once than
//! the configuration allows. Several engines may do so over one table; a claim has one winner.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::Core;
use super::run::{self, Claimed};
use crate::db;
use crate::error::Result;
use crate::model::{ExecutionId, ProjectId, execution};
use crate::telemetry::Chain;

/// Looks without being told: another process may have accepted something.
const POLL: Duration = Duration::from_secs(1);
/// Rows that are read at a time, beside those that are in hand.
const WINDOW: usize = 64;
/// How long rows that were read stand for the table. What others claim meanwhile a claim finds out, and a
/// project that comes later waits this long for its turn.
const RECENT: Duration = Duration::from_millis(20);
/// How long an execution that found no worker is left alone.
const REST: Duration = Duration::from_secs(1);

/// What this engine does about pending rows.
#[derive(Debug, Default)]
struct InHand {
    /// Executions that wait for a worker or run, and whose they are.
    running: HashMap<ExecutionId, ProjectId>,
    /// Executions that could not be run, until when, and how often workers turned them down.
    resting: HashMap<ExecutionId, (Instant, u32)>,
}

impl InHand {
    fn by_project(&self) -> HashMap<ProjectId, usize> {
        let mut counts = HashMap::new();
        for project in self.running.values() {
            *counts.entry(project.clone()).or_default() += 1;
        }
        counts
    }
}

/// Rows that were read and for which there was no room yet, from the oldest: one that ends makes room for
/// the next of these, and the table is not read for each.
#[derive(Debug, Default)]
struct Ahead {
    rows: Vec<execution::Model>,
    read_at: Option<Instant>,
}

impl Ahead {
    fn fills(&self, room: usize) -> bool {
        self.rows.len() >= room && self.read_at.is_some_and(|at| at.elapsed() < RECENT)
    }

    async fn read(&mut self, core: &Core, known: usize) -> Result<()> {
        let window = WINDOW + known;
        let at = Instant::now();
        let mut rows = db::executions::list_pending(core.db.reader(), window as u64).await?;
        if rows.len() == window {
            // A long queue of some projects hides the others.
            let seen: HashSet<&ProjectId> = rows.iter().map(|row| &row.project_id).collect();
            let seen: Vec<ProjectId> = seen.into_iter().cloned().collect();
            let others =
                db::executions::list_pending_of_others(core.db.reader(), &seen, WINDOW as u64).await?;
            rows.extend(others);
        }
        *self = Self { rows, read_at: Some(at) };
        Ok(())
    }
}

/// Claims pending rows until the engine closes.
pub(super) async fn run(core: Arc<Core>) {
    let in_hand = Arc::new(Mutex::new(InHand::default()));
    let mut ahead = Ahead::default();
    loop {
        if let Err(error) = fill(&core, &in_hand, &mut ahead).await {
            tracing::warn!(error = %Chain(&error), "pending executions cannot be read");
        }
        tokio::select! {
            () = core.closing.cancelled() => return,
            () = core.queue.notified() => {}
            () = sleep(POLL) => {}
        }
    }
}

async fn fill(core: &Arc<Core>, in_hand: &Arc<Mutex<InHand>>, ahead: &mut Ahead) -> Result<()> {
    let most = core.engine.max_async as usize;
    let (known, room) = {
        let mut in_hand = in_hand.lock().expect("no panic while it is held");
        let now = Instant::now();
        // A little longer than they rest, so that the tries of one that is still there count.
        in_hand.resting.retain(|_, (until, _)| now < *until + REST * 60);
        (in_hand.running.len() + in_hand.resting.len(), most.saturating_sub(in_hand.running.len()))
    };
    if room == 0 {
        return Ok(());
    }
    if !ahead.fills(room) {
        ahead.read(core, known).await?;
    }
    let chosen = {
        let mut in_hand = in_hand.lock().expect("no panic while it is held");
        let now = Instant::now();
        let mut rows = std::mem::take(&mut ahead.rows);
        rows.retain(|row| {
            let rests = in_hand.resting.get(&row.id).is_some_and(|(until, _)| now < *until);
            !rests && !in_hand.running.contains_key(&row.id)
        });
        let room = most.saturating_sub(in_hand.running.len());
        let (chosen, later) = choose(rows, in_hand.by_project(), room);
        ahead.rows = later;
        for row in &chosen {
            in_hand.running.insert(row.id.clone(), row.project_id.clone());
        }
        chosen
    };
    for row in chosen {
        let span = tracing::info_span!(
            "execution",
            execution.id = %row.id,
            function.id = %row.function_id,
            function.version = row.function_version,
        );
        let (core, in_hand) = (core.clone(), in_hand.clone());
        core.clone().tasks.spawn(one(core, in_hand, row).instrument(span));
    }
    Ok(())
}

async fn one(core: Arc<Core>, in_hand: Arc<Mutex<InHand>>, row: execution::Model) {
    let id = row.id.clone();
    let tries = {
        let in_hand = in_hand.lock().expect("no panic while it is held");
        in_hand.resting.get(&id).map_or(0, |(_, tries)| *tries)
    };
    let claimed = run::claimed(&core, row, tries).await;
    {
        let mut in_hand = in_hand.lock().expect("no panic while it is held");
        in_hand.running.remove(&id);
        match claimed {
            Claimed::Done => {
                in_hand.resting.remove(&id);
            }
            Claimed::Later { turned_down } => {
                let tries = tries + u32::from(turned_down);
                in_hand.resting.insert(id, (Instant::now() + REST, tries));
            }
        }
    }
    core.queue.notify_one();
}

/// Up to `room` of the rows, which are in order of age: each time the oldest of the project that has
/// least in hand. And those that are left.
fn choose(
    rows: Vec<execution::Model>,
    mut in_hand: HashMap<ProjectId, usize>,
    room: usize,
) -> (Vec<execution::Model>, Vec<execution::Model>) {
    let mut projects: Vec<(ProjectId, std::collections::VecDeque<execution::Model>)> = Vec::new();
    for row in rows {
        match projects.iter_mut().find(|(project, _)| *project == row.project_id) {
            Some((_, of)) => of.push_back(row),
            None => projects.push((row.project_id.clone(), [row].into())),
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < room {
        let with_rows = projects.iter_mut().filter(|(_, rows)| !rows.is_empty());
        let least = with_rows.min_by_key(|(project, rows)| {
            (in_hand.get(project).copied().unwrap_or(0), rows[0].created_at, rows[0].id.clone())
        });
        let Some((project, rows)) = least else { break };
        *in_hand.entry(project.clone()).or_default() += 1;
        chosen.extend(rows.pop_front());
    }
    let mut left: Vec<_> = projects.into_iter().flat_map(|(_, rows)| rows).collect();
    left.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    (chosen, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::execution;
    use crate::model::{ExecutionStatus, Timestamp};

    fn rows(projects: &str) -> Vec<execution::Model> {
        let of = |(age, project): (usize, char)| execution::Model {
            project_id: project.to_string().into(),
            created_at: Timestamp(age as i64),
            ..execution(ExecutionStatus::Pending)
        };
        projects.chars().enumerate().map(of).collect()
    }

    fn chosen(projects: &str, in_hand: &[(&str, usize)], room: usize) -> String {
        let in_hand = in_hand.iter().map(|(project, count)| ((*project).into(), *count)).collect();
        choose(rows(projects), in_hand, room).0.into_iter().map(|row| row.project_id.0).collect()
    }

    #[test]
    fn one_project_alone_is_served_in_order() {
        let rows = rows("aaaa");
        let ids: Vec<ExecutionId> = rows.iter().map(|row| row.id.clone()).collect();
        let (chosen, left) = choose(rows, HashMap::new(), 3);
        assert!(chosen.iter().map(|row| &row.id).eq(&ids[..3]));
        assert!(left.iter().map(|row| &row.id).eq(&ids[3..]));
    }

    #[test]
    fn what_is_left_is_in_order_of_age_and_lost_to_nobody() {
        let (chosen, left) = choose(rows("abaabc"), HashMap::new(), 2);
        let ages = |rows: Vec<execution::Model>| rows.iter().map(|row| row.created_at.0).collect::<Vec<_>>();
        assert_eq!((ages(chosen), ages(left)), (vec![0, 1], vec![2, 3, 4, 5]));
    }

    #[test]
    fn what_was_read_stands_for_the_table_for_a_moment_and_while_it_is_enough() {
        let now = Instant::now();
        let fills = |rows, read_at, room| Ahead { rows, read_at }.fills(room);
        assert!(fills(rows("aab"), Some(now), 3));
        assert!(!fills(rows("aab"), Some(now), 4), "others may have come");
        assert!(!fills(Vec::new(), Some(now), 1));
        assert!(!fills(rows("aab"), now.checked_sub(RECENT), 1), "too old");
    }

    #[test]
    fn projects_take_turns_however_much_one_has_waiting() {
        assert_eq!(chosen("aaaaaab", &[], 4), "abaa");
        assert_eq!(chosen("aaabbbccc", &[], 6), "abcabc");
    }

    #[test]
    fn what_a_project_has_in_hand_counts() {
        assert_eq!(chosen("aaabb", &[("a", 2)], 3), "bba");
        assert_eq!(chosen("aaabb", &[("a", 9)], 9), "bbaaa");
        assert_eq!(chosen("aa", &[], 0), "");
    }
}
