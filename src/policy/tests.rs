use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Check;
use super::*;

fn caller(project: &str, roles: &[&str]) -> Caller {
    Caller::new("u", project, roles.iter().map(|&role| role.to_owned()).collect())
}

/// What oslo.policy says, from tests/policy/generate.py.
#[derive(Deserialize)]
struct Cases {
    named: BTreeMap<String, String>,
    callers: Vec<CaseCaller>,
    targets: Vec<BTreeMap<String, String>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct CaseCaller {
    user_id: String,
    project_id: String,
    roles: Vec<String>,
    is_admin: bool,
}

#[derive(Deserialize)]
struct Case {
    rule: serde_json::Value,
    expected: String,
}

struct Named(BTreeMap<String, Check>);

impl check::Rules for Named {
    fn rule(&self, name: &str) -> Option<&Check> {
        self.0.get(name).or_else(|| self.0.get("default"))
    }
}

#[test]
fn every_rule_means_what_it_means_to_oslo_policy() {
    let cases: Cases = serde_json::from_str(include_str!("../../tests/policy/oslo-cases.json")).unwrap();
    let named = cases.named.iter().map(|(name, text)| (name.clone(), language::parse(text).unwrap()));
    let named = Named(named.collect());
    let mut asked = 0;
    for case in &cases.cases {
        // Through a file, so that lists are read as they are there.
        let text = serde_json::json!({"asked": case.rule}).to_string();
        let set = file::read("cases", &text).unwrap_or_else(|error| panic!("{error}"));
        let check = &set.overridden("asked").unwrap().check;
        let got: String = cases
            .callers
            .iter()
            .flat_map(|caller| cases.targets.iter().map(move |target| (caller, target)))
            .map(|(caller, target)| {
                asked += 1;
                let mut known =
                    Caller::new(caller.user_id.as_str(), caller.project_id.as_str(), caller.roles.clone());
                known.set_admin(caller.is_admin);
                let user_id = target.get("user_id").map(String::as_str);
                let target = Target { project_id: &target["project_id"], user_id };
                if check.passes(&named, &Credentials::of(&known), &target) { 'y' } else { 'n' }
            })
            .collect();
        assert_eq!(got, case.expected, "{}", case.rule);
    }
    assert!(asked > 4000, "{asked}");
}

#[test]
fn is_admin_may_be_written_as_a_number_too() {
    let policy = Policy::from_text("job:get: 'is_admin:1'\njob:delete: 'is_admin:0'\n").unwrap();
    let (admin, member) = (policy.admit(caller("p", &["admin"])), policy.admit(caller("p", &["member"])));
    assert!(policy.enforce(&admin, "job:get").is_ok() && policy.enforce(&member, "job:get").is_err());
    assert!(policy.enforce(&admin, "job:delete").is_err() && policy.enforce(&member, "job:delete").is_ok());
}

/// Who passes each rule in the own project: A for admin, M for manager, m for member, r for reader,
/// s for service, c for a role of the cloud's own, n for a token without roles.
const OWN: &str = "
    context_is_admin            A
    owner                       AMmrscn
    admin_or_owner              AMmrscn
    project_manager             AM
    project_member              AMmc
    project_reader              AMmrc
    admin_or_project_manager    AM
    admin_or_project_member     AMmc
    admin_or_project_reader     AMmrc
    service                     s
    default
    runtime:create              A
    runtime:get                 AMmrc
    runtime:get_all             AMmrc
    runtime:update              A
    runtime:delete              A
    runtime_pool:get_all        A
    function:create             AMmc
    function:get                AMmrc
    function:get_all            AMmrc
    function:get_all:all_projects A
    function:update             AMmc
    function:delete             AMmc
    function:scale_up           A
    function:scale_down         A
    function:detach             AM
    function_worker:get_all     AM
    function_version:create     AMmc
    function_version:get        AMmrc
    function_version:get_all    AMmrc
    function_version:delete     AMmc
    function_version:scale_up   A
    function_version:scale_down A
    function_version:detach     AM
    function_alias:create       AMmc
    function_alias:get          AMmrc
    function_alias:get_all      AMmrc
    function_alias:get_all:all_projects A
    function_alias:update       AMmc
    function_alias:delete       AMmc
    execution:create            AMmc
    execution:get               AMmrc
    execution:get_all           AMmrc
    execution:get_all:all_projects A
    execution:get_log           AMmrc
    execution:cancel            AMmc
    execution:delete            AMmc
    job:create                  AMmc
    job:get                     AMmrc
    job:get_all                 AMmrc
    job:get_all:all_projects    A
    job:update                  AMmc
    job:delete                  AMmc
    webhook:create              AMmc
    webhook:get                 AMmc
    webhook:get_all             AMmc
    webhook:get_all:all_projects A
    webhook:update              AMmc
    webhook:delete              AMmc
    quota:get                   AMmrc
";

/// What passes although it belongs to another project, by the same letters: nothing but what an
/// administrator does, and these.
const FOREIGN: [(&str, &str); 5] = [
    ("owner", ""),
    ("project_manager", ""),
    ("project_member", ""),
    ("project_reader", ""),
    ("service", "s"),
];

#[test]
fn every_rule_lets_the_right_personas_pass() {
    let personas: [(char, &[&str]); 7] = [
        ('A', &["admin"]),
        ('M', &["manager"]),
        ('m', &["member"]),
        ('r', &["reader"]),
        ('s', &["service"]),
        ('c', &["creator"]),
        ('n', &[]),
    ];
    let table: BTreeMap<&str, &str> = OWN
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next().unwrap_or("")))
        })
        .collect();
    let policy = Policy::default();
    let rules = policy.rules();
    assert_eq!(table.len(), RULES.len());
    for rule in RULES {
        let who_passes = |target: &Target<'_>| -> String {
            let passes = |roles: &[&str]| {
                let caller = policy.admit(caller("own", roles));
                rules.passes(rule.name, &Credentials::of(&caller), target)
            };
            personas.iter().filter(|(_, roles)| passes(roles)).map(|(letter, _)| *letter).collect()
        };
        let own = table[rule.name];
        assert_eq!(who_passes(&Target { project_id: "own", user_id: Some("u") }), own, "{}", rule.name);
        let admins = if own.contains('A') { "A" } else { "" };
        let foreign = FOREIGN.iter().find(|(name, _)| *name == rule.name).map_or(admins, |(_, who)| who);
        assert_eq!(who_passes(&Target::of_project("other")), foreign, "{} elsewhere", rule.name);
    }
}

