//! Secrets that are in files of their own: the file that `<key>_file` names or, where nothing is said, the
//! file `<section>.<key>` in the directory of systemd's credentials.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use super::formats::connection::is_secret;
use super::load::{Origin, Origins};
use super::{Config, Error};

/// The variable with which systemd says where credentials are.
pub const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The bits of a file's mode by which everybody may read or write it.
const OTHERS: u32 = 0o006;

/// A key whose value is a secret.
struct Secret {
    section: &'static str,
    key: &'static str,
    /// The key that names a file instead.
    file_key: &'static str,
    file: fn(&Config) -> &PathBuf,
    set: fn(&mut Config, String),
    /// Whether the configuration holds one.
    is_given: fn(&Config) -> bool,
}

const SECRETS: [Secret; 2] = [
    Secret {
        section: "database",
        key: "connection",
        file_key: "connection_file",
        file: |config| &config.database.connection_file,
        set: |config, text| config.database.connection = text,
        is_given: |config| is_secret(&config.database.connection),
    },
    Secret {
        section: "keystone_authtoken",
        key: "password",
        file_key: "password_file",
        file: |config| &config.keystone_authtoken.password_file,
        set: |config, text| config.keystone_authtoken.password = text.into(),
        is_given: |config| !config.keystone_authtoken.password.expose_secret().is_empty(),
    },
];

/// Reads the secrets that are in files. The environment wins over the file as for any key, and what is
/// configured over systemd's credentials. Returns what is doubtful, a line each.
pub fn fill(
    config: &mut Config,
    file: Option<&Path>,
    credentials: Option<&Path>,
    origins: &Origins,
) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for secret in &SECRETS {
        let origin = |key: &str| origins.get(&(secret.section.to_owned(), key.to_owned()));
        let named = (secret.file)(config).clone();
        let named = Some(named).filter(|path| !path.as_os_str().is_empty());
        match (origin(secret.key), origin(secret.file_key).and(named)) {
            (Some(given), Some(path)) => match (given, origin(secret.file_key)) {
                (Origin::Variable(_), Some(Origin::Line(_))) => {
                    warn_of_inline(secret, config, file, given, &mut warnings);
                }
                (Origin::Line(_), Some(Origin::Variable(_))) => {
                    read(secret, config, &path, &mut warnings)?;
                }
                _ => {
                    let reason = format!("given beside {}; expected one of the two", secret.key);
                    return Err(Error::key(secret.section, secret.file_key, reason));
                }
            },
            (Some(given), None) => warn_of_inline(secret, config, file, given, &mut warnings),
            (None, Some(path)) => read(secret, config, &path, &mut warnings)?,
            (None, None) => {
                let name = format!("{}.{}", secret.section, secret.key);
                if let Some(path) = credentials.map(|directory| directory.join(name))
                    && path.exists()
                {
                    read(secret, config, &path, &mut warnings)?;
                }
            }
        }
    }
    Ok(warnings)
}

/// A secret in the configuration itself, if everybody may read that.
fn warn_of_inline(
    secret: &Secret,
    config: &Config,
    file: Option<&Path>,
    given: &Origin,
    warnings: &mut Vec<String>,
) {
    if let (Origin::Line(_), Some(path)) = (given, file)
        && (secret.is_given)(config)
    {
        warnings.extend(open_to_everybody(path));
        warnings.dedup();
    }
}

fn read(secret: &Secret, config: &mut Config, path: &Path, warnings: &mut Vec<String>) -> Result<(), Error> {
    let wrong =
        |reason: String| Err(Error::key(secret.section, secret.file_key, reason).with_value(path.display()));
    if !path.is_absolute() {
        return wrong("expected a path that begins with /".to_owned());
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return wrong(format!("cannot be read: {error}")),
    };
    let Ok(text) = String::from_utf8(bytes) else {
        return wrong("expected text in UTF-8".to_owned());
    };
    // Editors end a file with a new line, and some with a carriage return before it.
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return wrong("the file is empty".to_owned());
    }
    if text.contains(['\n', '\0']) {
        return wrong("expected one line".to_owned());
    }
    warnings.extend(open_to_everybody(path));
    (secret.set)(config, text.to_owned());
    Ok(())
}

