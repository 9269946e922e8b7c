//! What versions, aliases, jobs, webhooks, image functions and deadlines need beside the first tables.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for (table, name, column) in columns(backend) {
            // MySQL commits each of these by itself, so that a run that was cut off leaves some.
            if manager.has_column(table.to_string(), &name).await? {
                continue;
            }
            manager.alter_table(Table::alter().table(table).add_column(column).take()).await?;
        }
        let mut counted = Query::update();
        counted
            .table(Functions::Table)
            .value(Functions::VersionCounter, Expr::col(Functions::LatestVersion))
            .and_where(Expr::col(Functions::VersionCounter).lt(Expr::col(Functions::LatestVersion)));
        let mut keyed = Query::update();
        keyed
            .table(Webhooks::Table)
            .value(Webhooks::UrlKey, Expr::col(Webhooks::Id))
            .and_where(Expr::col(Webhooks::UrlKey).is_null());
        for update in [counted, keyed] {
            manager.get_connection().execute(&update).await?;
        }
        for (table, name, column, unique) in indexes() {
            if manager.has_index(table.to_string(), name).await? {
                continue;
            }
            let mut index = Index::create();
            index.name(name).table(table).col(column);
            if unique {
                index.unique();
            }
            manager.create_index(index).await?;
        }
        Ok(())
    }

    /// All or nothing, where the database can.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Table, name and definition. A column that may not be null has a default, for the rows that are there
/// and for those that the release before this one still writes.
fn columns(backend: DbBackend) -> Vec<(DynIden, String, ColumnDef)> {
    fn of(table: impl IntoIden, columns: Vec<ColumnDef>) -> Vec<(DynIden, String, ColumnDef)> {
        let table = table.into_iden();
        let named = |column: ColumnDef| (table.clone(), column.get_column_name(), column);
        columns.into_iter().map(named).collect()
    }
    use {Executions as E, FunctionAliases as A, FunctionVersions as V, Functions as F, Webhooks as W};
    let long_text = |name: DynIden| long_text(backend, name);
    [
        of(
            F::Table,
            vec![
                integer(F::VersionCounter).default(0).take(),
                string_len(F::Status, 32).default("available").take(),
                long_text(F::StatusReason.into_iden()),
                string_len_null(F::ImageDigest, 400),
            ],
        ),
        of(V::Table, vec![string_len_null(V::TrustId, 80), string_len_null(V::TrustReason, 255)]),
        of(
            A::Table,
            vec![
                integer_null(A::CanaryVersion),
                integer(A::CanaryWeight).default(0).take(),
                integer_null(A::PreviousVersion),
            ],
        ),
        of(E::Table, vec![big_integer_null(E::DeadlineAt)]),
        of(Jobs::Table, vec![long_text(Jobs::StatusReason.into_iden())]),
        of(
            W::Table,
            vec![
                // Null only in rows of the release before this one, whose key is the id.
                string_len_null(W::UrlKey, 36),
                string_len(W::Mode, 16).default("async").take(),
                boolean(W::IsPublic).default(true).take(),
                string_len_null(W::Secret, 255),
            ],
        ),
    ]
    .concat()
}

/// Text of many megabytes, which MySQL's TEXT does not hold.
fn long_text(backend: DbBackend, name: DynIden) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        DbBackend::MySql => column.custom("LONGTEXT"),
        _ => column.text(),
    };
    column.null().take()
}

/// Table, name, column and whether its values are unique.
fn indexes() -> Vec<(DynIden, &'static str, DynIden, bool)> {
    vec![
        (
            FunctionVersions::Table.into_iden(),
            "ix_function_versions_trust",
            FunctionVersions::TrustId.into_iden(),
            false,
        ),
        (Webhooks::Table.into_iden(), "uq_webhooks_url_key", Webhooks::UrlKey.into_iden(), true),
        (Executions::Table.into_iden(), "ix_executions_deadline", Executions::DeadlineAt.into_iden(), false),
        (Jobs::Table.into_iden(), "ix_jobs_alias", Jobs::FunctionAlias.into_iden(), false),
        (Webhooks::Table.into_iden(), "ix_webhooks_alias", Webhooks::FunctionAlias.into_iden(), false),
    ]
}

#[derive(DeriveIden)]
enum Functions {
    Table,
    LatestVersion,
    VersionCounter,
    Status,
    StatusReason,
    ImageDigest,
}

#[derive(DeriveIden)]
enum FunctionVersions {
    Table,
    TrustId,
    TrustReason,
}

#[derive(DeriveIden)]
enum FunctionAliases {
    Table,
    CanaryVersion,
    CanaryWeight,
    PreviousVersion,
}

#[derive(DeriveIden)]
enum Executions {
    Table,
    DeadlineAt,
}

#[derive(DeriveIden)]
enum Jobs {
    Table,
    FunctionAlias,
    StatusReason,
}

#[derive(DeriveIden)]
enum Webhooks {
    Table,
    Id,
    FunctionAlias,
    UrlKey,
    Mode,
    IsPublic,
    Secret,
}
