//! What the types of the sections cannot say.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use protocol::worker::{PARENT_UID, UIDS};
use secrecy::ExposeSecret;
use tracing_subscriber::EnvFilter;

use super::{
    Api, AuthStrategy, Config, Cors, Database, Docker, Engine, Error, HttpBasic, Images, KeystoneAuthtoken,
    Logging, Network, OsloPolicy, QuotaDriver, Quotas, ResourceLimits, Storage, StorageDriver,
};

type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Databases, as the scheme of a URL names them before an optional `+driver`.
const DATABASES: [&str; 5] = ["sqlite", "mysql", "mariadb", "postgresql", "postgres"];
/// `sun_path` holds 108 bytes, the closing zero included.
const SOCKET_PATH: usize = 107;
/// What is below `worker_dir`: `/w/`, a worker's name of 24 characters, and `/run/s`.
const BELOW_WORKER_DIR: usize = 3 + 24 + 6;
/// The uids of slots end where the parent interpreter's begins.
const MOST_SLOTS: u32 = PARENT_UID;
/// The name of an interface holds 16 bytes, the closing zero included.
const INTERFACE: usize = 15;
/// The name of a container in Swift holds as many bytes.
const CONTAINER: usize = 256;
/// How long the prefix of containers' IPv6 addresses may be.
const SUBNET6: std::ops::RangeInclusive<u8> = 48..=112;
/// Below lie the accounts of the system and of people.
const LEAST_UID: u32 = 65_536;

impl Config {
    /// Checks what goes beyond a single value's type. The first trouble found is the answer.
    pub fn validate(&self) -> Result {
        api(&self.api)?;
        cors(&self.cors)?;
        database(&self.database)?;
        docker(&self.docker, &self.engine, &self.images)?;
        engine(&self.engine)?;
        positive("executions", "check_interval", self.executions.check_interval)?;
        http_basic(&self.http_basic)?;
        images(&self.images)?;
        // Packages in Swift are kept in the service's name, however callers are known.
        if self.api.auth_strategy == AuthStrategy::Keystone || self.storage.driver == StorageDriver::Swift {
            self.keystone_authtoken.validate()?;
        }
        logging(&self.logging)?;
        network(&self.network, &self.engine)?;
        oslo_policy(&self.oslo_policy)?;
        quotas(&self.quotas, self.api.auth_strategy)?;
        resource_limits(&self.resource_limits)?;
        storage(&self.storage)
    }
}

fn api(api: &Api) -> Result {
    let open = !api.host.is_loopback();
    if open && api.auth_strategy == AuthStrategy::Noauth && !api.allow_noauth_from_anywhere {
        let reason = "with auth_strategy = noauth everyone who reaches this address is an administrator; \
             expected a loopback address, or allow_noauth_from_anywhere = true";
        return Err(Error::key("api", "host", reason).with_value(api.host));
    }
    if !api.public_endpoint.is_empty() {
        url("api", "public_endpoint", &api.public_endpoint)?;
    }
    tls(api)?;
    at_least("api", "max_body_bytes", api.max_body_bytes, 1)
}

/// A certificate needs its key, and whoever is asked for one needs to be shown one.
fn tls(api: &Api) -> Result {
    let named = |path: &Path| !path.as_os_str().is_empty();
    for (key, path, with, other) in [
        ("tls_cert", &api.tls_cert, "tls_key", &api.tls_key),
        ("tls_key", &api.tls_key, "tls_cert", &api.tls_cert),
        ("tls_cert", &api.tls_cert, "tls_client_ca", &api.tls_client_ca),
    ] {
        if !named(path) && named(other) {
            return Err(Error::key("api", key, format!("must not be empty where {with} is set")));
        }
    }
    Ok(())
}

