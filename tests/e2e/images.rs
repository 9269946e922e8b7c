//! Functions that are container images.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::service::{Answer, Service, eventually, output, required, result};

/// An image of a test's own, which goes with it.
pub struct Image(pub String);

/// None are allowed otherwise.
pub const ANY: [(&str, &str); 1] = [("images.allowed", "docker.io/taibai-test/*")];

/// Does what its first argument says.
const PROGRAM: &str = r#"
import os, sys, time
words = sys.argv[1:]
def status(key):
    return [line.split()[1] for line in open('/proc/self/status') if line.startswith(key)][0]
match words:
    case ['sleep', seconds]:
        print('begins', flush=True)
        time.sleep(float(seconds))
        print('ends')
    case ['exit', code]:
        print('to stderr', file=sys.stderr)
        sys.exit(int(code))
    case ['eat', size]:
        kept = bytearray(int(size) << 20)
    case ['shout', size]:
        print('x' * int(size))
    case ['look']:
        try:
            open('/etc/mine', 'w')
        except OSError as error:
            print(error.strerror)
        open('/tmp/mine', 'w').write('x')
        print('caps', status('CapEff'), status('CapBnd'), 'nnp', status('NoNewPrivs'), 'seccomp', status('Seccomp:'))
        print('net', sorted(os.listdir('/sys/class/net')))
        print('env', sorted(os.environ))
        print('user', os.getuid() >= 65536, os.getuid() == os.getgid())
    case _:
        print(words)
"#;

impl Image {
    fn build(name: &str, more: &str) -> Self {
        Self::python(name, more, PROGRAM)
    }

    /// One that runs a program in Python.
    pub fn python(name: &str, more: &str, program: &str) -> Self {
        Self::of(name, more, &json!(["/usr/bin/python3", "-c", program]))
    }

    /// An image that runs `program`, with the words of its caller behind it.
    pub fn of(name: &str, more: &str, program: &Value) -> Self {
        let image = format!("taibai-test/{name}:e{}", std::process::id());
        let base = required("TAIBAI_TEST_IMAGE");
        let dockerfile = format!("FROM {base}\n{more}\nENTRYPOINT {program}\nCMD [\"World\"]\n");
        let mut build = Command::new("docker")
            .args(["build", "--quiet", "--tag", &image, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        build.stdin.take().unwrap().write_all(dockerfile.as_bytes()).unwrap();
        let built = build.wait_with_output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.0]).output();
    }
}

async fn create(service: &Service, image: &str, fields: &[(&str, Value)]) -> Answer {
    let mut body = json!({"code": {"source": "image", "image": image}, "memory_size": 64 << 20});
    for (key, value) in fields {
        body[*key] = value.clone();
    }
    service.ask("demo", "POST", "/v1/functions", Some(body)).await
}

pub async fn function(service: &Service, image: &Image, fields: &[(&str, Value)]) -> String {
    create(service, &image.0, fields).await.expect(201)["id"].as_str().unwrap().to_owned()
}

async fn shown(service: &Service, function: &str) -> Value {
    service.ask("demo", "GET", &format!("/v1/functions/{function}"), None).await.expect(200)
}

#[tokio::test]
async fn an_image_runs_with_its_words_and_its_output_is_the_log() {
    let image = Image::build("words", "");
    let service = Service::start(&ANY).await;
    let function = function(&service, &image, &[]).await;

    let done = service.execute("demo", &function, "").await;
    assert_eq!(done["status"], "success", "{done}");
    assert!(result(&done)["duration"].is_u64() && result(&done).as_object().unwrap().len() == 1, "{done}");
    let log = async |done: &Value| service.execution_log("demo", done["id"].as_str().unwrap()).await;
    assert_eq!(log(&done).await, "['World']\n", "the image's own argument");
    let done = service.execute("demo", &function, "Qinling  is here").await;
    assert_eq!(log(&done).await, "['Qinling', 'is', 'here']\n");
    let done = service.execute("demo", &function, r#"{"a": "b c"}"#).await;
    assert_eq!(log(&done).await, "['{\"a\":\"b c\"}']\n");

    let id = service.accept("demo", &function, "exit 3").await;
    let ended = service.ended("demo", &id).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("failed"), json!("Function execution failed.")));
    assert_eq!(result(&ended)["detail"], "the container ended with code 3");
    assert_eq!(log(&ended).await, "to stderr\n");

    let function = shown(&service, &function).await;
    assert_eq!((&function["count"], &function["status"]), (&json!(4), &json!("available")));
    assert_eq!(service.home.containers(), Vec::<String>::new());
    service.stop_clean().await;
}

