//! What the engine reads of a supervisor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai::fuzz::worker_answers(data));
