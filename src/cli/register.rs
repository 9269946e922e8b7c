//! `taibai register` and `taibai unregister`: the service in Keystone.

use std::io::Write;
use std::path::Path;

use clap::Args;

use super::{Result, runtime};
use crate::config::Config;
use crate::model::Interface;
use crate::openstack::{Administrator, Registration, Registry};
use crate::quota::Limits;

/// Where the service is, for the catalog.
#[derive(Debug, Args)]
pub struct Register {
    /// URL for users, such as http://controller:7070.
    #[arg(long, value_name = "URL", value_parser = url)]
    public_url: String,
    /// URL for services; else the one for users.
    #[arg(long, value_name = "URL", value_parser = url)]
    internal_url: Option<String>,
    /// URL for administration; else the one for services.
    #[arg(long, value_name = "URL", value_parser = url)]
    admin_url: Option<String>,
    /// Role that the service's user gets in its project beside `service`, once for each: one that Swift
    /// lets keep objects, for `[storage] driver = swift`.
    #[arg(long = "role", value_name = "NAME")]
    roles: Vec<String>,
    /// Register the limits of projects too, as `[quotas]` has them, for `[quotas] driver = unified_limits`.
    /// One that is registered already stays as it is.
    #[arg(long)]
    limits: bool,
    #[command(flatten)]
    region: Region,
}

#[derive(Debug, Args)]
pub struct Region {
    /// Region; else `region_name` of the configuration, else that of the administrator's login.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

pub fn register(arguments: Register, path: Option<&Path>) -> Result {
    let Register { public_url, internal_url, admin_url, roles, limits, region } = arguments;
    let internal_url = internal_url.unwrap_or_else(|| public_url.clone());
    let admin_url = admin_url.unwrap_or_else(|| internal_url.clone());
    let urls = vec![
        (Interface::Public, public_url),
        (Interface::Internal, internal_url),
        (Interface::Admin, admin_url),
    ];
    let wanted = Some(Wanted { urls, roles, limits });
    run(region, path, wanted)
}

pub fn unregister(region: Region, path: Option<&Path>) -> Result {
    run(region, path, None)
}

struct Wanted {
    urls: Vec<(Interface, String)>,
    roles: Vec<String>,
    limits: bool,
}

/// Registers what is wanted, or takes all of it away.
fn run(region: Region, path: Option<&Path>, wanted: Option<Wanted>) -> Result {
    let config = Config::load(path)?;
    config.keystone_authtoken.validate()?;
    let administrator = Administrator::from_environment()?;
    let named = Some(config.keystone_authtoken.region_name.clone()).filter(|region| !region.is_empty());
    let region = region
        .region
        .or(named)
        .or_else(|| administrator.region().map(str::to_owned))
        .ok_or("expected --region, or region_name in [keystone_authtoken]")?;
    let register = wanted.is_some();
    let Wanted { urls, roles, limits } =
        wanted.unwrap_or(Wanted { urls: Vec::new(), roles: Vec::new(), limits: false });
    let limits = if limits { Limits::of(&config.quotas).registered() } else { Vec::new() };
    let wanted = Registration::new(&config.keystone_authtoken, region, urls, roles, limits);
    let registry = Registry::new(&administrator)?;
    let changes = runtime()?.block_on(async {
        if register { registry.register(&wanted).await } else { registry.unregister(&wanted).await }
    })?;
    let mut stdout = std::io::stdout().lock();
    for change in changes {
        writeln!(stdout, "{change}")?;
    }
    Ok(())
}

/// Takes the slash off the end: clients append paths that begin with one.
fn url(text: &str) -> std::result::Result<String, String> {
    let trimmed = text.trim_end_matches('/');
    let usable = osauth_reqwest::Url::parse(trimmed)
        .is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.query().is_none());
    if usable {
        Ok(trimmed.to_owned())
    } else {
        Err("expected a URL such as http://controller:7070".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_without_its_last_slash() {
        assert_eq!(url("http://controller:7070/"), Ok("http://controller:7070".to_owned()));
        assert_eq!(url("https://cloud/function-engine"), Ok("https://cloud/function-engine".to_owned()));
        for text in ["controller:7070", "", "ftp://c", "http://c?x=1"] {
            assert!(url(text).is_err(), "{text}");
        }
    }
}
