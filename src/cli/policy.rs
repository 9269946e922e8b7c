//! `taibai policy …`: which rules there are, what a file makes of them, and who passes one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Result;
use crate::config::Config;
use crate::model::Caller;
use crate::policy::{Credentials, Policy, RULES, RuleSet, Target};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows every rule: its check, the default where a file overrides it, and what asks it.
    List {
        /// Write JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: PolicyFile,
    },
    /// Prints a policy.yaml with every default, commented out.
    Sample,
    /// Reads the file as a start would; with --rule says whether a caller passes it, and why.
    ///
    /// Ends with status 1 where the file is no good or the caller does not pass.
    Check(Check),
}

#[derive(Debug, Args)]
pub struct PolicyFile {
    /// File of rules, instead of policy_file in [oslo_policy].
    #[arg(long, value_name = "FILE")]
    policy_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    file: PolicyFile,
    /// The rule, such as function:create.
    #[arg(long)]
    rule: Option<String>,
    /// A role of the caller; may be given several times.
    #[arg(long = "role", value_name = "ROLE", requires = "rule")]
    roles: Vec<String>,
    /// The caller's project.
    #[arg(long, default_value = "project", requires = "rule")]
    project: String,
    /// The caller's user id.
    #[arg(long, default_value = "user", requires = "rule")]
    user: String,
    /// The project of what is acted on; the caller's unless given.
    #[arg(long, requires = "rule")]
    target_project: Option<String>,
    /// The user of what is acted on.
    #[arg(long, requires = "rule")]
    target_user: Option<String>,
}

pub fn run(command: Command, path: Option<&Path>) -> Result {
    let text = match command {
        Command::Sample => sample(),
        Command::List { json, file } => {
            let rules = file.open(path)?.rules();
            if json { list_json(&rules) } else { list(&rules) }
        }
        Command::Check(check) => {
            let policy = check.file.open(path)?;
            return check.run(&policy);
        }
    };
    // Not print!, which panics where the reader of a pipe has seen enough.
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

impl PolicyFile {
    fn open(&self, config: Option<&Path>) -> Result<Policy> {
        let file = match &self.policy_file {
            Some(file) => file.clone(),
            None => Config::load(config)?.oslo_policy.policy_file,
        };
        Ok(Policy::open(&file)?)
    }
}

impl Check {
    fn run(&self, policy: &Policy) -> Result {
        let rules = policy.rules();
        let mut text = String::new();
        let Some(rule) = &self.rule else {
            for doubt in rules.doubts() {
                writeln!(text, "warning: {doubt}")?;
            }
            writeln!(text, "ok: {} of {} rules overridden", rules.overrides().len(), RULES.len())?;
            return Ok(std::io::stdout().write_all(text.as_bytes())?);
        };
        let caller = policy.admit(Caller::new(self.user.as_str(), self.project.as_str(), self.roles.clone()));
        let target = match &self.target_project {
            Some(project) => Target { project_id: project, user_id: self.target_user.as_deref() },
            None => {
                Target { user_id: self.target_user.as_deref().or(Some(&self.user)), ..Target::own(&caller) }
            }
        };
        let (passes, why) = rules.explain(rule, &Credentials::of(&caller), &target);
        writeln!(text, "{}: {rule}", if passes { "pass" } else { "fail" })?;
        if !rules.exists(rule) {
            writeln!(text, "there is no such rule; the rule default is asked")?;
        }
        text.push_str(&why);
        std::io::stdout().write_all(text.as_bytes())?;
        if passes { Ok(()) } else { Err("the caller does not pass".into()) }
    }
}

fn list(rules: &RuleSet) -> String {
    let mut text = String::new();
    for rule in RULES {
        let overridden = rules.overridden(rule.name);
        let mark = if overridden.is_some() { "  (overridden)" } else { "" };
        let _ = writeln!(text, "{}{mark}", rule.name);
        let _ = writeln!(text, "    {}", rule.about);
        for (method, path) in rule.operations {
            let _ = writeln!(text, "    {method} {path}");
        }
        match overridden {
            Some(own) => {
                let _ = writeln!(text, "    check    {:?}", own.text);
                let _ = writeln!(text, "    default  {:?}", rule.check);
            }
            None => {
                let _ = writeln!(text, "    check    {:?}", rule.check);
            }
        }
    }
    for (name, own) in
        rules.overrides().iter().filter(|(name, _)| !RULES.iter().any(|rule| rule.name == **name))
    {
        let _ = writeln!(text, "{name}  (of the file)\n    check    {:?}", own.text);
    }
    text
}

fn list_json(rules: &RuleSet) -> String {
    let rows: Vec<_> = RULES
        .iter()
        .map(|rule| {
            let own = rules.overridden(rule.name).map(|own| own.text.as_str());
            let operations: Vec<_> = rule
                .operations
                .iter()
                .map(|(method, path)| json!({"method": method, "path": path}))
                .collect();
            json!({
                "name": rule.name,
                "check": own.unwrap_or(rule.check),
                "default": rule.check,
                "overridden": own.is_some(),
                "description": rule.about,
                "operations": operations,
            })
        })
        .collect();
    format!("{:#}\n", json!(rows))
}

/// A file in which every default is a comment.
fn sample() -> String {
    let mut text = String::from(
        "# Who may do what. Rules that differ from the defaults, in oslo.policy's language; Taibai reads\n\
         # this file again when it changes. `taibai policy list` explains, `taibai policy check` checks.\n",
    );
    for rule in RULES {
        text.push_str("\n# ");
        let mut column = 2;
        for word in rule.about.split(' ') {
            if column + word.len() > 98 {
                text.push_str("\n#");
                column = 1;
                text.push(' ');
            } else if column > 2 {
                text.push(' ');
            }
            text.push_str(word);
            column += word.len() + 1;
        }
        text.push('\n');
        for (method, path) in rule.operations {
            let _ = writeln!(text, "# {method} {path}");
        }
        let _ = writeln!(text, "#\"{}\": \"{}\"", rule.name, rule.check);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_in_the_tree_is_the_one_that_is_printed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/taibai/policy.yaml.sample");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == sample(), "run: taibai policy sample > etc/taibai/policy.yaml.sample");
    }

    #[test]
    fn the_sample_overrides_nothing_and_without_its_comments_says_the_same() {
        assert!(Policy::from_text(&sample()).unwrap().rules().overrides().is_empty());
        let active: String = sample()
            .lines()
            .map(|line| {
                format!("{}\n", line.strip_prefix("#\"").map_or(line.to_owned(), |rest| format!("\"{rest}")))
            })
            .collect();
        let rules = Policy::from_text(&active).unwrap().rules();
        assert_eq!(rules.overrides().len(), RULES.len());
        for rule in RULES {
            assert_eq!(rules.overridden(rule.name).unwrap().text, rule.check);
        }
        assert!(sample().lines().all(|line| line.len() <= 140));
    }

    #[test]
    fn a_list_tells_what_is_overridden() {
        let rules = Policy::from_text("job:get: 'rule:mine'\nmine: '@'\n").unwrap().rules();
        let text = list(&rules);
        let start =
            "job:get  (overridden)\n    Show a job.\n    GET /v1/jobs/{id}\n    check    \"rule:mine\"\n";
        assert!(text.contains(start), "{text}");
        assert!(text.ends_with("mine  (of the file)\n    check    \"@\"\n"), "{text}");
        let rows: serde_json::Value = serde_json::from_str(&list_json(&rules)).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "job:get").unwrap();
        assert_eq!((&row["overridden"], &row["check"]), (&json!(true), &json!("rule:mine")));
    }
}
