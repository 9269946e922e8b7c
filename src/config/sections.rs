use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub api: Api,
    pub database: Database,
    pub docker: Docker,
    pub engine: Engine,
    pub logging: Logging,
    pub resource_limits: ResourceLimits,
    pub storage: Storage,
}

/// How a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthStrategy {
    /// Nobody is asked for a token. For one machine and one user.
    Noauth,
}

/// `[api]`: the HTTP server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address to listen on.
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 picks a free one.
    pub port: u16,
    /// How callers are known: `noauth`.
    pub auth_strategy: AuthStrategy,
    /// Listen beyond loopback although `auth_strategy` is `noauth`: everyone who reaches the port is an administrator.
    pub allow_noauth_from_anywhere: bool,
    /// Most bytes of a request body that is no package.
    pub max_body_bytes: u64,
    /// How long a shutdown waits for requests and executions under way.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            host: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 7070,
            auth_strategy: AuthStrategy::Noauth,
            allow_noauth_from_anywhere: false,
            max_body_bytes: 8 << 20,
            shutdown_timeout: Duration::from_secs(310),
        }
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

/// `[database]`: where state is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// URL of the database.
    pub connection: String,
    /// What a commit survives: `process` or `power`.
    pub durability: Durability,
    /// Connections for reading.
    pub max_connections: u32,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            connection: "sqlite:///var/lib/taibai/taibai.sqlite".to_owned(),
            durability: Durability::Process,
            max_connections: 4,
        }
    }
}

/// `[docker]`: the containers of workers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Socket of the Docker engine.
    pub socket: PathBuf,
    /// Label that tells this deployment's containers from another's on the same machine.
    pub deployment: String,
    /// Directory for workers' sockets and files. Short: a socket's path holds 107 bytes.
    pub worker_dir: PathBuf,
    /// Directory on a disk for what workers unpack and write.
    pub work_dir: PathBuf,
    /// Most bytes that a worker's package and its executions' files take on the disk.
    pub work_bytes: u64,
    /// The supervisor's binary; empty for `taibai-supervisor` beside this program.
    pub supervisor: PathBuf,
    /// First user id given to workers, sixteen to each. Nothing else on the machine may use them.
    pub uid_base: u32,
    /// Docker network of workers: `none`, or the name of one that exists.
    pub network: String,
    /// Most bytes of memory of a container beside what its executions may use.
    pub overhead_bytes: u64,
    /// How long to wait for a container to start.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            deployment: "taibai".to_owned(),
            worker_dir: "/run/taibai".into(),
            work_dir: "/var/lib/taibai/work".into(),
            work_bytes: 1 << 30,
            supervisor: PathBuf::new(),
            uid_base: 1_879_048_192,
            network: "none".to_owned(),
            overhead_bytes: 256 << 20,
            start_timeout: Duration::from_secs(30),
        }
    }
}

/// `[engine]`: how executions are run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Name of this machine among the engines of a deployment; empty for the host's name.
    pub node: String,
    /// Executions that one worker runs at once.
    pub function_concurrency: u32,
    /// Workers of each runtime that are kept started and unbound.
    pub pool_size: u32,
    /// Most workers on this machine, unbound ones included.
    pub max_workers: u32,
    /// Most executions that wait for a worker; one more is refused.
    pub max_queue: u32,
    /// Longest wait for a worker.
    #[serde(with = "humantime_serde")]
    pub queue_timeout: Duration,
    /// Asynchronous executions that run at once.
    pub max_async: u32,
    /// A worker that ran nothing for this long is removed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A process that served this many executions is replaced.
    pub max_executions_per_slot: u32,
    /// A process that keeps more than this many bytes after an execution is replaced.
    pub memory_mark: u64,
    /// Most processes and threads of one execution.
    pub max_processes: u32,
    /// Most bytes that a function may return.
    pub max_result_bytes: u64,
    /// Most bytes of an execution's log that are kept.
    pub max_log_bytes: u64,
    /// How long an engine that stopped answering keeps its executions.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            node: String::new(),
            function_concurrency: 3,
            pool_size: 3,
            max_workers: 32,
            max_queue: 1000,
            queue_timeout: Duration::from_secs(60),
            max_async: 16,
            idle_timeout: Duration::from_secs(3600),
            max_executions_per_slot: 10_000,
            memory_mark: 8 << 20,
            max_processes: 128,
            max_result_bytes: 6 << 20,
            max_log_bytes: 1 << 20,
            lease: Duration::from_secs(15),
        }
    }
}

/// `[logging]`: what the services write about themselves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    /// Levels, as `info` or `info,taibai::engine=debug`.
    pub level: String,
    /// Write JSON instead of text.
    pub json: bool,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: "info,sqlx=warn,sea_orm_migration=warn".to_owned(), json: false }
    }
}

/// `[resource_limits]`: what a function may ask for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceLimits {
    /// Thousandths of a processor.
    pub default_cpu: i32,
    /// Thousandths of a processor.
    pub min_cpu: i32,
    /// Thousandths of a processor.
    pub max_cpu: i32,
    /// Bytes.
    pub default_memory: i64,
    /// Bytes.
    pub min_memory: i64,
    /// Bytes.
    pub max_memory: i64,
    /// Seconds.
    pub default_timeout: i32,
    /// Seconds.
    pub min_timeout: i32,
    /// Seconds.
    pub max_timeout: i32,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self {
            default_cpu: 100,
            min_cpu: 100,
            max_cpu: 8000,
            default_memory: 32 << 20,
            min_memory: 32 << 20,
            max_memory: 8 << 30,
            default_timeout: 5,
            min_timeout: 1,
            max_timeout: 300,
        }
    }
}

/// `[storage]`: uploaded packages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Directory of uploaded packages.
    pub file_system_dir: PathBuf,
    /// Most bytes of a package.
    pub max_package_bytes: u64,
    /// Most files and directories in a package.
    pub max_package_entries: u64,
    /// Most bytes of a package once it is unpacked.
    pub max_expanded_bytes: u64,
    /// Most unpacked bytes for each packed one.
    pub max_ratio: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            file_system_dir: "/var/lib/taibai/packages".into(),
            max_package_bytes: 51 << 20,
            max_package_entries: 20_000,
            max_expanded_bytes: 512 << 20,
            max_ratio: 200,
        }
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
