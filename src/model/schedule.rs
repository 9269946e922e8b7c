use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use super::Timestamp;

/// When a job runs, as a cron pattern says it: minute, hour, day of the month, month, day of the week
/// and, where there is a sixth field, second. All in UTC.
///
/// A field is `*`, a number, a name (of a month or of a day of the week), a range, any of these with a
/// step, or a list of them. Sunday is 0 and 7; `L` is the last day of the month and `1#2` the second
/// Monday. Where both a day of the month and a day of the week are named, either will do.
#[derive(Debug, Clone)]
pub struct Schedule(Cron);

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Schedule {
    /// `None` where this is no such pattern.
    pub fn parse(pattern: &str) -> Option<Self> {
        let pattern = pattern.to_ascii_uppercase();
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        let (minute, hour, day, month, weekday, second) = match fields[..] {
            [minute, hour, day, month, weekday] => (minute, hour, day, month, weekday, "0"),
            [minute, hour, day, month, weekday, second] => (minute, hour, day, month, weekday, second),
            _ => return None,
        };
        // The parser replaces names wherever they stand, and knows signs of its own.
        let plain = |field: &str| is_field(field, &[], "");
        let sound = plain(minute)
            && plain(hour)
            && plain(second)
            && is_field(day, &[], "?L")
            && is_field(month, &MONTHS, "")
            && is_field(weekday, &DAYS, "?#L");
        if !sound {
            return None;
        }
        let parser =
            CronParser::builder().seconds(Seconds::Required).year(Year::Optional).sloppy_ranges(true).build();
        parser.parse(&format!("{second} {minute} {hour} {day} {month} {weekday}")).ok().map(Self)
    }

    /// The first instant behind this one; `None` where there is none, as on the 31st of February.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let time = DateTime::<Utc>::from_timestamp_micros(time.0)?;
        let next = self.0.find_next_occurrence(&time, false).ok()?;
        Some(Timestamp(next.timestamp_micros()))
    }
}

