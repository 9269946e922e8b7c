//! Markers in whatever is somebody's own, and a search for them in whatever somebody else can read. A marker is
//! found where it belongs, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use hmac::{Hmac, KeyInit, Mac};
use sea_orm::{ConnectionTrait, DbBackend, FromQueryResult, Statement};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::images::{self, Image};
use crate::service::{Answer, Home, Service, eventually, output, package, read};
use crate::tenants::Site;

/// Where each marker may be, and must be: what is found nowhere was not looked for. Answers to whoever sent it
/// are not places. `containers` is what Docker says of them, `processes` command lines and environments of this
/// machine, `own` the function whose it is; a `stranger` is a function of another project and a `sibling`
/// another function of the same.
const BELONGS: &[(&str, &[&str])] = &[
    // What callers show, and what the service has to show.
    ("token", &[]),
    ("nonsense", &[]),
    ("password", &[]),
    // What executions were given and gave.
    ("input", &["database"]),
    ("job", &["database"]),
    ("body", &["database"]),
    ("query", &["database"]),
    ("output", &["database"]),
    ("log", &["database"]),
    ("raised", &["database", "errors"]),
    // A secret that signatures are made with has to be known.
    ("secret", &["database"]),
    // In the store, and where it runs.
    ("code", &["own"]),
    // Words of a container are its command line, while it runs.
    ("image", &["database", "containers", "processes"]),
    ("imagelog", &["database"]),
];

/// What may be in a function's memory besides: the interpreter does not wipe what earlier executions of the same
/// function left.
const LEFT_IN_OWN: &[&str] = &["input", "job", "body", "query", "output", "log", "raised", "code", "secret"];

struct Markers(BTreeMap<&'static str, String>);

impl Markers {
    fn new() -> Self {
        let made = |label: &str| {
            let random = uuid::Uuid::new_v4().simple().to_string();
            format!("canary-{label}-{}", &random[..16])
        };
        Self(BELONGS.iter().map(|(label, _)| (*label, made(label))).collect())
    }

    fn get(&self, label: &str) -> &str {
        &self.0[label]
    }

    /// Those that are in a text.
    fn found_in(&self, text: &str) -> BTreeSet<&'static str> {
        self.0.iter().filter(|(_, marker)| text.contains(marker.as_str())).map(|(label, _)| *label).collect()
    }
}

fn id(view: &Value) -> &str {
    view["id"].as_str().unwrap_or_else(|| panic!("no id: {view}"))
}

/// Every row of every table.
async fn dump(home: &Home) -> String {
    let db = home.database().await;
    let connection = db.reader();
    let backend = connection.get_database_backend();
    let tables = match backend {
        DbBackend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table'",
        DbBackend::MySql => {
            "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = DATABASE()"
        }
        _ => "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = current_schema()",
    };
    let ask = async |sql: &str| {
        let rows = connection.query_all_raw(Statement::from_string(backend, sql.to_owned())).await.unwrap();
        rows.iter().map(|row| Value::from_query_result(row, "").unwrap()).collect::<Vec<_>>()
    };
    let mut text = String::new();
    let tables = ask(tables).await;
    assert!(tables.len() > 8, "{tables:?}");
    for table in tables {
        let name = table["name"].as_str().unwrap();
        for row in ask(&format!("SELECT * FROM {name}")).await {
            // With the escapes of texts that are JSON themselves taken away.
            text.push_str(&format!("{name} {}\n", row.to_string().replace('\\', "")));
        }
    }
    db.close().await.unwrap();
    text
}

/// What Docker says of this deployment's containers.
fn containers(home: &Home) -> String {
    let ids = home.containers();
    let inspected = Command::new("docker").arg("inspect").args(&ids).output().unwrap();
    assert!(inspected.status.success() && !ids.is_empty(), "{ids:?}");
    String::from_utf8_lossy(&inspected.stdout).into_owned()
}

