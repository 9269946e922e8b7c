//! Keeps the rules in force: writes them before the first container starts, looks whether they are still
//! there, and follows names whose addresses change.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use prometheus::IntCounter;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::names::{Machine, Resolved, ThisMachine, fs_text, name_servers, resolve};
use super::nft::{self, Neighbours};
use super::rules::Plan;
use super::{Endpoint, Error};
use crate::config::{self, NetworkMode};
use crate::telemetry::Chain;

/// How often names are looked up again.
const LOOK_UP: Duration = Duration::from_secs(30);

/// What a container must be given to be on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    pub bridge: String,
    pub subnet: Ipv4Net,
    pub subnet6: Option<Ipv6Net>,
    pub dns: Vec<IpAddr>,
    /// Entries for its hosts file.
    pub hosts: Vec<(String, IpAddr)>,
}

/// The rules of a deployment, kept in force until [`Guard::stop`]. Clones share everything.
#[derive(Clone)]
pub struct Guard {
    shared: Arc<Shared>,
}

struct Shared {
    config: config::Network,
    deployment: String,
    machine: Box<dyn Machine>,
    dns: Vec<IpAddr>,
    neighbours: Neighbours,
    repairs: IntCounter,
    /// Held while names are looked up, so that the plan of an older catalog is never the last one.
    catalog: Mutex<Vec<Endpoint>>,
    rules: Mutex<Rules>,
    /// What starting a container asks; held for a few lines.
    now: RwLock<Now>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

struct Rules {
    plan: Plan,
    /// As `nft` lists them while nobody has changed them.
    listing: String,
}

struct Now {
    hosts: BTreeSet<(String, IpAddr)>,
    unknown: Vec<String>,
    in_force: bool,
}

impl Guard {
    /// Puts the rules into force and keeps them so; `None` where functions have no network. Fails where
    /// the rules cannot be made, for without them no container may be connected.
    pub async fn start(
        config: &config::Network,
        deployment: &str,
        repairs: IntCounter,
    ) -> Result<Option<Self>, Error> {
        if config.mode == NetworkMode::None {
            return Ok(None);
        }
        let (config, deployment) = (config.clone(), deployment.to_owned());
        let shared = blocking(move || Shared::new(config, deployment, repairs)).await?;
        let guard = Self { shared: Arc::new(shared) };
        guard.spawn(guard.shared.config.check_interval, Shared::assert);
        guard.spawn(LOOK_UP, Shared::look_up_again);
        if guard.shared.config.allow_outside && guard.shared.config.dns.is_empty() {
            tracing::warn!(
                "functions may reach the outside but know no names: [network] dns names no name server"
            );
        }
        Ok(Some(guard))
    }

    /// Opens the endpoints of the service catalog, in place of those that were open before. One that is
    /// on loopback or must never be opened is an error, and changes nothing.
    pub async fn set_catalog(&self, endpoints: Vec<Endpoint>) -> Result<(), Error> {
        let shared = self.shared.clone();
        blocking(move || {
            let mut catalog = shared.catalog.lock().expect(HELD);
            shared.refresh(&endpoints)?;
            *catalog = endpoints;
            Ok(())
        })
        .await
    }

    pub fn wiring(&self) -> Wiring {
        let Shared { config, dns, now, .. } = &*self.shared;
        Wiring {
            bridge: config.bridge_name.clone(),
            subnet: config.subnet,
            subnet6: config.subnet6,
            dns: dns.clone(),
            hosts: now.read().expect(HELD).hosts.iter().cloned().collect(),
        }
    }

    /// Whether the rules were there when they were last looked at. No container may start without them.
    pub fn in_force(&self) -> bool {
        self.shared.now.read().expect(HELD).in_force
    }

    /// Ends the loops. The rules stay: workers may outlive the service.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn spawn(&self, period: Duration, work: fn(&Shared)) {
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first is at once, and has just been done.
            ticks.tick().await;
            loop {
                tokio::select! {
                    () = shared.stopping.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let shared = shared.clone();
                if let Err(error) = tokio::task::spawn_blocking(move || work(&shared)).await {
                    tracing::error!(error = %Chain(&error), "the rules of the network were not looked at");
                }
            }
        });
    }
}

const HELD: &str = "no panic while it is held";

