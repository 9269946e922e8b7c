//! Functions: their code, their limits and what stands in the way of changing them.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::archive;
use sea_orm::Set;
use serde_json::{Map, Value};

use super::packages::Packages;
use super::trusts::{Delegation, Trusts};
use super::versions::Versions;
use super::{MAX_TEXT, check_length, release};
use crate::config::{Config, ResourceLimits};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Filter, Page};
use crate::engine::gateway::Gateway;
use crate::engine::target::{Target, not_available_text};
use crate::error::{Error, Result};
use crate::model::function::Source;
use crate::model::{
    Caller, FunctionId, FunctionStatus, NetworkAccess, RuntimeId, RuntimeStatus, Scope, Timestamp, function,
};
use crate::openstack::Keystone;
use crate::quota::{Limits, Resource};
use crate::storage::{Content, PackageStore, Received};

mod code;

use code::open_object;

pub(super) const DEFAULT_ENTRY: &str = "main.main";
const MAX_ENTRY: usize = 80;

/// What a caller gives to create a function, or to change one: what is `None` stays.
#[derive(Debug, Default)]
pub struct Input {
    pub code: Option<Map<String, Value>>,
    pub runtime_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub entry: Option<String>,
    pub cpu: Option<i64>,
    pub memory_size: Option<i64>,
    pub timeout: Option<i64>,
    pub network: Option<NetworkAccess>,
    pub package: Option<Received>,
}

#[derive(Clone)]
pub struct Functions {
    db: Db,
    engine: Gateway,
    packages: Packages,
    trusts: Trusts,
    limits: ResourceLimits,
    archive_limits: archive::Limits,
    /// Most bytes of an object in Swift.
    max_object_bytes: u64,
    /// Patterns of images that may be functions.
    allowed_images: Vec<String>,
}

impl Functions {
    /// Without Keystone functions have no session in a cloud, and no code from one.
    pub fn new(
        db: Db,
        store: Arc<dyn PackageStore>,
        engine: Gateway,
        keystone: Option<Keystone>,
        config: &Config,
    ) -> Self {
        Self {
            trusts: Trusts::new(db.clone(), keystone, config),
            db,
            engine,
            packages: Packages::new(store),
            allowed_images: config.images.allowed.clone(),
            max_object_bytes: config.storage.max_package_bytes,
            limits: config.resource_limits.clone(),
            archive_limits: config.storage.archive_limits(),
        }
    }

    /// The versions of these functions, which share packages and trusts with them.
    pub fn versions(&self) -> Versions {
        Versions::new(self.db.clone(), self.engine.clone(), self.packages.clone(), self.trusts.clone())
    }

    pub async fn list(
        &self,
        scope: &Scope,
        project_id: Option<&Filter>,
        page: &Page<function::Entity>,
    ) -> Result<Vec<function::Model>> {
        Ok(db::functions::list(self.db.reader(), scope, project_id, page).await?)
    }

    pub async fn get(&self, caller: &Caller, id: &FunctionId) -> Result<function::Model> {
        let row = db::functions::find(self.db.reader(), id, &caller.scope()).await?;
        row.ok_or_else(|| Error::not_found("Function", id))
    }

    /// The working copy, to be scaled or released.
    pub async fn target(&self, caller: &Caller, id: &FunctionId) -> Result<Target> {
        Ok(Target::working_copy(self.get(caller, id).await?))
    }

    /// The package of a function as it was read. An object in Swift is read with the caller's rights.
    pub async fn open(&self, caller: &Caller, function: &function::Model) -> Result<Content> {
        if function.source()? == Source::Swift {
            return open_object(self.trusts.keystone(), caller, function).await;
        }
        let Some(digest) = &function.package_digest else {
            return Err(Error::NotSupported("Download image function is not allowed.".to_owned()));
        };
        let content = self.packages.open(digest).await?;
        content.ok_or_else(|| Error::NotFound {
            what: "Package of function",
            key: format!("id={}, project_id={}", function.id, function.project_id),
        })
    }