fn cors(cors: &Cors) -> Result {
    let wrong =
        |key, value: &String, expected: &str| Err(Error::key("cors", key, expected).with_value(value));
    let is_origin = |text: &str| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
    };
    // A browser sends it without one, so that it would never be met.
    if let Some(origin) = cors.allowed_origin.iter().find(|origin| !is_origin(origin)) {
        let expected =
            "expected *, or a scheme and a host without a path, such as https://dashboard.example.org";
        return wrong("allowed_origin", origin, expected);
    }
    for (key, names) in [
        ("expose_headers", &cors.expose_headers),
        ("allow_methods", &cors.allow_methods),
        ("allow_headers", &cors.allow_headers),
    ] {
        let is_no_name = |name: &&String| {
            name.bytes().any(|b| !b.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~".contains(&b))
        };
        if let Some(name) = names.iter().find(is_no_name) {
            return wrong(key, name, "expected a name as HTTP has them");
        }
    }
    Ok(())
}

fn database(database: &Database) -> Result {
    let key = |reason: String| Error::key("database", "connection", reason);
    filled("database", "connection", &database.connection)?;
    let expected =
        "expected sqlite:///path, mysql://user:password@host/name or postgresql://user:password@host/name";
    // The URL holds a password, so that no more of it than the scheme is ever shown.
    let Some((scheme, rest)) = database.connection.split_once("://") else {
        return Err(key(format!("no URL; {expected}")));
    };
    let dialect = scheme.split_once('+').map_or(scheme, |(dialect, _driver)| dialect);
    if !DATABASES.contains(&dialect) {
        return Err(key(format!("unknown database {dialect}; {expected}")));
    }
    if rest.is_empty() {
        return Err(key(format!("nothing after {scheme}://; {expected}")));
    }
    at_least("database", "max_connections", database.max_connections.into(), 1)
}

fn docker(docker: &Docker, engine: &Engine, images: &Images) -> Result {
    filled("docker", "socket", &docker.socket)?;
    filled("docker", "deployment", &docker.deployment)?;
    filled("docker", "worker_dir", &docker.worker_dir)?;
    let worker_dir = |reason: String| {
        Err(Error::key("docker", "worker_dir", reason).with_value(docker.worker_dir.display()))
    };
    if !docker.worker_dir.is_absolute() {
        return worker_dir("expected a path that begins with /".to_owned());
    }
    let length = docker.worker_dir.as_os_str().as_bytes().len();
    let most = SOCKET_PATH - BELOW_WORKER_DIR;
    if length > most {
        return worker_dir(format!(
            "{length} bytes long; expected at most {most}, since the path of a socket below it holds {SOCKET_PATH}"
        ));
    }
    positive("docker", "start_timeout", docker.start_timeout)?;
    let least = u64::from(LEAST_UID) + u64::from(images.max_containers);
    at_least("docker", "uid_base", docker.uid_base.into(), least)?;
    // The last number is no uid: to the kernel it says "none".
    let most = u64::from(u32::MAX).saturating_sub(u64::from(UIDS) * u64::from(engine.max_workers));
    at_most("docker", "uid_base", docker.uid_base.into(), most, "16 uids for each of [engine] max_workers")
}

fn engine(engine: &Engine) -> Result {
    endpoint("listen", &engine.listen)?;
    if !engine.advertise.is_empty() {
        endpoint("advertise", &engine.advertise)?;
    }
    if engine.listen.starts_with("https:") {
        filled("engine", "tls_cert", &engine.tls_cert)?;
        filled("engine", "tls_key", &engine.tls_key)?;
        filled("engine", "tls_ca", &engine.tls_ca)?;
    }
    at_least("engine", "function_concurrency", engine.function_concurrency.into(), 1)?;
    let why = "so many of a worker's 16 uids are for executions";
    at_most("engine", "function_concurrency", engine.function_concurrency.into(), MOST_SLOTS.into(), why)?;
    at_least("engine", "max_workers", engine.max_workers.into(), 1)?;
    at_most("engine", "pool_size", engine.pool_size.into(), engine.max_workers.into(), "max_workers")?;
    at_least("engine", "max_async", engine.max_async.into(), 1)?;
    at_least("engine", "max_executions_per_slot", engine.max_executions_per_slot.into(), 1)?;
    at_least("engine", "max_processes", engine.max_processes.into(), 1)?;
    at_least("engine", "max_result_bytes", engine.max_result_bytes, 1)?;
    positive("engine", "idle_timeout", engine.idle_timeout)?;
    positive("engine", "lease", engine.lease)
}

