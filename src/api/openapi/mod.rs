//! The API described by itself: a document made of the routes' own descriptions, and a page to read it by.
//!
//! What a body may hold comes from the shape that it is read by, what an answer holds from the type that is
//! written, who may ask from the policy. A test compares the operations with the routes.

mod operation;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use operation::{Body, Content, generator, object};
pub use operation::{Operation, SINCE};

use super::App;
use super::error;
use super::route::at;
use super::version::{FIRST, LATEST, SERVICE_TYPE};

const JSON: &str = "application/json";
const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/api", vec![(Method::GET, web::to(page))]))
        .service(at("/api/openapi.json", vec![(Method::GET, web::to(show))]))
        // Where clients of Picasso look.
        .service(at("/api/swagger.json", vec![(Method::GET, web::to(show))]));
}

/// Every operation that there is.
pub fn operations() -> Vec<Operation> {
    let document = || vec![(JSON, json!({"type": "object", "required": ["openapi", "info", "paths"]}))];
    let mut operations = super::v1::operations();
    operations.extend([
        Operation::get("/api", "read_api", "This document as a page").sends(
            StatusCode::OK,
            "The page.",
            vec![("text/html", json!({"type": "string"}))],
        ),
        Operation::get("/api/openapi.json", "show_api", "This document").sends(
            StatusCode::OK,
            "The document.",
            document(),
        ),
        Operation::get("/api/swagger.json", "show_api_as_swagger", "This document, under another name")
            .sends(StatusCode::OK, "The document.", document()),
    ]);
    operations
}

/// What the document says wherever it is asked for.
static DOCUMENT: LazyLock<Map<String, Value>> = LazyLock::new(|| document(&operations()));

/// What answers have that version 1.0 has not.
type Newer = HashMap<(Method, &'static str, u16), (Option<&'static str>, Vec<String>)>;

static NEWER: LazyLock<Newer> = LazyLock::new(|| {
    let newer = |operation: &Operation, status| {
        let fields = operation.newer_fields(status)?;
        Some(((operation.method.clone(), operation.path, status), fields))
    };
    let operations = operations();
    let answers = operations.iter().flat_map(|it| it.answers.iter().map(move |answer| (it, answer.status)));
    answers.filter_map(|(operation, status)| newer(operation, status)).collect()
});

/// Where the service is called, before all that stays the same.
#[derive(Serialize)]
struct Shown<'a> {
    servers: [Value; 1],
    #[serde(flatten)]
    document: &'a Map<String, Value>,
}

async fn show(app: web::Data<App>, request: HttpRequest) -> HttpResponse {
    let server = json!({"url": app.endpoint.as_called(&request)});
    HttpResponse::Ok().json(Shown { servers: [server], document: &DOCUMENT })
}

/// `GET /api`: a page of our own, which needs nothing from elsewhere.
async fn page() -> HttpResponse {
    static CONTENT: LazyLock<(String, String)> = LazyLock::new(|| {
        let digest = BASE64_STANDARD.encode(Sha256::digest(SCRIPT));
        let policy = format!(
            "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        (PAGE.replace("/* page.js */", SCRIPT), policy)
    });
    let (page, policy) = &*CONTENT;
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, policy.as_str()))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(page.as_str())
}

/// An answer as version 1.0 has it.
pub async fn without_newer(response: ServiceResponse<BoxBody>, pattern: &str) -> ServiceResponse<BoxBody> {
    let method = response.request().method();
    let status = response.status().as_u16();
    let found = NEWER.iter().find(|((m, path, s), _)| m == method && *path == pattern && *s == status);
    let Some((_, (list, fields))) = found else { return response };
    let is_json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == JSON.as_bytes());
    if !is_json {
        return response;
    }
    response.map_body(|_, body| match body.try_into_bytes() {
        Ok(bytes) => BoxBody::new(older(&bytes, *list, fields).map_or(bytes, Into::into)),
        Err(body) => body,
    })
}

