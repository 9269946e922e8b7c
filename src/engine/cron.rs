//! Starts jobs when their time has come. Woken by the next instant, by a timer or by a nudge, it reads
//! what is due and may run anywhere and twice: that an instant is dealt with and that its execution
//! exists is one commit, which names the instant that was seen.
//!
//! An instant at which the function cannot be run is let go, and the job says why. A job that runs a
//! single time has no other instant: it waits for the function as long as `[jobs] grace`, and is
//! cancelled where the function, its version or its alias is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{Instant, sleep};

use super::Core;
use super::gateway::{NewExecution, Quota};
use super::run;
use super::target::{Reference, Target};
use crate::config::{self, Missed};
use crate::crash_points::{Write, around};
use crate::db::jobs::Step;
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::{ExecutionId, Input, JobId, JobStatus, Schedule, Scope, Timestamp, execution, job};
use crate::quota::{Quotas, Resource};
use crate::telemetry::Chain;

/// Looks without being told: another process may have made a job, and clocks are set.
const POLL: Duration = Duration::from_secs(1);
/// Jobs that are read at a time, beside those that rest.
const WINDOW: usize = 64;
/// Jobs that are dealt with at the same time: a slow one holds up none but its own share.
const AT_ONCE: usize = 4;
/// How long a job is left alone that could not be dealt with, and stays due.
const REST: Duration = Duration::from_secs(1);

/// Jobs that stay due, until when.
type Resting = HashMap<JobId, Instant>;

/// Starts what is due until the engine closes.
pub(super) async fn run(core: Arc<Core>) {
    if !core.jobs.enabled {
        return;
    }
    let mut resting = Resting::new();
    loop {
        let pause = match look(&core, &mut resting).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "due jobs cannot be read");
                POLL
            }
        };
        tokio::select! {
            () = core.closing.cancelled() => return,
            () = core.cron.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Deals with what is due, and says how long nothing else will be.
async fn look(core: &Arc<Core>, resting: &mut Resting) -> Result<Duration> {
    resting.retain(|_, until| Instant::now() < *until);
    let now = Timestamp::now();
    let window = WINDOW + resting.len();
    let mut due = db::jobs::list_due(core.db.reader(), now, window as u64).await?;
    let is_full = due.len() == window;
    due.retain(|job| !resting.contains_key(&job.id));
    let dealt = stream::iter(due).map(|job| deal(core, job)).buffer_unordered(AT_ONCE);
    resting.extend(dealt.filter_map(async |rests| rests).collect::<Vec<_>>().await);
    if is_full {
        return Ok(Duration::ZERO);
    }
    let next = db::jobs::next_instant(core.db.reader(), now).await?;
    Ok(next.map_or(POLL, |next| until(next, Timestamp::now()).min(POLL)))
}

fn until(next: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(next.0 - now.0).unwrap_or(0))
}

/// Deals with one job in a task of its own, so that a fault in it is no other's. Gives the job where
/// it stays due.
async fn deal(core: &Arc<Core>, job: job::Model) -> Option<(JobId, Instant)> {
    let id = job.id.clone();
    let (db, config, engine) = (core.db.clone(), core.jobs.clone(), core.engine.clone());
    let quotas = core.quotas.clone();
    let firing =
        core.tasks.spawn(async move { fire(&db, &config, &engine, &quotas, &job, Timestamp::now()).await });
    match firing.await {
        Ok(Ok(Fired::Started)) => {
            core.queue.notify_one();
            return None;
        }
        Ok(Ok(Fired::MovedOn | Fired::ByOthers)) => return None,
        Ok(Ok(Fired::Waits)) => {}
        Ok(Err(error)) => {
            tracing::warn!(job.id = %id, error = %Chain(&error), "a job cannot be started yet");
        }
        Err(error) => tracing::error!(job.id = %id, %error, "starting a job failed"),
    }
    Some((id, Instant::now() + REST))
}

