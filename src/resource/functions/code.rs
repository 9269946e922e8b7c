//! Where a function's code comes from: an uploaded package, an object in Swift, an image.

use futures_util::TryStreamExt;
use serde_json::{Map, Value, json};
use tokio_util::io::StreamReader;

use super::{Functions, Source};
use crate::error::{Error, Result};
use crate::model::{Caller, function};
use crate::openstack::{self, Keystone, Swift};
use crate::orchestrator::ImageName;
use crate::resource::{MAX_TEXT, check_length};
use crate::storage::{Content, Received};

/// Most bytes of a container's and of an object's name, as Swift has them.
const MAX_CONTAINER: usize = 256;
const MAX_OBJECT: usize = 1024;

/// Code that was looked at and is good.
pub(super) struct New {
    code: Value,
    package: Option<Received>,
    etag: Option<String>,
    bytes: Option<u64>,
}

/// The columns that say where the code is.
pub(super) struct Kept {
    pub code: String,
    pub digest: Option<String>,
    pub bytes: Option<i64>,
    pub etag: Option<String>,
}

impl Functions {
    /// Stores what has to be stored. The row that refers to it is to be written under the same hold.
    pub(super) async fn keep(&self, new: New) -> Result<Kept> {
        let digest = new.package.as_ref().map(|package| package.digest.clone());
        if let Some(package) = new.package {
            self.packages.keep(package).await?;
        }
        let bytes = new.bytes.map(i64::try_from).transpose().map_err(Error::internal)?;
        Ok(Kept { code: new.code.to_string(), digest, bytes, etag: new.etag })
    }

    /// What an update makes of the code; `None` where it stays.
    pub(super) async fn new_code(
        &self,
        caller: &Caller,
        current: &function::Model,
        code: Option<&Map<String, Value>>,
        package: Option<Received>,
    ) -> Result<Option<New>> {
        if current.source()? != Source::Swift {
            return self.new_package(current, code, package).await;
        }
        if package.is_some() {
            return Err(Error::invalid("The function code type can not be changed."));
        }
        let Some(code) = code else { return Ok(None) };
        let part =
            |name: &str| code.get("swift").and_then(|swift| swift.get(name)).filter(|part| !part.is_null());
        if part("container").is_none() && part("object").is_none() {
            return Err(Error::invalid(
                "Either container or object must be provided for swift type function update.",
            ));
        }
        let mut merged: Map<String, Value> = serde_json::from_str(&current.code).map_err(Error::internal)?;
        if let Some(place) = merged.get_mut("swift").and_then(Value::as_object_mut) {
            for name in ["container", "object"] {
                if let Some(value) = part(name) {
                    place.insert(name.to_owned(), value.clone());
                }
            }
        }
        self.object(caller, &merged).await.map(Some)
    }

    async fn new_package(
        &self,
        current: &function::Model,
        code: Option<&Map<String, Value>>,
        package: Option<Received>,
    ) -> Result<Option<New>> {
        let stored: Map<String, Value> = serde_json::from_str(&current.code).map_err(Error::internal)?;
        let claimed = code.and_then(|code| code.get("md5sum")).filter(|md5| !md5.is_null());
        let same = claimed.is_some() && claimed == stored.get("md5sum");
        let Some(package) = package else {
            if claimed.is_some() && !same {
                return Err(Error::invalid(
                    "The package of a function is changed by sending another one as 'package'.",
                ));
            }
            return Ok(None);
        };
        if same {
            return Err(Error::invalid("The function code checksum is not changed."));
        }
        if current.package_digest.as_ref() == Some(&package.digest) && claimed.is_none() {
            return Ok(None);
        }
        let none = Map::new();
        self.package(code.unwrap_or(&none), Some(package)).await.map(Some)
    }

    /// Checks a package, also against what was said of it.
    pub(super) async fn package(&self, code: &Map<String, Value>, package: Option<Received>) -> Result<New> {
        let package = package.ok_or_else(|| {
            Error::invalid(
                "A package is missing: send the zip file as the part 'package' of a multipart form.",
            )
        })?;
        if let Some(claimed) = code.get("md5sum").filter(|md5| !md5.is_null()) {
            let claimed = claimed.as_str().unwrap_or_default();
            if !claimed.eq_ignore_ascii_case(&package.md5) {
                return Err(Error::invalid("Package md5 mismatch."));
            }
        }
        let package = package.check(self.archive_limits).await?;
        Ok(New {
            code: json!({"source": "package", "md5sum": package.md5}),
            bytes: Some(package.bytes),
            package: Some(package),
            etag: None,
        })
    }

