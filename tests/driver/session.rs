//! `context['os_session']`: real tokens of a real Keystone, used in real containers against a real Swift.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use protocol::openstack::{self, OpenStack, Token};
use protocol::worker::{End, Execute, ExecutionLimits, Outcome, RefusalKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use taibai::config::{self, NetworkMode};
use taibai::engine::supervisor::{self, Cloud};
use taibai::network::{Endpoint, Guard, remove_rules};
use taibai::orchestrator::SlotLimits;

use crate::worker::{MIB, NODE, PYTHON, Worker, ample, execute, output, soon};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A worker on a bridge of its own, from which the cloud is reached.
struct NearCloud {
    worker: Worker,
    deployment: String,
}

impl NearCloud {
    async fn start(slots: u32, cloud: &TestCloud) -> Self {
        Self::start_of(PYTHON, slots, cloud).await
    }

    async fn start_of(image: &str, slots: u32, cloud: &TestCloud) -> Self {
        let number = std::process::id() % 60 * 4 + NEXT.fetch_add(1, Ordering::Relaxed);
        let deployment = format!("session{}-{number}", std::process::id());
        let config = config::Network {
            mode: NetworkMode::Bridge,
            bridge_name: format!("tbs{number}"),
            subnet: format!("10.232.{number}.0/24").parse().unwrap(),
            ..Default::default()
        };
        let repairs = prometheus::IntCounter::new("repairs", "repairs").unwrap();
        let guard = Guard::start(&config, &deployment, repairs).await;
        let guard = guard.expect("these tests need root and nft (apt install nftables)").unwrap();
        guard.set_catalog(cloud.endpoints()).await.unwrap();
        let limits = SlotLimits { max_processes: 128, max_executions_per_slot: 1000, memory_mark: 8 * MIB };
        let worker = Worker::start_in(image, deployment.clone(), Some(guard), slots, limits).await;
        Self { worker, deployment }
    }

    async fn stop(self) {
        let docker = self.worker.docker.clone();
        self.worker.stop().await;
        assert!(docker.release_network().await.unwrap());
        remove_rules(&self.deployment).unwrap();
    }
}

impl std::ops::Deref for NearCloud {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

/// The test cloud: a user's account in it, the service's and the administrator's.
struct TestCloud {
    http: reqwest::Client,
    user: BTreeMap<String, String>,
    service: BTreeMap<String, String>,
    admin: BTreeMap<String, String>,
}

/// A token with what Keystone said about it.
struct Issued {
    token: String,
    body: Value,
}

impl TestCloud {
    fn connect() -> Self {
        let state = std::env::var("TAIBAI_TEST_CLOUD").expect(
            "TAIBAI_TEST_CLOUD is not set: start a Keystone and a Swift with tests/cloud/up DIRECTORY and set it to the directory",
        );
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            http: reqwest::Client::new(),
            user: settings(PathBuf::from(&state).join("demo-openrc")),
            service: settings(PathBuf::from(&state).join("taibai-openrc")),
            admin: settings(PathBuf::from(&state).join("admin-openrc")),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.user["OS_AUTH_URL"].trim_end_matches('/'))
    }

    async fn issue(&self, account: &BTreeMap<String, String>, scope: Value) -> Issued {
        let user = json!({"name": account["OS_USERNAME"], "password": account["OS_PASSWORD"],
            "domain": {"name": "Default"}});
        let body = json!({"auth": {"scope": scope,
            "identity": {"methods": ["password"], "password": {"user": user}}}});
        let answer = self.http.post(self.url("auth/tokens")).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "Keystone answered {}", answer.status());
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        let mut body: Value = answer.json().await.unwrap();
        Issued { token, body: body["token"].take() }
    }

    /// A token as a user's client gets it.
    async fn token_of(&self, account: &BTreeMap<String, String>) -> Issued {
        let project = json!({"project": {"name": account["OS_PROJECT_NAME"], "domain": {"name": "Default"}}});
        self.issue(account, project).await
    }

    /// The user trusts the service, as with a function.
    async fn trust(&self) -> String {
        let (user, service) = (self.token_of(&self.user).await, self.token_of(&self.service).await);
        let trust = json!({"trust": {
            "trustor_user_id": user.body["user"]["id"], "trustee_user_id": service.body["user"]["id"],
            "project_id": user.body["project"]["id"], "impersonation": true, "roles": [{"name": "member"}],
        }});
        let request = self.http.post(self.url("OS-TRUST/trusts")).header("x-auth-token", &user.token);
        let answer: Value = request.json(&trust).send().await.unwrap().json().await.unwrap();
        answer["trust"]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn trust_token(&self, trust: &str) -> Issued {
        self.issue(&self.service, json!({"OS-TRUST:trust": {"id": trust}})).await
    }

    /// By the cloud's administrator: a token of a trust may not be used for it.
    async fn revoke(&self, token: &str) {
        let admin = self.token_of(&self.admin).await;
        let request = self.http.delete(self.url("auth/tokens")).header("x-auth-token", admin.token);
        let answer = request.header("x-subject-token", token).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }

    fn cloud(&self, issued: &Issued) -> Cloud {
        cloud_of(&self.url(""), issued.body["catalog"].to_string())
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let port = |service: &str, port| Endpoint {
            service: service.to_owned(),
            host: "controller".to_owned(),
            port,
        };
        vec![port("identity", 5000), port("object-store", 8080)]
    }
}

fn cloud_of(auth_url: &str, catalog: String) -> Cloud {
    Cloud::new(&openstack::Cloud {
        auth_url: auth_url.trim_end_matches('/').to_owned(),
        region_name: Some("RegionOne".to_owned()),
        interface: None,
        catalog: serde_json::value::RawValue::from_string(catalog).unwrap(),
        cacert: None,
    })
    .unwrap()
}

/// What a file of `export NAME=value` lines sets.
fn settings(path: PathBuf) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'']).to_owned())).collect()
}

