//! Executions that this process has in hand, so that they can be cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::model::{ExecutionId, Outcome, Reason};

#[derive(Debug, Default)]
pub(super) struct Cancels(Mutex<HashMap<ExecutionId, Arc<CancellationToken>>>);

/// An execution in hand, until it is dropped.
#[derive(Debug)]
pub(super) struct InHand<'a> {
    cancels: &'a Cancels,
    id: ExecutionId,
    token: Arc<CancellationToken>,
}

impl Cancels {
    pub fn take(&self, id: &ExecutionId) -> InHand<'_> {
        let token = Arc::new(CancellationToken::new());
        self.0.lock().expect("no panic while it is held").insert(id.clone(), token.clone());
        InHand { cancels: self, id: id.clone(), token }
    }

    /// Whether this process is about to write its end.
    pub fn has(&self, id: &ExecutionId) -> bool {
        self.0.lock().expect("no panic while it is held").contains_key(id)
    }

    /// Cancels an execution; `false` where it is not in this process's hands.
    pub fn cancel(&self, id: &ExecutionId) -> bool {
        let in_hand = self.0.lock().expect("no panic while it is held");
        let found = in_hand.get(id);
        found.inspect(|token| token.cancel()).is_some()
    }
}

impl InHand<'_> {
    /// Waits until somebody cancels it.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        let mut in_hand = self.cancels.0.lock().expect("no panic while it is held");
        // Not what was taken in hand again since.
        if in_hand.get(&self.id).is_some_and(|token| Arc::ptr_eq(token, &self.token)) {
            in_hand.remove(&self.id);
        }
    }
}

/// How an execution ends that was cancelled before it ran, or that says nothing of its own.
pub(super) fn cancelled() -> Outcome {
    Outcome::failed(Reason::Cancelled, Some("Function execution cancelled."), None, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_hand_can_be_cancelled_and_nothing_else() {
        let cancels = Cancels::default();
        let (one, other) = (ExecutionId::random(), ExecutionId::random());
        let in_hand = cancels.take(&one);
        assert!(!cancels.cancel(&other) && !in_hand.is_cancelled());
        assert!(cancels.cancel(&one) && in_hand.is_cancelled());
        drop(in_hand);
        assert!(!cancels.cancel(&one));
    }
}
