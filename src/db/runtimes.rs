use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder,
};

use super::{Changes, Page, Result, page, updated};
use crate::model::runtime::{ActiveModel, Column, Entity, Model};
use crate::model::{NetworkAccess, ProjectId, RuntimeId, RuntimeStatus, Timestamp};

pub async fn insert(db: &impl ConnectionTrait, runtime: Model) -> Result<()> {
    Entity::insert(runtime.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// The runtime, where it is the project's own or public. Administrators see no more than others.
pub async fn find(db: &impl ConnectionTrait, id: &RuntimeId, project: &ProjectId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).filter(visible_to(project)).one(db).await?)
}

/// The runtime, whoever asks. For the engine, not for users.
pub async fn find_any(db: &impl ConnectionTrait, id: &RuntimeId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}

pub async fn list_visible(
    db: &impl ConnectionTrait,
    project: &ProjectId,
    page: &Page<Entity>,
) -> Result<Vec<Model>> {
    page::rows(db, Entity::find().filter(visible_to(project)), Condition::all(), page).await
}

/// Every runtime. For the engine, not for users.
pub async fn list_all(db: &impl ConnectionTrait) -> Result<Vec<Model>> {
    Ok(Entity::find().order_by_asc(Column::CreatedAt).order_by_asc(Column::Id).all(db).await?)
}

/// Writes what `change` sets, and returns the row; `None` where it is gone. The status is not among it: see [`set_status`].
pub async fn update(db: &impl Changes, change: ActiveModel) -> Result<Option<Model>> {
    let change = ActiveModel { updated_at: sea_orm::Set(Some(Timestamp::now())), ..change };
    let row = updated(change.update(db).await)?;
    db.note_change();
    Ok(row)
}

/// Moves a runtime on, where its status is still one of `from`; `false` where it is not.
pub async fn set_status(
    db: &impl Changes,
    id: &RuntimeId,
    from: &[RuntimeStatus],
    to: RuntimeStatus,
    reason: Option<&str>,
) -> Result<bool> {
    let done = Entity::update_many()
        .col_expr(Column::Status, Expr::value(to))
        .col_expr(Column::StatusReason, Expr::value(reason.map(str::to_owned)))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(id.clone()))
        .filter(Column::Status.is_in(from.iter().copied()))
        .exec(db)
        .await?;
    db.note_change();
    Ok(done.rows_affected == 1)
}

/// Makes a runtime available with an image and a network that are known to work; `false` where its status is no
/// longer `from`.
pub async fn activate(
    db: &impl Changes,
    id: &RuntimeId,
    from: RuntimeStatus,
    image: &str,
    network: NetworkAccess,
    reason: Option<&str>,
) -> Result<bool> {
    let done = Entity::update_many()
        .col_expr(Column::Status, Expr::value(RuntimeStatus::Available))
        .col_expr(Column::StatusReason, Expr::value(reason.map(str::to_owned)))
        .col_expr(Column::Image, Expr::value(image))
        .col_expr(Column::ActiveImage, Expr::value(image))
        .col_expr(Column::Network, Expr::value(network))
        .col_expr(Column::ActiveNetwork, Expr::value(network))
        .col_expr(Column::UpdatedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(id.clone()))
        .filter(Column::Status.eq(from))
        .exec(db)
        .await?;
    db.note_change();
    Ok(done.rows_affected == 1)
}

/// Removes the row; `false` where it is gone already.
pub async fn delete(db: &impl Changes, id: &RuntimeId) -> Result<bool> {
    let deleted = Entity::delete_by_id(id.clone()).exec(db).await?;
    db.note_change();
    Ok(deleted.rows_affected == 1)
}

fn visible_to(project: &ProjectId) -> Condition {
    Condition::any().add(Column::ProjectId.eq(project.clone())).add(Column::IsPublic.eq(true))
}

#[cfg(test)]
mod tests {
    use sea_orm::Set;

    use super::*;
    use crate::db::testing::{database, project, runtime};

    #[tokio::test]
    async fn a_private_runtime_is_seen_by_its_own_project_only() {
        let db = database().await;
        let public = runtime();
        let private = Model { is_public: false, ..runtime() };
        let other = ProjectId::from("other");
        insert(&db.writer(), public.clone()).await.unwrap();
        insert(&db.writer(), private.clone()).await.unwrap();

        for (id, asking, seen) in [
            (&public.id, &other, true),
            (&public.id, &project(), true),
            (&private.id, &other, false),
            (&private.id, &project(), true),
        ] {
            assert_eq!(find(db.reader(), id, asking).await.unwrap().is_some(), seen);
        }
        assert_eq!(list_visible(db.reader(), &other, &Page::default()).await.unwrap(), [public]);
        assert_eq!(list_visible(db.reader(), &project(), &Page::default()).await.unwrap().len(), 2);
        assert_eq!(list_all(db.reader()).await.unwrap().len(), 2);
        assert_eq!(find_any(db.reader(), &private.id).await.unwrap(), Some(private));
    }

    #[tokio::test]
    async fn a_status_moves_only_from_where_it_was_said_to_be() {
        let db = database().await;
        let row = Model { status: RuntimeStatus::Creating, status_reason: None, ..runtime() };
        insert(&db.writer(), row.clone()).await.unwrap();
        let start = [RuntimeStatus::Creating, RuntimeStatus::Upgrading];

        let moved = set_status(&db.writer(), &row.id, &start, RuntimeStatus::Error, Some("no image")).await;
        assert!(moved.unwrap());
        let again = set_status(&db.writer(), &row.id, &start, RuntimeStatus::Available, None).await;
        assert!(!again.unwrap());

        let found = find_any(db.reader(), &row.id).await.unwrap().unwrap();
        assert_eq!(found.status, RuntimeStatus::Error);
        assert_eq!(found.status_reason.as_deref(), Some("no image"));
    }

    #[tokio::test]
    async fn a_failed_upgrade_leaves_the_image_that_works() {
        let db = database().await;
        let row = Model { status: RuntimeStatus::Upgrading, image: "new".into(), ..runtime() };
        insert(&db.writer(), row.clone()).await.unwrap();
        let activate = async |from| {
            activate(&db.writer(), &row.id, from, "old", NetworkAccess::None, Some("it did not start"))
                .await
                .unwrap()
        };
        assert!(!activate(RuntimeStatus::Creating).await);
        assert!(activate(RuntimeStatus::Upgrading).await);
        assert!(!activate(RuntimeStatus::Upgrading).await);
        let found = find_any(db.reader(), &row.id).await.unwrap().unwrap();
        assert_eq!((found.status, found.image.as_str()), (RuntimeStatus::Available, "old"));
        assert_eq!(found.active_image.as_deref(), Some("old"));
    }

    #[tokio::test]
    async fn an_update_writes_what_is_set_and_nothing_else() {
        let db = database().await;
        let row = runtime();
        insert(&db.writer(), row.clone()).await.unwrap();
        let change = || ActiveModel {
            id: Set(row.id.clone()),
            name: Set(None),
            image: Set("taibai/python3:2".into()),
            ..Default::default()
        };
        let changed = update(&db.writer(), change()).await.unwrap().unwrap();
        assert!(changed.updated_at > row.updated_at);
        let expected = Model {
            name: None,
            image: "taibai/python3:2".into(),
            updated_at: changed.updated_at,
            ..row.clone()
        };
        assert_eq!(changed, expected);

        assert!(delete(&db.writer(), &row.id).await.unwrap());
        assert!(!delete(&db.writer(), &row.id).await.unwrap());
        assert_eq!(update(&db.writer(), change()).await.unwrap(), None);
    }
}
