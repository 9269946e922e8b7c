//! `taibai upgrade …`: whether this program would run well on what is there. Changes nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::{AccessFlags, access};
use serde_json::json;

use super::runtime;
use crate::config::{AuthStrategy, Config, StorageDriver};
use crate::db::{self, Db};
use crate::engine::remote::Remote;
use crate::model::{Interface, RuntimeStatus};
use crate::openstack::Keystone;
use crate::orchestrator::{self, ImageName, Look};
use crate::policy::Policy;
use crate::quota::Quotas;
use crate::storage::LocalStore;
use crate::telemetry::{Chain, Metrics};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks whether this release would run well with the configuration, the database and the machine.
    ///
    /// Ends with status 0 where all is well, with 1 where something should be looked at, and with 2 where
    /// something stands in the way of a start or of functions.
    Check(Check),
}

#[derive(Debug, Args)]
pub struct Check {
    /// What runs on this machine.
    #[arg(long, value_enum, default_value_t = Role::Serve)]
    role: Role,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Serve,
    Api,
    Engine,
}

/// As bad as it gets, in order; the number is the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Result {
    Success,
    Warning,
    Failure,
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    check: &'static str,
    result: Result,
    details: String,
}

pub fn run(command: Command, path: Option<&Path>) -> ExitCode {
    let Command::Check(Check { role, json }) = command;
    let rows = match runtime() {
        Ok(runtime) => runtime.block_on(look(role, path)),
        Err(error) => vec![row("Configuration", Result::Failure, error.to_string())],
    };
    let worst = rows.iter().map(|row| row.result).max().unwrap_or(Result::Success);
    let text = if json { as_json(&rows) } else { table(&rows) };
    // A reader that has seen enough changes nothing about the status.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(worst as u8)
}

fn row(check: &'static str, result: Result, details: impl Into<String>) -> Row {
    Row { check, result, details: details.into() }
}

/// What is found of several things: all is well where there is nothing to say.
fn of_findings(check: &'static str, bad: Result, findings: Vec<String>, well: impl Into<String>) -> Row {
    if findings.is_empty() {
        return row(check, Result::Success, well);
    }
    row(check, bad, findings.join("; "))
}

async fn look(role: Role, path: Option<&Path>) -> Vec<Row> {
    let config = match Config::load_with_warnings(path) {
        Ok(loaded) => {
            let valid = of_findings("Configuration", Result::Warning, loaded.warnings, "");
            (loaded.config, valid)
        }
        Err(error) => return vec![row("Configuration", Result::Failure, error.to_string())],
    };
    let (config, valid) = config;
    let mut rows = vec![valid];
    if role != Role::Engine {
        rows.push(policy(&config));
    }
    let docker = match role {
        Role::Api => None,
        Role::Serve | Role::Engine => {
            let (docker, found) = docker(&config).await;
            rows.push(found);
            rows.push(supervisor(&config).await);
            docker
        }
    };
    rows.push(keystone(&config).await);
    rows.push(storage(&config).await);
    rows.extend(database(role, &config, docker.as_ref()).await);
    rows
}

fn policy(config: &Config) -> Row {
    const CHECK: &str = "Policy";
    match Policy::open(&config.oslo_policy.policy_file) {
        Ok(policy) => of_findings(CHECK, Result::Warning, policy.rules().doubts(), ""),
        Err(error) => row(CHECK, Result::Failure, Chain(&error).to_string()),
    }
}

async fn docker(config: &Config) -> (Option<Look>, Row) {
    const CHECK: &str = "Docker";
    let asked = match Look::connect(&config.docker).await {
        Ok(look) => look.version().await.map(|version| (look, version)),
        Err(error) => Err(error),
    };
    match asked {
        Ok((look, version)) => (Some(look), row(CHECK, Result::Success, format!("version {version}"))),
        Err(error) => (None, row(CHECK, Result::Failure, Chain(&error).to_string())),
    }
}

async fn supervisor(config: &Config) -> Row {
    const CHECK: &str = "Supervisor";
    let ours = format!("taibai-supervisor {} protocol {}", env!("CARGO_PKG_VERSION"), protocol::VERSION);
    match orchestrator::supervisor_version(&config.docker).await {
        Ok(said) if said == ours => row(CHECK, Result::Success, said),
        Ok(said) => {
            let said = if said.is_empty() { "one of another release" } else { &said };
            row(CHECK, Result::Failure, format!("found {said}; expected {ours}"))
        }
        Err(error) => row(CHECK, Result::Failure, Chain(&error).to_string()),
    }
}

/// Whether anything is asked of Keystone.
fn needs_keystone(config: &Config) -> bool {
    config.api.auth_strategy == AuthStrategy::Keystone || config.storage.driver == StorageDriver::Swift
}

