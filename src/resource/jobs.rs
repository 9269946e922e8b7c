//! Jobs: functions that run at times. What is due is started by `engine::cron`.

use std::time::Duration;

use sea_orm::Set;

use super::references::{hold, nothing_to_call};
use super::{MAX_TEXT, check_length};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Filter, Page};
use crate::engine::gateway::Gateway;
use crate::engine::target::Reference;
use crate::error::{Error, Result};
use crate::model::{Caller, JobId, JobStatus, Schedule, Scope, Timestamp, job};
use crate::quota::Resource;

/// How far ahead a time must lie that somebody names.
const AHEAD: Duration = Duration::from_secs(60);

/// A job, as somebody asked for it.
#[derive(Debug)]
pub struct New {
    pub reference: Reference,
    pub name: Option<String>,
    pub pattern: Option<String>,
    pub first_execution_time: Option<String>,
    pub count: Option<i32>,
    pub function_input: Option<String>,
}

/// What is to be changed: what is `None` stays.
#[derive(Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub function_input: Option<String>,
    pub status: Option<String>,
    pub pattern: Option<String>,
    pub next_execution_time: Option<String>,
}

#[derive(Clone)]
pub struct Jobs {
    db: Db,
    engine: Gateway,
}

impl Jobs {
    pub fn new(db: Db, engine: Gateway) -> Self {
        Self { db, engine }
    }

