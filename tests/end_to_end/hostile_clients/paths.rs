//! Paths that lead where no package is: whatever stands in them, nothing comes back but objects.

use std::fs;
use std::path::Path;

use super::Siege;
use super::wire::{FAREWELL, Http2, Talk, status, told};

/// Stands in every file that must not be served.
const CANARY: &str = "canary-5c1e-that-must-not-be-served";

/// Puts canaries where tricks lead: beside the content root, in it, and in the package's folder; some where a package would
/// have its objects.
fn canaries(content: &Path) {
    let above = content.parent().expect("it is in a home");
    for file in [
        above.join("canary"),
        above.join("head"),
        above.join("packs/canary"),
        above.join("secret/head"),
        above.join("secret/metadata/timestamp.json"),
        content.join("canary"),
        content.join("head"),
        content.join("packs/canary"),
        content.join(".hidden/head"),
        content.join("a b/head"),
        content.join("app/access.toml.canary"),
        content.join("app/canary"),
        content.join("app/.canary"),
        content.join("app/packs/.canary"),
        content.join("app/packs/folder/canary"),
        content.join("app/other/canary"),
        content.join("app/%2e%2e/head"),
        content.join("app\\head"),
    ] {
        fs::create_dir_all(file.parent().expect("in a folder")).expect("a folder of the test");
        fs::write(&file, CANARY).expect("a folder of the test");
    }
}

/// Paths as they stand in requests, without the slash at their beginning. None of them names an object.
fn tricks() -> Vec<Vec<u8>> {
    let above = [
        "../canary",
        "../head",
        "../packs/canary",
        "../secret/head",
        "app/../head",
        "app/../canary",
        "app/../../canary",
        "app/../../secret/head",
        "app/../../secret/metadata/timestamp.json",
        "app/packs/../canary",
        "app/packs/../../canary",
        "app/packs/../../../canary",
        "app/packs/../../packs/canary",
        "./app/../head",
        "app/./../head",
        "app/packs/../../../../../../../../etc/passwd",
        "../../../../../../../../etc/passwd",
    ];
    let mut all: Vec<Vec<u8>> = Vec::new();
    for path in above {
        all.push(path.as_bytes().to_vec());
        // A trick in other words: escaped once, twice, in halves, overlong, with another slash.
        for (dots, slash) in [
            ("%2e%2e", "/"),
            ("%2E.", "/"),
            (".%2e", "%2f"),
            ("..", "%2F"),
            ("..", "%5c"),
            ("..", "\\"),
            ("%252e%252e", "/"),
            ("..", "%252f"),
            ("%c0%ae%c0%ae", "/"),
            ("..", "%c0%af"),
            ("%u002e%u002e", "/"),
            ("..%00", "/"),
            ("..;", "/"),
            ("...", "/"),
            ("..", "//"),
            ("%ef%bc%8e%ef%bc%8e", "/"),
        ] {
            all.push(path.replace("..", dots).replace('/', slash).into_bytes());
        }
    }
    for path in [
        "canary",
        "app/canary",
        "app/.canary",
        "app/packs/.canary",
        "app/packs/folder/canary",
        "app/other/canary",
        "app/access.toml.canary",
        "app/packs",
        "app/packs/",
        "app",
        "",
        "/",
        "//",
        "//head",
        "/app/../head",
        ".hidden/head",
        "a%20b/head",
        "a+b/head",
        "app%5chead",
        "app\\head",
        "app%00/head",
        "app/head%00",
        "app/head%00.json",
        "%00",
        "%",
        "%2",
        "%zz",
        "app/head%",
        "app/head/",
        "app/head/.",
        "app//head/..",
        "app/head?/../../canary",
        "app/%2e%2e%2fhead",
        "app/%252e%252e/head",
        "app/packs/%2e%2e%2fcanary",
        "app/CON",
        "C:/canary",
        "C:%5ccanary",
        "app:head",
        "app/head:$DATA",
        "~/canary",
        "~root/head",
        "$HOME/canary",
        "app/metadata/%2f%2fetc/passwd",
        "file:///etc/passwd",
        "app@1.0/head",
        "app@../head",
        "app@%2e%2e/../head",
        "@/head",
        "streamid=0",
        "app/streamid=0",
        "app/streamid=0/../head",
        "proc/self/environ",
    ] {
        all.push(path.as_bytes().to_vec());
    }
    all.push(b"app/\xff\xfe/head".to_vec());
    all.push(b"\x80/head".to_vec());
    all.push("..\u{2215}canary".as_bytes().to_vec());
    all.push(["a/".repeat(400).into_bytes(), b"../".repeat(400), b"canary".to_vec()].concat());
    all.push([b"../".repeat(1000), b"etc/passwd".to_vec()].concat());
    all.push([b"%2e%2e/".repeat(400), b"canary".to_vec()].concat());
    all
}

