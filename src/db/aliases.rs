use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect,
};

use super::functions::OVER;
use super::{Changes, Filter, Page, Result, Transaction, page, updated, within};
use crate::model::alias::{ActiveModel, Column, Entity, Model};
use crate::model::{FunctionId, ProjectId, Scope, Timestamp, job, webhook};

/// [`super::Error::Duplicate`] where the project has the name, or has another for the version.
pub async fn insert(db: &impl ConnectionTrait, alias: Model) -> Result<()> {
    Entity::insert(alias.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// A name means something within one project only, for administrators too.
pub async fn find(db: &impl ConnectionTrait, project: &ProjectId, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find()
        .filter(Column::ProjectId.eq(project.clone()))
        .filter(Column::Name.eq(name))
        .one(db)
        .await?)
}

/// What a name means to who looks at it: the own project's alias, else the oldest that `scope` shows.
pub async fn find_visible(
    db: &impl ConnectionTrait,
    scope: &Scope,
    own: &ProjectId,
    name: &str,
) -> Result<Option<Model>> {
    if let Some(alias) = find(db, own, name).await? {
        return Ok(Some(alias));
    }
    Ok(Entity::find()
        .filter(within(scope, Column::ProjectId))
        .filter(Column::Name.eq(name))
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .one(db)
        .await?)
}

/// As [`find`], in a transaction that will write what refers to the alias, or follows from it: nobody
/// changes it or removes it until the end. Taken before the lock of its function, where both are.
pub async fn find_for_update(db: &Transaction, project: &ProjectId, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find()
        .filter(Column::ProjectId.eq(project.clone()))
        .filter(Column::Name.eq(name))
        .lock_exclusive()
        .one(db)
        .await?)
}

/// Takes the locks of all aliases of a function, in a transaction that then takes the function's.
pub async fn hold_of(db: &Transaction, function: &FunctionId) -> Result<()> {
    Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::FunctionId.eq(function.clone()))
        .order_by_asc(Column::Id)
        .lock_exclusive()
        .into_tuple::<String>()
        .all(db)
        .await?;
    Ok(())
}

pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    project_id: Option<&Filter>,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    let visible = Entity::find().filter(within(scope, Column::ProjectId));
    page::rows(db, visible, page::on(project_id, Column::ProjectId), page).await
}

/// Writes what `change` sets, and returns the row; `None` where it is gone. [`super::Error::Duplicate`]
/// as for [`insert`].
pub async fn update(db: &impl Changes, change: ActiveModel) -> Result<Option<Model>> {
    let change = ActiveModel { updated_at: sea_orm::Set(Some(Timestamp::now())), ..change };
    let row = updated(change.update(db).await)?;
    db.note_change();
    Ok(row)
}

/// `false` where it is gone already.
pub async fn delete(db: &impl Changes, id: &str) -> Result<bool> {
    let deleted = Entity::delete_by_id(id).exec(db).await?;
    db.note_change();
    Ok(deleted.rows_affected == 1)
}

/// Jobs of the project that call the alias and are not over.
pub async fn has_live_jobs(db: &impl ConnectionTrait, project: &ProjectId, name: &str) -> Result<bool> {
    let live = job::Entity::find()
        .filter(job::Column::ProjectId.eq(project.clone()))
        .filter(job::Column::FunctionAlias.eq(name))
        .filter(job::Column::Status.is_not_in(OVER));
    Ok(live.count(db).await? > 0)
}

