//! What a function reaches, tried from inside: sockets of real listeners on this host, in a neighbour's
//! container, and in a network namespace that plays the outside.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use serde_json::{Value, json};
use taibai::config::{self, NetworkMode};
use taibai::network::{Endpoint, Error, Guard, remove_rules};
use taibai::orchestrator::{Docker, Network as Connected, Orchestrator, SlotLimits, call_counter};

use crate::worker::{PYTHON, Worker, eventually};

/// Connects to everything at once and says who answered, and with what the others failed.
const PROBE: &str = r#"
import socket, time
from concurrent.futures import ThreadPoolExecutor

def attempt(target):
    host, port = target
    try:
        with socket.create_connection((host, port), timeout=2) as client:
            return client.recv(16).decode()
    except OSError as error:
        return type(error).__name__ + ' ' + str(error)

def probe(context, targets):
    with ThreadPoolExecutor(len(targets)) as threads:
        return list(threads.map(attempt, targets))

def look_up(context, name):
    began = time.monotonic()
    try:
        found = sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80)})
    except OSError as error:
        found = None
    return {'found': found, 'seconds': time.monotonic() - began}

def listen(context, port):
    with socket.create_server(('0.0.0.0', port)) as server:
        server.settimeout(4)
        try:
            server.accept()
        except OSError:
            return 'nobody came'
        return 'somebody came'

def address(context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(('192.0.2.200', 9))
        return client.getsockname()[0]
"#;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A deployment with a bridge and addresses of its own, so that tests run side by side.
struct Net {
    deployment: String,
    config: config::Network,
    /// Tells addresses and names of tests apart.
    number: u32,
    repairs: IntCounter,
    guard: Guard,
}

impl Net {
    async fn start(change: impl FnOnce(&mut config::Network)) -> Self {
        let number = std::process::id() % 60 * 4 + NEXT.fetch_add(1, Ordering::Relaxed);
        let mut config = config::Network {
            mode: NetworkMode::Bridge,
            bridge_name: format!("tbn{number}"),
            subnet: format!("10.231.{number}.0/24").parse().unwrap(),
            subnet6: Some(format!("fd7a:1ba1:{number:x}::/64").parse().unwrap()),
            check_interval: Duration::from_millis(200),
            ..Default::default()
        };
        change(&mut config);
        let deployment = format!("network{}-{number}", std::process::id());
        let repairs = IntCounter::new("repairs", "repairs").unwrap();
        let guard = Guard::start(&config, &deployment, repairs.clone()).await;
        let guard = guard.expect("these tests need root and nft (apt install nftables)").unwrap();
        Self { deployment, config, number, repairs, guard }
    }

    fn gateway(&self) -> IpAddr {
        format!("10.231.{}.1", self.number).parse().unwrap()
    }

    fn gateway6(&self) -> IpAddr {
        format!("fd7a:1ba1:{:x}::1", self.number).parse().unwrap()
    }

    async fn worker(&self) -> Worker {
        let limits = SlotLimits { max_processes: 128, max_executions_per_slot: 1000, memory_mark: 64 << 20 };
        let worker =
            Worker::start_in(PYTHON, self.deployment.clone(), Some(self.guard.clone()), 1, limits).await;
        worker.load(&[("main.py", PROBE)]).await.unwrap();
        worker
    }

    async fn end(self, worker: Worker) {
        let docker = worker.docker.clone();
        worker.stop().await;
        assert!(docker.release_network().await.unwrap());
        assert_eq!(
            run("docker", &["network", "ls", "-q", "--filter", &format!("name={}", self.deployment)]),
            ""
        );
    }

    fn rules(&self) -> Option<String> {
        try_run("nft", &["list", "table", "inet", &format!("taibai-{}", self.deployment)])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // After a test that failed, too.
        let filter = format!("label=org.openstack.taibai.deployment={}", self.deployment);
        for id in run("docker", &["ps", "-aq", "--filter", &filter]).lines() {
            try_run("docker", &["rm", "-f", id]);
        }
        try_run("docker", &["network", "rm", &format!("taibai-{}", self.deployment)]);
        remove_rules(&self.deployment).unwrap();
    }
}

/// Another network namespace, behind a cable with public addresses. Whoever connects to one of its
/// addresses is answered.
struct Outside {
    name: String,
    routes: Vec<String>,
    server: Child,
}

const ANSWER: &str = r"
import socket, socketserver
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b'here')
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
server = Server(('::', 80), Answer)
print('listening', flush=True)
server.serve_forever()
";

