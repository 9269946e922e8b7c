//! Who changed what, and who was not let: one event in CADF, as other services of a cloud write them, for
//! each request that is to change something and each that is denied. No event holds a token, an input, a
//! body, a query, or the key of a webhook's URL.

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpMessage, HttpRequest};
use bytes::Bytes;
use chrono::Utc;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::Config;
use crate::model::Caller;

/// Most characters of what a caller says of itself.
const AGENT: usize = 256;
const UNKNOWN: &str = "unknown";

/// Who made a request.
#[derive(Debug)]
pub struct Initiator {
    user_id: String,
    user_name: Option<String>,
    user_domain_id: Option<String>,
    project_id: String,
}

impl Initiator {
    pub fn of(caller: &Caller) -> Self {
        Self {
            user_id: caller.user_id.clone(),
            user_name: caller.user_name.clone(),
            user_domain_id: caller.user_domain_id.clone(),
            project_id: caller.project_id.to_string(),
        }
    }
}

/// What a request was about, where its path does not say.
#[derive(Debug)]
pub struct Subject {
    pub id: String,
    pub project_id: String,
}

/// What handlers find out about a request. In its extensions, and apart from it, as they are gone with it.
#[derive(Debug, Clone, Default)]
pub struct Known(Rc<Found>);

#[derive(Debug, Default)]
struct Found {
    initiator: OnceCell<Initiator>,
    subject: OnceCell<Subject>,
}

impl Known {
    /// `None` where nobody wants to know.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    pub fn initiator(&self, initiator: Initiator) {
        // Whoever it was is the same when it is asked again.
        let _ = self.0.initiator.set(initiator);
    }

    pub fn subject(&self, subject: Subject) {
        let _ = self.0.subject.set(subject);
    }
}

/// A request, as far as events tell of it.
struct Seen {
    method: Method,
    /// `None` for paths that are none of ours.
    pattern: Option<String>,
    path: String,
    /// What stands in the path for the values of the pattern.
    named: String,
    peer: Option<IpAddr>,
    /// Where a proxy passed it on, from where, as the proxy says.
    client: Option<IpAddr>,
    agent: Option<String>,
    request_id: String,
    known: Known,
}

impl Seen {
    fn of(request: &ServiceRequest, request_id: &str, client: Option<IpAddr>) -> Self {
        let pattern = request.match_pattern();
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Self {
            method: request.method().clone(),
            named: pattern.as_ref().map(|of| values(of, request.match_info().as_str())).unwrap_or_default(),
            pattern,
            path: request.path().to_owned(),
            peer: request.peer_addr().map(|at| at.ip()),
            client,
            agent: agent.map(|agent| agent.chars().take(AGENT).collect()),
            request_id: request_id.to_owned(),
            known: Known::default(),
        }
    }

    fn is_change(&self) -> bool {
        [Method::POST, Method::PUT, Method::DELETE].contains(&self.method)
    }
}

/// The parts of a path that stand for values.
fn values(pattern: &str, path: &str) -> String {
    let parts = pattern.split('/').zip(path.split('/'));
    let values: Vec<&str> = parts.filter(|(part, _)| part.starts_with('{')).map(|(_, value)| value).collect();
    values.join("/")
}

/// Sees to it that a request has its event. Its caller may go away before it is answered, and all that handles
/// it is dropped then, while what it asked for goes on: dropping this says so.
pub struct Watch {
    audit: Arc<Audit>,
    seen: Seen,
    is_answered: bool,
}

impl Watch {
    /// Writes the event of a request that was answered, if there is one.
    pub fn answered(mut self, response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
        self.is_answered = true;
        let status = response.status();
        let is_denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        let Some(pattern) = self.seen.pattern.as_ref().filter(|_| is_denied || self.seen.is_change()) else {
            return response;
        };
        let mut made = None;
        let response = match status {
            StatusCode::CREATED | StatusCode::ACCEPTED => {
                response.map_body(|_, body| match body.try_into_bytes() {
                    Ok(bytes) => {
                        made = id_in(&bytes);
                        BoxBody::new(bytes)
                    }
                    Err(body) => body,
                })
            }
            _ => response,
        };
        self.audit.write(&self.audit.event(&self.seen, pattern, Some(status), made));
        response
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(pattern) = &self.seen.pattern
            && !self.is_answered
            && self.seen.is_change()
        {
            self.audit.write(&self.audit.event(&self.seen, pattern, None, None));
        }
    }
}

/// Where events go.
pub struct Audit {
    /// `service/` and the type of this service.
    service: String,
    file: Option<Appended>,
}

impl Audit {
    /// `None` where the configuration asks for none.
    pub fn new(config: &Config) -> Option<Self> {
        let path = &config.audit.file;
        config.audit.enabled.then(|| Self {
            service: format!("service/{}", config.keystone_authtoken.service_type),
            file: (!path.as_os_str().is_empty()).then(|| Appended::new(path.clone())),
        })
    }

