//! Queries of lists, and their filters as SQL.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai::fuzz::filters(data));
