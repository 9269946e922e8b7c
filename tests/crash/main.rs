//! What becomes of accepted work, and of a machine, when processes end in the middle and others stay away.
//! Needs root, Docker, the runtime's image and a cloud: `tox-like-scripts/crash` and `tox-like-scripts/soak`.

mod boundaries;
#[allow(dead_code, reason = "the tests of openstack use the rest")]
#[path = "../openstack/cloud.rs"]
mod cloud;
mod faults;
mod ledger;
mod moments;
#[path = "../../src/db/testing/own.rs"]
mod own;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/service.rs"]
mod service;
mod soak;

/// A number that the scripts may set.
fn number(variable: &str, usual: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
        Err(_) => usual,
    }
}