impl Issued {
    fn credentials(&self, cloud: &Cloud) -> OpenStack {
        let named = |what: &str| {
            let part = &self.body[what];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let domain =
                openstack::Domain { id: text(&part["domain"]["id"]), name: text(&part["domain"]["name"]) };
            openstack::Named { id: text(&part["id"]), name: text(&part["name"]), domain }
        };
        OpenStack {
            cloud: cloud.digest().to_owned(),
            token: Token::new(&self.token),
            expires_at: self.body["expires_at"].as_str().unwrap().to_owned(),
            user: named("user"),
            project: named("project"),
            roles: self.body["roles"].as_array().unwrap().iter().map(role).collect(),
        }
    }
}

fn role(role: &Value) -> openstack::Role {
    let text = |key: &str| role[key].as_str().unwrap().to_owned();
    openstack::Role { id: text("id"), name: text("name") }
}

/// Credentials that no Keystone has issued, for what never asks one.
fn made_up(cloud: &Cloud) -> OpenStack {
    let domain = openstack::Domain { id: "default".to_owned(), name: "Default".to_owned() };
    let named =
        |name: &str| openstack::Named { id: name.to_owned(), name: name.to_owned(), domain: domain.clone() };
    OpenStack {
        cloud: cloud.digest().to_owned(),
        token: Token::new("no-token-of-any-keystone"),
        expires_at: "2099-01-01T00:00:00.000000Z".to_owned(),
        user: named("user"),
        project: named("project"),
        roles: Vec::new(),
    }
}

async fn run_as(
    worker: &Worker,
    (cloud, openstack): (&Cloud, OpenStack),
    entry: &str,
    input: Value,
    limits: ExecutionLimits,
) -> Outcome {
    let execute = Execute { openstack: Some(openstack), ..execute(entry, input, limits) };
    worker.supervisor.execute_in(cloud, &execute, soon(120)).await.unwrap()
}

