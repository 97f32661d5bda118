//! Sessions that are somebody else's, numbers that cannot be, and words between frames.

use super::wire::{FAREWELL, Talk, status, told};
use super::{LARGE, LARGE_BYTES, Siege};

const URL: &str = "rtsp://h/app";

#[test]
fn a_session_is_good_on_its_own_connection_only() {
    let siege = Siege::begin(&[]);
    let (mut mine, mut theirs) = (Talk::with(siege.address()), Talk::with(siege.address()));
    let (own, foreign) = (mine.session(URL), theirs.session(URL));
    let long = "a".repeat(10_000);
    let cut = own[..31].to_owned();
    let upper = own.to_uppercase();
    let near = [own.as_str(), "0"].concat();
    let wrong = [
        foreign.as_str(),
        "",
        "0",
        "-1",
        "%00",
        "\u{e4}",
        &cut,
        &upper,
        &near,
        &long,
        "00000000000000000000000000000000",
        "*",
        "../x",
    ];
    for id in wrong.into_iter().filter(|id| *id != own) {
        let session = format!("Session: {id}\r\n");
        for (method, body) in [
            ("READ", "1 head 0-"),
            ("CREDIT", "1 5"),
            ("CANCEL", "1"),
            ("PLAY", ""),
            ("PAUSE", ""),
            ("TEARDOWN", ""),
            ("GET_PARAMETER", ""),
        ] {
            let reply = mine.ask(&format!("{method} {URL} RTSP/2.0"), &session, body);
            assert_eq!(reply.status, 454, "{method} in {id:?}");
        }
        let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
        assert_eq!(
            mine.ask(&format!("SETUP {URL} RTSP/2.0"), &(session + transport), "").status,
            454,
            "SETUP in {id:?}"
        );
    }
    // Neither is ended, or worse for it.
    for (talk, session) in [(&mut mine, &own), (&mut theirs, &foreign)] {
        assert_eq!(talk.lines("READ", URL, session, "1 head 0-"), 200);
        assert!(!talk.answer(1).expect("it is read").is_empty());
    }
    // After its end it is nobody's, on its own connection and on the next.
    assert_eq!(mine.ask(&format!("TEARDOWN {URL} RTSP/2.0"), &format!("Session: {own}\r\n"), "").status, 200);
    assert_eq!(mine.lines("READ", URL, &own, "1 head 0-"), 454);
    drop(theirs);
    assert_eq!(mine.lines("READ", URL, &foreign, "1 head 0-"), 454);
    // Of one connection there are only so many, however often they are made and ended.
    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
    let ids: Vec<String> = (0..64).map(|_| mine.session(URL)).collect();
    assert_eq!(mine.ask(&format!("SETUP {URL} RTSP/2.0"), transport, "").status, 453);
    for id in &ids {
        assert_eq!(mine.ask(&format!("TEARDOWN {URL} RTSP/2.0"), &format!("Session: {id}\r\n"), "").status, 200);
    }
    for _ in 0..1000 {
        let id = mine.session(URL);
        assert_eq!(mine.ask(&format!("TEARDOWN {URL} RTSP/2.0"), &format!("Session: {id}\r\n"), "").status, 200);
    }
    assert_eq!(siege.server.counted("streamfs_server_sessions", &[]), 0);
    drop(mine);
    siege.survived();
}

#[test]
fn numbers_of_requests_mean_nothing_but_which_answer_it_is() {
    let siege = Siege::begin(&[]);
    let mut talk = Talk::with(siege.address());
    for number in ["5", "5", "4", "4294967295", "0", "1"] {
        assert!(talk.say(format!("OPTIONS * RTSP/2.0\r\nCSeq: {number}\r\n\r\n")));
        let reply = talk.reply().expect("an answer");
        assert_eq!((reply.status, reply.cseq.as_deref()), (200, Some(number)));
    }
    // None at all is the request's mistake, nothing that is a number is the stream's.
    assert!(talk.say("OPTIONS * RTSP/2.0\r\n\r\n"));
    assert_eq!(talk.reply().expect("an answer").status, 400);
    for number in ["-1", "4294967296", "1e3", "0x1", "1 2", "", "99999999999999999999", "\u{661}"] {
        let answer = told(siege.address(), format!("OPTIONS * RTSP/2.0\r\nCSeq: {number}\r\n\r\n{FAREWELL}"));
        assert_eq!(status(&answer), 400, "{number}");
    }
    // Answers to what was never asked are nothing.
    assert!(talk.say("RTSP/2.0 200 OK\r\nCSeq: 77\r\n\r\nRTSP/1.0 999 What\r\n\r\n"));
    assert_eq!(talk.ask("OPTIONS * RTSP/2.0", "", "").status, 200);
    drop(talk);
    siege.survived();
}

