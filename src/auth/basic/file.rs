//! The file of users: as Apache's htpasswd writes it, with two more fields, which Apache ignores.
//!
//! `name:bcrypt hash[:project[:role,role]]`. Empty lines and those that begin with # are kept.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::str::FromStr;

use bcrypt::HashParts;

/// What a user has whose line names no role.
const USUAL_ROLE: &str = "member";
/// Work of new hashes: a quarter of a second.
const COST: u32 = 12;
/// A check may not take minutes.
const MAX_COST: u32 = 16;
/// bcrypt looks no further.
pub const MAX_PASSWORD: usize = 72;
/// Room for a project in the database.
const MAX_NAME: usize = 80;

/// What is wrong with the file, in one line that never shows a hash.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FileError(pub(super) String);

impl FileError {
    fn io(path: &Path, what: &str) -> impl Fn(io::Error) -> Self {
        let start = format!("{}: cannot be {what}", path.display());
        move |error| Self(format!("{start}: {error}"))
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub hash: String,
    /// The user's name unless the line has another.
    pub project: String,
    pub roles: Vec<String>,
}

/// Everyone in the file, by name.
pub type Table = HashMap<String, User>;

pub fn parse(path: &Path, text: &str) -> Result<Table, FileError> {
    let mut table = Table::new();
    for (number, line) in lines(text) {
        let wrong = |reason: String| FileError(format!("{}:{}: {reason}", path.display(), number + 1));
        let user = user(line).map_err(wrong)?;
        if table.contains_key(&user.name) {
            return Err(wrong(format!("{} is there twice", user.name.escape_debug())));
        }
        table.insert(user.name.clone(), user);
    }
    Ok(table)
}

/// The lines that hold users, with their place.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let holds_one = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
    text.lines().enumerate().filter(move |(_, line)| holds_one(line))
}

fn user(line: &str) -> Result<User, String> {
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let (name, hash, project, roles) = match fields[..] {
        [name, hash] => (name, hash, "", ""),
        [name, hash, project] => (name, hash, project, ""),
        [name, hash, project, roles] => (name, hash, project, roles),
        _ => return Err("expected name:hash, name:hash:project or name:hash:project:role,role".to_owned()),
    };
    check_name("name", name)?;
    check_hash(name, hash)?;
    let project = if project.is_empty() { name } else { project };
    check_name("project", project)?;
    let roles = if roles.is_empty() { vec![USUAL_ROLE.to_owned()] } else { split(roles) };
    roles.iter().try_for_each(|role| check_name("role", role))?;
    Ok(User { name: name.to_owned(), hash: hash.to_owned(), project: project.to_owned(), roles })
}

/// The parts of a list with commas, without empty ones.
pub fn split(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Checks a name, a project or a role.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let odd = |c: char| c.is_control() || [':', ','].contains(&c);
    if name.is_empty()
        || name.len() > MAX_NAME
        || name.contains(odd)
        || name.starts_with('#')
        || name.trim() != name
    {
        return Err(format!(
            "{what} {name:?}: expected 1 to {MAX_NAME} bytes without colon, comma or control characters, \
             no # in front and no space around"
        ));
    }
    Ok(())
}

fn check_hash(name: &str, hash: &str) -> Result<(), String> {
    let name = name.escape_debug();
    let remedy = format!("write it with htpasswd -B or taibai user passwd {name}");
    let kind = match hash {
        _ if hash.starts_with("$apr1$") => "an MD5 hash",
        _ if hash.starts_with("{SHA}") => "a SHA-1 hash",
        _ if hash.starts_with("$5$") || hash.starts_with("$6$") => "a SHA-2 hash",
        _ if !["$2a$", "$2b$", "$2y$"].iter().any(|start| hash.starts_with(start)) => "no bcrypt hash",
        _ => match HashParts::from_str(hash) {
            Ok(parts) if (4..=MAX_COST).contains(&parts.get_cost()) => return Ok(()),
            Ok(parts) => {
                return Err(format!(
                    "the hash of {name} has cost {}; expected 4 to {MAX_COST}",
                    parts.get_cost()
                ));
            }
            Err(_) => "a damaged bcrypt hash",
        },
    };
    Err(format!("{name} has {kind}; expected bcrypt, $2y$, $2b$ or $2a$: {remedy}"))
}

