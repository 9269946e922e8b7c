//! Functions of tenants of a real cloud: sessions under trusts, code in Swift. Needs the test cloud
//! besides: `tests/cloud/up`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taibai::model::{FunctionId, Scope, TrustId, UserToken};
use taibai::openstack::Swift;

use crate::cloud::Cloud;
use crate::restarts::LINGER;
use crate::service::{Service, eventually, output, package, required, result, zip_of};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A service of the cloud whose functions reach what the catalog names.
pub struct Site {
    pub cloud: Cloud,
    pub service: Service,
    pub runtime: String,
    admin: String,
}

impl Site {
    pub async fn start(more: &[(&str, &str)]) -> Self {
        let cloud = Cloud::open();
        let account = cloud.account("taibai");
        // Apart from those of other tests, of this run and of another.
        let (run, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed) % 256);
        let mut options = BTreeMap::from([
            ("api.auth_strategy", "keystone".to_owned()),
            ("engine.lease", "10m".to_owned()),
            ("keystone_authtoken.auth_url", cloud.auth_url().to_owned()),
            ("keystone_authtoken.username", account.auth.username.clone()),
            ("keystone_authtoken.password", account.auth.password.clone()),
            ("keystone_authtoken.project_name", account.auth.project_name.clone()),
            ("keystone_authtoken.region_name", account.region_name.clone()),
            ("network.mode", "bridge".to_owned()),
            ("network.bridge_name", format!("tbe{}-{number}", run % 10_000)),
            ("network.subnet", format!("10.{}.{number}.0/24", 200 + run % 30)),
        ]);
        options.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let service = Service::start(&options).await;
        let admin = cloud.token("admin").await.expose().to_owned();
        let body = json!({"image": required("TAIBAI_TEST_IMAGE"), "name": "python3"});
        let created = service.ask(&admin, "POST", "/v1/runtimes", Some(body)).await.expect(201);
        let runtime = created["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/runtimes/{runtime}");
        eventually("the runtime is available", async || {
            service.ask(&admin, "GET", &path, None).await.expect(200)["status"] == "available"
        })
        .await;
        Self { cloud, service, runtime, admin }
    }

    pub async fn token(&self, account: &str) -> String {
        self.cloud.token(account).await.expose().to_owned()
    }

    async fn create(&self, token: &str, source: &str) -> Value {
        self.service
            .create_function(token, &self.runtime, &package(source), &[("timeout", "20")])
            .await
            .expect(201)
    }

    /// Creates a function whose code is in Swift, or is told why not.
    async fn create_in_swift(&self, token: &str, container: &str, object: &str) -> crate::service::Answer {
        let code =
            json!({"source": "swift", "swift": {"container": container, "object": object}}).to_string();
        let body = json!({"runtime_id": self.runtime, "code": code, "entry": "hello.main", "timeout": 20});
        self.service.ask(token, "POST", "/v1/functions", Some(body)).await
    }

    /// Uploads other code.
    async fn upload(&self, token: &str, function: &str, source: &str) -> Value {
        let path = format!("/v1/functions/{function}");
        self.service.upload(token, "PUT", &path, &[], Some(&package(source))).await.expect(200)
    }

    fn swift(&self, user: &UserToken) -> Swift {
        self.cloud.ours().keystone.session(user, None).unwrap().swift()
    }

    /// Calls to Docker and to Keystone, and commits, so far.
    async fn used(&self) -> [f64; 3] {
        let mut used = [0.0; 3];
        let names = ["taibai_docker_calls_total", "taibai_keystone_calls_total", "taibai_commits_total"];
        for (count, name) in used.iter_mut().zip(names) {
            *count = self.service.metric(name).await;
        }
        used
    }

    async fn trust_of(&self, function: &str) -> Option<TrustId> {
        let db = self.service.home.database().await;
        let row = taibai::db::functions::find(db.reader(), &FunctionId::from(function), &Scope::All).await;
        row.unwrap().unwrap().trust_id
    }

    async fn is_valid(&self, trust: &TrustId) -> bool {
        self.cloud.ours().keystone.trust_token(trust, None).await.is_ok()
    }
}

fn id(view: &Value) -> &str {
    view["id"].as_str().unwrap()
}

async fn put(swift: &Swift, container: &str, object: &str, bytes: Vec<u8>) {
    let length = bytes.len() as u64;
    let content = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(bytes))]);
    swift.put_object(container, object, content, length, None).await.unwrap();
}

