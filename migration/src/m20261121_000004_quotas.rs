//! What quotas need: a row per project to be locked, and indexes by which is counted what it has.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut locks = Table::create();
        locks
            .table(QuotaLocks::Table)
            .if_not_exists()
            .col(string_len(QuotaLocks::ProjectId, 80).primary_key());
        if manager.get_database_backend() == DbBackend::MySql {
            // MariaDB and MySQL both have this one.
            locks.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
        }
        manager.create_table(locks.take()).await?;
        for (table, name, columns) in indexes() {
            // MySQL commits each of these by itself, so that a run that was cut off leaves some.
            if manager.has_index(table.to_string(), name).await? {
                continue;
            }
            let mut index = Index::create();
            index.name(name).table(table);
            for column in columns {
                index.col(column);
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

/// Table, name and columns.
fn indexes() -> Vec<(DynIden, &'static str, Vec<DynIden>)> {
    vec![
        (
            Executions::Table.into_iden(),
            "ix_executions_project_status",
            vec![
                Executions::ProjectId.into_iden(),
                Executions::Status.into_iden(),
                Executions::Sync.into_iden(),
            ],
        ),
        (
            Jobs::Table.into_iden(),
            "ix_jobs_project",
            vec![Jobs::ProjectId.into_iden(), Jobs::Status.into_iden()],
        ),
        (Webhooks::Table.into_iden(), "ix_webhooks_project", vec![Webhooks::ProjectId.into_iden()]),
    ]
}

#[derive(DeriveIden)]
enum QuotaLocks {
    Table,
    ProjectId,
}

#[derive(DeriveIden)]
enum Executions {
    Table,
    ProjectId,
    Status,
    Sync,
}

#[derive(DeriveIden)]
enum Jobs {
    Table,
    ProjectId,
    Status,
}

#[derive(DeriveIden)]
enum Webhooks {
    Table,
    ProjectId,
}