fn returned(outcome: &Outcome) -> Value {
    assert_eq!(outcome.end, End::Returned, "{}", outcome.log);
    output(outcome)
}

const CLIENTS: &str = r#"
import threading

import openstack
import swiftclient
from keystoneauth1 import exceptions, session

def with_swiftclient(context, container):
    assert isinstance(context['os_session'], session.Session)
    swift = swiftclient.Connection(session=context['os_session'], os_options={'region_name': 'RegionOne'})
    swift.put_container(container)
    swift.put_object(container, 'object', bytes(range(256)))
    return list(swift.get_object(container, 'object')[1]) == list(range(256))

def with_openstacksdk(context, container):
    cloud = openstack.connection.Connection(session=context['os_session'])
    names, errors = [], []
    def look():
        try:
            names.append([found.name for found in cloud.object_store.objects(container)])
        except Exception as error:
            errors.append(str(error))
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = cloud.object_store.download_object('object', container)
    cloud.object_store.delete_object('object', container=container)
    cloud.object_store.delete_container(container)
    return {'names': names, 'errors': errors, 'data': len(data), 'project': cloud.current_project_id}

def with_the_others(context):
    from ceilometerclient import client as ceilometer
    from keystoneclient.v3 import client as keystone
    from mistralclient.api import client as mistral
    from neutronclient.v2_0 import client as neutron
    from octaviaclient.api.v2 import octavia
    from openstackclient.api import object_store_v1
    from zaqarclient.queues import client as zaqar
    import flask, oslo_concurrency.processutils, psutil, requests
    shared = context['os_session']
    def endpoint(service):
        return shared.get_endpoint(service_type=service)
    asked = {
        'ceilometer': lambda: ceilometer.get_client('2', session=shared).meters.list(),
        'neutron': lambda: neutron.Client(session=shared).list_networks(),
        'zaqar': lambda: list(zaqar.Client(session=shared, version=2).queues()),
        # These two want an address, and say with their error that they have asked there.
        'mistral': lambda: mistral.client(session=shared, mistral_url=endpoint('object-store') + '/none').workflows.list(),
        'octavia': lambda: octavia.OctaviaAPI(session=shared, service_type='load-balancer', endpoint=endpoint('object-store') + '/none').load_balancer_list(),
        'keystone': lambda: [project.id for project in keystone.Client(session=shared).auth.projects()],
        'openstackclient': lambda: object_store_v1.APIv1(session=shared, endpoint=endpoint('object-store')).container_list(),
    }
    answers = {}
    for name, ask in asked.items():
        try:
            ask()
            answers[name] = 'answered'
        except Exception as error:
            answers[name] = '%s: %s' % (type(error).__name__, error)
    return answers
"#;

#[tokio::test]
async fn the_clients_of_openstack_work_with_the_session_at_once() {
    let test_cloud = TestCloud::connect();
    let issued = test_cloud.trust_token(&test_cloud.trust().await).await;
    let cloud = test_cloud.cloud(&issued);
    let worker = NearCloud::start(1, &test_cloud).await;
    worker.load(&[("main.py", CLIENTS)]).await.unwrap();
    let container = json!({"container": format!("clients-{}", std::process::id())});
    let as_user = || (&cloud, issued.credentials(&cloud));

    // What a function gets that asks for nothing: 32 MiB, a tenth of a processor, five seconds.
    let least = ExecutionLimits { memory_bytes: 32 * MIB, cpu_millis: 100, timeout_ms: 5000, ..ample() };
    let swift = run_as(&worker, as_user(), "main.with_swiftclient", container.clone(), least).await;
    assert_eq!(returned(&swift), true);
    let sdk = run_as(&worker, as_user(), "main.with_openstacksdk", container, ample()).await;
    let found = returned(&sdk);
    assert_eq!(found["names"], json!([["object"], ["object"], ["object"], ["object"]]), "{found}");
    assert_eq!((&found["errors"], &found["data"]), (&json!([]), &json!(256)));
    assert_eq!(found["project"], issued.body["project"]["id"]);
    assert!(sdk.reused, "the session leaves nothing behind for which a slot is replaced");

    let others = run_as(&worker, as_user(), "main.with_the_others", json!(null), ample()).await;
    let answers = returned(&others);
    for name in ["keystone", "openstackclient"] {
        assert_eq!(answers[name], "answered", "{answers}");
    }
    for (name, service) in [("ceilometer", "metering"), ("neutron", "network"), ("zaqar", "messaging")] {
        let answer = answers[name].as_str().unwrap();
        // The catalog of the test cloud has no such service, and the session looked there.
        assert!(answer.starts_with("EndpointNotFound") && answer.contains(service), "{name}: {answer}");
    }
    for name in ["mistral", "octavia"] {
        let answer = answers[name].as_str().unwrap();
        assert!(answer.contains("Not Found") || answer.contains("Not found"), "{name}: {answer}");
    }
    assert!(![&swift, &sdk, &others].iter().any(|outcome| outcome.token_refused));
    worker.stop().await;
}

