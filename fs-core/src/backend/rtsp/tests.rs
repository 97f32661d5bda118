//! The client against a server that does as documented, and against ones that do not. `stream-server` has the tests of both
//! sides together.

mod server;

use std::sync::atomic::AtomicUsize;

use futures::TryStreamExt;
use rtsp_types::{Method, Version};

use self::server::{Reaction, Server, reads_of, record, status};
use super::connection::WINDOW_BYTES;
use super::record::Kind;
use super::wire::{Outgoing, cseq};
use super::*;
use crate::backend::SmallRead;
use crate::backend::recording::Recording;
use crate::backend::retry::Retry;
use crate::backend::swappable::Swappable;
use crate::config::RetryPolicy;
use crate::error::ErrorKind;

/// 1.5 MiB in which every position can be told.
fn content() -> Bytes {
    (0..400_000u32).flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>().into()
}

fn objects() -> Vec<(&'static str, Bytes)> {
    vec![("a/b.pack", content()), ("note", "hello".into()), ("empty", Bytes::new())]
}

fn object(path: &str) -> ObjectPath {
    ObjectPath::new(path).unwrap()
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        read_deadline: Duration::from_secs(5),
        metadata_deadline: Duration::from_secs(5),
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(500),
        first_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
    }
}

fn backend_with(server: &Server, config: OriginConfig) -> RtspBackend {
    let config = OriginConfig { retry: quick(), ..config };
    RtspBackend::new(&server.root(), &"p".parse().unwrap(), &config).unwrap()
}

fn backend(server: &Server) -> RtspBackend {
    backend_with(server, OriginConfig::default())
}

async fn range(backend: &dyn Backend, path: &str, range: Range<u64>) -> Result<Bytes> {
    let length = (range.end - range.start) as usize;
    let stream = backend.read_range(&object(path), range, ReadOptions::default()).await?;
    let all = stream.try_collect::<Vec<_>>().await?.concat();
    assert_eq!(all.len(), length);
    Ok(all.into())
}

async fn small(backend: &dyn Backend, path: &str, limit: u64) -> Result<(Bytes, Option<Validator>)> {
    match backend.read_small(&object(path), limit, None).await? {
        SmallRead::Object { bytes, validator } => Ok((bytes, validator)),
        SmallRead::NotModified => panic!("not modified since nothing"),
    }
}

fn part(of: &Bytes, range: Range<u64>) -> Bytes {
    of.slice(range.start as usize..range.end as usize)
}

