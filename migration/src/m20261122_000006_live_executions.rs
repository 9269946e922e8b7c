//! Indexes of executions that hold only those that have not ended, where these alone are asked for: the end of
//! a call is then written into three of them less. No data goes: a program of an earlier release finds the same
//! by other indexes.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use Executions as E;
        // What an engine runs is found by its status.
        drop_index(manager, "ix_executions_engine").await?;
        // MySQL's have no condition.
        if manager.get_database_backend() == DbBackend::MySql {
            return Ok(());
        }
        let has_not_ended = Expr::col(E::Status).is_in(["pending", "running"]);
        let indexes = [
            ("ix_executions_deadline", vec![E::DeadlineAt], Expr::col(E::DeadlineAt).is_not_null()),
            ("ix_executions_project_status", vec![E::ProjectId, E::Sync], has_not_ended),
        ];
        for (name, columns, condition) in indexes {
            drop_index(manager, name).await?;
            let mut index = Index::create();
            index.name(name).table(E::Table).and_where(condition);
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

/// MySQL commits each of these by itself, so that a run that was cut off has dropped some.
async fn drop_index(manager: &SchemaManager<'_>, name: &str) -> Result<(), DbErr> {
    if manager.has_index(Executions::Table.to_string(), name).await? {
        manager.drop_index(Index::drop().name(name).table(Executions::Table).to_owned()).await?;
    }
    Ok(())
}

#[derive(DeriveIden, Clone, Copy)]
enum Executions {
    Table,
    DeadlineAt,
    ProjectId,
    Status,
    Sync,
}
