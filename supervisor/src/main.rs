//! The first process of every worker's container.
//!
//! It listens on a Unix socket for the engine ([`http`]), starts a process for each slot ([`slot`]), from a
//! parent interpreter that forks ([`parent`]) or as a program of its own ([`spawn`]), and gives each execution a slot, its limits and its deadline ([`worker`]).
//! Processes of a slot are killed from here, which takes the right to signal others. Its files are
//! touched by a helper alone, this program again under that slot's user id ([`helper`]), once no
//! process of that user is left; so root inside the container needs no right beyond that and
//! changing ids.
//!
//! One thread: forking is safe, and no lock is held while another task runs.

mod cgroup;
mod clouds;
mod frame;
#[cfg(test)]
mod fuzz;
mod helper;
mod http;
mod limit;
mod log;
mod parent;
mod process;
mod slot;
mod spawn;
mod unpack;
mod worker;

use std::process::ExitCode;

use protocol::worker::{LAST_WORDS, RUN_DIR, SETTINGS, Settings};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Asked on the host, by whoever looks whether it is of the engine's release.
    if arguments == ["--version"] {
        println!("taibai-supervisor {} protocol {}", env!("CARGO_PKG_VERSION"), protocol::VERSION);
        return ExitCode::SUCCESS;
    }
    if let Some(code) = helper::run(&arguments) {
        return code;
    }
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            // Nobody reads a worker's output, the engine finds this; failing to leave a note changes nothing more.
            let _ = std::fs::write(format!("{RUN_DIR}/{LAST_WORDS}"), &reason);
            ExitCode::FAILURE
        }
    }
}

fn serve(shim: &[String]) -> Result<(), String> {
    if shim.is_empty() {
        return Err("the image names no command for its shim".to_owned());
    }
    let settings = std::env::var(SETTINGS).map_err(|_| format!("{SETTINGS} is not set"))?;
    let settings: Settings =
        serde_json::from_str(&settings).map_err(|error| format!("{SETTINGS} cannot be read: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no event loop: {error}"))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let worker = worker::Worker::start(settings, shim).await?;
        http::serve(worker).await
    })
}
