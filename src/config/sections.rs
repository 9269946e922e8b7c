//! The sections of taibai.conf: every key, its default and its documentation.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use secrecy::SecretString;

use super::destination::{Destination, HostEntry, NameServer};
use super::formats::{
    address, bytes, choice, connection, duration, flag, limit, list, number, path, secret, subnet, text,
};
use super::section::{Opt, Section, config, section};
use crate::model::Interface;

config! {
    /// What taibai.conf says, with defaults for what it does not.
    pub struct Config {
        pub api: Api,
        pub audit: Audit,
        pub cors: Cors,
        pub database: Database,
        pub docker: Docker,
        pub engine: Engine,
        pub executions: Executions,
        pub http_basic: HttpBasic,
        pub images: Images,
        pub jobs: Jobs,
        pub keystone_authtoken: KeystoneAuthtoken,
        pub logging: Logging,
        pub network: Network,
        pub oslo_middleware: OsloMiddleware,
        pub oslo_policy: OsloPolicy,
        pub quotas: Quotas,
        pub resource_limits: ResourceLimits,
        pub storage: Storage,
        pub trusts: Trusts,
    }
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthStrategy {
    /// Nobody is asked for a token. For one machine and one user.
    Noauth,
    /// Tokens are Keystone's.
    Keystone,
    /// A name and a password, checked with a file; see `[http_basic]`.
    HttpBasic,
}

section! {
    /// `[api]`: the HTTP server.
    pub struct Api {
        /// Address to listen on.
        pub host: IpAddr as "address" = Ipv4Addr::LOCALHOST.into();
        /// Port to listen on; 0 picks a free one.
        pub port: u16 as "number" = 7070;
        /// How callers are known: `noauth`, `http_basic`, or `keystone` (see `[keystone_authtoken]`).
        pub auth_strategy: AuthStrategy as "choice" = AuthStrategy::Noauth;
        /// Listen beyond loopback although `auth_strategy` is `noauth`: everyone who reaches the port is an administrator.
        pub allow_noauth_from_anywhere: bool as "flag" = false;
        /// Where callers reach this service, such as https://functions.example.org, for the URLs of webhooks. Empty for
        /// its public URL in Keystone's catalog or, without one, for what each request calls the service.
        pub public_endpoint: String as "text" = String::new();
        /// Most bytes of a request body that is no package.
        pub max_body_bytes: u64 as "bytes" = 8 << 20;
        /// Certificate, with those that lead to its authority, in PEM; with it the service speaks https. Read again,
        /// with the key, when the files change.
        pub tls_cert: PathBuf as "path" = PathBuf::new();
        /// Key of that certificate, in PEM.
        pub tls_key: PathBuf as "path" = PathBuf::new();
        /// Certificates of the authorities, in PEM, of which every caller has to show a certificate; empty to ask
        /// for none.
        pub tls_client_ca: PathBuf as "path" = PathBuf::new();
        /// How long a service that was told to stop still takes requests, while `/healthcheck` answers 503 so that a
        /// load balancer sends them elsewhere. Not needed where systemd holds the socket.
        pub drain_time: Duration as "duration" = Duration::ZERO;
        /// How long a shutdown waits for requests and executions under way.
        pub shutdown_timeout: Duration as "duration" = Duration::from_secs(310);
    }
}

section! {
    /// `[audit]`: who changed what, and who was not let.
    pub struct Audit {
        /// Write an event in CADF, as JSON on a line, for each request that is to change something and each that is
        /// denied. Calls of functions are such requests.
        pub enabled: bool as "flag" = false;
        /// File to which events are appended; one that was moved away is made anew. Empty for the log, where they
        /// have the target `audit`.
        pub file: PathBuf as "path" = PathBuf::new();
    }
}

section! {
    /// `[cors]`: pages of other origins that may call the API. The keys are those of other services.
    pub struct Cors {
        /// Origins, such as https://dashboard.example.org, or * for any, which gets no credentials. None for no pages.
        pub allowed_origin: Vec<String> as "list" = Vec::new();
        /// Whether a page may send what the browser knows the user by, such as cookies.
        pub allow_credentials: bool as "flag" = true;
        /// Headers of answers that a page may read.
        pub expose_headers: Vec<String> as "list" = [
            "X-Auth-Token", "X-Subject-Token", "X-Service-Token", "X-Project-Id", "X-User-Name", "X-Project-Name",
            "X-OpenStack-Request-ID", "OpenStack-API-Version", "ETag", "Retry-After",
        ].map(str::to_owned).to_vec();
        /// How long a browser need not ask again.
        pub max_age: Duration as "duration" = Duration::from_secs(3600);
        /// Methods that a page may use.
        pub allow_methods: Vec<String> as "list" = ["GET", "PUT", "POST", "DELETE", "PATCH"].map(str::to_owned).to_vec();
        /// Headers that a page may send.
        pub allow_headers: Vec<String> as "list" = [
            "X-Auth-Token", "X-Identity-Status", "X-Roles", "X-Service-Catalog", "X-User-Id", "X-Tenant-Id",
            "X-Project-Id", "X-User-Name", "X-Project-Name", "X-OpenStack-Request-ID", "OpenStack-API-Version",
            "If-None-Match", "Authorization",
        ].map(str::to_owned).to_vec();
    }
}

/// How the service gets a token of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthType {
    Password,
}

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The end of the process, however it comes.
    Process,
    /// The loss of power too.
    Power,
}

