//! The client of one worker's supervisor: HTTP/1.1 over the Unix socket that host and container share.
//!
//! One request at a time on a connection, as many connections as requests under way. Nothing is ever
//! sent twice: a request goes to another connection only where the first one gave it back unsent.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::worker::{
    ACCOUNT_HEADER, Account, Acknowledge, Attempt, Execute, LOAD_HEADER, Load, MAX_MESSAGE, Outcome, Refusal,
    RefusalKind, State,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tokio::runtime::{self, Handle};
use tokio::time::{Instant, sleep, timeout_at};

use crate::crash_points::{Write, around};
use crate::error::Source;

type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::io::Error>>;
type Driver = http1::Connection<TokioIo<UnixStream>, Body>;

/// A connection, whose bytes are moved by whoever asks over it: between a request and its answer no other
/// task has to be woken.
#[derive(Debug)]
struct Connection {
    /// Where it was made, and where alone its bytes are heard of.
    runtime: runtime::Id,
    sender: SendRequest<Body>,
    /// What moves them; none once the connection has ended.
    driver: Option<Driver>,
}

/// Most idle connections that are kept. A worker has fewer slots, and each thread that calls has its own.
const MAX_IDLE: usize = 64;

/// Most bytes of an answer that carries no outcome.
const MAX_SMALL: usize = 1 << 20;

/// Most bytes of an outcome beside its output and its log.
const OUTCOME_OVERHEAD: usize = 64 << 10;

const CLOSED: &str = "the connection was closed before anything was sent";

/// Waits between two tries to reach a supervisor that is starting.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The supervisor understood and did not do it.
    #[error("the worker refused: {}", .0.reason)]
    Refused(Refusal),
    /// The connection was lost, or there never was one. What was asked may have been done.
    #[error("the worker is gone")]
    Gone(#[source] Source),
    /// It answered what this version of Taibai does not understand.
    #[error("the worker answered what cannot be understood: {0}")]
    Protocol(String),
    /// The caller's deadline came first. What was asked may still be done.
    #[error("the worker did not answer in time")]
    TimedOut,
}

/// One worker's supervisor. Requests may run side by side.
#[derive(Debug)]
pub struct Supervisor {
    socket: PathBuf,
    #[expect(
        clippy::vec_box,
        reason = "a connection is kilobytes, and part of each call that it is handed to"
    )]
    idle: Mutex<Vec<Box<Connection>>>,
    /// Digest of the cloud that this worker was given last.
    cloud: Mutex<Option<String>>,
}

/// A cloud as it is given to workers, and the digest by which executions name it. Made once for many calls.
#[derive(Debug, Clone)]
pub struct Cloud {
    digest: String,
    body: Bytes,
}

impl Cloud {
    pub fn new(cloud: &protocol::openstack::Cloud) -> Result<Self, Error> {
        let body = json(cloud)?;
        Ok(Self { digest: hex::encode(Sha256::digest(&body)), body })
    }

    /// What [`protocol::openstack::OpenStack::cloud`] holds.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Supervisor {
    /// Connects to nothing yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), idle: Mutex::default(), cloud: Mutex::default() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the supervisor of a container that is starting answers.
    pub async fn wait_ready(&self, deadline: Instant) -> Result<State, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.state(deadline).await {
                Err(Error::Gone(source)) => {
                    if Instant::now() + pause >= deadline {
                        return Err(Error::Gone(source));
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answered => return answered,
            }
        }
    }

    /// What the supervisor says of itself; one of another version is an error.
    pub async fn state(&self, deadline: Instant) -> Result<State, Error> {
        let answer = self.ask(Method::GET, "/v1/state", Bytes::new(), MAX_SMALL, deadline).await?;
        let state: State = answer.json()?;
        if state.protocol != protocol::VERSION {
            let (theirs, ours) = (state.protocol, protocol::VERSION);
            return Err(Error::Protocol(format!("it speaks version {theirs}, this engine {ours}")));
        }
        Ok(state)
    }

    /// Binds the worker to a function and sends it the package.
    pub async fn load(
        &self,
        load: &Load,
        package: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        deadline: Instant,
    ) -> Result<(), Error> {
        let header = serde_json::to_string(load)
            .ok()
            .and_then(|json| HeaderValue::from_str(&json).ok())
            .ok_or_else(|| Error::Protocol("the load cannot be written as a header".to_owned()))?;
        let body = StreamBody::new(package.map_ok(Frame::data));
        let mut request = request(Method::PUT, "/v1/package", Either::Right(body.boxed_unsync()))?;
        request.headers_mut().insert(LOAD_HEADER, header);

        // A connection of its own, not kept: an answer may come before the package was sent.
        let exchange = async {
            let mut connection = self.connect().await?;
            connection.ask(request, MAX_SMALL).await.unwrap_or_else(|_| Err(gone(CLOSED)))
        };
        around(Write::Load, within(deadline, exchange)).await?.success().map(drop)
    }

