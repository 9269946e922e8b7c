//! Ends trusts that no function needs.

use std::time::Duration;

use super::Core;
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::{Timestamp, TrustId};
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// A trust is recorded before the function that is to have it; after this it will get none.
const GRACE: Duration = Duration::from_secs(600);
/// Ended in one turn.
const BATCH: u64 = 50;

/// Ends a trust in Keystone, and forgets it here. May be called again.
pub async fn end(db: &Db, keystone: &Keystone, id: &TrustId) -> Result<()> {
    match keystone.delete_trust(id, None).await {
        Ok(()) => {}
        // Nobody but an administrator of Keystone can end it now; nor can anybody use it.
        Err(openstack::Error::Forbidden { .. }) => {
            tracing::warn!(trust.id = %id, "a trust stays in Keystone: who made it has lost what it delegates");
        }
        Err(error) => return Err(Error::Unavailable { what: "The identity service", source: error.into() }),
    }
    db::trusts::delete(&db.writer(), id).await?;
    Ok(())
}

/// Ends what was left: by a creation that failed, or an end that did.
pub(super) async fn sweep(core: &Core) -> Result<()> {
    let Some(sessions) = &core.sessions else { return Ok(()) };
    let before = Timestamp::now().before(GRACE);
    for trust in db::trusts::list_unused(core.db.reader(), before, BATCH).await? {
        if let Err(error) = end(&core.db, sessions.keystone(), &trust.id).await {
            tracing::warn!(trust.id = %trust.id, error = %Chain(&error), "a trust is not ended yet");
        }
    }
    Ok(())
}
