use crate::error::Source;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What callers treat differently. No message holds a token, a host or a path; those are in the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token that was shown is unknown, revoked or expired.
    #[error("the token is not valid")]
    Rejected,
    #[error("{service} does not allow it")]
    Forbidden { service: &'static str },
    #[error("not found")]
    NotFound,
    /// No answer, none in time, or one that says to come again.
    #[error("{service} is unavailable")]
    Unavailable {
        service: &'static str,
        #[source]
        source: Source,
    },
    /// An answer that no right request gets.
    #[error("{service} refused the request with status {status}")]
    Refused { service: &'static str, status: u16 },
}

pub(super) const KEYSTONE: &str = "Keystone";
pub(super) const SWIFT: &str = "Swift";

impl Error {
    pub(super) fn unavailable(service: &'static str, source: impl Into<Source>) -> Self {
        Self::Unavailable { service, source: source.into() }
    }

    /// What a status that is no success says.
    pub(super) fn of_status(service: &'static str, status: u16) -> Self {
        match status {
            401 => Self::Rejected,
            403 => Self::Forbidden { service },
            404 | 410 => Self::NotFound,
            // 408: asked too slowly; 413 with Retry-After and 429, 498: too often.
            408 | 429 | 498 | 500.. => {
                Self::unavailable(service, format!("it answered with status {status}"))
            }
            _ => Self::Refused { service, status },
        }
    }

    /// What a session's own error says.
    pub(super) fn of_session(service: &'static str, error: osauth::Error) -> Self {
        use osauth::ErrorKind as Kind;
        match error.kind() {
            Kind::AuthenticationFailed => Self::Rejected,
            Kind::AccessDenied => Self::Forbidden { service },
            Kind::ResourceNotFound => Self::NotFound,
            Kind::Conflict => Self::Refused { service, status: 409 },
            Kind::InvalidInput => Self::Refused { service, status: 400 },
            _ => Self::unavailable(service, error),
        }
    }

    /// The same for an `AuthType`, which has to speak osauth's errors.
    pub(super) fn into_session(self) -> osauth::Error {
        use osauth::ErrorKind as Kind;
        let kind = match &self {
            Self::Rejected => Kind::AuthenticationFailed,
            Self::Forbidden { .. } => Kind::AccessDenied,
            Self::NotFound => Kind::ResourceNotFound,
            Self::Unavailable { .. } => Kind::OperationFailed,
            Self::Refused { .. } => Kind::InvalidInput,
        };
        osauth::Error::new(kind, crate::telemetry::Chain(&self).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        let of = |status| Error::of_status(SWIFT, status);
        assert!(matches!(of(401), Error::Rejected));
        assert!(matches!(of(403), Error::Forbidden { .. }));
        assert!(matches!(of(404), Error::NotFound));
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(of(status), Error::Unavailable { .. }), "{status}");
        }
        assert!(matches!(of(422), Error::Refused { status: 422, .. }));
    }
}
