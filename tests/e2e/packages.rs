//! Packages in Swift. Needs the test cloud besides: `tests/cloud/up`.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};
use taibai::openstack::{Error, Keystone, ObjectInfo, Session};

use crate::cloud::{Cloud, ours};
use crate::own::OwnDatabase;
use crate::service::{Home, Service, eventually, output, package, required};

/// What a service of the cloud is told that keeps packages in Swift.
fn options(cloud: &Cloud, more: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
    let account = cloud.account("taibai");
    let mut options = BTreeMap::from([
        ("api.auth_strategy", "keystone".to_owned()),
        ("keystone_authtoken.auth_url", cloud.auth_url().to_owned()),
        ("keystone_authtoken.username", account.auth.username.clone()),
        ("keystone_authtoken.password", account.auth.password.clone()),
        ("keystone_authtoken.project_name", account.auth.project_name.clone()),
        ("keystone_authtoken.region_name", account.region_name.clone()),
        ("storage.driver", "swift".to_owned()),
    ]);
    options.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    options
}

fn home(options: &BTreeMap<&'static str, String>) -> Home {
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Home::new(&options)
}

async fn runtime(service: &Service, admin: &str) -> String {
    let body = json!({"image": required("TAIBAI_TEST_IMAGE"), "name": "python3"});
    let created = service.ask(admin, "POST", "/v1/runtimes", Some(body)).await.expect(201);
    let path = format!("/v1/runtimes/{}", created["id"].as_str().unwrap());
    eventually("the runtime is available", async || {
        service.ask(admin, "GET", &path, None).await.expect(200)["status"] == "available"
    })
    .await;
    created["id"].as_str().unwrap().to_owned()
}

async fn head(keystone: &Keystone, container: &str, object: &str) -> Result<ObjectInfo, Error> {
    let head = |session: Session| async move { session.swift().head_object(container, object).await };
    keystone.as_service(head).await
}

fn says(text: &str) -> Vec<u8> {
    package(&format!("def main(**kwargs):\n    return '{text}'\n"))
}

fn digest(package: &[u8]) -> String {
    hex::encode(Sha256::digest(package))
}

/// What is in the directory of a service's packages.
fn on_the_machine(home: &Home) -> usize {
    std::fs::read_dir(home.path().join("packages")).unwrap().count()
}

async fn functions(service: &Service, who: &str) -> usize {
    let listed = service.ask(who, "GET", "/v1/functions", None).await.expect(200);
    listed["functions"].as_array().unwrap().len()
}

