//! The history of the schema. A migration is never changed once it is released and uses no entity:
//! entities follow today's code, history does not.
//!
//! A migration adds in one release and removes in a later one, since the old code still runs while
//! it is applied.

use sea_orm_migration::prelude::*;

mod m20260101_000001_first;
mod m20261121_000002_versions_jobs_webhooks;
mod m20261121_000003_network;
mod m20261121_000004_quotas;
mod m20261122_000005_usage;
mod m20261122_000006_live_executions;

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20260101_000001_first::Migration),
            Box::new(m20261121_000002_versions_jobs_webhooks::Migration),
            Box::new(m20261121_000003_network::Migration),
            Box::new(m20261121_000004_quotas::Migration),
            Box::new(m20261122_000005_usage::Migration),
            Box::new(m20261122_000006_live_executions::Migration),
        ]
    }
}
