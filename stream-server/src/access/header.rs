//! The value of an `Authorization` header, in HTTP and RTSP alike (RFC 9110 §11.6.2, RFC 2326 §12.5).

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::{Presented, Refusal};

/// Longest value. A Kerberos ticket with the memberships of a large directory has up to 48 KiB (Windows' MaxTokenSize),
/// a third more in base64.
const VALUE_MAX_BYTES: usize = 72 << 10;

/// Longest user and password together: nobody types more, and each is hashed at every request.
const BASIC_MAX_BYTES: usize = 2 << 10;

/// Longest token: with the groups of a large company some 8 KiB.
const BEARER_MAX_BYTES: usize = 16 << 10;

/// RFC 7617 and RFC 4559 write padding; some clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Presented {
    /// Reads the value of an `Authorization` header.
    ///
    /// # Errors
    /// [`Refusal::Wrong`] for a scheme that is not offered and for what is no credential.
    pub(crate) fn from_header(value: &str) -> Result<Self, Refusal> {
        if value.len() > VALUE_MAX_BYTES {
            return Err(Refusal::Wrong);
        }
        let (scheme, rest) = value.trim().split_once(' ').ok_or(Refusal::Wrong)?;
        let credential = rest.trim();
        if credential.is_empty() {
            return Err(Refusal::Wrong);
        }
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => basic(credential),
            "bearer" if is_token(credential) => Ok(Self::Bearer(credential.into())),
            "negotiate" => Ok(Self::Negotiate(BASE64.decode(credential).map_err(|_| Refusal::Wrong)?)),
            _ => Err(Refusal::Wrong),
        }
    }
}

fn basic(credential: &str) -> Result<Presented, Refusal> {
    if credential.len() > BASIC_MAX_BYTES {
        return Err(Refusal::Wrong);
    }
    let bytes = Zeroizing::new(BASE64.decode(credential).map_err(|_| Refusal::Wrong)?);
    // RFC 7617 §2: UTF-8, which the challenge asks for, without control characters.
    let text = std::str::from_utf8(&bytes).map_err(|_| Refusal::Wrong)?;
    if text.chars().any(char::is_control) {
        return Err(Refusal::Wrong);
    }
    let (user, password) = text.split_once(':').ok_or(Refusal::Wrong)?;
    Ok(Presented::Basic { user: user.to_owned(), password: password.into() })
}

/// RFC 6750 §2.1: b64token.
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len() <= BEARER_MAX_BYTES
        && !body.is_empty()
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn the_three_schemes_are_read() {
        // The example of RFC 7617 §2.1: user "test", password "123£".
        match Presented::from_header("Basic dGVzdDoxMjPCow==") {
            Ok(Presented::Basic { user, password }) => assert_eq!((user.as_str(), password.expose()), ("test", "123£")),
            other => panic!("{other:?}"),
        }
        match Presented::from_header("bASIC  dGVzdDoxMjPCow") {
            Ok(Presented::Basic { user, .. }) => assert_eq!(user, "test"),
            other => panic!("{other:?}"),
        }
        match Presented::from_header(&format!("Basic {}", encoded("u:a:b"))) {
            Ok(Presented::Basic { user, password }) => assert_eq!((user.as_str(), password.expose()), ("u", "a:b")),
            other => panic!("{other:?}"),
        }
        match Presented::from_header(" BEARER mF_9.B5f-4.1JqM== ") {
            Ok(Presented::Bearer(token)) => assert_eq!(token.expose(), "mF_9.B5f-4.1JqM=="),
            other => panic!("{other:?}"),
        }
        match Presented::from_header("Negotiate YWJj") {
            Ok(Presented::Negotiate(token)) => assert_eq!(token, b"abc"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_credential_is_refused() {
        let long = format!("Basic {}", encoded(&format!("u:{}", "x".repeat(4000))));
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic %%%",
            &format!("Basic {}", encoded("without a colon")),
            &format!("Basic {}", encoded("u:line\nbreak")),
            "Basic /w==",
            &long,
            "Bearer",
            "Bearer a b",
            "Bearer a\"b",
            "Bearer ==",
            "Negotiate !",
            "Digest username=\"u\"",
            &format!("Negotiate {}", "A".repeat(100_000)),
        ] {
            assert_eq!(Presented::from_header(value).unwrap_err(), Refusal::Wrong, "{value}");
        }
    }

    #[test]
    fn what_was_presented_is_not_shown() {
        for value in [format!("Basic {}", encoded("user:hunter2")), "Bearer hunter2".to_owned()] {
            let shown = format!("{:?}", Presented::from_header(&value).unwrap());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let shown = format!("{:?}", Presented::from_header("Negotiate YWJj").unwrap());
        assert!(!shown.contains("97"), "{shown}");
    }
}
