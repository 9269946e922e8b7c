use serde_json::json;
use taibai::config::KeystoneAuthtoken;
use taibai::model::{Interface, Token};
use taibai::openstack::{self, Error};

use crate::cloud::{Cloud, eventually, ours};

#[tokio::test]
async fn a_token_is_described_as_its_user_knows_it() {
    let cloud = Cloud::open();
    let demo = cloud.user("demo").await;
    let info = &demo.info;
    assert_eq!((info.user_name.as_str(), info.project_name.as_deref()), ("demo", Some("demo")));
    assert_eq!(
        (info.user_domain_id.as_deref(), info.user_domain_name.as_deref()),
        (Some("default"), Some("Default"))
    );
    let mut roles = info.roles.clone();
    roles.sort();
    assert_eq!(roles, ["member", "reader"]);
    assert_eq!(info.methods, ["password"]);
    assert!(info.can_delegate() && !info.is_expired(chrono::Utc::now()));
    let region = cloud.account("demo").region_name.clone();
    let swift = info.catalog.endpoint("object-store", Interface::Internal, Some(&region)).unwrap();
    let ours = cloud.ours().keystone;
    assert_eq!(ours.region(), Some(region.as_str()));
    let identity = ours.catalog().await.unwrap();
    assert_eq!(identity.endpoint("identity", Interface::Public, ours.region()), Some(cloud.auth_url()));
    assert!(swift.ends_with(info.project_id.as_deref().unwrap()), "{swift}");
}

#[tokio::test]
async fn a_token_that_is_none_or_was_revoked_is_rejected() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    for nonsense in ["gAAAAA-nonsense", "", "a b", "a\nb", "ü"] {
        let refused = keystone.validate(&Token::new(nonsense), None).await.unwrap_err();
        assert!(matches!(refused, Error::Rejected), "{nonsense:?}: {refused:?}");
    }
    let token = cloud.token("demo").await;
    keystone.validate(&token, None).await.unwrap();
    cloud.revoke(&token).await;
    assert!(matches!(keystone.validate(&token, None).await, Err(Error::Rejected)));
}

#[tokio::test]
async fn a_token_without_a_project_is_described_too() {
    let cloud = Cloud::open();
    let auth = &cloud.account("demo").auth;
    let user = json!({"name": auth.username, "domain": {"id": "default"}, "password": auth.password});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let unscoped = cloud.issue(json!({"identity": identity, "scope": "unscoped"})).await;
    let described = cloud.described(unscoped).await;
    assert_eq!(described.info.project_id, None);
    assert!(described.info.roles.is_empty() && described.catalog().0.is_empty());
}

#[tokio::test]
async fn the_trouble_of_the_services_own_account_is_not_the_users() {
    let cloud = Cloud::open();
    let token = cloud.token("demo").await;
    let wrong = KeystoneAuthtoken { password: "wrong".into(), ..cloud.section() };
    let refused = ours(&wrong).keystone.validate(&token, None).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
    // An account that may not ask about others' tokens.
    let auth = &cloud.account("alt_demo").auth;
    let other = KeystoneAuthtoken {
        username: auth.username.clone(),
        password: auth.password.as_str().into(),
        project_name: auth.project_name.clone(),
        ..cloud.section()
    };
    let refused = ours(&other).keystone.validate(&token, None).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
}

#[tokio::test]
async fn nothing_is_said_of_a_token_while_keystone_does_not_answer() {
    let cloud = Cloud::open();
    let token = cloud.token("demo").await;
    let mut way = cloud.way().await;
    let ours = ours(&way.section(&cloud));
    way.cut().await;
    assert!(matches!(ours.keystone.validate(&token, None).await, Err(Error::Unavailable { .. })));
    way.mend().await;
    ours.keystone.validate(&token, None).await.unwrap();
}

#[tokio::test]
async fn a_call_carries_the_id_of_the_request_that_it_is_made_for() {
    const ID: &str = "req-33333333-2222-4333-8444-555555555555";
    let cloud = Cloud::open();
    let token = cloud.token("demo").await;
    let way = cloud.way().await;
    let ours = ours(&way.section(&cloud));
    openstack::on_behalf_of(ID.into(), ours.keystone.validate(&token, None)).await.unwrap();
    // For the service's own token, and for what is asked of the caller's.
    assert_eq!((ours.calls("issue"), ours.calls("validate")), (1, 1));
    assert_eq!(way.seen().matches(&format!("x-openstack-request-id: {ID}")).count(), 2);
    ours.keystone.validate(&token, None).await.unwrap();
    assert_eq!(
        way.seen().matches("x-openstack-request-id: req-").count(),
        2,
        "the next request's is another"
    );
}

#[tokio::test]
async fn the_services_own_token_is_renewed_where_it_was_revoked() {
    let cloud = Cloud::open();
    let token = cloud.token("demo").await;
    let mut way = cloud.way().await;
    let ours = ours(&way.section(&cloud));
    ours.keystone.validate(&token, Some("req-11111111-2222-4333-8444-555555555555")).await.unwrap();
    ours.keystone.validate(&token, None).await.unwrap();
    assert_eq!((ours.calls("issue"), ours.calls("validate")), (1, 2));
    assert!(way.seen().contains("x-openstack-request-id: req-11111111-2222-4333-8444-555555555555"));

    cloud.revoke(&way.last_token()).await;
    // One of Keystone's processes may know it for a moment yet; a new connection may lead to another.
    eventually("it is refused", async || {
        way.cut().await;
        way.mend().await;
        ours.keystone.validate(&token, None).await.unwrap();
        ours.calls("issue") == 2
    })
    .await;
}