impl KeystoneAuthtoken {
    /// Checks what is needed to ask Keystone anything. Where nobody asks it, nothing is.
    pub fn validate(&self) -> Result {
        const NAME: &str = "keystone_authtoken";
        url(NAME, "auth_url", &self.auth_url)?;
        if !self.www_authenticate_uri.is_empty() {
            url(NAME, "www_authenticate_uri", &self.www_authenticate_uri)?;
        }
        filled(NAME, "username", &self.username)?;
        filled(NAME, "password", self.password.expose_secret())?;
        filled(NAME, "user_domain_name", &self.user_domain_name)?;
        filled(NAME, "project_name", &self.project_name)?;
        filled(NAME, "project_domain_name", &self.project_domain_name)?;
        filled(NAME, "service_type", &self.service_type)?;
        positive(NAME, "http_connect_timeout", self.http_connect_timeout)?;
        positive(NAME, "timeout", self.timeout)?;
        at_least(NAME, "token_cache_bytes", self.token_cache_bytes, 1 << 20)?;
        if self.service_token_roles_required && self.service_token_roles.is_empty() {
            let reason = "must not be empty while service_token_roles_required = true";
            return Err(Error::key(NAME, "service_token_roles", reason));
        }
        Ok(())
    }
}

fn images(images: &Images) -> Result {
    positive("images", "pull_timeout", images.pull_timeout)?;
    at_least("images", "max_containers", images.max_containers.into(), 1)?;
    at_least("images", "tmp_bytes", images.tmp_bytes, 1)
}

fn http_basic(http_basic: &HttpBasic) -> Result {
    filled("http_basic", "user_file", &http_basic.user_file)
}

fn oslo_policy(oslo_policy: &OsloPolicy) -> Result {
    filled("oslo_policy", "policy_file", &oslo_policy.policy_file)
}

fn endpoint(key: &str, value: &str) -> Result {
    let wrong = |reason: String| Err(Error::key("engine", key, reason).with_value(value));
    if let Some(path) = value.strip_prefix("unix://") {
        return match path.len() {
            length if length > SOCKET_PATH => {
                wrong(format!("{length} bytes of path; expected at most {SOCKET_PATH}"))
            }
            _ if path.starts_with('/') => Ok(()),
            _ => wrong("expected a path that begins with /, as in unix:///run/taibai/engine.sock".to_owned()),
        };
    }
    let port = value.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':'));
    if port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Ok(());
    }
    wrong("expected unix:///PATH or https://ADDRESS:PORT".to_owned())
}

fn logging(logging: &Logging) -> Result {
    filled("logging", "level", &logging.level)?;
    match EnvFilter::builder().parse(&logging.level) {
        Ok(_) => Ok(()),
        Err(error) => {
            let reason = format!("{error}; expected levels such as info or info,taibai::engine=debug");
            Err(Error::key("logging", "level", reason).with_value(&logging.level))
        }
    }
}

fn network(network: &Network, engine: &Engine) -> Result {
    filled("network", "bridge_name", &network.bridge_name)?;
    let name = network.bridge_name.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.len() > INTERFACE || name.starts_with('-') || !name.chars().all(plain) {
        let reason = format!("expected at most {INTERFACE} letters, digits, - and _");
        return Err(Error::key("network", "bridge_name", reason).with_value(name));
    }
    // The first is the network's, the second the bridge's, the last says "all".
    let room = 2_u64.pow(32 - u32::from(network.subnet.prefix_len())).saturating_sub(3);
    if room < u64::from(engine.max_workers) {
        let reason = format!(
            "it has room for {room} containers; expected room for [engine] max_workers, which is {}",
            engine.max_workers
        );
        return Err(Error::key("network", "subnet", reason).with_value(network.subnet));
    }
    if let Some(subnet) = network.subnet6
        && !SUBNET6.contains(&subnet.prefix_len())
    {
        let reason = format!("expected a network of {} to {} bits", SUBNET6.start(), SUBNET6.end());
        return Err(Error::key("network", "subnet6", reason).with_value(subnet));
    }
    positive("network", "check_interval", network.check_interval)
}

