//! A container that runs once, to its end: what holds it in, and how it ended. Pure; the calls to Docker
//! are in [`super::docker`].

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, ContainerState, ContainerSummary, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use chrono::{DateTime, Utc};
use protocol::worker::{FILE_BYTES, OPEN_FILES};

use super::bridge::Connection;
use super::container::DEPLOYMENT;
use super::{Error, Network};
use crate::model::{ExecutionId, Timestamp};

pub const EXECUTION: &str = "org.openstack.taibai.execution";
const EPOCH: &str = "org.openstack.taibai.epoch";
const INDEX: &str = "org.openstack.taibai.index";
const DEADLINE: &str = "org.openstack.taibai.deadline";

/// What Docker keeps of a log, for each byte of it that is kept in the end: every line is wrapped in JSON.
const LOG_FACTOR: u64 = 4;

/// One attempt to run an execution, which names its container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunName {
    pub execution: ExecutionId,
    pub epoch: i64,
}

impl std::fmt::Display for RunName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run-{}-{}", self.execution, self.epoch)
    }
}

impl RunName {
    pub(super) fn container(&self, deployment: &str) -> String {
        format!("taibai-{deployment}-{self}")
    }
}

/// A container to be started.
#[derive(Debug, Clone)]
pub struct RunSpec {
    pub name: RunName,
    /// Which user id is the container's. No two containers on a machine have the same at once.
    pub index: u32,
    /// From [`super::FoundImage::digest`].
    pub image: String,
    /// Takes the place of the image's own arguments; empty leaves those.
    pub args: Vec<String>,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub max_processes: u32,
    pub max_log_bytes: u64,
    pub tmp_bytes: u64,
    pub read_only: bool,
    pub network: Network,
    /// When it must have ended, for whoever finds it.
    pub deadline: Timestamp,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// Of the process; one that a signal ended has 128 and its number.
    pub exit_code: i64,
    /// It, or something in it, asked for more memory than it may have.
    pub out_of_memory: bool,
    pub took: Duration,
    /// What it wrote, as much of it as was asked for.
    pub log: String,
    pub log_truncated: bool,
    /// Processor time of its processes, in microseconds, where it is known.
    pub cpu_us: Option<u64>,
    /// The most memory that they had at once, where it is known.
    pub peak_memory_bytes: Option<u64>,
}

/// A container as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRun {
    pub name: RunName,
    pub index: u32,
    pub deadline: Timestamp,
}

pub fn body(
    spec: &RunSpec,
    uid: u32,
    deployment: &str,
    connection: Option<&Connection>,
    cgroup_parent: Option<String>,
) -> Result<ContainerCreateBody, Error> {
    let number = |value: u64| i64::try_from(value).map_err(|error| Error::failed("counting bytes", error));
    let strings = |list: &[&str]| Some(list.iter().map(|&one| one.to_owned()).collect());
    let memory = number(spec.memory_bytes)?;
    let log = HashMap::from([
        ("max-size".to_owned(), (spec.max_log_bytes * LOG_FACTOR).max(64 << 10).to_string()),
        // Where there is one alone, Docker empties it under whoever reads it.
        ("max-file".to_owned(), "2".to_owned()),
    ]);
    let host = HostConfig {
        readonly_rootfs: Some(spec.read_only),
        privileged: Some(false),
        cap_drop: strings(&["ALL"]),
        // Docker's own seccomp profile applies where none is named.
        security_opt: strings(&["no-new-privileges"]),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(16 << 20),
        pids_limit: Some(spec.max_processes.into()),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(spec.cpu_millis) * 1_000_000),
        cgroup_parent,
        ulimits: Some(vec![ulimit("core", 0), ulimit("nofile", OPEN_FILES), ulimit("fsize", FILE_BYTES)]),
        // What it starts and leaves is reaped, and a signal reaches a program that expects to be no init.
        init: Some(true),
        // Read as it comes, and once more by whoever takes over; bounded, since nobody might.
        log_config: Some(HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(log) }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        network_mode: Some(connection.map_or("none", |connection| &connection.network).to_owned()),
        dns: connection.map(|connection| connection.dns.clone()),
        dns_search: connection.map(|_| vec![".".to_owned()]),
        extra_hosts: connection.map(|connection| connection.extra_hosts.clone()),
        tmpfs: Some(HashMap::from([(
            "/tmp".to_owned(),
            format!("rw,nosuid,nodev,size={},mode=1777", spec.tmp_bytes),
        )])),
        mounts: connection.map(|connection| resolv_conf(&connection.resolv_conf)).transpose()?,
        ..Default::default()
    };
    Ok(ContainerCreateBody {
        hostname: Some("function".to_owned()),
        // Whatever the image says: the kernel counts processes and more by user across containers, and its
        // root would be the machine's.
        user: Some(format!("{uid}:{uid}")),
        cmd: (!spec.args.is_empty()).then(|| spec.args.clone()),
        image: Some(spec.image.clone()),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        tty: Some(false),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        network_disabled: Some(connection.is_none()),
        labels: Some(HashMap::from([
            (DEPLOYMENT.to_owned(), deployment.to_owned()),
            (EXECUTION.to_owned(), spec.name.execution.to_string()),
            (EPOCH.to_owned(), spec.name.epoch.to_string()),
            (INDEX.to_owned(), spec.index.to_string()),
            (DEADLINE.to_owned(), spec.deadline.0.to_string()),
        ])),
        host_config: Some(host),
        ..Default::default()
    })
}

fn ulimit(name: &str, most: u64) -> ResourcesUlimits {
    let most = i64::try_from(most).ok();
    ResourcesUlimits { name: Some(name.to_owned()), soft: most, hard: most }
}

