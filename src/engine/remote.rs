//! The engine's gateway in an API process: finds the engines in the database and asks them.
//!
//! A function has its engine: the first in an order that comes from the names of both, so that every
//! API finds the same and its workers stay warm. An engine on which calls wait already is passed over,
//! and one that is not there too. What was sent is never sent again: where no answer comes, the row
//! tells, or the caller learns that it is not known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use protocol::engine::{
    About, Cancelled, Ended, Fault, FaultKind, MAX_MESSAGE, Pool, Scale, Submit, Workers,
};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::cancels::cancelled;
use super::endpoint;
use super::gateway::{NewExecution, PoolStatus, Target};
use super::recorder::Recorder;
use super::run;
use crate::config::{self, Config};
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::{
    ExecutionId, ExecutionStatus, FunctionId, RuntimeId, Scope, Timestamp, WorkerName, engine, execution,
};
use crate::quota::Quotas;
use crate::telemetry::Chain;

/// How long the list of engines is used. A new engine is found, and an expired one forgotten, so late.
const FRESH: Duration = Duration::from_secs(1);
/// After how long no API asks an engine any more that took itself off the list.
pub const FORGOTTEN: Duration = Duration::from_millis(1500);
/// How long an engine may take over what it answers at once.
const ANSWER: Duration = Duration::from_secs(10);
/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an idle connection is kept: less than the engine does, so that it is not closed under a
/// request that was just sent.
const IDLE: Duration = Duration::from_secs(3);
/// What a call may take beside its wait for a worker and the function's own time: a cold start, and
/// the margins of the engine itself.
const MARGIN: Duration = Duration::from_secs(90);

/// How asking an engine failed.
#[derive(Debug)]
enum Failed {
    /// Nothing was sent.
    NotReached(reqwest::Error),
    /// It may have been done.
    Lost(reqwest::Error),
    Fault(Fault),
}