    pub async fn create(&self, caller: &Caller, mut input: Input) -> Result<function::Model> {
        let code = input.code.take();
        let code = code.ok_or_else(|| Error::invalid("Required param is missing. Required: {'code'}"))?;
        let source = Source::of_code(&code).ok_or_else(|| {
            Error::invalid("Invalid code source specified, available sources: package, swift, image")
        })?;
        self.check(&input)?;
        let runtime_id = self.check_runtime(caller, source, input.runtime_id.as_deref()).await?;
        let entry = match source {
            Source::Image => None,
            _ => Some(input.entry.take().unwrap_or_else(|| DEFAULT_ENTRY.to_owned())),
        };
        let new = match source {
            Source::Package => self.package(&code, input.package.take()).await?,
            Source::Swift => self.object(caller, &code).await?,
            Source::Image => code::image(&code, &self.allowed_images)?,
        };
        let delegation = self.delegate(caller, source).await?;
        let limits = self.engine.quotas().limits(&caller.project_id).await;
        // Held until the row is committed, so that nobody deletes the package in between.
        let held = self.packages.hold().await;
        let code = self.keep(new).await?;
        let row = function::Model {
            id: FunctionId::random(),
            project_id: caller.project_id.clone(),
            name: input.name,
            description: input.description,
            runtime_id,
            cpu: narrow(input.cpu, self.limits.default_cpu),
            memory_size: input.memory_size.unwrap_or(self.limits.default_memory),
            timeout: narrow(input.timeout, self.limits.default_timeout),
            code: code.code,
            package_digest: code.digest,
            package_bytes: code.bytes,
            object_etag: code.etag,
            entry,
            network: input.network.unwrap_or_default(),
            count: 0,
            trust_id: delegation.trust,
            trust_reason: delegation.reason,
            latest_version: 0,
            version_counter: 0,
            status: match source {
                Source::Image => FunctionStatus::Creating,
                _ => FunctionStatus::Available,
            },
            status_reason: None,
            image_digest: None,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        let written = self.write_new(&limits, source, &row).await;
        drop(held);
        if let (Err(Error::OverQuota { .. }), Some(digest)) = (&written, &row.package_digest) {
            self.packages.forget(&self.db, digest).await;
        }
        written?;
        if source == Source::Image {
            self.engine.images_changed();
        }
        Ok(row)
    }

    async fn write_new(&self, limits: &Limits, source: Source, row: &function::Model) -> Result<()> {
        let tx = self.db.begin().await?;
        limits.admit(&tx, &row.project_id, Resource::Functions, 1).await?;
        let scale = limits.weigh(&tx, &row.project_id).await?;
        if let Some(id) = &row.runtime_id {
            // Again, and in the transaction: it may have been deleted while the package came in.
            let runtime = db::runtimes::find_any(&tx, id).await?;
            if source != Source::Image && runtime.is_none_or(|r| r.status != RuntimeStatus::Available) {
                return Err(Error::Invalid(not_available_text(id)));
            }
        }
        db::functions::insert(&tx, row.clone()).await?;
        scale.settle(&tx, &row.project_id).await?;
        Ok(around(Write::FunctionCreate, tx.commit()).await?)
    }

    /// Changes a function. Code, entry and limits do not change under a job, and an image function
    /// has none that could.
    pub async fn update(
        &self,
        caller: &Caller,
        id: &FunctionId,
        mut input: Input,
    ) -> Result<function::Model> {
        self.check(&input)?;
        let code = input.code.take();
        let code_changes = code.is_some()
            || input.package.is_some()
            || input.entry.is_some()
            || input.cpu.is_some()
            || input.memory_size.is_some()
            || input.network.is_some();
        let current = self.get(caller, id).await?;
        if code_changes {
            self.check_may_change(&current, code.as_ref()).await?;
        }
        // An upload is meant, be it of the same bytes; clients send the entry along with a new name.
        let uploads = input.package.is_some() || code.as_ref().is_some_and(|code| code.contains_key("swift"));
        let runs_other_code =
            uploads || input.entry.as_ref().is_some_and(|new| current.entry.as_ref() != Some(new));
        let new = self.new_code(caller, &current, code.as_ref(), input.package.take()).await?;
        let delegation = if runs_other_code { self.delegate_anew(caller, &current).await? } else { None };
        let limits = self.engine.quotas().limits(&current.project_id).await;
        let held = self.packages.hold().await;
        let new = match new {
            Some(new) => Some(self.keep(new).await?),
            None => None,
        };

        let kept = new.as_ref().and_then(|new| new.digest.clone());
        let tx = self.db.begin().await?;
        let scale = match kept {
            Some(_) => Some(limits.weigh(&tx, &current.project_id).await?),
            None => None,
        };
        let row = db::functions::find_for_update(&tx, id, &caller.scope()).await?;
        let before = row.ok_or_else(|| Error::not_found("Function", id))?;
        // What was decided was decided of this code, and of who lent it a session.
        if runs_other_code && identity_of(&before) != identity_of(&current) {
            return Err(Error::Conflict(
                "The function was changed by another request meanwhile; look at it and try again.".to_owned(),
            ));
        }
        // Again, and in the transaction: a job may have come while the package was kept.
        if code_changes && db::functions::has_live_jobs(&tx, id).await? {
            return Err(live_jobs());
        }
        let row = db::functions::update(&tx, change(id, input, new, delegation)).await?;
        let row = row.ok_or_else(|| Error::not_found("Function", id))?;
        let mut dropped = before.trust_id.clone().filter(|_| before.trust_id != row.trust_id);
        if let Some(trust) = &dropped
            && !db::trusts::drop_unless_held(&tx, id, trust).await?
        {
            // A version runs in that name.
            dropped = None;
        }
        if let Some(scale) = scale
            && let Err(refused) = scale.settle(&tx, &current.project_id).await
        {
            tx.rollback().await?;
            drop(held);
            if let Some(digest) = &kept {
                self.packages.forget(&self.db, digest).await;
            }
            return Err(refused);
        }
        around(Write::FunctionUpdate, tx.commit()).await?;
        drop(held);

        let runs_as = |row: &function::Model| (identity_of(row), row.cpu, row.memory_size, row.network);
        if runs_as(&before) != runs_as(&row) {
            release(&self.engine, id, 0).await;
        }
        if before.package_digest != row.package_digest
            && let Some(digest) = &before.package_digest
        {
            self.packages.forget(&self.db, digest).await;
        }
        if let Some(trust) = &dropped {
            self.trusts.end_soon(id, trust);
        }
        Ok(row)
    }

    /// What a new function uses the cloud with. One whose code is in Swift cannot do without.
    async fn delegate(&self, caller: &Caller, source: Source) -> Result<Delegation> {
        if source == Source::Image {
            return Ok(Delegation::default());
        }
        let delegation = self.trusts.delegate(caller).await?;
        match &delegation.reason {
            Some(reason) if source == Source::Swift => Err(Error::Invalid(format!(
                "A function in Swift needs a session of its own to read the object. {reason}"
            ))),
            _ => Ok(delegation),
        }
    }

    /// Whoever has a function run other code lends it its own rights, with the token at hand: nobody's
    /// are used for code of another's, nor more than this token has. `None` where there is nothing to lend.
    async fn delegate_anew(&self, caller: &Caller, current: &function::Model) -> Result<Option<Delegation>> {
        let source = current.source()?;
        if source == Source::Image || self.trusts.keystone().is_none() {
            return Ok(None);
        }
        if caller.project_id != current.project_id {
            return match source {
                Source::Swift => Err(Error::Guarded(
                    "A function in Swift can only be changed in its own project.".to_owned(),
                )),
                _ => Ok(Some(Delegation::of_another_project())),
            };
        }
        self.delegate(caller, source).await.map(Some)
    }

    /// Removes a function with its versions and its finished jobs, then its workers and packages.
    pub async fn delete(&self, caller: &Caller, id: &FunctionId) -> Result<()> {
        let tx = self.db.begin().await?;
        let row = db::functions::find_for_update(&tx, id, &caller.scope()).await?;
        let row = row.ok_or_else(|| Error::not_found("Function", id))?;
        if db::functions::has_live_jobs(&tx, id).await? {
            return Err(live_jobs());
        }
        let associated =
            |what: &str| Error::Guarded(format!("The function is still associated with {what}."));
        if db::functions::has_webhooks(&tx, id).await? {
            return Err(associated("webhook(s)"));
        }
        if db::functions::has_aliases(&tx, id).await? {
            return Err(associated("function alias(es)"));
        }
        if row.project_id != caller.project_id {
            return Err(Error::Guarded("Function can only be deleted by its owner.".to_owned()));
        }
        let versions = db::versions::list(&tx, id).await?;
        db::functions::delete(&tx, id).await?;
        let trusts = versions.iter().filter_map(|version| version.trust_id.as_ref());
        let trusts: BTreeSet<_> = trusts.chain(&row.trust_id).collect();
        for trust in &trusts {
            db::trusts::drop_unless_held(&tx, id, trust).await?;
        }
        around(Write::FunctionDelete, tx.commit()).await?;

        for trust in trusts {
            self.trusts.end_soon(id, trust);
        }
        let mut digests: BTreeSet<_> = row.package_digest.iter().collect();
        release(&self.engine, id, 0).await;
        for version in &versions {
            release(&self.engine, id, version.version_number).await;
            digests.extend(&version.package_digest);
        }
        for digest in digests {
            self.packages.forget(&self.db, digest).await;
        }
        Ok(())
    }

    /// What can be said of the fields by themselves.
    fn check(&self, input: &Input) -> Result<()> {
        check_length("name", input.name.as_deref(), MAX_TEXT)?;
        check_length("description", input.description.as_deref(), MAX_TEXT)?;
        check_length("entry", input.entry.as_deref(), MAX_ENTRY)?;
        if let Some(entry) = &input.entry {
            check_entry(entry)?;
        }
        let limits = &self.limits;
        check_range("cpu", "millicpu", input.cpu, limits.min_cpu.into(), limits.max_cpu.into())?;
        check_range("memory", "bytes", input.memory_size, limits.min_memory, limits.max_memory)?;
        check_range("timeout", "seconds", input.timeout, limits.min_timeout.into(), limits.max_timeout.into())
    }

    /// The runtime that was named, if it is one that the caller sees and may use now.
    async fn check_runtime(
        &self,
        caller: &Caller,
        source: Source,
        id: Option<&str>,
    ) -> Result<Option<RuntimeId>> {
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return match source {
                Source::Image => Ok(None),
                _ => Err(Error::invalid("\"runtime_id\" must be specified.")),
            };
        };
        let id = RuntimeId::from(id);
        let runtime = db::runtimes::find(self.db.reader(), &id, &caller.project_id).await?;
        let runtime = runtime.ok_or_else(|| Error::not_found("Runtime", &id))?;
        if source != Source::Image && runtime.status != RuntimeStatus::Available {
            return Err(Error::Invalid(not_available_text(&id)));
        }
        Ok(Some(id))
    }