    /// Opens the file, also where another has taken its place: after a rotation. Blocks on it.
    pub fn refresh(&self) -> std::io::Result<()> {
        self.file.as_ref().map_or(Ok(()), Appended::refresh)
    }

    /// Looks after a request, from before it is handled. `client` is who sent it to a proxy that is believed.
    pub fn watch(
        self: &Arc<Self>,
        request: &ServiceRequest,
        request_id: &str,
        client: Option<IpAddr>,
    ) -> Watch {
        let seen = Seen::of(request, request_id, client);
        request.extensions_mut().insert(seen.known.clone());
        Watch { audit: Arc::clone(self), seen, is_answered: false }
    }

    fn write(&self, event: &Value) {
        match &self.file {
            None => tracing::info!(target: "audit", "{event}"),
            Some(file) => {
                if let Err(error) = file.write(event) {
                    tracing::error!(%error, %event, "an audit event could not be written");
                }
            }
        }
    }

    /// The event of a request, also of one that was not answered.
    fn event(&self, seen: &Seen, pattern: &str, status: Option<StatusCode>, made: Option<String>) -> Value {
        let (initiator, subject) = (seen.known.0.initiator.get(), seen.known.0.subject.get());
        let now = Utc::now().format("%Y-%m-%dT%H:%M:%S%.6f+0000").to_string();
        let text = |value: Option<&str>| value.unwrap_or(UNKNOWN).to_owned();
        let mut host = json!({"address": text(seen.peer.map(|at| at.to_string()).as_deref())});
        if let Some(agent) = &seen.agent {
            host["agent"] = agent.as_str().into();
        }
        let identity = match (initiator, status) {
            (Some(_), _) => "Confirmed",
            (None, Some(_)) => "Invalid",
            (None, None) => UNKNOWN,
        };
        let mut who = json!({
            "typeURI": "service/security/account/user",
            "id": text(initiator.map(|who| who.user_id.as_str())),
            "host": host,
            "credential": {"identity_status": identity},
            "request_id": seen.request_id,
        });
        if let Some(initiator) = initiator {
            who["project_id"] = initiator.project_id.as_str().into();
            for (key, value) in [("name", &initiator.user_name), ("domain_id", &initiator.user_domain_id)] {
                if let Some(value) = value {
                    who[key] = value.as_str().into();
                }
            }
        }
        if let Some(client) = seen.client {
            // The host stays the peer, of which nobody else tells.
            who["addresses"] = json!([{"name": "forwarded", "url": client.to_string()}]);
        }
        let keyed = pattern.contains("{key}");
        let named = || (!seen.named.is_empty() && !keyed).then(|| seen.named.clone());
        let id = subject.map(|subject| subject.id.clone()).or_else(|| made.or_else(named));
        let mut target = json!({
            "typeURI": format!("{}{}", self.service, kind(pattern)),
            "id": text(id.as_deref()),
        });
        let owner = subject.map(|subject| &subject.project_id).or(initiator.map(|who| &who.project_id));
        if let Some(owner) = owner {
            // As the request means it: an administrator may name what is another's.
            target["project_id"] = owner.as_str().into();
        }
        let outcome = match status {
            None => UNKNOWN,
            Some(status) if status.is_client_error() || status.is_server_error() => "failure",
            Some(_) => "success",
        };
        let mut event = json!({
            "typeURI": "http://schemas.dmtf.org/cloud/audit/1.0/event",
            "id": Uuid::new_v4(),
            "eventType": "activity",
            "eventTime": now,
            "action": action(&seen.method, pattern),
            "outcome": outcome,
            "initiator": who,
            "target": target,
            "observer": {"typeURI": self.service, "id": "target", "name": "taibai"},
            "requestPath": if keyed { pattern } else { &seen.path },
        });
        if let Some(status) = status {
            event["reason"] = json!({"reasonType": "HTTP", "reasonCode": status.as_u16().to_string()});
        }
        event
    }
}

/// What was done, in CADF's words, and behind a slash in ours where it has none.
fn action(method: &Method, pattern: &str) -> String {
    let last = pattern.rsplit('/').next().unwrap_or_default();
    let collection = ["runtimes", "functions", "versions", "aliases", "executions", "jobs", "webhooks"];
    let word = match (method.as_str(), last) {
        ("POST", "invoke") => "start",
        ("POST", "cancel") => "stop",
        ("POST", "rollback") => "restore",
        ("POST", last) if collection.contains(&last) => "create",
        ("POST", verb) => return format!("update/{verb}"),
        ("PUT", _) => "update",
        ("DELETE", _) => "delete",
        (_, last) if collection.contains(&last) => "read/list",
        _ => "read",
    };
    word.to_owned()
}

