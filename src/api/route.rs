//! How a URL is given its methods.

use actix_web::http::Method;
use actix_web::{HttpResponse, Resource, Route, guard, web};

use super::error::ApiError;
use super::version::{Asked, FIRST};

#[cfg(test)]
thread_local! {
    /// Every route that this thread has made.
    pub static TABLE: std::cell::RefCell<std::collections::HashSet<(Method, String)>> = std::cell::RefCell::default();
}

/// A resource with a route for each method. Other methods, HEAD among them, are answered with 405 and
/// what is allowed.
pub fn at(path: &str, routes: Vec<(Method, Route)>) -> Resource {
    #[cfg(test)]
    TABLE.with_borrow_mut(|table| {
        table.extend(routes.iter().map(|(method, _)| (method.clone(), path.to_owned())));
    });
    let allow = routes.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ");
    let mut resource = web::resource(path);
    for (method, route) in routes {
        resource = resource.route(route.method(method));
    }
    resource.default_service(web::to(move |method: Method| {
        let refused = ApiError::MethodNotAllowed {
            text: format!("The method {method} is not allowed for this resource."),
            allow: allow.clone(),
        };
        async move { Err::<HttpResponse, _>(refused) }
    }))
}

/// The same for what version 1.0 does not have.
pub fn newer(path: &str, routes: Vec<(Method, Route)>) -> Resource {
    at(path, routes).guard(guard::fn_guard(|context| {
        context.req_data().get::<Asked>().is_none_or(|asked| asked.0 != FIRST)
    }))
}

pub async fn unknown() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NoSuchRoute)
}