    /// Runs an execution that names a cloud. The worker gets the cloud where it has not got it.
    pub async fn execute_in(
        &self,
        cloud: &Cloud,
        execute: &Execute,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        if self.last_cloud().as_ref() != Some(&cloud.digest) {
            self.give(cloud, deadline).await?;
        }
        match self.execute(execute, deadline).await {
            // Refused, so it has not run and may be sent again.
            Err(Error::Refused(Refusal { kind: RefusalKind::UnknownCloud, .. })) => {
                self.give(cloud, deadline).await?;
                self.execute(execute, deadline).await
            }
            answer => answer,
        }
    }

    async fn give(&self, cloud: &Cloud, deadline: Instant) -> Result<(), Error> {
        let path = format!("/v1/clouds/{}", cloud.digest);
        self.ask(Method::PUT, &path, cloud.body.clone(), MAX_SMALL, deadline).await?;
        *self.last_cloud() = Some(cloud.digest.clone());
        Ok(())
    }

    fn last_cloud(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.cloud.lock().expect("no panic while it is held")
    }

    /// Runs an execution and waits for its end. One that names a cloud goes through [`Self::execute_in`].
    pub async fn execute(&self, execute: &Execute, deadline: Instant) -> Result<Outcome, Error> {
        let limits = &execute.limits;
        // JSON writes a byte of the log in six at most.
        let most = limits.max_log_bytes.saturating_mul(6).saturating_add(limits.max_result_bytes);
        let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(OUTCOME_OVERHEAD);
        let body = json(execute)?;
        let running = self.ask(Method::POST, "/v1/executions", body, most, deadline);
        let answer = around(Write::Execute, running).await?;
        answer.outcome(&execute.attempt)
    }

    /// The end of an attempt that was started before, waiting for it.
    pub async fn outcome(&self, attempt: &Attempt, deadline: Instant) -> Result<Outcome, Error> {
        let answer = self.ask(Method::GET, &path(attempt)?, Bytes::new(), MAX_MESSAGE, deadline).await?;
        answer.outcome(attempt)
    }

    /// Has attempts with a lower epoch refused from now on.
    pub async fn fence(&self, attempt: &Attempt, deadline: Instant) -> Result<(), Error> {
        let body = json(attempt)?;
        let fencing = self.ask(Method::POST, "/v1/fence", body, MAX_SMALL, deadline);
        around(Write::Fence, fencing).await.map(drop)
    }

    /// Has outcomes forgotten that are safely stored.
    pub async fn acknowledge(&self, attempts: Vec<Attempt>, deadline: Instant) -> Result<(), Error> {
        let body = json(&Acknowledge { attempts })?;
        let telling = self.ask(Method::POST, "/v1/acknowledge", body, MAX_SMALL, deadline);
        around(Write::Acknowledge, telling).await.map(drop)
    }

    /// Kills an execution. One that does not run is refused as unknown.
    pub async fn cancel(&self, attempt: &Attempt, deadline: Instant) -> Result<(), Error> {
        let path = path(attempt)?;
        let cancelling = self.ask(Method::DELETE, &path, Bytes::new(), MAX_SMALL, deadline);
        around(Write::Cancel, cancelling).await.map(drop)
    }

    /// One request and its answer, which is a success.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        most: usize,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let request = request(method, path, Either::Left(Full::new(body)))?;
        // Dropped at the deadline, or by a caller that goes away: the connection ends with it and is not
        // used again, so no answer meets the wrong request.
        within(deadline, self.exchange(request, most)).await?.success()
    }

    async fn exchange(&self, mut request: Request<Body>, most: usize) -> Result<Answer, Error> {
        if let Some(mut connection) = self.take().await {
            match connection.ask(request, most).await {
                Ok(answer) => {
                    let answer = answer?;
                    self.keep(connection);
                    return Ok(answer);
                }
                Err(unsent) => request = *unsent,
            }
        }
        Box::pin(self.exchange_anew(request, most)).await
    }

    async fn exchange_anew(&self, request: Request<Body>, most: usize) -> Result<Answer, Error> {
        let mut connection = self.connect().await?;
        let answer = connection.ask(request, most).await.unwrap_or_else(|_| Err(gone(CLOSED)))?;
        self.keep(connection);
        Ok(answer)
    }

    /// An idle connection that still stands, as far as can be known.
    async fn take(&self) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.take_any()?;
            if connection.is_ready().await {
                return Some(connection);
            }
        }
    }

    /// The one of this runtime that was used last: a thread that asks over its own is the only one to be woken.
    fn take_any(&self) -> Option<Box<Connection>> {
        let here = Handle::current().id();
        let mut idle = self.idle.lock().expect("no panic while it is held");
        let at = idle.iter().rposition(|connection| connection.runtime == here)?;
        Some(idle.remove(at))
    }

    fn keep(&self, connection: Box<Connection>) {
        let mut idle = self.idle.lock().expect("no panic while it is held");
        if connection.sender.is_closed() {
            return;
        }
        if idle.len() == MAX_IDLE {
            idle.remove(0);
        }
        idle.push(connection);
    }

    async fn connect(&self) -> Result<Box<Connection>, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(gone)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        Ok(Box::new(Connection { runtime: Handle::current().id(), sender, driver: Some(driver) }))
    }
}

