//! The test cloud as tests see it, and a way to Keystone that can be cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use serde_json::{Value, json};
use taibai::config::KeystoneAuthtoken;
use taibai::model::{Interface, Token, UserToken};
use taibai::openstack::Keystone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const STATE: &str = "TAIBAI_TEST_CLOUD";

#[derive(Deserialize)]
struct Clouds {
    clouds: BTreeMap<String, Account>,
}

#[derive(Clone, Deserialize)]
pub struct Account {
    pub region_name: String,
    pub auth: Auth,
}

#[derive(Clone, Deserialize)]
pub struct Auth {
    pub auth_url: String,
    pub username: String,
    pub password: String,
    pub project_name: String,
}

pub struct Cloud {
    state: PathBuf,
    accounts: BTreeMap<String, Account>,
    http: reqwest::Client,
}

/// A user who may be sent away.
pub struct Guest {
    pub token: Token,
    pub user: UserToken,
    membership: String,
    auth: Value,
}

impl Guest {
    /// Takes the user out of the project, and waits until Keystone goes by that.
    pub async fn leave(&self, cloud: &Cloud) {
        let admin = cloud.token("admin").await;
        let url = format!("{}/{}", cloud.auth_url(), self.membership);
        let taken = cloud.http.delete(url).header("x-auth-token", admin.expose()).send().await.unwrap();
        assert_eq!(taken.status(), 204);
        eventually("the user is out", async || {
            let url = format!("{}/auth/tokens", cloud.auth_url());
            let answer = cloud.http.post(url).json(&json!({"auth": self.auth})).send().await.unwrap();
            answer.status() == 401
        })
        .await;
    }
}

/// A Keystone client of ours and what it asked.
pub struct Ours {
    pub keystone: Keystone,
    pub calls: IntCounterVec,
}

impl Ours {
    pub fn calls(&self, call: &str) -> u64 {
        self.calls.with_label_values(&[call]).get()
    }
}