const GLOBAL: &str = r#"
import swiftclient

kept = {}

def main(context):
    kept.setdefault('session', context['os_session'])
    kept.setdefault('swift', swiftclient.Connection(session=kept['session']))
    kept['swift'].get_account()
    status = kept['session'].head('', endpoint_filter={'service_type': 'object-store'}).status_code
    return [status, kept['session'].get_token()]
"#;

#[tokio::test]
async fn a_session_in_a_global_uses_the_token_of_the_execution_under_way() {
    let test_cloud = TestCloud::connect();
    let trust = test_cloud.trust().await;
    let first = test_cloud.trust_token(&trust).await;
    let cloud = test_cloud.cloud(&first);
    let worker = NearCloud::start(1, &test_cloud).await;
    worker.load(&[("main.py", GLOBAL)]).await.unwrap();

    let run = |issued: &Issued| {
        run_as(&worker, (&cloud, issued.credentials(&cloud)), "main.main", json!(null), ample())
    };
    let before = run(&first).await;
    assert_eq!(returned(&before), json!([204, first.token]));
    test_cloud.revoke(&first.token).await;
    // Tokens of one user and one second can be the same.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let second = test_cloud.trust_token(&trust).await;
    let after = run(&second).await;

    assert_eq!(returned(&after), json!([204, second.token]));
    assert!(after.reused);
    assert!(!after.token_refused, "what was refused is a token that a client had kept");
    worker.stop().await;
}

const REFUSED: &str = r#"
from keystoneauth1 import exceptions

class Own(Exception):
    pass

def main(context, tries=1):
    for _ in range(tries):
        try:
            context['os_session'].get('', endpoint_filter={'service_type': 'object-store'})
            return 'answered'
        except exceptions.Unauthorized as error:
            refused = error
    raise Own('my own words') from refused
"#;

#[tokio::test]
async fn a_token_that_a_service_refuses_is_reported_beside_the_functions_own_error() {
    let test_cloud = TestCloud::connect();
    let trust = test_cloud.trust().await;
    let revoked = test_cloud.trust_token(&trust).await;
    let cloud = test_cloud.cloud(&revoked);
    test_cloud.revoke(&revoked.token).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let good = test_cloud.trust_token(&trust).await;
    let worker = NearCloud::start(1, &test_cloud).await;
    worker.load(&[("main.py", REFUSED)]).await.unwrap();
    let run = |issued: &Issued, tries: u32| {
        let input = json!({"tries": tries});
        run_as(&worker, (&cloud, issued.credentials(&cloud)), "main.main", input, ample())
    };

    // As often as the function likes: reported once, and the slot is none the worse for it.
    for tries in [1, 3] {
        let refused = run(&revoked, tries).await;
        assert!(refused.token_refused, "{}", refused.log);
        assert_eq!(refused.end, End::Raised { message: "my own words".to_owned() });
    }
    let minted_anew = run(&good, 1).await;
    assert_eq!((returned(&minted_anew), minted_anew.token_refused), (json!("answered"), false));
    assert!(minted_anew.reused);
    worker.stop().await;
}

