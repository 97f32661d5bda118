//! The public keys of an issuer: a JWK set (RFC 7517) from a file or a URL.
//!
//! Issuers change their keys. A file is read again when it changes; a URL when the keys are an hour old, and sooner
//! when a token names a key that is not there, but not more often than every half minute, whatever tokens come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::super::AccessError;
use super::super::settings::TokenSettings;

/// Largest set: some hundred keys with certificates.
const SET_MAX_BYTES: usize = 1 << 20;

/// Keys from a URL are asked for anew after this long.
const FRESH: Duration = Duration::from_secs(3600);

/// Keys that could not be asked for anew are used for this long.
const USABLE: Duration = Duration::from_secs(24 * 3600);

/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(30);

/// A question may take this long.
const DEADLINE: Duration = Duration::from_secs(10);

/// One key, ready to check signatures.
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

type Set = Arc<Vec<Key>>;

/// The keys of one issuer.
pub(super) struct Keys {
    source: Source,
    held: Mutex<Held>,
    /// Held while a URL is asked: one question answers all who wait for it.
    asking: tokio::sync::Mutex<()>,
}

enum Source {
    File(PathBuf),
    Url { url: Url, client: reqwest::Client },
}

#[derive(Default)]
struct Held {
    set: Option<Set>,
    /// Of the file.
    stamp: Option<(u64, SystemTime)>,
    /// When the keys came.
    came: Option<Instant>,
    /// When they were asked for last.
    asked: Option<Instant>,
}

/// What is wanted of a set.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    id: Option<&'a str>,
    algorithm: Algorithm,
}

impl Wanted<'_> {
    /// The keys that may have made the signature: the one that the token names, or all if it names none.
    fn in_set(self, set: &Set) -> Vec<DecodingKey> {
        let named = |key: &&Key| self.id.is_none() || key.id.is_none() || key.id.as_deref() == self.id;
        let fitting = set.iter().filter(|key| key.algorithms.contains(&self.algorithm)).filter(named);
        fitting.map(|key| key.key.clone()).collect()
    }
}

impl Keys {
    pub(super) fn new(settings: &TokenSettings) -> Result<Self, AccessError> {
        let source = match (&settings.jwks_file, &settings.jwks_url) {
            (Some(path), _) => {
                // Read once here, so that a mistake is told at the start and not by refusing everybody.
                let failed = |why: String| AccessError::about(path, why);
                let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
                parse(&bytes).map_err(failed)?;
                Source::File(path.clone())
            }
            (None, Some(url)) => Source::Url { url: url.clone(), client: client(settings)? },
            (None, None) => {
                return Err(AccessError::Content("an issuer has neither jwks_file nor jwks_url".to_owned()));
            }
        };
        Ok(Self { source, held: Mutex::default(), asking: tokio::sync::Mutex::default() })
    }

    /// The keys that may have made a signature by `algorithm`, with the name `id` if the token has one.
    ///
    /// # Errors
    /// Why there are no keys at all.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Vec<DecodingKey>, String> {
        let wanted = Wanted { id, algorithm };
        match &self.source {
            Source::File(path) => {
                self.read_file(path).await;
                let found = self.held.lock().set.as_ref().map(|set| wanted.in_set(set));
                found.ok_or_else(|| format!("the keys in {} cannot be read", path.display()))
            }
            Source::Url { url, client } => self.find_at(url, client, wanted).await,
        }
    }

    async fn find_at(
        &self,
        url: &Url,
        client: &reqwest::Client,
        wanted: Wanted<'_>,
    ) -> Result<Vec<DecodingKey>, String> {
        let look = || {
            let held = self.held.lock();
            let found = held.set.as_ref().map(|set| wanted.in_set(set)).unwrap_or_default();
            (found, held.came.map(|came| came.elapsed()))
        };
        let (found, age) = look();
        let fresh = age.is_some_and(|age| age <= FRESH);
        if fresh && !found.is_empty() {
            return Ok(found);
        }
        // Only who has no key at all must wait for others' questions.
        let _turn = if found.is_empty() {
            self.asking.lock().await
        } else {
            match self.asking.try_lock() {
                Ok(turn) => turn,
                Err(_) => return Ok(found),
            }
        };
        let (found, age) = look();
        {
            let mut held = self.held.lock();
            let waits = held.asked.is_some_and(|asked| asked.elapsed() < PAUSE);
            if waits || (!found.is_empty() && age.is_some_and(|age| age <= FRESH)) {
                return if held.set.is_some() { Ok(found) } else { Err(format!("no keys came from {url} so far")) };
            }
            held.asked = Some(Instant::now());
        }
        match fetch(client, url).await {
            Ok(set) => {
                let mut held = self.held.lock();
                held.set = Some(Arc::new(set));
                held.came = Some(Instant::now());
            }
            Err(why) if age.is_some_and(|age| age < USABLE) => {
                tracing::warn!(%url, why, "an issuer's keys cannot be asked for; those that came before are used");
            }
            Err(why) => {
                self.held.lock().set = None;
                return Err(format!("cannot fetch the keys from {url}: {why}"));
            }
        }
        Ok(look().0)
    }

    /// Reads the file again if it changed; one that cannot be used changes nothing.
    async fn read_file(&self, path: &PathBuf) {
        let stamp = match tokio::fs::metadata(path).await {
            Ok(metadata) => Some((metadata.len(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH))),
            Err(_) => None,
        };
        if stamp.is_some() && self.held.lock().stamp == stamp {
            return;
        }
        let read = match tokio::fs::read(path).await {
            Ok(bytes) => parse(&bytes),
            Err(error) => Err(error.to_string()),
        };
        let mut held = self.held.lock();
        match read {
            Ok(set) => held.set = Some(Arc::new(set)),
            Err(why) => {
                tracing::warn!(path = %path.display(), why, "a file of keys cannot be used; those read before are");
            }
        }
        held.stamp = stamp;
    }
}