#[test]
fn every_default_can_be_read_and_is_there_once() {
    let mut names: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RULES.len());
    for rule in RULES {
        language::parse(rule.check).unwrap_or_else(|error| panic!("{}: {error}", rule.name));
        assert!(rule.about.ends_with('.') && rule.name != rule.about, "{}", rule.name);
        assert_eq!(rule.operations.is_empty(), !rule.name.contains(':'), "{}", rule.name);
    }
    // Every one of them again, as if a file had it: nothing in it is odd.
    let all: serde_json::Map<_, _> =
        RULES.iter().map(|rule| (rule.name.to_owned(), rule.check.into())).collect();
    let policy = Policy::from_text(&serde_json::Value::Object(all).to_string()).unwrap();
    assert_eq!(policy.rules().doubts(), Vec::<String>::new());
}

#[test]
fn a_rule_that_does_not_exist_lets_nobody_pass() {
    let policy = Policy::default();
    let admin = policy.admit(caller("p", &["admin"]));
    assert!(matches!(
        policy.enforce(&admin, "runtime:paint"),
        Err(Error::Forbidden { rule: "runtime:paint" })
    ));
    // Unless the file says otherwise.
    let policy = Policy::from_text("default: 'role:admin'").unwrap();
    assert!(policy.enforce(&admin, "runtime:paint").is_ok());
}

#[test]
fn who_is_an_administrator_is_a_rule() {
    let policy = Policy::from_text("context_is_admin: 'role:cloud_admin'").unwrap();
    let operator = policy.admit(caller("p", &["cloud_admin"]));
    assert!(operator.is_admin());
    assert_eq!(operator.scope(), crate::model::Scope::All);
    assert!(policy.enforce(&operator, "runtime:create").is_ok());
    let admin = policy.admit(caller("p", &["admin"]));
    assert!(!admin.is_admin() && policy.enforce(&admin, "runtime:create").is_err());
    // Nobody makes himself one by coming in as one.
    let mut forged = caller("p", &["member"]);
    forged.set_admin(true);
    let policy = Policy::from_text("context_is_admin: 'role:admin or is_admin:1'").unwrap();
    assert!(!policy.admit(forged).is_admin());
}

