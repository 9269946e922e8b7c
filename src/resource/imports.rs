//! What a Qinling deployment had, as rows and packages of ours: ids stay, so that whoever knows one (a
//! webhook's URL has one in it) need not learn another.
//!
//! A row that makes no sense here is left out with a reason, and with it what refers to it. Everything
//! else is one transaction.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::archive;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;

use super::functions::DEFAULT_ENTRY;
use super::packages::Packages;
use super::{MAX_TEXT, check_length};
use crate::config::ResourceLimits;
use crate::db::Db;
use crate::db::imports::{self, Present};
use crate::db::qinling::{self, Deployment};
use crate::error::{Error, Result};
use crate::model::function::{Place, Source};
use crate::model::*;
use crate::storage::{self, PackageStore, Received};

/// Why an imported function has no trust: Qinling's are given to Qinling's own user.
const NO_TRUST: &str = "Imported from Qinling: update its code or entry to give it a session again.";

/// How much of a package is read at once.
const PIECE: usize = 256 << 10;

/// How the import of one table went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub read: usize,
    pub imported: usize,
    /// Rows whose id is here already.
    pub left: usize,
    /// Ids, and why they are not imported.
    pub skipped: Vec<(String, String)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub runtimes: Tally,
    pub functions: Tally,
    pub versions: Tally,
    pub aliases: Tally,
    pub jobs: Tally,
    pub webhooks: Tally,
    /// What an operator should know of rows that are imported.
    pub warnings: Vec<String>,
}

pub struct Imports {
    pub db: Db,
    pub store: Arc<dyn PackageStore>,
    /// `[storage] file_system_dir` of Qinling's.
    pub packages: PathBuf,
    /// Which image a runtime gets in place of Qinling's.
    pub images: BTreeMap<String, String>,
    pub limits: ResourceLimits,
    pub archive: archive::Limits,
}

/// The rows to be written, in the order in which they refer to each other.
#[derive(Default)]
struct Rows {
    runtimes: Vec<runtime::Model>,
    functions: Vec<function::Model>,
    versions: Vec<version::Model>,
    aliases: Vec<alias::Model>,
    jobs: Vec<job::Model>,
    webhooks: Vec<webhook::Model>,
}

/// What becomes of one row: imported, or left out for a reason.
type Fate<T> = std::result::Result<T, String>;

impl Imports {
    /// Brings in what is not here yet. With `dry_run` all is read, checked and rolled back.
    pub async fn run(&self, from: Deployment, dry_run: bool) -> Result<Report> {
        let packages = Packages::new(Arc::clone(&self.store));
        let mut kept = Vec::new();
        let done = self.bring_in(from, dry_run, &packages, &mut kept).await;
        if done.is_err() {
            // What was kept for rows that are not written after all.
            for digest in kept {
                packages.forget(&self.db, &digest).await;
            }
        }
        done
    }

    async fn bring_in(
        &self,
        from: Deployment,
        dry_run: bool,
        packages: &Packages,
        kept: &mut Vec<String>,
    ) -> Result<Report> {
        let mut work = Work {
            imports: self,
            here: imports::present(self.db.reader()).await?,
            report: Report::default(),
            rows: Rows::default(),
            of: from.functions.iter().map(|row| (row.id.clone(), row.clone())).collect(),
            listed: HashMap::new(),
            keep: if dry_run { None } else { Some((packages, kept)) },
        };
        work.runtimes(from.runtimes);
        work.functions(from.functions).await?;
        work.versions(from.versions).await?;
        work.aliases(from.aliases);
        work.jobs(from.jobs);
        work.webhooks(from.webhooks);
        let Work { rows, report, .. } = work;
        self.write(rows, dry_run).await?;
        Ok(report)
    }