#[tokio::test]
async fn packages_outlive_the_machine_and_go_with_their_functions() {
    let cloud = Cloud::open();
    let (mut way, detour) = cloud.way_to_swift().await;
    let container = format!("packages-{}", uuid::Uuid::new_v4());
    let options = options(
        &cloud,
        &[("keystone_authtoken.region_name", &detour.region), ("storage.container", &container)],
    );
    let service = Service::start_in(home(&options)).await;
    let admin = cloud.token("admin").await.expose().to_owned();
    let demo = cloud.token("demo").await.expose().to_owned();
    let runtime = runtime(&service, &admin).await;
    let keystone = cloud.ours().keystone;
    let is_there = async |package: &[u8]| match head(&keystone, &container, &digest(package)).await {
        Ok(info) => info.bytes == package.len() as u64,
        Err(Error::NotFound) => false,
        Err(error) => panic!("{error:?}"),
    };

    let before = functions(&service, &demo).await;
    let (first, second) = (says("first"), says("second"));
    let created = service.create_function(&demo, &runtime, &first, &[("timeout", "20")]).await.expect(201);
    let function = created["id"].as_str().unwrap();
    let path = format!("/v1/functions/{function}");
    assert!(is_there(&first).await);
    assert_eq!(on_the_machine(&service.home), 0);
    let run = async |service: &Service| output(&service.execute(&demo, function, "").await);
    assert_eq!(run(&service).await, "first");

    service.upload(&demo, "PUT", &path, &[], Some(&second)).await.expect(200);
    assert!(is_there(&second).await && !is_there(&first).await);
    assert_eq!(run(&service).await, "second");
    let download = format!("{path}?download=true");
    let downloaded = service.ask(&demo, "GET", &download, None).await;
    assert_eq!((downloaded.status, downloaded.bytes), (200, second.clone()));

    // Another machine has nothing of what this one had on its disk.
    let home = service.stop().await;
    std::fs::remove_dir_all(home.path().join("packages")).unwrap();
    let service = Service::start_in(home).await;
    assert_eq!(run(&service).await, "second");

    // While Swift is away nothing is taken, nothing is left, and what is warm goes on.
    way.cut().await;
    let away = "The package store is unavailable";
    let third = says("third");
    let refused = service.create_function(&demo, &runtime, &third, &[]).await;
    assert_eq!(refused.expect(503)["faultstring"], away);
    assert!(refused.headers.contains_key("retry-after"));
    let refused = service.upload(&demo, "PUT", &path, &[], Some(&third)).await;
    assert_eq!(refused.expect(503)["faultstring"], away);
    assert_eq!(service.ask(&demo, "GET", &download, None).await.expect(503)["faultstring"], away);
    assert_eq!(functions(&service, &demo).await, before + 1);
    assert_eq!(on_the_machine(&service.home), 0);
    assert_eq!(run(&service).await, "second");
    // What waits for its code is told that there is none.
    service.ask(&admin, "POST", &format!("{path}/detach"), None).await.expect(202);
    let ended = service.execute(&demo, function, "").await;
    assert_eq!(ended["status"], "error", "{ended}");
    way.mend().await;
    assert!(!is_there(&third).await);
    eventually("the function runs again", async || {
        service.execute(&demo, function, "").await["status"] == "success"
    })
    .await;

    // A token of the service's that ends early is nobody's trouble.
    cloud.revoke(&way.last_token()).await;
    service.upload(&demo, "PUT", &path, &[], Some(&third)).await.expect(200);
    assert_eq!(run(&service).await, "third");
    assert!(is_there(&third).await && !is_there(&second).await);

    // Two functions share a package until the last is gone.
    let twin = service.create_function(&demo, &runtime, &third, &[]).await.expect(201);
    service.ask(&demo, "DELETE", &path, None).await.expect(204);
    assert!(is_there(&third).await);
    let twin = format!("/v1/functions/{}", twin["id"].as_str().unwrap());
    service.ask(&demo, "DELETE", &twin, None).await.expect(204);
    assert!(!is_there(&third).await);
    assert!(!service.log().contains(way.last_token().expose()));
    service.stop_clean().await;
}

#[tokio::test]
async fn a_service_that_swift_does_not_admit_says_so_until_it_is_given_a_role() {
    let cloud = Cloud::open();
    let name = format!("packages-{}", uuid::Uuid::new_v4());
    let options = options(
        &cloud,
        &[
            ("keystone_authtoken.username", &name),
            ("keystone_authtoken.password", &name),
            ("keystone_authtoken.project_name", &name),
            ("keystone_authtoken.service_type", &name),
        ],
    );
    let home = home(&options);
    let register = ["register", "--public-url", "http://controller:7070"];
    taibai(&home, &register).unwrap();

    let service = Service::start_in(home).await;
    assert!(service.log().contains("packages cannot be kept in Swift now"), "{}", service.log());
    let (admin, demo) = (cloud.token("admin").await, cloud.token("demo").await);
    let runtime = runtime(&service, admin.expose()).await;
    let refused = service.create_function(demo.expose(), &runtime, &says("x"), &[]).await.expect(503);
    let words = "The package store, which does not admit this service, is unavailable";
    assert_eq!(refused["faultstring"], words);
    assert_eq!(on_the_machine(&service.home), 0);
    assert_eq!(functions(&service, demo.expose()).await, 0);

    let home = service.stop().await;
    let refused = taibai(&home, &[&register[..], &["--role", "no-such-role"]].concat()).unwrap_err();
    assert!(refused.contains("it has no role no-such-role"), "{refused}");
    let given = taibai(&home, &[&register[..], &["--role", "swiftoperator"]].concat()).unwrap();
    let line = format!("made     role swiftoperator of user {name} in project {name}");
    assert!(given.lines().any(|given| given == line), "{given}");
    let service = Service::start_in(home).await;
    assert!(!service.log().contains("packages cannot be kept"), "{}", service.log());
    let created = service.create_function(demo.expose(), &runtime, &says("x"), &[]).await.expect(201);
    let own = ours(&taibai::config::KeystoneAuthtoken {
        username: name.clone(),
        password: name.as_str().into(),
        project_name: name.clone(),
        ..cloud.section()
    });
    // In the container that is the default, of the service's own project.
    head(&own.keystone, "taibai-packages", &digest(&says("x"))).await.unwrap();
    let path = format!("/v1/functions/{}", created["id"].as_str().unwrap());
    service.ask(demo.expose(), "DELETE", &path, None).await.expect(204);
    let gone = head(&own.keystone, "taibai-packages", &digest(&says("x"))).await;
    assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");
    let home = service.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
    taibai(&home, &["unregister"]).unwrap();
}

