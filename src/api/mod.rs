//! The HTTP edge: the only place that knows status codes and JSON shapes.

pub mod audit;
pub mod cors;
mod endpoint;
pub mod error;
mod etag;
mod extract;
mod forwarded;
pub mod middleware;
mod openapi;
mod route;
#[cfg(test)]
mod tests;
mod v1;
#[cfg(any(test, feature = "fuzz"))]
pub use v1::fuzz;
mod version;
mod wire;

use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::HeaderValue;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use futures_util::future::LocalBoxFuture;
use tracing::Span;

use crate::auth::{Authenticator, Failure, Shown};
use crate::config::Config;
use crate::db::Db;
use crate::engine::gateway::Gateway;
use crate::error::Error;
use crate::model::{Caller, ProjectId};
use crate::openstack::Keystone;
use crate::policy::Policy;
use crate::quota::Rate;
use crate::resource::{Aliases, Executions, Functions, Jobs, Runtimes, Versions, Webhooks};
use crate::storage::PackageStore;
use audit::{Audit, Initiator, Known};
use cors::Cors;
use endpoint::PublicEndpoint;
use error::ApiError;
use middleware::RequestId;

/// What handlers work with. One per process, shared by its HTTP workers as `web::Data<App>`.
pub struct App {
    pub policy: Policy,
    pub authenticator: Authenticator,
    pub runtimes: Runtimes,
    pub functions: Functions,
    pub versions: Versions,
    pub aliases: Aliases,
    pub executions: Executions,
    pub jobs: Jobs,
    pub webhooks: Webhooks,
    /// `None` where nobody wants to know who did what.
    pub audit: Option<Arc<Audit>>,
    /// `None` where projects may ask as fast as they like.
    pub rate: Option<Rate>,
    /// The same for calls of the webhooks of each, apart: who knows a URL must not keep its owner out.
    pub webhook_rate: Option<Rate>,
    /// How callers reach this service.
    pub endpoint: PublicEndpoint,
    /// Pages of other origins that may call it, where there are any.
    pub cors: Option<Cors>,
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
        keystone: Option<Keystone>,
        db: Db,
        store: Arc<dyn PackageStore>,
        engine: Gateway,
    ) -> Self {
        let endpoint = PublicEndpoint::new(config, keystone.clone());
        let functions = Functions::new(db.clone(), Arc::clone(&store), engine.clone(), keystone, config);
        Self {
            policy,
            authenticator,
            audit: Audit::new(config).map(Arc::new),
            rate: Rate::new(&config.quotas),
            webhook_rate: Rate::new(&config.quotas),
            runtimes: Runtimes::new(db.clone(), engine.clone()),
            versions: functions.versions(),
            functions,
            aliases: Aliases::new(db.clone(), engine.quotas().clone()),
            endpoint,
            cors: Cors::of(&config.cors),
            executions: Executions::new(db.clone(), engine.clone()),
            jobs: Jobs::new(db.clone(), engine.clone()),
            webhooks: Webhooks::new(db.clone(), engine.clone()),
            engine,
            db,
            store,
            max_body_bytes: config.api.max_body_bytes,
            max_package_bytes: config.storage.max_package_bytes,
        }
    }

    /// Counts a request among those of a project.
    fn count(&self, project: &ProjectId) -> Result<(), Error> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.check(project))
    }

    /// Counts a call among those of a project's webhooks.
    fn count_call(&self, project: &ProjectId) -> Result<(), Error> {
        self.webhook_rate.as_ref().map_or(Ok(()), |rate| rate.check(project))
    }

    fn of(request: &HttpRequest) -> &web::Data<Self> {
        request.app_data().expect("the server gives every request the state")
    }
}

/// Every URL, and the answer to those that are none.
pub fn routes(config: &mut web::ServiceConfig) {
    config.configure(v1::routes).configure(openapi::routes).default_service(web::to(route::unknown));
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let app = App::of(request).clone();
        let header = |name: &str| request.headers().get(name).cloned();
        let token = header("x-auth-token");
        let service_token = header("x-service-token");
        let authorization = header("authorization");
        let (method, path) = (request.method().clone(), request.path().to_owned());
        let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
        let request = request.clone();
        Box::pin(async move {
            // All of them are ASCII; what is not can be nobody's.
            let text = |value: &Option<HeaderValue>| {
                value.as_ref().map(|value| value.to_str().unwrap_or("").to_owned())
            };
            let (token, service_token) = (text(&token), text(&service_token));
            let authorization = text(&authorization);
            let shown = Shown {
                token: token.as_deref(),
                service_token: service_token.as_deref(),
                authorization: authorization.as_deref(),
                method: method.as_str(),
                path: &path,
                request_id: id.as_deref(),
            };
            let caller = app.authenticator.authenticate(&shown).await.map_err(|failure| match failure {
                Failure::Rejected(rejected) => {
                    ApiError::Unauthorized { rejected, challenge: app.authenticator.challenge() }
                }
                Failure::NoProject => Error::Guarded(failure.to_string()).into(),
                Failure::Unavailable(source) => {
                    Error::Unavailable { what: "The identity service", source }.into()
                }
            })?;
            let mut caller = app.policy.admit(caller);
            caller.request_id = id;
            let span = Span::current();
            span.record("project.id", caller.project_id.as_str());
            span.record("user.id", caller.user_id.as_str());
            if let Some(known) = Known::of(&request) {
                known.initiator(Initiator::of(&caller));
            }
            app.count(&caller.project_id)?;
            Ok(caller)
        })
    }
}
