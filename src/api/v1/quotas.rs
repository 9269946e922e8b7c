//! `/v1/quotas`: what a project may have, and what it has.

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::App;
use crate::api::error::ApiError;
use crate::api::extract::NoQuery;
use crate::api::openapi::Operation;
use crate::api::route::newer;
use crate::error::Error;
use crate::model::{Caller, ProjectId};
use crate::policy::Target;
use crate::quota::Usage;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(newer("/v1/quotas", vec![(Method::GET, web::to(own))]))
        .service(newer("/v1/quotas/{project_id}", vec![(Method::GET, web::to(show))]));
}

pub fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/v1/quotas", "show_own_quotas", "Show the quotas of the own project")
            .shows::<QuotasView>(StatusCode::OK, "What the project may have, and what it has.")
            .newer(),
        Operation::get("/v1/quotas/{project_id}", "show_quotas", "Show the quotas of any project")
            .shows::<QuotasView>(StatusCode::OK, "What the project may have, and what it has.")
            .newer(),
    ]
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Quotas")]
struct QuotasView {
    project_id: String,
    /// By resource.
    quotas: BTreeMap<&'static str, QuotaView>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Quota")]
struct QuotaView {
    /// -1 is without a limit, as in other services.
    limit: i64,
    used: u64,
}

/// `GET /v1/quotas`: of the caller's project.
async fn own(caller: Caller, app: web::Data<App>, _: NoQuery) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "quota:get")?;
    answer(&app, &caller.project_id).await
}

/// `GET /v1/quotas/{project_id}`: of any project, for administrators. Whether there is such a project is
/// Keystone's to know.
async fn show(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "quota:get")?;
    let project = ProjectId::from(request.match_info().query("project_id"));
    // No project has it, and not every database takes the question.
    let impossible = project.as_str().len() > 80 || project.as_str().contains('\0');
    if impossible || (project != caller.project_id && !caller.is_admin()) {
        return Err(Error::not_found("Project", &project).into());
    }
    app.policy.enforce_on(&caller, "quota:get", &Target::of_project(project.as_str()))?;
    answer(&app, &project).await
}

async fn answer(app: &App, project: &ProjectId) -> Result<HttpResponse, ApiError> {
    let usage = app.engine.quotas().usage(&app.db, project).await?;
    Ok(HttpResponse::Ok().json(view(project, &usage)))
}

fn view(project: &ProjectId, usage: &[Usage]) -> QuotasView {
    let quota = |usage: &Usage| QuotaView {
        limit: usage.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        used: usage.used,
    };
    let quotas = usage.iter().map(|usage| (usage.resource.name(), quota(usage))).collect();
    QuotasView { project_id: project.to_string(), quotas }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::quota::Resource;

    #[test]
    fn what_has_no_limit_says_so() {
        let usage = [
            Usage { resource: Resource::Jobs, limit: None, used: 3 },
            Usage { resource: Resource::PackageBytes, limit: Some(50 << 30), used: 0 },
        ];
        assert_eq!(
            serde_json::to_value(view(&"p".into(), &usage)).unwrap(),
            json!({"project_id": "p", "quotas": {
                "jobs": {"limit": -1, "used": 3},
                "package_bytes": {"limit": 53_687_091_200_u64, "used": 0},
            }})
        );
    }
}