    async fn check_may_change(
        &self,
        current: &function::Model,
        code: Option<&Map<String, Value>>,
    ) -> Result<()> {
        if db::functions::has_live_jobs(self.db.reader(), &current.id).await? {
            return Err(live_jobs());
        }
        let source = current.source()?;
        if let Some(code) = code
            && code.contains_key("source")
            && Source::of_code(code) != Some(source)
        {
            return Err(Error::invalid("The function code type can not be changed."));
        }
        if source == Source::Image {
            return Err(Error::invalid("The image type function code can not be changed."));
        }
        Ok(())
    }
}

/// The columns that an update writes; counters are not among them, which others raise meanwhile.
fn change(
    id: &FunctionId,
    input: Input,
    code: Option<code::Kept>,
    delegation: Option<Delegation>,
) -> function::ActiveModel {
    let mut change = function::ActiveModel { id: Set(id.clone()), ..Default::default() };
    if let Some(code) = code {
        change.code = Set(code.code);
        change.package_digest = Set(code.digest);
        change.package_bytes = Set(code.bytes);
        change.object_etag = Set(code.etag);
    }
    if let Some(delegation) = delegation {
        change.trust_id = Set(delegation.trust);
        change.trust_reason = Set(delegation.reason);
    }
    if input.name.is_some() {
        change.name = Set(input.name);
    }
    if input.description.is_some() {
        change.description = Set(input.description);
    }
    if input.entry.is_some() {
        change.entry = Set(input.entry);
    }
    if let Some(cpu) = input.cpu.and_then(|cpu| i32::try_from(cpu).ok()) {
        change.cpu = Set(cpu);
    }
    if let Some(memory_size) = input.memory_size {
        change.memory_size = Set(memory_size);
    }
    if let Some(timeout) = input.timeout.and_then(|timeout| i32::try_from(timeout).ok()) {
        change.timeout = Set(timeout);
    }
    if let Some(network) = input.network {
        change.network = Set(network);
    }
    change
}

