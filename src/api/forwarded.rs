//! What a proxy says of a request that it passes on. Read only where the configuration says that there
//! is one: anybody can write these headers.

use std::net::IpAddr;

use actix_web::http::header::HeaderMap;

/// What the caller wrote, as far as it is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub scheme: Option<String>,
    /// With a port where there is one.
    pub host: Option<String>,
    /// What stands before the service's own paths, with a slash before it and none behind.
    pub prefix: Option<String>,
    pub client: Option<IpAddr>,
}

impl Forwarded {
    /// `Forwarded` (RFC 7239), or where it is missing the older `X-Forwarded-` headers. Of several proxies the
    /// first says what the caller wrote. Who the caller is, the last does: what stands before its words anybody
    /// can have sent. The prefix has no place in the former.
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // A proxy may add a line of its own.
        let last = |name: &str| headers.get_all(name).last().and_then(|value| value.to_str().ok());
        let first = |name: &str| text(name).and_then(|value| value.split(',').next()).map(str::trim);
        let mut forwarded = Self { prefix: first("x-forwarded-prefix").and_then(prefix), ..Self::default() };
        if let Some(header) = text("forwarded") {
            for (name, value) in elements(header).first().into_iter().flatten() {
                match name.as_str() {
                    "proto" => forwarded.scheme = scheme(value),
                    "host" => forwarded.host = host(value),
                    _ => {}
                }
            }
            let last = last("forwarded").map(elements).unwrap_or_default().pop().unwrap_or_default();
            forwarded.client =
                last.iter().find(|(name, _)| name == "for").and_then(|(_, value)| client(value));
        } else {
            forwarded.scheme = first("x-forwarded-proto").and_then(scheme);
            forwarded.host = first("x-forwarded-host").and_then(host);
            let last = last("x-forwarded-for").and_then(|value| value.rsplit(',').next());
            forwarded.client = last.map(str::trim).and_then(client);
        }
        forwarded
    }
}

/// The pairs of each element of a `Forwarded` header, names in lower case, values without their quotes. None where
/// a quote is left open: whose words are whose cannot be told then.
fn elements(header: &str) -> Vec<Vec<(String, String)>> {
    let (mut elements, mut pairs) = (Vec::new(), Vec::new());
    let (mut name, mut value) = (String::new(), None::<String>);
    let (mut is_quoted, mut is_escaped) = (false, false);
    let pair = |name: &mut String, value: String| {
        (std::mem::take(name).trim().to_ascii_lowercase(), value.trim().to_owned())
    };
    for character in header.chars() {
        match (character, &mut value) {
            (_, Some(value)) if is_escaped => {
                value.push(character);
                is_escaped = false;
            }
            ('\\', Some(_)) if is_quoted => is_escaped = true,
            ('"', Some(_)) => is_quoted = !is_quoted,
            (_, Some(value)) if is_quoted => value.push(character),
            (',' | ';', _) => {
                pairs.extend(value.take().map(|value| pair(&mut name, value)));
                name.clear();
                if character == ',' {
                    elements.push(std::mem::take(&mut pairs));
                }
            }
            ('=', None) => value = Some(String::new()),
            (_, Some(value)) => value.push(character),
            (_, None) => name.push(character),
        }
    }
    if is_quoted {
        return Vec::new();
    }
    pairs.extend(value.map(|value| pair(&mut name, value)));
    elements.push(pairs);
    elements
}

fn scheme(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    matches!(text.as_str(), "http" | "https").then_some(text)
}

fn host(text: &str) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    (!text.is_empty() && text.chars().all(is_part)).then(|| text.to_owned())
}

fn prefix(text: &str) -> Option<String> {
    let text = text.trim_end_matches('/');
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/-._~%".contains(c);
    (text.starts_with('/') && !text.starts_with("//") && text.chars().all(is_part)).then(|| text.to_owned())
}

