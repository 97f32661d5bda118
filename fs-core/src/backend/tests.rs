//! One suite for every backend, then what only a web server can do wrong, then the wrappers.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};

use self::server::{Answer, Server, is_for_a_byte};
use super::faults::{Fault, Faults};
use super::hurried::Hurried;
use super::recording::Recording;
use super::retry::Retry;
use super::swappable::Swappable;
use url::Url;

use super::*;
use crate::config::{Credentials, RetryPolicy};
use crate::error::ErrorKind;
use crate::location::PackageName;

/// 1.5 MiB in which every position can be told.
fn content() -> Bytes {
    (0..400_000u32).flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>().into()
}

fn object(path: &str) -> ObjectPath {
    ObjectPath::new(path).unwrap()
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        read_deadline: Duration::from_secs(3),
        metadata_deadline: Duration::from_secs(3),
        stall_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(500),
        first_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
    }
}

fn http(server: &Server, config: OriginConfig) -> Arc<dyn Backend> {
    let config = OriginConfig { retry: quick(), ..config };
    Arc::new(HttpBackend::new(&server.root(), &"p".parse::<PackageName>().unwrap(), &config).unwrap())
}

async fn range(backend: &dyn Backend, path: &str, range: Range<u64>) -> Result<Bytes> {
    let length = (range.end - range.start) as usize;
    let stream = backend.read_range(&object(path), range, ReadOptions::default()).await?;
    let pieces: Vec<Bytes> = stream.try_collect().await?;
    let all = pieces.concat();
    assert_eq!(all.len(), length);
    Ok(all.into())
}

async fn small(backend: &dyn Backend, path: &str, limit: u64) -> Result<(Bytes, Option<Validator>)> {
    match backend.read_small(&object(path), limit, None).await? {
        SmallRead::Object { bytes, validator } => Ok((bytes, validator)),
        SmallRead::NotModified => panic!("not modified since nothing"),
    }
}

