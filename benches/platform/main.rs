//! How fast Taibai is on this machine: `tox-like-scripts/bench`.
//!
//! Every figure is taken against the release build with real containers. What is ours is told apart by a
//! floor: the same container, shim and function, asked over the worker's own socket. What is compared is
//! measured in turns, so that what else the machine does meets both. Figures that were promised are
//! compared with the promise; speed is told, and fails nothing.

mod floor;
mod peer;
mod report;
mod service;
mod usage;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/openstack/cloud.rs"]
mod cloud;

use std::time::{Duration, Instant};

use cloud::Cloud;
use floor::Floor;
use peer::Flask;
use report::{Report, percentile};
use service::{Caller, Client, FUNCTION, Server, Together, package, timed};

const USES_SESSION: &str = "
import swiftclient
swift = None
def main(context, name='World', **kwargs):
    global swift
    swift = swift or swiftclient.Connection(session=context['os_session'], os_options={'region_name': 'RegionOne'})
    try:
        swift.head_object('no-such-container', 'object')
    except swiftclient.ClientException:
        pass
";

/// What can be measured by itself, in the order in which all of it is.
const PARTS: [&str; 6] = ["warm", "cold", "mixed", "queue", "room", "cloud"];

/// How much of everything.
struct Size {
    calls: usize,
    starts: usize,
    mixed: usize,
    functions: usize,
    seconds: usize,
}

const FULL: Size = Size { calls: 3000, starts: 15, mixed: 100, functions: 10_000, seconds: 10 };
const QUICK: Size = Size { calls: 300, starts: 3, mixed: 12, functions: 500, seconds: 2 };

/// Parts of a measurement that takes turns with another.
const TURNS: usize = 5;
const CLIENTS: usize = 8;

// One thread: a client that wakes others would be measured too.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    // cargo passes --bench to every benchmark.
    let named: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = named.iter().find(|part| !PARTS.contains(&part.as_str())) {
        eprintln!("there is no part {unknown}; there are: {}", PARTS.join(", "));
        std::process::exit(2);
    }
    let size = if std::env::var_os("TAIBAI_BENCH_QUICK").is_some() { QUICK } else { FULL };
    rustls::crypto::ring::default_provider().install_default().expect("this is the first line");
    let mut report = Report::default();
    for part in PARTS {
        if !named.is_empty() && !named.iter().any(|name| name == part) {
            continue;
        }
        println!("--- {part}");
        match part {
            "warm" => warm(&mut report, &size).await,
            "cold" => cold(&mut report, &size).await,
            "mixed" => mixed(&mut report, &size).await,
            "queue" => queue(&mut report, &size).await,
            "room" => room(&mut report, &size).await,
            _ => in_cloud(&mut report, &size).await,
        }
    }
    report.write(&std::env::var("TAIBAI_BENCH_OUTPUT").unwrap_or_else(|_| "bench.json".to_owned()));
}

