//! Too much of everything: heads, headers, bodies, frames, and requests that nobody waits for.

use std::io::Write as _;

use super::wire::{FAREWELL, Http2, Talk, connect, field, frame, get_fields, rest, status, told};
use super::{LARGE, Siege};

/// So much is sent to see that the server does not collect it.
const FLOOD_BYTES: usize = 64 << 20;
/// What the server may have in memory after it: far less than the flood, some times what it has when it does nothing.
const MEMORY_BYTES: u64 = 48 << 20;

#[test]
fn more_than_the_limits_is_refused_in_http1() {
    let siege = Siege::begin(&[]);
    let get = "GET /app/head HTTP/1.1\r\nHost: x\r\n";
    let post = "POST /app/launches HTTP/1.1\r\nHost: x\r\n";
    let many: String = (0..100).map(|n| format!("X-{n}: a\r\n")).collect();
    for (name, words, statuses) in [
        ("a long value", format!("{get}X: {}\r\n\r\n", "a".repeat(20_000)), &[431][..]),
        ("a long name", format!("{get}{}: a\r\n\r\n", "a".repeat(20_000)), &[431]),
        (
            "a long path",
            format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "a/".repeat(4000)),
            &[404, 414],
        ),
        ("a longer path", format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)), &[400, 414, 431]),
        ("many headers", format!("{get}{many}\r\n"), &[431]),
        ("a body that will never be here", format!("{post}Content-Length: 1000000000000\r\n\r\n{{"), &[400, 413]),
        ("a long body", format!("{post}Content-Length: 1000000\r\n\r\n{}", " ".repeat(1_000_000)), &[400, 413]),
        (
            "a long piece of a body",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"),
            &[400, 413],
        ),
        ("a length twice", format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\n  "), &[400]),
        ("no length", format!("{post}Content-Length: -1\r\n\r\n"), &[400]),
        (
            "two kinds of length",
            format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        (
            "many ranges",
            format!("{get}Connection: close\r\nRange: bytes=0-0{}\r\n\r\n", ",0-0".repeat(3000)),
            &[200, 416],
        ),
        (
            "a method of its own",
            format!("{} /app/head HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "A".repeat(3000)),
            &[405],
        ),
        ("nonsense", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), &[400]),
    ] {
        let answer = told(siege.address(), &words);
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
        // Whoever goes on talking may be cut off before the words arrive.
        let is_cut = answer.is_empty() && words.len() > 50_000;
        assert!(is_cut || statuses.contains(&status(&answer)), "{name}: {shown}");
    }
    // A head, a body and a first line without an end.
    for (first, more) in [
        (get.to_owned(), "X: a\r\n"),
        ("GET /".to_owned(), "aaaa"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n"), "4\r\n    \r\n"),
        (format!("{get}Content-Length: 100000000\r\n\r\n"), "aaaa"),
    ] {
        let mut stream = connect(siege.address());
        stream.write_all(first.as_bytes()).expect("the server reads the beginning");
        let piece = more.repeat((1 << 20) / more.len());
        let taken = (0..FLOOD_BYTES >> 20).take_while(|_| stream.write_all(piece.as_bytes()).is_ok()).count();
        assert!(taken < FLOOD_BYTES >> 20, "{more:?}: the server read all of it");
        rest(&mut stream);
    }
    assert!(siege.server.most_memory() < MEMORY_BYTES, "{} bytes", siege.server.most_memory());
    siege.survived();
}

#[test]
fn more_than_the_limits_is_refused_in_http2() {
    let siege = Siege::begin(&[]);
    let at = siege.address();
    // A head of more than 16 KiB, in one frame's length and in many frames.
    let mut http2 = Http2::connect(at, 1 << 20);
    let mut fields = get_fields(b"/app/head");
    fields.extend(field(b"x", &[b'a'; 16_000]));
    fields.extend(field(b"y", &[b'a'; 16_000]));
    let (first, second) = fields.split_at(16_000);
    assert!(http2.send(frame::HEADERS, frame::END_STREAM, 1, first));
    assert!(http2.send(frame::CONTINUATION, 0, 1, &second[..16_000]));
    http2.send(frame::CONTINUATION, frame::END_HEADERS, 1, &second[16_000..]);
    assert_ne!(http2.answer(1).0, 200, "a head of 32 KB");
    drop(http2);
    // A head that has no end.
    let mut http2 = Http2::connect(at, 1 << 20);
    assert!(http2.send(frame::HEADERS, frame::END_STREAM, 1, &get_fields(b"/app/head")));
    let piece = field(b"x", &[b'a'; 8_000]);
    let taken = (0..FLOOD_BYTES / 8_000).take_while(|_| http2.send(frame::CONTINUATION, 0, 1, &piece)).count();
    assert!(taken < FLOOD_BYTES / 8_000, "the server read all of it");
    drop(http2);
    // Empty pieces of a head cost nothing to send.
    let mut http2 = Http2::connect(at, 1 << 20);
    assert!(http2.send(frame::HEADERS, frame::END_STREAM, 1, &get_fields(b"/app/head")));
    let taken = (0..1_000_000).take_while(|_| http2.send(frame::CONTINUATION, 0, 1, b"")).count();
    assert!(taken < 1_000_000, "the server read all of it");
    drop(http2);
    // A frame that is longer than what the server said that it takes.
    let mut http2 = Http2::connect(at, 1 << 20);
    http2.send(frame::DATA, 0, 1, &[0; 100_000]);
    ends_with_goaway(&mut http2, "a long frame");
    drop(http2);
    // Requests that are taken back at once.
    let mut http2 = Http2::connect(at, 1 << 20);
    let fields = get_fields(format!("/app/{LARGE}").as_bytes());
    let reset = |http2: &mut Http2, id| {
        http2.send(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, id, &fields)
            && http2.send(frame::RST_STREAM, 0, id, &8u32.to_be_bytes())
    };
    (0..20_000).take_while(|n| reset(&mut http2, n * 2 + 1)).count();
    drop(http2);
    // Questions whose answers are not taken.
    let mut http2 = Http2::connect(at, 1 << 20);
    http2.stream.set_write_timeout(Some(std::time::Duration::from_secs(1))).expect("a socket");
    (0..FLOOD_BYTES / 17).take_while(|_| http2.send(frame::PING, 0, 0, &[0; 8])).count();
    drop(http2);
    // What contradicts itself.
    for (name, kind, flags, id, payload) in [
        ("a window of more than there can be", frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff][..]),
        ("a window of nothing", frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0]),
        ("settings on a stream", frame::SETTINGS, 0, 1, &[]),
        ("half a setting", frame::SETTINGS, 0, 0, &[0, 4, 0]),
        ("a request with an even number", frame::HEADERS, 5, 2, &[0x82]),
        ("nonsense for a head", frame::HEADERS, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("the end of a head that never began", frame::CONTINUATION, 4, 1, &[0x82]),
    ] {
        let mut http2 = Http2::connect(at, 1 << 20);
        http2.send(kind, flags, id, payload);
        ends_with_goaway(&mut http2, name);
    }
    assert!(siege.server.most_memory() < MEMORY_BYTES, "{} bytes", siege.server.most_memory());
    siege.survived();
}

