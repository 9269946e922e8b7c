//! Values in requests, read as Qinling's framework did: what it accepts and what it says otherwise.
//!
//! A body is described by a [`Shape`]. What the shape admits is brought to one form (numbers that
//! were sent as text become numbers, nulls go) and then read into a struct by serde.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The body of a request: how errors name it and which fields it may have.
#[derive(Debug)]
pub struct Shape {
    pub argument: &'static str,
    pub fields: &'static [Field],
}

#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether version 1.0 of the API does not know it.
    pub is_newer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Boolean,
    Integer {
        min: i32,
    },
    Uuid,
    /// A part of the resource that only we write; sending it is refused.
    ReadOnly,
    /// Known and without effect: Qinling let the caller choose ids.
    Ignored,
}

pub const fn text(name: &'static str) -> Field {
    Field { name, kind: Kind::Text, is_newer: false }
}

pub const fn boolean(name: &'static str) -> Field {
    Field { name, kind: Kind::Boolean, is_newer: false }
}

pub const fn integer(name: &'static str, min: i32) -> Field {
    Field { name, kind: Kind::Integer { min }, is_newer: false }
}

pub const fn uuid(name: &'static str) -> Field {
    Field { name, kind: Kind::Uuid, is_newer: false }
}

pub const fn read_only(name: &'static str) -> Field {
    Field { name, kind: Kind::ReadOnly, is_newer: false }
}

pub const fn ignored(name: &'static str) -> Field {
    Field { name, kind: Kind::Ignored, is_newer: false }
}

impl Shape {
    /// The fields of `object` that were given, each in its own type. To `is_first`, a caller of version 1.0,
    /// newer fields are unknown.
    pub fn admit(&self, mut object: Map<String, Value>, is_first: bool) -> Result<Map<String, Value>> {
        let known =
            |name: &str| self.fields.iter().any(|field| field.name == name && !(is_first && field.is_newer));
        let unknown: Vec<&str> = object.keys().map(String::as_str).filter(|name| !known(name)).collect();
        if !unknown.is_empty() {
            let names = shorten(&unknown.join(", "));
            return Err(Error::Invalid(format!("Unknown attribute for argument {}: {names}", self.argument)));
        }
        let mut admitted = Map::new();
        for field in self.fields {
            let Some(value) = object.remove(field.name) else { continue };
            if let Some(value) = field.admit(value)? {
                admitted.insert(field.name.to_owned(), value);
            }
        }
        Ok(admitted)
    }
}

impl Field {
    /// The same field, which is not in version 1.0.
    pub const fn newer(self) -> Self {
        Self { is_newer: true, ..self }
    }

    /// Whether it may be sent at all.
    pub fn is_admitted(&self) -> bool {
        self.kind != Kind::ReadOnly
    }

    /// What `admit` takes, as a JSON schema. The first type is what it becomes.
    pub fn schema(&self) -> Value {
        match self.kind {
            Kind::Text => json!({"type": ["string", "null"]}),
            Kind::Boolean => json!({
                "type": ["boolean", "integer", "string", "null"],
                "pattern": "^(true|t|yes|y|on|1|false|f|no|n|off|0|True|False)$",
            }),
            Kind::Integer { min } => json!({
                "type": ["integer", "string", "null"],
                "minimum": min,
                "maximum": i32::MAX,
                "pattern": "^[0-9]{1,9}$",
            }),
            Kind::Uuid => json!({"type": ["string", "null"], "format": "uuid"}),
            Kind::ReadOnly | Kind::Ignored => json!({"description": "Known, and without effect."}),
        }
    }

    /// The value in this field's type; `None` for null, which means that it was not given.
    fn admit(&self, value: Value) -> Result<Option<Value>> {
        match self.kind {
            Kind::ReadOnly => return Err(invalid(self.name, &value, "Cannot set read only field.")),
            Kind::Ignored => return Ok(None),
            _ if value.is_null() => return Ok(None),
            _ => {}
        }
        let admitted = match self.kind {
            Kind::Text => value.is_string().then_some(value.clone()).ok_or("A string is required."),
            Kind::Boolean => as_boolean(&value).map(Value::from).ok_or("A boolean is required."),
            Kind::Integer { min } => return self.admit_integer(&value, min).map(Some),
            Kind::Uuid => match value.as_str() {
                Some(id) if is_uuid(id) => Ok(value.clone()),
                _ => return Err(Error::Invalid(not_a_uuid(&shown(&value)))),
            },
            Kind::ReadOnly | Kind::Ignored => unreachable!("returned above"),
        };
        admitted.map(Some).map_err(|reason| invalid(self.name, &value, reason))
    }

    pub fn admit_integer(&self, value: &Value, min: i32) -> Result<Value> {
        let number = as_integer(value).ok_or_else(|| invalid(self.name, value, "An integer is required."))?;
        if number < i64::from(min) {
            let reason = format!("Value should be greater or equal to {min}");
            return Err(invalid(self.name, value, &reason));
        }
        if number > i64::from(i32::MAX) {
            let reason = format!("Value should be lower or equal to {}", i32::MAX);
            return Err(invalid(self.name, value, &reason));
        }
        Ok(number.into())
    }
}

/// A number, or text that is one.
pub fn as_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// JSON tells no 5 from 5.0.
#[expect(clippy::cast_possible_truncation, reason = "it is checked to be within")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX)).then_some(number as i64)
}

