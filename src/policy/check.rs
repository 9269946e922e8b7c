//! A rule once it has been read: a tree of checks, and what it says of a caller and a target.

use std::borrow::Cow;
use std::fmt::{self, Write};

use super::credentials::{Credentials, Target, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `@`, or nothing.
    Everybody,
    /// `!`
    Nobody,
    Not(Box<Check>),
    And(Vec<Check>),
    Or(Vec<Check>),
    /// `rule:name`
    Rule(String),
    /// `role:name`, in whatever case.
    Role(Template),
    /// `'text':template`: a literal against the target.
    Literal(String, Template),
    /// `attribute:template`: something of the caller against the target.
    Attribute(String, Template),
}

/// What stands behind the colon: text with `%(key)s` of the target in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Key(String),
}

impl Template {
    /// The text for a target, or none where the target lacks a key.
    fn fill<'a>(&'a self, target: &'a Target<'_>) -> Option<Cow<'a, str>> {
        let part = |part: &'a Part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Key(key) => target.get(key),
        };
        match self.0.as_slice() {
            [] => Some(Cow::Borrowed("")),
            [one] => part(one).map(Cow::Borrowed),
            parts => parts.iter().map(part).collect::<Option<String>>().map(Cow::Owned),
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Key(key) => Some(key.as_str()),
            Part::Text(_) => None,
        })
    }
}

/// Finds the check that a name stands for.
pub trait Rules {
    /// `None` where neither the rule nor a default exists.
    fn rule(&self, name: &str) -> Option<&Check>;
}

impl Check {
    /// Whether this lets the caller do it to the target. References must not go in a circle.
    pub fn passes(&self, rules: &impl Rules, caller: &Credentials<'_>, target: &Target<'_>) -> bool {
        match self {
            Self::Everybody => true,
            Self::Nobody => false,
            Self::Not(check) => !check.passes(rules, caller, target),
            Self::And(checks) => checks.iter().all(|check| check.passes(rules, caller, target)),
            Self::Or(checks) => checks.iter().any(|check| check.passes(rules, caller, target)),
            Self::Rule(name) => rules.rule(name).is_some_and(|check| check.passes(rules, caller, target)),
            Self::Role(role) => role.fill(target).is_some_and(|role| caller.has_role(&role)),
            Self::Literal(literal, template) => template.fill(target).is_some_and(|text| text == *literal),
            Self::Attribute(name, template) => {
                let Some(text) = template.fill(target) else { return false };
                match caller.get(name) {
                    Some(Value::Text(value)) => text == value,
                    // As Python writes it; Qinling's files have 1.
                    Some(Value::Flag(true)) => text == "True" || text == "1",
                    Some(Value::Flag(false)) => text == "False" || text == "0",
                    Some(Value::Roles) => caller.roles().any(|role| text == role),
                    None => false,
                }
            }
        }
    }

    /// Calls `see` with this and every check below it.
    pub fn walk<'a>(&'a self, see: &mut impl FnMut(&'a Self)) {
        see(self);
        match self {
            Self::Not(check) => check.walk(see),
            Self::And(checks) | Self::Or(checks) => checks.iter().for_each(|check| check.walk(see)),
            _ => {}
        }
    }

    /// The names of the rules that this refers to.
    pub fn references(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.walk(&mut |check| {
            if let Self::Rule(name) = check {
                names.push(name.as_str());
            }
        });
        names
    }

    /// Writes why this passes or does not, a line for each check, indented below what it is a part of.
    pub fn explain(
        &self,
        rules: &impl Rules,
        caller: &Credentials<'_>,
        target: &Target<'_>,
        depth: usize,
        into: &mut String,
    ) {
        let word = if self.passes(rules, caller, target) { "yes" } else { "no" };
        let _ = writeln!(into, "{:width$}{word:<4}{self}", "", width = depth * 2);
        match self {
            Self::Not(check) => check.explain(rules, caller, target, depth + 1, into),
            Self::And(checks) | Self::Or(checks) => {
                for check in checks {
                    check.explain(rules, caller, target, depth + 1, into);
                }
            }
            Self::Rule(name) => match rules.rule(name) {
                Some(check) => check.explain(rules, caller, target, depth + 1, into),
                None => {
                    let _ = writeln!(into, "{:width$}there is no such rule", "", width = depth * 2 + 6);
                }
            },
            _ => {}
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, word: &str, checks: &[Self]| {
            f.write_char('(')?;
            for (number, check) in checks.iter().enumerate() {
                if number > 0 {
                    write!(f, " {word} ")?;
                }
                check.fmt(f)?;
            }
            f.write_char(')')
        };
        match self {
            Self::Everybody => f.write_char('@'),
            Self::Nobody => f.write_char('!'),
            Self::Not(check) => write!(f, "not {check}"),
            Self::And(checks) => joined(f, "and", checks),
            Self::Or(checks) => joined(f, "or", checks),
            Self::Rule(name) => write!(f, "rule:{name}"),
            Self::Role(template) => write!(f, "role:{template}"),
            Self::Literal(literal, template) => write!(f, "'{literal}':{template}"),
            Self::Attribute(name, template) => write!(f, "{name}:{template}"),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('%', "%%")),
            Part::Key(key) => write!(f, "%({key})s"),
        })
    }
}
