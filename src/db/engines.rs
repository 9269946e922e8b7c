use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use super::Result;
use crate::model::engine::{Column, Entity, Model};
use crate::model::{EngineId, Timestamp};

pub async fn register(db: &impl ConnectionTrait, engine: Model) -> Result<()> {
    Entity::insert(engine.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

/// Moves the end of the lease; `false` where the engine was removed, as one that others took for dead is.
pub async fn renew(db: &impl ConnectionTrait, id: &EngineId, lease_until: Timestamp) -> Result<bool> {
    let done = Entity::update_many()
        .col_expr(Column::LeaseUntil, Expr::value(lease_until))
        .filter(Column::Id.eq(id.clone()))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

/// Has APIs of other processes no longer ask an engine, which still runs what it has.
pub async fn withdraw(db: &impl ConnectionTrait, id: &EngineId) -> Result<()> {
    let none = Expr::value(None::<String>);
    let update = Entity::update_many().col_expr(Column::Endpoint, none).filter(Column::Id.eq(id.clone()));
    update.exec(db).await?;
    Ok(())
}

pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<Model>> {
    Ok(Entity::find().order_by_asc(Column::StartedAt).order_by_asc(Column::Id).all(db).await?)
}

pub async fn list_expired(db: &impl ConnectionTrait, now: Timestamp) -> Result<Vec<Model>> {
    Ok(Entity::find()
        .filter(Column::LeaseUntil.lt(now))
        .order_by_asc(Column::StartedAt)
        .order_by_asc(Column::Id)
        .all(db)
        .await?)
}

/// Removes an engine; `false` where it is gone already.
pub async fn remove(db: &impl ConnectionTrait, id: &EngineId) -> Result<bool> {
    Ok(Entity::delete_by_id(id.clone()).exec(db).await?.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{database, engine};

    #[tokio::test]
    async fn a_lease_ends_unless_it_is_renewed() {
        let db = database().await;
        let (one, two) = (engine(Timestamp(100)), engine(Timestamp(200)));
        register(&db.writer(), one.clone()).await.unwrap();
        register(&db.writer(), two.clone()).await.unwrap();
        let expired = async |now: i64| {
            let rows = list_expired(db.reader(), Timestamp(now)).await.unwrap();
            rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        assert_eq!(expired(100).await, []);
        assert_eq!(expired(101).await, std::slice::from_ref(&one.id));

        withdraw(&db.writer(), &one.id).await.unwrap();
        let endpoints: Vec<_> =
            list(db.reader()).await.unwrap().into_iter().map(|engine| engine.endpoint.is_some()).collect();
        assert_eq!(endpoints.iter().filter(|&&has| has).count(), 1);

        assert!(renew(&db.writer(), &one.id, Timestamp(300)).await.unwrap());
        assert_eq!(expired(201).await, std::slice::from_ref(&two.id));

        assert!(remove(&db.writer(), &two.id).await.unwrap());
        assert!(!remove(&db.writer(), &two.id).await.unwrap());
        assert!(!renew(&db.writer(), &two.id, Timestamp(400)).await.unwrap());
        assert_eq!(list(db.reader()).await.unwrap().len(), 1);
    }
}
