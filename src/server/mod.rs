//! Wiring: builds the state, starts listeners and loops, drains when it is told to stop.

mod catalog;
mod drain;
mod engine_http;
mod node;
mod socket;
mod tls;

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::{App as HttpApp, HttpResponse, HttpServer, web};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, App};
use crate::auth::Authenticator;
use crate::config::{AuthStrategy, Config, StorageDriver};
use crate::db::{self, Db};
use crate::engine::gateway::Gateway;
use crate::engine::remote::Remote;
use crate::engine::{self, Engine, endpoint};
use crate::error::Source;
use crate::network;
use crate::openstack::Keystone;
use crate::orchestrator;
use crate::policy::Policy;
use crate::quota::Quotas;
use crate::storage::{LocalStore, PackageStore, SwiftStore};
use crate::telemetry::{Chain, Metrics};
use drain::Draining;
use node::Node;

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
    #[error("the package store in Swift cannot be asked")]
    StoreIdentity(#[source] Source),
    #[error("callers cannot be known")]
    Identity(#[source] Source),
    #[error("this machine is taken")]
    Lock(#[from] engine::LockError),
    #[error("the engine cannot start")]
    Engine(#[from] engine::StartError),
    #[error("the engine's endpoint cannot be used")]
    Endpoint(#[from] endpoint::Error),
    #[error(
        "[database] connection: SQLite is for taibai serve, which is one process; taibai api and taibai engine \
         share a database, so name one on MariaDB or PostgreSQL"
    )]
    NotShared,
    #[error("the listener's TLS cannot be used")]
    Tls(#[from] tls::Error),
    #[error(
        "the socket that the service manager holds is open to {0}, and with auth_strategy = noauth everyone who \
         reaches it is an administrator; expected a loopback address, or [api] allow_noauth_from_anywhere = true"
    )]
    Open(IpAddr),
    #[error("the sockets of the service manager cannot be used")]
    Sockets(#[source] std::io::Error),
    #[error("the file of [audit] cannot be opened")]
    Audit(#[source] std::io::Error),
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

type Result<T, E = Error> = std::result::Result<T, E>;

/// Runs every service in this process until SIGTERM or SIGINT.
///
/// The end is in good order: no request is accepted any more, those under way are answered, what the
/// engine runs comes to its end or is left to the next start, and the database is closed last.
pub async fn serve(config: Config) -> Result<()> {
    let policy = Policy::open(&config.oslo_policy.policy_file)?;
    let metrics = Metrics::new();
    let keystone = keystone(&config, &metrics)?;
    let authenticator = Authenticator::new(&config, keystone.clone())?;
    let db = Db::connect(&config.database).await?;
    db.ensure_current().await?;
    let store = store(&config, keystone.as_ref(), &metrics).await?;
    let (lock, node) = Node::prepare(&config, keystone.as_ref(), &metrics).await?;
    db.open_journal(&config.database).await?;
    forget_packages(&config, &db, &store).await?;
    let mut stop = Stop::listen().map_err(Error::Signals)?;

    let quotas = Quotas::new(&config, keystone.as_ref());
    let means = node.means(db.clone(), store.clone(), quotas, metrics.clone());
    let (gateway, engine) = Engine::start(&config, None, lock, means).await?;
    node.tidy().await;
    let app = App::new(&config, policy, authenticator, keystone, db.clone(), store, gateway);
    let folding = tokio::spawn({
        let db = db.clone();
        async move { db.fold_log().await }
    });
    let served = serve_api(&config, app, metrics, &db, &mut stop).await;
    engine.shutdown(config.api.shutdown_timeout).await;
    folding.abort();
    node.leave().await;
    close(&db).await;
    served
}

/// Serves the API alone, and has engines of other processes run functions.
pub async fn api(config: Config) -> Result<()> {
    let policy = Policy::open(&config.oslo_policy.policy_file)?;
    let metrics = Metrics::new();
    let keystone = keystone(&config, &metrics)?;
    let authenticator = Authenticator::new(&config, keystone.clone())?;
    let db = shared_database(&config).await?;
    let store = store(&config, keystone.as_ref(), &metrics).await?;
    forget_packages(&config, &db, &store).await?;
    let mut stop = Stop::listen().map_err(Error::Signals)?;
    let (remote, writer) = Remote::new(&config, db.clone(), Quotas::new(&config, keystone.as_ref()))?;
    // Whoever hands it something waits until that is committed, so that nothing is left at the end.
    tokio::spawn(writer);
    let gateway = Gateway::remote(remote);
    let app = App::new(&config, policy, authenticator, keystone, db.clone(), store, gateway);
    let served = serve_api(&config, app, metrics, &db, &mut stop).await;
    close(&db).await;
    served
}

/// Runs functions alone, for APIs of other processes.
pub async fn engine(config: Config) -> Result<()> {
    let metrics = Metrics::new();
    let keystone = keystone(&config, &metrics)?;
    let db = shared_database(&config).await?;
    let endpoint = endpoint::advertised(&config.engine)?;
    let store = store(&config, keystone.as_ref(), &metrics).await?;
    let (lock, node) = Node::prepare(&config, keystone.as_ref(), &metrics).await?;
    let mut stop = Stop::listen().map_err(Error::Signals)?;
    let (private, health) = engine_http::private(&config, metrics.clone(), db.clone())?;

    let quotas = Quotas::new(&config, keystone.as_ref());
    let means = node.means(db.clone(), store, quotas, metrics);
    let (gateway, engine) = Engine::start(&config, Some(endpoint), lock, means).await?;
    node.tidy().await;
    let server = match engine_http::server(&config, gateway.clone(), db.clone()) {
        Ok(server) => server,
        Err(error) => {
            engine.shutdown(config.api.shutdown_timeout).await;
            return Err(error);
        }
    };
    let watched = private.handle();
    let watching = tokio::spawn(private);
    announce(&format!("health on {health}"));
    announce(&format!("listening on {}", config.engine.listen));
    socket::ready();
    // Asked elsewhere first, so that the end of the listener meets nobody who is just connecting.
    let withdraw = async || engine.withdraw().await;
    let stopped = run_until(server, &mut stop, withdraw, &gateway, config.api.shutdown_timeout).await;
    engine.shutdown(config.api.shutdown_timeout).await;
    node.leave().await;
    watched.stop(false).await;
    // Told to stop in the line above.
    let _ = watching.await;
    close(&db).await;
    stopped
}

fn keystone(config: &Config, metrics: &Metrics) -> Result<Option<Keystone>> {
    match config.api.auth_strategy {
        AuthStrategy::Keystone => {
            let keystone = Keystone::new(&config.keystone_authtoken, metrics.keystone_calls.clone());
            keystone.map(Some).map_err(Error::Identity)
        }
        AuthStrategy::Noauth | AuthStrategy::HttpBasic => Ok(None),
    }
}

/// The package store of the configuration, for a command that runs beside no service.
pub async fn open_store(config: &Config) -> Result<Arc<dyn PackageStore>> {
    let metrics = Metrics::new();
    store(config, keystone(config, &metrics)?.as_ref(), &metrics).await
}

async fn store(
    config: &Config,
    keystone: Option<&Keystone>,
    metrics: &Metrics,
) -> Result<Arc<dyn PackageStore>> {
    let storage = &config.storage;
    let (directory, max_bytes) = (&storage.file_system_dir, storage.max_package_bytes);
    if storage.driver == StorageDriver::Local {
        return Ok(Arc::new(LocalStore::open(directory, max_bytes).await?));
    }
    // The service has a name of its own there, however it knows its callers.
    let keystone = match keystone {
        Some(keystone) => keystone.clone(),
        None => Keystone::new(&config.keystone_authtoken, metrics.keystone_calls.clone())
            .map_err(Error::StoreIdentity)?,
    };
    let container = storage.container.clone();
    Ok(Arc::new(SwiftStore::open(keystone, container, directory, max_bytes).await?))
}

/// Removes packages that an earlier process kept and then wrote no row for, or whose rows it removed and
/// then not them. Where packages or rows are shared, others may be between the two at this moment, though not
/// for long.
async fn forget_packages(config: &Config, db: &Db, store: &Arc<dyn PackageStore>) -> Result<()> {
    let is_local = config.storage.driver == StorageDriver::Local;
    let age = if is_local && db::is_file(&config.database)? { Duration::ZERO } else { UNDER_WAY };
    let needed = db::functions::list_digests(db.reader()).await?;
    let store = store.clone();
    let sweeping = async move {
        match store.sweep(needed, age).await {
            Ok(0) => {}
            Ok(packages) => tracing::info!(packages, "packages that nothing needs were removed"),
            Err(error) => tracing::warn!(error = %Chain(&error), "packages that nothing needs stay for now"),
        }
    };
    // Nobody waits for a cloud that is slow or away, nor is anything lost where this ends half way.
    if is_local {
        sweeping.await
    } else {
        drop(tokio::spawn(sweeping))
    }
    Ok(())
}

/// Longer than anybody takes from keeping a package to writing down who needs it.
const UNDER_WAY: Duration = Duration::from_secs(3600);

/// Serves the API until a signal comes.
async fn serve_api(config: &Config, app: App, metrics: Metrics, db: &Db, stop: &mut Stop) -> Result<()> {
    if let Some(audit) = &app.audit {
        audit.refresh().map_err(Error::Audit)?;
    }
    let gateway = app.engine.clone();
    let app = web::Data::new(app);
    let draining = Draining::default();
    let listener = Listener::of_config(config)?;
    let certificate = listener.tls.as_ref().map(|(_, certificate)| certificate.clone());
    let (server, address) =
        http_server(config, listener, app.clone(), metrics, db.clone(), draining.clone())?;
    announce(&format!("listening on {address}"));
    socket::ready();
    // It holds nothing, so that it may end anywhere.
    let reloading = tokio::spawn(reload(app.into_inner(), certificate));
    let drain = async || {
        draining.begin();
        tokio::time::sleep(config.api.drain_time).await;
    };
    let stopped = run_until(server, stop, drain, &gateway, config.api.shutdown_timeout).await;
    reloading.abort();
    stopped
}

/// A database that several processes can have.
async fn shared_database(config: &Config) -> Result<Db> {
    if db::is_file(&config.database)? {
        return Err(Error::NotShared);
    }
    let db = Db::connect(&config.database).await?;
    db.ensure_current().await?;
    Ok(db)
}

/// Serves until a signal comes, and goes on while `drain` takes; a second signal ends that. Then answers
/// what it has, within `grace`.
async fn run_until(
    server: actix_web::dev::Server,
    stop: &mut Stop,
    drain: impl AsyncFnOnce(),
    gateway: &Gateway,
    grace: Duration,
) -> Result<()> {
    let handle = server.handle();
    let serving = tokio::spawn(server);
    let stopped = tokio::select! {
        () = stop.wait() => Ok(()),
        ended = serving => ended.unwrap_or_else(|error| Err(std::io::Error::other(error))),
    };
    socket::stopping();
    if stopped.is_ok() {
        tokio::select! {
            () = drain() => {}
            () = stop.wait() => {}
        }
    }
    tracing::info!("stopping: no more requests are accepted");
    drain::stop(&handle, grace, gateway.quiet()).await;
    stopped.map_err(Error::Http)
}

async fn close(db: &Db) {
    if let Err(error) = db.close().await {
        tracing::warn!(error = %Chain(&error), "the database was not closed cleanly");
    }
    tracing::info!("stopped");
}

/// Reads the files of policy, users and certificate again when they change: each second, and on SIGHUP.
async fn reload(app: Arc<App>, certificate: Option<Arc<tls::Certificate>>) {
    // Without the signal the second is what remains.
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut second = tokio::time::interval(RELOAD);
    loop {
        tokio::select! {
            _ = second.tick() => {}
            Some(()) = async { hangup.as_mut()?.recv().await } => {}
        }
        let (app, certificate) = (app.clone(), certificate.clone());
        let read = tokio::task::spawn_blocking(move || {
            app.policy.refresh();
            app.authenticator.refresh();
            if let Some(certificate) = certificate {
                certificate.refresh();
            }
            if let Some(audit) = &app.audit
                && let Err(error) = audit.refresh()
            {
                tracing::error!(%error, "the file of audit events cannot be opened");
            }
        });
        let _ = read.await;
    }
}

/// Where the API is served, and how.
struct Listener {
    /// Those of the service manager; without any, the configured address is bound.
    sockets: Vec<std::net::TcpListener>,
    tls: Option<(rustls::ServerConfig, Arc<tls::Certificate>)>,
}

impl Listener {
    fn of_config(config: &Config) -> Result<Self> {
        let sockets = socket::given().map_err(Error::Sockets)?;
        let noauth = config.api.auth_strategy == AuthStrategy::Noauth;
        if noauth
            && !config.api.allow_noauth_from_anywhere
            && let Some(address) = socket::beyond_loopback(&sockets)
        {
            return Err(Error::Open(address));
        }
        Ok(Self { sockets, tls: tls::of_config(&config.api)? })
    }
}

fn http_server(
    config: &Config,
    listener: Listener,
    app: web::Data<App>,
    metrics: Metrics,
    db: Db,
    draining: Draining,
) -> Result<(actix_web::dev::Server, String), Error> {
    let mut server = HttpServer::new(move || {
        let (metrics, db) = (metrics.clone(), db.clone());
        HttpApp::new()
            .app_data(app.clone())
            .app_data(web::Data::new(draining.clone()))
            .wrap(from_fn(api::middleware::edge))
            .wrap(from_fn(drain::last_answers))
            .route("/metrics", web::get().to(move || metrics_text(metrics.clone(), db.clone())))
            .configure(api::routes)
    })
    .disable_signals()
    .shutdown_timeout(config.api.shutdown_timeout.as_secs());
    let wanted = (config.api.host, config.api.port);
    let listen = |source| Error::Listen { address: format!("{}:{}", wanted.0, wanted.1), source };
    let scheme = if listener.tls.is_some() { "https" } else { "http" };
    let tls = listener.tls.map(|(tls, _)| tls);
    if listener.sockets.is_empty() {
        server = match tls {
            Some(tls) => server.bind_rustls_0_23(wanted, tls).map_err(listen)?,
            None => server.bind(wanted).map_err(listen)?,
        };
    } else {
        for socket in listener.sockets {
            server = match tls.clone() {
                Some(tls) => server.listen_rustls_0_23(socket, tls).map_err(Error::Sockets)?,
                None => server.listen(socket).map_err(Error::Sockets)?,
            };
        }
    }
    let address = server.addrs().first().map_or_else(String::new, |address| format!("{scheme}://{address}"));
    Ok((server.run(), address))
}

async fn metrics_text(metrics: Metrics, db: Db) -> HttpResponse {
    metrics.commits_so_far(db.commits());
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics.render())
}

/// Says on stdout where the service listens: with port 0 there is no other way to know.
fn announce(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed stdout is no reason not to serve.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    tracing::info!("{line}");
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