/// What became of a job that was due.
#[derive(Debug, PartialEq, Eq)]
enum Fired {
    /// Its execution is committed.
    Started,
    /// It has another instant or none, and nothing was started.
    MovedOn,
    /// Another engine was first, or the job was changed meanwhile.
    ByOthers,
    /// It is due still.
    Waits,
}

/// Moves a due job on, and accepts its execution in the same commit. An error leaves it as it was.
async fn fire(
    db: &Db,
    config: &config::Jobs,
    engine: &config::Engine,
    quotas: &Quotas,
    job: &job::Model,
    now: Timestamp,
) -> Result<Fired> {
    let plan = plan(config, job, now);
    let step = match plan {
        Plan::Run(step) => step,
        Plan::Leave(step) => return move_on(db, job, &step).await,
    };
    let target = match resolve(db, job).await {
        Ok(target) => target,
        Err(refusal) => {
            let (gone, why) = match refusal {
                Error::NotFound { .. } | Error::NotSupported(_) | Error::Invalid(_) => (true, refusal),
                trouble @ Error::Unavailable { .. } => return Err(trouble),
                _ => (false, refusal),
            };
            return match let_go(config, job, &step, now, gone, &why.to_string()) {
                Some(step) => move_on(db, job, &step).await,
                None => Ok(Fired::Waits),
            };
        }
    };
    let row = new_row(job, target, engine);
    let queue = quotas.queue(&job.project_id).await;
    let tx = db.begin().await?;
    if let Some(queue) = queue {
        db::quotas::hold(&tx, &job.project_id).await?;
        let queued = db::quotas::used(&tx, &job.project_id, Resource::ConcurrentExecutions).await?;
        queue.note(queued + 1);
        if let Err(excess) = queue.check(queued) {
            tx.rollback().await?;
            return match let_go(config, job, &step, now, false, &Error::from(excess).to_string()) {
                Some(step) => move_on(db, job, &step).await,
                None => Ok(Fired::Waits),
            };
        }
    }
    if !db::jobs::advance(&tx, job, &step).await? {
        return Ok(Fired::ByOthers);
    }
    db::executions::insert(&tx, row.clone()).await?;
    match row.function_version {
        0 => db::functions::increment_count(&tx, &row.function_id, 1).await?,
        number => db::versions::increment_count(&tx, &row.function_id, number, 1).await?,
    }
    around(Write::JobStart, tx.commit()).await?;
    tracing::info!(job.id = %job.id, execution.id = %row.id, at = %job.next_execution_time, "a job was started");
    Ok(Fired::Started)
}

async fn move_on(db: &Db, job: &job::Model, step: &Step) -> Result<Fired> {
    if !around(Write::JobSkip, db::jobs::advance(&db.writer(), job, step)).await? {
        return Ok(Fired::ByOthers);
    }
    let why = step.reason.as_deref().unwrap_or_default();
    tracing::info!(job.id = %job.id, at = %job.next_execution_time, why, "an instant of a job is let go");
    Ok(Fired::MovedOn)
}

/// What the job means at this moment. An alias means something in the job's project only; who may name
/// another project's function was decided when the job was made.
async fn resolve(db: &Db, job: &job::Model) -> Result<Target> {
    let reference = Reference {
        function_id: job.function_id.clone(),
        version: job.function_version.unwrap_or(0),
        alias: job.function_alias.clone(),
    };
    let scope = match reference.alias {
        Some(_) => Scope::Project(job.project_id.clone()),
        None => Scope::All,
    };
    let target = reference.resolve(db, &job.project_id, &scope).await?;
    target.check_runnable(db).await?;
    Ok(target)
}

fn new_row(job: &job::Model, target: Target, engine: &config::Engine) -> execution::Model {
    let new = NewExecution {
        id: ExecutionId::next(),
        target,
        project_id: job.project_id.clone(),
        alias: job.function_alias.clone(),
        // Users find a job's executions by it.
        description: Some(format!("Created by Job {}", job.id)),
        sync: false,
        input: Input::from_text(job.function_input.as_deref()),
        request_id: None,
        // In the transaction that accepts it.
        quota: Quota::Uncounted,
    };
    run::new_row(&new, engine)
}

