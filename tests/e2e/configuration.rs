//! Starts that are refused, each with one line that says why.

use std::process::Command;

use crate::service::{Home, Service};

fn refused(options: &[(&str, &str)]) -> String {
    refused_as("serve", options)
}

fn refused_as(role: &str, options: &[(&str, &str)]) -> String {
    let home = Home::new(options);
    let output = Command::new(env!("CARGO_BIN_EXE_taibai"))
        .args(["--config-file", &home.config_file().display().to_string(), role])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_bad_configuration_stops_the_start_with_one_line() {
    let cases = [
        (("engine.max_worker", "3"), ["max_worker", "max_workers"]),
        (("engine.idle_timeout", "5x"), ["idle_timeout", "duration"]),
        (("engin.max_workers", "3"), ["engin", "engine"]),
        (("api.host", "0.0.0.0"), ["noauth", "allow_noauth_from_anywhere"]),
        (("database.connection", "oracle://x"), ["connection", "sqlite"]),
        (("resource_limits.min_cpu", "9000"), ["min_cpu", "max_cpu"]),
    ];
    for (option, words) in cases {
        let line = refused(&[option]);
        assert!(words.iter().all(|word| line.contains(word)), "{option:?}: {line}");
    }
}

#[test]
fn the_separate_roles_refuse_a_file_and_say_why() {
    for role in ["api", "engine"] {
        let line = refused_as(role, &[("database.connection", "sqlite:////run/none.sqlite")]);
        assert!(["SQLite", "one process", "PostgreSQL"].iter().all(|word| line.contains(word)), "{line}");
    }
}

#[tokio::test]
async fn a_second_service_on_the_same_workers_is_refused() {
    let service = Service::start(&[]).await;
    let config = service.home.path().join("taibai.conf");
    let output = Command::new(env!("CARGO_BIN_EXE_taibai"))
        .args(["--config-file", &config.display().to_string(), "serve"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("lock"), "{text}");
    service.stop_clean().await;
}