fn as_boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::Number(number) => number.as_i64().map(|number| number != 0),
        Value::String(text) => text_as_boolean(text),
        _ => None,
    }
}

/// `true`, `yes`, `1` and their like.
pub fn text_as_boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

pub fn is_uuid(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

fn not_a_uuid(text: &str) -> String {
    format!("Expected a uuid but received {}.", shorten(text))
}

/// The error for an id in a path that is none.
pub fn bad_id(name: &str, text: &str) -> Error {
    let reason = format!("unable to convert to uuid. Error: {}", not_a_uuid(text));
    invalid(name, &Value::String(text.to_owned()), &reason)
}

/// The error for a field or a query key with a wrong value.
pub fn invalid(name: &str, value: &Value, reason: &str) -> Error {
    let shown = shorten(&shown(value));
    Error::Invalid(format!("Invalid input for field/attribute {name}. Value: '{shown}'. {reason}"))
}

/// A value as Python writes it, since that is what these texts have always shown.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => quoted(other),
    }
}

fn quoted(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.contains('\'') && !text.contains('"') => format!("\"{text}\""),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        Value::Array(items) => format!("[{}]", items.iter().map(quoted).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let fields = object
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(&Value::String(key.clone())), quoted(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

/// What a caller sent is repeated to them, but not all of it.
pub fn shorten(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        argument: "thing",
        fields: &[
            text("name"),
            boolean("flag"),
            integer("count", 1),
            uuid("function_id"),
            read_only("status"),
            ignored("id"),
        ],
    };

    fn admit(value: Value) -> Result<Value, String> {
        let Value::Object(object) = value else { panic!("an object is needed") };
        SHAPE.admit(object, false).map(Value::Object).map_err(|error| error.to_string())
    }

    #[test]
    fn a_newer_field_is_unknown_to_the_first_version() {
        const NEWER: Shape = Shape { argument: "thing", fields: &[text("name"), text("mode").newer()] };
        let admit = |is_first| {
            let Value::Object(object) = json!({"mode": "x"}) else { panic!("an object was written") };
            NEWER.admit(object, is_first).map_err(|error| error.to_string())
        };
        assert_eq!(admit(false).unwrap()["mode"], "x");
        assert_eq!(admit(true), Err("Unknown attribute for argument thing: mode".to_owned()));
    }

    fn refusal(value: Value) -> String {
        admit(value).unwrap_err()
    }

    #[test]
    fn values_come_in_several_spellings() {
        let spellings = [
            (json!({"flag": "no"}), json!({"flag": false})),
            (json!({"flag": "1"}), json!({"flag": true})),
            (json!({"flag": 0}), json!({"flag": false})),
            (json!({"flag": "ON"}), json!({"flag": true})),
            (json!({"count": "12"}), json!({"count": 12})),
            (json!({"count": 12.0}), json!({"count": 12})),
            (json!({"name": null, "flag": null, "count": null}), json!({})),
            (json!({"id": "chosen"}), json!({})),
            (json!({"name": ""}), json!({"name": ""})),
        ];
        for (sent, read) in spellings {
            assert_eq!(admit(sent.clone()), Ok(read), "{sent}");
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let start = "Invalid input for field/attribute";
        let refusals = [
            (json!({"bogus": 1}), "Unknown attribute for argument thing: bogus".to_owned()),
            (json!({"status": "a"}), format!("{start} status. Value: 'a'. Cannot set read only field.")),
            (json!({"status": null}), format!("{start} status. Value: 'None'. Cannot set read only field.")),
            (json!({"flag": "maybe"}), format!("{start} flag. Value: 'maybe'. A boolean is required.")),
            (json!({"name": 5}), format!("{start} name. Value: '5'. A string is required.")),
            (
                json!({"name": {"a": [true]}}),
                format!("{start} name. Value: '{{'a': [True]}}'. A string is required."),
            ),
            (json!({"count": "x"}), format!("{start} count. Value: 'x'. An integer is required.")),
            (json!({"count": 1.5}), format!("{start} count. Value: '1.5'. An integer is required.")),
            (
                json!({"count": 0}),
                format!("{start} count. Value: '0'. Value should be greater or equal to 1"),
            ),
            (
                json!({"count": 1_u64 << 40}),
                format!(
                    "{start} count. Value: '1099511627776'. Value should be lower or equal to 2147483647"
                ),
            ),
            (json!({"function_id": "bogus"}), "Expected a uuid but received bogus.".to_owned()),
        ];
        for (sent, text) in refusals {
            assert_eq!(refusal(sent), text);
        }
    }

    #[test]
    fn a_long_value_is_not_repeated_whole() {
        assert!(refusal(json!({"flag": "é".repeat(10_000)})).len() < 600);
    }

    #[test]
    fn ids_in_paths_are_checked_loosely() {
        for good in ["deadbeef-0000-4000-8000-00000000dead", "DEADBEEF00004000800000000000DEAD"] {
            assert!(is_uuid(good));
        }
        assert_eq!(
            bad_id("id", "notuuid").to_string(),
            "Invalid input for field/attribute id. Value: 'notuuid'. unable to convert to uuid. \
             Error: Expected a uuid but received notuuid."
        );
    }
}
