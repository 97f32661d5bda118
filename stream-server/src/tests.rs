use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::stage::{Running, Stage, ask, header, send, serve};

const HASHED: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A server of one package that is none but in form, and its content root.
async fn start(drain_deadline: Duration) -> (Running, Stage) {
    let stage = Stage::new();
    let app = stage.content().join("app");
    std::fs::create_dir_all(app.join("packs")).unwrap();
    std::fs::write(app.join("head"), b"0123456789").unwrap();
    std::fs::write(app.join("packs").join(HASHED), vec![7u8; 64 << 20]).unwrap();
    std::fs::write(app.join(".secret"), b"x").unwrap();
    let settings = ServerSettings { drain_deadline, ..stage.settings() };
    (serve(&settings).await, stage)
}

#[tokio::test]
async fn ranges_and_conditions_are_answered() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    let (head, body) = ask(server.address, "GET", "/app/head", "Range: bytes=2-4\r\n").await;
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert_eq!(body, b"234");
    assert_eq!(header(&head, "content-range"), "bytes 2-4/10");

    let (head, _) = ask(server.address, "GET", "/app/head", "Range: bytes=20-\r\n").await;
    assert!(head.starts_with("http/1.1 416"), "{head}");

    let (head, body) = ask(server.address, "HEAD", "/app/head", "").await;
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head}");
    let modified = header(&head, "last-modified").to_owned();
    assert!(!modified.is_empty(), "{head}");
    let condition = format!("If-Modified-Since: {}\r\n", capitalised(&modified));
    let (head, body) = ask(server.address, "GET", "/app/head", &condition).await;
    assert!(head.starts_with("http/1.1 304") && body.is_empty(), "{head}");
}

/// `ask` lowers the head's case, but HTTP dates name days and months with a capital.
fn capitalised(date: &str) -> String {
    let mut out = String::new();
    let mut start = true;
    for c in date.chars() {
        out.push(if start { c.to_ascii_uppercase() } else { c });
        start = c == ' ';
    }
    out.replace("Gmt", "GMT")
}

#[tokio::test]
async fn caches_are_told_what_they_may_keep() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    let (head, _) = ask(server.address, "GET", &format!("/app/packs/{HASHED}"), "Range: bytes=0-9\r\n").await;
    assert!(header(&head, "cache-control").contains("immutable"), "{head}");
    let (head, _) = ask(server.address, "GET", "/app/head", "").await;
    assert_eq!(header(&head, "cache-control"), "no-cache");
    let (head, _) = ask(server.address, "GET", &format!("/app/packs/{}", HASHED.replace('0', "1")), "").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
    assert_eq!(header(&head, "cache-control"), "no-cache", "an absence must not be kept");
}

#[tokio::test]
async fn folders_hidden_files_and_writes_are_refused() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    for path in ["/", "/app", "/app/", "/app/.secret", "/app/%2esecret", "/app/../app/.secret", "/nothing"] {
        let (head, body) = ask(server.address, "GET", path, "").await;
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
        assert!(body.is_empty(), "{path}");
    }
    let (head, _) = ask(server.address, "PUT", "/app/head", "Content-Length: 0\r\n").await;
    assert!(head.starts_with("http/1.1 403"), "nobody publishes to a server without an access file: {head}");
    let (head, body) = ask(server.address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 200") && body == b"ok\n", "{head}");
}

#[tokio::test]
async fn http2_is_spoken_by_prior_knowledge() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The client's preface and an empty SETTINGS frame; the server must answer with its own SETTINGS frame (type 4).
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4);
}