pub async fn has_webhooks(db: &impl ConnectionTrait, project: &ProjectId, name: &str) -> Result<bool> {
    let webhooks = webhook::Entity::find()
        .filter(webhook::Column::ProjectId.eq(project.clone()))
        .filter(webhook::Column::FunctionAlias.eq(name));
    Ok(webhooks.count(db).await? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{self, TestDb, alias, database, function, own, project, runtime, stranger};
    use crate::db::{functions, runtimes};
    use crate::model::{JobStatus, function};

    async fn one() -> (TestDb, function::Model) {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        (db, function)
    }

    #[tokio::test]
    async fn the_own_alias_comes_before_those_of_other_projects() {
        let (db, function) = one().await;
        let named = |project: &str, version: i32, age: i64| Model {
            project_id: project.into(),
            created_at: Timestamp(age),
            ..alias(&function, "prod", version)
        };
        for row in [named("demo", 0, 3), named("b", 1, 2), named("a", 2, 1)] {
            insert(&db.writer(), row).await.unwrap();
        }
        let seen = async |scope: &Scope, own: &str| {
            let row = find_visible(db.reader(), scope, &own.into(), "prod").await.unwrap();
            row.map(|row| row.project_id.0)
        };
        assert_eq!(seen(&Scope::All, "demo").await.as_deref(), Some("demo"));
        assert_eq!(seen(&Scope::All, "ops").await.as_deref(), Some("a"));
        assert_eq!(seen(&own(), "demo").await.as_deref(), Some("demo"));
        assert_eq!(seen(&stranger(), "other").await, None);

        assert_eq!(list(db.reader(), &own(), None, &Page::default()).await.unwrap().len(), 1);
        let all = list(db.reader(), &Scope::All, Some(&Filter::parse("in:a,demo")), &Page::default())
            .await
            .unwrap();
        assert_eq!(all.iter().map(|row| row.project_id.as_str()).collect::<Vec<_>>(), ["a", "demo"]);
    }

    #[tokio::test]
    async fn an_alias_is_changed_and_deleted_by_id() {
        let (db, function) = one().await;
        let (prod, test) = (alias(&function, "prod", 1), alias(&function, "test", 0));
        for row in [&prod, &test] {
            insert(&db.writer(), row.clone()).await.unwrap();
        }
        let to = |version: i32| ActiveModel {
            id: sea_orm::Set(prod.id.clone()),
            function_version: sea_orm::Set(version),
            ..Default::default()
        };
        let transaction = db.begin().await.unwrap();
        hold_of(&transaction, &function.id).await.unwrap();
        let held = async |name: &str| find_for_update(&transaction, &project(), name).await.unwrap();
        assert_eq!((held("prod").await, held("Prod").await), (Some(prod.clone()), None));
        let row = update(&transaction, to(2)).await.unwrap().unwrap();
        transaction.commit().await.unwrap();
        assert_eq!((row.function_version, row.canary_version), (2, prod.canary_version));
        assert!(row.updated_at > prod.updated_at);
        let taken = update(&db.writer(), to(0)).await.unwrap_err().to_string();
        let columns = "['project_id', 'function_id', 'function_version']";
        assert_eq!(taken, format!("Duplicate entry for function_aliases: {columns}"));

        assert!(delete(&db.writer(), &prod.id).await.unwrap());
        assert!(!delete(&db.writer(), &prod.id).await.unwrap());
        assert_eq!(update(&db.writer(), to(3)).await.unwrap(), None);
        assert_eq!(find(db.reader(), &project(), "test").await.unwrap(), Some(test));
    }

    #[tokio::test]
    async fn the_guards_of_an_alias_see_what_calls_it_by_name() {
        let (db, function) = one().await;
        let job = |status, project: &str, alias: &str| job::Model {
            project_id: project.into(),
            function_alias: Some(alias.to_owned()),
            function_id: None,
            ..testing::job(&function.id, status)
        };
        for row in [
            job(JobStatus::Running, "demo", "prod"),
            job(JobStatus::Done, "demo", "test"),
            job(JobStatus::Running, "other", "test"),
        ] {
            job::Entity::insert(row.into_active_model()).exec_without_returning(&db.writer()).await.unwrap();
        }
        for (project, alias) in [("demo", "test"), ("other", "prod")] {
            let row = webhook::Model {
                project_id: project.into(),
                function_alias: Some(alias.to_owned()),
                function_id: None,
                ..testing::webhook(&function.id)
            };
            let row = row.into_active_model();
            webhook::Entity::insert(row).exec_without_returning(&db.writer()).await.unwrap();
        }
        for (name, jobs, webhooks) in [("prod", true, false), ("test", false, true), ("Prod", false, false)] {
            assert_eq!(has_live_jobs(db.reader(), &project(), name).await.unwrap(), jobs, "{name}");
            assert_eq!(has_webhooks(db.reader(), &project(), name).await.unwrap(), webhooks, "{name}");
        }
    }
}
