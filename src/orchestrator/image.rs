//! Names of images, and what is needed to get one from its registry.

use std::path::Path;

use bollard::auth::DockerCredentials;
use bollard::models::ImageInspect;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use oci_spec::distribution::Reference;
use wildmatch::WildMatch;

use super::{Error, FoundImage};

/// Where Docker keeps the credentials of its own hub.
const HUB: &str = "https://index.docker.io/v1/";

/// The name of an image in full: registry, repository and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(Reference);

impl ImageName {
    /// Completes what a user writes, as Docker does: `alpine` is `docker.io/library/alpine:latest`. The error is
    /// a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed: Result<Reference, _> = text.parse();
        parsed.map(Self).map_err(|error| format!("{text:?} is no name of an image: {error}."))
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.0.resolve_registry(), self.0.repository())
    }

    /// Refuses, with a sentence, what no pattern of the operator's admits.
    pub fn check_allowed(&self, patterns: &[String]) -> Result<(), String> {
        if self.is_allowed(patterns) {
            return Ok(());
        }
        Err(match patterns {
            [] => "No images are allowed here; [images] allowed is the operator's to set.".to_owned(),
            some => format!("Image {self} is not allowed here. Allowed are: {}.", some.join(", ")),
        })
    }

    fn is_allowed(&self, patterns: &[String]) -> bool {
        let whole = self.0.whole();
        patterns.iter().any(|pattern| WildMatch::new(pattern).matches(&whole))
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.whole())
    }
}

/// What the operator's file has for the registry of an image; `None` where it has nothing.
pub fn credentials(file: &Path, reference: &str) -> Result<Option<DockerCredentials>, Error> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let fail = |error: String| Error::failed("reading [docker] auth_file", error);
    let name = ImageName::parse(reference).map_err(fail)?;
    let registry = name.0.registry().to_owned();
    let key = if registry == "docker.io" { HUB } else { &registry };
    let opened = std::fs::File::open(file).map_err(|error| fail(format!("{}: {error}", file.display())))?;
    let mut credentials = DockerCredentials { serveraddress: Some(registry.clone()), ..Default::default() };
    match get_credential_from_reader(opened, key) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            credentials.username = Some(username);
            credentials.password = Some(password);
        }
        Ok(DockerCredential::IdentityToken(token)) => credentials.identitytoken = Some(token),
        Err(CredentialRetrievalError::NoCredentialConfigured) => return Ok(None),
        // A helper's output may hold what it keeps, so it is not repeated.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            return Err(fail(format!("{}: the credential helper {helper} failed", file.display())));
        }
        Err(error) => return Err(fail(format!("{}: {error}", file.display()))),
    }
    Ok(Some(credentials))
}

/// What Docker says of an image.
pub fn found(reference: &str, image: ImageInspect) -> Result<FoundImage, Error> {
    let no_id = || Error::failed("inspecting an image", format!("{reference} has no id"));
    // The same bytes may have names in several registries, also in ones that somebody else chose.
    let place = |text: &str| ImageName::parse(text).ok().map(|name| name.repository());
    let wanted = place(reference);
    let named = image.repo_digests.unwrap_or_default().into_iter();
    let digest = match named.into_iter().find(|digest| place(digest) == wanted) {
        Some(digest) => digest,
        None => image.id.ok_or_else(no_id)?,
    };
    let volumes = image.config.and_then(|config| config.volumes);
    Ok(FoundImage { digest, has_volumes: volumes.is_some_and(|volumes| !volumes.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_before_it_is_judged() {
        let name = |text: &str| ImageName::parse(text).unwrap();
        assert_eq!(name("alpine").to_string(), "docker.io/library/alpine:latest");
        assert_eq!(name("registry.example.org:5000/a/b:1").to_string(), "registry.example.org:5000/a/b:1");
        let allowed = |text: &str, patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            name(text).is_allowed(&patterns)
        };
        assert!(allowed("alpine", &["docker.io/library/*"]));
        assert!(allowed("alpine:3", &["x", "docker.io/library/alpine:3"]));
        assert!(allowed("registry.example.org/team/a:stable", &["registry.example.org/team/*:stable"]));
        assert!(!allowed("registry.example.org/team/a:next", &["registry.example.org/team/*:stable"]));
        // A registry whose name only begins like one that is allowed.
        assert!(!allowed("docker.io.example.org/library/x", &["docker.io/library/*"]));
        assert!(!allowed("alpine", &[]));
    }

    #[test]
    fn what_is_no_name_is_refused_with_a_sentence() {
        for bad in ["", "A", "a b", "a:", "a@sha256:0", "http://x/y"] {
            let why = ImageName::parse(bad).unwrap_err();
            assert!(why.starts_with(&format!("{bad:?} is no name of an image: ")), "{why}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        // "user:secret", and "hub:other".
        let json = r#"{"auths": {"registry.example.org": {"auth": "dXNlcjpzZWNyZXQ="},
                                 "https://index.docker.io/v1/": {"auth": "aHViOm90aGVy"}}}"#;
        std::fs::write(&file, json).unwrap();
        let of = |reference: &str| {
            let found = credentials(&file, reference).unwrap()?;
            Some((found.username.unwrap(), found.password.unwrap()))
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(of("registry.example.org/a:1"), pair("user", "secret"));
        assert_eq!(of("alpine"), pair("hub", "other"));
        assert_eq!(of("other.example.org/a"), None);
        assert!(credentials(Path::new(""), "alpine").unwrap().is_none());
        let missing = credentials(&directory.path().join("none"), "alpine").unwrap_err();
        assert!(std::error::Error::source(&missing).unwrap().to_string().contains("none: No such file"));
    }
}
