//! Images that come from a registry, which asks who pulls: Debian's `docker-registry` on loopback.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::service::{Service, eventually, required, result};

struct Registry {
    child: Child,
    directory: tempfile::TempDir,
    host: String,
    images: Vec<String>,
}

fn docker(arguments: &[&str]) -> String {
    let done = Command::new("docker").args(arguments).output().unwrap();
    assert!(done.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

impl Registry {
    /// With one user, `puller`.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("users"), format!("puller:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
        let config = json!({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": at("data")}},
            "http": {"addr": host},
            "auth": {"htpasswd": {"realm": "tests", "path": at("users")}},
        });
        // JSON is YAML too.
        std::fs::write(at("config.yml"), config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed, as tox-like-scripts/functional does");
        let registry = Self { child, directory, host, images: Vec::new() };
        eventually("the registry answers", async || TcpStream::connect(&registry.host).is_ok()).await;
        registry
    }

    /// A file as Docker keeps credentials, in a directory of its own.
    fn credentials(&self, name: &str, password: &str) -> String {
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("config.json").display().to_string();
        let auth = BASE64_STANDARD.encode(format!("puller:{password}"));
        std::fs::write(&path, json!({"auths": {&self.host: {"auth": auth}}}).to_string()).unwrap();
        path
    }

    /// Makes an image that says a word, pushes it, and forgets it here.
    fn push(&mut self, name: &str, word: &str) -> String {
        let image = format!("{}/team/{name}:1", self.host);
        let file = format!(
            "FROM {}\nENTRYPOINT [\"/bin/echo\", \"{word}\"]\nCMD []\n",
            required("TAIBAI_TEST_IMAGE")
        );
        let path = self.directory.path().join("Dockerfile");
        std::fs::write(&path, file).unwrap();
        let context = self.directory.path().join("empty");
        std::fs::create_dir_all(&context).unwrap();
        let (path, context) = (path.display().to_string(), context.display().to_string());
        docker(&["build", "--quiet", "--tag", &image, "--file", &path, &context]);
        let login = self.directory.path().join("puller").display().to_string();
        docker(&["--config", &login, "push", "--quiet", &image]);
        docker(&["rmi", "--force", &image]);
        self.images.push(image.clone());
        image
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for image in &self.images {
            let repository = image.rsplit_once(':').map_or(image.as_str(), |(repository, _)| repository);
            let ids = Command::new("docker").args(["images", "--quiet", "--no-trunc", repository]).output();
            let ids = String::from_utf8(ids.unwrap().stdout).unwrap();
            for id in ids.lines() {
                let _ = Command::new("docker").args(["rmi", "--force", id]).output();
            }
        }
    }
}

async fn create(service: &Service, image: &str) -> String {
    let body = json!({"code": {"source": "image", "image": image}, "memory_size": 64 << 20, "timeout": 30});
    let created = service.ask("demo", "POST", "/v1/functions", Some(body)).await.expect(201);
    created["id"].as_str().unwrap().to_owned()
}

async fn settled(service: &Service, function: &str) -> Value {
    let mut shown = Value::Null;
    eventually("the image was looked for", async || {
        shown = service.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200);
        shown["status"] != "creating"
    })
    .await;
    shown
}

async fn said(service: &Service, function: &str) -> String {
    let done = service.execute("demo", function, "there").await;
    assert_eq!(done["status"], "success", "{done}");
    service.execution_log("demo", done["id"].as_str().unwrap()).await
}

#[tokio::test]
async fn an_image_is_pulled_with_the_operators_credentials_and_by_its_digest_ever_after() {
    let mut registry = Registry::start().await;
    let right = registry.credentials("puller", "secret");
    let image = registry.push("greets", "Hello");
    let allowed = format!("{}/team/*", registry.host);
    let service = Service::start(&[("images.allowed", &allowed), ("docker.auth_file", &right)]).await;

    let function = create(&service, &image).await;
    let shown = settled(&service, &function).await;
    assert_eq!((&shown["status"], &shown["status_reason"]), (&json!("available"), &Value::Null));
    assert_eq!(said(&service, &function).await, "Hello there\n");

    // The tag moves, and this machine loses the image: what was found is pulled once more.
    docker(&["rmi", "--force", &docker(&["images", "--quiet", "--no-trunc", &image])]);
    registry.push("greets", "Goodbye");
    assert_eq!(said(&service, &function).await, "Hello there\n");
    let newer = create(&service, &image).await;
    assert_eq!(said(&service, &newer).await, "Goodbye there\n");

    // And where its registry is gone too, an execution says so.
    for id in docker(&["images", "--quiet", "--no-trunc", &format!("{}/team/greets", registry.host)]).lines()
    {
        docker(&["rmi", "--force", id]);
    }
    registry.child.kill().unwrap();
    registry.child.wait().unwrap();
    let failed = service.execute("demo", &function, "there").await;
    assert_eq!((&failed["status"], &result(&failed)["reason"]), (&json!("error"), &json!("preparation")));
    assert!(result(&failed)["detail"].as_str().unwrap().contains("could not be pulled"), "{failed}");
    service.stop_clean().await;
}

#[tokio::test]
async fn what_a_registry_refuses_is_said_with_its_reason() {
    let mut registry = Registry::start().await;
    registry.credentials("puller", "secret");
    let wrong = registry.credentials("stranger", "wrong");
    let image = registry.push("closed", "Hello");
    let allowed = format!("{}/*", registry.host);
    let service = Service::start(&[("images.allowed", &allowed), ("docker.auth_file", &wrong)]).await;
    let shown = settled(&service, &create(&service, &image).await).await;
    let why = shown["status_reason"].as_str().unwrap();
    assert_eq!(shown["status"], "error");
    let begins = format!("Image {image} could not be pulled: ");
    assert!(why.starts_with(&begins) && why.contains("unauthorized"), "{why}");
    assert!(!why.contains("wrong") && !service.log().contains("wrong"), "{why}");
    service.stop_clean().await;
}
