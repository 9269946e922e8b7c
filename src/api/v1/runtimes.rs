//! `/v1/runtimes`

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Time, connection, empty, list_query, page};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery, PathId};
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::api::wire::{Shape, boolean, ignored, read_only, text};
use crate::error::Error;
use crate::model::{Caller, NetworkAccess, RuntimeId, RuntimeStatus, runtime};
use crate::policy::Target;
use crate::resource::runtimes::{NewRuntime, RuntimeUpdate};

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/runtimes", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/runtimes/{id}",
            vec![
                (Method::GET, web::to(show)),
                (Method::PUT, web::to(update)),
                (Method::DELETE, web::to(delete)),
            ],
        ))
        .service(at("/v1/runtimes/{id}/pool", vec![(Method::GET, web::to(pool))]));
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/runtimes/{id}";
    vec![
        Operation::get("/v1/runtimes", "list_runtimes", "List runtimes")
            .pages::<runtime::Entity>()
            .lists::<RuntimeView>("runtimes"),
        Operation::post("/v1/runtimes", "create_runtime", "Register a runtime")
            .takes(&SHAPE, &["image"])
            .shows::<RuntimeView>(StatusCode::CREATED, "The runtime, which is being looked at."),
        Operation::get(ONE, "show_runtime", "Show a runtime")
            .shows::<RuntimeView>(StatusCode::OK, "The runtime."),
        Operation::put(ONE, "update_runtime", "Change a runtime")
            .takes(&SHAPE, &[])
            .shows::<RuntimeView>(StatusCode::OK, "The runtime.")
            .fails(&[409]),
        Operation::delete(ONE, "delete_runtime", "Delete a runtime"),
        Operation::get("/v1/runtimes/{id}/pool", "show_pool", "Count the workers of a runtime")
            .shows::<PoolView>(StatusCode::OK, "The numbers of workers."),
    ]
}

const SHAPE: Shape = Shape {
    argument: "runtime",
    fields: &[
        ignored("id"),
        text("name"),
        text("image"),
        text("description"),
        boolean("is_public"),
        boolean("trusted"),
        text("network").newer(),
        read_only("status"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
    ],
};

#[derive(Debug, Deserialize)]
struct RuntimeBody {
    name: Option<String>,
    image: Option<String>,
    description: Option<String>,
    is_public: Option<bool>,
    trusted: Option<bool>,
    network: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Runtime")]
struct RuntimeView {
    id: String,
    name: Option<String>,
    image: String,
    description: Option<String>,
    is_public: bool,
    trusted: bool,
    status: RuntimeStatus,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    /// Why the status is `error`. Not one of Qinling's, and behind those that are.
    #[schemars(extend("x-since" = "1.1"))]
    status_reason: Option<String>,
    #[schemars(extend("x-since" = "1.1"))]
    network: NetworkAccess,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Pool")]
struct PoolView {
    /// The runtime's id.
    name: String,
    capacity: Capacity,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Capacity {
    total: u32,
    /// Those that are bound to no function.
    available: u32,
}

impl From<runtime::Model> for RuntimeView {
    fn from(row: runtime::Model) -> Self {
        Self {
            id: row.id.0,
            name: row.name,
            image: row.image,
            description: row.description,
            is_public: row.is_public,
            trusted: row.trusted,
            status: row.status,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            status_reason: row.status_reason,
            network: row.network,
        }
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime:get_all")?;
    let rows = app.runtimes.list(&caller, &page(&list_query(&request, &[])?)?).await?;
    let views: Vec<RuntimeView> = rows.into_iter().map(RuntimeView::from).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("runtimes", views)])))
}

async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime:create")?;
    let body: RuntimeBody = body.parse(&SHAPE)?;
    let image = body.image.ok_or_else(|| Error::invalid("Required param is missing. Required: {'image'}"))?;
    let new = NewRuntime {
        name: body.name,
        image,
        description: body.description,
        is_public: body.is_public.unwrap_or(true),
        trusted: body.trusted.unwrap_or(true),
        network: connection(body.network)?.unwrap_or_default(),
    };
    let row = app.runtimes.create(&caller, new).await?;
    Ok(HttpResponse::Created().json(RuntimeView::from(row)))
}

async fn show(caller: Caller, app: web::Data<App>, _: NoQuery, id: PathId) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime:get")?;
    let row = app.runtimes.get(&caller, &id.0.into()).await?;
    Ok(HttpResponse::Ok().json(RuntimeView::from(row)))
}

async fn update(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime:update")?;
    let RuntimeBody { name, image, description, network, .. } = body.parse(&SHAPE)?;
    let update = RuntimeUpdate { name, image, description, network: connection(network)? };
    let id = id.0.into();
    enforce_on(&app, &caller, "runtime:update", &id).await?;
    let row = app.runtimes.update(&caller, &id, update).await?;
    Ok(HttpResponse::Ok().json(RuntimeView::from(row)))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime:delete")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "runtime:delete", &id).await?;
    app.runtimes.delete(&caller, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `GET /v1/runtimes/{id}/pool`: counts of workers, also of a runtime that has no row any more.
async fn pool(caller: Caller, app: web::Data<App>, _: NoQuery, id: PathId) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "runtime_pool:get_all")?;
    match enforce_on(&app, &caller, "runtime_pool:get_all", &id.0.as_str().into()).await {
        Err(Error::NotFound { .. }) if caller.is_admin() => {}
        asked => asked?,
    }
    let pool = app.engine.pool(&id.0.as_str().into()).await?;
    let pool = pool.ok_or(Error::NotFound { what: "Runtime", key: String::new() })?;
    let capacity = Capacity { total: pool.total, available: pool.available };
    Ok(HttpResponse::Ok().json(PoolView { name: id.0, capacity }))
}

/// Asks the policy about the runtime itself: a public one may be another project's.
async fn enforce_on(app: &App, caller: &Caller, rule: &'static str, id: &RuntimeId) -> Result<(), Error> {
    let row = app.runtimes.get(caller, id).await?;
    app.policy.enforce_on(caller, rule, &Target::of_project(row.project_id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_view_has_every_field_in_order() {
        let row = runtime::Model {
            id: "r".into(),
            project_id: "p".into(),
            name: None,
            description: None,
            image: "img".to_owned(),
            active_image: None,
            status: RuntimeStatus::Creating,
            status_reason: Some("why".to_owned()),
            network: NetworkAccess::None,
            active_network: None,
            is_public: true,
            trusted: false,
            created_at: Timestamp(1_767_323_045_999_999),
            updated_at: None,
        };
        assert_eq!(
            serde_json::to_string(&RuntimeView::from(row)).unwrap(),
            r#"{"id":"r","name":null,"image":"img","description":null,"is_public":true,"trusted":false,"status":"creating","project_id":"p","created_at":"2026-01-02T03:04:05Z","updated_at":null,"status_reason":"why","network":"none"}"#
        );
    }
}
