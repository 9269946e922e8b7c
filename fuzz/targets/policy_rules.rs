//! Rules of the policy, and files of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taibai::fuzz::policy_rules(data));