/// The server says that this goes no further, or just goes.
#[track_caller]
fn ends_with_goaway(http2: &mut Http2, name: &str) {
    let mut said = false;
    while let Some((kind, _, _, payload)) = http2.frame() {
        said |= kind == frame::GOAWAY && payload.get(4..8) != Some(&[0; 4]);
        assert!(kind != frame::DATA, "{name} is answered");
    }
    assert!(said || http2.frame().is_none(), "{name}");
}

#[test]
fn more_than_the_limits_is_refused_in_rtsp() {
    let siege = Siege::begin(&[]);
    let at = siege.address();
    let options = "OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n";
    for (name, words, expected) in [
        ("a long value", format!("{options}X: {}\r\n\r\n", "a".repeat(100_000)), 400),
        ("many headers", format!("{options}{}\r\n", "X: a\r\n".repeat(20_000)), 400),
        ("a long body", format!("{options}Content-Length: 65537\r\n\r\n"), 413),
        ("the longest body", format!("{options}Content-Length: 4294967295\r\n\r\n"), 413),
        ("a longer body", format!("{options}Content-Length: 4294967296\r\n\r\n"), 400),
        ("a length twice", format!("{options}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"), 400),
        ("a negative length", format!("{options}Content-Length: -1\r\n\r\n"), 400),
        ("no version", "OPTIONS * RTSP/\r\nCSeq: 1\r\n\r\n".to_owned(), 400),
        ("a number twice", format!("{options}CSeq: 2\r\n\r\n"), 400),
        ("no number", "OPTIONS * RTSP/2.0\r\nCSeq: x\r\n\r\n".to_owned(), 400),
        ("a header that is none", format!("{options}X\r\n\r\n"), 400),
    ] {
        let answer = told(at, words + FAREWELL);
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
        assert!(status(&answer) == expected && answer.starts_with(b"RTSP/"), "{name}: {shown}");
    }
    // The longest first line, and one that is longer: who says that does not speak RTSP for certain.
    for length in [3_000, 5_000, 100_000] {
        let answer =
            told(at, format!("DESCRIBE rtsp://h/{} RTSP/2.0\r\nCSeq: 1\r\n\r\n{FAREWELL}", "a".repeat(length)));
        assert!([0, 400, 404, 414, 431].contains(&status(&answer)), "{length}");
    }
    // A long frame, between requests that are answered.
    let mut talk = Talk::with(at);
    assert_eq!(talk.ask("OPTIONS * RTSP/2.0", "", "").status, 200);
    assert!(talk.say([&b"$\0\x0f\xff"[..], &[b'a'; 4095]].concat()) && talk.say(b"$\xff\0\0$\x07\0\x04abcd"));
    assert_eq!(talk.ask("OPTIONS * RTSP/2.0", "", "").status, 200, "frames of others are passed over");
    assert!(talk.say(b"$\0\x10\x01"));
    assert_eq!(talk.reply().expect("a word of farewell").status, 400);
    talk.closed();
    // A head, and a body, that have no end.
    for more in ["X: a\r\n", "aaaaaa"] {
        let mut stream = connect(at);
        stream.write_all(options.as_bytes()).expect("the server reads the beginning");
        let piece = more.repeat((1 << 20) / more.len());
        let taken = (0..FLOOD_BYTES >> 20).take_while(|_| stream.write_all(piece.as_bytes()).is_ok()).count();
        assert!(taken < FLOOD_BYTES >> 20, "{more:?}: the server read all of it");
    }
    assert!(siege.server.most_memory() < MEMORY_BYTES, "{} bytes", siege.server.most_memory());
    siege.survived();
}
