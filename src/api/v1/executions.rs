//! `/v1/executions`

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Listing, Time, empty, filter, list_query, page};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery, PathId};
use crate::api::middleware::RequestId;
use crate::api::openapi::Operation;
use crate::api::route::{at, newer};
use crate::api::version::is_first;
use crate::api::wire::{Shape, boolean, ignored, integer, read_only, text, uuid};
use crate::db::Page;
use crate::db::executions::Filters;
use crate::engine::target::Reference;
use crate::error::Error;
use crate::model::{Caller, ExecutionId, ExecutionStatus, Input, Reason, Start, execution};
use crate::policy::Target;
use crate::resource::executions::{Call, List};
use crate::telemetry::Chain;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/executions", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/executions/{id}",
            vec![(Method::GET, web::to(show)), (Method::DELETE, web::to(delete))],
        ))
        .service(newer("/v1/executions/{id}/cancel", vec![(Method::POST, web::to(cancel))]))
        .service(at("/v1/executions/{id}/log", vec![(Method::GET, web::to(log))]));
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/executions/{id}";
    let log = vec![("text/plain", json!({"type": "string"}))];
    vec![
        Operation::get("/v1/executions", "list_executions", "List executions")
            .filters(&FILTERS)
            .newer_filters(&NEWER_FILTERS)
            .pages::<execution::Entity>()
            .lists::<ExecutionView>("executions"),
        Operation::post("/v1/executions", "create_execution", "Run a function once")
            .takes(&SHAPE, &[])
            .shows::<ExecutionView>(StatusCode::CREATED, "The execution, also of a function that failed.")
            .fails(&[404, 409]),
        Operation::get(ONE, "show_execution", "Show an execution")
            .shows::<ExecutionView>(StatusCode::OK, "The execution."),
        Operation::delete(ONE, "delete_execution", "Delete an execution"),
        Operation::post("/v1/executions/{id}/cancel", "cancel_execution", "Stop an execution")
            .newer()
            .shows::<ExecutionView>(StatusCode::OK, "The execution.")
            .fails(&[409]),
        Operation::get("/v1/executions/{id}/log", "show_log", "Show what a function printed")
            .sends(StatusCode::OK, "The log.", log)
            .nothing(StatusCode::NO_CONTENT, "There is none so far."),
    ]
}

/// The conditions of a list.
const FILTERS: [&str; 5] = ["function_id", "status", "description", "project_id", "all_projects"];
/// Those that version 1.0 lacks.
const NEWER_FILTERS: [&str; 1] = ["reason"];