#[tokio::test]
async fn time_memory_and_log_of_an_image_are_bounded() {
    let image = Image::build("bounds", "");
    let service = Service::start(&[ANY[0], ("engine.max_log_bytes", "1000")]).await;
    let function = function(&service, &image, &[("timeout", json!(2)), ("cpu", json!(1000))]).await;

    let ended = service.execute("demo", &function, "sleep 60").await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("failed"), json!("Function execution timeout.")));
    assert_eq!(result(&ended)["duration"], 2);
    assert_eq!(service.execution_log("demo", ended["id"].as_str().unwrap()).await, "begins\n");

    let ended = service.execute("demo", &function, "eat 200").await;
    let text = "Function execution failed because of too much resource consumption";
    assert_eq!((&ended["status"], output(&ended)), (&json!("failed"), json!(text)), "{ended}");
    assert_eq!(service.execute("demo", &function, "eat 20").await["status"], "success");

    let ended = service.execute("demo", &function, "shout 5000").await;
    let log = service.execution_log("demo", ended["id"].as_str().unwrap()).await;
    assert_eq!(log, format!("{}\n[log cut here: 4001 more bytes were written]\n", "x".repeat(1000)));
    assert_eq!(service.home.containers(), Vec::<String>::new());
    service.stop_clean().await;
}

#[tokio::test]
async fn an_image_gets_no_rights_no_network_and_nothing_of_ours() {
    // What the image says of users and of labels counts for nothing.
    let more = "USER 0\nLABEL org.openstack.taibai.worker=w1 org.openstack.taibai.index=0";
    let image = Image::build("look", more);
    let service = Service::start(&ANY).await;
    let function = function(&service, &image, &[]).await;
    let done = service.execute("demo", &function, "look").await;
    let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
    let expected = "Read-only file system\n\
         caps 0000000000000000 0000000000000000 nnp 1 seccomp 2\n\
         net ['lo']\n";
    let rest = log.strip_prefix(expected).unwrap_or_else(|| panic!("{log}"));
    assert!(rest.ends_with("user True True\n"), "{rest}");
    assert!(!rest.to_uppercase().contains("TAIBAI") && !rest.contains("OS_"), "{rest}");
    service.stop_clean().await;
}

