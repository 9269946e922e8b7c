//! What Taibai's programs say to each other.
//!
//! [`worker`] is spoken between the engine and the supervisor in a container, as JSON over HTTP on a
//! Unix socket; [`shim`] between the supervisor and a language's shim, as frames on a socket pair;
//! [`engine`] is spoken between an API and an engine that are processes of their own; [`openstack`] is
//! what an execution may do in the cloud, which goes all the way; [`archive`] holds the rules for
//! packages, which both the API and the supervisor apply.
//!
//! Every message refuses fields it does not know, so that a version that does not match shows at
//! the first message and not as a wrong result.

pub mod archive;
pub mod engine;
pub mod openstack;
pub mod shim;
pub mod worker;

/// Version of everything in this package. A worker that speaks another one is not adopted.
pub const VERSION: u32 = 2;
