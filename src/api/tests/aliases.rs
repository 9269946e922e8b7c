//! Aliases.

use super::*;

#[actix_web::test]
async fn an_alias_means_what_its_owner_says() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    site.publish(&id).await;
    site.upload(&id, &numbered(1)).await;
    site.publish(&id).await;
    let new = json!({"name": "prod", "function_id": id, "function_version": "1", "description": ""});
    let made = site.alias("demo", new).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    assert_eq!((&made["function_version"], &made["canary_version"]), (&json!(1), &Value::Null));

    let put = async |body: Value| {
        let answer = site.ask_json("demo", Method::PUT, "/v1/aliases/prod", body).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let row = answer.json();
        ["function_version", "canary_version", "canary_weight", "previous_version"]
            .map(|key| row[key].clone())
    };
    let none = || Value::Null;
    let nulls = json!({"function_id": null, "function_version": null, "description": "d", "name": "other"});
    assert_eq!(put(nulls).await, [json!(1), none(), json!(0), none()]);
    let shown = site.ask("demo", Method::GET, "/v1/aliases/prod/").await.json();
    assert_eq!((&shown["description"], &shown["id"]), (&json!("d"), &made["id"]));
    let canary = json!({"canary_version": "2", "canary_weight": 20});
    assert_eq!(put(canary).await, [json!(1), json!(2), json!(20), none()]);
    assert_eq!(put(json!({"canary_weight": 0})).await, [json!(1), json!(2), json!(0), none()]);
    assert_eq!(put(json!({"remove_canary": true})).await, [json!(1), none(), json!(0), none()]);
    assert_eq!(put(json!({"function_version": 2})).await, [json!(2), none(), json!(0), json!(1)]);
    put(json!({"canary_version": 0, "canary_weight": 100})).await;

    // A version that calls may get stays, and what an alias would return to does not.
    let version = |number: usize| format!("/v1/functions/{id}/versions/{number}");
    let needed = (403, "The function version is still associated with alias.".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, &version(2)).await.fault(), needed);
    let roll_back = async || site.ask("demo", Method::POST, "/v1/aliases/prod/rollback").await;
    let row = roll_back().await.json();
    assert_eq!((&row["function_version"], &row["canary_version"]), (&json!(2), &none()));
    let row = roll_back().await.json();
    assert_eq!((&row["function_version"], &row["previous_version"]), (&json!(1), &none()));
    let nothing = (409, "The alias prod has no version to return to.".to_owned());
    assert_eq!(roll_back().await.fault(), nothing);
    put(json!({"canary_version": 2, "canary_weight": 1})).await;
    assert_eq!(site.ask("demo", Method::DELETE, &version(2)).await.fault(), needed);
    put(json!({"function_version": 2})).await;
    assert_eq!(site.ask("demo", Method::DELETE, &version(1)).await.status, 204);
    assert_eq!(roll_back().await.fault(), nothing);

    let function = format!("/v1/functions/{id}");
    let held = (403, "The function is still associated with function alias(es).".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, &function).await.fault(), held);
    assert_eq!(site.ask("demo", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    let gone = (404, "FunctionAlias not found [name=prod]".to_owned());
    assert_eq!(site.ask("demo", Method::DELETE, "/v1/aliases/prod").await.fault(), gone);
    assert_eq!(site.ask("demo", Method::DELETE, &function).await.status, 204);
}

#[actix_web::test]
async fn an_alias_never_means_a_version_that_is_gone() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for number in 1..=6 {
        site.upload(&id, &numbered(number)).await;
        site.publish(&id).await;
    }
    let new = json!({"name": "prod", "function_id": id, "function_version": 1});
    assert_eq!(site.alias("demo", new).await.status, 201);
    for _ in 0..5 {
        let changes = (1..=6).map(|number| {
            let (canary, weight) = (7 - number, number * 10);
            json!({"function_version": number, "canary_version": canary, "canary_weight": weight})
        });
        let change = |body| site.ask_json("demo", Method::PUT, "/v1/aliases/prod", body);
        let roll_back = |_| site.ask("demo", Method::POST, "/v1/aliases/prod/rollback");
        let (site, id) = (&site, &id);
        let delete = |number| async move {
            site.ask("demo", Method::DELETE, &format!("/v1/functions/{id}/versions/{number}")).await
        };
        let (changed, back, deleted) = tokio::join!(
            futures_util::future::join_all(changes.map(change)),
            futures_util::future::join_all((0..4).map(roll_back)),
            futures_util::future::join_all((2..=5).map(delete)),
        );
        for answer in changed.into_iter().chain(back).chain(deleted) {
            assert!([200, 204, 403, 404, 409].contains(&answer.status), "{:?}", answer.body);
        }
        let listed = site.ask("demo", Method::GET, &format!("/v1/functions/{id}/versions")).await.json();
        let listed = listed["function_versions"].as_array().unwrap().clone();
        let there: Vec<_> = listed.iter().map(|row| &row["version_number"]).collect();
        let alias = site.ask("demo", Method::GET, "/v1/aliases/prod").await.json();
        for key in ["function_version", "canary_version", "previous_version"] {
            assert!(alias[key].is_null() || there.contains(&&alias[key]), "{key}: {alias} {there:?}");
        }
    }
}

