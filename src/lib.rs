//! Taibai: functions as a service for OpenStack.
//!
//! The way of an execution reads downwards through `api`, `engine::gateway`, `engine::run`,
//! `engine::pool`, `engine::supervisor` and `engine::recorder`. ARCHITECTURE.md is the map.

pub mod api;
pub mod auth;
pub mod cli;
pub mod config;
pub mod crash_points;
pub mod db;
pub mod engine;
pub mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod model;
pub mod network;
pub mod openstack;
pub mod orchestrator;
pub mod policy;
pub mod quota;
pub mod resource;
pub mod server;
pub mod storage;
pub mod telemetry;
