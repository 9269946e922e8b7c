//! `/v1/jobs`

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Listing, PROJECTS, Time, empty, list_query, page};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::{Body, NoQuery, PathId};
use crate::api::openapi::Operation;
use crate::api::route::at;
use crate::api::wire::{Shape, ignored, integer, read_only, text, uuid};
use crate::engine::target::Reference;
use crate::error::Error;
use crate::model::{Caller, JobId, JobStatus, job};
use crate::policy::Target;
use crate::resource::jobs::{Change, New};

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/jobs", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/jobs/{id}",
            vec![
                (Method::GET, web::to(show)),
                (Method::PUT, web::to(update)),
                (Method::DELETE, web::to(delete)),
            ],
        ));
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/jobs/{id}";
    vec![
        Operation::get("/v1/jobs", "list_jobs", "List jobs")
            .filters(&PROJECTS)
            .pages::<job::Entity>()
            .lists::<JobView>("jobs"),
        Operation::post("/v1/jobs", "create_job", "Have a function run at times")
            .takes(&NEW, &[])
            .shows::<JobView>(StatusCode::CREATED, "The job.")
            .fails(&[404, 409]),
        Operation::get(ONE, "show_job", "Show a job").shows::<JobView>(StatusCode::OK, "The job."),
        Operation::put(ONE, "update_job", "Change a job")
            .takes(&CHANGE, &[])
            .shows::<JobView>(StatusCode::OK, "The job.")
            .fails(&[409]),
        Operation::delete(ONE, "delete_job", "Delete a job"),
    ]
}

const NEW: Shape = Shape {
    argument: "job",
    fields: &[
        ignored("id"),
        text("name"),
        uuid("function_id"),
        text("function_alias"),
        integer("function_version", 0),
        text("function_input"),
        ignored("status"),
        text("pattern"),
        integer("count", 0),
        text("first_execution_time"),
        ignored("next_execution_time"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        read_only("status_reason").newer(),
    ],
};

/// What cannot be changed is no reason to refuse the rest: clients send back what they were shown.
const CHANGE: Shape = Shape {
    argument: "job",
    fields: &[
        ignored("id"),
        text("name"),
        ignored("function_id"),
        ignored("function_alias"),
        ignored("function_version"),
        text("function_input"),
        text("status"),
        text("pattern"),
        ignored("count"),
        ignored("first_execution_time"),
        text("next_execution_time"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        read_only("status_reason").newer(),
    ],
};

#[derive(Debug, Deserialize)]
struct NewBody {
    name: Option<String>,
    function_id: Option<String>,
    function_alias: Option<String>,
    function_version: Option<i32>,
    function_input: Option<String>,
    pattern: Option<String>,
    count: Option<i32>,
    first_execution_time: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ChangeBody {
    name: Option<String>,
    function_input: Option<String>,
    status: Option<String>,
    pattern: Option<String>,
    next_execution_time: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
struct JobView {
    id: String,
    name: Option<String>,
    function_id: Option<String>,
    function_alias: Option<String>,
    function_version: i32,
    function_input: Option<String>,
    status: JobStatus,
    pattern: Option<String>,
    count: Option<i32>,
    first_execution_time: Option<Time>,
    next_execution_time: Time,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    /// Why the last instant ran nothing, or why the service cancelled the job.
    #[schemars(extend("x-since" = "1.1"))]
    status_reason: Option<String>,
}

impl From<job::Model> for JobView {
    fn from(row: job::Model) -> Self {
        Self {
            id: row.id.0,
            name: row.name,
            function_id: row.function_id.map(|id| id.0),
            function_alias: row.function_alias,
            function_version: row.function_version.unwrap_or(0),
            function_input: row.function_input,
            status: row.status,
            pattern: row.pattern,
            count: row.count,
            first_execution_time: row.first_execution_time.map(Time),
            next_execution_time: Time(row.next_execution_time),
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            status_reason: row.status_reason,
        }
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "job:get_all")?;
    let query = list_query(&request, &PROJECTS)?;
    let listing = Listing::of(&app.policy, &caller, &query, "job:get_all:all_projects")?;
    let rows = app.jobs.list(&listing.scope, listing.project_id.as_ref(), &page(&query)?).await?;
    let views: Vec<JobView> = rows.into_iter().map(JobView::from).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("jobs", views)])))
}

async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "job:create")?;
    let body: NewBody = body.parse(&NEW)?;
    let new = New {
        reference: Reference {
            function_id: body.function_id.map(Into::into),
            version: body.function_version.unwrap_or(0),
            alias: body.function_alias,
        },
        name: body.name,
        pattern: body.pattern,
        first_execution_time: body.first_execution_time,
        count: body.count,
        function_input: body.function_input,
    };
    let row = app.jobs.create(&caller, new).await?;
    Ok(HttpResponse::Created().json(JobView::from(row)))
}

async fn show(caller: Caller, app: web::Data<App>, _: NoQuery, id: PathId) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "job:get")?;
    let row = app.jobs.get(&caller, &id.0.into()).await?;
    app.policy.enforce_on(&caller, "job:get", &Target::of_project(row.project_id.as_str()))?;
    Ok(HttpResponse::Ok().json(JobView::from(row)))
}

async fn update(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "job:update")?;
    let body: ChangeBody = body.parse(&CHANGE)?;
    let id = id.0.into();
    enforce_on(&app, &caller, "job:update", &id).await?;
    let change = Change {
        name: body.name,
        function_input: body.function_input,
        status: body.status,
        pattern: body.pattern,
        next_execution_time: body.next_execution_time,
    };
    let row = app.jobs.update(&caller, &id, change).await?;
    Ok(HttpResponse::Ok().json(JobView::from(row)))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "job:delete")?;
    let id = id.0.into();
    enforce_on(&app, &caller, "job:delete", &id).await?;
    app.jobs.delete(&caller, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Asks the policy about the job itself. Others than administrators see those of the project about
/// which it has been asked already.
async fn enforce_on(app: &App, caller: &Caller, rule: &'static str, id: &JobId) -> Result<(), Error> {
    if !caller.is_admin() {
        return Ok(());
    }
    let row = app.jobs.get(caller, id).await?;
    app.policy.enforce_on(caller, rule, &Target::of_project(row.project_id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_view_has_every_field_in_order() {
        let time = Timestamp(1_767_323_045_000_000);
        let row = job::Model {
            id: "j".into(),
            project_id: "p".into(),
            name: None,
            pattern: Some("0 21 * * *".to_owned()),
            status: JobStatus::Cancelled,
            status_reason: Some("why".to_owned()),
            first_execution_time: Some(time),
            next_execution_time: time,
            count: None,
            function_id: Some("f".into()),
            function_version: None,
            function_alias: None,
            function_input: Some("{\"a\": 1}".to_owned()),
            created_at: time,
            updated_at: None,
        };
        assert_eq!(
            serde_json::to_string(&JobView::from(row)).unwrap(),
            r#"{"id":"j","name":null,"function_id":"f","function_alias":null,"function_version":0,"function_input":"{\"a\": 1}","status":"cancelled","pattern":"0 21 * * *","count":null,"first_execution_time":"2026-01-02T03:04:05Z","next_execution_time":"2026-01-02T03:04:05Z","project_id":"p","created_at":"2026-01-02T03:04:05Z","updated_at":null,"status_reason":"why"}"#
        );
    }
}
