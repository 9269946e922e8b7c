//! Brings file, environment and defaults together.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ::config::{ConfigError, Environment, File, FileFormat};

use super::{Config, Error, Section, file, secrets};

const DEFAULT_FILE: &str = "/etc/taibai/taibai.conf";
/// Names the file where the command line does not.
const FILE_VARIABLE: &str = "TAIBAI_CONFIG";
const PREFIX: &str = "TAIBAI_";
const SEPARATOR: &str = "__";

/// Where each key was set last: `("engine", "lease")` to `/etc/taibai/taibai.conf:7`.
pub(super) type Origins = BTreeMap<(String, String), Origin>;

/// What set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A line of a file, as `/etc/taibai/taibai.conf:7`.
    Line(String),
    /// A variable of the environment.
    Variable(String),
}

impl Origin {
    fn name(&self) -> &String {
        match self {
            Self::Line(name) | Self::Variable(name) => name,
        }
    }
}

/// A configuration that can be used, and what is doubtful about where it came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// A line each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and validates: the file at `path`, else the one that `TAIBAI_CONFIG` names, else
    /// /etc/taibai/taibai.conf if it exists; over it the environment, below it the defaults.
    /// What is doubtful is said on stderr.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Loaded { config, warnings } = Self::load_with_warnings(path)?;
        for warning in warnings {
            eprintln!("taibai: warning: {warning}");
        }
        Ok(config)
    }

    /// The same, and leaves it to the caller to say what is doubtful.
    pub fn load_with_warnings(path: Option<&Path>) -> Result<Loaded, Error> {
        load_from(path, Path::new(DEFAULT_FILE), std::env::vars_os())
    }
}

#[cfg(test)]
pub(super) fn load(
    path: Option<&Path>,
    default: &Path,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, Error> {
    load_from(path, default, variables).map(|loaded| loaded.config)
}

pub(super) fn load_from(
    path: Option<&Path>,
    default: &Path,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Error> {
    let mut credentials = None;
    let variables = ours(variables.inspect(|(name, value)| {
        if name == secrets::CREDENTIALS_VARIABLE && !value.is_empty() {
            credentials = Some(PathBuf::from(value));
        }
    }))?;
    let path = match (path, variables.get(FILE_VARIABLE)) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(path)) if !path.is_empty() => Some(PathBuf::from(path)),
        // Whether it exists and cannot be read, or does not exist, must not look alike.
        _ => default.try_exists().unwrap_or(true).then(|| default.to_owned()),
    };

    let mut origins = Origins::new();
    let mut builder = ::config::Config::builder();
    if let Some(path) = &path {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::source(&name, format!("cannot be read: {error}")))?;
        let lines = file::lines(&name, &text)?;
        for (section, number) in &lines.sections {
            known_section(section).map_err(|error| error.from(Some(&format!("{name}:{number}"))))?;
        }
        for line in &lines.keys {
            let origin = format!("{name}:{}", line.number);
            known_key(line.section, line.key).map_err(|error| error.from(Some(&origin)))?;
            origins.insert((line.section.to_owned(), line.key.to_owned()), Origin::Line(origin));
        }
        let source = File::from_str(&text, FileFormat::Ini);
        // A syntax error begins with its line and column.
        let read = ::config::Config::builder().add_source(source).build().map_err(|error| match error {
            ConfigError::FileParse { cause, .. } => {
                Error::source(format!("{name}:{cause}"), r"in a value, write \\ for a backslash")
            }
            other => Error::source(&name, other.to_string()),
        })?;
        builder = builder.add_source(read);
    }

    let settings = settings(&variables, &mut origins)?;
    let environment = Environment::with_prefix(PREFIX.trim_end_matches('_'))
        .prefix_separator("_")
        .separator(SEPARATOR)
        .source(Some(settings));
    let merged = builder
        .add_source(environment)
        .build()
        .map_err(|error| Error::source("environment", error.to_string()))?;

    let mut config = typed(&merged, &origins)?;
    let filled = secrets::fill(&mut config, path.as_deref(), credentials.as_deref(), &origins);
    let warnings = filled.map_err(|error| placed(error, &origins))?;
    config.validate().map_err(|error| placed(error, &origins))?;
    Ok(Loaded { config, warnings: [deprecated(Config::SECTIONS, &origins), warnings].concat() })
}

