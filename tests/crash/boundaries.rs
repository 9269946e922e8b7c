//! The service dies right before and right after each of its writes, all that `crash_points` names, and
//! starts again.

use std::process::Command;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, EntityTrait, Statement};
use serde_json::{Value, json};
use taibai::crash_points::Write;
use taibai::db;
use taibai::model::{Timestamp, alias};
use tokio::time::timeout;

use crate::cloud::Cloud;
use crate::ledger::{self, Ledger, MARKED, answer, ask, in_step, nothing_left};
use crate::own::OwnDatabase;
use crate::service::{Home, Service, eventually, package};

/// How long a service may take to come to the place at which it dies.
const REACH: Duration = Duration::from_secs(120);
const OFTEN: &str = "* * * * * *";

/// How a service is brought to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tour {
    /// Functions and executions.
    Runs,
    /// Versions, aliases, webhooks, jobs, runtimes, images.
    Rows,
    /// By a start that finds what a death at this place left.
    After(Option<&'static str>),
    /// A job whose alias is gone.
    Broken,
    /// By what is too old.
    Age,
    /// With Keystone and Swift.
    Cloud,
    /// An engine that APIs of other processes ask.
    Split,
}

fn tour(write: Write) -> Tour {
    use Write as W;
    match write {
        W::Accept | W::Begin | W::Note | W::End | W::Claim | W::Finish => Tour::Runs,
        W::Dismiss | W::ExecutionDelete => Tour::Runs,
        W::FunctionCreate | W::FunctionUpdate | W::FunctionDelete => Tour::Runs,
        W::PackageKeep | W::PackageForget => Tour::Runs,
        W::WorkerFiles | W::ContainerCreate | W::ContainerStart => Tour::Runs,
        W::ContainerRemove | W::FilesRemove => Tour::Runs,
        W::Load | W::Execute | W::Acknowledge | W::Cancel => Tour::Runs,
        W::VersionCreate | W::VersionDelete | W::AliasCreate | W::AliasUpdate | W::AliasDelete => Tour::Rows,
        W::JobCreate | W::JobUpdate | W::JobDelete | W::JobStart => Tour::Rows,
        W::WebhookCreate | W::WebhookUpdate | W::WebhookDelete => Tour::Rows,
        W::RuntimeCreate | W::RuntimeUpdate | W::RuntimeDelete => Tour::Rows,
        W::RuntimeStatus | W::RuntimeRemove | W::ImageFound => Tour::Rows,
        W::EngineRegister | W::EngineRenew => Tour::After(None),
        W::PutBack => Tour::After(Some("Execute:before")),
        W::Replay => Tour::After(Some("Note:after")),
        W::TakeOver | W::Fence | W::EngineRemove => Tour::After(Some("Execute:after")),
        W::JobSkip => Tour::Broken,
        W::Retention => Tour::Age,
        W::ObjectChanged | W::TrustCreate | W::TrustEnd => Tour::Cloud,
        W::EngineWithdraw => Tour::Split,
    }
}

fn places(wanted: impl Fn(Tour) -> bool) -> Vec<String> {
    let writes = Write::ALL.iter().filter(|write| wanted(tour(**write)));
    writes.flat_map(|write| [format!("{write:?}:before"), format!("{write:?}:after")]).collect()
}

/// A deployment that dies again and again.
struct Scene {
    home: Option<Home>,
    ledger: Ledger,
    function: String,
    runtime: String,
    /// Where it dies next.
    place: String,
    deaths: usize,
}

const OPTIONS: [(&str, &str); 6] = [
    ("engine.max_async", "2"),
    ("engine.max_workers", "6"),
    ("engine.memory_mark", "268435456"),
    ("engine.lease", "10s"),
    ("images.allowed", "docker.io/taibai-crash/*"),
    ("images.pull", "never"),
];

fn armed(home: &Home, role: &str, place: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    command.arg("--config-file").arg(home.config_file()).arg(role).env("TAIBAI_CRASH_AT", place);
    command
}

