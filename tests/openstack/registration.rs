//! `taibai register` and `taibai unregister`, with names that nobody else uses.

use std::collections::BTreeSet;
use std::process::Command;

use taibai::config::KeystoneAuthtoken;
use taibai::model::Interface;

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
async fn what_is_missing_is_named() {
    let site =
        Site { directory: tempfile::tempdir().unwrap(), name: "unused".into(), password: String::new() };
    let refused = site.run(&["register", "--public-url", "http://controller:7070"]).unwrap_err();
    assert!(refused.contains("[keystone_authtoken] password: must not be empty"), "{refused}");
    let refused = site.run(&["register", "--public-url", "controller:7070"]).unwrap_err();
    assert!(refused.contains("expected a URL such as http://controller:7070"), "{refused}");
}
