//! Parts of a list, and its order. Rows are found by what comes after the last one, so that the thousandth
//! part costs what the first does, and what is written meanwhile moves nothing.

use sea_orm::sea_query::{Expr, ExprTrait, Func, IntoCondition};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect,
    Select, Value,
};

use super::{Error, Result};
use crate::model::{alias, execution, function, job, runtime, version, webhook};

/// A table that is listed.
pub trait Listed: EntityTrait<Model: Send + Sync> {
    /// What it may be sorted by. The first is the order where none is named.
    const KEYS: &'static [Key<Self>];
    const ID: Self::Column;

    fn id(row: &Self::Model) -> &str;
}

/// Something to sort by. What has no value comes first.
#[derive(Debug)]
pub struct Key<E: EntityTrait> {
    pub name: &'static str,
    column: fn() -> Expr,
    value: fn(&E::Model) -> Value,
}

/// What a caller asks of a list beside its filters.
#[derive(Debug)]
pub struct Page<E: Listed> {
    /// `None` for all.
    pub limit: Option<u64>,
    /// The id of the last row before this part.
    pub marker: Option<String>,
    pub key: &'static Key<E>,
    pub descending: bool,
}

impl<E: Listed> Default for Page<E> {
    fn default() -> Self {
        Self { limit: None, marker: None, key: &E::KEYS[0], descending: false }
    }
}

impl<E: Listed> Clone for Page<E> {
    fn clone(&self) -> Self {
        Self { marker: self.marker.clone(), ..*self }
    }
}

/// A place in a list: right after a row, which need not be there any more.
#[derive(Debug, Clone)]
pub struct Place {
    value: Value,
    id: String,
}

impl<E: Listed> Page<E> {
    /// Whether it is by the key of a list that names none, in either direction.
    pub fn is_by_default(&self) -> bool {
        self.key.name == E::KEYS[0].name
    }

    pub fn after(&self, row: &E::Model) -> Place {
        Place { value: (self.key.value)(row), id: E::id(row).to_owned() }
    }
}

/// The rows of `visible` that pass `filters`, as `page` says. The marker may be any row that is visible.
pub(super) async fn rows<E: Listed>(
    db: &impl ConnectionTrait,
    visible: Select<E>,
    filters: Condition,
    page: &Page<E>,
) -> Result<Vec<E::Model>> {
    let place = match &page.marker {
        None => None,
        // Not every database takes the question.
        Some(marker) if marker.contains('\0') => return Err(Error::NoSuchMarker(marker.clone())),
        Some(marker) => {
            let row = visible.clone().filter(E::ID.eq(marker.as_str())).one(db).await?;
            let row = row.ok_or_else(|| Error::NoSuchMarker(marker.clone()))?;
            Some(page.after(&row))
        }
    };
    rows_after(db, visible.filter(filters), place.as_ref(), page).await
}

/// As [`rows`], from a place that is known.
pub(super) async fn rows_after<E: Listed>(
    db: &impl ConnectionTrait,
    query: Select<E>,
    place: Option<&Place>,
    page: &Page<E>,
) -> Result<Vec<E::Model>> {
    Ok(after(query, place, page).limit(page.limit).all(db).await?)
}

/// What follows a place, in order.
pub(super) fn after<E: Listed>(mut query: Select<E>, place: Option<&Place>, page: &Page<E>) -> Select<E> {
    let key = page.key.column;
    if let Some(Place { value, id }) = place {
        let (id, value) = (id.as_str(), value.clone());
        let (beyond, further) = match page.descending {
            false => (key().gt(value.clone()), E::ID.gt(id)),
            true => (key().lt(value.clone()), E::ID.lt(id)),
        };
        // Said once more as a range, which databases find in an index.
        let from = if page.descending { key().lte(value.clone()) } else { key().gte(value.clone()) };
        query = query.filter(from).filter(beyond.or(key().eq(value).and(further)));
    }
    let order = if page.descending { Order::Desc } else { Order::Asc };
    query.order_by(key(), order.clone()).order_by(E::ID, order)
}

/// The condition on a column, where there is one.
pub(super) fn on<C: ColumnTrait>(filter: Option<&super::Filter>, column: C) -> Condition {
    filter.map_or_else(Condition::all, |filter| filter.on(column)).into_condition()
}

/// Defines how a table is listed: its keys, each with a column and what a row has there.
macro_rules! listed {
    ($($table:ident: $($name:literal $column:ident $kind:ident),+;)+) => {
        $(impl Listed for $table::Entity {
            const KEYS: &'static [Key<Self>] = &[
                $(Key {
                    name: $name,
                    column: || listed!(@column $kind $table::Column::$column),
                    value: |row| listed!(@value $kind $table $column row),
                }),+
            ];
            const ID: Self::Column = $table::Column::Id;

            fn id(row: &Self::Model) -> &str {
                row.id.as_ref()
            }
        })+
    };
    (@column time $column:expr) => { Expr::col($column.as_column_ref()) };
    (@column number $column:expr) => { Expr::col($column.as_column_ref()) };
    (@column text $column:expr) => { Expr::col($column.as_column_ref()) };
    (@column maybe_time $column:expr) => {
        Expr::expr(Func::coalesce([Expr::col($column.as_column_ref()), Expr::val(i64::MIN)]))
    };
    (@column maybe_text $column:expr) => {
        Expr::expr(Func::coalesce([Expr::col($column.as_column_ref()), Expr::val("")]))
    };
    (@value time $table:ident $column:ident $row:ident) => {
        sea_orm::ModelTrait::get($row, $table::Column::$column)
    };
    (@value number $table:ident $column:ident $row:ident) => {
        sea_orm::ModelTrait::get($row, $table::Column::$column)
    };
    (@value text $table:ident $column:ident $row:ident) => {
        sea_orm::ModelTrait::get($row, $table::Column::$column)
    };
    (@value maybe_time $table:ident $column:ident $row:ident) => {
        match sea_orm::ModelTrait::get($row, $table::Column::$column) {
            Value::BigInt(None) => i64::MIN.into(),
            value => value,
        }
    };
    (@value maybe_text $table:ident $column:ident $row:ident) => {
        match sea_orm::ModelTrait::get($row, $table::Column::$column) {
            Value::String(None) => "".into(),
            value => value,
        }
    };
}

