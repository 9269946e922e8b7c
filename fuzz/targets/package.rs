//! What an uploaded package does to the check of the upload and to the unpacking in a container.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai_fuzz::package(data));