/// What every backend must do, given one that holds `content()` at `a/b.pack` and "hello" at `note`, and a way to
/// change `note`.
async fn conforms(backend: Arc<dyn Backend>, change_note: impl FnOnce(&str)) {
    let (all, b) = (content(), &*backend);
    let end = all.len() as u64;
    for r in [0..1, 0..end, 1..2, end - 1..end, 100_000..1_300_001, 524_287..524_289] {
        let expected = all.slice(r.start as usize..r.end as usize);
        assert_eq!(range(b, "a/b.pack", r.clone()).await.unwrap(), expected, "{r:?}");
    }
    for r in [end - 1..end + 1, end..end + 1, end + 10..end + 20] {
        let e = range(b, "a/b.pack", r.clone()).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadAnswer, "{r:?}: {e}");
        assert!(e.to_string().contains("shorter than published") && e.to_string().contains("a/b.pack"), "{e}");
    }
    assert_eq!(range(b, "a/b.pack", 5..6).await.unwrap().len(), 1);
    let empty = b.read_range(&object("note"), 3..3, ReadOptions::default()).await.err().unwrap();
    assert_eq!(empty.kind(), ErrorKind::InvalidInput);
    for missing in ["nothing", "a/nothing", "note/below"] {
        assert_eq!(range(b, missing, 0..1).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
        assert_eq!(small(b, missing, 10).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
    let (bytes, validator) = small(b, "note", 5).await.unwrap();
    assert_eq!(bytes, "hello");
    let validator = validator.expect("both kinds of origin give one");
    let state = b.stat(&object("note")).await.unwrap();
    assert_eq!((state.length, state.validator.as_ref()), (5, Some(&validator)));
    assert!(state.modified.is_some(), "both kinds of origin say when");
    assert_eq!(b.stat(&object("a/b.pack")).await.unwrap().length, end);
    for missing in ["nothing", "a/nothing", "note/below"] {
        assert_eq!(b.stat(&object(missing)).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
    let again = b.read_small(&object("note"), 5, Some(&validator)).await.unwrap();
    assert!(matches!(again, SmallRead::NotModified));
    let long = small(b, "note", 4).await.unwrap_err();
    assert_eq!(long.kind(), ErrorKind::BadAnswer, "{long}");
    change_note("other words");
    let changed = b.stat(&object("note")).await.unwrap();
    assert!(changed.length == 11 && changed.validator.is_some_and(|changed| changed != validator));
    match b.read_small(&object("note"), 100, Some(&validator)).await.unwrap() {
        SmallRead::Object { bytes, .. } => assert_eq!(bytes, "other words"),
        SmallRead::NotModified => panic!("it was modified"),
    }
    assert_eq!(small(b, "empty", 0).await.unwrap().0, "");
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("a/b.pack"), content()).unwrap();
    std::fs::write(dir.path().join("note"), "hello").unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    dir
}

fn objects() -> Vec<(&'static str, Bytes)> {
    vec![("a/b.pack", content()), ("note", "hello".into()), ("empty", Bytes::new())]
}

#[tokio::test]
async fn folder_conforms() {
    let dir = folder();
    let note = dir.path().join("note");
    conforms(Arc::new(LocalBackend::new(dir.path().to_owned())), |text| std::fs::write(note, text).unwrap()).await;
}

#[tokio::test]
async fn folder_under_retry_conforms() {
    let dir = folder();
    let note = dir.path().join("note");
    let local = Arc::new(LocalBackend::new(dir.path().to_owned()));
    conforms(Arc::new(Retry::new(local, quick())), |text| std::fs::write(note, text).unwrap()).await;
}

#[tokio::test]
async fn what_may_be_exchanged_conforms() {
    let dir = folder();
    let note = dir.path().join("note");
    let swappable = Swappable::new(Arc::new(LocalBackend::new(dir.path().join("elsewhere"))));
    swappable.set(Arc::new(LocalBackend::new(dir.path().to_owned())));
    conforms(Arc::new(swappable), |text| std::fs::write(note, text).unwrap()).await;
}

/// Whoever has a trusted copy waits neither for many tries nor for a server that hangs.
#[tokio::test]
async fn a_caller_in_a_hurry_gives_up_early() {
    let dir = folder();
    let inner: Arc<dyn Backend> = Arc::new(LocalBackend::new(dir.path().to_owned()));
    let long =
        RetryPolicy { metadata_deadline: Duration::from_secs(600), read_deadline: Duration::from_secs(600), ..quick() };
    for (fault, requests) in [(Fault::Fail, 3), (Fault::Stall { after_bytes: 0 }, 1)] {
        let faults = Arc::new(Faults::new(inner.clone(), move |_| Some(fault)));
        let policy = RetryPolicy { stall_timeout: Duration::from_secs(600), ..long.clone() };
        let hurried = Hurried::new(Arc::new(Retry::new(faults.clone(), policy)), Duration::from_millis(300));
        let e = small(&hurried, "note", 5).await.unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut), "{e}");
        assert_eq!(faults.injected(), requests, "{fault:?}");
    }
}

#[tokio::test]
async fn http_conforms() {
    let server = Server::of(objects()).await;
    conforms(http(&server, OriginConfig::default()), |text| server.put("note", text)).await;
}

#[tokio::test]
async fn http_under_retry_conforms() {
    let server = Server::of(objects()).await;
    let retry = Arc::new(Retry::new(http(&server, OriginConfig::default()), quick()));
    conforms(retry, |text| server.put("note", text)).await;
}

#[cfg(unix)]
#[tokio::test]
async fn folder_names_what_is_no_file() {
    let dir = folder();
    let e = small(&LocalBackend::new(dir.path().to_owned()), "a", 10).await.unwrap_err();
    assert!(e.kind() == ErrorKind::BadAnswer && e.to_string().contains("not a regular file"), "{e}");
}

/// Every way in which a server can answer wrongly, and what is said of it.
#[tokio::test]
async fn misbehaving_servers_are_named() {
    const PAGE: &str = "<!doctype html><title>Please sign in</title>";
    let html = |status| Answer::raw(status, &[("Content-Type", "text/html")], PAGE);
    let cases: Vec<(&str, Answer, ErrorKind, &str)> = vec![
        ("ignores Range", Answer::raw(200, &[], "0123456789"), ErrorKind::BadAnswer, "ignores Range"),
        ("HTML 200", html(200), ErrorKind::BadAnswer, "HTML page (title \"Please sign in\")"),
        ("HTML 404", html(404), ErrorKind::NotFound, "does not exist"),
        ("gone", Answer::raw(410, &[], ""), ErrorKind::NotFound, "does not exist"),
        ("401", Answer::raw(401, &[], ""), ErrorKind::Denied, "401"),
        ("403", Answer::raw(403, &[], ""), ErrorKind::Denied, "403"),
        ("407", Answer::raw(407, &[], ""), ErrorKind::Denied, "proxy"),
        ("416", Answer::raw(416, &[], ""), ErrorKind::BadAnswer, "shorter than published"),
        ("500", Answer::raw(500, &[], ""), ErrorKind::Unreachable, "500"),
        ("429", Answer::raw(429, &[("Retry-After", "7")], ""), ErrorKind::Unreachable, "429"),
        ("204", Answer::raw(204, &[], ""), ErrorKind::BadAnswer, "204"),
        (
            "other range",
            Answer::raw(206, &[("Content-Range", "bytes 1-4/10")], "1234"),
            ErrorKind::BadAnswer,
            "other bytes",
        ),
        ("no range", Answer::raw(206, &[], "0123"), ErrorKind::BadAnswer, "Content-Range"),
        (
            "compressed",
            Answer::raw(206, &[("Content-Range", "bytes 0-3/10"), ("Content-Encoding", "gzip")], "0123"),
            ErrorKind::BadAnswer,
            "gzip",
        ),
        (
            "short body",
            Answer::raw(206, &[("Content-Range", "bytes 0-3/10"), ("Content-Length", "4")], "01"),
            ErrorKind::Unreachable,
            "2 of 4",
        ),
        ("hang", Answer::Hang, ErrorKind::TimedOut, "did not finish"),
        ("hang up", Answer::HangUp, ErrorKind::Unreachable, "cannot fetch"),
        ("not HTTP", Answer::Bytes("\u{1}\u{2}\r\n\r\n".into()), ErrorKind::Unreachable, "cannot fetch"),
        (
            "too many redirects",
            Answer::raw(302, &[("Location", "/p/x")], ""),
            ErrorKind::BadAnswer,
            "redirects more than",
        ),
    ];
    for (name, answer, kind, words) in cases {
        let server = Server::always(answer).await;
        let backend = http(&server, OriginConfig::default());
        let e = range(&*backend, "x", 0..4).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{name}: {e}");
        assert!(e.to_string().contains(words), "{name}: {e}");
    }
}

#[tokio::test]
async fn states_are_not_guessed() {
    for (answer, kind, words) in [
        (Answer::raw(200, &[("Connection", "close")], ""), ErrorKind::BadAnswer, "how long"),
        (Answer::raw(206, &[], ""), ErrorKind::BadAnswer, "206"),
        (Answer::raw(403, &[], ""), ErrorKind::Denied, "403"),
        (Answer::Hang, ErrorKind::TimedOut, "did not finish"),
    ] {
        let server = Server::always(answer).await;
        let e = http(&server, OriginConfig::default()).stat(&object("x")).await.unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(words), "{e}");
        assert!(server.requests()[0].starts_with("HEAD /p/x "), "{:?}", server.requests());
    }
}

