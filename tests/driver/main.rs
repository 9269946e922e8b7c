//! Workers in real containers. Needs root, Docker and the runtime's image: `tox-like-scripts/driver`.

mod hostile;
mod isolation;
mod limits;
mod network;
mod node;
mod orchestrator;
mod outcomes;
mod protocol_rules;
mod session;
mod shell;
mod worker;
