//! Bad input: each with its status and a text that names what is wrong, and nothing half done.

use serde_json::{Value, json};

use crate::service::{Answer, Service, eventually, package, required, zip_of};

const GOOD: &str = "def main(**kwargs): return 1\n";

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, words: &str, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    let body = answer.json();
    let text = body["faultstring"].as_str().unwrap_or_else(|| panic!("{what}: {body}"));
    assert!(text.contains(words), "{what}: {text}");
    assert_eq!(answer.headers["content-type"], "application/json", "{what}");
}

#[tokio::test]
async fn bad_fields_of_a_function_are_named() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let long = "x".repeat(256);
    let cases: [(&str, &str, &str); 14] = [
        ("name", &long, "name may have at most 255 characters."),
        ("description", &long, "description may have at most 255 characters."),
        ("entry", "main", "entry 'main' is not of the form <module>.<method>."),
        ("entry", &format!("{}.main", &long[..90]), "entry may have at most 80 characters."),
        ("cpu", "fast", "Invalid cpu resource specified. An integer is required."),
        ("cpu", "99", "cpu resource limitation not within the allowable range: 100 ~ 8000(millicpu)."),
        ("cpu", "8001", "cpu resource limitation"),
        ("memory_size", "1.5", "Invalid memory resource specified. An integer is required."),
        ("memory_size", "1", "memory resource limitation not within the allowable range: 33554432 ~"),
        ("timeout", "0", "timeout resource limitation not within the allowable range: 1 ~ 300(seconds)."),
        ("timeout", "301", "timeout resource limitation"),
        ("timeout", "-1", "timeout resource limitation"),
        ("timeout", "99999999999999999999", "timeout"),
        ("code", "{", "Invalid input"),
    ];
    for (field, value, words) in cases {
        let mut fields = vec![("runtime_id", &*runtime), ("code", r#"{"source": "package"}"#)];
        fields.retain(|(name, _)| *name != field);
        fields.push((field, value));
        let answer = service.upload("demo", "POST", "/v1/functions", &fields, Some(&package(GOOD))).await;
        assert_refused(&answer, 400, words, &format!("{field} = {value}"));
    }
    let unknown =
        service.create_function("demo", "deadbeef-0000-4000-8000-00000000dead", &package(GOOD), &[]).await;
    assert_refused(
        &unknown,
        404,
        "Runtime not found [id=deadbeef-0000-4000-8000-00000000dead]",
        "unknown runtime",
    );
    assert_eq!(service.get("/v1/functions").await.expect(200), json!({"functions": []}));
    service.stop_clean().await;
}

#[tokio::test]
async fn unusable_packages_are_refused_and_leave_nothing() {
    let service = Service::start(&[
        ("storage.max_package_bytes", "200000"),
        ("storage.max_expanded_bytes", "4000000"),
        ("storage.max_package_entries", "10"),
    ])
    .await;
    let runtime = service.runtime().await;
    let mut link = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    link.add_symlink("link", "/etc/passwd", zip::write::SimpleFileOptions::default()).unwrap();
    let names: Vec<String> = (0..11).map(|n| format!("file{n}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..300_000).map(|_| noise()).collect();
    let cases: [(&str, Vec<u8>, u16, &str); 8] = [
        ("no zip", b"not a zip".to_vec(), 400, "Package is not a valid ZIP package."),
        ("empty", Vec::new(), 400, "Package is not a valid ZIP package."),
        ("cut", package(GOOD)[..40].to_vec(), 400, "Package is not a valid ZIP package."),
        ("slip", zip_of(&[("../../etc/cron.d/x", b"x")]), 400, "leads out of the package"),
        ("link", link.finish().unwrap().into_inner(), 400, "is a link or a device"),
        ("bomb", zip_of(&[("zeros", &vec![0; 8_000_000])]), 400, "it expands to more than"),
        ("many", zip_of(&many), 400, "it holds more than 10 entries"),
        ("large", zip_of(&[("noise", &noise)]), 413, "200000 bytes"),
    ];
    for (name, bytes, status, words) in cases {
        let answer = service.create_function("demo", &runtime, &bytes, &[]).await;
        assert_refused(&answer, status, words, name);
    }
    let wrong = [("code", r#"{"source": "package", "md5sum": "00000000000000000000000000000000"}"#)];
    let fields = [("runtime_id", &*runtime), wrong[0]];
    let answer = service.upload("demo", "POST", "/v1/functions", &fields, Some(&package(GOOD))).await;
    assert_refused(&answer, 400, "Package md5 mismatch.", "md5");
    let answer = service
        .upload("demo", "POST", "/v1/functions", &[fields[0], ("code", r#"{"source": "package"}"#)], None)
        .await;
    assert_eq!(answer.status, 400, "no package: {}", answer.text());

    assert_eq!(service.get("/v1/functions").await.expect(200), json!({"functions": []}));
    let kept = std::fs::read_dir(service.home.path().join("packages")).unwrap().flatten();
    let kept: Vec<_> = kept.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    assert_eq!(kept, Vec::<std::path::PathBuf>::new(), "no package and no part of one stays");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_in_the_callers_dialect() {
    let service = Service::start(&[("api.max_body_bytes", "10000")]).await;
    let body = json!({"function_id": "f", "input": "x".repeat(20_000)});
    let answer = service.ask("demo", "POST", "/v1/executions", Some(body)).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.json()["faultstring"].is_string());
    assert_eq!(service.get("/healthcheck").await.status, 200, "and the service goes on");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_new_image_of_a_runtime_is_tried_first_and_the_old_one_stays_if_it_fails() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let image = required("TAIBAI_TEST_IMAGE");
    let path = format!("/v1/runtimes/{runtime}");
    let hello = service.function("demo", &runtime, GOOD, &[]).await;

    let upgrade = json!({"image": "taibai/no-such-image:1"});
    let answer = service.ask("admin", "PUT", &path, Some(upgrade)).await.expect(200);
    assert_eq!(answer["status"], "upgrading");
    let mut shown = Value::Null;
    eventually("the runtime is available again", async || {
        shown = service.get(&path).await.expect(200);
        shown["status"] == "available"
    })
    .await;
    assert_eq!(shown["image"], image.as_str(), "{shown}");
    assert_eq!(service.execute("demo", &hello, "").await["status"], "success");

    // In use now, so its image stays; the name may change.
    let upgrade = json!({"image": "taibai/another:1"});
    let answer = service.ask("admin", "PUT", &path, Some(upgrade.clone())).await;
    assert_refused(&answer, 403, "is still in use by functions.", "in use");
    service.ask("admin", "PUT", &path, Some(json!({"name": "py"}))).await.expect(200);
    assert_refused(&service.ask("admin", "DELETE", &path, None).await, 403, "is still in use.", "delete");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_container_that_nobody_owns_is_removed_at_the_next_start() {
    let service = Service::start(&[("engine.keep_workers_on_shutdown", "true")]).await;
    service.runtime().await;
    let home = service.stop().await;
    let left = home.containers();
    assert_eq!(left.len(), 1);
    // It answers no more, so it cannot be adopted.
    std::process::Command::new("docker").args(["kill", &left[0]]).output().unwrap();

    let service = Service::start_in(home).await;
    eventually("another took its place", async || {
        let now = service.home.containers();
        now.len() == 1 && now != left
    })
    .await;
    let home = service.stop().await;
    for container in home.containers() {
        std::process::Command::new("docker").args(["rm", "-f", &container]).output().unwrap();
    }
}