/// An address, with or without a port; IPv6 in brackets where it has one.
fn client(text: &str) -> Option<IpAddr> {
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let in_brackets = in_brackets.and_then(|(address, port)| {
        (port.is_empty() || port.starts_with(':') && !port.contains(',')).then_some(address)
    });
    text.parse()
        .ok()
        .or_else(|| in_brackets?.parse().ok())
        .or_else(|| text.rsplit_once(':').and_then(|(address, _)| address.parse().ok()))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> [Option<String>; 4] {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let Forwarded { scheme, host, prefix, client } = Forwarded::of(&map);
        [scheme, host, prefix, client.map(|address| address.to_string())]
    }

    fn some<const N: usize>(values: [&str; N]) -> [Option<String>; N] {
        values.map(|value| Some(value.to_owned()).filter(|value| !value.is_empty()))
    }

    #[test]
    fn the_older_headers_say_what_the_caller_wrote() {
        let headers = [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "cloud.example.org:8443, inner"),
            ("x-forwarded-prefix", "/function-engine/"),
            ("x-forwarded-for", "198.51.100.9, 203.0.113.7"),
        ];
        assert_eq!(
            read(&headers),
            some(["https", "cloud.example.org:8443", "/function-engine", "203.0.113.7"])
        );
        assert_eq!(read(&[]), some(["", "", "", ""]));
    }

    #[test]
    fn the_standard_header_goes_before_them() {
        let standard = "for=10.0.0.1;Proto=HTTPS; host=\"a.example:1\", For=\"[2001:db8::17]:4711\";host=b";
        let headers = [
            ("forwarded", standard),
            ("x-forwarded-host", "other"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-prefix", "/p"),
        ];
        assert_eq!(read(&headers), some(["https", "a.example:1", "/p", "2001:db8::17"]));
        assert_eq!(read(&[("forwarded", "for=192.0.2.1:80")]), some(["", "", "", "192.0.2.1"]));
        assert_eq!(
            read(&[("forwarded", "for=unknown;by=\"a\\\"b;c\";proto=http")]),
            some(["http", "", "", ""])
        );
    }

    #[test]
    fn who_the_caller_is_says_the_proxy_that_is_believed() {
        let proxy = "203.0.113.7";
        for (name, lines, expected) in [
            ("x-forwarded-for", &["198.51.100.9,203.0.113.7"][..], proxy),
            ("x-forwarded-for", &["198.51.100.9", "203.0.113.7"], proxy),
            ("x-forwarded-for", &["198.51.100.9, 10.0.0.1", "10.0.0.2, 203.0.113.7:4711"], proxy),
            ("x-forwarded-for", &["198.51.100.9, somebody"], ""),
            ("forwarded", &["for=198.51.100.9, for=203.0.113.7;proto=http"], proxy),
            ("forwarded", &["for=198.51.100.9", "for=203.0.113.7"], proxy),
            ("forwarded", &["for=\"198.51.100.9, for=10.0.0.1\", for=203.0.113.7"], proxy),
            ("forwarded", &["for=198.51.100.9, proto=http"], ""),
            // A quote that the caller leaves open takes in the words of the proxy.
            ("forwarded", &["for=\"[2001:db8::1], for=203.0.113.7"], ""),
            ("forwarded", &["for=\"[2001:db8::1]:1, for=203.0.113.7"], ""),
            ("forwarded", &["for=\"198.51.100.9:1, for=203.0.113.7"], ""),
            ("forwarded", &["for=198.51.100.9, by=\"x, for=203.0.113.7"], ""),
            ("forwarded", &["for=198.51.100.9;by=\"x, for=\"[2001:db8::17]\""], ""),
        ] {
            let headers: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
            assert_eq!(read(&headers)[3].as_deref().unwrap_or_default(), expected, "{name}: {lines:?}");
        }
    }

    #[test]
    fn what_would_not_be_part_of_a_url_is_left_out() {
        for (name, value) in [
            ("x-forwarded-proto", "javascript"),
            ("x-forwarded-host", "a.example/path"),
            ("x-forwarded-host", "user@a.example"),
            ("x-forwarded-host", ""),
            ("x-forwarded-prefix", "no-slash"),
            ("x-forwarded-prefix", "//evil.example"),
            ("x-forwarded-prefix", "/a?b"),
            ("x-forwarded-prefix", "/"),
            ("x-forwarded-for", "somebody"),
            ("forwarded", "host=\"a b\""),
        ] {
            assert_eq!(read(&[(name, value)]), some(["", "", "", ""]), "{name}: {value}");
        }
    }
}
