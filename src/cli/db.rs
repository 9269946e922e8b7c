//! `taibai db …`

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Result, runtime};
use crate::config::Config;
use crate::db::{self, Db};
use crate::telemetry;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Brings the schema up to this release. May be run again.
    Sync,
    /// Writes an SQLite database, as of one moment, into a new file. Services go on meanwhile.
    Backup {
        /// The file to be made.
        file: PathBuf,
    },
}

pub fn run(command: Command, path: Option<&Path>) -> Result {
    let config = Config::load(path)?;
    telemetry::init(&config.logging)?;
    match command {
        Command::Sync => runtime()?.block_on(async {
            Db::connect(&config.database).await?.migrate().await?;
            Ok(())
        }),
        Command::Backup { file } => {
            // Connecting would make it.
            if let Some(database) = db::file_of(&config.database)?
                && !database.exists()
            {
                return Err(format!("{}: there is no such database", database.display()).into());
            }
            runtime()?.block_on(async {
                Db::connect(&config.database).await?.backup(&file).await?;
                Ok(())
            })
        }
    }
}
