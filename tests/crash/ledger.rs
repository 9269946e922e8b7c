//! What was asked of a service, and what is seen of it from outside: how often each function was run, by
//! files that it writes in its worker, and how often each execution ended, by a trigger in the database.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Statement};
use serde_json::{Value, json};
use taibai::db;
use taibai::model::{ExecutionStatus, Scope};

use crate::own::OwnDatabase;
use crate::service::{Answer, Home, Service};

/// Says which run this is, where it outlives everything but the worker.
pub const MARKED: &str = r#"
import os, time
def main(n=0, seconds=0, **kwargs):
    with open(f'/tmp/ran.{os.getuid()}.{os.getpid()}', 'a') as file:
        file.write(f'{n}\n')
    time.sleep(seconds)
    return n
"#;

/// How long something may go on past its deadline.
const PAST: Duration = Duration::from_secs(60);

/// A home whose database can be watched.
pub fn home(options: &[(&str, &str)]) -> Home {
    Home::on(Arc::new(OwnDatabase::file()), options)
}

/// An answer, or `None` where the connection broke first.
pub async fn ask(
    service: &Service,
    who: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Option<Answer> {
    let mut request = service.request(who, method, path);
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    answer(request).await
}

pub async fn answer(request: reqwest::RequestBuilder) -> Option<Answer> {
    let response = request.send().await.ok()?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Some(Answer { status, headers, bytes: response.bytes().await.ok()?.to_vec() })
}

/// A synchronous call, and what the caller was told.
#[derive(Debug)]
pub struct Call {
    pub n: u64,
    pub answer: Option<(u16, Value)>,
}

#[derive(Default)]
pub struct Ledger {
    numbers: u64,
    step: u64,
    /// Asynchronous executions that were accepted, by what the caller was told.
    pub accepted: Vec<(u64, String)>,
    pub calls: Vec<Call>,
    /// By container and file.
    ran: BTreeMap<(String, String), String>,
}

/// What a ledger says in the end.
#[derive(Debug, Default)]
pub struct Tally {
    pub accepted: usize,
    pub calls: usize,
    /// Calls whose connection broke.
    pub unanswered: usize,
    pub rows: usize,
    /// How executions ended, and how many.
    pub ends: BTreeMap<String, usize>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, calls, unanswered, rows, ends } = self;
        write!(
            f,
            "{accepted} accepted, {calls} calls, {unanswered} of them unanswered, {rows} rows: {ends:?}"
        )
    }
}

impl Ledger {
    pub fn number(&mut self) -> u64 {
        self.numbers += self.step.max(1);
        self.numbers
    }

    /// Ledgers for clients side by side, whose numbers are never the same.
    pub fn split(&mut self, clients: u64) -> Vec<Ledger> {
        let of = |client| Ledger { numbers: self.numbers + client, step: clients, ..Ledger::default() };
        (0..clients).map(of).collect()
    }

    pub fn join(&mut self, ledgers: Vec<Ledger>) {
        for ledger in ledgers {
            self.numbers = self.numbers.max(ledger.numbers);
            self.accepted.extend(ledger.accepted);
            self.calls.extend(ledger.calls);
        }
    }

    /// Has the database of a service count ends from now on.
    pub async fn watch(home: &Home) {
        let db = home.database().await;
        let note = "INSERT INTO ends (execution) VALUES (NEW.id)";
        let over = "NEW.status NOT IN ('pending', 'running')";
        for sql in [
            "CREATE TABLE ends (execution TEXT NOT NULL)".to_owned(),
            format!(
                "CREATE TRIGGER ended_later AFTER UPDATE OF status ON executions WHEN {over} BEGIN {note}; END"
            ),
            format!("CREATE TRIGGER ended_at_once AFTER INSERT ON executions WHEN {over} BEGIN {note}; END"),
        ] {
            db.writer().execute_unprepared(&sql).await.unwrap();
        }
        db.close().await.unwrap();
    }

    /// Accepts an execution, if the service lives long enough to say so.
    pub async fn accept(&mut self, service: &Service, function: &str, seconds: f64) -> Option<String> {
        let n = self.number();
        let input = json!({"n": n, "seconds": seconds}).to_string();
        let body = json!({"function_id": function, "input": input, "sync": false});
        let answer = ask(service, "demo", "POST", "/v1/executions", Some(body)).await?;
        let id = answer.expect(201)["id"].as_str().unwrap().to_owned();
        self.accepted.push((n, id.clone()));
        Some(id)
    }

    pub async fn call(&mut self, service: &Service, function: &str, seconds: f64) -> Option<Value> {
        let n = self.number();
        let input = json!({"n": n, "seconds": seconds}).to_string();
        let body = json!({"function_id": function, "input": input, "description": format!("call {n}")});
        let answer = ask(service, "demo", "POST", "/v1/executions", Some(body)).await;
        let answer = answer.map(|answer| (answer.status, answer.json()));
        let told = answer.clone().map(|(_, body)| body);
        self.calls.push(Call { n, answer });
        told
    }

