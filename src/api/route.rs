//! How a URL is given its methods.

use actix_web::http::Method;
use actix_web::{HttpResponse, Resource, Route, web};

use super::error::ApiError;

/// A resource with a route for each method. Other methods, HEAD among them, are answered with 405 and
/// what is allowed.
pub fn at(path: &str, routes: Vec<(Method, Route)>) -> Resource {
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

pub async fn unknown() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NoSuchRoute)
}