/// What is to be done about a job that is due.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Run(Step),
    /// Nothing is run.
    Leave(Step),
}

fn plan(config: &config::Jobs, job: &job::Model, now: Timestamp) -> Plan {
    let at = job.next_execution_time;
    let ended = |status, reason| Step { status, next: at, count: job.count, reason: Some(reason) };
    let missed = at < now.before(config.grace);
    let skipped = missed && config.missed == Missed::Skip;
    let Some(pattern) = &job.pattern else {
        if skipped {
            return Plan::Leave(ended(JobStatus::Cancelled, format!("The instant {at} was missed.")));
        }
        return Plan::Run(Step { status: JobStatus::Done, next: at, count: Some(0), reason: None });
    };
    // Checked when the job was made; one that came another way is no reason to look at it for ever.
    let Some(schedule) = Schedule::parse(pattern) else {
        let reason = format!("The specified pattern is not valid: {pattern}");
        return Plan::Leave(ended(JobStatus::Cancelled, reason));
    };
    let from = if missed && config.missed != Missed::All { now } else { at };
    let next = schedule.next_after(from);
    if skipped {
        let reason = Some(format!("The instant {at} was missed."));
        let status = if next.is_some() { JobStatus::Running } else { JobStatus::Done };
        return Plan::Leave(Step { status, next: next.unwrap_or(at), count: job.count, reason });
    }
    let count = job.count.map(|count| (count - 1).max(0));
    Plan::Run(match next {
        Some(next) if count != Some(0) => Step { status: JobStatus::Running, next, count, reason: None },
        _ => Step { status: JobStatus::Done, next: at, count, reason: None },
    })
}

