//! Webhooks: functions that are run by who knows a URL.

use sea_orm::Set;

use super::executions::counted;
use super::references::{hold, nothing_to_call};
use super::{MAX_TEXT, check_length};
use crate::crash_points::{Write, around};
use crate::db::{self, Db, Filter, Page};
use crate::engine::gateway::{Gateway, NewExecution};
use crate::engine::target::Reference;
use crate::error::{Error, Result};
use crate::model::{
    Caller, ExecutionId, FunctionId, Input, Scope, Timestamp, WebhookId, WebhookMode, execution, webhook,
};
use crate::quota::Resource;

/// What is given to make a webhook, or to change one: what is `None` stays.
#[derive(Debug, Default)]
pub struct Fields {
    pub function_id: Option<FunctionId>,
    pub function_version: Option<i32>,
    pub function_alias: Option<String>,
    pub description: Option<String>,
    pub mode: Option<String>,
    pub is_public: Option<bool>,
    /// Empty takes it away.
    pub secret: Option<String>,
}

#[derive(Clone)]
pub struct Webhooks {
    db: Db,
    engine: Gateway,
}

impl Webhooks {
    pub fn new(db: Db, engine: Gateway) -> Self {
        Self { db, engine }
    }

    /// A webhook of the caller's project for one of its functions, for administrators too: whoever knows
    /// the URL runs it in the name of the function's owner.
    pub async fn create(&self, caller: &Caller, given: Fields) -> Result<webhook::Model> {
        let mode = check(&given)?;
        let id = WebhookId::random();
        let by_alias = given.function_alias.is_some();
        let row = webhook::Model {
            url_key: Some(id.to_string()),
            id,
            project_id: caller.project_id.clone(),
            function_id: given.function_id.filter(|_| !by_alias),
            function_version: given.function_version.filter(|_| !by_alias),
            function_alias: given.function_alias,
            description: given.description,
            mode: mode.unwrap_or(WebhookMode::Async),
            is_public: given.is_public.unwrap_or(true),
            secret: given.secret.filter(|secret| !secret.is_empty()),
            created_at: Timestamp::now(),
            updated_at: None,
        };
        let limits = self.engine.quotas().limits(&row.project_id).await;
        let tx = self.db.begin().await?;
        limits.admit(&tx, &row.project_id, Resource::Webhooks, 1).await?;
        hold(&tx, &reference_of(&row), &row.project_id, &caller.own()).await?;
        db::webhooks::insert(&tx, row.clone()).await?;
        around(Write::WebhookCreate, tx.commit()).await?;
        Ok(row)
    }

    pub async fn list(
        &self,
        scope: &Scope,
        project_id: Option<&Filter>,
        page: &Page<webhook::Entity>,
    ) -> Result<Vec<webhook::Model>> {
        Ok(db::webhooks::list(self.db.reader(), scope, project_id, page).await?)
    }

    pub async fn get(&self, caller: &Caller, id: &WebhookId) -> Result<webhook::Model> {
        let row = db::webhooks::find(self.db.reader(), id, &caller.scope()).await?;
        row.ok_or_else(|| not_found(id))
    }

    /// Of the own project only, for administrators too.
    pub async fn update(&self, caller: &Caller, id: &WebhookId, given: Fields) -> Result<webhook::Model> {
        let mode = check(&given)?;
        let tx = self.db.begin().await?;
        let before = db::webhooks::find_for_update(&tx, id, &caller.own()).await?;
        let before = before.ok_or_else(|| not_found(id))?;
        let after = changed(&before, given, mode)?;
        let called = |row: &webhook::Model| {
            (row.function_id.clone(), row.function_version, row.function_alias.clone())
        };
        if called(&before) != called(&after) {
            hold(&tx, &reference_of(&after), &after.project_id, &caller.own()).await?;
        }
        let change = webhook::ActiveModel {
            id: Set(after.id),
            function_id: Set(after.function_id),
            function_version: Set(after.function_version),
            function_alias: Set(after.function_alias),
            description: Set(after.description),
            mode: Set(after.mode),
            is_public: Set(after.is_public),
            secret: Set(after.secret),
            ..Default::default()
        };
        let row = db::webhooks::update(&tx, change).await?.ok_or_else(|| not_found(id))?;
        around(Write::WebhookUpdate, tx.commit()).await?;
        Ok(row)
    }