fn quotas(quotas: &Quotas, strategy: AuthStrategy) -> Result {
    if quotas.driver == QuotaDriver::UnifiedLimits && strategy != AuthStrategy::Keystone {
        let reason = "Keystone's limits need [api] auth_strategy = keystone; expected config";
        return Err(Error::key("quotas", "driver", reason).with_value("unified_limits"));
    }
    positive("quotas", "cache_time", quotas.cache_time)
}

fn resource_limits(limits: &ResourceLimits) -> Result {
    let ResourceLimits {
        default_cpu,
        min_cpu,
        max_cpu,
        default_memory,
        min_memory,
        max_memory,
        default_timeout,
        min_timeout,
        max_timeout,
    } = *limits;
    range(["min_cpu", "default_cpu", "max_cpu"], [min_cpu.into(), default_cpu.into(), max_cpu.into()])?;
    range(["min_memory", "default_memory", "max_memory"], [min_memory, default_memory, max_memory])?;
    range(
        ["min_timeout", "default_timeout", "max_timeout"],
        [min_timeout.into(), default_timeout.into(), max_timeout.into()],
    )
}

fn storage(storage: &Storage) -> Result {
    filled("storage", "file_system_dir", &storage.file_system_dir)?;
    filled("storage", "container", &storage.container)?;
    let container = storage.container.as_str();
    if container.len() > CONTAINER || container.contains('/') || matches!(container, "." | "..") {
        let reason = format!("expected at most {CONTAINER} bytes without a slash, and neither . nor ..");
        return Err(Error::key("storage", "container", reason).with_value(container));
    }
    at_least("storage", "max_package_bytes", storage.max_package_bytes, 1)?;
    at_least("storage", "max_package_entries", storage.max_package_entries, 1)?;
    at_least("storage", "max_expanded_bytes", storage.max_expanded_bytes, 1)?;
    at_least("storage", "max_ratio", storage.max_ratio, 1)
}

/// Checks that 1 <= least <= default <= most.
fn range(keys: [&str; 3], [least, default, most]: [i64; 3]) -> Result {
    let wrong = |key: &str, value: i64, reason: String| {
        Err(Error::key("resource_limits", key, reason).with_value(value))
    };
    if least < 1 {
        return wrong(keys[0], least, "expected at least 1".to_owned());
    }
    if most < least {
        return wrong(keys[2], most, format!("expected at least {}, which is {least}", keys[0]));
    }
    if !(least..=most).contains(&default) {
        let reason = format!("expected {least} to {most}, from {} to {}", keys[0], keys[2]);
        return wrong(keys[1], default, reason);
    }
    Ok(())
}

fn filled(section: &str, key: &str, value: &(impl AsRef<Path> + ?Sized)) -> Result {
    if value.as_ref().as_os_str().as_bytes().trim_ascii().is_empty() {
        return Err(Error::key(section, key, "must not be empty"));
    }
    Ok(())
}

fn url(section: &str, key: &str, value: &str) -> Result {
    filled(section, key, value)?;
    let usable = osauth_reqwest::Url::parse(value)
        .is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.query().is_none());
    if !usable {
        let reason = "expected a URL such as http://controller:5000/v3";
        return Err(Error::key(section, key, reason).with_value(value));
    }
    Ok(())
}

fn at_least(section: &str, key: &str, value: u64, least: u64) -> Result {
    if value < least {
        return Err(Error::key(section, key, format!("expected at least {least}")).with_value(value));
    }
    Ok(())
}

fn at_most(section: &str, key: &str, value: u64, most: u64, why: &str) -> Result {
    if value > most {
        return Err(Error::key(section, key, format!("expected at most {most} ({why})")).with_value(value));
    }
    Ok(())
}

