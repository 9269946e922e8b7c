//! One method of one URL: what it takes and what it answers. Handlers describe theirs beside their routes.

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::api::wire::{Field, Shape};
use crate::db::Listed;
use crate::policy::RULES;

/// Built up by a chain of calls, each of which says one thing.
#[derive(Debug)]
pub struct Operation {
    pub method: Method,
    pub path: &'static str,
    /// A name for programs that make clients of the document.
    pub id: &'static str,
    pub summary: &'static str,
    /// Whether version 1.0 lacks it.
    pub is_newer: bool,
    pub query: Vec<Parameter>,
    pub body: Option<Body>,
    pub answers: Vec<Answer>,
    /// Statuses of errors beside those that every operation of its kind has.
    pub errors: Vec<u16>,
}

#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub about: &'static str,
    pub schema: Value,
    pub is_newer: bool,
}

#[derive(Debug)]
pub enum Body {
    /// A JSON object, and the fields that have to be in it.
    Object(&'static Shape, &'static [&'static str]),
    /// A schema for each of several media types. It may be left out.
    Forms(Vec<(&'static str, Value)>),
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub about: &'static str,
    pub content: Content,
    pub others: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
pub enum Content {
    Nothing,
    /// A view, alone or as the items of a list with a name.
    View {
        list: Option<&'static str>,
        schema: fn(&mut SchemaGenerator) -> Schema,
        inline: fn(&mut SchemaGenerator) -> Schema,
    },
    /// A schema for each of several media types.
    Other(Vec<(&'static str, Value)>),
}

impl Operation {
    fn new(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            id,
            summary,
            is_newer: false,
            query: Vec::new(),
            body: None,
            answers: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub fn get(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::GET, path, id, summary)
    }

    pub fn head(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::HEAD, path, id, summary)
    }

    pub fn post(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::POST, path, id, summary)
    }

    pub fn put(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::PUT, path, id, summary)
    }

    pub fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::DELETE, path, id, summary).nothing(StatusCode::NO_CONTENT, "It is gone.")
    }

    pub fn newer(mut self) -> Self {
        self.is_newer = true;
        self
    }

    pub fn takes(mut self, shape: &'static Shape, required: &'static [&'static str]) -> Self {
        self.body = Some(Body::Object(shape, required));
        self
    }

    pub fn takes_forms(mut self, forms: Vec<(&'static str, Value)>) -> Self {
        self.body = Some(Body::Forms(forms));
        self
    }

    fn answers(mut self, status: StatusCode, about: &'static str, content: Content) -> Self {
        self.answers.push(Answer { status: status.as_u16(), about, content, others: Vec::new() });
        self
    }

    /// Answers with one thing.
    pub fn shows<T: JsonSchema>(self, status: StatusCode, about: &'static str) -> Self {
        let (schema, inline) = (SchemaGenerator::subschema_for::<T>, T::json_schema);
        self.answers(status, about, Content::View { list: None, schema, inline })
    }

    /// Answers with a list under a name.
    pub fn lists<T: JsonSchema>(self, name: &'static str) -> Self {
        let (schema, inline) = (SchemaGenerator::subschema_for::<T>, T::json_schema);
        self.answers(StatusCode::OK, "The list.", Content::View { list: Some(name), schema, inline })
    }

    /// The same status with another content, as the query says.
    pub fn or_sends(mut self, content: (&'static str, Value)) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.others.push(content);
        }
        self
    }

    pub fn nothing(self, status: StatusCode, about: &'static str) -> Self {
        self.answers(status, about, Content::Nothing)
    }

    pub fn sends(self, status: StatusCode, about: &'static str, content: Vec<(&'static str, Value)>) -> Self {
        self.answers(status, about, Content::Other(content))
    }

    pub fn fails(mut self, errors: &[u16]) -> Self {
        self.errors.extend(errors);
        self
    }

    /// A key of the query, read as a field of a body is.
    pub fn asks(mut self, field: Field, about: &'static str) -> Self {
        let schema = in_query(&field);
        self.query.push(Parameter { name: field.name.to_owned(), about, schema, is_newer: field.is_newer });
        self
    }

    /// The keys of a list that are conditions.
    pub fn filters(self, names: &[&'static str]) -> Self {
        self.conditions(names, false)
    }

    /// Those that version 1.0 lacks.
    pub fn newer_filters(self, names: &[&'static str]) -> Self {
        self.conditions(names, true)
    }

    fn conditions(mut self, names: &[&'static str], is_newer: bool) -> Self {
        for &name in names {
            let (about, schema) = match name {
                "all_projects" => {
                    ("Whether to show every project. For administrators.", json!({"type": "boolean"}))
                }
                _ => (
                    "A value, or an operator, a colon and a value: in:a,b or has:text.",
                    json!({"type": "string"}),
                ),
            };
            self.query.push(Parameter { name: name.to_owned(), about, schema, is_newer });
        }
        self
    }

    /// The keys that ask for a part of a list.
    pub fn pages<E: Listed>(mut self) -> Self {
        let keys: Vec<_> = E::KEYS.iter().map(|key| key.name).collect();
        let sort = json!({"type": "string", "pattern": format!("^({})(:(asc|desc))?$", keys.join("|"))});
        for (name, about, schema) in [
            ("limit", "At most so many.", json!({"type": "integer", "minimum": 1, "maximum": i32::MAX})),
            ("marker", "Only what comes after the one with this id.", json!({"type": "string"})),
            ("sort", "What to sort by, and :asc or :desc behind it.", sort),
        ] {
            self.query.push(Parameter { name: name.to_owned(), about, schema, is_newer: true });
        }
        self
    }

    pub fn is_api(&self) -> bool {
        self.path == "/v1" || self.path.starts_with("/v1/")
    }

    /// The rules of the policy that it asks.
    pub fn rules(&self) -> Vec<&'static str> {
        let asks = |(method, path): &(&str, &str)| {
            *method == self.method.as_str()
                && bare(path.split('?').next().unwrap_or_default()) == bare(self.path)
        };
        RULES.iter().filter(|rule| rule.operations.iter().any(asks)).map(|rule| rule.name).collect()
    }

    /// Statuses of all errors that it may have, in order.
    pub fn all_errors(&self) -> Vec<u16> {
        let mut errors = self.errors.clone();
        if self.is_api() {
            errors.extend([400, 406, 500, 503]);
        }
        if !self.rules().is_empty() {
            errors.extend([401, 403, 429]);
        }
        // Version 1.0 has no such path.
        if self.path.contains('{') || self.is_newer {
            errors.push(404);
        }
        if self.body.is_some() {
            errors.push(413);
        }
        errors.sort_unstable();
        errors.dedup();
        errors
    }

    /// What a caller of 1.0 does not find in the answer: the name of the list that it is in, and its fields.
    pub fn newer_fields(&self, status: u16) -> Option<(Option<&'static str>, Vec<String>)> {
        let answer = self.answers.iter().find(|answer| answer.status == status)?;
        let Content::View { list, inline, .. } = &answer.content else { return None };
        let schema = inline(&mut generator()).to_value();
        let fields = schema["properties"].as_object()?.iter();
        let newer: Vec<_> =
            fields.filter(|(_, field)| field.get(SINCE).is_some()).map(|(name, _)| name.clone()).collect();
        (!newer.is_empty()).then_some((*list, newer))
    }
}

/// With this a field says in which version it came: `#[schemars(extend("x-since" = "1.1"))]`.
pub const SINCE: &str = "x-since";

/// Schemas of what we write, so that a field that is always there is required.
pub fn generator() -> SchemaGenerator {
    let mut settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.into_generator()
}

/// A path without the names of its parts.
pub fn bare(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// In a query everything is text, and nothing is null.
fn in_query(field: &Field) -> Value {
    let mut schema = field.schema();
    if let Some(types) = schema["type"].as_array() {
        schema["type"] = types[0].clone();
    }
    schema.as_object_mut().map(|schema| schema.remove("pattern"));
    schema
}

/// The schema of a body: what its shape admits.
pub fn object(shape: &Shape, required: &[&str]) -> Value {
    let properties: BTreeMap<_, _> = shape
        .fields
        .iter()
        .filter(|field| field.is_admitted())
        .map(|field| {
            let mut schema = field.schema();
            if field.is_newer {
                schema[SINCE] = "1.1".into();
            }
            if required.contains(&field.name)
                && let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut)
            {
                types.retain(|kind| kind != "null");
            }
            (field.name, schema)
        })
        .collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}
