//! Credentials that are guessed, forged, expired, or told to somebody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tests::{Streamfs, wait_for};

use super::wire::{Talk, status, told};
use super::{DEADLINE, Siege};

const PASSWORD: &str = "right-horse-battery";
const GUESS: &str = "wrong-guess";

/// A server of which `ann` may read, by password or by a token of the key in the user's home, and its log.
struct Guarded {
    siege: Siege,
    log: PathBuf,
    said: PathBuf,
}

fn guarded(failed_logins: &str) -> Guarded {
    let (mut log, mut said) = (PathBuf::new(), PathBuf::new());
    let siege = Siege::with(|user, _| {
        log = user.home().join("access.log");
        said = user.home().join("password");
        let users = user.home().join("users");
        fs::write(&said, format!("{PASSWORD}\n")).expect("own home");
        let mut passwd = user.streamfs(["passwd", users.to_str().expect("plain"), "ann"]);
        let input = fs::File::open(&said).expect("just written");
        assert!(passwd.stdin(input).stdout(Stdio::null()).status().expect("it runs").success());
        fs::write(user.home().join("jwks"), make_key(user.home()).to_string()).expect("own home");
        let rules = format!(
            "[passwords]\nfile = \"users\"\n[[token]]\nissuer = \"i\"\naudience = [\"a\"]\njwks_file = \"jwks\"\nleeway = \"0s\"\n\
             [default.read]\nlogged_in = true\n[failed_logins]\n{failed_logins}\n"
        );
        let access = user.home().join("access.toml");
        fs::write(&access, rules).expect("own home");
        ["--access", access.to_str().expect("plain"), "--access-log", log.to_str().expect("plain")]
            .map(str::to_owned)
            .to_vec()
    });
    Guarded { siege, log, said }
}

fn openssl(arguments: &[&str], folder: &Path) -> Vec<u8> {
    let mut command = Command::new("openssl");
    let output = command.args(arguments).current_dir(folder).output().expect("openssl is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Makes an issuer's key in `folder`; its public half as a set of keys.
fn make_key(folder: &Path) -> Value {
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "issuer.pem"], folder);
    let public = openssl(&["pkey", "-in", "issuer.pem", "-pubout", "-outform", "DER"], folder);
    // What stands before the key's 32 bytes says what it is (RFC 8410).
    let x = URL_SAFE_NO_PAD.encode(&public[public.len() - 32..]);
    json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "x": x }] })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A token with these claims, signed with the key in `folder`.
fn signed(folder: &Path, header: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    fs::write(folder.join("to-sign"), &text).expect("a folder of the test");
    let signature = openssl(&["pkeyutl", "-sign", "-inkey", "issuer.pem", "-rawin", "-in", "to-sign"], folder);
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn token(folder: &Path, change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let mut header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "k" });
    let mut claims = json!({ "iss": "i", "aud": "a", "sub": "ann", "exp": now() + 600 });
    change(&mut header, &mut claims);
    signed(folder, &header, &claims)
}

impl Guarded {
    fn user(&self) -> &Streamfs {
        &self.siege.user
    }

    /// The status of HTTP with these credentials.
    fn http(&self, authorization: &str) -> u16 {
        let words =
            format!("GET /app/head HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n");
        let answer = told(self.siege.address(), words);
        assert!(status(&answer) == 200 || !String::from_utf8_lossy(&answer).contains(GUESS));
        status(&answer)
    }

    fn rtsp(&self) -> Talk {
        Talk::with(self.siege.address())
    }

