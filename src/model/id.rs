//! Ids: newtypes over text, so that one cannot be passed for another.

use std::fmt;

use sea_orm::{DbErr, DeriveValueType, TryFromU64};
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, DeriveValueType)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// A new random one.
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4().to_string())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        /// sea-orm asks this of every primary key, for databases that count them.
        impl TryFromU64 for $name {
            fn try_from_u64(_: u64) -> Result<Self, DbErr> {
                Err(DbErr::ConvertFromU64(stringify!($name)))
            }
        }
    };
}

impl ExecutionId {
    /// A new one that sorts behind those before it: what is written one after the other is then side by side
    /// in the key's index, however many there are. Part of it is random all the same.
    pub fn next() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

id!(
    /// A Keystone project; opaque.
    ProjectId
);
id!(RuntimeId);
id!(FunctionId);
id!(ExecutionId);
id!(JobId);
id!(WebhookId);
id!(
    /// One run of one engine process; a restart is another.
    EngineId
);
id!(
    /// A trust, as Keystone calls it.
    TrustId
);
id!(
    /// Name of a worker and of its container.
    WorkerName
);