pub struct Remote {
    db: Db,
    recorder: Recorder,
    config: config::Engine,
    engines: Mutex<Option<(Instant, Arc<[engine::Model]>)>>,
    clients: Mutex<HashMap<String, reqwest::Client>>,
    quotas: Quotas,
    /// A task spawned in a handler would end with the handler's own runtime.
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl Remote {
    /// Reaches for no engine yet. The future writes what is accepted, until the gateway is dropped.
    pub fn new(
        config: &Config,
        db: Db,
        quotas: Quotas,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), endpoint::Error> {
        if config.engine.listen.starts_with("https:") {
            endpoint::client_tls(&config.engine)?;
        }
        let (recorder, writer) = Recorder::start(db.clone());
        let remote = Self {
            db,
            recorder,
            config: config.engine.clone(),
            quotas,
            engines: Mutex::default(),
            clients: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        Ok((remote, writer))
    }

    /// Every engine that is there, and which program it is; the error says why that is not known.
    pub async fn programs(&self) -> Result<Vec<(engine::Model, Result<About, String>)>> {
        let engines = self.engines().await?;
        let asked =
            engines.iter().map(|engine| self.ask(engine, Method::GET, "v1/about", None::<&()>, ANSWER));
        let answers = join_all(asked).await.into_iter().map(|answer| {
            answer.map_err(|failed| match failed {
                Failed::NotReached(error) => format!("it is not reached: {}", Chain(&error)),
                Failed::Lost(error) => format!("it does not answer: {}", Chain(&error)),
                Failed::Fault(fault) => fault.message,
            })
        });
        Ok(engines.iter().cloned().zip(answers).collect())
    }

    pub(super) fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    pub(super) fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }

    pub(super) async fn submit(self: &Arc<Self>, new: NewExecution) -> Result<execution::Model> {
        if !new.sync {
            let row = run::new_row(&new, &self.config);
            self.recorder.accept(row.clone(), new.quota.queue()).await?;
            self.tell("v1/accepted");
            return Ok(row);
        }
        let input = new.input.to_json().map(RawValue::from_string).transpose().map_err(Error::internal)?;
        let mut submit = Submit {
            execution: new.id.to_string(),
            project: new.project_id.to_string(),
            function: new.target.function.id.to_string(),
            version: new.target.version,
            alias: new.alias,
            description: new.description,
            input,
            request_id: new.request_id,
            unless_crowded: true,
        };
        let seconds = u64::try_from(new.target.function.timeout).unwrap_or(0);
        let longest = self.config.queue_timeout + Duration::from_secs(seconds) + MARGIN;
        let engines = self.ranked(&new.target.function.id, new.target.version).await?;
        let mut busy = None;
        // Where all are crowded the call waits on its own.
        for unless_crowded in [true, false] {
            submit.unless_crowded = unless_crowded;
            for engine in &engines {
                let asked = self.ask(engine, Method::POST, "v1/executions", Some(&submit), longest).await;
                match asked {
                    Ok(Ended { .. }) => return self.ended(&new.id).await,
                    Err(Failed::NotReached(error)) => self.not_reached(engine, &error),
                    Err(Failed::Lost(error)) => {
                        tracing::warn!(engine.id = %engine.id, execution.id = %new.id, error = %Chain(&error), "an engine was lost");
                        return self.in_doubt(&new.id).await;
                    }
                    Err(Failed::Fault(fault)) if fault.kind == FaultKind::Busy => busy = Some(fault),
                    Err(Failed::Fault(fault)) => return Err(error_of(fault)),
                }
            }
            if busy.is_none() {
                break;
            }
        }
        Err(busy.map_or_else(nobody, error_of))
    }

    /// The row of an execution that an engine said has ended.
    async fn ended(&self, id: &ExecutionId) -> Result<execution::Model> {
        let row = db::executions::find(self.db.reader(), id, &Scope::All).await?;
        row.ok_or_else(|| Error::not_found("Execution", id))
    }

    /// What can be said of an execution whose engine did not answer.
    async fn in_doubt(&self, id: &ExecutionId) -> Result<execution::Model> {
        let row = db::executions::find(self.db.reader(), id, &Scope::All).await?;
        match row {
            Some(row) if !matches!(row.status, ExecutionStatus::Pending | ExecutionStatus::Running) => {
                Ok(row)
            }
            _ => Err(Error::InDoubt(format!(
                "The engine was lost while it ran execution {id}, which may still run. The execution, \
                 where it is listed, says how it ends."
            ))),
        }
    }

    pub(super) async fn cancel(&self, row: &execution::Model) -> Result<bool> {
        if row.status == ExecutionStatus::Pending {
            return self.recorder.dismiss(row.id.clone(), cancelled()).await;
        }
        let engines = self.engines().await?;
        let Some(engine) = engines.iter().find(|engine| row.engine_id.as_ref() == Some(&engine.id)) else {
            return Ok(false);
        };
        let path = format!("v1/executions/{}", row.id);
        match self.ask(engine, Method::DELETE, &path, None::<&()>, ANSWER).await {
            Ok(Cancelled { cancelled }) => Ok(cancelled),
            Err(Failed::NotReached(error)) => {
                self.not_reached(engine, &error);
                Ok(false)
            }
            Err(failed) => Err(failure(failed)),
        }
    }

    pub(super) async fn workers(&self, function: &FunctionId, version: i32) -> Result<Vec<WorkerName>> {
        let path = workers_path(function, version);
        let mut names = Vec::new();
        for Workers { names: some } in self.gather(&path).await? {
            names.extend(some.into_iter().map(WorkerName::from));
        }
        Ok(names)
    }

    pub(super) async fn pool(&self, runtime: &RuntimeId) -> Result<Option<PoolStatus>> {
        let pools: Vec<Pool> = self.gather(&format!("v1/runtimes/{runtime}/pool")).await?;
        let mut sum: Option<PoolStatus> = None;
        for pool in pools.into_iter().filter_map(|pool| pool.workers) {
            let sum = sum.get_or_insert(PoolStatus { total: 0, available: 0 });
            sum.total += pool.total;
            sum.available += pool.available;
        }
        Ok(sum)
    }

    /// On the function's own engine, or the next that is there.
    pub(super) async fn scale_up(&self, target: &Target, count: u32) -> Result<()> {
        let path = workers_path(&target.function.id, target.version);
        for engine in self.ranked(&target.function.id, target.version).await? {
            match self.change(&engine, Method::POST, &path, Some(&Scale::Up(count))).await {
                Ok(()) => return Ok(()),
                Err(Failed::NotReached(error)) => self.not_reached(&engine, &error),
                Err(failed) => return Err(failure(failed)),
            }
        }
        Err(nobody())
    }

    /// From the engine that the function would come to last.
    pub(super) async fn scale_down(&self, target: &Target, count: u32) -> Result<()> {
        let path = workers_path(&target.function.id, target.version);
        let mut left = count;
        for engine in self.ranked(&target.function.id, target.version).await?.into_iter().rev() {
            if left == 0 {
                break;
            }
            let Workers { names } = match self.ask(&engine, Method::GET, &path, None::<&()>, ANSWER).await {
                Ok(workers) => workers,
                Err(Failed::NotReached(error)) => {
                    self.not_reached(&engine, &error);
                    continue;
                }
                Err(failed) => return Err(failure(failed)),
            };
            let here = left.min(u32::try_from(names.len().saturating_sub(1)).unwrap_or(u32::MAX));
            if here > 0 {
                let scaled = self.change(&engine, Method::POST, &path, Some(&Scale::Down(here))).await;
                scaled.map_err(failure)?;
                left -= here;
            }
        }
        Ok(())
    }

    /// An engine that is not there finds out by itself: its reaper looks for functions that are gone.
    pub(super) async fn release(&self, function: &FunctionId, version: i32) -> Result<()> {
        let path = workers_path(function, version);
        let engines = self.engines().await?;
        let asked = engines.iter().map(|engine| self.change(engine, Method::DELETE, &path, None::<&()>));
        for (engine, done) in engines.iter().zip(join_all(asked).await) {
            match done {
                Ok(()) => {}
                Err(Failed::NotReached(error)) => self.not_reached(engine, &error),
                Err(failed) => return Err(failure(failed)),
            }
        }
        Ok(())
    }

    /// Tells every engine that there is something to look at. It would look by itself, a little later.
    pub(super) fn tell(self: &Arc<Self>, path: &'static str) {
        let remote = self.clone();
        self.runtime.spawn(async move {
            let Ok(engines) = remote.engines().await else { return };
            let told = engines.iter().map(|engine| remote.change(engine, Method::POST, path, None::<&()>));
            for (engine, done) in engines.iter().zip(join_all(told).await) {
                if let Err(failed) = done {
                    tracing::debug!(engine.id = %engine.id, ?failed, "an engine was not told");
                }
            }
        });
    }

    /// What every engine that is there answers. None at all is an error.
    async fn gather<A: DeserializeOwned>(&self, path: &str) -> Result<Vec<A>> {
        let engines = self.engines().await?;
        let asked = engines.iter().map(|engine| self.ask(engine, Method::GET, path, None::<&()>, ANSWER));
        let mut answers = Vec::new();
        for (engine, answer) in engines.iter().zip(join_all(asked).await) {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(Failed::NotReached(error)) => self.not_reached(engine, &error),
                Err(failed) => return Err(failure(failed)),
            }
        }
        if answers.is_empty() { Err(nobody()) } else { Ok(answers) }
    }

