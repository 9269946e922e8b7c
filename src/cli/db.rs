//! `taibai db …`

use std::path::Path;

use clap::Subcommand;

use super::{Result, runtime};
use crate::config::Config;
use crate::db::Db;
use crate::telemetry;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Brings the schema up to this release. May be run again.
    Sync,
}

pub fn run(command: Command, path: Option<&Path>) -> Result {
    let config = Config::load(path)?;
    telemetry::init(&config.logging)?;
    match command {
        Command::Sync => runtime()?.block_on(async {
            Db::connect(&config.database).await?.migrate().await?;
            Ok(())
        }),
    }
}
