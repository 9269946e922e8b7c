use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};

use super::Result;
use crate::model::trust::{Column, Entity, Model};
use crate::model::{Timestamp, TrustId, function};

pub async fn insert(db: &impl ConnectionTrait, trust: Model) -> Result<()> {
    Entity::insert(trust.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &TrustId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}

/// Says that a function has it no more.
pub async fn drop_now(db: &impl ConnectionTrait, id: &TrustId) -> Result<()> {
    Entity::update_many()
        .col_expr(Column::DroppedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(id.clone()))
        .exec(db)
        .await?;
    Ok(())
}

/// Trusts that no function has since then or longer, those first that wait longest.
pub async fn list_unused(db: &impl ConnectionTrait, before: Timestamp, limit: u64) -> Result<Vec<Model>> {
    let used = Query::select()
        .column(function::Column::TrustId)
        .from(function::Entity)
        .and_where(function::Column::TrustId.is_not_null())
        .to_owned();
    let unused = Entity::find()
        .filter(Column::DroppedAt.lt(before))
        .filter(Expr::col(Column::Id).not_in_subquery(used));
    Ok(unused.order_by_asc(Column::DroppedAt).limit(limit).all(db).await?)
}

/// Forgets a trust; `false` where it is forgotten already.
pub async fn delete(db: &impl ConnectionTrait, id: &TrustId) -> Result<bool> {
    Ok(Entity::delete_by_id(id.clone()).exec(db).await?.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{database, function, project, runtime};
    use crate::db::{functions, runtimes};
    #[tokio::test]
    async fn a_trust_is_unused_once_no_function_has_it() {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        let trust = |id: TrustId, at| Model {
            id,
            project_id: project(),
            user_id: "u".to_owned(),
            created_at: Timestamp(0),
            dropped_at: Timestamp(at),
        };
        let used = trust(function.trust_id.clone().unwrap(), 1);
        let older = trust("t2".into(), 2);
        let newer = trust("t3".into(), 3);
        for trust in [&newer, &used, &older] {
            insert(&db.writer(), trust.clone()).await.unwrap();
        }
        let late = Timestamp(4);
        assert_eq!(list_unused(db.reader(), Timestamp(3), 9).await.unwrap(), std::slice::from_ref(&older));
        assert_eq!(list_unused(db.reader(), late, 9).await.unwrap(), [older.clone(), newer.clone()]);
        assert_eq!(list_unused(db.reader(), late, 1).await.unwrap(), std::slice::from_ref(&older));
        assert_eq!(find(db.reader(), &used.id).await.unwrap(), Some(used.clone()));

        let transaction = db.begin().await.unwrap();
        functions::delete(&transaction, &function.id).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(list_unused(db.reader(), late, 1).await.unwrap(), std::slice::from_ref(&used));
        drop_now(&db.writer(), &used.id).await.unwrap();
        assert_eq!(list_unused(db.reader(), late, 1).await.unwrap(), std::slice::from_ref(&older));
        assert!(delete(&db.writer(), &used.id).await.unwrap());
        assert!(!delete(&db.writer(), &used.id).await.unwrap());
    }
}
