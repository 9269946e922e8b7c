use std::path::PathBuf;

use bollard::models::ImageConfig;
use protocol::worker::{CGROUP_DIR, Cgroup, PACKAGE_DIR, SCRATCH_DIR};

use super::*;
use crate::orchestrator::files::Files;
use crate::orchestrator::{Network, SlotLimits};

fn spec() -> WorkerSpec {
    WorkerSpec {
        name: "w1".into(),
        index: 7,
        runtime: "python".into(),
        image_id: "sha256:feed".to_owned(),
        shim: vec!["python3".to_owned(), "/shim.py".to_owned()],
        slots: 3,
        network: Network::None,
        limits: SlotLimits { max_processes: 100, max_executions_per_slot: 9, memory_mark: 8 },
    }
}

fn made(spec: &WorkerSpec) -> ContainerCreateBody {
    made_with(spec, "none", None)
}

fn made_with(spec: &WorkerSpec, network_label: &str, connection: Option<&Connection>) -> ContainerCreateBody {
    let files = Files::at(Path::new("/run/taibai"), Path::new("/var/work"), "demo").unwrap();
    let places = files.places(&spec.name);
    let cgroups = [Bind { source: PathBuf::from("/cg/memory/w1"), target: format!("{CGROUP_DIR}/memory") }];
    let parts = Parts {
        deployment: "demo",
        network_label,
        connection,
        supervisor: Path::new("/opt/supervisor"),
        overhead_bytes: 256 << 20,
        places: &places,
        cgroups: &cgroups,
        settings: &crate::orchestrator::settings(spec, 4096, Cgroup::V1),
    };
    body(spec, &parts).unwrap()
}

fn host(spec: &WorkerSpec) -> HostConfig {
    made(spec).host_config.unwrap()
}

fn texts(list: Option<Vec<String>>) -> Vec<String> {
    list.unwrap_or_default()
}

#[test]
fn the_supervisor_is_the_first_process_and_starts_the_images_shim() {
    let body = made(&spec());
    assert_eq!(texts(body.entrypoint), ["/taibai/supervisor"]);
    assert_eq!(texts(body.cmd), ["python3", "/shim.py"]);
    assert_eq!(body.image.as_deref(), Some("sha256:feed"));
    assert_eq!(body.user.as_deref(), Some("0:0"));
    assert_eq!(body.hostname.as_deref(), Some("worker"));
    assert_eq!(body.tty, Some(false));
    assert_eq!(body.healthcheck.unwrap().test.unwrap(), ["NONE"]);
    assert_eq!(body.host_config.unwrap().init, Some(false));
}

#[test]
fn the_environment_holds_the_settings_and_nothing_else() {
    let env = texts(made(&spec()).env);
    assert_eq!(env.len(), 1);
    let settings: Settings = serde_json::from_str(env[0].strip_prefix("TAIBAI_SETTINGS=").unwrap()).unwrap();
    assert_eq!(
        settings,
        Settings {
            worker: "w1".to_owned(),
            slots: 3,
            uid_base: 4096,
            cgroup: Cgroup::V1,
            max_processes: 100,
            max_executions_per_slot: 9,
            memory_mark: 8,
        }
    );
}

#[test]
fn a_container_has_three_capabilities_and_can_gain_none() {
    let host = host(&spec());
    assert_eq!(texts(host.cap_drop), ["ALL"]);
    assert_eq!(texts(host.cap_add), ["SETUID", "SETGID", "KILL"]);
    assert_eq!(texts(host.security_opt), ["no-new-privileges"]);
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.userns_mode.as_deref(), Some("host"));
}

#[test]
fn memory_processes_and_core_files_are_bounded() {
    let host = host(&spec());
    assert_eq!(host.memory, Some(256 << 20));
    assert_eq!(host.memory_swap, Some(256 << 20));
    assert_eq!(host.pids_limit, Some(3 * 100 + 64));
    let core = &host.ulimits.unwrap()[0];
    assert_eq!((core.name.as_deref(), core.soft, core.hard), (Some("core"), Some(0), Some(0)));
}

