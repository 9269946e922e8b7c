//! Aliases: names for versions of functions, which callers use in place of ids.
//!
//! An alias belongs to the project of its function, for administrators too: what another project has
//! named could not be deleted by those who own it.

use sea_orm::Set;

use super::{MAX_TEXT, check_length};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Filter, Page, Transaction};
use crate::engine::target::check_version;
use crate::error::{Error, Result};
use crate::model::{Caller, FunctionId, ProjectId, Scope, Timestamp, alias, function};
use crate::quota::{Quotas, Resource};

/// What a caller gives to create an alias.
#[derive(Debug, Default)]
pub struct New {
    pub name: Option<String>,
    pub function_id: Option<FunctionId>,
    pub function_version: Option<i32>,
    pub description: Option<String>,
    pub canary: Canary,
}

/// What a caller gives to change one: what is `None` stays.
#[derive(Debug, Default)]
pub struct Change {
    pub function_id: Option<FunctionId>,
    pub function_version: Option<i32>,
    pub description: Option<String>,
    pub canary: Canary,
}

/// The second version of an alias, as far as a caller says something about it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Canary {
    pub version: Option<i32>,
    pub weight: Option<i32>,
    /// There is to be none.
    pub remove: bool,
}

#[derive(Clone)]
pub struct Aliases {
    db: Db,
    quotas: Quotas,
}

impl Aliases {
    pub fn new(db: Db, quotas: Quotas) -> Self {
        Self { db, quotas }
    }

    pub async fn list(
        &self,
        scope: &Scope,
        project_id: Option<&Filter>,
        page: &Page<alias::Entity>,
    ) -> Result<Vec<alias::Model>> {
        Ok(db::aliases::list(self.db.reader(), scope, project_id, page).await?)
    }

    /// The alias that the caller means: one of its own project, or, for an administrator whose project
    /// has none of that name, another's.
    pub async fn get(&self, caller: &Caller, name: &str) -> Result<alias::Model> {
        // No alias has it, and not every database takes the question.
        if name.contains('\0') {
            return Err(not_found(name));
        }
        let (scope, own) = (caller.scope(), &caller.project_id);
        let row = db::aliases::find_visible(self.db.reader(), &scope, own, name).await?;
        row.ok_or_else(|| not_found(name))
    }

    pub async fn create(&self, caller: &Caller, new: New) -> Result<alias::Model> {
        let (Some(name), Some(function_id)) = (new.name, new.function_id) else {
            return Err(Error::invalid("Required param is missing. Required: {'function_id', 'name'}"));
        };
        check_name(&name)?;
        check_length("description", new.description.as_deref(), MAX_TEXT)?;
        let mut row = alias::Model {
            id: uuid::Uuid::new_v4().to_string(),
            project_id: caller.project_id.clone(),
            name,
            function_id,
            function_version: new.function_version.unwrap_or(0),
            description: new.description,
            canary_version: None,
            canary_weight: 0,
            previous_version: None,
            created_at: Timestamp::now(),
            updated_at: None,
        };
        new.canary.apply(&mut row)?;
        let limits = self.quotas.limits(&row.project_id).await;
        let tx = self.db.begin().await?;
        limits.admit(&tx, &row.project_id, Resource::FunctionAliases, 1).await?;
        let function = held_function(&tx, &row.function_id, &row.project_id).await?;
        // First: that a name is taken says more than that a version does not exist.
        db::aliases::insert(&tx, row.clone()).await?;
        check_versions(&tx, &function, &row).await?;
        around(Write::AliasCreate, tx.commit()).await?;
        Ok(row)
    }

    /// Changes an alias that the caller has looked up.
    pub async fn update(&self, seen: &alias::Model, change: Change) -> Result<alias::Model> {
        check_length("description", change.description.as_deref(), MAX_TEXT)?;
        let tx = self.db.begin().await?;
        let before = held(&tx, seen).await?;
        let function_id = change.function_id.as_ref().unwrap_or(&before.function_id);
        let function = held_function(&tx, function_id, &before.project_id).await?;
        let after = changed(&before, change)?;
        if meaning(&after) != meaning(&before) {
            check_versions(&tx, &function, &after).await?;
        }
        self.write(tx, after).await
    }

    /// Takes back what was changed last: the second version where there is one, else the version itself.
    pub async fn roll_back(&self, seen: &alias::Model) -> Result<alias::Model> {
        let tx = self.db.begin().await?;
        let before = held(&tx, seen).await?;
        let function = held_function(&tx, &before.function_id, &before.project_id).await?;
        let after = rolled_back(&before)?;
        check_versions(&tx, &function, &after).await?;
        self.write(tx, after).await
    }

    async fn write(&self, tx: Transaction, row: alias::Model) -> Result<alias::Model> {
        let change = alias::ActiveModel {
            id: Set(row.id),
            function_id: Set(row.function_id),
            function_version: Set(row.function_version),
            description: Set(row.description),
            canary_version: Set(row.canary_version),
            canary_weight: Set(row.canary_weight),
            previous_version: Set(row.previous_version),
            ..Default::default()
        };
        let written = db::aliases::update(&tx, change).await?;
        let written = written.ok_or_else(|| not_found(&row.name))?;
        around(Write::AliasUpdate, tx.commit()).await?;
        Ok(written)
    }