    /// Looks at an object in Swift with the caller's rights. Its content is looked at when a worker
    /// gets it.
    pub(super) async fn object(&self, caller: &Caller, code: &Map<String, Value>) -> Result<New> {
        let place = function::Place::of_code(code).ok_or_else(|| {
            Error::invalid("Both container and object must be provided for swift type function.")
        })?;
        let swift = swift_of(self.trusts.keystone(), caller)?;
        if place.container.len() > MAX_CONTAINER || place.container.contains('/') {
            return Err(Error::Invalid(format!(
                "The container's name may have at most {MAX_CONTAINER} bytes, and no slash."
            )));
        }
        if place.object.len() > MAX_OBJECT {
            return Err(Error::Invalid(format!("The object's name may have at most {MAX_OBJECT} bytes.")));
        }
        let refused = |why: &str| Error::Invalid(format!("Failed to validate object in Swift. {why}"));
        let info = match swift.head_object(&place.container, &place.object).await {
            Ok(info) => info,
            Err(openstack::Error::NotFound) => return Err(refused(&format!("There is no object {place}."))),
            Err(openstack::Error::Forbidden { .. } | openstack::Error::Rejected) => {
                return Err(refused(&format!("You may not read the object {place}.")));
            }
            Err(error) => return Err(unavailable(error)),
        };
        if info.bytes > self.max_object_bytes {
            return Err(refused(&format!(
                "The object {place} has {} bytes; at most {} are allowed.",
                info.bytes, self.max_object_bytes
            )));
        }
        let etag = info.etag.ok_or_else(|| {
            refused(&format!("The object {place} is in several segments; store it in one piece."))
        })?;
        Ok(New {
            code: json!({
                "source": "swift",
                "swift": {"container": place.container, "object": place.object},
            }),
            package: None,
            etag: Some(etag),
            bytes: Some(info.bytes),
        })
    }
}

/// Streams a function's object with the caller's rights.
pub(super) async fn open_object(
    keystone: Option<&Keystone>,
    caller: &Caller,
    function: &function::Model,
) -> Result<Content> {
    let place = function.place().ok_or_else(|| Error::internal("a function is stored without its object"))?;
    if caller.project_id != function.project_id {
        // The same names are another object in the caller's account.
        return Err(Error::Guarded(
            "An object in Swift can only be downloaded in its own project.".to_owned(),
        ));
    }
    let swift = swift_of(keystone, caller)?;
    match swift.get_object(&place.container, &place.object).await {
        Ok(object) => {
            let content = object.content.map_err(std::io::Error::other);
            Ok(Content { bytes: object.info.bytes, reader: Box::new(StreamReader::new(content)) })
        }
        Err(openstack::Error::NotFound) => Err(Error::NotFound {
            what: "Object of function",
            key: format!("id={}, object={place}", function.id),
        }),
        Err(openstack::Error::Forbidden { .. } | openstack::Error::Rejected) => {
            Err(Error::Guarded(format!("You may not read the object {place}.")))
        }
        Err(error) => Err(unavailable(error)),
    }
}

fn swift_of(keystone: Option<&Keystone>, caller: &Caller) -> Result<Swift> {
    let (Some(keystone), Some(identity)) = (keystone, &caller.identity) else {
        return Err(Error::invalid("Swift object not supported."));
    };
    let session = keystone.session(identity, caller.request_id.as_deref()).map_err(unavailable)?;
    Ok(session.swift())
}

fn unavailable(error: openstack::Error) -> Error {
    Error::Unavailable { what: "The object store", source: error.into() }
}

/// An image that the operator's patterns admit. Whether it can be had is found out later.
pub(super) fn image(code: &Map<String, Value>, allowed: &[String]) -> Result<New> {
    let image = code.get("image").and_then(Value::as_str).filter(|image| !image.trim().is_empty());
    let image = image.ok_or_else(|| Error::invalid("code must name the image as a string in 'image'."))?;
    check_length("image", Some(image), MAX_TEXT)?;
    let name = ImageName::parse(image).map_err(Error::Invalid)?;
    name.check_allowed(allowed).map_err(Error::Invalid)?;
    Ok(New { code: json!({"source": "image", "image": image}), package: None, etag: None, bytes: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn an_image_function_needs_an_image() {
        let allowed = ["docker.io/library/*".to_owned()];
        let image = |code: Value| image(&object(code), &allowed);
        assert!(image(json!({"source": "image"})).is_err());
        assert!(image(json!({"source": "image", "image": 5})).is_err());
        let new = image(json!({"source": "image", "image": "x", "md5sum": 1})).unwrap();
        assert_eq!(new.code, json!({"source": "image", "image": "x"}));
        let refused = |name: &str| image(json!({"image": name})).map(drop).unwrap_err().to_string();
        assert!(refused("A b").starts_with("\"A b\" is no name of an image: "), "{}", refused("A b"));
        assert_eq!(
            refused("registry.example.org/x:1"),
            "Image registry.example.org/x:1 is not allowed here. Allowed are: docker.io/library/*."
        );
    }

    #[test]
    fn without_keystone_there_are_no_objects() {
        let caller = Caller::new("u", "p", Vec::new());
        let refused = swift_of(None, &caller).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "Swift object not supported.");
    }

    #[test]
    fn a_place_has_two_names() {
        for incomplete in [
            json!({"source": "swift"}),
            json!({"swift": {"container": "c"}}),
            json!({"swift": {"container": "c", "object": ""}}),
            json!({"swift": {"container": "c", "object": 5}}),
            json!({"swift": "c/o"}),
        ] {
            assert_eq!(function::Place::of_code(&object(incomplete.clone())), None, "{incomplete}");
        }
        let place = function::Place::of_code(&object(json!({"swift": {"container": "c", "object": "a/b"}})));
        assert_eq!(place.unwrap().to_string(), "c/a/b");
    }
}