#[actix_web::test]
async fn an_alias_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    site.publish(&id).await;
    assert_eq!(site.alias("demo", json!({"name": "a", "function_id": id})).await.status, 201);
    let required = "Required param is missing. Required: {'function_id', 'name'}";
    let duplicate = "Duplicate entry for function_aliases:";
    let with = |more: Value| {
        let mut body = json!({"name": "b", "function_id": id, "function_version": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, status, text) in [
        (json!({}), 400, required.to_owned()),
        (json!({"name": "b"}), 400, required.to_owned()),
        (with(json!({"name": ""})), 400, "name may not be empty.".to_owned()),
        (with(json!({"name": "a/b"})), 400, "name may not contain '/'.".to_owned()),
        (
            with(json!({"name": "a", "function_version": 9})),
            400,
            format!("{duplicate} ['project_id', 'name']"),
        ),
        (
            with(json!({"function_version": 0})),
            400,
            format!("{duplicate} ['project_id', 'function_id', 'function_version']"),
        ),
        (with(json!({"function_id": NOWHERE})), 404, format!("Function not found [id={NOWHERE}]")),
        (
            with(json!({"function_version": 9})),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=9]"),
        ),
        (
            with(json!({"canary_version": 9})),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=9]"),
        ),
        (
            with(json!({"canary_version": 1})),
            400,
            "canary_version has to be another version than function_version.".to_owned(),
        ),
        (
            with(json!({"canary_version": 0, "canary_weight": 101})),
            400,
            "canary_weight is a percentage, from 0 to 100.".to_owned(),
        ),
        (
            with(json!({"previous_version": 1})),
            400,
            "Invalid input for field/attribute previous_version. Value: '1'. Cannot set read only field."
                .to_owned(),
        ),
        (
            with(json!({"remove_canary": true})),
            400,
            "Unknown attribute for argument body: remove_canary".to_owned(),
        ),
    ] {
        assert_eq!(site.alias("demo", body.clone()).await.fault(), (status, text), "{body}");
    }
    let listed = site.ask("demo", Method::GET, "/v1/aliases").await.json();
    assert_eq!(listed["function_aliases"].as_array().unwrap().len(), 1, "{listed}");

    // Another project's function cannot be named, by an administrator neither.
    for who in ["alt", "admin:other"] {
        let foreign = site.alias(who, json!({"name": "x", "function_id": id})).await.fault();
        assert_eq!(foreign, (404, format!("Function not found [id={id}]")), "{who}");
    }
    let repoint = site.ask_json("demo", Method::PUT, "/v1/aliases/a", json!({"function_version": 3})).await;
    assert_eq!(repoint.status, 404);
    assert_eq!(site.ask("demo", Method::GET, "/v1/aliases/a%00").await.status, 404);
    assert_eq!(site.ask("demo", Method::GET, "/v1/aliases?name=a").await.status, 400);
}

#[actix_web::test]
async fn an_administrator_means_the_own_alias_before_anothers() {
    let site = site().await;
    let id = site.create(&numbered(0)).await;
    for name in ["prod", "a b%2F?ü"] {
        let body = json!({"name": name, "function_id": id, "description": "theirs"});
        let answer = site.alias("demo", body).await;
        assert_eq!(answer.status, if name == "prod" { 201 } else { 400 });
    }
    let odd = json!({"function_version": 1, "name": "a b%2F?ü", "function_id": id});
    site.publish(&id).await;
    assert_eq!(site.alias("demo", odd).await.status, 201);
    let odd = site.ask("demo", Method::GET, "/v1/aliases/a%20b%252F%3F%C3%BC").await.json();
    assert_eq!(odd["name"], "a b%2F?ü");

    let described = async |who: &str| {
        let answer = site.ask(who, Method::GET, "/v1/aliases/prod").await;
        (answer.status == 200).then(|| answer.json()["description"].clone())
    };
    assert_eq!(described("admin:ops").await, Some(json!("theirs")));
    assert_eq!(described("alt").await, None);
    let new = json!({"runtime_id": AVAILABLE, "code": {"source": "image", "image": "i"}});
    let mine = site.ask_json("admin:ops", Method::POST, "/v1/functions", new).await.json();
    let body = json!({"name": "prod", "function_id": mine["id"], "description": "mine"});
    assert_eq!(site.alias("admin:ops", body).await.status, 201);
    assert_eq!(described("admin:ops").await, Some(json!("mine")));
    let ids = |answer: Answer| answer.json()["function_aliases"].as_array().unwrap().len();
    assert_eq!(ids(site.ask("admin:ops", Method::GET, "/v1/aliases").await), 1);
    assert_eq!(ids(site.ask("admin:ops", Method::GET, "/v1/aliases?all_projects=true").await), 3);
    let all = site.ask("demo", Method::GET, "/v1/aliases?all_projects=true").await;
    assert_eq!(all.fault(), (403, "Operation not allowed".to_owned()));

    assert_eq!(site.ask("admin:ops", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    assert_eq!(described("demo").await, Some(json!("theirs")));
    assert_eq!(site.ask("admin:ops", Method::DELETE, "/v1/aliases/prod").await.status, 204);
    assert_eq!(described("demo").await, None);
}
