//! policy.yaml: rules that differ from their defaults. JSON is YAML too.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_saphyr::Spanned;

use super::check::Check;
use super::language;
use super::set::{Override, RuleSet};

const NO_VALUE: &str = "has no value; write \"@\" for everybody or \"!\" for nobody, in quotes";

/// The rules of a file over the defaults, or in one line what is wrong with it: file, line, rule.
pub fn read(name: &str, text: &str) -> Result<RuleSet, String> {
    rules(name, text).map_err(|reason| {
        // Names and checks may hold line breaks, as YAML writes them in quotes.
        let shown = |char: char| match char.is_control() {
            true => char.escape_default().to_string(),
            false => char.to_string(),
        };
        reason.chars().map(shown).collect()
    })
}

fn rules(name: &str, text: &str) -> Result<RuleSet, String> {
    let overrides = entries(name, text)?
        .into_iter()
        .map(|(rule, value)| {
            let line = value.referenced.line();
            let wrong = |reason: String| format!("{name}:{line}: rule \"{rule}\": {reason}");
            // YAML takes ! for a tag of nothing, where nobody was meant and everybody would be.
            let source = text.lines().nth(usize::try_from(line).unwrap_or(0).saturating_sub(1)).unwrap_or("");
            if value.value == "" && !source.contains("''") && !source.contains("\"\"") {
                return Err(wrong(NO_VALUE.to_owned()));
            }
            let (check, text) = one(&value.value).map_err(wrong)?;
            Ok((rule, Override { check, text, line }))
        })
        .collect::<Result<BTreeMap<_, _>, String>>()?;
    let lines: BTreeMap<String, u64> =
        overrides.iter().map(|(rule, entry)| (rule.clone(), entry.line)).collect();
    RuleSet::new(overrides).map_err(|cycle| {
        let names = cycle.0;
        let place =
            names.iter().find_map(|name| lines.get(name)).map_or(String::new(), |line| format!(":{line}"));
        format!(
            "{name}{place}: rules refer to each other in a circle: {} -> {}",
            names.join(" -> "),
            names[0]
        )
    })
}

fn entries(name: &str, text: &str) -> Result<BTreeMap<String, Spanned<Value>>, String> {
    // Nothing but comments, as the sample is.
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(|line| blank(line) || ["---", "..."].contains(&line.trim_end())) {
        return Ok(BTreeMap::new());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map_or(String::new(), |place| format!(":{}", place.line()));
        // The rest is an excerpt of the file.
        let reason = error.without_snippet().to_string();
        let reason = reason.lines().next().unwrap_or_default();
        format!("{name}{place}: expected lines such as \"function:create\": \"role:member\"; {reason}")
    })
}

fn one(value: &Value) -> Result<(Check, String), String> {
    match value {
        Value::String(text) => {
            let check = language::parse(text).map_err(|error| error.to_string())?;
            Ok((check, text.clone()))
        }
        Value::Array(outer) => {
            let lists = outer.iter().map(inner).collect::<Option<Vec<_>>>();
            let lists = lists.ok_or("expected a list of lists of checks")?;
            let check = language::parse_lists(&lists).map_err(|error| error.reason)?;
            Ok((check, value.to_string()))
        }
        // Where oslo.policy lets everybody pass.
        Value::Null => {
            Err("has no value; write \"@\" for everybody or \"!\" for nobody, in quotes".to_owned())
        }
        _ => Err("expected text in quotes, such as \"role:member\"".to_owned()),
    }
}

/// A list of checks, or one that stands alone.
fn inner(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(checks) => checks.iter().map(|check| check.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