#[tokio::test]
async fn without_credentials_there_is_no_session_and_one_that_was_kept_says_why() {
    let source = r#"
kept = []

def main(context):
    found = context['os_session']
    if found is not None:
        kept.append(found)
        return [list(context), dict(context)['os_session'] is found, context.get('os_session') is found, found.get_project_id()]
    try:
        kept[0].get_token()
    except Exception as error:
        return [found, str(error)]

def none(context):
    return context
"#;
    let worker = Worker::running(1, source).await;
    assert_eq!(worker.output("main.none", json!(null)).await, json!({"os_session": null}));
    let cloud = cloud_of("http://192.0.2.1:5000/v3", "[]".to_owned());
    let given = run_as(&worker, (&cloud, made_up(&cloud)), "main.main", json!(null), ample()).await;
    assert_eq!(returned(&given), json!([["os_session"], true, true, "project"]));

    let after = worker.output("main.main", json!(null)).await;

    assert_eq!(after[0], json!(null));
    assert!(after[1].as_str().unwrap().contains("no OpenStack credentials"), "{after}");
    worker.stop().await;
}

#[tokio::test]
async fn a_cloud_is_given_once_and_again_where_the_worker_has_forgotten_it() {
    let source = "def main(context): return context['os_session'].auth.auth_url";
    let worker = Worker::running(1, source).await;
    let clouds: Vec<_> =
        (0..6).map(|number| cloud_of(&format!("http://keystone{number}/v3"), "[]".to_owned())).collect();
    let run = |number: usize| {
        run_as(&worker, (&clouds[number], made_up(&clouds[number])), "main.main", json!(null), ample())
    };
    let nameless =
        Execute { openstack: Some(made_up(&clouds[0])), ..execute("main.main", json!(null), ample()) };
    match worker.supervisor.execute(&nameless, soon(10)).await {
        Err(supervisor::Error::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::UnknownCloud),
        other => panic!("{other:?}"),
    }

    for number in 0..6 {
        assert_eq!(returned(&run(number).await), format!("http://keystone{number}/v3"));
    }
    // Another client of the same worker has made it forget the one that this one gave last.
    let other = supervisor::Supervisor::new(worker.supervisor.socket());
    for cloud in &clouds[..5] {
        let execute =
            Execute { openstack: Some(made_up(cloud)), ..execute("main.main", json!(null), ample()) };
        other.execute_in(cloud, &execute, soon(10)).await.unwrap();
    }
    assert_eq!(returned(&run(5).await), "http://keystone5/v3");
    worker.stop().await;
}

#[tokio::test]
async fn a_library_in_the_package_comes_before_the_one_of_the_image() {
    let worker = Worker::start(1).await;
    let main = "import requests, yaml\ndef main(context): return [requests.__version__, yaml.__name__, context['os_session'].get_project_id()]";
    worker.load(&[("main.py", main), ("requests/__init__.py", "from requests_real import *\n__version__ = 'mine'\n"),
        ("requests_real.py", "import sys, importlib.machinery, importlib.util\n\
            spec = importlib.machinery.PathFinder.find_spec('requests', [p for p in sys.path if p.endswith('-packages')])\n\
            mine = sys.modules['requests']\nmine.__path__ = list(spec.submodule_search_locations)\n\
            exec(compile(open(spec.origin).read(), spec.origin, 'exec'), mine.__dict__)\n")]).await.unwrap();
    let cloud = cloud_of("http://192.0.2.1:5000/v3", "[]".to_owned());

    let outcome = run_as(&worker, (&cloud, made_up(&cloud)), "main.main", json!(null), ample()).await;

    assert_eq!(returned(&outcome), json!(["mine", "yaml", "project"]));
    worker.stop().await;
}

