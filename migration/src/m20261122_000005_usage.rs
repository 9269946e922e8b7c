//! What executions took, and whether their log was cut.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer_null, boolean_null};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// Looks before it adds, as MySQL keeps what was done before a failure.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use Executions as E;
        let numbers = [E::QueuedUs, E::StartingUs, E::RunUs, E::CpuUs, E::PeakMemoryBytes];
        let columns = numbers.into_iter().map(|name| (name, big_integer_null(name)));
        for (name, column) in columns.chain([(E::LogTruncated, boolean_null(E::LogTruncated))]) {
            if manager.has_column(E::Table.to_string(), name.to_string()).await? {
                continue;
            }
            manager.alter_table(Table::alter().table(E::Table).add_column(column).take()).await?;
        }
        Ok(())
    }

    /// All or nothing, where the database can.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

#[derive(DeriveIden, Clone, Copy)]
enum Executions {
    Table,
    QueuedUs,
    StartingUs,
    RunUs,
    CpuUs,
    PeakMemoryBytes,
    LogTruncated,
}