/// Command lines of this machine's processes, and environments of the service and of what runs in its containers.
fn processes(service: &Service) -> String {
    let ids = service.home.containers();
    let pids =
        Command::new("docker").args(["inspect", "--format", "{{.State.Pid}}"]).args(&ids).output().unwrap();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace("self");
    let inside: Vec<_> = String::from_utf8_lossy(&pids.stdout).lines().filter_map(namespace).collect();
    assert!(!inside.is_empty() && inside.iter().all(|inside| Some(inside) != own.as_ref()));
    let mut text = String::new();
    let mut looked = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == std::process::id().to_string() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let is_ours = name == service.pid().to_string()
            || namespace(&name).is_some_and(|namespace| inside.contains(&namespace));
        for file in if is_ours { &["cmdline", "environ"][..] } else { &["cmdline"] } {
            // One may have ended meanwhile.
            let read = std::fs::read(entry.path().join(file)).unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&read));
            text.push('\n');
        }
        looked += u32::from(is_ours);
    }
    assert!(looked > 3, "{looked} processes");
    text
}

/// Files of a service that are no package, no configuration and no database.
fn files(home: &Home) -> String {
    let found = Command::new("find")
        .arg(home.path().join("w"))
        .args(["-type", "f", "-exec", "cat", "{}", "+"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// The path in the URL of a webhook.
fn path_of(webhook: &Value) -> String {
    let url = webhook["webhook_url"].as_str().unwrap();
    url[url.find("/v1/").unwrap()..].to_owned()
}

/// Texts of errors, as callers were told.
#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn keep(&mut self, answer: &Answer, status: u16) {
        assert_eq!(answer.status, status, "{}", answer.text());
        self.0.push(format!("{:?} {}", answer.headers, answer.text()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebodys_own_is_found_where_it_belongs_and_nowhere_else() {
    let mut markers = Markers::new();
    let site = Site::start(&[("logging.level", "debug"), ("audit.enabled", "true"), images::ANY[0]]).await;
    let guest = site.cloud.guest("demo").await;
    let token = guest.token.expose().to_owned();
    let password = site.cloud.account("taibai").auth.password.clone();
    markers.0.insert("imagelog", markers.get("image").replace("image", "imagelog"));
    markers.0.insert("token", token.clone());
    markers.0.insert("password", password.clone());
    let marker = |label: &str| markers.get(label).to_owned();
    let service = &site.service;
    let ask =
        async |method: &str, path: &str, body: Value| service.ask(&token, method, path, Some(body)).await;
    let mut errors = Errors::default();

    // It takes words apart and puts its own together, so that each is known by where it comes from.
    let source = format!(
        "import time\nCODE = '{}'\ndef main(word='', says='', seconds=0, how='', context=None, **given):\n    \
         print(says.replace('LOG', 'canary-log'))\n    time.sleep(seconds)\n    \
         if how == 'hunt':\n        return hunt(given['digests'], given['length'])\n    \
         if how == 'raises':\n        raise ValueError(given['text'])\n    \
         if how == 'eats':\n        return bytearray(1 << 30)\n    \
         return says.replace('LOG', 'canary-output').replace(given.get('from', ' '), given.get('to', ' '))\n",
        marker("code")
    );
    let hunt = include_str!("canary/hunt.py");
    let create = async |who: &str, source: &str, more: &[(&str, &str)]| -> String {
        let fields = [&[("timeout", "290"), ("cpu", "2000"), ("memory_size", "268435456")], more].concat();
        let created =
            service.create_function(who, &site.runtime, &package(source), &fields).await.expect(201);
        id(&created).to_owned()
    };
    let function =
        create(&token, &format!("{source}\n{}", hunt.replace("def main(", "def hunt(")), &[]).await;
    let call =
        |input: Value, sync: bool| json!({"function_id": function, "input": input.to_string(), "sync": sync});
    let (log_hex, output_hex) =
        (&marker("log")["canary-log-".len()..], &marker("output")["canary-output-".len()..]);
    let ordinary =
        json!({"word": marker("input"), "says": format!("LOG-{log_hex}"), "from": log_hex, "to": output_hex});

    // Every kind of call that ends well.
    let done = ask("POST", "/v1/executions", call(ordinary.clone(), true)).await.expect(201);
    assert_eq!((&done["status"], output(&done)), (&json!("success"), json!(marker("output"))), "{done}");
    let accepted = ask("POST", "/v1/executions", call(ordinary.clone(), false)).await.expect(201);
    assert_eq!(service.ended(&token, id(&accepted)).await["status"], "success");
    assert!(service.execution_log(&token, id(&accepted)).await.contains(&marker("log")));
    let job = json!({"function_id": function, "pattern": "* * * * * *", "count": 1,
                     "function_input": json!({"word": marker("job")}).to_string()});
    let job = ask("POST", "/v1/jobs", job).await.expect(201);
    let runs = format!("/v1/executions?description=has:{}", id(&job));
    eventually("the job has run", async || {
        let listed = service.ask(&token, "GET", &runs, None).await.expect(200);
        listed["executions"][0]["status"] == "success"
    })
    .await;
    let new =
        |mode: &str, secret: Option<String>| json!({"function_id": function, "mode": mode, "secret": secret});
    let open = ask("POST", "/v1/webhooks", new("sync", None)).await.expect(201);
    let path = format!("{}?text={}", path_of(&open), marker("query"));
    service.ask("", "POST", &path, Some(json!({"word": marker("body")}))).await.expect(200);
    let signed = ask("POST", "/v1/webhooks", new("async", Some(marker("secret")))).await.expect(201);
    let body = json!({"word": marker("body")}).to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(marker("secret").as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let code = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    let send = async |signature: &str| {
        let request =
            service.request("", "POST", &path_of(&signed)).header("content-type", "application/json");
        read(request.header("x-taibai-signature", signature).body(body.clone())).await
    };
    let accepted = send(&code).await.expect(202);
    service.ended(&token, accepted["execution_id"].as_str().unwrap()).await;

    // And every kind that does not.
    let raises = json!({"word": marker("input"), "how": "raises", "text": marker("raised")});
    let failed = ask("POST", "/v1/executions", call(raises.clone(), true)).await.expect(201);
    assert_eq!((&failed["status"], output(&failed)), (&json!("failed"), json!(marker("raised"))));
    let accepted = ask("POST", "/v1/executions", call(raises.clone(), false)).await.expect(201);
    service.ended(&token, id(&accepted)).await;
    errors.keep(&service.ask("", "POST", &path_of(&open), Some(raises)).await, 502);
    let eats = json!({"word": marker("input"), "how": "eats"});
    assert_eq!(ask("POST", "/v1/executions", call(eats, true)).await.expect(201)["status"], "failed");
    errors.keep(&send(&marker("nonsense")).await, 401);
    let stranger = site.token("alt_demo").await;
    for path in [
        format!("/v1/functions/{function}"),
        format!("/v1/webhooks/{}", id(&signed)),
        format!("/v1/executions/{}", id(&done)),
    ] {
        errors.keep(&service.ask(&stranger, "GET", &path, None).await, 404);
    }
    let bad = format!("gAAAA{}", marker("nonsense"));
    errors.keep(&service.ask(&bad, "GET", "/v1/functions", None).await, 401);
    let wide =
        json!({"function_id": function, "input": marker("input"), "function_version": marker("input")});
    assert_eq!(ask("POST", "/v1/executions", wide).await.status, 400);
    let broken = service.request(&token, "POST", "/v1/executions").header("content-type", "application/json");
    errors.keep(&read(broken.body(format!("{{\"input\": \"{}\"", marker("input")))).await, 400);

    // One of each runs while everything is looked at.
    let image = Image::of(
        "canary",
        "",
        &json!(["/bin/bash", "-c", "echo \"$1\" | sed s/image/imagelog/; sleep 280", "-"]),
    );
    let of_image = {
        let code = json!({"source": "image", "image": image.0});
        let made = ask("POST", "/v1/functions", json!({"code": code, "timeout": 290, "cpu": 1000}))
            .await
            .expect(201);
        id(&made).to_owned()
    };
    let words = json!({"function_id": of_image, "input": marker("image"), "sync": false});
    let of_image = id(&ask("POST", "/v1/executions", words).await.expect(201)).to_owned();
    let long = json!({"word": marker("input"), "seconds": 280});
    let long = id(&ask("POST", "/v1/executions", call(long, false)).await.expect(201)).to_owned();
    eventually("the container runs", async || containers(&service.home).contains(&marker("image"))).await;
    eventually("its program runs", async || processes(service).contains(&marker("image"))).await;

    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    places.insert("containers", markers.found_in(&containers(&service.home)));
    places.insert("processes", markers.found_in(&processes(service)));
    // What a function finds, by the names of what it found.
    let secrets: BTreeMap<String, &str> = [("token", &token), ("password", &password)]
        .map(|(name, secret)| (hex::encode(Sha256::digest(secret)), name))
        .into();
    let hunted = async |who: &str, function: &str| -> Value {
        let input = json!({"how": "hunt", "digests": secrets, "length": password.len()}).to_string();
        let body = json!({"function_id": function, "input": input});
        let done = service.ask(who, "POST", "/v1/executions", Some(body)).await.expect(201);
        assert_eq!(done["status"], "success", "{done}");
        let hunt = output(&done);
        for (place, least) in
            [("memory", 10_000_000), ("files", 10_000), ("processes", 1_000), ("objects", 500)]
        {
            assert!(hunt["looked"][place].as_u64().unwrap_or(0) >= least, "{place}: {hunt}");
        }
        hunt
    };
    let labels = |hunt: &Value| -> BTreeSet<&'static str> {
        let found: Vec<(String, String)> = serde_json::from_value(hunt["found"].clone()).unwrap();
        let known = |found: &str| BELONGS.iter().map(|(label, _)| *label).find(|label| *label == found);
        found.iter().map(|(_, label)| known(label).unwrap_or_else(|| panic!("{label}: {hunt}"))).collect()
    };
    let theirs = create(&stranger, hunt, &[]).await;
    let sibling = create(&token, hunt, &[]).await;
    for (place, who, function) in [("stranger", &stranger, &theirs), ("sibling", &token, &sibling)] {
        let hunt = hunted(who, function).await;
        // The token under its owner's trust, and no other.
        assert!(hunt["tokens"].as_u64().unwrap() <= 1, "{place}: {hunt}");
        places.insert(place, labels(&hunt));
    }
    let own = hunted(&token, &function).await;
    let left = labels(&own);
    assert!(left.iter().all(|label| LEFT_IN_OWN.contains(label)), "{own}");
    places.insert("own", left.into_iter().filter(|label| *label == "code").collect());
    assert!(own["tokens"].as_u64().unwrap() >= 1, "it has a token of its own: {own}");

    // Two more kinds of end.
    for execution in [&long, &of_image] {
        let path = format!("/v1/executions/{execution}/cancel");
        service.ask(&token, "POST", &path, None).await.expect(200);
        service.ended(&token, execution).await;
    }
    assert!(service.execution_log(&token, &of_image).await.contains("canary-imagelog-"));
    let rows = dump(&service.home).await;
    let log = service.log();
    let metrics = service.get("/metrics").await.text();
    assert!(
        log.contains("DEBUG") && log.contains("activity") && metrics.contains("taibai_executions_total"),
        "{log}"
    );
    places.insert("database", markers.found_in(&rows));
    places.insert("errors", markers.found_in(&errors.0.concat()));
    places.insert("log", markers.found_in(&log));
    places.insert("metrics", markers.found_in(&metrics));
    places.insert("files", markers.found_in(&files(&service.home)));
    // No token is anybody's business, whosever it is.
    for (place, text) in [("the log", &log), ("metrics", &metrics), ("the database", &rows)] {
        assert!(!text.contains("gAAAA"), "there is a token in {place}");
    }

    let mut wrong = Vec::new();
    for (label, belongs) in BELONGS {
        for (place, found) in &places {
            let may = belongs.contains(place);
            if found.contains(label) != may {
                wrong.push(format!("{label} is {} in {place}", if may { "not" } else { "also" }));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{log}");

    for (who, path) in [(&token, function), (&token, sibling), (&stranger, theirs)] {
        let path = format!("/v1/functions/{path}");
        for list in ["jobs", "webhooks"] {
            let listed = service.ask(who, "GET", &format!("/v1/{list}"), None).await.expect(200);
            for row in listed[list].as_array().unwrap() {
                service.ask(who, "DELETE", &format!("/v1/{list}/{}", id(row)), None).await;
            }
        }
        service.ask(who, "DELETE", &path, None).await.expect(204);
    }
    site.cloud.forget(guest).await;
    site.service.stop_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_of_a_user_or_of_the_database_is_nowhere() {
    let markers = Markers::new();
    let (password, wrong) = (markers.get("password"), markers.get("nonsense"));
    let mut home = Home::new(&[
        ("api.auth_strategy", "http_basic"),
        ("http_basic.admins", "root"),
        ("logging.level", "debug"),
        ("audit.enabled", "true"),
    ]);
    let users = home.path().join("users");
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    let lines = format!("root:{}:ops\nann:{}\n", hash("of-root"), hash(password));
    std::fs::write(&users, &lines).unwrap();
    home.set("http_basic.user_file", &users.display().to_string());
    let service = Service::start_in(home).await;
    let ask = async |who: (&str, &str), method: &str, path: &str, body: Option<Value>| {
        let mut request = service.request("", method, path).basic_auth(who.0, Some(who.1));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        read(request).await
    };
    let image = json!({"image": crate::service::required("TAIBAI_TEST_IMAGE"), "name": "python3"});
    let runtime = ask(("root", "of-root"), "POST", "/v1/runtimes", Some(image)).await.expect(201);
    eventually("the runtime is available", async || {
        let path = format!("/v1/runtimes/{}", id(&runtime));
        ask(("root", "of-root"), "GET", &path, None).await.expect(200)["status"] == "available"
    })
    .await;
    let boundary = "cut";
    let mut form = Vec::new();
    for (name, value) in [("runtime_id", id(&runtime)), ("code", r#"{"source": "package"}"#)] {
        form.extend_from_slice(
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                .as_bytes(),
        );
    }
    let head = "Content-Disposition: form-data; name=\"package\"; filename=\"main.zip\"";
    form.extend_from_slice(format!("--{boundary}\r\n{head}\r\n\r\n").as_bytes());
    let source =
        "import os\ndef main(**given):\n    return [dict(os.environ), open('/proc/self/environ').read()]\n";
    form.extend_from_slice(&package(source));
    form.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let request = service.request("", "POST", "/v1/functions").basic_auth("ann", Some(password));
    let request = request.header("content-type", format!("multipart/form-data; boundary={boundary}"));
    let function = read(request.body(form)).await.expect(201);
    let call = json!({"function_id": id(&function)});
    let done = ask(("ann", password), "POST", "/v1/executions", Some(call)).await.expect(201);
    assert_eq!(done["status"], "success", "{done}");
    let refused = ask(("ann", wrong), "GET", "/v1/functions", None).await;
    assert_eq!(refused.status, 401);
    let places = [
        ("an error", refused.text()),
        ("the function", done.to_string()),
        ("the log", service.log()),
        ("metrics", service.get("/metrics").await.text()),
        ("the database", dump(&service.home).await),
        ("containers", containers(&service.home)),
        ("processes", processes(&service)),
        ("files of workers", files(&service.home)),
    ];
    for (place, text) in &places {
        assert_eq!(markers.found_in(text), BTreeSet::new(), "{place}: {text}");
        assert!(!text.contains("of-root") && !text.contains("$2b$"), "{place}: {text}");
    }
    service.stop_clean().await;

    // A database that cannot be reached is told without the password to it. Each takes half a minute to say so.
    let (mut running, mut homes) = (Vec::new(), Vec::new());
    for scheme in ["mysql+pymysql", "postgresql+psycopg2"] {
        let url = format!("{scheme}://taibai:{password}@127.0.0.1:1/taibai");
        let home = Home::new(&[("database.connection", &url), ("logging.level", "debug")]);
        let config = home.config_file().display().to_string();
        for command in [&["db", "sync"][..], &["serve"], &["upgrade", "check"], &["config", "show"]] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_taibai"));
            child.args(["--config-file", &config]).args(command);
            let child =
                child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
            running.push((scheme, command, child.unwrap()));
        }
        homes.push(home);
    }
    for (scheme, command, child) in running {
        let ran = child.wait_with_output().unwrap();
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.is_empty() && !said.contains(password), "{command:?} with {scheme}: {said}");
    }
}
