use prometheus::{IntCounterVec, Opts};

use super::*;
use crate::model::{Catalog, CatalogEndpoint, CatalogService, Token, UserToken};

/// Sessions for which nobody answers.
fn sessions() -> Sessions {
    let config = KeystoneAuthtoken {
        // Nothing listens on this port.
        auth_url: "http://127.0.0.1:1/v3".to_owned(),
        www_authenticate_uri: "http://public:5000/v3".to_owned(),
        ..KeystoneAuthtoken::default()
    };
    let calls = IntCounterVec::new(Opts::new("calls", "Calls."), &["call"]).unwrap();
    // Its client needs one; another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Sessions::new(Keystone::new(&config, calls).unwrap(), &config).unwrap()
}

fn trust() -> TrustId {
    "t".into()
}

fn seconds(count: i64) -> chrono::TimeDelta {
    chrono::TimeDelta::seconds(count)
}

fn token(left: i64) -> TrustToken {
    let identity = CatalogEndpoint {
        id: None,
        interface: Some("public".to_owned()),
        region: None,
        region_id: None,
        url: Some("http://catalog:5000/v3".to_owned()),
    };
    let service = CatalogService {
        id: None,
        service_type: "identity".to_owned(),
        name: None,
        endpoints: vec![identity],
    };
    let info = TokenInfo {
        user_id: "u".to_owned(),
        user_name: "ann".to_owned(),
        user_domain_id: Some("default".to_owned()),
        user_domain_name: Some("Default".to_owned()),
        project_id: Some("p".to_owned()),
        project_name: Some("demo".to_owned()),
        project_domain_id: Some("default".to_owned()),
        project_domain_name: Some("Default".to_owned()),
        roles: vec!["member".to_owned()],
        role_ids: vec!["r".to_owned()],
        expires_at: Utc::now() + seconds(left),
        methods: vec!["password".to_owned()],
        trust_id: Some("t".to_owned()),
        application_credential: None,
        catalog: Arc::new(Catalog(vec![service])),
        size: 0,
    };
    TrustToken(UserToken { token: Token::new("gAAAA-marker"), info: Arc::new(info) })
}

/// Has a session that was got so many seconds ago and lasts so many more.
fn hold(sessions: &Sessions, age: i64, left: i64) -> Arc<Session> {
    let session = Arc::new(sessions.shared.settings.session(token(left), Utc::now() - seconds(age)));
    sessions.held(&trust()).set(Some(session.clone()));
    session
}

async fn get(sessions: &Sessions, time: u64) -> Result<Arc<Session>, Error> {
    sessions.get(&trust(), Duration::from_secs(time), None).await
}

#[tokio::test]
async fn a_session_that_lasts_long_enough_is_had_without_asking() {
    let sessions = sessions();
    let held = hold(&sessions, 600, 200);
    assert!(Arc::ptr_eq(&get(&sessions, 100).await.unwrap(), &held));
    // Of tokens that live for a minute none lasts longer.
    let short = hold(&sessions, 20, 40);
    assert!(Arc::ptr_eq(&get(&sessions, 300).await.unwrap(), &short));
}

#[tokio::test]
async fn while_nobody_answers_a_session_serves_as_long_as_it_lasts() {
    let sessions = sessions();
    assert!(matches!(get(&sessions, 1).await, Err(Error::Unavailable(_))));
    let held = hold(&sessions, 600, 100);
    assert!(Arc::ptr_eq(&get(&sessions, 90).await.unwrap(), &held), "without the margin");
    assert!(matches!(get(&sessions, 110).await, Err(Error::Unavailable(_))), "it would end too soon");
}

#[tokio::test]
async fn who_waits_for_an_answer_shares_it_and_a_trust_that_is_no_good_is_asked_for_seldom() {
    let sessions = sessions();
    let before = Instant::now();
    assert!(get(&sessions, 1).await.is_err());
    let held = sessions.held(&trust());
    assert!(held.failure(before).is_some(), "for who came before it was known");
    assert!(held.failure(Instant::now()).is_none(), "who comes later asks again");
    held.note_failure(Some(Error::Invalid));
    assert!(matches!(get(&sessions, 1).await, Err(Error::Invalid)));
}

#[tokio::test]
async fn a_token_is_renewed_before_half_of_a_short_life_or_the_last_ten_minutes_of_a_long_one() {
    let sessions = sessions();
    for (age, left, due) in
        [(0, 3600, false), (2990, 610, false), (3010, 590, true), (10, 110, false), (70, 50, true)]
    {
        assert_eq!(hold(&sessions, age, left).wants_renewal(), due, "{age} s old, {left} s left");
    }
}

#[tokio::test]
async fn a_refusal_is_believed_of_the_token_that_is_held_and_not_of_one_just_got() {
    let sessions = sessions();
    let new = hold(&sessions, 1, 3600);
    sessions.refused(&trust(), &new);
    assert!(get(&sessions, 60).await.is_ok(), "who says so each time would ask Keystone each time");
    let old = hold(&sessions, 60, 3600);
    let current = hold(&sessions, 60, 3600);
    sessions.refused(&trust(), &old);
    assert!(sessions.held(&trust()).good(Duration::from_secs(60)).is_some(), "another is held by now");
    sessions.refused(&trust(), &current);
    assert!(sessions.held(&trust()).good(Duration::from_secs(60)).is_none());
    // Nobody gives another, and a function may say what it likes.
    assert!(Arc::ptr_eq(&get(&sessions, 60).await.unwrap(), &current));
}

#[test]
fn what_a_function_gets_names_its_owner_and_shows_no_token() {
    let session = hold(&sessions(), 0, 60);
    let given = &session.openstack;
    assert_eq!((given.user.id.as_str(), given.project.name.as_str()), ("u", "demo"));
    assert_eq!((given.roles[0].id.as_str(), given.roles[0].name.as_str()), ("r", "member"));
    assert_eq!(given.cloud, session.cloud.digest());
    assert!(serde_json::to_string(given).unwrap().contains("gAAAA-marker"));
    assert!(!format!("{session:?}").contains("marker"));
}