#[tokio::test]
async fn a_running_transfer_finishes_after_the_end_was_asked_for() {
    let (mut server, _stage) = start(Duration::from_secs(60)).await;
    let mut stream = send(server.address, "GET", &format!("/app/packs/{HASHED}"), "").await;
    let mut first = [0; 1024];
    stream.read_exact(&mut first).await.unwrap();
    server.end.take().unwrap().send(()).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(first.len() + rest.len() > 64 << 20);
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stuck_transfer_does_not_hold_the_end_up() {
    let (mut server, _stage) = start(Duration::from_millis(100)).await;
    let mut stream = send(server.address, "GET", &format!("/app/packs/{HASHED}"), "").await;
    let mut first = [0; 1024];
    stream.read_exact(&mut first).await.unwrap();
    server.end.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), server.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_missing_folder_and_a_taken_port_are_named() {
    let settings = |dir: &str, listen: &str| ServerSettings::new(dir, listen);
    let error = Server::bind(settings("/does/not/exist", "127.0.0.1:0")).await.err().unwrap().to_string();
    assert!(error.contains("/does/not/exist"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = Server::bind(settings("/", &address)).await.err().unwrap();
    assert!(
        matches!(&error, ServeError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
        "{error}"
    );
}

/// Everything that a path may be made of to get at what is not served.
#[tokio::test]
async fn tricks_with_paths_find_nothing() {
    let (server, stage) = start(Duration::from_secs(5)).await;
    std::fs::write(stage.path("outside"), "secret").unwrap();
    std::fs::write(stage.content().join("app/notes.txt"), "secret").unwrap();
    for path in [
        "/../outside",
        "/app/../../outside",
        "/app/packs/../../../outside",
        "/%2e%2e/outside",
        "/app/%2e%2e/%2e%2e/outside",
        "/..%2foutside",
        "/app%2fhead",
        "/app%2Fpacks%2F..%2F..%2Fhead",
        "/%252e%252e/outside",
        "/app/head%00",
        "/app/head/",
        "/app//head",
        "//app/head",
        "/app/./head",
        "/app/packs/%5c..%5c..%5coutside",
        "/app/notes.txt",
        "/app\\head",
        "/app/packs",
        "/app/packs/",
        "/%c0%ae%c0%ae/outside",
        "/app;x/head",
        "/-/status/../../app/.secret",
    ] {
        let (head, body) = ask(server.address, "GET", path, "").await;
        let status = &head["http/1.1 ".len()..][..3];
        assert!(["404", "400"].contains(&status), "{path}: {head}");
        assert!(!body.windows(6).any(|w| w == b"secret"), "{path}");
    }
    // A target that is a whole URL, as proxies send it, is the path in it.
    let (head, body) = ask(server.address, "GET", "http://elsewhere/app/head", "").await;
    assert!(head.starts_with("http/1.1 200") && body == b"0123456789", "{head}");
}

#[tokio::test]
async fn objects_named_by_their_hash_have_it_as_etag_wherever_they_are_served() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    let path = format!("/app/packs/{HASHED}");
    let (head, _) = ask(server.address, "HEAD", &path, "").await;
    assert_eq!(header(&head, "etag"), format!("\"{HASHED}\""));
    assert_eq!(header(&head, "content-length"), (64 << 20).to_string());
    assert_eq!(header(&head, "accept-ranges"), "bytes");
    let (head, body) = ask(server.address, "GET", &path, &format!("If-None-Match: \"{HASHED}\"\r\n")).await;
    assert!(head.starts_with("http/1.1 304") && body.is_empty(), "{head}");
    assert!(header(&head, "cache-control").contains("immutable"), "{head}");
    let condition = "Range: bytes=5-6\r\nIf-Range: \"another\"\r\n";
    let (head, body) = ask(server.address, "GET", "/app/head", condition).await;
    assert!(head.starts_with("http/1.1 200") && body == b"0123456789", "{head}");
    let (head, _) = ask(server.address, "GET", "/app/head", "If-Match: \"another\"\r\n").await;
    assert!(head.starts_with("http/1.1 412"), "{head}");
    let (head, _) = ask(server.address, "GET", "/app/head", "Range: bytes=20-\r\n").await;
    assert_eq!(header(&head, "content-range"), "bytes */10");
}

/// An object that is replaced gets another ETag, at once.
#[tokio::test]
async fn a_replaced_object_is_another() {
    let (server, stage) = start(Duration::from_secs(5)).await;
    let (head, _) = ask(server.address, "GET", "/app/head", "").await;
    let before = header(&head, "etag").to_owned();
    std::fs::write(stage.content().join("app/new"), b"9876543210").unwrap();
    std::fs::rename(stage.content().join("app/new"), stage.content().join("app/head")).unwrap();
    let (head, body) = ask(server.address, "GET", "/app/head", &format!("If-None-Match: {before}\r\n")).await;
    assert!(head.starts_with("http/1.1 200") && body == b"9876543210", "{head}");
    assert_ne!(header(&head, "etag"), before);
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap()
}

#[tokio::test]
async fn http2_carries_whole_objects_side_by_side() {
    let (server, stage) = start(Duration::from_secs(5)).await;
    let expected: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::create_dir(stage.content().join("app/launch")).unwrap();
    std::fs::write(stage.content().join("app/launch").join(HASHED), &expected).unwrap();
    let (client, url) = (client(), format!("http://{}/app/launch/{HASHED}", server.address));
    let answers = futures::future::join_all((0..20u64).map(|at| {
        let request = client.get(&url).header("range", format!("bytes={}-", at * 100_000));
        // Read as they come: bodies that nobody reads take the room of those that somebody does.
        async move {
            let answer = request.send().await.unwrap();
            (at, answer.status().as_u16(), answer.version(), answer.bytes().await.unwrap())
        }
    }));
    for (at, status, version, bytes) in answers.await {
        assert_eq!((status, version), (206, reqwest::Version::HTTP_2));
        assert!(bytes == expected[at as usize * 100_000..], "{at}");
    }
}

/// The events of an answer, as they come.
struct Events {
    bytes: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Events {
    async fn of(url: &str) -> Self {
        let answer = client().get(url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { bytes: answer.bytes_stream().boxed(), text: String::new() }
    }

    /// Name and data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let lines = event.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    lines.collect::<Vec<_>>().join("\n")
                };
                if !field("event").is_empty() {
                    return Some((field("event"), field("data")));
                }
            }
            let next = tokio::time::timeout(Duration::from_secs(20), self.bytes.next()).await.expect("in time");
            self.text.push_str(std::str::from_utf8(&next?.unwrap()).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_versions_are_told_to_who_listens() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    stage.publish("other", "1", b"content");
    let mut server = serve(&stage.settings()).await;
    let url = format!("http://{}/app/events", server.address);
    let mut events = Events::of(&url).await;
    let (name, data) = events.next().await.unwrap();
    let told: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_str(), &told["package"], &told["channels"]["stable"]), ("state", &"app".into(), &"1".into()));
    stage.publish("other", "2", b"more");
    stage.publish("app", "2", b"more");
    let (name, data) = events.next().await.unwrap();
    let later: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_str(), &later["channels"]["stable"]), ("version", &"2".into()));
    assert_ne!(later["tag"], told["tag"]);
    // The tag is the ETag of `head`, so that who knows one need not ask.
    let (head, _) = ask(server.address, "HEAD", "/app/head", "").await;
    assert_eq!(header(&head, "etag"), format!("\"{}\"", later["tag"].as_str().unwrap()));
    // Listening does not hold the end up.
    server.end.take().unwrap().send(()).unwrap();
    assert!(events.next().await.is_none());
    server.task.await.unwrap().unwrap();

    let server = serve(&stage.settings()).await;
    let (head, _) = ask(server.address, "GET", "/nothing/events", "").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_launch_is_one_answer() {
    use fs_core::trust::head::{Head, bytes_before_tail};
    let stage = Stage::new();
    stage.publish("app", "1", b"first");
    stage.publish("app", "2", b"second");
    let server = serve(&stage.settings()).await;
    for (query, version) in [("", "2"), ("?channel=stable", "2"), ("?version=1", "1"), ("?version=2&app=none", "2")] {
        let url = format!("http://{}/app/launch{query}", server.address);
        let answer = client().get(&url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{query}");
        assert_eq!(answer.headers()["streamfs-version"], version);
        let (etag, length) = (answer.headers()["etag"].clone(), answer.content_length());
        let body = answer.bytes().await.unwrap();
        assert_eq!(length, Some(body.len() as u64));
        // These versions have no launch set, so there is no tail.
        assert_eq!(bytes_before_tail(&body), Some(body.len()));
        let head = Head::parse(&body).unwrap();
        let descriptor = format!(".{version}.json");
        assert!(head.iter().any(|(path, _)| path.as_str().ends_with(&descriptor)), "{query}: its descriptor is in it");
        let again = client().get(&url).header("if-none-match", etag).send().await.unwrap();
        assert_eq!(again.status().as_u16(), 304);
    }
    for (query, status) in [("?channel=beta", 404), ("?version=3", 404), ("?version=1&channel=stable", 400)] {
        let url = format!("http://{}/app/launch{query}", server.address);
        assert_eq!(client().get(url).send().await.unwrap().status().as_u16(), status, "{query}");
    }
}

#[tokio::test]
async fn the_page_and_the_counters_tell_what_is_served() {
    let stage = Stage::new();
    stage.publish("app", "1.0", b"content");
    let server = serve(&stage.settings()).await;
    let url = format!("http://{}", server.address);
    let mut live = Events::of(&format!("{url}/-/status/events")).await;
    while !live.next().await.unwrap().1.contains("stable: 1.0") {}
    let page = client().get(format!("{url}/status")).send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = page.text().await.unwrap();
    assert!(page.contains("<td>app</td><td>stable: 1.0</td>"), "{page}");
    for (path, kind) in [("/-/status.js", "text/javascript"), ("/-/status.css", "text/css")] {
        let file = client().get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(file.headers()["content-type"], kind);
    }
    let text = client().get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("# TYPE "), "{text}");
}

/// What cannot be a request is answered or dropped, and nobody else notices.
#[tokio::test]
async fn nonsense_is_dropped() {
    let (server, _stage) = start(Duration::from_secs(5)).await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00".as_slice(),
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"$\0\xff\xff\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The server may have closed before all was sent.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{:?} is held open", String::from_utf8_lossy(&bytes[..bytes.len().min(20)]));
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    let (head, _) = ask(server.address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
}
