//! How a worker's container is made: pure, so that what holds a function in is read and tested in one place.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, HostConfigLogConfig, ImageInspect, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use protocol::worker::{PRIVATE_DIR, RUN_DIR, SETTINGS, SUPERVISOR, Settings};

use super::bridge::Connection;
use super::cgroup::Bind;
use super::files::Places;
use super::{Error, RuntimeImage, WorkerSpec};
use crate::model::{RuntimeId, WorkerName};

/// Label of an image that holds a shim; its value is the protocol's version.
pub const SHIM_LABEL: &str = "org.openstack.taibai.shim";

pub const DEPLOYMENT: &str = "org.openstack.taibai.deployment";
pub const WORKER: &str = "org.openstack.taibai.worker";
/// Where the runtime images of Qinling listen, as an image tells of it.
const QINLING_PORT: &str = "9090/tcp";

const RUNTIME: &str = "org.openstack.taibai.runtime";
const INDEX: &str = "org.openstack.taibai.index";
const NETWORK: &str = "org.openstack.taibai.network";
const PROTOCOL: &str = "org.openstack.taibai.protocol";

const WORK_DIR: &str = "/taibai/work";

/// Processes of a container beside its executions': the supervisor, the parent interpreter, helpers.
const OVERHEAD_PROCESSES: u64 = 64;

/// What a container is made of, beside the worker's own [`WorkerSpec`].
pub struct Parts<'a> {
    pub deployment: &'a str,
    /// Tells how the worker is connected, for whoever finds it.
    pub network_label: &'a str,
    /// `None` without a network.
    pub connection: Option<&'a Connection>,
    pub supervisor: &'a Path,
    pub overhead_bytes: u64,
    pub places: &'a Places,
    pub cgroups: &'a [Bind],
    pub settings: &'a Settings,
}

pub fn name(deployment: &str, worker: &WorkerName) -> String {
    format!("taibai-{deployment}-{worker}")
}

pub fn body(spec: &WorkerSpec, parts: &Parts<'_>) -> Result<ContainerCreateBody, Error> {
    let settings =
        serde_json::to_string(parts.settings).map_err(|error| Error::failed("writing settings", error))?;
    Ok(ContainerCreateBody {
        hostname: Some("worker".to_owned()),
        user: Some("0:0".to_owned()),
        env: Some(vec![format!("{SETTINGS}={settings}")]),
        entrypoint: Some(vec![SUPERVISOR.to_owned()]),
        cmd: Some(spec.shim.clone()),
        image: Some(spec.image_id.clone()),
        working_dir: Some("/".to_owned()),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        tty: Some(false),
        // An image's own check would run beside the supervisor, as root.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        network_disabled: Some(parts.connection.is_none()),
        labels: Some(labels(spec, parts)),
        host_config: Some(host_config(spec, parts)?),
        ..Default::default()
    })
}

fn labels(spec: &WorkerSpec, parts: &Parts<'_>) -> HashMap<String, String> {
    HashMap::from([
        (DEPLOYMENT.to_owned(), parts.deployment.to_owned()),
        (WORKER.to_owned(), spec.name.to_string()),
        (RUNTIME.to_owned(), spec.runtime.to_string()),
        (INDEX.to_owned(), spec.index.to_string()),
        (NETWORK.to_owned(), parts.network_label.to_owned()),
        (PROTOCOL.to_owned(), protocol::VERSION.to_string()),
    ])
}

fn host_config(spec: &WorkerSpec, parts: &Parts<'_>) -> Result<HostConfig, Error> {
    let memory = i64::try_from(parts.overhead_bytes)
        .map_err(|error| Error::failed("reading [docker] overhead_bytes", error))?;
    let pids = u64::from(spec.slots) * u64::from(spec.limits.max_processes) + OVERHEAD_PROCESSES;
    let strings = |list: &[&str]| Some(list.iter().map(|&one| one.to_owned()).collect());
    let pairs = |list: &[(&str, &str)]| {
        Some(list.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect())
    };

    Ok(HostConfig {
        readonly_rootfs: Some(true),
        privileged: Some(false),
        cap_drop: strings(&["ALL"]),
        cap_add: strings(&["SETUID", "SETGID", "KILL"]),
        // Docker's own seccomp profile applies where none is named.
        security_opt: strings(&["no-new-privileges"]),
        // The numbers of users are the host's: they are what keeps one slot from another.
        userns_mode: Some("host".to_owned()),
        // The supervisor must see its subtree as what it is on the host.
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::HOST),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(16 << 20),
        // Shared memory that its last user left behind would be charged to nobody.
        sysctls: pairs(&[
            // Memory that nobody is attached to goes away; queues, which would stay and be charged to
            // whoever comes next, cannot be made.
            ("kernel.shm_rmid_forced", "1"),
            ("kernel.msgmni", "0"),
            ("fs.mqueue.queues_max", "0"),
        ]),
        pids_limit: Some(i64::try_from(pids).map_err(|error| Error::failed("counting processes", error))?),
        memory: Some(memory),
        memory_swap: Some(memory),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) }]),
        // The supervisor reaps.
        init: Some(false),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        network_mode: Some(parts.connection.map_or("none", |connection| &connection.network).to_owned()),
        dns: parts.connection.map(|connection| connection.dns.clone()),
        // The host's would tell of its network, and have names looked up there first.
        dns_search: parts.connection.map(|_| vec![".".to_owned()]),
        extra_hosts: parts.connection.map(|connection| connection.extra_hosts.clone()),
        tmpfs: pairs(&[
            ("/tmp", "rw,nosuid,nodev,size=64m,mode=1777"),
            (PRIVATE_DIR, "rw,nosuid,nodev,noexec,size=1m,mode=0700"),
        ]),
        mounts: Some(mounts(parts)?),
        ..Default::default()
    })
}

