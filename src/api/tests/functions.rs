//! Functions and their packages, as far as no worker is needed.

use super::*;

#[actix_web::test]
async fn a_package_comes_back_byte_for_byte() {
    let site = site().await;
    let package = main_py();
    let id = site.create(&package).await;

    let shown = site.ask("demo", Method::GET, &format!("/v1/functions/{id}")).await.json();
    assert_eq!(shown["code"]["source"], "package");
    assert_eq!(
        (&shown["entry"], &shown["cpu"], &shown["count"]),
        (&json!("main.main"), &json!(100), &json!(0))
    );
    let listed = site.ask("demo", Method::GET, "/v1/functions").await.json();
    let code: Value = serde_json::from_str(listed["functions"][0]["code"].as_str().unwrap()).unwrap();
    assert_eq!(code, shown["code"]);

    let path = format!("/v1/functions/{id}?download=true");
    let zip =
        site.send(request("demo", Method::GET, &path).insert_header(("accept", "application/json"))).await;
    assert_eq!((zip.status, zip.header("content-type")), (200, "application/zip"));
    assert_eq!(zip.header("content-disposition"), format!("attachment; filename=\"{id}\""));
    assert_eq!(zip.body, package);
    assert_eq!(site.ask("alt", Method::GET, &path).await.status, 404);
    assert_eq!(site.ask("admin", Method::GET, &path).await.body, package);
}

#[actix_web::test]
async fn a_refused_package_leaves_nothing() {
    let site = site().await;
    let refuse = async |code: &str, package: &[u8]| {
        let fields = [("runtime_id", AVAILABLE), ("code", code)];
        site.form(Method::POST, "/v1/functions", &fields, Some(package)).await.fault()
    };
    let package = r#"{"source": "package"}"#;
    let wrong_md5 = r#"{"source": "package", "md5sum": "00000000000000000000000000000000"}"#;
    for (code, bytes, status, text) in [
        (package, b"no zip".to_vec(), 400, "Package is not a valid ZIP package."),
        (wrong_md5, main_py(), 400, "Package md5 mismatch."),
        (
            package,
            zip_of("../main.py", b""),
            400,
            "Package is not acceptable: '../main.py' leads out of the package.",
        ),
        (package, vec![0; 100_001], 413, "Package is larger than the allowed 100000 bytes."),
        (package, vec![0; 200_000], 413, "Package is larger than the allowed 100000 bytes."),
        (
            r#"{"source": "tape"}"#,
            main_py(),
            400,
            "Invalid code source specified, available sources: package, swift, image",
        ),
    ] {
        assert_eq!(refuse(code, &bytes).await, (status, text.to_owned()));
        assert_eq!(site.files(), 0, "{text}");
    }
}

#[actix_web::test]
async fn a_function_that_cannot_be_is_refused_by_name() {
    let site = site().await;
    let refuse = async |body: Value| site.ask_json("demo", Method::POST, "/v1/functions", body).await.fault();
    let package = json!({"source": "package"});
    let image = json!({"source": "image", "image": "x"});
    for (body, status, text) in [
        (json!({}), 400, "Required param is missing. Required: {'code'}"),
        (json!({"code": package}), 400, "\"runtime_id\" must be specified."),
        (json!({"code": package, "runtime_id": NOWHERE}), 404, "Runtime not found [id=deadbeef"),
        (json!({"code": package, "runtime_id": PRIVATE}), 404, "Runtime not found [id=aaaaaaaa"),
        (json!({"code": package, "runtime_id": BROKEN}), 400, "is not available."),
        (json!({"code": package, "runtime_id": AVAILABLE}), 400, "A package is missing"),
        (json!({"code": {"source": "swift"}, "runtime_id": AVAILABLE}), 400, "Both container and object"),
        (
            json!({"code": package, "entry": "main"}),
            400,
            "entry 'main' is not of the form <module>.<method>.",
        ),
        (json!({"code": image, "name": "x".repeat(256)}), 400, "name may have at most 255 characters."),
        (json!({"code": image, "cpu": 1}), 400, "cpu resource limitation not within the allowable range"),
        (json!({"code": image, "timeout": 0}), 400, "timeout resource limitation not within"),
        (json!({"code": image, "runtime_id": "zzz"}), 404, "Runtime not found [id=zzz]"),
        (json!([1]), 400, "A JSON object is required."),
    ] {
        let (got, fault) = refuse(body.clone()).await;
        assert_eq!(got, status, "{body}: {fault}");
        assert!(fault.contains(text), "{body}: {fault}");
    }
}

#[actix_web::test]
async fn an_image_function_keeps_its_code() {
    let site = site().await;
    let new = json!({"code": {"source": "image", "image": "x"}, "name": "i", "entry": "a.b", "cpu": "200"});
    let function = site.ask_json("demo", Method::POST, "/v1/functions", new).await.json();
    assert_eq!((&function["entry"], &function["cpu"]), (&Value::Null, &json!(200)));
    let path = format!("/v1/functions/{}", function["id"].as_str().unwrap());

    let timeout =
        site.ask_json("demo", Method::PUT, &path, json!({"timeout": 20, "name": null})).await.json();
    assert_eq!((&timeout["timeout"], &timeout["name"]), (&json!(20), &json!("i")));
    assert!(timeout["updated_at"].is_string());
    let empty = site.form(Method::PUT, &path, &[("description", ""), ("entry", "")], None).await.json();
    assert_eq!(empty["description"], "");

    let refused = site.ask_json("demo", Method::PUT, &path, json!({"cpu": 100})).await.fault();
    assert_eq!(refused, (400, "The image type function code can not be changed.".to_owned()));
    let download = site.ask("demo", Method::GET, &format!("{path}?download=1")).await;
    assert_eq!(download.fault(), (405, "Download image function is not allowed.".to_owned()));
}

#[actix_web::test]
async fn a_call_that_cannot_be_made_is_refused_before_the_engine() {
    let site = site().await;
    let id = site.create(&main_py()).await;
    let refuse =
        async |body: Value| site.ask_json("demo", Method::POST, "/v1/executions", body).await.fault();
    for (body, status, text) in [
        (json!({}), 400, "Either function_alias or function_id must be provided.".to_owned()),
        (json!({"function_id": "x"}), 400, "Expected a uuid but received x.".to_owned()),
        (json!({"function_id": NOWHERE}), 404, format!("Function not found [id={NOWHERE}]")),
        (json!({"function_alias": "no"}), 404, "FunctionAlias not found [name=no]".to_owned()),
        (
            json!({"function_id": id, "function_version": 3}),
            404,
            format!("FunctionVersion not found [function_id={id}, version_number=3]"),
        ),
        (
            json!({"function_id": id, "bogus": 1}),
            400,
            "Unknown attribute for argument body: bogus".to_owned(),
        ),
    ] {
        assert_eq!(refuse(body).await, (status, text));
    }
    let writer = site.app.db.writer();
    let (from, to) = ([RuntimeStatus::Available], RuntimeStatus::Upgrading);
    db::runtimes::set_status(&writer, &AVAILABLE.into(), &from, to, None).await.unwrap();
    let refused = refuse(json!({"function_id": id})).await;
    assert_eq!(refused, (409, format!("Runtime {AVAILABLE} is not available.")));
}