section! {
    /// `[database]`: where state is kept.
    pub struct Database {
        /// URL of the database: `sqlite:///PATH`, `mysql+pymysql://USER:PASSWORD@HOST/NAME` for MariaDB, or
        /// `postgresql+psycopg2://USER:PASSWORD@HOST/NAME`. What stands behind a `+` is not looked at.
        pub connection: String as "connection" = "sqlite:///var/lib/taibai/taibai.sqlite".to_owned();
        /// File that holds that URL instead; nobody else needs to read it.
        pub connection_file: PathBuf as "path" = PathBuf::new();
        /// What survives on SQLite once it was answered: the end of the process, or with `power` the loss of
        /// power too, which makes each call wait for the disk. A server decides for itself.
        pub durability: Durability as "choice" = Durability::Process;
        /// Connections for reading and, with a server, as many for writing.
        pub max_connections: u32 as "number" = 4;
    }
}

section! {
    /// `[docker]`: the containers of workers.
    pub struct Docker {
        /// Socket of the Docker engine.
        pub socket: PathBuf as "path" = "/var/run/docker.sock".into();
        /// File with the credentials of registries, in the form of Docker's `config.json`; empty for none.
        pub auth_file: PathBuf as "path" = PathBuf::new();
        /// Label that tells this deployment's containers from another's on the same machine.
        pub deployment: String as "text" = "taibai".to_owned();
        /// Directory for workers' sockets and files. Short: a socket's path holds 107 bytes.
        pub worker_dir: PathBuf as "path" = "/run/taibai".into();
        /// Directory on a disk for what workers unpack and write.
        pub work_dir: PathBuf as "path" = "/var/lib/taibai/work".into();
        /// Most bytes that a worker's package and its executions' files take on the disk.
        pub work_bytes: u64 as "bytes" = 1 << 30;
        /// The supervisor's binary; empty for `taibai-supervisor` beside this program.
        pub supervisor: PathBuf as "path" = PathBuf::new();
        /// First user id given to workers, sixteen to each; containers of images have those below it, one each.
        /// Nothing else on the machine may use them.
        pub uid_base: u32 as "number" = 1_879_048_192;
        /// Most bytes of memory of a container beside what its executions may use.
        pub overhead_bytes: u64 as "bytes" = 256 << 20;
        /// How long to wait for a container to start.
        pub start_timeout: Duration as "duration" = Duration::from_secs(30);
    }
}