#[test]
fn nothing_can_be_written_but_small_tmpfs_and_the_workers_own_directories() {
    let host = host(&spec());
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.shm_size, Some(16 << 20));
    assert_eq!(
        host.tmpfs.unwrap(),
        HashMap::from([
            ("/tmp".to_owned(), "rw,nosuid,nodev,size=64m,mode=1777".to_owned()),
            ("/taibai/private".to_owned(), "rw,nosuid,nodev,noexec,size=1m,mode=0700".to_owned()),
        ])
    );
    assert_eq!(host.binds, None);
    let mounts: Vec<_> = host
        .mounts
        .unwrap()
        .into_iter()
        .map(|mount| {
            assert_eq!(mount.typ, Some(MountType::BIND));
            (mount.source.unwrap(), mount.target.unwrap(), mount.read_only.unwrap())
        })
        .collect();
    let mount = |source: &str, target: &str, read_only| (source.to_owned(), target.to_owned(), read_only);
    assert_eq!(
        mounts,
        [
            mount("/opt/supervisor", "/taibai/supervisor", true),
            mount("/run/taibai/w/demo/w1/run", "/taibai/private/run", false),
            mount("/var/work/demo/w1/mnt", "/taibai/work", false),
            mount("/cg/memory/w1", "/taibai/private/cgroup/memory", false),
        ]
    );
    for inner in [PACKAGE_DIR, SCRATCH_DIR] {
        assert!(inner.starts_with(WORK_DIR), "{inner}");
    }
}

#[test]
fn namespaces_are_private_and_docker_keeps_no_log_and_restarts_nothing() {
    let host = host(&spec());
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!(host.pid_mode, None);
    assert_eq!(host.uts_mode, None);
    assert_eq!(host.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::HOST));
    let sysctls = host.sysctls.unwrap();
    assert_eq!(sysctls["kernel.shm_rmid_forced"], "1");
    assert_eq!((&*sysctls["kernel.msgmni"], &*sysctls["fs.mqueue.queues_max"]), ("0", "0"));
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
    assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
    assert_eq!(host.auto_remove, Some(false));
    assert_eq!(host.devices, None);
}

#[test]
fn without_a_network_none_is_set_up_at_all() {
    let none = made(&spec());
    assert_eq!(none.network_disabled, Some(true));
    assert_eq!(none.host_config.unwrap().network_mode.as_deref(), Some("none"));
}

#[test]
fn a_container_on_the_bridge_is_given_names_and_name_servers() {
    let connection = Connection {
        network: "taibai-demo".to_owned(),
        dns: vec!["192.0.2.53".to_owned()],
        resolv_conf: "/run/taibai/w/demo/.resolv.conf".into(),
        extra_hosts: vec!["keystone:192.0.2.10".to_owned()],
    };
    let body = made_with(&WorkerSpec { network: Network::Bridge, ..spec() }, "bridge-1", Some(&connection));
    assert_eq!(body.network_disabled, Some(false));
    assert_eq!(body.labels.unwrap()[NETWORK], "bridge-1");
    let host = body.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("taibai-demo"));
    assert_eq!(texts(host.dns), ["192.0.2.53"]);
    assert_eq!(texts(host.dns_search), ["."]);
    assert_eq!(texts(host.extra_hosts), ["keystone:192.0.2.10"]);
    let mounts = host.mounts.unwrap();
    let at = |mount: &&Mount| mount.target.as_deref() == Some("/etc/resolv.conf");
    let mount = mounts.iter().find(at).unwrap();
    assert_eq!(mount.source.as_deref(), Some("/run/taibai/w/demo/.resolv.conf"));
    assert_eq!(mount.read_only, Some(true));
}

