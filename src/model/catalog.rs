use serde::{Deserialize, Serialize};

/// Which of a service's URLs: for users, for services, for administration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    Public,
    #[default]
    Internal,
    Admin,
}

impl Interface {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

/// The services of a cloud and where they are, as one token shows them. Written as Keystone writes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Catalog(pub Vec<CatalogService>);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CatalogService {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", default)]
    pub service_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub endpoints: Vec<CatalogEndpoint>,
}

/// Keystone leaves out what nobody set, or writes null for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CatalogEndpoint {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default)]
    pub interface: Option<String>,
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub region_id: Option<String>,
    #[serde(default)]
    pub url: Option<String>,
}

impl CatalogEndpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref()).filter(|region| !region.is_empty())
    }
}

impl Catalog {
    /// The URL of a service. Where a region is named, an endpoint of that region comes first and one
    /// without a region next; where none is, the first that is listed.
    pub fn endpoint(&self, service_type: &str, interface: Interface, region: Option<&str>) -> Option<&str> {
        let candidates = || {
            self.0
                .iter()
                .filter(|service| service.service_type == service_type)
                .flat_map(|service| &service.endpoints)
                .filter(|endpoint| endpoint.interface.as_deref() == Some(interface.as_str()))
                .filter(|endpoint| endpoint.url.as_deref().is_some_and(|url| !url.is_empty()))
        };
        let found = match region {
            Some(region) => candidates()
                .find(|endpoint| endpoint.region() == Some(region))
                .or_else(|| candidates().find(|endpoint| endpoint.region().is_none())),
            None => candidates().next(),
        };
        found.and_then(|endpoint| endpoint.url.as_deref())
    }

    /// Every URL of an interface, by service type.
    pub fn urls(&self, interface: Interface) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(move |service| {
            let endpoints = service.endpoints.iter();
            endpoints
                .filter(move |endpoint| endpoint.interface.as_deref() == Some(interface.as_str()))
                .filter_map(|endpoint| Some((service.service_type.as_str(), endpoint.url.as_deref()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn catalog() -> Catalog {
        serde_json::from_value(json!([
            {"type": "object-store", "name": "swift", "id": "s", "endpoints": [
                {"id": "1", "interface": "public", "region": "one", "region_id": "one", "url": "http://one/p"},
                {"id": "2", "interface": "internal", "region": null, "region_id": null, "url": "http://any/i"},
                {"id": "3", "interface": "internal", "region": "two", "region_id": "two", "url": "http://two/i"},
                {"id": "4", "interface": "admin", "region": "two", "url": null}
            ]},
            {"type": "empty"}
        ]))
        .unwrap()
    }

    #[test]
    fn an_endpoint_is_found_by_type_interface_and_region() {
        use Interface::{Admin, Internal, Public};
        let catalog = catalog();
        for (interface, region, url) in [
            (Public, Some("one"), Some("http://one/p")),
            (Public, Some("two"), None),
            (Public, None, Some("http://one/p")),
            (Internal, Some("two"), Some("http://two/i")),
            (Internal, Some("three"), Some("http://any/i")),
            (Admin, Some("two"), None),
        ] {
            assert_eq!(catalog.endpoint("object-store", interface, region), url, "{interface:?} {region:?}");
        }
        assert_eq!(catalog.endpoint("empty", Public, None), None);
        assert_eq!(catalog.endpoint("compute", Public, None), None);
        assert_eq!(Catalog::default().endpoint("object-store", Public, None), None);
    }

    #[test]
    fn what_was_read_is_written_again() {
        let written = serde_json::to_value(catalog()).unwrap();
        assert_eq!(written[0]["type"], "object-store");
        assert_eq!(written[0]["endpoints"][1]["region"], json!(null));
        assert_eq!(written[0]["endpoints"][1]["url"], "http://any/i");
    }
}
