//! From a request to a caller, with Keystone's tokens.

use std::time::Duration;

use serde_json::json;
use taibai::auth::{Authenticator, Failure, Rejected, Shown};
use taibai::config::{AuthStrategy, Config, KeystoneAuthtoken};
use taibai::model::{Caller, Token};
use taibai::policy::Policy;

use crate::cloud::{Cloud, Ours, eventually, ours};

fn authenticator(section: KeystoneAuthtoken) -> (Authenticator, Ours) {
    let ours = ours(&section);
    let mut config = Config::default();
    config.api.auth_strategy = AuthStrategy::Keystone;
    config.keystone_authtoken = section;
    (Authenticator::new(&config, Some(ours.keystone.clone())).unwrap(), ours)
}

fn shown(token: Option<&Token>) -> Shown<'_> {
    let token = token.map(Token::expose);
    Shown {
        token,
        service_token: None,
        authorization: None,
        method: "GET",
        path: "/v1/functions",
        request_id: None,
    }
}

async fn ask(authenticator: &Authenticator, token: &Token) -> Result<Caller, Failure> {
    authenticator.authenticate(&shown(Some(token))).await
}

fn rejected(answer: Result<Caller, Failure>) -> Option<Rejected> {
    match answer {
        Err(Failure::Rejected(rejected)) => Some(rejected),
        _ => None,
    }
}

#[tokio::test]
async fn a_caller_is_who_the_token_was_made_for() {
    let cloud = Cloud::open();
    let (authenticator, _) = authenticator(cloud.section());
    let demo = ask(&authenticator, &cloud.token("demo").await).await.unwrap();
    assert_eq!((demo.user_name.as_deref(), demo.project_name.as_deref()), (Some("demo"), Some("demo")));
    assert!(demo.can_delegate());
    let policy = Policy::default();
    assert!(!policy.admit(demo.clone()).is_admin());
    let admin = ask(&authenticator, &cloud.token("admin").await).await.unwrap();
    assert!(policy.admit(admin.clone()).is_admin());
    assert_ne!(admin.project_id, demo.project_id);
    assert_eq!(rejected(authenticator.authenticate(&shown(None)).await), Some(Rejected::Missing));
    assert_eq!(rejected(ask(&authenticator, &Token::new("gAAAA")).await), Some(Rejected::Invalid));
    let uri = cloud.auth_url();
    assert_eq!(authenticator.challenge(), Some(format!("Keystone uri=\"{uri}\"")));
    assert!(!format!("{demo:?}").contains(demo.identity.as_ref().unwrap().token.expose()));
}

#[tokio::test]
async fn requests_with_one_token_ask_keystone_once() {
    let cloud = Cloud::open();
    let (authenticator, ours) = authenticator(cloud.section());
    let (token, nonsense) = (cloud.token("demo").await, Token::new("gAAAA"));
    let known = futures_util::future::join_all((0..50).map(|_| ask(&authenticator, &token))).await;
    assert!(known.iter().all(Result::is_ok));
    assert_eq!(ours.calls("validate"), 1);
    let refused = futures_util::future::join_all((0..50).map(|_| ask(&authenticator, &nonsense))).await;
    assert!(refused.into_iter().all(|answer| rejected(answer) == Some(Rejected::Invalid)));
    assert_eq!(ours.calls("validate"), 2);
}

#[tokio::test]
async fn a_revoked_token_stops_within_the_time_of_the_cache() {
    let cloud = Cloud::open();
    let section = KeystoneAuthtoken { token_cache_time: Duration::from_secs(3), ..cloud.section() };
    let (authenticator, _) = authenticator(section);
    let token = cloud.token("demo").await;
    ask(&authenticator, &token).await.unwrap();
    cloud.revoke(&token).await;
    eventually("it stops", async || rejected(ask(&authenticator, &token).await) == Some(Rejected::Invalid))
        .await;
}