/// Looks wherever a function can look, and says which of the secrets it has met. It knows them by
/// digest and length alone, so that it does not find what it brought itself.
const HUNT: &str = r#"
import gc, hashlib, os, re, sys

def use(context):
    return context['os_session'].head('', endpoint_filter={'service_type': 'object-store'}).status_code

def hunt(context, secrets, candidates):
    lengths = sorted({secret['length'] for secret in secrets})
    names = {secret['digest']: secret['name'] for secret in secrets}
    pattern = re.compile(candidates.encode())
    found, looked = set(), {'memory': 0, 'files': 0, 'others': 0, 'objects': 0}

    def search(place, data):
        for match in pattern.finditer(data):
            for length in lengths:
                piece = bytes(data[match.start():match.start() + length])
                name = names.get(hashlib.sha256(piece).hexdigest())
                if name:
                    found.add((place, name))

    for value in os.environ.values():
        search('environment', value.encode())
    def read(place, path):
        try:
            with open(path, 'rb') as file:
                search(place, file.read(1 << 22))
            return 1
        except (OSError, ValueError):
            return 0
    for pid in filter(str.isdigit, os.listdir('/proc')):
        for name in ('environ', 'cmdline', 'maps', 'mem', 'fd/0', 'fd/1', 'fd/3', 'stack'):
            read('self' if int(pid) == os.getpid() else 'process', '/proc/%s/%s' % (pid, name))
        looked['others'] += int(pid) != os.getpid()
    for top in os.listdir('/'):
        if top not in ('proc', 'sys'):
            for directory, _, files in os.walk('/' + top):
                for name in files:
                    path = os.path.join(directory, name)
                    if os.path.isfile(path) and os.path.getsize(path) < 1 << 20 and not path.endswith(('.py', '.pyc', '.so')):
                        looked['files'] += read('file', path)
    # Everything that Python can get at, the context and the shim's own objects included.
    waiting, seen = [context, sys.modules, sys._getframe(), *gc.get_objects()], set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or thing is waiting or thing is seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (str, bytes)):
            looked['objects'] += 1
            search('object', thing.encode('utf-8', 'replace') if isinstance(thing, str) else thing)
        else:
            waiting.extend(gc.get_referents(thing))
    del waiting, seen
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in list(maps):
            span, rights = line.split()[:2]
            if 'r' not in rights or '[v' in line:
                continue
            start, end = (int(part, 16) for part in span.split('-'))
            while start < end:
                try:
                    memory.seek(start)
                    data = memory.read(min(end - start, 1 << 22))
                except (OSError, OverflowError, ValueError):
                    break
                if not data:
                    break
                looked['memory'] += len(data)
                search('memory', data)
                # A secret may lie across the edge of two pieces.
                start += len(data) if len(data) < 1 << 22 else len(data) - 4096
    return {'found': sorted(found), 'looked': looked}
"#;