section! {
    /// `[engine]`: how executions are run.
    pub struct Engine {
        /// Name of this machine among the engines of a deployment; empty for the host's name.
        pub node: String as "text" = String::new();
        /// Where `taibai engine` takes calls from `taibai api`: `unix:///PATH` on one machine, or
        /// `https://ADDRESS:PORT` with the `tls_` files below.
        pub listen: String as "text" = "unix:///run/taibai/engine.sock".to_owned();
        /// Where `taibai api` reaches this engine; empty for what `listen` says, with the node's name in place
        /// of an address that means all.
        pub advertise: String as "text" = String::new();
        /// Address on which `taibai engine` answers `/healthcheck` and `/metrics`, without asking who it is.
        pub health_host: IpAddr as "address" = Ipv4Addr::LOCALHOST.into();
        /// Port of the same; 0 picks a free one.
        pub health_port: u16 as "number" = 7072;
        /// Certificate, in PEM, that API and engine show each other over https.
        pub tls_cert: PathBuf as "path" = PathBuf::new();
        /// Key of that certificate, in PEM.
        pub tls_key: PathBuf as "path" = PathBuf::new();
        /// Certificate of the authority, used for nothing else, that signed both sides' certificates, in PEM.
        pub tls_ca: PathBuf as "path" = PathBuf::new();
        /// Executions that one worker runs at once.
        pub function_concurrency: u32 as "number" = 3;
        /// Workers of each runtime that are kept started and unbound.
        pub pool_size: u32 as "number" = 3;
        /// Most workers on this machine, unbound ones included.
        pub max_workers: u32 as "number" = 32;
        /// Most executions that wait for a worker; one more is refused.
        pub max_queue: u32 as "number" = 1000;
        /// Longest wait for a worker.
        pub queue_timeout: Duration as "duration" = Duration::from_secs(60);
        /// Longest time that an asynchronous execution may be pending; then it ends as an error.
        pub pending_timeout: Duration as "duration" = Duration::from_secs(86_400);
        /// Asynchronous executions that run at once.
        pub max_async: u32 as "number" = 16;
        /// A worker that ran nothing for this long is removed.
        pub idle_timeout: Duration as "duration" = Duration::from_secs(3600);
        /// A process that served this many executions is replaced.
        pub max_executions_per_slot: u32 as "number" = 10_000;
        /// A process that keeps more than this many bytes after an execution is replaced.
        pub memory_mark: u64 as "bytes" = 8 << 20;
        /// Most processes and threads of one execution.
        pub max_processes: u32 as "number" = 128;
        /// Most bytes that a function may return.
        pub max_result_bytes: u64 as "bytes" = 6 << 20;
        /// Most bytes of an execution's log that are kept.
        pub max_log_bytes: u64 as "bytes" = 1 << 20;
        /// Leave workers running when the service stops, so that its next start finds them warm.
        pub keep_workers_on_shutdown: bool as "flag" = true;
        /// How often objects in Swift that workers were started from are looked at for changes.
        pub object_check_interval: Duration as "duration" = Duration::from_secs(30);
        /// How long an engine that stopped answering keeps its executions.
        pub lease: Duration as "duration" = Duration::from_secs(15);
    }
}

section! {
    /// `[executions]`: how long what is known of executions is kept.
    pub struct Executions {
        /// Executions that ended are deleted, with their logs, this long after they were created; 0 for never.
        pub max_age: Duration as "duration" = Duration::from_secs(90 * 86_400);
        /// Executions of a project beyond this number are deleted, those first that were created first; 0 for no
        /// bound.
        pub max_per_project: u64 as "number" = 1_000_000;
        /// How often that is looked after.
        pub check_interval: Duration as "duration" = Duration::from_secs(600);
    }
}

section! {
    /// `[http_basic]`: callers known by name and password, where `auth_strategy` is `http_basic`.
    pub struct HttpBasic {
        /// File of users, as `taibai user` writes it: `name:bcrypt hash[:project[:role,role]]`.
        pub user_file: PathBuf as "path" = "/etc/taibai/htpasswd".into();
        /// Names of users, separated by commas, who have the role `admin` besides those in the file.
        pub admins: String as "text" = String::new();
    }
}

/// When an image is asked of its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    Never,
    /// When it is not on the machine.
    Missing,
    /// When a function is created from it. An execution runs what was found then.
    Always,
}

