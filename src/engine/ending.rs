//! How an execution's end at its worker is stored and shown: its reason, and a text that clients know.

use std::time::Duration;

use protocol::worker::{End, FILE_BYTES, Limit, OPEN_FILES};

use crate::model::{Outcome, Reason, Start, Usage, microseconds};

/// What Qinling's clients know of a function that used too much.
pub(super) const TOO_MUCH: &str = "Function execution failed because of too much resource consumption";

/// How long the user's code ran. A time that is none, as only a supervisor that went mad says it, counts as none.
pub(super) fn ran_for(outcome: &protocol::worker::Outcome) -> Duration {
    Duration::try_from_secs_f64(outcome.duration_ms / 1000.0).unwrap_or_default()
}

/// How a worker's outcome is stored and shown.
pub(super) fn outcome_of(outcome: protocol::worker::Outcome, start: Start, timeout_ms: u64) -> Outcome {
    let took = outcome.duration_ms;
    let limit = outcome.account.limit;
    let failed = |reason, text: &str, detail: Option<&str>| Outcome::failed(reason, Some(text), detail, took);
    // What Qinling's clients know does not change with the reason.
    let of_limit = |otherwise| limit.map_or(otherwise, reason_of);
    let bound = limit.map(bound_of);
    let or_bound = |said: String| Some(bound.clone().unwrap_or(said));
    let mapped = match &outcome.end {
        End::Returned => Outcome::returned(outcome.output.as_deref(), took),
        End::Raised { message } => failed(of_limit(Reason::Raised), message, bound.as_deref()),
        End::BadResult { reason } => failed(of_limit(Reason::BadResult), reason, None),
        End::TimedOut => {
            // Clients read from it that the function had all of its time.
            let took = took.max(timeout_ms as f64);
            Outcome::failed(Reason::Timeout, Some("Function execution timeout."), None, took)
        }
        End::OutOfMemory => failed(Reason::OutOfMemory, TOO_MUCH, None),
        End::Exhausted { message } => failed(of_limit(Reason::Exhausted), TOO_MUCH, Some(message)),
        End::Exited { code: 0 } => Outcome::failed(Reason::Exit, None, None, took),
        End::Exited { code } => {
            let detail = or_bound(format!("the process ended with code {code}"));
            failed(of_limit(Reason::Exit), TOO_MUCH, detail.as_deref())
        }
        End::Signalled { signal } => {
            let detail = or_bound(format!("the process was ended by signal {signal}"));
            failed(of_limit(Reason::Signal), TOO_MUCH, detail.as_deref())
        }
        End::Misbehaved { reason } => {
            failed(Reason::Misbehaved, "Function interfered with its runtime.", Some(reason))
        }
        End::Cancelled => failed(Reason::Cancelled, "Function execution cancelled.", None),
    };
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    let usage = Usage {
        queued_us: None,
        starting_us: signed(outcome.account.waited_us),
        run_us: microseconds(ran_for(&outcome)),
        cpu_us: signed(outcome.account.cpu_us),
        peak_memory_bytes: signed(outcome.account.peak_memory_bytes),
    };
    Outcome { log: outcome.log, log_truncated: outcome.log_truncated, start: Some(start), usage, ..mapped }
}

/// The word for a limit.
pub(super) fn reason_of(limit: Limit) -> Reason {
    match limit {
        Limit::Memory => Reason::OutOfMemory,
        Limit::Processes => Reason::TooManyProcesses,
        Limit::OpenFiles => Reason::TooManyOpenFiles,
        Limit::FileBytes => Reason::FileTooLarge,
        Limit::ScratchBytes => Reason::ScratchFull,
        Limit::ResultBytes => Reason::ResultTooLarge,
    }
}