    /// The engines whose lease lasts, the function's own first.
    async fn ranked(&self, function: &FunctionId, version: i32) -> Result<Vec<engine::Model>> {
        let mut engines = self.engines().await?.to_vec();
        engines.sort_by_cached_key(|engine| rank(engine, function, version));
        Ok(engines)
    }

    async fn engines(&self) -> Result<Arc<[engine::Model]>> {
        let known = self.engines.lock().expect("no panic while it is held").clone();
        if let Some((at, engines)) = known
            && at.elapsed() < FRESH
        {
            return Ok(engines);
        }
        let now = Timestamp::now();
        let mut found = db::engines::list(self.db.reader()).await?;
        found.retain(|engine| engine.endpoint.is_some() && engine.lease_until >= now);
        // Of two at one place the later one has taken it.
        found.reverse();
        let mut places = std::collections::HashSet::new();
        found.retain(|engine| places.insert(engine.endpoint.clone()));
        let found: Arc<[engine::Model]> = found.into();
        *self.engines.lock().expect("no panic while it is held") = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn not_reached(&self, engine: &engine::Model, error: &reqwest::Error) {
        tracing::warn!(engine.id = %engine.id, node = engine.node, error = %Chain(error), "an engine is not there");
        *self.engines.lock().expect("no panic while it is held") = None;
    }

    fn client(&self, place: &str) -> Result<reqwest::Client, endpoint::Error> {
        let mut clients = self.clients.lock().expect("no panic while it is held");
        if let Some(client) = clients.get(place) {
            return Ok(client.clone());
        }
        let builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE);
        let builder = match place.strip_prefix("unix://") {
            Some(path) => builder
                .unix_socket(std::path::PathBuf::from(path))
                .tls_backend_preconfigured(endpoint::no_tls()?),
            None => builder.tls_backend_preconfigured(endpoint::client_tls(&self.config)?).https_only(true),
        };
        let client = builder.build().map_err(endpoint::Error::client)?;
        clients.insert(place.to_owned(), client.clone());
        Ok(client)
    }

