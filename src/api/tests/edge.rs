//! What every answer has.

use super::*;

#[actix_web::test]
async fn every_answer_is_json_and_has_an_id() {
    let site = site().await;
    for (method, path, status, allow) in [
        (Method::GET, "/v1/nosuch", 404, ""),
        (Method::HEAD, "/v1/runtimes", 405, "GET, POST"),
        (Method::PATCH, "/v1/functions", 405, "GET, POST"),
        (Method::GET, "/v1/runtimes?foo=bar", 400, ""),
        (Method::GET, "/v1/runtimes/notuuid", 400, ""),
        (Method::GET, "/v1/executions?bogus=1", 400, ""),
    ] {
        let answer = site.ask("demo", method, path).await;
        assert_eq!((answer.fault().0, answer.header("allow")), (status, allow), "{path}");
    }
    let large = json!({"image": "x".repeat(20_000)});
    let large = site.ask_json("admin", Method::POST, "/v1/runtimes", large).await.fault();
    assert_eq!(large, (413, "The request body is larger than 10000 bytes.".to_owned()));
    let rejected = site.ask(":", Method::GET, "/v1/runtimes").await.fault();
    assert_eq!(rejected, (401, "Failed to validate access token: Auth token is invalid".to_owned()));
}

#[actix_web::test]
async fn what_needs_no_token_answers_without() {
    let site = site().await;
    let root = site.send(TestRequest::with_uri("/").insert_header(("host", "cloud:7070"))).await.json();
    assert_eq!(root["versions"][0]["links"][0]["href"], "http://cloud:7070/v1");
    for path in ["/v1", "/v1/"] {
        let document = site.send(TestRequest::with_uri(path).insert_header(("host", "c"))).await.json();
        assert_eq!(document["uri"], "http://c/v1");
    }
    let options = site.send(TestRequest::with_uri("/any/where").method(Method::OPTIONS)).await;
    assert_eq!((options.status, options.header("content-type"), options.body.len()), (200, "", 0));

    let healthy = site.send(TestRequest::with_uri("/healthcheck")).await;
    assert_eq!((healthy.status, healthy.body.as_ref()), (200, b"OK".as_slice()));
    let as_json = || TestRequest::with_uri("/healthcheck").insert_header(("accept", "application/json"));
    assert_eq!(site.send(as_json()).await.json()["checks"]["database"], "ok");
    site.app.db.close().await.unwrap();
    let ill = site.send(as_json()).await;
    assert_eq!((ill.status, &ill.json()["status"]), (503, &json!("failed")));
}
