//! What a package store promises, asked of both: the directory and the container of Swift.

use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use sha2::Sha256;
use taibai::config::KeystoneAuthtoken;
use taibai::openstack::{self, Keystone};
use taibai::storage::{Content, Error, LocalStore, PackageStore, Received, SwiftStore};
use tokio::io::AsyncReadExt;

use crate::cloud::{Cloud, ours};

const LIMIT: u64 = 8 << 20;

/// A store with its directory, which shows nothing but what is kept there.
struct Fixture {
    directory: tempfile::TempDir,
    store: Box<dyn PackageStore>,
}

async fn local() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Box::new(LocalStore::open(directory.path(), LIMIT).await.unwrap());
    Fixture { directory, store }
}

async fn swift(keystone: Keystone, container: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = SwiftStore::open(keystone, container.to_owned(), directory.path(), LIMIT).await.unwrap();
    Fixture { directory, store: Box::new(store) }
}

fn container() -> String {
    format!("packages-{}", uuid::Uuid::new_v4())
}

impl Fixture {
    async fn receive(&self, bytes: &[u8]) -> Result<Received, Error> {
        let mut upload = self.store.begin().await?;
        for chunk in bytes.chunks(70_000) {
            upload = upload.write(chunk).await?;
        }
        upload.finish().await
    }

    /// Keeps these bytes and gives their digest.
    async fn keep(&self, bytes: &[u8]) -> String {
        let received = self.receive(bytes).await.unwrap();
        let digest = received.digest.clone();
        self.store.keep(received).await.unwrap();
        digest
    }

    async fn read(&self, digest: &str) -> Vec<u8> {
        rest(self.store.open(digest).await.unwrap()).await
    }

    fn uploads(&self) -> usize {
        uploads(self.directory.path())
    }
}

fn uploads(directory: &Path) -> usize {
    let names = std::fs::read_dir(directory).unwrap();
    names.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".upload-")).count()
}

async fn rest(mut content: Content) -> Vec<u8> {
    let mut read = Vec::new();
    content.reader.read_to_end(&mut read).await.unwrap();
    assert_eq!(content.bytes, read.len() as u64);
    read
}

/// Bytes that are nobody else's.
fn noise(length: usize) -> Vec<u8> {
    let seed = uuid::Uuid::new_v4().into_bytes();
    (0..length).map(|n| seed[n % 16].wrapping_add((n / 16 % 251) as u8)).collect()
}

