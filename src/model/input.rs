use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// The key under which text that is no JSON object reaches a function, as its one positional argument.
pub const FUNCTION_INPUT: &str = "__function_input";

/// Keyword arguments, each as the caller wrote it: a number may have more digits than ours have.
pub type Arguments = BTreeMap<String, Box<RawValue>>;

/// The input of an execution: keyword arguments as a JSON object, or nothing.
#[derive(Debug, Clone, Default)]
pub struct Input(Option<Arguments>);

impl PartialEq for Input {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

impl Input {
    /// Reads the `input` string of a request. An object is taken as keyword arguments; everything
    /// else is text for the function to read, except nothing at all: absent, empty or `null`.
    pub fn from_text(text: Option<&str>) -> Self {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Self(None) };
        if text.trim() == "null" {
            return Self(None);
        }
        let positional = || [(FUNCTION_INPUT.to_owned(), raw(text))].into();
        Self(Some(Self::arguments(text.as_bytes()).unwrap_or_else(positional)))
    }

    /// The arguments that a JSON object has; `None` for everything else.
    pub fn arguments(json: &[u8]) -> Option<Arguments> {
        // Read twice: texts that are kept as they are may be nested deeper than a function's own JSON reads.
        let Ok(Value::Object(_)) = serde_json::from_slice(json) else { return None };
        serde_json::from_slice(json).ok()
    }

    pub fn from_arguments(arguments: Arguments) -> Self {
        Self(Some(arguments))
    }

    /// As it is stored and as it is sent to a worker: the object, or `None`. Arguments are in order of their names.
    pub fn to_json(&self) -> Option<String> {
        self.0.as_ref().map(|object| serde_json::to_string(object).expect("a JSON object has only text keys"))
    }

    /// As the v1 API shows it: the positional text by itself, an object as JSON text.
    pub fn shown(stored: &str) -> String {
        Self::positional(stored).unwrap_or_else(|| stored.to_owned())
    }

    /// The text of an input that was none but text.
    pub fn positional(stored: &str) -> Option<String> {
        match serde_json::from_str::<Map<String, Value>>(stored).ok()?.remove(FUNCTION_INPUT) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }
}

/// A value that is made here, as an argument.
pub fn raw(value: impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(&value).expect("texts and lists of them are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        Input::from_text(Some(text)).to_json().map(|stored| Input::shown(&stored))
    }

    #[test]
    fn nothing_is_no_input() {
        assert_eq!(Input::from_text(None), Input(None));
        for text in ["", "  ", "null"] {
            assert_eq!(shown(text), None, "{text:?}");
        }
    }

    #[test]
    fn text_and_json_that_is_no_object_is_positional() {
        for text in ["Qinling is here", "6", "6.5", "true", "[1, 2]", "\"str\""] {
            assert_eq!(shown(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn an_object_stays_one() {
        assert_eq!(shown("{\"a\": 1}").as_deref(), Some("{\"a\":1}"));
        assert_eq!(shown("{}").as_deref(), Some("{}"));
        assert_eq!(shown("{\"__function_input\": \"a b\", \"k\": 1}").as_deref(), Some("a b"));
    }

    #[test]
    fn a_number_stays_as_long_as_it_is() {
        let text = r#"{"a":123456789012345678901234567890,"b":[0.10000000000000000001,-0.0],"c":1.50}"#;
        assert_eq!(shown(text).as_deref(), Some(text));
    }

    #[test]
    fn an_object_that_no_reader_takes_is_text() {
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        for text in [deep.as_str(), "{\"a\": 1", "{\"a\": \"\\ud800\"}", "{\"a\": 1e400}"] {
            assert_eq!(shown(text).as_deref(), Some(text));
        }
    }
}
