use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QuerySelect,
};

use super::{Filter, Page, Result, Transaction, page, updated, within};
use crate::model::webhook::{ActiveModel, Column, Entity, Model};
use crate::model::{Scope, Timestamp, WebhookId};

pub async fn insert(db: &impl ConnectionTrait, webhook: Model) -> Result<()> {
    Entity::insert(webhook.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &WebhookId, scope: &Scope) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId)).one(db).await?)
}

/// As [`find`], in a transaction that will write what follows from the row: nobody else changes it
/// until the end.
pub async fn find_for_update(db: &Transaction, id: &WebhookId, scope: &Scope) -> Result<Option<Model>> {
    let query = Entity::find_by_id(id.clone()).filter(within(scope, Column::ProjectId));
    Ok(query.lock_exclusive().one(db).await?)
}

/// The webhook that a URL means, whoever asks. A row of the release before keys has its id for one.
pub async fn find_by_key(db: &impl ConnectionTrait, key: &str) -> Result<Option<Model>> {
    let unkeyed = Condition::all().add(Column::UrlKey.is_null()).add(Column::Id.eq(key));
    let named = Condition::any().add(Column::UrlKey.eq(key)).add(unkeyed);
    Ok(Entity::find().filter(named).one(db).await?)
}

/// From the oldest.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    project_id: Option<&Filter>,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    let visible = Entity::find().filter(within(scope, Column::ProjectId));
    page::rows(db, visible, page::on(project_id, Column::ProjectId), page).await
}

/// Writes what `change` sets, and returns the row; `None` where it is gone.
pub async fn update(db: &impl ConnectionTrait, change: ActiveModel) -> Result<Option<Model>> {
    let change = ActiveModel { updated_at: sea_orm::Set(Some(Timestamp::now())), ..change };
    updated(change.update(db).await)
}

/// Removes a webhook; `false` where there is none.
pub async fn delete(db: &impl ConnectionTrait, id: &WebhookId, scope: &Scope) -> Result<bool> {
    let done = Entity::delete_many()
        .filter(Column::Id.eq(id.clone()))
        .filter(within(scope, Column::ProjectId))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use sea_orm::Set;

    use super::*;
    use crate::db::testing::{TestDb, database, function, own, runtime, stranger, webhook};
    use crate::db::{Error, functions, runtimes};

    async fn one() -> (TestDb, Model) {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        let webhook = webhook(&function.id);
        insert(&db.writer(), webhook.clone()).await.unwrap();
        (db, webhook)
    }

    #[tokio::test]
    async fn another_projects_webhook_is_not_there() {
        let (db, webhook) = one().await;
        assert_eq!(find(db.reader(), &webhook.id, &stranger()).await.unwrap(), None);
        assert_eq!(find(db.reader(), &webhook.id, &own()).await.unwrap(), Some(webhook.clone()));
        assert_eq!(list(db.reader(), &stranger(), None, &Page::default()).await.unwrap(), []);
        assert_eq!(
            list(db.reader(), &own(), None, &Page::default()).await.unwrap(),
            std::slice::from_ref(&webhook)
        );
        let filter = Filter::parse("neq:demo");
        assert_eq!(list(db.reader(), &Scope::All, Some(&filter), &Page::default()).await.unwrap(), []);
        assert!(!delete(&db.writer(), &webhook.id, &stranger()).await.unwrap());
        assert!(delete(&db.writer(), &webhook.id, &own()).await.unwrap());
        assert!(!delete(&db.writer(), &webhook.id, &own()).await.unwrap());
    }

    #[tokio::test]
    async fn a_url_means_one_webhook_and_an_older_one_none() {
        let (db, webhook) = one().await;
        let key = webhook.url_key.clone().unwrap();
        let older = Model { id: WebhookId::random(), url_key: None, ..webhook.clone() };
        insert(&db.writer(), older.clone()).await.unwrap();
        let found = async |key: &str| find_by_key(db.reader(), key).await.unwrap().map(|row| row.id);
        assert_eq!(found(&key).await, Some(webhook.id.clone()));
        assert_eq!(found(older.id.as_str()).await, Some(older.id.clone()));
        assert_eq!(found(webhook.id.as_str()).await, None, "it has another key");
        assert_eq!(found("").await, None);

        let rotate = |id: &WebhookId, key: &str| ActiveModel {
            id: Set(id.clone()),
            url_key: Set(Some(key.to_owned())),
            ..Default::default()
        };
        let transaction = db.begin().await.unwrap();
        assert!(find_for_update(&transaction, &webhook.id, &own()).await.unwrap().is_some());
        let changed = update(&transaction, rotate(&webhook.id, "new")).await.unwrap().unwrap();
        transaction.commit().await.unwrap();
        let expected =
            Model { url_key: Some("new".into()), updated_at: changed.updated_at, ..webhook.clone() };
        assert_eq!(changed, expected);
        assert_eq!((found(&key).await, found("new").await), (None, Some(webhook.id)));
        let error = update(&db.writer(), rotate(&older.id, "new")).await.unwrap_err();
        assert!(matches!(error, Error::Duplicate { .. }), "{error:?}");
    }
}