const SHAPE: Shape = Shape {
    argument: "body",
    fields: &[
        ignored("id"),
        uuid("function_id"),
        integer("function_version", 0),
        text("function_alias"),
        text("description"),
        read_only("status"),
        boolean("sync"),
        text("input"),
        read_only("result"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        read_only("reason").newer(),
        read_only("start").newer(),
        read_only("queued_ms").newer(),
        read_only("starting_ms").newer(),
        read_only("run_ms").newer(),
        read_only("cpu_ms").newer(),
        read_only("peak_memory_bytes").newer(),
        read_only("log_truncated").newer(),
    ],
};

#[derive(Debug, Deserialize)]
struct ExecutionBody {
    function_id: Option<String>,
    function_version: Option<i32>,
    function_alias: Option<String>,
    description: Option<String>,
    sync: Option<bool>,
    input: Option<String>,
}

/// Qinling's dashboard gives the published client its arguments by position, in an order of before
/// aliases: version, sync and input arrive as alias, version and sync. No request that means what it
/// says has a number for an alias and a boolean for a version.
fn mend_shifted(mut object: Map<String, Value>) -> Map<String, Value> {
    let has = |name: &str, kind: fn(&Value) -> bool| object.get(name).is_some_and(kind);
    if has("function_alias", Value::is_number) && has("function_version", Value::is_boolean) {
        let shifted = ["function_alias", "function_version", "sync"].map(|name| object.remove(name));
        for (name, value) in ["function_version", "sync", "input"].into_iter().zip(shifted) {
            object.insert(name.to_owned(), value.unwrap_or_default());
        }
    }
    object
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Execution")]
struct ExecutionView {
    id: String,
    function_id: String,
    function_version: i32,
    function_alias: Option<String>,
    description: Option<String>,
    #[schemars(extend("enum" = ["running", "success", "failed", "error"]))]
    status: &'static str,
    sync: bool,
    input: Option<String>,
    /// A JSON object as text, here as in the table: clients parse it for themselves.
    result: Option<String>,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    /// Why it did not succeed. From here on not Qinling's, and behind what is.
    #[schemars(with = "Option<Reason>", extend("x-since" = "1.1"))]
    reason: Option<String>,
    /// What it found: nothing, a started interpreter, or its function loaded.
    #[schemars(extend("x-since" = "1.1"))]
    start: Option<Start>,
    /// Until a worker was free for it, or one was begun.
    #[schemars(extend("x-since" = "1.1"))]
    queued_ms: Option<f64>,
    /// From then until the function's code began.
    #[schemars(extend("x-since" = "1.1"))]
    starting_ms: Option<f64>,
    /// The function's code.
    #[schemars(extend("x-since" = "1.1"))]
    run_ms: Option<f64>,
    /// Processor time of all its processes.
    #[schemars(extend("x-since" = "1.1"))]
    cpu_ms: Option<f64>,
    /// The most memory that they had at once.
    #[schemars(extend("x-since" = "1.1"))]
    peak_memory_bytes: Option<i64>,
    #[schemars(extend("x-since" = "1.1"))]
    log_truncated: Option<bool>,
}

/// From microseconds; to the third decimal, which is all that there is.
fn milliseconds(time: Option<i64>) -> Option<f64> {
    time.map(|time| time as f64 / 1000.0)
}

impl From<execution::Model> for ExecutionView {
    fn from(row: execution::Model) -> Self {
        Self {
            id: row.id.0,
            function_id: row.function_id.0,
            function_version: row.function_version,
            function_alias: row.function_alias,
            description: row.description,
            status: word(row.status),
            sync: row.sync,
            input: row.input.as_deref().map(Input::shown),
            result: row.result,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            reason: row.reason,
            start: row.start,
            queued_ms: milliseconds(row.queued_us),
            starting_ms: milliseconds(row.starting_us),
            run_ms: milliseconds(row.run_us),
            cpu_ms: milliseconds(row.cpu_us),
            peak_memory_bytes: row.peak_memory_bytes,
            log_truncated: row.log_truncated,
        }
    }
}

/// A status in the words of the v1 API, which has four.
fn word(status: ExecutionStatus) -> &'static str {
    match status {
        ExecutionStatus::Pending | ExecutionStatus::Running => "running",
        ExecutionStatus::Success => "success",
        ExecutionStatus::Failed | ExecutionStatus::Cancelled => "failed",
        ExecutionStatus::Error => "error",
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:get_all")?;
    let query = if is_first(&request) {
        list_query(&request, &FILTERS)
    } else {
        list_query(&request, &[&FILTERS[..], &NEWER_FILTERS].concat())
    }?;
    let listing = Listing::of(&app.policy, &caller, &query, "execution:get_all:all_projects")?;
    let filters = Filters {
        function_id: filter(&query, "function_id"),
        project_id: listing.project_id,
        status: filter(&query, "status"),
        description: filter(&query, "description"),
        reason: filter(&query, "reason"),
    };
    let page = page(&query)?;
    check_order(&page)?;
    let list = app.executions.list(listing.scope, filters, page).await?;
    whole(list).await
}

/// Most rows in an order other than by age, which has the database sort all that there are.
const MOST_SORTED: u64 = 1000;

fn check_order(page: &Page<execution::Entity>) -> Result<(), Error> {
    if page.is_by_default() || page.limit.is_some_and(|limit| limit <= MOST_SORTED) {
        return Ok(());
    }
    let key = page.key.name;
    Err(Error::Invalid(format!(
        "sort: by {key}, executions are listed with a limit of {MOST_SORTED} at most."
    )))
}

/// All of a list in one answer. A long one is read while it is sent.
async fn whole(mut list: List) -> Result<HttpResponse, ApiError> {
    if list.is_short() {
        let views: Vec<ExecutionView> =
            list.next().await?.unwrap_or_default().into_iter().map(ExecutionView::from).collect();
        return Ok(HttpResponse::Ok().json(BTreeMap::from([("executions", views)])));
    }
    let parts = stream::try_unfold((Some(list), "{\"executions\":["), async |(list, before)| {
        let Some(mut list) = list else { return Ok(None) };
        match list.next().await.and_then(|rows| rows.map(|rows| text_of(before, rows)).transpose()) {
            Ok(Some(text)) => Ok(Some((text, (Some(list), ",")))),
            Ok(None) => Ok(Some((Bytes::from_static(b"]}"), (None, "")))),
            Err(error) => {
                // The answer is under way: that it breaks off is all that the caller can be told.
                tracing::warn!(error = %Chain(&error), "a list of executions was broken off");
                Err(ApiError::from(error))
            }
        }
    });
    Ok(HttpResponse::Ok().content_type("application/json").streaming(Box::pin(parts)))
}

/// Rows of a list, as they stand in it.
fn text_of(before: &str, rows: Vec<execution::Model>) -> Result<Bytes, Error> {
    let mut text = before.as_bytes().to_vec();
    for (index, row) in rows.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, &ExecutionView::from(row)).map_err(Error::internal)?;
    }
    Ok(text.into())
}

