//! The command line: one file per command. Prints results on stdout, trouble as one line on stderr.

mod api;
mod config;
mod db;
mod engine;
mod import_qinling;
mod policy;
mod register;
mod serve;
mod upgrade;
mod user;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::telemetry::Chain;

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Functions as a service for OpenStack.
#[derive(Debug, Parser)]
#[command(name = "taibai", version, arg_required_else_help = true)]
struct Arguments {
    /// Configuration; else $TAIBAI_CONFIG, else /etc/taibai/taibai.conf if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the API and runs functions, in one process.
    Serve,
    /// Serves the API alone; engines that share its database run functions.
    Api,
    /// Runs functions alone, for APIs that share its database.
    Engine,
    /// Looks after the database.
    #[command(subcommand)]
    Db(db::Command),
    /// Puts the service into Keystone: its user, its role, its endpoints. May be run again.
    ///
    /// Keystone is asked with an administrator's login, from OS_CLOUD or the other OS_* variables.
    Register(register::Register),
    /// Removes from Keystone what `register` made.
    Unregister(register::Region),
    /// Looks after the configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Looks after who may do what.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Brings in what a Qinling deployment has: runtimes, functions, versions, aliases, jobs and webhooks, with
    /// their ids. May be run again.
    ImportQinling(import_qinling::ImportQinling),
    /// Looks after upgrades.
    #[command(subcommand)]
    Upgrade(upgrade::Command),
    /// Looks after the users of `auth_strategy = http_basic`.
    #[command(subcommand)]
    User(user::Command),
}

/// Does what the arguments of this process say. Wrong arguments end the process with status 2.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let path = arguments.config_file.as_deref();
    let done = match arguments.command {
        Command::Serve => serve::run(path),
        Command::Api => api::run(path),
        Command::Engine => engine::run(path),
        Command::Db(command) => db::run(command, path),
        Command::Register(arguments) => register::register(arguments, path),
        Command::Unregister(region) => register::unregister(region, path),
        Command::Config(command) => config::run(command, path),
        Command::Policy(command) => policy::run(command, path),
        Command::ImportQinling(arguments) => import_qinling::run(arguments, path),
        Command::Upgrade(command) => return upgrade::run(command, path),
        Command::User(command) => user::run(command, path),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taibai: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The runtime of the services: a thread for two cores. HTTP and the database have threads of their own, and
/// where there are more than can run, the time goes into waking them.
pub fn runtime() -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism()?.get();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.div_ceil(2))
        .thread_name("taibai")
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_file_may_be_named_before_or_after_the_command() {
        for line in ["taibai --config-file x config check", "taibai config check --config-file x"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.config_file, Some("x".into()), "{line}");
        }
    }
}
