use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::ServerSettings;
use crate::stage::{Stage, ask, serve};

/// Whether somebody answers on this connection.
async fn is_served(stream: &mut TcpStream) -> bool {
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut answer = [0; 15];
    stream.write_all(request).await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == *b"HTTP/1.1 200 OK"
}

#[tokio::test]
async fn one_address_gets_so_many_connections_and_no_more() {
    let stage = Stage::new();
    let server = serve(&ServerSettings { connections_per_address: 3, ..stage.settings() }).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        assert!(is_served(&mut stream).await);
        held.push(stream);
    }
    let mut one_too_many = TcpStream::connect(server.address).await.unwrap();
    assert!(!is_served(&mut one_too_many).await);
    // Its place is free when the server has seen it go.
    held.pop();
    let begun = Instant::now();
    while !is_served(&mut TcpStream::connect(server.address).await.unwrap()).await {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_waits_for_one() {
    let stage = Stage::new();
    let server = serve(&ServerSettings { connections: 2, ..stage.settings() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        assert!(is_served(&mut stream).await);
        held.push(stream);
    }
    let mut waiting = TcpStream::connect(server.address).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), is_served(&mut waiting)).await;
    assert!(early.is_err(), "there is no place for it");
    held.pop();
    let mut answer = [0; 15];
    waiting.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let stage = Stage::new();
    let server = serve(&ServerSettings { idle_timeout: Duration::from_millis(200), ..stage.settings() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert!(is_served(&mut stream).await);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "HTTP/1.1");

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), async {
        // A client that follows the protocol acknowledges what it is sent; one that does not is closed all the same
        // when it is asked whether it is there.
        let mut piece = [0; 1024];
        let mut all = Vec::new();
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return all,
                Ok(read) => all.extend_from_slice(&piece[..read]),
            }
            // GOAWAY is frame type 7.
            if contains_frame(&all, 7) {
                return all;
            }
        }
    });
    assert!(closed.await.is_ok(), "HTTP/2");
}

/// Whether these frames of HTTP/2 have one of the type.
fn contains_frame(mut frames: &[u8], kind: u8) -> bool {
    while frames.len() >= 9 {
        if frames[3] == kind {
            return true;
        }
        let length = usize::from(frames[0]) << 16 | usize::from(frames[1]) << 8 | usize::from(frames[2]);
        frames = frames.get(9 + length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn nobody_is_taken_any_more_when_the_end_was_asked_for() {
    let stage = Stage::new();
    let mut server = serve(&stage.settings()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    assert!(is_served(&mut idle).await);
    server.end.take().unwrap().send(()).unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    server.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn sockets_that_listen_already_are_served() {
    let stage = Stage::new();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let settings = ServerSettings { sockets: vec![Arc::new(socket)], listen: Vec::new(), ..stage.settings() };
    let server = serve(&settings).await;
    assert_eq!(server.address, address);
    let (head, _) = ask(address, "GET", "/healthz", "").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let nowhere = ServerSettings { listen: Vec::new(), ..stage.settings() };
    assert!(matches!(crate::Server::bind(nowhere).await.err(), Some(ServeError::NoAddress)));
}