    /// Gives a webhook of the own project another URL. The one that it had means nothing from now on.
    pub async fn rotate(&self, caller: &Caller, id: &WebhookId) -> Result<webhook::Model> {
        let tx = self.db.begin().await?;
        let row = db::webhooks::find_for_update(&tx, id, &caller.own()).await?;
        row.ok_or_else(|| not_found(id))?;
        let change = webhook::ActiveModel {
            id: Set(id.clone()),
            url_key: Set(Some(uuid::Uuid::new_v4().to_string())),
            ..Default::default()
        };
        let row = db::webhooks::update(&tx, change).await?.ok_or_else(|| not_found(id))?;
        around(Write::WebhookUpdate, tx.commit()).await?;
        Ok(row)
    }

    pub async fn delete(&self, caller: &Caller, id: &WebhookId) -> Result<()> {
        let (writer, scope) = (self.db.writer(), caller.scope());
        let removed = around(Write::WebhookDelete, db::webhooks::delete(&writer, id, &scope)).await?;
        if removed { Ok(()) } else { Err(not_found(id)) }
    }

    /// The webhook that a URL means, whoever asks.
    pub async fn find_by_key(&self, key: &str) -> Result<Option<webhook::Model>> {
        // None is longer, and PostgreSQL takes no NUL.
        if key.len() > 36 || key.contains('\0') {
            return Ok(None);
        }
        Ok(db::webhooks::find_by_key(self.db.reader(), key).await?)
    }

    /// Runs the function of a webhook. What it calls is looked for in its own project and nowhere else;
    /// whether the caller may is decided by who asks for this.
    pub async fn invoke(
        &self,
        webhook: webhook::Model,
        input: Input,
        request_id: Option<String>,
    ) -> Result<execution::Model> {
        let scope = Scope::Project(webhook.project_id.clone());
        let target = reference_of(&webhook).resolve(&self.db, &webhook.project_id, &scope).await?;
        target.check_runnable(&self.db).await?;
        let sync = webhook.mode == WebhookMode::Sync;
        let quota = counted(&self.engine, &self.db, &webhook.project_id, sync).await?;
        let new = NewExecution {
            id: ExecutionId::next(),
            project_id: target.function.project_id.clone(),
            target,
            alias: webhook.function_alias,
            // Users find a webhook's executions by it.
            description: Some(format!("Created by Webhook {}", webhook.id)),
            sync,
            input,
            request_id,
            quota,
        };
        self.engine.submit(new).await
    }
}

fn not_found(id: &WebhookId) -> Error {
    Error::not_found("Webhook", id)
}

/// No version is the working copy.
fn reference_of(row: &webhook::Model) -> Reference {
    Reference {
        function_id: row.function_id.clone(),
        version: row.function_version.unwrap_or(0),
        alias: row.function_alias.clone(),
    }
}

/// What can be said of the fields by themselves; gives the mode.
fn check(given: &Fields) -> Result<Option<WebhookMode>> {
    check_length("description", given.description.as_deref(), MAX_TEXT)?;
    check_length("secret", given.secret.as_deref(), MAX_TEXT)?;
    check_length("function_alias", given.function_alias.as_deref(), MAX_TEXT)?;
    match given.mode.as_deref() {
        None => Ok(None),
        Some("async") => Ok(Some(WebhookMode::Async)),
        Some("sync") => Ok(Some(WebhookMode::Sync)),
        Some(_) => Err(Error::invalid("mode must be async or sync.")),
    }
}

