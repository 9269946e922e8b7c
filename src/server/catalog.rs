//! Opens the endpoints of the service catalog to functions, and follows what becomes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::engine::sessions::INTERFACE;
use crate::model::Catalog;
use crate::network::{self, Endpoint, Guard};
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// Between two looks at the catalog, and where Keystone did not answer.
const PERIOD: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_secs(5);

/// The task that follows the catalog.
pub(super) struct Follower {
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Follower {
    /// Opens what the catalog names now. A catalog that cannot be opened is an error, since it wants
    /// mending; where Keystone does not answer, nothing is open until it does.
    pub async fn start(keystone: Keystone, guard: Guard) -> Result<Self, network::Error> {
        let mut pause = PERIOD;
        match keystone.catalog().await {
            Ok(catalog) => guard.set_catalog(endpoints(&catalog)).await?,
            Err(error) => {
                complain(&error);
                pause = AGAIN;
            }
        }
        let follower = Self { stopping: CancellationToken::new(), tasks: TaskTracker::new() };
        follower.tasks.spawn(follow(keystone, guard, pause, follower.stopping.clone()));
        Ok(follower)
    }

    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn follow(keystone: Keystone, guard: Guard, mut pause: Duration, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = PERIOD;
        match keystone.catalog().await {
            Ok(catalog) => {
                if let Err(error) = guard.set_catalog(endpoints(&catalog)).await {
                    tracing::error!(error = %Chain(&error), "what functions may reach stays as it was");
                }
            }
            Err(error) => {
                complain(&error);
                pause = AGAIN;
            }
        }
    }
}

fn complain(error: &openstack::Error) {
    tracing::warn!(error = %Chain(error), "the service catalog cannot be read; what functions may reach stays as it was");
}

/// Host and port of every public endpoint, of every region: a function may name one.
fn endpoints(catalog: &Catalog) -> Vec<Endpoint> {
    let mut found = BTreeMap::new();
    for (service, url) in catalog.urls(INTERFACE) {
        // Of one project, with its id in place of a variable; the host is the same for all.
        let Ok(url) = Url::parse(url) else {
            tracing::warn!(service, "the URL of a service in the catalog cannot be read");
            continue;
        };
        if let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) {
            let host = host.trim_matches(['[', ']']).to_owned();
            found.entry((host, port)).or_insert_with(|| service.to_owned());
        }
    }
    found.into_iter().map(|((host, port), service)| Endpoint { service, host, port }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_public_endpoint_is_there_once() {
        let service = |kind: &str, interface: &str, url: &str| json!({"type": kind, "endpoints": [{"interface": interface, "url": url}]});
        let catalog = serde_json::from_value(json!([
            service("identity", "public", "http://controller:5000/v3"),
            service("identity", "internal", "http://inside:5000/v3"),
            service("object-store", "public", "https://[2001:db8::1]/v1/AUTH_p"),
            service("image", "public", "https://[2001:db8::1]:443/"),
            service("broken", "public", "no url"),
        ]))
        .unwrap();
        let found = endpoints(&catalog);
        let found: Vec<_> = found
            .iter()
            .map(|endpoint| (endpoint.service.as_str(), endpoint.host.as_str(), endpoint.port))
            .collect();
        assert_eq!(found, [("object-store", "2001:db8::1", 443), ("identity", "controller", 5000)]);
    }
}
