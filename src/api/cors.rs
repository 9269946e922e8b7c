//! Pages of other origins that may call the API, as `[cors]` says.
//!
//! As oslo.middleware does it, which the clients of other services know: a preflight is always answered
//! with 200, and whoever is not allowed to finds nothing in it. actix-cors answers such a one with an error.

use actix_web::http::header::{self, HeaderMap, HeaderValue};

use crate::config;

/// What a page may send without asking.
const SIMPLE: [&str; 5] = ["accept", "accept-language", "content-language", "content-type", "origin"];

#[derive(Debug)]
pub struct Cors {
    origins: Vec<String>,
    allow_credentials: bool,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
    methods: Vec<String>,
    /// In lower case.
    headers: Vec<String>,
}

impl Cors {
    /// Nothing where no origin is allowed.
    pub fn of(config: &config::Cors) -> Option<Self> {
        if config.allowed_origin.is_empty() {
            return None;
        }
        Some(Self {
            origins: config.allowed_origin.clone(),
            allow_credentials: config.allow_credentials,
            expose: HeaderValue::from_str(&config.expose_headers.join(","))
                .ok()
                .filter(|value| !value.is_empty()),
            max_age: HeaderValue::from(config.max_age.as_secs()),
            methods: config.allow_methods.iter().map(|method| method.to_ascii_uppercase()).collect(),
            headers: config.allow_headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
        })
    }

    /// What the answer to `request` says to the page that sent it.
    pub fn apply(&self, request: &HeaderMap, is_preflight: bool, answer: &mut HeaderMap) {
        answer.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = request.get(header::ORIGIN) else { return };
        let Some(origin) = self.admit(origin) else { return };
        let credentials = self.allow_credentials && origin != "*";
        if is_preflight {
            let Some((method, asked)) = self.preflight(request) else { return };
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method);
            if let Some(asked) = asked {
                answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
            }
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        } else if let Some(expose) = &self.expose {
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    fn admit(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Some(origin.clone());
        }
        // Without the caller's credentials: a browser would refuse both at once.
        self.origins.iter().any(|allowed| allowed == "*").then(|| HeaderValue::from_static("*"))
    }

    /// The method and the headers that a page asks for, if it may have all of them.
    fn preflight(&self, request: &HeaderMap) -> Option<(HeaderValue, Option<HeaderValue>)> {
        let method = request.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        if !self.methods.iter().any(|allowed| allowed.as_bytes() == method.as_bytes()) {
            return None;
        }
        let asked = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        if let Some(asked) = asked {
            let mut names = asked.to_str().ok()?.split(',').map(|name| name.trim().to_ascii_lowercase());
            let is_allowed = |name: &String| {
                name.is_empty() || SIMPLE.contains(&name.as_str()) || self.headers.contains(name)
            };
            if !names.all(|name| is_allowed(&name)) {
                return None;
            }
        }
        Some((method.clone(), asked.filter(|asked| !asked.is_empty()).cloned()))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;

    use super::*;

    const PAGE: &str = "https://dashboard.example";

    fn cors(origins: &[&str]) -> Cors {
        let config = config::Cors {
            allowed_origin: origins.iter().map(|&origin| origin.to_owned()).collect(),
            ..config::Cors::default()
        };
        Cors::of(&config).unwrap()
    }

    /// What an answer says, without the prefix that all of these headers have.
    fn answer(
        cors: &Cors,
        is_preflight: bool,
        headers: &[(&'static str, &'static str)],
    ) -> Vec<(String, String)> {
        let mut request = HeaderMap::new();
        for (name, value) in headers {
            request.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut answer = HeaderMap::new();
        cors.apply(&request, is_preflight, &mut answer);
        let mut said: Vec<_> = answer
            .iter()
            .map(|(name, value)| {
                (name.as_str().replace("access-control-", ""), value.to_str().unwrap().to_owned())
            })
            .collect();
        said.sort();
        said
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn nobody_is_allowed_unless_somebody_is() {
        assert!(Cors::of(&config::Cors::default()).is_none());
    }

    #[test]
    fn a_preflight_is_told_what_it_asked_for() {
        let asked = [
            ("origin", PAGE),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "X-Auth-Token, content-type, openstack-api-version"),
        ];
        let said = [
            ("allow-credentials", "true"),
            ("allow-headers", "X-Auth-Token, content-type, openstack-api-version"),
            ("allow-methods", "PUT"),
            ("allow-origin", PAGE),
            ("max-age", "3600"),
            ("vary", "Origin"),
        ];
        assert_eq!(answer(&cors(&[PAGE]), true, &asked), pairs(&said));
    }

    #[test]
    fn who_may_not_finds_nothing() {
        let nothing = pairs(&[("vary", "Origin")]);
        let allowed = cors(&[PAGE]);
        let method = ("access-control-request-method", "GET");
        for asked in [
            vec![("origin", "https://dashboard.example.evil"), method],
            vec![method],
            vec![("origin", PAGE)],
            vec![("origin", PAGE), ("access-control-request-method", "TRACE")],
            vec![("origin", PAGE), method, ("access-control-request-headers", "X-Auth-Token, X-Other")],
        ] {
            assert_eq!(answer(&allowed, true, &asked), nothing, "{asked:?}");
        }
        assert_eq!(answer(&allowed, false, &[("origin", "https://evil.example")]), nothing);
    }

    #[test]
    fn an_answer_says_which_headers_a_page_may_read() {
        let said = answer(&cors(&[PAGE]), false, &[("origin", PAGE)]);
        let exposed = said.iter().find(|(name, _)| name == "expose-headers").unwrap();
        assert!(exposed.1.starts_with(
            "X-Auth-Token,X-Subject-Token,X-Service-Token,X-Project-Id,X-User-Name,X-Project-Name"
        ));
        assert!(said.contains(&("allow-origin".to_owned(), PAGE.to_owned())));
    }

    #[test]
    fn any_page_is_not_given_credentials() {
        let said = answer(&cors(&["*"]), false, &[("origin", PAGE)]);
        assert!(said.contains(&("allow-origin".to_owned(), "*".to_owned())));
        assert!(!said.iter().any(|(name, _)| name == "allow-credentials"), "{said:?}");
    }
}