/// A call of a function that has run before, beside its floor and beside the same function behind Flask.
async fn warm(report: &mut Report, size: &Size) {
    let mut floor = Floor::start().await;
    let flask = Flask::start().await;
    let server = Server::start(&[]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let function = client.function(&runtime).await;
    let mut callers: Vec<Caller> = (0..CLIENTS).map(|_| client.caller(&function)).collect();
    let mut theirs: Vec<Caller> = (0..CLIENTS).map(|_| flask.caller()).collect();
    Together::run(&mut callers, 30).await;
    Together::run(&mut theirs, 30).await;

    let each = size.calls / TURNS;
    let (mut bare, mut one, mut their_one) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.extend(floor.timed(each).await);
        one.extend(callers[0].timed(each).await);
        their_one.extend(theirs[0].timed(each).await);
    }
    let (mut all, mut their_all) = (Together::none(), Together::none());
    let mut costs = Costs::of(&server);
    for _ in 0..TURNS {
        costs.begin();
        all.add(Together::run(&mut callers, each / 4).await);
        costs.end();
        their_all.add(Together::run(&mut theirs, each / 4).await);
    }

    let bare = report.times("worker floor, 1 client", &bare).p50();
    let row = report.times("warm synchronous call, 1 client", &one);
    row.to("worker floor", bare).at_most("p50 of the floor + 0.25 ms", bare + 0.25);
    row.p99_at_most("p99 at 1 client", 2.0);
    let ours = row.p50();
    let theirs_p50 = report.times("the same behind Flask and gunicorn, 1 client", &their_one).p50();
    report
        .figure("warm call and Flask's, medians at 1 client", "x", one.len(), ours / theirs_p50)
        .at_most("a lower median than Flask behind gunicorn", 1.0);
    report.times("warm synchronous call, 8 clients", &all.times);
    report.times("the same behind Flask and gunicorn, 8 clients", &their_all.times);
    let rate = |of: &Together| (of.times.len(), of.per_second());
    let (n, per_second) = rate(&their_all);
    report.figure("the same behind Flask and gunicorn per second, 8 clients", "1/s", n, per_second);
    let row = report.figure("executions per second, 8 clients", "1/s", all.times.len(), all.per_second());
    row.to("Flask behind gunicorn", per_second);
    row.at_least("executions per second", 3000.0);
    row.at_least("0.8 of what Flask behind gunicorn does", 0.8 * per_second);
    costs.report(report, "a call, 8 clients", all.times.len());
    flask.stop();
    floor.stop().await;
    server.stop();
}