impl Cloud {
    pub fn open() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let how = "bring up a cloud and name its state directory:\n  tests/cloud/up /var/tmp/taibai-cloud\n  \
                   export TAIBAI_TEST_CLOUD=/var/tmp/taibai-cloud";
        let state = std::env::var_os(STATE).unwrap_or_else(|| panic!("{STATE} is not set; {how}"));
        let state = PathBuf::from(state);
        let file = state.join("clouds.yaml");
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{}: {error}; {how}", file.display()));
        let clouds: Clouds = serde_saphyr::from_str(&text).unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        Self { state, accounts: clouds.clouds, http }
    }

    pub fn account(&self, name: &str) -> &Account {
        &self.accounts[name]
    }

    pub fn auth_url(&self) -> &str {
        &self.account("taibai").auth.auth_url
    }

    /// The service's section, as an operator would write it.
    pub fn section(&self) -> KeystoneAuthtoken {
        let taibai = self.account("taibai");
        KeystoneAuthtoken {
            auth_url: taibai.auth.auth_url.clone(),
            username: taibai.auth.username.clone(),
            password: taibai.auth.password.as_str().into(),
            project_name: taibai.auth.project_name.clone(),
            region_name: taibai.region_name.clone(),
            http_connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            ..KeystoneAuthtoken::default()
        }
    }

    pub fn ours(&self) -> Ours {
        ours(&self.section())
    }

    /// A new token of an account, with its password.
    pub async fn token(&self, name: &str) -> Token {
        let auth = &self.account(name).auth;
        let domain = json!({"id": "default"});
        self.issue(json!({
            "identity": {"methods": ["password"], "password": {"user": {
                "name": auth.username, "domain": domain, "password": auth.password}}},
            "scope": {"project": {"name": auth.project_name, "domain": domain}},
        }))
        .await
    }

    pub async fn issue(&self, auth: Value) -> Token {
        let url = format!("{}/auth/tokens", self.auth_url());
        let answer = self.http.post(url).json(&json!({"auth": auth})).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{:?}", answer.text().await);
        Token::new(answer.headers()["x-subject-token"].to_str().unwrap())
    }

    /// A new token with what Keystone says of it.
    pub async fn user(&self, name: &str) -> UserToken {
        self.described(self.token(name).await).await
    }

    pub async fn described(&self, token: Token) -> UserToken {
        let info = self.ours().keystone.validate(&token, None).await.unwrap();
        UserToken { token, info: Arc::new(info) }
    }

    pub async fn revoke(&self, token: &Token) {
        let url = format!("{}/auth/tokens", self.auth_url());
        let admin = self.token("admin").await;
        let request = self.http.delete(url).header("x-auth-token", admin.expose());
        let answer = request.header("x-subject-token", token.expose()).send().await.unwrap();
        assert_eq!(answer.status(), 204);
    }

    /// A token of demo's that ran out, as Keystone would have issued it an hour ago.
    pub async fn expired_token(&self) -> Token {
        let demo = self.user("demo").await;
        let settings = std::fs::read_to_string(self.state.join("settings")).unwrap();
        let venv = settings.lines().find_map(|line| line.strip_prefix("TAIBAI_CLOUD_VENV=")).unwrap();
        let output = Command::new(format!("{venv}/bin/python"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cloud/expired_token.py"))
            .arg(self.state.join("etc/keystone.conf"))
            .args([&demo.info.user_id, demo.info.project_id.as_ref().unwrap()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let token = text.lines().last();
        Token::new(token.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr))))
    }

    /// An application credential of demo's with these access rules, and a token by it.
    pub async fn application_credential(&self, rules: Option<Value>) -> Token {
        let demo = self.user("demo").await;
        let mut credential = json!({"name": uuid::Uuid::new_v4(), "roles": [{"name": "member"}]});
        if let Some(rules) = rules {
            credential["access_rules"] = rules;
        }
        let url = format!("{}/users/{}/application_credentials", self.auth_url(), demo.info.user_id);
        let mut made = Value::Null;
        // While assignments change elsewhere, Keystone may miss this one for a moment.
        eventually("the application credential is made", async || {
            let request = self.http.post(&url).header("x-auth-token", demo.token.expose());
            let answer = request.json(&json!({"application_credential": &credential})).send().await.unwrap();
            let created = answer.status() == 201;
            made = answer.json().await.unwrap();
            assert!(created || made.to_string().contains("unassigned role"), "{made}");
            created
        })
        .await;
        let made = &made["application_credential"];
        self.issue(json!({"identity": {"methods": ["application_credential"],
            "application_credential": {"id": made["id"], "secret": made["secret"]}}}))
            .await
    }

    /// Gives a registered limit of a service another default.
    pub async fn set_registered_limit(&self, service: &str, name: &str, limit: i64) {
        let found = self.admin_ask("GET", &format!("registered_limits?service_id={service}"), None).await;
        let all = found["registered_limits"].as_array().unwrap();
        let found = all.iter().find(|one| one["resource_name"] == name).unwrap();
        let path = format!("registered_limits/{}", found["id"].as_str().unwrap());
        let body = json!({"registered_limit": {"default_limit": limit}});
        self.admin_ask("PATCH", &path, Some(body)).await;
    }

    /// Gives a project a limit of its own.
    pub async fn set_limit(&self, service: &str, region: &str, project: &str, name: &str, limit: i64) {
        let query = format!("limits?service_id={service}&project_id={project}");
        let found = self.admin_ask("GET", &query, None).await;
        let mut all = found["limits"].as_array().unwrap().iter();
        match all.find(|one| one["resource_name"] == name) {
            Some(found) => {
                let path = format!("limits/{}", found["id"].as_str().unwrap());
                let body = json!({"limit": {"resource_limit": limit}});
                self.admin_ask("PATCH", &path, Some(body)).await;
            }
            None => {
                let body = json!({"limits": [{"service_id": service, "region_id": region,
                    "project_id": project, "resource_name": name, "resource_limit": limit}]});
                self.admin_ask("POST", "limits", Some(body)).await;
            }
        }
    }

    /// Asks Keystone as the administrator.
    async fn admin_ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let admin = self.token("admin").await;
        let url = format!("{}/{path}", self.auth_url());
        let request = self.http.request(method.parse().unwrap(), url).header("x-auth-token", admin.expose());
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// A new user who has these roles in the account's project.
    pub async fn user_with_roles(&self, account: &str, roles: &[&str]) -> Guest {
        let project = self.user(account).await.info.project_id.clone().unwrap();
        let (name, password) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let body = json!({"user": {"name": name, "password": password, "domain_id": "default"}});
        let made = self.admin_ask("POST", "users", Some(body)).await;
        let id = made["user"]["id"].as_str().unwrap().to_owned();
        let mut membership = String::new();
        for role in roles {
            let found = self.admin_ask("GET", &format!("roles?name={role}"), None).await;
            let role = found["roles"][0]["id"].as_str().unwrap();
            membership = format!("projects/{project}/users/{id}/roles/{role}");
            self.admin_ask("PUT", &membership, None).await;
        }
        let auth = json!({
            "identity": {"methods": ["password"], "password": {"user": {"id": id, "password": password}}},
            "scope": {"project": {"id": project}},
        });
        let token = self.issue(auth.clone()).await;
        Guest { user: self.described(token.clone()).await, token, membership, auth }
    }

    /// Deletes a guest, and with it what it had.
    pub async fn forget(&self, guest: Guest) {
        self.admin_ask("DELETE", &format!("users/{}", guest.user.info.user_id), None).await;
    }

    /// A new user who is a member of the account's project.
    pub async fn guest(&self, account: &str) -> Guest {
        let (admin, owner) = (self.token("admin").await, self.user(account).await);
        let project = owner.info.project_id.clone().unwrap();
        let url = |path: String| format!("{}/{path}", self.auth_url());
        let ask = |method: reqwest::Method, path: String| {
            self.http.request(method, url(path)).header("x-auth-token", admin.expose())
        };
        let (name, password) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let user = json!({"user": {"name": name, "password": password, "domain_id": "default"}});
        let made = ask(reqwest::Method::POST, "users".to_owned()).json(&user).send().await.unwrap();
        let made: Value = made.json().await.unwrap();
        let id = made["user"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        let roles = ask(reqwest::Method::GET, "roles?name=member".to_owned()).send().await.unwrap();
        let roles: Value = roles.json().await.unwrap();
        let role = roles["roles"][0]["id"].as_str().unwrap();
        let membership = format!("projects/{project}/users/{id}/roles/{role}");
        let given = ask(reqwest::Method::PUT, membership.clone()).send().await.unwrap();
        assert_eq!(given.status(), 204);
        let auth = json!({
            "identity": {"methods": ["password"], "password": {"user": {"id": id, "password": password}}},
            "scope": {"project": {"id": project}},
        });
        let token = self.issue(auth.clone()).await;
        Guest { user: self.described(token.clone()).await, token, membership, auth }
    }

    /// A way to Keystone that can be cut.
    pub async fn way(&self) -> Way {
        let url = self.auth_url().strip_prefix("http://").unwrap();
        Way::open(url.split('/').next().unwrap().to_owned()).await
    }

    /// A way to Swift that can be cut, and a region in whose catalog Swift is there.
    pub async fn way_to_swift(&self) -> (Way, Detour) {
        let taibai = self.user("taibai").await;
        let region = Some(self.account("taibai").region_name.as_str());
        let url = taibai.info.catalog.endpoint("object-store", Interface::Internal, region).unwrap();
        let way = Way::open(url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned()).await;

        let admin = self.token("admin").await;
        let ask = |method: reqwest::Method, path: &str| {
            let url = format!("{}/{path}", self.auth_url());
            self.http.request(method, url).header("x-auth-token", admin.expose())
        };
        let service = ask(reqwest::Method::GET, "services?type=object-store").send().await.unwrap();
        let service: Value = service.json().await.unwrap();
        let region = format!("detour-{}", uuid::Uuid::new_v4());
        let body = json!({"region": {"id": region}});
        let made = ask(reqwest::Method::POST, "regions").json(&body).send().await.unwrap();
        assert_eq!(made.status(), 201);
        let body = json!({"endpoint": {"service_id": service["services"][0]["id"], "interface": "internal",
            "region_id": region, "url": format!("http://{}/v1/AUTH_$(project_id)s", way.address)}});
        let made = ask(reqwest::Method::POST, "endpoints").json(&body).send().await.unwrap();
        assert_eq!(made.status(), 201);
        let made: Value = made.json().await.unwrap();
        let id = made["endpoint"]["id"].as_str().unwrap();
        let urls = [format!("endpoints/{id}"), format!("regions/{region}")];
        let urls = urls.map(|path| format!("{}/{path}", self.auth_url()));
        (way, Detour { region, urls, admin: admin.expose().to_owned() })
    }
}

pub fn ours(section: &KeystoneAuthtoken) -> Ours {
    let calls = IntCounterVec::new(Opts::new("calls", "Calls."), &["call"]).unwrap();
    Ours { keystone: Keystone::new(section, calls.clone()).unwrap(), calls }
}

/// Waits for a condition, with a limit.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < limit, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A region of the catalog, until it is dropped.
pub struct Detour {
    pub region: String,
    urls: [String; 2],
    admin: String,
}

impl Drop for Detour {
    fn drop(&mut self) {
        let (urls, admin) = (self.urls.clone(), self.admin.clone());
        let remove = async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            for url in urls {
                let removed = http.delete(&url).header("x-auth-token", &admin).send().await;
                if !removed.is_ok_and(|answer| answer.status() == 204) {
                    eprintln!("left behind in the cloud: {url}");
                }
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = std::thread::spawn(move || runtime.block_on(remove)).join();
    }
}

/// Forwards connections to the real service, until it is cut.
pub struct Way {
    pub address: SocketAddr,
    target: String,
    seen: Arc<Mutex<Vec<u8>>>,
    task: Option<JoinHandle<()>>,
}

impl Way {
    pub async fn open(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut way = Self { address, target, seen: Arc::default(), task: None };
        way.serve(listener);
        way
    }

    fn serve(&mut self, listener: TcpListener) {
        let (target, seen) = (self.target.clone(), Arc::clone(&self.seen));
        self.task = Some(tokio::spawn(async move {
            // With the set its connections end.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let (target, seen) = (target.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    let far = TcpStream::connect(target).await.unwrap();
                    let (mut near_read, mut near_write) = near.into_split();
                    let (mut far_read, mut far_write) = far.into_split();
                    let there = async {
                        let mut buffer = vec![0; 65536];
                        while let Ok(length @ 1..) = near_read.read(&mut buffer).await {
                            seen.lock().unwrap().extend(&buffer[..length]);
                            if far_write.write_all(&buffer[..length]).await.is_err() {
                                break;
                            }
                        }
                    };
                    let back = tokio::io::copy(&mut far_read, &mut near_write);
                    tokio::select! { () = there => {}, _ = back => {} }
                });
            }
        }));
    }

    /// The section by this way. No region has this name, so that the catalog leads nowhere else.
    pub fn section(&self, cloud: &Cloud) -> KeystoneAuthtoken {
        KeystoneAuthtoken {
            auth_url: format!("http://{}/v3", self.address),
            region_name: "nowhere".to_owned(),
            http_connect_timeout: Duration::from_secs(2),
            ..cloud.section()
        }
    }

    pub async fn cut(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// The last token with which something was asked this way.
    pub fn last_token(&self) -> Token {
        let seen = String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned();
        let line =
            seen.lines().rfind(|line| line.to_ascii_lowercase().starts_with("x-auth-token: ")).unwrap();
        Token::new(line.split_once(": ").unwrap().1)
    }

    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
