//! `/v1/functions/{id}/versions`

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::functions::{SCALE, ScaleBody, unchanged, zip};
use super::{Time, empty, list_query, page};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery, PathId, Query};
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::api::wire::{Shape, as_integer, boolean, ignored, integer, read_only, text, text_as_boolean};
use crate::engine::target::Target;
use crate::error::Result;
use crate::model::{Caller, NetworkAccess, version};
use crate::policy;

pub fn routes(config: &mut web::ServiceConfig) {
    let (scale_up, scale_down, detach) = (web::to(scale_up), web::to(scale_down), web::to(detach));
    config
        .service(at(
            "/v1/functions/{id}/versions",
            vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))],
        ))
        .service(at(
            "/v1/functions/{id}/versions/{version}",
            vec![(Method::GET, web::to(show)), (Method::DELETE, web::to(delete))],
        ))
        .service(at("/v1/functions/{id}/versions/{version}/scale_up", vec![(Method::POST, scale_up)]))
        .service(at("/v1/functions/{id}/versions/{version}/scale_down", vec![(Method::POST, scale_down)]))
        .service(at("/v1/functions/{id}/versions/{version}/detach", vec![(Method::POST, detach)]));
}

pub fn operations() -> Vec<Operation> {
    const ALL: &str = "/v1/functions/{id}/versions";
    const ONE: &str = "/v1/functions/{id}/versions/{version}";
    const SCALE_UP: &str = "/v1/functions/{id}/versions/{version}/scale_up";
    const SCALE_DOWN: &str = "/v1/functions/{id}/versions/{version}/scale_down";
    const DETACH: &str = "/v1/functions/{id}/versions/{version}/detach";
    let zip = ("application/zip", json!({"type": "string", "contentMediaType": "application/zip"}));
    vec![
        Operation::get(ALL, "list_versions", "List the versions of a function")
            .pages::<version::Entity>()
            .lists::<VersionView>("function_versions"),
        Operation::post(ALL, "create_version", "Keep what a function is now")
            .takes(&SHAPE, &[])
            .shows::<VersionView>(StatusCode::CREATED, "The version.")
            .fails(&[409]),
        Operation::get(ONE, "show_version", "Show a version, or download its package")
            .asks(boolean("download"), "Whether to send the package.")
            .shows::<VersionView>(StatusCode::OK, "The version, or its package.")
            .or_sends(zip),
        Operation::delete(ONE, "delete_version", "Delete a version"),
        Operation::post(SCALE_UP, "scale_up_version", "Start workers of a version")
            .takes(&SCALE, &[])
            .nothing(StatusCode::ACCEPTED, "They are being started.")
            .fails(&[409]),
        Operation::post(SCALE_DOWN, "scale_down_version", "Stop workers of a version")
            .takes(&SCALE, &[])
            .nothing(StatusCode::ACCEPTED, "They are being stopped.")
            .fails(&[409]),
        Operation::post(DETACH, "detach_version", "Stop all workers of a version")
            .nothing(StatusCode::ACCEPTED, "They are being stopped."),
    ]
}

const SHAPE: Shape = Shape {
    argument: "body",
    fields: &[
        ignored("id"),
        text("description"),
        read_only("function_id"),
        read_only("version_number"),
        read_only("count"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
    ],
};

#[derive(Debug, Deserialize)]
struct VersionBody {
    description: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FunctionVersion")]
struct VersionView {
    id: String,
    description: Option<String>,
    function_id: String,
    version_number: i32,
    count: i64,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    /// What the version keeps of its function.
    #[schemars(extend("x-since" = "1.1"))]
    entry: Option<String>,
    #[schemars(extend("x-since" = "1.1"))]
    cpu: i32,
    #[schemars(extend("x-since" = "1.1"))]
    memory_size: i64,
    #[schemars(extend("x-since" = "1.1"))]
    timeout: i32,
    #[schemars(extend("x-since" = "1.1"))]
    runtime_id: Option<String>,
    /// Whether `context['os_session']` is a session, and a sentence where it is not.
    #[schemars(extend("x-since" = "1.1"))]
    os_session: bool,
    #[schemars(extend("x-since" = "1.1"))]
    os_session_reason: Option<String>,
    #[schemars(extend("x-since" = "1.1"))]
    network: NetworkAccess,
}

impl From<version::Model> for VersionView {
    fn from(row: version::Model) -> Self {
        Self {
            id: row.id,
            description: row.description,
            function_id: row.function_id.0,
            version_number: row.version_number,
            count: row.count,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            entry: row.entry,
            cpu: row.cpu,
            memory_size: row.memory_size,
            timeout: row.timeout,
            runtime_id: row.runtime_id.map(|id| id.0),
            os_session: row.trust_id.is_some(),
            os_session_reason: row.trust_reason,
            network: row.network,
        }
    }
}

/// The number in the path.
fn number(request: &HttpRequest) -> Result<i32> {
    let text = Value::from(request.match_info().query("version"));
    let admitted = integer("version", 0).admit_integer(&text, 0)?;
    Ok(as_integer(&admitted).and_then(|number| i32::try_from(number).ok()).unwrap_or(0))
}

async fn list(
    caller: Caller,
    app: web::Data<App>,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    let page = page(&list_query(&request, &[])?)?;
    app.policy.enforce(&caller, "function_version:get_all")?;
    let function = app.functions.get(&caller, &id.0.into()).await?;
    let owner = policy::Target::of_project(function.project_id.as_str());
    app.policy.enforce_on(&caller, "function_version:get_all", &owner)?;
    let rows = app.versions.list(&function.id, &page).await?;
    let views: Vec<VersionView> = rows.into_iter().map(VersionView::from).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("function_versions", views)])))
}

