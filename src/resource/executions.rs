//! Executions: who may run what, and what is known of a run.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{MAX_TEXT, check_length};
use crate::crash_points::{Write, around};
use crate::db::executions::Filters;
use crate::db::{self, Db, Page, Place};
use crate::engine::gateway::{Gateway, NewExecution, Quota};
use crate::engine::target::Reference;
use crate::error::{Error, Result};
use crate::model::{Caller, ExecutionId, Input, ProjectId, Scope, Timestamp, execution};

/// How long a cancel waits for the end of what it cancelled.
const CANCELLING: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// Rows of the first part of a list that begins behind a marker.
const FIRST: u64 = 16;
/// Most rows of any other part.
const PART_ROWS: u64 = 1000;
/// About how many bytes it may have.
const PART_BYTES: i64 = 1 << 20;
/// What a row has beside its texts.
const ROW_BYTES: i64 = 512;

/// A call of a function, as somebody asked for it.
#[derive(Debug)]
pub struct Call {
    pub reference: Reference,
    pub description: Option<String>,
    pub sync: bool,
    pub input: Input,
    pub request_id: Option<String>,
}

#[derive(Clone)]
pub struct Executions {
    db: Db,
    engine: Gateway,
}

/// A list, part by part.
pub struct List {
    db: Db,
    scope: Scope,
    filters: Filters,
    page: Page<execution::Entity>,
    /// When it was asked for: what is created later is not in it.
    until: Timestamp,
    /// How many rows it may still have; `None` for all that there are.
    left: Option<u64>,
    /// The part that was read and not given out.
    rows: Vec<execution::Model>,
    /// Behind it; `None` at the end.
    place: Option<Place>,
}

impl List {
    /// Whether what was read is all that is left.
    pub fn is_short(&self) -> bool {
        self.place.is_none()
    }

    /// The next part; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<execution::Model>>> {
        if self.rows.is_empty()
            && let Some(place) = self.place.take()
        {
            self.place = Some(place.clone());
            let wanted = self.wanted().await?;
            let part = Page { limit: Some(wanted), marker: None, ..self.page.clone() };
            let (scope, filters) = (&self.scope, &self.filters);
            let reader = self.db.reader();
            let rows = db::executions::list_on(reader, scope, filters, &part, &place, self.until).await?;
            self.take(rows, wanted);
        }
        let rows = std::mem::take(&mut self.rows);
        Ok((!rows.is_empty()).then_some(rows))
    }

    fn take(&mut self, rows: Vec<execution::Model>, wanted: u64) {
        let count = rows.len() as u64;
        self.left = self.left.map(|left| left.saturating_sub(count));
        let more = count == wanted && self.left != Some(0);
        self.place = rows.last().filter(|_| more).map(|row| self.page.after(row));
        self.rows = rows;
    }

    /// How many rows to read next: they may be large, so it is looked at first.
    async fn wanted(&self) -> Result<u64> {
        let most = self.left.map_or(PART_ROWS, |left| left.min(PART_ROWS));
        let (scope, filters, place) = (&self.scope, &self.filters, self.place.as_ref());
        let sizes = db::executions::sizes(self.db.reader(), scope, filters, &self.page, place, most).await?;
        Ok(fitting(&sizes).max(1).min(most))
    }
}

/// How many rows of these sizes make about a part. Fewer rows than were asked for are all that there are.
fn fitting(sizes: &[i64]) -> u64 {
    let mut sum = 0;
    let taken = sizes.iter().take_while(|size| {
        sum += **size + ROW_BYTES;
        sum <= PART_BYTES
    });
    let taken = taken.count();
    // All of them fit: one more would show whether there are others.
    (if taken == sizes.len() { taken + 1 } else { taken }) as u64
}

/// How an execution of a project is to be counted, where there is room for another.
pub(super) async fn counted(engine: &Gateway, db: &Db, project: &ProjectId, sync: bool) -> Result<Quota> {
    let quotas = engine.quotas();
    Ok(match sync {
        true => {
            quotas.enter(db, project).await?.map_or(Quota::Uncounted, |share| Quota::Call(Arc::new(share)))
        }
        false => quotas.queue(project).await.map_or(Quota::Uncounted, Quota::Queued),
    })
}

