//! `/v1/functions`

use std::borrow::Cow;
use std::collections::BTreeMap;

use actix_web::body::SizedStream;
use actix_web::dev::Payload;
use actix_web::http::header::EntityTag;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio_util::io::ReaderStream;

use super::{Listing, PROJECTS, Time, empty, function_form, list_query, page};
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery, PathId, Query};
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::api::wire::{Shape, boolean, integer, text_as_boolean};
use crate::api::{App, etag};
use crate::error::Error;
use crate::model::{Caller, FunctionId, FunctionStatus, NetworkAccess, function};
use crate::policy::Target;
use crate::storage::Content;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/functions", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/functions/{id}",
            vec![
                (Method::GET, web::to(show)),
                (Method::PUT, web::to(update)),
                (Method::DELETE, web::to(delete)),
            ],
        ))
        .service(at("/v1/functions/{id}/workers", vec![(Method::GET, web::to(workers))]))
        .service(at("/v1/functions/{id}/scale_up", vec![(Method::POST, web::to(scale_up))]))
        .service(at("/v1/functions/{id}/scale_down", vec![(Method::POST, web::to(scale_down))]))
        .service(at("/v1/functions/{id}/detach", vec![(Method::POST, web::to(detach))]));
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/functions/{id}";
    let zip = || ("application/zip", json!({"type": "string", "contentMediaType": "application/zip"}));
    vec![
        Operation::get("/v1/functions", "list_functions", "List functions")
            .filters(&PROJECTS)
            .pages::<function::Entity>()
            .lists::<FunctionView<CodeText>>("functions"),
        Operation::post("/v1/functions", "create_function", "Create a function")
            .takes_forms(function_form::schemas(&["code"]))
            .shows::<FunctionView<Code>>(StatusCode::CREATED, "The function.")
            .fails(&[404, 409]),
        Operation::get(ONE, "show_function", "Show a function, or download its package")
            .asks(boolean("download"), "Whether to send the package.")
            .shows::<FunctionView<Code>>(StatusCode::OK, "The function, or its package.")
            .or_sends(zip())
            .fails(&[405]),
        Operation::put(ONE, "update_function", "Change a function")
            .takes_forms(function_form::schemas(&[]))
            .shows::<FunctionView<Code>>(StatusCode::OK, "The function.")
            .fails(&[409]),
        Operation::delete(ONE, "delete_function", "Delete a function"),
        Operation::get("/v1/functions/{id}/workers", "list_workers", "List the workers of a function")
            .asks(integer("function_version", 0), "The version that they hold; 0 for the function itself.")
            .lists::<WorkerView>("workers"),
        Operation::post("/v1/functions/{id}/scale_up", "scale_up_function", "Start workers of a function")
            .takes(&SCALE, &[])
            .nothing(StatusCode::ACCEPTED, "They are being started.")
            .fails(&[409]),
        Operation::post("/v1/functions/{id}/scale_down", "scale_down_function", "Stop workers of a function")
            .takes(&SCALE, &[])
            .nothing(StatusCode::ACCEPTED, "They are being stopped.")
            .fails(&[409]),
        Operation::post("/v1/functions/{id}/detach", "detach_function", "Stop all workers of a function")
            .nothing(StatusCode::ACCEPTED, "They are being stopped."),
    ]
}

pub(super) const SCALE: Shape = Shape { argument: "scale", fields: &[integer("count", 1)] };

#[derive(Debug, Deserialize)]
pub(super) struct ScaleBody {
    pub count: Option<u32>,
}

/// Generic over `code`: text in lists, the object itself elsewhere.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Function{C}")]
struct FunctionView<C> {
    id: String,
    name: Option<String>,
    description: Option<String>,
    cpu: i32,
    memory_size: i64,
    timeout: i32,
    runtime_id: Option<String>,
    code: C,
    entry: Option<String>,
    count: i64,
    latest_version: i32,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    /// Whether `context['os_session']` is a session, and a sentence where it is not.
    #[schemars(extend("x-since" = "1.1"))]
    os_session: bool,
    #[schemars(extend("x-since" = "1.1"))]
    os_session_reason: Option<String>,
    /// `creating` while the image of an image function is looked for.
    #[schemars(extend("x-since" = "1.1"))]
    status: FunctionStatus,
    #[schemars(extend("x-since" = "1.1"))]
    status_reason: Option<String>,
    #[schemars(extend("x-since" = "1.1"))]
    network: NetworkAccess,
}

/// What `code` is in an answer that shows one function, for its description.
enum Code {}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "source": {"type": "string", "enum": ["package", "swift", "image"]},
                "md5sum": {"type": "string"},
                "swift": {
                    "type": "object",
                    "properties": {"container": {"type": "string"}, "object": {"type": "string"}},
                },
                "image": {"type": "string"},
            },
            "required": ["source"],
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What it is in a list: the same as text.
enum CodeText {}