/// Mounts and not "binds": Docker creates the missing directory of a bind, as root and unbounded.
fn mounts(parts: &Parts<'_>) -> Result<Vec<Mount>, Error> {
    let mount = |source: &Path, target: &str, read_only| {
        let source = source
            .to_str()
            .ok_or_else(|| Error::failed("reading [docker]", format!("{} is not UTF-8", source.display())))?;
        Ok(Mount {
            typ: Some(MountType::BIND),
            source: Some(source.to_owned()),
            target: Some(target.to_owned()),
            read_only: Some(read_only),
            ..Default::default()
        })
    };
    let mut mounts = vec![
        mount(parts.supervisor, SUPERVISOR, true)?,
        mount(&parts.places.run, RUN_DIR, false)?,
        mount(&parts.places.work, WORK_DIR, false)?,
    ];
    if let Some(connection) = parts.connection {
        mounts.push(mount(&connection.resolv_conf, "/etc/resolv.conf", true)?);
    }
    for bind in parts.cgroups {
        mounts.push(mount(&bind.source, &bind.target, false)?);
    }
    Ok(mounts)
}

/// What a container says of itself; `None` where it is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: WorkerName,
    pub runtime: RuntimeId,
    pub index: u32,
    pub container_id: String,
    pub image_id: String,
    /// What [`Parts::network_label`] was.
    pub network: Option<String>,
    pub running: bool,
}

pub fn seen(container: ContainerSummary, deployment: &str) -> Option<Seen> {
    let mut labels = container.labels?;
    let worker = WorkerName::from(labels.remove(WORKER)?);
    // Docker adds the labels of an image to those of a container, and a function may be any image. Names are
    // given by us alone.
    let wanted = name(deployment, &worker);
    if !container.names?.iter().any(|name| name.trim_start_matches('/') == wanted) {
        return None;
    }
    Some(Seen {
        name: worker,
        runtime: labels.remove(RUNTIME)?.into(),
        index: labels.remove(INDEX)?.parse().ok()?,
        container_id: container.id?,
        image_id: container.image_id.unwrap_or_default(),
        network: labels.remove(NETWORK),
        running: container.state == Some(ContainerSummaryStateEnum::RUNNING),
    })
}

/// Whether an image can be a runtime: it names the version of the shim's protocol and how to start it.
pub fn runtime_image(reference: &str, image: ImageInspect) -> Result<RuntimeImage, Error> {
    let refuse = |why: String| Error::NotARuntime { reference: reference.to_owned(), why };

    let config = image.config.unwrap_or_default();
    let version = config.labels.as_ref().and_then(|labels| labels.get(SHIM_LABEL));
    match version {
        None if config.exposed_ports.is_some_and(|ports| ports.iter().any(|port| port == QINLING_PORT)) => {
            return Err(refuse(
                "it was built for Qinling (it listens on port 9090). Taibai needs an image with a shim: rebuild it \
                 on taibai/python3 or taibai/nodejs, see runtimes/README.md"
                    .to_owned(),
            ));
        }
        None => return Err(refuse(format!("it has no label {SHIM_LABEL}, see runtimes/README.md"))),
        Some(version) if *version != protocol::VERSION.to_string() => {
            return Err(refuse(format!(
                "its label {SHIM_LABEL} is {version:?} and must be \"{}\"",
                protocol::VERSION
            )));
        }
        Some(_) => {}
    }
    // Docker would make each a directory on the host, writable and without a bound.
    if config.volumes.is_some_and(|volumes| !volumes.is_empty()) {
        return Err(refuse("it declares volumes".to_owned()));
    }
    let shim = config.cmd.unwrap_or_default();
    if shim.is_empty() {
        return Err(refuse("it has no command (CMD) that starts its shim".to_owned()));
    }
    let id = image.id.ok_or_else(|| refuse("it has no id".to_owned()))?;
    Ok(RuntimeImage { id, shim })
}

#[cfg(test)]
mod tests;