fn greeting(text: &str) -> Vec<u8> {
    let source = format!("def main(name='World', **kwargs):\n    return '{text}, %s' % name\n");
    zip_of(&[("hello.py", source.as_bytes())])
}

const STORES: &str = r"
import swiftclient

session = None

def main(container, text, context):
    # A session that is kept goes on working in later executions.
    global session
    session = session or context['os_session']
    swift = swiftclient.Connection(session=session, os_options={'region_name': 'RegionOne'})
    swift.put_container(container)
    swift.put_object(container, 'said', text)
    return swift.get_object(container, 'said')[1].decode()
";

#[tokio::test]
async fn a_function_uses_swift_in_the_name_of_its_owner_and_its_trust_ends_with_it() {
    let site = Site::start(&[]).await;
    let (demo, alt) = (site.token("demo").await, site.token("alt_demo").await);
    let created = site.create(&demo, STORES).await;
    assert_eq!((&created["os_session"], &created["os_session_reason"]), (&json!(true), &Value::Null));
    let function = id(&created);
    let container = format!("tenants-{}", std::process::id());
    let say = |text: &str| json!({"container": container, "text": text}).to_string();

    let done = site.service.execute(&demo, function, &say("first")).await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), json!("first")), "{done}");
    let owner = site.swift(&site.cloud.user("demo").await);
    assert_eq!(owner.head_object(&container, "said").await.unwrap().bytes, 5);
    // The same names in the account of another are nothing.
    let other = site.swift(&site.cloud.user("alt_demo").await);
    assert!(other.head_object(&container, "said").await.is_err());
    let body = json!({"function_id": function, "input": say("stolen")});
    assert_eq!(site.service.ask(&alt, "POST", "/v1/executions", Some(body)).await.status, 404);

    // What is warm asks neither Docker nor Keystone, and a short call is one commit at most.
    let short = site.create(&demo, WHO).await;
    site.service.execute(&demo, id(&short), "").await;
    let pool = format!("/v1/runtimes/{}/pool", site.runtime);
    eventually("the pool is full again", async || {
        let answer = site.service.ask(&site.admin, "GET", &pool, None).await.expect(200);
        answer["capacity"]["available"] == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = site.used().await;
    let mut long = 0;
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(site.service.execute(&demo, id(&short), "").await["status"], "success");
        long += u32::from(began.elapsed() >= LINGER);
    }
    let commits = site.used().await[2] - before[2];
    let most = f64::from(50 + long);
    assert!((1.0..=most).contains(&commits), "{commits} commits for 50 calls, {long} of them long");
    for number in 0..10 {
        let text = format!("call {number}");
        let done = site.service.execute(&demo, function, &say(&text)).await;
        assert_eq!((&done["status"], output(&done)), (&json!("success"), json!(text)), "{done}");
    }
    let after = site.used().await;
    assert_eq!((after[0] - before[0], after[1] - before[1]), (0.0, 0.0), "calls to Docker and to Keystone");

    let trust = site.trust_of(function).await.unwrap();
    assert!(site.is_valid(&trust).await);
    site.service.ask(&demo, "DELETE", &format!("/v1/functions/{function}"), None).await.expect(204);
    eventually("the trust ends", async || !site.is_valid(&trust).await).await;
    let log = site.service.log();
    assert!(!log.contains(&demo) && !log.contains(&site.cloud.account("taibai").auth.password));
    site.service.stop_clean().await;
}

