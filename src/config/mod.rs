//! taibai.conf: one struct per section, with its defaults. Reads and validates, decides nothing.

mod sections;

pub use sections::{
    Api, AuthStrategy, Config, Database, Docker, Durability, Engine, Logging, ResourceLimits, Storage,
};
