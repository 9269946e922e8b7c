//! `[database] connection`: a URL as OpenStack services write it, for SQLAlchemy.

use std::path::PathBuf;

use super::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Sqlite(PathBuf),
    /// A URL as our driver reads it.
    Server(String),
}

const EXPECTED: &str = "expected sqlite:///PATH, mysql+pymysql://USER:PASSWORD@HOST/NAME or \
                        postgresql+psycopg2://USER:PASSWORD@HOST/NAME";

impl Address {
    /// Reads the URL. The driver behind a `+` is Python's and is dropped.
    ///
    /// A path of SQLite's is always absolute, with three slashes as with four: SQLAlchemy takes
    /// three for a path relative to the working directory, which a service does not have.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once(':').ok_or_else(|| wrong(EXPECTED))?;
        match scheme.split_once('+').map_or(scheme, |(dialect, _driver)| dialect) {
            "sqlite" => {
                if rest.contains(":memory:") || matches!(rest, "//" | "///") {
                    return Err(wrong("SQLite needs a file, as in sqlite:///var/lib/taibai/taibai.sqlite"));
                }
                let path = rest.strip_prefix("///").ok_or_else(|| wrong(EXPECTED))?;
                if path.contains('?') {
                    return Err(wrong("SQLite takes no options behind the path"));
                }
                Ok(Self::Sqlite(PathBuf::from(format!("/{}", path.trim_start_matches('/')))))
            }
            "mysql" | "mariadb" => Ok(Self::Server(without_charset(&format!("mysql:{rest}")))),
            "postgresql" | "postgres" => Ok(Self::Server(format!("postgres:{rest}"))),
            _ => Err(wrong(EXPECTED)),
        }
        .and_then(|address| match &address {
            Self::Server(url) if reqwest::Url::parse(url).is_err() => Err(wrong(EXPECTED)),
            _ => Ok(address),
        })
    }
}

/// The URL itself is left out of the message: it holds a password.
fn wrong(reason: &str) -> Error {
    Error::Config(format!("[database] connection: {reason}"))
}

/// OpenStack's usual `charset=utf8` means three bytes per character to MySQL; our driver's own
/// choice is utf8mb4.
fn without_charset(url: &str) -> String {
    let Some((base, query)) = url.split_once('?') else { return url.to_owned() };
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("charset=")).collect();
    if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Address {
        Address::Server(url.to_owned())
    }

    #[test]
    fn urls_are_read_as_openstack_writes_them() {
        let cases = [
            (
                "sqlite:///var/lib/taibai/taibai.sqlite",
                Address::Sqlite("/var/lib/taibai/taibai.sqlite".into()),
            ),
            ("sqlite:////var/x.sqlite", Address::Sqlite("/var/x.sqlite".into())),
            ("mysql+pymysql://u:p@h/t?charset=utf8", server("mysql://u:p@h/t")),
            ("mysql+pymysql://u:p@h/t?charset=utf8&ssl-ca=/ca.pem", server("mysql://u:p@h/t?ssl-ca=/ca.pem")),
            ("mariadb://u:p@h/t", server("mysql://u:p@h/t")),
            ("postgresql+psycopg2://u:p@h:5432/t", server("postgres://u:p@h:5432/t")),
            ("postgresql://u:p@h/t", server("postgres://u:p@h/t")),
        ];
        for (url, address) in cases {
            assert_eq!(Address::parse(url).unwrap(), address, "{url}");
        }
    }

    #[test]
    fn other_urls_are_refused_without_repeating_them() {
        for url in [
            "secret",
            "oracle://u:secret@h/t",
            "sqlite://secret",
            "sqlite:secret",
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///secret?mode=ro",
            "mysql://u:secret@h:port/t",
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.starts_with("[database] connection: "), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }
}