async fn keystone(config: &Config) -> Row {
    const CHECK: &str = "Keystone";
    if !needs_keystone(config) {
        return row(CHECK, Result::Success, "not used");
    }
    let section = &config.keystone_authtoken;
    let keystone = match Keystone::new(section, Metrics::new().keystone_calls) {
        Ok(keystone) => keystone,
        Err(error) => return row(CHECK, Result::Failure, Chain(&*error).to_string()),
    };
    match keystone.catalog().await {
        Err(error) => row(CHECK, Result::Failure, Chain(&error).to_string()),
        Ok(catalog) => match catalog.endpoint(&section.service_type, Interface::Public, keystone.region()) {
            Some(url) => row(CHECK, Result::Success, format!("{} is at {url}", section.service_type)),
            None => {
                let what = format!("the catalog has no endpoint of {}", section.service_type);
                row(CHECK, Result::Warning, format!("{what}; taibai register makes it"))
            }
        },
    }
}

async fn storage(config: &Config) -> Row {
    const CHECK: &str = "Package storage";
    let storage = &config.storage;
    let directory = &storage.file_system_dir;
    let place = directory.display();
    // With Swift too, for uploads while they are received.
    if directory.exists() {
        if !directory.is_dir() {
            return row(CHECK, Result::Failure, format!("{place} is no directory"));
        }
        if let Err(error) = access(directory, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
            return row(CHECK, Result::Failure, format!("{place}: {}", error.desc()));
        }
    }
    if storage.driver == StorageDriver::Local {
        let made = if directory.exists() { "" } else { ", which the first start makes" };
        return row(CHECK, Result::Success, format!("{place}{made}"));
    }
    let keystone = match Keystone::new(&config.keystone_authtoken, Metrics::new().keystone_calls) {
        Ok(keystone) => keystone,
        Err(error) => return row(CHECK, Result::Failure, Chain(&*error).to_string()),
    };
    let container = storage.container.clone();
    let ask = |session: crate::openstack::Session| {
        let container = container.clone();
        async move { session.swift().has_container(&container).await }
    };
    match keystone.as_service(ask).await {
        Ok(true) => row(CHECK, Result::Success, format!("container {container}")),
        Ok(false) => {
            row(CHECK, Result::Success, format!("container {container}, which the first start makes"))
        }
        Err(error) => row(CHECK, Result::Failure, format!("container {container}: {}", Chain(&error))),
    }
}

/// Connects, and looks at the tables, and at their rows where those can be read.
async fn database(role: Role, config: &Config, docker: Option<&Look>) -> Vec<Row> {
    const CHECK: &str = "Database";
    let is_file = match db::is_file(&config.database) {
        Ok(is_file) => is_file,
        Err(error) => return vec![row(CHECK, Result::Failure, error.to_string())],
    };
    if role != Role::Serve && is_file {
        let why =
            "SQLite is for taibai serve, which is one process; name a database on MariaDB or PostgreSQL";
        return vec![row(CHECK, Result::Failure, why)];
    }
    let db = match Db::connect_to_look(&config.database).await {
        Ok(db) => db,
        Err(error) => return vec![row(CHECK, Result::Failure, Chain(&error).to_string())],
    };
    let rows = match db.schema().await {
        Ok(schema) => {
            let reached = row(CHECK, Result::Success, if is_file { "SQLite" } else { "a server" });
            let (migrated, usable) = migrations(&schema, is_file);
            let mut rows = vec![reached, migrated];
            if usable {
                rows.extend(contents(role, config, &db, docker).await);
            }
            rows
        }
        Err(error) => vec![row(CHECK, Result::Failure, Chain(&error).to_string())],
    };
    // Nothing was written.
    let _ = db.close().await;
    rows
}

/// What the migrations say, and whether rows can be read as this release does.
fn migrations(schema: &db::Schema, is_file: bool) -> (Row, bool) {
    const CHECK: &str = "Database schema";
    let db::Schema { pending, newer } = schema;
    let names = |names: &[String]| names.join(", ");
    match (pending.is_empty(), newer.is_empty()) {
        (true, true) => (row(CHECK, Result::Success, "current"), true),
        (true, false) => {
            let what = format!("a later release made it, with {}; this one can use it", names(newer));
            (row(CHECK, Result::Warning, what), true)
        }
        (false, true) => {
            let what = format!("behind: {} not applied; run taibai db sync", names(pending));
            // taibai serve does that itself at its start.
            (row(CHECK, if is_file { Result::Warning } else { Result::Failure }, what), false)
        }
        (false, false) => {
            let what = format!("it has {}, and lacks {}", names(newer), names(pending));
            (row(CHECK, Result::Failure, what), false)
        }
    }
}

