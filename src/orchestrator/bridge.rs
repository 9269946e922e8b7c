//! The Docker network of a deployment: made, compared with what it should be, and removed.

use std::collections::HashMap;
use std::fs;
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bollard::errors::Error as DockerError;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect};
use bollard::query_parameters::{InspectNetworkOptions, ListContainersOptionsBuilder};
use sha2::{Digest, Sha256};

use super::docker::{Shared, failure};
use super::{Error, Network, container, run};
use crate::network::{Guard, Wiring};

/// Label of a container whose worker has no network.
const NONE: &str = "none";
/// An address of the container's own at which no name server listens.
const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const RESOLV_CONF: &str = "resolv.conf";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// What a container on the network is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Of the Docker network.
    pub network: String,
    /// For Docker's own name server, which code can ask whatever `resolv_conf` says.
    pub dns: Vec<String>,
    /// What the container has as /etc/resolv.conf.
    pub resolv_conf: PathBuf,
    pub extra_hosts: Vec<String>,
}

/// The network as this process made or found it.
pub struct Bridge {
    guard: Guard,
    resolv_conf: PathBuf,
    /// Differs where workers of an earlier configuration would not be as new ones are.
    label: String,
}

/// Name servers are asked directly: Docker's own would ask them from the host in some versions and from
/// the container in others, and answers with the names of neighbours.
fn resolv_conf_of(servers: &[IpAddr]) -> String {
    if servers.is_empty() {
        // Nobody listens there, so that a name that is not known is known not to be at once.
        return format!("nameserver {NOBODY}\noptions attempts:1 timeout:1\n");
    }
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

pub fn name(deployment: &str) -> String {
    format!("taibai-{deployment}")
}

impl Bridge {
    /// Makes the network, or finds it as it should be. One of another configuration is replaced, with
    /// the workers on it; one that somebody else uses is an error.
    pub async fn ensure(shared: &Shared, guard: Guard) -> Result<Self, Error> {
        let wiring = guard.wiring();
        let wanted = request(&shared.deployment, &wiring);
        let id = match find(shared).await? {
            Some(found) if is_as_wanted(&found, &wanted) => found.id.unwrap_or_default(),
            Some(_) => {
                tracing::info!("the network is of another configuration and is made anew");
                remove(shared, true).await?;
                create(shared, wanted).await?
            }
            None => create(shared, wanted).await?,
        };
        let resolv_conf = shared.files.common(RESOLV_CONF);
        fs::write(&resolv_conf, resolv_conf_of(&wiring.dns))
            .and_then(|()| fs::set_permissions(&resolv_conf, Permissions::from_mode(0o644)))
            .map_err(|error| Error::failed("writing the containers' resolv.conf", error))?;
        Ok(Self { guard, resolv_conf, label: label(&id, &wiring) })
    }

    /// What a container is made with now. Refused while the rules are not in force.
    pub fn connection(&self, deployment: &str) -> Result<Connection, Error> {
        if !self.guard.in_force() {
            return Err(Error::Unavailable("the rules of the network are not in force".into()));
        }
        let wiring = self.guard.wiring();
        // Without any, Docker would ask the servers of this host for whoever asks it.
        let dns = if wiring.dns.is_empty() { vec![NOBODY] } else { wiring.dns };
        let dns = dns.iter().map(ToString::to_string).collect();
        let extra_hosts = wiring.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect();
        let resolv_conf = self.resolv_conf.clone();
        Ok(Connection { network: name(deployment), dns, resolv_conf, extra_hosts })
    }
}

/// The label of a worker, and back: how a worker that is found is connected, if it is as new ones are.
pub fn label_of<'a>(network: &Network, bridge: Option<&'a Bridge>) -> Option<&'a str> {
    match network {
        Network::None => Some(NONE),
        Network::Bridge => bridge.map(|bridge| bridge.label.as_str()),
    }
}

pub fn network_of(label: Option<&str>, bridge: Option<&Bridge>) -> Option<Network> {
    match label? {
        NONE => Some(Network::None),
        label => bridge.filter(|bridge| bridge.label == label).map(|_| Network::Bridge),
    }
}