#[tokio::test]
async fn it_does_what_every_backend_must() {
    let server = Server::of(objects()).await;
    let (all, b) = (content(), backend(&server));
    let end = all.len() as u64;
    for r in [0..1, 0..end, 1..2, end - 1..end, 100_000..1_300_001, 65_502..65_504] {
        assert_eq!(range(&b, "a/b.pack", r.clone()).await.unwrap(), part(&all, r.clone()), "{r:?}");
    }
    for r in [end - 1..end + 1, end..end + 1, end + 10..end + 20] {
        let e = range(&b, "a/b.pack", r.clone()).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadAnswer, "{r:?}: {e}");
        assert!(e.to_string().contains("shorter than published: 1600000 bytes") && e.to_string().contains("a/b.pack"));
    }
    let empty = b.read_range(&object("note"), 3..3, ReadOptions::default()).await.err().unwrap();
    assert_eq!(empty.kind(), ErrorKind::InvalidInput);
    for missing in ["nothing", "a/nothing"] {
        assert_eq!(range(&b, missing, 0..1).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
        assert_eq!(small(&b, missing, 10).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
        assert_eq!(b.stat(&object(missing)).await.unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
    let (bytes, validator) = small(&b, "note", 5).await.unwrap();
    assert_eq!(bytes, "hello");
    let state = b.stat(&object("note")).await.unwrap();
    assert_eq!((state.length, state.validator.as_ref()), (5, validator.as_ref()));
    let validator = validator.unwrap();
    assert!(matches!(b.read_small(&object("note"), 5, Some(&validator)).await.unwrap(), SmallRead::NotModified));
    let foreign = Validator("etag \"x\"".to_owned());
    assert!(matches!(b.read_small(&object("note"), 5, Some(&foreign)).await.unwrap(), SmallRead::Object { .. }));
    assert_eq!(small(&b, "note", 4).await.unwrap_err().kind(), ErrorKind::BadAnswer);
    server.put("note", "other words");
    match b.read_small(&object("note"), 100, Some(&validator)).await.unwrap() {
        SmallRead::Object { bytes, .. } => assert_eq!(bytes, "other words"),
        SmallRead::NotModified => panic!("it was modified"),
    }
    assert_eq!(small(&b, "empty", 0).await.unwrap().0, "");
    assert_eq!(server.connections(), 1, "one connection for everything");
    assert_eq!(server.requests().iter().filter(|r| r.starts_with("SETUP")).count(), 1);
}

#[tokio::test]
async fn the_beginning_of_an_object_is_handed_on_as_it_comes() {
    let server = Server::of(objects()).await;
    let b = backend(&server);
    let is_enough = |front: &[u8]| front.len() >= 100_000;
    let read = b.read_beginning(&object("a/b.pack"), 1 << 21, None, Enough::when(&is_enough)).await.unwrap();
    let Beginning::Object { front, rest, .. } = read else { panic!("it is there") };
    assert!((100_000..400_000).contains(&front.len()), "{}", front.len());
    let rest = rest.try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!([&front[..], &rest].concat(), content());
    let first = Enough::when(&|_| false).of_first(1_000);
    let read = b.read_beginning(&object("a/b.pack"), 1 << 21, None, first).await.unwrap();
    let Beginning::Object { front, rest, .. } = read else { panic!("it is there") };
    assert_eq!(front, part(&content(), 0..1_000));
    assert!(rest.try_collect::<Vec<_>>().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_new_connection_costs_no_round_trip_for_its_session() {
    let server = Server::of(objects()).await;
    // No answer comes until the READ is here, too.
    let mut setup = None;
    server.hook(move |request| {
        if *request.method() == Method::Setup {
            setup = Some(request.clone());
            return Some(Reaction::Ignore);
        }
        let setup = setup.take()?;
        let mut out = Outgoing::response(Version::V2_0, 200, cseq(&setup))
            .header("Session", "s")
            .header("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")
            .empty()
            .to_vec();
        let asked = reads_of(request).expect("a READ stands behind SETUP");
        out.extend_from_slice(&Outgoing::response(Version::V2_0, 200, cseq(request)).empty());
        record(&mut out, asked[0].id, Kind::Data, true, 200, 1, b"ello");
        Some(Reaction::Send(out))
    });
    assert_eq!(range(&backend(&server), "note", 1..5).await.unwrap(), "ello");
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.contains("Pipelined-Requests: 1")), "{requests:?}");
    assert!(requests[0].contains("Require: org.streamfs.read") && requests[0].contains("User-Agent: streamfs/"));
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let server = Server::of(objects()).await;
    let b = backend(&server);
    range(&b, "note", 0..1).await.unwrap();
    let mut kept: Vec<u8> = Vec::new();
    let mut count = 0;
    server.hook(move |request| {
        let mut out = Outgoing::response(Version::V2_0, 200, cseq(request)).empty().to_vec();
        for asked in reads_of(request)? {
            let Part::Exactly(range) = &asked.part else { panic!("{asked}") };
            let mut one = Vec::new();
            record(&mut one, asked.id, Kind::Data, true, 200, range.start, &part(&content(), range.clone()));
            // The newest first.
            kept = [one, std::mem::take(&mut kept)].concat();
            count += 1;
        }
        if count == 8 {
            out.append(&mut kept);
        }
        Some(Reaction::Send(out))
    });
    let ranges = (0..8u64).map(|n| n * 1_000..n * 1_000 + 10 + n);
    let b = &b;
    let reads = ranges.map(|r| async move { (range(b, "a/b.pack", r.clone()).await.unwrap(), r) });
    for (bytes, r) in futures::future::join_all(reads).await {
        assert_eq!(bytes, part(&content(), r));
    }
}

#[tokio::test]
async fn what_is_waited_for_is_said_to_be_urgent() {
    let server = Server::of(objects()).await;
    let b = backend(&server);
    for waited_for in [false, true] {
        let options = ReadOptions { waited_for, ..ReadOptions::default() };
        b.read_range(&object("note"), 0..2, options).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    }
    let requests = server.requests();
    let reads: Vec<&str> =
        requests.iter().filter(|r| r.starts_with("READ")).map(|r| r.lines().last().unwrap()).collect();
    assert!(reads[0].ends_with("note 0-1") && reads[1].ends_with("note 0-1 urgent"), "{reads:?}");
}

#[tokio::test]
async fn a_long_range_comes_window_by_window() {
    let long: Bytes = vec![5; WINDOW_BYTES as usize * 2 + 12_345].into();
    let server = Server::of(vec![("long", long.clone()), ("note", "hello".into())]).await;
    let b = backend(&server);
    let mut stream = b.read_range(&object("long"), 0..long.len() as u64, ReadOptions::default()).await.unwrap();
    // Nobody takes it, so no more than the window comes; what else is asked for is not held up by it.
    assert_eq!(range(&b, "note", 0..5).await.unwrap(), "hello");
    assert!(!server.requests().iter().any(|r| r.starts_with("CREDIT")));
    let mut came = 0;
    while let Some(piece) = stream.try_next().await.unwrap() {
        assert!(piece.iter().all(|b| *b == 5));
        came += piece.len();
    }
    assert_eq!(came, long.len());
    let credits = server.requests().iter().filter(|r| r.starts_with("CREDIT")).count();
    // One for each quarter of the window, or one for several where the writing task had to wait.
    assert!((1..=9).contains(&credits), "{credits}");
    // What fits into the window needs no credit.
    range(&b, "long", 0..WINDOW_BYTES).await.unwrap();
    // The last credit of the range before may come behind it.
    let requests = server.requests();
    let last = requests.iter().rfind(|request| request.starts_with("READ")).unwrap();
    assert!(!last.contains("window"), "{last}");
}

#[tokio::test]
async fn who_loses_interest_cancels() {
    let long: Bytes = vec![5; WINDOW_BYTES as usize * 2].into();
    let server = Server::of(vec![("long", long)]).await;
    let b = backend(&server);
    let stream = b.read_range(&object("long"), 0..WINDOW_BYTES * 2, ReadOptions::default()).await.unwrap();
    drop(stream);
    server.until("CANCEL", 1).await;
    // One that has come whole is not cancelled.
    range(&b, "long", 0..10).await.unwrap();
    range(&b, "long", 0..10).await.unwrap();
    assert_eq!(server.requests().iter().filter(|r| r.starts_with("CANCEL")).count(), 1);
}

#[tokio::test]
async fn a_lost_connection_is_opened_anew_and_the_read_goes_on() {
    let server = Server::of(objects()).await;
    let breaks = AtomicUsize::new(0);
    server.hook(move |request| {
        let asked = reads_of(request)?.remove(0);
        let Part::Exactly(range) = asked.part else { return None };
        if breaks.fetch_add(1, Ordering::Relaxed) >= 3 {
            return None;
        }
        let mut out = Outgoing::response(Version::V2_0, 200, cseq(request)).empty().to_vec();
        record(
            &mut out,
            asked.id,
            Kind::Data,
            false,
            200,
            range.start,
            &part(&content(), range.start..range.start + 100),
        );
        Some(Reaction::Close(out))
    });
    let recording = Recording::new(Arc::new(backend(&server)));
    let log = recording.log();
    let retry = Retry::new(Arc::new(recording), quick());
    assert_eq!(range(&retry, "a/b.pack", 7..10_007).await.unwrap(), part(&content(), 7..10_007));
    let starts: Vec<u64> = log.requests().iter().map(|r| r.range.clone().unwrap().start).collect();
    assert_eq!(starts, [7, 107, 207, 307]);
    assert_eq!(server.connections(), 4);
}

/// Every way in which a session can be refused, and what is said of it.
#[tokio::test]
async fn refused_sessions_are_named() {
    const NONE: &[(&str, &str)] = &[];
    for (code, headers, kind, words) in [
        (401, NONE, ErrorKind::Denied, "401"),
        (403, &[], ErrorKind::Denied, "403"),
        (404, &[], ErrorKind::NotFound, "does not exist"),
        (461, &[], ErrorKind::BadAnswer, "461"),
        (500, &[], ErrorKind::Unreachable, "500"),
        (503, &[("Retry-After", "7")], ErrorKind::Unreachable, "503"),
        (551, &[("Unsupported", READ_FEATURE)], ErrorKind::BadAnswer, "docs/RTSP.md"),
    ] {
        let server = Server::of(objects()).await;
        server.hook(move |request| (*request.method() == Method::Setup).then(|| status(request, code, headers)));
        let e = range(&backend(&server), "note", 0..4).await.unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(words), "{code}: {e}");
        assert_eq!(matches!(e, Error::Overloaded { retry_after, .. } if retry_after.as_secs() == 7), code == 503);
    }
}

#[tokio::test]
async fn refused_reads_are_named() {
    for (code, kind) in [
        (401, ErrorKind::Denied),
        (404, ErrorKind::NotFound),
        (451, ErrorKind::BadAnswer),
        (453, ErrorKind::Unreachable),
        (503, ErrorKind::Unreachable),
    ] {
        let server = Server::of(objects()).await;
        let mut refusals = 1;
        server.hook(move |request| {
            reads_of(request)?;
            refusals -= 1;
            (refusals == 0).then(|| status(request, code, &[]))
        });
        let b = backend(&server);
        assert_eq!(range(&b, "note", 0..4).await.unwrap_err().kind(), kind, "{code}");
        assert_eq!(range(&b, "note", 0..4).await.unwrap(), "hell");
        // Who is not believed any more says who it is on a new connection; else only the request was refused.
        assert_eq!(server.connections(), if code == 401 { 2 } else { 1 }, "{code}");
    }
    // A session that the server has forgotten is made anew.
    let server = Server::of(objects()).await;
    let mut first = true;
    server.hook(move |request| {
        reads_of(request)?;
        std::mem::take(&mut first).then(|| status(request, 454, &[]))
    });
    let retry = Retry::new(Arc::new(backend(&server)), quick());
    assert_eq!(range(&retry, "note", 0..4).await.unwrap(), "hell");
    assert_eq!(server.connections(), 2);
}

/// Records that answer no question as it was asked.
#[tokio::test]
async fn misbehaving_servers_are_named() {
    type Make = fn(&mut Vec<u8>, u32);
    let cases: Vec<(&str, Make, ErrorKind, &str)> = vec![
        ("other bytes", |o, id| record(o, id, Kind::Data, true, 200, 1, b"123"), ErrorKind::BadAnswer, "were due"),
        ("too few", |o, id| record(o, id, Kind::Data, true, 200, 0, b"123"), ErrorKind::Unreachable, "3 of 4"),
        ("too many", |o, id| record(o, id, Kind::Data, true, 200, 0, b"12345"), ErrorKind::BadAnswer, "more than"),
        ("a state", |o, id| record(o, id, Kind::State, true, 200, 0, &[0; 16]), ErrorKind::BadAnswer, "amid"),
        ("no state", |o, id| record(o, id, Kind::State, true, 200, 0, b"x"), ErrorKind::BadAnswer, "cut off"),
        (
            "failure",
            |o, id| record(o, id, Kind::Failure, false, 500, 0, b"disk\x07 on fire"),
            ErrorKind::Unreachable,
            "disk on",
        ),
        ("no record", |o, _| o.extend_from_slice(b"$\0\0\x04abcd"), ErrorKind::BadAnswer, "packet"),
        ("no RTSP", |o, _| o.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n"), ErrorKind::BadAnswer, "streamfs server"),
        ("nothing", |_, _| {}, ErrorKind::TimedOut, "did not finish"),
        ("other request's", |o, id| record(o, id + 1, Kind::Data, true, 200, 0, b"1234"), ErrorKind::TimedOut, ""),
        ("other channel", |o, _| o.extend_from_slice(b"$\x05\0\x01a"), ErrorKind::TimedOut, ""),
    ];
    for (name, make, kind, words) in cases {
        let server = Server::of(objects()).await;
        server.hook(move |request| {
            let asked = reads_of(request)?;
            let mut out = Outgoing::response(Version::V2_0, 200, cseq(request)).empty().to_vec();
            make(&mut out, asked[0].id);
            Some(Reaction::Send(out))
        });
        let e = range(&backend(&server), "note", 0..4).await.unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(words), "{name}: {e}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_left_for_a_new_connection() {
    let server = Server::of(objects()).await;
    let mut hangs = 1;
    server.hook(move |request| {
        reads_of(request)?;
        hangs -= 1;
        (hangs >= 0).then_some(Reaction::Ignore)
    });
    let retry = Retry::new(Arc::new(backend(&server)), quick());
    assert_eq!(range(&retry, "note", 0..4).await.unwrap(), "hell");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = Url::parse(&format!("rtsp://{}/", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let backend = RtspBackend::new(&root, &"p".parse().unwrap(), &OriginConfig::default()).unwrap();
    let e = small(&backend, "x", 10).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unreachable && e.to_string().to_lowercase().contains("refused"), "{e}");
}

fn bearer() -> OriginConfig {
    OriginConfig { credentials: Credentials::Bearer("s3cret".into()), ..OriginConfig::default() }
}

#[tokio::test]
async fn credentials_go_with_every_request() {
    let server = Server::of(objects()).await;
    range(&backend_with(&server, bearer()), "note", 0..4).await.unwrap();
    let requests = server.requests();
    assert!(requests.len() == 2 && requests.iter().all(|r| r.contains("Authorization: Bearer s3cret")), "{requests:?}");
}

#[test]
fn credentials_do_not_cross_the_network_in_clear() {
    let new =
        |url: &str, config: &OriginConfig| RtspBackend::new(&Url::parse(url).unwrap(), &"p".parse().unwrap(), config);
    let e = new("rtsp://apps.example/c/", &bearer()).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.to_string().contains("rtsps"), "{e}");
    assert!(!e.to_string().contains("s3cret"));
    new("rtsp://[::1]:8554/", &bearer()).unwrap();
    new("rtsp://127.0.0.2/", &bearer()).unwrap();
    new("rtsp://apps.example/c/", &OriginConfig { allow_plaintext_credentials: true, ..bearer() }).unwrap();
    let broken = OriginConfig { credentials: Credentials::Bearer("s3cret\nx".into()), ..OriginConfig::default() };
    assert!(!new("rtsps://apps.example/", &broken).unwrap_err().to_string().contains("s3cret"));
}

#[tokio::test]
async fn versions_in_use_have_sessions_on_every_connection() {
    let server = Server::of(objects()).await;
    // As an agent has it: a backend that may be exchanged.
    let b = Swappable::new(Arc::new(backend(&server)));
    let hold = b.hold(&"1.0".parse().unwrap());
    let again = b.hold(&"1.0".parse().unwrap());
    assert_eq!(server.connections(), 0, "holding a version connects to nothing");
    range(&b, "note", 0..4).await.unwrap();
    server.until(&format!("SETUP {}p@1.0", server.root()), 1).await;
    let other = b.hold(&"2.0".parse().unwrap());
    server.until(&format!("SETUP {}p@2.0", server.root()), 1).await;
    server.hang_up();
    let retry = Retry::new(Arc::new(b), quick());
    range(&retry, "note", 0..4).await.unwrap();
    for version in ["1.0", "2.0"] {
        server.until(&format!("SETUP {}p@{version}", server.root()), 2).await;
    }
    // The answers to them were taken when a later one was.
    range(&retry, "note", 0..4).await.unwrap();
    drop(again);
    drop(other);
    server.until("TEARDOWN", 1).await;
    drop(hold);
    server.until("TEARDOWN", 2).await;
    let torn: Vec<String> = server.requests().into_iter().filter(|r| r.starts_with("TEARDOWN")).collect();
    assert!(torn[0].contains("Session: session-p@2.0") && torn[1].contains("Session: session-p@1.0"), "{torn:?}");
}

fn from_server(method: &str, headers: &[(&str, &str)]) -> Bytes {
    let request = Outgoing::request(method, "rtsp://127.0.0.1/p", Version::V2_0, 77).header("Session", "session-p");
    headers.iter().fold(request, |request, (name, value)| request.header(name, value)).empty()
}

#[tokio::test]
async fn news_is_heard_and_answered() {
    let server = Server::of(objects()).await;
    let b = backend(&server);
    let mut changes = b.changes().expect("it is told of new versions");
    server.until("SETUP", 1).await;
    assert!(server.requests()[0].contains("Supported: org.streamfs.read, org.streamfs.notices"));
    server.say(from_server("PLAY_NOTIFY", &[("Notify-Reason", NEW_VERSION_REASON)]));
    changes.changed().await.unwrap();
    server.until("Response", 1).await;
    let answer = server.requests().pop().unwrap();
    assert!(answer.contains("Ok") && answer.contains("77"), "{answer}");
    for (method, reason, code) in
        [("PLAY_NOTIFY", "end-of-stream", "NotificationReasonUnknown"), ("RECORD", "", "NotImpl")]
    {
        let before = server.requests().len();
        server.say(from_server(method, &[("Notify-Reason", reason)]));
        server.until("Response", before).await;
        assert!(server.requests().pop().unwrap().contains(code), "{method}");
    }
    assert!(!changes.has_changed().unwrap());
    // What was told while there was no connection would be missed.
    server.hang_up();
    changes.changed().await.unwrap();
    server.until("SETUP", 2).await;
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn who_is_sent_away_finishes_and_comes_back_elsewhere() {
    let long: Bytes = vec![5; WINDOW_BYTES as usize * 2].into();
    let server = Server::of(vec![("long", long), ("note", "hello".into())]).await;
    let b = backend(&server);
    let mut stream = b.read_range(&object("long"), 0..WINDOW_BYTES * 2, ReadOptions::default()).await.unwrap();
    server.say(from_server("REDIRECT", &[("Location", "rtsp://127.0.0.1/p")]));
    server.until("Response", 1).await;
    assert_eq!(range(&b, "note", 0..5).await.unwrap(), "hello");
    assert_eq!(server.connections(), 2);
    let mut came = 0;
    while let Some(piece) = stream.try_next().await.unwrap() {
        came += piece.len() as u64;
    }
    assert_eq!(came, WINDOW_BYTES * 2, "what was under way is finished on the old one");
}

#[tokio::test]
async fn an_ended_session_ends_what_was_read_in_it() {
    let server = Server::of(objects()).await;
    server.hook(|request| reads_of(request).map(|_| Reaction::Ignore));
    let b = backend(&server);
    let (read, ()) = tokio::join!(range(&b, "note", 0..4), async {
        server.until("READ", 1).await;
        server.say(from_server("TEARDOWN", &[("Terminate-Reason", "Session-Timeout")]));
    });
    let e = read.unwrap_err();
    assert!(e.kind() == ErrorKind::Unreachable && e.to_string().contains("ended the session"), "{e}");
}

#[tokio::test]
async fn an_idle_session_is_kept_alive() {
    let server = Server::of(objects()).await;
    server.hook(|request| {
        let transport = ("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1");
        (*request.method() == Method::Setup).then(|| status(request, 200, &[("Session", "s; timeout=1"), transport]))
    });
    let b = backend(&server);
    range(&b, "note", 0..4).await.unwrap();
    server.until("GET_PARAMETER", 2).await;
    assert!(server.requests().last().unwrap().contains("Session: s\n"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn many_who_find_the_server_away_try_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = Url::parse(&format!("rtsps://{}/", listener.local_addr().unwrap())).unwrap();
    // It accepts and never says a word of TLS.
    let config = OriginConfig { retry: quick(), ..OriginConfig::default() };
    let backend = RtspBackend::new(&root, &"p".parse().unwrap(), &config).unwrap();
    let began = Instant::now();
    let reads = (0..20).map(|_| range(&backend, "x", 0..1));
    for read in futures::future::join_all(reads).await {
        let e = read.unwrap_err();
        assert!(e.kind() == ErrorKind::Unreachable && e.to_string().contains("longer than 500 ms"), "{e}");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
