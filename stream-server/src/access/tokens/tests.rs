use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A key of an issuer: what signs, and its JWK.
struct Signer {
    algorithm: Algorithm,
    id: &'static str,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn es256(id: &'static str) -> Self {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
        // SEC 1: 04, then both coordinates.
        let point = pair.public_key().as_ref()[1..].to_vec();
        let (x, y) = point.split_at(32);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "kid": id, "use": "sig",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        Self { algorithm: Algorithm::ES256, id, key: EncodingKey::from_ec_der(document.as_ref()), jwk }
    }

    fn ed25519(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA", "x": x });
        Self { algorithm: Algorithm::EdDSA, id, key: EncodingKey::from_ed_der(document.as_ref()), jwk }
    }

    fn sign(&self, claims: &Value) -> Secret {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap().into()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "iss": "https://login.example/", "aud": ["streamfs", "else"], "exp": now() + 600, "sub": "u-17",
        "preferred_username": "ann", "groups": ["staff", "release", 7],
        "realm_access": { "roles": ["admin"] }, "https://x.example/groups": "only",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(name),
        value => claims.as_object_mut().unwrap().insert(name.to_owned(), value),
    };
    claims
}

fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|s| s.jwk.clone()).collect::<Vec<_>>() }).to_string()
}

/// The issuer in a file, with more settings.
fn tokens(folder: &std::path::Path, signers: &[&Signer], more: &str) -> Tokens {
    std::fs::write(folder.join("jwks"), set(signers)).unwrap();
    let text = format!(
        "[[token]]\nissuer = \"https://login.example/\"\naudience = [\"streamfs\"]\njwks_file = \"jwks\"\n{more}"
    );
    let settings = crate::access::settings::AccessSettings::parse(&text, folder).unwrap();
    Tokens::new(&settings.tokens).unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn genuine_tokens_name_users_and_groups() {
    let dir = tempfile::tempdir().unwrap();
    let (ec, ed) = (Signer::es256("one"), Signer::ed25519("two"));
    for (more, user, groups) in [
        ("", "u-17", vec!["staff", "release"]),
        ("user_claim = \"preferred_username\"\nprefix = \"oidc:\"", "oidc:ann", vec!["oidc:staff", "oidc:release"]),
        ("groups_claim = \"realm_access.roles\"", "u-17", vec!["admin"]),
        ("groups_claim = \"https://x.example/groups\"", "u-17", vec!["only"]),
        ("groups_claim = \"absent\"", "u-17", vec![]),
    ] {
        let tokens = tokens(dir.path(), &[&ec, &ed], more);
        for signer in [&ec, &ed] {
            let verified = tokens.verify(&signer.sign(&claims())).await.unwrap();
            assert_eq!(
                (verified.user.as_str(), verified.groups),
                (user, groups.iter().map(|g| (*g).to_owned()).collect())
            );
            let left = verified.expires_in.as_secs();
            assert!((600..=660).contains(&left), "{left}");
        }
    }
}

#[tokio::test]
async fn tokens_that_are_not_for_here_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (good, stranger) = (Signer::es256("one"), Signer::es256("one"));
    let tokens = tokens(dir.path(), &[&good], "");
    let wrong = |refusal: Result<Verified, TokenRefusal>| match refusal {
        Err(TokenRefusal::Wrong(why)) => why,
        other => panic!("{other:?}"),
    };
    for claims in [
        with("iss", json!("https://evil.example/")),
        with("iss", Value::Null),
        with("aud", json!("else")),
        with("aud", Value::Null),
        with("exp", Value::Null),
        with("exp", json!("soon")),
        with("sub", Value::Null),
        with("sub", json!("")),
        with("sub", json!("a\nb")),
        with("sub", json!(17)),
    ] {
        wrong(tokens.verify(&good.sign(&claims)).await);
    }
    assert_eq!(wrong(tokens.verify(&stranger.sign(&claims())).await), "its signature is wrong");
    let other = Signer { id: "unknown", ..Signer::es256("x") };
    assert_eq!(wrong(tokens.verify(&other.sign(&claims())).await), "the issuer has no such key");
    for claims in [with("exp", json!(now() - 120)), with("nbf", json!(now() + 600))] {
        assert_eq!(tokens.verify(&good.sign(&claims)).await, Err(TokenRefusal::Outdated));
    }
    // Within the leeway it is still good.
    tokens.verify(&good.sign(&with("exp", json!(now() - 30)))).await.unwrap();
}