#[test]
fn a_container_is_recognized_by_the_labels_it_was_given() {
    let body = made(&spec());
    assert_eq!(body.labels.as_ref().unwrap()[DEPLOYMENT], "demo");
    assert_eq!(body.labels.as_ref().unwrap()[PROTOCOL], protocol::VERSION.to_string());
    let summary = |state| ContainerSummary {
        id: Some("c1".to_owned()),
        image_id: Some("sha256:feed".to_owned()),
        names: Some(vec!["/taibai-demo-w1".to_owned()]),
        labels: body.labels.clone(),
        state: Some(state),
        ..Default::default()
    };

    let running = seen(summary(ContainerSummaryStateEnum::RUNNING), "demo").unwrap();
    let exited = seen(summary(ContainerSummaryStateEnum::EXITED), "demo").unwrap();

    assert_eq!(
        running,
        Seen {
            name: "w1".into(),
            runtime: "python".into(),
            index: 7,
            container_id: "c1".to_owned(),
            image_id: "sha256:feed".to_owned(),
            network: Some("none".to_owned()),
            running: true,
        }
    );
    assert_eq!(exited, Seen { running: false, ..running });
}

#[test]
fn a_container_whose_labels_are_not_ours_is_none_of_our_workers() {
    let stray = ContainerSummary {
        id: Some("c1".to_owned()),
        labels: Some(HashMap::from([(DEPLOYMENT.to_owned(), "demo".to_owned())])),
        ..Default::default()
    };
    assert_eq!(seen(stray, "demo"), None);
    let labels = made(&spec()).labels;
    // Of a function whose image has our labels.
    let named = ContainerSummary {
        id: Some("c1".to_owned()),
        names: Some(vec!["/taibai-demo-run-0fe2-1".to_owned()]),
        labels,
        ..Default::default()
    };
    assert_eq!(seen(named, "demo"), None);
}

#[test]
fn names_carry_the_deployment_and_the_worker() {
    assert_eq!(name("demo", &"w1".into()), "taibai-demo-w1");
}

fn image(version: Option<&str>, cmd: &[&str]) -> ImageInspect {
    let labels = version.map(|version| HashMap::from([(SHIM_LABEL.to_owned(), version.to_owned())]));
    let cmd = Some(cmd.iter().map(|&word| word.to_owned()).collect());
    let config = Some(ImageConfig { labels, cmd, ..Default::default() });
    ImageInspect { id: Some("sha256:feed".to_owned()), config, ..Default::default() }
}

fn why(image: ImageInspect) -> String {
    match runtime_image("demo:1", image) {
        Err(Error::NotARuntime { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_with_our_label_and_a_command_is_a_runtime() {
    let found = runtime_image("demo:1", image(Some("2"), &["python3", "/shim.py"])).unwrap();
    assert_eq!(found.id, "sha256:feed");
    assert_eq!(found.shim, ["python3", "/shim.py"]);
}

#[test]
fn an_image_that_is_no_runtime_is_told_what_it_lacks() {
    assert!(why(image(None, &["sh"])).contains("no label org.openstack.taibai.shim"));
    let mut qinlings = image(None, &["python3", "-m", "server"]);
    qinlings.config.as_mut().unwrap().exposed_ports = Some(vec!["9090/tcp".to_owned()]);
    let told = why(qinlings);
    assert!(told.starts_with("it was built for Qinling (it listens on port 9090)"), "{told}");
    assert!(told.contains("rebuild it on taibai/python3"), "{told}");
    assert!(why(image(Some("1"), &["sh"])).contains("is \"1\" and must be \"2\""));
    assert!(why(image(Some("2"), &[])).contains("CMD"));
    let mut with_volume = image(Some("2"), &["sh"]);
    with_volume.config.as_mut().unwrap().volumes = Some(vec!["/data".to_owned()]);
    assert!(why(with_volume).contains("volumes"));
}
