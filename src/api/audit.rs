//! Who changed what, and who was not let: one event in CADF, as other services of a cloud write them, for
//! each request that is to change something and each that is denied. No event holds a token, an input, a
//! body, a query, or the key of a webhook's URL.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
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

/// Who made a request; in its extensions once that is known.
#[derive(Debug, Clone)]
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

/// What a request was about, where its path does not say; in its extensions.
#[derive(Debug, Clone)]
pub struct Subject {
    pub id: String,
    pub project_id: String,
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

    /// Writes the event of a request that was answered, if there is one.
    pub fn record(&self, response: ServiceResponse<BoxBody>, request_id: &str) -> ServiceResponse<BoxBody> {
        let status = response.status();
        let denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        let changes = [Method::POST, Method::PUT, Method::DELETE].contains(response.request().method());
        let Some(pattern) = response.request().match_pattern().filter(|_| denied || changes) else {
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
        let event = self.event(response.request(), &pattern, status, made, request_id);
        match &self.file {
            None => tracing::info!(target: "audit", "{event}"),
            Some(file) => {
                if let Err(error) = file.write(&event) {
                    tracing::error!(%error, event = %event, "an audit event could not be written");
                }
            }
        }
        response
    }

    fn event(
        &self,
        request: &HttpRequest,
        pattern: &str,
        status: StatusCode,
        made: Option<String>,
        request_id: &str,
    ) -> Value {
        let extensions = request.extensions();
        let (initiator, subject) = (extensions.get::<Initiator>(), extensions.get::<Subject>());
        let now = Utc::now().format("%Y-%m-%dT%H:%M:%S%.6f+0000").to_string();
        let text = |value: Option<&str>| value.unwrap_or(UNKNOWN).to_owned();
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let mut host = json!({"address": text(request.peer_addr().map(|at| at.ip().to_string()).as_deref())});
        if let Some(agent) = agent {
            host["agent"] = agent.chars().take(AGENT).collect::<String>().into();
        }
        let mut who = json!({
            "typeURI": "service/security/account/user",
            "id": text(initiator.map(|who| who.user_id.as_str())),
            "host": host,
            "credential": {"identity_status": if initiator.is_some() { "Confirmed" } else { "Invalid" }},
            "request_id": request_id,
        });
        if let Some(initiator) = initiator {
            who["project_id"] = initiator.project_id.as_str().into();
            for (key, value) in [("name", &initiator.user_name), ("domain_id", &initiator.user_domain_id)] {
                if let Some(value) = value {
                    who[key] = value.as_str().into();
                }
            }
        }
        let keyed = pattern.contains("{key}");
        let named = || {
            let parts: Vec<&str> = request.match_info().iter().map(|(_, part)| part).collect();
            (!parts.is_empty() && !keyed).then(|| parts.join("/"))
        };
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
        json!({
            "typeURI": "http://schemas.dmtf.org/cloud/audit/1.0/event",
            "id": Uuid::new_v4(),
            "eventType": "activity",
            "eventTime": now,
            "action": action(request.method(), pattern),
            "outcome": if status.is_client_error() || status.is_server_error() { "failure" } else { "success" },
            "reason": {"reasonType": "HTTP", "reasonCode": status.as_u16().to_string()},
            "initiator": who,
            "target": target,
            "observer": {"typeURI": self.service, "id": "target", "name": "taibai"},
            "requestPath": if keyed { pattern } else { request.path() },
        })
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
