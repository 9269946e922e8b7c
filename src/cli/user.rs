//! `taibai user …`: the file of users for `auth_strategy = http_basic`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Result;
use crate::auth::basic::file;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Adds a user, and makes the file where there is none.
    Add {
        name: String,
        /// The user's project; the user's name unless given.
        #[arg(long)]
        project: Option<String>,
        /// A role; may be given several times. `member` unless given.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        file: UserFile,
    },
    /// Gives a user another password.
    Passwd {
        name: String,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        file: UserFile,
    },
    /// Removes a user.
    Remove {
        name: String,
        #[command(flatten)]
        file: UserFile,
    },
    /// Lists the users with their projects and roles.
    List {
        #[command(flatten)]
        file: UserFile,
    },
}

#[derive(Debug, Args)]
pub struct Password {
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub struct UserFile {
    /// File of users, instead of user_file in [http_basic].
    #[arg(long, value_name = "FILE")]
    user_file: Option<PathBuf>,
}

pub fn run(command: Command, path: Option<&Path>) -> Result {
    match command {
        Command::Add { name, project, roles, password, file } => {
            // Before anybody thinks of a password.
            file::check_name("name", &name)?;
            let file = file.path(path)?;
            let hash = file::hash(&password.read()?)?;
            Ok(file::add(&file, &name, &hash, project.as_deref(), &roles)?)
        }
        Command::Passwd { name, password, file } => {
            let file = file.path(path)?;
            let users = read(&file)?;
            if !users.contains_key(&name) {
                return Err(format!("{}: there is no user {name}", file.display()).into());
            }
            Ok(file::change(&file, &name, &file::hash(&password.read()?)?)?)
        }
        Command::Remove { name, file } => Ok(file::remove(&file.path(path)?, &name)?),
        Command::List { file } => {
            let config = Config::load(path)?;
            let admins = file::split(&config.http_basic.admins);
            let mut users: Vec<_> = read(&file.path(path)?)?.into_values().collect();
            users.sort_by(|one, other| one.name.cmp(&other.name));
            let mut text = String::new();
            for user in users {
                let admin = if admins.contains(&user.name) { ",admin" } else { "" };
                text += &format!("{}\t{}\t{}{admin}\n", user.name, user.project, user.roles.join(","));
            }
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
    }
}

fn read(path: &Path) -> Result<file::Table> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file::parse(path, &text)?)
}

impl UserFile {
    fn path(&self, config: Option<&Path>) -> Result<PathBuf> {
        match &self.user_file {
            Some(path) => Ok(path.clone()),
            None => Ok(Config::load(config)?.http_basic.user_file),
        }
    }
}

impl Password {
    /// From standard input, or twice and unseen from the terminal.
    fn read(&self) -> Result<String> {
        if self.password_stdin {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
        }
        if !std::io::stdin().is_terminal() {
            return Err("standard input is no terminal to ask at; use --password-stdin".into());
        }
        let password = rpassword::prompt_password("Password: ")?;
        if password != rpassword::prompt_password("Again: ")? {
            return Err("the two passwords differ".into());
        }
        Ok(password)
    }
}