impl Shared {
    fn new(config: config::Network, deployment: String, repairs: IntCounter) -> Result<Self, Error> {
        let machine = Remembering { machine: ThisMachine, last: Mutex::default() };
        let dns = name_servers(&config, &fs_text)?;
        let resolved = resolve(&config, &[], &machine)?;
        let plan = plan_of(&config, &deployment, &resolved);
        let neighbours = Neighbours::detect(&plan)?;
        let listing = nft::apply(&plan, neighbours)?;
        tracing::info!(bridge = config.bridge_name, ?neighbours, "the rules of the network are in force");
        warn_of(&resolved.unknown);
        let now = Now { hosts: resolved.hosts, unknown: resolved.unknown, in_force: true };
        Ok(Self {
            config,
            deployment,
            machine: Box::new(machine),
            dns,
            neighbours,
            repairs,
            catalog: Mutex::default(),
            rules: Mutex::new(Rules { plan, listing }),
            now: RwLock::new(now),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Looks whether the rules are what they should be, and puts them right.
    fn assert(&self) {
        let mut rules = self.rules.lock().expect(HELD);
        let asserted = self.repair(&mut rules);
        drop(rules);
        let mut now = self.now.write().expect(HELD);
        match &asserted {
            Ok(()) if !now.in_force => tracing::info!("the rules of the network are in force again"),
            Err(error) if now.in_force => tracing::error!(
                error = %Chain(error),
                "the rules of the network are not in force; no worker starts until they are"
            ),
            _ => {}
        }
        now.in_force = asserted.is_ok();
    }

    fn repair(&self, rules: &mut Rules) -> Result<(), Error> {
        self.neighbours.hold(&rules.plan)?;
        match nft::list(&self.deployment, self.neighbours) {
            Ok(listing) if listing == rules.listing => return Ok(()),
            Ok(_) => tracing::warn!("somebody changed the rules of the network; they are written anew"),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the rules of the network are gone; they are written anew");
            }
        }
        rules.listing = nft::apply(&rules.plan, self.neighbours)?;
        self.repairs.inc();
        Ok(())
    }

    fn look_up_again(&self) {
        let catalog = self.catalog.lock().expect(HELD);
        if let Err(error) = self.refresh(&catalog) {
            tracing::error!(error = %Chain(&error), "the rules of the network stay as they are");
        }
    }

    /// Looks all names up and writes the rules where they differ from those in force.
    fn refresh(&self, catalog: &[Endpoint]) -> Result<(), Error> {
        let resolved = resolve(&self.config, catalog, &*self.machine)?;
        let plan = plan_of(&self.config, &self.deployment, &resolved);
        let mut rules = self.rules.lock().expect(HELD);
        if plan != rules.plan {
            let listing = nft::apply(&plan, self.neighbours)?;
            tracing::info!(open = plan.open.len(), "what functions may reach has changed");
            *rules = Rules { plan, listing };
        }
        drop(rules);
        let mut now = self.now.write().expect(HELD);
        if now.unknown != resolved.unknown {
            warn_of(&resolved.unknown);
        }
        now.hosts = resolved.hosts;
        now.unknown = resolved.unknown;
        Ok(())
    }
}

fn warn_of(unknown: &[String]) {
    if !unknown.is_empty() {
        tracing::warn!(names = unknown.join(" "), "names that functions may reach have no address");
    }
}

fn plan_of(config: &config::Network, deployment: &str, resolved: &Resolved) -> Plan {
    let mut open = resolved.open.clone();
    // A resolver turns the addresses of a name around; that is no change.
    open.sort();
    Plan {
        deployment: deployment.to_owned(),
        bridge: config.bridge_name.clone(),
        subnet: config.subnet,
        subnet6: config.subnet6,
        outside: config.allow_outside,
        deny: config.deny.clone(),
        open,
    }
}

/// Knows the last addresses of a name while its name server does not answer.
struct Remembering<M> {
    machine: M,
    last: Mutex<HashMap<String, Vec<IpAddr>>>,
}

impl<M: Machine> Machine for Remembering<M> {
    fn look_up(&self, name: &str) -> Vec<IpAddr> {
        let found = self.machine.look_up(name);
        let mut last = self.last.lock().expect(HELD);
        if found.is_empty() {
            return last.get(name).cloned().unwrap_or_default();
        }
        last.insert(name.to_owned(), found.clone());
        found
    }

    fn is_in_hosts_file(&self, name: &str) -> bool {
        self.machine.is_in_hosts_file(name)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.machine.is_own(address)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::failed("making the rules of the network", io::Error::from(error))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that answers once.
    struct Once(Mutex<Vec<IpAddr>>);

    impl Machine for Once {
        fn look_up(&self, _: &str) -> Vec<IpAddr> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }

        fn is_in_hosts_file(&self, _: &str) -> bool {
            false
        }

        fn is_own(&self, _: IpAddr) -> bool {
            false
        }
    }

    #[test]
    fn the_addresses_of_a_name_are_kept_while_nobody_answers() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let machine = Remembering { machine: Once(Mutex::new(vec![address])), last: Mutex::default() };
        assert_eq!(machine.look_up("keystone"), [address]);
        assert_eq!(machine.look_up("keystone"), [address]);
        assert!(machine.look_up("other").is_empty());
    }

    #[tokio::test]
    async fn without_a_network_there_is_nothing_to_guard() {
        let repairs = IntCounter::new("x", "x").unwrap();
        let guard = Guard::start(&config::Network::default(), "demo", repairs).await.unwrap();
        assert!(guard.is_none());
    }
}
