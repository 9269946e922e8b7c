use sea_orm::entity::prelude::*;

use serde::{Deserialize, Serialize};

use super::{
    EngineId, ExecutionId, ExecutionStatus, FunctionId, Outcome, ProjectId, Start, Timestamp, WorkerName,
};

#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel, Serialize, Deserialize)]
#[sea_orm(table_name = "executions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: ExecutionId,
    pub project_id: ProjectId,
    pub function_id: FunctionId,
    pub function_version: i32,
    pub function_alias: Option<String>,
    pub description: Option<String>,
    pub status: ExecutionStatus,
    pub sync: bool,
    /// A JSON object as text; see [`super::Input`].
    #[sea_orm(column_type = "Text")]
    pub input: Option<String>,
    /// A JSON object as text.
    #[sea_orm(column_type = "Text")]
    pub result: Option<String>,
    /// One of the words of [`super::Reason`].
    pub reason: Option<String>,
    pub start: Option<Start>,
    /// Rises with every attempt; only the latest may write the end.
    pub epoch: i64,
    /// The engine process that runs it.
    pub engine_id: Option<EngineId>,
    pub worker: Option<WorkerName>,
    pub request_id: Option<String>,
    /// When it must have ended at the latest, where it runs: past that, whoever ran it is gone.
    pub deadline_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
    /// From here on as in [`super::Usage`].
    pub queued_us: Option<i64>,
    pub starting_us: Option<i64>,
    pub run_us: Option<i64>,
    pub cpu_us: Option<i64>,
    pub peak_memory_bytes: Option<i64>,
    /// Whether its log was cut; the log is elsewhere.
    pub log_truncated: Option<bool>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// The row as it is once its end is written.
    pub fn ended(self, outcome: Outcome) -> Self {
        Self {
            status: outcome.status,
            result: Some(outcome.result),
            reason: outcome.reason.map(|reason| reason.as_str().to_owned()),
            start: outcome.start,
            updated_at: Some(Timestamp::now()),
            deadline_at: None,
            queued_us: outcome.usage.queued_us,
            starting_us: outcome.usage.starting_us,
            run_us: outcome.usage.run_us,
            cpu_us: outcome.usage.cpu_us,
            peak_memory_bytes: outcome.usage.peak_memory_bytes,
            log_truncated: Some(outcome.log_truncated),
            ..self
        }
    }
}