#[tokio::test]
async fn an_open_object_stays_what_it_was() {
    use std::io::Read as _;
    let dir = folder();
    let local = LocalBackend::new(dir.path().to_owned());
    let (mut file, state) = local.open_object(&object("note")).await.unwrap();
    std::fs::write(dir.path().join("new"), "another text").unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join("note")).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), state.length), ("hello", 5));
    assert_ne!(local.stat(&object("note")).await.unwrap(), state);
}

#[tokio::test]
async fn small_reads_name_misbehaving_servers_too() {
    let page = Answer::raw(200, &[("Content-Type", "text/html; charset=utf-8")], "<html><title>Portal</title></html>");
    let endless = Answer::raw(200, &[("Connection", "close")], &"x".repeat(100_000));
    let short = Answer::raw(200, &[("Content-Length", "10")], "abc");
    for (answer, kind, words) in [
        (page, ErrorKind::BadAnswer, "Portal"),
        (endless, ErrorKind::BadAnswer, "longer than"),
        (short, ErrorKind::Unreachable, ""),
        (Answer::Hang, ErrorKind::TimedOut, ""),
    ] {
        let server = Server::always(answer).await;
        let e = small(&*http(&server, OriginConfig::default()), "x", 50_000).await.unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(words), "{e}");
    }
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let backend = HttpBackend::new(&root, &"p".parse().unwrap(), &OriginConfig::default()).unwrap();
    let e = small(&backend, "x", 10).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unreachable);
    assert!(e.to_string().to_lowercase().contains("refused"), "{e}");
}