/// The kind of thing that a path is about: its parts without the version, what stands for a value, and
/// what is a verb.
fn kind(pattern: &str) -> String {
    let verbs = ["scale_up", "scale_down", "detach", "cancel", "rollback", "rotate", "invoke"];
    let parts = pattern.split('/').filter(|part| !part.is_empty() && *part != "v1" && !part.starts_with('{'));
    parts.filter(|part| !verbs.contains(part)).fold(String::new(), |kind, part| format!("{kind}/{part}"))
}

/// The `id` of an object, or the `execution_id`, where one begins with it, as every view does. What
/// follows is not looked at: it may be megabytes of a function's result.
fn id_in(body: &Bytes) -> Option<String> {
    struct First<'a>(&'a mut Option<String>);

    impl<'de> Visitor<'de> for First<'_> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            match map.next_key::<Key>()? {
                Some(Key::Id | Key::ExecutionId) => *self.0 = Some(map.next_value()?),
                Some(Key::Other) => drop(map.next_value::<IgnoredAny>()?),
                None => {}
            }
            Ok(())
        }
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Key {
        Id,
        ExecutionId,
        #[serde(other)]
        Other,
    }

    let mut found = None;
    // That it goes on behind the id is an error to who expected the end.
    let _ = serde_json::Deserializer::from_slice(body).deserialize_map(First(&mut found));
    found
}

/// A file to which lines are appended.
struct Appended {
    path: PathBuf,
    open: Mutex<Option<File>>,
}

impl Appended {
    fn new(path: PathBuf) -> Self {
        Self { path, open: Mutex::default() }
    }

    fn refresh(&self) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let there = std::fs::metadata(&self.path).ok();
        let same = match (open.as_ref().map(File::metadata), there) {
            (Some(Ok(open)), Some(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
            _ => false,
        };
        if !same {
            *open = Some(OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?);
        }
        Ok(())
    }

    /// In one piece, so that lines of several processes do not mix.
    fn write(&self, event: &Value) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = open.as_mut().ok_or_else(|| std::io::Error::other("the file is not open"))?;
        file.write_all(format!("{event}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_in_the_words_of_cadf() {
        for (method, pattern, expected, of) in [
            ("POST", "/v1/functions", "create", "/functions"),
            ("PUT", "/v1/functions/{id}", "update", "/functions"),
            ("DELETE", "/v1/functions/{id}/versions/{version}", "delete", "/functions/versions"),
            ("POST", "/v1/functions/{id}/versions", "create", "/functions/versions"),
            ("POST", "/v1/functions/{id}/versions/{version}/detach", "update/detach", "/functions/versions"),
            ("POST", "/v1/executions/{id}/cancel", "stop", "/executions"),
            ("POST", "/v1/aliases/{name}/rollback", "restore", "/aliases"),
            ("POST", "/v1/webhooks/{key}/invoke", "start", "/webhooks"),
            ("GET", "/v1/functions", "read/list", "/functions"),
            ("GET", "/v1/executions/{id}/log", "read", "/executions/log"),
        ] {
            assert_eq!(action(&method.parse().unwrap(), pattern), expected, "{method} {pattern}");
            assert_eq!(kind(pattern), of, "{pattern}");
        }
    }

    #[test]
    fn a_path_names_what_it_is_about() {
        for (pattern, path, expected) in [
            ("/v1/functions", "/v1/functions", ""),
            ("/v1/functions/{id}", "/v1/functions/a", "a"),
            ("/v1/functions/{id}/versions/{version}/detach", "/v1/functions/a/versions/1/detach", "a/1"),
        ] {
            assert_eq!(values(pattern, path), expected);
        }
    }

    #[test]
    fn an_answer_names_what_was_made_first() {
        let id = |text: &'static str| id_in(&Bytes::from_static(text.as_bytes()));
        assert_eq!(id(r#"{"id":"a","result":"b"}"#).as_deref(), Some("a"));
        assert_eq!(id(r#"{"execution_id":"a"}"#).as_deref(), Some("a"));
        for text in ["", "[]", "{}", r#"{"name":"x","id":"a"}"#, r#"{"id":5}"#, "no JSON"] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("audit"), directory.path().join("audit.1"));
        let file = Appended::new(path.clone());
        assert!(file.write(&json!(0)).is_err());
        file.refresh().unwrap();
        file.write(&json!(1)).unwrap();
        file.refresh().unwrap();
        std::fs::rename(&path, &moved).unwrap();
        file.write(&json!(2)).unwrap();
        file.refresh().unwrap();
        file.write(&json!(3)).unwrap();
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "1\n2\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n");
        assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777 & !0o640, 0);
    }
}