/// The text without the fields. Their order stays: clients print what they are given.
fn older(body: &[u8], list: Option<&str>, fields: &[String]) -> Option<Vec<u8>> {
    type Object<'a> = Vec<(String, &'a serde_json::value::RawValue)>;
    fn entries(text: &serde_json::value::RawValue) -> Option<Object<'_>> {
        serde_json::from_str::<Entries<'_>>(text.get()).ok().map(|it| it.0)
    }
    let write = |object: Object<'_>| {
        let kept = object.into_iter().filter(|(name, _)| !fields.contains(name));
        let kept: Vec<_> = kept.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        format!("{{{}}}", kept.join(","))
    };
    let whole: &serde_json::value::RawValue = serde_json::from_slice(body).ok()?;
    let Some(list) = list else { return Some(write(entries(whole)?).into_bytes()) };
    let (_, items) = entries(whole)?.into_iter().find(|(name, _)| name == list)?;
    let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(items.get()).ok()?;
    let items: Option<Vec<_>> = items.into_iter().map(|item| entries(item).map(write)).collect();
    Some(format!("{{{}:[{}]}}", json!(list), items?.join(",")).into_bytes())
}

/// The fields of an object in the order in which they stand, values as they are written.
struct Entries<'a>(Vec<(String, &'a serde_json::value::RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Entries<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

fn document(operations: &[Operation]) -> Map<String, Value> {
    let mut generator = generator();
    let fault = generator.subschema_for::<error::Body<'_>>().to_value();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in operations {
        let mut described = describe(operation, &mut generator);
        if let Some((status, links)) = links(operation, operations) {
            described["responses"][status]["links"] = links;
        }
        let verb = operation.method.as_str().to_ascii_lowercase();
        paths.entry(operation.path).or_default().insert(verb, described);
    }
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().for_each(require_no_newer);
    let about = format!(
        "Functions as a service for OpenStack, as Qinling's clients know it. Versions {FIRST} to {LATEST}; what is \
         marked with {SINCE} is not in {FIRST}. Who asks for no version finds it all the same."
    );
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Taibai",
            "summary": "Function service API",
            "description": about,
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "parameters": {"version": {
                "name": "OpenStack-API-Version",
                "in": "header",
                "description": "The version of the API that is asked for.",
                "schema": {
                    "type": "string",
                    "pattern": format!("^{SERVICE_TYPE} ({FIRST}|{LATEST}|latest)$").replace('.', "\\."),
                },
            }},
            "headers": {
                "request_id": {
                    "description": "The id of the request.",
                    "required": true,
                    "schema": {"type": "string", "pattern": "^req-[0-9a-f-]{36}$"},
                },
                "version": {
                    "description": "The version that the answer is in.",
                    "schema": {"type": "string"},
                },
                "etag": {
                    "description": "For If-None-Match, which is answered with 304 where nothing has changed.",
                    "schema": {"type": "string"},
                },
            },
            "responses": {"error": {
                "description": "What is wrong.",
                "headers": {"X-Openstack-Request-Id": {"$ref": "#/components/headers/request_id"}},
                "content": {JSON: {"schema": fault}},
            }},
        },
    });
    match document {
        Value::Object(document) => document,
        _ => unreachable!("an object was written"),
    }
}

/// What version 1.0 does not have may be missing.
fn require_no_newer(schema: &mut Value) {
    let newer: Vec<_> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, field)| field.get(SINCE).is_some())
        .map(|(name, _)| Value::from(name.as_str()))
        .collect();
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !newer.contains(name));
    }
}