fn bearer() -> OriginConfig {
    OriginConfig { credentials: Credentials::Bearer("s3cret".into()), ..OriginConfig::default() }
}

#[tokio::test]
async fn credentials_are_sent_to_the_origin_and_lost_on_the_way_to_another_host() {
    let elsewhere = Server::of(objects()).await;
    let to = elsewhere.root().join("p/note").unwrap().to_string();
    // The same machine by another name is another host.
    let to = to.replace("127.0.0.1", "localhost");
    let server = Server::always(Answer::raw(302, &[("Location", &to)], "")).await;
    let (bytes, _) = small(&*http(&server, bearer()), "note", 10).await.unwrap();
    assert_eq!(bytes, "hello");
    assert!(server.requests()[0].contains("authorization: Bearer s3cret"), "{:?}", server.requests());
    let there = elsewhere.requests().join("\n").to_lowercase();
    assert!(there.contains("get /p/note") && !there.contains("authorization"), "{there}");
}

#[test]
fn credentials_do_not_cross_the_network_in_clear() {
    let new =
        |url: &str, config: &OriginConfig| HttpBackend::new(&Url::parse(url).unwrap(), &"p".parse().unwrap(), config);
    let e = new("http://apps.example/c/", &bearer()).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.to_string().contains("https"), "{e}");
    assert!(!e.to_string().contains("s3cret"));
    assert!(!format!("{:?}", new("https://apps.example/c/", &bearer()).unwrap()).contains("s3cret"));
    new("http://[::1]:80/", &bearer()).unwrap();
    new("http://apps.example/c/", &OriginConfig { allow_plaintext_credentials: true, ..bearer() }).unwrap();
    let broken = OriginConfig { credentials: Credentials::Bearer("s3cret\nx".into()), ..OriginConfig::default() };
    let e = new("https://apps.example/", &broken).unwrap_err().to_string();
    assert!(!e.contains("s3cret"), "{e}");
}

#[tokio::test]
async fn requests_say_what_they_should() {
    let server = Server::of(objects()).await;
    let backend = http(&server, OriginConfig::default());
    range(&*backend, "a/b.pack", 4..8).await.unwrap();
    let bypass = ReadOptions { bypass_caches: true, ..ReadOptions::default() };
    backend.read_range(&object("note"), 0..1, bypass).await.unwrap().collect::<Vec<_>>().await;
    let requests: Vec<String> = server.requests().iter().map(|r| r.to_lowercase()).collect();
    assert!(
        requests[0].contains("get /p/a/b.pack http/1.1") && requests[0].contains("range: bytes=4-7"),
        "{requests:?}"
    );
    assert!(requests[0].contains("accept-encoding: identity") && requests[0].contains("user-agent: streamfs/"));
    assert!(!requests[0].contains("no-cache"));
    assert!(requests[1].contains("cache-control: no-cache") && requests[1].contains("pragma: no-cache"));
    assert_eq!(server.connections(), 1, "the connection is kept alive");
}