#[tokio::test]
async fn a_token_that_a_service_refuses_is_replaced_for_the_next_call() {
    let site = Site::start(&[]).await;
    let demo = site.token("demo").await;
    let source = r"
import swiftclient

def main(context, what):
    session = context['os_session']
    if what == 'token':
        return session.get_token()
    swift = swiftclient.Connection(session=session, os_options={'region_name': 'RegionOne'}, retries=0)
    return int(swift.head_account()['x-account-container-count'])
";
    let created = site.create(&demo, source).await;
    let function = id(&created);
    let token = output(&site.service.execute(&demo, function, r#"{"what": "token"}"#).await);
    // A token that is only seconds old is not believed to be refused.
    tokio::time::sleep(Duration::from_secs(11)).await;
    site.cloud.revoke(&taibai::model::Token::new(token.as_str().unwrap())).await;

    let account = r#"{"what": "account"}"#;
    let refused = site.service.execute(&demo, function, account).await;
    assert_eq!(refused["status"], "failed", "the token is revoked: {refused}");
    let done = site.service.execute(&demo, function, account).await;
    assert_eq!(done["status"], "success", "{done}");
    site.service.stop_clean().await;
}

#[tokio::test]
async fn code_in_swift_is_fetched_and_followed_and_what_cannot_be_run_is_told() {
    let site =
        Site::start(&[("engine.object_check_interval", "1s"), ("storage.max_package_bytes", "200000")]).await;
    let demo = site.token("demo").await;
    let swift = site.swift(&site.cloud.user("demo").await);
    let container = format!("code-{}", std::process::id());
    swift.ensure_container(&container).await.unwrap();
    put(&swift, &container, "dir/hello.zip", greeting("Hello")).await;
    put(&swift, &container, "text", b"no zip at all".to_vec()).await;
    put(&swift, &container, "large", vec![7; 300_000]).await;

    let refused = [
        (container.as_str(), "missing", "There is no object"),
        ("no-such-container", "dir/hello.zip", "There is no object"),
        (container.as_str(), "large", "at most 200000 are allowed"),
        (container.as_str(), "", "Both container and object must be provided"),
    ];
    for (container, object, words) in refused {
        let answer = site.create_in_swift(&demo, container, object).await.expect(400);
        assert!(answer["faultstring"].as_str().unwrap().contains(words), "{answer}");
    }
    // The names are looked up in the caller's own account.
    let alt = site.token("alt_demo").await;
    assert_eq!(site.create_in_swift(&alt, &container, "dir/hello.zip").await.status, 400);

    let created = site.create_in_swift(&demo, &container, "dir/hello.zip").await.expect(201);
    let function = id(&created);
    let path = format!("/v1/functions/{function}");
    assert_eq!(created["code"]["swift"], json!({"container": container, "object": "dir/hello.zip"}));
    assert_eq!(output(&site.service.execute(&demo, function, "").await), "Hello, World");
    let downloaded = site.service.ask(&demo, "GET", &format!("{path}?download=true"), None).await;
    assert_eq!((downloaded.status, downloaded.bytes), (200, greeting("Hello")));

    // An object that is written anew is noticed while the old code still answers.
    put(&swift, &container, "dir/hello.zip", greeting("Welcome")).await;
    eventually("the new content runs", async || {
        let done = site.service.execute(&demo, function, "").await;
        assert_eq!(done["status"], "success", "{done}");
        output(&done) == "Welcome, World"
    })
    .await;

    // Another object, of the same container.
    put(&swift, &container, "other.zip", greeting("Goodbye")).await;
    let code = json!({"source": "swift", "swift": {"object": "other.zip"}});
    let updated = site.service.ask(&demo, "PUT", &path, Some(json!({"code": code}))).await.expect(200);
    assert_eq!(updated["code"]["swift"], json!({"container": container, "object": "other.zip"}));
    let shown = site.service.ask(&demo, "GET", &path, None).await.expect(200);
    assert_eq!(shown["code"], updated["code"], "it is stored");
    assert_eq!(output(&site.service.execute(&demo, function, "").await), "Goodbye, World");

    swift.delete_object(&container, "other.zip").await.unwrap();
    let mut ended = Value::Null;
    eventually("the object is missed", async || {
        ended = site.service.execute(&demo, function, "").await;
        ended["status"] == "error"
    })
    .await;
    let why = |ended: &Value| result(ended)["detail"].as_str().unwrap().to_owned();
    assert_eq!(result(&ended)["reason"], "preparation");
    assert!(why(&ended).contains("other.zip is not there"), "{ended}");

    let created = site.create_in_swift(&demo, &container, "text").await.expect(201);
    let ended = site.service.execute(&demo, id(&created), "").await;
    assert_eq!(ended["status"], "error");
    assert!(why(&ended).contains("the package is no zip file"), "{ended}");
    site.service.stop_clean().await;
}

const WHO: &str = r"
def main(context):
    session = context['os_session']
    return session and session.get_user_id()
";

#[tokio::test]
async fn whose_token_cannot_delegate_still_has_functions_and_is_told_what_they_lack() {
    let site = Site::start(&[]).await;
    let delegated = site.cloud.application_credential(None).await.expose().to_owned();
    let created = site.create(&delegated, WHO).await;
    assert_eq!(created["os_session"], false);
    let reason = created["os_session_reason"].as_str().unwrap();
    assert!(reason.contains("application credential"), "{reason}");
    let function = id(&created);
    let done = site.service.execute(&delegated, function, "").await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), Value::Null));
    let answer = site.create_in_swift(&delegated, "c", "o").await.expect(400);
    assert!(answer["faultstring"].is_string());

    // The same user with a token of its own gives it a session.
    let demo = site.cloud.user("demo").await;
    let updated = site.upload(demo.token.expose(), function, WHO).await;
    assert_eq!((&updated["os_session"], &updated["os_session_reason"]), (&json!(true), &Value::Null));
    let done = site.service.execute(demo.token.expose(), function, "").await;
    assert_eq!(output(&done), demo.info.user_id.as_str());

    // What is uploaded with less has no more than that, though the user is the same.
    let updated = site.upload(&delegated, function, &format!("{WHO}# changed\n")).await;
    assert_eq!(updated["os_session"], false);
    let done = site.service.execute(demo.token.expose(), function, "").await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), Value::Null));
    site.service.stop_clean().await;
}

