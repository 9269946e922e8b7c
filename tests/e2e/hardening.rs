//! What holds a function in, asked of live containers: a worker's and an image's, as Docker shows them, as the
//! kernel shows their processes, and as they see themselves.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use crate::images::{self, Image};
use crate::service::{Service, eventually, output};

/// What a function says of where it is.
const LOOKS: &str = r"
import os
def main(**kwargs):
    read = lambda path: open(path).read()
    return {'mounts': read('/proc/self/mountinfo'), 'devices': sorted(os.listdir('/dev')), 'status': read('/proc/self/status'),
            'environment': sorted(os.environ), 'limits': read('/proc/self/limits')}
";

fn inspect(container: &str) -> Value {
    let ran = Command::new("docker").args(["inspect", container]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let found: Value = serde_json::from_slice(&ran.stdout).unwrap();
    found[0].clone()
}

/// Whether two values say the same. Releases of Docker differ in how they write nothing, and a capability.
fn same(found: &Value, wanted: &Value) -> bool {
    let nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
    };
    let plain = |value: &Value| match value {
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let texts = items.iter().map(|item| item.as_str().unwrap().trim_start_matches("CAP_"));
            let texts: BTreeSet<_> = texts.map(|text| text.trim_end_matches(":true").to_owned()).collect();
            json!(texts)
        }
        other => other.clone(),
    };
    (nothing(found) && nothing(wanted)) || plain(found) == plain(wanted)
}

/// Asserts each line of a table: where in the answer, and what is there.
fn assert_table(inspected: &Value, table: &[(&str, Value)]) {
    let wrong: Vec<_> = table
        .iter()
        .map(|(pointer, wanted)| (pointer, wanted, inspected.pointer(pointer).unwrap_or(&Value::Null)))
        .filter(|(_, wanted, found)| !same(found, wanted))
        .map(|(pointer, wanted, found)| format!("{pointer} is {found} and must be {wanted}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What neither a worker nor an image has, whatever else it has.
fn nothing_more() -> Vec<(&'static str, Value)> {
    [
        "Privileged",
        "Binds",
        "VolumesFrom",
        "Devices",
        "DeviceRequests",
        "DeviceCgroupRules",
        "GroupAdd",
        "Links",
        "PortBindings",
        "PublishAllPorts",
        "PidMode",
        "UTSMode",
        "AutoRemove",
        "OomKillDisable",
        "ContainerIDFile",
        "VolumeDriver",
        "StorageOpt",
        "MemoryReservation",
        "CpusetCpus",
        "OomScoreAdj",
    ]
    .map(|key| (key, Value::Null))
    .into()
}

fn with_prefix(table: Vec<(&'static str, Value)>) -> Vec<(&'static str, Value)> {
    // Leaked, which a test may: pointers are static everywhere else.
    table.into_iter().map(|(key, value)| (&*format!("/HostConfig/{key}").leak(), value)).collect()
}

/// Mounts as (target, writable, kind).
fn mounts(inspected: &Value) -> BTreeSet<(String, bool, String)> {
    let all = inspected["Mounts"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|mount| (text(&mount["Destination"]), mount["RW"].as_bool().unwrap(), text(&mount["Type"])))
        .collect()
}

fn bind(target: &str, writable: bool) -> (String, bool, String) {
    (target.to_owned(), writable, "bind".to_owned())
}

/// Lines of /proc/PID/status.
fn status<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
}

/// The processes of a container, as this machine sees them.
fn processes(inspected: &Value) -> Vec<String> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = namespace(&inspected["State"]["Pid"].to_string());
    assert!(inside.is_some(), "{}", inspected["State"]);
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| namespace(&entry.file_name().to_string_lossy()) == inside)
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
        .collect()
}

fn is_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether processor time has a hierarchy of its own, as few machines have it.
fn counts_processor_apart() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let options: Vec<_> = fields[3].split(',').collect();
        fields[2] == "cgroup" && options.contains(&"cpuacct") && !options.contains(&"cpu")
    })
}

