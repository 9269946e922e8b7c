//! oslo.policy's language: from the text of a rule to its checks.
//!
//! What oslo.policy would take as a check that nobody can pass, or fail over when it is asked, is an
//! error here: `role:a)and(role:b`, `'x'`, `100%`.

use std::fmt;

use winnow::LocatingSlice;
use winnow::combinator::{alt, cut_err, delimited, preceded, repeat, terminated};
use winnow::error::{ContextError, ErrMode, ParserError};
use winnow::prelude::*;
use winnow::stream::Location as _;
use winnow::token::take_while;

use super::check::{Check, Part, Template};

/// Longer than any rule that somebody wrote.
const MAX_LENGTH: usize = 10_000;
const MAX_DEPTH: usize = 50;

/// What is wrong with the text of a rule, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Characters before the trouble.
    pub at: usize,
    pub reason: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.at + 1, self.reason)
    }
}

impl std::error::Error for Error {}

/// Reads a rule. No text at all lets everybody pass.
pub fn parse(text: &str) -> Result<Check, Error> {
    if text.is_empty() {
        return Ok(Check::Everybody);
    }
    let characters = |bytes: usize| text[..bytes].chars().count();
    if text.len() > MAX_LENGTH {
        return Err(Error { at: 0, reason: format!("a rule has at most {MAX_LENGTH} characters") });
    }
    if let Some(at) = too_deep(text) {
        return Err(Error { at: characters(at), reason: format!("parentheses go at most {MAX_DEPTH} deep") });
    }
    let node = rule.parse(LocatingSlice::new(text)).map_err(|error| {
        let at = error.offset();
        Error { at: characters(at), reason: out_of_place(text, at) }
    })?;
    node.compile().map_err(|(at, reason)| Error { at: characters(at), reason })
}

/// Reads the old form, a list of lists: one of the outer ones has to pass, and all of the inner.
pub fn parse_lists(outer: &[Vec<String>]) -> Result<Check, Error> {
    if outer.is_empty() {
        return Ok(Check::Everybody);
    }
    let mut any = Vec::new();
    for inner in outer.iter().filter(|inner| !inner.is_empty()) {
        let all = inner.iter().map(|text| match text.contains(char::is_whitespace) {
            true => Err(Error { at: 0, reason: format!("in a list, '{text}' has to be a single check") }),
            false => leaf(text).map_err(|reason| Error { at: 0, reason }),
        });
        any.push(single(all.collect::<Result<Vec<_>, _>>()?, Check::And));
    }
    Ok(if any.is_empty() { Check::Nobody } else { single(any, Check::Or) })
}

fn single(mut checks: Vec<Check>, many: impl FnOnce(Vec<Check>) -> Check) -> Check {
    if checks.len() == 1 { checks.remove(0) } else { many(checks) }
}

/// Where parentheses go deeper than the parser, which recurses, should.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    text.bytes().position(|byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

fn out_of_place(text: &str, at: usize) -> String {
    let rest = &text[at..];
    let found = rest.split_whitespace().next().unwrap_or("");
    let open = rest.is_empty() && text.matches('(').count() > text.matches(')').count();
    match found {
        "" if open => "a closing parenthesis is missing".to_owned(),
        "" => "expected a check such as role:member after this".to_owned(),
        word if word.starts_with(')') => "')' is out of place".to_owned(),
        word => format!(
            "'{word}' is out of place; checks are joined by and, or, and negated by not, with spaces between"
        ),
    }
}

type Input<'a> = LocatingSlice<&'a str>;

/// The shape of a rule, whose checks have yet to be read.
enum Node<'a> {
    Not(Box<Node<'a>>),
    And(Vec<Node<'a>>),
    Or(Vec<Node<'a>>),
    Leaf { text: &'a str, at: usize },
}

impl Node<'_> {
    fn compile(self) -> Result<Check, (usize, String)> {
        let all = |nodes: Vec<Self>| nodes.into_iter().map(Self::compile).collect::<Result<Vec<_>, _>>();
        Ok(match self {
            Self::Not(node) => Check::Not(Box::new(node.compile()?)),
            Self::And(nodes) => Check::And(all(nodes)?),
            Self::Or(nodes) => Check::Or(all(nodes)?),
            Self::Leaf { text, at } => leaf(text).map_err(|reason| (at, reason))?,
        })
    }
}

fn rule<'a>(input: &mut Input<'a>) -> ModalResult<Node<'a>> {
    preceded(space, any).parse_next(input)
}

fn any<'a>(input: &mut Input<'a>) -> ModalResult<Node<'a>> {
    joined(input, "or", all, Node::Or)
}

fn all<'a>(input: &mut Input<'a>) -> ModalResult<Node<'a>> {
    joined(input, "and", negated, Node::And)
}

fn joined<'a>(
    input: &mut Input<'a>,
    operator: &'static str,
    mut operand: impl FnMut(&mut Input<'a>) -> ModalResult<Node<'a>>,
    join: fn(Vec<Node<'a>>) -> Node<'a>,
) -> ModalResult<Node<'a>> {
    let mut nodes = vec![operand(input)?];
    let more: Vec<_> = repeat(0.., preceded(keyword(operator), cut_err(operand))).parse_next(input)?;
    if more.is_empty() {
        return Ok(nodes.remove(0));
    }
    nodes.extend(more);
    Ok(join(nodes))
}

