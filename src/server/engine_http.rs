//! The engine's own HTTP: what an API process asks of it, and what watches it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use actix_web::dev::Server;
use actix_web::{App as HttpApp, HttpResponse, HttpServer, web};
use protocol::engine::{
    About, Cancelled, Ended, Fault, FaultKind, MAX_MESSAGE, Pool, PoolWorkers, Scale, Submit, Workers,
};

use super::{Error, metrics_text};
use crate::config::Config;
use crate::db::{self, Db};
use crate::engine::endpoint::{self, Listen};
use crate::engine::gateway::{Gateway, NewExecution, Quota, Target};
use crate::engine::remote::fault_of;
use crate::error::Error as DomainError;
use crate::model::{FunctionId, Input, Scope};
use crate::telemetry::{Chain, Metrics};

struct State {
    gateway: Gateway,
    db: Db,
}

/// The listener for APIs.
pub(super) fn server(config: &Config, gateway: Gateway, db: Db) -> Result<Server, Error> {
    let state = web::Data::new(State { gateway, db });
    let server = HttpServer::new(move || {
        HttpApp::new()
            .app_data(state.clone())
            .app_data(web::JsonConfig::default().limit(MAX_MESSAGE).error_handler(|error, _| {
                let message = error.to_string();
                let answer = HttpResponse::BadRequest().json(Fault { kind: FaultKind::Invalid, message });
                actix_web::error::InternalError::from_response(error, answer).into()
            }))
            .route("/v1/about", web::get().to(about))
            .route("/v1/executions", web::post().to(submit))
            .route("/v1/executions/{execution}", web::delete().to(cancel))
            .route("/v1/accepted", web::post().to(accepted))
            .route("/v1/runtimes", web::post().to(runtimes_changed))
            .route("/v1/runtimes/{runtime}/pool", web::get().to(pool))
            .service(
                web::resource("/v1/functions/{function}/{version}/workers")
                    .route(web::get().to(workers))
                    .route(web::post().to(scale))
                    .route(web::delete().to(release)),
            )
            .default_service(web::to(|| async {
                let message = "an engine of this release does not know that".to_owned();
                HttpResponse::NotFound().json(Fault { kind: FaultKind::Invalid, message })
            }))
    })
    .disable_signals()
    // Longer than an API keeps an idle connection, and short: the end of the server waits for it.
    .keep_alive(std::time::Duration::from_secs(5))
    .shutdown_timeout(config.api.shutdown_timeout.as_secs());
    let failed = |source| Error::Listen { address: config.engine.listen.clone(), source };
    let server = match Listen::from_config(&config.engine)? {
        Listen::Unix(path) => {
            let listener = make_way(&path).and_then(|()| listen_alone(&path)).map_err(failed)?;
            server.listen_uds(listener).map_err(failed)?
        }
        Listen::Tls(address) => {
            let tls = endpoint::server_tls(&config.engine)?;
            server.bind_rustls_0_23(address, tls).map_err(failed)?
        }
    };
    Ok(server.run())
}

/// Makes way for a socket. What an engine that was killed left is replaced, but not what somebody
/// listens on.
fn make_way(path: &Path) -> io::Result<()> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another engine listens there"));
    }
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// A socket for this user alone: who can open it can run functions. It is made where nobody else can go,
/// since whoever connects before its mode is set is served for as long as he likes.
fn listen_alone(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let closed = tempfile::Builder::new().prefix(".s").tempdir_in(parent)?;
    let hidden = closed.path().join("s");
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// The listener for health checks and metrics.
pub(super) fn private(config: &Config, metrics: Metrics, db: Db) -> Result<(Server, String), Error> {
    let wanted: SocketAddr = (config.engine.health_host, config.engine.health_port).into();
    let server = HttpServer::new(move || {
        let (metrics, db, checked) = (metrics.clone(), db.clone(), db.clone());
        HttpApp::new()
            .route("/metrics", web::get().to(move || metrics_text(metrics.clone(), db.clone())))
            .route("/healthcheck", web::get().to(move || health(checked.clone())))
    })
    .disable_signals()
    .workers(1)
    .shutdown_timeout(1);
    let failed = |source| Error::Listen { address: wanted.to_string(), source };
    let server = server.bind(wanted).map_err(failed)?;
    let address = server.addrs().first().map_or_else(String::new, |address| format!("http://{address}"));
    Ok((server.run(), address))
}

async fn health(db: Db) -> HttpResponse {
    match db::engines::list(db.reader()).await {
        Ok(_) => HttpResponse::Ok().content_type("text/plain").body("OK"),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the database does not answer a health check");
            HttpResponse::ServiceUnavailable().content_type("text/plain").body("the database does not answer")
        }
    }
}

