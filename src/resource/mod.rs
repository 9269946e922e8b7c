//! What exists: functions, runtimes, jobs, webhooks and the right to run them. Validates, stores packages, writes
//! rows in transactions; runs nothing.

pub mod aliases;
pub mod executions;
pub mod functions;
pub mod imports;
pub mod jobs;
pub mod runtimes;
pub mod versions;
pub mod webhooks;

mod packages;
mod references;
mod trusts;

pub use aliases::Aliases;
pub use executions::Executions;
pub use functions::Functions;
pub use jobs::Jobs;
pub use runtimes::Runtimes;
pub use versions::Versions;
pub use webhooks::Webhooks;

use crate::engine::gateway::Gateway;
use crate::error::{Error, Result};
use crate::model::FunctionId;
use crate::telemetry::Chain;

/// Drains the workers of what has changed or is gone. That is committed by now, and the reaper ends what
/// is left, so a failure here is logged and not the caller's.
async fn release(engine: &Gateway, id: &FunctionId, version: i32) {
    if let Err(error) = engine.release(id, version).await {
        tracing::warn!(function.id = %id, version, error = %Chain(&error), "workers were not released");
    }
}

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
