//! The API reference, `api-ref/source`, beside the routes that there are.

use std::collections::HashSet;
use std::path::Path;

use super::callers::bare;
use super::*;

/// Every `.. rest_method::` of the API reference.
fn documented_routes() -> HashSet<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("api-ref/source");
    let mut directories = vec![source];
    let mut routes = HashSet::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rst" || extension == "inc") {
                let text = std::fs::read_to_string(&path).unwrap();
                for line in text.lines().filter_map(|line| line.strip_prefix(".. rest_method:: ")) {
                    let (method, path) = line.split_once(' ').expect("a method and a path");
                    assert!(routes.insert((method.to_owned(), bare(path))), "twice: {line}");
                }
            }
        }
    }
    routes
}

#[actix_web::test]
async fn every_route_is_in_the_api_reference_and_nothing_else_is() {
    site().await.ask("demo", Method::GET, "/").await;
    let mut routes: HashSet<_> = TABLE
        .with_borrow(|table| table.iter().map(|(method, path)| (method.to_string(), bare(path))).collect());
    // The server itself answers it, beside the API.
    routes.insert(("GET".to_owned(), "/metrics".to_owned()));
    let documented = documented_routes();
    let missing: Vec<_> = routes.difference(&documented).collect();
    assert!(missing.is_empty(), "not in api-ref/source: {missing:?}");
    let unknown: Vec<_> = documented.difference(&routes).collect();
    assert!(unknown.is_empty(), "in api-ref/source, and no route: {unknown:?}");
}

#[test]
fn every_reason_is_in_the_api_reference_and_in_the_users_guide_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("api-ref/source/v1/executions.rst")).unwrap();
    let (_, table) = text.split_once("\nReasons\n=======\n").unwrap();
    let (table, _) = table.split_once("\n===").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("   * - ``"));
    let documented: Vec<&str> = rows.map(|row| row.trim_end_matches('`')).collect();
    let words: Vec<&str> = crate::model::Reason::words().collect();
    assert_eq!(documented, words);

    let text = std::fs::read_to_string(root.join("doc/source/user/errors.md")).unwrap();
    for word in words {
        assert!(text.contains(&format!("\n| `{word}` | ")), "{word} is not in doc/source/user/errors.md");
    }
}