/// What calls cost the processes that have to do with them.
#[derive(Clone)]
struct Costs {
    processes: [(&'static str, Vec<u32>); 3],
    before: Vec<usage::Used>,
    used: Vec<usage::Used>,
}

impl Costs {
    /// Of the workers that there are now; what starts later, because calls have to wait, is not counted.
    fn of(server: &Server) -> Self {
        let processes = [
            ("service", vec![server.pid()]),
            ("worker", server.worker_pids()),
            ("client", vec![std::process::id()]),
        ];
        Self { used: vec![usage::Used::default(); processes.len()], processes, before: Vec::new() }
    }

    fn now(&self) -> Vec<usage::Used> {
        self.processes.iter().map(|(_, pids)| usage::Used::by(pids)).collect()
    }

    fn begin(&mut self) {
        self.before = self.now();
    }

    fn end(&mut self) {
        let now = self.now();
        for (used, (before, now)) in self.used.iter_mut().zip(self.before.iter().zip(&now)) {
            used.add(before, now);
        }
    }

    fn report(&self, report: &mut Report, what: &str, calls: usize) {
        for ((whose, _), used) in self.processes.iter().zip(&self.used) {
            let name = format!("processor time of {what}: {whose}");
            report.figure(&name, "us", calls, used.seconds * 1e6 / calls as f64);
            let name = format!("context switches of {what}: {whose}");
            report.figure(&name, "", calls, used.switches / calls as f64);
            let name = format!("page faults of {what}: {whose}");
            report.figure(&name, "", calls, used.faults / calls as f64);
        }
    }
}

/// First calls.
async fn cold(report: &mut Report, size: &Size) {
    report.times("start of a worker until its shim is ready", &floor::starts(size.starts).await);

    let server = Server::start(&[]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    for (what, bytes, most) in [("10 KB", 10 << 10, Some(10.0)), ("50 MiB", 50 << 20, None)] {
        let mut times = Vec::new();
        for _ in 0..if most.is_some() { size.starts } else { size.starts.div_ceil(3) } {
            client.pool_is_full(&runtime).await;
            let function = client.function_with(&runtime, package(FUNCTION, bytes)).await;
            times.extend(client.caller(&function).timed(1).await);
            client.delete(&function).await;
        }
        let row =
            report.times(&format!("cold call of a {what} package, a started worker in the pool"), &times);
        if let Some(most) = most {
            row.at_most("p50 with a started worker in the pool", most);
        }
    }
    server.stop();

    let shim = floor::shim().await;
    let server = Server::start(&[("TAIBAI_ENGINE__POOL_SIZE", "0")]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let (mut runs, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..size.starts {
        runs.push(floor::docker_run(&shim));
        let function = client.function(&runtime).await;
        calls.extend(client.caller(&function).timed(1).await);
        client.delete(&function).await;
        while !server.worker_pids().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let run = report.times("docker run of the same image until the shim is ready", &runs).p50();
    let row = report.times("cold call, empty pool", &calls);
    row.to("docker run", run).at_most("p50 of docker run + 20 ms", run + 20.0);

    let busy = client.function(&runtime).await;
    let mut caller = client.caller(&busy);
    caller.timed(50).await;
    let quiet = caller.timed(size.calls / 3).await;
    let mut fresh = Vec::new();
    for _ in 0..20 {
        fresh.push(client.caller(&client.function(&runtime).await));
    }
    let starting = async {
        let firsts = futures_util::future::join_all(fresh.iter_mut().map(|caller| caller.timed(1))).await;
        firsts.into_iter().flatten().collect::<Vec<_>>()
    };
    let mut starting = std::pin::pin!(starting);
    let mut meanwhile = Vec::new();
    let firsts = loop {
        tokio::select! {
            biased;
            firsts = &mut starting => break firsts,
            times = caller.timed(1) => meanwhile.extend(times),
        }
    };
    let quiet = report.times("warm synchronous call before 20 cold starts", &quiet).p50();
    report.times("cold call, 20 at once and an empty pool", &firsts);
    let row = report.times("warm synchronous call during 20 cold starts", &meanwhile);
    row.to("before", quiet).at_most("p50 under twice that of before", 2.0 * quiet);
    server.stop();
}

/// Many functions, most of which are called seldom.
async fn mixed(report: &mut Report, size: &Size) {
    let most = (size.mixed + 30).to_string();
    let server = Server::start(&[("TAIBAI_ENGINE__MAX_WORKERS", &most)]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let mut functions = Vec::new();
    for _ in 0..size.mixed {
        let function = client.function(&runtime).await;
        client.caller(&function).call().await;
        functions.push(function);
    }
    let callers = || -> Vec<Caller> { (0..CLIENTS).map(|_| client.caller(&functions[0])).collect() };
    Together::run(&mut callers(), 50).await;
    // Takes so long that the service closes connections.
    let mut of_one = Costs::of(&server);
    let mut of_mix = of_one.clone();
    let mut alone = callers();
    // The n-th function is called 1/n as often as the first.
    let weights: Vec<f64> = (1..=size.mixed).map(|rank| 1.0 / rank as f64).collect();
    let each = size.calls / TURNS / 4;
    let (mut one, mut mix) = (Together::none(), Together::none());
    let mut seed = 1_u64;
    for _ in 0..TURNS {
        of_one.begin();
        one.add(Together::run(&mut alone, each).await);
        of_one.end();
        let chosen: Vec<Vec<usize>> =
            (0..CLIENTS).map(|_| (0..each).map(|_| choose(&weights, &mut seed)).collect()).collect();
        let client = &client;
        let functions = &functions;
        of_mix.begin();
        let begin = Instant::now();
        let all = chosen.into_iter().map(|chosen| async move {
            let mut callers: Vec<Option<Caller>> = (0..functions.len()).map(|_| None).collect();
            let mut connection = None;
            let mut times = Vec::new();
            for at in chosen {
                let caller = callers[at].get_or_insert_with(|| client.caller(&functions[at]));
                caller.connect_through(&mut connection);
                times.extend(caller.timed(1).await);
                caller.give_back(&mut connection);
            }
            times
        });
        let times = futures_util::future::join_all(all).await.into_iter().flatten().collect();
        mix.add(Together { times, elapsed: begin.elapsed() });
        of_mix.end();
    }
    let alone = one.per_second();
    report.figure("executions per second of one function, 8 clients", "1/s", one.times.len(), alone);
    report.times(&format!("warm synchronous call, {} functions mixed, 8 clients", size.mixed), &mix.times);
    let name = format!("executions per second of {} functions mixed, 8 clients", size.mixed);
    let row = report.figure(&name, "1/s", mix.times.len(), mix.per_second());
    row.to("one function", alone).at_least("0.8 of one function's", 0.8 * alone);
    of_one.report(report, "a call of one function", one.times.len());
    of_mix.report(report, "a call, functions mixed", mix.times.len());
    server.stop();
}

/// One of these places by weight, the same ones in every run.
fn choose(weights: &[f64], seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let share = (*seed >> 11) as f64 / (1_u64 << 53) as f64;
    let mut left = share * weights.iter().sum::<f64>();
    let found = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    found.unwrap_or(0)
}

/// Calls that nobody waits for.
async fn queue(report: &mut Report, size: &Size) {
    const PER_SECOND: usize = 500;
    const CONNECTIONS: usize = 16;
    let server = Server::start(&[("TAIBAI_QUOTAS__CONCURRENT_EXECUTIONS", "-1")]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let function = client.function(&runtime).await;
    let mut sync: Vec<Caller> = (0..CLIENTS).map(|_| client.caller(&function)).collect();
    Together::run(&mut sync, 50).await;
    let reference = Together::run(&mut sync, size.calls / 4).await;

    // At their times, however long the answers take: what waits for a connection waits for its answer.
    let (give_back, mut free) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..CONNECTIONS {
        give_back.send(client.asynchronous(&function)).unwrap();
    }
    let before = client.ended().await;
    let begin = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..PER_SECOND * size.seconds {
        let due = begin + Duration::from_secs(1) * n as u32 / PER_SECOND as u32;
        tokio::time::sleep_until(due.into()).await;
        let mut caller: Caller = free.recv().await.unwrap();
        let give_back = give_back.clone();
        calls.spawn(async move {
            caller.call().await;
            let took = due.elapsed();
            give_back.send(caller).unwrap();
            took
        });
    }
    let times = calls.join_all().await;
    report.times("accepting an asynchronous execution, 500/s", &times).p99_at_most("p99 of accepting", 10.0);
    all_ended(&client, before + times.len()).await;

    // As many as come, and then what is left of them.
    let mut callers: Vec<Caller> = (0..CLIENTS).map(|_| client.asynchronous(&function)).collect();
    let before = client.ended().await;
    let accepted = Together::run(&mut callers, size.calls / 2).await;
    let begin = Instant::now();
    let left = before + accepted.times.len() - client.ended().await;
    all_ended(&client, before + accepted.times.len()).await;
    let drained = left as f64 / begin.elapsed().as_secs_f64();
    report.figure("accepted per second, 8 clients", "1/s", accepted.times.len(), accepted.per_second());
    let row = report.figure("drained per second, of what is left then", "1/s", left, drained);
    let reference = reference.per_second();
    row.to("synchronous calls per second", reference).at_least("as many as synchronous calls", reference);
    server.stop();
}

async fn all_ended(client: &Client, count: usize) {
    while client.ended().await < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Memory.
async fn room(report: &mut Report, size: &Size) {
    const LIMIT: f64 = 50.0;
    let floor = Floor::start().await;
    let worker = usage::private_mib(&usage::pids_of(&floor.container));
    let row = report.figure("private memory of an idle Python worker", "MiB", 1, worker);
    row.at_most("an idle worker, OpenStack libraries loaded", 40.0);
    floor.stop().await;

    let server = Server::start(&[("TAIBAI_QUOTAS__FUNCTIONS", "-1"), ("TAIBAI_QUOTAS__PACKAGE_BYTES", "-1")]);
    let client = Client::new(&server, None);
    let runtime = client.runtime().await;
    let function = client.function(&runtime).await;
    let mut callers: Vec<Caller> = (0..CLIENTS).map(|_| client.caller(&function)).collect();
    Together::run(&mut callers, size.calls / 4).await;
    let before = server.private_mib();
    let row = report.figure("private memory of the service, after calls", "MiB", 1, before);
    row.at_most("the service", 60.0);
    let few = callers[0].timed(size.calls / 3).await;

    let (client, runtime) = (&client, &runtime);
    let some = (0..CLIENTS).map(|_| async move {
        for _ in 0..size.functions / CLIENTS {
            client.function(runtime).await;
        }
    });
    futures_util::future::join_all(some).await;
    let many = callers[0].timed(size.calls / 3).await;
    let grown = server.private_mib() - before;
    let name = format!("memory of the service for {} more functions", size.functions);
    let most = LIMIT * size.functions as f64 / FULL.functions as f64;
    report.figure(&name, "MiB", 1, grown).at_most("50 MiB for 10,000", most);
    let few = percentile(&few, 0.5);
    report.times(&format!("warm synchronous call beside {} functions", size.functions), &many).to("few", few);
    server.stop();
}

/// The same with Keystone: a token that is known already, and a function that uses its session.
async fn in_cloud(report: &mut Report, size: &Size) {
    let cloud = Cloud::open();
    let account = cloud.account("taibai");
    let mut floor = Floor::start().await;
    let server = Server::start(&[
        ("TAIBAI_API__AUTH_STRATEGY", "keystone"),
        ("TAIBAI_KEYSTONE_AUTHTOKEN__AUTH_URL", cloud.auth_url()),
        ("TAIBAI_KEYSTONE_AUTHTOKEN__USERNAME", &account.auth.username),
        ("TAIBAI_KEYSTONE_AUTHTOKEN__PASSWORD", &account.auth.password),
        ("TAIBAI_KEYSTONE_AUTHTOKEN__PROJECT_NAME", &account.auth.project_name),
        ("TAIBAI_KEYSTONE_AUTHTOKEN__REGION_NAME", &account.region_name),
        ("TAIBAI_NETWORK__MODE", "bridge"),
        ("TAIBAI_NETWORK__BRIDGE_NAME", "tbbench"),
        ("TAIBAI_NETWORK__SUBNET", "10.234.0.0/24"),
    ]);
    let admin = Client::new(&server, Some(cloud.token("admin").await.expose()));
    let demo = Client::new(&server, Some(cloud.token("demo").await.expose()));
    let runtime = admin.runtime().await;
    let plain = demo.function(&runtime).await;
    let mut callers: Vec<Caller> = (0..CLIENTS).map(|_| demo.caller(&plain)).collect();
    Together::run(&mut callers, 30).await;
    let (mut bare, mut one) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.extend(floor.timed(size.calls / TURNS).await);
        one.extend(callers[0].timed(size.calls / TURNS).await);
    }
    let all = Together::run(&mut callers, size.calls / 4).await;
    let bare = report.times("worker floor beside Keystone, 1 client", &bare).p50();
    let row = report.times("warm synchronous call with a cached token, 1 client", &one);
    row.to("worker floor", bare).at_most("p50 of the floor + 0.25 ms", bare + 0.25);
    row.p99_at_most("p99 at 1 client", 2.0);
    let name = "executions per second with a cached token, 8 clients";
    report.figure(name, "1/s", all.times.len(), all.per_second()).at_least("executions per second", 3000.0);

    let using = demo.function_with(&runtime, package(USES_SESSION, 0)).await;
    let mut caller = demo.caller(&using);
    caller.timed(10).await;
    let direct = cloud.user("demo").await;
    let swift = cloud.ours().keystone.session(&direct, None).unwrap().swift();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        inside.extend(caller.timed(size.calls / 10 / TURNS).await);
        let ask = |_| swift.head_object("no-such-container", "object");
        outside.extend(timed(size.calls / 10 / TURNS, ask).await);
    }
    let outside = report.times("a question to Swift from this machine", &outside).p50();
    let row = report.times("warm call that asks Swift once with os_session", &inside);
    row.to("the question itself", outside);
    for function in [&plain, &using] {
        demo.delete(function).await;
    }
    floor.stop().await;
    server.stop();
}
