//! Runtimes and functions that say for themselves that their workers have no network.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{string_len, string_len_null};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// Looks before it adds, as MySQL keeps what was done before a failure.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in
            [Runtimes::Table.into_iden(), Functions::Table.into_iden(), FunctionVersions::Table.into_iden()]
        {
            if manager.has_column(table.to_string(), Column::Network.to_string()).await? {
                continue;
            }
            // With a default, for the rows that are there and for those that the release before writes.
            let column = string_len(Column::Network, 16).default("default").take();
            manager.alter_table(Table::alter().table(table).add_column(column).take()).await?;
        }
        if !manager.has_column(Runtimes::Table.to_string(), Runtimes::ActiveNetwork.to_string()).await? {
            let column = string_len_null(Runtimes::ActiveNetwork, 16);
            manager.alter_table(Table::alter().table(Runtimes::Table).add_column(column).take()).await?;
        }
        Ok(())
    }

    /// All or nothing, where the database can.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

#[derive(DeriveIden)]
enum Column {
    Network,
}

#[derive(DeriveIden)]
enum Runtimes {
    Table,
    ActiveNetwork,
}

#[derive(DeriveIden)]
enum Functions {
    Table,
}

#[derive(DeriveIden)]
enum FunctionVersions {
    Table,
}