impl Connection {
    /// Whether it can take a request. One that was closed meanwhile is found out here.
    async fn is_ready(&mut self) -> bool {
        let Self { sender, driver, .. } = self;
        driven(driver, sender.ready()).await.is_ok()
    }

    /// The answer to a request, or the request itself where not a byte of it was sent.
    async fn ask(
        &mut self,
        request: Request<Body>,
        most: usize,
    ) -> Result<Result<Answer, Error>, Box<Request<Body>>> {
        let Self { sender, driver, .. } = self;
        let exchange = async {
            match sender.try_send_request(request).await {
                Ok(response) => Ok(Answer::read(response, most).await),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => Err(Box::new(unsent)),
                    None => Ok(Err(gone(error.into_error()))),
                },
            }
        };
        driven(driver, exchange).await
    }
}

/// What comes of an exchange, with its connection's bytes moved meanwhile.
async fn driven<T>(driver: &mut Option<Driver>, exchange: impl Future<Output = T>) -> T {
    let mut exchange = pin!(exchange);
    if let Some(moving) = driver {
        tokio::select! {
            biased;
            answer = &mut exchange => return answer,
            _ = moving => {}
        }
        // Dropped, so that the exchange hears of its end; it may have its answer already.
        *driver = None;
    }
    exchange.await
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    /// Of an outcome. A supervisor of before says nothing of it.
    account: Account,
    body: Bytes,
}

impl Answer {
    async fn read(response: Response<Incoming>, most: usize) -> Result<Self, Error> {
        let status = response.status();
        let account = response.headers().get(ACCOUNT_HEADER);
        let account = account.and_then(|header| serde_json::from_slice(header.as_bytes()).ok());
        let account = account.unwrap_or_default();
        match Limited::new(response.into_body(), most).collect().await {
            Ok(body) => Ok(Self { status, account, body: body.to_bytes() }),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(Error::Protocol(format!("its answer is larger than {most} bytes")))
            }
            Err(error) => Err(Error::Gone(error)),
        }
    }

    fn success(self) -> Result<Self, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        match serde_json::from_slice(&self.body) {
            Ok(refusal) => Err(Error::Refused(refusal)),
            Err(error) => Err(Error::Protocol(format!("status {} without a refusal: {error}", self.status))),
        }
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Protocol(error.to_string()))
    }

    fn outcome(&self, attempt: &Attempt) -> Result<Outcome, Error> {
        let outcome = Outcome { account: self.account, ..self.json()? };
        if outcome.attempt != *attempt {
            return Err(Error::Protocol("it answered for another execution".to_owned()));
        }
        Ok(outcome)
    }
}

fn within<T>(
    deadline: Instant,
    exchange: impl Future<Output = Result<T, Error>>,
) -> impl Future<Output = Result<T, Error>> {
    timeout_at(deadline, exchange).map(|answer| answer.unwrap_or(Err(Error::TimedOut)))
}

fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "worker")
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Error::Protocol(error.to_string()))
}

fn path(attempt: &Attempt) -> Result<String, Error> {
    let id = &attempt.execution;
    // An id with a slash would be another route.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Error::Protocol(format!("{id:?} cannot be an execution's id")));
    }
    Ok(format!("/v1/executions/{id}/{}", attempt.epoch))
}

fn json(message: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(message).map(Bytes::from).map_err(|error| Error::Protocol(error.to_string()))
}

fn gone(error: impl Into<Source>) -> Error {
    Error::Gone(error.into())
}

/// An answer whose first byte chooses its status; what is understood is what is written again, and an
/// outcome is of the attempt that was asked for.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_answer(data: &[u8]) {
    let [status, data @ ..] = data else { return };
    let status = [StatusCode::OK, StatusCode::CONFLICT, StatusCode::NO_CONTENT][usize::from(status % 3)];
    let answer = Answer { status, account: Account::default(), body: Bytes::copy_from_slice(data) };
    let Ok(answer) = answer.success() else { return };
    let again = |written: Vec<u8>| Answer { status, account: Account::default(), body: written.into() };
    let attempt = Attempt { execution: "e".to_owned(), epoch: 1 };
    if let Ok(outcome) = answer.outcome(&attempt) {
        assert_eq!(outcome.attempt, attempt);
        let written = again(serde_json::to_vec(&outcome).expect("what was read can be written"));
        let read = written.outcome(&attempt).expect("what was written can be read");
        assert_eq!(read.end, outcome.end);
        let text = |outcome: &Outcome| outcome.output.as_ref().map(|output| output.get().to_owned());
        assert_eq!(text(&read), text(&outcome));
        let stored = super::ending::outcome_of(outcome, crate::model::Start::Warm, 1000);
        serde_json::from_str::<&serde_json::value::RawValue>(&stored.result).expect("a result is JSON");
    }
    if let Ok(state) = answer.json::<State>() {
        let written = again(serde_json::to_vec(&state).expect("what was read can be written"));
        written.json::<State>().expect("what was written can be read");
    }
}

#[cfg(test)]
mod tests;
