//! Workers as containers of the local Docker engine.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::errors::Error as DockerError;
use bollard::models::{
    ContainerCreateBody, ContainerSummary, CreateImageInfo, ErrorDetail, SystemInfoCgroupDriverEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use prometheus::{IntCounterVec, Opts};
use protocol::worker::PARENT_UID;
use tokio::sync::OwnedMutexGuard;

use super::bridge::{self, Bridge};
use super::cgroup::Cgroups;
use super::files::Files;
use super::{
    Error, FoundImage, Network, ObservedRun, ObservedWorker, Orchestrator, RunEnd, RunName, RunSpec,
    RuntimeImage, StartedWorker, WorkerSpec, container, first_uid, image, is_plain, run, settings,
};
use crate::config;
use crate::crash_points::{Write, around};
use crate::model::WorkerName;
use crate::network::Guard;
use crate::telemetry::Chain;

/// How long another removal of the same container may take.
const REMOVAL: Duration = Duration::from_secs(10);

/// Counts requests to Docker by kind; a warm call makes none, which tests hold us to.
pub fn call_counter() -> IntCounterVec {
    let opts = Opts::new("taibai_docker_calls_total", "Requests to the Docker engine.");
    IntCounterVec::new(opts, &["call"]).expect("the name and the label are valid")
}

/// The driver. Clones share everything.
#[derive(Clone)]
pub struct Docker {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    client: bollard::Docker,
    calls: IntCounterVec,
    pub(super) deployment: String,
    /// Set once, while connecting.
    bridge: OnceLock<Bridge>,
    supervisor: PathBuf,
    /// Credentials of registries; empty for none.
    auth_file: PathBuf,
    uid_base: u32,
    overhead_bytes: u64,
    pub(super) files: Files,
    cgroups: Cgroups,
    /// Whether Docker makes the control groups of containers where it is told to, by a path.
    nests: bool,
    locks: Mutex<HashMap<WorkerName, Arc<tokio::sync::Mutex<()>>>>,
}

impl Docker {
    /// Connects, and removes what earlier processes left of workers that have no container. One
    /// process at a time may run a deployment's workers on a machine.
    pub async fn connect(config: &config::Docker, calls: IntCounterVec) -> Result<Self, Error> {
        Self::connect_with(config, None, calls).await
    }

    /// The same, and makes the network whose rules `network` keeps in force.
    pub async fn connect_with(
        config: &config::Docker,
        network: Option<Guard>,
        calls: IntCounterVec,
    ) -> Result<Self, Error> {
        if !is_plain(&config.deployment) {
            let why = "it may have letters, digits, - and _, 64 at most, and starts with no sign";
            return Err(Error::failed("reading [docker] deployment", why));
        }
        let supervisor = find_supervisor(config)?;
        let socket = config.socket.to_str().ok_or_else(|| {
            Error::failed("reading [docker] socket", format!("{} is not UTF-8", config.socket.display()))
        })?;
        let timeout = config.start_timeout.as_secs().max(1);
        calls.with_label_values(&["version"]).inc();
        let client = bollard::Docker::connect_with_unix(socket, timeout, bollard::API_DEFAULT_VERSION)
            .map_err(|error| failure("connecting to Docker", error))?
            .negotiate_version()
            .await
            .map_err(|error| failure("connecting to Docker", error))?;

        calls.with_label_values(&["info"]).inc();
        let info = client.info().await.map_err(|error| failure("connecting to Docker", error))?;
        let nests = info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::CGROUPFS);

        let config = config.clone();
        let shared = blocking("preparing directories", move || {
            let cgroups = Cgroups::detect(&config.deployment)?;
            let files =
                Files::open(&config.worker_dir, &config.work_dir, &config.deployment, config.work_bytes)?;
            Ok(Shared {
                client,
                calls,
                deployment: config.deployment,
                bridge: OnceLock::new(),
                supervisor,
                auth_file: config.auth_file,
                uid_base: config.uid_base,
                overhead_bytes: config.overhead_bytes,
                files,
                cgroups,
                nests,
                locks: Mutex::default(),
            })
        })
        .await?;
        if let Some(network) = network {
            let bridge = Bridge::ensure(&shared, network).await?;
            shared.bridge.get_or_init(|| bridge);
        }
        let docker = Self { shared: Arc::new(shared) };
        docker.sweep().await?;
        Ok(docker)
    }

    /// Removes directories and control groups without a container: of a start or a removal that a
    /// crash cut short. Those with one are the caller's to adopt or to stop.
    async fn sweep(&self) -> Result<(), Error> {
        let owned: HashSet<WorkerName> = self.list().await?.into_iter().map(|worker| worker.name).collect();
        let shared = self.shared.clone();
        let found = blocking("listing workers' directories", move || shared.files.list()).await?;
        for name in found.into_iter().filter(|name| !owned.contains(name)) {
            tracing::info!(worker.id = %name, "removing what is left of a worker without a container");
            if let Err(error) = self.stop(&name).await {
                // Its place stays taken until the next start; nothing else depends on it.
                tracing::warn!(worker.id = %name, error = %Chain(&error), "it could not be removed");
            }
        }
        let runs: HashSet<String> =
            self.list_runs().await?.into_iter().map(|run| run.name.to_string()).collect();
        let shared = self.shared.clone();
        if let Err(error) =
            blocking("removing control groups", move || shared.cgroups.sweep_around(&runs)).await
        {
            tracing::warn!(error = %Chain(&error), "control groups of containers could not be removed");
        }
        Ok(())
    }
}