#[test]
fn ranges_ids_and_credit_that_cannot_be_are_refused_and_do_no_harm() {
    let siege = Siege::begin(&[]);
    let mut talk = Talk::with(siege.address());
    let session = talk.session(URL);
    let most = u64::MAX;
    // Lines that are none: nothing of the message is done.
    for line in [
        format!("0 {LARGE} 0-1"),
        format!("-1 {LARGE} 0-1"),
        format!("4294967296 {LARGE} 0-1"),
        format!("1 {LARGE} 5-4"),
        format!("1 {LARGE} -5"),
        format!("1 {LARGE} 0-{most}"),
        format!("1 {LARGE} {most}0-"),
        format!("1 {LARGE} 0x0-0x1"),
        format!("1 {LARGE} -"),
        format!("1 {LARGE} 0- window=0"),
        format!("1 {LARGE} 0- window=-1"),
        format!("1 {LARGE} 0- window={most}0"),
        format!("1 {LARGE} 0- known=\u{e4}"),
        format!("1 {LARGE} 0- urgent=1"),
        format!("1 {LARGE} 0- clip"),
        "1".to_owned(),
        "\0".to_owned(),
        format!("1 {LARGE} 0-1\n1 {LARGE} 0-1"),
        format!("1 {LARGE} 0-1\n\n2 {LARGE} 0-1"),
        format!("1 {LARGE} 0-1\n").repeat(257),
    ] {
        assert_eq!(talk.lines("READ", URL, &session, &line), 451, "{}", &line[..line.len().min(200)]);
    }
    // Ranges of what is not there.
    for (part, expected) in [
        (format!("{LARGE_BYTES}-"), Ok(0)),
        (format!("{}-", LARGE_BYTES + 1), Err(457)),
        (format!("{}-", most), Err(457)),
        (format!("0-{}", most - 1), Err(457)),
        (format!("{}-{}", most - 1, most - 1), Err(457)),
        (format!("{}-{} clip", most - 1, most - 1), Ok(0)),
        (format!("{}-{} clip", LARGE_BYTES - 3, most - 1), Ok(3)),
        (format!("{}-{}", LARGE_BYTES - 1, LARGE_BYTES - 1), Ok(1)),
    ] {
        assert_eq!(
            talk.lines("READ", URL, &session, &format!("4294967295 {LARGE} {part} window={most}")),
            200,
            "{part}"
        );
        assert_eq!(talk.answer(u32::MAX).map(|bytes| bytes.len()), expected, "{part}");
    }
    // Credit that adds up to more than there can be, for what is under way and for what is not.
    assert_eq!(talk.lines("READ", URL, &session, &format!("7 {LARGE} 0-9999999 window=1")), 200);
    assert_eq!(talk.lines("READ", URL, &session, &format!("7 {LARGE} 0-1")), 451, "the id is in use");
    for credit in [format!("7 {most}\n7 {most}\n7 1"), format!("8 {most}"), "7 0".to_owned()] {
        assert_eq!(talk.lines("CREDIT", URL, &session, &credit), 200);
    }
    assert_eq!(talk.answer(7).map(|bytes| bytes.len()), Ok(10_000_000));
    for credit in ["7", "7 -1", "7 18446744073709551616", "0 1", "7 1 1", ""] {
        let status = talk.lines("CREDIT", URL, &session, credit);
        assert_eq!(status, 451, "{credit:?}");
    }
    // As many as may be under way, and one more; cancelled, they are free again, and nothing of them comes.
    for round in 0..3 {
        for half in 0..2 {
            let lines: Vec<String> = (1..=256).map(|n| format!("{} {LARGE} 0- window=1", half * 256 + n)).collect();
            assert_eq!(talk.lines("READ", URL, &session, &lines.join("\n")), 200, "round {round}");
        }
        assert_eq!(talk.lines("READ", URL, &session, "999 head 0-"), 453);
        for half in 0..2 {
            let ids: Vec<String> = (1..=256).map(|n| (half * 256 + n).to_string()).collect();
            assert_eq!(talk.lines("CANCEL", URL, &session, &ids.join("\n")), 200);
        }
    }
    assert_eq!(talk.lines("READ", URL, &session, "1000 head 0-"), 200);
    assert!(!talk.answer(1000).expect("it is as good as before").is_empty());
    drop(talk);
    siege.survived();
}

