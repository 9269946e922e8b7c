//! `taibai config …`

use std::io::Write;
use std::path::Path;

use clap::Subcommand;

use super::Result;
use crate::config::{Config, sample, shown};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints a configuration file with every key, its default and what it means.
    Sample,
    /// Prints every key with the value that is in force, and no secret.
    Show,
    /// Reads the configuration as a start would, and says what is wrong with it.
    Check,
}

pub fn run(command: Command, path: Option<&Path>) -> Result {
    let text = match command {
        Command::Sample => sample(),
        Command::Show => shown(&Config::load(path)?),
        Command::Check => {
            Config::load(path)?;
            "ok\n".to_owned()
        }
    };
    // Not print!, which panics where the reader of a pipe has seen enough.
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
