use bytes::Bytes;
use taibai::openstack::{Error, TrustError};

use crate::cloud::{Cloud, eventually};
use crate::objects::{body, text};

fn roles(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn a_trust_acts_as_its_user_until_it_is_deleted() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let demo = cloud.user("demo").await;
    // Neither a role that the user lacks nor admin is delegated.
    let trust = keystone.create_trust(&demo, &roles(&["member", "admin", "unheard-of"]), None).await.unwrap();

    let token = keystone.trust_token(&trust, None).await.unwrap();
    assert_eq!(token.user_id(), demo.info.user_id);
    assert_eq!(token.project_id(), demo.info.project_id.as_deref());
    let mut delegated = token.roles().to_vec();
    delegated.sort();
    assert_eq!(delegated, ["member", "reader"], "the first implies the second");
    assert!(!token.0.info.can_delegate());
    assert_eq!(token.0.info.trust_id.as_deref(), Some(trust.as_str()));

    let container = format!("trust-{}", uuid::Uuid::new_v4());
    let theirs = keystone.trust_session(&token, None).unwrap().swift();
    theirs.ensure_container(&container).await.unwrap();
    theirs.put_object(&container, "by-trust", body("1"), 1, None).await.unwrap();
    let own = keystone.session(&demo, None).unwrap().swift();
    assert_eq!(text(own.get_object(&container, "by-trust").await.unwrap()).await, Bytes::from("1"));
    own.delete_object(&container, "by-trust").await.unwrap();

    keystone.delete_trust(&trust, None).await.unwrap();
    assert!(matches!(theirs.head_object(&container, "by-trust").await, Err(Error::Rejected)));
    let gone = keystone.trust_token(&trust, None).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound), "{gone:?}");
    keystone.delete_trust(&trust, None).await.unwrap();
}

#[tokio::test]
async fn a_token_that_was_delegated_makes_no_trust() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let demo = cloud.user("demo").await;

    let mut application = cloud.described(cloud.application_credential(None).await).await;
    assert!(application.info.application_credential.is_some());
    let refused = keystone.create_trust(&application, &roles(&["member"]), None).await.unwrap_err();
    assert!(matches!(refused, TrustError::CannotDelegate), "{refused:?}");
    // Keystone says the same where nobody saw it coming.
    let mut unknowing = (*application.info).clone();
    unknowing.application_credential = None;
    unknowing.methods.clear();
    application.info = unknowing.into();
    let refused = keystone.create_trust(&application, &roles(&["member"]), None).await.unwrap_err();
    assert!(matches!(refused, TrustError::CannotDelegate), "{refused:?}");

    let trust = keystone.create_trust(&demo, &roles(&["member"]), None).await.unwrap();
    let token = keystone.trust_token(&trust, None).await.unwrap();
    let refused = keystone.create_trust(&token.0, &roles(&["member"]), None).await.unwrap_err();
    assert!(matches!(refused, TrustError::CannotDelegate), "{refused:?}");
    keystone.delete_trust(&trust, None).await.unwrap();
}

#[tokio::test]
async fn why_there_is_no_trust_is_told_apart() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let demo = cloud.user("demo").await;
    let none = keystone.create_trust(&demo, &roles(&["admin"]), None).await.unwrap_err();
    assert!(matches!(none, TrustError::NoRoles), "{none:?}");
    cloud.revoke(&demo.token).await;
    // One of Keystone's processes may take a revoked token a little longer.
    eventually("the revoked token is refused", async || {
        match keystone.create_trust(&demo, &roles(&["member"]), None).await {
            Err(TrustError::Other(Error::Rejected)) => true,
            Ok(trust) => {
                keystone.delete_trust(&trust, None).await.unwrap();
                false
            }
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;
}
