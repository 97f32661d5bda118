//! A streaming server of a few lines that can be told to misbehave.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rtsp_types::{Method, Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use url::Url;

use super::super::asked::{self, Asked, Part};
use super::super::record::{FRAME_MAX_BYTES, Kind, RECORD_DATA_MAX_BYTES, RecordHead, Rtp, State, Tag, heads};
use super::super::wire::{Item, Outgoing, Splitter, WireLimits, cseq, header};

/// What is done with one request instead of serving it.
pub(super) enum Reaction {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Send these bytes and close the connection.
    Close(Vec<u8>),
    /// Nothing.
    Ignore,
}

type Hook = Box<dyn FnMut(&Request<Vec<u8>>) -> Option<Reaction> + Send>;

#[derive(Default)]
struct Inner {
    objects: HashMap<String, (Bytes, u64)>,
    hook: Option<Hook>,
    requests: Vec<String>,
    connections: usize,
    /// One for each connection: what is sent into it is written.
    writers: Vec<mpsc::UnboundedSender<Bytes>>,
}

pub(super) struct Server {
    address: std::net::SocketAddr,
    inner: Arc<Mutex<Inner>>,
    asked: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves these objects as package `p`.
    pub(super) async fn of(objects: Vec<(&str, Bytes)>) -> Self {
        let objects = objects.into_iter().map(|(path, bytes)| (path.to_owned(), (bytes, 1))).collect();
        let inner = Arc::new(Mutex::new(Inner { objects, ..Inner::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Notify::new()));
        let (shared, told) = (inner.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, shared.clone(), told.clone()));
            }
        });
        Self { address, inner, asked, task }
    }

    pub(super) fn root(&self) -> Url {
        Url::parse(&format!("rtsp://{}/", self.address)).unwrap()
    }

    pub(super) fn put(&self, path: &str, text: &str) {
        let mut inner = self.inner.lock();
        let object = inner.objects.get_mut(path).unwrap();
        *object = (Bytes::copy_from_slice(text.as_bytes()), object.1 + 1);
    }

    /// Asks this first what to do with each request.
    pub(super) fn hook(&self, hook: impl FnMut(&Request<Vec<u8>>) -> Option<Reaction> + Send + 'static) {
        self.inner.lock().hook = Some(Box::new(hook));
    }

    /// Requests so far: method, URL, headers and body.
    pub(super) fn requests(&self) -> Vec<String> {
        self.inner.lock().requests.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.inner.lock().connections
    }

    /// Sends bytes on the newest connection.
    pub(super) fn say(&self, bytes: impl Into<Bytes>) {
        self.inner.lock().writers.last().unwrap().send(bytes.into()).unwrap();
    }

    /// Closes all connections.
    pub(super) fn hang_up(&self) {
        self.inner.lock().writers.clear();
    }

    /// Waits until there were as many requests that begin like this.
    pub(super) async fn until(&self, start: &str, count: usize) {
        loop {
            let asked = self.asked.notified();
            if self.requests().iter().filter(|request| request.starts_with(start)).count() >= count {
                return;
            }
            asked.await;
        }
    }
}

/// What the rest of a range that waits for credit is.
struct Waiting {
    left: Range<u64>,
    bytes: Bytes,
}

