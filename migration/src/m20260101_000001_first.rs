//! The tables of the first release.
//!
//! Times are microseconds since 1970 in a BIGINT, which the three databases agree on.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables(Dialect::of(manager).await?) {
            manager.create_table(table).await?;
        }
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

/// What differs between databases.
#[derive(Debug, Clone, Copy)]
enum Dialect {
    /// With the collation that compares text byte by byte, spaces at the end included.
    MySql(&'static str),
    Other,
}

impl Dialect {
    async fn of(manager: &SchemaManager<'_>) -> Result<Self, DbErr> {
        if manager.get_database_backend() != DbBackend::MySql {
            return Ok(Self::Other);
        }
        let question = Statement::from_string(DbBackend::MySql, "SELECT VERSION()");
        let answer = manager.get_connection().query_one_raw(question).await?;
        let version: String = answer.map_or(Ok(String::new()), |row| row.try_get_by_index(0))?;
        Ok(if version.contains("MariaDB") { Self::MARIADB } else { Self::MySql("utf8mb4_0900_bin") })
    }

    const MARIADB: Self = Self::MySql("utf8mb4_nopad_bin");
}

fn tables(backend: Dialect) -> Vec<TableCreateStatement> {
    vec![
        runtimes(backend),
        functions(backend),
        trusts(backend),
        function_versions(backend),
        function_aliases(backend),
        executions(backend),
        execution_logs(backend),
        jobs(backend),
        webhooks(backend),
        engines(backend),
    ]
}

/// A table without columns. On MySQL text is compared byte by byte, as the others do: its default
/// takes `Prod` and `prod` for the same alias, and `prod ` too.
fn table(backend: Dialect, name: impl IntoTableRef) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    if let Dialect::MySql(collation) = backend {
        table.engine("InnoDB").character_set("utf8mb4").collate(collation);
    }
    table.take()
}

/// Text of many megabytes, which MySQL's TEXT does not hold.
fn long_text(backend: Dialect, name: impl IntoIden) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        Dialect::MySql(_) => column.custom("LONGTEXT"),
        Dialect::Other => column.text(),
    };
    column.take()
}

fn id(name: impl IntoIden) -> ColumnDef {
    string_len(name, 36).primary_key().take()
}

fn runtimes(backend: Dialect) -> TableCreateStatement {
    use Runtimes as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len_null(C::Name, 255))
        .col(string_len_null(C::Description, 255))
        .col(string_len(C::Image, 255))
        .col(string_len_null(C::ActiveImage, 255))
        .col(string_len(C::Status, 32))
        .col(long_text(backend, C::StatusReason).null())
        .col(boolean(C::IsPublic))
        .col(boolean(C::Trusted))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .take()
}

fn functions(backend: Dialect) -> TableCreateStatement {
    use Functions as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len_null(C::Name, 255))
        .col(string_len_null(C::Description, 255))
        .col(string_len_null(C::RuntimeId, 36))
        .col(integer(C::Cpu))
        .col(big_integer(C::MemorySize))
        .col(integer(C::Timeout))
        .col(long_text(backend, C::Code).not_null())
        .col(string_len_null(C::PackageDigest, 64))
        .col(big_integer_null(C::PackageBytes))
        .col(string_len_null(C::ObjectEtag, 80))
        .col(string_len_null(C::Entry, 80))
        .col(big_integer(C::Count))
        .col(string_len_null(C::TrustId, 80))
        .col(string_len_null(C::TrustReason, 255))
        .col(integer(C::LatestVersion))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .foreign_key(
            ForeignKey::create()
                .name("fk_functions_runtime_id")
                .from(C::Table, C::RuntimeId)
                .to(Runtimes::Table, Runtimes::Id),
        )
        .take()
}

/// Keystone's trusts that this service holds. One that no function refers to is still to be ended, so
/// its id is no foreign key there.
fn trusts(backend: Dialect) -> TableCreateStatement {
    use Trusts as C;
    table(backend, C::Table)
        .col(string_len(C::Id, 80).primary_key())
        .col(string_len(C::ProjectId, 80))
        .col(string_len(C::UserId, 80))
        .col(big_integer(C::CreatedAt))
        .col(big_integer(C::DroppedAt))
        .take()
}