impl JsonSchema for CodeText {
    fn schema_name() -> Cow<'static, str> {
        "InList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "contentMediaType": "application/json"})
    }

    fn inline_schema() -> bool {
        true
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Worker")]
struct WorkerView<'a> {
    function_id: &'a str,
    function_version: i32,
    worker_name: &'a str,
}

impl<C> FunctionView<C> {
    fn new(row: function::Model, code: C) -> Self {
        Self {
            id: row.id.0,
            name: row.name,
            description: row.description,
            cpu: row.cpu,
            memory_size: row.memory_size,
            timeout: row.timeout,
            runtime_id: row.runtime_id.map(|id| id.0),
            code,
            entry: row.entry,
            count: row.count,
            latest_version: row.latest_version,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            os_session: row.trust_id.is_some(),
            os_session_reason: row.trust_reason,
            status: row.status,
            status_reason: row.status_reason,
            network: row.network,
        }
    }
}

impl FunctionView<String> {
    fn in_a_list(mut row: function::Model) -> Self {
        let code = std::mem::take(&mut row.code);
        Self::new(row, code)
    }
}

impl FunctionView<Box<RawValue>> {
    fn alone(mut row: function::Model) -> Result<Self, Error> {
        let code = RawValue::from_string(std::mem::take(&mut row.code)).map_err(Error::internal)?;
        Ok(Self::new(row, code))
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:get_all")?;
    let query = list_query(&request, &PROJECTS)?;
    let listing = Listing::of(&app.policy, &caller, &query, "function:get_all:all_projects")?;
    let rows = app.functions.list(&listing.scope, listing.project_id.as_ref(), &page(&query)?).await?;
    let views: Vec<_> = rows.into_iter().map(FunctionView::in_a_list).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("functions", views)])))
}

async fn create(
    caller: Caller,
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:create")?;
    let mut payload: Payload = payload.into_inner();
    let input = function_form::read(&request, &mut payload, &app).await?;
    let row = app.functions.create(&caller, input).await?;
    Ok(HttpResponse::Created().json(FunctionView::alone(row)?))
}

