//! Callers known by name and password, the rules for them, and files that change under way.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::service::{Answer, Home, Service, eventually, read};

const IMAGE: &str = r#"{"code": {"source": "image", "image": "i"}}"#;

/// Runs `taibai` with a line on its standard input.
fn taibai(home: &Home, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_taibai"))
        .args(["--config-file", &home.config_file().display().to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read what it does not need.
    let _ = child.stdin.take().unwrap().write_all(format!("{input}\n").as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn fails(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(words), "{text}");
}

async fn ask(service: &Service, who: (&str, &str), method: &str, path: &str) -> Answer {
    let mut request = service.request("", method, path).basic_auth(who.0, Some(who.1));
    if method == "POST" {
        request = request.header("content-type", "application/json").body(IMAGE);
    }
    read(request).await
}

#[tokio::test]
async fn users_of_a_file_do_what_their_roles_allow() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    let (users, policy) = (at("users"), at("policy.yaml"));
    std::fs::write(&policy, "").unwrap();
    let home = Home::new(&[
        ("api.auth_strategy", "http_basic"),
        ("http_basic.user_file", &users),
        ("http_basic.admins", "root"),
        ("images.allowed", "*"),
        ("oslo_policy.policy_file", &policy),
    ]);
    let add = |name: &str, rest: &[&str]| {
        taibai(
            &home,
            &[&["user", "add", name, "--password-stdin"], rest].concat(),
            &format!("{name}'s secret"),
        )
    };
    succeeds(&add("ann", &[]));
    succeeds(&add("root", &["--project", "ops"]));
    succeeds(&add("rita", &["--project", "ann", "--role", "reader"]));
    succeeds(&add("bob", &["--role", "creator", "--role", "auditor"]));
    fails(&add("ann", &[]), "ann is there already");
    fails(&taibai(&home, &["user", "add", "cy"], ""), "use --password-stdin");
    assert_eq!(
        succeeds(&taibai(&home, &["user", "list"], "")),
        "ann\tann\tmember\nbob\tbob\tcreator,auditor\nrita\tann\treader\nroot\tops\tmember,admin\n"
    );

    let service = Service::start_in(home).await;
    let (ann, rita, bob, root) = (
        ("ann", "ann's secret"),
        ("rita", "rita's secret"),
        ("bob", "bob's secret"),
        ("root", "root's secret"),
    );
    for wrong in [("ann", "rita's secret"), ("nobody", "ann's secret")] {
        let refused = ask(&service, wrong, "GET", "/v1/functions").await;
        assert_eq!(refused.status, 401, "{}", refused.text());
        assert_eq!(refused.headers["www-authenticate"], "Basic realm=\"taibai\"");
        assert_eq!(refused.json()["faultstring"], "The user name or the password is wrong.");
    }
    assert_eq!(service.ask("ann", "GET", "/v1/functions", None).await.status, 401, "a token is none here");

    let function = ask(&service, ann, "POST", "/v1/functions").await.expect(201);
    assert_eq!(function["project_id"], "ann");
    let path = format!("/v1/functions/{}", function["id"].as_str().unwrap());
    assert_eq!(ask(&service, rita, "GET", &path).await.expect(200)["id"], function["id"]);
    for (who, method, path, status) in [
        (rita, "POST", "/v1/functions", 403),
        (rita, "DELETE", &path, 403),
        (bob, "POST", "/v1/functions", 201),
        (bob, "GET", &path, 404),
        (bob, "GET", "/v1/functions?all_projects=true", 403),
        (root, "GET", &path, 200),
        (root, "GET", "/v1/functions?all_projects=true", 200),
    ] {
        let answer = ask(&service, who, method, path).await;
        assert_eq!(answer.status, status, "{} {method} {path}: {}", who.0, answer.text());
        if status == 403 {
            assert_eq!(answer.json()["faultstring"], "Operation not allowed");
        }
    }
    assert!(
        service.log().contains("denied by policy") && service.log().contains("function:create"),
        "{}",
        service.log()
    );

    // A rule that changes under way, and one that cannot be read.
    std::fs::write(&policy, "\"function:delete\": \"role:reader and not role:member\"\n").unwrap();
    // Of a function that is not there, since while the old rule counts it would be gone.
    let none = "/v1/functions/deadbeef-0000-4000-8000-00000000dead";
    eventually("the new rule counts", async || ask(&service, ann, "DELETE", none).await.status == 403).await;
    std::fs::write(&policy, "\"function:delete\": \"role:reader and\"\n").unwrap();
    eventually("the trouble is logged", async || service.log().contains("the policy stays as it was")).await;
    assert!(
        service.log().contains("policy.yaml:1: rule \"function:delete\": at character 16"),
        "{}",
        service.log()
    );
    assert_eq!(ask(&service, ann, "DELETE", &path).await.status, 403);
    assert_eq!(ask(&service, rita, "DELETE", &path).await.status, 204);

    // Another password, and a user who is no more.
    succeeds(&taibai(&service.home, &["user", "passwd", "ann", "--password-stdin"], "a new one"));
    succeeds(&taibai(&service.home, &["user", "remove", "bob"], ""));
    eventually("the new password counts", async || {
        ask(&service, ("ann", "a new one"), "GET", "/v1/functions").await.status == 200
    })
    .await;
    assert_eq!(ask(&service, ann, "GET", "/v1/functions").await.status, 401);
    assert_eq!(ask(&service, bob, "GET", "/v1/functions").await.status, 401);
    for secret in ["secret", "a new one", "$2y$"] {
        assert!(!service.log().contains(secret), "{secret}");
    }
    service.stop_clean().await;
}

#[tokio::test]
async fn a_service_does_not_start_on_a_policy_that_cannot_be_read() {
    let root = tempfile::tempdir().unwrap();
    let policy = root.path().join("policy.yaml").display().to_string();
    std::fs::write(&policy, "a: 'rule:b'\nb: 'rule:a'\n").unwrap();
    let home = Home::new(&[("oslo_policy.policy_file", &policy)]);
    let words = "policy.yaml:1: rules refer to each other in a circle: a -> b -> a";
    fails(&taibai(&home, &["serve"], ""), words);
    fails(&taibai(&home, &["policy", "check"], ""), words);
    std::fs::write(&policy, "'function:get': 'role:auditor'\n'function:gett': '@'\n").unwrap();
    let checked = succeeds(&taibai(&home, &["policy", "check"], ""));
    assert!(checked.contains("did you mean function:get?") && checked.contains("ok: 2 of"), "{checked}");
    let check =
        |rest: &[&str]| taibai(&home, &[&["policy", "check", "--rule", "function:get"], rest].concat(), "");
    assert!(succeeds(&check(&["--role", "auditor"])).starts_with("pass: function:get\n"));
    let refused = check(&["--role", "member", "--project", "p", "--target-project", "q"]);
    fails(&refused, "does not pass");
    assert!(
        String::from_utf8_lossy(&refused.stdout).starts_with("fail: function:get\nno  rule:function:get\n")
    );
    let listed: Value =
        serde_json::from_str(&succeeds(&taibai(&home, &["policy", "list", "--json"], ""))).unwrap();
    let row = listed.as_array().unwrap().iter().find(|row| row["name"] == "function:get").unwrap();
    assert_eq!(row["overridden"], json!(true));
}