impl Outside {
    /// With these addresses beside the one of the cable.
    fn start(number: u32, addresses: &[&str]) -> Self {
        let name = format!("tbo{number}");
        let (host_end, far_end) = (format!("tboh{number}"), format!("tbof{number}"));
        let [host, far, host6, far6] = ends(number);
        let ip = |line: &str| run("ip", &line.split(' ').collect::<Vec<_>>());
        ip(&format!("netns add {name}"));
        ip(&format!("link add {host_end} type veth peer name {far_end} netns {name}"));
        ip(&format!("addr add {host}/31 dev {host_end}"));
        ip(&format!("-6 addr add {host6}/127 dev {host_end} nodad"));
        ip(&format!("link set {host_end} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} addr add {far}/31 dev {far_end}"));
        ip(&format!("-n {name} -6 addr add {far6}/127 dev {far_end} nodad"));
        ip(&format!("-n {name} link set {far_end} up"));
        ip(&format!("-n {name} route add default via {host}"));
        ip(&format!("-n {name} -6 route add default via {host6}"));
        let mut routes = Vec::new();
        for address in addresses {
            let via = if address.contains(':') { &far6 } else { &far };
            ip(&format!("-n {name} addr add {address} dev lo"));
            ip(&format!("route replace {address} via {via}"));
            routes.push(format!("{address} via {via}"));
        }
        let mut server = Command::new("ip")
            .args(["netns", "exec", &name, "python3", "-c", ANSWER])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 9];
        server.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Self { name, routes, server }
    }
}

/// This host's end of the cable and the far one, of each family. Public, and nobody's.
fn ends(number: u32) -> [String; 4] {
    let (host, far) = (number % 120 * 2, number % 120 * 2 + 1);
    let v4 = |end: u32| format!("198.51.100.{end}");
    let v6 = |end: u32| format!("2001:db8:7a1b::{end:x}");
    [v4(host), v4(far), v6(host + 2), v6(far + 2)]
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        for route in &self.routes {
            let route: Vec<_> = route.split(' ').collect();
            try_run("ip", &[&["route", "del"], route.as_slice()].concat());
        }
        // The cable goes with its far end.
        try_run("ip", &["netns", "del", &self.name]);
    }
}

/// Answers whoever connects, until the test ends. Returns the port: another one where this machine's own
/// service has it on all addresses.
fn listen(address: IpAddr, port: u16) -> u16 {
    listen_at(SocketAddr::new(address, port))
}

fn listen_at(at: SocketAddr) -> u16 {
    let mut other = at;
    other.set_port(0);
    // An IPv6 address cannot be used until the kernel has made sure that nobody else has it.
    let limit = Instant::now() + Duration::from_secs(5);
    let listener = loop {
        match TcpListener::bind(at).or_else(|_| TcpListener::bind(other)) {
            Ok(listener) => break listener,
            Err(error) if Instant::now() > limit => panic!("{at}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let _ = client.and_then(|mut client| client.write_all(b"here"));
        }
    });
    port
}

/// Whether a listener answers this host: what a function does not reach must be there to be reached.
fn answers(at: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(&at, Duration::from_secs(2));
    let mut said = String::new();
    connected.and_then(|mut client| client.read_to_string(&mut said)).is_ok() && said == "here"
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (apt install iproute2 nftables)"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn try_run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn probe(worker: &Worker, targets: &[(String, u16)]) -> Vec<String> {
    let found = worker.output("main.probe", json!({"targets": targets})).await;
    serde_json::from_value(found).unwrap()
}

/// Those of `targets` that answered from inside.
async fn reached(worker: &Worker, targets: &[(String, u16)]) -> Vec<(String, u16)> {
    let found = probe(worker, targets).await;
    targets
        .iter()
        .zip(found)
        .filter(|(_, answer)| answer == "here")
        .map(|(target, _)| target.clone())
        .collect()
}

/// A container that somebody else has on the network, which answers on port 80.
struct Neighbour {
    id: String,
}

impl Neighbour {
    async fn start(net: &Net) -> Self {
        let image = std::env::var("TAIBAI_TEST_IMAGE").unwrap();
        let network = format!("taibai-{}", net.deployment);
        let arguments = ["run", "-d", "--network", &network, &image, "python3", "-c", ANSWER];
        let neighbour = Self { id: run("docker", &arguments) };
        let ask = "import socket; print(socket.create_connection(('127.0.0.1', 80)).recv(9))";
        eventually("the neighbour listens", async || {
            try_run("docker", &["exec", &neighbour.id, "python3", "-c", ask]).is_some()
        })
        .await;
        neighbour
    }

    fn address(&self, key: &str) -> String {
        let format = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{key}}}}}{{{{end}}}}");
        let address = run("docker", &["inspect", "--format", &format, &self.id]);
        assert!(!address.is_empty(), "{key}");
        address
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        try_run("docker", &["rm", "-f", &self.id]);
    }
}