#[tokio::test]
async fn who_changes_the_code_lends_its_own_rights_for_as_long_as_it_has_them() {
    let site = Site::start(&[]).await;
    let demo = site.cloud.user("demo").await;
    let created = site.create(demo.token.expose(), WHO).await;
    let function = id(&created);
    let path = format!("/v1/functions/{function}");
    let run = async |who: &str| site.service.execute(who, function, "").await;
    assert_eq!(output(&run(demo.token.expose()).await), demo.info.user_id.as_str());
    let first = site.trust_of(function).await.unwrap();

    // Another member of the project: renaming is no code, and clients send the entry along; an upload is.
    let guest = site.cloud.guest("demo").await;
    let rename = Some(json!({"name": "renamed", "timeout": 30, "entry": "main.main"}));
    site.service.ask(guest.token.expose(), "PUT", &path, rename).await.expect(200);
    assert_eq!(site.trust_of(function).await.as_ref(), Some(&first));
    site.upload(guest.token.expose(), function, WHO).await;
    let second = site.trust_of(function).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(output(&run(demo.token.expose()).await), guest.user.info.user_id.as_str());
    eventually("the first trust ends", async || !site.is_valid(&first).await).await;

    // An administrator of another project runs nothing in the owner's name.
    let by_admin = site.upload(&site.admin, function, WHO).await;
    assert_eq!(by_admin["os_session"], false);
    assert_eq!(output(&run(demo.token.expose()).await), Value::Null);

    // Who has left the project lends nothing any more.
    site.upload(guest.token.expose(), function, WHO).await;
    guest.leave(&site.cloud).await;
    let detach = format!("{path}/detach");
    site.service.ask(&site.admin, "POST", &detach, None).await;
    let mut ended = Value::Null;
    eventually("the trust is no good", async || {
        ended = run(demo.token.expose()).await;
        ended["status"] == "error"
    })
    .await;
    let detail = result(&ended)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("The function's trust is no longer valid"), "{detail}");
    site.upload(demo.token.expose(), function, WHO).await;
    assert_eq!(output(&run(demo.token.expose()).await), demo.info.user_id.as_str());
    site.service.stop_clean().await;
}

#[tokio::test]
async fn a_version_runs_in_the_name_of_whoever_uploaded_its_code_until_it_is_deleted() {
    let site = Site::start(&[]).await;
    let demo = site.cloud.user("demo").await;
    let created = site.create(demo.token.expose(), WHO).await;
    let function = id(&created);
    let path = format!("/v1/functions/{function}");
    let versions = format!("{path}/versions");
    let publish = async || {
        let body = Some(json!({}));
        site.service.ask(demo.token.expose(), "POST", &versions, body).await.expect(201)
    };
    let run = async |version: i64| {
        let body = json!({"function_id": function, "function_version": version});
        let done =
            site.service.ask(demo.token.expose(), "POST", "/v1/executions", Some(body)).await.expect(201);
        assert_eq!(done["status"], "success", "{done}");
        output(&done)
    };
    let delete = async |path: &str| {
        site.service.ask(demo.token.expose(), "DELETE", path, None).await.expect(204);
    };
    let first = site.trust_of(function).await.unwrap();
    let version = publish().await;
    assert_eq!((&version["os_session"], &version["os_session_reason"]), (&json!(true), &Value::Null));

    // Another member uploads: the function is theirs to run from now on, and the version is not.
    let guest = site.cloud.guest("demo").await;
    site.upload(guest.token.expose(), function, &format!("{WHO}# second\n")).await;
    let second = site.trust_of(function).await.unwrap();
    assert_ne!(first, second);
    publish().await;
    let (mine, theirs) = (json!(demo.info.user_id), json!(guest.user.info.user_id));
    assert_eq!((run(0).await, run(1).await, run(2).await), (theirs.clone(), mine.clone(), theirs));
    assert!(site.is_valid(&first).await);

    // A version that was published without a session has none, whatever the function has.
    site.upload(&site.admin, function, &format!("{WHO}# third\n")).await;
    let version = publish().await;
    assert_eq!((&version["version_number"], &version["os_session"]), (&json!(3), &json!(false)));
    assert!(version["os_session_reason"].as_str().unwrap().contains("administrator"), "{version}");
    site.upload(demo.token.expose(), function, &format!("{WHO}# fourth\n")).await;
    let fourth = site.trust_of(function).await.unwrap();
    assert_eq!((run(3).await, run(0).await, run(1).await), (Value::Null, mine.clone(), mine));
    assert!(site.is_valid(&first).await && site.is_valid(&second).await);

    // Each ends with the last that has it.
    delete(&format!("{versions}/2")).await;
    eventually("the second trust ends", async || !site.is_valid(&second).await).await;
    assert!(site.is_valid(&first).await && site.is_valid(&fourth).await);
    delete(&path).await;
    for trust in [&first, &fourth] {
        eventually("the trusts end", async || !site.is_valid(trust).await).await;
    }
    guest.leave(&site.cloud).await;
    site.service.stop_clean().await;
}

