//! `/v1/webhooks`

use std::collections::BTreeMap;

use actix_web::dev::Payload;
use actix_web::http::header::HeaderMap;
use actix_web::http::{Method, StatusCode};
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, web};
use hmac::{Hmac, KeyInit, Mac};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Listing, PROJECTS, Time, empty, list_query, page, webhook_input};
use crate::api::App;
use crate::api::audit::{Known, Subject};
use crate::api::error::{ApiError, Entry, code};
use crate::api::extract::{Body, NoQuery, PathId, read_whole};
use crate::api::middleware::{OwnId, RequestId};
use crate::api::openapi::Operation;
use crate::api::route::{at, newer, unknown};
use crate::api::wire::{Shape, boolean, ignored, integer, read_only, text, uuid};
use crate::model::{Caller, ExecutionStatus, Reason, WebhookId, WebhookMode, execution, webhook};
use crate::policy::Target;
use crate::resource::webhooks::Fields;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/webhooks", vec![(Method::GET, web::to(list)), (Method::POST, web::to(create))]))
        .service(at(
            "/v1/webhooks/{id}",
            vec![
                (Method::GET, web::to(show)),
                (Method::PUT, web::to(update)),
                (Method::DELETE, web::to(delete)),
            ],
        ))
        .service(newer("/v1/webhooks/{id}/rotate", vec![(Method::POST, web::to(rotate))]))
        .service(
            at("/v1/webhooks/{key}/invoke", vec![(Method::POST, web::to(invoke))])
                .default_service(web::to(unknown)),
        );
}

pub fn operations() -> Vec<Operation> {
    const ONE: &str = "/v1/webhooks/{id}";
    let any = || json!({"type": "object"});
    vec![
        Operation::get("/v1/webhooks", "list_webhooks", "List webhooks")
            .filters(&PROJECTS)
            .pages::<webhook::Entity>()
            .lists::<WebhookView>("webhooks"),
        Operation::post("/v1/webhooks", "create_webhook", "Give a function a URL")
            .takes(&SHAPE, &[])
            .shows::<WebhookView>(StatusCode::CREATED, "The webhook.")
            .fails(&[404, 409]),
        Operation::get(ONE, "show_webhook", "Show a webhook")
            .shows::<WebhookView>(StatusCode::OK, "The webhook."),
        Operation::put(ONE, "update_webhook", "Change a webhook")
            .takes(&SHAPE, &[])
            .shows::<WebhookView>(StatusCode::OK, "The webhook.")
            .fails(&[409]),
        Operation::post("/v1/webhooks/{id}/rotate", "rotate_webhook", "Give a webhook another URL")
            .newer()
            .shows::<WebhookView>(StatusCode::OK, "The webhook."),
        Operation::delete(ONE, "delete_webhook", "Delete a webhook"),
        Operation::post("/v1/webhooks/{key}/invoke", "invoke_webhook", "Run the function of a webhook")
            .takes_forms(vec![
                ("application/json", any()),
                ("application/x-www-form-urlencoded", any()),
                ("multipart/form-data", any()),
            ])
            .shows::<Accepted>(StatusCode::ACCEPTED, "The execution is accepted.")
            .shows::<Ended>(StatusCode::OK, "It has ended, where the webhook is synchronous.")
            .shows::<Ended>(StatusCode::BAD_GATEWAY, "The function failed.")
            .shows::<Ended>(StatusCode::GATEWAY_TIMEOUT, "The function took too long.")
            .fails(&[401, 403, 409, 429]),
    ]
}

const SHAPE: Shape = Shape {
    argument: "webhook",
    fields: &[
        ignored("id"),
        uuid("function_id"),
        text("function_alias"),
        integer("function_version", 0),
        text("description"),
        read_only("project_id"),
        read_only("created_at"),
        read_only("updated_at"),
        read_only("webhook_url"),
        text("mode").newer(),
        boolean("is_public").newer(),
        text("secret").newer(),
        read_only("has_secret").newer(),
    ],
};

#[derive(Deserialize)]
struct WebhookBody {
    function_id: Option<String>,
    function_alias: Option<String>,
    function_version: Option<i32>,
    description: Option<String>,
    mode: Option<String>,
    is_public: Option<bool>,
    secret: Option<String>,
}

