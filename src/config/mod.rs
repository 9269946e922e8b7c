//! taibai.conf: one struct per section, with its defaults. Reads and validates, decides nothing.

mod error;
mod file;
mod formats;
mod load;
mod sample;
mod section;
mod sections;
mod validate;
mod watched;

pub use error::Error;
pub use sample::sample;
pub use section::{Opt, Section};
pub use sections::{
    Api, AuthStrategy, Config, Database, Docker, Durability, Engine, HttpBasic, Logging, OsloPolicy,
    ResourceLimits, Storage,
};
pub use watched::Watched;
