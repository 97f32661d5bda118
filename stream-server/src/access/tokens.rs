//! Bearer tokens: JWTs (RFC 7519) that an OpenID provider, or whoever else holds a key, has signed.
//!
//! A token counts if one of the issuers in the access file made it, for this server (`aud`), with a public-key
//! algorithm that is allowed, and between its `nbf` and `exp`. Which key signed it is looked up by `kid`.

mod keys;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::keys::Keys;
use super::settings::TokenSettings;
use super::{AccessError, Secret, name_is_usable};

/// Most groups that are taken from a token.
const GROUPS_MAX: usize = 1_000;

/// Keys that are tried for a token that names none.
const KEYS_TRIED_MAX: usize = 8;

/// The issuers of the access file.
pub(super) struct Tokens {
    issuers: Vec<Issuer>,
}

struct Issuer {
    settings: TokenSettings,
    keys: Keys,
}

/// What a token says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    /// How long it is still valid.
    pub(super) expires_in: Duration,
}

/// Why a token does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TokenRefusal {
    /// It was never good for this server.
    Wrong(&'static str),
    /// It is genuine, but its time is over or has not begun.
    Outdated,
    /// The issuer's keys cannot be had.
    Unavailable(String),
}

/// The only claim that is read before the signature is checked: whose keys to check it with.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

impl Tokens {
    pub(super) fn new(settings: &[TokenSettings]) -> Result<Self, AccessError> {
        let issuer = |s: &TokenSettings| Ok::<_, AccessError>(Issuer { settings: s.clone(), keys: Keys::new(s)? });
        Ok(Self { issuers: settings.iter().map(issuer).collect::<Result<_, _>>()? })
    }

    pub(super) fn are_known(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// Checks a token.
    pub(super) async fn verify(&self, token: &Secret) -> Result<Verified, TokenRefusal> {
        let wrong = TokenRefusal::Wrong;
        let token = token.expose();
        let mut parts = token.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it is no signed JWT"));
        };
        let header = decode_header(token).map_err(|_| wrong("its header cannot be read"))?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| wrong("its claims cannot be read"))?;
        let claims: Unverified = serde_json::from_slice(&claims).map_err(|_| wrong("it names no issuer"))?;
        let issuer = self.issuers.iter().find(|issuer| issuer.settings.issuer == claims.iss);
        let issuer = issuer.ok_or(wrong("its issuer is not in the access file"))?;
        if !issuer.settings.algorithms.contains(&header.alg) {
            return Err(wrong("its algorithm is not allowed"));
        }
        let keys = issuer.keys.find(header.kid.as_deref(), header.alg).await.map_err(TokenRefusal::Unavailable)?;
        if keys.is_empty() {
            return Err(wrong("the issuer has no such key"));
        }
        let validation = issuer.validation(header.alg);
        let mut refusal = wrong("its signature is wrong");
        for key in keys.iter().take(KEYS_TRIED_MAX) {
            match decode::<Map<String, Value>>(token, key, &validation) {
                Ok(decoded) => return issuer.read(&decoded.claims),
                Err(error) => match error.kind() {
                    // Both are looked at only behind the signature.
                    ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => return Err(TokenRefusal::Outdated),
                    ErrorKind::InvalidAudience => refusal = wrong("it was made for somebody else"),
                    ErrorKind::MissingRequiredClaim(_) => refusal = wrong("it lacks exp, iss or aud"),
                    _ => {}
                },
            }
        }
        Err(refusal)
    }
}

impl Issuer {
    fn validation(&self, algorithm: jsonwebtoken::Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.settings.leeway.as_secs();
        validation.validate_exp = true;
        validation.validate_nbf = true;
        validation.validate_aud = true;
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&self.settings.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation
    }

    /// The user and groups of verified claims.
    fn read(&self, claims: &Map<String, Value>) -> Result<Verified, TokenRefusal> {
        let prefix = &self.settings.prefix;
        let user = claim(claims, &self.settings.user_claim).and_then(Value::as_str).unwrap_or_default();
        if !name_is_usable(user) {
            return Err(TokenRefusal::Wrong("the claim that names the user is missing or unusable"));
        }
        let listed: &[Value] = match claim(claims, &self.settings.groups_claim) {
            Some(Value::Array(list)) => list,
            Some(one @ Value::String(_)) => std::slice::from_ref(one),
            _ => &[],
        };
        let groups = listed.iter().filter_map(Value::as_str).filter(|name| name_is_usable(name)).take(GROUPS_MAX);
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Clocks may differ for as long as the check lets them; a day at most, whatever the token says.
        let left = (expires + self.settings.leeway.as_secs_f64() - now).clamp(0.0, 86_400.0);
        Ok(Verified {
            user: format!("{prefix}{user}"),
            groups: groups.map(|name| format!("{prefix}{name}")).collect(),
            expires_in: Duration::from_secs_f64(left),
        })
    }
}

/// The claim of that name, else what dots in it lead to.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    // Some providers use URLs as names, which have dots of their own.
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    claim(claims.get(first)?.as_object()?, rest)
}

#[cfg(test)]
mod tests;
