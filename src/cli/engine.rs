//! `taibai engine`: runs functions alone.

use std::path::Path;

use super::{Result, runtime};
use crate::config::Config;
use crate::{server, telemetry};

pub fn run(path: Option<&Path>) -> Result {
    let config = Config::load(path)?;
    telemetry::init(&config.logging)?;
    Ok(runtime()?.block_on(server::engine(config))?)
}
