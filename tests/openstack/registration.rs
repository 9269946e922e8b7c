//! `taibai register` and `taibai unregister`, with names that nobody else uses.

use std::collections::BTreeSet;
use std::process::Command;

use taibai::config::KeystoneAuthtoken;
use taibai::model::Interface;
use taibai::quota::{Quotas, Resource};

use crate::cloud::{Cloud, eventually, ours};

struct Site {
    directory: tempfile::TempDir,
    name: String,
    password: String,
}

impl Site {
    /// Runs the command as the cloud's administrator; its lines, or the one that says what is wrong.
    fn run(&self, arguments: &[&str]) -> Result<Vec<String>, String> {
        let auth_url = Cloud::open().auth_url().to_owned();
        let Self { directory, name, password } = self;
        let file = directory.path().join("taibai.conf");
        let text = format!(
            "[keystone_authtoken]\nauth_url = {auth_url}\nusername = {name}\npassword = {password}\n\
             project_name = {name}\nservice_type = {name}\nregion_name = {name}\n"
        );
        std::fs::write(&file, text).unwrap();
        let state = std::env::var("TAIBAI_TEST_CLOUD").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taibai"));
        command.arg("--config-file").arg(&file).args(arguments);
        command.env("OS_CLOUD", "admin").env("OS_CLIENT_CONFIG_FILE", format!("{state}/clouds.yaml"));
        let output = command.output().unwrap();
        let lines = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(lines(output.stdout).lines().map(str::to_owned).collect())
        } else {
            Err(lines(output.stderr))
        }
    }
}

/// The first word of each line.
fn done(lines: &[String]) -> BTreeSet<&str> {
    lines.iter().map(|line| line.split(' ').next().unwrap()).collect()
}

#[tokio::test]
async fn a_service_is_registered_once_however_often_it_is_done() {
    let cloud = Cloud::open();
    let name = format!("t-{}", uuid::Uuid::new_v4());
    let mut site =
        Site { directory: tempfile::tempdir().unwrap(), name: name.clone(), password: "first".into() };
    let register =
        ["register", "--public-url", "http://controller:7070/", "--internal-url", "http://inside:7070"];

    let made = site.run(&register).unwrap();
    for line in [
        format!("made     project {name}"),
        format!("made     user {name}"),
        format!("made     role service of user {name} in project {name}"),
        "made     service taibai".to_owned(),
        format!("made     region {name}"),
        format!("made     endpoint public http://controller:7070 in {name}"),
        format!("made     endpoint internal http://inside:7070 in {name}"),
        format!("made     endpoint admin http://inside:7070 in {name}"),
    ] {
        assert!(made.contains(&line), "{line} is missing in {made:#?}");
    }

    // The catalog has it, and the user may do its work.
    let demo = cloud.user("demo").await;
    let url = demo.info.catalog.endpoint(&name, Interface::Public, Some(&name));
    assert_eq!(url, Some("http://controller:7070"));
    let section = KeystoneAuthtoken {
        username: name.clone(),
        password: "first".into(),
        project_name: name.clone(),
        ..cloud.section()
    };
    ours(&section).keystone.validate(&demo.token, None).await.unwrap();

    let again = site.run(&register).unwrap();
    assert_eq!(done(&again), BTreeSet::from(["found"]), "{again:#?}");

    site.password = "second".to_owned();
    let moved = site.run(&["register", "--public-url", "http://elsewhere:7070"]).unwrap();
    let changed: Vec<_> = moved.iter().filter(|line| !line.starts_with("found")).cloned().collect();
    assert_eq!(
        changed,
        [
            format!("changed  password of user {name}"),
            format!("changed  endpoint public http://elsewhere:7070 in {name}"),
            format!("changed  endpoint internal http://elsewhere:7070 in {name}"),
            format!("changed  endpoint admin http://elsewhere:7070 in {name}"),
        ]
    );
    let section = KeystoneAuthtoken { password: "second".into(), ..section };
    // Keystone counts in seconds, and revokes what it issued in the one in which a password changed.
    eventually("a token by the new password is good", async || {
        ours(&section).keystone.validate(&demo.token, None).await.is_ok()
    })
    .await;

    let removed = site.run(&["unregister"]).unwrap();
    for what in [
        "service taibai".to_owned(),
        format!("user {name}"),
        format!("project {name}"),
        format!("region {name}"),
    ] {
        assert!(removed.contains(&format!("removed  {what}")), "{what} in {removed:#?}");
    }
    assert_eq!(cloud.user("demo").await.info.catalog.endpoint(&name, Interface::Public, None), None);
    let nothing = site.run(&["unregister"]).unwrap();
    assert!(!done(&nothing).contains("removed"), "{nothing:#?}");
}

