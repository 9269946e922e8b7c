use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use taibai::model::{Catalog, Token, UserToken};
use taibai::openstack::{Error, Object};

use crate::cloud::Cloud;

pub fn body(text: &str) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    futures_util::stream::iter([Ok(Bytes::from(text.to_owned()))])
}

pub async fn text(object: Object) -> Bytes {
    let pieces: Vec<Bytes> = object.content.try_collect().await.unwrap();
    pieces.concat().into()
}

#[tokio::test]
async fn an_object_keeps_its_name_and_its_bytes() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let demo = cloud.user("demo").await;
    let swift = keystone.session(&demo, Some("req-11111111-2222-4333-8444-555555555555")).unwrap().swift();
    let container = format!("objects {}", uuid::Uuid::new_v4());
    swift.ensure_container(&container).await.unwrap();
    swift.ensure_container(&container).await.unwrap();

    let names =
        ["plain.zip", "a/b//c", "ü?#%&+ ;=\"<>", "tab\tand\nline", "a/../b", "..a/.b", "%2e%2e", "/lead"];
    for name in names {
        let etag = swift.put_object(&container, name, body(name), name.len() as u64, None).await.unwrap();
        assert_eq!(etag, Some(hex::encode(Md5::digest(name))), "{name}");
    }
    for name in names {
        let info = swift.head_object(&container, name).await.unwrap();
        assert_eq!(info.bytes, name.len() as u64, "{name}");
        let object = swift.get_object(&container, name).await.unwrap();
        assert_eq!(object.info, info);
        assert_eq!(text(object).await, Bytes::from(name), "{name}");
    }
    for name in names {
        swift.delete_object(&container, name).await.unwrap();
        assert!(matches!(swift.head_object(&container, name).await, Err(Error::NotFound)), "{name}");
        swift.delete_object(&container, name).await.unwrap();
    }
    for name in ["", ".", ".."] {
        assert!(matches!(swift.delete_object(&container, name).await, Ok(())), "{name}");
        assert!(matches!(swift.get_object(&container, name).await, Err(Error::NotFound)), "{name}");
    }
    // The container is there yet: no name was taken for it.
    swift.put_object(&container, "last", body("x"), 1, None).await.unwrap();
    swift.delete_object(&container, "last").await.unwrap();
}

#[tokio::test]
async fn a_long_object_arrives_in_pieces() {
    let cloud = Cloud::open();
    let swift = cloud.ours().keystone.session(&cloud.user("demo").await, None).unwrap().swift();
    let container = format!("long-{}", uuid::Uuid::new_v4());
    swift.ensure_container(&container).await.unwrap();
    let piece = Bytes::from(vec![7; 1 << 20]);
    let pieces = futures_util::stream::iter(vec![Ok::<_, Infallible>(piece); 5]);
    let md5 = hex::encode(Md5::digest(vec![7; 5 << 20]));
    swift.put_object(&container, "long", pieces, 5 << 20, Some(&md5)).await.unwrap();

    let mut object = swift.get_object(&container, "long").await.unwrap();
    assert_eq!((object.info.bytes, object.info.etag.as_deref()), (5 << 20, Some(md5.as_str())));
    let (mut all, mut count) = (BytesMut::new(), 0);
    while let Some(piece) = object.content.next().await {
        all.extend(piece.unwrap());
        count += 1;
    }
    assert_eq!(hex::encode(Md5::digest(&all)), md5);
    assert!(count > 1);

    let wrong = swift.put_object(&container, "wrong", body("x"), 1, Some(&md5)).await.unwrap_err();
    assert!(matches!(wrong, Error::Refused { status: 422, .. }), "{wrong:?}");
    swift.delete_object(&container, "long").await.unwrap();
}

#[tokio::test]
async fn what_is_missing_forbidden_or_out_of_reach_is_told_apart() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let demo = cloud.user("demo").await;
    let container = format!("theirs-{}", uuid::Uuid::new_v4());
    let own = keystone.session(&demo, None).unwrap().swift();
    own.ensure_container(&container).await.unwrap();
    own.put_object(&container, "o", body("x"), 1, None).await.unwrap();
    assert!(matches!(own.get_object("nowhere", "o").await, Err(Error::NotFound)));

    // Another's token at demo's URLs.
    let alt = UserToken { token: cloud.token("alt_demo").await, info: Arc::clone(&demo.info) };
    let other = keystone.session(&alt, None).unwrap().swift();
    assert!(matches!(other.head_object(&container, "o").await, Err(Error::Forbidden { .. })));
    assert!(matches!(other.get_object(&container, "o").await, Err(Error::Forbidden { .. })));
    assert!(matches!(
        other.put_object(&container, "p", body("x"), 1, None).await,
        Err(Error::Forbidden { .. })
    ));

    let nobody = UserToken { token: Token::new("gAAAA"), info: Arc::clone(&demo.info) };
    let nobody = keystone.session(&nobody, None).unwrap().swift();
    assert!(matches!(nobody.head_object(&container, "o").await, Err(Error::Rejected)));

    let mut lost = (*demo.info).clone();
    lost.catalog = Arc::new(Catalog::default());
    let lost = UserToken { token: demo.token.clone(), info: Arc::new(lost) };
    let lost = keystone.session(&lost, None).unwrap().swift();
    assert!(matches!(lost.head_object(&container, "o").await, Err(Error::Unavailable { .. })));
    assert!(matches!(lost.ensure_container(&container).await, Err(Error::Unavailable { .. })));
    own.delete_object(&container, "o").await.unwrap();
}