/// Keys that are set and will go: those whose documentation begins with that word.
fn deprecated(sections: &[Section], origins: &Origins) -> Vec<String> {
    let set = origins.iter().filter_map(|((section, key), origin)| {
        let section = sections.iter().find(|other| other.name == section)?;
        let option = section.options.iter().find(|option| option.name == key)?;
        let about = option.help.concat();
        let about = about.trim_start();
        about
            .starts_with("Deprecated")
            .then(|| format!("{}: [{}] {key}: {about}", origin.name(), section.name))
    });
    set.collect()
}

/// Keeps the variables that may be meant for us.
fn ours(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, Error> {
    let named = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    named
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(Error::source(name, "expected text in UTF-8")),
        })
        .collect()
}

/// Picks `TAIBAI_<GROUP>__<KEY>`. Other variables with our prefix belong to other programs.
fn settings(
    variables: &BTreeMap<String, String>,
    origins: &mut Origins,
) -> Result<HashMap<String, String>, Error> {
    let mut found = HashMap::new();
    for (name, value) in variables {
        let Some((section, key)) = name[PREFIX.len()..].split_once(SEPARATOR) else {
            continue;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        known_section(&section)
            .and_then(|_| known_key(&section, &key))
            .map_err(|error| error.from(Some(name)))?;
        origins.insert((section, key), Origin::Variable(name.clone()));
        found.insert(name.clone(), value.clone());
    }
    Ok(found)
}

fn known_section(name: &str) -> Result<&'static Section, Error> {
    let names = || Config::SECTIONS.iter().map(|section| section.name);
    Config::SECTIONS
        .iter()
        .find(|section| section.name == name)
        .ok_or_else(|| Error::section(name, unknown("section", name, "sections", names())))
}

fn known_key(section: &str, key: &str) -> Result<(), Error> {
    let options = known_section(section)?.options;
    if options.iter().any(|option| option.name == key) {
        return Ok(());
    }
    let names = options.iter().map(|option| option.name);
    Err(Error::key(section, key, unknown("key", key, "keys of this section", names)))
}

/// Says what exists, and first of all what was probably meant.
fn unknown(
    kind: &str,
    name: &str,
    kinds: &str,
    existing: impl Iterator<Item = &'static str> + Clone,
) -> String {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let nearest = existing.clone().map(|other| (distance(other), other)).min();
    let hint = match nearest {
        // Farther away than this, a guess confuses more than it helps.
        Some((away, other)) if away <= 1 + name.len() / 4 => format!(", did you mean {other}?"),
        _ => ";".to_owned(),
    };
    let existing: Vec<_> = existing.collect();
    format!("unknown {kind}{hint} the {kinds} are {}", existing.join(", "))
}

fn typed(merged: &::config::Config, origins: &Origins) -> Result<Config, Error> {
    merged.clone().try_deserialize().map_err(|error| {
        let (path, reason) = innermost(error);
        match path.as_deref().and_then(|path| path.split_once('.')) {
            Some((section, key)) => {
                let error = Error::key(section, key, reason);
                let value = merged.get_string(&format!("{section}.{key}"));
                placed(
                    match value {
                        Ok(value) => error.with_value(value),
                        Err(_) => error,
                    },
                    origins,
                )
            }
            None => Error::source("configuration", reason),
        }
    })
}

/// Takes the path off an error that the `config` crate wrapped into it.
fn innermost(error: ConfigError) -> (Option<String>, String) {
    match error {
        ConfigError::At { error, key, .. } => (key, innermost(*error).1),
        ConfigError::Type { ref key, .. } => (key.clone(), error.to_string()),
        other => (None, other.to_string()),
    }
}

