//! Clients of a few lines, that say what no library lets one say.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use bytes::Bytes;
use fs_core::backend::rtsp::record::{FRAME_MAX_BYTES, Kind, Record};
use fs_core::backend::rtsp::wire::{Item, Splitter, WireLimits, header};

use super::DEADLINE;

/// A connection on which no wait is without end.
#[track_caller]
pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.set_write_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

/// Says `words` and gives all that comes until the server closes the connection, which it must.
#[track_caller]
pub(super) fn told(address: SocketAddr, words: impl AsRef<[u8]>) -> Vec<u8> {
    let mut stream = connect(address);
    // It may have had enough before the end.
    let _ = stream.write_all(words.as_ref());
    rest(&mut stream)
}

/// Behind other words of RTSP it ends the connection at once, with 413.
pub(super) const FAREWELL: &str = "OPTIONS * RTSP/2.0\r\nCSeq: 9\r\nContent-Length: 65537\r\n\r\n";

/// All that comes until the server closes the connection, which it must.
#[track_caller]
pub(super) fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("the server does not close the connection after {:?}", String::from_utf8_lossy(&all))
        }
        // Reset, because more was said than it wanted to hear.
        _ => all,
    }
}

/// The status of an answer of HTTP/1.1 or RTSP; 0 if it is none.
pub(super) fn status(answer: &[u8]) -> u16 {
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let word = line.split(|b| *b == b' ').nth(1).unwrap_or_default();
    std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Frames of HTTP/2 (RFC 9113, section 6).
pub(super) mod frame {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
    pub(in super::super) const END_STREAM: u8 = 1;
    pub(in super::super) const END_HEADERS: u8 = 4;
}

/// A client of HTTP/2 in clear, by prior knowledge.
pub(super) struct Http2 {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Http2 {
    /// Connects, and lets the server send `window` bytes on each stream.
    #[track_caller]
    pub(super) fn connect(address: SocketAddr, window: u32) -> Self {
        let mut this = Self { stream: connect(address), buffer: Vec::new() };
        this.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the server reads");
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
        assert!(this.send(frame::SETTINGS, 0, 0, &setting));
        this
    }

    /// Sends a frame; false if the server does not listen any more.
    pub(super) fn send(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes).is_ok()
    }

    /// Asks for `path` on a stream.
    pub(super) fn get(&mut self, id: u32, path: &[u8]) -> bool {
        self.send(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, id, &get_fields(path))
    }

    /// The next frame's type, flags, stream and payload; `None` at the end of the connection.
    #[track_caller]
    pub(super) fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer[9..9 + length].to_vec();
                    self.buffer.drain(..9 + length);
                    return Some((kind, flags, id, payload));
                }
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("nothing comes on a connection of HTTP/2")
                }
                Err(_) => return None,
            }
        }
    }

    /// The answer on a stream: its status (0 if that is none of the common ones, or the stream was reset), and body.
    #[track_caller]
    pub(super) fn answer(&mut self, id: u32) -> (u16, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        while let Some((kind, flags, on, payload)) = self.frame() {
            match kind {
                frame::HEADERS if on == id => {
                    // Indexes of HPACK's static table (RFC 7541, appendix A).
                    let common =
                        [(0x88, 200), (0x89, 204), (0x8a, 206), (0x8b, 304), (0x8c, 400), (0x8d, 404), (0x8e, 500)];
                    let found = common.iter().find(|(index, _)| payload.first() == Some(index));
                    status = found.map_or(0, |(_, status)| *status);
                }
                frame::DATA if on == id => body.extend_from_slice(&payload),
                frame::RST_STREAM if on == id => break,
                frame::GOAWAY => break,
                _ => continue,
            }
            if flags & frame::END_STREAM != 0 {
                break;
            }
        }
        (status, body)
    }
}

/// The fields of a request, compressed as little as HPACK allows.
pub(super) fn get_fields(path: &[u8]) -> Vec<u8> {
    // :method GET, :scheme http, :authority x, :path
    let mut fields = vec![0x82, 0x86, 0x01, 1, b'x', 0x04];
    fields.extend(literal(path));
    fields
}

/// A field with a name that is not in the static table.
pub(super) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], literal(name), literal(value)].concat()
}