fn negated<'a>(input: &mut Input<'a>) -> ModalResult<Node<'a>> {
    let negations: usize = repeat(0.., keyword("not")).parse_next(input)?;
    let group = delimited(('(', space), cut_err(any), cut_err((')', space)));
    let node = if negations > 0 {
        cut_err(alt((group, check))).parse_next(input)?
    } else {
        alt((group, check)).parse_next(input)?
    };
    Ok(match node {
        node if negations.is_multiple_of(2) => node,
        // In parentheses.
        Node::Not(node) => *node,
        node => Node::Not(Box::new(node)),
    })
}

fn check<'a>(input: &mut Input<'a>) -> ModalResult<Node<'a>> {
    let at = input.current_token_start();
    let is_operator = |word: &str| ["and", "or", "not"].iter().any(|other| word.eq_ignore_ascii_case(other));
    let text = terminated(word.verify(|word: &str| !is_operator(word)), space).parse_next(input)?;
    Ok(Node::Leaf { text, at })
}

fn keyword<'a>(name: &'static str) -> impl Parser<Input<'a>, (), ErrMode<ContextError>> {
    terminated(word.verify(move |word: &str| word.eq_ignore_ascii_case(name)), space).void()
}

/// Everything up to a space, without the parentheses at its end: those within are a check's.
fn word<'a>(input: &mut Input<'a>) -> ModalResult<&'a str> {
    let mut ahead = *input;
    let run: &str = take_while(1.., |c: char| !c.is_whitespace()).parse_next(&mut ahead)?;
    let length = run.trim_end_matches(')').len();
    if length == 0 || run.starts_with('(') {
        return Err(ErrMode::from_input(input));
    }
    winnow::token::take(run[..length].chars().count()).parse_next(input)
}

fn space(input: &mut Input<'_>) -> ModalResult<()> {
    take_while(0.., char::is_whitespace).void().parse_next(input)
}

/// Reads one check.
fn leaf(text: &str) -> Result<Check, String> {
    match text {
        "@" => return Ok(Check::Everybody),
        "!" => return Ok(Check::Nobody),
        _ => {}
    }
    let Some((kind, rest)) = text.split_once(':') else {
        return Err(format!("'{text}' is no check; expected @, !, or two parts as in role:member"));
    };
    match kind {
        "http" | "https" => {
            Err(format!("{kind}: checks are not there, since no other service is asked for permission"))
        }
        "rule" if rest.is_empty() => Err("expected the name of a rule after rule:".to_owned()),
        "rule" if rest.contains(['(', ')']) => Err(parenthesis(rest)),
        "rule" => Ok(Check::Rule(rest.to_owned())),
        "role" => Ok(Check::Role(template(rest)?)),
        _ => match literal(kind)? {
            Some(literal) => Ok(Check::Literal(literal, template(rest)?)),
            None => Ok(Check::Attribute(kind.to_owned(), template(rest)?)),
        },
    }
}

/// The text of a literal, as Python's `str` gives it; none where this is an attribute's name.
fn literal(kind: &str) -> Result<Option<String>, String> {
    if ["True", "False", "None"].contains(&kind) {
        return Ok(Some(kind.to_owned()));
    }
    if let Some(quote @ ('\'' | '"')) = kind.chars().next() {
        let inner = kind[1..].strip_suffix(quote).ok_or_else(|| format!("{kind} has no closing quote"))?;
        if inner.contains(['\\', '\'', '"']) {
            return Err(format!("{kind} has a quote or a backslash within"));
        }
        return Ok(Some(inner.to_owned()));
    }
    let digits = kind.strip_prefix('-').unwrap_or(kind);
    if digits.starts_with(|c: char| c.is_ascii_digit()) {
        let whole =
            digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        return if whole && kind != "-0" {
            Ok(Some(kind.to_owned()))
        } else {
            Err(format!("{kind} is no whole number; put it in quotes"))
        };
    }
    let named = |c: char| c.is_alphanumeric() || ['_', '.', '-'].contains(&c);
    if kind.starts_with(|c: char| c.is_alphabetic() || c == '_') && kind.chars().all(named) {
        return Ok(None);
    }
    Err(format!("'{kind}' is neither the name of an attribute nor a literal"))
}