listed! {
    runtime: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time, "name" Name maybe_text, "status" Status text;
    function: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time, "name" Name maybe_text;
    version: "version_number" VersionNumber number, "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time;
    alias: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time, "name" Name text;
    execution: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time, "status" Status text;
    job: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time, "name" Name maybe_text,
        "status" Status text, "next_execution_time" NextExecutionTime time;
    webhook: "created_at" CreatedAt time, "updated_at" UpdatedAt maybe_time;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{
        TestDb, alias as new_alias, database, function as new_function, own, runtime as new_runtime,
    };
    use crate::db::{aliases, functions, runtimes, within};
    use crate::model::{RuntimeId, Timestamp};

    async fn some(names: &[Option<&str>]) -> TestDb {
        let db = database().await;
        let runtime = new_runtime();
        runtimes::insert(&db.writer(), runtime.clone()).await.unwrap();
        for (at, name) in names.iter().enumerate() {
            let row = function::Model {
                name: name.map(str::to_owned),
                created_at: Timestamp(i64::try_from(at / 2).unwrap()),
                updated_at: (at % 2 == 1).then_some(Timestamp(5)),
                ..new_function(&runtime.id)
            };
            functions::insert(&db.writer(), row).await.unwrap();
        }
        db
    }

    async fn listed(db: &TestDb, page: &Page<function::Entity>) -> Vec<function::Model> {
        let visible = function::Entity::find().filter(within(&own(), function::Column::ProjectId));
        rows(db.reader(), visible, Condition::all(), page).await.unwrap()
    }

    #[tokio::test]
    async fn parts_of_a_list_are_the_list_in_any_order() {
        let db = some(&[Some("b"), None, Some("a"), Some("b"), None, Some("ä"), Some("c")]).await;
        for key in function::Entity::KEYS {
            for descending in [false, true] {
                let all = listed(&db, &Page { key, descending, ..Page::default() }).await;
                assert_eq!(all.len(), 7);
                let mut found = Vec::new();
                let mut page = Page { limit: Some(2), key, descending, ..Page::default() };
                loop {
                    let part = listed(&db, &page).await;
                    let Some(last) = part.last() else { break };
                    assert!(part.len() <= 2);
                    page.marker = Some(last.id.to_string());
                    found.extend(part);
                }
                assert_eq!(found, all, "{} {descending}", key.name);
            }
        }
        let names = |rows: Vec<function::Model>| -> Vec<_> { rows.into_iter().map(|row| row.name).collect() };
        let key = function::Entity::KEYS.iter().find(|key| key.name == "name").unwrap();
        let first = listed(&db, &Page { key, limit: Some(3), ..Page::default() }).await;
        assert_eq!(names(first), [None, None, Some("a".to_owned())]);
    }

    #[tokio::test]
    async fn a_marker_is_a_row_that_the_caller_sees() {
        let db = some(&[None]).await;
        let visible = || function::Entity::find().filter(within(&own(), function::Column::ProjectId));
        let page = Page { marker: Some("f00".to_owned()), ..Page::default() };
        let refused = rows(db.reader(), visible(), Condition::all(), &page).await.unwrap_err();
        assert!(matches!(&refused, Error::NoSuchMarker(marker) if marker == "f00"), "{refused:?}");

        let stranger = function::Model { project_id: "other".into(), ..new_function(&RuntimeId::random()) };
        let stranger = function::Model { runtime_id: None, ..stranger };
        functions::insert(&db.writer(), stranger.clone()).await.unwrap();
        let page = Page { marker: Some(stranger.id.to_string()), ..Page::default() };
        assert!(rows(db.reader(), visible(), Condition::all(), &page).await.is_err());
    }

    #[tokio::test]
    async fn a_place_outlives_its_row() {
        let db = some(&[Some("b")]).await;
        let function = listed(&db, &Page::default()).await.remove(0);
        for (number, name) in ["x", "y", "z"].into_iter().enumerate() {
            let version = i32::try_from(number).unwrap();
            let row = alias::Model { created_at: Timestamp(1), ..new_alias(&function, name, version) };
            aliases::insert(&db.writer(), row).await.unwrap();
        }
        let all = || alias::Entity::find();
        let page = Page::<alias::Entity> { limit: Some(1), ..Page::default() };
        let first = rows_after(db.reader(), all(), None, &page).await.unwrap().remove(0);
        let place = page.after(&first);
        alias::Entity::delete_by_id(first.id.clone()).exec(&db.writer()).await.unwrap();
        let page = Page { limit: None, ..page };
        let rest = rows_after(db.reader(), all(), Some(&place), &page).await.unwrap();
        assert_eq!(rest.len(), 2);
        assert!(rest.iter().all(|row| row.id > first.id));
    }
}
