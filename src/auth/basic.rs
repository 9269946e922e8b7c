//! `auth_strategy = http_basic`: a name and a password, checked with a file of bcrypt hashes.
//!
//! A password that was verified once is known again by a digest under a key of this process. So a
//! check, which is slow on purpose, is made once for each user and not for each request.

pub mod file;

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::sync::Semaphore;

use self::file::{FileError, MAX_PASSWORD, Table};
use super::Rejected;
use crate::config::{HttpBasic, Watched};
use crate::model::Caller;

const ADMIN: &str = "admin";
/// Digests that are kept; the oldest goes first.
const MAX_VERIFIED: usize = 4096;
/// A name always has the same lane, and a lane makes one check at a time. So one who guesses at a few
/// names holds up those, and not everybody who has yet to be checked.
const LANES: usize = 64;
/// Most requests in a lane; one more is told to come again.
const MAX_IN_LANE: usize = 8;
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The hash of nothing, in whose stead nobody knows the password: a check with it takes as long as a
/// user's, so that the time does not tell who exists.
const NOBODY: &str = "$2y$12$......................pIVrp1NnIYVY3Bu7pqxNRu8qQmMHHaa";

type Digest = [u8; 32];

pub struct Basic {
    file: Watched,
    users: RwLock<Arc<Table>>,
    /// Who has the role `admin` beside those to whom the file gives it.
    admins: Vec<String>,
    key: Hmac<Sha256>,
    verified: Mutex<Verified>,
    lanes: Vec<Lane>,
    /// Which name has which lane, unknown to others.
    lane_of: RandomState,
    /// Checks at once, so that they leave processors to the rest.
    checks: Arc<Semaphore>,
}

struct Lane {
    one: Semaphore,
    inside: AtomicUsize,
}

#[derive(Default)]
struct Verified {
    known: HashSet<Digest>,
    order: VecDeque<Digest>,
}

impl Verified {
    fn insert(&mut self, digest: Digest) {
        if self.known.insert(digest) {
            self.order.push_back(digest);
        }
        if self.order.len() > MAX_VERIFIED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Basic {
    pub fn open(config: &HttpBasic) -> Result<Self, FileError> {
        let file = Watched::new(&config.user_file);
        let users = load(&file)?;
        let admins = file::split(&config.admins);
        for name in admins.iter().filter(|name| !users.contains_key(*name)) {
            tracing::warn!(name, "admins in [http_basic] names a user whom user_file does not have");
        }
        let mut key = Vec::with_capacity(32);
        key.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
        key.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lane = || Lane { one: Semaphore::new(1), inside: AtomicUsize::new(0) };
        Ok(Self {
            file,
            users: RwLock::new(Arc::new(users)),
            admins,
            key: Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"),
            verified: Mutex::default(),
            lanes: std::iter::repeat_with(lane).take(LANES).collect(),
            lane_of: RandomState::new(),
            checks: Arc::new(Semaphore::new((cores / 2).max(1))),
        })
    }

    /// Reads the file again where it has changed; with one that is no good the users stay. Who was
    /// removed, or got another password, is refused from then on. Blocks on the file.
    pub fn refresh(&self) {
        if !self.file.changed() {
            return;
        }
        match load(&self.file) {
            Ok(users) => {
                *self.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
                tracing::info!(file = %self.file.path().display(), "the users have been read again");
            }
            Err(error) => tracing::error!(%error, "the users stay as they were"),
        }
    }

    /// Who sent this header.
    pub async fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, Rejected> {
        let (scheme, encoded) =
            authorization.and_then(|header| header.trim().split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Rejected::Missing);
        }
        let (name, password) = decode(encoded.trim()).ok_or(Rejected::Password)?;
        if password.len() > MAX_PASSWORD {
            return Err(Rejected::Password);
        }
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner).clone();
        let user = users.get(&name);
        let hash = user.map_or(NOBODY, |user| user.hash.as_str());
        // The hash is a part of it: with another password in the file it is another digest.
        let digest = self.digest(&name, hash, &password);
        if !self.is_verified(&digest) {
            self.verify(&name, hash, password, digest).await?;
        }
        // Nobody's password is never right, and yet.
        let user = user.ok_or(Rejected::Password)?;
        let mut roles = user.roles.clone();
        if self.admins.contains(&user.name) && !roles.iter().any(|role| role == ADMIN) {
            roles.push(ADMIN.to_owned());
        }
        Ok(Caller::new(user.name.as_str(), user.project.as_str(), roles))
    }

    /// Checks a password that has not been checked before, or waits for whoever does.
    async fn verify(&self, name: &str, hash: &str, password: String, digest: Digest) -> Result<(), Rejected> {
        let lane = &self.lanes[self.lane_of.hash_one(name) as usize % LANES];
        let _inside = Inside::enter(&lane.inside).ok_or(Rejected::Busy)?;
        let turn = async {
            let turn = lane.one.acquire().await.ok()?;
            if self.is_verified(&digest) {
                return None;
            }
            Some((turn, self.checks.clone().acquire_owned().await.ok()?))
        };
        let Some((_turn, permit)) = tokio::time::timeout(MAX_WAIT, turn).await.map_err(|_| Rejected::Busy)?
        else {
            return Ok(());
        };
        let hash = hash.to_owned();
        let checked = tokio::task::spawn_blocking(move || {
            // Held to the end, also where nobody waits for it any more.
            let _permit = permit;
            bcrypt::verify(password, &hash).unwrap_or(false)
        });
        if !checked.await.unwrap_or(false) {
            tracing::info!(name = %name.escape_debug(), "a wrong name or password");
            return Err(Rejected::Password);
        }
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        Ok(())
    }

    fn is_verified(&self, digest: &Digest) -> bool {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).known.contains(digest)
    }

    fn digest(&self, name: &str, hash: &str, password: &str) -> Digest {
        let mut mac = self.key.clone();
        for part in [name, hash, password] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }
}

/// One place in a lane.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn enter(inside: &'a AtomicUsize) -> Option<Self> {
        let entered = Self(inside);
        (inside.fetch_add(1, Ordering::AcqRel) < MAX_IN_LANE).then_some(entered)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn load(file: &Watched) -> Result<Table, FileError> {
    let path: &Path = file.path();
    let wrong = |reason: String| FileError(format!("{}: {reason}", path.display()));
    let text = file.read().map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let text =
        text.ok_or_else(|| wrong("there is no such file; taibai user add NAME makes it".to_owned()))?;
    if file::is_open_to_all(path) {
        tracing::warn!(file = %path.display(), "everybody on this machine can read the hashes of passwords");
    }
    file::parse(path, &text)
}

/// Name and password, as RFC 7617 has them.
fn decode(encoded: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests;