section! {
    /// `[images]`: functions that are container images.
    pub struct Images {
        /// Images that may be functions, as `registry/repository:tag` in full, with `*` for any characters:
        /// `docker.io/library/*` or `registry.example.org/team/*:stable`. What a user writes is completed first, as
        /// Docker does. Whoever may name an image has this machine pull it and runs what is in it, so there are none
        /// unless some are named here.
        pub allowed: Vec<String> as "list" = Vec::new();
        /// When an image is pulled: `never`, `missing` or `always`.
        pub pull: Pull as "choice" = Pull::Missing;
        /// How long a pull may take.
        pub pull_timeout: Duration as "duration" = Duration::from_secs(600);
        /// Containers of images that run at once on this machine; more wait as calls for a worker do.
        pub max_containers: u32 as "number" = 16;
        /// Keep the image's files from being written to. `/tmp` can be written in any case.
        pub read_only: bool as "flag" = true;
        /// Most bytes in `/tmp`, which count as memory of the function.
        pub tmp_bytes: u64 as "bytes" = 64 << 20;
    }
}

/// What becomes of the instants at which no engine ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    Once,
    Skip,
    All,
}

section! {
    /// `[jobs]`: functions that run at times.
    pub struct Jobs {
        /// Have this engine start what is due. Several engines may; each instant is started once.
        pub enabled: bool as "flag" = true;
        /// What a job does about instants that were missed, because no engine was there: `once`, one execution for
        /// all of them; `skip`, none; `all`, one for each. Then it goes on with the next instant to come.
        pub missed: Missed as "choice" = Missed::Once;
        /// How late an instant may be started without counting as missed. As long a job that runs a single time
        /// waits for a function that cannot be run at the moment; then it is cancelled.
        pub grace: Duration as "duration" = Duration::from_secs(60);
    }
}

section! {
    /// `[keystone_authtoken]`: Keystone, and the account that asks it. The keys are those of other services.
    pub struct KeystoneAuthtoken {
        /// Where users get tokens; said in answers to requests without one. Empty for `auth_url`.
        pub www_authenticate_uri: String as "text" = String::new();
        /// Where this service gets its own token, such as http://controller:5000/v3.
        pub auth_url: String as "text" = String::new();
        /// How it gets it: `password`.
        pub auth_type: AuthType as "choice" = AuthType::Password;
        /// Name of the service's user.
        pub username: String as "text" = String::new();
        /// Password of the service's user.
        pub password: SecretString as "secret" = SecretString::default();
        /// File that holds that password instead; nobody else needs to read it.
        pub password_file: PathBuf as "path" = PathBuf::new();
        /// Domain of the service's user.
        pub user_domain_name: String as "text" = "Default".to_owned();
        /// Project of the service's user.
        pub project_name: String as "text" = "service".to_owned();
        /// Domain of that project.
        pub project_domain_name: String as "text" = "Default".to_owned();
        /// Region in which other services are looked up; empty for the first in the catalog.
        pub region_name: String as "text" = String::new();
        /// Under which of their URLs: `public`, `internal` or `admin`.
        pub interface: Interface as "choice" = Interface::Internal;
        /// File with the certificates, in PEM, of the authorities to trust beside the system's.
        pub cafile: PathBuf as "path" = PathBuf::new();
        /// Believe any certificate. For tests only.
        pub insecure: bool as "flag" = false;
        /// How long to wait for a connection.
        pub http_connect_timeout: Duration as "duration" = Duration::from_secs(5);
        /// How long to wait for Keystone's answer.
        pub timeout: Duration as "duration" = Duration::from_secs(30);
        /// How long a validated token is taken without asking again, and so how long a revoked one may still pass.
        pub token_cache_time: Duration as "duration" = Duration::from_secs(300);
        /// Most bytes of tokens' descriptions that are kept.
        pub token_cache_bytes: u64 as "bytes" = 64 << 20;
        /// Roles of which a service needs one for its own token, sent beside a user's, to count.
        pub service_token_roles: Vec<String> as "list" = vec!["service".to_owned()];
        /// Whether it needs one at all.
        pub service_token_roles_required: bool as "flag" = true;
        /// Type of this service, in the access rules of application credentials.
        pub service_type: String as "text" = "function-engine".to_owned();
    }
}