fn open_to_everybody(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & OTHERS != 0).then(|| {
        let mode = mode & 0o777;
        format!("{}: it holds a secret and its mode is {mode:04o}; expected 0600 or 0640", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::super::load::{Loaded, load_from};
    use super::*;

    /// What the file `taibai.conf` in a directory of its own and some variables make, `DIR` for the directory.
    fn load(
        files: &[(&str, &str, u32)],
        text: &str,
        variables: &[(&str, &str)],
    ) -> Result<(String, String, Vec<String>), String> {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().display().to_string();
        let write = |name: &str, text: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for (name, text, mode) in files {
            write(name, text, *mode);
        }
        let config = write("taibai.conf", &text.replace("DIR", &here), 0o644);
        let variables =
            variables.iter().map(|(name, value)| ((*name).into(), value.replace("DIR", &here).into()));
        let loaded =
            load_from(Some(&config), Path::new("/nonexistent"), variables.collect::<Vec<_>>().into_iter());
        let short = |text: String| text.replace(&here, "DIR");
        let Loaded { config, warnings } = loaded.map_err(|error| short(error.to_string()))?;
        let password = config.keystone_authtoken.password.expose_secret().to_owned();
        Ok((config.database.connection, password, warnings.into_iter().map(short).collect()))
    }

    const URL: &str = "mysql://taibai:one%20two@db/taibai";

    #[test]
    fn a_secret_is_read_from_the_file_that_is_named_and_its_last_line_break_is_cut() {
        let files = [("url", "mysql://taibai:one%20two@db/taibai\n", 0o600), ("word", " two \r\n", 0o640)];
        let text = "[database]\nconnection_file = DIR/url\n[keystone_authtoken]\npassword_file = DIR/word\n";
        let (connection, password, warnings) = load(&files, text, &[]).unwrap();
        assert_eq!((connection.as_str(), password.as_str()), (URL, " two "));
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn a_secret_that_everybody_may_read_is_doubtful() {
        let files = [("word", "two", 0o644)];
        let named = "[keystone_authtoken]\npassword_file = DIR/word\n";
        let warning =
            |name: &str| format!("DIR/{name}: it holds a secret and its mode is 0644; expected 0600 or 0640");
        assert_eq!(load(&files, named, &[]).unwrap().2, [warning("word")]);
        let inline = "[keystone_authtoken]\npassword = x\n[database]\nconnection = mysql://u:p%40@h/t\n";
        assert_eq!(load(&[], inline, &[]).unwrap().2, [warning("taibai.conf")]);
        // Neither holds a secret.
        let open = "[keystone_authtoken]\npassword =\n[database]\nconnection = sqlite:///x\n";
        assert_eq!(load(&[], open, &[]).unwrap().2, Vec::<String>::new());
    }

    #[test]
    fn the_environment_wins_and_credentials_are_for_what_nothing_else_says() {
        let files = [
            ("word", "from the file", 0o600),
            ("other", "from the other file", 0o600),
            ("keystone_authtoken.password", "from systemd\n", 0o400),
            ("database.connection", "sqlite:///from/systemd\n", 0o400),
        ];
        let named = "[keystone_authtoken]\npassword_file = DIR/word\n";
        let inline = "[keystone_authtoken]\npassword = inline\n";
        let (key, key_file) =
            ("TAIBAI_KEYSTONE_AUTHTOKEN__PASSWORD", "TAIBAI_KEYSTONE_AUTHTOKEN__PASSWORD_FILE");
        let credentials = ("CREDENTIALS_DIRECTORY", "DIR");
        let password = |text, variables: &[(&str, &str)]| load(&files, text, variables).unwrap().1;
        assert_eq!(password(named, &[(key, "x"), credentials]), "x");
        assert_eq!(password(inline, &[(key_file, "DIR/other"), credentials]), "from the other file");
        assert_eq!(password(named, &[(key_file, "DIR/other"), credentials]), "from the other file");
        assert_eq!(password(named, &[credentials]), "from the file");
        assert_eq!(password(inline, &[credentials]), "inline");
        assert_eq!(password("", &[credentials]), "from systemd");
        assert_eq!(password("", &[]), "");
        assert_eq!(load(&files, "", &[credentials]).unwrap().0, "sqlite:///from/systemd");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_key() {
        let files = [("empty", "\n", 0o600), ("two", "a\nb\n", 0o600)];
        for (value, reason) in [
            ("DIR/none", "cannot be read: No such file or directory (os error 2)"),
            ("DIR/empty", "the file is empty"),
            ("DIR/two", "expected one line"),
            ("word", "expected a path that begins with /"),
        ] {
            let text = format!("[keystone_authtoken]\npassword_file = {value}\n");
            let error = load(&files, &text, &[]).unwrap_err();
            let expected =
                format!("DIR/taibai.conf:2: [keystone_authtoken] password_file = {value}: {reason}");
            assert_eq!(error, expected);
        }
        let both = "[keystone_authtoken]\npassword = x\npassword_file = DIR/two\n";
        assert_eq!(
            load(&files, both, &[]).unwrap_err(),
            "DIR/taibai.conf:3: [keystone_authtoken] password_file: given beside password; expected one of the two"
        );
    }

    #[test]
    fn every_secret_of_the_configuration_may_be_in_a_file() {
        let secret = |format: &str| ["secret", "connection"].contains(&format);
        let in_sections: Vec<_> = Config::SECTIONS
            .iter()
            .flat_map(|section| section.options.iter().map(move |option| (section.name, option)))
            .filter(|(_, option)| secret(option.format))
            .map(|(section, option)| (section, option.name))
            .collect();
        let here: Vec<_> = SECRETS.iter().map(|secret| (secret.section, secret.key)).collect();
        assert_eq!(in_sections, here);
        for secret in &SECRETS {
            assert_eq!(secret.file_key, format!("{}_file", secret.key));
        }
    }
}