/// `GET /v1/functions/{id}`: the function, or with `download` its package.
///
/// The id is not checked to be a UUID and other query keys are ignored; both are as in Qinling.
async fn show(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:get")?;
    let id = function_id(&request);
    let download = Query::lenient(&request)?.get("download").and_then(text_as_boolean).unwrap_or(false);
    let row = app.functions.get(&caller, &id).await?;
    app.policy.enforce_on(&caller, "function:get", &Target::of_project(row.project_id.as_str()))?;
    if !download {
        return Ok(HttpResponse::Ok().json(FunctionView::alone(row)?));
    }
    // What is opened is what has the tag, whatever is uploaded meanwhile.
    let digest = row.package_digest.as_deref();
    if let Some(unchanged) = unchanged(&request, digest) {
        return Ok(unchanged);
    }
    match app.functions.open(&caller, &row).await {
        Ok(content) => Ok(zip(id.as_str(), content, digest)),
        Err(Error::NotSupported(text)) => {
            Err(ApiError::MethodNotAllowed { text, allow: "PUT, DELETE".to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks the policy about the function itself. Others than administrators see those of the project
/// about which it has been asked already.
async fn enforce_on(app: &App, caller: &Caller, rule: &'static str, id: &FunctionId) -> Result<(), Error> {
    if !caller.is_admin() {
        return Ok(());
    }
    let row = app.functions.get(caller, id).await?;
    app.policy.enforce_on(caller, rule, &Target::of_project(row.project_id.as_str()))
}

/// The id in the path of a function, whatever it looks like.
fn function_id(request: &HttpRequest) -> FunctionId {
    request.match_info().query("id").into()
}

/// A package, byte for byte: never compressed, since clients store what arrives. Its digest is its tag.
pub(super) fn zip(name: &str, content: Content, digest: Option<&str>) -> HttpResponse {
    const CHUNK: usize = 64 << 10;
    let stream = ReaderStream::with_capacity(content.reader, CHUNK);
    let mut response = HttpResponse::Ok();
    if let Some(tag) = tag_of(digest) {
        response.insert_header((header::ETAG, tag.to_string()));
    }
    response
        .content_type("application/zip")
        .insert_header((header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")))
        .body(SizedStream::new(content.bytes, stream))
}

fn tag_of(digest: Option<&str>) -> Option<EntityTag> {
    digest.map(|digest| EntityTag::new_strong(digest.to_owned()))
}

/// The answer to who has the package of this digest already, so that it need not be opened.
pub(super) fn unchanged(request: &HttpRequest, digest: Option<&str>) -> Option<HttpResponse> {
    tag_of(digest).filter(|tag| etag::has(request, tag)).map(|tag| etag::unchanged(&tag))
}

async fn update(
    caller: Caller,
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:update")?;
    let mut payload: Payload = payload.into_inner();
    let input = function_form::read(&request, &mut payload, &app).await?;
    let id = function_id(&request);
    enforce_on(&app, &caller, "function:update", &id).await?;
    let row = app.functions.update(&caller, &id, input).await?;
    Ok(HttpResponse::Ok().json(FunctionView::alone(row)?))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:delete")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "function:delete", &id).await?;
    app.functions.delete(&caller, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `GET /v1/functions/{id}/workers`: none, and no error, for a function that does not exist.
async fn workers(
    caller: Caller,
    app: web::Data<App>,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_worker:get_all")?;
    let query = Query::of(&request, &["function_version"])?;
    let version = query.integer("function_version", 0)?.unwrap_or(0);
    let id: FunctionId = id.0.into();
    let names = match app.functions.get(&caller, &id).await {
        Ok(row) => {
            let target = Target::of_project(row.project_id.as_str());
            app.policy.enforce_on(&caller, "function_worker:get_all", &target)?;
            app.engine.workers(&id, version).await?
        }
        // It may have left some.
        Err(Error::NotFound { .. }) if caller.is_admin() => app.engine.workers(&id, version).await?,
        Err(Error::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let views: Vec<_> = names
        .iter()
        .map(|name| WorkerView {
            function_id: id.as_str(),
            function_version: version,
            worker_name: name.as_str(),
        })
        .collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("workers", views)])))
}

async fn scale_up(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:scale_up")?;
    let ScaleBody { count } = body.parse(&SCALE)?;
    let target = app.functions.target(&caller, &id.0.into()).await?;
    let owner = Target::of_project(target.function.project_id.as_str());
    app.policy.enforce_on(&caller, "function:scale_up", &owner)?;
    app.engine.scale_up(&target, count.unwrap_or(1)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

async fn scale_down(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:scale_down")?;
    let ScaleBody { count } = body.parse(&SCALE)?;
    let target = app.functions.target(&caller, &id.0.into()).await?;
    let owner = Target::of_project(target.function.project_id.as_str());
    app.policy.enforce_on(&caller, "function:scale_down", &owner)?;
    app.engine.scale_down(&target, count.unwrap_or(1)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// `POST /v1/functions/{id}/detach`: takes no body, and none is read.
async fn detach(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function:detach")?;
    let target = app.functions.target(&caller, &id.0.into()).await?;
    let owner = Target::of_project(target.function.project_id.as_str());
    app.policy.enforce_on(&caller, "function:detach", &owner)?;
    app.engine.release(&target.function.id, target.version).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn row() -> function::Model {
        function::Model {
            id: "f".into(),
            project_id: "p".into(),
            name: Some("hello".to_owned()),
            description: None,
            runtime_id: None,
            cpu: 100,
            memory_size: 33_554_432,
            timeout: 5,
            code: r#"{"source":"package","md5sum":"m"}"#.to_owned(),
            package_digest: Some("not shown".to_owned()),
            package_bytes: Some(1),
            object_etag: Some("not shown".to_owned()),
            entry: Some("main.main".to_owned()),
            network: NetworkAccess::Default,
            count: 0,
            trust_id: None,
            trust_reason: Some("no trust".to_owned()),
            latest_version: 0,
            version_counter: 0,
            status: FunctionStatus::Available,
            status_reason: None,
            image_digest: None,
            created_at: Timestamp(1_767_323_045_000_000),
            updated_at: None,
        }
    }

    #[test]
    fn code_is_an_object_alone_and_text_in_a_list() {
        let head = r#"{"id":"f","name":"hello","description":null,"cpu":100,"memory_size":33554432,"timeout":5,"runtime_id":null,"code":"#;
        let tail = r#","entry":"main.main","count":0,"latest_version":0,"project_id":"p","created_at":"2026-01-02T03:04:05Z","updated_at":null,"os_session":false,"os_session_reason":"no trust","status":"available","status_reason":null,"network":"default"}"#;
        let alone = serde_json::to_string(&FunctionView::alone(row()).unwrap()).unwrap();
        assert_eq!(alone, format!(r#"{head}{{"source":"package","md5sum":"m"}}{tail}"#));
        let listed = serde_json::to_string(&FunctionView::in_a_list(row())).unwrap();
        assert_eq!(listed, format!(r#"{head}"{{\"source\":\"package\",\"md5sum\":\"m\"}}"{tail}"#));
    }
}
