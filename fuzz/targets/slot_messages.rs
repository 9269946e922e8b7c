//! What the supervisor reads of a slot's process, which is a stranger's.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai_fuzz::supervisor::slot_messages(data));
