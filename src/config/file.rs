//! The lines of an INI file. The values are read by the `config` crate; this finds what gets lost
//! there: on which line something stands, what stands twice, and lines that are nothing at all,
//! which would be read as the beginning of the next key.

use std::collections::BTreeMap;

use super::Error;

/// A key of a file and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub section: &'a str,
    pub key: &'a str,
    pub number: usize,
}

/// Sections, each with its line, and keys, in their order.
#[derive(Debug, Default)]
pub struct Lines<'a> {
    pub sections: Vec<(&'a str, usize)>,
    pub keys: Vec<Line<'a>>,
}

pub fn lines<'a>(name: &str, text: &'a str) -> Result<Lines<'a>, Error> {
    let mut found = Lines::default();
    let mut seen = BTreeMap::new();
    for (line, number) in text.lines().zip(1..) {
        let wrong = |reason: String| Error::source(format!("{name}:{number}"), reason);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let Some(section) = rest.strip_suffix(']').filter(|name| !name.contains(['[', ']'])) else {
                return Err(wrong(format!("{line}: expected [section] and nothing after it")));
            };
            let section = section.trim();
            if let Some((_, first)) = found.sections.iter().find(|(other, _)| *other == section) {
                return Err(wrong(format!("[{section}]: this section began on line {first} already")));
            }
            found.sections.push((section, number));
            continue;
        }
        let Some((key, _)) = line.split_once(['=', ':']).filter(|(key, _)| !key.trim().is_empty()) else {
            // The text is not shown: it may be the second half of a password.
            return Err(wrong("expected [section], key = value, or a comment after #".to_owned()));
        };
        let key = key.trim();
        let Some((section, _)) = found.sections.last() else {
            return Err(wrong(format!("{key}: expected a [section] before the first key")));
        };
        if let Some(first) = seen.insert((*section, key), number) {
            return Err(Error::key(section, key, format!("set on line {first} already"))
                .from(Some(&format!("{name}:{number}"))));
        }
        found.keys.push(Line { section, key, number });
    }
    Ok(found)
}