async fn keeps_its_promises(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    // Under the digest, whole, however often.
    let (small, large) = (noise(11), noise(5 << 20));
    for bytes in [&small, &large, &small] {
        let digest = fixture.keep(bytes).await;
        assert_eq!(digest, hex::encode(Sha256::digest(bytes)));
        assert!(fixture.read(&digest).await == *bytes);
    }
    assert_eq!(fixture.uploads(), 0);

    // Without being kept it can be read too, once.
    let passing = noise(300_000);
    let received = fixture.receive(&passing).await.unwrap();
    let digest = received.digest.clone();
    assert!(rest(received.into_content().await.unwrap()).await == passing);
    assert!(matches!(store.open(&digest).await, Err(Error::NotFound)));
    assert_eq!(fixture.uploads(), 0);

    // What is gone is gone, and whoever has it open reads on.
    let digest = hex::encode(Sha256::digest(&large));
    let open = store.open(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    assert!(matches!(store.open(&digest).await, Err(Error::NotFound)));
    assert!(rest(open).await == large);
    let digest = hex::encode(Sha256::digest(&small));
    assert!(fixture.read(&digest).await == small, "the other is still there");

    // Gone and back.
    assert!(fixture.read(&fixture.keep(&large).await).await == large);

    // Too much, and too little.
    let full = noise(usize::try_from(LIMIT).unwrap());
    drop(fixture.receive(&full).await.unwrap());
    let more = [full, vec![7]].concat();
    assert!(matches!(fixture.receive(&more).await, Err(Error::TooLarge { limit: LIMIT })));
    let upload = store.begin().await.unwrap();
    assert_eq!(fixture.uploads(), 1);
    drop(upload.write(b"half").await.unwrap());
    assert_eq!(fixture.uploads(), 0);

    // What is no digest names nothing, not even where it is there.
    let upper = digest.to_uppercase();
    for name in ["", "secret", "../secret", &upper, &"é".repeat(32), &digest[..63]] {
        assert!(matches!(store.open(name).await, Err(Error::NotFound)), "{name:?}");
        store.delete(name).await.unwrap();
    }
    for bytes in [small, large] {
        let digest = hex::encode(Sha256::digest(&bytes));
        assert!(fixture.read(&digest).await == bytes);
        store.delete(&digest).await.unwrap();
    }
}

/// What a process left that ended before it wrote down who needs a package.
async fn forgets_what_nobody_needs(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let (needed, unused) = (fixture.keep(&noise(1000)).await, fixture.keep(&noise(2000)).await);
    let sweep = async |needed: &[&String], age: u64| {
        let needed = needed.iter().map(|digest| (*digest).clone()).collect();
        store.sweep(needed, Duration::from_secs(age)).await.unwrap()
    };
    // Of an empty database, of another's, and of what may be under way.
    let foreign = "0".repeat(64);
    assert_eq!(sweep(&[], 0).await, 0);
    assert_eq!(sweep(&[&needed, &foreign], 0).await, 0);
    assert_eq!(sweep(&[&needed], 3600).await, 0);
    fixture.read(&unused).await;
    // A list of Swift's may be a moment behind.
    let deadline = Instant::now() + Duration::from_secs(20);
    while sweep(&[&needed], 0).await == 0 {
        assert!(Instant::now() < deadline, "nothing was removed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(matches!(store.open(&unused).await, Err(Error::NotFound)));
    fixture.read(&needed).await;
    store.delete(&needed).await.unwrap();
}

#[tokio::test]
async fn a_directory_keeps_packages() {
    keeps_its_promises(local().await).await;
    forgets_what_nobody_needs(local().await).await;
}

#[tokio::test]
async fn a_container_of_swift_keeps_packages() {
    let cloud = Cloud::open();
    keeps_its_promises(swift(cloud.ours().keystone, &container()).await).await;
    forgets_what_nobody_needs(swift(cloud.ours().keystone, &container()).await).await;
}

#[tokio::test]
async fn objects_are_named_by_their_digests_and_nothing_stays_on_the_machine() {
    let cloud = Cloud::open();
    let keystone = cloud.ours().keystone;
    let container = container();
    let fixture = swift(keystone.clone(), &container).await;
    // Not a package of ours: another's object of a name that is no digest.
    let put = |session: openstack::Session| {
        let container = container.clone();
        async move { session.swift().put_object(&container, "secret", crate::objects::body("x"), 1, None).await }
    };
    keystone.as_service(put).await.unwrap();
    assert!(matches!(fixture.store.open("secret").await, Err(Error::NotFound)));
    fixture.store.delete("secret").await.unwrap();

    let bytes = noise(1000);
    let digest = fixture.keep(&bytes).await;
    for (name, length) in [(digest.as_str(), 1000), ("secret", 1)] {
        let info = head(&keystone, &container, name).await.unwrap();
        assert_eq!(info.bytes, length);
        if name == digest {
            assert_eq!(info.etag, Some(hex::encode(Md5::digest(&bytes))));
        }
    }
    assert_eq!(std::fs::read_dir(fixture.directory.path()).unwrap().count(), 0);
    // A machine that has never seen it reads it as well.
    let elsewhere = swift(keystone.clone(), &container).await;
    assert!(elsewhere.read(&digest).await == bytes);
    // Nor is it one that nobody needs.
    elsewhere.store.sweep([digest.clone()].into(), Duration::ZERO).await.unwrap();
    assert_eq!(head(&keystone, &container, "secret").await.unwrap().bytes, 1);
    elsewhere.store.delete(&digest).await.unwrap();
    assert!(matches!(head(&keystone, &container, &digest).await, Err(openstack::Error::NotFound)));
}

async fn head(
    keystone: &Keystone,
    container: &str,
    object: &str,
) -> Result<openstack::ObjectInfo, openstack::Error> {
    let head =
        |session: openstack::Session| async move { session.swift().head_object(container, object).await };
    keystone.as_service(head).await
}

#[tokio::test]
async fn a_container_that_was_removed_is_made_again() {
    let cloud = Cloud::open();
    let container = container();
    let fixture = swift(cloud.ours().keystone, &container).await;
    let taibai = cloud.user("taibai").await;
    let account = cloud.ours().keystone.session(&taibai, None).unwrap().endpoint("object-store").unwrap();
    let url = format!("{account}/{container}");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let removed = http.delete(url).header("x-auth-token", taibai.token.expose()).send().await.unwrap();
    assert_eq!(removed.status(), 204);

    let bytes = noise(4 << 20);
    let missing = hex::encode(Sha256::digest(&bytes));
    assert!(matches!(fixture.store.open(&missing).await, Err(Error::NotFound)));
    fixture.store.delete(&missing).await.unwrap();
    let digest = fixture.keep(&bytes).await;
    assert!(fixture.read(&digest).await == bytes);
    fixture.store.delete(&digest).await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_away_or_refuses_is_not_a_package_that_is_missing() {
    let cloud = Cloud::open();
    let (mut way, detour) = cloud.way_to_swift().await;
    let section = KeystoneAuthtoken { region_name: detour.region.clone(), ..cloud.section() };
    let ours = ours(&section);
    let fixture = swift(ours.keystone.clone(), &container()).await;
    let bytes = noise(3 << 20);
    let digest = fixture.keep(&bytes).await;

    // Swift's log names the request that it was asked for.
    const ID: &str = "req-44444444-2222-4333-8444-555555555555";
    drop(openstack::on_behalf_of(ID.into(), fixture.store.open(&digest)).await.unwrap());
    assert!(way.seen().contains(&format!("x-openstack-request-id: {ID}")));

    // A token that is refused is replaced, in the middle of nothing.
    for _ in 0..2 {
        let issued = ours.calls("issue");
        cloud.revoke(&way.last_token()).await;
        assert_eq!(fixture.keep(&bytes).await, digest);
        assert_eq!(ours.calls("issue"), issued + 1);
    }
    cloud.revoke(&way.last_token()).await;
    assert!(fixture.read(&digest).await == bytes);
    let tokens = ours.calls("issue");

    let received = fixture.receive(&bytes).await.unwrap();
    way.cut().await;
    let away = |result: Result<(), Error>| matches!(result, Err(Error::Unavailable(_)));
    assert!(away(fixture.store.keep(received).await));
    assert!(away(fixture.store.open(&digest).await.map(drop)));
    assert!(away(fixture.store.delete(&digest).await));
    assert_eq!(fixture.uploads(), 0);
    // A store opens nevertheless.
    let later = swift(ours.keystone.clone(), &container()).await;
    way.mend().await;
    assert_eq!(later.keep(&bytes).await, digest);
    later.store.delete(&digest).await.unwrap();
    fixture.store.delete(&digest).await.unwrap();
    assert_eq!(ours.calls("issue"), tokens);

    // A content that breaks off is no end of it.
    let digest = fixture.keep(&noise(8 << 20)).await;
    let mut content = fixture.store.open(&digest).await.unwrap();
    let mut first = [0; 1000];
    content.reader.read_exact(&mut first).await.unwrap();
    way.cut().await;
    let mut rest = Cursor::new(Vec::new());
    let broken = tokio::io::copy(&mut content.reader, &mut rest).await;
    assert!(broken.is_err(), "{} bytes of {}", rest.into_inner().len() + 1000, content.bytes);
    way.mend().await;
    fixture.store.delete(&digest).await.unwrap();
}