async fn contents(role: Role, config: &Config, db: &Db, docker: Option<&Look>) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(docker) = docker {
        rows.push(match runtimes(db, docker).await {
            Ok(row) => row,
            Err(error) => row("Runtimes", Result::Failure, Chain(&error).to_string()),
        });
    }
    rows.push(match functions(config, db).await {
        Ok(row) => row,
        Err(error) => row("Functions", Result::Failure, Chain(&error).to_string()),
    });
    rows.push(engines(role, config, db).await);
    rows
}

/// Whether the images of runtimes are on this machine and speak as this release does.
async fn runtimes(db: &Db, docker: &Look) -> db::Result<Row> {
    const CHECK: &str = "Runtimes";
    let (mut gone, mut unfit, mut fine) = (Vec::new(), Vec::new(), 0_usize);
    for runtime in db::runtimes::list_all(db.reader()).await? {
        let image = match (runtime.status, &runtime.active_image) {
            (RuntimeStatus::Available, _) => &runtime.image,
            (RuntimeStatus::Upgrading, Some(active)) => active,
            _ => continue,
        };
        match docker.inspect_image(image).await {
            Ok(_) => fine += 1,
            Err(error @ orchestrator::Error::ImageNotFound { .. }) => {
                gone.push(format!("{}: {error}", runtime.id));
            }
            Err(error) => unfit.push(format!("{}: {}", runtime.id, Chain(&error))),
        }
    }
    let worst = if unfit.is_empty() { Result::Warning } else { Result::Failure };
    unfit.append(&mut gone);
    Ok(of_findings(CHECK, worst, unfit, format!("{fine} with an image that fits")))
}

/// Whether what functions are made of is there, and still allowed.
async fn functions(config: &Config, db: &Db) -> db::Result<Row> {
    const CHECK: &str = "Functions";
    let mut findings = Vec::new();
    for function in db::functions::list_without_runtime(db.reader()).await? {
        let Some(image) = function.image() else { continue };
        let allowed = ImageName::parse(&image).and_then(|name| name.check_allowed(&config.images.allowed));
        if let Err(why) = allowed {
            findings.push(format!("{}: {}", function.id, why.trim_end_matches('.')));
        }
    }
    if config.storage.driver == StorageDriver::Local {
        let digests = db::functions::list_digests(db.reader()).await?;
        for digest in LocalStore::missing(&config.storage.file_system_dir, digests) {
            findings.push(format!("package {digest} is missing"));
        }
    }
    Ok(of_findings(CHECK, Result::Warning, findings, "all have what they are made of"))
}

/// Whether the engines that run are of this release.
async fn engines(role: Role, config: &Config, db: &Db) -> Row {
    const CHECK: &str = "Engines";
    if role == Role::Serve {
        return row(CHECK, Result::Success, "in the same process");
    }
    let asked = async {
        // Nobody is to write anything here, so the writer is left.
        let (remote, _writer) = Remote::new(config, db.clone(), Quotas::new(config, None))?;
        remote.programs().await.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
    };
    let engines = match asked.await {
        Ok(engines) => engines,
        Err(error) => return row(CHECK, Result::Failure, Chain(&*error).to_string()),
    };
    let (ours, count) = (env!("CARGO_PKG_VERSION"), engines.len());
    let findings = engines.into_iter().filter_map(|(engine, about)| match about {
        Ok(about) if about.release == ours && about.protocol == protocol::VERSION => None,
        Ok(about) => Some(format!(
            "{} runs release {} with protocol {}; this is {ours} with protocol {}",
            engine.node,
            about.release,
            about.protocol,
            protocol::VERSION
        )),
        Err(why) => Some(format!("{}: {why}", engine.node)),
    });
    of_findings(CHECK, Result::Warning, findings.collect(), format!("{count} of this release"))
}

/// Widest line of a cell, as the table of other services has it.
const WIDTH: usize = 60;

/// The table that `upgrade check` of other services prints.
fn table(rows: &[Row]) -> String {
    const TITLE: &str = "Upgrade Check Results";
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let details = if row.details.is_empty() { "None" } else { &row.details };
            let mut lines = vec![format!("Check: {}", row.check), format!("Result: {:?}", row.result)];
            lines.extend(wrapped(&format!("Details: {details}")));
            lines
        })
        .collect();
    let widest = cells.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = widest.max(TITLE.len());
    let rule = format!("+{}+\n", "-".repeat(width + 2));
    let line = |text: &str| {
        let room = width - text.chars().count();
        format!("| {text}{} |\n", " ".repeat(room))
    };
    let mut text = format!("{rule}{}{rule}", line(TITLE));
    for cell in cells {
        cell.iter().for_each(|part| text += &line(part));
        text += &rule;
    }
    text
}

