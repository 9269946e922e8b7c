//! Runtimes and functions that do without a network, on a machine whose workers have one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::service::{Service, eventually, output, required};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a function sees of the network: its interfaces apart from loopback, and whether it has a route out.
const LOOKS: &str = r"
import socket

def main(**kwargs):
    names = [name for _, name in socket.if_nameindex() if name != 'lo']
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(('192.0.2.1', 9))
        return names + ['a route']
    except OSError:
        return names
";

/// A service whose workers are connected.
pub async fn start(more: &[(&str, &str)]) -> Service {
    let (run, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed) % 256);
    let bridge = format!("tbn{}-{number}", run % 10_000);
    let subnet = format!("10.{}.{number}.0/24", 230 + run % 20);
    let own = [("network.mode", "bridge"), ("network.bridge_name", &*bridge), ("network.subnet", &*subnet)];
    Service::start(&[&own, more].concat()).await
}

#[tokio::test]
async fn a_function_without_a_network_has_no_interface_beside_one_that_has() {
    let service = start(&[]).await;
    let runtime = service.runtime().await;
    let connected = service.function("demo", &runtime, LOOKS, &[]).await;
    let offline = service.function("demo", &runtime, LOOKS, &[("network", "none")]).await;
    let seen = async |function: &str| output(&service.execute("demo", function, "").await);
    assert_eq!(seen(&connected).await, json!(["eth0", "a route"]));
    assert_eq!(seen(&offline).await, json!([]));
    let view = service.get(&format!("/v1/functions/{offline}")).await.expect(200);
    assert_eq!(view["network"], "none");
    let workers = async |service: &Service| {
        let both = [service.workers(&connected).await, service.workers(&offline).await];
        both.map(BTreeSet::from_iter)
    };
    let before = workers(&service).await;

    // A version keeps what its function had.
    let path = format!("/v1/functions/{offline}/versions");
    let version = service.ask("demo", "POST", &path, Some(json!({}))).await.expect(201);
    assert_eq!(version["network"], "none");
    let path = format!("/v1/functions/{offline}");
    let updated = service.ask("demo", "PUT", &path, Some(json!({"network": "default"}))).await.expect(200);
    assert_eq!(updated["network"], "default");
    assert_eq!(seen(&offline).await, json!(["eth0", "a route"]));
    let call = json!({"function_id": offline, "function_version": 1});
    let call = service.ask("demo", "POST", "/v1/executions", Some(call)).await.expect(201);
    assert_eq!(output(&call), json!([]));
    service.ask("demo", "PUT", &path, Some(json!({"network": "none"}))).await.expect(200);
    assert_eq!(seen(&offline).await, json!([]));

    let refused = service.ask("demo", "PUT", &path, Some(json!({"network": "host"}))).await.expect(400);
    let text = refused["faultstring"].as_str().unwrap();
    assert!(text.contains("network") && text.contains("default or none"), "{text}");

    // The next engine finds both kinds as they were.
    let kept = workers(&service).await;
    assert_eq!((&kept[0], kept[0].is_disjoint(&kept[1])), (&before[0], true));
    let service = Service::start_in(service.kill_9()).await;
    assert_eq!(workers(&service).await, kept);
    assert_eq!(output(&service.execute("demo", &connected, "").await), json!(["eth0", "a route"]));
    assert_eq!(output(&service.execute("demo", &offline, "").await), json!([]));
    assert_eq!(workers(&service).await, kept, "no worker was started for these");
    service.stop_clean().await;
}

#[tokio::test]
async fn a_runtime_without_a_network_has_no_worker_that_has_one() {
    let service = start(&[]).await;
    let body = json!({"image": required("TAIBAI_TEST_IMAGE"), "name": "offline", "network": "none"});
    let created = service.ask("", "POST", "/v1/runtimes", Some(body)).await.expect(201);
    assert_eq!(created["network"], "none");
    let path = format!("/v1/runtimes/{}", created["id"].as_str().unwrap());
    let available = async || service.get(&path).await.expect(200)["status"] == "available";
    eventually("the runtime is available", available).await;
    let function = service.function("demo", created["id"].as_str().unwrap(), LOOKS, &[]).await;
    assert_eq!(output(&service.execute("demo", &function, "").await), json!([]));

    // An upgrade that fails leaves the network as it was, too.
    let both = json!({"image": "taibai/nosuch:1", "network": "default"});
    service.ask("", "POST", &format!("/v1/functions/{function}/detach"), None).await.expect(202);
    eventually("its worker is gone", async || service.workers(&function).await.is_empty()).await;
    let upgrade = async || service.ask("", "PUT", &path, Some(both.clone())).await.status == 200;
    eventually("nothing uses the runtime", upgrade).await;
    eventually("the runtime is available with what it had", async || {
        let runtime = service.get(&path).await.expect(200);
        runtime["status"] == "available"
            && runtime["network"] == "none"
            && runtime["status_reason"].is_string()
    })
    .await;
    assert_eq!(output(&service.execute("demo", &function, "").await), json!([]));

    let connect = async || service.ask("", "PUT", &path, Some(json!({"network": "default"}))).await;
    let refused = connect().await.expect(403);
    assert!(refused["faultstring"].as_str().unwrap().contains("still in use"), "{refused}");
    service.ask("", "POST", &format!("/v1/functions/{function}/detach"), None).await.expect(202);
    eventually("its worker is gone", async || service.workers(&function).await.is_empty()).await;
    eventually("nothing uses the runtime", async || connect().await.status == 200).await;
    eventually("the runtime is available again", available).await;
    let call = async || output(&service.execute("demo", &function, "").await);
    assert_eq!(call().await, json!(["eth0", "a route"]));
    service.stop_clean().await;
}
