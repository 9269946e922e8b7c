//! The cloud around us, the real one: Keystone and Swift as `tests/cloud/up` brings them up.

mod callers;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod cloud;
mod objects;
mod packages;
mod registration;
mod tokens;
mod trusts;