section! {
    /// `[logging]`: what the services write about themselves.
    pub struct Logging {
        /// Levels, as `info` or `info,taibai::engine=debug`.
        pub level: String as "text" = "info,sqlx=warn,sea_orm_migration=warn".to_owned();
        /// Write JSON instead of text.
        pub json: bool as "flag" = false;
        /// File to write to, which may be renamed or cut off at any time; empty for stderr. What systemd's journal
        /// reads from there is marked with its priority.
        pub file: PathBuf as "path" = PathBuf::new();
    }
}

/// How containers are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Not at all.
    None,
    /// By a bridge of the deployment's own.
    Bridge,
}

section! {
    /// `[network]`: what functions may reach.
    pub struct Network {
        /// `none`: functions reach nothing, and a worker starts in half the time. `bridge`: they reach the endpoints
        /// of the service catalog and what `allow` and `allow_outside` add; this takes `nft` and root.
        pub mode: NetworkMode as "choice" = NetworkMode::None;
        /// Interface of the bridge, which Taibai makes. Every deployment on a machine needs its own.
        pub bridge_name: String as "text" = "taibai0".to_owned();
        /// IPv4 addresses of the bridge and of containers. Nothing else may use them.
        pub subnet: Ipv4Net as "subnet" = Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 224, 0), 20);
        /// IPv6 addresses of the bridge and of containers; empty for containers without IPv6.
        pub subnet6: Option<Ipv6Net> as "subnet" = None;
        /// Let functions reach public addresses that are not this machine's. Private ones stay closed.
        pub allow_outside: bool as "flag" = false;
        /// What functions may reach beside the catalog, by TCP: name:port, address:port, network/bits:port or
        /// [IPv6]:port.
        pub allow: Vec<Destination> as "list" = Vec::new();
        /// Networks that `allow_outside` leaves closed, as 203.0.113.0/24.
        pub deny: Vec<IpNet> as "list" = Vec::new();
        /// Names that containers are given: name:address, or name:host-gateway for this machine. They open nothing.
        pub extra_hosts: Vec<HostEntry> as "list" = Vec::new();
        /// Name servers that functions may ask: addresses, or `host` for those of this machine. Without any,
        /// containers know the names of the endpoints that they may reach and no others.
        pub dns: Vec<NameServer> as "list" = Vec::new();
        /// How often the rules are compared with what they should be.
        pub check_interval: Duration as "duration" = Duration::from_secs(5);
    }
}

section! {
    /// `[oslo_middleware]`: what stands before the API.
    pub struct OsloMiddleware {
        /// Believe `Forwarded` (RFC 7239) or `X-Forwarded-Proto`, `-Host`, `-Prefix` and `-For` about where callers reach this
        /// service and who they are. Only behind a proxy that removes all of them from what clients send, `Forwarded`
        /// also where it sets the others, and sets its own: anybody can write them. etc/apache2 and etc/haproxy do so.
        pub enable_proxy_headers_parsing: bool as "flag" = false;
    }
}

section! {
    /// `[oslo_policy]`: who may do what.
    pub struct OsloPolicy {
        /// File of rules that differ from the defaults, which `taibai policy list` shows. It is read again when it changes.
        pub policy_file: PathBuf as "path" = "/etc/taibai/policy.yaml".into();
    }
}

/// Where limits of projects come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaDriver {
    Config,
    UnifiedLimits,
}