#[async_trait]
impl Orchestrator for Docker {
    async fn start(&self, spec: &WorkerSpec) -> Result<StartedWorker, Error> {
        let (shared, spec) = (self.shared.clone(), spec.clone());
        finish("starting a worker", async move { shared.start(&spec).await }).await
    }

    async fn ended(&self, name: &WorkerName) {
        let name = container::name(&self.shared.deployment, name);
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut waiting = self.shared.call("wait").wait_container(&name, Some(options));
        // One answer, or an error: both say that there is no more to wait for.
        let _ = waiting.next().await;
    }

    async fn stop(&self, name: &WorkerName) -> Result<(), Error> {
        let (shared, name) = (self.shared.clone(), name.clone());
        finish("stopping a worker", async move {
            let _alone = shared.lock(&name).await;
            shared.remove(&name).await
        })
        .await
    }

    async fn list(&self) -> Result<Vec<ObservedWorker>, Error> {
        let found = self.shared.containers(container::WORKER).await?;

        let mut workers = Vec::with_capacity(found.len());
        for summary in found {
            let id = summary.id.clone().unwrap_or_default();
            let Some(seen) =
                container::seen(summary, &self.shared.deployment).filter(|seen| is_plain(seen.name.as_str()))
            else {
                tracing::warn!(container.id = id, "a container has our label but is no worker");
                continue;
            };
            workers.push(ObservedWorker {
                socket: self.shared.files.places(&seen.name).socket,
                name: seen.name,
                runtime: seen.runtime,
                index: seen.index,
                container_id: seen.container_id,
                image_id: seen.image_id,
                network: bridge::network_of(seen.network.as_deref(), self.shared.bridge.get()),
                running: seen.running,
            });
        }
        Ok(workers)
    }

    async fn inspect_image(&self, reference: &str) -> Result<RuntimeImage, Error> {
        match self.shared.call("inspect_image").inspect_image(reference).await {
            Ok(image) => container::runtime_image(reference, image),
            // 400: such a name cannot be an image's.
            Err(DockerError::DockerResponseServerError { status_code: 400 | 404, .. }) => {
                Err(Error::ImageNotFound { reference: reference.to_owned() })
            }
            Err(error) => Err(failure("inspecting an image", error)),
        }
    }

    async fn ping(&self) -> Result<(), Error> {
        let answer = self.shared.call("ping").ping().await;
        answer.map(drop).map_err(|error| failure("asking Docker", error))
    }

    async fn find_image(&self, reference: &str) -> Result<Option<FoundImage>, Error> {
        match self.shared.call("inspect_image").inspect_image(reference).await {
            Ok(image) => Ok(Some(image::found(reference, image)?)),
            // 400: such a name cannot be an image's.
            Err(DockerError::DockerResponseServerError { status_code: 400 | 404, .. }) => Ok(None),
            Err(error) => Err(failure("inspecting an image", error)),
        }
    }