fn positive(section: &str, key: &str, value: Duration) -> Result {
    if value.is_zero() {
        return Err(Error::key(section, key, "expected more than nothing").with_value("0s"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| "ok".to_owned())
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(trouble(|_| ()), "ok");
    }

    #[test]
    fn nothing_that_a_call_waits_for_ends_before_the_longest_function_does() {
        let config = Config::default();
        let longest = Duration::from_secs(u64::try_from(config.resource_limits.max_timeout).unwrap());
        assert_eq!(longest, Duration::from_secs(300));
        assert!(config.api.shutdown_timeout > longest, "a restart would cut it");
    }

    #[test]
    fn keystones_limits_need_a_keystone() {
        let unified = |c: &mut Config| c.quotas.driver = QuotaDriver::UnifiedLimits;
        assert_eq!(
            trouble(unified),
            "[quotas] driver = unified_limits: Keystone's limits need [api] auth_strategy = keystone; expected config"
        );
        assert_eq!(
            trouble(|c| c.quotas.cache_time = Duration::ZERO),
            "[quotas] cache_time = 0s: expected more than nothing"
        );
    }

    #[test]
    fn every_spelling_of_a_database_is_taken() {
        for url in [
            "sqlite:////var/lib/taibai.sqlite",
            "mysql://u:p@h/t",
            "mysql+pymysql://u:p@h/t?charset=utf8",
            "mariadb+pymysql://u:p@h/t",
            "postgresql://u:p@h/t",
            "postgresql+psycopg2://u:p@h/t",
        ] {
            assert_eq!(trouble(|c| c.database.connection = url.to_owned()), "ok", "{url}");
        }
    }

    #[test]
    fn noauth_beyond_loopback_has_to_be_asked_for_by_name() {
        let open = |c: &mut Config| c.api.host = "0.0.0.0".parse().unwrap();
        assert_eq!(
            trouble(open),
            "[api] host = 0.0.0.0: with auth_strategy = noauth everyone who reaches this address is an \
             administrator; expected a loopback address, or allow_noauth_from_anywhere = true"
        );
        let asked_for = |c: &mut Config| {
            open(c);
            c.api.allow_noauth_from_anywhere = true;
        };
        assert_eq!(trouble(asked_for), "ok");
        assert_eq!(trouble(|c| c.api.host = "::1".parse().unwrap()), "ok");
    }

    #[test]
    fn the_longest_worker_dir_leaves_room_for_a_socket() {
        let of_length = |length: usize| format!("/{}", "d".repeat(length - 1));
        let longest = of_length(74);
        assert_eq!(format!("{longest}/w/{}/run/s", "x".repeat(24)).len(), 107);
        assert_eq!(trouble(|c| c.docker.worker_dir = longest.clone().into()), "ok");
        let too_long = of_length(75);
        assert_eq!(
            trouble(|c| c.docker.worker_dir = too_long.clone().into()),
            format!(
                "[docker] worker_dir = {too_long}: 75 bytes long; expected at most 74, since the path of a \
                 socket below it holds 107"
            )
        );
    }

    #[test]
    fn the_uids_of_all_workers_are_uids() {
        assert_eq!(trouble(|c| c.docker.uid_base = u32::MAX - 16 * 32), "ok");
        assert_eq!(
            trouble(|c| c.docker.uid_base = u32::MAX - 16 * 32 + 1),
            "[docker] uid_base = 4294966784: expected at most 4294966783 (16 uids for each of [engine] max_workers)"
        );
    }

    #[test]
    fn values_out_of_range_are_named_with_what_would_be_right() {
        type Change = fn(&mut Config);
        let cases: &[(Change, &str)] = &[
            (|c| c.api.tls_cert = "/c".into(), "[api] tls_key: must not be empty where tls_cert is set"),
            (|c| c.api.tls_key = "/k".into(), "[api] tls_cert: must not be empty where tls_key is set"),
            (
                |c| c.api.tls_client_ca = "/a".into(),
                "[api] tls_cert: must not be empty where tls_client_ca is set",
            ),
            (|c| c.api.max_body_bytes = 0, "[api] max_body_bytes = 0: expected at least 1"),
            (|c| c.database.max_connections = 0, "[database] max_connections = 0: expected at least 1"),
            (|c| c.docker.uid_base = 1000, "[docker] uid_base = 1000: expected at least 65552"),
            (
                |c| c.docker.worker_dir = "run/taibai".into(),
                "[docker] worker_dir = run/taibai: expected a path that begins with /",
            ),
            (
                |c| c.docker.start_timeout = Duration::ZERO,
                "[docker] start_timeout = 0s: expected more than nothing",
            ),
            (|c| c.engine.function_concurrency = 0, "[engine] function_concurrency = 0: expected at least 1"),
            (
                |c| c.engine.function_concurrency = 15,
                "[engine] function_concurrency = 15: expected at most 14 \
                 (so many of a worker's 16 uids are for executions)",
            ),
            (
                |c| c.engine.listen = "http://0.0.0.0:7071".to_owned(),
                "[engine] listen = http://0.0.0.0:7071: expected unix:///PATH or https://ADDRESS:PORT",
            ),
            (|c| c.engine.listen = "https://[::]:7071".to_owned(), "[engine] tls_cert: must not be empty"),
            (|c| c.engine.pool_size = 33, "[engine] pool_size = 33: expected at most 32 (max_workers)"),
            (|c| c.engine.max_workers = 0, "[engine] max_workers = 0: expected at least 1"),
            (|c| c.engine.max_async = 0, "[engine] max_async = 0: expected at least 1"),
            (
                |c| c.engine.max_executions_per_slot = 0,
                "[engine] max_executions_per_slot = 0: expected at least 1",
            ),
            (|c| c.engine.max_processes = 0, "[engine] max_processes = 0: expected at least 1"),
            (|c| c.engine.max_result_bytes = 0, "[engine] max_result_bytes = 0: expected at least 1"),
            (
                |c| c.engine.idle_timeout = Duration::ZERO,
                "[engine] idle_timeout = 0s: expected more than nothing",
            ),
            (|c| c.engine.lease = Duration::ZERO, "[engine] lease = 0s: expected more than nothing"),
            (
                |c| c.network.bridge_name = "taibai-is-too-long".to_owned(),
                "[network] bridge_name = taibai-is-too-long: expected at most 15 letters, digits, - and _",
            ),
            (
                |c| c.network.subnet = "172.16.224.0/27".parse().unwrap(),
                "[network] subnet = 172.16.224.0/27: it has room for 29 containers; expected room for [engine] \
                 max_workers, which is 32",
            ),
            (
                |c| c.network.subnet6 = Some("fd00::/120".parse().unwrap()),
                "[network] subnet6 = fd00::/120: expected a network of 48 to 112 bits",
            ),
            (
                |c| c.network.check_interval = Duration::ZERO,
                "[network] check_interval = 0s: expected more than nothing",
            ),
            (|c| c.resource_limits.min_cpu = 0, "[resource_limits] min_cpu = 0: expected at least 1"),
            (
                |c| c.resource_limits.max_memory = 1024,
                "[resource_limits] max_memory = 1024: expected at least min_memory, which is 33554432",
            ),
            (
                |c| c.resource_limits.default_timeout = 301,
                "[resource_limits] default_timeout = 301: expected 1 to 300, from min_timeout to max_timeout",
            ),
            (
                |c| c.storage.container = "a/b".to_owned(),
                "[storage] container = a/b: expected at most 256 bytes without a slash, and neither . nor ..",
            ),
            (|c| c.storage.max_ratio = 0, "[storage] max_ratio = 0: expected at least 1"),
            (|c| c.storage.max_package_bytes = 0, "[storage] max_package_bytes = 0: expected at least 1"),
            (|c| c.storage.max_package_entries = 0, "[storage] max_package_entries = 0: expected at least 1"),
            (|c| c.storage.max_expanded_bytes = 0, "[storage] max_expanded_bytes = 0: expected at least 1"),
        ];
        for (change, message) in cases {
            assert_eq!(trouble(change), *message);
        }
    }

    #[test]
    fn what_must_be_given_may_not_be_empty() {
        type Change = fn(&mut Config);
        let cases: &[(Change, &str)] = &[
            (|c| c.database.connection.clear(), "[database] connection: must not be empty"),
            (|c| c.docker.socket.clear(), "[docker] socket: must not be empty"),
            (|c| c.docker.deployment = " ".to_owned(), "[docker] deployment: must not be empty"),
            (|c| c.network.bridge_name.clear(), "[network] bridge_name: must not be empty"),
            (|c| c.docker.worker_dir.clear(), "[docker] worker_dir: must not be empty"),
            (|c| c.http_basic.user_file.clear(), "[http_basic] user_file: must not be empty"),
            (|c| c.logging.level.clear(), "[logging] level: must not be empty"),
            (|c| c.oslo_policy.policy_file.clear(), "[oslo_policy] policy_file: must not be empty"),
            (|c| c.storage.container.clear(), "[storage] container: must not be empty"),
            (|c| c.storage.file_system_dir.clear(), "[storage] file_system_dir: must not be empty"),
        ];
        for (change, message) in cases {
            assert_eq!(trouble(change), *message);
        }
    }

    #[test]
    fn what_keystone_needs_is_asked_for_where_keystone_is_asked() {
        type Change = fn(&mut KeystoneAuthtoken);
        let with = |change: Change| {
            trouble(|c| {
                c.api.auth_strategy = AuthStrategy::Keystone;
                c.keystone_authtoken = KeystoneAuthtoken {
                    auth_url: "http://controller:5000/v3".to_owned(),
                    username: "taibai".to_owned(),
                    password: "secret".into(),
                    ..KeystoneAuthtoken::default()
                };
                change(&mut c.keystone_authtoken);
            })
        };
        assert_eq!(with(|_| ()), "ok");
        let cases: &[(Change, &str)] = &[
            (|k| k.auth_url.clear(), "auth_url: must not be empty"),
            (
                |k| k.auth_url = "controller:5000".to_owned(),
                "auth_url = controller:5000: expected a URL such as http://controller:5000/v3",
            ),
            (|k| k.username.clear(), "username: must not be empty"),
            (|k| k.password = "".into(), "password: must not be empty"),
            (|k| k.project_name.clear(), "project_name: must not be empty"),
            (|k| k.timeout = Duration::ZERO, "timeout = 0s: expected more than nothing"),
            (
                |k| k.service_token_roles.clear(),
                "service_token_roles: must not be empty while service_token_roles_required = true",
            ),
        ];
        for (change, message) in cases {
            assert_eq!(with(*change), format!("[keystone_authtoken] {message}"));
        }
        assert_eq!(trouble(|c| c.keystone_authtoken.auth_url = "nonsense".to_owned()), "ok");
        // Swift is asked with Keystone's tokens, whoever calls.
        assert_eq!(
            trouble(|c| c.storage.driver = StorageDriver::Swift),
            "[keystone_authtoken] auth_url: must not be empty"
        );
    }

    #[test]
    fn a_database_url_is_never_shown() {
        let expected = "expected sqlite:///path, mysql://user:password@host/name or \
                        postgresql://user:password@host/name";
        for (url, reason) in [
            ("oracle://u:secret@h/t", "unknown database oracle"),
            ("u:secret@h/t", "no URL"),
            ("mysql+pymysql://", "nothing after mysql+pymysql://"),
        ] {
            let message = trouble(|c| c.database.connection = url.to_owned());
            assert_eq!(message, format!("[database] connection: {reason}; {expected}"));
        }
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        let message = trouble(|c| c.logging.level = "info,taibai=loud".to_owned());
        let (start, end) = (
            "[logging] level = info,taibai=loud: ",
            "; expected levels such as info or info,taibai::engine=debug",
        );
        assert!(message.starts_with(start) && message.ends_with(end), "{message}");
    }
}