section! {
    /// `[quotas]`: how much a project may have, and how fast it may ask.
    pub struct Quotas {
        /// Where limits come from: `config`, the ones below for every project, or `unified_limits`, those that
        /// Keystone has for this service, which `taibai register --limits` registers. Where Keystone has none, or
        /// never answered, the ones below count.
        pub driver: QuotaDriver as "choice" = QuotaDriver::Config;
        /// How long Keystone's limits of a project are taken without asking again. While it does not answer they are
        /// taken for longer.
        pub cache_time: Duration as "duration" = Duration::from_secs(60);
        /// Most functions of a project.
        pub functions: i64 as "limit" = 1000;
        /// Most versions of all functions of a project.
        pub function_versions: i64 as "limit" = 10_000;
        /// Most aliases of a project.
        pub function_aliases: i64 as "limit" = 1000;
        /// Most jobs of a project that are not over.
        pub jobs: i64 as "limit" = 1000;
        /// Most webhooks of a project.
        pub webhooks: i64 as "limit" = 1000;
        /// Most executions of a project that are pending or running. Those that somebody waits for are counted by
        /// each API process for itself.
        pub concurrent_executions: i64 as "limit" = 10_000;
        /// Most bytes of packages that a project keeps, each once. Keystone keeps this limit in MiB, under the name
        /// `package_mebibytes`.
        pub package_bytes: i64 as "limit" = 50 << 30;
        /// Requests of a project that are answered in a second, on the average, by each API process; more get 429. Calls
        /// of its public webhooks are counted apart and may be as many. 0 for as many as come.
        pub requests_per_second: u32 as "number" = 0;
        /// Requests of a project that may come at once; 0 for as many as in a second.
        pub burst: u32 as "number" = 0;
    }
}

section! {
    /// `[resource_limits]`: what a function may ask for.
    pub struct ResourceLimits {
        /// Thousandths of a processor.
        pub default_cpu: i32 as "number" = 100;
        /// Thousandths of a processor.
        pub min_cpu: i32 as "number" = 100;
        /// Thousandths of a processor.
        pub max_cpu: i32 as "number" = 8000;
        /// Bytes.
        pub default_memory: i64 as "bytes" = 32 << 20;
        /// Bytes.
        pub min_memory: i64 as "bytes" = 32 << 20;
        /// Bytes.
        pub max_memory: i64 as "bytes" = 8 << 30;
        /// Seconds.
        pub default_timeout: i32 as "number" = 5;
        /// Seconds.
        pub min_timeout: i32 as "number" = 1;
        /// Seconds.
        pub max_timeout: i32 as "number" = 300;
    }
}

section! {
    /// `[trusts]`: what functions may do in the cloud.
    pub struct Trusts {
        /// Roles that a function gets, as far as whoever uploads it has them. `admin` is never delegated.
        pub roles: Vec<String> as "list" = ["member", "reader", "swiftoperator"].map(str::to_owned).to_vec();
    }
}

/// Where uploaded packages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageDriver {
    /// In a directory.
    Local,
    /// In a container of Swift.
    Swift,
}

section! {
    /// `[storage]`: uploaded packages.
    pub struct Storage {
        /// Where they are kept: `local`, in `file_system_dir`, or `swift`, in a container of the project that
        /// `[keystone_authtoken]` names. There the service's user needs a role that Swift lets keep objects, such
        /// as `swiftoperator` or `member`; `taibai register --role` gives it one.
        pub driver: StorageDriver as "choice" = StorageDriver::Local;
        /// Container of uploaded packages in Swift, made where it is missing. Every deployment needs its own.
        pub container: String as "text" = "taibai-packages".to_owned();
        /// Directory of uploaded packages. With `swift`, of those that are being received, on this machine alone.
        pub file_system_dir: PathBuf as "path" = "/var/lib/taibai/packages".into();
        /// Most bytes of a package.
        pub max_package_bytes: u64 as "bytes" = 51 << 20;
        /// Most files and directories in a package.
        pub max_package_entries: u64 as "number" = 20_000;
        /// Most bytes of a package once it is unpacked.
        pub max_expanded_bytes: u64 as "bytes" = 512 << 20;
        /// Most unpacked bytes for each packed one.
        pub max_ratio: u64 as "number" = 200;
    }
}

impl Storage {
    /// The rules for packages, as the supervisor applies them too.
    pub fn archive_limits(&self) -> protocol::archive::Limits {
        protocol::archive::Limits {
            max_entries: self.max_package_entries,
            max_expanded_bytes: self.max_expanded_bytes,
            max_ratio: self.max_ratio,
        }
    }
}