fn template(text: &str) -> Result<Template, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut plain = String::new();
    while let Some(position) = rest.find(['%', '(', ')']) {
        plain.push_str(&rest[..position]);
        rest = &rest[position..];
        if let Some(after) = rest.strip_prefix("%%") {
            plain.push('%');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("%(") {
            let key =
                after.split_once(")s").filter(|(key, _)| !key.is_empty() && !key.contains(['(', ')', '%']));
            let Some((key, after)) = key else {
                return Err(format!("expected a key of the target as in %(project_id)s in '{text}'"));
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Key(key.to_owned()));
            rest = after;
        } else if rest.starts_with('%') {
            return Err(format!("expected %(key)s, or %% for a percent sign, in '{text}'"));
        } else {
            return Err(parenthesis(text));
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(Template(parts))
}

fn parenthesis(text: &str) -> String {
    format!("a parenthesis within '{text}'; put spaces around and, or and not")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        parse(text).map_or_else(|error| error.to_string(), |check| check.to_string())
    }

    #[test]
    fn not_binds_more_than_and_and_and_more_than_or() {
        for (text, tree) in [
            ("", "@"),
            ("@", "@"),
            ("!", "!"),
            ("role:a or role:b and role:c", "(role:a or (role:b and role:c))"),
            (
                "role:a and role:b or role:c and not role:d",
                "((role:a and role:b) or (role:c and not role:d))",
            ),
            ("not role:a and role:b", "(not role:a and role:b)"),
            ("NOT (role:a Or role:b)", "not (role:a or role:b)"),
            ("not not role:a", "role:a"),
            ("not (not role:a)", "role:a"),
            ("((role:a))", "role:a"),
            (" ( role:a )and role:b", "(role:a and role:b)"),
            ("(project_id:%(project_id)s)", "project_id:%(project_id)s"),
            ("'x':%(a)s-%%-%(b)s", "'x':%(a)s-%%-%(b)s"),
            ("True:%(a)s and 12:x and None:y", "('True':%(a)s and '12':x and 'None':y)"),
            ("role:compute:admin", "role:compute:admin"),
            ("a.b:", "a.b:"),
        ] {
            assert_eq!(shown(text), tree, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let between =
            "is out of place; checks are joined by and, or, and negated by not, with spaces between";
        let cases: &[(&str, &str)] = &[
            ("role:a and", "at character 11: expected a check such as role:member after this"),
            ("  ", "at character 3: expected a check such as role:member after this"),
            ("not", "at character 4: expected a check such as role:member after this"),
            ("(role:a", "at character 8: a closing parenthesis is missing"),
            ("role:a)", "at character 7: ')' is out of place"),
            ("()", "at character 2: ')' is out of place"),
            ("member", "at character 1: 'member' is no check; expected @, !, or two parts as in role:member"),
            ("role:a or 'member'", "at character 11: ''member'' is no check"),
            ("http://host/x", "at character 1: http: checks are not there"),
            ("role:ä or https:x", "at character 11: https: checks are not there"),
            ("(role:a)and(role:b)", "at character 2: a parenthesis within 'a)and(role:b'"),
            ("not(role:a)", "at character 11: ')' is out of place"),
            ("project_id:%(project_id)", "at character 24: ')' is out of place"),
            (
                "project_id:%(project_id)d",
                "at character 1: expected a key of the target as in %(project_id)s",
            ),
            ("a:%d", "at character 1: expected %(key)s, or %% for a percent sign, in '%d'"),
            ("'a:b", "at character 1: 'a has no closing quote"),
            (":x", "at character 1: '' is neither"),
            ("1.5:x", "at character 1: 1.5 is no whole number; put it in quotes"),
            ("rule:", "at character 1: expected the name of a rule after rule:"),
        ];
        for (text, message) in cases {
            let got = parse(text).unwrap_err().to_string();
            assert!(got.starts_with(message), "{text}: {got}");
        }
        assert_eq!(shown("role:a role:b"), format!("at character 8: 'role:b' {between}"));
        assert_eq!(shown("role:a or and role:b"), format!("at character 11: 'and' {between}"));
        assert_eq!(shown(&"(".repeat(51)), "at character 51: parentheses go at most 50 deep");
        assert_eq!(shown(&"x".repeat(10_001)), "at character 1: a rule has at most 10000 characters");
    }

    #[test]
    fn lists_are_the_old_form() {
        let lists = |lists: &[&[&str]]| -> Vec<Vec<String>> {
            lists.iter().map(|inner| inner.iter().map(|&text| text.to_owned()).collect()).collect()
        };
        for (old, tree) in [
            (lists(&[]), "@"),
            (lists(&[&[]]), "!"),
            (lists(&[&["role:a"]]), "role:a"),
            (lists(&[&["role:a", "role:b"], &[], &["@"]]), "((role:a and role:b) or @)"),
        ] {
            assert_eq!(parse_lists(&old).unwrap().to_string(), tree);
        }
        for wrong in ["role:a or role:b", "member"] {
            assert!(parse_lists(&lists(&[&["@"], &["role:a", wrong]])).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ ()!@:%'a-zä.]{0,60}") {
            let _ = parse(&text);
        }

        /// What is shown of a rule is the rule.
        #[test]
        fn a_rule_reads_back_as_it_is_shown(
            text in "(not )?[(]?(role:a|x:%\\(y\\)s|'q':z%%|@|!)( (and|or) (not )?(rule:b|True:%\\(k\\)s|9:c)){0,5}"
        ) {
            if let Ok(check) = parse(&text) {
                prop_assert_eq!(parse(&check.to_string()).unwrap().to_string(), check.to_string());
            }
        }
    }
}