    async fn pull_image(&self, reference: &str) -> Result<(), Error> {
        let (file, name) = (self.shared.auth_file.clone(), reference.to_owned());
        let reading = tokio::task::spawn_blocking(move || image::credentials(&file, &name));
        let credentials = reading.await.map_err(|error| Error::failed("reading credentials", error))??;
        let options = CreateImageOptionsBuilder::new().from_image(reference).build();
        let mut pulling = self.shared.call("pull").create_image(Some(options), None, credentials);
        let refused = |why: String| Error::NotPulled { reference: reference.to_owned(), why };
        while let Some(progress) = pulling.next().await {
            match progress {
                Ok(CreateImageInfo { error_detail: Some(ErrorDetail { message, .. }), .. }) => {
                    return Err(refused(message.unwrap_or_default()));
                }
                Ok(_) => {}
                Err(
                    DockerError::DockerResponseServerError { message, .. }
                    | DockerError::DockerStreamError { error: message },
                ) => return Err(refused(message)),
                Err(error) => return Err(failure("pulling an image", error)),
            }
        }
        Ok(())
    }

    async fn start_run(&self, spec: &RunSpec) -> Result<(), Error> {
        let (shared, spec) = (self.shared.clone(), spec.clone());
        finish("starting a container", async move {
            let started = shared.start_run(&spec).await;
            if started.is_err()
                && let Err(left) = shared.remove_run(&spec.name).await
            {
                tracing::warn!(error = %Chain(&left), "a failed start left a container behind");
            }
            started
        })
        .await
    }

    async fn follow_run(&self, name: &RunName, max_log_bytes: u64) -> Result<RunEnd, Error> {
        self.shared.follow_run(name, max_log_bytes).await
    }

    async fn kill_run(&self, name: &RunName) -> Result<(), Error> {
        let name = name.container(&self.shared.deployment);
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        match self.shared.call("kill").kill_container(&name, Some(options)).await {
            // 409: it does not run.
            Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(failure("killing a container", error)),
        }
    }

    async fn remove_run(&self, name: &RunName) -> Result<(), Error> {
        let (shared, name) = (self.shared.clone(), name.clone());
        finish("removing a container", async move { shared.remove_run(&name).await }).await
    }

    async fn list_runs(&self) -> Result<Vec<ObservedRun>, Error> {
        Ok(self
            .shared
            .containers(run::EXECUTION)
            .await?
            .into_iter()
            .filter_map(|found| run::seen(found, &self.shared.deployment))
            .collect())
    }

    async fn release_network(&self) -> Result<bool, Error> {
        bridge::remove(&self.shared, false).await
    }
}

impl Shared {
    /// The client, for one request. Every request to Docker after the first goes through here.
    pub(super) fn call(&self, call: &'static str) -> &bollard::Docker {
        self.calls.with_label_values(&[call]).inc();
        &self.client
    }