#[tokio::test]
async fn limits_are_registered_once_and_count_for_projects_until_they_are_taken_away() {
    let cloud = Cloud::open();
    let name = format!("t-{}", uuid::Uuid::new_v4());
    let site = Site { directory: tempfile::tempdir().unwrap(), name: name.clone(), password: "first".into() };
    let url = "http://controller:7070";
    let without = site.run(&["register", "--public-url", url]).unwrap();
    assert!(!without.iter().any(|line| line.contains("limit")), "{without:#?}");
    let register = ["register", "--public-url", url, "--limits"];
    let made = site.run(&register).unwrap();
    let limits = [
        "functions = 1000",
        "function_versions = 10000",
        "function_aliases = 1000",
        "jobs = 1000",
        "webhooks = 1000",
        "concurrent_executions = 10000",
        "package_mebibytes = 51200",
    ];
    for limit in limits {
        assert!(made.contains(&format!("made     registered limit {limit}")), "{limit} in {made:#?}");
    }
    let again = site.run(&register).unwrap();
    assert_eq!(done(&again), BTreeSet::from(["found"]), "{again:#?}");

    // What an administrator changes stays, and projects may have limits of their own.
    let section = KeystoneAuthtoken {
        username: name.clone(),
        password: "first".into(),
        project_name: name.clone(),
        service_type: name.clone(),
        region_name: name.clone(),
        ..cloud.section()
    };
    let keystone = ours(&section).keystone;
    let (service, region) = keystone.service_in_catalog(&name).await.unwrap();
    assert_eq!(region.as_deref(), Some(name.as_str()));
    let registered = keystone.registered_limits(&service, region.as_deref()).await.unwrap();
    assert_eq!((registered["functions"], registered.len()), (1000, limits.len()));
    assert_eq!(keystone.limit_model().await.unwrap(), "flat");
    cloud.set_registered_limit(&service, "functions", 3).await;
    let again = site.run(&register).unwrap();
    assert!(again.contains(&"found    registered limit functions = 3".to_owned()), "{again:#?}");
    let demo = cloud.user("demo").await.info.project_id.clone().unwrap();
    cloud.set_limit(&service, &name, &demo, "functions", 2).await;

    let config = |driver| {
        let mut config = taibai::config::Config { keystone_authtoken: section.clone(), ..Default::default() };
        config.quotas.driver = driver;
        config.quotas.cache_time = std::time::Duration::from_secs(1);
        config
    };
    let unified = config(taibai::config::QuotaDriver::UnifiedLimits);
    let mut way = cloud.way().await;
    let by_way = KeystoneAuthtoken { auth_url: way.section(&cloud).auth_url, ..section.clone() };
    // Keystone is where the token came from: no region of this name has it.
    let asked = ours(&by_way);
    let quotas = Quotas::new(&unified, Some(&asked.keystone));
    let limit =
        async |quotas: &Quotas, project: &str| quotas.limits(&project.into()).await.get(Resource::Functions);
    assert_eq!(limit(&quotas, &demo).await, Some(2));
    assert_eq!(limit(&quotas, "any-other").await, Some(3));
    let before = asked.calls("limits");
    assert_eq!(limit(&quotas, &demo).await, Some(2));
    assert_eq!(asked.calls("limits"), before, "what is known is not asked again");

    cloud.set_limit(&service, &name, &demo, "functions", -1).await;
    eventually("the new limit counts", async || limit(&quotas, &demo).await.is_none()).await;
    // While Keystone is away, what it said last counts, and the configuration for whom it was never asked.
    way.cut().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(limit(&quotas, &demo).await, None);
    assert_eq!(limit(&quotas, "never-seen").await, Some(1000));
    way.mend().await;
    eventually("Keystone is asked again", async || limit(&quotas, "never-seen").await == Some(3)).await;
    let own = Quotas::new(&config(taibai::config::QuotaDriver::Config), Some(&asked.keystone));
    assert_eq!(limit(&own, &demo).await, Some(1000));

    let removed = site.run(&["unregister"]).unwrap();
    assert!(removed.contains(&format!("removed  limit functions of project {demo}")), "{removed:#?}");
    for limit in limits {
        let limit = limit.split(' ').next().unwrap();
        assert!(removed.contains(&format!("removed  registered limit {limit}")), "{removed:#?}");
    }
    assert!(removed.contains(&"removed  service taibai".to_owned()), "{removed:#?}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let site =
        Site { directory: tempfile::tempdir().unwrap(), name: "unused".into(), password: String::new() };
    let refused = site.run(&["register", "--public-url", "http://controller:7070"]).unwrap_err();
    assert!(refused.contains("[keystone_authtoken] password: must not be empty"), "{refused}");
    let refused = site.run(&["register", "--public-url", "controller:7070"]).unwrap_err();
    assert!(refused.contains("expected a URL such as http://controller:7070"), "{refused}");
}