/// What becomes of a webhook. An alias takes the place of function and version, and these of an alias.
fn changed(before: &webhook::Model, given: Fields, mode: Option<WebhookMode>) -> Result<webhook::Model> {
    let mut row = before.clone();
    if given.function_alias.is_some() {
        (row.function_alias, row.function_id, row.function_version) = (given.function_alias, None, None);
    } else if given.function_id.is_some() || given.function_version.is_some() {
        row.function_alias = None;
        row.function_id = given.function_id.or(row.function_id);
        row.function_version = given.function_version.or(row.function_version);
        if row.function_id.is_none() {
            return Err(Error::invalid(
                "function_version needs a function_id, since the webhook calls an alias.",
            ));
        }
    }
    row.description = given.description.or(row.description);
    row.mode = mode.unwrap_or(row.mode);
    row.is_public = given.is_public.unwrap_or(row.is_public);
    if let Some(secret) = given.secret {
        row.secret = Some(secret).filter(|secret| !secret.is_empty());
    }
    if row.function_alias.is_none() && row.function_id.is_none() {
        return Err(nothing_to_call());
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;

    fn by_function() -> webhook::Model {
        let id = "f".into();
        webhook::Model { function_alias: None, function_version: Some(2), ..testing::webhook(&id) }
    }

    fn by_alias() -> webhook::Model {
        let prod = Some("prod".to_owned());
        webhook::Model { function_alias: prod, function_id: None, function_version: None, ..by_function() }
    }

    fn after(before: &webhook::Model, given: Fields) -> Result<webhook::Model, String> {
        let mode = check(&given).map_err(|error| error.to_string())?;
        changed(before, given, mode).map_err(|error| error.to_string())
    }

    #[test]
    fn an_alias_and_a_function_take_each_others_place() {
        let id = |id: &str| Some(FunctionId::from(id));
        let alias = |name: &str| Some(name.to_owned());
        let cases = [
            (
                by_function(),
                Fields { function_alias: alias("a"), ..Fields::default() },
                (None, None, alias("a")),
            ),
            (
                by_function(),
                Fields { function_alias: alias("a"), function_id: id("g"), ..Fields::default() },
                (None, None, alias("a")),
            ),
            (
                by_function(),
                Fields { function_version: Some(0), ..Fields::default() },
                (id("f"), Some(0), None),
            ),
            (by_function(), Fields { function_id: id("g"), ..Fields::default() }, (id("g"), Some(2), None)),
            (by_alias(), Fields { function_id: id("g"), ..Fields::default() }, (id("g"), None, None)),
            (
                by_alias(),
                Fields { function_id: id("g"), function_version: Some(1), ..Fields::default() },
                (id("g"), Some(1), None),
            ),
            (by_alias(), Fields::default(), (None, None, alias("prod"))),
        ];
        for (before, given, calls) in cases {
            let said = format!("{given:?}");
            let after = after(&before, given).unwrap();
            assert_eq!((after.function_id, after.function_version, after.function_alias), calls, "{said}");
            assert_eq!((after.url_key, after.secret), (before.url_key, before.secret));
        }
        let version_alone = Fields { function_version: Some(1), ..Fields::default() };
        assert!(after(&by_alias(), version_alone).unwrap_err().contains("function_id"));
    }

    #[test]
    fn the_rest_stays_unless_it_is_given() {
        let before = by_function();
        assert_eq!(after(&before, Fields::default()), Ok(before.clone()));
        let given = Fields {
            description: Some("new".into()),
            mode: Some("async".into()),
            is_public: Some(true),
            secret: Some("other".into()),
            ..Fields::default()
        };
        let expected = webhook::Model {
            description: Some("new".into()),
            mode: WebhookMode::Async,
            is_public: true,
            secret: Some("other".into()),
            ..before.clone()
        };
        assert_eq!(after(&before, given), Ok(expected));
        let without = after(&before, Fields { secret: Some(String::new()), ..Fields::default() }).unwrap();
        assert_eq!(without.secret, None);
        let odd = Fields { mode: Some("later".into()), ..Fields::default() };
        assert_eq!(after(&before, odd), Err("mode must be async or sync.".to_owned()));
    }
}