    /// The deployment's containers that have a label, in any state.
    async fn containers(&self, having: &str) -> Result<Vec<ContainerSummary>, Error> {
        let ours = format!("{}={}", container::DEPLOYMENT, self.deployment);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&HashMap::from([("label", vec![ours, having.to_owned()])]))
            .build();
        let found = self.call("list").list_containers(Some(options)).await;
        found.map_err(|error| failure("listing containers", error))
    }

    async fn start_run(&self, spec: &RunSpec) -> Result<(), Error> {
        let connection = match (spec.network, self.bridge.get()) {
            (Network::Bridge, Some(bridge)) => Some(bridge.connection(&self.deployment)?),
            _ => None,
        };
        let name = spec.name.container(&self.deployment);
        // Below those of workers.
        let uid = self.uid_base.checked_sub(spec.index + 1).filter(|uid| *uid > 0);
        let uid = uid
            .ok_or_else(|| Error::failed("starting a container", "its index leaves the range of user ids"))?;
        let around = if self.nests {
            self.cgroups
                .create_around(&spec.name.to_string())
                .map_err(|error| Error::failed("making a control group", error))?
        } else {
            None
        };
        let body = run::body(spec, uid, &self.deployment, connection.as_ref(), around)?;
        self.create_and_start(&name, &spec.image, body).await.map(drop)
    }

    async fn follow_run(&self, run: &RunName, max_log_bytes: u64) -> Result<RunEnd, Error> {
        let name = &run.container(&self.deployment);
        let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
        let mut log = run::Log::default();
        let mut lines = Box::pin(self.call("logs").logs(name, Some(options)));
        while let Some(line) = lines.next().await {
            match line {
                Ok(line) => log.push(&line.into_bytes(), max_log_bytes),
                // What it says is lost, and not how it ends.
                Err(error) => {
                    tracing::warn!(container = name, error = %Chain(&error), "the log of a container breaks off");
                    break;
                }
            }
        }
        // The log ends a moment before the container does.
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let _ = self.call("wait").wait_container(name, Some(options)).next().await;
        let found = self.call("inspect").inspect_container(name, None).await;
        let found = found.map_err(|error| failure("inspecting a container", error))?;
        let state = found.state.unwrap_or_default();
        let (log, log_truncated) = log.into_text();
        let (cpu_us, peak_memory_bytes) = self.cgroups.taken_by(&run.to_string());
        Ok(RunEnd {
            exit_code: state.exit_code.unwrap_or(-1),
            out_of_memory: state.oom_killed.unwrap_or(false),
            took: run::took(&state),
            log,
            log_truncated,
            cpu_us,
            peak_memory_bytes,
        })
    }

    pub(super) async fn remove_run(&self, name: &RunName) -> Result<(), Error> {
        let container = name.container(&self.deployment);
        self.remove_labelled(&container, run::EXECUTION, name.execution.as_str()).await?;
        let (cgroups, name) = (self.cgroups.clone(), name.to_string());
        blocking("removing a control group", move || cgroups.remove_around(&name)).await
    }

    /// Waits until nobody else starts or stops the worker.
    async fn lock(&self, name: &WorkerName) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().expect("no panic while it is held");
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    async fn start(self: &Arc<Self>, spec: &WorkerSpec) -> Result<StartedWorker, Error> {
        let invalid = |why: String| Error::failed("starting a worker", why);
        if !is_plain(spec.name.as_str()) {
            return Err(invalid(format!("{:?} cannot be a worker's name", spec.name.as_str())));
        }
        if !(1..=PARENT_UID).contains(&spec.slots) {
            return Err(invalid(format!("a worker has 1 to {PARENT_UID} slots, not {}", spec.slots)));
        }
        let uid = first_uid(self.uid_base, spec.index)
            .ok_or_else(|| invalid(format!("index {} leaves the range of user ids", spec.index)))?;

        let bridge = self.bridge.get();
        let label = bridge::label_of(&spec.network, bridge)
            .ok_or_else(|| invalid("[network] mode is none, so no worker can have a network".to_owned()))?;
        let connection = match (spec.network, bridge) {
            (Network::Bridge, Some(bridge)) => Some(bridge.connection(&self.deployment)?),
            _ => None,
        };

        let _alone = self.lock(&spec.name).await;
        let (this, name, slots) = (self.clone(), spec.name.clone(), spec.slots);
        let prepared = tokio::task::spawn_blocking(move || {
            let places = this.files.create(&name, uid, slots)?;
            this.cgroups.create(name.as_str()).map(|()| places)
        });
        let places = match around(Write::WorkerFiles, prepared).await {
            Ok(Ok(places)) => places,
            // Somebody's, so not to be cleared away.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(invalid(format!("worker {} exists", spec.name)));
            }
            Ok(Err(error)) => return Err(self.give_up(spec, invalid(error.to_string())).await),
            Err(error) => return Err(self.give_up(spec, invalid(error.to_string())).await),
        };
        let parts = container::Parts {
            deployment: &self.deployment,
            network_label: label,
            connection: connection.as_ref(),
            supervisor: &self.supervisor,
            overhead_bytes: self.overhead_bytes,
            places: &places,
            cgroups: &self.cgroups.binds(spec.name.as_str()),
            settings: &settings(spec, uid, self.cgroups.version()),
        };
        match self.run(spec, &parts).await {
            Ok(container_id) => Ok(StartedWorker { container_id, socket: places.socket }),
            Err(error) => Err(self.give_up(spec, error).await),
        }
    }

    async fn run(&self, spec: &WorkerSpec, parts: &container::Parts<'_>) -> Result<String, Error> {
        let name = container::name(&self.deployment, &spec.name);
        self.create_and_start(&name, &spec.image_id, container::body(spec, parts)?).await
    }

    /// Returns Docker's id of the container.
    async fn create_and_start(
        &self,
        name: &str,
        image: &str,
        body: ContainerCreateBody,
    ) -> Result<String, Error> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let creating = self.call("create").create_container(Some(options), body);
        let created = match around(Write::ContainerCreate, creating).await {
            Ok(created) => created,
            Err(DockerError::DockerResponseServerError { status_code: 404, message })
                if message.contains("No such image") =>
            {
                return Err(Error::ImageNotFound { reference: image.to_owned() });
            }
            Err(error) => return Err(failure("creating a container", error)),
        };
        let starting = self.call("start").start_container(&created.id, None);
        let started = around(Write::ContainerStart, starting).await;
        started.map_err(|error| failure("starting a container", error))?;
        Ok(created.id)
    }

    /// Removes what a failed start made, and returns why it failed.
    async fn give_up(self: &Arc<Self>, spec: &WorkerSpec, error: Error) -> Error {
        if let Err(left) = self.remove(&spec.name).await {
            tracing::warn!(worker.id = %spec.name, error = %left, "a failed start left something behind");
        }
        error
    }

    async fn remove(self: &Arc<Self>, name: &WorkerName) -> Result<(), Error> {
        if !is_plain(name.as_str()) {
            let why = format!("{:?} cannot be a worker's name", name.as_str());
            return Err(Error::failed("stopping a worker", why));
        }
        self.remove_container(name).await?;
        let (this, name) = (self.clone(), name.clone());
        let removing = blocking("removing a worker's directory", move || {
            this.cgroups.remove(name.as_str())?;
            this.files.remove(&name)
        });
        around(Write::FilesRemove, removing).await
    }

    pub(super) async fn remove_container(&self, worker: &WorkerName) -> Result<(), Error> {
        let name = container::name(&self.deployment, worker);
        self.remove_labelled(&name, container::WORKER, worker.as_str()).await
    }

    /// Removes a container of ours that has this label.
    async fn remove_labelled(&self, name: &str, label: &str, value: &str) -> Result<(), Error> {
        // `a-b` of deployment `c` and `b` of `c-a` have containers of one name.
        match self.call("inspect").inspect_container(name, None).await {
            Ok(found) => {
                let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
                let is = |label, value: &str| labels.get(label).is_some_and(|found| found == value);
                if !is(container::DEPLOYMENT, &self.deployment) || !is(label, value) {
                    return Ok(());
                }
            }
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return Ok(()),
            Err(error) => return Err(failure("inspecting a container", error)),
        }

        let until = Instant::now() + REMOVAL;
        loop {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let removing = self.call("remove").remove_container(name, Some(options));
            match around(Write::ContainerRemove, removing).await {
                Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
                    return Ok(());
                }
                // Somebody else is removing it; the name is free once that is done.
                Err(DockerError::DockerResponseServerError { status_code: 409, .. })
                    if Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(failure("removing a container", error)),
            }
        }
    }
}