    /// Reads what workers say of their runs. Before a start, whose service may end slots.
    pub fn harvest(&mut self, home: &Home) {
        let containers = home.containers();
        if containers.is_empty() {
            return;
        }
        let seen = home
            .docker()
            .args(["inspect", "--format", "{{.Id}} {{.State.Pid}}"])
            .args(&containers)
            .output()
            .unwrap();
        for line in String::from_utf8(seen.stdout).unwrap().lines() {
            let Some((container, pid)) = line.split_once(' ') else { continue };
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/root/tmp")) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
                if name.starts_with("ran.") {
                    let before = self.ran.entry((container.to_owned(), name)).or_default();
                    if text.len() > before.len() {
                        *before = text;
                    }
                }
            }
        }
    }

    fn runs(&self) -> HashMap<u64, usize> {
        let mut runs = HashMap::new();
        for line in self.ran.values().flat_map(|text| text.lines()) {
            *runs.entry(line.parse().unwrap()).or_default() += 1;
        }
        runs
    }

    /// Waits for the end of everything, and asserts what a service promises of it.
    pub async fn check(&mut self, service: &Service) -> Tally {
        // What was noted and not committed yet is in the tables once the service itself has looked there.
        ask(service, "demo", "GET", "/v1/executions?limit=1", None).await.expect("an answer").expect(200);
        let db = service.home.database().await;
        let mut limit = Instant::now() + PAST;
        let rows = loop {
            let (filters, page) = Default::default();
            let rows = db::executions::list(db.reader(), &Scope::All, &filters, &page).await.unwrap();
            let open: Vec<_> = rows.iter().filter(|row| !row.status.has_ended()).collect();
            if open.is_empty() {
                break rows;
            }
            // As long as some end, those that wait have not begun: their deadline is a day away.
            if open.iter().any(|row| row.status == ExecutionStatus::Pending) {
                limit = limit.max(Instant::now() + PAST / 2);
            }
            assert!(Instant::now() < limit, "not ended in time: {open:?}\n{}", service.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        self.harvest(&service.home);
        let mut ends: HashMap<String, usize> = HashMap::new();
        let all = Statement::from_string(db.reader().get_database_backend(), "SELECT execution FROM ends");
        for row in db.reader().query_all_raw(all).await.unwrap() {
            *ends.entry(row.try_get_by_index::<String>(0).unwrap()).or_default() += 1;
        }
        db.close().await.unwrap();

        let rows: HashMap<String, _> = rows.into_iter().map(|row| (row.id.to_string(), row)).collect();
        let runs = self.runs();
        let ran = |n: &u64| runs.get(n).copied().unwrap_or(0);
        let mut tally = Tally {
            accepted: self.accepted.len(),
            calls: self.calls.len(),
            rows: rows.len(),
            ..Tally::default()
        };
        for (n, times) in &runs {
            assert!(*times == 1, "number {n} ran {times} times");
        }
        for (id, row) in &rows {
            assert_eq!(ends.get(id), Some(&1), "ends of {row:?}");
            let how = row.reason.clone().unwrap_or_else(|| "success".to_owned());
            *tally.ends.entry(how).or_default() += 1;
        }
        for (n, id) in &self.accepted {
            let row = rows.get(id).unwrap_or_else(|| panic!("accepted and lost: {id}, number {n}"));
            if row.status == ExecutionStatus::Success {
                assert_eq!(ran(n), 1, "it succeeded: {row:?}");
            }
        }
        for Call { n, answer } in &self.calls {
            let description = format!("call {n}");
            let mut of_call = rows.values().filter(|row| row.description.as_deref() == Some(&description));
            let row = of_call.next();
            assert!(of_call.next().is_none(), "one call, two rows: {n}");
            match answer {
                Some((201, told)) => {
                    let row = row.unwrap_or_else(|| panic!("answered and not written: {told}"));
                    let same = (told["id"].as_str(), told["status"].as_str());
                    let status = match row.status {
                        ExecutionStatus::Cancelled => "failed".to_owned(),
                        status => format!("{status:?}").to_lowercase(),
                    };
                    assert_eq!(same, (Some(row.id.as_str()), Some(status.as_str())), "one answer");
                }
                Some((status, told)) => assert!(*status >= 400, "{status} {told}"),
                None => {
                    tally.unanswered += 1;
                    if let Some(row) = row {
                        let reason = row.reason.as_deref();
                        assert!(matches!(reason, None | Some("interrupted")), "{row:?}");
                    }
                }
            }
        }
        tally
    }
}

/// Waits until the service's workers are the containers that there are.
pub async fn in_step(service: &Service) {
    let mut last = (0, Vec::new());
    let limit = Instant::now() + PAST;
    loop {
        let mut total = 0;
        let runtimes = service.ask("admin", "GET", "/v1/runtimes", None).await.expect(200);
        for runtime in runtimes["runtimes"].as_array().unwrap() {
            let path = format!("/v1/runtimes/{}/pool", runtime["id"].as_str().unwrap());
            let pool = service.ask("admin", "GET", &path, None).await;
            if pool.status == 200 {
                total += pool.json()["capacity"]["total"].as_u64().unwrap();
            }
        }
        let containers = service.home.containers();
        if total == containers.len() as u64 {
            return;
        }
        assert!(Instant::now() < limit, "workers and containers: {last:?}\n{}", service.log());
        last = (total, containers);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends the service in good order and asserts that nothing of it is left on the machine.
pub async fn nothing_left(service: Service) {
    let db = service.home.database().await;
    let needed = db::functions::list_digests(db.reader()).await.unwrap();
    db.close().await.unwrap();
    let home = service.stop().await;
    let mut left = home.leftovers();
    let files = |below: &str| walk(&home.path().join(below));
    for file in files("packages") {
        let name = file.rsplit('/').next().unwrap();
        if !needed.contains(name) {
            left.push(format!("package {file}"));
        }
    }
    // The empty filesystem that workers' are copies of stays for the next start.
    let works = files("work").into_iter().filter(|file| !file.ends_with("/template.image"));
    left.extend(works.map(|file| format!("file {file}")));
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    let ours = format!("taibai-{}", home.deployment);
    left.extend(tables.lines().filter(|line| line.contains(&ours)).map(|line| format!("rules {line}")));
    assert_eq!(left, Vec::<String>::new());
}

fn walk(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            _ => vec![entry.path().display().to_string()],
        })
        .collect()
}
