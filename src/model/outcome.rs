use schemars::JsonSchema;
use sea_orm::{EnumIter, Iterable};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{ExecutionStatus, Start};

/// Why an execution did not succeed. A closed set of words, stored beside the status and shown in
/// the result, so that a client can decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The function, or the import of its module, raised.
    Raised,
    /// It returned something that is no JSON.
    BadResult,
    ResultTooLarge,
    Timeout,
    OutOfMemory,
    TooManyProcesses,
    TooManyOpenFiles,
    FileTooLarge,
    /// No room was left for its files.
    ScratchFull,
    /// The system refused it something else, or did not say what.
    Exhausted,
    Exit,
    Signal,
    /// It interfered with what runs it.
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
    /// All of them.
    pub fn words() -> impl Iterator<Item = &'static str> {
        Self::iter().map(Self::as_str)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::BadResult => "bad_result",
            Self::ResultTooLarge => "result_too_large",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::TooManyProcesses => "too_many_processes",
            Self::TooManyOpenFiles => "too_many_open_files",
            Self::FileTooLarge => "file_too_large",
            Self::ScratchFull => "scratch_full",
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

/// What an execution took. What is not known is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds from its acceptance until a worker was free for it, or one was begun.
    pub queued_us: Option<i64>,
    /// Microseconds from then until the user's code began.
    pub starting_us: Option<i64>,
    /// Microseconds of the user's code.
    pub run_us: Option<i64>,
    /// Processor time of all its processes, in microseconds.
    pub cpu_us: Option<i64>,
    /// The most memory that they had at once, their interpreter's own included.
    pub peak_memory_bytes: Option<i64>,
}

/// A time as it is stored.
pub fn microseconds(time: std::time::Duration) -> Option<i64> {
    i64::try_from(time.as_micros()).ok()
}

/// How an execution ended, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub status: ExecutionStatus,
    pub reason: Option<Reason>,
    /// The `result` of the v1 API: a JSON object as text.
    pub result: String,
    pub log: String,
    pub log_truncated: bool,
    pub start: Option<Start>,
    pub usage: Usage,
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
            usage: Usage::default(),
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
            usage: Usage::default(),
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
    fn every_word_is_the_one_that_the_description_of_the_api_has() {
        for reason in Reason::iter() {
            assert_eq!(json!(reason), reason.as_str());
        }
    }

    #[test]
    fn what_a_function_returned_is_kept_to_the_letter() {
        let output = RawValue::from_string(r#"{"a":[1,1e400],"b":1}"#.to_owned()).unwrap();
        let outcome = Outcome::returned(Some(&output), 31.2);
        assert_eq!(outcome.result, r#"{"output":{"a":[1,1e400],"b":1},"duration":0.031}"#);
        assert_eq!(Outcome::returned(None, 0.0).result, r#"{"output":null,"duration":0.0}"#);
    }
}