#[tokio::test]
async fn known_tokens_go_on_while_keystone_does_not_answer_and_others_wait() {
    let cloud = Cloud::open();
    let mut way = cloud.way().await;
    let (authenticator, _) = authenticator(way.section(&cloud));
    let (known, new) = (cloud.token("demo").await, cloud.token("demo").await);
    ask(&authenticator, &known).await.unwrap();
    way.cut().await;
    ask(&authenticator, &known).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(ask(&authenticator, &new).await, Err(Failure::Unavailable(_))));
    }
    way.mend().await;
    ask(&authenticator, &new).await.unwrap();
}

#[tokio::test]
async fn a_token_without_a_project_is_nobody_here() {
    let cloud = Cloud::open();
    let (authenticator, _) = authenticator(cloud.section());
    let auth = &cloud.account("demo").auth;
    let user = json!({"name": auth.username, "domain": {"id": "default"}, "password": auth.password});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let unscoped = cloud.issue(json!({"identity": identity, "scope": "unscoped"})).await;
    assert!(matches!(ask(&authenticator, &unscoped).await, Err(Failure::NoProject)));
}

#[tokio::test]
async fn a_services_token_beside_a_users_has_to_be_a_services() {
    let cloud = Cloud::open();
    let (authenticator, _) = authenticator(cloud.section());
    let user = cloud.token("demo").await;
    let with = async |service: &Token| {
        let shown = Shown { service_token: Some(service.expose()), ..shown(Some(&user)) };
        authenticator.authenticate(&shown).await
    };
    assert_eq!(with(&cloud.token("taibai").await).await.unwrap().user_name.as_deref(), Some("demo"));
    assert_eq!(rejected(with(&cloud.token("alt_demo").await).await), Some(Rejected::Service));
    assert_eq!(rejected(with(&Token::new("gAAAA")).await), Some(Rejected::Service));
}

#[tokio::test]
async fn an_application_credential_does_what_its_rules_allow() {
    let cloud = Cloud::open();
    let (authenticator, _) = authenticator(cloud.section());
    let rules = json!([{"service": "function-engine", "method": "GET", "path": "/v1/functions/**"}]);
    let token = cloud.application_credential(Some(rules)).await;
    let asks = async |method, path, service: Option<&Token>| {
        let service_token = service.map(Token::expose);
        authenticator.authenticate(&Shown { method, path, service_token, ..shown(Some(&token)) }).await
    };
    let caller = asks("GET", "/v1/functions/1", None).await.unwrap();
    assert!(!caller.can_delegate());
    for (method, path) in [("POST", "/v1/functions/1"), ("GET", "/v1/executions"), ("GET", "/v1/functions")] {
        assert_eq!(rejected(asks(method, path, None).await), Some(Rejected::AccessRules), "{method} {path}");
    }
    // What a service asks on the way was allowed where the way began.
    asks("GET", "/v1/executions", Some(&cloud.token("taibai").await)).await.unwrap();

    let unrestricted = cloud.application_credential(None).await;
    ask(&authenticator, &unrestricted).await.unwrap();
}

#[tokio::test]
async fn a_service_vouches_for_a_token_that_ran_out_on_the_way() {
    let cloud = Cloud::open();
    let (authenticator, _) = authenticator(cloud.section());
    let expired = cloud.expired_token().await;
    assert_eq!(rejected(ask(&authenticator, &expired).await), Some(Rejected::Invalid));
    let service = cloud.token("taibai").await;
    let with = Shown { service_token: Some(service.expose()), ..shown(Some(&expired)) };
    let caller = authenticator.authenticate(&with).await.unwrap();
    assert_eq!(caller.user_name.as_deref(), Some("demo"));
    // That holds for the one request.
    assert_eq!(rejected(ask(&authenticator, &expired).await), Some(Rejected::Invalid));
    // Without the role nobody vouches, also where the role is not required otherwise.
    let section = KeystoneAuthtoken { service_token_roles_required: false, ..cloud.section() };
    let (authenticator, _) = self::authenticator(section);
    let other = cloud.token("alt_demo").await;
    let with = Shown { service_token: Some(other.expose()), ..shown(Some(&expired)) };
    assert_eq!(rejected(authenticator.authenticate(&with).await), Some(Rejected::Invalid));
}
