//! A client of RTSP of a few lines.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rtsp_types::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use fs_core::backend::rtsp::record::{FRAME_MAX_BYTES, Kind, Record};
use fs_core::backend::rtsp::wire::{Item, Splitter, WireLimits, header};

pub(super) struct Talk<S = TcpStream> {
    stream: S,
    splitter: Splitter,
    cseq: u32,
    /// What the server asked for while something else was waited for, and frames that came meanwhile.
    pub(super) asked: Vec<Request<Vec<u8>>>,
    pub(super) frames: Vec<(u8, Bytes)>,
}

/// One answer by its records.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) state: Option<(u16, Bytes)>,
    pub(super) failure: Option<(u16, u64)>,
    pub(super) done: bool,
}

impl Talk<TcpStream> {
    pub(super) async fn with(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    pub(super) fn over(stream: S) -> Self {
        let limits = WireLimits { head_bytes: 1 << 16, body_bytes: 1 << 20, frame_bytes: FRAME_MAX_BYTES };
        Self { stream, splitter: Splitter::new(limits), cseq: 0, asked: Vec::new(), frames: Vec::new() }
    }

    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a request: `METHOD URL VERSION`, headers, and a body.
    pub(super) async fn send(&mut self, line: &str, headers: &[(&str, &str)], body: &str) -> u32 {
        self.cseq += 1;
        let mut text = format!("{line}\r\nCSeq: {}\r\n", self.cseq);
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        self.write(format!("{text}\r\n{body}")).await;
        self.cseq
    }

    /// Sends a request and waits for its response.
    pub(super) async fn ask(&mut self, line: &str, headers: &[(&str, &str)], body: &str) -> Response<Vec<u8>> {
        let number = self.send(line, headers, body).await;
        let response = self.response().await;
        assert_eq!(header(&response, "CSeq"), Some(number.to_string().as_str()), "{line}");
        response
    }

    /// What comes next; `None` at the end of the connection.
    pub(super) async fn item(&mut self) -> Option<Item> {
        let item = async {
            loop {
                if let Some(item) = self.splitter.next().unwrap() {
                    return Some(item);
                }
                self.splitter.buffer().reserve(1 << 16);
                match self.stream.read_buf(self.splitter.buffer()).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(600), item).await.expect("something comes")
    }

    /// The next response. What else comes before it is kept.
    pub(super) async fn response(&mut self) -> Response<Vec<u8>> {
        loop {
            match self.item().await.expect("the connection stays open") {
                Item::Response(response) => return response,
                Item::Request(request) => self.asked.push(request),
                Item::Frame { channel, payload } => self.frames.push((channel, payload)),
                Item::OtherVersion { .. } => panic!("another version of RTSP"),
            }
        }
    }

    /// The next request of the server's. Frames before it are kept.
    pub(super) async fn request(&mut self) -> Request<Vec<u8>> {
        if !self.asked.is_empty() {
            return self.asked.remove(0);
        }
        loop {
            match self.item().await.expect("the connection stays open") {
                Item::Request(request) => return request,
                Item::Frame { channel, payload } => self.frames.push((channel, payload)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next record on any channel.
    pub(super) async fn record(&mut self) -> Record {
        let payload = if self.frames.is_empty() {
            match self.item().await.expect("the connection stays open") {
                Item::Frame { payload, .. } => payload,
                other => panic!("{other:?}"),
            }
        } else {
            self.frames.remove(0).1
        };
        Record::parse(payload).unwrap().1
    }

    /// The whole answer to the request of this id, of which nothing came yet. Others' records are left out.
    pub(super) async fn answer(&mut self, id: u32) -> Answer {
        let mut answer = Answer::default();
        while !answer.done {
            let Record { head, data } = self.record().await;
            if head.id != id {
                continue;
            }
            match head.kind {
                Kind::Data => answer.bytes.extend_from_slice(&data),
                Kind::State => answer.state = Some((head.status, data)),
                Kind::Failure => answer.failure = Some((head.status, head.position)),
            }
            answer.done = head.last;
        }
        answer
    }

    /// Makes a session in RTSP 2.0; its id.
    pub(super) async fn setup(&mut self, url: &str, headers: &[(&str, &str)]) -> String {
        let mut all = vec![("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")];
        all.extend_from_slice(headers);
        let response = self.ask(&format!("SETUP {url} RTSP/2.0"), &all, "").await;
        assert_eq!(u16::from(response.status()), 200, "{response:?}");
        session(&response)
    }

    /// Waits until the server has closed the connection.
    pub(super) async fn closed(&mut self) {
        while self.item().await.is_some() {}
    }
}

/// The id of the session that a response is of.
pub(super) fn session(response: &Response<Vec<u8>>) -> String {
    header(response, "Session").unwrap().split(';').next().unwrap().to_owned()
}
