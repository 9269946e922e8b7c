//! What stops a start. Always one line, which says where, what, and what would be right.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// A file, with the line where one is known, or a variable of the environment.
    pub(super) origin: Option<String>,
    pub(super) section: Option<String>,
    pub(super) key: Option<String>,
    /// Left out where the value may hold a password.
    pub(super) value: Option<String>,
    pub(super) reason: String,
}

impl Error {
    /// Something is wrong with a source as a whole, or with a line that sets nothing.
    pub(super) fn source(origin: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), section: None, key: None, value: None, reason: reason.into() }
    }

    pub(super) fn key(section: &str, key: &str, reason: impl Into<String>) -> Self {
        Self {
            origin: None,
            section: Some(section.to_owned()),
            key: Some(key.to_owned()),
            value: None,
            reason: reason.into(),
        }
    }

    pub(super) fn section(section: &str, reason: impl Into<String>) -> Self {
        Self { key: None, ..Self::key(section, "", reason) }
    }

    pub(super) fn with_value(self, value: impl fmt::Display) -> Self {
        Self { value: Some(value.to_string()), ..self }
    }

    pub(super) fn from(self, origin: Option<&String>) -> Self {
        Self { origin: origin.cloned(), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if let Some(origin) = &self.origin {
            line += &format!("{origin}: ");
        }
        if let Some(section) = &self.section {
            line += &format!("[{section}]");
            if let Some(key) = &self.key {
                line += &format!(" {key}");
            }
            if let Some(value) = &self.value {
                line += &format!(" = {value}");
            }
            line += ": ";
        }
        line += &self.reason;
        // Names and values come from outside, and a line break in one would make two lines.
        for c in line.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