/// The bridge's link-local address, with a port that is 0.
fn link_local(bridge: &str) -> SocketAddrV6 {
    let listing = run("ip", &["-6", "-o", "addr", "show", "dev", bridge, "scope", "link"]);
    let mut words = listing.split_whitespace().skip_while(|word| *word != "inet6");
    let address = words.nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    let index = std::fs::read_to_string(format!("/sys/class/net/{bridge}/ifindex")).unwrap();
    SocketAddrV6::new(address, 0, 0, index.trim().parse().unwrap())
}

#[tokio::test]
async fn only_the_catalogs_endpoints_answer_and_the_outside_where_the_operator_allows_it() {
    for outside in [false, true] {
        let net = Net::start(|config| config.allow_outside = outside).await;
        let worker = net.worker().await;
        let neighbour = Neighbour::start(&net).await;
        let public = [format!("203.0.113.{}", net.number), format!("2001:db8:7a1c::{:x}", net.number + 1)];
        let private = [format!("192.168.{}.80", net.number), format!("fd7a:1ba2::{:x}", net.number + 1)];
        let metadata = ["169.254.169.254".to_owned(), "fd00:ec2::254".to_owned()];
        let far: Vec<_> = public.iter().chain(&private).chain(&metadata).map(String::as_str).collect();
        let _outside = Outside::start(net.number, &far);
        let [host, _, host6, _] = ends(net.number);

        // On the bridge's address and on this host's public one: sshd, databases, memcached, the API's
        // private listener; and Keystone, which is the catalog's.
        let (mut targets, mut catalog) = (Vec::new(), Vec::new());
        let mut register = |host: &str, port| {
            catalog.push(Endpoint { service: "identity".to_owned(), host: host.to_owned(), port });
        };
        for address in [net.gateway().to_string(), net.gateway6().to_string(), host, host6.clone()] {
            for port in [22, 3306, 5432, 11211, 7070] {
                targets.push((address.clone(), listen(address.parse().unwrap(), port)));
            }
            let keystone = listen(address.parse().unwrap(), 15730);
            targets.push((address.clone(), keystone));
            if address != host6 {
                register(&address, keystone);
            }
        }
        if outside {
            register(&private[0], 80);
        }
        net.guard.set_catalog(catalog.clone()).await.unwrap();
        targets.extend(far.iter().map(|address| ((*address).to_owned(), 80)));
        for (address, port) in &targets {
            let at = SocketAddr::new(address.parse().unwrap(), *port);
            assert!(answers(at), "{at} does not answer this host");
        }
        let mut link_local = link_local(&net.config.bridge_name);
        link_local.set_port(listen_at(link_local.into()));
        assert!(answers(link_local.into()), "{link_local} does not answer this host");
        let everything: Vec<_> = targets
            .iter()
            .cloned()
            .chain(
                [neighbour.address("IPAddress"), neighbour.address("GlobalIPv6Address")].map(|at| (at, 80)),
            )
            .chain([(format!("{}%eth0", link_local.ip()), link_local.port())])
            .collect();

        let mut found = reached(&worker, &everything).await;

        let mut expected: Vec<_> =
            catalog.into_iter().map(|endpoint| (endpoint.host, endpoint.port)).collect();
        if outside {
            expected.extend(public.map(|address| (address, 80)));
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "outside: {outside}\n{}", net.rules().unwrap());
        drop(neighbour);
        net.guard.stop().await;
        net.end(worker).await;
    }
}

#[tokio::test]
async fn a_function_is_told_at_once_what_it_may_not_reach() {
    let net = Net::start(|_| ()).await;
    let worker = net.worker().await;
    let began = Instant::now();
    let mut targets = vec![("169.254.169.254".to_owned(), 80), ("10.0.0.1".to_owned(), 443)];
    targets.extend((1..40).map(|port| (net.gateway().to_string(), port)));

    let found = probe(&worker, &targets).await;

    assert!(found.iter().all(|answer| answer.starts_with("ConnectionRefusedError")), "{found:?}");
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    net.end(worker).await;
}

#[tokio::test]
async fn nobody_opens_a_connection_to_a_function() {
    let net = Net::start(|config| config.allow_outside = true).await;
    let worker = net.worker().await;
    let address = worker.output("main.address", json!(null)).await;
    let address: IpAddr = address.as_str().unwrap().parse().unwrap();
    let visit = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let connect = tokio::task::spawn_blocking(move || {
            TcpStream::connect_timeout(&SocketAddr::new(address, 8080), Duration::from_secs(1))
        });
        connect.await.unwrap()
    };

    let (heard, visit) = tokio::join!(worker.output("main.listen", json!({"port": 8080})), visit);

    assert_eq!(heard, "nobody came");
    visit.unwrap_err();
    net.end(worker).await;
}