#[test]
fn the_target_is_the_row_where_one_is_at_hand() {
    let policy = Policy::from_text("function:delete: 'rule:owner'").unwrap();
    let admin = policy.admit(caller("p", &["admin"]));
    assert!(policy.enforce(&admin, "function:delete").is_ok());
    assert!(policy.enforce_on(&admin, "function:delete", &Target::of_project("p")).is_ok());
    assert!(policy.enforce_on(&admin, "function:delete", &Target::of_project("other")).is_err());
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_line_and_rule() {
    for (text, message) in [
        ("# a\n\njob:get: role:a and", "policy.yaml:3: rule \"job:get\": at character 11: expected a check"),
        (
            "job:get: '@'\njob:delete: http://x/%(project_id)s\n",
            "policy.yaml:2: rule \"job:delete\": at character 1: http: checks are not there",
        ),
        ("job:get:\n", "policy.yaml:1: rule \"job:get\": has no value; write \"@\" for everybody"),
        ("job:get: !\n", "policy.yaml:1: "),
        ("job:get: true\n", "policy.yaml:1: rule \"job:get\": expected text in quotes"),
        ("job:get: [[role:a], [1]]\n", "policy.yaml:1: rule \"job:get\": expected a list of lists of checks"),
        ("job:get: [['a']]\n", "policy.yaml:1: rule \"job:get\": 'a' is no check"),
        ("a: '@'\nb: '@'\na: '!'\n", "policy.yaml:"),
        ("- a\n- b\n", "policy.yaml"),
        ("a: {b: c}\n", "policy.yaml:1: rule \"a\": expected text in quotes"),
        ("a: '@\n", "policy.yaml"),
        (
            "a: rule:b\nb: '!'\nc: not rule:d\nd: '@ or (rule:e)'\ne: rule:c\n",
            "policy.yaml:3: rules refer to each other in a circle: c -> d -> e -> c",
        ),
        ("owner: rule:owner\n", "policy.yaml:1: rules refer to each other in a circle: owner -> owner"),
        (
            "default: rule:nothing\n",
            "policy.yaml:1: rules refer to each other in a circle: default -> default",
        ),
        (
            "context_is_admin: rule:admin_or_owner\n",
            "policy.yaml:1: rules refer to each other in a circle: admin_or_owner -> context_is_admin -> admin_or_owner",
        ),
    ] {
        let error = Policy::from_text(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}\n{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for nothing in ["", "# only a comment\n", "---\n", "{}", "---\n# x\n...\n"] {
        assert!(Policy::from_text(nothing).unwrap().rules().overrides().is_empty(), "{nothing}");
    }
}

#[test]
fn what_has_no_effect_is_doubted() {
    let text = "function:gett: '@'\nmine: '@'\njob:get: rule:mine or rule:ownr\n\
                job:delete: tenant_id:%(tenant_id)s\njob:update: user:%(user_id)s or role:%(domain)s\n";
    assert_eq!(
        Policy::from_text(text).unwrap().rules().doubts(),
        [
            "line 1: rule \"function:gett\": no operation asks this rule and no other rule refers to it, did you mean function:get?",
            "line 4: rule \"job:delete\": a caller has no attribute tenant_id; there are user_id, project_id, roles, is_admin, custom_roles",
            "line 4: rule \"job:delete\": a target has no key tenant_id; there are project_id, user_id",
            "line 3: rule \"job:get\": refers to ownr, which does not exist, did you mean owner?; the rule default is asked",
            "line 5: rule \"job:update\": a caller has no attribute user; there are user_id, project_id, roles, is_admin, custom_roles",
            "line 5: rule \"job:update\": a target has no key domain; there are project_id, user_id",
        ]
    );
}

#[test]
fn a_file_is_read_again_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.yaml");
    assert!(Policy::open(&path).unwrap_err().to_string().contains("there is no such file"));
    assert!(!Path::new(USUAL_FILE).exists() && Policy::open(Path::new(USUAL_FILE)).is_ok());
    std::fs::write(&path, "job:get: '!'").unwrap();
    let policy = Policy::open(&path).unwrap();
    let member = policy.admit(caller("p", &["member"]));
    let may = || policy.enforce(&member, "job:get").is_ok();
    assert!(!may());
    std::fs::write(&path, "job:get: '@'").unwrap();
    assert!(!may(), "nobody has looked");
    policy.refresh();
    assert!(may());
    std::fs::write(&path, "job:get: 'role:x or'").unwrap();
    policy.refresh();
    assert!(may());
    std::fs::write(&path, "job:get: 'role:x'").unwrap();
    policy.clone().refresh();
    assert!(!may());
    std::fs::remove_file(&path).unwrap();
    policy.refresh();
    assert!(!may(), "the default would let it pass");
}

#[test]
fn why_is_told_check_by_check() {
    let policy = Policy::default();
    let member = policy.admit(caller("p", &["reader"]));
    let (passes, why) =
        policy.rules().explain("function:create", &Credentials::of(&member), &Target::own(&member));
    assert!(!passes);
    assert_eq!(
        why,
        "no  rule:function:create\n  no  rule:admin_or_project_member\n    no  (rule:context_is_admin or rule:project_member)\n\
         \x20     no  rule:context_is_admin\n        no  role:admin\n      no  rule:project_member\n\
         \x20       no  (rule:owner and (role:member or custom_roles:True))\n          yes rule:owner\n\
         \x20           yes project_id:%(project_id)s\n          no  (role:member or custom_roles:True)\n\
         \x20           no  role:member\n            no  custom_roles:True\n"
    );
}