type Answer = Result<HttpResponse, Refused>;

/// An error on its way to the API, which gives it its status.
#[derive(Debug)]
struct Refused(DomainError);

impl<E: Into<DomainError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl actix_web::ResponseError for Refused {
    fn error_response(&self) -> HttpResponse {
        let fault = fault_of(&self.0);
        if fault.kind == FaultKind::Internal {
            tracing::error!(error = %Chain(&self.0), "an API's request failed");
        }
        match fault.kind {
            FaultKind::Busy | FaultKind::Unavailable => HttpResponse::ServiceUnavailable().json(fault),
            FaultKind::Internal => HttpResponse::InternalServerError().json(fault),
            _ => HttpResponse::UnprocessableEntity().json(fault),
        }
    }
}

impl State {
    async fn target(&self, function: FunctionId, version: i32) -> Result<Target, DomainError> {
        let row = db::recent::function(&self.db, &function, &Scope::All).await?;
        let function = row.ok_or_else(|| DomainError::not_found("Function", &function))?;
        Target::get(&self.db, function, version).await
    }
}

async fn about() -> HttpResponse {
    let release = env!("CARGO_PKG_VERSION").to_owned();
    HttpResponse::Ok().json(About { release, protocol: protocol::VERSION })
}

async fn submit(state: web::Data<State>, submit: web::Json<Submit>) -> Answer {
    let submit = submit.into_inner();
    if submit.unless_crowded && state.gateway.is_crowded() {
        return Err(DomainError::Busy("Calls wait for a worker already.".to_owned()).into());
    }
    let input = submit.input.map(|json| {
        let arguments = Input::arguments(json.get().as_bytes());
        arguments
            .map(Input::from_arguments)
            .ok_or_else(|| DomainError::invalid("input: expected a JSON object"))
    });
    let execution = submit.execution;
    let new = NewExecution {
        id: execution.clone().into(),
        target: state.target(submit.function.into(), submit.version).await?,
        project_id: submit.project.into(),
        alias: submit.alias,
        description: submit.description,
        sync: true,
        input: input.transpose()?.unwrap_or_default(),
        request_id: submit.request_id,
        // The API counts it.
        quota: Quota::Uncounted,
    };
    state.gateway.submit(new).await?;
    Ok(HttpResponse::Ok().json(Ended { execution }))
}

async fn cancel(state: web::Data<State>, execution: web::Path<String>) -> HttpResponse {
    let cancelled = state.gateway.cancel_here(&execution.into_inner().into());
    HttpResponse::Ok().json(Cancelled { cancelled })
}

async fn accepted(state: web::Data<State>) -> HttpResponse {
    state.gateway.accepted();
    HttpResponse::NoContent().finish()
}

async fn runtimes_changed(state: web::Data<State>) -> HttpResponse {
    state.gateway.runtimes_changed();
    HttpResponse::NoContent().finish()
}

async fn pool(state: web::Data<State>, runtime: web::Path<String>) -> Answer {
    let status = state.gateway.pool(&runtime.into_inner().into()).await?;
    let workers = status.map(|pool| PoolWorkers { total: pool.total, available: pool.available });
    Ok(HttpResponse::Ok().json(Pool { workers }))
}

async fn workers(state: web::Data<State>, path: web::Path<(String, i32)>) -> Answer {
    let (function, version) = path.into_inner();
    let names = state.gateway.workers(&function.into(), version).await?;
    Ok(HttpResponse::Ok().json(Workers { names: names.iter().map(ToString::to_string).collect() }))
}

async fn scale(state: web::Data<State>, path: web::Path<(String, i32)>, scale: web::Json<Scale>) -> Answer {
    let (function, version) = path.into_inner();
    let target = state.target(function.into(), version).await?;
    match scale.into_inner() {
        Scale::Up(count) => state.gateway.scale_up(&target, count).await?,
        Scale::Down(count) => state.gateway.scale_down(&target, count).await?,
    }
    Ok(HttpResponse::NoContent().finish())
}

async fn release(state: web::Data<State>, path: web::Path<(String, i32)>) -> Answer {
    let (function, version) = path.into_inner();
    state.gateway.release(&function.into(), version).await?;
    Ok(HttpResponse::NoContent().finish())
}