fn describe(operation: &Operation, generator: &mut schemars::SchemaGenerator) -> Value {
    let mut headers = json!({"X-Openstack-Request-Id": {"$ref": "#/components/headers/request_id"}});
    if operation.is_api() {
        headers["OpenStack-API-Version"] = json!({"$ref": "#/components/headers/version"});
    }
    if operation.method == Method::GET && operation.path.contains('{') {
        headers["ETag"] = json!({"$ref": "#/components/headers/etag"});
    }
    let mut responses = Map::new();
    for answer in &operation.answers {
        let mut response = json!({"description": answer.about, "headers": headers});
        match &answer.content {
            Content::Nothing => {}
            Content::View { list, schema, .. } => {
                let item = schema(generator).to_value();
                let schema = match list {
                    None => item,
                    Some(name) => json!({
                        "type": "object",
                        "properties": {*name: {"type": "array", "items": item}},
                        "required": [name],
                    }),
                };
                response["content"] = json!({JSON: {"schema": schema}});
            }
            Content::Other(kinds) => {
                let kinds =
                    kinds.iter().map(|(kind, schema)| ((*kind).to_owned(), json!({"schema": schema})));
                response["content"] = Value::Object(kinds.collect());
            }
        }
        for (kind, schema) in &answer.others {
            response["content"][*kind] = json!({"schema": schema});
        }
        responses.insert(answer.status.to_string(), response);
    }
    if headers.get("ETag").is_some() {
        responses
            .insert("304".to_owned(), json!({"description": "Nothing has changed.", "headers": headers}));
    }
    for status in operation.all_errors() {
        responses.entry(status.to_string()).or_insert(json!({"$ref": "#/components/responses/error"}));
    }
    let rules = operation.rules();
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [tag(operation.path)],
        "parameters": parameters(operation),
        "responses": responses,
        "security": if rules.is_empty() { json!([]) } else { json!([{"token": []}, {"basic": []}]) },
    });
    if !rules.is_empty() {
        described["description"] = format!("Asks the policy about {}.", rules.join(" and ")).into();
    }
    if operation.is_newer {
        described[SINCE] = LATEST.to_string().into();
    }
    match &operation.body {
        None => {}
        Some(Body::Object(shape, required)) => {
            described["requestBody"] =
                json!({"required": true, "content": {JSON: {"schema": object(shape, required)}}});
        }
        Some(Body::Forms(kinds)) => {
            let kinds = kinds.iter().map(|(kind, schema)| ((*kind).to_owned(), json!({"schema": schema})));
            described["requestBody"] = json!({"content": Value::Object(kinds.collect())});
        }
    }
    described
}

/// What an operation is about: the last collection in its path.
fn tag(path: &str) -> &str {
    let names = [
        "versions",
        "workers",
        "runtimes",
        "functions",
        "aliases",
        "executions",
        "jobs",
        "webhooks",
        "quotas",
    ];
    names.into_iter().find(|name| path.split('/').any(|part| part == *name)).unwrap_or("service")
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let in_path = parts(operation.path).map(|name| {
        let schema = match name {
            "id" => json!({"type": "string", "format": "uuid"}),
            "version" => json!({"type": "integer", "minimum": 0, "maximum": i32::MAX}),
            _ => json!({"type": "string", "minLength": 1}),
        };
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    });
    let in_query = operation.query.iter().map(|parameter| {
        let mut described = json!({
            "name": parameter.name, "in": "query", "description": parameter.about, "schema": parameter.schema,
        });
        if parameter.is_newer {
            described[SINCE] = LATEST.to_string().into();
        }
        described
    });
    let version = operation.is_api().then(|| json!({"$ref": "#/components/parameters/version"}));
    in_path.chain(in_query).chain(version).collect()
}

/// From the answer that something was made to what can be done with it.
fn links(operation: &Operation, all: &[Operation]) -> Option<(&'static str, Value)> {
    const MADE: &str = "201";
    operation.answers.iter().find(|answer| answer.status.to_string() == MADE)?;
    let known: Vec<_> = parts(operation.path).collect();
    let mut links = Map::new();
    for other in all {
        let below = other.path.strip_prefix(operation.path).and_then(|rest| rest.strip_prefix("/{"));
        let Some(name) = below.and_then(|rest| rest.split('}').next()) else { continue };
        let field = match name {
            "id" | "name" => name,
            "version" => "version_number",
            _ => continue,
        };
        if parts(other.path).count() != known.len() + 1 {
            continue;
        }
        let mut parameters = Map::from_iter([(name.to_owned(), json!(format!("$response.body#/{field}")))]);
        parameters
            .extend(known.iter().map(|name| ((*name).to_owned(), json!(format!("$request.path.{name}")))));
        links.insert(other.id.to_owned(), json!({"operationId": other.id, "parameters": parameters}));
    }
    if operation.path == "/v1/functions" {
        // What is deployed is called, now and at times.
        for (id, field) in [("create_execution", "function_id"), ("create_webhook", "function_id")] {
            let body = json!({field: "$response.body#/id"});
            links.insert(id.to_owned(), json!({"operationId": id, "requestBody": body}));
        }
    }
    (!links.is_empty()).then_some((MADE, Value::Object(links)))
}

#[cfg(test)]
mod tests;