fn resolv_conf(path: &Path) -> Result<Vec<Mount>, Error> {
    let source = path
        .to_str()
        .ok_or_else(|| Error::failed("reading [docker]", format!("{} is not UTF-8", path.display())))?;
    Ok(vec![Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some("/etc/resolv.conf".to_owned()),
        read_only: Some(true),
        ..Default::default()
    }])
}

/// What a container says of itself; `None` where it is none of ours.
pub fn seen(container: ContainerSummary, deployment: &str) -> Option<ObservedRun> {
    let mut labels = container.labels?;
    let name =
        RunName { execution: labels.remove(EXECUTION)?.into(), epoch: labels.remove(EPOCH)?.parse().ok()? };
    // Labels may be those of an image.
    let wanted = name.container(deployment);
    if !container.names?.iter().any(|name| name.trim_start_matches('/') == wanted) {
        return None;
    }
    Some(ObservedRun {
        name,
        index: labels.remove(INDEX)?.parse().ok()?,
        deadline: Timestamp(labels.remove(DEADLINE)?.parse().ok()?),
    })
}

/// The time between start and end.
pub fn took(state: &ContainerState) -> Duration {
    let time = |text: &Option<String>| -> Option<DateTime<Utc>> { text.as_ref()?.parse().ok() };
    let (Some(started), Some(finished)) = (time(&state.started_at), time(&state.finished_at)) else {
        return Duration::ZERO;
    };
    (finished - started).to_std().unwrap_or(Duration::ZERO)
}

/// Collects what a container writes, up to a limit.
#[derive(Debug, Default)]
pub struct Log {
    kept: Vec<u8>,
    dropped: u64,
}

impl Log {
    pub fn push(&mut self, bytes: &[u8], most: u64) {
        let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(self.kept.len());
        let kept = bytes.len().min(room);
        self.kept.extend_from_slice(&bytes[..kept]);
        self.dropped += (bytes.len() - kept) as u64;
    }

    /// The text, and whether something is missing from it.
    pub fn into_text(self) -> (String, bool) {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.dropped > 0 {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("[log cut here: {} more bytes were written]\n", self.dropped));
        }
        (text, self.dropped > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RunSpec {
        RunSpec {
            name: RunName { execution: "0fe2".into(), epoch: 2 },
            index: 3,
            image: "registry.example.org/a@sha256:0".to_owned(),
            args: vec!["Qinling".to_owned()],
            cpu_millis: 200,
            memory_bytes: 32 << 20,
            max_processes: 128,
            max_log_bytes: 1 << 20,
            tmp_bytes: 1 << 20,
            read_only: true,
            network: Network::None,
            deadline: Timestamp(7),
        }
    }

    #[test]
    fn a_container_is_held_in() {
        let body = body(&spec(), 70_000, "taibai", None, None).unwrap();
        assert_eq!(body.cmd.as_deref(), Some(&["Qinling".to_owned()][..]));
        assert_eq!(body.user.as_deref(), Some("70000:70000"));
        assert_eq!(body.network_disabled, Some(true));
        assert!(body.env.is_none() && body.entrypoint.is_none());
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert!(host.cap_add.is_none() && host.binds.is_none() && host.mounts.is_none());
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        assert_eq!((host.privileged, host.readonly_rootfs), (Some(false), Some(true)));
        assert_eq!((host.memory, host.memory_swap), (Some(32 << 20), Some(32 << 20)));
        assert_eq!((host.nano_cpus, host.pids_limit), (Some(200_000_000), Some(128)));
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.log_config.unwrap().config.unwrap()["max-size"], (4 << 20).to_string());
    }

    #[test]
    fn the_images_own_arguments_stay_where_there_are_none() {
        let spec = RunSpec { args: Vec::new(), ..spec() };
        assert_eq!(body(&spec, 70_000, "taibai", None, None).unwrap().cmd, None);
    }

    #[test]
    fn a_container_is_known_again_by_its_labels() {
        let labels = body(&spec(), 70_000, "taibai", None, None).unwrap().labels;
        let named = |name: &str, labels| ContainerSummary {
            labels,
            names: Some(vec![format!("/{name}")]),
            ..Default::default()
        };
        let seen_of = |container| seen(container, "taibai");
        let ours = "taibai-taibai-run-0fe2-2";
        let known = seen_of(named(ours, labels.clone())).unwrap();
        assert_eq!(known, ObservedRun { name: spec().name, index: 3, deadline: Timestamp(7) });
        assert_eq!(seen_of(named("another", labels)), None, "labels of an image");
        assert_eq!(seen_of(named(ours, Some(HashMap::new()))), None);
    }

    #[test]
    fn a_log_keeps_its_beginning() {
        let mut log = Log::default();
        log.push(b"one\n", 6);
        log.push(b"two\n", 6);
        assert_eq!(
            log.into_text(),
            ("one\ntw\n[log cut here: 2 more bytes were written]\n".to_owned(), true)
        );
        let mut log = Log::default();
        log.push("é".as_bytes(), 1);
        assert!(log.into_text().0.starts_with('\u{fffd}'));
    }

    #[test]
    fn the_time_is_the_containers_own() {
        let state = |started: &str, finished: &str| ContainerState {
            started_at: Some(started.to_owned()),
            finished_at: Some(finished.to_owned()),
            ..Default::default()
        };
        let took = took(&state("2026-01-02T03:04:05.25Z", "2026-01-02T03:04:07.5Z"));
        assert_eq!(took, Duration::from_millis(2250));
        assert_eq!(super::took(&state("", "0001-01-01T00:00:00Z")), Duration::ZERO);
    }
}
