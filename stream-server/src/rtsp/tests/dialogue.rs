use std::time::Duration;

use rtsp_types::{Method, Version};
use tokio::sync::watch;

use fs_core::backend::rtsp::NEW_VERSION_REASON;
use fs_core::backend::rtsp::record::{Kind, Record};
use fs_core::backend::rtsp::wire::{Item, header};
use fs_core::trust::head::Head;

use super::talk::{Talk, session};
use super::{PACK, numbers, shared, stage};
use crate::Connection;
use crate::stage::serve;

const URL: &str = "rtsp://h/team/app";

/// What clients that know nothing of streamfs do, in RTSP 1.0.
#[tokio::test]
async fn a_plain_client_plays_what_it_is_offered() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let mut talk = Talk::with(server.address).await;
    let options = talk.ask("OPTIONS * RTSP/1.0", &[], "").await;
    assert!(header(&options, "Public").unwrap().contains("DESCRIBE, SETUP, PLAY, PAUSE"));
    let described = talk.ask(&format!("DESCRIBE {URL}@1 RTSP/1.0"), &[("Accept", "application/sdp")], "").await;
    assert_eq!(header(&described, "Content-Type"), Some("application/sdp"));
    assert_eq!(header(&described, "Content-Base"), Some("rtsp://h/team/app@1/"));
    assert!(header(&described, "ETag").is_some() && header(&described, "Last-Modified").is_some());
    let sdp = String::from_utf8(described.body().clone()).unwrap();
    assert!(sdp.contains("s=team/app 1\r\n") && sdp.contains("a=control:streamid=0\r\n"), "{sdp}");
    let transport = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")];
    let setup = talk.ask(&format!("SETUP {URL}@1/streamid=0 RTSP/1.0"), &transport, "").await;
    assert!(header(&setup, "Transport").unwrap().starts_with("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc="));
    assert!(header(&setup, "Session").unwrap().ends_with(";timeout=60"));
    let id = session(&setup);
    let play = talk.ask(&format!("PLAY {URL}@1/ RTSP/1.0"), &[("Session", &id), ("Range", "npt=0-")], "").await;
    assert!(header(&play, "RTP-Info").unwrap().starts_with("url=rtsp://h/team/app@1/streamid=0;seq="));
    assert_eq!(header(&play, "Range"), Some("npt=0-"));
    // Without a launch set it is the package's head, and then the end.
    let head = std::fs::read(stage.content().join("team/app/head")).unwrap();
    let mut came = Vec::new();
    let bye = loop {
        let Some(Item::Frame { channel, payload }) = talk.item().await else { panic!("frames come") };
        if channel == 1 {
            break payload;
        }
        let (_, Record { head, data }) = Record::parse(payload).unwrap();
        assert_eq!((head.id, head.kind, head.position), (0, Kind::Data, came.len() as u64));
        came.extend_from_slice(&data);
    };
    assert!(came == head && bye.ends_with(&[0x81, 203, 0, 1, bye[4], bye[5], bye[6], bye[7]]));
    for line in ["PAUSE", "GET_PARAMETER", "TEARDOWN"] {
        let response = talk.ask(&format!("{line} {URL}@1/ RTSP/1.0"), &[("Session", &id)], "").await;
        assert_eq!((u16::from(response.status()), response.version()), (200, Version::V1_0), "{line}");
    }
    let gone = talk.ask(&format!("PLAY {URL}@1/ RTSP/1.0"), &[("Session", &id)], "").await;
    assert_eq!(u16::from(gone.status()), 454);
}

