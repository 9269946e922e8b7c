use std::fs;
use std::io::{Cursor, Write};

use md5::{Digest, Md5};
use sea_orm::{ConnectionTrait, EntityTrait};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::db::testing::{TestDb, database};
use crate::storage::LocalStore;

/// Qinling's tables, as far as they matter: the names and kinds of columns.
const SCHEMA: &str = "
    CREATE TABLE runtimes (id VARCHAR(36), project_id VARCHAR(80), name VARCHAR(255), description VARCHAR(255),
        image VARCHAR(255), status VARCHAR(32), is_public BOOLEAN, trusted BOOLEAN, created_at DATETIME, updated_at DATETIME);
    CREATE TABLE functions (id VARCHAR(36), project_id VARCHAR(80), name VARCHAR(255), description VARCHAR(255),
        runtime_id VARCHAR(36), cpu INTEGER, memory_size INTEGER, timeout INTEGER, code TEXT, entry VARCHAR(80), count INTEGER,
        trust_id VARCHAR(80), latest_version INTEGER, created_at DATETIME, updated_at DATETIME);
    CREATE TABLE function_versions (id VARCHAR(36), project_id VARCHAR(80), function_id VARCHAR(36), description VARCHAR(255),
        version_number INTEGER, count INTEGER, created_at DATETIME, updated_at DATETIME);
    CREATE TABLE function_aliases (id VARCHAR(36), project_id VARCHAR(80), name VARCHAR(255), function_id VARCHAR(36),
        function_version INTEGER, description VARCHAR(255), created_at DATETIME, updated_at DATETIME);
    CREATE TABLE jobs (id VARCHAR(36), project_id VARCHAR(80), name VARCHAR(255), pattern VARCHAR(32), status VARCHAR(32),
        first_execution_time DATETIME, next_execution_time DATETIME, count INTEGER, function_id VARCHAR(36),
        function_version INTEGER, function_alias VARCHAR(255), function_input VARCHAR(255), created_at DATETIME, updated_at DATETIME);
    CREATE TABLE webhooks (id VARCHAR(36), project_id VARCHAR(80), function_id VARCHAR(36), function_version INTEGER,
        function_alias VARCHAR(255), description VARCHAR(255), created_at DATETIME, updated_at DATETIME);
    INSERT INTO runtimes VALUES ('r', 'admin', 'python3', NULL, 'q/python3:1', 'available', 1, 1, '2018-07-03 04:38:50.147277', NULL),
        ('gone', 'admin', NULL, NULL, 'q/python3:1', 'deleting', 1, 1, '2018-07-03 04:38:51', NULL);
";

const CREATED: &str = "'2018-07-03 04:38:50.147277', NULL";

fn zipped(text: &str) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("main.py", SimpleFileOptions::default()).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

