//! A session in somebody's name.

use std::fmt;
use std::sync::Arc;

use osauth_reqwest::header::HeaderValue;
use osauth_reqwest::{Client, Url};

use super::auth::{Given, Place};
use super::client::secret_header;
use super::error::{Error, Result};
use super::keystone::unauthenticated;
use super::request;
use super::swift::Swift;
use crate::model::{Catalog, UserToken};

/// Acts with one token, under the URLs of the catalog that came with it. Cheap to make: one for each
/// request. Every call carries the id of the request that it serves.
#[derive(Clone)]
pub struct Session {
    inner: osauth::Session,
    catalog: Arc<Catalog>,
    place: Place,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        client: &Client,
        token: &UserToken,
        place: Place,
        request_id: Option<&str>,
    ) -> Result<Self> {
        let catalog = Arc::clone(&token.info.catalog);
        let current = request::current();
        let request_id = request_id.or(current.as_deref());
        let given = Given {
            token: secret_header(token.token.expose()).ok_or(Error::Rejected)?,
            catalog: Arc::clone(&catalog),
            place: place.clone(),
            request_id: request_id.and_then(|id| HeaderValue::from_str(id).ok()),
        };
        Ok(Self { inner: unauthenticated(client).with_auth_type(given), catalog, place })
    }

    /// Where a service is, in the configured region and interface.
    pub fn endpoint(&self, service_type: &str) -> Option<Url> {
        self.place.find(&self.catalog, service_type)
    }

    /// The objects of this session's project.
    pub fn swift(&self) -> Swift {
        Swift::new(self.clone())
    }

    pub(super) fn inner(&self) -> &osauth::Session {
        &self.inner
    }
}