/// A sentence for whoever met the limit.
pub(super) fn bound_of(limit: Limit) -> String {
    match limit {
        Limit::Memory => "No more memory is allowed than the function's memory_size.".to_owned(),
        Limit::Processes => {
            "No more processes and threads are allowed; [engine] max_processes run at once.".to_owned()
        }
        Limit::OpenFiles => format!("A process may have {OPEN_FILES} files open."),
        Limit::FileBytes => format!("A file may have {FILE_BYTES} bytes."),
        Limit::ScratchBytes => "No room is left for the function's files.".to_owned(),
        Limit::ResultBytes => "[engine] max_result_bytes are the most that a function may return.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::worker::{Account, Attempt};
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::ExecutionStatus;

    fn shown(end: End, output: Option<&str>) -> (ExecutionStatus, Value) {
        limited(end, output, None)
    }

    fn limited(end: End, output: Option<&str>, limit: Option<Limit>) -> (ExecutionStatus, Value) {
        let outcome = protocol::worker::Outcome {
            attempt: Attempt { execution: "e".to_owned(), epoch: 1 },
            end,
            output: output.map(|json| RawValue::from_string(json.to_owned()).unwrap()),
            duration_ms: 4999.6,
            log: "log".to_owned(),
            log_truncated: true,
            reused: false,
            token_refused: false,
            account: Account { waited_us: Some(20), cpu_us: Some(30), peak_memory_bytes: Some(40), limit },
        };
        let outcome = outcome_of(outcome, Start::Warm, 5000);
        let took = Usage {
            queued_us: None,
            starting_us: Some(20),
            run_us: Some(4_999_600),
            cpu_us: Some(30),
            peak_memory_bytes: Some(40),
        };
        assert_eq!(outcome.usage, took);
        assert_eq!((outcome.log.as_str(), outcome.log_truncated), ("log", true));
        assert_eq!(outcome.start, Some(Start::Warm));
        (outcome.status, serde_json::from_str(&outcome.result).unwrap())
    }

    #[test]
    fn every_end_has_the_text_that_clients_know() {
        use ExecutionStatus::{Cancelled, Failed, Success};
        let message = "no".to_owned();
        let reason = "a set is no JSON".to_owned();
        let cases = [
            (End::Returned, Success, json!({"a": 1})),
            (End::Raised { message: message.clone() }, Failed, json!("no")),
            (End::BadResult { reason: reason.clone() }, Failed, json!(reason)),
            (End::TimedOut, Failed, json!("Function execution timeout.")),
            (End::OutOfMemory, Failed, json!(TOO_MUCH)),
            (End::Exhausted { message }, Failed, json!(TOO_MUCH)),
            (End::Exited { code: 0 }, Failed, Value::Null),
            (End::Exited { code: 3 }, Failed, json!(TOO_MUCH)),
            (End::Signalled { signal: 9 }, Failed, json!(TOO_MUCH)),
            (End::Misbehaved { reason }, Failed, json!("Function interfered with its runtime.")),
            (End::Cancelled, Cancelled, json!("Function execution cancelled.")),
        ];
        for (end, status, output) in cases {
            let (found, result) = shown(end.clone(), Some(r#"{"a":1}"#));
            assert_eq!((found, &result["output"]), (status, &output), "{end:?}");
            assert_eq!(result["duration"], json!(5.0), "{end:?}");
        }
    }

    #[test]
    fn a_limit_gives_an_end_its_reason_and_leaves_it_its_text() {
        use Limit::{FileBytes, Memory, OpenFiles, Processes, ResultBytes, ScratchBytes};
        let raised = || End::Raised { message: "no".to_owned() };
        let exhausted = || End::Exhausted { message: "no".to_owned() };
        let too_large = End::BadResult { reason: "too large".to_owned() };
        let cases = [
            (raised(), OpenFiles, "no", "too_many_open_files", "A process may have 1024 files open."),
            (raised(), FileBytes, "no", "file_too_large", "A file may have 524288000 bytes."),
            (raised(), ScratchBytes, "no", "scratch_full", "No room is left for the function's files."),
            (exhausted(), Memory, TOO_MUCH, "out_of_memory", "no"),
            (exhausted(), Processes, TOO_MUCH, "too_many_processes", "no"),
            (
                End::Signalled { signal: 25 },
                FileBytes,
                TOO_MUCH,
                "file_too_large",
                "A file may have 524288000 bytes.",
            ),
        ];
        for (end, limit, text, reason, detail) in cases {
            let (_, result) = limited(end, None, Some(limit));
            assert_eq!(result, json!({"output": text, "duration": 5.0, "reason": reason, "detail": detail}));
        }
        let (_, result) = limited(too_large, None, Some(ResultBytes));
        assert_eq!((&result["output"], &result["reason"]), (&json!("too large"), &json!("result_too_large")));
        // A success stays one, whatever was refused on the way.
        let (status, result) = limited(End::Returned, None, Some(Processes));
        assert_eq!((status, result.get("reason")), (ExecutionStatus::Success, None));
    }

    #[test]
    fn a_function_that_returns_nothing_succeeds_with_null() {
        let (status, result) = shown(End::Returned, None);
        assert_eq!((status, result), (ExecutionStatus::Success, json!({"output": null, "duration": 5.0})));
    }
}