/// Runs something to its end, though the caller may go away: half a start or half a removal leaves
/// directories that `list` does not show.
async fn finish<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Error::failed(what, error)))
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Error::failed(what, error)),
        Err(error) => Err(Error::failed(what, error)),
    }
}

pub(super) fn failure(what: &'static str, error: DockerError) -> Error {
    match error {
        DockerError::DockerResponseServerError { status_code: 503, .. } => Error::Unavailable(error.into()),
        DockerError::DockerResponseServerError { .. } | DockerError::JsonDataError { .. } => {
            Error::failed(what, error)
        }
        // The daemon was not reached, or went away before it answered.
        error => Error::Unavailable(error.into()),
    }
}

pub(super) fn find_supervisor(config: &config::Docker) -> Result<PathBuf, Error> {
    let path = if config.supervisor.as_os_str().is_empty() {
        let program = std::env::current_exe();
        program
            .map_err(|error| Error::failed("finding the supervisor", error))?
            .with_file_name("taibai-supervisor")
    } else {
        config.supervisor.clone()
    };
    // Docker would make a directory of it, and say something else.
    let what = "finding the supervisor that [docker] supervisor names";
    let explain = |why: String| Error::failed(what, format!("{}: {why}", path.display()));
    let path = std::path::absolute(&path).map_err(|error| explain(error.to_string()))?;
    let found = std::fs::metadata(&path).map_err(|error| explain(error.to_string()))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(explain("is no program".to_owned()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_by_itself_is_unavailable() {
        let answered = |status_code| {
            failure("x", DockerError::DockerResponseServerError { status_code, message: String::new() })
        };
        assert!(matches!(answered(503), Error::Unavailable(_)));
        assert!(matches!(answered(500), Error::Failed { what: "x", .. }));
        assert!(matches!(failure("x", DockerError::RequestTimeoutError), Error::Unavailable(_)));
    }

    #[test]
    fn a_supervisor_that_cannot_run_is_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let supervisor = dir.path().join("supervisor");
        let config = config::Docker { supervisor: supervisor.clone(), ..Default::default() };
        let why = || match find_supervisor(&config) {
            Err(Error::Failed { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        };

        assert!(why().contains("supervisor: No such file"), "{}", why());
        std::fs::write(&supervisor, "").unwrap();
        assert!(why().contains("is no program"), "{}", why());
        std::fs::set_permissions(&supervisor, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_supervisor(&config).unwrap(), supervisor);
    }
}