#[tokio::test]
async fn the_catalogs_names_are_known_inside_and_no_others() {
    let net = Net::start(|config| {
        config.extra_hosts = vec!["keystone.test:host-gateway".parse().unwrap()];
        config.allow = vec!["10.0.0.0/8:15731".parse().unwrap()];
    })
    .await;
    let worker = net.worker().await;
    // The first is open by `allow`, which has this one port.
    listen(net.gateway(), 15731);
    let other = listen(net.gateway(), 15732);
    let at = |port| Endpoint { service: "identity".to_owned(), host: "keystone.test".to_owned(), port };
    net.guard.set_catalog(vec![at(other)]).await.unwrap();

    let named = [("keystone.test".to_owned(), 15731), ("keystone.test".to_owned(), other)];
    assert_eq!(reached(&worker, &named).await, named);
    let known = worker.output("main.look_up", json!({"name": "keystone.test"})).await;
    assert_eq!(known["found"], json!([net.gateway(), net.gateway6()]));
    let unknown = worker.output("main.look_up", json!({"name": "unknown.example.org"})).await;
    assert_eq!(unknown["found"], Value::Null);
    assert!(unknown["seconds"].as_f64().unwrap() < 2.0, "{unknown}");

    // What is not in the catalog any more is closed at once, for workers that run too.
    net.guard.set_catalog(Vec::new()).await.unwrap();
    assert_eq!(reached(&worker, &named).await, named[..1]);
    let loopback = Endpoint { service: "identity".to_owned(), host: "localhost".to_owned(), port: 5000 };
    let refused = net.guard.set_catalog(vec![loopback]).await;
    assert!(matches!(refused, Err(Error::Loopback { .. })), "{refused:?}");
    assert_eq!(reached(&worker, &named).await, named[..1]);
    net.end(worker).await;
}

#[tokio::test]
async fn rules_that_somebody_removed_or_changed_are_put_right() {
    let net = Net::start(|_| ()).await;
    let worker = net.worker().await;
    let target = [(net.gateway().to_string(), listen(net.gateway(), 22))];
    let table = format!("taibai-{}", net.deployment);
    let rules = net.rules().unwrap();
    let changes: [&[&str]; 3] = [
        &["delete", "table", "inet", &table],
        &["flush", "chain", "inet", &table, "functions"],
        &["insert", "rule", "inet", &table, "functions", "accept"],
    ];
    for (repaired, change) in changes.into_iter().enumerate() {
        run("nft", change);
        eventually("the rules are back", async || net.repairs.get() == repaired as u64 + 1).await;
        assert_eq!(net.rules().unwrap(), rules, "{change:?}");
        assert_eq!(reached(&worker, &target).await, []);
    }
    assert!(net.guard.in_force());

    // Without the loop they stay away: it was the loop that put them right.
    net.guard.stop().await;
    run("nft", changes[0]);
    assert_eq!(reached(&worker, &target).await, target);
    net.end(worker).await;
}

#[tokio::test]
async fn the_network_stays_as_long_as_a_worker_is_on_it_and_only_workers_connected_alike_are_adopted() {
    let mut net = Net::start(|_| ()).await;
    let worker = net.worker().await;
    let dir = tempfile::TempDir::new().unwrap();
    let config = config::Docker {
        deployment: net.deployment.clone(),
        worker_dir: dir.path().join("run"),
        work_dir: dir.path().join("work"),
        supervisor: std::env::var("TAIBAI_SUPERVISOR").unwrap().into(),
        ..Default::default()
    };
    let found = async |guard: Option<&Guard>| {
        let docker = Docker::connect_with(&config, guard.cloned(), call_counter()).await.unwrap();
        let workers = docker.list().await.unwrap();
        workers.into_iter().map(|worker| worker.network).collect::<Vec<_>>()
    };
    assert!(!worker.docker.release_network().await.unwrap());

    assert_eq!(found(Some(&net.guard)).await, [Some(Connected::Bridge)]);
    assert_eq!(found(None).await, [None]);
    // Another subnet is another network: what was on the old one is gone with it.
    net.guard.stop().await;
    net.config.subnet = format!("10.232.{}.0/24", net.number).parse().unwrap();
    net.guard = Guard::start(&net.config, &net.deployment, net.repairs.clone()).await.unwrap().unwrap();
    assert_eq!(found(Some(&net.guard)).await, []);
    let format = "{{range .IPAM.Config}}{{.Subnet}} {{end}}";
    let subnets =
        run("docker", &["network", "inspect", "--format", format, &format!("taibai-{}", net.deployment)]);
    assert!(subnets.contains(&net.config.subnet.to_string()), "{subnets}");

    net.guard.stop().await;
    net.end(worker).await;
}