#[tokio::test]
async fn what_is_not_wanted_of_a_beginning_is_not_asked_for() {
    let server = Server::of(vec![("a/b.pack", content()), ("note", Bytes::from_static(b"hello"))]).await;
    let backend = http(&server, OriginConfig::default());
    let first = async |path: &str, bytes: u64, known: Option<&Validator>| {
        backend.read_beginning(&object(path), 1 << 21, known, Enough::when(&|_| false).of_first(bytes)).await
    };
    let Ok(Beginning::Object { front, rest, validator }) = first("a/b.pack", 1_000, None).await else {
        panic!("it is there")
    };
    assert_eq!(front, content()[..1_000]);
    assert!(rest.try_collect::<Vec<_>>().await.unwrap().is_empty());
    assert!(server.requests()[0].to_ascii_lowercase().contains("range: bytes=0-999\r\n"));
    let again = first("a/b.pack", 1_000, validator.as_ref()).await;
    assert!(matches!(again, Ok(Beginning::NotModified)));
    let Ok(Beginning::Object { front, .. }) = first("note", 1_000, None).await else { panic!("it is there") };
    assert_eq!(front, "hello", "a shorter one comes whole");

    // Parts of something else, or more than was asked for, are not taken for its beginning.
    for range in ["bytes 1-999/1000", "bytes 0-1000/2000", "bytes 0-999/500", "bytes 0-999/9999999", "none"] {
        server.next_answer(Answer::raw(206, &[("Content-Range", range)], "hello"));
        let error =
            backend.read_beginning(&object("note"), 5_000, None, Enough::when(&|_| false).of_first(1_000)).await;
        assert!(error.is_err_and(|error| error.kind() == ErrorKind::BadAnswer), "{range}");
    }
    // Who ignores the range sends all of it.
    server.next_answer(Answer::raw(200, &[], "whole"));
    let Ok(Beginning::Object { front, .. }) = first("note", 2, None).await else { panic!("it is there") };
    assert_eq!(front, "whole");
}

/// A backend on `server` without retries, and a body of 1 MB that has begun to come.
async fn beside_a_long_body(server: &Server) -> (HttpBackend, ByteStream) {
    let config = OriginConfig { retry: quick(), ..OriginConfig::default() };
    let backend = HttpBackend::new(&server.root(), &"p".parse::<PackageName>().unwrap(), &config).unwrap();
    let body = backend.read_range(&object("a/b.pack"), 0..1_000_000, ReadOptions::default()).await.unwrap();
    (backend, body)
}

async fn waited_for(backend: &HttpBackend, range: Range<u64>) -> Result<Bytes> {
    let options = ReadOptions { waited_for: true, ..ReadOptions::default() };
    let stream = backend.read_range(&object("note"), range, options).await?;
    Ok(stream.try_collect::<Vec<_>>().await?.concat().into())
}

#[tokio::test]
async fn who_waits_has_a_connection_beside_a_long_body() {
    let server = Server::of(objects()).await;
    let (backend, body) = beside_a_long_body(&server).await;
    backend.until_express().await;
    assert_eq!(server.connections(), 2);
    assert_eq!(server.requests().iter().filter(|head| is_for_a_byte(head)).count(), 1);
    for at in 0..4 {
        assert_eq!(waited_for(&backend, at..at + 1).await.unwrap(), b"hello"[at as usize..][..1]);
    }
    // Another one if the first was not put back yet when the second read came; never one for each.
    let opened = server.connections();
    assert!(opened <= 3, "{opened}");
    assert_eq!(body.try_collect::<Vec<_>>().await.unwrap().concat(), content()[..1_000_000]);
    // It is not opened again for the next long body, and not used without one.
    let requests = server.requests().len();
    range(&backend, "a/b.pack", 0..1_000_000).await.unwrap();
    assert_eq!(waited_for(&backend, 0..1).await.unwrap(), "h");
    assert_eq!((server.requests().len(), server.connections()), (requests + 2, opened));
}