/// The hash of a new password. Takes a quarter of a second.
pub fn hash(password: &str) -> Result<String, FileError> {
    let wrong = |reason: &str| Err(FileError(format!("password: {reason}")));
    if password.is_empty() {
        return wrong("must not be empty");
    }
    if password.len() > MAX_PASSWORD {
        return wrong(&format!("expected at most {MAX_PASSWORD} bytes, since bcrypt looks no further"));
    }
    if password.contains(char::is_control) {
        return wrong("must not hold control characters");
    }
    let parts = bcrypt::hash_with_result(password, COST).map_err(|error| FileError(error.to_string()))?;
    // As htpasswd writes it.
    Ok(parts.format_for_version(bcrypt::Version::TwoY))
}

/// Puts a new user at the end of the file, which is made where there is none.
pub fn add(
    path: &Path,
    name: &str,
    hash: &str,
    project: Option<&str>,
    roles: &[String],
) -> Result<(), FileError> {
    let named = [("name", Some(name)), ("project", project)].into_iter();
    let named = named.filter_map(|(what, name)| Some((what, name?)));
    for (what, name) in named.chain(roles.iter().map(|role| ("role", role.as_str()))) {
        check_name(what, name).map_err(FileError)?;
    }
    let mut line = format!("{name}:{hash}");
    if project.is_some() || !roles.is_empty() {
        line += &format!(":{}", project.unwrap_or(""));
    }
    if !roles.is_empty() {
        line += &format!(":{}", roles.join(","));
    }
    user(&line).map_err(FileError)?;
    edit(path, true, |lines, found| match found(name) {
        Some(_) => {
            Err(FileError(format!("{name} is there already; taibai user passwd {name} gives a new password")))
        }
        None => {
            lines.push(line);
            Ok(())
        }
    })
}

/// Gives a user a new hash. The rest of the line stays.
pub fn change(path: &Path, name: &str, hash: &str) -> Result<(), FileError> {
    edit(path, false, |lines, found| {
        let number = found(name).ok_or_else(|| nobody(path, name))?;
        let rest = lines[number].splitn(3, ':').nth(2).map(|rest| format!(":{rest}"));
        lines[number] = format!("{name}:{hash}{}", rest.unwrap_or_default());
        Ok(())
    })
}

pub fn remove(path: &Path, name: &str) -> Result<(), FileError> {
    edit(path, false, |lines, found| {
        let number = found(name).ok_or_else(|| nobody(path, name))?;
        lines.remove(number);
        Ok(())
    })
}

fn nobody(path: &Path, name: &str) -> FileError {
    FileError(format!("{}: there is no user {name}", path.display()))
}

/// Finds a user's line.
type Find<'a> = &'a dyn Fn(&str) -> Option<usize>;