#[tokio::test]
async fn forged_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = Signer::es256("one");
    let tokens = tokens(dir.path(), &[&good], "");
    let genuine = good.sign(&claims());
    let (_, rest) = genuine.expose().split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    // A secret that everybody knows: the public key. Who verifies with whatever the header says falls for it.
    let symmetric = EncodingKey::from_secret(URL_SAFE_NO_PAD.decode(good.jwk["x"].as_str().unwrap()).unwrap().as_ref());
    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"one"}"#);
    for forged in [
        encode(&header, &claims(), &symmetric).unwrap(),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{none}.{body}"),
        body.to_owned(),
        String::new(),
        "..".to_owned(),
        format!("{}.x", genuine.expose()),
        genuine.expose()[..genuine.expose().len() - 4].to_owned(),
    ] {
        let refusal = tokens.verify(&forged.clone().into()).await;
        assert!(matches!(refusal, Err(TokenRefusal::Wrong(_))), "{forged}: {refusal:?}");
    }
}

#[tokio::test]
async fn an_algorithm_that_is_not_allowed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ec, ed) = (Signer::es256("one"), Signer::ed25519("two"));
    let tokens = tokens(dir.path(), &[&ec, &ed], "algorithms = [\"ES256\"]");
    tokens.verify(&ec.sign(&claims())).await.unwrap();
    assert_eq!(tokens.verify(&ed.sign(&claims())).await, Err(TokenRefusal::Wrong("its algorithm is not allowed")));
}

#[tokio::test]
async fn a_file_of_keys_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Signer::es256("old"), Signer::es256("new key"));
    let tokens = tokens(dir.path(), &[&old], "");
    tokens.verify(&old.sign(&claims())).await.unwrap();
    std::fs::write(dir.path().join("jwks"), "half a fi").unwrap();
    tokens.verify(&old.sign(&claims())).await.unwrap();
    std::fs::write(dir.path().join("jwks"), set(&[&new])).unwrap();
    tokens.verify(&new.sign(&claims())).await.unwrap();
    assert!(tokens.verify(&old.sign(&claims())).await.is_err());
}

/// A server of keys that counts questions.
async fn key_server(body: Arc<Mutex<String>>) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            count.fetch_add(1, Ordering::Relaxed);
            let body = body.lock().clone();
            let status = if body.is_empty() { "500 Oh no" } else { "200 OK" };
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, asked)
}

#[tokio::test]
async fn keys_come_from_a_url_and_unknown_ones_do_not_flood_it() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let body = Arc::new(Mutex::new(set(&[&old])));
    let (url, asked) = key_server(body.clone()).await;
    let text =
        format!("[[token]]\nissuer = \"https://login.example/\"\naudience = [\"streamfs\"]\njwks_url = \"{url}\"\n");
    let settings = crate::access::settings::AccessSettings::parse(&text, "/".as_ref()).unwrap();
    let tokens = Tokens::new(&settings.tokens).unwrap_or_else(|e| panic!("{e}"));
    let (one, two) = (old.sign(&claims()), old.sign(&claims()));
    let (first, second) = tokio::join!(tokens.verify(&one), tokens.verify(&two));
    first.and(second).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    *body.lock() = set(&[&old, &new]);
    for _ in 0..5 {
        assert!(tokens.verify(&new.sign(&claims())).await.is_err(), "asked for a moment ago");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    tokens.issuers[0].keys.forget_when_it_was_asked();
    tokens.verify(&new.sign(&claims())).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);

    // The issuer is away: what is known goes on, what is not known is no wrong token.
    *body.lock() = String::new();
    tokens.issuers[0].keys.forget_when_it_was_asked();
    let unknown = Signer::es256("third");
    assert!(matches!(tokens.verify(&unknown.sign(&claims())).await, Err(TokenRefusal::Wrong(_))));
    tokens.verify(&new.sign(&claims())).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_never_answered_is_unavailable() {
    let (url, _) = key_server(Arc::default()).await;
    let text =
        format!("[[token]]\nissuer = \"https://login.example/\"\naudience = [\"streamfs\"]\njwks_url = \"{url}\"\n");
    let settings = crate::access::settings::AccessSettings::parse(&text, "/".as_ref()).unwrap();
    let tokens = Tokens::new(&settings.tokens).unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..2 {
        let refusal = tokens.verify(&Signer::es256("x").sign(&claims())).await;
        assert!(matches!(&refusal, Err(TokenRefusal::Unavailable(why)) if why.contains("/keys")), "{refusal:?}");
    }
}
