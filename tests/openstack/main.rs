//! The cloud around us, the real one: Keystone and Swift as `tests/cloud/up` brings them up.

mod callers;
mod cloud;
mod objects;
mod registration;
mod tokens;
mod trusts;
