//! What Taibai reads of strangers, given bytes that nobody meant. A promise that is broken panics.
//!
//! The targets of `fuzz/` call these, and a test feeds them all of `fuzz/corpus`; so what was found once stays
//! found without a fuzzer.

use std::cell::OnceCell;

use crate::model::Input;
use crate::storage::LocalStore;
use crate::{api, db, engine, policy, storage};

struct Site {
    runtime: tokio::runtime::Runtime,
    store: LocalStore,
    /// Of the store; it goes with the thread.
    _directory: tempfile::TempDir,
}

thread_local! {
    static SITE: OnceCell<Site> = const { OnceCell::new() };
}

fn on_site<T>(work: impl FnOnce(&Site) -> T) -> T {
    const MAX_PACKAGE: u64 = 64 << 10;
    SITE.with(|site| {
        work(site.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
            let directory = tempfile::tempdir().expect("there is a place for temporary files");
            let store = runtime
                .block_on(LocalStore::open(directory.path(), MAX_PACKAGE))
                .expect("the directory was just made");
            Site { runtime, store, _directory: directory }
        }))
    })
}

/// A package, as it is uploaded: refused in a sentence, or found to hold nothing that it must not.
pub fn package(data: &[u8]) {
    storage::fuzz_check(data);
}

/// The body of `POST /v1/functions` as a form.
pub fn multipart(data: &[u8]) {
    on_site(|site| site.runtime.block_on(api::fuzz::form(data, &site.store)));
}

/// What a worker's supervisor answers: understood, or an error of the protocol.
pub fn worker_answers(data: &[u8]) {
    engine::supervisor::fuzz_answer(data);
}

/// The query of a list, and each filter as SQL: what is looked for is a parameter and no part of the statement.
pub fn filters(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    db::fuzz_filter(&db::Filter::parse(text));
    for filter in api::fuzz::query(text) {
        db::fuzz_filter(&filter);
    }
}

/// A rule of the policy, and a file of them.
pub fn policy_rules(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    policy::fuzz_rule(text);
}

/// What becomes the input of a function: text of a call, and whatever a webhook's caller sends.
pub fn input(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let input = Input::from_text(Some(text));
        if let Some(stored) = input.to_json() {
            // Stored and read again it is the same, and what is shown is what was sent or means the same.
            let again = Input::from_text(Some(&stored));
            assert_eq!(again, input, "{stored}");
            let shown = Input::shown(&stored);
            assert!(!shown.is_empty());
            assert!(Input::positional(&stored).is_none_or(|words| words == shown));
        }
    }
    on_site(|site| site.runtime.block_on(api::fuzz::webhook(data)));
}

#[cfg(test)]
const CORPUS: &str = "fuzz/corpus";
#[cfg(test)]
#[path = "../fuzz/near.rs"]
mod near;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_near_the_corpus_breaks_a_promise() {
        near::feed("package", package);
        near::feed("multipart", multipart);
        near::feed("worker_answers", worker_answers);
        near::feed("filters", filters);
        near::feed("policy_rules", policy_rules);
        near::feed("input", input);
    }
    #[test]
    #[should_panic(expected = "filters")]
    fn a_promise_that_is_broken_is_found() {
        near::feed("filters", |data| assert!(!data.windows(2).any(|pair| pair == b"\"\0")));
    }
}