    async fn write(&self, rows: Rows, dry_run: bool) -> Result<()> {
        let tx = self.db.begin().await?;
        for row in rows.runtimes {
            imports::insert(&tx, row).await?;
        }
        for row in rows.functions {
            imports::insert(&tx, row).await?;
        }
        for row in rows.versions {
            imports::insert(&tx, row).await?;
        }
        for row in rows.aliases {
            imports::insert(&tx, row).await?;
        }
        for row in rows.jobs {
            imports::insert(&tx, row).await?;
        }
        for row in rows.webhooks {
            imports::insert(&tx, row).await?;
        }
        if !dry_run {
            tx.commit().await?;
        }
        Ok(())
    }

    /// The package in that file, checked as an upload is.
    async fn receive(&self, path: &Path, md5: &str) -> Result<Fate<Received>> {
        let mut file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) => return Ok(Err(format!("its package {} cannot be read: {error}", path.display()))),
        };
        let mut upload = self.store.begin().await?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = match file.read(&mut piece).await {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => {
                    return Ok(Err(format!("its package {} cannot be read: {error}", path.display())));
                }
            };
            upload = match upload.write(&piece[..read]).await {
                Ok(upload) => upload,
                Err(error) => return refused(path, error),
            };
        }
        let received = upload.finish().await?;
        if received.md5 != md5 {
            return Ok(Err(format!(
                "its package {} has the MD5 {} and should have {md5}",
                path.display(),
                received.md5
            )));
        }
        match received.check(self.archive).await {
            Ok(received) => Ok(Ok(received)),
            Err(error) => refused(path, error),
        }
    }
}

/// A package's own fault is its function's; a disk's is everybody's.
fn refused(path: &Path, error: storage::Error) -> Result<Fate<Received>> {
    match error {
        storage::Error::TooLarge { .. } | storage::Error::NotZip | storage::Error::Refused(_) => {
            Ok(Err(format!("{}: {error}", path.display())))
        }
        error => Err(error.into()),
    }
}

/// An import on its way.
struct Work<'a> {
    imports: &'a Imports,
    /// What is here, with what will be.
    here: Present,
    report: Report,
    rows: Rows,
    /// Qinling's functions by id.
    of: HashMap<String, qinling::Function>,
    /// The names of the files in each project's directory.
    listed: HashMap<String, Vec<String>>,
    /// Where packages are kept, and which were; `None` where none is.
    keep: Option<(&'a Packages, &'a mut Vec<String>)>,
}