#[tokio::test]
async fn rtsp_2_has_what_it_demands() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let mut talk = Talk::with(server.address).await;
    let options = talk.ask("OPTIONS * RTSP/2.0", &[("Supported", "play.basic")], "").await;
    assert_eq!(header(&options, "Supported"), Some("play.basic, org.streamfs.read, org.streamfs.notices"));
    let described = talk.ask(&format!("DESCRIBE {URL} RTSP/2.0"), &[], "").await;
    let tag = header(&described, "MTag").unwrap().to_owned();
    // Three requests in one go, of which only the first names the session it makes.
    let transport = ("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1");
    talk.send(&format!("SETUP {URL} RTSP/2.0"), &[transport, ("Pipelined-Requests", "7"), ("If-Match", &tag)], "")
        .await;
    let play = talk.send(&format!("PLAY {URL} RTSP/2.0"), &[("Pipelined-Requests", "7")], "").await;
    let setup = talk.response().await;
    assert_eq!(header(&setup, "Accept-Ranges"), Some("npt"));
    assert_eq!(header(&setup, "Media-Properties"), Some("Beginning-Only, Immutable, Unlimited"));
    assert_eq!(header(&setup, "Pipelined-Requests"), Some("7"));
    let played = talk.response().await;
    assert_eq!(header(&played, "Session"), Some(session(&setup).as_str()));
    assert!(header(&played, "RTP-Info").unwrap().starts_with("url=\"rtsp://h/team/app/streamid=0\" ssrc="));
    let end = talk.request().await;
    assert_eq!((end.method(), header(&end, "Notify-Reason")), (&Method::PlayNotify, Some("end-of-stream")));
    assert_eq!(header(&end, "Request-Status"), Some(format!("cseq={play} status=200 reason=\"OK\"").as_str()));
    talk.write(format!("RTSP/2.0 200 OK\r\nCSeq: {}\r\n\r\n", header(&end, "CSeq").unwrap())).await;
    // It is there to be begun anew, from its beginning.
    let before = talk.frames.len();
    talk.ask(&format!("PLAY {URL} RTSP/2.0"), &[("Session", &session(&setup))], "").await;
    talk.request().await;
    assert_eq!(talk.frames.len(), 2 * before);
}

#[tokio::test]
async fn head_is_described_whole_unless_it_is_known() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let mut talk = Talk::with(server.address).await;
    let line = format!("DESCRIBE {URL} RTSP/2.0");
    let accept = ("Accept", "application/vnd.streamfs.head");
    let described = talk.ask(&line, &[accept], "").await;
    let head = Head::parse(&described.body().clone().into()).unwrap();
    assert!(head.iter().count() > 3);
    let tag = header(&described, "MTag").unwrap().to_owned();
    let known = talk.ask(&line, &[accept, ("If-None-Match", &tag)], "").await;
    assert_eq!((u16::from(known.status()), known.body().len()), (304, 0));
    let date = header(&described, "Last-Modified").unwrap().to_owned();
    let known = talk.ask(&format!("DESCRIBE {URL} RTSP/1.0"), &[("If-Modified-Since", &date)], "").await;
    assert_eq!(u16::from(known.status()), 304);
    stage.publish("team/app", "3", b"three");
    let changed = talk.ask(&line, &[accept, ("If-None-Match", &tag)], "").await;
    assert_eq!(u16::from(changed.status()), 200);
}

