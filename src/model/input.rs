use serde_json::{Map, Value};

/// The key under which text that is no JSON object reaches a function, as its one positional argument.
pub const FUNCTION_INPUT: &str = "__function_input";

/// The input of an execution: keyword arguments as a JSON object, or nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Input(Option<Map<String, Value>>);

impl Input {
    /// Reads the `input` string of a request. An object is taken as keyword arguments; everything
    /// else is text for the function to read, except nothing at all: absent, empty or `null`.
    pub fn from_text(text: Option<&str>) -> Self {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Self(None) };
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Self(Some(object)),
            Ok(Value::Null) => Self(None),
            _ => {
                let mut object = Map::new();
                object.insert(FUNCTION_INPUT.to_owned(), Value::String(text.to_owned()));
                Self(Some(object))
            }
        }
    }

    pub fn from_object(object: Map<String, Value>) -> Self {
        Self(Some(object))
    }

    /// As it is stored and as it is sent to a worker: the object, or `None`.
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
}