/// Lines no longer than [`WIDTH`] where words allow, all but the first set in.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is one from the start");
        if last.trim().is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= WIDTH {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(format!("  {word}"));
        }
    }
    lines
}

fn as_json(rows: &[Row]) -> String {
    let checks: Vec<_> = rows
        .iter()
        .map(|row| {
            let details = Some(&row.details).filter(|details| !details.is_empty());
            json!({"check": row.check, "result": row.result as u8, "details": details})
        })
        .collect();
    format!("{}\n", json!({"name": "Upgrade Check Results", "checks": checks}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;
    use crate::model::function;

    /// What a directory has in it.
    fn files(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    fn results(rows: &[Row]) -> Vec<(&str, Result)> {
        rows.iter().map(|row| (row.check, row.result)).collect()
    }

    #[tokio::test]
    async fn a_database_is_looked_at_and_left_as_it_is() {
        let original = testing::empty_file().await;
        original.migrate().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy.sqlite");
        let mut config = Config::default();
        config.storage.file_system_dir = directory.path().join("packages");
        config.database.connection = format!("sqlite:///{}", copy.display());

        let missing = database(Role::Serve, &config, None).await;
        assert_eq!(results(&missing), [("Database", Result::Failure)]);
        assert!(missing[0].details.contains("there is no /"), "{missing:?}");
        assert!(files(directory.path()).is_empty());

        // A copy has no log; a database that was in use and closed is of the kind that has one.
        original.backup(&copy).await.unwrap();
        let well =
            ["Database", "Database schema", "Functions", "Engines"].map(|name| (name, Result::Success));
        for is_used in [false, true] {
            if is_used {
                Db::connect(&config.database).await.unwrap().close().await.unwrap();
            }
            let before = files(directory.path());
            assert_eq!(before.len(), 1);
            let rows = database(Role::Serve, &config, None).await;
            assert_eq!(results(&rows), well, "{rows:?}");
            assert_eq!(files(directory.path()), before);
        }

        // One that is in use, with what is only in its log.
        let used = Db::connect(&config.database).await.unwrap();
        let runtime = testing::runtime();
        db::runtimes::insert(&used.writer(), runtime.clone()).await.unwrap();
        let digest = Some("a".repeat(64));
        let function = function::Model { package_digest: digest, ..testing::function(&runtime.id) };
        db::functions::insert(&used.writer(), function).await.unwrap();
        let rows = database(Role::Serve, &config, None).await;
        assert!(rows[2].details.ends_with("is missing"), "{rows:?}");
        used.close().await.unwrap();
    }

    #[test]
    fn the_table_is_that_of_other_services() {
        let rows = [row("One", Result::Success, ""), row("Two", Result::Warning, "looks odd")];
        let expected = "\
+-----------------------+
| Upgrade Check Results |
+-----------------------+
| Check: One            |
| Result: Success       |
| Details: None         |
+-----------------------+
| Check: Two            |
| Result: Warning       |
| Details: looks odd    |
+-----------------------+
";
        assert_eq!(table(&rows), expected);
        assert_eq!(
            as_json(&rows),
            "{\"checks\":[{\"check\":\"One\",\"details\":null,\"result\":0},\
             {\"check\":\"Two\",\"details\":\"looks odd\",\"result\":1}],\"name\":\"Upgrade Check Results\"}\n"
        );
    }

    #[test]
    fn long_details_take_several_lines() {
        let lines = wrapped(&format!("Details: {}", "word ".repeat(30)));
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert!(lines.len() > 2 && lines[1].starts_with("  word"), "{lines:?}");
        let path = "/x".repeat(50);
        assert_eq!(wrapped(&format!("Details: {path}")), ["Details:".to_owned(), format!("  {path}")]);
    }

    #[test]
    fn tables_of_another_release_are_told_apart() {
        let schema = |pending: &[&str], newer: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            db::Schema { pending: names(pending), newer: names(newer) }
        };
        let cases = [
            (schema(&[], &[]), false, Result::Success, true),
            (schema(&["m3"], &[]), false, Result::Failure, false),
            (schema(&["m3"], &[]), true, Result::Warning, false),
            (schema(&[], &["m9"]), false, Result::Warning, true),
            (schema(&["m3"], &["m9"]), true, Result::Failure, false),
        ];
        for (schema, is_file, result, usable) in cases {
            let (row, readable) = migrations(&schema, is_file);
            assert_eq!((row.result, readable), (result, usable), "{row:?}");
        }
    }
}
