//! Functions come, are used, changed and removed for minutes, and what the service holds stays as it is.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taibai::db;
use taibai::model::Scope;

use crate::ledger::{self, MARKED, in_step, nothing_left};
use crate::number;
use crate::service::{Home, Service, package};

const LOOK: Duration = Duration::from_secs(3);
/// What is measured, and how much more of it the last third may have than the first: a share, and so many.
const BOUNDS: [(&str, f64, f64); 8] = [
    ("memory KiB", 0.08, 6144.0),
    ("descriptors", 0.0, 6.0),
    ("threads", 0.0, 4.0),
    ("containers", 0.0, 2.0),
    ("cgroups", 0.0, 8.0),
    ("sockets", 0.0, 2.5),
    ("rows", 0.1, 30.0),
    ("files", 0.0, 6.0),
];

async fn look(pid: u32, home: &Home, db: &db::Db) -> [f64; 8] {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count) as f64;
    let (sockets, _) = count(&home.path().join("w"));
    let files = ["packages", "work"].map(|below| count(&home.path().join(below)).1).iter().sum::<usize>();
    let (filters, page) = Default::default();
    let executions = db::executions::list(db.reader(), &Scope::All, &filters, &page).await.unwrap();
    let rows = executions.len();
    let groups: usize = ["memory", "cpu", "pids", "."]
        .iter()
        .map(|controller| directories(&format!("/sys/fs/cgroup/{controller}/taibai/{}", home.deployment)))
        .sum();
    [
        field("VmRSS:"),
        entries(&format!("/proc/{pid}/fd")),
        field("Threads:"),
        home.containers().len() as f64,
        groups as f64,
        sockets as f64,
        rows as f64,
        files as f64,
    ]
}

fn directories(path: &str) -> usize {
    let entries = std::fs::read_dir(path).map_or(Vec::new(), |entries| entries.flatten().collect());
    entries.iter().filter(|entry| entry.path().is_dir()).count()
}

/// Sockets and other files below a directory; what is mounted there is the workers' own.
fn count(directory: &Path) -> (usize, usize) {
    let Ok(entries) = std::fs::read_dir(directory) else { return (0, 0) };
    let (mut sockets, mut files) = (0, 0);
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && entry.file_name() != "mnt" {
            let (more, others) = count(&entry.path());
            sockets += more;
            files += others;
        } else if kind.is_socket() {
            sockets += 1;
        } else if kind.is_file() {
            files += 1;
        }
    }
    (sockets, files)
}

/// Makes, uses, changes and removes functions until `end`; how many, and how many executions.
async fn churn(service: &Service, runtime: &str, client: usize, end: Instant) -> (usize, usize) {
    let (mut functions, mut executions) = (0, 0);
    while Instant::now() < end {
        let content = |part: &str| package(&format!("{MARKED}\n# {client} {functions} {part}"));
        let fields = [
            ("runtime_id", runtime),
            ("code", r#"{"source": "package"}"#),
            ("cpu", "2000"),
            ("name", "short-lived"),
        ];
        let made = service.upload("demo", "POST", "/v1/functions", &fields, Some(&content("one"))).await;
        let function = made.expect(201)["id"].as_str().unwrap().to_owned();
        for part in ["", "two"] {
            if !part.is_empty() {
                let path = format!("/v1/functions/{function}");
                service.upload("demo", "PUT", &path, &[], Some(&content(part))).await.expect(200);
            }
            let mut accepted = Vec::new();
            for _ in 0..10 {
                accepted.push(service.accept("demo", &function, "").await);
                let done = service.execute("demo", &function, "").await;
                assert_eq!(done["status"], "success", "{done}\n{}", service.log());
            }
            for id in &accepted {
                let ended: Value = service.ended("demo", id).await;
                assert_eq!(ended["status"], "success", "{ended}");
            }
            executions += 20;
        }
        service.ask("demo", "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
        functions += 1;
    }
    (functions, executions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_holds_stays_flat_while_functions_come_and_go() {
    let minutes = number("TAIBAI_SOAK_MINUTES", 3);
    let all = Duration::from_secs(60 * minutes);
    let options = [
        ("engine.max_workers", "6"),
        ("executions.max_per_project", "200"),
        ("executions.check_interval", "2s"),
    ];
    let service = Service::start_in(ledger::home(&options)).await;
    let runtime = service.runtime().await;
    let db = service.home.database().await;
    let pid = service.pid();

    let (began, end) = (Instant::now(), Instant::now() + all);
    let watching = async {
        let mut seen = Vec::new();
        while Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            seen.push((began.elapsed(), look(pid, &service.home, &db).await));
        }
        seen
    };
    let (one, two, seen) =
        tokio::join!(churn(&service, &runtime, 1, end), churn(&service, &runtime, 2, end), watching);
    db.close().await.unwrap();

    // In the first third nothing has to be flat: caches fill, and there are not too many rows yet.
    let warm: Vec<_> = seen.iter().filter(|(at, _)| *at >= all / 3).map(|(_, values)| values).collect();
    let half = warm.len() / 2;
    let mean = |of: &[&[f64; 8]], at: usize| of.iter().map(|v| v[at]).sum::<f64>() / of.len() as f64;
    println!(
        "{minutes} minutes, {} functions, {} executions, {} looks",
        one.0 + two.0,
        one.1 + two.1,
        seen.len()
    );
    println!("{:<12} {:>10} {:>10} {:>10} {:>10}", "", "before", "after", "most", "allowed");
    let mut grown = Vec::new();
    for (at, (name, share, more)) in BOUNDS.iter().enumerate() {
        let (before, after) = (mean(&warm[..half], at), mean(&warm[half..], at));
        let most = warm.iter().map(|values| values[at]).fold(0.0, f64::max);
        let allowed = before * (1.0 + share) + more;
        println!("{name:<12} {before:>10.1} {after:>10.1} {most:>10.1} {allowed:>10.1}");
        if after > allowed {
            grown.push(*name);
        }
    }
    assert!(half >= 10, "too short to tell");
    assert_eq!(grown, Vec::<&str>::new(), "these are not flat");
    let done = service.ask("demo", "GET", "/v1/functions", None).await.expect(200);
    assert_eq!(done["functions"], json!([]));
    in_step(&service).await;
    nothing_left(service).await;
}