    /// Deletes an alias that the caller has looked up, unless something calls it by name.
    pub async fn delete(&self, seen: &alias::Model) -> Result<()> {
        let tx = self.db.begin().await?;
        let row = held(&tx, seen).await?;
        let associated = |what: &str| Error::Guarded(format!("The alias is still associated with {what}."));
        if db::aliases::has_live_jobs(&tx, &row.project_id, &row.name).await? {
            return Err(associated("running job(s)"));
        }
        if db::aliases::has_webhooks(&tx, &row.project_id, &row.name).await? {
            return Err(associated("webhook(s)"));
        }
        db::aliases::delete(&tx, &row.id).await?;
        Ok(around(Write::AliasDelete, tx.commit()).await?)
    }
}

impl Canary {
    fn apply(self, row: &mut alias::Model) -> Result<()> {
        if self.remove {
            if self.version.is_some() || self.weight.is_some() {
                return Err(Error::invalid(
                    "remove_canary takes the second version away; give no canary_version and no \
                     canary_weight with it.",
                ));
            }
            (row.canary_version, row.canary_weight) = (None, 0);
        }
        if let Some(version) = self.version
            && row.canary_version != Some(version)
        {
            // What one version has earned is not another's.
            (row.canary_version, row.canary_weight) = (Some(version), 0);
        }
        if let Some(weight) = self.weight {
            if !(0..=100).contains(&weight) {
                return Err(Error::invalid("canary_weight is a percentage, from 0 to 100."));
            }
            if row.canary_version.is_none() && weight > 0 {
                return Err(Error::invalid(
                    "canary_weight says how many calls canary_version gets, and there is none.",
                ));
            }
            row.canary_weight = weight;
        }
        if row.canary_version == Some(row.function_version) {
            return Err(Error::invalid("canary_version has to be another version than function_version."));
        }
        Ok(())
    }
}

/// The alias after a change, as far as the row itself can tell.
fn changed(before: &alias::Model, change: Change) -> Result<alias::Model> {
    let mut row = before.clone();
    if let Some(description) = change.description {
        row.description = Some(description);
    }
    let moves = change.function_id.as_ref().is_some_and(|id| *id != row.function_id);
    if let Some(id) = change.function_id.filter(|_| moves) {
        // Numbers of one function's versions mean nothing in another's.
        row.function_id = id;
        (row.canary_version, row.canary_weight, row.previous_version) = (None, 0, None);
    }
    if let Some(version) = change.function_version.filter(|version| *version != row.function_version) {
        if !moves {
            row.previous_version = Some(row.function_version);
        }
        row.function_version = version;
        if row.canary_version == Some(version) {
            // The second version is the first now.
            (row.canary_version, row.canary_weight) = (None, 0);
        }
    }
    change.canary.apply(&mut row)?;
    Ok(row)
}

/// The alias before it was changed last. What was rolled back is not come back to, so that a call that is
/// repeated does no harm.
fn rolled_back(before: &alias::Model) -> Result<alias::Model> {
    let mut row = before.clone();
    if row.canary_version.is_some() {
        (row.canary_version, row.canary_weight) = (None, 0);
        return Ok(row);
    }
    let Some(previous) = row.previous_version.take() else {
        return Err(Error::Conflict(format!("The alias {} has no version to return to.", row.name)));
    };
    row.function_version = previous;
    Ok(row)
}

/// What calls of the alias run.
fn meaning(row: &alias::Model) -> impl PartialEq + use<> {
    (row.function_id.clone(), row.function_version, row.canary_version)
}

/// Refuses versions that there are not.
async fn check_versions(tx: &Transaction, function: &function::Model, row: &alias::Model) -> Result<()> {
    check_version(tx, function, row.function_version).await?;
    match row.canary_version {
        Some(version) => check_version(tx, function, version).await,
        None => Ok(()),
    }
}

/// The function, of the alias's project. Held to the end of the transaction, so that its versions stay.
async fn held_function(tx: &Transaction, id: &FunctionId, project: &ProjectId) -> Result<function::Model> {
    let row = db::functions::find_for_update(tx, id, &Scope::Project(project.clone())).await?;
    row.ok_or_else(|| Error::not_found("Function", id))
}

/// The alias as it is now, held to the end of the transaction.
async fn held(tx: &Transaction, seen: &alias::Model) -> Result<alias::Model> {
    let row = db::aliases::find_for_update(tx, &seen.project_id, &seen.name).await?;
    row.ok_or_else(|| not_found(&seen.name))
}

/// Names stand in URLs.
fn check_name(name: &str) -> Result<()> {
    check_length("name", Some(name), MAX_TEXT)?;
    match name {
        "" => Err(Error::invalid("name may not be empty.")),
        "." | ".." => Err(Error::Invalid(format!("name may not be '{name}'."))),
        _ if name.contains('/') => Err(Error::invalid("name may not contain '/'.")),
        _ => Ok(()),
    }
}