/// A string of HPACK, not compressed (RFC 7541, section 5.2).
fn literal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match text.len() {
        short @ 0..127 => out.push(short as u8),
        long => {
            out.push(127);
            let mut left = long - 127;
            while left >= 128 {
                out.push((left % 128) as u8 | 128);
                left /= 128;
            }
            out.push(left as u8);
        }
    }
    out.extend_from_slice(text);
    out
}

/// What was answered to a request of RTSP.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) session: String,
    pub(super) cseq: Option<String>,
}

/// A client of RTSP.
pub(super) struct Talk {
    pub(super) stream: TcpStream,
    splitter: Splitter,
    cseq: u32,
    frames: VecDeque<Bytes>,
}

impl Talk {
    #[track_caller]
    pub(super) fn with(address: SocketAddr) -> Self {
        let limits = WireLimits { head_bytes: 1 << 16, body_bytes: 8 << 20, frame_bytes: FRAME_MAX_BYTES };
        Self { stream: connect(address), splitter: Splitter::new(limits), cseq: 0, frames: VecDeque::new() }
    }

    /// Says words as they are; false if the server does not listen any more.
    pub(super) fn say(&mut self, words: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(words.as_ref()).is_ok()
    }

    /// Sends a request: `METHOD URL VERSION`, lines of headers, and a body.
    pub(super) fn send(&mut self, line: &str, headers: &str, body: &str) -> bool {
        self.cseq += 1;
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.say(format!("{line}\r\nCSeq: {}\r\n{headers}{length}\r\n{body}", self.cseq))
    }

    /// Sends a request and waits for its answer.
    #[track_caller]
    pub(super) fn ask(&mut self, line: &str, headers: &str, body: &str) -> Reply {
        assert!(self.send(line, headers, body), "the server listens: {line}");
        self.reply().unwrap_or_else(|| panic!("the connection ended instead of an answer: {line}"))
    }

    /// What comes next; `None` at the end of the connection.
    #[track_caller]
    fn item(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.splitter.next().expect("the server speaks RTSP") {
                return Some(item);
            }
            let mut piece = [0; 64 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => self.splitter.buffer().extend_from_slice(&piece[..read]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("nothing comes on a connection of RTSP")
                }
                Err(_) => return None,
            }
        }
    }

    /// The next answer; frames before it are kept.
    #[track_caller]
    pub(super) fn reply(&mut self) -> Option<Reply> {
        loop {
            match self.item()? {
                Item::Frame { payload, .. } => self.frames.push_back(payload),
                Item::Response(response) => {
                    let named = header(&response, "Session").and_then(|session| session.split(';').next());
                    return Some(Reply {
                        status: response.status().into(),
                        session: named.unwrap_or_default().to_owned(),
                        cseq: header(&response, "CSeq").map(str::to_owned),
                    });
                }
                Item::Request(_) | Item::OtherVersion { .. } => {}
            }
        }
    }

    /// Makes a session; its id.
    #[track_caller]
    pub(super) fn session(&mut self, url: &str) -> String {
        let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
        let reply = self.ask(&format!("SETUP {url} RTSP/2.0"), transport, "");
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.session
    }

    /// READ, CREDIT or CANCEL in a session; the status.
    #[track_caller]
    pub(super) fn lines(&mut self, method: &str, url: &str, session: &str, lines: &str) -> u16 {
        self.ask(&format!("{method} {url} RTSP/2.0"), &format!("Session: {session}\r\n"), lines).status
    }

    /// All bytes of the answer to a line, or the status that it failed with. Other lines' records are left out.
    #[track_caller]
    pub(super) fn answer(&mut self, id: u32) -> Result<Vec<u8>, u16> {
        let mut bytes = Vec::new();
        loop {
            let payload = match self.frames.pop_front() {
                Some(payload) => payload,
                None => match self.item().expect("the connection stays open") {
                    Item::Frame { payload, .. } => payload,
                    _ => continue,
                },
            };
            let Record { head, data } = Record::parse(payload).expect("frames hold records").1;
            if head.id != id {
                continue;
            }
            match head.kind {
                Kind::Data => {
                    bytes.extend_from_slice(&data);
                }
                Kind::Failure => return Err(head.status),
                Kind::State => {}
            }
            if head.last {
                return Ok(bytes);
            }
        }
    }

    /// Waits until the server has closed the connection.
    #[track_caller]
    pub(super) fn closed(&mut self) {
        while self.item().is_some() {}
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