    /// Nobody can read a secret in what was logged, and a mount with the right password works.
    fn survived(self) {
        let logged = fs::read_to_string(&self.log).expect("it is written");
        let basic = STANDARD.encode(format!("ann:{PASSWORD}"));
        for secret in [PASSWORD, GUESS, &STANDARD.encode(format!("ann:{GUESS}")), &basic, "eyJ"] {
            assert!(!logged.contains(secret), "{logged}");
        }
        let url = format!("{}/app", self.siege.server.url("http"));
        let mut login = self.user().streamfs(["login", url.as_str(), "--user", "ann", "--no-check"]);
        let input = fs::File::open(&self.said).expect("written before");
        assert!(login.stdin(input).stdout(Stdio::null()).status().expect("it runs").success());
        self.siege.survived_at(&url);
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn describe(talk: &mut Talk, authorization: &str) -> u16 {
    let header = if authorization.is_empty() { String::new() } else { format!("Authorization: {authorization}\r\n") };
    talk.ask("DESCRIBE rtsp://h/app RTSP/2.0", &header, "").status
}

/// The events of this kind in the access log, which is written soon after they happened.
fn logged(path: &Path, event: &str, at_least: usize) -> Vec<Value> {
    wait_for("the access log", DEADLINE, || {
        let text = fs::read_to_string(path).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found: Vec<Value> = lines.filter(|line| line["event"] == event).collect();
        (found.len() >= at_least).then_some(found)
    })
}

#[test]
fn guessing_passwords_is_held_back_and_logged() {
    // The window is short, so that it passes within the test.
    let guarded = guarded("per_user = 5\nper_address = 12\nwindow = \"6s\"");
    assert_eq!(guarded.http(&basic("ann", PASSWORD)), 200);
    // Names that there are not are guessed as slowly as those that there are.
    let guesses = 40;
    let statuses: Vec<u16> = (0..guesses).map(|n| guarded.http(&basic("bob", &format!("{GUESS}{n}")))).collect();
    let refused = statuses.iter().filter(|status| **status == 401).count();
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{statuses:?}");
    // Five at once, and one more for each second and bit that passed: not the forty that came.
    assert!((5..guesses / 2).contains(&refused), "{refused} of {guesses} were looked at: {statuses:?}");
    // The same user by RTSP, all on one connection: it is no other door.
    let mut talk = guarded.rtsp();
    let by_rtsp: Vec<u16> = (0..10).map(|n| describe(&mut talk, &basic("bob", &format!("{GUESS}{n}")))).collect();
    assert!(by_rtsp.iter().all(|status| matches!(status, 401 | 503)) && by_rtsp.contains(&503), "{by_rtsp:?}");
    // Who is known here goes on, as long as the address is not to blame; and it is forgiven.
    wait_for("the address to be forgiven", DEADLINE, || {
        (describe(&mut talk, &basic("ann", PASSWORD)) == 200).then_some(())
    });
    let failed = logged(&guarded.log, "failed_login", refused);
    assert!(
        failed.iter().all(|line| line["user"] == "bob" && line["peer"] == "127.0.0.1" && line["method"] == "basic")
    );
    drop(talk);
    guarded.survived();
}

#[test]
fn forged_and_expired_tokens_are_nothing() {
    let guarded = guarded("per_user = 1000\nper_address = 1000");
    let home = guarded.user().home().to_owned();
    let good = token(&home, |_, _| {});
    assert_eq!(guarded.http(&format!("Bearer {good}")), 200);
    // The same once more, from wherever it was seen: that is what a bearer's token is, until it expires.
    assert_eq!(guarded.http(&format!("Bearer {good}")), 200);
    let other = home.join("other");
    fs::create_dir(&other).expect("own home");
    make_key(&other);
    let (front, signature) = good.rsplit_once('.').expect("three parts");
    let none = URL_SAFE_NO_PAD.encode(json!({ "alg": "none" }).to_string());
    let claims = front.split('.').nth(1).expect("three parts");
    let changed =
        URL_SAFE_NO_PAD.encode(json!({ "iss": "i", "aud": "a", "sub": "root", "exp": now() + 600 }).to_string());
    for (name, forged) in [
        ("expired", token(&home, |_, claims| claims["exp"] = json!(now() - 5))),
        ("not yet good", token(&home, |_, claims| claims["nbf"] = json!(now() + 300))),
        ("for somebody else", token(&home, |_, claims| claims["aud"] = json!("b"))),
        ("of somebody else", token(&home, |_, claims| claims["iss"] = json!("j"))),
        ("without an end", token(&home, |_, claims| claims["exp"] = Value::Null)),
        ("of nobody", token(&home, |_, claims| claims["sub"] = json!("\u{1}"))),
        ("with another key", token(&other, |_, _| {})),
        ("with a secret for a key", token(&home, |header, _| header["alg"] = json!("HS256"))),
        ("with a key that it names itself", token(&home, |header, _| header["jku"] = json!("http://127.0.0.1:1/"))),
        ("not signed", format!("{none}.{claims}.")),
        ("without its signature", format!("{front}.")),
        ("with half of it", format!("{front}.{}", &signature[..40])),
        ("with other claims", format!("{}.{changed}.{signature}", front.split('.').next().expect("three parts"))),
        ("long", format!("{good}{}", "A".repeat(12_000))),
        ("no token", "x".to_owned()),
        ("no token either", "..".to_owned()),
    ] {
        let expected = if name == "with a key that it names itself" { 200 } else { 401 };
        let authorization = format!("Bearer {forged}");
        assert_eq!(guarded.http(&authorization), expected, "{name}, by HTTP");
        assert_eq!(describe(&mut guarded.rtsp(), &authorization), expected, "{name}, by RTSP");
    }
    logged(&guarded.log, "failed_login", 20);
    guarded.survived();
}

/// A token that was good on a connection is good there until it expires, and no longer because the connection stays open.
#[test]
fn a_token_that_expires_is_good_no_more_on_connections_that_know_it() {
    let guarded = guarded("per_user = 1000\nper_address = 1000");
    let home = guarded.user().home().to_owned();
    let brief = token(&home, |_, claims| claims["exp"] = json!(now() + 4));
    let authorization = format!("Bearer {brief}");
    let mut talk = guarded.rtsp();
    assert_eq!(describe(&mut talk, &authorization), 200);
    let url = "rtsp://h/app";
    let session = talk.session(url);
    assert_eq!(talk.lines("READ", url, &session, "1 head 0-"), 200);
    assert!(!talk.answer(1).expect("it is read").is_empty());
    let within = Duration::from_secs(20);
    wait_for("the token to expire", within, || (guarded.http(&authorization) == 401).then_some(()));
    assert_eq!(talk.lines("READ", url, &session, "2 head 0-"), 401, "in the session that was made with it");
    assert_eq!(describe(&mut talk, ""), 401, "without it, on the connection where it was shown");
    assert_eq!(describe(&mut talk, &authorization), 401, "shown again");
    // Another one counts again, in the same session.
    let fresh = format!("Bearer {}", token(&home, |_, _| {}));
    assert_eq!(describe(&mut talk, &fresh), 200);
    assert_eq!(talk.lines("READ", url, &session, "3 head 0-"), 200);
    assert!(!talk.answer(3).expect("it is read").is_empty());
    drop(talk);
    guarded.survived();
}
