//! The form of `POST /v1/functions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai::fuzz::multipart(data));
