//! Sessions of functions in the cloud: tokens got by their trusts, kept and renewed in time, so that a
//! warm call asks nobody.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use protocol::openstack::{Domain, Named, OpenStack, Role, Token};
use serde_json::value::to_raw_value;
use tokio_util::sync::CancellationToken;

use super::supervisor::Cloud;
use crate::config::KeystoneAuthtoken;
use crate::error::Source;
use crate::model::{Interface, TokenInfo, TrustId};
use crate::openstack::{self, Keystone, TrustToken};
use crate::telemetry::Chain;

/// Which URLs of the catalog functions are given: those for users.
pub const INTERFACE: Interface = Interface::Public;
/// What a token lives longer than the function that gets it may run.
const MARGIN: Duration = Duration::from_secs(60);
/// A token is renewed once it has no longer than this, or than half of its life, before it.
const RENEWAL: Duration = Duration::from_secs(600);
/// Between two looks at what wants renewing.
const PERIOD: Duration = Duration::from_secs(5);
/// A session that nobody used for this long is not renewed.
const HOT: Duration = Duration::from_secs(900);
/// A token is no older than this when it is believed that a service refused it. The function says
/// so, which may say it each time.
const PROBATION: Duration = Duration::from_secs(10);
/// A trust that is no good is taken for that without asking again.
const VERDICT: Duration = Duration::from_secs(15);

/// Why a function gets no session. The text is for the user.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another try will not help.
    #[error(
        "The function's trust is no longer valid: whoever made it has ended it, or has lost a role, the \
         project or the account. Uploading the function's code again makes another."
    )]
    Invalid,
    /// Another try may.
    #[error("No token could be got for the function: {0}.")]
    Unavailable(#[source] Arc<openstack::Error>),
    #[error("No token could be got for the function in time.")]
    TimedOut,
}

/// What an execution gets.
#[derive(Debug)]
pub struct Session {
    pub openstack: OpenStack,
    pub cloud: Cloud,
    /// For what the engine itself does in the function's name.
    pub token: TrustToken,
    got_at: DateTime<Utc>,
}

impl Session {
    fn expires_at(&self) -> DateTime<Utc> {
        self.token.expires_at()
    }

    fn left(&self) -> Duration {
        (self.expires_at() - Utc::now()).to_std().unwrap_or_default()
    }

    fn life(&self) -> Duration {
        (self.expires_at() - self.got_at).to_std().unwrap_or_default()
    }

    fn wants_renewal(&self) -> bool {
        self.left() < RENEWAL.min(self.life() / 2)
    }

    /// Lasts for a function that may run this long. A cloud whose tokens live shorter than that has
    /// none that does, so one in the first half of its life will do.
    fn outlives(&self, time: Duration) -> bool {
        self.left() >= (time + MARGIN).min(self.life() / 2)
    }
}

/// Clones share what is kept.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    keystone: Keystone,
    settings: Settings,
    held: Mutex<HashMap<TrustId, Arc<Held>>>,
}

/// What is the same for all functions.
struct Settings {
    /// Said where the catalog does not say it.
    auth_url: String,
    region_name: Option<String>,
    cacert: Option<String>,
}

struct Held {
    session: Mutex<Option<Arc<Session>>>,
    /// A service refused the session, as a function says.
    suspect: AtomicBool,
    /// Why none could be got, and when that was known.
    failed: Mutex<Option<(Instant, Error)>>,
    used: Mutex<Instant>,
    /// One token at a time is asked for.
    minting: tokio::sync::Mutex<()>,
}

impl Held {
    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().expect("no panic while it is held").clone()
    }

    fn set(&self, session: Option<Arc<Session>>) {
        *self.session.lock().expect("no panic while it is held") = session;
        self.suspect.store(false, Ordering::Relaxed);
    }

    fn good(&self, time: Duration) -> Option<Arc<Session>> {
        let trusted = !self.suspect.load(Ordering::Relaxed);
        self.session().filter(|session| trusted && session.outlives(time))
    }

    /// A failure that is known since then, or that another try would only repeat.
    fn failure(&self, since: Instant) -> Option<Error> {
        let failed = self.failed.lock().expect("no panic while it is held").clone();
        let (at, error) = failed?;
        let repeats = matches!(error, Error::Invalid) && at.elapsed() < VERDICT;
        (at >= since || repeats).then_some(error)
    }

    fn note_failure(&self, failure: Option<Error>) {
        *self.failed.lock().expect("no panic while it is held") =
            failure.map(|error| (Instant::now(), error));
    }

    fn idle(&self) -> Duration {
        self.used.lock().expect("no panic while it is held").elapsed()
    }
}

