//! Lists of executions.

use super::*;

#[actix_web::test]
async fn a_long_list_of_executions_is_whole_and_its_parts_are_too() {
    let site = site().await;
    let rows: Vec<execution::Model> = (0..2500)
        .map(|at| execution::Model {
            project_id: "demo".into(),
            created_at: Timestamp(at / 3),
            // Some are large, so that the parts that are read differ.
            result: Some(json!({"output": "x".repeat(if at % 500 == 0 { 300_000 } else { 9 })}).to_string()),
            ..db::testing::execution(if at % 2 == 0 {
                ExecutionStatus::Success
            } else {
                ExecutionStatus::Failed
            })
        })
        .collect();
    let transaction = site.app.db.begin().await.unwrap();
    db::executions::insert_many(&transaction, rows.clone()).await.unwrap();
    transaction.commit().await.unwrap();
    let listed = async |query: &str| -> Vec<String> {
        let answer = site.ask("demo", Method::GET, &format!("/v1/executions{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
        let ids = answer.json()["executions"].as_array().unwrap().clone();
        ids.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected: Vec<_> =
        rows.iter().map(|row| (row.created_at, row.id.to_string(), row.status)).collect();
    expected.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let all: Vec<String> = expected.iter().map(|(_, id, _)| id.clone()).collect();
    assert!(listed("").await == all, "the whole list, in order");
    let reversed: Vec<String> = all.iter().rev().cloned().collect();
    assert!(listed("?sort=created_at:desc").await == reversed, "from the latest");
    let failed = expected.iter().filter(|(.., status)| *status == ExecutionStatus::Failed);
    let failed: Vec<String> = failed.map(|(_, id, _)| id.clone()).collect();
    assert!(listed("?status=failed").await == failed, "those that failed");

    let path = format!("?limit=700&marker={}", all[99]);
    assert!(listed(&path).await == all[100..800], "a part");
    assert_eq!(listed(&format!("?limit=5&marker={}", all[2497])).await, all[2498..]);
    assert_eq!(listed(&format!("?marker={}", all[2499])).await, Vec::<String>::new());

    let refuse =
        async |query: &str| site.ask("demo", Method::GET, &format!("/v1/executions?{query}")).await.fault();
    let marker = (400, format!("marker: nothing in this list has the id {NOWHERE:?}."));
    assert_eq!(refuse(&format!("marker={NOWHERE}")).await, marker);
    assert_eq!(listed("?sort=status:desc&limit=1000").await.len(), 1000);
    for (query, end) in [
        ("limit=0", "Value should be greater or equal to 1"),
        ("sort=status", "by status, executions are listed with a limit of 1000 at most."),
        ("sort=status&limit=1001", "by status, executions are listed with a limit of 1000 at most."),
        ("sort=input", "One of created_at, updated_at, status is required, and :asc or :desc behind it."),
        ("sort=status:up", "One of created_at, updated_at, status is required, and :asc or :desc behind it."),
    ] {
        let (status, text) = refuse(query).await;
        assert!(status == 400 && text.ends_with(end), "{query}: {text}");
    }
}
