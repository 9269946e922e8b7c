//! The service from end to end: the binary, real containers, a real database. Needs root, Docker and
//! the runtime's image: `tox-like-scripts/functional`.

mod configuration;
mod executions;
#[path = "../../src/db/testing/own.rs"]
mod own;
mod rejects;
mod restarts;
mod service;
mod split;