impl Executions {
    pub fn new(db: Db, engine: Gateway) -> Self {
        Self { db, engine }
    }

    /// Runs a function once, and waits for its end where the call is synchronous. The execution is
    /// the caller's, also where an administrator runs another project's function.
    pub async fn create(&self, caller: &Caller, call: Call) -> Result<execution::Model> {
        check_length("description", call.description.as_deref(), MAX_TEXT)?;
        let target = call.reference.resolve(&self.db, &caller.project_id, &caller.scope()).await?;
        target.check_runnable(&self.db).await?;
        let quota = counted(&self.engine, &self.db, &caller.project_id, call.sync).await?;
        let new = NewExecution {
            id: ExecutionId::next(),
            target,
            project_id: caller.project_id.clone(),
            alias: call.reference.alias,
            description: call.description,
            sync: call.sync,
            input: call.input,
            request_id: call.request_id,
            quota,
        };
        self.engine.submit(new).await
    }

    /// The beginning of a list, which [`List::next`] goes on with: not all of it need be in memory at once.
    pub async fn list(&self, scope: Scope, filters: Filters, page: Page<execution::Entity>) -> Result<List> {
        let until = Timestamp::now();
        let (db, left) = (self.db.clone(), page.limit);
        let mut list = List { db, scope, filters, page, until, left, rows: Vec::new(), place: None };
        // One that goes on behind a marker has its place looked up with the rows.
        let wanted = match &list.page.marker {
            Some(_) => FIRST.min(left.unwrap_or(FIRST)),
            None => list.wanted().await?,
        };
        let first = Page { limit: Some(wanted), ..list.page.clone() };
        let rows = db::executions::list(self.db.reader(), &list.scope, &list.filters, &first).await?;
        list.take(rows, wanted);
        Ok(list)
    }

    pub async fn get(&self, caller: &Caller, id: &ExecutionId) -> Result<execution::Model> {
        let row = db::executions::find(self.db.reader(), id, &caller.scope()).await?;
        row.ok_or_else(|| Error::not_found("Execution", id))
    }

    /// What the function wrote; `None` until the execution has ended.
    pub async fn log(&self, caller: &Caller, id: &ExecutionId) -> Result<Option<String>> {
        let row = self.get(caller, id).await?;
        match db::execution_logs::find(self.db.reader(), id).await? {
            Some(log) => Ok(Some(log.log)),
            None => Ok(row.status.has_ended().then(String::new)),
        }
    }

    /// Ends an execution that has not ended, with every process of it, and returns it as it is then. Its end
    /// may come a little later, where an engine that is not there any more has it.
    pub async fn cancel(&self, caller: &Caller, id: &ExecutionId) -> Result<execution::Model> {
        let until = Instant::now() + CANCELLING;
        let mut asked = false;
        // As the row was when it was asked for.
        let mut seen = None;
        loop {
            let row = self.get(caller, id).await?;
            if row.status.has_ended() {
                return match asked {
                    true => Ok(row),
                    false => Err(Error::Conflict(format!("Execution {id} has ended."))),
                };
            }
            // Again where it moved on under the first: from pending into an engine's hands.
            let now = Some((row.status, row.epoch));
            if now != seen || !asked {
                asked |= self.engine.cancel(&row).await?;
                seen = now;
            }
            if Instant::now() >= until {
                return Ok(row);
            }
            sleep(LOOK).await;
        }
    }

    /// Removes the record. A run that is under way goes on and leaves none.
    pub async fn delete(&self, caller: &Caller, id: &ExecutionId) -> Result<()> {
        let (writer, scope) = (self.db.writer(), caller.scope());
        let removed = around(Write::ExecutionDelete, db::executions::delete(&writer, id, &scope)).await?;
        if removed { Ok(()) } else { Err(Error::not_found("Execution", id)) }
    }
}