async fn serve(socket: TcpStream, inner: Arc<Mutex<Inner>>, asked: Arc<Notify>) {
    let (mut read, mut write) = socket.into_split();
    let (writer, mut written) = mpsc::unbounded_channel::<Bytes>();
    {
        let mut inner = inner.lock();
        inner.connections += 1;
        inner.writers.push(writer.clone());
    }
    // Those that are kept in `inner` alone hold the connection open.
    let writer = { writer }.downgrade();
    let writing = async move {
        while let Some(bytes) = written.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let reading = async move {
        let limits = WireLimits { head_bytes: 1 << 16, body_bytes: 1 << 16, frame_bytes: FRAME_MAX_BYTES };
        let (mut splitter, mut waiting) = (Splitter::new(limits), HashMap::new());
        loop {
            while let Some(item) = splitter.next().unwrap() {
                let Some(writer) = writer.upgrade() else { return };
                let Item::Request(request) = item else {
                    inner.lock().requests.push(format!("{item:?}"));
                    asked.notify_waiters();
                    continue;
                };
                let reaction = {
                    let mut inner = inner.lock();
                    inner.requests.push(shown(&request));
                    inner.hook.as_mut().and_then(|hook| hook(&request))
                };
                let sent = match reaction {
                    None => respond(&request, &inner, &mut waiting),
                    Some(Reaction::Send(bytes)) => bytes,
                    Some(Reaction::Ignore) => Vec::new(),
                    Some(Reaction::Close(bytes)) => {
                        let _ = writer.send(bytes.into());
                        // Written before the end is seen: the channel ends behind it.
                        inner.lock().writers.retain(|other| !other.same_channel(&writer));
                        asked.notify_waiters();
                        return;
                    }
                };
                let _ = writer.send(sent.into());
                asked.notify_waiters();
            }
            if !matches!(read.read_buf(splitter.buffer()).await, Ok(1..)) {
                return;
            }
        }
    };
    // Writing ends when nobody can send anything any more, and then the connection is closed.
    let reading = tokio::spawn(reading);
    writing.await;
    reading.abort();
}

fn shown(request: &Request<Vec<u8>>) -> String {
    let method: &str = request.method().into();
    let mut text = format!("{method} {}\n", request.request_uri().map_or("*", Url::as_str));
    for (name, value) in request.headers() {
        text += &format!("{}: {}\n", name.as_str(), value.as_str());
    }
    text + &String::from_utf8_lossy(request.body())
}

/// The response of a well-behaved server.
fn respond(request: &Request<Vec<u8>>, inner: &Mutex<Inner>, waiting: &mut HashMap<u32, Waiting>) -> Vec<u8> {
    let ok = || Outgoing::response(Version::V2_0, 200, cseq(request));
    let url = request.request_uri().map_or("", Url::as_str);
    match request.method() {
        Method::Setup => {
            let session = url.rsplit('/').next().unwrap();
            let channel = if url.contains('@') { 2 } else { 0 };
            let transport = format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1);
            let session = format!("session-{session};timeout=60");
            ok().header("Session", session).header("Transport", transport).empty().to_vec()
        }
        Method::Extension(method) if method == "READ" => {
            let mut out = ok().header_if("Session", header(request, "Session")).empty().to_vec();
            for asked in asked::reads(request.body()).unwrap() {
                read(&mut out, &asked, &inner.lock().objects, waiting);
            }
            out
        }
        Method::Extension(method) if method == "CREDIT" => {
            let mut out = ok().empty().to_vec();
            for (id, bytes) in asked::credits(request.body()).unwrap() {
                if let Some(Waiting { left, bytes: all }) = waiting.remove(&id) {
                    send(&mut out, id, left, bytes, all, waiting);
                }
            }
            out
        }
        Method::Extension(method) if method == "CANCEL" => {
            for id in asked::ids(request.body()).unwrap() {
                waiting.remove(&id);
            }
            ok().empty().to_vec()
        }
        _ => ok().empty().to_vec(),
    }
}

fn read(
    out: &mut Vec<u8>,
    asked: &Asked,
    objects: &HashMap<String, (Bytes, u64)>,
    waiting: &mut HashMap<u32, Waiting>,
) {
    let id = asked.id;
    let Some((all, version)) = objects.get(asked.object.as_str()) else {
        return record(out, id, Kind::Failure, true, 404, 0, b"");
    };
    let (length, tag) = (all.len() as u64, Tag::new(format!("v{version}")).unwrap());
    let range = match asked.part.clone() {
        Part::Nothing => 0..0,
        Part::Exactly(range) if range.end > length => {
            return record(out, id, Kind::Failure, true, 457, length, b"beyond its end");
        }
        Part::Exactly(range) => range,
        Part::Clipped(range) => range.start..range.end.min(length),
        Part::From(first) => first..length,
    };
    let unchanged = asked.known.as_ref() == Some(&tag);
    if asked.state {
        let state = State { length, modified: None, tag: Some(tag) }.encode();
        let status = if unchanged { 304 } else { 200 };
        record(out, id, Kind::State, unchanged || range.is_empty(), status, 0, &state);
    }
    if !unchanged && !range.is_empty() {
        send(out, id, range, asked.window.unwrap_or(u64::MAX), all.clone(), waiting);
    }
}

fn send(
    out: &mut Vec<u8>,
    id: u32,
    mut left: Range<u64>,
    mut room: u64,
    all: Bytes,
    waiting: &mut HashMap<u32, Waiting>,
) {
    while !left.is_empty() && room > 0 {
        let length = (left.end - left.start).min(room).min(RECORD_DATA_MAX_BYTES as u64);
        let end = left.start + length;
        let bytes = &all[left.start as usize..end as usize];
        record(out, id, Kind::Data, end == left.end, 200, left.start, bytes);
        left.start = end;
        room -= length;
    }
    if !left.is_empty() {
        waiting.insert(id, Waiting { left, bytes: all });
    }
}

/// Appends a frame with this record on channel 0.
pub(super) fn record(out: &mut Vec<u8>, id: u32, kind: Kind, last: bool, status: u16, position: u64, data: &[u8]) {
    let head = RecordHead { id, kind, last, status, position };
    out.extend_from_slice(&heads(0, Rtp { sequence: 0, timestamp: 0, ssrc: 0 }, &head, data.len()));
    out.extend_from_slice(data);
}

/// Whether a request is a READ, and of which lines.
pub(super) fn reads_of(request: &Request<Vec<u8>>) -> Option<Vec<Asked>> {
    let is_read = *request.method() == Method::Extension("READ".to_owned());
    is_read.then(|| asked::reads(request.body()).unwrap())
}

/// A response to this request.
pub(super) fn status(request: &Request<Vec<u8>>, status: u16, headers: &[(&str, &str)]) -> Reaction {
    let response = Outgoing::response(Version::V2_0, status, cseq(request));
    let response = headers.iter().fold(response, |response, (name, value)| response.header(name, value));
    Reaction::Send(response.empty().to_vec())
}
