use serde_json::json;
use serde_json::value::RawValue;

use super::{ExecutionStatus, Start};

/// Why an execution did not succeed. A closed set of words, stored beside the status and shown in
/// the result, so that a client can decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Raised,
    BadResult,
    Timeout,
    OutOfMemory,
    Exhausted,
    Exit,
    Signal,
    Misbehaved,
    Cancelled,
    /// The package could not be unpacked, or the worker not be started.
    Preparation,
    NoCapacity,
    /// The process that ran a synchronous call ended.
    Interrupted,
    /// The worker of an asynchronous execution is gone, and it may have run.
    WorkerLost,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::BadResult => "bad_result",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::Exhausted => "exhausted",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Misbehaved => "misbehaved",
            Self::Cancelled => "cancelled",
            Self::Preparation => "preparation",
            Self::NoCapacity => "no_capacity",
            Self::Interrupted => "interrupted",
            Self::WorkerLost => "worker_lost",
        }
    }
}

/// How an execution ended, as it is stored.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: ExecutionStatus,
    pub reason: Option<Reason>,
    /// The `result` of the v1 API: a JSON object as text.
    pub result: String,
    pub log: String,
    pub log_truncated: bool,
    pub start: Option<Start>,
}

impl Outcome {
    /// What a function returned.
    pub fn returned(output: Option<&RawValue>, duration_ms: f64) -> Self {
        Self {
            status: ExecutionStatus::Success,
            reason: None,
            // Written around what the function returned, which is JSON already and is not read again:
            // its numbers may be longer than ours.
            result: format!(
                "{{\"output\":{},\"duration\":{}}}",
                output.map_or("null", RawValue::get),
                json!(seconds(duration_ms))
            ),
            log: String::new(),
            log_truncated: false,
            start: None,
        }
    }

    /// A function that failed; `text` is what Qinling's clients know, `detail` says more.
    pub fn failed(reason: Reason, text: Option<&str>, detail: Option<&str>, duration_ms: f64) -> Self {
        let status =
            if reason == Reason::Cancelled { ExecutionStatus::Cancelled } else { ExecutionStatus::Failed };
        let mut result = json!({"output": text, "duration": seconds(duration_ms), "reason": reason.as_str()});
        if let Some(detail) = detail {
            result["detail"] = json!(detail);
        }
        Self { status, reason: Some(reason), result: result.to_string(), ..Self::empty() }
    }

    /// How a container ended. It has written a log and returned nothing.
    pub fn image(
        status: ExecutionStatus,
        failure: Option<(Reason, &str, Option<&str>)>,
        seconds: u64,
    ) -> Self {
        let mut result = json!({});
        if let Some((reason, text, detail)) = failure {
            result["output"] = json!(text);
            result["reason"] = json!(reason.as_str());
            if let Some(detail) = detail {
                result["detail"] = json!(detail);
            }
        }
        result["duration"] = json!(seconds);
        let reason = failure.map(|(reason, ..)| reason);
        Self { status, reason, result: result.to_string(), ..Self::empty() }
    }

    /// Something that Taibai could not do.
    pub fn error(reason: Reason, detail: &str) -> Self {
        let result =
            json!({"output": "Function execution failed.", "reason": reason.as_str(), "detail": detail});
        Self { reason: Some(reason), result: result.to_string(), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            status: ExecutionStatus::Error,
            reason: None,
            result: String::new(),
            log: String::new(),
            log_truncated: false,
            start: None,
        }
    }
}

/// Seconds with three decimals.
fn seconds(milliseconds: f64) -> f64 {
    milliseconds.round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_function_returned_is_kept_to_the_letter() {
        let output = RawValue::from_string(r#"{"a":[1,1e400],"b":1}"#.to_owned()).unwrap();
        let outcome = Outcome::returned(Some(&output), 31.2);
        assert_eq!(outcome.result, r#"{"output":{"a":[1,1e400],"b":1},"duration":0.031}"#);
        assert_eq!(Outcome::returned(None, 0.0).result, r#"{"output":null,"duration":0.0}"#);
    }
}
