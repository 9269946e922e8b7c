//! How values are written in taibai.conf, where everything is text. One module for each kind of
//! value, for serde's `with`; what they say after "expected" reaches the operator.

use std::fmt::Display;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: impl Display,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(text.trim()).ok_or_else(|| D::Error::custom(format_args!("expected {expected}")))
}

/// Anything.
pub mod text {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }

    pub fn serialize<S: Serializer>(value: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value)
    }
}

/// Anything, and never shown. A secret that is set is not written out either.
pub mod secret {
    use secrecy::{ExposeSecret, SecretString};

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
        String::deserialize(deserializer).map(SecretString::from)
    }

    pub fn serialize<S: Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if value.expose_secret().is_empty() { "" } else { "(not shown)" })
    }
}

/// The URL of a database. Its password is never shown.
pub mod connection {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }

    pub fn serialize<S: Serializer>(value: &str, serializer: S) -> Result<S::Ok, S::Error> {
        // Where it holds a password all behind the scheme is left out: a password that was not
        // encoded could end anywhere.
        match value.split_once("://") {
            Some((scheme, rest)) if has_password(rest) => {
                serializer.collect_str(&format_args!("{scheme}://(not shown)"))
            }
            _ => serializer.serialize_str(value),
        }
    }

    /// Whether what is behind the scheme may hold a password.
    fn has_password(rest: &str) -> bool {
        rest.contains('@') || rest.contains("password")
    }

    /// Whether a URL may hold a password.
    pub fn is_secret(url: &str) -> bool {
        url.split_once("://").is_some_and(|(_, rest)| has_password(rest))
    }
}

/// Where a file or directory is.
pub mod path {
    use std::path::{Path, PathBuf};

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        String::deserialize(deserializer).map(PathBuf::from)
    }

    pub fn serialize<S: Serializer>(value: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&value.display())
    }
}

pub mod address {
    use std::net::IpAddr;

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
        read(deserializer, "an IP address such as 127.0.0.1 or ::1", |text| text.parse().ok())
    }

    pub fn serialize<S: Serializer>(value: &IpAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }
}

pub mod flag {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        read(deserializer, "true or false", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        })
    }

    pub fn serialize<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }
}

pub mod number {
    use super::*;

    pub trait Number: std::str::FromStr + Display {
        const LEAST: Self;
        const MOST: Self;
    }

    macro_rules! number {
        ($($type:ty)+) => {
            $(impl Number for $type {
                const LEAST: Self = Self::MIN;
                const MOST: Self = Self::MAX;
            })+
        };
    }

    number!(u16 u32 u64 i32 i64);

    pub fn deserialize<'de, D: Deserializer<'de>, T: Number>(deserializer: D) -> Result<T, D::Error> {
        let expected = format_args!("a whole number from {} to {}", T::LEAST, T::MOST);
        read(deserializer, expected, |text| text.parse().ok())
    }

    pub fn serialize<S: Serializer, T: Number>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }
}

pub mod bytes {
    use super::*;

    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

    pub fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
        read(deserializer, "a number of bytes such as 268435456 or 256MiB", |text| {
            parse(text)?.try_into().ok()
        })
    }

    pub(super) fn parse(text: &str) -> Option<u64> {
        for (unit, shift) in UNITS {
            if let Some(count) = text.strip_suffix(unit) {
                return count.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift);
            }
        }
        text.parse().ok()
    }

    /// Writes the largest unit that divides the value.
    pub fn serialize<S: Serializer, T: Copy + Display + TryInto<u64>>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Ok(bytes) = (*value).try_into() else {
            return serializer.collect_str(value);
        };
        match UNITS.iter().find(|(_, shift)| bytes != 0 && bytes % (1 << shift) == 0) {
            Some((unit, shift)) => serializer.collect_str(&format_args!("{}{unit}", bytes >> shift)),
            None => serializer.collect_str(value),
        }
    }
}

pub mod duration {
    use std::time::Duration;

    use humantime_serde::re::humantime;

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        read(deserializer, "a duration such as 30s or 5m", |text| match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => humantime::parse_duration(text).ok(),
        })
    }

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }
}

/// Values separated by commas; none where there is no text.
pub mod list {
    use std::str::FromStr;

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(|word| word.parse().map_err(|error| D::Error::custom(format_args!("{error}")))).collect()
    }

    pub fn serialize<S: Serializer, T: Display>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        let words: Vec<_> = values.iter().map(ToString::to_string).collect();
        serializer.collect_str(&words.join(", "))
    }
}

/// A network of one family; nothing where it may be left out.
pub mod subnet {
    use ipnet::{Ipv4Net, Ipv6Net};

    use super::*;

    pub trait Subnet: Sized {
        const EXPECTED: &'static str;
        fn parse(text: &str) -> Option<Self>;
        fn text(&self) -> String;
    }

    impl Subnet for Ipv4Net {
        const EXPECTED: &'static str = "an IPv4 network such as 172.16.224.0/20";

        fn parse(text: &str) -> Option<Self> {
            text.parse().ok().filter(|net: &Self| net.trunc() == *net)
        }

        fn text(&self) -> String {
            self.to_string()
        }
    }

    impl Subnet for Option<Ipv6Net> {
        const EXPECTED: &'static str = "an IPv6 network such as fd7a:1ba1:0:1::/64, or nothing";

        fn parse(text: &str) -> Option<Self> {
            match text {
                "" => Some(None),
                text => text.parse().ok().filter(|net: &Ipv6Net| net.trunc() == *net).map(Some),
            }
        }

        fn text(&self) -> String {
            self.map_or_else(String::new, |net| net.to_string())
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: Subnet>(deserializer: D) -> Result<T, D::Error> {
        read(deserializer, T::EXPECTED, T::parse)
    }

    pub fn serialize<S: Serializer, T: Subnet>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&value.text())
    }
}

/// A number, also one of bytes, or -1 where there is no limit.
pub mod limit {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        read(deserializer, "a number such as 1000, one of bytes such as 50GiB, or -1 for none", |text| {
            if text == "-1" { Some(-1) } else { bytes::parse(text)?.try_into().ok() }
        })
    }

    pub fn serialize<S: Serializer>(value: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        bytes::serialize(value, serializer)
    }
}

/// One of the names of an enum.
pub mod choice {
    use serde::Serialize;
    use serde::de::IntoDeserializer;
    use serde::de::value::Error;

    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::deserialize(text.trim().to_owned().into_deserializer()).map_err(|error: Error| {
            // The value is named already by whoever reports this.
            let message = error.to_string();
            let expected = message.find("expected ").map_or(message.as_str(), |at| &message[at..]);
            D::Error::custom(expected.replace('`', ""))
        })
    }

    pub fn serialize<S: Serializer, T: Serialize>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }
}
