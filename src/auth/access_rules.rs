//! The access rules of an application credential: the only requests that its tokens may make.

use regex::Regex;

use crate::model::AccessRule;

/// Whether one of the rules is for this request to this type of service.
pub fn allow(rules: &[AccessRule], service_type: &str, method: &str, path: &str) -> bool {
    rules
        .iter()
        .any(|rule| rule.service == service_type && rule.method == method && path_matches(&rule.path, path))
}

/// `*` and `{name}` stand for one part of a path or a piece of one, `**` for anything; everything
/// else for itself.
fn path_matches(pattern: &str, path: &str) -> bool {
    let mut expression = String::from("^");
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("**") {
            expression += ".*";
            2
        } else if first == '*' {
            expression += "[^/]+";
            1
        } else if first == '{'
            && let Some(end) = rest.find('}')
        {
            expression += "[^/]+";
            end + 1
        } else {
            expression += &regex::escape(first.encode_utf8(&mut [0; 4]));
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    expression += "$";
    Regex::new(&expression).is_ok_and(|expression| expression.is_match(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_as_keystone_describes_it() {
        for (pattern, path, matches) in [
            ("/v1/functions", "/v1/functions", true),
            ("/v1/functions", "/v1/functions/1", false),
            ("/v1/functions", "/x/v1/functions", false),
            ("/v1/functions/*", "/v1/functions/1", true),
            ("/v1/functions/*", "/v1/functions/", false),
            ("/v1/functions/*", "/v1/functions/1/versions", false),
            ("/v1/functions/{id}/versions", "/v1/functions/1/versions", true),
            ("/v1/functions/{id}", "/v1/functions/1/versions", false),
            ("/v1/**", "/v1/functions/1/versions", true),
            ("/v1/**", "/v1/", true),
            ("/v1/**", "/v2/functions", false),
            ("**", "/v1/functions", true),
            ("/v1/fun.tions", "/v1/functions", false),
            ("/v1/{open", "/v1/{open", true),
            ("", "/v1", false),
        ] {
            assert_eq!(path_matches(pattern, path), matches, "{pattern} {path}");
        }
    }

    #[test]
    fn a_rule_is_for_one_service_and_one_method() {
        let rule = |service: &str, method: &str| AccessRule {
            service: service.to_owned(),
            method: method.to_owned(),
            path: "/v1/**".to_owned(),
        };
        let rules = [rule("function-engine", "GET"), rule("compute", "POST")];
        assert!(allow(&rules, "function-engine", "GET", "/v1/functions"));
        assert!(!allow(&rules, "function-engine", "POST", "/v1/functions"));
        assert!(!allow(&rules, "object-store", "GET", "/v1/functions"));
        assert!(!allow(&[], "function-engine", "GET", "/v1/functions"));
    }
}
