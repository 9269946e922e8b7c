use super::*;

const COST: u32 = 4;

fn line(name: &str, password: &str, rest: &str) -> String {
    let hash = bcrypt::hash_with_result(password, COST).unwrap();
    format!("{name}:{}{rest}\n", hash.format_for_version(bcrypt::Version::TwoY))
}

fn header(name: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

struct Site {
    directory: tempfile::TempDir,
    basic: Arc<Basic>,
}

impl Site {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let user_file = directory.path().join("users");
        std::fs::write(&user_file, text).unwrap();
        let config = HttpBasic { user_file, admins: "root, ghost".to_owned() };
        Self { directory, basic: Arc::new(Basic::open(&config).unwrap()) }
    }

    fn rewrite(&self, text: &str) {
        std::fs::write(self.directory.path().join("users"), text).unwrap();
        self.basic.refresh();
    }

    async fn ask(&self, name: &str, password: &str) -> Result<Caller, Rejected> {
        self.basic.authenticate(Some(&header(name, password))).await
    }

    fn verified(&self) -> usize {
        self.basic.verified.lock().unwrap().known.len()
    }
}

#[tokio::test]
async fn a_password_makes_its_user_the_caller() {
    let site = Site::new(&[line("ann", "x:y", ""), line("root", "p", ":ops:reader")].concat());
    let ann = site.ask("ann", "x:y").await.unwrap();
    assert_eq!(
        (ann.user_id.as_str(), ann.project_id.as_str(), ann.roles),
        ("ann", "ann", vec!["member".to_owned()])
    );
    let root = site.ask("root", "p").await.unwrap();
    assert_eq!(
        (root.project_id.as_str(), root.roles),
        ("ops", vec!["reader".to_owned(), "admin".to_owned()])
    );
    // The scheme's case does not matter.
    let odd = header("ann", "x:y").replace("Basic", "bASIC ");
    assert!(site.basic.authenticate(Some(&odd)).await.is_ok());
}

#[tokio::test]
async fn every_kind_of_hash_that_htpasswd_makes_is_taken() {
    let hash = bcrypt::hash_with_result("p", COST).unwrap();
    for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
        let site = Site::new(&format!("ann:{}\n", hash.format_for_version(version)));
        assert!(site.ask("ann", "p").await.is_ok());
        assert_eq!(site.ask("ann", "q").await.err(), Some(Rejected::Password));
    }
}

#[tokio::test]
async fn who_is_not_known_is_refused_whatever_is_wrong() {
    let site = Site::new(&line("ann", "p", ""));
    for (name, password) in [("ann", "P"), ("ann", ""), ("Ann", "p"), ("bob", "p"), ("ghost", ""), ("", "")] {
        assert_eq!(site.ask(name, password).await.err(), Some(Rejected::Password), "{name}");
    }
    assert_eq!(site.ask("ann", &"p".repeat(73)).await.err(), Some(Rejected::Password));
    for header in ["Basic ***", "Basic", "Basic YQ==", "Basic /w=="] {
        assert!(site.basic.authenticate(Some(header)).await.is_err(), "{header}");
    }
    for header in [None, Some(""), Some("Bearer x"), Some("Basic")] {
        assert_eq!(site.basic.authenticate(header).await.err(), Some(Rejected::Missing));
    }
    assert_eq!(site.verified(), 0, "a refusal is not kept");
}

#[tokio::test]
async fn a_change_of_the_file_counts_at_once_and_a_broken_one_does_not() {
    let site = Site::new(&line("ann", "old", ""));
    assert!(site.ask("ann", "old").await.is_ok());
    site.rewrite(&line("ann", "new", ":lab"));
    assert_eq!(site.ask("ann", "old").await.err(), Some(Rejected::Password), "though it had been verified");
    assert_eq!(site.ask("ann", "new").await.unwrap().project_id.as_str(), "lab");
    site.rewrite("ann:$apr1$x\n");
    assert!(site.ask("ann", "new").await.is_ok());
    std::fs::remove_file(site.directory.path().join("users")).unwrap();
    site.basic.refresh();
    assert!(site.ask("ann", "new").await.is_ok());
    site.rewrite(&line("bob", "p", ""));
    assert_eq!(site.ask("ann", "new").await.err(), Some(Rejected::Password));
}

#[tokio::test]
async fn many_requests_at_once_make_one_check() {
    let site = Site::new(&line("ann", "p", ""));
    // No check can begin, so that all the requests have to wait for the one.
    let held = site.basic.checks.clone().acquire_many_owned(site.basic.checks.available_permits() as u32);
    let held = held.await.unwrap();
    let requests: Vec<_> = (0..MAX_IN_LANE)
        .map(|_| {
            let basic = site.basic.clone();
            tokio::spawn(async move { basic.authenticate(Some(&header("ann", "p"))).await })
        })
        .collect();
    while site.basic.lanes.iter().map(|lane| lane.inside.load(Ordering::Acquire)).sum::<usize>() < MAX_IN_LANE
    {
        tokio::task::yield_now().await;
    }
    // One more than there is room for, and somebody else, whose lane is free unless it is the same.
    assert_eq!(site.ask("ann", "p").await.err(), Some(Rejected::Busy));
    drop(held);
    for request in requests {
        assert!(request.await.unwrap().is_ok());
    }
    assert_eq!(site.verified(), 1);
    assert!(site.ask("ann", "p").await.is_ok());
}

#[tokio::test]
async fn a_name_that_nobody_has_costs_a_check() {
    assert!(bcrypt::verify("anything", NOBODY).is_ok_and(|right| !right), "a hash that can be checked");
    let site = Site::new(&line("ann", "p", ""));
    let held = site.basic.checks.clone().acquire_many_owned(site.basic.checks.available_permits() as u32);
    let held = held.await.unwrap();
    let basic = site.basic.clone();
    let asked = tokio::spawn(async move { basic.authenticate(Some(&header("nobody", "p"))).await });
    while site.basic.lanes.iter().all(|lane| lane.inside.load(Ordering::Acquire) == 0) {
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    drop(held);
    assert_eq!(asked.await.unwrap().err(), Some(Rejected::Password));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut verified = Verified::default();
    let digest = |number: usize| {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    };
    for number in 0..MAX_VERIFIED + 10 {
        verified.insert(digest(number));
        verified.insert(digest(number));
    }
    assert_eq!((verified.known.len(), verified.order.len()), (MAX_VERIFIED, MAX_VERIFIED));
    assert!(!verified.known.contains(&digest(9)) && verified.known.contains(&digest(10)));
}
