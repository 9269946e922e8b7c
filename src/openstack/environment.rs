//! An administrator's login, from where the `openstack` command has it: a cloud of clouds.yaml that
//! `OS_CLOUD` names, or else the variables `OS_*`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;

use super::wire::{DomainRef, Login, Scope, UserRef};
use crate::config::KeystoneAuthtoken;
use crate::error::Source;
use crate::model::Interface;

/// Who registers.
#[derive(Debug)]
pub struct Administrator {
    /// Only what says how to get there.
    pub(super) connection: KeystoneAuthtoken,
    pub(super) login: Login,
    pub(super) scope: Scope,
}

#[derive(Deserialize)]
struct File {
    clouds: BTreeMap<String, Cloud>,
}

#[derive(Deserialize)]
struct Cloud {
    #[serde(default)]
    auth: BTreeMap<String, String>,
    #[serde(default)]
    region_name: Option<String>,
    #[serde(default)]
    interface: Option<String>,
    #[serde(default)]
    cacert: Option<String>,
    #[serde(default)]
    verify: Option<bool>,
}

/// What was found, and how its keys are called there.
struct Found {
    values: BTreeMap<String, String>,
    named: Box<dyn Fn(&str) -> String>,
}

impl Administrator {
    pub fn from_environment() -> Result<Self, Source> {
        Self::read(&|name| std::env::var(name).ok())
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Source> {
        let found = match variable("OS_CLOUD").filter(|name| !name.is_empty()) {
            Some(name) => cloud(&name, variable)?,
            None => variables(variable),
        };
        found.administrator()
    }

    /// The region that goes with the login.
    pub fn region(&self) -> Option<&str> {
        Some(self.connection.region_name.as_str()).filter(|region| !region.is_empty())
    }
}

fn cloud(name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Found, Source> {
    let home = variable("HOME").unwrap_or_default();
    let places = match variable("OS_CLIENT_CONFIG_FILE").filter(|file| !file.is_empty()) {
        Some(file) => vec![PathBuf::from(file)],
        None => vec![
            PathBuf::from("clouds.yaml"),
            PathBuf::from(home).join(".config/openstack/clouds.yaml"),
            PathBuf::from("/etc/openstack/clouds.yaml"),
        ],
    };
    let Some(path) = places.iter().find(|path| path.exists()) else {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("OS_CLOUD = {name}: there is no {}", places.join(", ")).into());
    };
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: cannot be read: {error}"))?;
    // The reader's own message would quote a line, which may hold a password.
    let mut read: File = serde_saphyr::from_str(&text)
        .map_err(|_| format!("{file}: expected clouds, each with auth and its keys as text"))?;
    let Some(cloud) = read.clouds.remove(name) else {
        let names: Vec<_> = read.clouds.into_keys().collect();
        return Err(format!("OS_CLOUD = {name}: {file} has the clouds {}", names.join(", ")).into());
    };
    let mut values = cloud.auth;
    let insecure = cloud.verify.filter(|verify| !verify).map(|_| "true".to_owned());
    for (key, value) in [
        ("region_name", cloud.region_name),
        ("interface", cloud.interface),
        ("cacert", cloud.cacert),
        ("insecure", insecure),
    ] {
        if let Some(value) = value {
            values.insert(key.to_owned(), value);
        }
    }
    let name = name.to_owned();
    Ok(Found { values, named: Box::new(move |key| format!("{key} of the cloud {name} in {file}")) })
}

fn variables(variable: &dyn Fn(&str) -> Option<String>) -> Found {
    const KEYS: [&str; 17] = [
        "auth_url",
        "username",
        "user_id",
        "password",
        "token",
        "user_domain_id",
        "user_domain_name",
        "project_id",
        "project_name",
        "project_domain_id",
        "project_domain_name",
        "application_credential_id",
        "application_credential_secret",
        "region_name",
        "interface",
        "cacert",
        "insecure",
    ];
    let variable_of = |key: &str| format!("OS_{}", key.to_uppercase());
    let values = KEYS.iter().filter_map(|key| Some(((*key).to_owned(), variable(&variable_of(key))?)));
    Found { values: values.collect(), named: Box::new(variable_of) }
}

impl Found {
    fn get(&self, key: &str) -> Option<String> {
        self.values.get(key).filter(|value| !value.is_empty()).cloned()
    }

    fn need(&self, key: &str) -> Result<String, Source> {
        self.get(key).ok_or_else(|| format!("{}: must not be empty", (self.named)(key)).into())
    }