#[tokio::test]
async fn short_bodies_that_come_together_are_a_long_one() {
    let server = Server::of(objects()).await;
    let config = OriginConfig { retry: quick(), ..OriginConfig::default() };
    let backend = HttpBackend::new(&server.root(), &"p".parse::<PackageName>().unwrap(), &config).unwrap();
    let pack = object("a/b.pack");
    let part = |at: u64| backend.read_range(&pack, at * 100_000..(at + 1) * 100_000, ReadOptions::default());
    let _two = [part(0).await.unwrap(), part(1).await.unwrap()];
    assert!(!server.requests().iter().any(|head| is_for_a_byte(head)));
    let _third = part(2).await.unwrap();
    backend.until_express().await;
}

#[tokio::test]
async fn a_connection_that_does_not_serve_is_left() {
    let server = Server::of(objects()).await;
    let (backend, _body) = beside_a_long_body(&server).await;
    backend.until_express().await;
    // A mirror behind it that lacks the object, perhaps: the next try goes the ordinary way.
    server.next_answer(Answer::raw(404, &[], ""));
    assert_eq!(waited_for(&backend, 0..5).await.unwrap_err().kind(), ErrorKind::NotFound);
    let connections = server.connections();
    assert_eq!(waited_for(&backend, 0..5).await.unwrap(), "hello");
    assert_eq!(server.connections(), connections + 1, "the ordinary one is taken by the long body");
    assert_eq!(server.requests().iter().filter(|head| is_for_a_byte(head)).count(), 1, "it is left alone for a while");
}

#[tokio::test]
async fn reads_go_on_where_the_other_connection_cannot_be_opened() {
    let server = Server::of(objects()).await;
    server.refuse_a_byte();
    let (backend, body) = beside_a_long_body(&server).await;
    while !server.requests().iter().any(|head| is_for_a_byte(head)) {
        tokio::task::yield_now().await;
    }
    range(&backend, "a/b.pack", 0..1_000_000).await.unwrap();
    for _ in 0..3 {
        assert_eq!(waited_for(&backend, 0..5).await.unwrap(), "hello");
    }
    assert_eq!(server.requests().iter().filter(|head| is_for_a_byte(head)).count(), 1, "it is not tried again at once");
    assert_eq!(body.try_collect::<Vec<_>>().await.unwrap().concat(), content()[..1_000_000]);
}

#[tokio::test]
async fn a_read_that_breaks_midway_goes_on_where_it_broke() {
    let server = Server::of(objects()).await;
    server.break_after(1000, 3);
    let recording = Recording::new(http(&server, OriginConfig::default()));
    let log = recording.log();
    let retry = Retry::new(Arc::new(recording), quick());
    assert_eq!(range(&retry, "a/b.pack", 7..10_007).await.unwrap(), content().slice(7..10_007));
    let starts: Vec<u64> = log.requests().iter().map(|r| r.range.clone().unwrap().start).collect();
    assert_eq!(starts, [7, 1007, 2007, 3007], "each try goes on where the last one broke");
    assert_eq!(log.delivered_bytes(), 10_000, "no byte came twice");
}