fn label(id: &str, wiring: &Wiring) -> String {
    // Hosts are left out: names change their addresses, and no worker should end for that.
    let digest = Sha256::digest(format!("{id} {:?}", wiring.dns));
    format!("bridge-{}", &hex::encode(digest)[..12])
}

fn request(deployment: &str, wiring: &Wiring) -> NetworkCreateRequest {
    let options = [
        (BRIDGE_NAME, wiring.bridge.as_str()),
        ("com.docker.network.bridge.enable_icc", "false"),
        ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ];
    let subnet = |subnet: String| IpamConfig { subnet: Some(subnet), ..Default::default() };
    let subnets = [subnet(wiring.subnet.to_string())].into_iter();
    let subnets = subnets.chain(wiring.subnet6.map(|net| subnet(net.to_string()))).collect();
    NetworkCreateRequest {
        name: name(deployment),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(wiring.subnet6.is_some()),
        options: Some(options.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        labels: Some(HashMap::from([(container::DEPLOYMENT.to_owned(), deployment.to_owned())])),
        ipam: Some(Ipam { driver: Some("default".to_owned()), config: Some(subnets), options: None }),
        ..Default::default()
    }
}

fn is_as_wanted(found: &NetworkInspect, wanted: &NetworkCreateRequest) -> bool {
    let subnets = |ipam: &Option<Ipam>| {
        let configs = ipam.iter().filter_map(|ipam| ipam.config.as_ref()).flatten();
        let mut subnets: Vec<_> = configs.filter_map(|config| config.subnet.clone()).collect();
        subnets.sort();
        subnets
    };
    // Docker adds options and labels of its own.
    let holds = |found: &Option<HashMap<String, String>>, wanted: &Option<HashMap<String, String>>| {
        wanted.iter().flatten().all(|(key, value)| {
            found.as_ref().and_then(|found| found.get(key)).is_some_and(|found| found == value)
        })
    };
    found.driver == wanted.driver
        && found.enable_ipv6.unwrap_or_default() == wanted.enable_ipv6.unwrap_or_default()
        && holds(&found.options, &wanted.options)
        && holds(&found.labels, &wanted.labels)
        && subnets(&found.ipam) == subnets(&wanted.ipam)
}

async fn find(shared: &Shared) -> Result<Option<NetworkInspect>, Error> {
    let name = name(&shared.deployment);
    match shared.call("inspect_network").inspect_network(&name, None::<InspectNetworkOptions>).await {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(failure("inspecting the network", error)),
    }
}

async fn create(shared: &Shared, wanted: NetworkCreateRequest) -> Result<String, Error> {
    match shared.call("create_network").create_network(wanted).await {
        Ok(created) => Ok(created.id),
        // Docker's own words say what overlaps with what; the keys say what to change.
        Err(DockerError::DockerResponseServerError { status_code: 400..=500, message }) => {
            let why = format!("{message} (see [network] subnet, subnet6 and bridge_name)");
            Err(Error::failed("making the network", why))
        }
        Err(error) => Err(failure("making the network", error)),
    }
}

/// Removes the network, and the workers on it where `with_workers` says so. `false` where some are left.
pub async fn remove(shared: &Shared, with_workers: bool) -> Result<bool, Error> {
    let Some(found) = find(shared).await? else { return Ok(true) };
    let ours = found.labels.as_ref().and_then(|labels| labels.get(container::DEPLOYMENT));
    let network = name(&shared.deployment);
    if ours != Some(&shared.deployment) {
        let why = format!("the Docker network {network} is not of this deployment; remove or rename it");
        return Err(Error::failed("making the network", why));
    }
    let id = found.id.unwrap_or_default();
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&HashMap::from([("network", vec![id.clone()])]))
        .build();
    let attached = shared.call("list").list_containers(Some(options)).await;
    for container in attached.map_err(|error| failure("listing containers", error))? {
        let id = container.id.clone().unwrap_or_default();
        let labels = container.labels.clone().unwrap_or_default();
        let is_ours = labels.get(container::DEPLOYMENT) == Some(&shared.deployment);
        let run = run::seen(container.clone(), &shared.deployment).filter(|_| is_ours);
        let worker = container::seen(container, &shared.deployment).filter(|_| is_ours);
        match (worker, run) {
            (Some(worker), _) if with_workers => shared.remove_container(&worker.name).await?,
            (None, Some(run)) if with_workers => shared.remove_run(&run.name).await?,
            _ if !with_workers => return Ok(false),
            _ => {
                let why = format!(
                    "container {id} is on the Docker network {network} and is no worker; disconnect it"
                );
                return Err(Error::failed("making the network", why));
            }
        }
    }
    match shared.call("remove_network").remove_network(&id).await {
        Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
            let _ = fs::remove_file(shared.files.common(RESOLV_CONF));
            Ok(true)
        }
        Err(error) => Err(failure("removing the network", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiring() -> Wiring {
        Wiring {
            bridge: "taibai0".to_owned(),
            subnet: "172.16.224.0/20".parse().unwrap(),
            subnet6: None,
            dns: Vec::new(),
            hosts: Vec::new(),
        }
    }

    /// What Docker says of a network that was made so.
    fn inspected(request: &NetworkCreateRequest) -> NetworkInspect {
        let mut ipam = request.ipam.clone().unwrap();
        for config in ipam.config.iter_mut().flatten() {
            config.gateway = Some("172.16.224.1".to_owned());
        }
        NetworkInspect {
            driver: request.driver.clone(),
            enable_ipv6: request.enable_ipv6,
            options: request.options.clone(),
            labels: request.labels.clone(),
            ipam: Some(ipam),
            ..Default::default()
        }
    }

    #[test]
    fn containers_on_the_network_may_not_talk_to_each_other() {
        let request = request("demo", &wiring());
        assert_eq!(request.name, "taibai-demo");
        let options = request.options.unwrap();
        assert_eq!(options["com.docker.network.bridge.enable_icc"], "false");
        assert_eq!(options[BRIDGE_NAME], "taibai0");
        assert_eq!(request.labels.unwrap()[container::DEPLOYMENT], "demo");
    }

    #[test]
    fn a_network_of_another_configuration_is_recognized() {
        let wanted = request("demo", &wiring());
        let found = inspected(&wanted);
        assert!(is_as_wanted(&found, &wanted));
        for other in [
            Wiring { bridge: "taibai1".to_owned(), ..wiring() },
            Wiring { subnet: "10.9.0.0/20".parse().unwrap(), ..wiring() },
            Wiring { subnet6: Some("fd7a::/64".parse().unwrap()), ..wiring() },
        ] {
            assert!(!is_as_wanted(&found, &request("demo", &other)), "{other:?}");
        }
        assert!(!is_as_wanted(&found, &request("other", &wiring())));
    }

    #[test]
    fn a_label_changes_with_the_network_and_its_name_servers_only() {
        let hosts = Wiring { hosts: vec![("a".to_owned(), "192.0.2.1".parse().unwrap())], ..wiring() };
        let dns = Wiring { dns: vec!["192.0.2.53".parse().unwrap()], ..wiring() };
        assert_eq!(label("id", &wiring()), label("id", &hosts));
        assert_ne!(label("id", &wiring()), label("id", &dns));
        assert_ne!(label("id", &wiring()), label("other", &wiring()));
    }

    #[test]
    fn containers_ask_the_name_servers_or_nobody() {
        assert_eq!(resolv_conf_of(&[]), "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n");
        let servers = ["192.0.2.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        assert_eq!(resolv_conf_of(&servers), "nameserver 192.0.2.53\nnameserver fd00::53\n");
    }

    #[test]
    fn a_worker_without_a_label_is_of_an_unknown_network() {
        assert_eq!(network_of(None, None), None);
        assert_eq!(network_of(Some("none"), None), Some(Network::None));
        assert_eq!(network_of(Some("bridge-0123"), None), None);
    }
}