/// Requests that are refused, and how.
#[tokio::test]
async fn refusals_have_the_right_status() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let mut talk = Talk::with(server.address).await;
    let id = talk.setup(URL, &[]).await;
    let in_session = ("Session", id.as_str());
    let tcp = ("Transport", "RTP/AVP/TCP;unicast");
    let read = "READ rtsp://h/team/app RTSP/2.0";
    let many = (1..=200).map(|n| format!("{n} a 0-1")).collect::<Vec<_>>().join("\n");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a str, u16);
    let cases: Vec<Case<'_>> = vec![
        ("DESCRIBE rtsp://h/team/nothing RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/team/app@9 RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/team RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/ RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/team/app/%2e%2e/app RTSP/1.0", vec![], "", 200),
        ("DESCRIBE rtsp://h/team/app%2fhead RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/../../etc RTSP/1.0", vec![], "", 404),
        ("DESCRIBE rtsp://h/team/.app RTSP/1.0", vec![], "", 404),
        ("DESCRIBE * RTSP/1.0", vec![], "", 400),
        ("DESCRIBE rtsp://h/team/app RTSP/1.0", vec![("Accept", "text/plain")], "", 406),
        ("DESCRIBE rtsp://h/team/app RTSP/1.0", vec![("Require", "org.example.magic")], "", 551),
        ("SETUP rtsp://h/ RTSP/1.0", vec![tcp], "", 459),
        ("SETUP rtsp://h/team/nothing RTSP/1.0", vec![tcp], "", 404),
        ("SETUP rtsp://h/team/app@9 RTSP/2.0", vec![tcp], "", 404),
        ("SETUP rtsp://h/team/app RTSP/1.0", vec![], "", 461),
        ("SETUP rtsp://h/team/app RTSP/1.0", vec![("Transport", "RTP/AVP;unicast;client_port=5000-5001")], "", 461),
        ("SETUP rtsp://h/team/app RTSP/1.0", vec![tcp, ("If-Match", "\"other\"")], "", 412),
        ("SETUP rtsp://h/team/app@1 RTSP/2.0", vec![tcp, in_session], "", 459),
        ("SETUP rtsp://h/team/app RTSP/2.0", vec![tcp, in_session], "", 200),
        ("SETUP rtsp://h/team/app RTSP/2.0", vec![tcp, ("Session", "nonsense")], "", 454),
        ("PLAY rtsp://h/team/app RTSP/1.0", vec![], "", 454),
        ("PLAY rtsp://h/team/other RTSP/1.0", vec![in_session], "", 459),
        ("PLAY rtsp://h/team/app RTSP/1.0", vec![in_session, ("Range", "npt=5-")], "", 457),
        ("PLAY rtsp://h/team/app RTSP/1.0", vec![in_session, ("Range", "bytes=0-")], "", 457),
        ("PLAY rtsp://h/team/app RTSP/2.0", vec![in_session, ("Range", "bytes=0-")], "", 456),
        ("PAUSE rtsp://h/team/app RTSP/2.0", vec![in_session], "", 455),
        ("GET_PARAMETER rtsp://h/team/app RTSP/2.0", vec![in_session], "packets_received\r\n", 451),
        ("GET_PARAMETER rtsp://h/team/app RTSP/2.0", vec![("Session", "nonsense")], "", 454),
        ("GET_PARAMETER * RTSP/2.0", vec![], "", 200),
        ("SET_PARAMETER rtsp://h/team/app RTSP/2.0", vec![in_session], "a: b\r\n", 451),
        ("TEARDOWN rtsp://h/team/app RTSP/2.0", vec![("Session", "nonsense")], "", 454),
        ("RECORD rtsp://h/team/app RTSP/1.0", vec![in_session], "", 405),
        ("ANNOUNCE rtsp://h/team/app RTSP/1.0", vec![], "v=0\r\n", 405),
        ("REDIRECT rtsp://h/team/app RTSP/2.0", vec![], "", 405),
        ("DANCE rtsp://h/team/app RTSP/2.0", vec![], "", 501),
        ("OPTIONS * RTSP/3.0", vec![], "", 505),
        (read, vec![], "1 head 0-1", 454),
        (read, vec![in_session], "", 451),
        (read, vec![in_session], "1 ../head 0-1", 451),
        (read, vec![in_session], "0 head 0-1", 451),
        (read, vec![in_session], "1 head 0-1\n1 head 0-1", 451),
        (read, vec![in_session, ("Content-Type", "text/html")], "1 head 0-1", 415),
        ("READ rtsp://h/team/other RTSP/2.0", vec![in_session], "1 head 0-1", 459),
        ("CREDIT rtsp://h/team/app RTSP/2.0", vec![in_session], "1 x", 451),
        ("CANCEL rtsp://h/team/app RTSP/2.0", vec![in_session], "77", 200),
        (read, vec![in_session], &many, 200),
    ];
    for (line, headers, body, status) in cases {
        let response = talk.ask(line, &headers, body).await;
        assert_eq!(u16::from(response.status()), status, "{line} {headers:?} {body:.40}");
        match status {
            405 => assert!(header(&response, "Allow").unwrap().contains("READ")),
            501 => assert!(header(&response, "Public").unwrap().contains("READ")),
            551 => assert_eq!(header(&response, "Unsupported"), Some("org.example.magic")),
            _ => {}
        }
    }
}

