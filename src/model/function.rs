use sea_orm::entity::prelude::*;

use crate::error::{Error, Result};

use super::{FunctionId, FunctionStatus, NetworkAccess, ProjectId, RuntimeId, Timestamp, TrustId};
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "functions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: FunctionId,
    pub project_id: ProjectId,
    pub name: Option<String>,
    pub description: Option<String>,
    pub runtime_id: Option<RuntimeId>,
    /// Thousandths of a processor.
    pub cpu: i32,
    /// Bytes.
    pub memory_size: i64,
    /// Seconds.
    pub timeout: i32,
    /// The `code` object of the v1 API, as JSON text.
    #[sea_orm(column_type = "Text")]
    pub code: String,
    /// SHA-256 of the package, in hexadecimal; where the bytes are, see `storage`.
    pub package_digest: Option<String>,
    pub package_bytes: Option<i64>,
    /// What Swift called the content of the function's object when it was looked at last.
    pub object_etag: Option<String>,
    pub entry: Option<String>,
    /// Of its own workers.
    pub network: NetworkAccess,
    /// Executions of version 0.
    pub count: i64,
    /// In whose name the function uses the cloud.
    pub trust_id: Option<TrustId>,
    /// Why there is no trust, as a sentence.
    pub trust_reason: Option<String>,
    /// The highest version that there is; 0 where there is none.
    pub latest_version: i32,
    /// The highest number that was ever given to a version: none is given twice.
    pub version_counter: i32,
    pub status: FunctionStatus,
    /// Why the status is `error`.
    #[sea_orm(column_type = "Text", nullable)]
    pub status_reason: Option<String>,
    /// What the name of a function's image meant when it was looked at last, as Docker identifies
    /// images: every execution runs that.
    pub image_digest: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// What tells this code from any other: workers are bound to it.
    pub fn digest(&self) -> Option<String> {
        self.package_digest.clone().or_else(|| self.object_etag.as_deref().map(object_digest))
    }

    /// Where the code comes from. Every row that is stored says so.
    pub fn source(&self) -> Result<Source> {
        let code = serde_json::from_str(&self.code).map_err(Error::internal)?;
        Source::of_code(&code).ok_or_else(|| Error::internal("a function is stored without a source"))
    }

    /// The image that is run, if the function is one, as the user wrote it.
    pub fn image(&self) -> Option<String> {
        let code: serde_json::Map<_, _> = serde_json::from_str(&self.code).ok()?;
        let code: &serde_json::Map<String, serde_json::Value> = &code;
        Some(code.get("image")?.as_str()?.to_owned())
    }

    /// Where the code is, if it is an object in Swift.
    pub fn place(&self) -> Option<Place> {
        Place::of_code(&serde_json::from_str(&self.code).ok()?)
    }
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub container: String,
    pub object: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container, self.object)
    }
}

impl Place {
    /// From the `swift` of a `code` object; `None` where either name is missing.
    pub fn of_code(code: &serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        let named =
            |key| Some(code.get("swift")?.get(key)?.as_str().filter(|name| !name.is_empty())?.to_owned());
        Some(Self { container: named("container")?, object: named("object")? })
    }
}

/// How such a digest begins.
pub const OBJECT: &str = "md5:";

/// The digest of code that is an object in Swift, which is known by its MD5 there.
pub fn object_digest(etag: &str) -> String {
    format!("{OBJECT}{etag}")
}

/// Where a function's code comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Package,
    Swift,
    Image,
}

impl Source {
    /// As a `code` object names it; `None` where it names none that exists.
    pub fn of_code(code: &serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        match code.get("source")?.as_str()? {
            "package" => Some(Self::Package),
            "swift" => Some(Self::Swift),
            "image" => Some(Self::Image),
            _ => None,
        }
    }
}