/// Whether a field is made of digits, the signs of ranges and lists, some names, and some more signs.
fn is_field(field: &str, names: &[&str], signs: &str) -> bool {
    field.split(',').all(|item| {
        !item.is_empty()
            && !item.starts_with(['/', '-', '#'])
            && item.split(['-', '/', '#']).all(|word| {
                let word = word.strip_suffix('L').filter(|_| signs.contains('L')).unwrap_or(word);
                let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
                let is_sign = word.is_empty() || word == "*" || (word == "?" && signs.contains('?'));
                is_number || is_sign || names.contains(&word)
            })
            && (signs.contains('#') || !item.contains('#'))
            && !item.ends_with(['/', '-', '#'])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::read(text).unwrap()
    }

    fn after(pattern: &str, time: &str) -> Option<String> {
        let schedule = Schedule::parse(pattern).unwrap_or_else(|| panic!("{pattern} is no pattern"));
        schedule.next_after(at(time)).map(|next| next.to_string())
    }

    #[test]
    fn patterns_mean_what_cron_says() {
        // The first of January 2026 is a Thursday.
        let cases = [
            ("0 21 * * *", "2026-01-01 20:59:59", "2026-01-01T21:00:00Z"),
            ("0 21 * * *", "2026-01-01 21:00:00", "2026-01-02T21:00:00Z"),
            ("*/5 * * * *", "2026-01-01 00:04:59.999999", "2026-01-01T00:05:00Z"),
            ("*/5 * * * *", "2026-01-01 00:05:00.000001", "2026-01-01T00:10:00Z"),
            ("5/20 * * * *", "2026-01-01 00:00:00", "2026-01-01T00:05:00Z"),
            ("5/20 * * * *", "2026-01-01 00:05:00", "2026-01-01T00:25:00Z"),
            ("1-3,30 4 * * *", "2026-01-01 04:03:00", "2026-01-01T04:30:00Z"),
            ("0 0-12/6 * * *", "2026-01-01 06:00:00", "2026-01-01T12:00:00Z"),
            // The sixth field is the second.
            ("0 21 * * * 30", "2026-01-01 21:00:00", "2026-01-01T21:00:30Z"),
            ("* * * * * */15", "2026-01-01 00:00:15", "2026-01-01T00:00:30Z"),
            ("* * * * * *", "2026-12-31 23:59:59", "2027-01-01T00:00:00Z"),
            // Names, in any case.
            ("30 6 * jan SUN", "2026-01-05 00:00:00", "2026-01-11T06:30:00Z"),
            ("0 0 1 Feb,dec *", "2026-02-01 00:00:00", "2026-12-01T00:00:00Z"),
            ("0 0 * * mon-wed", "2026-01-01 00:00:00", "2026-01-05T00:00:00Z"),
            ("0 0 * * fri-sun", "2026-01-03 00:00:00", "2026-01-04T00:00:00Z"),
            // Sunday is 0 and 7.
            ("0 0 * * 0", "2026-01-01 00:00:00", "2026-01-04T00:00:00Z"),
            ("0 0 * * 7", "2026-01-01 00:00:00", "2026-01-04T00:00:00Z"),
            ("0 0 * * 5-7", "2026-01-03 00:00:00", "2026-01-04T00:00:00Z"),
            // The last day of the month, and of February in a leap year.
            ("0 0 L * *", "2026-01-01 00:00:00", "2026-01-31T00:00:00Z"),
            ("0 0 L * *", "2028-02-01 00:00:00", "2028-02-29T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01 00:00:00", "2028-02-29T00:00:00Z"),
            ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29T00:00:00Z"),
            // The second Monday, the last Friday.
            ("0 0 * * 1#2", "2026-01-01 00:00:00", "2026-01-12T00:00:00Z"),
            ("0 0 * * mon#2", "2026-01-12 00:00:00", "2026-02-09T00:00:00Z"),
            ("0 0 * * 5L", "2026-01-01 00:00:00", "2026-01-30T00:00:00Z"),
            // The 13th or a Friday, whichever comes first.
            ("0 0 13 * 5", "2026-01-01 00:00:00", "2026-01-02T00:00:00Z"),
            ("0 0 13 * 5", "2026-01-09 00:00:00", "2026-01-13T00:00:00Z"),
            ("0 0 13 * *", "2026-01-01 00:00:00", "2026-01-13T00:00:00Z"),
            ("0 0 * * 5", "2026-01-09 00:00:00", "2026-01-16T00:00:00Z"),
            ("0 0 ? * 5", "2026-01-09 00:00:00", "2026-01-16T00:00:00Z"),
            ("  0   0  1  1  *  ", "2026-01-01 00:00:00", "2027-01-01T00:00:00Z"),
        ];
        for (pattern, time, next) in cases {
            assert_eq!(after(pattern, time).as_deref(), Some(next), "{pattern} after {time}");
        }
    }

    #[test]
    fn other_text_is_no_pattern() {
        let long = "* ".repeat(5000);
        for text in [
            "",
            "garbage",
            "* * *",
            "* * * * * * *",
            "@hourly",
            "@daily",
            "@reboot",
            "61 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * 32 * *",
            "* * * 13 *",
            "* * * 0 *",
            "* * * * 8",
            "* * * * * 60",
            "-1 * * * *",
            "*/0 * * * *",
            "/5 * * * *",
            "5- * * * *",
            "5,, * * * *",
            "sun * * * *",
            "* * * mon *",
            "* * jan * *",
            "* * * * +1",
            "* * 1W * *",
            "L * * * *",
            "* 1#2 * * *",
            "1.5 * * * *",
            "* * * * 1#6",
            "* * * * #",
            "é * * * *",
            &long,
        ] {
            assert!(Schedule::parse(text).is_none(), "{text:.40}");
        }
    }

    #[test]
    fn a_date_that_never_comes_is_no_instant() {
        for pattern in ["0 0 31 2 *", "0 0 30 feb *", "0 0 31 4,6,9,11 * 30"] {
            assert_eq!(after(pattern, "2026-01-01 00:00:00"), None, "{pattern}");
        }
        // Unless a day of the week will do.
        assert_eq!(after("0 0 31 2 1", "2026-01-01 00:00:00").as_deref(), Some("2026-02-02T00:00:00Z"));
    }

    proptest! {
        #[test]
        fn the_next_instant_lies_behind_and_is_hit_again(
            minute in 0_u32..60, step in 1_u32..30, hour in 0_u32..24, second in 0_u32..60,
            start in 1_700_000_000_000_000_i64..2_500_000_000_000_000,
        ) {
            for pattern in [
                format!("{minute} {hour} * * *"),
                format!("*/{step} * * * * {second}"),
                format!("{minute} {hour} 13 * 5 {second}"),
            ] {
                let schedule = Schedule::parse(&pattern).unwrap();
                let next = schedule.next_after(Timestamp(start)).unwrap();
                prop_assert!(next > Timestamp(start), "{}", pattern);
                prop_assert_eq!(next.0 % 1_000_000, 0);
                // Nothing lies between: from just before, the same one is found.
                prop_assert_eq!(schedule.next_after(Timestamp(next.0 - 1)), Some(next));
                prop_assert!(schedule.next_after(next).unwrap() > next);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-0-9*/,#?LW@+A-Za-z ]{0,40}") {
            if let Some(schedule) = Schedule::parse(&text) {
                let _ = schedule.next_after(Timestamp(1_767_225_600_000_000));
            }
        }
    }
}
