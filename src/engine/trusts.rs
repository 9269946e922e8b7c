//! Ends trusts that no function needs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Core;
use crate::crash_points::{Write, around};
use crate::db::{self, Db};
use crate::error::{Error, Result};
use crate::model::{Timestamp, TrustId};
use crate::openstack::{self, Keystone};
use crate::telemetry::Chain;

/// Longer than this nobody takes from making a trust to giving it to a function.
const GRACE: Duration = Duration::from_secs(300);
/// Between the end of a run and the end of its trust.
const MARGIN: Duration = Duration::from_secs(60);
/// Ended in one turn, and how often there is one.
const BATCH: u64 = 50;
const PERIOD: Duration = Duration::from_secs(30);

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
    around(Write::TrustEnd, db::trusts::delete(&db.writer(), id)).await?;
    Ok(())
}

/// Ends what no function has any more, until the engine lets go: what a creation that failed left, and
/// what an execution may have needed that was under way when its function changed.
pub(super) async fn keep(core: Arc<Core>, longest_run: Duration) {
    let Some(sessions) = &core.sessions else { return };
    // No execution that was accepted before can run by then.
    let grace = GRACE.max(longest_run + core.engine.queue_timeout + MARGIN);
    loop {
        tokio::select! {
            () = core.letting_go.cancelled() => return,
            () = sleep(PERIOD) => {}
        }
        let swept = tokio::select! {
            () = core.letting_go.cancelled() => return,
            swept = sweep(&core, sessions.keystone(), grace) => swept,
        };
        if let Err(error) = swept {
            tracing::warn!(error = %Chain(&error), "trusts that nobody has are not ended yet");
        }
    }
}

/// Stops at the first that cannot be ended: what hinders it hinders the others.
async fn sweep(core: &Core, keystone: &Keystone, grace: Duration) -> Result<()> {
    let before = Timestamp::now().before(grace);
    for trust in db::trusts::list_unused(core.db.reader(), before, BATCH).await? {
        openstack::on_our_own(end(&core.db, keystone, &trust.id)).await?;
    }
    Ok(())
}