    async fn change(
        &self,
        engine: &engine::Model,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), Failed> {
        self.send(engine, method, path, body, ANSWER).await.map(drop)
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        engine: &engine::Model,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        longest: Duration,
    ) -> Result<A, Failed> {
        let response = self.send(engine, method, path, body, longest).await?;
        response.json().await.map_err(Failed::Lost)
    }

    async fn send(
        &self,
        engine: &engine::Model,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        longest: Duration,
    ) -> Result<reqwest::Response, Failed> {
        let place = engine.endpoint.as_deref().unwrap_or_default();
        let client = self.client(place).map_err(|error| {
            tracing::error!(engine.id = %engine.id, error = %Chain(&error), "an engine cannot be asked");
            Failed::Fault(Fault { kind: FaultKind::Unavailable, message: NOBODY.to_owned() })
        })?;
        let base = if place.starts_with("unix:") { "http://engine" } else { place.trim_end_matches('/') };
        let mut request = client.request(method, format!("{base}/{path}")).timeout(longest);
        if let Some(body) = body {
            request = request.json(body);
        }
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            if error.is_connect() { Failed::NotReached(error) } else { Failed::Lost(error) }
        };
        let response = request.send().await.map_err(failed)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| Failed::Lost(error.without_url()))?;
        let fault =
            bytes.get(..bytes.len().min(MAX_MESSAGE)).and_then(|text| serde_json::from_slice(text).ok());
        Err(Failed::Fault(fault.unwrap_or_else(|| Fault {
            kind: FaultKind::Internal,
            message: format!("an engine answered with the status {status}"),
        })))
    }
}

const NOBODY: &str = "No engine is there to run functions.";

fn nobody() -> Error {
    Error::Busy(NOBODY.to_owned())
}

fn workers_path(function: &FunctionId, version: i32) -> String {
    format!("v1/functions/{function}/{version}/workers")
}

