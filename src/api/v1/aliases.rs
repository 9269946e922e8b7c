//! `/v1/aliases`

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Listing, PROJECTS, Time, empty, list_query, page};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery};
use crate::api::openapi::Operation;
use crate::api::route::{at, newer};
use crate::api::wire::{Shape, boolean, ignored, integer, read_only, text, uuid};
use crate::error::Result;
use crate::model::{Caller, alias};
use crate::policy::Target;
use crate::resource::aliases::{Canary, Change, New};

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/aliases", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/aliases/{name}",
            vec![
                (Method::GET, web::to(show)),
                (Method::PUT, web::to(update)),
                (Method::DELETE, web::to(delete)),
            ],
        ))
        .service(newer("/v1/aliases/{name}/rollback", vec![(Method::POST, web::to(roll_back))]));
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/aliases/{name}";
    vec![
        Operation::get("/v1/aliases", "list_aliases", "List aliases")
            .filters(&PROJECTS)
            .pages::<alias::Entity>()
            .lists::<AliasView>("function_aliases"),
        Operation::post("/v1/aliases", "create_alias", "Create an alias")
            .takes(&NEW, &["name", "function_id"])
            .shows::<AliasView>(StatusCode::CREATED, "The alias.")
            .fails(&[404, 409]),
        Operation::get(ONE, "show_alias", "Show an alias").shows::<AliasView>(StatusCode::OK, "The alias."),
        Operation::put(ONE, "update_alias", "Change an alias")
            .takes(&CHANGE, &[])
            .shows::<AliasView>(StatusCode::OK, "The alias.")
            .fails(&[409]),
        Operation::delete(ONE, "delete_alias", "Delete an alias"),
        Operation::post(
            "/v1/aliases/{name}/rollback",
            "roll_back_alias",
            "Set an alias to its previous version",
        )
        .newer()
        .shows::<AliasView>(StatusCode::OK, "The alias.")
        .fails(&[409]),
    ]
}

const NEW: Shape = Shape {
    argument: "body",
    fields: &[
        ignored("id"),
        text("name"),
        text("description"),
        uuid("function_id"),
        integer("function_version", 0),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        integer("canary_version", 0).newer(),
        integer("canary_weight", 0).newer(),
        read_only("previous_version").newer(),
    ],
};

const CHANGE: Shape = Shape {
    argument: "body",
    fields: &[
        ignored("id"),
        // It cannot change, and clients send it along.
        ignored("name"),
        text("description"),
        uuid("function_id"),
        integer("function_version", 0),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        integer("canary_version", 0).newer(),
        integer("canary_weight", 0).newer(),
        boolean("remove_canary").newer(),
        read_only("previous_version").newer(),
    ],
};

#[derive(Debug, Deserialize)]
struct AliasBody {
    name: Option<String>,
    description: Option<String>,
    function_id: Option<String>,
    function_version: Option<i32>,
    canary_version: Option<i32>,
    canary_weight: Option<i32>,
    remove_canary: Option<bool>,
}

impl AliasBody {
    fn canary(&self) -> Canary {
        Canary {
            version: self.canary_version,
            weight: self.canary_weight,
            remove: self.remove_canary.unwrap_or(false),
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FunctionAlias")]
struct AliasView {
    id: String,
    name: String,
    description: Option<String>,
    function_id: String,
    function_version: i32,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    #[schemars(extend("x-since" = "1.1"))]
    canary_version: Option<i32>,
    #[schemars(extend("x-since" = "1.1"))]
    canary_weight: i32,
    #[schemars(extend("x-since" = "1.1"))]
    previous_version: Option<i32>,
}

impl From<alias::Model> for AliasView {
    fn from(row: alias::Model) -> Self {
        Self {
            id: row.id,
            name: row.name,
            description: row.description,
            function_id: row.function_id.0,
            function_version: row.function_version,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            canary_version: row.canary_version,
            canary_weight: row.canary_weight,
            previous_version: row.previous_version,
        }
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:get_all")?;
    let query = list_query(&request, &PROJECTS)?;
    let listing = Listing::of(&app.policy, &caller, &query, "function_alias:get_all:all_projects")?;
    let rows = app.aliases.list(&listing.scope, listing.project_id.as_ref(), &page(&query)?).await?;
    let views: Vec<AliasView> = rows.into_iter().map(AliasView::from).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("function_aliases", views)])))
}

async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:create")?;
    let body: AliasBody = body.parse(&NEW)?;
    let new = New {
        canary: body.canary(),
        name: body.name,
        function_id: body.function_id.map(Into::into),
        function_version: body.function_version,
        description: body.description,
    };
    let row = app.aliases.create(&caller, new).await?;
    Ok(HttpResponse::Created().json(AliasView::from(row)))
}

/// The alias that a name means to the caller, if the caller may do to it what `rule` is about.
async fn named(app: &App, caller: &Caller, name: &str, rule: &'static str) -> Result<alias::Model> {
    let row = app.aliases.get(caller, name).await?;
    app.policy.enforce_on(caller, rule, &Target::of_project(row.project_id.as_str()))?;
    Ok(row)
}

async fn show(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:get")?;
    let row = named(&app, &caller, &name, "function_alias:get").await?;
    Ok(HttpResponse::Ok().json(AliasView::from(row)))
}

async fn update(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    name: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:update")?;
    let body: AliasBody = body.parse(&CHANGE)?;
    let row = named(&app, &caller, &name, "function_alias:update").await?;
    let change = Change {
        canary: body.canary(),
        function_id: body.function_id.map(Into::into),
        function_version: body.function_version,
        description: body.description,
    };
    let row = app.aliases.update(&row, change).await?;
    Ok(HttpResponse::Ok().json(AliasView::from(row)))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:delete")?;
    let row = named(&app, &caller, &name, "function_alias:delete").await?;
    app.aliases.delete(&row).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /v1/aliases/{name}/rollback`: takes no body, and none is read.
async fn roll_back(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "function_alias:update")?;
    let row = named(&app, &caller, &name, "function_alias:update").await?;
    let row = app.aliases.roll_back(&row).await?;
    Ok(HttpResponse::Ok().json(AliasView::from(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;
    use crate::model::{RuntimeId, Timestamp};

    #[test]
    fn a_view_has_every_field_in_order() {
        let function = testing::function(&RuntimeId::random());
        let row = alias::Model {
            id: "a".to_owned(),
            function_id: "f".into(),
            created_at: Timestamp(1_767_323_045_000_000),
            updated_at: None,
            ..testing::alias(&function, "prod", 1)
        };
        assert_eq!(
            serde_json::to_string(&AliasView::from(row)).unwrap(),
            r#"{"id":"a","name":"prod","description":"what users call","function_id":"f","function_version":1,"project_id":"demo","created_at":"2026-01-02T03:04:05Z","updated_at":null,"canary_version":2,"canary_weight":10,"previous_version":3}"#
        );
    }
}