impl From<WebhookBody> for Fields {
    fn from(body: WebhookBody) -> Self {
        Self {
            function_id: body.function_id.map(Into::into),
            function_version: body.function_version,
            function_alias: body.function_alias,
            description: body.description,
            mode: body.mode,
            is_public: body.is_public,
            secret: body.secret,
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Webhook")]
struct WebhookView {
    id: String,
    function_id: Option<String>,
    function_alias: Option<String>,
    function_version: Option<i32>,
    description: Option<String>,
    project_id: String,
    created_at: Time,
    updated_at: Option<Time>,
    webhook_url: String,
    #[schemars(extend("x-since" = "1.1"))]
    mode: WebhookMode,
    #[schemars(extend("x-since" = "1.1"))]
    is_public: bool,
    /// The secret itself is never shown.
    #[schemars(extend("x-since" = "1.1"))]
    has_secret: bool,
}

impl WebhookView {
    fn new(row: webhook::Model, endpoint: &str) -> Self {
        let key = row.url_key.as_deref().unwrap_or(row.id.as_str());
        Self {
            webhook_url: format!("{endpoint}/v1/webhooks/{key}/invoke"),
            id: row.id.0,
            function_id: row.function_id.map(|id| id.0),
            function_alias: row.function_alias,
            function_version: row.function_version,
            description: row.description,
            project_id: row.project_id.0,
            created_at: Time(row.created_at),
            updated_at: row.updated_at.map(Time),
            mode: row.mode,
            is_public: row.is_public,
            has_secret: row.secret.is_some(),
        }
    }
}

async fn list(caller: Caller, app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:get_all")?;
    let query = list_query(&request, &PROJECTS)?;
    let listing = Listing::of(&app.policy, &caller, &query, "webhook:get_all:all_projects")?;
    let rows = app.webhooks.list(&listing.scope, listing.project_id.as_ref(), &page(&query)?).await?;
    let endpoint = app.endpoint.url(&request).await;
    let views: Vec<WebhookView> = rows.into_iter().map(|row| WebhookView::new(row, &endpoint)).collect();
    Ok(HttpResponse::Ok().json(BTreeMap::from([("webhooks", views)])))
}

async fn create(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:create")?;
    let body: WebhookBody = body.parse(&SHAPE)?;
    let row = app.webhooks.create(&caller, body.into()).await?;
    Ok(HttpResponse::Created().json(WebhookView::new(row, &app.endpoint.url(&request).await)))
}

async fn show(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:get")?;
    let row = app.webhooks.get(&caller, &id.0.into()).await?;
    app.policy.enforce_on(&caller, "webhook:get", &Target::of_project(row.project_id.as_str()))?;
    Ok(HttpResponse::Ok().json(WebhookView::new(row, &app.endpoint.url(&request).await)))
}

async fn update(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:update")?;
    let body: WebhookBody = body.parse(&SHAPE)?;
    let row = app.webhooks.update(&caller, &id.0.into(), body.into()).await?;
    Ok(HttpResponse::Ok().json(WebhookView::new(row, &app.endpoint.url(&request).await)))
}

/// `POST /v1/webhooks/{id}/rotate`: another URL. Takes no body, and none is read.
async fn rotate(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    request: HttpRequest,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:update")?;
    let row = app.webhooks.rotate(&caller, &id.0.into()).await?;
    Ok(HttpResponse::Ok().json(WebhookView::new(row, &app.endpoint.url(&request).await)))
}

async fn delete(
    caller: Caller,
    app: web::Data<App>,
    _: NoQuery,
    id: PathId,
) -> Result<HttpResponse, ApiError> {
    app.policy.enforce(&caller, "webhook:delete")?;
    let id: WebhookId = id.0.into();
    // Others than administrators see those of the project about which it has been asked already.
    if caller.is_admin() {
        let row = app.webhooks.get(&caller, &id).await?;
        app.policy.enforce_on(&caller, "webhook:delete", &Target::of_project(row.project_id.as_str()))?;
    }
    app.webhooks.delete(&caller, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /v1/webhooks/{key}/invoke`: who knows the URL need show nothing else, unless the webhook says so.
async fn invoke(
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let key = request.match_info().query("key");
    let no_such_webhook = || ApiError::NoSuchWebhook { key: key.to_owned() };
    let webhook = app.webhooks.find_by_key(key).await?.ok_or_else(no_such_webhook)?;
    if let Some(known) = Known::of(&request) {
        let (id, project_id) = (webhook.id.to_string(), webhook.project_id.to_string());
        known.subject(Subject { id, project_id });
    }
    if !webhook.is_public {
        let caller = Caller::from_request(&request, &mut Payload::None).await?;
        if caller.project_id != webhook.project_id && !caller.is_admin() {
            return Err(no_such_webhook());
        }
        let owner = Target::of_project(webhook.project_id.as_str());
        app.policy.enforce_on(&caller, "execution:create", &owner)?;
    }
    let body = read_whole(&mut payload.into_inner(), app.max_body_bytes).await?;
    if let Some(secret) = &webhook.secret {
        verify(secret, request.headers(), &body)?;
    }
    // Not before: what anybody can send must not use up what those have who may call it.
    if webhook.is_public {
        app.count_call(&webhook.project_id)?;
    }
    let input = webhook_input::read(&request, body, webhook.secret.is_some()).await;
    let request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let mode = webhook.mode;
    let row = app.webhooks.invoke(webhook, input, request_id).await?;
    Ok(match mode {
        WebhookMode::Async => HttpResponse::Accepted().json(Accepted { execution_id: row.id.as_str() }),
        WebhookMode::Sync => ended(&row, &request),
    })
}

/// The headers in which a caller may show a signature: ours, and the one that code forges send.
const SIGNATURES: [&str; 2] = ["x-taibai-signature", "x-hub-signature-256"];

/// Refuses a body that is not signed with the secret: `sha256=` and the HMAC in hexadecimal.
fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), ApiError> {
    let shown = SIGNATURES.iter().find_map(|name| headers.get(*name));
    let Some(shown) = shown else {
        return Err(ApiError::BadSignature(
            "The body must be signed: X-Taibai-Signature is missing. Expected sha256=<HMAC in hexadecimal>.",
        ));
    };
    let wrong = ApiError::BadSignature("The signature of the body is wrong.");
    let digits = shown.to_str().ok().and_then(|text| text.trim().strip_prefix("sha256="));
    let Some(code) = digits.and_then(|digits| hex::decode(digits).ok()) else { return Err(wrong) };
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    // Takes as long for any wrong one.
    mac.verify_slice(&code).map_err(|_| wrong)
}

#[derive(Serialize, JsonSchema)]
struct Accepted<'a> {
    execution_id: &'a str,
}

/// How a run went. Where it went wrong, also what every error has.
#[derive(Serialize, JsonSchema)]
struct Ended<'a> {
    execution_id: &'a str,
    #[schemars(extend("enum" = ["success", "failed", "error"]))]
    status: &'static str,
    /// What the function returned.
    #[schemars(with = "Option<Value>")]
    output: Option<&'a RawValue>,
    #[serde(flatten)]
    fault: Option<Fault<'a>>,
}

/// Of a stored result, what is repeated to the letter: it may be deeper than we read, and its numbers longer.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

#[derive(Serialize, JsonSchema)]
struct Fault<'a> {
    faultcode: &'static str,
    faultstring: &'static str,
    debuginfo: Option<&'static str>,
    errors: [Entry<'a>; 1],
}

/// How a run went, to who waited for it. The body is the same, the status tells: 200, 504 where the
/// function took too long, 502 where it failed, and 503 where it could not be run.
fn ended(row: &execution::Model, request: &HttpRequest) -> HttpResponse {
    let stored = row.result.as_deref().and_then(|result| serde_json::from_str::<Stored<'_>>(result).ok());
    let output = stored.and_then(|stored| stored.output);
    let timed_out = row.reason.as_deref() == Some(Reason::Timeout.as_str());
    let (code, word, fault) = match row.status {
        ExecutionStatus::Success => (StatusCode::OK, "success", None),
        ExecutionStatus::Failed if timed_out => {
            (StatusCode::GATEWAY_TIMEOUT, "failed", Some("The function took too long."))
        }
        ExecutionStatus::Failed | ExecutionStatus::Cancelled => {
            (StatusCode::BAD_GATEWAY, "failed", Some("The function failed."))
        }
        ExecutionStatus::Error | ExecutionStatus::Pending | ExecutionStatus::Running => {
            (StatusCode::SERVICE_UNAVAILABLE, "error", Some("The function could not be run."))
        }
    };
    let own = request.extensions();
    let request_id = own.get::<OwnId>().map(|id| id.0.as_str());
    let fault = fault.map(|detail| Fault {
        faultcode: "Server",
        faultstring: detail,
        debuginfo: None,
        errors: [Entry::new(request_id, self::code(detail.trim_end_matches('.')), code, detail)],
    });
    let body = Ended { execution_id: row.id.as_str(), status: word, output, fault };
    HttpResponse::build(code).json(body)
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use actix_web::http::header::{HeaderName, HeaderValue};
    use actix_web::test::TestRequest;

    use super::*;
    use crate::db::testing;
    use crate::model::Timestamp;

    #[test]
    fn a_view_has_every_field_in_order_and_no_secret() {
        let time = Timestamp(1_767_323_045_000_000);
        let row = webhook::Model {
            id: "w".into(),
            project_id: "p".into(),
            function_id: None,
            function_version: None,
            function_alias: Some("prod".to_owned()),
            description: None,
            url_key: Some("key".to_owned()),
            mode: WebhookMode::Async,
            is_public: true,
            secret: Some("hidden".to_owned()),
            created_at: time,
            updated_at: None,
        };
        let shown = |row| serde_json::to_string(&WebhookView::new(row, "http://h:1")).unwrap();
        assert_eq!(
            shown(row.clone()),
            r#"{"id":"w","function_id":null,"function_alias":"prod","function_version":null,"description":null,"project_id":"p","created_at":"2026-01-02T03:04:05Z","updated_at":null,"webhook_url":"http://h:1/v1/webhooks/key/invoke","mode":"async","is_public":true,"has_secret":true}"#
        );
        let older = shown(webhook::Model { url_key: None, ..row });
        assert!(older.contains("/v1/webhooks/w/invoke"), "{older}");
    }

    #[test]
    fn a_body_is_signed_with_the_secret() {
        // As in RFC 4231, the second case.
        let code = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let signed = |name: &'static str, value: &str, body: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            verify("Jefe", &headers, body).map_err(|error| error.status())
        };
        let body = b"what do ya want for nothing?";
        let good = format!("sha256={code}");
        assert_eq!(signed("x-taibai-signature", &good, body), Ok(()));
        assert_eq!(signed("x-taibai-signature", &good.replace("bd", "BD"), body), Ok(()));
        assert_eq!(signed("x-hub-signature-256", &good, body), Ok(()));
        let refused = Err(StatusCode::UNAUTHORIZED);
        assert_eq!(signed("x-taibai-signature", &good, b"what do ya want for nothing!"), refused);
        for value in
            ["", code, "sha256=", "sha256=00", &good[..70], &format!("{good}00"), "sha1=00", "sha256=xx"]
        {
            assert_eq!(signed("x-taibai-signature", value, body), refused, "{value}");
        }
        assert_eq!(signed("x-signature", &good, body), refused, "missing");
    }

    #[actix_web::test]
    async fn a_caller_who_waits_is_told_how_it_went() {
        use ExecutionStatus::{Cancelled, Error, Failed, Success};
        for (status, reason, code, word) in [
            (Success, None, 200_u16, "success"),
            (Failed, Some("raised"), 502, "failed"),
            (Failed, Some("timeout"), 504, "failed"),
            (Cancelled, Some("cancelled"), 502, "failed"),
            (Error, Some("no_capacity"), 503, "error"),
        ] {
            let row = execution::Model {
                reason: reason.map(str::to_owned),
                result: Some(r#"{"output": {"a": 1}, "duration": 1.0}"#.to_owned()),
                ..testing::execution(status)
            };
            let response = ended(&row, &TestRequest::default().to_http_request());
            assert_eq!(response.status(), code, "{status:?}");
            let body: Value = serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap();
            assert_eq!((&body["execution_id"], &body["status"]), (&json!(row.id), &json!(word)));
            assert_eq!(body["output"], json!({"a": 1}));
            assert_eq!(body["faultstring"].is_string(), code != 200, "{body}");
            let listed = body["errors"][0]["status"].as_u64();
            assert_eq!(listed, (code != 200).then_some(u64::from(code)));
        }
    }

    #[actix_web::test]
    async fn an_output_is_repeated_to_the_letter() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for output in ["1e400", "12345678901234567890123", &deep, "null"] {
            let row = execution::Model {
                result: Some(format!("{{\"output\":{output},\"duration\":1.0}}")),
                ..testing::execution(ExecutionStatus::Success)
            };
            let response = ended(&row, &TestRequest::default().to_http_request());
            let body = to_bytes(response.into_body()).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(&format!("\"output\":{output}")), "{text}");
        }
    }
}
