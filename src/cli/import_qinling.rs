//! `taibai import-qinling`: what a Qinling deployment has, brought into this one's database and package store.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::{Result, runtime};
use crate::config::Config;
use crate::db::{Db, qinling};
use crate::resource::imports::{Imports, Report, Tally};
use crate::storage::{LocalStore, PackageStore};
use crate::{server, telemetry};

#[derive(Debug, Args)]
pub struct ImportQinling {
    /// Qinling's database, as `[database] connection` in qinling.conf: sqlite:///PATH or
    /// mysql+pymysql://USER:PASSWORD@HOST/NAME. It is only read. In the environment no other user sees it.
    #[arg(long, value_name = "URL", env = "TAIBAI_QINLING_DATABASE", hide_env_values = true)]
    database: String,
    /// Qinling's packages, as `[storage] file_system_dir` in qinling.conf.
    #[arg(long, value_name = "DIRECTORY")]
    packages: PathBuf,
    /// Gives a runtime with the image OLD the image NEW, once for each image of Qinling's.
    #[arg(long = "runtime-image", value_name = "OLD=NEW", value_parser = mapping)]
    images: Vec<(String, String)>,
    /// Reads and checks everything, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(arguments: ImportQinling, path: Option<&Path>) -> Result {
    let config = Config::load(path)?;
    telemetry::init(&config.logging)?;
    let dry_run = arguments.dry_run;
    let report = runtime()?.block_on(import(&config, arguments))?;
    print(&mut std::io::stdout().lock(), &report, dry_run)?;
    Ok(())
}

async fn import(config: &Config, arguments: ImportQinling) -> Result<Report> {
    let ImportQinling { database, packages, images, dry_run } = arguments;
    if !packages.is_dir() {
        return Err(format!("--packages: there is no directory {}", packages.display()).into());
    }
    let db = Db::connect(&config.database).await?;
    if !db.pending_migrations().await?.is_empty() {
        return Err("the tables are not of this release yet; run taibai db sync".into());
    }
    let from = qinling::read(&database).await?;
    // What is only tried is received elsewhere, so that nothing at all is left.
    let scratch = tempfile::tempdir()?;
    let store: Arc<dyn PackageStore> = match dry_run {
        true => Arc::new(LocalStore::open(scratch.path(), config.storage.max_package_bytes).await?),
        false => server::open_store(config).await?,
    };
    let imports = Imports {
        db: db.clone(),
        store,
        packages,
        images: images.into_iter().collect::<BTreeMap<_, _>>(),
        limits: config.resource_limits.clone(),
        archive: config.storage.archive_limits(),
    };
    let report = imports.run(from, dry_run).await?;
    db.close().await?;
    Ok(report)
}

fn print(out: &mut impl Write, report: &Report, dry_run: bool) -> std::io::Result<()> {
    let tables: [(&str, &Tally); 6] = [
        ("runtimes", &report.runtimes),
        ("functions", &report.functions),
        ("versions", &report.versions),
        ("aliases", &report.aliases),
        ("jobs", &report.jobs),
        ("webhooks", &report.webhooks),
    ];
    let imported = if dry_run { "would be" } else { "imported" };
    writeln!(out, "{:<10} {:>8} {:>9} {:>8} {:>8}", "", "read", imported, "left", "skipped")?;
    for (name, tally) in tables {
        let Tally { read, imported, left, skipped } = tally;
        writeln!(out, "{name:<10} {read:>8} {imported:>9} {left:>8} {:>8}", skipped.len())?;
    }
    for (name, tally) in tables {
        for (id, reason) in &tally.skipped {
            writeln!(out, "skipped of {name}: {id}: {reason}")?;
        }
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out, "Executions stay where they are.")?;
    if dry_run {
        writeln!(out, "Nothing was written.")?;
    }
    Ok(())
}

/// `OLD=NEW`. No name of an image has an `=`.
fn mapping(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("expected OLD=NEW, as in openstackqinling/python3-runtime:0.0.2=taibai/python3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_mapped_to_one() {
        assert_eq!(mapping("q/py:1=t/py"), Ok(("q/py:1".to_owned(), "t/py".to_owned())));
        for text in ["", "q", "=t", "q="] {
            assert!(mapping(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_report_counts_and_gives_reasons() {
        let report = Report {
            functions: Tally {
                read: 3,
                imported: 1,
                left: 1,
                skipped: vec![("f-1".to_owned(), "it has no runtime".to_owned())],
            },
            warnings: vec!["look".to_owned()],
            ..Report::default()
        };
        let mut out = Vec::new();
        print(&mut out, &report, true).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("functions         3         1        1        1\n"), "{out}");
        assert!(out.contains("skipped of functions: f-1: it has no runtime\nwarning: look\n"), "{out}");
        assert!(out.ends_with("Nothing was written.\n"), "{out}");
    }
}