/// The lowest is the function's own engine. By node and deployment, which outlast a restart.
fn rank(engine: &engine::Model, function: &FunctionId, version: i32) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [engine.node.as_str(), &engine.deployment, function.as_str(), &version.to_string()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn failure(failed: Failed) -> Error {
    match failed {
        Failed::NotReached(error) | Failed::Lost(error) => {
            Error::Unavailable { what: "The engine", source: Box::new(error) }
        }
        Failed::Fault(fault) => error_of(fault),
    }
}

/// What an engine says it could not do, as it goes over the wire.
pub fn fault_of(error: &Error) -> Fault {
    let kind = match error {
        Error::NotFound { .. } => FaultKind::NotFound,
        Error::Invalid(_) | Error::NotSupported(_) => FaultKind::Invalid,
        Error::Forbidden { .. } | Error::Guarded(_) | Error::OverQuota { .. } => FaultKind::Forbidden,
        Error::Conflict(_) => FaultKind::Conflict,
        Error::TooLarge(_) => FaultKind::TooLarge,
        Error::Busy(_) | Error::TooFast { .. } => FaultKind::Busy,
        Error::InDoubt(_) | Error::Unavailable { .. } => FaultKind::Unavailable,
        Error::Internal(_) => FaultKind::Internal,
    };
    Fault { kind, message: error.to_string() }
}

fn error_of(fault: Fault) -> Error {
    let Fault { kind, message } = fault;
    match kind {
        FaultKind::NotFound => {
            match message.strip_suffix(']').and_then(|text| text.split_once(" not found [")) {
                Some(("FunctionVersion", key)) => {
                    Error::NotFound { what: "FunctionVersion", key: key.to_owned() }
                }
                Some(("Execution", key)) => Error::NotFound { what: "Execution", key: key.to_owned() },
                Some((_, key)) => Error::NotFound { what: "Function", key: key.to_owned() },
                None => Error::NotFound { what: "Function", key: String::new() },
            }
        }
        FaultKind::Invalid => Error::Invalid(message),
        FaultKind::Forbidden => Error::Guarded(message),
        FaultKind::Conflict => Error::Conflict(message),
        FaultKind::TooLarge => Error::TooLarge(message),
        FaultKind::Busy => Error::Busy(message),
        FaultKind::Unavailable => Error::InDoubt(message),
        FaultKind::Internal => Error::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(node: &str) -> engine::Model {
        engine::Model { node: node.to_owned(), ..db::testing::engine(Timestamp(0)) }
    }

    #[test]
    fn functions_spread_over_engines_and_stay_where_they_are() {
        let engines = [engine("a"), engine("b"), engine("c")];
        let own = |engines: &[engine::Model], function: &FunctionId| {
            engines.iter().min_by_key(|engine| rank(engine, function, 0)).unwrap().node.clone()
        };
        let functions: Vec<_> = (0..300).map(|_| FunctionId::random()).collect();
        for node in ["a", "b", "c"] {
            let count = functions.iter().filter(|function| own(&engines, function) == node).count();
            assert!((50..150).contains(&count), "{count} of 300 on {node}");
        }
        // An engine that comes back is another row, and one that leaves moves its own functions only.
        let again = [engine("b"), engine("a"), engine("c")];
        assert!(functions.iter().all(|function| own(&again, function) == own(&engines, function)));
        for function in functions.iter().filter(|function| own(&engines, function) != "c") {
            assert_eq!(own(&engines[..2], function), own(&engines, function));
        }
    }

    #[test]
    fn errors_cross_the_wire_with_their_kind_and_text() {
        let key = "function_id=f, version_number=1".to_owned();
        for error in [
            Error::NotFound { what: "FunctionVersion", key },
            Error::not_found("Function", "f"),
            Error::Invalid("x".to_owned()),
            Error::Guarded("x".to_owned()),
            Error::Conflict("x".to_owned()),
            Error::TooLarge("x".to_owned()),
            Error::Busy("x".to_owned()),
            Error::internal("x"),
        ] {
            let json = serde_json::to_string(&fault_of(&error)).unwrap();
            let back = error_of(serde_json::from_str(&json).unwrap());
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!(std::mem::discriminant(&back), std::mem::discriminant(&error));
        }
    }
}