/// What a function runs, and in whose name.
fn identity_of(row: &function::Model) -> impl PartialEq + use<> {
    (row.digest(), row.code.clone(), row.entry.clone(), row.trust_id.clone())
}

fn live_jobs() -> Error {
    Error::Guarded("The function is still associated with running job(s).".to_owned())
}

/// Both sides of the last dot are needed to find what to call.
fn check_entry(entry: &str) -> Result<()> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(char::is_whitespace);
    match entry.rsplit_once('.') {
        Some((module, method)) if is_name(method) && module.split('.').all(is_name) => Ok(()),
        _ => Err(Error::Invalid(format!("entry '{entry}' is not of the form <module>.<method>."))),
    }
}

fn check_range(name: &str, unit: &str, value: Option<i64>, min: i64, max: i64) -> Result<()> {
    match value {
        Some(value) if value < min || value > max => Err(Error::Invalid(format!(
            "{name} resource limitation not within the allowable range: {min} ~ {max}({unit})."
        ))),
        _ => Ok(()),
    }
}

/// The value given, which was checked against limits that fit, or another.
fn narrow(given: Option<i64>, otherwise: i32) -> i32 {
    given.and_then(|value| i32::try_from(value).ok()).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_a_module_and_a_method() {
        for entry in ["main.main", "pkg.sub.run", "x.y"] {
            assert!(check_entry(entry).is_ok(), "{entry}");
        }
        for entry in ["main", ".main", "main.", "a..b", "a b.c", "."] {
            let refused = check_entry(entry).unwrap_err().to_string();
            assert!(refused.contains("entry") && refused.contains("<module>.<method>"), "{refused}");
        }
    }

    #[test]
    fn ranges_name_their_bounds() {
        assert!(check_range("cpu", "millicpu", Some(100), 100, 300).is_ok());
        assert!(check_range("cpu", "millicpu", None, 100, 300).is_ok());
        for value in [0, 99, 301, i64::MAX] {
            assert_eq!(
                check_range("cpu", "millicpu", Some(value), 100, 300).unwrap_err().to_string(),
                "cpu resource limitation not within the allowable range: 100 ~ 300(millicpu)."
            );
        }
    }
}