impl Scene {
    async fn open() -> Self {
        let service = Service::start_in(ledger::home(&OPTIONS)).await;
        Ledger::watch(&service.home).await;
        let runtime = service.runtime().await;
        let fields = [("timeout", "30"), ("cpu", "1000")];
        let function = service.function("demo", &runtime, MARKED, &fields).await;
        let mut ledger = Ledger::default();
        ledger.call(&service, &function, 0.0).await.unwrap();
        let home = Some(service.kill_9());
        Self { home, ledger, function, runtime, place: String::new(), deaths: 0 }
    }

    /// Starts, has the service die at a place while `doing` uses it, and looks what the next one makes of it.
    async fn die_at(&mut self, place: &str, doing: impl AsyncFn(&mut Self, &Service) -> Option<()>) {
        self.die(place, doing).await;
        let service = Service::start_in(self.home.take().unwrap()).await;
        // Whatever was under way, it works.
        let n = self.ledger.calls.len();
        let done = self.ledger.call(&service, &self.function.clone(), 0.0).await.expect("an answer");
        assert_eq!(done["status"], "success", "after {place}, call {n}: {done}\n{}", service.log());
        self.home = Some(service.kill_9());
        self.deaths += 1;
    }

    async fn die(&mut self, place: &str, doing: impl AsyncFn(&mut Self, &Service) -> Option<()>) {
        let home = self.home.take().unwrap();
        self.ledger.harvest(&home);
        place.clone_into(&mut self.place);
        let began = Instant::now();
        let command = armed(&home, "serve", place);
        let (home, log) = match Service::try_start(home, command).await {
            Err(died) => died,
            Ok(service) => {
                // What it does not answer any more may wait for ever.
                let _ = timeout(REACH, doing(self, &service)).await;
                service.ended_by_itself().await
            }
        };
        assert!(log.contains(&format!("as told: {place}")), "never reached: {place}\n{log}");
        println!("{place}: after {:.1} s", began.elapsed().as_secs_f64());
        self.ledger.harvest(&home);
        self.home = Some(home);
    }

    /// What a service promises after all of it, and that it leaves nothing.
    async fn close(mut self) {
        let service = Service::start_in(self.home.take().unwrap()).await;
        let tally = self.ledger.check(&service).await;
        println!("after {} deaths: {tally}", self.deaths);
        in_step(&service).await;
        nothing_left(service).await;
    }