/// A stream that shall take hours ends with its connection: else each would hold a place that nobody needs.
#[test]
fn a_slow_stream_whose_client_has_left_is_no_leak() {
    let siege = Siege::begin(&[]);
    for _ in 0..20 {
        let mut talk = Talk::with(siege.address());
        let header = format!("Session: {}\r\nBandwidth: 1\r\n", talk.session(URL));
        assert_eq!(talk.ask(&format!("PLAY {URL} RTSP/2.0"), &header, "").status, 200);
        // The first packets come at once, the next ones would in an hour.
        assert_eq!(talk.ask("OPTIONS * RTSP/2.0", "", "").status, 200);
    }
    siege.survived();
}

#[test]
fn methods_out_of_turn_and_garbage_between_frames_do_no_harm() {
    let siege = Siege::begin(&[]);
    let mut talk = Talk::with(siege.address());
    let session = talk.session(URL);
    let header = format!("Session: {session}\r\n");
    for (line, headers, expected) in [
        (format!("PAUSE {URL} RTSP/2.0"), header.clone(), 455),
        (format!("PLAY {URL} RTSP/2.0"), format!("{header}Range: npt=5-\r\n"), 457),
        (format!("PLAY {URL} RTSP/2.0"), format!("{header}Range: bytes=0-\r\n"), 456),
        (format!("PLAY {URL} RTSP/1.0"), format!("{header}Range: bytes=0-\r\n"), 457),
        (format!("PLAY {URL}/../other RTSP/2.0"), header.clone(), 459),
        ("READ rtsp://h/other RTSP/2.0".to_owned(), header.clone(), 459),
        (format!("SETUP {URL} RTSP/2.0"), "Transport: RTP/AVP;unicast;client_port=1-2\r\n".to_owned(), 461),
        (format!("SETUP {URL} RTSP/2.0"), "Transport: RTP/AVP/TCP;unicast;interleaved=300-301\r\n".to_owned(), 461),
        ("SETUP rtsp://h/ RTSP/2.0".to_owned(), "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n".to_owned(), 459),
        (format!("RECORD {URL} RTSP/2.0"), header.clone(), 405),
        (format!("BREW {URL} RTSP/2.0"), header.clone(), 501),
        (format!("DESCRIBE {URL} RTSP/3.0"), String::new(), 505),
        (format!("OPTIONS {URL} RTSP/2.0"), "Require: everything\r\n".to_owned(), 551),
        (format!("DESCRIBE {URL} RTSP/2.0"), "Accept: text/html\r\n".to_owned(), 406),
    ] {
        assert_eq!(talk.ask(&line, &headers, "").status, expected, "{line} {headers}");
        // Frames that nobody asked for, on channels that nobody has, with RTCP that is none.
        assert!(talk.say(
            [b"$\0\0\0$\x01\0\x04\xff\xff\xff\xff$\xc8\0\x02{}".as_slice(), b"$\x01\x10\0", &[0x80; 4096]].concat()
        ));
    }
    // A stream that is begun, begun again and stopped, faster than it goes.
    for _ in 0..50 {
        for method in ["PLAY", "PLAY", "PAUSE", "PLAY"] {
            let range = if method == "PLAY" { "Range: npt=0-\r\nBandwidth: 1\r\n" } else { "" };
            assert_eq!(
                talk.ask(&format!("{method} {URL} RTSP/2.0"), &format!("{header}{range}"), "").status,
                200,
                "{method}"
            );
        }
    }
    assert_eq!(talk.lines("READ", URL, &session, "1 head 0-"), 200);
    assert!(!talk.answer(1).expect("it is as good as before").is_empty());
    // What is neither a frame nor a message ends the connection, and only this one.
    assert!(talk.say("\u{1}\u{2}\u{3}\r\n\r\n"));
    assert_eq!(talk.reply().expect("a word of farewell").status, 400);
    talk.closed();
    // Whoever speaks HTTP in the middle is told the same.
    let mut talk = Talk::with(siege.address());
    assert_eq!(talk.ask("OPTIONS * RTSP/2.0", "", "").status, 200);
    assert!(talk.say("GET /app/head HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(talk.reply().expect("a word of farewell").status, 400);
    talk.closed();
    siege.survived();
}