#[tokio::test]
async fn an_image_does_without_a_network_where_its_function_says_so() {
    let image = Image::build("connected", "");
    let service = crate::network::start(&ANY).await;
    let seen = async |fields: &[(&str, Value)]| {
        let function = function(&service, &image, fields).await;
        let done = service.execute("demo", &function, "look").await;
        let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
        log.lines().find(|line| line.starts_with("net ")).unwrap().to_owned()
    };
    assert_eq!(seen(&[]).await, "net ['eth0', 'lo']");
    assert_eq!(seen(&[("network", json!("none"))]).await, "net ['lo']");
    service.stop_clean().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_said_with_the_reason() {
    let image = Image::build("volumes", "VOLUME /data");
    let allowed = "docker.io/taibai-test/*, registry.invalid/*";
    let service = Service::start(&[("images.allowed", allowed)]).await;

    let refused = create(&service, "alpine", &[]).await.expect(400)["faultstring"].clone();
    let text = "Image docker.io/library/alpine:latest is not allowed here. Allowed are: \
                docker.io/taibai-test/*, registry.invalid/*.";
    assert_eq!(refused, text);
    let refused = create(&service, "no such:name", &[]).await.expect(400);
    assert!(refused["faultstring"].as_str().unwrap().contains("is no name of an image"), "{refused}");

    for (name, why) in [
        ("registry.invalid/team/x:1", "Image registry.invalid/team/x:1 could not be pulled: "),
        (
            image.0.as_str(),
            &format!("Image docker.io/{} declares volumes, and a function has none.", image.0),
        ),
    ] {
        let function = create(&service, name, &[]).await.expect(201);
        assert_eq!((&function["status"], &function["status_reason"]), (&json!("creating"), &Value::Null));
        let id = function["id"].as_str().unwrap();
        // A call that comes in between waits, and is told.
        let early = service.execute("demo", id, "").await;
        assert_eq!(early["status"], "error", "{early}");
        assert!(result(&early)["detail"].as_str().unwrap().starts_with(why), "{early}");
        let function = shown(&service, id).await;
        assert_eq!(function["status"], "error");
        assert!(function["status_reason"].as_str().unwrap().starts_with(why), "{function}");
        let body = json!({"function_id": id});
        let refused = service.ask("demo", "POST", "/v1/executions", Some(body)).await.expect(409);
        assert!(refused["faultstring"].as_str().unwrap().contains(why), "{refused}");
        service.ask("demo", "DELETE", &format!("/v1/functions/{id}"), None).await.expect(204);
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn a_function_runs_the_image_that_was_found_when_it_was_created() {
    let image = Image::build("moves", "");
    let service = Service::start(&ANY).await;
    let function = function(&service, &image, &[]).await;
    eventually("the image was found", async || shown(&service, &function).await["status"] == "available")
        .await;
    let kept = format!("taibai-test/kept:e{}", std::process::id());
    let tag = |from: &str, to: &str| {
        assert!(Command::new("docker").args(["tag", from, to]).status().unwrap().success());
    };
    tag(&image.0, &kept);
    let _kept = Image(kept);
    tag(&required("TAIBAI_TEST_IMAGE"), &image.0);
    let done = service.execute("demo", &function, "still here").await;
    let log = service.execution_log("demo", done["id"].as_str().unwrap()).await;
    assert_eq!(log, "['still', 'here']\n");
    service.stop_clean().await;
}

#[tokio::test]
async fn after_kill_9_a_container_is_followed_to_its_end_and_an_interrupted_call_ends() {
    let image = Image::build("kill", "");
    let service = Service::start(&ANY).await;
    let function = function(&service, &image, &[("timeout", json!(60)), ("cpu", json!(1000))]).await;
    let accepted = service.accept("demo", &function, "sleep 4").await;
    let body = json!({"function_id": function, "input": "sleep 40"}).to_string();
    let call = service.request("demo", "POST", "/v1/executions").header("content-type", "application/json");
    let call = tokio::spawn(call.body(body).send());
    eventually("both containers run", async || service.home.container_names().lines().count() >= 2).await;
    let all = json!({"status": "running"});
    eventually("both rows are there", async || {
        let listed = service.ask("demo", "GET", "/v1/executions", None).await.expect(200);
        let rows = listed["executions"].as_array().unwrap().clone();
        rows.len() == 2 && rows.iter().all(|row| row["status"] == all["status"])
    })
    .await;
    let home = service.kill_9();
    assert!(call.await.unwrap().is_err());

    let service = Service::start_in(home).await;
    let ended = service.ended("demo", &accepted).await;
    assert_eq!(ended["status"], "success", "{ended}");
    assert_eq!(result(&ended)["duration"], 4);
    assert_eq!(service.execution_log("demo", &accepted).await, "begins\nends\n");
    let listed = service.ask("demo", "GET", "/v1/executions?status=error", None).await.expect(200);
    let interrupted = &listed["executions"][0];
    assert_eq!(result(interrupted)["reason"], "interrupted", "{listed}");
    eventually("no container is left", async || service.home.containers().is_empty()).await;
    service.stop_clean().await;
}

#[tokio::test]
async fn a_container_that_is_cancelled_is_gone_with_what_it_wrote_kept() {
    let image = Image::build("cancel", "");
    let service = Service::start(&ANY).await;
    let function = function(&service, &image, &[("timeout", json!(60)), ("cpu", json!(1000))]).await;
    let id = service.accept("demo", &function, "sleep 50").await;
    eventually("the container runs", async || !service.home.container_names().is_empty()).await;
    eventually("the program runs", async || {
        let name = service.home.container_names();
        let logs = Command::new("docker").args(["logs", name.trim()]).output().unwrap();
        logs.stdout == b"begins\n"
    })
    .await;
    let ended = service.ask("demo", "POST", &format!("/v1/executions/{id}/cancel"), None).await.expect(200);
    assert_eq!(result(&ended)["reason"], "cancelled", "{ended}");
    assert_eq!(service.execution_log("demo", &id).await, "begins\n");
    eventually("the container is gone", async || service.home.containers().is_empty()).await;
    service.stop_clean().await;
}