fn not_found(name: &str) -> Error {
    Error::NotFound { what: "FunctionAlias", key: format!("name={name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;
    use crate::model::RuntimeId;

    /// Function version, second version and its weight, previous version.
    type Shown = (i32, Option<i32>, i32, Option<i32>);

    fn row((version, canary, weight, previous): Shown) -> alias::Model {
        let function = testing::function(&RuntimeId::random());
        alias::Model {
            canary_version: canary,
            canary_weight: weight,
            previous_version: previous,
            ..testing::alias(&function, "prod", version)
        }
    }

    fn shown(row: &alias::Model) -> Shown {
        (row.function_version, row.canary_version, row.canary_weight, row.previous_version)
    }

    fn to(version: i32) -> Change {
        Change { function_version: Some(version), ..Change::default() }
    }

    fn canary(version: Option<i32>, weight: Option<i32>) -> Change {
        Change { canary: Canary { version, weight, remove: false }, ..Change::default() }
    }

    #[test]
    fn a_change_says_what_it_changes() {
        let removed = || Canary { remove: true, ..Canary::default() };
        let all = Change {
            description: Some("new".to_owned()),
            canary: Canary { version: Some(4), weight: Some(25), remove: false },
            ..to(3)
        };
        for (before, change, after) in [
            ((1, None, 0, None), Change::default(), (1, None, 0, None)),
            ((1, None, 0, None), to(2), (2, None, 0, Some(1))),
            ((1, None, 0, Some(7)), to(1), (1, None, 0, Some(7))),
            ((1, Some(3), 10, None), to(2), (2, Some(3), 10, Some(1))),
            // The second version takes the place of the first.
            ((1, Some(2), 10, None), to(2), (2, None, 0, Some(1))),
            ((1, None, 0, None), canary(Some(2), None), (1, Some(2), 0, None)),
            ((1, None, 0, None), canary(Some(2), Some(5)), (1, Some(2), 5, None)),
            ((1, Some(2), 5, None), canary(None, Some(100)), (1, Some(2), 100, None)),
            ((1, Some(2), 5, None), canary(Some(2), None), (1, Some(2), 5, None)),
            ((1, Some(2), 5, None), canary(None, Some(0)), (1, Some(2), 0, None)),
            ((1, None, 0, None), canary(None, Some(0)), (1, None, 0, None)),
            // Another one begins anew.
            ((1, Some(2), 90, None), canary(Some(3), None), (1, Some(3), 0, None)),
            (
                (1, Some(2), 90, Some(4)),
                Change { canary: removed(), ..Change::default() },
                (1, None, 0, Some(4)),
            ),
            ((1, None, 0, None), Change { canary: removed(), ..to(2) }, (2, None, 0, Some(1))),
            ((1, None, 0, None), all, (3, Some(4), 25, Some(1))),
        ] {
            let text = format!("{before:?} {change:?}");
            assert_eq!(shown(&changed(&row(before), change).unwrap()), after, "{text}");
        }
    }

    #[test]
    fn a_change_that_makes_no_sense_is_refused() {
        let both = Canary { version: Some(2), weight: None, remove: true };
        for (before, change, text) in [
            ((1, None, 0, None), canary(Some(1), None), "another version than function_version"),
            ((1, Some(2), 5, None), canary(Some(2), Some(101)), "from 0 to 100"),
            ((1, Some(2), 5, None), canary(None, Some(-1)), "from 0 to 100"),
            ((1, None, 0, None), canary(None, Some(1)), "there is none"),
            ((1, None, 0, None), Change { canary: both, ..Change::default() }, "remove_canary"),
        ] {
            let refused = changed(&row(before), change).unwrap_err().to_string();
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn another_function_has_other_versions() {
        let before = row((1, Some(2), 5, Some(3)));
        let id = FunctionId::random();
        let moved = changed(&before, Change { function_id: Some(id.clone()), ..to(4) }).unwrap();
        assert_eq!((&moved.function_id, shown(&moved)), (&id, (4, None, 0, None)));
        let same = Change { function_id: Some(before.function_id.clone()), ..Change::default() };
        assert_eq!(changed(&before, same).unwrap(), before);
    }

    #[test]
    fn one_call_takes_back_the_last_change() {
        let after = |before: Shown| rolled_back(&row(before)).map(|row| shown(&row));
        assert_eq!(after((2, Some(3), 10, Some(1))).unwrap(), (2, None, 0, Some(1)));
        assert_eq!(after((2, None, 0, Some(1))).unwrap(), (1, None, 0, None));
        assert_eq!(after((2, None, 0, Some(0))).unwrap(), (0, None, 0, None));
        assert!(matches!(after((1, None, 0, None)), Err(Error::Conflict(_))));
    }

    #[test]
    fn a_name_can_stand_in_a_url() {
        for name in ["prod", "a b", "ü%2F?", "...", &"x".repeat(255)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "/", "a\0", &"x".repeat(256)] {
            let refused = check_name(name).unwrap_err().to_string();
            assert!(refused.starts_with("name may"), "{refused}");
        }
    }
}
