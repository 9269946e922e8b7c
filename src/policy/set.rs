//! The rules in force: the defaults and, over them, those of a file.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::check::{self, Check};
use super::credentials::{ATTRIBUTES, Credentials, KEYS, Target};
use super::language;
use super::rules::{DEFAULT, RULES};

/// A rule as a file has it.
#[derive(Debug, Clone)]
pub struct Override {
    pub check: Check,
    /// The text in the file, for showing it again.
    pub text: String,
    pub line: u64,
}

#[derive(Debug, Clone)]
pub struct RuleSet {
    checks: HashMap<String, Check>,
    overrides: BTreeMap<String, Override>,
}

impl check::Rules for RuleSet {
    fn rule(&self, name: &str) -> Option<&Check> {
        self.checks.get(name).or_else(|| self.checks.get(DEFAULT))
    }
}

/// Rules that refer to each other in a circle, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle(pub Vec<String>);

impl RuleSet {
    pub fn new(overrides: BTreeMap<String, Override>) -> Result<Self, Cycle> {
        let mut checks: HashMap<String, Check> = RULES
            .iter()
            .map(|rule| {
                let check = language::parse(rule.check).expect("a test reads every default");
                (rule.name.to_owned(), check)
            })
            .collect();
        checks.extend(overrides.iter().map(|(name, rule)| (name.clone(), rule.check.clone())));
        let set = Self { checks, overrides };
        match set.cycle() {
            Some(cycle) => Err(cycle),
            None => Ok(set),
        }
    }

    /// Whether the rule, or else the default one, lets the caller pass. Without both nobody passes.
    pub fn passes(&self, rule: &str, caller: &Credentials<'_>, target: &Target<'_>) -> bool {
        check::Rules::rule(self, rule).is_some_and(|check| check.passes(self, caller, target))
    }

    /// Whether it passes, and a line for each check on the way.
    pub fn explain(&self, rule: &str, caller: &Credentials<'_>, target: &Target<'_>) -> (bool, String) {
        let mut text = String::new();
        Check::Rule(rule.to_owned()).explain(self, caller, target, 0, &mut text);
        (self.passes(rule, caller, target), text)
    }

    pub fn overridden(&self, name: &str) -> Option<&Override> {
        self.overrides.get(name)
    }

    pub fn overrides(&self) -> &BTreeMap<String, Override> {
        &self.overrides
    }

    pub fn exists(&self, name: &str) -> bool {
        self.checks.contains_key(name)
    }

    fn cycle(&self) -> Option<Cycle> {
        let mut names: Vec<&str> = self.checks.keys().map(String::as_str).collect();
        // So that the same file always gives the same answer.
        names.sort_unstable();
        let mut done = HashSet::new();
        names.into_iter().find_map(|name| self.cycle_from(name, &mut Vec::new(), &mut done))
    }

    fn cycle_from<'a>(
        &'a self,
        name: &'a str,
        path: &mut Vec<&'a str>,
        done: &mut HashSet<&'a str>,
    ) -> Option<Cycle> {
        // What is asked for a rule that does not exist.
        let name = if self.exists(name) { name } else { DEFAULT };
        if let Some(start) = path.iter().position(|&other| other == name) {
            return Some(Cycle(path[start..].iter().map(|&name| name.to_owned()).collect()));
        }
        if done.contains(name) {
            return None;
        }
        path.push(name);
        let below = self.checks[name].references().into_iter();
        let found = below.into_iter().find_map(|next| self.cycle_from(next, path, done));
        path.pop();
        done.insert(name);
        found
    }

    /// What a file says that has no effect, a sentence each.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let referred: HashSet<&str> =
            self.overrides.values().flat_map(|rule| rule.check.references()).collect();
        for (name, rule) in &self.overrides {
            let mut doubt =
                |text: String| doubts.push(format!("line {}: rule \"{name}\": {text}", rule.line));
            let known = RULES.iter().any(|rule| rule.name == name);
            if !known && !referred.contains(name.as_str()) {
                let near = near(name, RULES.iter().map(|rule| rule.name));
                doubt(format!("no operation asks this rule and no other rule refers to it{near}"));
            }
            for reference in rule.check.references() {
                if !self.exists(reference) {
                    let near = near(reference, self.checks.keys().map(String::as_str));
                    doubt(format!(
                        "refers to {reference}, which does not exist{near}; the rule default is asked"
                    ));
                }
            }
            rule.check.walk(&mut |check| match check {
                Check::Attribute(attribute, template) => {
                    if !ATTRIBUTES.contains(&attribute.as_str()) {
                        let near = near(attribute, ATTRIBUTES.into_iter());
                        let all = ATTRIBUTES.join(", ");
                        doubt(format!("a caller has no attribute {attribute}{near}; there are {all}"));
                    }
                    unknown_keys(template, &mut doubt);
                }
                Check::Literal(_, template) | Check::Role(template) => unknown_keys(template, &mut doubt),
                _ => {}
            });
        }
        doubts
    }
}

fn unknown_keys(template: &check::Template, doubt: &mut impl FnMut(String)) {
    for key in template.keys().filter(|key| !KEYS.contains(key)) {
        doubt(format!("a target has no key {key}; there are {}", KEYS.join(", ")));
    }
}

/// `, did you mean X?` where one of the names is close.
pub fn near<'a>(name: &str, existing: impl Iterator<Item = &'a str>) -> String {
    let nearest = existing.map(|other| (strsim::damerau_levenshtein(name, other), other)).min();
    match nearest {
        // Farther away than this, a guess confuses more than it helps.
        Some((away, other)) if away <= 1 + name.len() / 4 => format!(", did you mean {other}?"),
        _ => String::new(),
    }
}