    /// The job is the caller's, also where an administrator runs another project's function.
    pub async fn create(&self, caller: &Caller, new: New) -> Result<job::Model> {
        if new.reference.alias.is_none() && new.reference.function_id.is_none() {
            return Err(nothing_to_call());
        }
        check_texts(new.name.as_deref(), new.function_input.as_deref(), new.pattern.as_deref())?;
        check_length("first_execution_time", new.first_execution_time.as_deref(), MAX_TEXT)?;
        let timing = Timing::of(&new, Timestamp::now())?;
        let by_alias = new.reference.alias.is_some();
        let row = job::Model {
            id: JobId::random(),
            project_id: caller.project_id.clone(),
            name: new.name,
            pattern: timing.pattern,
            status: JobStatus::Running,
            status_reason: None,
            first_execution_time: Some(timing.first),
            next_execution_time: timing.first,
            count: timing.count,
            function_id: new.reference.function_id.clone().filter(|_| !by_alias),
            function_version: Some(if by_alias { 0 } else { new.reference.version }),
            function_alias: new.reference.alias.clone(),
            function_input: new.function_input,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        // What an alias leads to is looked up anew at each instant, when no administrator is there.
        let scope = if by_alias { caller.own() } else { caller.scope() };
        let limits = self.engine.quotas().limits(&row.project_id).await;
        let tx = self.db.begin().await?;
        limits.admit(&tx, &row.project_id, Resource::Jobs, 1).await?;
        hold(&tx, &new.reference, &caller.project_id, &scope).await?;
        db::jobs::insert(&tx, row.clone()).await?;
        around(Write::JobCreate, tx.commit()).await?;
        self.engine.jobs_changed();
        Ok(row)
    }

    pub async fn list(
        &self,
        scope: &Scope,
        project_id: Option<&Filter>,
        page: &Page<job::Entity>,
    ) -> Result<Vec<job::Model>> {
        Ok(db::jobs::list(self.db.reader(), scope, project_id, page).await?)
    }

    pub async fn get(&self, caller: &Caller, id: &JobId) -> Result<job::Model> {
        let row = db::jobs::find(self.db.reader(), id, &caller.scope()).await?;
        row.ok_or_else(|| Error::not_found("Job", id))
    }

    pub async fn update(&self, caller: &Caller, id: &JobId, change: Change) -> Result<job::Model> {
        check_texts(change.name.as_deref(), change.function_input.as_deref(), change.pattern.as_deref())?;
        check_length("next_execution_time", change.next_execution_time.as_deref(), MAX_TEXT)?;
        let tx = self.db.begin().await?;
        let before = db::jobs::find_for_update(&tx, id, &caller.scope()).await?;
        let before = before.ok_or_else(|| Error::not_found("Job", id))?;
        let change = changed(&before, change, Timestamp::now())?;
        let row = db::jobs::update(&tx, change).await?;
        let row = row.ok_or_else(|| Error::not_found("Job", id))?;
        around(Write::JobUpdate, tx.commit()).await?;
        self.engine.jobs_changed();
        Ok(row)
    }

    /// Removes a job, whatever its state. What it started goes on.
    pub async fn delete(&self, caller: &Caller, id: &JobId) -> Result<()> {
        let (writer, scope) = (self.db.writer(), caller.scope());
        let removed = around(Write::JobDelete, db::jobs::delete(&writer, id, &scope)).await?;
        if removed { Ok(()) } else { Err(Error::not_found("Job", id)) }
    }
}

/// An input may be as long as a request.
/// Room for what a job gives its function. Jobs that are due are read by the dozen.
const MAX_INPUT: usize = 65_536;

fn check_texts(name: Option<&str>, input: Option<&str>, pattern: Option<&str>) -> Result<()> {
    check_length("name", name, MAX_TEXT)?;
    check_length("function_input", input, MAX_INPUT)?;
    check_length("pattern", pattern, MAX_TEXT)
}

/// When a new job runs.
#[derive(Debug, PartialEq, Eq)]
struct Timing {
    pattern: Option<String>,
    first: Timestamp,
    /// `None` is for ever.
    count: Option<i32>,
}

impl Timing {
    fn of(new: &New, now: Timestamp) -> Result<Self> {
        let pattern = new.pattern.as_deref().filter(|pattern| !pattern.is_empty());
        let first = new.first_execution_time.as_deref().filter(|time| !time.is_empty());
        if pattern.is_none() && first.is_none() {
            return Err(Error::invalid("pattern or first_execution_time must be specified."));
        }
        let first = first.map(|text| future(text, now)).transpose()?;
        match (pattern, first) {
            (Some(pattern), first) => Ok(Self {
                pattern: Some(pattern.to_owned()),
                first: next_of(pattern, from(first, now))?,
                count: new.count,
            }),
            (None, _) if new.count.is_some_and(|count| count > 1) => {
                Err(Error::invalid("pattern must be provided if count is greater than 1."))
            }
            (None, first) => Ok(Self { pattern: None, first: first.unwrap_or(now), count: Some(1) }),
        }
    }
}

/// A time that somebody named, if it lies far enough ahead.
fn future(text: &str, now: Timestamp) -> Result<Timestamp> {
    let time =
        Timestamp::read(text).ok_or_else(|| Error::Invalid(format!("Unknown string format: {text}")))?;
    let time = time.whole_second();
    if time < now.after(AHEAD) { Err(too_near()) } else { Ok(time) }
}

fn too_near() -> Error {
    Error::invalid("Execution time must be at least 1 minute in the future.")
}

/// Behind what a pattern's first instant lies: the minute that somebody named counts.
fn from(named: Option<Timestamp>, now: Timestamp) -> Timestamp {
    named.map_or(now, |time| time.before(AHEAD))
}

fn next_of(pattern: &str, time: Timestamp) -> Result<Timestamp> {
    let next = Schedule::parse(pattern).and_then(|schedule| schedule.next_after(time));
    next.ok_or_else(|| Error::Invalid(format!("The specified pattern is not valid: {pattern}")))
}

/// What becomes of a job. Its next instant follows from a time that is named, from another pattern, and
/// from being taken up again.
fn changed(job: &job::Model, change: Change, now: Timestamp) -> Result<job::ActiveModel> {
    if [JobStatus::Done, JobStatus::Cancelled].contains(&job.status) {
        return Err(Error::invalid("Can not update a finished job."));
    }
    let status = match change.status.as_deref() {
        None => None,
        Some("running") => Some(JobStatus::Running),
        Some("paused") => Some(JobStatus::Paused),
        Some("cancelled") => Some(JobStatus::Cancelled),
        Some(_) => return Err(Error::invalid("Invalid status.")),
    };
    let named = change.next_execution_time.as_deref().filter(|time| !time.is_empty());
    let named = named.map(|text| future(text, now)).transpose()?;
    let empty = change.pattern.as_deref() == Some("");
    if (job.pattern.is_some() && empty) || (job.pattern.is_none() && change.pattern.is_some() && !empty) {
        return Err(Error::invalid("Can not change job type."));
    }
    let pattern = change.pattern.filter(|_| !empty);
    let other_pattern = pattern.is_some() && pattern != job.pattern;
    let resumed = job.status == JobStatus::Paused && status == Some(JobStatus::Running);
    let next = match pattern.as_deref().or(job.pattern.as_deref()) {
        Some(pattern) if other_pattern || resumed || named.is_some() => {
            Some(next_of(pattern, from(named, now))?)
        }
        Some(_) => None,
        None if resumed && named.is_none() && job.next_execution_time < now.after(AHEAD) => {
            return Err(too_near());
        }
        None => named,
    };
    let mut active = job::ActiveModel { id: Set(job.id.clone()), ..Default::default() };
    if let Some(name) = change.name {
        active.name = Set(Some(name));
    }
    if let Some(input) = change.function_input {
        active.function_input = Set(Some(input));
    }
    if let Some(pattern) = pattern {
        active.pattern = Set(Some(pattern));
    }
    if let Some(status) = status {
        active.status = Set(status);
    }
    if let Some(next) = next {
        active.next_execution_time = Set(next);
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use sea_orm::ActiveValue;

    use super::*;
    use crate::db::testing;
    use crate::model::FunctionId;

    fn at(text: &str) -> Timestamp {
        Timestamp::read(text).unwrap()
    }

    fn now() -> Timestamp {
        at("2026-01-01 12:00:30.25")
    }

    fn timing(pattern: &str, first: &str, count: Option<i32>) -> Result<Timing, String> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let new = New {
            reference: Reference::default(),
            name: None,
            pattern: given(pattern),
            first_execution_time: given(first),
            count,
            function_input: None,
        };
        Timing::of(&new, now()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_new_job_has_its_first_instant() {
        for (pattern, first, count, instant, left) in [
            ("", "2026-01-01 12:01:31", None, "2026-01-01 12:01:31", Some(1)),
            ("", "2026-01-01 12:01:31.9", Some(0), "2026-01-01 12:01:31", Some(1)),
            ("", "2026-01-01T15:00:00+02:00", Some(1), "2026-01-01 13:00:00", Some(1)),
            ("*/5 * * * *", "", None, "2026-01-01 12:05:00", None),
            ("*/5 * * * *", "", Some(0), "2026-01-01 12:05:00", Some(0)),
            ("*/5 * * * *", "2026-01-01 13:00:00", Some(3), "2026-01-01 13:00:00", Some(3)),
            ("*/5 * * * *", "2026-01-01 13:01:00", Some(3), "2026-01-01 13:05:00", Some(3)),
            ("* * * * * */10", "", None, "2026-01-01 12:00:40", None),
        ] {
            let timing = timing(pattern, first, count).unwrap();
            assert_eq!((timing.first, timing.count), (at(instant), left), "{pattern} {first}");
        }
    }

    #[test]
    fn a_job_without_an_instant_is_refused() {
        let near = "Execution time must be at least 1 minute in the future.";
        for (pattern, first, count, text) in [
            ("", "", None, "pattern or first_execution_time must be specified."),
            ("", "2026-01-01 12:01:30", None, near),
            ("", "2020-01-01 00:00:00", None, near),
            // 13:30 in India is 8:00 in UTC.
            ("", "2026-01-01 13:30:00+05:30", None, near),
            ("", "garbage", None, "Unknown string format: garbage"),
            ("", "2026-01-01 13:00:00", Some(2), "pattern must be provided if count is greater than 1."),
            ("@hourly", "", None, "The specified pattern is not valid: @hourly"),
            ("0 0 31 2 *", "", None, "The specified pattern is not valid: 0 0 31 2 *"),
            ("*/5 * * * *", "garbage", None, "Unknown string format: garbage"),
        ] {
            assert_eq!(timing(pattern, first, count).unwrap_err(), text);
        }
    }

    fn job(pattern: Option<&str>, status: JobStatus, next: &str) -> job::Model {
        job::Model {
            pattern: pattern.map(str::to_owned),
            next_execution_time: at(next),
            ..testing::job(&FunctionId::random(), status)
        }
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn what_a_change_does_to_the_next_instant() {
        use JobStatus::{Paused, Running};
        let cron = |status| job(Some("0 21 * * *"), status, "2026-01-01 21:00:00");
        let once = |status, next| job(None, status, next);
        let other = || Change { pattern: text("*/5 * * * *"), ..Change::default() };
        let to = |status: &str| Change { status: text(status), ..Change::default() };
        let named = |time: &str| Change { next_execution_time: text(time), ..Change::default() };
        let later = "2026-01-01 13:00:00";
        for (job, change, next) in [
            (cron(Running), other(), Some("2026-01-01 12:05:00")),
            (cron(Paused), other(), Some("2026-01-01 12:05:00")),
            (cron(Running), Change { pattern: text("0 21 * * *"), ..Change::default() }, None),
            (cron(Running), Change { next_execution_time: text(later), ..other() }, Some(later)),
            (cron(Running), named("2026-01-02 21:00:00"), Some("2026-01-02 21:00:00")),
            (cron(Running), named("2026-01-02 21:01:00"), Some("2026-01-03 21:00:00")),
            (cron(Running), to("running"), None),
            (cron(Running), to("paused"), None),
            (cron(Paused), to("cancelled"), None),
            (
                job(Some("*/5 * * * *"), Paused, "2025-01-01 00:00:00"),
                to("running"),
                Some("2026-01-01 12:05:00"),
            ),
            (once(Paused, later), to("running"), None),
            (once(Running, later), named("2026-01-01 14:00:00"), Some("2026-01-01 14:00:00")),
            (
                once(Paused, "2025-01-01 00:00:00"),
                Change { status: text("running"), ..named(later) },
                Some(later),
            ),
            (once(Running, later), Change { pattern: text(""), ..Change::default() }, None),
        ] {
            let said = format!("{change:?}");
            let active = changed(&job, change, now()).unwrap();
            let found = match active.next_execution_time {
                ActiveValue::Set(time) => Some(time),
                _ => None,
            };
            assert_eq!(found, next.map(at), "{said}");
        }
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        use JobStatus::{Cancelled, Done, Paused, Running};
        let cron = |status| job(Some("0 21 * * *"), status, "2026-01-01 21:00:00");
        let past = |status| job(None, status, "2026-01-01 12:01:00");
        let pattern = |pattern: &str| Change { pattern: text(pattern), ..Change::default() };
        let to = |status: &str| Change { status: text(status), ..Change::default() };
        let named = |time: &str| Change { next_execution_time: text(time), ..Change::default() };
        let near = "Execution time must be at least 1 minute in the future.";
        for (job, change, refused) in [
            (cron(Done), Change::default(), "Can not update a finished job."),
            (cron(Cancelled), to("running"), "Can not update a finished job."),
            (cron(Running), pattern(""), "Can not change job type."),
            (past(Running), pattern("0 21 * * *"), "Can not change job type."),
            (cron(Running), to("done"), "Invalid status."),
            (cron(Running), to(""), "Invalid status."),
            (cron(Running), pattern("x"), "The specified pattern is not valid: x"),
            (cron(Running), named("x"), "Unknown string format: x"),
            (cron(Running), named("2026-01-01 12:01:00"), near),
            (past(Paused), to("running"), near),
        ] {
            let said = format!("{change:?}");
            let error = changed(&job, change, now()).unwrap_err().to_string();
            assert_eq!(error, refused, "{said}");
        }
    }
}
