//! What exists: functions, runtimes and the right to run them. Validates, stores packages, writes
//! rows in transactions; runs nothing.

pub mod executions;
pub mod functions;
pub mod imports;
pub mod runtimes;

mod packages;
mod trusts;

pub use executions::Executions;
pub use functions::Functions;
pub use runtimes::Runtimes;

use crate::error::{Error, Result};

/// Refuses text that the table has no room for. Lengths count characters, as the databases do.
fn check_length(field: &str, text: Option<&str>, most: usize) -> Result<()> {
    match text {
        Some(text) if text.chars().count() > most => {
            Err(Error::Invalid(format!("{field} may have at most {most} characters.")))
        }
        Some(text) if text.contains('\0') => {
            Err(Error::Invalid(format!("{field} may not contain the character NUL.")))
        }
        _ => Ok(()),
    }
}

/// Room for names and descriptions.
const MAX_TEXT: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_characters() {
        assert!(check_length("name", Some(&"é".repeat(255)), MAX_TEXT).is_ok());
        let refused = check_length("name", Some(&"x".repeat(256)), MAX_TEXT).unwrap_err();
        assert_eq!(refused.to_string(), "name may have at most 255 characters.");
        assert!(check_length("name", Some("a\0b"), MAX_TEXT).is_err());
        assert!(check_length("name", None, MAX_TEXT).is_ok());
    }
}