fn md5_of(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// A deployment of Qinling's and one of ours.
struct Fixture {
    directory: tempfile::TempDir,
    db: TestDb,
    imports: Imports,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = database().await;
        let store = LocalStore::open(directory.path().join("store"), 1 << 20).await.unwrap();
        fs::create_dir_all(directory.path().join("packages/demo")).unwrap();
        let imports = Imports {
            db: db.db.clone(),
            store: Arc::new(store),
            packages: directory.path().join("packages"),
            images: BTreeMap::from([("q/python3:1".to_owned(), "taibai/python3".to_owned())]),
            limits: ResourceLimits::default(),
            archive: archive::Limits { max_entries: 10, max_expanded_bytes: 1 << 20, max_ratio: 100 },
        };
        let fixture = Self { directory, db, imports };
        fixture.sql(SCHEMA).await;
        fixture
    }

    fn url(&self) -> String {
        format!("sqlite:///{}", self.directory.path().join("qinling.sqlite").display())
    }

    async fn sql(&self, text: &str) {
        let path = self.directory.path().join("qinling.sqlite");
        let there =
            sea_orm::Database::connect(format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        there.execute_unprepared(text).await.unwrap();
        there.close().await.unwrap();
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        fs::write(self.imports.packages.join("demo").join(name), bytes).unwrap();
    }

    /// A function with a package, as Qinling has it.
    async fn function(&self, id: &str, bytes: &[u8]) {
        let md5 = md5_of(bytes);
        self.file(&format!("{id}_{md5}.zip"), bytes);
        self.sql(&format!(
            "INSERT INTO functions VALUES ('{id}', 'demo', 'hello', NULL, 'r', 100, 33554432, 5, \
             '{{\"source\": \"package\", \"md5sum\": \"{md5}\"}}', 'main.main', 7, 'trust', 12, {CREATED})"
        ))
        .await;
    }

    async fn version(&self, function: &str, number: i32, bytes: &[u8]) {
        self.file(&format!("{function}_{number}_{}.zip", md5_of(bytes)), bytes);
        self.sql(&format!(
            "INSERT INTO function_versions VALUES ('{function}-{number}', 'demo', '{function}', NULL, {number}, 3, {CREATED})"
        ))
        .await;
    }

    async fn run(&self, dry_run: bool) -> Report {
        self.imports.run(qinling::read(&self.url()).await.unwrap(), dry_run).await.unwrap()
    }

    fn kept(&self) -> usize {
        let directories = fs::read_dir(self.directory.path().join("store")).unwrap();
        directories.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
    }
}

fn counts(tally: &Tally) -> [usize; 4] {
    [tally.read, tally.imported, tally.left, tally.skipped.len()]
}

#[tokio::test]
async fn what_belongs_together_comes_along_with_its_ids() {
    let fixture = Fixture::new().await;
    let (now, first, tenth) = (zipped("0"), zipped("1"), zipped("10"));
    fixture.function("f", &now).await;
    fixture.version("f", 10, &tenth).await;
    fixture.version("f", 1, &first).await;
    fixture
        .sql(&format!(
            "INSERT INTO function_aliases VALUES ('a', 'demo', 'prod', 'f', 1, NULL, {CREATED});
             INSERT INTO jobs VALUES ('j', 'demo', NULL, '0 * * * *', 'paused', NULL, '2018-07-03 05:00:00', 4, 'f', 0, NULL, '{{}}', {CREATED});
             INSERT INTO webhooks VALUES ('w', 'demo', 'f', NULL, NULL, NULL, {CREATED}), ('v', 'demo', NULL, NULL, 'prod', NULL, {CREATED})"
        ))
        .await;

    let tried = fixture.run(true).await;
    assert_eq!((counts(&tried.functions), fixture.kept()), ([1, 1, 0, 0], 0));
    assert!(function::Entity::find().all(fixture.db.reader()).await.unwrap().is_empty());

    let report = fixture.run(false).await;
    assert_eq!(report, tried);
    assert_eq!(counts(&report.runtimes), [2, 1, 0, 1]);
    assert_eq!([&report.versions, &report.webhooks].map(counts), [[2, 2, 0, 0]; 2]);
    assert_eq!([&report.aliases, &report.jobs].map(counts), [[1, 1, 0, 0]; 2]);

    let db = fixture.db.reader();
    let runtime = runtime::Entity::find().one(db).await.unwrap().unwrap();
    assert_eq!((runtime.image.as_str(), runtime.status), ("taibai/python3", RuntimeStatus::Creating));
    assert_eq!(runtime.created_at.0, 1_530_592_730_147_277);
    let function = function::Entity::find().one(db).await.unwrap().unwrap();
    assert_eq!((function.id.as_str(), function.count), ("f", 7));
    // Two of twelve are left, and the thirteenth is the next.
    assert_eq!((function.latest_version, function.version_counter), (10, 12));
    assert_eq!((function.trust_id, function.trust_reason.as_deref()), (None, Some(NO_TRUST)));
    let digest = |bytes: &[u8]| Some(hex::encode(sha2::Sha256::digest(bytes)));
    assert_eq!(function.package_digest, digest(&now));
    for (number, bytes) in [(1, &first), (10, &tenth)] {
        let version = crate::db::versions::find(db, &function.id, number).await.unwrap().unwrap();
        assert_eq!((version.package_digest, version.entry.as_deref()), (digest(bytes), Some("main.main")));
    }
    let job = job::Entity::find().one(db).await.unwrap().unwrap();
    assert_eq!(
        (job.status, job.count, job.next_execution_time.0),
        (JobStatus::Paused, Some(4), 1_530_594_000_000_000)
    );
    let webhooks = webhook::Entity::find().all(db).await.unwrap();
    for row in &webhooks {
        assert_eq!(row.url_key.as_deref(), Some(row.id.as_str()));
    }
    let of = |id: &str| webhooks.iter().find(|row| row.id.as_str() == id).unwrap();
    assert_eq!((of("w").function_version, of("v").function_version), (Some(0), None));
    assert_eq!(fixture.kept(), 3);

    let again = fixture.run(false).await;
    assert_eq!(counts(&again.runtimes), [2, 0, 1, 1]);
    assert_eq!([&again.versions, &again.webhooks].map(counts), [[2, 0, 2, 0]; 2]);
    assert_eq!([&again.functions, &again.aliases, &again.jobs].map(counts), [[1, 0, 1, 0]; 3]);
}

#[tokio::test]
async fn what_makes_no_sense_is_left_out_with_what_refers_to_it() {
    let fixture = Fixture::new().await;
    fixture.function("good", &zipped("0")).await;
    fixture.function("other-bytes", &zipped("1")).await;
    fixture.file(&format!("other-bytes_{}.zip", md5_of(&zipped("1"))), b"cut");
    fixture.function("no-zip", b"text").await;
    fixture.function("lost", &zipped("2")).await;
    fs::remove_file(fixture.imports.packages.join(format!("demo/lost_{}.zip", md5_of(&zipped("2")))))
        .unwrap();
    fixture.version("good", 1, &zipped("3")).await;
    fixture.file(&format!("good_1_{}.zip", md5_of(&zipped("4"))), &zipped("4"));
    fixture
        .sql(&format!(
            "INSERT INTO functions VALUES ('bare', 'demo', NULL, NULL, 'r', 100, 1, 5, '{{}}', NULL, 0, NULL, 0, {CREATED}),
                 ('away', '../demo', NULL, NULL, 'r', 100, 1, 5, '{{\"source\": \"package\", \"md5sum\": \"{md5}\"}}', NULL, 0, NULL, 0, {CREATED}),
                 ('old', 'demo', NULL, NULL, 'gone', 100, 1, 5, '{{\"source\": \"package\"}}', NULL, 0, NULL, 0, {CREATED});
             INSERT INTO function_aliases VALUES ('a', 'demo', 'x', 'lost', 0, NULL, {CREATED}), ('b', 'demo', 'y', 'good', 1, NULL, {CREATED}),
                 ('c', 'alt', 'z', 'good', 0, NULL, {CREATED});
             INSERT INTO jobs VALUES ('j', 'demo', NULL, NULL, 'running', NULL, '2018-07-03 05:00:00', 1, NULL, 0, 'x', NULL, {CREATED});
             INSERT INTO webhooks VALUES ('w', 'demo', 'good', 0, NULL, NULL, {CREATED}), ('v', 'demo', NULL, NULL, NULL, NULL, {CREATED})",
            md5 = md5_of(b"")
        ))
        .await;

    let report = fixture.run(false).await;
    let reason = |tally: &Tally, id: &str| {
        tally.skipped.iter().find(|(skipped, _)| skipped == id).map(|(_, reason)| reason.clone()).unwrap()
    };
    assert_eq!(counts(&report.functions), [7, 1, 0, 6]);
    for (id, told) in [
        ("other-bytes", "has the MD5"),
        ("no-zip", "no zip file"),
        ("lost", "cannot be read"),
        ("bare", "names no source"),
        ("away", "no name of a directory"),
        ("old", "its runtime gone is not here"),
    ] {
        assert!(reason(&report.functions, id).contains(told), "{id}: {}", reason(&report.functions, id));
    }
    assert!(reason(&report.versions, "good-1").contains("more than one package"));
    assert!(reason(&report.aliases, "a").contains("lost is not here"));
    assert!(reason(&report.aliases, "b").contains("version 1"));
    assert!(reason(&report.aliases, "c").contains("another project"));
    assert!(reason(&report.jobs, "j").contains("alias x is not here"));
    assert!(reason(&report.webhooks, "v").contains("neither"));
    assert_eq!(counts(&report.webhooks), [2, 1, 0, 1]);
    assert_eq!(fixture.kept(), 1);
}

#[tokio::test]
async fn what_cannot_be_written_leaves_nothing() {
    let fixture = Fixture::new().await;
    fixture.function("f", &zipped("0")).await;
    // Qinling's table would not hold it twice; this one is no Qinling's.
    fixture.sql(&format!("INSERT INTO webhooks VALUES ('w', 'demo', 'f', 0, NULL, NULL, {CREATED})")).await;
    fixture.sql(&format!("INSERT INTO webhooks VALUES ('w', 'demo', 'f', 0, NULL, NULL, {CREATED})")).await;
    let from = qinling::read(&fixture.url()).await.unwrap();
    fixture.imports.run(from, false).await.unwrap_err();
    assert!(runtime::Entity::find().all(fixture.db.reader()).await.unwrap().is_empty());
    let store = fixture.directory.path().join("store");
    let files = fs::read_dir(store).unwrap().flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    assert_eq!(files.count(), 0);
}

#[tokio::test]
async fn a_warning_says_what_an_operator_has_to_do() {
    let mut fixture = Fixture::new().await;
    fixture.imports.images = BTreeMap::from([("q/ruby:1".to_owned(), "taibai/ruby".to_owned())]);
    fixture
        .sql(&format!(
            "INSERT INTO functions VALUES ('s', 'demo', NULL, NULL, 'r', NULL, NULL, NULL, \
             '{{\"source\": \"swift\", \"swift\": {{\"container\": \"c\", \"object\": \"o\"}}}}', '', 0, 't', 0, {CREATED}),
             ('i', 'demo', NULL, NULL, NULL, 0, 0, 5, '{{\"source\": \"image\", \"image\": \"busybox\"}}', NULL, 0, NULL, 0, {CREATED})"
        ))
        .await;
    let report = fixture.run(false).await;
    for told in [
        "--runtime-image q/python3:1=NEW",
        "--runtime-image q/ruby:1: no runtime",
        "function s: its code is in Swift",
        "Qinling's user: 1",
    ] {
        assert!(
            report.warnings.iter().any(|warning| warning.contains(told)),
            "{told}: {:?}",
            report.warnings
        );
    }
    let rows = function::Entity::find().all(fixture.db.reader()).await.unwrap();
    let of = |id: &str| rows.iter().find(|row| row.id.as_str() == id).unwrap();
    assert_eq!((of("s").cpu, of("s").timeout, of("s").entry.as_deref()), (100, 5, Some("main.main")));
    assert_eq!((of("i").status, of("i").entry.as_deref()), (FunctionStatus::Creating, None));
}

#[tokio::test]
async fn only_sqlite_and_mysql_are_read() {
    for url in ["postgresql://u:secret@h/q", "secret", "sqlite:////nowhere/secret.sqlite"] {
        let error = qinling::read(url).await.unwrap_err().to_string();
        assert!(error.starts_with("--database: "), "{error}");
        assert!(!url.starts_with("postgresql") || !error.contains("secret"), "{error}");
    }
}
