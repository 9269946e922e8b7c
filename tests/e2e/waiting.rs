//! Synchronous calls that take long, and callers that do not wait for their end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::service::{Service, eventually, output};

pub const SLEEPS: &str = r#"
import time
def main(context=None, seconds=0):
    print('begins', flush=True)
    time.sleep(seconds)
    print('ends')
    return seconds
"#;

/// Beyond what servers, proxies and connections usually wait, which is 5, 30 and 60 seconds; or as many
/// seconds as `TAIBAI_TEST_LONG` says, up to the 300 that a function may take.
pub fn long() -> u64 {
    std::env::var("TAIBAI_TEST_LONG").map_or(65, |seconds| seconds.parse().expect("a number of seconds"))
}

/// Calls a function that sleeps so long.
pub async fn is_answered(service: &Service, function: &str, seconds: u64) {
    let started = Instant::now();
    let done = service.execute("demo", function, &json!({"seconds": seconds}).to_string()).await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), json!(seconds)), "{done}");
    assert!(started.elapsed() >= Duration::from_secs(seconds));
}

#[tokio::test]
async fn a_call_of_more_than_a_minute_is_answered_and_a_caller_that_leaves_changes_nothing() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, SLEEPS, &[("timeout", "300")]).await;
    tokio::join!(is_answered(&service, &function, long()), leave(&service, &function));
    service.stop_clean().await;
}

#[tokio::test]
async fn a_call_whose_caller_left_comes_to_its_end_though_the_service_is_told_to_stop() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime().await;
    let function = service.function("demo", &runtime, SLEEPS, &[("timeout", "30")]).await;
    let id = call_and_leave(&service, &function).await;
    let service = Service::start_in(service.stop().await).await;
    let path = format!("/v1/executions/{id}");
    let ended = service.ask("demo", "GET", &path, None).await.expect(200);
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!(3)), "{ended}");
    service.stop_clean().await;
}

/// Sends a call, and closes the connection once it runs. It takes three seconds.
async fn call_and_leave(service: &Service, function: &str) -> String {
    let input = json!({"seconds": 3}).to_string();
    let body = json!({"function_id": function, "input": input, "description": "left alone"}).to_string();
    let address = service.url.strip_prefix("http://").unwrap();
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/executions HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: demo:demo\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
    let mut id = Value::Null;
    eventually("the call runs", async || {
        let path = "/v1/executions?description=left%20alone&status=running";
        let listed = service.ask("demo", "GET", path, None).await.expect(200);
        id = listed["executions"][0]["id"].clone();
        id.is_string()
    })
    .await;
    drop(connection);
    id.as_str().unwrap().to_owned()
}

async fn leave(service: &Service, function: &str) {
    let id = &call_and_leave(service, function).await;
    let ended = service.ended("demo", id).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), json!(3)), "{ended}");
    assert_eq!(ended["reason"], Value::Null);
    let log = service.execution_log("demo", id).await;
    assert_eq!(log, format!("Start execution: {id}\nbegins\nends\nFinished execution: {id}\n"));
    // Its slot is free again: as many run at once as before, on the one worker that there is.
    let calls = (0..2).map(|_| service.execute("demo", function, "{}"));
    for done in futures_util::future::join_all(calls).await {
        assert_eq!((&done["status"], &done["start"]), (&json!("success"), &json!("warm")), "{done}");
    }
    assert_eq!(service.workers(function).await.len(), 1);
}
