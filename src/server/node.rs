//! What an engine stands on: the right to this machine, the network of functions, the containers, and
//! the sessions that functions get.

use std::sync::Arc;

use super::catalog::Follower;
use super::{Error, Result};
use crate::config::Config;
use crate::db::Db;
use crate::engine::{Means, NodeLock, Sessions};
use crate::network::{self, Guard};
use crate::openstack::Keystone;
use crate::orchestrator::{self, Orchestrator};
use crate::quota::Quotas;
use crate::storage::PackageStore;
use crate::telemetry::{Chain, Metrics};

pub(super) struct Node {
    containers: Arc<dyn Orchestrator>,
    sessions: Option<Sessions>,
    deployment: String,
    guard: Option<Guard>,
    follower: Option<Follower>,
}

impl Node {
    pub async fn prepare(
        config: &Config,
        keystone: Option<&Keystone>,
        metrics: &Metrics,
    ) -> Result<(NodeLock, Self)> {
        let sessions = match keystone {
            Some(keystone) => {
                let sessions = Sessions::new(keystone.clone(), &config.keystone_authtoken);
                Some(sessions.map_err(Error::Identity)?)
            }
            None => None,
        };
        // Before anything on this machine is touched that another engine of the deployment may own.
        let lock = NodeLock::acquire(&config.docker)?;
        let deployment = config.docker.deployment.clone();
        // Before the first container can be on the network.
        let guard = Guard::start(&config.network, &deployment, metrics.network_repairs.clone()).await?;
        let follower = match (&guard, keystone) {
            (Some(guard), Some(keystone)) => Some(Follower::start(keystone.clone(), guard.clone()).await?),
            (None, Some(_)) => {
                tracing::warn!("functions have a session and reach no service: [network] mode is none");
                None
            }
            _ => None,
        };
        let calls = metrics.docker_calls.clone();
        let containers = orchestrator::connect_with(&config.docker, guard.clone(), calls).await?;
        Ok((lock, Self { containers, sessions, deployment, guard, follower }))
    }

    /// What the engine of this machine works with.
    pub fn means(&self, db: Db, store: Arc<dyn PackageStore>, quotas: Quotas, metrics: Metrics) -> Means {
        let (orchestrator, sessions) = (self.containers.clone(), self.sessions.clone());
        Means { db, store, orchestrator, sessions, quotas, metrics }
    }

    /// Once the engine has taken up what it could: takes away what an earlier start with another
    /// configuration left of a network.
    pub async fn tidy(&self) {
        if self.guard.is_none() {
            self.release_network().await;
        }
    }

    /// Once the engine has ended.
    pub async fn leave(self) {
        if let Some(follower) = &self.follower {
            follower.stop().await;
        }
        if let Some(guard) = &self.guard {
            guard.stop().await;
            self.release_network().await;
        }
    }

    /// Takes the network and its rules away, unless workers are left that live by them.
    async fn release_network(&self) {
        match self.containers.release_network().await {
            Ok(true) => {
                let deployment = self.deployment.clone();
                let removed = tokio::task::spawn_blocking(move || network::remove_rules(&deployment)).await;
                if let Ok(Err(error)) = removed {
                    tracing::warn!(error = %Chain(&error), "the rules of the network are left behind");
                }
            }
            Ok(false) => tracing::debug!("workers are on the network; it stays, with its rules"),
            Err(error) => tracing::warn!(error = %Chain(&error), "the network is left behind"),
        }
    }
}