impl Work<'_> {
    fn runtimes(&mut self, rows: Vec<qinling::Runtime>) {
        let mut unused: Vec<String> = self.imports.images.keys().cloned().collect();
        for row in rows {
            unused.retain(|image| *image != row.image);
            self.report.runtimes.read += 1;
            if self.here.runtimes.contains(&row.id) {
                self.report.runtimes.left += 1;
                continue;
            }
            let id = row.id.clone();
            match self.runtime(row) {
                Ok(model) => {
                    self.report.runtimes.imported += 1;
                    self.here.runtimes.insert(id);
                    self.rows.runtimes.push(model);
                }
                Err(reason) => self.report.runtimes.skipped.push((id, reason)),
            }
        }
        for image in unused {
            self.report.warnings.push(format!("--runtime-image {image}: no runtime has this image"));
        }
    }

    fn runtime(&mut self, row: qinling::Runtime) -> Fate<runtime::Model> {
        if row.status == "deleting" {
            return Err("it was being deleted".to_owned());
        }
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        let image = match self.imports.images.get(&row.image) {
            Some(image) => image.clone(),
            None => {
                self.report.warnings.push(format!(
                    "runtime {} ({}): its image {} is Qinling's and imported as it is; a runtime whose image is not \
                     one of Taibai's ends in the status error. --runtime-image {}=NEW gives it another",
                    row.id,
                    row.name.as_deref().unwrap_or("without a name"),
                    row.image,
                    row.image
                ));
                row.image
            }
        };
        check_length("image", Some(&image), MAX_TEXT).map_err(|error| error.to_string())?;
        Ok(runtime::Model {
            id: row.id.into(),
            project_id: row.project_id.into(),
            name: row.name,
            description: row.description,
            image,
            active_image: None,
            // The engine looks at every image for itself.
            status: RuntimeStatus::Creating,
            status_reason: None,
            is_public: row.is_public.unwrap_or(true),
            trusted: row.trusted.unwrap_or(true),
            network: NetworkAccess::Default,
            active_network: None,
            created_at,
            updated_at,
        })
    }

    async fn functions(&mut self, rows: Vec<qinling::Function>) -> Result<()> {
        let mut without_trust = 0;
        for row in rows {
            self.report.functions.read += 1;
            if self.here.functions.contains_key(&row.id) {
                self.report.functions.left += 1;
                continue;
            }
            let (id, project) = (row.id.clone(), row.project_id.clone());
            match self.function(row).await? {
                Ok(model) => {
                    self.report.functions.imported += 1;
                    without_trust += usize::from(model.trust_reason.is_some());
                    self.here.functions.insert(id, project);
                    self.rows.functions.push(model);
                }
                Err(reason) => self.report.functions.skipped.push((id, reason)),
            }
        }
        if without_trust > 0 {
            self.report.warnings.push(format!(
                "functions without a session of OpenStack's until their owners update code or entry, since Qinling's \
                 trusts are for Qinling's user: {without_trust}"
            ));
        }
        Ok(())
    }

    async fn function(&mut self, row: qinling::Function) -> Result<Fate<function::Model>> {
        let Ok(Value::Object(code)) = serde_json::from_str(&row.code) else {
            return Ok(Err("its code is no JSON object".to_owned()));
        };
        let Some(source) = Source::of_code(&code) else {
            return Ok(Err("its code names no source".to_owned()));
        };
        let package = match self.code(&row, source, &code).await? {
            Ok(package) => package,
            Err(reason) => return Ok(Err(reason)),
        };
        let (digest, bytes) = self.keep(package).await?.unzip();
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        let limits = &self.imports.limits;
        Ok(Ok(function::Model {
            project_id: row.project_id.into(),
            name: row.name,
            description: row.description,
            runtime_id: row.runtime_id.map(Into::into),
            cpu: positive(row.cpu).unwrap_or(limits.default_cpu),
            memory_size: row.memory_size.filter(|&bytes| bytes > 0).unwrap_or(limits.default_memory),
            timeout: positive(row.timeout).unwrap_or(limits.default_timeout),
            code: Value::Object(code).to_string(),
            package_digest: digest,
            package_bytes: bytes,
            object_etag: None,
            entry: match source {
                Source::Image => None,
                _ => row.entry.filter(|entry| !entry.is_empty()).or(Some(DEFAULT_ENTRY.to_owned())),
            },
            network: NetworkAccess::Default,
            count: row.count.unwrap_or(0),
            trust_id: None,
            trust_reason: row.trust_id.map(|_| NO_TRUST.to_owned()),
            // As far as versions are imported.
            latest_version: 0,
            version_counter: positive(row.latest_version).unwrap_or(0),
            status: match source {
                Source::Image => FunctionStatus::Creating,
                _ => FunctionStatus::Available,
            },
            status_reason: None,
            image_digest: None,
            created_at,
            updated_at,
            id: row.id.into(),
        }))
    }

    /// Whether a function's code can be had here; its package, where it has one.
    async fn code(
        &mut self,
        row: &qinling::Function,
        source: Source,
        code: &Map<String, Value>,
    ) -> Result<Fate<Option<Received>>> {
        if let Some(runtime) = &row.runtime_id {
            if !self.here.runtimes.contains(runtime) {
                return Ok(Err(format!("its runtime {runtime} is not here")));
            }
        } else if source != Source::Image {
            return Ok(Err("it has no runtime".to_owned()));
        }
        match source {
            Source::Image => Ok(match code.get("image").and_then(Value::as_str) {
                Some(image) if !image.is_empty() => Ok(None),
                _ => Err("its code names no image".to_owned()),
            }),
            Source::Swift => {
                if Place::of_code(code).is_none() {
                    return Ok(Err("its code names no container or no object".to_owned()));
                }
                self.report.warnings.push(format!(
                    "function {}: its code is in Swift, where it is read in its owner's name: it runs once its owner \
                     has updated its code",
                    row.id
                ));
                Ok(Ok(None))
            }
            Source::Package => {
                let Some(md5) = code.get("md5sum").and_then(Value::as_str).filter(|md5| is_md5(md5)) else {
                    return Ok(Err("its code has no MD5, by which its package is found".to_owned()));
                };
                let Some(directory) = self.directory(&row.project_id) else {
                    return Ok(Err("its project is no name of a directory".to_owned()));
                };
                if !is_name(&row.id) {
                    return Ok(Err("its id is no name of a file".to_owned()));
                }
                let path = directory.join(format!("{}_{md5}.zip", row.id));
                Ok(self.imports.receive(&path, md5).await?.map(Some))
            }
        }
    }

    async fn versions(&mut self, rows: Vec<qinling::Version>) -> Result<()> {
        // By number, so that the last that counts is the highest.
        let mut rows = rows;
        rows.sort_by_key(|row| row.version_number);
        for row in rows {
            self.report.versions.read += 1;
            if self.here.versions.contains(&row.id) {
                self.report.versions.left += 1;
                continue;
            }
            let id = row.id.clone();
            match self.version(row).await? {
                Ok(model) => {
                    self.report.versions.imported += 1;
                    let number = model.version_number;
                    self.here.numbers.insert((model.function_id.0.clone(), number));
                    let function = self.rows.functions.iter_mut().find(|row| row.id == model.function_id);
                    if let Some(function) = function {
                        function.latest_version = number;
                        function.version_counter = function.version_counter.max(number);
                    }
                    self.rows.versions.push(model);
                }
                Err(reason) => self.report.versions.skipped.push((id, reason)),
            }
        }
        Ok(())
    }

    async fn version(&mut self, row: qinling::Version) -> Result<Fate<version::Model>> {
        let Some(id) = row.function_id.clone() else { return Ok(Err("it has no function".to_owned())) };
        let Some(number) = positive(row.version_number) else {
            return Ok(Err("it has no number".to_owned()));
        };
        let Some(at) = self.rows.functions.iter().position(|function| function.id.as_str() == id) else {
            return Ok(Err(if self.here.functions.contains_key(&id) {
                format!("its function {id} was here before, and has versions of its own")
            } else {
                format!("its function {id} is not here")
            }));
        };
        let project = self.of[&id].project_id.clone();
        let (path, md5) = match self.package_of_version(&project, &id, number).await? {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        let package = match self.imports.receive(&path, &md5).await? {
            Ok(package) => package,
            Err(reason) => return Ok(Err(reason)),
        };
        let (digest, bytes) = self.keep(Some(package)).await?.unzip();
        let function = &self.rows.functions[at];
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        Ok(Ok(version::Model {
            id: row.id,
            project_id: function.project_id.clone(),
            function_id: function.id.clone(),
            description: row.description,
            version_number: number,
            count: row.count.unwrap_or(0),
            // Qinling's versions have the package alone and read all else from the function.
            runtime_id: function.runtime_id.clone(),
            cpu: function.cpu,
            memory_size: function.memory_size,
            timeout: function.timeout,
            package_digest: digest,
            package_bytes: bytes,
            entry: function.entry.clone(),
            network: function.network,
            trust_id: None,
            trust_reason: function.trust_reason.clone(),
            created_at,
            updated_at,
        }))
    }

    /// The one file that is exactly this version's: `<function>_1_` begins no name of version 10.
    async fn package_of_version(
        &mut self,
        project: &str,
        function: &str,
        number: i32,
    ) -> Result<Fate<(PathBuf, String)>> {
        let Some(directory) = self.directory(project) else {
            return Ok(Err("its project is no name of a directory".to_owned()));
        };
        if !self.listed.contains_key(project) {
            self.listed.insert(project.to_owned(), list(&directory).await?);
        }
        let mut found = self.listed[project].iter().filter_map(|name| {
            let md5 =
                name.strip_prefix(function)?.strip_prefix(&format!("_{number}_"))?.strip_suffix(".zip")?;
            is_md5(md5).then(|| (directory.join(name), md5.to_owned()))
        });
        Ok(match (found.next(), found.next()) {
            (Some(package), None) => Ok(package),
            (None, _) => Err(format!("{} has no package of it", directory.display())),
            // A number that was given again; which of them was meant, nobody knows.
            (Some(_), Some(_)) => Err(format!("{} has more than one package of it", directory.display())),
        })
    }

    fn aliases(&mut self, rows: Vec<qinling::Alias>) {
        for row in rows {
            self.report.aliases.read += 1;
            if self.here.aliases.contains(&row.id) {
                self.report.aliases.left += 1;
                continue;
            }
            let id = row.id.clone();
            match self.alias(row) {
                Ok(model) => {
                    self.report.aliases.imported += 1;
                    self.rows.aliases.push(model);
                }
                Err(reason) => self.report.aliases.skipped.push((id, reason)),
            }
        }
    }

    fn alias(&mut self, row: qinling::Alias) -> Fate<alias::Model> {
        let version = number(row.function_version)?;
        let function = row.function_id.clone().ok_or("it has no function")?;
        self.check_target(&row.project_id, &function, version)?;
        let target = (row.project_id.clone(), function.clone(), version);
        let name = (row.project_id.clone(), row.name.clone());
        if self.here.targets.contains(&target) {
            return Err("another alias here stands for the same version".to_owned());
        }
        if self.here.names.contains(&name) {
            return Err(format!("its project has another alias {} here", row.name));
        }
        self.here.targets.insert(target);
        self.here.names.insert(name);
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        Ok(alias::Model {
            id: row.id,
            project_id: row.project_id.into(),
            name: row.name,
            function_id: function.into(),
            function_version: version,
            description: row.description,
            canary_version: None,
            canary_weight: 0,
            previous_version: None,
            created_at,
            updated_at,
        })
    }

    fn jobs(&mut self, rows: Vec<qinling::Job>) {
        for row in rows {
            self.report.jobs.read += 1;
            if self.here.jobs.contains(&row.id) {
                self.report.jobs.left += 1;
                continue;
            }
            let id = row.id.clone();
            match self.job(row) {
                Ok(model) => {
                    self.report.jobs.imported += 1;
                    self.rows.jobs.push(model);
                }
                Err(reason) => self.report.jobs.skipped.push((id, reason)),
            }
        }
    }

    fn job(&self, row: qinling::Job) -> Fate<job::Model> {
        let status = match row.status.as_str() {
            "running" => JobStatus::Running,
            "paused" => JobStatus::Paused,
            "done" => JobStatus::Done,
            "cancelled" => JobStatus::Cancelled,
            other => return Err(format!("its status {other} is none that a job has here")),
        };
        let version = self.check_reference(
            &row.project_id,
            row.function_id.as_deref(),
            row.function_version,
            row.function_alias.as_deref(),
        )?;
        if let Some(pattern) = &row.pattern
            && Schedule::parse(pattern).is_none()
        {
            return Err(format!("its pattern {pattern:?} is none that can be followed here"));
        }
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        Ok(job::Model {
            id: row.id.into(),
            project_id: row.project_id.into(),
            name: row.name,
            pattern: row.pattern,
            status,
            status_reason: None,
            first_execution_time: row.first_execution_time.map(qinling::timestamp),
            // In the past, too: it is then an instant that was missed.
            next_execution_time: qinling::timestamp(row.next_execution_time),
            count: row.count.and_then(|count| i32::try_from(count).ok()),
            function_id: row.function_id.map(Into::into),
            function_version: Some(version),
            function_alias: row.function_alias,
            function_input: row.function_input,
            created_at,
            updated_at,
        })
    }

    fn webhooks(&mut self, rows: Vec<qinling::Webhook>) {
        for row in rows {
            self.report.webhooks.read += 1;
            if self.here.webhooks.contains(&row.id) {
                self.report.webhooks.left += 1;
                continue;
            }
            let id = row.id.clone();
            match self.webhook(row) {
                Ok(model) => {
                    self.report.webhooks.imported += 1;
                    self.rows.webhooks.push(model);
                }
                Err(reason) => self.report.webhooks.skipped.push((id, reason)),
            }
        }
    }

    fn webhook(&self, row: qinling::Webhook) -> Fate<webhook::Model> {
        let version = self.check_reference(
            &row.project_id,
            row.function_id.as_deref(),
            row.function_version,
            row.function_alias.as_deref(),
        )?;
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        Ok(webhook::Model {
            id: row.id.clone().into(),
            project_id: row.project_id.into(),
            // One by an alias has neither, as the API shows it.
            function_version: row.function_id.is_some().then_some(version),
            function_id: row.function_id.map(Into::into),
            function_alias: row.function_alias,
            description: row.description,
            // So that its URL goes on.
            url_key: Some(row.id),
            mode: WebhookMode::Async,
            is_public: true,
            secret: None,
            created_at,
            updated_at,
        })
    }

    /// What a job or a webhook runs is here: the function and its version, or the alias. The version.
    fn check_reference(
        &self,
        project: &str,
        function: Option<&str>,
        version: Option<i64>,
        alias: Option<&str>,
    ) -> Fate<i32> {
        let version = number(version)?;
        match (function, alias) {
            (Some(function), _) => self.check_target(project, function, version)?,
            (None, Some(alias)) => {
                if !self.here.names.contains(&(project.to_owned(), alias.to_owned())) {
                    return Err(format!("its alias {alias} is not here"));
                }
            }
            (None, None) => return Err("it names neither a function nor an alias".to_owned()),
        }
        Ok(version)
    }

    fn check_target(&self, project: &str, function: &str, version: i32) -> Fate<()> {
        match self.here.functions.get(function) {
            None => Err(format!("its function {function} is not here")),
            Some(owner) if owner != project => {
                Err(format!("its function {function} belongs to another project"))
            }
            Some(_) if version > 0 && !self.here.numbers.contains(&(function.to_owned(), version)) => {
                Err(format!("version {version} of its function {function} is not here"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Keeps a package, and says its digest and size.
    async fn keep(&mut self, package: Option<Received>) -> Result<Option<(String, i64)>> {
        let Some(package) = package else { return Ok(None) };
        let facts = (package.digest.clone(), i64::try_from(package.bytes).map_err(Error::internal)?);
        if let Some((packages, kept)) = &mut self.keep {
            kept.push(package.digest.clone());
            packages.keep(package).await?;
        }
        Ok(Some(facts))
    }

    /// Where a project's packages are; `None` for a project whose id might lead elsewhere.
    fn directory(&self, project: &str) -> Option<PathBuf> {
        is_name(project).then(|| self.imports.packages.join(project))
    }
}

/// The names of the files in a directory; none where there is no such directory.
async fn list(directory: &Path) -> Result<Vec<String>> {
    let unreadable =
        |error| Error::Invalid(format!("The directory {} can not be read: {error}", directory.display()));
    let mut entries = match tokio::fs::read_dir(directory).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// Whether this is one part of a path and no more.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn positive(number: Option<i64>) -> Option<i32> {
    number.and_then(|number| i32::try_from(number).ok()).filter(|&number| number > 0)
}

/// The number of a version, which is 0 where there is none.
fn number(version: Option<i64>) -> Fate<i32> {
    match i32::try_from(version.unwrap_or(0)) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err("its version is no number of a version".to_owned()),
    }
}

#[cfg(test)]
mod tests;
