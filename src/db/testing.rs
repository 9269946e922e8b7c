//! A database and rows for tests.

use super::Db;
use crate::config;
use crate::model::*;

mod own;

use own::OwnDatabase;

/// A database of one test's own, and a connection to it.
pub(crate) struct TestDb {
    pub db: Db,
    pub config: config::Database,
    _own: OwnDatabase,
}

impl std::ops::Deref for TestDb {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

/// With the tables of today.
pub(crate) async fn database() -> TestDb {
    let database = empty_database().await;
    database.migrate().await.unwrap();
    database
}

/// Without any table.
pub(crate) async fn empty_database() -> TestDb {
    connect(OwnDatabase::create()).await
}

/// SQLite, whatever the other tests run on: for what only a file can show.
pub(crate) async fn empty_file() -> TestDb {
    connect(OwnDatabase::file()).await
}

async fn connect(own: OwnDatabase) -> TestDb {
    let config = config::Database { connection: own.url().to_owned(), ..config::Database::default() };
    TestDb { db: Db::connect(&config).await.unwrap(), config, _own: own }
}

/// Rows with every column filled, of project `demo` where nothing else is said.
pub(crate) fn project() -> ProjectId {
    ProjectId::from("demo")
}

pub(crate) fn own() -> Scope {
    Scope::Project(project())
}

pub(crate) fn stranger() -> Scope {
    Scope::Project("other".into())
}

pub(crate) fn runtime() -> runtime::Model {
    runtime::Model {
        id: RuntimeId::random(),
        project_id: project(),
        name: Some("python3".into()),
        description: Some("Python".into()),
        image: "taibai/python3:1".into(),
        active_image: Some("taibai/python3:0".into()),
        status: RuntimeStatus::Available,
        status_reason: Some("none".into()),
        is_public: true,
        trusted: true,
        network: NetworkAccess::None,
        active_network: Some(NetworkAccess::Default),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn function(runtime: &RuntimeId) -> function::Model {
    function::Model {
        id: FunctionId::random(),
        project_id: project(),
        name: Some("hello".into()),
        description: Some("greets".into()),
        runtime_id: Some(runtime.clone()),
        cpu: 100,
        memory_size: 8 << 30,
        timeout: 5,
        code: "{\"source\": \"package\"}".into(),
        package_digest: Some("d".repeat(64)),
        package_bytes: Some(6 << 30),
        object_etag: Some("0".repeat(32)),
        entry: Some("hello.main".into()),
        network: NetworkAccess::None,
        count: 3_000_000_000,
        trust_id: Some("trust".into()),
        trust_reason: Some("none".into()),
        latest_version: 1,
        version_counter: 3,
        status: FunctionStatus::Available,
        status_reason: Some("none".into()),
        image_digest: Some("sha256:0".into()),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn version(function: &function::Model, number: i32) -> version::Model {
    version::Model {
        id: uuid::Uuid::new_v4().to_string(),
        project_id: function.project_id.clone(),
        function_id: function.id.clone(),
        description: Some("first".into()),
        version_number: number,
        count: 7,
        runtime_id: function.runtime_id.clone(),
        cpu: 200,
        memory_size: 32 << 20,
        timeout: 6,
        package_digest: Some("e".repeat(64)),
        package_bytes: Some(9),
        entry: Some("hello.old".into()),
        network: NetworkAccess::Default,
        trust_id: Some("older".into()),
        trust_reason: Some("none".into()),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn alias(function: &function::Model, name: &str, version: i32) -> alias::Model {
    alias::Model {
        id: uuid::Uuid::new_v4().to_string(),
        project_id: function.project_id.clone(),
        name: name.into(),
        function_id: function.id.clone(),
        function_version: version,
        description: Some("what users call".into()),
        canary_version: Some(2),
        canary_weight: 10,
        previous_version: Some(3),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn job(function: &FunctionId, status: JobStatus) -> job::Model {
    job::Model {
        id: JobId::random(),
        project_id: project(),
        name: Some("nightly".into()),
        pattern: Some("0 21 * * *".into()),
        status,
        status_reason: Some("none".into()),
        first_execution_time: Some(Timestamp(3)),
        next_execution_time: Timestamp(4),
        count: Some(5),
        function_id: Some(function.clone()),
        function_version: Some(0),
        function_alias: Some("prod".into()),
        function_input: Some("{}".into()),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn webhook(function: &FunctionId) -> webhook::Model {
    webhook::Model {
        id: WebhookId::random(),
        project_id: project(),
        function_id: Some(function.clone()),
        function_version: Some(1),
        function_alias: Some("prod".into()),
        description: Some("pushes".into()),
        url_key: Some(uuid::Uuid::new_v4().to_string()),
        mode: WebhookMode::Sync,
        is_public: false,
        secret: Some("secret".into()),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
    }
}

pub(crate) fn execution(status: ExecutionStatus) -> execution::Model {
    execution::Model {
        id: ExecutionId::random(),
        project_id: project(),
        function_id: FunctionId::random(),
        function_version: 1,
        function_alias: Some("prod".into()),
        description: Some("Created by Job 1".into()),
        status,
        sync: true,
        input: Some("{\"name\": \"x\"}".into()),
        result: Some("{\"output\": null}".into()),
        reason: Some("raised".into()),
        start: Some(Start::Warm),
        epoch: 1 << 40,
        engine_id: Some(EngineId::random()),
        worker: Some("w-1".into()),
        request_id: Some("req-1".into()),
        deadline_at: Some(Timestamp(3)),
        created_at: Timestamp::now(),
        updated_at: Some(Timestamp(2)),
        queued_us: Some(1 << 40),
        starting_us: Some(2),
        run_us: Some(3),
        cpu_us: Some(4),
        peak_memory_bytes: Some(5 << 30),
        log_truncated: Some(true),
    }
}

pub(crate) fn engine(lease_until: Timestamp) -> engine::Model {
    engine::Model {
        id: EngineId::random(),
        node: "one".into(),
        deployment: "taibai".into(),
        endpoint: Some("unix:///run/engine.sock".into()),
        started_at: Timestamp::now(),
        lease_until,
    }
}
