//! Trusts under which functions use the cloud: made with the caller's token, ended when no function
//! needs them.

use crate::config::Config;
use crate::crash_points::{Write, around};
use crate::db::{self, Db};
use crate::engine::trusts::end;
use crate::error::{Error, Result};
use crate::model::{Caller, FunctionId, Timestamp, TrustId, trust};
use crate::openstack::{Keystone, TrustError};
use crate::telemetry::Chain;

#[derive(Clone)]
pub(super) struct Trusts {
    db: Db,
    keystone: Option<Keystone>,
    /// What may be delegated at most.
    roles: Vec<String>,
}

/// What a function gets to use the cloud with: a trust, or a sentence that says why there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Delegation {
    pub trust: Option<TrustId>,
    pub reason: Option<String>,
}

impl Delegation {
    /// Of code that came from outside the function's project.
    pub fn of_another_project() -> Self {
        Self::none(
            "An administrator of another project changed the function. Update its code or its entry in its \
             own project to give it a session again.",
        )
    }

    fn none(reason: &str) -> Self {
        Self { trust: None, reason: Some(reason.to_owned()) }
    }
}

impl Trusts {
    pub fn new(db: Db, keystone: Option<Keystone>, config: &Config) -> Self {
        Self { db, keystone, roles: config.trusts.roles.clone() }
    }

    pub fn keystone(&self) -> Option<&Keystone> {
        self.keystone.as_ref()
    }

    /// Has the caller delegate to this service, as far as its token can.
    ///
    /// The trust is recorded before this returns. One that then gets no function, whatever the
    /// reason, is ended by the engine's reaper.
    pub async fn delegate(&self, caller: &Caller) -> Result<Delegation> {
        let (this, caller) = (self.clone(), caller.clone());
        // Who goes away in between would leave a trust that nobody knows of.
        let delegating = tokio::spawn(async move { this.delegate_to_the_end(&caller).await });
        delegating.await.map_err(Error::internal)?
    }

    async fn delegate_to_the_end(&self, caller: &Caller) -> Result<Delegation> {
        let (Some(keystone), Some(identity)) = (&self.keystone, &caller.identity) else {
            return Ok(Delegation::none("There is no OpenStack here to have a session with."));
        };
        let made = keystone.create_trust(identity, &self.roles, caller.request_id.as_deref()).await;
        let id = match made {
            Ok(id) => id,
            Err(TrustError::CannotDelegate | TrustError::NoProject) => {
                return Ok(Delegation::none(
                    "The token was got with an application credential or a trust, and such a token cannot \
                     delegate. Update the function with another token to give it a session.",
                ));
            }
            Err(TrustError::NoRoles) => {
                let roles = self.roles.join(", ");
                return Ok(Delegation::none(&format!(
                    "A function can have the roles {roles}, and whoever uploaded it has none of them."
                )));
            }
            Err(TrustError::Other(error)) => {
                return Err(Error::Unavailable { what: "The identity service", source: error.into() });
            }
        };
        let row = trust::Model {
            id: id.clone(),
            project_id: caller.project_id.clone(),
            user_id: caller.user_id.clone(),
            created_at: Timestamp::now(),
            // Until a function has it.
            dropped_at: Timestamp::now(),
        };
        let writer = self.db.writer();
        if let Err(error) = around(Write::TrustCreate, db::trusts::insert(&writer, row)).await {
            // Nothing would know of it.
            if let Err(error) = keystone.delete_trust(&id, caller.request_id.as_deref()).await {
                tracing::error!(trust.id = %id, error = %Chain(&error), "a trust is left behind in Keystone");
            }
            return Err(error.into());
        }
        Ok(Delegation { trust: Some(id), reason: None })
    }

    /// Ends a trust that the function has had, if nothing of the function runs any more. Else, and
    /// where that fails, the engine ends it once nothing can.
    pub fn end_soon(&self, function: &FunctionId, id: &TrustId) {
        let Some(keystone) = self.keystone.clone() else { return };
        let (db, function, id) = (self.db.clone(), function.clone(), id.clone());
        tokio::spawn(async move {
            let ended = match db::executions::has_unended(db.reader(), &function).await {
                Ok(true) => return,
                Ok(false) => end(&db, &keystone, &id).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = ended {
                tracing::warn!(trust.id = %id, error = %Chain(&error), "a trust is not ended yet");
            }
        });
    }
}