#[tokio::test]
async fn a_function_finds_its_own_token_and_no_other_secret() {
    let test_cloud = TestCloud::connect();
    let trust = test_cloud.trust().await;
    let caller = test_cloud.token_of(&test_cloud.user).await;
    let service = test_cloud.token_of(&test_cloud.service).await;
    let previous = test_cloud.trust_token(&trust).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let neighbour = test_cloud.trust_token(&trust).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let own = test_cloud.trust_token(&trust).await;
    let cloud = test_cloud.cloud(&own);
    let worker = NearCloud::start(2, &test_cloud).await;
    let source = format!("{HUNT}\nimport time\ndef wait(context):\n    use(context)\n    time.sleep(6)\n");
    worker.load(&[("main.py", source.as_str())]).await.unwrap();
    let secrets: Vec<Value> = [
        ("password of the user", test_cloud.user["OS_PASSWORD"].as_str()),
        ("password of the service", test_cloud.service["OS_PASSWORD"].as_str()),
        ("token of the caller", &caller.token),
        ("token of the service", &service.token),
        ("token of the previous execution", &previous.token),
        ("token of a neighbour", &neighbour.token),
        ("own token", &own.token),
    ]
    .map(|(name, secret)| {
        json!({"name": name, "length": secret.len(), "digest": hex::encode(Sha256::digest(secret))})
    })
    .into();
    let run = |issued: &Issued, entry: &'static str, input: Value| {
        run_as(&worker, (&cloud, issued.credentials(&cloud)), entry, input, ample())
    };

    // One slot after the other is used, so the hunter follows the first in its slot.
    assert_eq!(returned(&run(&previous, "main.use", json!(null)).await), 204);
    let neighbour_runs = run(&neighbour, "main.wait", json!(null));
    let hunt = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(returned(&run(&previous, "main.use", json!(null)).await), 204);
        let input = json!({"secrets": secrets, "candidates": "gAAAA|(?=[0-9a-f]{32})"});
        let patient = ExecutionLimits { timeout_ms: 90_000, ..ample() };
        let as_owner = (&cloud, own.credentials(&cloud));
        let outcome = run_as(&worker, as_owner, "main.hunt", input, patient).await;
        assert!(outcome.reused, "it is to hunt where the previous execution ran");
        returned(&outcome)
    };
    let (_, hunt) = tokio::join!(neighbour_runs, hunt);

    let found: Vec<(String, String)> = serde_json::from_value(hunt["found"].clone()).unwrap();
    for (place, secret) in &found {
        // Python does not wipe what it frees, so pieces of memory may hold what the same owner's
        // earlier execution left; nothing leads there.
        let left_over =
            secret == "token of the previous execution" && ["memory", "self"].contains(&place.as_str());
        assert!(secret == "own token" || left_over, "{hunt}");
    }
    // The hunt sees what there is to see.
    assert!(found.contains(&("memory".to_owned(), "own token".to_owned())), "{hunt}");
    assert!(found.contains(&("object".to_owned(), "own token".to_owned())), "{hunt}");
    for (place, least) in [("memory", 10_000_000), ("files", 50), ("others", 3), ("objects", 10_000)] {
        assert!(hunt["looked"][place].as_u64().unwrap() >= least, "{place}: {hunt}");
    }
    worker.stop().await;
}

const NODE_CLIENT: &str = r#"
const endpoint = ({ catalog, region }, type) => catalog.find((service) => service.type === type).endpoints
  .find((one) => one.interface === 'public' && one.region === region).url;
exports.main = async ({ openstack }, { container }) => {
  const swift = `${endpoint(openstack, 'object-store')}/${container}`;
  const headers = { 'X-Auth-Token': openstack.token };
  const statuses = [];
  for (const [method, path, body] of [['PUT', ''], ['PUT', '/object', 'content'], ['GET', '/object'], ['DELETE', '/object'], ['DELETE', '']]) {
    const answer = await fetch(swift + path, { method, headers, body });
    statuses.push(answer.status, await answer.text());
  }
  return [statuses.filter((one) => one !== ''), openstack.project_id];
};
exports.shown = ({ openstack }) => openstack;
exports.refused = ({ openstack }) => { openstack.refused(); openstack.refused(); return 'told'; };
let first = null;
exports.keeps = ({ openstack }) => { const told = first ?? openstack; first = told; told.refused(); return told === openstack; };
const https = require('https');
exports.trusts = async ({ openstack }, { key, cert }) => {
  const server = https.createServer({ key, cert }, (request, response) => response.end('trusted'));
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const url = `https://127.0.0.1:${server.address().port}/`;
  const ask = () => new Promise((done) => https.get(url, (answer) => answer.resume().on('end', () => done('trusted'))).on('error', (error) => done(error.code)));
  const fetched = await fetch(url, { headers: { connection: 'close' } }).then((answer) => answer.text(), (error) => error.cause.code);
  const answers = [await ask(), fetched, openstack?.ca_file?.endsWith('/ca.crt') ?? null, (process.env.NODE_EXTRA_CA_CERTS ?? null) === (openstack?.ca_file ?? null)];
  server.closeAllConnections();
  await new Promise((done) => server.close(done));
  return answers;
};
"#;