fn client(settings: &TokenSettings) -> Result<reqwest::Client, AccessError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("streamfs/", env!("CARGO_PKG_VERSION")))
        .timeout(DEADLINE)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(path) = &settings.ca_file {
        let failed = |why: String| AccessError::about(path, why);
        let pem = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| failed(e.to_string()))?;
        if certificates.is_empty() {
            return Err(failed("it holds no certificates in PEM".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| AccessError::Content(format!("cannot set up the HTTP client for keys: {e}")))
}

async fn fetch(client: &reqwest::Client, url: &Url) -> Result<Vec<Key>, String> {
    let mut response = client.get(url.clone()).send().await.map_err(told)?;
    if !response.status().is_success() {
        return Err(format!("the answer was {}", response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(told)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > SET_MAX_BYTES {
            return Err(format!("the answer is longer than {SET_MAX_BYTES} bytes"));
        }
    }
    parse(&bytes)
}

/// The error with its causes: reqwest's own text alone says only that it could not send.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<Value>,
}

/// Reads a set. Keys of kinds that are not known here are passed over, as RFC 7517 §5 asks.
fn parse(bytes: &[u8]) -> Result<Vec<Key>, String> {
    if bytes.len() > SET_MAX_BYTES {
        return Err(format!("it is longer than {SET_MAX_BYTES} bytes"));
    }
    let raw: RawSet = serde_json::from_slice(bytes).map_err(|e| format!("it is no JWK set (line {})", e.line()))?;
    let keys: Vec<Key> = raw.keys.into_iter().filter_map(key).collect();
    if keys.is_empty() {
        return Err("it holds no public key for signatures that can be used".to_owned());
    }
    Ok(keys)
}

fn key(raw: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(raw).ok()?;
    if matches!(jwk.common.public_key_use, Some(ref purpose) if *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let algorithms = match jwk.common.key_algorithm {
        Some(named) => of_name(named)?,
        None => of_kind(&jwk.algorithm)?,
    };
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(&jwk).ok()? })
}

/// The algorithm that a key is for by its own word; none of shared secrets.
fn of_name(named: KeyAlgorithm) -> Option<&'static [Algorithm]> {
    Some(match named {
        KeyAlgorithm::RS256 => &[Algorithm::RS256],
        KeyAlgorithm::RS384 => &[Algorithm::RS384],
        KeyAlgorithm::RS512 => &[Algorithm::RS512],
        KeyAlgorithm::PS256 => &[Algorithm::PS256],
        KeyAlgorithm::PS384 => &[Algorithm::PS384],
        KeyAlgorithm::PS512 => &[Algorithm::PS512],
        KeyAlgorithm::ES256 => &[Algorithm::ES256],
        KeyAlgorithm::ES384 => &[Algorithm::ES384],
        KeyAlgorithm::EdDSA => &[Algorithm::EdDSA],
        _ => return None,
    })
}

/// The algorithms that a key of this kind can be for.
fn of_kind(kind: &AlgorithmParameters) -> Option<&'static [Algorithm]> {
    use jsonwebtoken::jwk::EllipticCurve;
    Some(match kind {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
        AlgorithmParameters::OctetKey(_) => return None,
    })
}

#[cfg(test)]
impl Keys {
    /// As if half a minute had passed.
    pub(super) fn forget_when_it_was_asked(&self) {
        self.held.lock().asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_be_used_are_passed_over() {
        let rsa = r#"{"kty":"RSA","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB","kid":"good"}"#;
        let ec = r#"{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","alg":"ES256"}"#;
        let unusable = [
            r#"{"kty":"oct","k":"c2VjcmV0"}"#,
            r#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#,
            r#"{"kty":"new","x":1}"#,
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB","use":"enc"}"#,
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"RSA-OAEP"}"#,
            "7",
        ];
        let set = format!(r#"{{"keys":[{},{rsa},{ec}]}}"#, unusable.join(","));
        let keys = parse(set.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].id.as_deref(), Some("good"));
        assert!(keys[0].algorithms.contains(&Algorithm::RS256) && !keys[0].algorithms.contains(&Algorithm::ES256));
        assert_eq!(keys[1].algorithms, [Algorithm::ES256]);
        for set in ["", "{}", "[]", r#"{"keys":[]}"#, &format!(r#"{{"keys":[{}]}}"#, unusable.join(","))] {
            assert!(parse(set.as_bytes()).is_err(), "{set}");
        }
    }
}
