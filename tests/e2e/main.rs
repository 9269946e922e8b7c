//! The service from end to end: the binary, real containers, a real database. Needs root, Docker and
//! the runtime's image: `tox-like-scripts/functional`.

mod callers;
mod canary;
mod cancel;
#[allow(dead_code, reason = "the tests of openstack use the rest")]
#[path = "../openstack/cloud.rs"]
mod cloud;
mod configuration;
mod executions;
mod hardening;
mod hostile;
mod identity;
mod images;
mod jobs;
mod limits;
mod network;
mod nodejs;
mod operations;
#[path = "../../src/db/testing/own.rs"]
mod own;
mod packages;
mod quotas;
mod registry;
mod rejects;
mod restarts;
#[allow(dead_code, reason = "the tests of crashes use the rest")]
mod service;
mod split;
mod tenants;
mod versions;
mod waiting;
mod webhooks;