/// Run by `tox-like-scripts/databases`: processes share a database on a server.
mod split {
    use super::*;

    #[tokio::test]
    async fn an_api_and_an_engine_with_disks_of_their_own_share_packages() {
        let cloud = Cloud::open();
        let database = OwnDatabase::create();
        assert!(!database.is_file(), "TAIBAI_TEST_DATABASE names no server: run tox-like-scripts/databases");
        let database = Arc::new(database);
        let container = format!("packages-{}", uuid::Uuid::new_v4());
        let options = options(&cloud, &[("storage.container", &container)]);
        let home = || {
            let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
            Home::on(database.clone(), &options)
        };
        let mut elsewhere = home();
        elsewhere.set("engine.node", "elsewhere");
        elsewhere.set("engine.health_port", "0");
        elsewhere.set("engine.listen", &format!("unix://{}", elsewhere.path().join("e.sock").display()));
        let engine = Service::start_role(elsewhere, "engine").await;
        let api = Service::start_role(home(), "api").await;
        let (admin, demo) = (cloud.token("admin").await, cloud.token("demo").await);
        let (admin, demo) = (admin.expose(), demo.expose());
        let runtime = runtime(&api, admin).await;

        let created = api.create_function(demo, &runtime, &says("first"), &[]).await.expect(201);
        let function = created["id"].as_str().unwrap();
        assert_eq!(output(&api.execute(demo, function, "").await), "first");
        let path = format!("/v1/functions/{function}");
        api.upload(demo, "PUT", &path, &[], Some(&says("second"))).await.expect(200);
        assert_eq!(output(&api.execute(demo, function, "").await), "second");
        assert_eq!((on_the_machine(&api.home), on_the_machine(&engine.home)), (0, 0));
        api.ask(demo, "DELETE", &path, None).await.expect(204);
        let keystone = cloud.ours().keystone;
        for text in ["first", "second"] {
            let gone = head(&keystone, &container, &digest(&says(text))).await;
            assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");
        }
        api.stop_clean().await;
        engine.stop_clean().await;
    }
}

/// Runs a command of an administrator with the service's configuration.
fn taibai(home: &Home, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
    command.arg("--config-file").arg(home.config_file()).args(arguments);
    let clouds = format!("{}/clouds.yaml", required("TAIBAI_TEST_CLOUD"));
    command.env("OS_CLOUD", "admin").env("OS_CLIENT_CONFIG_FILE", clouds);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_service_without_an_account_in_the_cloud_does_not_start() {
    let home = Home::new(&[("storage.driver", "swift")]);
    let refused = taibai(&home, &["serve"]).unwrap_err();
    assert!(refused.contains("[keystone_authtoken] auth_url: must not be empty"), "{refused}");
}
