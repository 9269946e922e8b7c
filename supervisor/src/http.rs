//! The engine's requests, over HTTP/1.1 on a Unix socket in a directory that only root can enter.

use std::convert::Infallible;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::openstack::Cloud;
use protocol::worker::{
    ACCOUNT_HEADER, Acknowledge, Attempt, Execute, LOAD_HEADER, Load, MAX_MESSAGE, Outcome, RUN_DIR, Refusal,
    RefusalKind, SOCKET,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::{Exit, Exited, exit};
use crate::worker::{Result, Worker, package_file};

/// Serves until the container is stopped or the parent interpreter has ended.
pub async fn serve(worker: Rc<Worker>) -> std::result::Result<(), String> {
    let listener = listen().map_err(|error| format!("the socket: {error}"))?;
    let mut stop = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut parent = worker.parent_exited();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.recv() => return Ok(()),
            ended = gone(&mut parent) => return Err(format!("the parent interpreter ended: {ended:?}")),
        };
        // An accept that fails is the peer's trouble, or passes.
        let Ok((stream, _)) = accepted else { continue };
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| answer(worker.clone(), request));
            // A connection that breaks ends here; its executions run on.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Waits for the end of the parent interpreter, where there is one.
async fn gone(parent: &mut Option<Exited>) -> Exit {
    match parent {
        Some(parent) => exit(parent).await,
        None => std::future::pending().await,
    }
}

fn listen() -> std::io::Result<UnixListener> {
    let path = format!("{RUN_DIR}/{SOCKET}");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

type Answer = Response<Full<Bytes>>;

async fn answer(worker: Rc<Worker>, request: Request<Incoming>) -> std::result::Result<Answer, Infallible> {
    Ok(route(worker, request).await.unwrap_or_else(refused))
}

async fn route(worker: Rc<Worker>, request: Request<Incoming>) -> Result<Answer> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (request.method(), parts.as_slice()) {
        (&Method::POST, ["v1", "executions"]) => {
            let execute: Execute = message(request).await?;
            ended(&*worker.execute(execute).await?)
        }
        (&Method::GET, ["v1", "executions", id, epoch]) => {
            ended(&*worker.outcome(&attempt(id, epoch)?).await?)
        }
        (&Method::DELETE, ["v1", "executions", id, epoch]) => {
            worker.cancel(&attempt(id, epoch)?)?;
            Ok(done())
        }
        (&Method::POST, ["v1", "acknowledge"]) => {
            worker.acknowledge(&message::<Acknowledge>(request).await?.attempts);
            Ok(done())
        }
        (&Method::POST, ["v1", "fence"]) => {
            worker.fence(message::<Attempt>(request).await?);
            Ok(done())
        }
        (&Method::PUT, ["v1", "clouds", digest]) => {
            worker.keep_cloud(digest, &message::<Cloud>(request).await?)?;
            Ok(done())
        }
        (&Method::PUT, ["v1", "package"]) => load(&worker, request).await,
        (&Method::GET, ["v1", "state"]) => json(&worker.state().await),
        _ => Err(Refusal { kind: RefusalKind::Unknown, reason: "no such request".to_owned() }),
    }
}

async fn load(worker: &Worker, mut request: Request<Incoming>) -> Result<Answer> {
    let header = request.headers().get(LOAD_HEADER);
    let header = header.ok_or_else(|| malformed(format!("the header {LOAD_HEADER} is missing")))?;
    let load: Load = serde_json::from_slice(header.as_bytes())
        .map_err(|error| malformed(format!("the header {LOAD_HEADER}: {error}")))?;
    worker.begin_load()?;
    let failed = |error: std::io::Error| Refusal {
        kind: RefusalKind::Failed,
        reason: format!("the package: {error}"),
    };
    let mut file = package_file().map_err(failed)?;
    while let Some(frame) = request.body_mut().frame().await {
        let frame = frame.map_err(|error| malformed(format!("the package was cut: {error}")))?;
        if let Some(bytes) = frame.data_ref() {
            file.write_all(bytes).map_err(failed)?;
        }
    }
    std::io::Seek::rewind(&mut file).map_err(failed)?;
    worker.finish_load(load, file).await?;
    Ok(done())
}

/// The body as a message, if it is one and not larger than a message may be.
async fn message<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T> {
    let body = Limited::new(request.into_body(), MAX_MESSAGE).collect().await.map_err(|error| {
        malformed(if error.is::<http_body_util::LengthLimitError>() {
            TOO_LARGE.to_owned()
        } else {
            format!("the message was cut: {error}")
        })
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| malformed(format!("not a message: {error}")))
}

const TOO_LARGE: &str = "the message is too large";

fn attempt(id: &str, epoch: &str) -> Result<Attempt> {
    let epoch = epoch.parse().map_err(|_| malformed(format!("'{epoch}' is no epoch")))?;
    Ok(Attempt { execution: id.to_owned(), epoch })
}

fn malformed(reason: impl Into<String>) -> Refusal {
    Refusal { kind: RefusalKind::Malformed, reason: reason.into() }
}

fn json(message: &impl Serialize) -> Result<Answer> {
    let body = serde_json::to_vec(message)
        .map_err(|error| Refusal { kind: RefusalKind::Failed, reason: error.to_string() })?;
    Ok(response(StatusCode::OK, body))
}

/// An outcome, and beside it what the execution took.
fn ended(outcome: &Outcome) -> Result<Answer> {
    let mut answer = json(outcome)?;
    let account = serde_json::to_string(&outcome.account).ok();
    if let Some(account) = account.and_then(|text| HeaderValue::try_from(text).ok()) {
        answer.headers_mut().insert(ACCOUNT_HEADER, account);
    }
    Ok(answer)
}

fn done() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

fn refused(refusal: Refusal) -> Answer {
    let status = match refusal.kind {
        RefusalKind::Unknown => StatusCode::NOT_FOUND,
        RefusalKind::Malformed if refusal.reason == TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalKind::Malformed => StatusCode::BAD_REQUEST,
        RefusalKind::BadPackage => StatusCode::UNPROCESSABLE_ENTITY,
        RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        RefusalKind::Loaded
        | RefusalKind::NotLoaded
        | RefusalKind::NoSlot
        | RefusalKind::Fenced
        | RefusalKind::UnknownCloud => StatusCode::CONFLICT,
    };
    response(status, serde_json::to_vec(&refusal).expect("a refusal is two texts"))
}

fn response(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