/// Nothing of a file that is not served, here or on the machine.
#[track_caller]
fn is_clean(answer: &[u8], what: &str, path: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert!(
        !text.contains(CANARY) && !text.contains("root:x:0") && !text.contains("PATH="),
        "{what} of {:?} gives: {text}",
        String::from_utf8_lossy(path)
    );
}

fn siege() -> Siege {
    Siege::with(|_, content| {
        canaries(content);
        Vec::new()
    })
}

#[test]
fn no_path_of_http_leads_out_of_the_package() {
    let siege = siege();
    let (at, authority) = (siege.address(), siege.address().to_string());
    for path in tricks() {
        let in_origin_form = [b"/".as_slice(), &path].concat();
        let in_absolute_form = [b"http://", authority.as_bytes(), b"/", &path].concat();
        for target in [in_origin_form, in_absolute_form, path.clone()] {
            let words = [b"GET ", &target[..], b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat();
            let answer = told(at, words);
            is_clean(&answer, "HTTP/1.1", &target);
            // What is behind a question mark is no part of the path.
            let names_head = target.windows(6).any(|w| w == b"/head?");
            let expected: &[u16] = if names_head { &[200, 400] } else { &[400, 404, 414] };
            assert!(expected.contains(&status(&answer)), "{}: {}", String::from_utf8_lossy(&target), status(&answer));
        }
        // An answer to a path that HTTP/2 does not allow is the end of the stream, or of the connection.
        let mut http2 = Http2::connect(at, 1 << 20);
        assert!(http2.get(1, &[b"/".as_slice(), &path].concat()));
        let (answered, body) = http2.answer(1);
        is_clean(&body, "HTTP/2", &path);
        assert!(
            [0, 400, 404].contains(&answered) || path.contains(&b'?'),
            "{}: {answered}",
            String::from_utf8_lossy(&path)
        );
    }
    // Other forms of what is asked for.
    for target in [
        "*",
        "http://",
        "http://x",
        "x:80",
        "http://x/app/head#/../canary",
        "http://[::1/app/head",
        "/app/head HTTP/1.1 x",
    ] {
        let answer = told(at, format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        is_clean(&answer, "HTTP/1.1", target.as_bytes());
    }
    siege.survived();
}

#[test]
fn no_path_of_rtsp_leads_out_of_the_package() {
    let siege = siege();
    let at = siege.address();
    for path in tricks() {
        for (method, accept) in [
            ("DESCRIBE", "Accept: application/vnd.streamfs.head"),
            ("DESCRIBE", "Accept: application/sdp"),
            ("SETUP", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"),
            ("PLAY", "X: y"),
        ] {
            let first =
                [method.as_bytes(), b" rtsp://h/", &path, b" RTSP/2.0\r\nCSeq: 1\r\n", accept.as_bytes(), b"\r\n\r\n"]
                    .concat();
            let answer = told(at, [&first[..], FAREWELL.as_bytes()].concat());
            is_clean(&answer, method, &path);
            let names_package = path.starts_with(b"app") && matches!(path.get(3), None | Some(b'?' | b'/'));
            assert!(
                status(&answer) >= 400 || names_package || answer.is_empty(),
                "{method} of {}: {}",
                String::from_utf8_lossy(&path),
                String::from_utf8_lossy(&answer)
            );
        }
    }
    siege.survived();
}

/// A line of READ names an object by a path of its own; what is beside the objects in the package's folder, such as its own
/// access rules, or packages below it with rules of their own, must not be had so.
#[test]
fn no_line_of_read_names_anything_but_objects() {
    let siege = siege();
    for file in ["access.toml", "inner/head", "inner/packs/canary"] {
        let path = siege.content.join("app").join(file);
        fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder of the test");
        fs::write(path, CANARY).expect("a folder of the test");
    }
    let url = "rtsp://h/app";
    let mut talk = Talk::with(siege.address());
    let session = talk.session(url);
    let plain = tricks().into_iter().filter_map(|path| String::from_utf8(path).ok());
    let beside =
        ["access.toml", "inner/head", "inner/packs/canary", "/etc/passwd", "packs/folder/canary", "Head", "head/"];
    for object in plain.chain(beside.map(str::to_owned)).filter(|object| object != "streamid=0") {
        // A path with a blank is several words.
        let status = talk.lines("READ", url, &session, &format!("1 {object} 0-"));
        if status != 200 {
            assert_eq!(status, 451, "{object}");
            continue;
        }
        match talk.answer(1) {
            Err(status) => assert_eq!(status, 404, "{object}"),
            Ok(bytes) => panic!("{object} gives {}", String::from_utf8_lossy(&bytes)),
        }
    }
    assert_eq!(talk.lines("READ", url, &session, "1 head 0-"), 200);
    assert!(!talk.answer(1).expect("the connection is as good as before").is_empty());
    drop(talk);
    siege.survived();
}