impl Sessions {
    pub fn new(keystone: Keystone, config: &KeystoneAuthtoken) -> Result<Self, Source> {
        let auth_url = match config.www_authenticate_uri.as_str() {
            "" => config.auth_url.clone(),
            uri => uri.to_owned(),
        };
        let settings = Settings {
            auth_url,
            region_name: Some(config.region_name.clone()).filter(|region| !region.is_empty()),
            cacert: read_certificates(&config.cafile)?,
        };
        let held = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { keystone, settings, held }) })
    }

    pub fn keystone(&self) -> &Keystone {
        &self.shared.keystone
    }

    /// A session that lasts for `time` and a while. At once where there is one, else Keystone is asked;
    /// who comes meanwhile waits for the same answer.
    pub async fn get(
        &self,
        trust: &TrustId,
        time: Duration,
        request_id: Option<&str>,
    ) -> Result<Arc<Session>, Error> {
        let held = self.held(trust);
        if let Some(session) = held.good(time) {
            return Ok(session);
        }
        let asked = Instant::now();
        let _alone = held.minting.lock().await;
        if let Some(session) = held.good(time) {
            return Ok(session);
        }
        // Who waited for another's answer has it, be it a failure.
        let got = match held.failure(asked) {
            Some(error) => Err(error),
            None => self.mint(&held, trust, request_id).await,
        };
        match got {
            Err(error @ Error::Unavailable(_)) => {
                held.session().filter(|session| session.left() >= time).ok_or(error)
            }
            got => got,
        }
    }

    /// A service refused the token of this session, as the function says: the next one gets another.
    pub fn refused(&self, trust: &TrustId, session: &Arc<Session>) {
        let old = (Utc::now() - session.got_at).to_std().unwrap_or_default() >= PROBATION;
        let held = self.held(trust);
        if old && held.session().is_some_and(|current| Arc::ptr_eq(&current, session)) {
            tracing::info!(trust.id = %trust, "a token was refused; the next call gets another");
            held.suspect.store(true, Ordering::Relaxed);
        }
    }

    /// Renews what is in use, and forgets what is not, until told to stop.
    pub async fn keep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            let due = {
                let mut held = self.shared.held.lock().expect("no panic while it is held");
                held.retain(|_, held| held.idle() < HOT || Arc::strong_count(held) > 1);
                let due = held.iter().filter(|(_, held)| held.session().is_some_and(|s| s.wants_renewal()));
                due.map(|(trust, held)| (trust.clone(), held.clone())).collect::<Vec<_>>()
            };
            for (trust, held) in due {
                let _alone = held.minting.lock().await;
                if stop.is_cancelled() {
                    return;
                }
                if !held.session().is_some_and(|session| session.wants_renewal()) {
                    continue;
                }
                if let Err(error) = openstack::on_our_own(self.mint(&held, &trust, None)).await {
                    tracing::warn!(trust.id = %trust, error = %Chain(&error), "a token was not renewed");
                }
            }
        }
    }

    fn held(&self, trust: &TrustId) -> Arc<Held> {
        let mut all = self.shared.held.lock().expect("no panic while it is held");
        let held = all.entry(trust.clone()).or_insert_with(|| {
            Arc::new(Held {
                suspect: AtomicBool::new(false),
                failed: Mutex::default(),
                session: Mutex::default(),
                used: Mutex::new(Instant::now()),
                minting: <_>::default(),
            })
        });
        *held.used.lock().expect("no panic while it is held") = Instant::now();
        held.clone()
    }

    async fn mint(
        &self,
        held: &Held,
        trust: &TrustId,
        request_id: Option<&str>,
    ) -> Result<Arc<Session>, Error> {
        let got_at = Utc::now();
        let error = match self.shared.keystone.trust_token(trust, request_id).await {
            Ok(token) => {
                let session = Arc::new(self.shared.settings.session(token, got_at));
                held.set(Some(session.clone()));
                held.note_failure(None);
                return Ok(session);
            }
            Err(openstack::Error::NotFound | openstack::Error::Forbidden { .. }) => {
                held.set(None);
                Error::Invalid
            }
            Err(error) => Error::Unavailable(Arc::new(error)),
        };
        held.note_failure(Some(error.clone()));
        Err(error)
    }
}

impl Settings {
    fn session(&self, token: TrustToken, got_at: DateTime<Utc>) -> Session {
        let info = &token.0.info;
        let region = self.region_name.as_deref();
        let identity = info.catalog.endpoint("identity", INTERFACE, region);
        let cloud = protocol::openstack::Cloud {
            auth_url: identity.unwrap_or(&self.auth_url).to_owned(),
            region_name: self.region_name.clone(),
            interface: Some(INTERFACE.as_str().to_owned()),
            catalog: to_raw_value(&*info.catalog).expect("a catalog was JSON and is again"),
            cacert: self.cacert.clone(),
        };
        let cloud = Cloud::new(&cloud).expect("it has text and JSON in it");
        Session { openstack: openstack_of(&token, info, cloud.digest()), cloud, token, got_at }
    }
}

fn openstack_of(token: &TrustToken, info: &TokenInfo, cloud: &str) -> OpenStack {
    let domain = |id: &Option<String>, name: &Option<String>| Domain {
        id: id.clone().unwrap_or_default(),
        name: name.clone().unwrap_or_default(),
    };
    OpenStack {
        cloud: cloud.to_owned(),
        token: Token::new(token.token().expose()),
        expires_at: info.expires_at.to_rfc3339_opts(SecondsFormat::Micros, true),
        user: Named {
            id: info.user_id.clone(),
            name: info.user_name.clone(),
            domain: domain(&info.user_domain_id, &info.user_domain_name),
        },
        project: Named {
            id: info.project_id.clone().unwrap_or_default(),
            name: info.project_name.clone().unwrap_or_default(),
            domain: domain(&info.project_domain_id, &info.project_domain_name),
        },
        roles: info
            .roles
            .iter()
            .zip(&info.role_ids)
            .map(|(name, id)| Role { id: id.clone(), name: name.clone() })
            .collect(),
    }
}

fn read_certificates(file: &Path) -> Result<Option<String>, Source> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    std::fs::read_to_string(file)
        .map(Some)
        .map_err(|error| format!("[keystone_authtoken] cafile: {}: {error}", file.display()).into())
}

#[cfg(test)]
mod tests;
