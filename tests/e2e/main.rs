//! The service from end to end: the binary, real containers, a real database. Needs root, Docker and
//! the runtime's image: `tox-like-scripts/functional`.

mod callers;
mod configuration;
mod executions;
mod rejects;
mod restarts;
mod service;