/// What another connection's session, or what has run out of places, gets.
#[tokio::test]
async fn sessions_belong_to_their_connection() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let (mut one, mut other) = (Talk::with(server.address).await, Talk::with(server.address).await);
    let id = one.setup(URL, &[]).await;
    let stolen = other.ask(&format!("PLAY {URL} RTSP/2.0"), &[("Session", &id)], "").await;
    assert_eq!(u16::from(stolen.status()), 454);
    let mut refused = 0;
    for _ in 0..70 {
        let setup = one.ask(&format!("SETUP {URL} RTSP/2.0"), &[("Transport", "RTP/AVP/TCP")], "").await;
        refused += u32::from(u16::from(setup.status()) == 453);
    }
    assert_eq!(refused, 7, "64 sessions fit on a connection");
}

/// What is no RTSP, and what is too much of it, is told so and left.
#[tokio::test]
async fn hostile_bytes_end_the_connection_and_nothing_else() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let start = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n";
    for (bytes, status) in [
        (format!("{start}X: {}\r\n\r\n", "x".repeat(100 << 10)).into_bytes(), 400),
        (format!("{start}Content-Length: 99999999\r\n\r\n").into_bytes(), 413),
        (format!("{start}Content-Length: 4294967296\r\n\r\n").into_bytes(), 400),
        (format!("{start}Content-Length: -1\r\n\r\n").into_bytes(), 400),
        (format!("{start}no colon\r\n\r\n").into_bytes(), 400),
        ([start.as_bytes(), b"\r\n\0\xff\xfe\r\n\r\n"].concat(), 400),
        ([start.as_bytes(), b"\r\n$\0\xff\xff"].concat(), 400),
    ] {
        let mut talk = Talk::with(server.address).await;
        talk.write(&bytes).await;
        let mut statuses = Vec::new();
        while let Some(item) = talk.item().await {
            let Item::Response(response) = item else { panic!("{item:?}") };
            statuses.push(u16::from(response.status()));
        }
        assert_eq!(statuses.last(), Some(&status), "{:?}", String::from_utf8_lossy(&bytes[..60.min(bytes.len())]));
    }
    let mut talk = Talk::with(server.address).await;
    assert_eq!(u16::from(talk.ask("OPTIONS * RTSP/1.0", &[], "").await.status()), 200);
}

#[tokio::test]
async fn new_versions_are_told_to_who_wants_to_know() {
    let stage = stage(10);
    let server = serve(&stage.settings()).await;
    let mut newer = Talk::with(server.address).await;
    newer.setup(URL, &[("Supported", "org.streamfs.read, org.streamfs.notices")]).await;
    // Another session of the same connection, of which it does not want to know.
    newer.setup(&format!("{URL}@1"), &[]).await;
    let mut older = Talk::with(server.address).await;
    let wants = [("Transport", "RTP/AVP/TCP"), ("Supported", "org.streamfs.notices")];
    older.ask(&format!("SETUP {URL} RTSP/1.0"), &wants, "").await;
    stage.publish("team/app", "3", b"three");
    let told = newer.request().await;
    assert_eq!((told.method(), header(&told, "Notify-Reason")), (&Method::PlayNotify, Some(NEW_VERSION_REASON)));
    assert_eq!(told.request_uri().unwrap().as_str(), URL);
    let told = older.request().await;
    assert_eq!((told.method(), header(&told, "Content-Type")), (&Method::Announce, Some("application/sdp")));
    assert!(told.body().starts_with(b"v=0\r\n"));
    // Answers to it are taken, and the conversation goes on.
    newer.write("RTSP/2.0 200 OK\r\nCSeq: 1\r\n\r\n").await;
    assert_eq!(u16::from(newer.ask("OPTIONS * RTSP/2.0", &[], "").await.status()), 200);
    assert!(newer.asked.iter().all(|told| told.request_uri().unwrap().as_str() == URL), "{:?}", newer.asked);
}