/// Adds where the key was set, unless it is a default.
fn placed(error: Error, origins: &Origins) -> Error {
    let key = error.section.clone().zip(error.key.clone());
    let origin = key.and_then(|key| origins.get(&key));
    error.from(origin.map(Origin::name))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn with(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taibai.conf");
        std::fs::write(&path, text).unwrap();
        load(Some(&path), Path::new("/nonexistent"), pairs(variables)).map_err(|error| {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line:?}");
            line.replace(path.to_str().unwrap(), "taibai.conf")
        })
    }

    #[test]
    fn a_key_that_will_go_is_told_of_where_it_is_set() {
        use crate::config::Opt;

        let key = |name, help| Opt { name, help, format: "text" };
        let options = &*vec![
            key("old", &[" Deprecated: write `new`,", " which takes more."]),
            key("new", &[" How it is done."]),
        ]
        .leak();
        let sections = [Section { name: "engine", about: &[" `[engine]`: x."], options }];
        let at = |key: &str, origin: &str| {
            (("engine".to_owned(), key.to_owned()), Origin::Line(format!("taibai.conf:{origin}")))
        };
        let origins = Origins::from([at("old", "2"), at("new", "3")]);
        let expected = ["taibai.conf:2: [engine] old: Deprecated: write `new`, which takes more."];
        assert_eq!(deprecated(&sections, &origins), expected);
        assert!(deprecated(&sections, &Origins::from([at("new", "3")])).is_empty());
    }

    fn pairs(variables: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
        let owned: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        owned.into_iter()
    }

    #[test]
    fn a_file_sets_what_it_names_and_leaves_the_rest() {
        let text = "# ours\n[engine]\npool_size = 5\nidle_timeout=5m\nqueue_timeout : 7\n\n\
                    [docker]\noverhead_bytes = 64MiB\n[api]\nallow_noauth_from_anywhere = Yes\nhost = ::1\n\
                    [resource_limits]\nmax_memory = 1 GiB\n[database]\ndurability = power\n";
        let config = with(text, &[]).unwrap();
        assert_eq!(config.engine.pool_size, 5);
        assert_eq!(config.engine.idle_timeout, Duration::from_secs(300));
        assert_eq!(config.engine.queue_timeout, Duration::from_secs(7));
        assert_eq!(config.docker.overhead_bytes, 64 << 20);
        assert!(config.api.allow_noauth_from_anywhere);
        assert!(config.api.host.is_ipv6());
        assert_eq!(config.resource_limits.max_memory, 1 << 30);
        assert_eq!(config.database.durability, crate::config::Durability::Power);
        assert_eq!(config.engine.max_workers, Config::default().engine.max_workers);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let variables =
            [("TAIBAI_ENGINE__POOL_SIZE", "7"), ("TAIBAI_DATABASE__CONNECTION", "mysql://u:p@h/a__b.c")];
        let config = with("[engine]\npool_size = 5\nmax_queue = 9\n", &variables).unwrap();
        assert_eq!((config.engine.pool_size, config.engine.max_queue), (7, 9));
        assert_eq!(config.database.connection, "mysql://u:p@h/a__b.c");
    }

    #[test]
    fn other_variables_with_the_prefix_are_left_alone() {
        let variables =
            [("TAIBAI_SETTINGS", "{}"), ("TAIBAI_HOME", "/x"), ("PATH", "/bin"), ("ENGINE__X", "1")];
        with("", &variables).unwrap();
    }

    #[test]
    fn the_command_line_wins_over_the_variable_and_the_variable_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, size: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("[engine]\npool_size = {size}\n")).unwrap();
            path
        };
        let (argument, variable, default) = (write("a", 1), write("b", 2), write("c", 4));
        let named = [("TAIBAI_CONFIG", variable.to_str().unwrap())];
        let size = |path, default, variables| load(path, default, pairs(variables)).unwrap().engine.pool_size;
        assert_eq!(size(Some(argument.as_path()), &default, &named), 1);
        assert_eq!(size(None, &default, &named), 2);
        assert_eq!(size(None, &default, &[("TAIBAI_CONFIG", "")]), 4);
        assert_eq!(size(None, &default, &[]), 4);
        assert_eq!(size(None, &directory.path().join("none"), &[]), 3);
    }

    #[test]
    fn a_named_file_has_to_exist() {
        let message = |path, variables: &[_]| {
            load(path, Path::new("/nonexistent"), pairs(variables)).unwrap_err().to_string()
        };
        let expected = "/nonexistent/x: cannot be read: No such file or directory (os error 2)";
        assert_eq!(message(Some(Path::new("/nonexistent/x")), &[]), expected);
        assert_eq!(message(None, &[("TAIBAI_CONFIG", "/nonexistent/x")]), expected);
    }

    #[test]
    fn trouble_in_a_file_is_one_line_that_says_where_and_what_would_be_right() {
        const SECTIONS: &str = "the sections are api, audit, cors, database, docker, engine, executions, http_basic, images, jobs, keystone_authtoken, \
             logging, network, oslo_middleware, oslo_policy, quotas, resource_limits, storage, trusts";
        for (text, message) in [
            (
                "[engin]\n",
                format!("taibai.conf:1: [engin]: unknown section, did you mean engine? {SECTIONS}"),
            ),
            ("\n[kubernetes]\n", format!("taibai.conf:2: [kubernetes]: unknown section; {SECTIONS}")),
            ("[engine.pool]\n", format!("taibai.conf:1: [engine.pool]: unknown section; {SECTIONS}")),
        ] {
            assert_eq!(with(text, &[]).unwrap_err(), message);
        }
        for (text, message) in [
            (
                "[logging]\nlevle = info\n",
                "taibai.conf:2: [logging] levle: unknown key, did you mean level? \
                 the keys of this section are level, json, file",
            ),
            (
                "[logging]\ncolour = red\n",
                "taibai.conf:2: [logging] colour: unknown key; the keys of this section are level, json, file",
            ),
            (
                "[logging]\nlevel.x = info\n",
                "taibai.conf:2: [logging] level.x: unknown key, did you mean level? \
                 the keys of this section are level, json, file",
            ),
            (
                "[engine]\n\nidle_timeout = 5x\n",
                "taibai.conf:3: [engine] idle_timeout = 5x: expected a duration such as 30s or 5m",
            ),
            (
                "[engine]\nlease = -1\n",
                "taibai.conf:2: [engine] lease = -1: expected a duration such as 30s or 5m",
            ),
            (
                "[engine]\npool_size = yes\n",
                "taibai.conf:2: [engine] pool_size = yes: expected a whole number from 0 to 4294967295",
            ),
            (
                "[engine]\npool_size =\n",
                "taibai.conf:2: [engine] pool_size = : expected a whole number from 0 to 4294967295",
            ),
            (
                "[engine]\npool_size = 3 # three\n",
                "taibai.conf:2: [engine] pool_size = 3 # three: expected a whole number from 0 to 4294967295",
            ),
            (
                "[api]\nport = 65536\n",
                "taibai.conf:2: [api] port = 65536: expected a whole number from 0 to 65535",
            ),
            (
                "[api]\nhost = localhost\n",
                "taibai.conf:2: [api] host = localhost: expected an IP address such as 127.0.0.1 or ::1",
            ),
            ("[logging]\njson = maybe\n", "taibai.conf:2: [logging] json = maybe: expected true or false"),
            (
                "[docker]\noverhead_bytes = 64MB\n",
                "taibai.conf:2: [docker] overhead_bytes = 64MB: \
                 expected a number of bytes such as 268435456 or 256MiB",
            ),
            (
                "[resource_limits]\nmax_memory = 16777216TiB\n",
                "taibai.conf:2: [resource_limits] max_memory = 16777216TiB: \
                 expected a number of bytes such as 268435456 or 256MiB",
            ),
            (
                "[database]\ndurability = tape\n",
                "taibai.conf:2: [database] durability = tape: expected process or power",
            ),
            (
                "[api]\nauth_strategy = keystoen\n",
                "taibai.conf:2: [api] auth_strategy = keystoen: expected one of noauth, keystone, http_basic",
            ),
            ("[database]\nconnection =\n", "taibai.conf:2: [database] connection: must not be empty"),
            (
                "[engine]\nmax_workers = 2\npool_size = 3\n",
                "taibai.conf:3: [engine] pool_size = 3: expected at most 2 (max_workers)",
            ),
            (
                "[engine]\npool_size = 1\nmax_queue = 1\npool_size = 2\n",
                "taibai.conf:4: [engine] pool_size: set on line 2 already",
            ),
            (
                "[engine]\npool_size = 1\n[api]\n[engine]\n",
                "taibai.conf:4: [engine]: this section began on line 1 already",
            ),
            ("pool_size = 1\n", "taibai.conf:1: pool_size: expected a [section] before the first key"),
            (
                "[engine]\npool_size\nmax_queue = 1\n",
                "taibai.conf:2: expected [section], key = value, or a comment after #",
            ),
            ("[engine]\n= 3\n", "taibai.conf:2: expected [section], key = value, or a comment after #"),
            ("[engine\n", "taibai.conf:1: [engine: expected [section] and nothing after it"),
            ("[engine] x\n", "taibai.conf:1: [engine] x: expected [section] and nothing after it"),
        ] {
            assert_eq!(with(text, &[]).map(|_| ()), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_syntax_error_of_a_value_names_its_line() {
        let message = with("[logging]\nlevel = \\xZZZZ\n", &[]).unwrap_err();
        let expected =
            r"taibai.conf:2:15 unknown character in \xHH form: in a value, write \\ for a backslash";
        assert_eq!(message, expected);
    }

    #[test]
    fn trouble_in_the_environment_names_the_variable() {
        for (name, value, message) in [
            (
                "TAIBAI_ENGINE__IDLE_TIMEOUT",
                "5\nx",
                "TAIBAI_ENGINE__IDLE_TIMEOUT: [engine] idle_timeout = 5\\nx: \
                 expected a duration such as 30s or 5m",
            ),
            (
                "TAIBAI_LOGGING__JSONN",
                "1",
                "TAIBAI_LOGGING__JSONN: [logging] jsonn: unknown key, did you mean json? \
                 the keys of this section are level, json, file",
            ),
            (
                "TAIBAI_LOGGING__JSON__X",
                "1",
                "TAIBAI_LOGGING__JSON__X: [logging] json__x: unknown key; \
                 the keys of this section are level, json, file",
            ),
            (
                "TAIBAI_API__HOST",
                "0.0.0.0",
                "TAIBAI_API__HOST: [api] host = 0.0.0.0: with auth_strategy = noauth everyone who reaches this \
                 address is an administrator; expected a loopback address, or allow_noauth_from_anywhere = true",
            ),
            (
                "TAIBAI_DATABASE__CONNECTION",
                "",
                "TAIBAI_DATABASE__CONNECTION: [database] connection: must not be empty",
            ),
            (
                "TAIBAI_METRICS__PORT",
                "1",
                "TAIBAI_METRICS__PORT: [metrics]: unknown section; the sections are \
                 api, audit, cors, database, docker, engine, executions, http_basic, images, jobs, keystone_authtoken, logging, network, oslo_middleware, oslo_policy, quotas, \
                 resource_limits, storage, trusts",
            ),
        ] {
            assert_eq!(with("", &[(name, value)]).map(|_| ()), Err(message.to_owned()));
        }
    }

    #[test]
    fn a_variable_is_named_where_it_wins_over_a_line() {
        let message = with("[engine]\nlease = 10\n", &[("TAIBAI_ENGINE__LEASE", "0")]).unwrap_err();
        assert_eq!(message, "TAIBAI_ENGINE__LEASE: [engine] lease = 0s: expected more than nothing");
    }
}
