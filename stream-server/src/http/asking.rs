//! Who asks, and whether they may: what access control decides, as answers.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::not_found;
use crate::access::{Action, Identity, Presented, Refusal};
use crate::content::PackagePath;
use crate::{Connection, Shared};

/// Somebody who may read a package.
pub(super) struct Reader {
    /// Whether everybody may: then caches on the way may keep what is answered for others.
    pub(super) public: bool,
    /// What the answer tells a Kerberos client, to prove that this is the server.
    pub(super) reply: Option<HeaderValue>,
    /// Who it is, if somebody said.
    pub(super) user: Option<String>,
}

/// Who asks.
pub(super) async fn identity(
    shared: &Shared,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Identity, Response> {
    let presented = match headers.get(header::AUTHORIZATION) {
        Some(value) => value.to_str().map_err(|_| Refusal::Wrong).and_then(Presented::from_header),
        None => Ok(connection.certificate.clone().unwrap_or(Presented::Nothing)),
    };
    let identified = match presented {
        Ok(presented) => shared.gate.identify(presented, connection.peer.ip(), connection.encrypted).await,
        Err(refusal) => Err(refusal),
    };
    identified.map_err(|refusal| refused(&refusal, shared.gate.challenges(connection.peer.ip(), connection.encrypted)))
}

/// Lets those through who may read `package`.
pub(super) async fn reader(
    shared: &Shared,
    connection: &Connection,
    headers: &HeaderMap,
    package: &PackagePath,
) -> Result<Reader, Response> {
    let identity = identity(shared, connection, headers).await?;
    let may = async |identity: &Identity| match shared.gate.may(identity, package, Action::Read).await {
        Ok(allowed) => Ok(allowed),
        Err(refusal) => Err(refused(&refusal, shared.gate.challenges(connection.peer.ip(), connection.encrypted))),
    };
    if may(&Identity::anonymous()).await? {
        return Ok(known(true, &identity));
    }
    if !identity.is_anonymous() && may(&identity).await? {
        return Ok(known(false, &identity));
    }
    Err(denied(identity.is_anonymous(), shared.gate.challenges(connection.peer.ip(), connection.encrypted)))
}

/// Lets those through who may see how the server is.
pub(super) async fn insider(
    shared: &Shared,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Identity, Response> {
    let identity = identity(shared, connection, headers).await?;
    let challenges = || shared.gate.challenges(connection.peer.ip(), connection.encrypted);
    match shared.gate.may_see_status(&identity).await {
        Ok(true) => Ok(identity),
        Ok(false) => Err(denied(identity.is_anonymous(), challenges())),
        Err(refusal) => Err(refused(&refusal, challenges())),
    }
}

fn known(public: bool, identity: &Identity) -> Reader {
    Reader { public, reply: reply(identity), user: identity.name().map(str::to_owned) }
}

/// What the answer tells a Kerberos client.
pub(super) fn reply(identity: &Identity) -> Option<HeaderValue> {
    HeaderValue::from_str(identity.reply()?).ok()
}

/// To somebody who may not. Denied looks like absent, except that who has shown nothing may show something.
pub(super) fn denied(anonymous: bool, challenges: Vec<String>) -> Response {
    if anonymous && !challenges.is_empty() { challenged(challenges) } else { not_found() }
}

pub(super) fn refused(refusal: &Refusal, challenges: Vec<String>) -> Response {
    match refusal {
        Refusal::Wrong => challenged(challenges),
        Refusal::TooMany { retry_after } => {
            // Rounded up: who comes back too early is refused again.
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            let later = [(header::RETRY_AFTER, HeaderValue::from(seconds))];
            (StatusCode::TOO_MANY_REQUESTS, later, "too many failed logins\n").into_response()
        }
        Refusal::Unavailable(reason) => {
            tracing::warn!(reason, "cannot tell who asks");
            let later = [(header::RETRY_AFTER, HeaderValue::from_static("5"))];
            (StatusCode::SERVICE_UNAVAILABLE, later, "the directory of users does not answer\n").into_response()
        }
        Refusal::NotInClear => {
            (StatusCode::FORBIDDEN, "credentials are accepted over https only: use https\n").into_response()
        }
    }
}

fn challenged(challenges: Vec<String>) -> Response {
    let mut response = StatusCode::UNAUTHORIZED.into_response();
    for challenge in challenges {
        // A challenge is written by this program; one that no header can hold helps nobody.
        if let Ok(value) = HeaderValue::from_str(&challenge) {
            response.headers_mut().append(header::WWW_AUTHENTICATE, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn basic() -> Vec<String> {
        vec!["Basic realm=\"streamfs\"".to_owned(), "Negotiate".to_owned()]
    }

    #[test]
    fn denied_looks_like_absent_to_who_is_known() {
        assert_eq!(denied(false, basic()).status(), not_found().status());
        assert_eq!(denied(true, Vec::new()).status(), StatusCode::NOT_FOUND, "nothing that is shown would help");
        let response = denied(true, basic());
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers().get_all(header::WWW_AUTHENTICATE).iter().count(), 2);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let cases = [
            (Refusal::Wrong, 401, None),
            (Refusal::TooMany { retry_after: Duration::from_millis(1500) }, 429, Some("2")),
            (Refusal::Unavailable("ldap: connection refused".to_owned()), 503, Some("5")),
            (Refusal::NotInClear, 403, None),
        ];
        for (refusal, status, later) in cases {
            let response = refused(&refusal, basic());
            assert_eq!(response.status().as_u16(), status, "{refusal:?}");
            let found = response.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap());
            assert_eq!(found, later, "{refusal:?}");
            assert_eq!(response.headers().contains_key(header::WWW_AUTHENTICATE), status == 401, "{refusal:?}");
        }
    }
}