#[tokio::test]
async fn a_job_and_a_webhook_run_in_the_name_of_the_functions_owner() {
    let site = Site::start(&[]).await;
    let (demo, alt) = (site.token("demo").await, site.token("alt_demo").await);
    let created = site.create(&demo, STORES).await;
    let function = id(&created);
    let container = format!("triggers-{}", std::process::id());
    let owner = site.swift(&site.cloud.user("demo").await);

    let input = json!({"container": container, "text": "by job"}).to_string();
    let new = json!({"function_id": function, "pattern": "* * * * * *", "count": 1, "function_input": input});
    assert_eq!(site.service.ask(&alt, "POST", "/v1/jobs", Some(new.clone())).await.status, 404);
    assert_eq!(site.service.ask("", "POST", "/v1/jobs", Some(new.clone())).await.status, 401);
    let job = site.service.ask(&demo, "POST", "/v1/jobs", Some(new)).await.expect(201);
    let path = format!("/v1/executions?description=has:{}", id(&job));
    let mut execution = Value::Null;
    eventually("the job runs", async || {
        let listed = site.service.ask(&demo, "GET", &path, None).await.expect(200);
        execution = listed["executions"][0].clone();
        execution.is_object()
    })
    .await;
    let ended = site.service.ended(&demo, id(&execution)).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!("by job")), "{ended}");
    assert_eq!(owner.head_object(&container, "said").await.unwrap().bytes, 6);

    // The text comes with the call, which shows no token.
    let new = json!({"function_id": function, "mode": "sync"});
    let webhook = site.service.ask(&demo, "POST", "/v1/webhooks", Some(new)).await.expect(201);
    let url = webhook["webhook_url"].as_str().unwrap();
    let path = format!("{}?container={container}", &url[url.find("/v1/").unwrap()..]);
    let called = site.service.ask("", "POST", &path, Some(json!({"text": "by webhook"}))).await.expect(200);
    assert_eq!((&called["status"], &called["output"]), (&json!("success"), &json!("by webhook")));
    assert_eq!(owner.head_object(&container, "said").await.unwrap().bytes, 10);

    // Where it is not public, a token that Keystone knows is asked for.
    let member = format!("/v1/webhooks/{}", id(&webhook));
    let closed = json!({"is_public": false});
    site.service.ask(&demo, "PUT", &member, Some(closed)).await.expect(200);
    let said = || Some(json!({"text": "again"}));
    assert_eq!(site.service.ask("", "POST", &path, said()).await.status, 401);
    assert_eq!(site.service.ask("gAAAA-no-token", "POST", &path, said()).await.status, 401);
    assert_eq!(site.service.ask(&alt, "POST", &path, said()).await.status, 404);
    assert_eq!(site.service.ask(&demo, "POST", &path, said()).await.expect(200)["output"], "again");
    for path in [&member, &format!("/v1/functions/{function}")] {
        site.service.ask(&demo, "DELETE", path, None).await.expect(204);
    }
    let log = site.service.log();
    assert!(!log.contains(&demo) && !log.contains("by webhook"));
    site.service.stop_clean().await;
}
