//! What an import asks of the tables that it writes into, and the rows that it adds.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QuerySelect,
};

use super::Result;
use crate::model::{alias, function, job, runtime, version, webhook};

/// What is there already, of all projects.
#[derive(Debug, Default)]
pub struct Present {
    pub runtimes: HashSet<String>,
    /// The project of each.
    pub functions: HashMap<String, String>,
    pub versions: HashSet<String>,
    /// Function and number.
    pub numbers: HashSet<(String, i32)>,
    pub aliases: HashSet<String>,
    /// Project and name.
    pub names: HashSet<(String, String)>,
    /// Project, function and version.
    pub targets: HashSet<(String, String, i32)>,
    pub jobs: HashSet<String>,
    pub webhooks: HashSet<String>,
}

pub async fn present(db: &impl ConnectionTrait) -> Result<Present> {
    let functions: Vec<(String, String)> = function::Entity::find()
        .select_only()
        .columns([function::Column::Id, function::Column::ProjectId])
        .into_tuple()
        .all(db)
        .await?;
    let versions: Vec<(String, String, i32)> = version::Entity::find()
        .select_only()
        .columns([version::Column::Id, version::Column::FunctionId, version::Column::VersionNumber])
        .into_tuple()
        .all(db)
        .await?;
    let aliases = alias::Entity::find().all(db).await?;
    Ok(Present {
        runtimes: ids::<runtime::Entity>(db, runtime::Column::Id).await?,
        functions: functions.into_iter().collect(),
        versions: versions.iter().map(|(id, ..)| id.clone()).collect(),
        numbers: versions.into_iter().map(|(_, function, number)| (function, number)).collect(),
        aliases: aliases.iter().map(|alias| alias.id.clone()).collect(),
        names: aliases.iter().map(|alias| (alias.project_id.0.clone(), alias.name.clone())).collect(),
        targets: aliases
            .into_iter()
            .map(|alias| (alias.project_id.0, alias.function_id.0, alias.function_version))
            .collect(),
        jobs: ids::<job::Entity>(db, job::Column::Id).await?,
        webhooks: ids::<webhook::Entity>(db, webhook::Column::Id).await?,
    })
}

async fn ids<E: EntityTrait>(db: &impl ConnectionTrait, id: E::Column) -> Result<HashSet<String>> {
    let ids: Vec<String> = E::find().select_only().column(id).into_tuple().all(db).await?;
    Ok(ids.into_iter().collect())
}

/// Adds one row of any table.
pub async fn insert<M, A>(db: &impl ConnectionTrait, row: M) -> Result<()>
where
    M: IntoActiveModel<A>,
    A: ActiveModelTrait + ActiveModelBehavior,
{
    A::Entity::insert(row.into_active_model()).exec_without_returning(db).await?;
    Ok(())
}
