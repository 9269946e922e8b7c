//! Tokens of Keystone, each asked about once in a while.
//!
//! What Keystone said is kept for `token_cache_time` and never past a token's end, by a digest of the
//! token under a key of this process; the token itself is not kept. So a revoked token stops within
//! that time, and tokens that are known here go on working while Keystone does not answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use hmac::{Hmac, KeyInit, Mac};
use moka::Expiry;
use moka::future::Cache;
use sha2::Sha256;
use uuid::Uuid;

use super::{Failure, Rejected, Shown, access_rules};
use crate::config::KeystoneAuthtoken;
use crate::model::{Caller, Token, TokenInfo, UserToken};
use crate::openstack::{Error, Expired, Keystone};

/// How long a token that Keystone does not know is refused without asking again.
const REJECTED_FOR: Duration = Duration::from_secs(10);
/// What an entry costs beside Keystone's answer.
const ENTRY_BYTES: u32 = 256;

type Digest = [u8; 32];

#[derive(Debug, Clone)]
enum Verdict {
    Known(Arc<TokenInfo>),
    Rejected,
}

/// Clones share the cache.
#[derive(Clone)]
pub struct KeystoneTokens {
    keystone: Keystone,
    cache: Cache<Digest, Verdict>,
    key: Hmac<Sha256>,
    service_roles: Vec<String>,
    service_roles_required: bool,
    service_type: String,
    /// Where to get a token, for `WWW-Authenticate`.
    pub uri: String,
}

impl fmt::Debug for KeystoneTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeystoneTokens").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl KeystoneTokens {
    pub fn new(config: &KeystoneAuthtoken, keystone: Keystone) -> Self {
        let cache = Cache::builder()
            .max_capacity(config.token_cache_bytes)
            .weigher(|_, verdict| match verdict {
                Verdict::Known(info) => {
                    u32::try_from(info.size).unwrap_or(u32::MAX).saturating_add(ENTRY_BYTES)
                }
                Verdict::Rejected => ENTRY_BYTES,
            })
            .expire_after(Lifetime(config.token_cache_time))
            .build();
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        let uri = [&config.www_authenticate_uri, &config.auth_url].into_iter().find(|uri| !uri.is_empty());
        Self {
            keystone,
            cache,
            key: Hmac::new_from_slice(&secret).expect("a key may have any length"),
            service_roles: config.service_token_roles.clone(),
            service_roles_required: config.service_token_roles_required,
            service_type: config.service_type.clone(),
            uri: uri.cloned().unwrap_or_default(),
        }
    }

    /// Whose token this is, and that it may be used for this request.
    pub async fn authenticate(&self, shown: &Shown<'_>) -> Result<Caller, Failure> {
        let Some(token) = shown.token else { return Err(Rejected::Missing.into()) };
        let token = Token::new(token.trim());
        let vouched = match shown.service_token {
            Some(service) => Some(self.service(&Token::new(service.trim()), shown).await?),
            None => None,
        };
        let info = self.user(&token, vouched == Some(true), shown).await?;
        // A service that vouches made this request for another one, which was checked there.
        if vouched != Some(true)
            && let Some(rules) =
                info.application_credential.as_ref().and_then(|own| own.access_rules.as_ref())
            && !access_rules::allow(rules, &self.service_type, shown.method, shown.path)
        {
            return Err(Rejected::AccessRules.into());
        }
        let Some(project_id) = &info.project_id else { return Err(Failure::NoProject) };
        let mut caller = Caller::new(info.user_id.clone(), project_id.clone(), info.roles.clone());
        caller.user_name = Some(info.user_name.clone());
        caller.user_domain_id = info.user_domain_id.clone();
        caller.project_name = info.project_name.clone();
        caller.project_domain_id = info.project_domain_id.clone();
        caller.identity = Some(UserToken { token, info: Arc::clone(&info) });
        Ok(caller)
    }

    /// Whether the service whose token came along may vouch for a token that ran out.
    async fn service(&self, token: &Token, shown: &Shown<'_>) -> Result<bool, Failure> {
        let Verdict::Known(info) = self.look_up(token, shown).await? else {
            return Err(Rejected::Service.into());
        };
        let has_role = info.roles.iter().any(|role| self.service_roles.contains(role));
        if info.is_expired(Utc::now()) || (self.service_roles_required && !has_role) {
            return Err(Rejected::Service.into());
        }
        Ok(has_role)
    }

    async fn user(&self, token: &Token, vouched: bool, shown: &Shown<'_>) -> Result<Arc<TokenInfo>, Failure> {
        match self.look_up(token, shown).await? {
            Verdict::Known(info) if !info.is_expired(Utc::now()) => Ok(info),
            // Rare, and by then nothing that is worth keeping.
            _ if vouched => {
                let asking = self.keystone.validate_with(token, Expired::Allowed, shown.request_id);
                match Box::pin(asking).await {
                    Ok(info) => Ok(Arc::new(info)),
                    Err(Error::Rejected) => Err(Rejected::Invalid.into()),
                    Err(error) => Err(Failure::Unavailable(error.into())),
                }
            }
            _ => Err(Rejected::Invalid.into()),
        }
    }

    /// What is known of a token. Requests with the same token ask Keystone once between them.
    async fn look_up(&self, token: &Token, shown: &Shown<'_>) -> Result<Verdict, Failure> {
        let digest = self.digest(token);
        if let Some(verdict) = self.cache.get(&digest).await {
            return Ok(verdict);
        }
        let ask = Box::pin(async {
            match self.keystone.validate(token, shown.request_id).await {
                Ok(info) => Ok(Verdict::Known(Arc::new(info))),
                Err(Error::Rejected) => Ok(Verdict::Rejected),
                // Not kept: the next request asks again.
                Err(error) => Err(error),
            }
        });
        self.cache.try_get_with(digest, ask).await.map_err(|error| Failure::Unavailable(error.into()))
    }

    fn digest(&self, token: &Token) -> Digest {
        let mut mac = self.key.clone();
        mac.update(token.expose().as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// How long a verdict is kept.
struct Lifetime(Duration);

impl Expiry<Digest, Verdict> for Lifetime {
    fn expire_after_create(&self, _: &Digest, verdict: &Verdict, _: Instant) -> Option<Duration> {
        Some(match verdict {
            Verdict::Rejected => self.0.min(REJECTED_FOR),
            Verdict::Known(info) => self.0.min((info.expires_at - Utc::now()).to_std().unwrap_or_default()),
        })
    }
}
