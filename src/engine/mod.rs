//! What runs: from an accepted execution to its recorded end. Does not know the API.

pub mod gateway;
pub mod supervisor;
