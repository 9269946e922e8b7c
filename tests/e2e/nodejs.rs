//! Functions in Node.js, through the API.

use serde_json::json;

use crate::service::{Service, output, required, result, zip_of};

const MAIN: &str = r#"
exports.main = async (context, input) => {
  console.log('called with', JSON.stringify(input));
  if (input?.fail) throw new Error(input.fail);
  if (input?.mib) return Buffer.alloc(input.mib << 20, 1).length;
  return { greeting: `Hello, ${input?.name ?? input?.__function_input ?? 'World'}`, openstack: context.openstack };
};
"#;

#[tokio::test]
async fn a_function_in_node_runs_synchronously_and_asynchronously_and_has_a_log() {
    let service = Service::start(&[]).await;
    let runtime = service.runtime_of(&required("TAIBAI_TEST_NODE_IMAGE")).await;
    let package = zip_of(&[("main.js", MAIN.as_bytes())]);
    let created = service.create_function("demo", &runtime, &package, &[]).await.expect(201);
    let hello = created["id"].as_str().unwrap();
    let greeting = |name: &str| json!({"greeting": format!("Hello, {name}"), "openstack": null});

    let done = service.execute("demo", hello, r#"{"name": "Qinling"}"#).await;
    assert_eq!((&done["status"], output(&done)), (&json!("success"), greeting("Qinling")));
    let id = done["id"].as_str().unwrap();
    let log =
        format!("Start execution: {id}\ncalled with {{\"name\":\"Qinling\"}}\nFinished execution: {id}\n");
    assert_eq!(service.execution_log("demo", id).await, log);
    let positional = service.execute("demo", hello, "some words").await;
    assert_eq!(output(&positional), greeting("some words"));

    let id = service.accept("demo", hello, "").await;
    let ended = service.ended("demo", &id).await;
    assert_eq!((&ended["status"], output(&ended)), (&json!("success"), greeting("World")));

    let failed = service.execute("demo", hello, r#"{"fail": "why not"}"#).await;
    assert_eq!((&failed["status"], output(&failed)), (&json!("failed"), json!("why not")));
    let log = service.execution_log("demo", failed["id"].as_str().unwrap()).await;
    assert!(log.contains("Error: why not\n    at "), "{log}");
    // The default is 32 MiB.
    let starved = service.execute("demo", hello, r#"{"mib": 60}"#).await;
    let text = "Function execution failed because of too much resource consumption";
    assert_eq!((&starved["status"], output(&starved)), (&json!("failed"), json!(text)));
    assert_eq!(result(&starved)["reason"], "out_of_memory");
    assert_eq!(output(&service.execute("demo", hello, "").await), greeting("World"));
    service.stop_clean().await;
}