#[tokio::test]
async fn a_function_in_node_has_a_token_and_the_catalog() {
    let test_cloud = TestCloud::connect();
    let issued = test_cloud.trust_token(&test_cloud.trust().await).await;
    let cloud = test_cloud.cloud(&issued);
    let worker = NearCloud::start_of(NODE, 1, &test_cloud).await;
    worker.load(&[("main.js", NODE_CLIENT)]).await.unwrap();
    let as_user = || (&cloud, issued.credentials(&cloud));

    let container = json!({"container": format!("node-{}", std::process::id())});
    let least = ExecutionLimits { memory_bytes: 32 * MIB, cpu_millis: 100, timeout_ms: 5000, ..ample() };
    let used = run_as(&worker, as_user(), "main.main", container, least).await;
    let project = &issued.body["project"]["id"];
    assert_eq!(returned(&used), json!([[201, 201, 200, "content", 204, 204], project]), "{}", used.log);
    let shown = returned(&run_as(&worker, as_user(), "main.shown", json!(null), ample()).await);
    assert_eq!(
        shown,
        json!({
            "token": issued.token, "expires_at": issued.body["expires_at"], "project_id": project,
            "user_id": issued.body["user"]["id"], "auth_url": test_cloud.url("").trim_end_matches('/'),
            "region": "RegionOne", "interface": "public", "catalog": issued.body["catalog"], "ca_file": null,
        })
    );

    let refused = run_as(&worker, as_user(), "main.refused", json!(null), ample()).await;
    assert!(refused.token_refused && refused.end == End::Returned);
    let own = run_as(&worker, as_user(), "main.keeps", json!(null), ample()).await;
    let kept = run_as(&worker, as_user(), "main.keeps", json!(null), ample()).await;
    assert!(own.token_refused && !kept.token_refused, "only the token of the execution under way is told of");
    assert_eq!((returned(&own), returned(&kept)), (json!(true), json!(false)));
    assert_eq!(worker.output("main.shown", json!(null)).await, json!(null));
    worker.stop().await;
}

/// A key and a certificate for 127.0.0.1 that nobody else has signed.
fn own_certificate() -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let (key, cert) = (directory.path().join("key.pem"), directory.path().join("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=cloud", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl is installed: apt-get install openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (std::fs::read_to_string(key).unwrap(), std::fs::read_to_string(cert).unwrap())
}

#[tokio::test]
async fn a_function_in_node_trusts_the_clouds_own_certificates_and_no_others() {
    let (key, cert) = own_certificate();
    let worker = Worker::start_of(NODE, 1).await;
    worker.load(&[("main.js", NODE_CLIENT)]).await.unwrap();
    let cloud = |cacert: Option<&str>| {
        Cloud::new(&openstack::Cloud {
            auth_url: "https://127.0.0.1:5000/v3".to_owned(),
            region_name: None,
            interface: None,
            catalog: serde_json::value::RawValue::from_string("[]".to_owned()).unwrap(),
            cacert: cacert.map(str::to_owned),
        })
        .unwrap()
    };
    let (own, plain) = (cloud(Some(&cert)), cloud(None));
    let input = json!({"key": key, "cert": cert});
    let run = async |cloud: &Cloud| {
        let outcome = run_as(&worker, (cloud, made_up(cloud)), "main.trusts", input.clone(), ample()).await;
        returned(&outcome)
    };

    let unknown = json!(["DEPTH_ZERO_SELF_SIGNED_CERT", "DEPTH_ZERO_SELF_SIGNED_CERT", null, true]);
    assert_eq!(run(&plain).await, unknown);
    assert_eq!(run(&own).await, json!(["trusted", "trusted", true, true]));
    assert_eq!(run(&plain).await, unknown);
    worker.stop().await;
}
