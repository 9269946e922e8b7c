//! What a job or a webhook may call, looked at in the transaction that writes it.

use crate::db::{self, Transaction};
use crate::engine::target::{Reference, no_version};
use crate::error::{Error, Result};
use crate::model::function::Source;
use crate::model::{ProjectId, Scope};

/// Refuses what there is not, and keeps it there until the end of the transaction: whoever deletes a
/// function looks for what calls it behind the same lock.
///
/// An alias is looked for in `project`, and a function in what `scope` shows.
pub async fn hold(tx: &Transaction, reference: &Reference, project: &ProjectId, scope: &Scope) -> Result<()> {
    let (id, version) = match (&reference.alias, &reference.function_id) {
        (Some(name), _) => {
            let alias = db::aliases::find_for_update(tx, project, name).await?;
            let key = || format!("name={name}");
            let alias = alias.ok_or_else(|| Error::NotFound { what: "FunctionAlias", key: key() })?;
            (alias.function_id, alias.function_version)
        }
        (None, Some(id)) => (id.clone(), reference.version),
        (None, None) => return Err(nothing_to_call()),
    };
    let function = db::functions::find_for_update(tx, &id, scope).await?;
    let function = function.ok_or_else(|| Error::not_found("Function", &id))?;
    if version == 0 {
        return Ok(());
    }
    if function.source()? != Source::Package {
        return Err(Error::invalid("Can not specify version for package type function."));
    }
    match db::versions::find(tx, &id, version).await? {
        Some(_) => Ok(()),
        None => Err(no_version(&id, version)),
    }
}

pub fn nothing_to_call() -> Error {
    Error::invalid("Either function_alias or function_id must be provided.")
}
