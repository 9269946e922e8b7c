//! The id of the request that calls to other services are made for, where nobody hands it along.

use std::sync::Arc;

use tracing::Instrument;
use uuid::Uuid;

tokio::task_local! {
    static CURRENT: Arc<str>;
}

/// Has the calls that `work` makes to other services carry this id. A task that `work` spawns is not
/// part of it.
pub fn on_behalf_of<F: Future>(id: Arc<str>, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, work)
}

/// The same for what no request asked for: it gets an id of its own, which the log shows as well.
pub fn on_our_own<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let id = new_id();
    let span = tracing::info_span!("on_our_own", request_id = id);
    CURRENT.scope(id.into(), work).instrument(span)
}

/// `req-` and a UUID, as ids of requests look in OpenStack.
pub fn new_id() -> String {
    format!("req-{}", Uuid::new_v4())
}

pub(super) fn current() -> Option<Arc<str>> {
    CURRENT.try_with(Arc::clone).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_id_is_known_within_its_work_and_nowhere_else() {
        let within = on_behalf_of("req-1".into(), async { current() }).await;
        assert_eq!(within.as_deref(), Some("req-1"));
        let own = on_our_own(async { current() }).await.unwrap();
        assert!(own.starts_with("req-") && own.len() == 40, "{own}");
        assert_eq!(current(), None);
    }
}
