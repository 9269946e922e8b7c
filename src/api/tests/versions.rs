//! Versions.

use super::*;

#[actix_web::test]
async fn a_version_keeps_its_number_and_its_package() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    let path = format!("/v1/functions/{id}/versions");
    assert_eq!(site.ask("demo", Method::GET, &path).await.json(), json!({"function_versions": []}));

    let described = site.ask_json("demo", Method::POST, &path, json!({"description": "first"})).await;
    assert_eq!(described.status, 201);
    let first = described.json();
    assert_eq!((&first["version_number"], &first["description"]), (&json!(1), &json!("first")));
    assert_eq!(
        (&first["entry"], &first["cpu"], &first["os_session"]),
        (&json!("main.main"), &json!(100), &json!(false))
    );
    let unchanged = (403, "Function package not changed since the latest version 1.".to_owned());
    assert_eq!(site.publish(&id).await.fault(), unchanged);
    site.upload(&id, &numbered(1)).await;
    assert_eq!(site.publish(&id).await.json()["version_number"], 2);
    assert_eq!(site.files(), 2);

    let latest = async || {
        site.ask("demo", Method::GET, &format!("/v1/functions/{id}")).await.json()["latest_version"].clone()
    };
    let download = async |who: &str, number: usize| {
        site.ask(who, Method::GET, &format!("{path}/{number}?download=1&other=x")).await
    };
    for who in ["demo", "admin"] {
        let zip = download(who, 1).await;
        assert_eq!((zip.status, zip.header("content-type")), (200, "application/zip"));
        assert_eq!(zip.header("content-disposition"), format!("attachment; filename=\"{id}_1\""));
        assert_eq!(zip.body, numbered(0));
    }
    assert_eq!(download("alt", 1).await.status, 404);

    // The highest goes, and its number with it.
    assert_eq!(latest().await, 2);
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/2")).await.status, 204);
    assert_eq!(latest().await, 1);
    assert_eq!(site.publish(&id).await.json()["version_number"], 3);
    assert_eq!(latest().await, 3);
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/1")).await.status, 204);
    assert_eq!((latest().await, site.files()), (json!(3), 1));
    let listed = site.ask("demo", Method::GET, &path).await.json();
    let numbers: Vec<_> = listed["function_versions"].as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 1);
    assert_eq!(numbers[0]["version_number"], 3);

    site.upload(&id, &numbered(2)).await;
    assert_eq!(site.files(), 2, "a version has it still");
    assert_eq!(site.ask("demo", Method::DELETE, &format!("/v1/functions/{id}")).await.status, 204);
    assert_eq!(site.files(), 0);
}

#[actix_web::test]
async fn ten_versions_exist_at_once_however_many_are_made() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for number in 1..=10 {
        site.upload(&id, &numbered(number)).await;
        assert_eq!(site.publish(&id).await.json()["version_number"], number);
    }
    site.upload(&id, &numbered(11)).await;
    let full = (403, "Can not exceed maximum number(10) of versions".to_owned());
    assert_eq!(site.publish(&id).await.fault(), full);
    // Version 1 is not taken for version 10.
    let path = format!("/v1/functions/{id}/versions");
    assert_eq!(site.ask("demo", Method::DELETE, &format!("{path}/1")).await.status, 204);
    let tenth = site.ask("demo", Method::GET, &format!("{path}/10?download=true")).await;
    assert_eq!(tenth.body, numbered(10));
    assert_eq!(site.publish(&id).await.json()["version_number"], 11);
}

#[actix_web::test]
async fn of_versions_that_are_made_at_once_one_is_made() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    let answers = futures_util::future::join_all((0..8).map(|_| site.publish(&id))).await;
    let made = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers.iter().filter(|answer| answer.status == 403).count();
    assert_eq!((made, refused), (1, 7));
    site.upload(&id, &numbered(1)).await;
    assert_eq!(site.publish(&id).await.json()["version_number"], 2);
}

#[actix_web::test]
async fn a_version_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    site.publish(&id).await;
    let path = format!("/v1/functions/{id}/versions");
    let no_version =
        |number: i32| (404, format!("FunctionVersion not found [function_id={id}, version_number={number}]"));
    let no_function = (404, format!("Function not found [id={id}]"));
    let invalid = |text: &str| (400, text.to_owned());
    // For the project alone, whoever asks.
    for who in ["alt", "admin:other"] {
        assert_eq!(site.ask_json(who, Method::POST, &path, json!({})).await.fault(), no_function, "{who}");
        assert_eq!(site.ask(who, Method::DELETE, &format!("{path}/1")).await.fault(), no_version(1), "{who}");
    }
    assert_eq!(site.ask("alt", Method::GET, &path).await.fault(), no_function);
    assert_eq!(site.ask("alt", Method::GET, &format!("{path}/1")).await.fault(), no_version(1));
    assert_eq!(site.ask("admin:other", Method::GET, &format!("{path}/1")).await.status, 200);
    for number in [0, 2] {
        for method in [Method::GET, Method::DELETE] {
            let answer = site.ask("demo", method, &format!("{path}/{number}")).await;
            assert_eq!(answer.fault(), no_version(number));
        }
    }
    let start = "Invalid input for field/attribute version. Value:";
    assert_eq!(
        site.ask("demo", Method::GET, &format!("{path}/one")).await.fault(),
        invalid(&format!("{start} 'one'. An integer is required."))
    );
    for (method, path) in [
        (Method::GET, "/v1/functions/x/versions/1".to_owned()),
        (Method::DELETE, format!("{path}/-1")),
        (Method::GET, format!("{path}?bogus=1")),
    ] {
        assert_eq!(site.ask("demo", method, &path).await.status, 400, "{path}");
    }
    for (body, text) in [
        (json!({"bogus": 1}), "Unknown attribute for argument body: bogus"),
        (json!({"description": "x".repeat(256)}), "description may have at most 255 characters."),
    ] {
        assert_eq!(site.ask_json("demo", Method::POST, &path, body).await.fault(), invalid(text));
    }
    let bare = site.ask("demo", Method::POST, &path).await;
    assert_eq!(bare.fault(), invalid("Missing argument: \"body\""));

    let image = json!({"code": {"source": "image", "image": "x"}});
    let image = site.ask_json("demo", Method::POST, "/v1/functions", image).await.json();
    let path = format!("/v1/functions/{}/versions", image["id"].as_str().unwrap());
    let refused = (403, "Function versioning only allowed for package type function.".to_owned());
    assert_eq!(site.ask_json("demo", Method::POST, &path, json!({})).await.fault(), refused);

    for (action, body) in [("scale_up", true), ("scale_down", true), ("detach", false)] {
        let path = |number: i32| format!("/v1/functions/{id}/versions/{number}/{action}");
        let ask = async |who: &str, number: i32| match body {
            true => site.ask_json(who, Method::POST, &path(number), json!({"count": 1})).await,
            false => site.ask(who, Method::POST, &path(number)).await,
        };
        assert_eq!(ask("demo", 1).await.fault(), (403, "Operation not allowed".to_owned()));
        assert_eq!(ask("admin", 2).await.fault(), no_version(2));
    }
    let detached = site.ask("admin", Method::POST, &format!("/v1/functions/{id}/versions/1/detach")).await;
    assert_eq!((detached.status, detached.body.len()), (202, 0));
}