/// `POST /v1/executions`: runs a function once. 201 also when the function failed.
async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:create")?;
    let body: ExecutionBody = body.parse_mended(&SHAPE, mend_shifted)?;
    let call = Call {
        reference: Reference {
            function_id: body.function_id.map(Into::into),
            version: body.function_version.unwrap_or(0),
            alias: body.function_alias,
        },
        description: body.description,
        sync: body.sync.unwrap_or(true),
        input: Input::from_text(body.input.as_deref()),
        request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()),
    };
    let row = app.executions.create(&caller, call).await?;
    Ok(HttpResponse::Created().json(ExecutionView::from(row)))
}

async fn show(caller: Caller, app: web::Data<App>, _: NoQuery, id: PathId) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:get")?;
    let row = app.executions.get(&caller, &id.0.into()).await?;
    app.policy.enforce_on(&caller, "execution:get", &Target::of_project(row.project_id.as_str()))?;
    Ok(HttpResponse::Ok().json(ExecutionView::from(row)))
}

/// `GET /v1/executions/{id}/log`: text, or 204 while there is none.
async fn log(caller: Caller, app: web::Data<App>, _: NoQuery, id: PathId) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:get_log")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "execution:get_log", &id).await?;
    Ok(match app.executions.log(&caller, &id).await? {
        Some(log) => HttpResponse::Ok().content_type("text/plain; charset=UTF-8").body(log),
        None => empty(StatusCode::NO_CONTENT),
    })
}

/// `POST /v1/executions/{id}/cancel`: takes no body, and none is read.
async fn cancel(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:cancel")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "execution:cancel", &id).await?;
    let row = app.executions.cancel(&caller, &id).await?;
    Ok(HttpResponse::Ok().json(ExecutionView::from(row)))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "execution:delete")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "execution:delete", &id).await?;
    app.executions.delete(&caller, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Asks the policy about the execution itself. Others than administrators see those of the project
/// about which it has been asked already.
async fn enforce_on(app: &App, caller: &Caller, rule: &'static str, id: &ExecutionId) -> Result<(), Error> {
    if !caller.is_admin() {
        return Ok(());
    }
    let row = app.executions.get(caller, id).await?;
    app.policy.enforce_on(caller, rule, &Target::of_project(row.project_id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn row(status: ExecutionStatus) -> execution::Model {
        execution::Model {
            id: "e".into(),
            project_id: "p".into(),
            function_id: "f".into(),
            function_version: 0,
            function_alias: None,
            description: None,
            status,
            sync: true,
            input: Some("{\"__function_input\":\"6\"}".to_owned()),
            result: Some("{\"output\":null}".to_owned()),
            reason: Some("raised".to_owned()),
            start: None,
            epoch: 1,
            engine_id: None,
            worker: None,
            request_id: None,
            deadline_at: None,
            created_at: Timestamp(1_767_323_045_000_000),
            updated_at: Some(Timestamp(1_767_323_046_000_000)),
            queued_us: Some(12),
            starting_us: Some(1_500),
            run_us: Some(250_000),
            cpu_us: None,
            peak_memory_bytes: Some(1 << 20),
            log_truncated: Some(false),
        }
    }

    #[test]
    fn a_view_has_every_field_in_order() {
        assert_eq!(
            serde_json::to_string(&ExecutionView::from(row(ExecutionStatus::Success))).unwrap(),
            r#"{"id":"e","function_id":"f","function_version":0,"function_alias":null,"description":null,"status":"success","sync":true,"input":"6","result":"{\"output\":null}","project_id":"p","created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:06Z","reason":"raised","start":null,"queued_ms":0.012,"starting_ms":1.5,"run_ms":250.0,"cpu_ms":null,"peak_memory_bytes":1048576,"log_truncated":false}"#
        );
    }

    #[test]
    fn what_the_dashboard_shifted_is_put_back() {
        let mended = |body: Value| match body {
            Value::Object(object) => Value::Object(mend_shifted(object)),
            other => other,
        };
        let shifted = |input: Value| json!({"function_id": "f", "function_alias": 2, "function_version": false, "sync": input, "input": null});
        for input in [json!("{\"name\": \"x\"}"), Value::Null] {
            assert_eq!(
                mended(shifted(input.clone())),
                json!({"function_id": "f", "function_version": 2, "sync": false, "input": input})
            );
        }
        for meant in [
            json!({"function_id": "f", "function_version": 1, "sync": true, "input": "6"}),
            json!({"function_alias": "7", "function_version": true, "sync": true}),
            json!({"function_alias": 7, "function_version": 0}),
        ] {
            assert_eq!(mended(meant.clone()), meant);
        }
    }

    #[test]
    fn statuses_that_clients_do_not_know_are_said_in_their_words() {
        let shown = |status| ExecutionView::from(row(status)).status;
        assert_eq!(shown(ExecutionStatus::Pending), "running");
        assert_eq!(shown(ExecutionStatus::Cancelled), "failed");
        assert_eq!(shown(ExecutionStatus::Error), "error");
    }
}