/// Rewrites the file: nobody ever reads half of it, and of two who edit it one waits.
fn edit(
    path: &Path,
    create: bool,
    change: impl FnOnce(&mut Vec<String>, Find<'_>) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let mut current = lock(path, create)?;
    let mut text = String::new();
    current.read_to_string(&mut text).map_err(FileError::io(path, "read"))?;
    let mut new: Vec<String> = text.lines().map(str::to_owned).collect();
    let find = |name: &str| {
        lines(&text).find(|(_, line)| line.split(':').next() == Some(name)).map(|(number, _)| number)
    };
    change(&mut new, &find)?;

    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = (|| {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        for line in &new {
            writeln!(file, "{line}")?;
        }
        // Who may read the file may read the new one.
        let old = current.metadata()?;
        file.as_file().set_permissions(old.permissions())?;
        fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(FileError::io(path, "written"))
}

/// Opens the file and keeps others from editing it for as long as it is open.
fn lock(path: &Path, create: bool) -> Result<File, FileError> {
    let wrong = FileError::io(path, "opened");
    loop {
        let file =
            OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o640).open(path);
        let file = file.map_err(&wrong)?;
        file.lock().map_err(&wrong)?;
        // While this waited another may have put a new file in its place.
        let (held, there) = (file.metadata().map_err(&wrong)?, std::fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// Whether people beside the owner and the group can read the file.
pub fn is_open_to_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuu5s9s7qJ5kP1rPZz6m8dQYvQ4D2d2n7K";

    fn trouble(text: &str) -> String {
        parse(Path::new("users"), text).map_or_else(|error| error.to_string(), |_| "ok".to_owned())
    }

    #[test]
    fn a_line_may_name_project_and_roles() {
        let text =
            format!("# people\n\nann:{HASH}\nbob:{HASH}:lab\ncy:{HASH}::reader\ndi:{HASH}:lab:manager,x\n");
        let table = parse(Path::new("users"), &text).unwrap();
        let of = |name: &str| (table[name].project.as_str(), table[name].roles.join("+"));
        assert_eq!(of("ann"), ("ann", "member".to_owned()));
        assert_eq!(of("bob"), ("lab", "member".to_owned()));
        assert_eq!(of("cy"), ("cy", "reader".to_owned()));
        assert_eq!(of("di"), ("lab", "manager+x".to_owned()));
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn what_is_no_user_is_named_by_its_line_and_no_hash_is_shown() {
        let remedy =
            "expected bcrypt, $2y$, $2b$ or $2a$: write it with htpasswd -B or taibai user passwd ann";
        for (line, reason) in [
            ("ann".to_owned(), "expected name:hash,".to_owned()),
            (format!("ann:{HASH}:a:b:c"), "expected name:hash,".to_owned()),
            ("ann:$apr1$secret".to_owned(), format!("ann has an MD5 hash; {remedy}")),
            ("ann:{SHA}secret=".to_owned(), format!("ann has a SHA-1 hash; {remedy}")),
            ("ann:$6$secret".to_owned(), format!("ann has a SHA-2 hash; {remedy}")),
            ("ann:secret".to_owned(), format!("ann has no bcrypt hash; {remedy}")),
            ("ann:$2y$04$secret".to_owned(), format!("ann has a damaged bcrypt hash; {remedy}")),
            (
                format!("ann:{}", HASH.replace("$04$", "$20$")),
                "the hash of ann has cost 20; expected 4 to 16".to_owned(),
            ),
            (format!(":{HASH}"), "name \"\": expected 1 to 80 bytes".to_owned()),
            (format!("ann:{HASH}:{}", "p".repeat(81)), "project \"ppp".to_owned()),
            (format!("ann:{HASH}:lab:a b\u{1},c"), "role \"a b\\u{1}\":".to_owned()),
        ] {
            let message = trouble(&format!("# first\n{line}\n"));
            assert!(message.starts_with(&format!("users:2: {reason}")), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        assert_eq!(trouble(&format!("a:{HASH}\nb:{HASH}\na:{HASH}")), "users:3: a is there twice");
    }

    #[test]
    fn an_edit_changes_one_line_and_keeps_mode_and_comments() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        add(&path, "ann", HASH, None, &[]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, format!("# people\nann:{HASH}\n\n#ann:x\n")).unwrap();

        add(&path, "bob", HASH, Some("lab"), &["reader".to_owned()]).unwrap();
        let other = HASH.replace("$04$", "$05$");
        change(&path, "bob", &other).unwrap();
        change(&path, "ann", &other).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("# people\nann:{other}\n\n#ann:x\nbob:{other}:lab:reader\n"));
        remove(&path, "ann").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("# people\n\n#ann:x\nbob:{other}:lab:reader\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");

        for refused in [
            add(&path, "bob", HASH, None, &[]),
            add(&path, "x:y", HASH, None, &[]),
            add(&path, "cy", HASH, Some("a:b"), &[]),
            change(&path, "ann", HASH),
            remove(&path, "ann"),
            remove(&directory.path().join("none"), "ann"),
        ] {
            refused.unwrap_err();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!directory.path().join("none").exists());
    }

    #[test]
    fn nobody_who_edits_at_the_same_time_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for number in 0..5 {
                        add(path, &format!("user{writer}-{number}"), HASH, None, &[]).unwrap();
                    }
                });
            }
        });
        assert_eq!(parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap().len(), 40);
    }

    #[test]
    fn a_password_that_bcrypt_would_cut_is_refused() {
        for wrong in ["", &"x".repeat(73), "a\nb", "a\0b"] {
            assert!(hash(wrong).is_err());
        }
        let hashed = hash(&"x".repeat(72)).unwrap();
        assert!(hashed.starts_with("$2y$12$"));
        assert!(bcrypt::verify("x".repeat(72), &hashed).unwrap());
    }
}
