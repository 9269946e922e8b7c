//! Wiring: builds the state, starts listeners and loops, drains when it is told to stop.

mod catalog;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App as HttpApp, HttpResponse, HttpServer, web};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, App};
use crate::auth::Authenticator;
use crate::config::{AuthStrategy, Config};
use crate::db::Db;
use crate::engine::{self, Engine, NodeLock, Sessions};
use crate::error::Source;
use crate::network::{self, Guard};
use crate::openstack::Keystone;
use crate::orchestrator::{self, Orchestrator};
use crate::policy::Policy;
use crate::storage::LocalStore;
use crate::telemetry::{Chain, Metrics};
use catalog::Follower;

/// How often files are looked at that may change while the service runs.
const RELOAD: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the policy cannot be used")]
    Policy(#[from] crate::policy::FileError),
    #[error("callers cannot be known")]
    Auth(#[from] crate::auth::StartError),
    #[error("the database cannot be used")]
    Database(#[from] crate::db::Error),
    #[error("Docker cannot be used")]
    Docker(#[from] orchestrator::Error),
    #[error("functions cannot be given a network")]
    Network(#[from] network::Error),
    #[error("the package store cannot be used")]
    Storage(#[from] crate::storage::Error),
    #[error("callers cannot be known")]
    Identity(#[source] Source),
    #[error("this machine is taken")]
    Lock(#[from] engine::LockError),
    #[error("the engine cannot start")]
    Engine(#[from] engine::StartError),
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
}

/// Runs every service in this process until SIGTERM or SIGINT.
///
/// The end is in good order: no request is accepted any more, those under way are answered, what the
/// engine runs comes to its end or is left to the next start, and the database is closed last.
pub async fn serve(config: Config) -> Result<(), Error> {
    let policy = Policy::open(&config.oslo_policy.policy_file)?;
    let metrics = Metrics::new();
    let db = Db::connect(&config.database).await?;
    db.ensure_current().await?;
    let store =
        Arc::new(LocalStore::open(&config.storage.file_system_dir, config.storage.max_package_bytes).await?);
    let keystone = match config.api.auth_strategy {
        AuthStrategy::Keystone => Some(
            Keystone::new(&config.keystone_authtoken, metrics.keystone_calls.clone())
                .map_err(Error::Identity)?,
        ),
        AuthStrategy::Noauth | AuthStrategy::HttpBasic => None,
    };
    let sessions = match &keystone {
        Some(keystone) => {
            Some(Sessions::new(keystone.clone(), &config.keystone_authtoken).map_err(Error::Identity)?)
        }
        None => None,
    };
    let authenticator = Authenticator::new(&config, keystone.clone())?;
    // Before anything on this machine is touched that another engine of the deployment may own.
    let lock = NodeLock::acquire(&config.docker)?;
    // Before the first container can be on the network.
    let deployment = &config.docker.deployment;
    let guard = Guard::start(&config.network, deployment, metrics.network_repairs.clone()).await?;
    let follower = match (&guard, &keystone) {
        (Some(guard), Some(keystone)) => Some(Follower::start(keystone.clone(), guard.clone()).await?),
        _ => None,
    };
    let calls = metrics.docker_calls.clone();
    let containers = orchestrator::connect_with(&config.docker, guard.clone(), calls).await?;
    let mut stop = Stop::listen().map_err(Error::Signals)?;

    let (gateway, engine) = Engine::start(
        &config,
        lock,
        db.clone(),
        store.clone(),
        containers.clone(),
        sessions,
        metrics.clone(),
    )
    .await?;
    if guard.is_none() {
        // Of an earlier start with another configuration; its workers were not adopted.
        release_network(&*containers, deployment).await;
    }
    let app = App::new(&config, policy, authenticator, keystone, db.clone(), store, gateway);
    let app = web::Data::new(app);
    let reloading = tokio::spawn(reload(app.clone().into_inner()));
    let (server, address) = match http_server(&config, app, metrics, db.clone()) {
        Ok(bound) => bound,
        Err(error) => {
            reloading.abort();
            engine.shutdown(config.api.shutdown_timeout).await;
            return Err(error);
        }
    };
    let handle = server.handle();
    let serving = tokio::spawn(server);
    announce(&address);

    let stopped = tokio::select! {
        () = stop.wait() => Ok(()),
        ended = serving => ended.unwrap_or_else(|error| Err(std::io::Error::other(error))),
    };
    tracing::info!("stopping: no more requests are accepted");
    // Answers what it has before it returns, within its shutdown timeout.
    handle.stop(true).await;
    // It holds nothing, so that it may end anywhere.
    reloading.abort();
    engine.shutdown(config.api.shutdown_timeout).await;
    if let Some(follower) = follower {
        follower.stop().await;
    }
    if let Some(guard) = guard {
        guard.stop().await;
        release_network(&*containers, deployment).await;
    }
    if let Err(error) = db.close().await {
        tracing::warn!(error = %Chain(&error), "the database was not closed cleanly");
    }
    tracing::info!("stopped");
    stopped.map_err(Error::Http)
}

/// Takes the network and its rules away, unless workers are left that live by them.
async fn release_network(containers: &dyn Orchestrator, deployment: &str) {
    match containers.release_network().await {
        Ok(true) => {
            let deployment = deployment.to_owned();
            let removed = tokio::task::spawn_blocking(move || network::remove_rules(&deployment)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(error = %Chain(&error), "the rules of the network are left behind");
            }
        }
        Ok(false) => tracing::debug!("workers are on the network; it stays, with its rules"),
        Err(error) => tracing::warn!(error = %Chain(&error), "the network is left behind"),
    }
}

/// Reads the files of policy and users again when they change: each second, and on SIGHUP.
async fn reload(app: Arc<App>) {
    // Without the signal the second is what remains.
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut second = tokio::time::interval(RELOAD);
    loop {
        tokio::select! {
            _ = second.tick() => {}
            Some(()) = async { hangup.as_mut()?.recv().await } => {}
        }
        let app = app.clone();
        let read = tokio::task::spawn_blocking(move || {
            app.policy.refresh();
            app.authenticator.refresh();
        });
        let _ = read.await;
    }
}

fn http_server(
    config: &Config,
    app: web::Data<App>,
    metrics: Metrics,
    db: Db,
) -> Result<(actix_web::dev::Server, String), Error> {
    let server = HttpServer::new(move || {
        let (metrics, db) = (metrics.clone(), db.clone());
        HttpApp::new()
            .app_data(app.clone())
            .wrap(from_fn(api::middleware::edge))
            .route(
                "/metrics",
                web::get().to(move || {
                    metrics.commits_so_far(db.commits());
                    let text = metrics.render();
                    async move { HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(text) }
                }),
            )
            .configure(api::routes)
    })
    .disable_signals()
    .shutdown_timeout(config.api.shutdown_timeout.as_secs());
    let wanted = (config.api.host, config.api.port);
    let listen = |source| Error::Listen { address: format!("{}:{}", wanted.0, wanted.1), source };
    let server = server.bind(wanted).map_err(listen)?;
    let address = server.addrs().first().map_or_else(String::new, |address| format!("http://{address}"));
    Ok((server.run(), address))
}

/// Says on stdout where the service listens: with port 0 there is no other way to know.
fn announce(address: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
    tracing::info!(address, "listening");
}

/// The signals that end a service.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
