//! The sample file, made from the sections themselves.

use std::fmt::Write;

use super::{Config, Section};

const HEAD: &str = "\
# Configuration of Taibai. Every key is shown with its default; remove the # before a key to set it.
#
# A variable TAIBAI_<GROUP>__<KEY> in the environment wins over this file: TAIBAI_ENGINE__POOL_SIZE=5.
# A password, or a URL that holds one, may be in a file of its own: see the keys that end in _file. Where
# neither is set, it is read from the file <group>.<key> in $CREDENTIALS_DIRECTORY (see LoadCredential= in
# systemd.exec(5)), as keystone_authtoken.password.
# A comment has a line of its own. In a value, write \\\\ for a backslash.
#
# bytes:     a number, or one with a unit: 256MiB. The units are KiB, MiB, GiB and TiB.
# duration:  a number of seconds, or numbers with units: 30s, 5m, 1h 30m.
# limit:     a number, one with a unit as for bytes, or -1 for no limit.
# list:      words, separated by commas; nothing for none.
# flag:      true or false; yes or no, on or off, 1 or 0.
";

/// A file with every section and key, all commented out, each with its default.
pub fn sample() -> String {
    let defaults = serde_json::to_value(Config::default()).expect("every format writes text");
    let mut out = HEAD.to_owned();
    for Section { name, about, options } in Config::SECTIONS {
        // In the source the first line begins with the section's name, which stands below it here.
        let about = about.join("\n#").replacen(&format!(" `[{name}]`: "), "", 1);
        writeln!(out, "\n# {}{}\n[{name}]", about[..1].to_uppercase(), &about[1..])
            .expect("a String takes everything");
        for option in *options {
            let value = defaults[name][option.name].as_str().expect("every format writes text");
            let help = option.help.join("\n#");
            let line = format!("#{} = {value}", option.name);
            writeln!(out, "\n#{help} ({})\n{}", option.format, line.trim_end())
                .expect("a String takes everything");
        }
    }
    out
}

/// Every section and key with the value that is in force. Secrets are left out.
pub fn shown(config: &Config) -> String {
    let values = serde_json::to_value(config).expect("every format writes text");
    let mut out = String::new();
    for Section { name, options, .. } in Config::SECTIONS {
        writeln!(out, "[{name}]").expect("a String takes everything");
        for option in *options {
            let value = values[name][option.name].as_str().expect("every format writes text");
            let line = format!("{} = {value}", option.name);
            writeln!(out, "{}", line.trim_end()).expect("a String takes everything");
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len() + 1);
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::load::load;

    const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/taibai/taibai.conf.sample");

    /// Removes the # where no space follows it, as an operator would.
    fn uncommented() -> String {
        let lines = sample();
        let lines = lines.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_checked_in_sample_is_the_generated_one() {
        let checked_in = std::fs::read_to_string(CHECKED_IN).unwrap();
        assert_eq!(
            checked_in,
            sample(),
            "write it anew: taibai config sample > etc/taibai/taibai.conf.sample"
        );
    }

    #[test]
    fn the_sample_sets_every_default_once_it_is_uncommented() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = uncommented();
        std::fs::write(file.path(), &text).unwrap();

        let loaded = load(Some(file.path()), Path::new("/nonexistent"), std::iter::empty()).unwrap();

        let options = Config::SECTIONS.iter().map(|section| section.options.len()).sum::<usize>();
        let set = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).count();
        assert_eq!(set, options);
        let text = |config| serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(text(loaded), text(Config::default()));
    }

    #[test]
    fn what_is_in_force_is_shown_without_its_secrets() {
        let mut config = Config::default();
        config.keystone_authtoken.password = "qwertz".into();
        config.database.connection = "mysql+pymysql://taibai:qwertz@db/taibai".to_owned();
        config.engine.pool_size = 9;
        let text = shown(&config);
        assert!(!text.contains("qwertz"), "{text}");
        for line in [
            "[engine]",
            "pool_size = 9",
            "password = (not shown)",
            "connection = mysql+pymysql://(not shown)",
            "tls_cert =",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in\n{text}");
        }
        // A URL without a password is no secret.
        assert!(shown(&Config::default()).contains("connection = sqlite:///var/lib"));
    }

    #[test]
    fn the_sample_as_it_is_sets_nothing() {
        let keys = sample().lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).count();
        assert_eq!(keys, 0);
    }

    #[test]
    fn every_section_and_key_is_documented() {
        for section in Config::SECTIONS {
            assert!(section.about[0].starts_with(&format!(" `[{}]`: ", section.name)), "{section:?}");
            for option in section.options {
                assert!(option.help.iter().all(|line| line.len() > 3), "{option:?}");
            }
        }
    }
}