#[tokio::test]
async fn a_worker_has_what_the_design_says_and_nothing_more() {
    let service = crate::network::start(&[("engine.pool_size", "0")]).await;
    let runtime = service.runtime().await;
    for network in ["default", "none"] {
        let is_connected = network == "default";
        let function = service.function("demo", &runtime, LOOKS, &[("network", network)]).await;
        let done = service.execute("demo", &function, "").await;
        assert_eq!(done["status"], "success", "{done}");
        let seen = output(&done);
        let worker = service.workers(&function).await.remove(0);
        let inspected = inspect(&format!("taibai-{}-{worker}", service.home.deployment));

        let environment = inspected["Config"]["Env"].as_array().unwrap().iter();
        let own = environment.clone().find_map(|one| one.as_str().unwrap().strip_prefix("TAIBAI_SETTINGS="));
        let settings: Value = serde_json::from_str(own.unwrap()).unwrap();
        let number = |key: &str| settings[key].as_u64().unwrap();
        let memory = inspected["HostConfig"]["Memory"].clone();
        assert!(memory.as_u64().unwrap() > 0);
        let docker_network = format!("taibai-{}", service.home.deployment);
        let table = [
            ("ReadonlyRootfs", json!(true)),
            ("CapDrop", json!(["ALL"])),
            ("CapAdd", json!(["KILL", "SETGID", "SETUID"])),
            // No profile of seccomp is named, so Docker's own applies; that one does is seen below.
            ("SecurityOpt", json!(["no-new-privileges"])),
            ("PidsLimit", json!(number("slots") * number("max_processes") + 64)),
            ("MemorySwap", memory),
            ("LogConfig", json!({"Type": "none", "Config": {}})),
            ("RestartPolicy/Name", json!("no")),
            ("NetworkMode", json!(if is_connected { docker_network.as_str() } else { "none" })),
            ("IpcMode", json!("private")),
            ("UsernsMode", json!("host")),
            ("CgroupnsMode", json!("host")),
            ("ShmSize", json!(16 << 20)),
            ("Init", json!(false)),
            ("CgroupParent", Value::Null),
            ("Ulimits", json!([{"Name": "core", "Soft": 0, "Hard": 0}])),
            (
                "Sysctls",
                json!({"kernel.shm_rmid_forced": "1", "kernel.msgmni": "0", "fs.mqueue.queues_max": "0"}),
            ),
            (
                "Tmpfs",
                json!({"/tmp": "rw,nosuid,nodev,size=64m,mode=1777",
                             "/taibai/private": "rw,nosuid,nodev,noexec,size=1m,mode=0700"}),
            ),
            ("Runtime", json!("runc")),
        ];
        assert_table(&inspected, &with_prefix([table.to_vec(), nothing_more()].concat()));
        assert_table(
            &inspected,
            &[
                ("/Config/User", json!("0:0")),
                ("/Config/Entrypoint", json!(["/taibai/supervisor"])),
                ("/Config/Healthcheck/Test", json!(["NONE"])),
                ("/Config/Volumes", Value::Null),
                ("/Config/Tty", json!(false)),
                ("/Config/OpenStdin", json!(false)),
                ("/Config/AttachStdout", json!(false)),
                ("/Config/Hostname", json!("worker")),
            ],
        );
        // By its content: what a name comes to mean changes nothing.
        assert!(
            inspected["Config"]["Image"].as_str().unwrap().starts_with("sha256:"),
            "{}",
            inspected["Config"]
        );
        let names: BTreeSet<_> =
            environment.map(|one| one.as_str().unwrap().split('=').next().unwrap()).collect();
        let ours: Vec<_> =
            names.iter().filter(|name| name.starts_with("TAIBAI") || name.starts_with("OS_")).collect();
        assert_eq!(ours, [&"TAIBAI_SETTINGS"]);

        let mut expected = vec![
            bind("/taibai/supervisor", false),
            bind("/taibai/private/run", true),
            bind("/taibai/work", true),
        ];
        expected.extend(is_connected.then(|| bind("/etc/resolv.conf", false)));
        if is_v2() {
            expected.push(bind("/taibai/private/cgroup", true));
        } else {
            let counter = counts_processor_apart().then_some("cpuacct");
            let hierarchies = ["memory", "cpu", "pids"].into_iter().chain(counter);
            expected.extend(hierarchies.map(|name| bind(&format!("/taibai/private/cgroup/{name}"), true)));
        }
        assert_eq!(mounts(&inspected), expected.into_iter().collect(), "{network}");

        // Its processes: the supervisor, the parent interpreter, and slots that have no rights at all.
        let base = number("uid_base");
        let mut roles = BTreeSet::new();
        for text in processes(&inspected) {
            let uid: u64 = status(&text, "Uid").split_whitespace().next().unwrap().parse().unwrap();
            let (role, rights) = match uid {
                0 => ("supervisor", "00000000000000e0"),
                _ if uid == base + 14 => ("parent", "00000000000000c0"),
                _ => ("slot", "0000000000000000"),
            };
            roles.insert(role);
            assert!(uid == 0 || (base..base + 15).contains(&uid), "{text}");
            for set in ["CapEff", "CapPrm"] {
                assert_eq!(status(&text, set), rights, "{role}: {set}");
            }
            // KILL, SETGID and SETUID are numbers 5, 6 and 7.
            assert_eq!(status(&text, "CapBnd"), "00000000000000e0", "{role}");
            for set in ["CapInh", "CapAmb"] {
                assert!(["0000000000000000", rights].contains(&status(&text, set)), "{role}: {set}");
            }
            assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("1", "2"), "{role}");
        }
        assert_eq!(roles, BTreeSet::from(["parent", "slot", "supervisor"]));

        // What the function sees: nothing to write to but its own, no device that leads anywhere.
        let mut writable = BTreeSet::new();
        for line in seen["mounts"].as_str().unwrap().lines() {
            let fields: Vec<_> = line.split(' ').collect();
            // Where Docker masks a file, with nothing.
            if fields[3] == "/null" {
                continue;
            }
            let (at, options) = (fields[4], fields[5].split(',').collect::<BTreeSet<_>>());
            if options.contains("rw") {
                writable.insert(at);
                // What a function may write to, and the directory that no function can enter.
                let is_bare =
                    ["/taibai/work", "/taibai/private", "/tmp", "/dev/shm", "/dev/mqueue"].contains(&at);
                assert!(!is_bare || (options.contains("nosuid") && options.contains("nodev")), "{line}");
            }
            assert!(!line.contains("docker.sock"), "{line}");
        }
        let own = [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/tmp",
            "/taibai/private",
            "/taibai/private/run",
            "/taibai/work",
            // Root's, with nothing in it that is a slot's.
            "/sys/fs/cgroup",
        ];
        let beyond =
            writable.iter().filter(|at| !own.contains(at) && !at.starts_with("/taibai/private/cgroup"));
        assert_eq!(beyond.collect::<Vec<_>>(), Vec::<&&str>::new());
        let devices: Vec<_> =
            seen["devices"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        // A name for the kernel's memory, which is masked, where the kernel has one.
        let devices: Vec<_> = devices.into_iter().filter(|name| *name != "core").collect();
        assert_eq!(
            devices,
            [
                "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
                "tty", "urandom", "zero"
            ]
        );
        let text = seen["status"].as_str().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(text, set), "0000000000000000", "{set}");
        }
        let environment = seen["environment"].to_string();
        assert!(!environment.contains("TAIBAI") && !environment.contains("OS_"), "{environment}");
        service.ask("demo", "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn the_container_of_an_image_has_what_the_design_says_and_nothing_more() {
    let service: Service = crate::network::start(&[images::ANY[0], ("engine.max_log_bytes", "100000")]).await;
    let program = "cat /proc/self/status; ls /dev; cat /proc/self/mountinfo; exec sleep 60";
    // What it says of users counts for nothing.
    let image = Image::of("hardening", "USER 0", &json!(["/bin/bash", "-c", program]));
    for network in ["default", "none"] {
        let fields = [("timeout", json!(100)), ("cpu", json!(500)), ("network", json!(network))];
        let function = images::function(&service, &image, &fields).await;
        let execution = service.accept("demo", &function, "").await;
        let mut name = String::new();
        eventually("the container runs", async || {
            let names = service.home.container_names();
            name = names.lines().find(|name| name.contains(&execution)).unwrap_or_default().to_owned();
            !name.is_empty()
        })
        .await;
        eventually("its program runs", async || {
            let seen = processes(&inspect(&name));
            seen.iter().any(|text| status(text, "Name") == "sleep")
        })
        .await;
        let inspected = inspect(&name);
        let docker_network = format!("taibai-{}", service.home.deployment);
        let table = [
            ("ReadonlyRootfs", json!(true)),
            ("CapDrop", json!(["ALL"])),
            ("CapAdd", Value::Null),
            ("SecurityOpt", json!(["no-new-privileges"])),
            ("Memory", json!(64 << 20)),
            ("MemorySwap", json!(64 << 20)),
            ("NanoCpus", json!(500_000_000)),
            ("LogConfig", json!({"Type": "json-file", "Config": {"max-size": "400000", "max-file": "2"}})),
            ("RestartPolicy/Name", json!("no")),
            ("NetworkMode", json!(if network == "default" { docker_network.as_str() } else { "none" })),
            ("IpcMode", json!("private")),
            ("ShmSize", json!(16 << 20)),
            ("Init", json!(true)),
            (
                "Ulimits",
                json!([
                    {"Name": "core", "Soft": 0, "Hard": 0},
                    {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                    {"Name": "fsize", "Soft": 524_288_000, "Hard": 524_288_000},
                ]),
            ),
            ("Tmpfs", json!({"/tmp": "rw,nosuid,nodev,size=67108864,mode=1777"})),
            ("Runtime", json!("runc")),
        ];
        assert_table(&inspected, &with_prefix([table.to_vec(), nothing_more()].concat()));
        // Beside those of workers, where Docker names groups as their files are named.
        let group = inspected["HostConfig"]["CgroupParent"].as_str().unwrap();
        let ours = format!("/taibai/{}/run-{execution}", service.home.deployment);
        assert!(group.is_empty() || group.starts_with(&ours), "{group}");
        let pids = inspected["HostConfig"]["PidsLimit"].as_u64().unwrap();
        assert!((1..=256).contains(&pids), "{pids}");
        let user = inspected["Config"]["User"].as_str().unwrap();
        let uid: u32 = user.split(':').next().unwrap().parse().unwrap();
        assert!(uid >= 65_536 && user == format!("{uid}:{uid}"), "{user}");
        let pinned = inspected["Config"]["Image"].as_str().unwrap();
        assert!(pinned.contains("sha256:"), "{pinned}");
        let resolver = (network == "default").then(|| bind("/etc/resolv.conf", false));
        assert_eq!(mounts(&inspected), resolver.into_iter().collect(), "{network}");
        for text in processes(&inspected) {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(&text, set), "0000000000000000", "{set}");
            }
            assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("1", "2"));
            let ids = status(&text, "Uid").split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
            assert_eq!(ids, BTreeSet::from([uid.to_string()]));
        }
        let path = format!("/v1/executions/{execution}/cancel");
        service.ask("demo", "POST", &path, None).await.expect(200);
        let log = service.execution_log("demo", &execution).await;
        assert!(log.contains("CapEff:\t0000000000000000") && !log.contains("docker.sock"), "{log}");
        for line in log.lines().filter(|line| line.contains(" - ")) {
            let fields: Vec<_> = line.split(' ').collect();
            let is_writable = fields[5].split(',').any(|option| option == "rw");
            // The last is root's, which nothing in there is.
            let own = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp", "/sys/fs/cgroup"];
            let own = own.contains(&fields[4]) || fields[3] == "/null";
            assert!(!is_writable || own, "{line}");
        }
        service.ask("demo", "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
    }
    service.stop_clean().await;
}