fn function_versions(backend: Dialect) -> TableCreateStatement {
    use FunctionVersions as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len(C::FunctionId, 36))
        .col(string_len_null(C::Description, 255))
        .col(integer(C::VersionNumber))
        .col(big_integer(C::Count))
        .col(string_len_null(C::RuntimeId, 36))
        .col(integer(C::Cpu))
        .col(big_integer(C::MemorySize))
        .col(integer(C::Timeout))
        .col(string_len_null(C::PackageDigest, 64))
        .col(big_integer_null(C::PackageBytes))
        .col(string_len_null(C::Entry, 80))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .foreign_key(
            ForeignKey::create()
                .name("fk_function_versions_function_id")
                .from(C::Table, C::FunctionId)
                .to(Functions::Table, Functions::Id)
                .on_delete(ForeignKeyAction::Cascade),
        )
        .foreign_key(
            ForeignKey::create()
                .name("fk_function_versions_runtime_id")
                .from(C::Table, C::RuntimeId)
                .to(Runtimes::Table, Runtimes::Id),
        )
        .index(
            Index::create()
                .name("uq_function_versions_number")
                .col(C::ProjectId)
                .col(C::FunctionId)
                .col(C::VersionNumber)
                .unique(),
        )
        .take()
}

fn function_aliases(backend: Dialect) -> TableCreateStatement {
    use FunctionAliases as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len(C::Name, 255))
        .col(string_len(C::FunctionId, 36))
        .col(integer(C::FunctionVersion).default(0))
        .col(string_len_null(C::Description, 255))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .foreign_key(
            ForeignKey::create()
                .name("fk_function_aliases_function_id")
                .from(C::Table, C::FunctionId)
                .to(Functions::Table, Functions::Id),
        )
        .index(Index::create().name("uq_function_aliases_name").col(C::ProjectId).col(C::Name).unique())
        .index(
            Index::create()
                .name("uq_function_aliases_version")
                .col(C::ProjectId)
                .col(C::FunctionId)
                .col(C::FunctionVersion)
                .unique(),
        )
        .take()
}

/// Executions outlive their function, so its id is no foreign key.
fn executions(backend: Dialect) -> TableCreateStatement {
    use Executions as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len(C::FunctionId, 36))
        .col(integer(C::FunctionVersion))
        .col(string_len_null(C::FunctionAlias, 255))
        .col(string_len_null(C::Description, 255))
        .col(string_len(C::Status, 32))
        .col(boolean(C::Sync))
        .col(long_text(backend, C::Input).null())
        .col(long_text(backend, C::Result).null())
        .col(string_len_null(C::Reason, 32))
        .col(string_len_null(C::Start, 16))
        .col(big_integer(C::Epoch))
        .col(string_len_null(C::EngineId, 36))
        .col(string_len_null(C::Worker, 64))
        .col(string_len_null(C::RequestId, 255))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .take()
}

fn execution_logs(backend: Dialect) -> TableCreateStatement {
    use ExecutionLogs as C;
    table(backend, C::Table)
        .col(id(C::ExecutionId))
        .col(long_text(backend, C::Log).not_null())
        .col(boolean(C::Truncated))
        .foreign_key(
            ForeignKey::create()
                .name("fk_execution_logs_execution_id")
                .from(C::Table, C::ExecutionId)
                .to(Executions::Table, Executions::Id)
                .on_delete(ForeignKeyAction::Cascade),
        )
        .take()
}

fn jobs(backend: Dialect) -> TableCreateStatement {
    use Jobs as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len_null(C::Name, 255))
        .col(string_len_null(C::Pattern, 255))
        .col(string_len(C::Status, 32))
        .col(big_integer_null(C::FirstExecutionTime))
        .col(big_integer(C::NextExecutionTime))
        .col(integer_null(C::Count))
        .col(string_len_null(C::FunctionId, 36))
        .col(integer_null(C::FunctionVersion))
        .col(string_len_null(C::FunctionAlias, 255))
        .col(long_text(backend, C::FunctionInput).null())
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .foreign_key(
            ForeignKey::create()
                .name("fk_jobs_function_id")
                .from(C::Table, C::FunctionId)
                .to(Functions::Table, Functions::Id),
        )
        .take()
}

fn webhooks(backend: Dialect) -> TableCreateStatement {
    use Webhooks as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::ProjectId, 80))
        .col(string_len_null(C::FunctionId, 36))
        .col(integer_null(C::FunctionVersion))
        .col(string_len_null(C::FunctionAlias, 255))
        .col(string_len_null(C::Description, 255))
        .col(big_integer(C::CreatedAt))
        .col(big_integer_null(C::UpdatedAt))
        .foreign_key(
            ForeignKey::create()
                .name("fk_webhooks_function_id")
                .from(C::Table, C::FunctionId)
                .to(Functions::Table, Functions::Id),
        )
        .take()
}

fn engines(backend: Dialect) -> TableCreateStatement {
    use Engines as C;
    table(backend, C::Table)
        .col(id(C::Id))
        .col(string_len(C::Node, 255))
        .col(string_len(C::Deployment, 255))
        .col(string_len_null(C::Endpoint, 255))
        .col(big_integer(C::StartedAt))
        .col(big_integer(C::LeaseUntil))
        .take()
}

