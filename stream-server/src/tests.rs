use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;

const HASHED: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Running {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
    _content: tempfile::TempDir,
}

async fn start(drain_deadline: Duration) -> Running {
    let content = tempfile::tempdir().unwrap();
    let app = content.path().join("app");
    std::fs::create_dir_all(app.join("packs")).unwrap();
    std::fs::write(app.join("head"), b"0123456789").unwrap();
    std::fs::write(app.join("packs").join(HASHED), vec![7u8; 64 << 20]).unwrap();
    std::fs::write(app.join(".secret"), b"x").unwrap();
    let settings =
        ServerSettings { content_dir: content.path().to_owned(), listen: "127.0.0.1:0".to_owned(), drain_deadline };
    let server = Server::bind(settings).await.unwrap();
    let address = server.address();
    let (end, ended) = oneshot::channel();
    let task = tokio::spawn(server.run(async {
        ended.await.ok();
    }));
    Running { address, end: Some(end), task, _content: content }
}

async fn send(address: SocketAddr, method: &str, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Head (lower case) and body of the answer.
async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = send(address, method, path, headers).await;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&all[..end]).to_ascii_lowercase(), all[end + 4..].to_vec())
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("")
}

#[tokio::test]
async fn ranges_and_conditions_are_answered() {
    let server = start(Duration::from_secs(5)).await;
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
    let server = start(Duration::from_secs(5)).await;
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
    let server = start(Duration::from_secs(5)).await;
    for path in ["/", "/app", "/app/", "/app/.secret", "/app/%2esecret", "/app/../app/.secret", "/nothing"] {
        let (head, body) = ask(server.address, "GET", path, "").await;
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
        assert!(body.is_empty(), "{path}");
    }
    let (head, _) = ask(server.address, "PUT", "/app/head", "Content-Length: 0\r\n").await;
    assert!(head.starts_with("http/1.1 405"), "{head}");
    let (head, body) = ask(server.address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 200") && body == b"ok\n", "{head}");
}

#[tokio::test]
async fn http2_is_spoken_by_prior_knowledge() {
    let server = start(Duration::from_secs(5)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The client's preface and an empty SETTINGS frame; the server must answer with its own SETTINGS frame (type 4).
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4);
}

#[tokio::test]
async fn a_running_transfer_finishes_after_the_end_was_asked_for() {
    let mut server = start(Duration::from_secs(60)).await;
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
    let mut server = start(Duration::from_millis(100)).await;
    let mut stream = send(server.address, "GET", &format!("/app/packs/{HASHED}"), "").await;
    let mut first = [0; 1024];
    stream.read_exact(&mut first).await.unwrap();
    server.end.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), server.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_missing_folder_and_a_taken_port_are_named() {
    let settings = |dir: &str, listen: &str| ServerSettings {
        content_dir: dir.into(),
        listen: listen.to_owned(),
        drain_deadline: Duration::from_secs(1),
    };
    let error = Server::bind(settings("/does/not/exist", "127.0.0.1:0")).await.unwrap_err().to_string();
    assert!(error.contains("/does/not/exist"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = Server::bind(settings("/", &address)).await.unwrap_err();
    assert!(
        matches!(&error, ServeError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
        "{error}"
    );
}
