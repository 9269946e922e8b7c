//! Inputs of calls and of webhooks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai::fuzz::input(data));