    fn domain(&self, of: &str) -> DomainRef {
        match self.get(&format!("{of}_domain_id")) {
            Some(id) => DomainRef::Id(id),
            None => DomainRef::Name(
                self.get(&format!("{of}_domain_name")).unwrap_or_else(|| "Default".to_owned()),
            ),
        }
    }

    fn administrator(&self) -> Result<Administrator, Source> {
        let interface = match self.get("interface").as_deref() {
            None | Some("public" | "publicURL") => Interface::Public,
            Some("internal" | "internalURL") => Interface::Internal,
            Some("admin" | "adminURL") => Interface::Admin,
            Some(other) => {
                let key = (self.named)("interface");
                return Err(format!("{key} = {other}: expected public, internal or admin").into());
            }
        };
        let connection = KeystoneAuthtoken {
            auth_url: self.need("auth_url")?,
            region_name: self.get("region_name").unwrap_or_default(),
            interface,
            cafile: self.get("cacert").unwrap_or_default().into(),
            insecure: self.get("insecure").is_some_and(|flag| ["true", "1", "yes"].contains(&flag.as_str())),
            ..KeystoneAuthtoken::default()
        };
        if let Some(id) = self.get("application_credential_id") {
            let secret = SecretString::from(self.need("application_credential_secret")?);
            let login = Login::ApplicationCredential { id, secret };
            return Ok(Administrator { connection, login, scope: Scope::Own });
        }
        let scope = match self.get("project_id") {
            Some(id) => Scope::ProjectId(id),
            None => Scope::Project { name: self.need("project_name")?, domain: self.domain("project") },
        };
        let login = match self.get("token") {
            Some(token) => Login::Token(token.into()),
            None => {
                let user = match self.get("user_id") {
                    Some(id) => UserRef::Id(id),
                    None => UserRef::Name { name: self.need("username")?, domain: self.domain("user") },
                };
                Login::Password { user, password: self.need("password")?.into() }
            }
        };
        Ok(Administrator { connection, login, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Administrator, String> {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Administrator::read(&find).map_err(|error| error.to_string())
    }

    const PASSWORD: [(&str, &str); 4] = [
        ("OS_AUTH_URL", "http://c:5000/v3"),
        ("OS_USERNAME", "admin"),
        ("OS_PASSWORD", "hidden"),
        ("OS_PROJECT_NAME", "admin"),
    ];

    #[test]
    fn the_variables_of_the_openstack_command_are_a_login() {
        let mut variables = PASSWORD.to_vec();
        variables.extend([("OS_REGION_NAME", "RegionOne"), ("OS_USER_DOMAIN_ID", "d")]);
        let known = read(&variables).unwrap();
        assert_eq!(
            (known.connection.auth_url.as_str(), known.region()),
            ("http://c:5000/v3", Some("RegionOne"))
        );
        let Login::Password { user: UserRef::Name { name, domain: DomainRef::Id(domain) }, .. } =
            &known.login
        else {
            panic!("{known:?}")
        };
        assert_eq!((name.as_str(), domain.as_str()), ("admin", "d"));
        assert!(!format!("{known:?}").contains("hidden"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (missing, _) in PASSWORD {
            let rest: Vec<_> = PASSWORD.into_iter().filter(|(name, _)| *name != missing).collect();
            assert_eq!(read(&rest).unwrap_err(), format!("{missing}: must not be empty"));
        }
        let mut variables = PASSWORD.to_vec();
        variables.push(("OS_INTERFACE", "back"));
        assert_eq!(read(&variables).unwrap_err(), "OS_INTERFACE = back: expected public, internal or admin");
    }

    #[test]
    fn a_cloud_of_clouds_yaml_is_a_login() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clouds.yaml");
        std::fs::write(
            &path,
            "clouds:\n  a:\n    region_name: R\n    verify: false\n    auth_type: v3applicationcredential\n    \
             auth:\n      auth_url: http://c/identity\n      application_credential_id: i\n      \
             application_credential_secret: s\n  b:\n    auth: {auth_url: http://c, username: u}\n",
        )
        .unwrap();
        let file = path.to_str().unwrap();
        let of = |cloud| read(&[("OS_CLOUD", cloud), ("OS_CLIENT_CONFIG_FILE", file)]);
        let known = of("a").unwrap();
        assert!(known.connection.insecure && matches!(known.login, Login::ApplicationCredential { .. }));
        assert_eq!(known.region(), Some("R"));
        assert_eq!(of("b").unwrap_err(), format!("project_name of the cloud b in {file}: must not be empty"));
        assert_eq!(of("c").unwrap_err(), format!("OS_CLOUD = c: {file} has the clouds a, b"));
    }
}
