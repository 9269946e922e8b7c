//! The sections of taibai.conf: every key, its default and its documentation.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::formats::{address, bytes, choice, duration, flag, number, path, text};
use super::section::{Opt, Section, config, section};

config! {
    /// What taibai.conf says, with defaults for what it does not.
    pub struct Config {
        pub api: Api,
        pub database: Database,
        pub docker: Docker,
        pub engine: Engine,
        pub logging: Logging,
        pub resource_limits: ResourceLimits,
        pub storage: Storage,
    }
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthStrategy {
    /// Nobody is asked for a token. For one machine and one user.
    Noauth,
}

section! {
    /// `[api]`: the HTTP server.
    pub struct Api {
        /// Address to listen on.
        pub host: IpAddr as "address" = Ipv4Addr::LOCALHOST.into();
        /// Port to listen on; 0 picks a free one.
        pub port: u16 as "number" = 7070;
        /// How callers are known: `noauth`.
        pub auth_strategy: AuthStrategy as "choice" = AuthStrategy::Noauth;
        /// Listen beyond loopback although `auth_strategy` is `noauth`: everyone who reaches the port is an administrator.
        pub allow_noauth_from_anywhere: bool as "flag" = false;
        /// Most bytes of a request body that is no package.
        pub max_body_bytes: u64 as "bytes" = 8 << 20;
        /// How long a shutdown waits for requests and executions under way.
        pub shutdown_timeout: Duration as "duration" = Duration::from_secs(310);
    }
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
        pub connection: String as "text" = "sqlite:///var/lib/taibai/taibai.sqlite".to_owned();
        /// What a commit survives on SQLite: `process` or `power`. A server decides for itself.
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
        /// First user id given to workers, sixteen to each. Nothing else on the machine may use them.
        pub uid_base: u32 as "number" = 1_879_048_192;
        /// Docker network of workers: `none`, or the name of one that exists.
        pub network: String as "text" = "none".to_owned();
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
        /// How long an engine that stopped answering keeps its executions.
        pub lease: Duration as "duration" = Duration::from_secs(15);
    }
}

section! {
    /// `[logging]`: what the services write about themselves.
    pub struct Logging {
        /// Levels, as `info` or `info,taibai::engine=debug`.
        pub level: String as "text" = "info,sqlx=warn,sea_orm_migration=warn".to_owned();
        /// Write JSON instead of text.
        pub json: bool as "flag" = false;
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
    /// `[storage]`: uploaded packages.
    pub struct Storage {
        /// Directory of uploaded packages.
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
