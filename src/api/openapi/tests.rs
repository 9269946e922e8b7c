use std::collections::HashSet;

use super::*;
use crate::api::route::TABLE;

fn whole() -> Value {
    Value::Object(document(&operations()))
}

fn routes_of_the_service() -> HashSet<(String, String)> {
    // Made here, since the table is this thread's.
    drop(actix_web::App::new().configure(crate::api::routes));
    TABLE.with_borrow(|table| {
        table.iter().map(|(method, path)| (method.as_str().to_ascii_lowercase(), path.clone())).collect()
    })
}

#[test]
fn every_route_is_an_operation_and_every_operation_a_route() {
    let document = whole();
    let paths = document["paths"].as_object().unwrap();
    let described: HashSet<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
        })
        .collect();
    let routes = routes_of_the_service();
    assert!(routes.len() > 40, "{routes:?}");
    let mut differences: Vec<_> = described.symmetric_difference(&routes).collect();
    differences.sort();
    assert!(differences.is_empty(), "{differences:?}");
    assert_eq!(operations().len(), routes.len(), "an operation is described twice");
}

#[test]
fn references_lead_somewhere_and_names_are_used_once() {
    fn walk(value: &Value, seen: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(target)) = object.get("$ref") {
                    seen.push(target.clone());
                }
                object.values().for_each(|value| walk(value, seen));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, seen)),
            _ => {}
        }
    }
    let document = whole();
    let mut references = Vec::new();
    walk(&document, &mut references);
    assert!(references.len() > 100);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let all = operations();
    let ids: HashSet<_> = all.iter().map(|operation| operation.id).collect();
    assert_eq!(ids.len(), all.len());
}

#[test]
fn nothing_is_null() {
    fn walk(value: &Value, place: &str) {
        match value {
            Value::Null => panic!("{place} is null"),
            Value::Object(object) => {
                object.iter().for_each(|(name, value)| walk(value, &format!("{place}/{name}")))
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, place)),
            _ => {}
        }
    }
    walk(&whole(), "");
}

/// What Qinling's resources have, in their order.
const QINLING: [(&str, &[&str]); 7] = [
    (
        "/v1/runtimes/{id}",
        &[
            "id",
            "name",
            "image",
            "description",
            "is_public",
            "trusted",
            "status",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/functions/{id}",
        &[
            "id",
            "name",
            "description",
            "cpu",
            "memory_size",
            "timeout",
            "runtime_id",
            "code",
            "entry",
            "count",
            "latest_version",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/functions/{id}/versions/{version}",
        &[
            "id",
            "description",
            "function_id",
            "version_number",
            "count",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/aliases/{name}",
        &[
            "id",
            "name",
            "description",
            "function_id",
            "function_version",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/executions/{id}",
        &[
            "id",
            "function_id",
            "function_version",
            "function_alias",
            "description",
            "status",
            "sync",
            "input",
            "result",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/jobs/{id}",
        &[
            "id",
            "name",
            "function_id",
            "function_alias",
            "function_version",
            "function_input",
            "status",
            "pattern",
            "count",
            "first_execution_time",
            "next_execution_time",
            "project_id",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "/v1/webhooks/{id}",
        &[
            "id",
            "function_id",
            "function_alias",
            "function_version",
            "description",
            "project_id",
            "created_at",
            "updated_at",
            "webhook_url",
        ],
    ),
];

#[test]
fn the_first_version_has_the_fields_of_qinling_and_no_others() {
    let document = whole();
    for (path, fields) in QINLING {
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"][JSON]["schema"];
        let name = schema["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        let schema = document.pointer(name).unwrap();
        let first: HashSet<_> = schema["properties"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, field)| field.get(SINCE).is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        // What is newer says so: #[schemars(extend("x-since" = "1.1"))] on the field of the view.
        assert_eq!(first, fields.iter().copied().collect(), "{path}");
        let required = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        assert_eq!(required.collect::<HashSet<_>>(), first, "a field may be missing: {path}");
    }
}

#[test]
fn an_older_answer_keeps_the_rest_as_it_is() {
    let drop = ["c".to_owned(), "d".to_owned()];
    let older =
        |body: &str, list| older(body.as_bytes(), list, &drop).map(|text| String::from_utf8(text).unwrap());
    let one = r#"{"b":1.50,"c":{"x":[1]},"a":"\u00e9 \" }","d":null,"z":[{"c":1}]}"#;
    let kept = r#"{"b":1.50,"a":"\u00e9 \" }","z":[{"c":1}]}"#;
    assert_eq!(older(one, None).as_deref(), Some(kept));
    let list = format!(r#"{{"things":[{one},{one}]}}"#);
    assert_eq!(older(&list, Some("things")), Some(format!(r#"{{"things":[{kept},{kept}]}}"#)));
    assert_eq!(older(r#"{"things":[]}"#, Some("things")).as_deref(), Some(r#"{"things":[]}"#));
    assert_eq!(older("[1]", None), None);
}

#[test]
fn a_body_is_described_by_its_shape() {
    let document = whole();
    let schema = &document["paths"]["/v1/aliases"]["post"]["requestBody"]["content"][JSON]["schema"];
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], json!(["name", "function_id"]));
    assert_eq!(schema["properties"]["canary_weight"][SINCE], "1.1");
    assert_eq!(schema["properties"]["function_id"]["format"], "uuid");
    assert!(schema["properties"].get("created_at").is_none(), "what cannot be sent is not described");
}

#[test]
fn what_was_made_leads_to_what_can_be_done_with_it() {
    let document = whole();
    let links = &document["paths"]["/v1/functions/{id}/versions"]["post"]["responses"]["201"]["links"];
    assert_eq!(
        links["delete_version"]["parameters"],
        json!({"id": "$request.path.id", "version": "$response.body#/version_number"})
    );
    assert!(links["scale_up_version"].is_object());
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    for text in [PAGE, SCRIPT] {
        assert!(!text.contains("//cdn") && !text.contains("https://") && !text.contains("http://"));
    }
    assert!(PAGE.contains("/* page.js */") && !SCRIPT.contains("</script"));
}