/// Table, name and columns. Only MySQL indexes a foreign key by itself.
fn indexes() -> Vec<(DynIden, &'static str, Vec<DynIden>)> {
    fn index<T: IntoIden, const N: usize>(
        table: T,
        name: &'static str,
        columns: [T; N],
    ) -> (DynIden, &'static str, Vec<DynIden>) {
        (table.into_iden(), name, columns.into_iter().map(IntoIden::into_iden).collect())
    }
    use {Executions as E, FunctionAliases as A, FunctionVersions as V, Functions as F};
    vec![
        index(F::Table, "ix_functions_project", [F::ProjectId, F::CreatedAt, F::Id]),
        index(F::Table, "ix_functions_runtime", [F::RuntimeId]),
        index(F::Table, "ix_functions_package", [F::PackageDigest]),
        index(V::Table, "ix_function_versions_function", [V::FunctionId, V::VersionNumber]),
        index(V::Table, "ix_function_versions_runtime", [V::RuntimeId]),
        index(V::Table, "ix_function_versions_package", [V::PackageDigest]),
        index(A::Table, "ix_function_aliases_function", [A::FunctionId]),
        index(E::Table, "ix_executions_project", [E::ProjectId, E::CreatedAt, E::Id]),
        index(E::Table, "ix_executions_function", [E::FunctionId]),
        index(E::Table, "ix_executions_status", [E::Status, E::CreatedAt]),
        index(E::Table, "ix_executions_engine", [E::EngineId]),
        index(Jobs::Table, "ix_jobs_function", [Jobs::FunctionId]),
        index(Jobs::Table, "ix_jobs_due", [Jobs::Status, Jobs::NextExecutionTime]),
        index(Webhooks::Table, "ix_webhooks_function", [Webhooks::FunctionId]),
    ]
}

#[derive(DeriveIden)]
enum Runtimes {
    Table,
    Id,
    ProjectId,
    Name,
    Description,
    Image,
    ActiveImage,
    Status,
    StatusReason,
    IsPublic,
    Trusted,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Functions {
    Table,
    Id,
    ProjectId,
    Name,
    Description,
    RuntimeId,
    Cpu,
    MemorySize,
    Timeout,
    Code,
    PackageDigest,
    PackageBytes,
    ObjectEtag,
    Entry,
    Count,
    TrustId,
    TrustReason,
    LatestVersion,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Trusts {
    Table,
    Id,
    ProjectId,
    UserId,
    CreatedAt,
    DroppedAt,
}

#[derive(DeriveIden)]
enum FunctionVersions {
    Table,
    Id,
    ProjectId,
    FunctionId,
    Description,
    VersionNumber,
    Count,
    RuntimeId,
    Cpu,
    MemorySize,
    Timeout,
    PackageDigest,
    PackageBytes,
    Entry,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum FunctionAliases {
    Table,
    Id,
    ProjectId,
    Name,
    FunctionId,
    FunctionVersion,
    Description,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Executions {
    Table,
    Id,
    ProjectId,
    FunctionId,
    FunctionVersion,
    FunctionAlias,
    Description,
    Status,
    Sync,
    Input,
    Result,
    Reason,
    Start,
    Epoch,
    EngineId,
    Worker,
    RequestId,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum ExecutionLogs {
    Table,
    ExecutionId,
    Log,
    Truncated,
}

#[derive(DeriveIden)]
enum Jobs {
    Table,
    Id,
    ProjectId,
    Name,
    Pattern,
    Status,
    FirstExecutionTime,
    NextExecutionTime,
    Count,
    FunctionId,
    FunctionVersion,
    FunctionAlias,
    FunctionInput,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Webhooks {
    Table,
    Id,
    ProjectId,
    FunctionId,
    FunctionVersion,
    FunctionAlias,
    Description,
    CreatedAt,
    UpdatedAt,
}

#[derive(DeriveIden)]
enum Engines {
    Table,
    Id,
    Node,
    Deployment,
    Endpoint,
    StartedAt,
    LeaseUntil,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mysql_holds_long_texts_and_tells_cases_apart() {
        let sql: Vec<String> =
            tables(Dialect::MARIADB).iter().map(|table| table.to_string(MysqlQueryBuilder)).collect();
        for sql in &sql {
            assert!(sql.contains("COLLATE=utf8mb4_nopad_bin"), "{sql}");
            assert!(!sql.contains(" text"), "64 KiB: {sql}");
        }
        for column in ["`code`", "`input`", "`result`", "`log`"] {
            let long = format!("{column} LONGTEXT");
            assert!(sql.iter().any(|sql| sql.contains(&long)), "{long}");
        }
    }
}