    async fn runs(&mut self, service: &Service) -> Option<()> {
        let function = self.function.clone();
        let first = self.ledger.accept(service, &function, 0.0).await?;
        self.ledger.call(service, &function, 0.0).await?;
        if self.place.starts_with("Note") {
            self.short_calls(service).await?;
        }
        self.ledger.call(service, &function, 0.2).await?;
        if self.place.starts_with("End") {
            // However slow the machine, a call that never runs has no row before its end.
            let code = json!({"source": "image", "image": "taibai-crash/none:1"});
            let new = json!({"name": "image", "code": code});
            let made = ask(service, "demo", "POST", "/v1/functions", Some(new)).await?.expect(201);
            self.ledger.call(service, made["id"].as_str().unwrap(), 0.0).await?;
        }
        // With a slot that is killed goes what it says of the runs before.
        let first = format!("/v1/executions/{first}");
        while ask(service, "demo", "GET", &first, None).await?.expect(200)["status"] == "running" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.ledger.harvest(&service.home);
        // Two run, the third waits: one of either kind is cancelled.
        let mut long = Vec::new();
        for _ in 0..3 {
            long.push(self.ledger.accept(service, &function, 3.0).await?);
        }
        for id in [&long[2], &long[0], &long[1]] {
            ask(service, "demo", "POST", &format!("/v1/executions/{id}/cancel"), None).await?;
        }
        let input = json!({"n": self.ledger.number()}).to_string();
        let body = json!({"function_id": function, "input": input});
        let done = ask(service, "demo", "POST", "/v1/executions", Some(body)).await?.expect(201);
        let path = format!("/v1/executions/{}", done["id"].as_str().unwrap());
        ask(service, "demo", "DELETE", &path, None).await?;

        let other = self.create(service).await?;
        self.ledger.call(service, &other, 0.0).await?;
        let path = format!("/v1/functions/{other}");
        let code = [("code", r#"{"source": "package"}"#)];
        let new = package(&format!("{MARKED}\n# {}", self.ledger.number()));
        answer(service.form("demo", "PUT", &path, &code, Some(&new))).await?.expect(200);
        self.ledger.call(service, &other, 0.0).await?;
        self.delete(service, &path).await?;
        // The rest happens by itself.
        service_ends(service).await
    }

    /// Calls on until one was short enough to be noted, and nobody answers.
    async fn short_calls(&mut self, service: &Service) -> Option<()> {
        let function = self.function.clone();
        loop {
            self.ledger.call(service, &function, 0.0).await?;
        }
    }

    async fn create(&mut self, service: &Service) -> Option<String> {
        let fields = [
            ("runtime_id", self.runtime.as_str()),
            ("code", r#"{"source": "package"}"#),
            ("cpu", "1000"),
            ("name", "short-lived"),
        ];
        let content = package(&format!("{MARKED}\n# {}", self.ledger.number()));
        let made = answer(service.form("demo", "POST", "/v1/functions", &fields, Some(&content))).await?;
        Some(made.expect(201)["id"].as_str().unwrap().to_owned())
    }

    async fn delete(&self, service: &Service, path: &str) -> Option<()> {
        let gone = ask(service, "demo", "DELETE", path, None).await?;
        assert!(matches!(gone.status, 204 | 404), "{}", gone.text());
        Some(())
    }

    async fn rows(&mut self, service: &Service) -> Option<()> {
        let function = self.create(service).await?;
        let post = async |path: &str, body: Value| {
            let made = ask(service, "demo", "POST", path, Some(body)).await?;
            Some(made.expect(201))
        };
        let path = format!("/v1/functions/{function}");
        post(&format!("{path}/versions"), json!({})).await?;
        let name = format!("a{}", self.ledger.number());
        post("/v1/aliases", json!({"name": name, "function_id": function, "function_version": 1})).await?;
        let put = async |path: String, body: Value| {
            ask(service, "demo", "PUT", &path, Some(body)).await.map(|put| put.expect(200))
        };
        put(format!("/v1/aliases/{name}"), json!({"function_version": 0})).await?;
        self.delete(service, &format!("/v1/aliases/{name}")).await?;
        self.delete(service, &format!("{path}/versions/1")).await?;

        let hook = post("/v1/webhooks", json!({"function_id": function})).await?;
        let hook = format!("/v1/webhooks/{}", hook["id"].as_str().unwrap());
        put(hook.clone(), json!({"description": "other"})).await?;
        self.delete(service, &hook).await?;

        let input = json!({"n": self.ledger.number()}).to_string();
        let body = json!({"function_id": function, "pattern": OFTEN, "count": 1, "function_input": input});
        let job = post("/v1/jobs", body).await?;
        let job = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        put(job.clone(), json!({"name": "other"})).await?;
        let limit = Instant::now() + REACH;
        while ask(service, "demo", "GET", &job, None).await?.expect(200)["status"] != "done" {
            assert!(Instant::now() < limit, "the job is not done\n{}", service.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.delete(service, &job).await?;
        self.delete(service, &path).await?;

        let image = json!({"image": "taibai-crash/none:1", "name": "none"});
        let made = ask(service, "admin", "POST", "/v1/runtimes", Some(image)).await?.expect(201);
        let runtime = format!("/v1/runtimes/{}", made["id"].as_str().unwrap());
        ask(service, "admin", "PUT", &runtime, Some(json!({"name": "other"}))).await?.expect(200);
        let limit = Instant::now() + REACH;
        while ask(service, "admin", "GET", &runtime, None).await?.expect(200)["status"] != "error" {
            assert!(Instant::now() < limit, "there is no such image\n{}", service.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ask(service, "admin", "DELETE", &runtime, None).await?;
        let code = json!({"source": "image", "image": "taibai-crash/none:1"});
        post("/v1/functions", json!({"name": "image", "code": code})).await?;
        service_ends(service).await
    }

    /// A job that is due, by an alias that is not there, as nothing in the API lets it happen.
    async fn break_a_job(&mut self) -> String {
        let service = Service::start_in(self.home.take().unwrap()).await;
        let row = alias::Model {
            id: uuid::Uuid::new_v4().to_string(),
            project_id: "demo".into(),
            name: format!("a{}", self.ledger.number()),
            function_id: self.function.as_str().into(),
            function_version: 0,
            description: None,
            canary_version: None,
            canary_weight: 0,
            previous_version: None,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        let db = service.home.database().await;
        db::aliases::insert(&db.writer(), row.clone()).await.unwrap();
        let soon = Timestamp::now().after(Duration::from_secs(3600)).to_string();
        let job = json!({"function_alias": row.name, "pattern": OFTEN, "first_execution_time": soon});
        let job = service.ask("demo", "POST", "/v1/jobs", Some(job)).await.expect(201);
        let id = job["id"].as_str().unwrap().to_owned();
        self.home = Some(service.kill_9());
        alias::Entity::delete_by_id(row.id).exec(&db.writer()).await.unwrap();
        let due = taibai::model::job::ActiveModel {
            id: sea_orm::Set(id.as_str().into()),
            next_execution_time: sea_orm::Set(Timestamp::now()),
            ..Default::default()
        };
        db::jobs::update(&db.writer(), due).await.unwrap();
        db.close().await.unwrap();
        id
    }
}

/// Asks on until nobody answers.
async fn service_ends(service: &Service) -> Option<()> {
    loop {
        ask(service, "", "GET", "/v1/runtimes", None).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn each_of(places: &[String], rows: bool) {
    let mut scene = Scene::open().await;
    for place in places {
        scene
            .die_at(place, async |scene, service| match rows {
                true => scene.rows(service).await,
                false => scene.runs(service).await,
            })
            .await;
    }
    scene.close().await;
}

// Some at a time: most of it is waiting.

#[tokio::test]
async fn deaths_around_the_writes_of_runs_lose_nothing_and_double_nothing() {
    let places = places(|tour| tour == Tour::Runs);
    each_of(&places[..places.len() / 2], false).await;
}

#[tokio::test]
async fn deaths_around_the_other_writes_of_runs_lose_nothing_and_double_nothing() {
    let places = places(|tour| tour == Tour::Runs);
    each_of(&places[places.len() / 2..], false).await;
}

#[tokio::test]
async fn deaths_around_the_writes_of_users_leave_nothing_half_done() {
    each_of(&places(|tour| tour == Tour::Rows), true).await;
}

#[tokio::test]
async fn deaths_while_what_a_death_left_is_taken_over_lose_nothing_and_double_nothing() {
    let mut scene = Scene::open().await;
    for write in Write::ALL {
        let Tour::After(first) = tour(*write) else { continue };
        for moment in ["before", "after"] {
            if let Some(first) = first {
                let use_it = async |scene: &mut Scene, service: &Service| {
                    if first.starts_with("Note") {
                        return scene.short_calls(service).await;
                    }
                    let function = scene.function.clone();
                    scene.ledger.accept(service, &function, 0.0).await?;
                    service_ends(service).await
                };
                scene.die(first, use_it).await;
            }
            scene
                .die_at(&format!("{write:?}:{moment}"), async |_, service| service_ends(service).await)
                .await;
        }
    }
    for place in places(|tour| tour == Tour::Broken) {
        let job = scene.break_a_job().await;
        scene.die_at(&place, async |_, service| service_ends(service).await).await;
        let service = Service::start_in(scene.home.take().unwrap()).await;
        scene.delete(&service, &format!("/v1/jobs/{job}")).await.unwrap();
        scene.home = Some(service.kill_9());
    }
    scene.close().await;
}

#[tokio::test]
async fn deaths_while_old_executions_are_deleted_leave_none_behind() {
    let mut home = ledger::home(&OPTIONS);
    home.set("executions.max_age", "1s");
    home.set("executions.check_interval", "1s");
    let service = Service::start_in(home).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, MARKED, &[]).await;
    let mut home = service.kill_9();
    for place in places(|tour| tour == Tour::Age) {
        let command = armed(&home, "serve", &place);
        let service = Service::try_start(home, command).await.unwrap_or_else(|(_, log)| panic!("{log}"));
        let body = json!({"function_id": function});
        let _ = timeout(REACH, ask(&service, "demo", "POST", "/v1/executions", Some(body))).await;
        let log;
        (home, log) = service.ended_by_itself().await;
        assert!(log.contains(&format!("as told: {place}")), "never reached: {place}\n{log}");
    }
    let service = Service::start_in(home).await;
    eventually("all of them are gone", async || {
        service.ask("demo", "GET", "/v1/executions", None).await.expect(200)["executions"] == json!([])
    })
    .await;
    in_step(&service).await;
    nothing_left(service).await;
}

/// An object in Swift, and a service that knows its callers by Keystone.
#[tokio::test]
async fn deaths_around_trusts_and_objects_leave_no_trust_that_nobody_knows() {
    let cloud = Cloud::open();
    let account = cloud.account("taibai");
    let mut home = ledger::home(&OPTIONS);
    for (key, value) in [
        ("api.auth_strategy", "keystone"),
        ("engine.object_check_interval", "1s"),
        ("keystone_authtoken.auth_url", cloud.auth_url()),
        ("keystone_authtoken.username", &account.auth.username),
        ("keystone_authtoken.password", account.auth.password.as_str()),
        ("keystone_authtoken.project_name", &account.auth.project_name),
        ("keystone_authtoken.region_name", &account.region_name),
    ] {
        home.set(key, value);
    }
    let service = Service::start_in(home).await;
    let admin = cloud.token("admin").await;
    let body = json!({"image": crate::service::required("TAIBAI_TEST_IMAGE"), "name": "python3"});
    let made = service.ask(admin.expose(), "POST", "/v1/runtimes", Some(body)).await.expect(201);
    let runtime = made["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/runtimes/{runtime}");
    eventually("the runtime is available", async || {
        service.ask(admin.expose(), "GET", &path, None).await.expect(200)["status"] == "available"
    })
    .await;

    // With whom goes what is left of them in Keystone.
    let guest = cloud.user_with_roles("demo", &["member", "swiftoperator"]).await;
    let (demo, user) = (guest.token.clone(), guest.user.clone());
    let region = Some(account.region_name.as_str());
    let swift = user.info.catalog.endpoint("object-store", taibai::model::Interface::Public, region).unwrap();
    let container = format!("crash-{}", uuid::Uuid::new_v4());
    let http = reqwest::Client::new();
    let url = format!("{swift}/{container}");
    let put = async |url: &str, content: Vec<u8>| {
        let sent = http.put(url).header("x-auth-token", demo.expose()).body(content).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.status());
    };
    put(&url, Vec::new()).await;
    let object = format!("{url}/code.zip");
    put(&object, package(MARKED)).await;
    let code = json!({"source": "swift", "swift": {"container": container, "object": "code.zip"}});
    let new = json!({"runtime_id": runtime, "code": code, "name": "in-swift"});

    let mut home = service.kill_9();
    let mut deaths = 0;
    for place in places(|tour| tour == Tour::Cloud) {
        let command = armed(&home, "serve", &place);
        let service = Service::try_start(home, command).await.unwrap_or_else(|(_, log)| panic!("{log}"));
        let tour = async {
            let who = demo.expose();
            let made = ask(&service, who, "POST", "/v1/functions", Some(new.clone())).await?.expect(201);
            let function = made["id"].as_str().unwrap().to_owned();
            let body = json!({"function_id": function});
            let done = ask(&service, who, "POST", "/v1/executions", Some(body)).await?.expect(201);
            assert_eq!(done["status"], "success", "{done}\n{}", service.log());
            if place.starts_with("Object") {
                put(&object, package(&format!("{MARKED}\n# {deaths}"))).await;
            } else {
                ask(&service, who, "DELETE", &format!("/v1/functions/{function}"), None).await?;
            }
            service_ends(&service).await
        };
        let _: Result<Option<()>, _> = timeout(REACH, tour).await;
        let log;
        (home, log) = service.ended_by_itself().await;
        assert!(log.contains(&format!("as told: {place}")), "never reached: {place}\n{log}");
        deaths += 1;
    }
    println!("{deaths} deaths");

    // Every trust that is in Keystone is in the table, where it is ended from, but for the one that was made
    // in the moment of the death.
    let service = Service::start_in(home).await;
    let list = format!("{}/OS-TRUST/trusts?trustor_user_id={}", cloud.auth_url(), user.info.user_id);
    let listed = http.get(list).header("x-auth-token", demo.expose()).send().await.unwrap();
    let listed: Value = listed.json().await.unwrap();
    let made = listed["trusts"].as_array().unwrap().iter().map(|trust| trust["id"].as_str().unwrap());
    let db = service.home.database().await;
    let known = Statement::from_string(db.reader().get_database_backend(), "SELECT id FROM trusts");
    let known = db.reader().query_all_raw(known).await.unwrap();
    db.close().await.unwrap();
    let known: Vec<String> = known.iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
    let unknown: Vec<_> = made.filter(|id| !known.iter().any(|known| known == id)).collect();
    assert!(known.len() >= 3 && unknown.len() <= 1, "{known:?} {unknown:?}");

    let functions = service.ask(demo.expose(), "GET", "/v1/functions", None).await.expect(200);
    for function in functions["functions"].as_array().unwrap() {
        let id = function["id"].as_str().unwrap();
        let body = json!({"function_id": id});
        let done = service.ask(demo.expose(), "POST", "/v1/executions", Some(body)).await.expect(201);
        assert_eq!(done["status"], "success", "{done}");
        service.ask(demo.expose(), "DELETE", &format!("/v1/functions/{id}"), None).await.expect(204);
    }
    for url in [&object, &url] {
        let sent = http.delete(url).header("x-auth-token", demo.expose()).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.status());
    }
    cloud.forget(guest).await;
    nothing_left(service).await;
}

/// On a server's database, which several processes may have.
#[tokio::test]
async fn deaths_of_an_engine_that_takes_its_leave_are_survived() {
    let database = std::sync::Arc::new(OwnDatabase::create());
    assert!(!database.is_file(), "TAIBAI_TEST_DATABASE names no server: run tox-like-scripts/crash");
    let packages = tempfile::tempdir().unwrap();
    let options =
        [("storage.file_system_dir", packages.path().to_str().unwrap()), ("engine.health_port", "0")];
    let mut home = Home::on(database.clone(), &options);
    home.set("engine.listen", &format!("unix://{}", home.path().join("e.sock").display()));
    home.sync_database();
    let engine = Service::start_role(home, "engine").await;
    let api = Service::start_role(Home::on(database, &options[..1]), "api").await;
    let runtime = api.runtime().await;
    let function = api.function("demo", &runtime, MARKED, &[]).await;
    let mut home = engine.kill_9();
    for (number, place) in places(|tour| tour == Tour::Split).iter().enumerate() {
        let command = armed(&home, "engine", place);
        let engine = Service::try_start(home, command).await.unwrap_or_else(|(_, log)| panic!("{log}"));
        let id = api.accept("demo", &function, &json!({"n": number}).to_string()).await;
        engine.send_sigterm();
        let log;
        (home, log) = engine.ended_by_itself().await;
        assert!(log.contains(&format!("as told: {place}")), "never reached: {place}\n{log}");
        let engine = Service::start_role(home, "engine").await;
        assert_eq!(api.ended("demo", &id).await["status"], "success", "{}", engine.log());
        home = engine.kill_9();
    }
    let engine = Service::start_role(home, "engine").await;
    engine.stop_clean().await;
    api.stop_clean().await;
}

#[test]
fn every_write_has_a_tour() {
    let all = places(|_| true).len();
    assert_eq!(all, Write::ALL.len() * 2);
    println!("{all} places to die at");
}
