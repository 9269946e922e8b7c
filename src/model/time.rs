use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, SecondsFormat, Utc};
use sea_orm::DeriveValueType;
use serde::{Deserialize, Serialize};

/// Microseconds since 1970, UTC. A number, because the three databases agree on numbers: MySQL's
/// times end in 2038 or lose their fraction, and lists are ordered by creation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, DeriveValueType,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        Self(Utc::now().timestamp_micros())
    }

    /// Reads a time as people and programs write it: date and time with a space or a `T` between them,
    /// with or without seconds, fractions and a zone; a date alone; or as in mail. UTC where no zone is
    /// named. `None` where it is none of these.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(time) = DateTime::parse_from_rfc2822(text) {
            return Some(Self(time.timestamp_micros()));
        }
        if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            return Some(Self(date.and_time(NaiveTime::MIN).and_utc().timestamp_micros()));
        }
        let upper = text.to_ascii_uppercase();
        let zone = ["Z", "UTC", "GMT"].into_iter().find_map(|zone| upper.strip_suffix(zone));
        let local = zone.map_or(upper.as_str(), str::trim_end);
        for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
            if let Ok(time) = NaiveDateTime::parse_from_str(local, format) {
                return Some(Self(time.and_utc().timestamp_micros()));
            }
            // `+02`, `+0200` and `+02:00`, with a space before or without.
            let format = format!("{format}%#z");
            if zone.is_none()
                && let Ok(time) = DateTime::parse_from_str(local, &format)
            {
                return Some(Self(time.timestamp_micros()));
            }
        }
        None
    }

    /// The second that this lies in.
    pub fn whole_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(1_000_000))
    }

    pub fn before(self, time: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Nothing where `earlier` is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn after(self, delay: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// As the v1 API writes it: whole seconds, `Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp_micros(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_usual_ways() {
        for (text, time) in [
            ("2026-01-02 03:04:05", "2026-01-02T03:04:05Z"),
            (" 2026-01-02 03:04 ", "2026-01-02T03:04:00Z"),
            ("2026-01-02", "2026-01-02T00:00:00Z"),
            ("2026-01-02T03:04:05", "2026-01-02T03:04:05Z"),
            ("2026-01-02t03:04:05z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04Z", "2026-01-02T03:04:00Z"),
            ("2026-01-02 03:04:05.123456", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02 03:04:05 UTC", "2026-01-02T03:04:05Z"),
            ("2026-01-02 03:04:05 GMT", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05Z"),
            ("2026-01-02 03:04:05 +0200", "2026-01-02T01:04:05Z"),
            ("2026-01-02 03:04:05.25-05", "2026-01-02T08:04:05Z"),
            ("2026-01-02T03:04+05:30", "2026-01-01T21:34:00Z"),
            ("Fri, 02 Jan 2026 03:04:05 +0100", "2026-01-02T02:04:05Z"),
        ] {
            assert_eq!(Timestamp::read(text).map(|time| time.to_string()).as_deref(), Some(time), "{text}");
        }
        for text in
            ["", "garbage", "2026", "2026-13-01 00:00:00", "2026-01-02 25:00", "12:00", "2026-01-02T", "Z"]
        {
            assert_eq!(Timestamp::read(text), None, "{text}");
        }
        assert_eq!(Timestamp::read("2026-01-02 03:04:05.5").unwrap().whole_second().0 % 1_000_000, 0);
    }
}
