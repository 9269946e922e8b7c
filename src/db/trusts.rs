use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::Result;
use crate::model::trust::{Column, Entity, Model};
use crate::model::{FunctionId, Timestamp, TrustId, function, version};

pub async fn insert(db: &impl ConnectionTrait, trust: Model) -> Result<()> {
    Entity::insert(trust.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: &TrustId) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(id.clone()).one(db).await?)
}

/// Says that nobody has it any more, unless the function or a version of it does; `false` where one does.
/// Other functions never have it. In the transaction that takes it from one of them.
pub async fn drop_unless_held(
    db: &impl ConnectionTrait,
    function: &FunctionId,
    id: &TrustId,
) -> Result<bool> {
    let functions = function::Entity::find()
        .filter(function::Column::Id.eq(function.clone()))
        .filter(function::Column::TrustId.eq(id.clone()));
    let versions = version::Entity::find()
        .filter(version::Column::FunctionId.eq(function.clone()))
        .filter(version::Column::TrustId.eq(id.clone()));
    if functions.count(db).await? > 0 || versions.count(db).await? > 0 {
        return Ok(false);
    }
    Entity::update_many()
        .col_expr(Column::DroppedAt, Expr::value(Timestamp::now()))
        .filter(Column::Id.eq(id.clone()))
        .exec(db)
        .await?;
    Ok(true)
}

/// Trusts that no function and no version has since then or longer, those first that wait longest.
pub async fn list_unused(db: &impl ConnectionTrait, before: Timestamp, limit: u64) -> Result<Vec<Model>> {
    let by_functions = Query::select()
        .column(function::Column::TrustId)
        .from(function::Entity)
        .and_where(function::Column::TrustId.is_not_null())
        .to_owned();
    let by_versions = Query::select()
        .column(version::Column::TrustId)
        .from(version::Entity)
        .and_where(version::Column::TrustId.is_not_null())
        .to_owned();
    let unused = Entity::find()
        .filter(Column::DroppedAt.lt(before))
        .filter(Expr::col(Column::Id).not_in_subquery(by_functions))
        .filter(Expr::col(Column::Id).not_in_subquery(by_versions));
    Ok(unused.order_by_asc(Column::DroppedAt).limit(limit).all(db).await?)
}

/// Forgets a trust; `false` where it is forgotten already.
pub async fn delete(db: &impl ConnectionTrait, id: &TrustId) -> Result<bool> {
    Ok(Entity::delete_by_id(id.clone()).exec(db).await?.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{database, function, project, runtime, version};
    use crate::db::{functions, runtimes, versions};

    #[tokio::test]
    async fn a_trust_is_unused_once_no_function_and_no_version_has_it() {
        let db = database().await;
        let runtime = runtime();
        let function = function(&runtime.id);
        let version = version(&function, 1);
        runtimes::insert(&db.writer(), runtime).await.unwrap();
        functions::insert(&db.writer(), function.clone()).await.unwrap();
        versions::insert(&db.writer(), version.clone()).await.unwrap();
        let trust = |id: TrustId, at| Model {
            id,
            project_id: project(),
            user_id: "u".to_owned(),
            created_at: Timestamp(0),
            dropped_at: Timestamp(at),
        };
        let used = trust(function.trust_id.clone().unwrap(), 1);
        let kept = trust(version.trust_id.clone().unwrap(), 1);
        let older = trust("t2".into(), 2);
        let newer = trust("t3".into(), 3);
        for trust in [&newer, &used, &kept, &older] {
            insert(&db.writer(), trust.clone()).await.unwrap();
        }
        let late = Timestamp(4);
        let unused = async |before, limit| list_unused(db.reader(), before, limit).await.unwrap();
        assert_eq!(unused(Timestamp(3), 9).await, std::slice::from_ref(&older));
        assert_eq!(unused(late, 9).await, [older.clone(), newer.clone()]);
        assert_eq!(unused(late, 1).await, std::slice::from_ref(&older));
        assert_eq!(find(db.reader(), &used.id).await.unwrap(), Some(used.clone()));

        // Neither is dropped while one of the two has it.
        for id in [&used.id, &kept.id] {
            assert!(!drop_unless_held(&db.writer(), &function.id, id).await.unwrap());
        }
        let transaction = db.begin().await.unwrap();
        assert!(versions::delete(&transaction, &function.id, 1).await.unwrap());
        assert!(!drop_unless_held(&transaction, &function.id, &used.id).await.unwrap());
        assert!(drop_unless_held(&transaction, &function.id, &kept.id).await.unwrap());
        transaction.commit().await.unwrap();
        assert!(find(db.reader(), &kept.id).await.unwrap().unwrap().dropped_at > late);
        assert_eq!(unused(late, 9).await, [older.clone(), newer.clone()]);

        let transaction = db.begin().await.unwrap();
        functions::delete(&transaction, &function.id).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(unused(late, 1).await, std::slice::from_ref(&used));
        assert!(drop_unless_held(&db.writer(), &function.id, &used.id).await.unwrap());
        assert_eq!(unused(late, 1).await, std::slice::from_ref(&older));
        assert!(delete(&db.writer(), &used.id).await.unwrap());
        assert!(!delete(&db.writer(), &used.id).await.unwrap());
    }
}
