//! What the supervisor reads of the engine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai_fuzz::supervisor::engine_messages(data));
