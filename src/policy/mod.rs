//! May this caller do this: rules, their defaults and the file that overrides them. No database and
//! no HTTP.
//!
//! Rules are in oslo.policy's language. Whether a caller sees a row at all is not asked here but by
//! the `Scope` of the query, which follows the rule `context_is_admin`.

mod check;
mod credentials;
mod file;
mod language;
mod rules;
mod set;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

pub use credentials::{Credentials, Target};
pub use rules::{RULES, Rule};
pub use set::RuleSet;

use crate::config::Watched;
use crate::error::{Error, Result};
use crate::model::Caller;

/// Where the file is unless the configuration says otherwise. Here alone it may be missing.
const USUAL_FILE: &str = "/etc/taibai/policy.yaml";

/// What stops a start: one line, which names the file, the line and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(String);

/// The rules in force. Clones share them.
#[derive(Debug, Clone)]
pub struct Policy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rules: RwLock<Arc<RuleSet>>,
    file: Option<Watched>,
}

impl Default for Policy {
    /// The defaults, without a file.
    fn default() -> Self {
        Self::with(defaults(), None)
    }
}

impl Policy {
    /// Reads the file. It may be missing where nobody has to have named it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = Watched::new(path);
        let rules = load(&file)?.map_or_else(
            || if path == Path::new(USUAL_FILE) { Ok(defaults()) } else { Err(missing(path)) },
            Ok,
        )?;
        Ok(Self::with(rules, Some(file)))
    }

    /// Rules from the text of a file, which is not read again.
    pub fn from_text(text: &str) -> Result<Self, FileError> {
        Ok(Self::with(file::read("policy.yaml", text).map_err(FileError)?, None))
    }

    fn with(rules: RuleSet, file: Option<Watched>) -> Self {
        Self { inner: Arc::new(Inner { rules: RwLock::new(Arc::new(rules)), file }) }
    }

    pub fn rules(&self) -> Arc<RuleSet> {
        self.inner.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again where it has changed. With one that is no good, or gone, the rules stay:
    /// falling back to the defaults could allow what the file forbids. Blocks on the file.
    pub fn refresh(&self) {
        let Some(file) = self.inner.file.as_ref().filter(|file| file.changed()) else { return };
        let read = load(file).and_then(|rules| rules.ok_or_else(|| missing(file.path())));
        match read {
            Ok(rules) => {
                *self.inner.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
                tracing::info!(file = %file.path().display(), "the policy has been read again");
            }
            Err(error) => tracing::error!(%error, "the policy stays as it was"),
        }
    }

    /// Tells the caller whether it is an administrator.
    pub fn admit(&self, mut caller: Caller) -> Caller {
        // The rule that says who is one must not find that already said.
        caller.set_admin(false);
        let is_admin =
            self.rules().passes(rules::CONTEXT_IS_ADMIN, &Credentials::of(&caller), &Target::own(&caller));
        caller.set_admin(is_admin);
        caller
    }

    /// Succeeds where the caller may do this in the own project. A handler asks before anything else,
    /// so that a refusal says nothing of what exists.
    pub fn enforce(&self, caller: &Caller, rule: &'static str) -> Result<()> {
        self.enforce_on(caller, rule, &Target::own(caller))
    }

    /// Succeeds where the caller may do this to the target: a row at hand that may be of another
    /// project, which only an administrator's can be.
    pub fn enforce_on(&self, caller: &Caller, rule: &'static str, target: &Target<'_>) -> Result<()> {
        if self.rules().passes(rule, &Credentials::of(caller), target) {
            Ok(())
        } else {
            Err(Error::Forbidden { rule })
        }
    }
}

/// Reads a text as a rule and as a file of rules. A rule reads back as it is shown, and asking it ends.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_rule(text: &str) {
    let caller = Caller::new("user", "project", vec!["member".to_owned(), "reader".to_owned()]);
    let target = Target::own(&caller);
    let caller = Credentials::of(&caller);
    match language::parse(text) {
        Ok(check) => {
            let again = language::parse(&check.to_string()).expect("what is shown of a rule is a rule");
            assert_eq!(again.to_string(), check.to_string());
            let rules = defaults();
            assert_eq!(check.passes(&rules, &caller, &target), again.passes(&rules, &caller, &target));
        }
        Err(error) => assert!(error.at <= text.chars().count() && !error.reason.is_empty(), "{error}"),
    }
    match file::read("policy.yaml", text) {
        Ok(rules) => {
            for Rule { name, .. } in RULES {
                let _ = rules.passes(name, &caller, &target);
            }
        }
        Err(reason) => assert!(reason.starts_with("policy.yaml") && reason.lines().count() == 1, "{reason}"),
    }
}

fn defaults() -> RuleSet {
    RuleSet::new(std::collections::BTreeMap::new()).expect("a test reads every default")
}

fn missing(path: &Path) -> FileError {
    FileError(format!("{}: there is no such file; it is policy_file in [oslo_policy]", path.display()))
}

/// The rules of the file over the defaults; `None` where there is no file. Says what is odd in it.
fn load(file: &Watched) -> Result<Option<RuleSet>, FileError> {
    let name = file.path().display().to_string();
    let text = file.read().map_err(|error| FileError(format!("{name}: cannot be read: {error}")))?;
    let Some(text) = text else { return Ok(None) };
    let rules = file::read(&name, &text).map_err(FileError)?;
    for doubt in rules.doubts() {
        tracing::warn!(file = name, "{doubt}");
    }
    Ok(Some(rules))
}
