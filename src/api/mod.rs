//! The HTTP edge: the only place that knows status codes and JSON shapes.

pub mod error;
mod extract;
pub mod middleware;
mod route;
#[cfg(test)]
mod tests;
mod v1;
mod wire;

use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::LocalBoxFuture;
use tracing::Span;

use crate::auth::{Authenticator, Credentials};
use crate::config::Config;
use crate::db::Db;
use crate::engine::gateway::Gateway;
use crate::model::Caller;
use crate::policy::Policy;
use crate::resource::{Executions, Functions, Runtimes};
use crate::storage::PackageStore;
use error::ApiError;

/// What handlers work with. One per process, shared by its HTTP workers as `web::Data<App>`.
pub struct App {
    pub policy: Policy,
    pub authenticator: Authenticator,
    pub runtimes: Runtimes,
    pub functions: Functions,
    pub executions: Executions,
    pub engine: Gateway,
    pub db: Db,
    pub store: Arc<dyn PackageStore>,
    /// Most bytes of a body, packages excepted.
    pub max_body_bytes: u64,
    /// Most bytes of a package.
    pub max_package_bytes: u64,
}

impl App {
    pub fn new(
        config: &Config,
        policy: Policy,
        authenticator: Authenticator,
        db: Db,
        store: Arc<dyn PackageStore>,
        engine: Gateway,
    ) -> Self {
        Self {
            policy,
            authenticator,
            runtimes: Runtimes::new(db.clone(), engine.clone()),
            functions: Functions::new(db.clone(), Arc::clone(&store), engine.clone(), config),
            executions: Executions::new(db.clone(), engine.clone()),
            engine,
            db,
            store,
            max_body_bytes: config.api.max_body_bytes,
            max_package_bytes: config.storage.max_package_bytes,
        }
    }

    fn of(request: &HttpRequest) -> &web::Data<Self> {
        request.app_data().expect("the server gives every request the state")
    }
}

/// Every URL, and the answer to those that are none.
pub fn routes(config: &mut web::ServiceConfig) {
    config.configure(v1::routes).default_service(web::to(route::unknown));
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let app = App::of(request).clone();
        let header = |name: &str| request.headers().get(name).cloned();
        let (token, authorization) = (header("x-auth-token"), header("authorization"));
        Box::pin(async move {
            // Both are ASCII; what is not can be nobody's.
            let credentials = Credentials {
                token: token.as_ref().map(|value| value.to_str().unwrap_or("")),
                authorization: authorization.as_ref().map(|value| value.to_str().unwrap_or("")),
            };
            let caller = app.authenticator.authenticate(credentials).await;
            let caller = caller.map_err(|rejected| ApiError::Unauthorized {
                rejected,
                challenge: app.authenticator.challenge(),
            })?;
            let caller = app.policy.admit(caller);
            let span = Span::current();
            span.record("project.id", caller.project_id.as_str());
            span.record("user.id", caller.user_id.as_str());
            Ok(caller)
        })
    }
}