/// `POST /v1/functions/{id}/versions`: for the function's own project; to others it is not there.
async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:create")?;
    let VersionBody { description } = body.parse(&SHAPE)?;
    let row = app.versions.create(&caller, &id.0.into(), description).await?;
    Ok(HttpResponse::Created().json(VersionView::from(row)))
}

/// `GET /v1/functions/{id}/versions/{version}`: the version, or with `download` its package. Other query
/// keys are ignored, as in Qinling.
async fn show(
    caller: Caller,
    app: web::Data<App>,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:get")?;
    let download = Query::lenient(&request)?.get("download").and_then(text_as_boolean).unwrap_or(false);
    let row = app.versions.get(&caller, &id.0.into(), number(&request)?).await?;
    let owner = policy::Target::of_project(row.project_id.as_str());
    app.policy.enforce_on(&caller, "function_version:get", &owner)?;
    if !download {
        return Ok(HttpResponse::Ok().json(VersionView::from(row)));
    }
    let digest = row.package_digest.as_deref();
    if let Some(unchanged) = unchanged(&request, digest) {
        return Ok(unchanged);
    }
    let name = format!("{}_{}", row.function_id, row.version_number);
    Ok(zip(&name, app.versions.open(&row).await?, digest))
}

/// `DELETE /v1/functions/{id}/versions/{version}`: for the function's own project, as creation is.
async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:delete")?;
    app.versions.delete(&caller, &id.0.into(), number(&request)?).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// What a path means, if the caller may do to it what `rule` is about.
async fn target(
    app: &App,
    caller: &Caller,
    request: &HttpRequest,
    id: PathId,
    rule: &'static str,
) -> Result<Target> {
    let target = app.versions.target(caller, &id.0.into(), number(request)?).await?;
    let owner = policy::Target::of_project(target.function.project_id.as_str());
    app.policy.enforce_on(caller, rule, &owner)?;
    Ok(target)
}

async fn scale_up(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:scale_up")?;
    let ScaleBody { count } = body.parse(&SCALE)?;
    let target = target(&app, &caller, &request, id, "function_version:scale_up").await?;
    app.engine.scale_up(&target, count.unwrap_or(1)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

async fn scale_down(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:scale_down")?;
    let ScaleBody { count } = body.parse(&SCALE)?;
    let target = target(&app, &caller, &request, id, "function_version:scale_down").await?;
    app.engine.scale_down(&target, count.unwrap_or(1)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// `POST /v1/functions/{id}/versions/{version}/detach`: takes no body, and none is read.
async fn detach(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_version:detach")?;
    let target = target(&app, &caller, &request, id, "function_version:detach").await?;
    app.engine.release(&target.function.id, target.version).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;
    use crate::model::{RuntimeId, Timestamp};

    #[test]
    fn a_view_has_every_field_in_order() {
        let function = testing::function(&RuntimeId::from("r"));
        let row = version::Model {
            id: "v".to_owned(),
            function_id: "f".into(),
            created_at: Timestamp(1_767_323_045_000_000),
            updated_at: None,
            ..testing::version(&function, 3)
        };
        assert_eq!(
            serde_json::to_string(&VersionView::from(row)).unwrap(),
            r#"{"id":"v","description":"first","function_id":"f","version_number":3,"count":7,"project_id":"demo","created_at":"2026-01-02T03:04:05Z","updated_at":null,"entry":"hello.old","cpu":200,"memory_size":33554432,"timeout":6,"runtime_id":"r","os_session":true,"os_session_reason":"none","network":"default"}"#
        );
    }
}