#[tokio::test]
async fn a_server_that_ends_sends_its_clients_away_and_finishes() {
    let stage = stage(40 << 20);
    let mut server = serve(&stage.settings()).await;
    let mut talk = Talk::with(server.address).await;
    let id = talk.setup(URL, &[]).await;
    let length = 40usize << 20;
    talk.ask(&format!("READ {URL} RTSP/2.0"), &[("Session", &id)], &format!("5 {PACK} 0-{}", length - 1)).await;
    server.end.take().unwrap().send(()).unwrap();
    let redirect = talk.request().await;
    assert_eq!((redirect.method(), header(&redirect, "Location")), (&Method::Redirect, Some(URL)));
    let refused = talk.ask(&format!("SETUP {URL} RTSP/2.0"), &[("Transport", "RTP/AVP/TCP")], "").await;
    assert_eq!((u16::from(refused.status()), header(&refused, "Retry-After")), (503, Some("1")));
    let answer = talk.answer(5).await;
    assert!(answer.bytes == numbers(length));
    talk.closed().await;
    server.task.await.unwrap().unwrap();
}

/// A conversation without a network, so that hours pass in no time.
fn quiet_talk(stage: &crate::stage::Stage) -> (Talk<tokio::io::DuplexStream>, watch::Sender<bool>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (sender, ending) = watch::channel(false);
    let peer: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    let shared = shared(stage);
    let presence = shared.clients.enter(peer.ip(), crate::metrics::Protocol::Rtsp);
    let connection = Connection { peer, encrypted: false, certificate: None, presence, ending };
    tokio::spawn(super::super::serve(far, connection, shared));
    (Talk::over(near), sender)
}

#[tokio::test(start_paused = true)]
async fn who_is_silent_for_too_long_is_left() {
    let stage = stage(10);
    let began = tokio::time::Instant::now();
    // Nothing at all, half a message, a message without a session.
    for bytes in ["", "OPTIONS * RTSP/1.0\r\nCSeq: 1", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"] {
        let (mut talk, _server) = quiet_talk(&stage);
        talk.write(bytes).await;
        talk.closed().await;
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(60)..Duration::from_secs(100)).contains(&took), "{took:?}");

    let (mut talk, _server) = quiet_talk(&stage);
    let id = talk.setup(URL, &[]).await;
    let began = tokio::time::Instant::now();
    // Kept alive for a while, as the timeout that was told allows.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(59)).await;
        let alive = talk.ask("GET_PARAMETER * RTSP/2.0", &[("Session", &id)], "").await;
        assert_eq!(u16::from(alive.status()), 200);
    }
    let end = talk.request().await;
    assert_eq!((end.method(), header(&end, "Terminate-Reason")), (&Method::Teardown, Some("Session-Timeout")));
    talk.closed().await;
    let took = began.elapsed();
    assert!((Duration::from_secs(360)..Duration::from_secs(400)).contains(&took), "{took:?}");
}

/// A request that waits for credit is no sign of life.
#[tokio::test(start_paused = true)]
async fn who_asks_and_takes_nothing_is_left_too() {
    let stage = stage(100_000);
    let (mut talk, _server) = quiet_talk(&stage);
    let id = talk.setup(URL, &[]).await;
    let began = tokio::time::Instant::now();
    talk.ask(&format!("READ {URL} RTSP/2.0"), &[("Session", &id)], &format!("5 {PACK} 0- window=10")).await;
    talk.closed().await;
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
}