#[tokio::test]
async fn seeded_faults_are_survived_or_named_and_never_give_wrong_bytes() {
    let dir = folder();
    for seed in 0..20 {
        let local = Arc::new(LocalBackend::new(dir.path().to_owned()));
        let faults = Arc::new(Faults::seeded(local, seed, 0.3, false));
        let policy = RetryPolicy { stall_timeout: Duration::from_millis(10), ..quick() };
        let retry = Retry::new(faults.clone(), policy);
        for start in [0, 70_000, 1_000_000] {
            match range(&retry, "a/b.pack", start..start + 200_000).await {
                Ok(bytes) => {
                    assert_eq!(bytes, content().slice(start as usize..start as usize + 200_000), "seed {seed}")
                }
                // Three times "not found" in a row is believed.
                Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "seed {seed}: {e}"),
            }
        }
        assert!(seed > 3 || faults.injected() < 100);
    }
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let dir = folder();
    let with = |fault: Fault| Faults::new(Arc::new(LocalBackend::new(dir.path().to_owned())), move |_| Some(fault));
    let changed = range(&with(Fault::Corrupt { at_byte: 600_000 }), "a/b.pack", 0..700_000).await.unwrap();
    let all = content();
    let differ: Vec<usize> = (0..700_000).filter(|i| changed[*i] != all[*i]).collect();
    assert_eq!(differ, [600_000]);
    let cut = with(Fault::Truncate { after_bytes: 600_000 });
    let mut stream = cut.read_range(&object("a/b.pack"), 0..700_000, ReadOptions::default()).await.unwrap();
    let mut came = 0;
    let end = loop {
        match stream.next().await.expect("it ends with an error") {
            Ok(piece) => came += piece.len(),
            Err(e) => break e,
        }
    };
    assert_eq!((came, end.kind()), (600_000, ErrorKind::Unreachable));
    let e = small(&with(Fault::NotFound), "note", 10).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn each_kind_of_failure_is_tried_as_often_as_documented() {
    for (answer, tries_of_a_range, tries_of_small) in [
        (Answer::raw(404, &[], ""), 3, 1),
        (Answer::raw(403, &[], ""), 2, 2),
        (Answer::raw(200, &[], "<html>"), 2, 2),
        (Answer::raw(416, &[], ""), 2, 2),
    ] {
        let server = Server::always(answer).await;
        let retry = Retry::new(http(&server, OriginConfig::default()), quick());
        range(&retry, "x", 0..4).await.unwrap_err();
        assert_eq!(server.requests().len(), tries_of_a_range);
        small(&retry, "x", 4).await.unwrap_err();
        assert_eq!(server.requests().len(), tries_of_a_range + tries_of_small);
    }
}

#[tokio::test]
async fn the_deadline_ends_a_read_that_never_comes() {
    let dir = folder();
    let policy = RetryPolicy {
        read_deadline: Duration::from_millis(300),
        metadata_deadline: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(40),
        connect_timeout: Duration::from_millis(40),
        ..quick()
    };
    for fault in [Fault::Stall { after_bytes: 0 }, Fault::Fail] {
        let tries = Arc::new(AtomicU64::new(0));
        let counted = tries.clone();
        let faults = Faults::new(Arc::new(LocalBackend::new(dir.path().to_owned())), move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Some(fault)
        });
        let retry = Retry::new(Arc::new(faults), policy.clone());
        for is_small in [false, true] {
            let started = Instant::now();
            let e = if is_small {
                small(&retry, "note", 10).await.unwrap_err()
            } else {
                range(&retry, "note", 0..5).await.unwrap_err()
            };
            assert!(matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::Unreachable), "{e}");
            assert!(started.elapsed() >= Duration::from_millis(290), "{fault:?}: it gave up early");
            assert!(started.elapsed() < Duration::from_secs(2), "{fault:?}: it gave up late");
        }
        assert!(tries.load(Ordering::Relaxed) >= 4, "{fault:?}: it tried again");
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let server = Server::of(objects()).await;
    server.next_answer(Answer::raw(503, &[("Retry-After", "1")], ""));
    let retry = Retry::new(http(&server, OriginConfig::default()), quick());
    let started = Instant::now();
    assert_eq!(range(&retry, "note", 0..5).await.unwrap(), "hello");
    assert!(started.elapsed() >= Duration::from_secs(1));
}
