//! A web server of a few lines that can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// One answer.
#[derive(Clone)]
pub(super) enum Answer {
    /// These bytes as they are, then the connection is closed.
    Bytes(Bytes),
    /// Nothing, for ever.
    Hang,
    /// The connection is closed.
    HangUp,
}

impl Answer {
    /// A response whose Content-Length is right unless it is given, or the connection is to be closed.
    pub(super) fn raw(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut text = format!("HTTP/1.1 {status} X\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !headers.iter().any(|(name, _)| ["Content-Length", "Connection"].contains(name)) && status != 204 {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        Answer::Bytes(format!("{text}\r\n{body}").into())
    }
}

#[derive(Default)]
struct State {
    objects: HashMap<String, (Bytes, u64)>,
    always: Option<Answer>,
    next: VecDeque<Answer>,
    requests: Vec<String>,
    connections: u64,
    break_after: Option<(usize, u32)>,
    refuses_a_byte: bool,
}

pub(super) struct Server {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves these objects below `/p/`, as a static server does.
    pub(super) async fn of(objects: Vec<(&str, Bytes)>) -> Self {
        let objects = objects.into_iter().map(|(path, bytes)| (format!("/p/{path}"), (bytes, 1))).collect();
        Self::start(State { objects, ..State::default() }).await
    }

    /// Gives one answer to everything.
    pub(super) async fn always(answer: Answer) -> Self {
        Self::start(State { always: Some(answer), ..State::default() }).await
    }

    async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(state)));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                shared.lock().connections += 1;
                tokio::spawn(serve(socket, shared.clone()));
            }
        });
        Self { address, state, task }
    }

    pub(super) fn root(&self) -> Url {
        Url::parse(&format!("http://{}/", self.address)).unwrap()
    }

    pub(super) fn put(&self, path: &str, text: &str) {
        let mut state = self.state.lock();
        let object = state.objects.get_mut(&format!("/p/{path}")).unwrap();
        *object = (Bytes::copy_from_slice(text.as_bytes()), object.1 + 1);
    }

    /// Gives this answer to the next request.
    pub(super) fn next_answer(&self, answer: Answer) {
        self.state.lock().next.push_back(answer);
    }

    /// Hangs up on everybody who asks for the first byte of an object alone.
    pub(super) fn refuse_a_byte(&self) {
        self.state.lock().refuses_a_byte = true;
    }

    /// Breaks the next `times` bodies off after `bytes`.
    pub(super) fn break_after(&self, bytes: usize, times: u32) {
        self.state.lock().break_after = Some((bytes, times));
    }

    /// Request heads so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    pub(super) fn connections(&self) -> u64 {
        self.state.lock().connections
    }
}

async fn serve(mut socket: TcpStream, state: Arc<Mutex<State>>) {
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = received.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let mut piece = [0; 4096];
            match socket.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(n) => received.extend_from_slice(&piece[..n]),
            }
        };
        let head = String::from_utf8(received.drain(..end).collect()).unwrap();
        let answer = {
            let mut state = state.lock();
            state.requests.push(head.clone());
            let refused = (state.refuses_a_byte && is_for_a_byte(&head)).then_some(Answer::HangUp);
            refused.or_else(|| state.next.pop_front()).or_else(|| state.always.clone())
        };
        match answer {
            Some(Answer::Bytes(bytes)) => {
                let _ = socket.write_all(&bytes).await;
                let _ = socket.shutdown().await;
                return;
            }
            Some(Answer::Hang) => std::future::pending().await,
            Some(Answer::HangUp) => return,
            None => {}
        }
        let (mut response, whole) = respond(&head, &mut state.lock());
        if head.starts_with("HEAD ") {
            let body = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            response.truncate(body);
        }
        if socket.write_all(&response).await.is_err() || !whole {
            return;
        }
    }
}

/// Whether this request is for the first byte of an object alone.
pub(super) fn is_for_a_byte(head: &str) -> bool {
    head.to_ascii_lowercase().contains("range: bytes=0-0\r\n")
}

/// The response of a well-behaved static server, and whether it is not to be broken off.
fn respond(head: &str, state: &mut State) -> (Vec<u8>, bool) {
    let path = head.split(' ').nth(1).unwrap();
    let header = |name: &str| {
        let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}: ")))?;
        Some(line[name.len() + 2..].trim().to_owned())
    };
    let plain = |status: &str| (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes(), true);
    let Some((bytes, version)) = state.objects.get(path) else { return plain("404 Not Found") };
    let (etag, total) = (format!("\"{version}\""), bytes.len());
    if header("if-none-match").as_ref() == Some(&etag) {
        return plain("304 Not Modified");
    }
    let (status, extra, body) = match header("range") {
        None => ("200 OK", String::new(), bytes.clone()),
        Some(range) => {
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(total.max(1) - 1));
            if first >= total {
                return plain("416 Range Not Satisfiable");
            }
            let extra = format!("Content-Range: bytes {first}-{last}/{total}\r\n");
            ("206 Partial Content", extra, bytes.slice(first..=last))
        }
    };
    let length = body.len();
    let date = "Last-Modified: Tue, 03 Mar 2026 04:05:06 GMT";
    let head = format!("HTTP/1.1 {status}\r\nETag: {etag}\r\n{date}\r\n{extra}Content-Length: {length}\r\n\r\n");
    let mut response = head.into_bytes();
    let kept = match &mut state.break_after {
        Some((bytes, times)) if *times > 0 && body.len() > *bytes => {
            *times -= 1;
            *bytes
        }
        _ => body.len(),
    };
    response.extend_from_slice(&body[..kept]);
    (response, kept == body.len())
}