/// How a job goes on whose function cannot be run, where `step` is what would have followed the run.
/// An instant that ran nothing takes nothing off the count. `None` where it is to be tried again.
fn let_go(
    config: &config::Jobs,
    job: &job::Model,
    step: &Step,
    now: Timestamp,
    gone: bool,
    why: &str,
) -> Option<Step> {
    let at = job.next_execution_time;
    let ran_nothing = |status, next| {
        let reason = Some(format!("Nothing was run at {at}: {why}"));
        Some(Step { status, next, count: job.count, reason })
    };
    let Some(pattern) = &job.pattern else {
        let waits = !gone && at >= now.before(config.grace);
        return if waits { None } else { ran_nothing(JobStatus::Cancelled, at) };
    };
    // The last of the count is not run yet, so that there is another instant for it.
    let next = match step.status {
        JobStatus::Running => Some(step.next),
        _ => Schedule::parse(pattern).and_then(|schedule| schedule.next_after(now.max(at))),
    };
    match next {
        Some(next) => ran_nothing(JobStatus::Running, next),
        None => ran_nothing(JobStatus::Cancelled, at),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sea_orm::{EntityTrait, IntoActiveModel};

    use super::*;
    use crate::db::executions::Filters;
    use crate::db::testing::{self, TestDb, database, project};
    use crate::model::{FunctionId, RuntimeStatus, alias, function, runtime};

    const SECOND: i64 = 1_000_000;

    fn at(text: &str) -> Timestamp {
        Timestamp::read(text).unwrap()
    }

    fn config(missed: Missed) -> config::Jobs {
        config::Jobs { missed, ..config::Jobs::default() }
    }

    /// Due at noon.
    fn job_of(pattern: Option<&str>, count: Option<i32>) -> job::Model {
        job::Model {
            pattern: pattern.map(str::to_owned),
            count,
            status_reason: None,
            next_execution_time: at("2026-01-01 12:00:00"),
            function_alias: None,
            ..testing::job(&FunctionId::random(), JobStatus::Running)
        }
    }

    fn step(status: JobStatus, next: &str, count: Option<i32>) -> Step {
        Step { status, next: at(next), count, reason: None }
    }

    #[test]
    fn an_instant_is_run_and_the_next_one_follows() {
        let now = at("2026-01-01 12:00:00.5");
        let noon = "2026-01-01 12:00:00";
        let five_past = "2026-01-01 12:05:00";
        use JobStatus::{Done, Running};
        for (pattern, count, status, next, left) in [
            (None, Some(1), Done, noon, Some(0)),
            (Some("*/5 * * * *"), None, Running, five_past, None),
            (Some("*/5 * * * *"), Some(3), Running, five_past, Some(2)),
            (Some("*/5 * * * *"), Some(1), Done, noon, Some(0)),
            // As Qinling has it, once.
            (Some("*/5 * * * *"), Some(0), Done, noon, Some(0)),
        ] {
            let job = job_of(pattern, count);
            for missed in [Missed::Once, Missed::Skip, Missed::All] {
                let planned = plan(&config(missed), &job, now);
                assert_eq!(planned, Plan::Run(step(status, next, left)), "{pattern:?} {count:?}");
            }
        }
    }

    #[test]
    fn what_was_missed_follows_the_policy() {
        let job = job_of(Some("*/5 * * * *"), Some(9));
        let planned = |missed, now| plan(&config(missed), &job, at(now));
        let (late, later) = ("2026-01-01 12:00:59", "2026-01-01 13:02:00");
        let running = |next, count| step(JobStatus::Running, next, Some(count));
        for missed in [Missed::Once, Missed::Skip, Missed::All] {
            assert_eq!(planned(missed, late), Plan::Run(running("2026-01-01 12:05:00", 8)));
        }
        assert_eq!(planned(Missed::Once, later), Plan::Run(running("2026-01-01 13:05:00", 8)));
        assert_eq!(planned(Missed::All, later), Plan::Run(running("2026-01-01 12:05:00", 8)));
        let skipped = Step {
            reason: Some("The instant 2026-01-01T12:00:00Z was missed.".into()),
            ..running("2026-01-01 13:05:00", 9)
        };
        assert_eq!(planned(Missed::Skip, later), Plan::Leave(skipped));

        let once = job_of(None, Some(1));
        let done = step(JobStatus::Done, "2026-01-01 12:00:00", Some(0));
        assert_eq!(plan(&config(Missed::Once), &once, at(later)), Plan::Run(done));
        let Plan::Leave(left) = plan(&config(Missed::Skip), &once, at(later)) else { panic!("it ran") };
        assert_eq!((left.status, left.count), (JobStatus::Cancelled, Some(1)));
    }

    #[test]
    fn a_function_that_cannot_be_run_costs_an_instant_and_no_count() {
        let soon = at("2026-01-01 12:00:01");
        let late = at("2026-01-01 12:01:01");
        let go = |job: &job::Model, now, gone| {
            let config = config(Missed::Once);
            let Plan::Run(step) = plan(&config, job, now) else { panic!("nothing to run") };
            let_go(&config, job, &step, now, gone, "No.")
        };
        let reason = Some("Nothing was run at 2026-01-01T12:00:00Z: No.".to_owned());
        let cron = |count| {
            let next = step(JobStatus::Running, "2026-01-01 12:05:00", Some(count));
            Some(Step { reason: reason.clone(), ..next })
        };
        for gone in [true, false] {
            assert_eq!(go(&job_of(Some("*/5 * * * *"), Some(3)), soon, gone), cron(3));
            assert_eq!(go(&job_of(Some("*/5 * * * *"), Some(1)), soon, gone), cron(1));
        }
        let once = job_of(None, Some(1));
        let cancelled = step(JobStatus::Cancelled, "2026-01-01 12:00:00", Some(1));
        let cancelled = Some(Step { reason, ..cancelled });
        assert_eq!(go(&once, soon, true), cancelled);
        assert_eq!(go(&once, soon, false), None, "it waits");
        assert_eq!(go(&once, late, false), cancelled);
    }

    #[test]
    fn a_pattern_that_is_none_ends_the_job() {
        let job = job_of(Some("nonsense"), None);
        let Plan::Leave(left) = plan(&config(Missed::All), &job, job.next_execution_time) else {
            panic!("it ran")
        };
        assert_eq!(left.status, JobStatus::Cancelled);
        assert_eq!(left.reason.as_deref(), Some("The specified pattern is not valid: nonsense"));
    }

    proptest! {
        #[test]
        fn a_job_always_gets_on(
            pattern in prop::option::of(prop::sample::select(vec!["* * * * *", "* * * * * */7", "0 0 13 * 5"])),
            count in prop::option::of(0_i32..4), late in 0_i64..1_000_000,
            missed in prop::sample::select(vec![Missed::Once, Missed::Skip, Missed::All]),
            gone in any::<bool>(),
        ) {
            let job = job_of(pattern, if pattern.is_none() { Some(1) } else { count });
            let now = Timestamp(job.next_execution_time.0 + late * SECOND);
            let config = config(missed);
            let step = match plan(&config, &job, now) {
                Plan::Leave(step) => Some(step),
                Plan::Run(step) => {
                    prop_assert!(job.count.is_none_or(|count| step.count == Some((count - 1).max(0))));
                    let instead = let_go(&config, &job, &step, now, gone, "No.");
                    prop_assert!(instead.is_some() || late <= 60);
                    prop_assert!(instead.iter().all(|step| step.count == job.count));
                    if let Some(step) = instead {
                        prop_assert!(step.status != JobStatus::Running || step.next > job.next_execution_time);
                    }
                    Some(step)
                }
            };
            let step = step.unwrap();
            if step.status == JobStatus::Running {
                prop_assert!(step.next > job.next_execution_time);
                // Nothing of a backlog is left, unless all of it is wanted.
                prop_assert!(missed == Missed::All || late <= 60 || step.next > now);
            }
        }
    }

    /// So many executions of a project may be pending or running.
    fn quotas(concurrent_executions: i64) -> Quotas {
        let mut config = config::Config::default();
        config.quotas.concurrent_executions = concurrent_executions;
        Quotas::new(&config, None)
    }

    struct Site {
        db: TestDb,
        runtime: runtime::Model,
        function: function::Model,
    }

    async fn site() -> Site {
        let db = database().await;
        let runtime = runtime::Model { status: RuntimeStatus::Available, ..testing::runtime() };
        let function = function::Model {
            status: crate::model::FunctionStatus::Available,
            code: r#"{"source": "package"}"#.into(),
            ..testing::function(&runtime.id)
        };
        db::runtimes::insert(&db.writer(), runtime.clone()).await.unwrap();
        db::functions::insert(&db.writer(), function.clone()).await.unwrap();
        Site { db, runtime, function }
    }

    impl Site {
        async fn job(&self, job: job::Model) -> job::Model {
            let function_id = job.function_alias.is_none().then(|| self.function.id.clone());
            let job = job::Model { function_id, ..job };
            db::jobs::insert(&self.db.writer(), job.clone()).await.unwrap();
            job
        }

        async fn fire(&self, job: &job::Model, now: Timestamp) -> Fired {
            self.fire_within(&quotas(-1), job, now).await
        }

        async fn fire_within(&self, quotas: &Quotas, job: &job::Model, now: Timestamp) -> Fired {
            let jobs = config(Missed::Once);
            fire(&self.db, &jobs, &config::Engine::default(), quotas, job, now).await.unwrap()
        }

        async fn shown(&self, job: &job::Model) -> job::Model {
            db::jobs::find(self.db.reader(), &job.id, &Scope::All).await.unwrap().unwrap()
        }

        async fn executions(&self) -> Vec<execution::Model> {
            db::executions::list(self.db.reader(), &Scope::All, &Filters::default(), &db::Page::default())
                .await
                .unwrap()
        }
    }

    #[tokio::test]
    async fn many_who_fire_one_instant_start_one_execution() {
        let site = site().await;
        for pattern in [None, Some("* * * * *")] {
            let before = site.executions().await.len();
            let job = site.job(job::Model { function_version: Some(0), ..job_of(pattern, Some(1)) }).await;
            let now = Timestamp(job.next_execution_time.0 + SECOND);
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..12 {
                let (db, job) = (site.db.db.clone(), job.clone());
                // On a server a transaction may be told to try again.
                tasks.spawn(async move {
                    loop {
                        match fire(
                            &db,
                            &config(Missed::Once),
                            &config::Engine::default(),
                            &quotas(-1),
                            &job,
                            now,
                        )
                        .await
                        {
                            Err(Error::Unavailable { .. }) => tokio::task::yield_now().await,
                            fired => break fired.unwrap(),
                        }
                    }
                });
            }
            let fired = tasks.join_all().await;
            assert_eq!(fired.iter().filter(|fired| **fired == Fired::Started).count(), 1, "{fired:?}");
            assert!(fired.iter().all(|fired| [Fired::Started, Fired::ByOthers].contains(fired)), "{fired:?}");
            let rows = site.executions().await;
            assert_eq!(rows.len(), before + 1);
            let row = rows.iter().find(|row| row.description == Some(format!("Created by Job {}", job.id)));
            let row = row.expect("the execution names its job");
            assert_eq!((row.status, row.sync), (execution_status(), false));
            assert_eq!((&row.project_id, &row.function_id), (&project(), &site.function.id));
            assert_eq!(site.shown(&job).await.status, JobStatus::Done);
        }
        let function = db::functions::find(site.db.reader(), &site.function.id, &Scope::All).await;
        assert_eq!(function.unwrap().unwrap().count, site.function.count + 2);
    }

    fn execution_status() -> crate::model::ExecutionStatus {
        crate::model::ExecutionStatus::Pending
    }

    #[tokio::test]
    async fn what_was_changed_meanwhile_is_not_started() {
        let site = site().await;
        let job = site.job(job::Model { function_version: Some(0), ..job_of(Some("* * * * *"), None) }).await;
        let paused = db::jobs::Step {
            status: JobStatus::Paused,
            next: job.next_execution_time,
            count: None,
            reason: None,
        };
        assert!(db::jobs::advance(&site.db.writer(), &job, &paused).await.unwrap());
        assert_eq!(site.fire(&job, job.next_execution_time).await, Fired::ByOthers);
        assert_eq!(site.executions().await, []);
    }

    #[tokio::test]
    async fn an_alias_is_the_jobs_projects_own_and_means_what_it_means_now() {
        let site = site().await;
        let of = |name: &str, project: &str| alias::Model {
            project_id: project.into(),
            canary_version: None,
            ..testing::alias(&site.function, name, 0)
        };
        db::aliases::insert(&site.db.writer(), of("prod", "demo")).await.unwrap();
        db::aliases::insert(&site.db.writer(), of("theirs", "other")).await.unwrap();
        let by_alias = |name: &str, project: &str| job::Model {
            project_id: project.into(),
            function_alias: Some(name.into()),
            function_version: Some(0),
            ..job_of(Some("*/5 * * * *"), Some(2))
        };
        let now = at("2026-01-01 12:00:01");
        let good = site.job(by_alias("prod", "demo")).await;
        assert_eq!(site.fire(&good, now).await, Fired::Started);
        let rows = site.executions().await;
        assert_eq!(rows[0].function_alias.as_deref(), Some("prod"));
        assert_eq!(rows[0].function_id, site.function.id);

        // No such alias here, and one that leads to another project's function.
        for (name, project, why) in [
            ("theirs", "demo", "FunctionAlias not found [name=theirs]".to_owned()),
            ("theirs", "other", format!("Function not found [id={}]", site.function.id)),
        ] {
            let job = site.job(by_alias(name, project)).await;
            assert_eq!(site.fire(&job, now).await, Fired::MovedOn);
            let shown = site.shown(&job).await;
            let reason = format!("Nothing was run at 2026-01-01T12:00:00Z: {why}");
            assert_eq!(shown.status_reason, Some(reason));
            assert_eq!((shown.status, shown.count), (JobStatus::Running, Some(2)));
            assert_eq!(shown.next_execution_time, at("2026-01-01 12:05:00"));
        }
        assert_eq!(site.executions().await.len(), 1);
    }

    #[tokio::test]
    async fn a_runtime_that_is_away_is_waited_for_by_who_has_one_instant() {
        let site = site().await;
        let once = site.job(job::Model { function_version: Some(0), ..job_of(None, Some(1)) }).await;
        let set = async |from, to| {
            let moved =
                db::runtimes::set_status(&site.db.writer(), &site.runtime.id, &[from], to, None).await;
            assert!(moved.unwrap());
        };
        set(RuntimeStatus::Available, RuntimeStatus::Upgrading).await;
        let now = at("2026-01-01 12:00:30");
        assert_eq!(site.fire(&once, now).await, Fired::Waits);
        assert_eq!(site.shown(&once).await, once);
        set(RuntimeStatus::Upgrading, RuntimeStatus::Available).await;
        assert_eq!(site.fire(&once, now).await, Fired::Started);
        assert_eq!(site.shown(&once).await.status, JobStatus::Done);

        set(RuntimeStatus::Available, RuntimeStatus::Error).await;
        let other = site.job(job::Model { function_version: Some(0), ..job_of(None, Some(1)) }).await;
        assert_eq!(site.fire(&other, at("2026-01-01 12:01:01")).await, Fired::MovedOn);
        let shown = site.shown(&other).await;
        assert_eq!(shown.status, JobStatus::Cancelled);
        assert!(shown.status_reason.unwrap().ends_with("is not available."));
    }

    #[tokio::test]
    async fn a_job_of_a_version_that_is_gone_says_so() {
        let site = site().await;
        let job = job::Model { function_version: Some(3), ..job_of(None, Some(1)) };
        let job = site.job(job).await;
        assert_eq!(site.fire(&job, at("2026-01-01 12:00:01")).await, Fired::MovedOn);
        let shown = site.shown(&job).await;
        assert_eq!(shown.status, JobStatus::Cancelled);
        assert!(shown.status_reason.unwrap().contains("FunctionVersion not found"));
        // A job without any function, as the deletion of one leaves it, is no live one; should it be...
        let none = job::Model { id: JobId::random(), function_id: None, ..job };
        job::Entity::insert(none.clone().into_active_model())
            .exec_without_returning(&site.db.writer())
            .await
            .unwrap();
        assert_eq!(site.fire(&none, at("2026-01-01 12:00:01")).await, Fired::MovedOn);
        assert_eq!(site.shown(&none).await.status, JobStatus::Cancelled);
    }

    #[tokio::test]
    async fn a_project_that_has_enough_lets_an_instant_go_and_waits_with_a_single_one() {
        let site = site().await;
        let quotas = quotas(1);
        let cron =
            site.job(job::Model { function_version: Some(0), ..job_of(Some("* * * * *"), None) }).await;
        let now = Timestamp(cron.next_execution_time.0 + SECOND);
        assert_eq!(site.fire_within(&quotas, &cron, now).await, Fired::Started);
        let cron = site.shown(&cron).await;
        let now = Timestamp(cron.next_execution_time.0 + SECOND);
        assert_eq!(site.fire_within(&quotas, &cron, now).await, Fired::MovedOn);
        let why = site.shown(&cron).await.status_reason.unwrap();
        assert!(
            why.ends_with("Quota exceeded for concurrent_executions: limit 1, used 1, requested 1."),
            "{why}"
        );
        let once = site.job(job::Model { function_version: Some(0), ..job_of(None, Some(1)) }).await;
        let now = Timestamp(once.next_execution_time.0 + SECOND);
        assert_eq!(site.fire_within(&quotas, &once, now).await, Fired::Waits);
        assert_eq!(site.executions().await.len(), 1);
        assert_eq!(site.fire_within(&self::quotas(2), &once, now).await, Fired::Started);
    }
}
