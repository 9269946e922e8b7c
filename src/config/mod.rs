//! taibai.conf: one struct per section, with its defaults. Reads and validates, decides nothing.

mod destination;
mod error;
mod file;
mod formats;
mod load;
mod sample;
mod secrets;
mod section;
mod sections;
mod validate;
mod watched;

pub use destination::{Destination, HostEntry, NameServer, To};
pub use error::Error;
pub use load::Loaded;
pub use sample::{sample, shown};
pub use section::{Opt, Section};
pub use sections::{
    Api, Audit, AuthStrategy, AuthType, Config, Cors, Database, Docker, Durability, Engine, Executions,
    HttpBasic, Images, Jobs, KeystoneAuthtoken, Logging, Missed, Network, NetworkMode, OsloMiddleware,
    OsloPolicy, Pull, QuotaDriver, Quotas, ResourceLimits, Storage, StorageDriver, Trusts,
};
pub use watched::Watched;
