//! A look at Docker and at the supervisor that changes nothing and takes nothing over.

use std::process::{Command, Stdio};

use bollard::errors::Error as DockerError;

use super::docker::{failure, find_supervisor};
use super::{Error, RuntimeImage, container};
use crate::config;

/// A Docker engine that is only asked.
#[derive(Debug)]
pub struct Look {
    client: bollard::Docker,
}

impl Look {
    pub async fn connect(config: &config::Docker) -> Result<Self, Error> {
        let socket = config.socket.display().to_string();
        let timeout = config.start_timeout.as_secs().max(1);
        let connected = bollard::Docker::connect_with_unix(&socket, timeout, bollard::API_DEFAULT_VERSION);
        let client = connected.map_err(|error| failure("connecting to Docker", error))?;
        let client =
            client.negotiate_version().await.map_err(|error| failure("connecting to Docker", error))?;
        Ok(Self { client })
    }

    /// What the engine says its version is.
    pub async fn version(&self) -> Result<String, Error> {
        let version = self.client.version().await.map_err(|error| failure("asking Docker", error))?;
        Ok(version.version.unwrap_or_default())
    }

    /// As [`super::Orchestrator::inspect_image`].
    pub async fn inspect_image(&self, reference: &str) -> Result<RuntimeImage, Error> {
        match self.client.inspect_image(reference).await {
            Ok(image) => container::runtime_image(reference, image),
            Err(DockerError::DockerResponseServerError { status_code: 400 | 404, .. }) => {
                Err(Error::ImageNotFound { reference: reference.to_owned() })
            }
            Err(error) => Err(failure("inspecting an image", error)),
        }
    }
}

/// What the supervisor's program says of itself; empty where it says nothing, as one that knows no such
/// question.
pub async fn supervisor_version(config: &config::Docker) -> Result<String, Error> {
    let path = find_supervisor(config)?;
    let failed = |why: String| Error::failed("running the supervisor", format!("{}: {why}", path.display()));
    let mut program = Command::new(&path);
    let asked = tokio::task::spawn_blocking(move || program.arg("--version").stdin(Stdio::null()).output());
    let said = asked.await.map_err(|error| failed(error.to_string()))?;
    let said = said.map_err(|error| failed(error.to_string()))?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}
