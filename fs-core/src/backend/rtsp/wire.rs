//! Messages and frames out of a stream of bytes, and messages into one, for both sides of the connection.
//!
//! `rtsp-types` reads a message that is here whole. What stands around that is here: where a message ends, what it may
//! cost, and what is wrong with one that cannot be read. Nothing is allocated for a length that was only announced.
//!
//! ```
//! use fs_core::backend::rtsp::wire::{Item, Splitter, WireLimits};
//! let mut splitter = Splitter::new(WireLimits { head_bytes: 1024, body_bytes: 1024, frame_bytes: 1024 });
//! splitter.buffer().extend_from_slice(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n$\0\0\x02hi");
//! assert!(matches!(splitter.next(), Ok(Some(Item::Request(_)))));
//! let Ok(Some(Item::Frame { channel: 0, payload })) = splitter.next() else { panic!() };
//! assert_eq!(payload, "hi");
//! assert!(matches!(splitter.next(), Ok(None)));
//! ```

use std::fmt::{self, Write as _};

use bytes::{Buf, Bytes, BytesMut};
use rtsp_types::{HeaderName, Message, Request, Response, Version};

/// What one message or frame may cost.
#[derive(Debug, Clone, Copy)]
pub struct WireLimits {
    /// Longest start line and headers.
    pub head_bytes: usize,
    /// Longest body.
    pub body_bytes: usize,
    /// Longest packet in a frame.
    pub frame_bytes: usize,
}

/// What a stream of RTSP consists of.
#[derive(Debug)]
pub enum Item {
    /// A packet in a frame.
    Frame {
        /// On which channel.
        channel: u8,
        /// The packet.
        payload: Bytes,
    },
    /// A request.
    Request(Request<Vec<u8>>),
    /// A response.
    Response(Response<Vec<u8>>),
    /// A request in another version of RTSP.
    OtherVersion {
        /// Its number, if it has one.
        cseq: Option<u32>,
    },
}

/// Why a stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A start line and headers without an end.
    #[error("the head of a message is longer than {0} bytes")]
    HeadTooLong(usize),
    /// A body longer than allowed.
    #[error("the body of a message is longer than {limit} bytes")]
    BodyTooLong {
        /// The limit.
        limit: usize,
        /// The message's number, if it has one.
        cseq: Option<u32>,
    },
    /// A frame longer than allowed.
    #[error("a frame is longer than {0} bytes")]
    FrameTooLong(usize),
    /// Neither a message nor a frame.
    #[error("it is not a message of RTSP")]
    Malformed {
        /// The message's number, if it has one.
        cseq: Option<u32>,
    },
}

/// Takes messages and frames out of bytes as they come.
#[derive(Debug)]
pub struct Splitter {
    limits: WireLimits,
    buffer: BytesMut,
    /// So many bytes of the buffer are known not to hold the end of a head.
    scanned: usize,
}

impl Splitter {
    /// Begins with no bytes.
    pub fn new(limits: WireLimits) -> Self {
        Self { limits, buffer: BytesMut::new(), scanned: 0 }
    }

    /// Where bytes that come are appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether a part of something is here.
    pub fn is_amid(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next message or frame; `None` if it is not here whole.
    ///
    /// # Errors
    /// [`WireError`]; what follows in the stream is then of no use.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Item>, WireError> {
        // Empty lines before a message are tolerated, as RFC 7826 §5 wants it.
        if self.scanned == 0 {
            let blank = self.buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            self.buffer.advance(blank);
        }
        match self.buffer.first() {
            None => Ok(None),
            Some(b'$') => self.frame(),
            Some(_) => self.message(),
        }
    }

    fn frame(&mut self) -> Result<Option<Item>, WireError> {
        let Some(head) = self.buffer.first_chunk::<{ super::record::FRAME_HEAD_BYTES }>() else { return Ok(None) };
        let (channel, length) = (head[1], usize::from(u16::from_be_bytes([head[2], head[3]])));
        if length > self.limits.frame_bytes {
            return Err(WireError::FrameTooLong(self.limits.frame_bytes));
        }
        if self.buffer.len() < head.len() + length {
            return Ok(None);
        }
        self.buffer.advance(super::record::FRAME_HEAD_BYTES);
        Ok(Some(Item::Frame { channel, payload: self.buffer.split_to(length).freeze() }))
    }

    fn message(&mut self) -> Result<Option<Item>, WireError> {
        let from = self.scanned.saturating_sub(3);
        let end = self.buffer[from..].windows(4).position(|w| w == b"\r\n\r\n").map(|at| from + at + 4);
        let Some(head_end) = end.filter(|end| *end <= self.limits.head_bytes) else {
            if self.buffer.len() > self.limits.head_bytes {
                return Err(WireError::HeadTooLong(self.limits.head_bytes));
            }
            self.scanned = self.buffer.len();
            return Ok(None);
        };
        let head = &self.buffer[..head_end];
        let cseq = number(head, "CSeq").ok().flatten();
        let length = match number(head, "Content-Length") {
            Ok(length) => length.unwrap_or(0) as usize,
            Err(()) => return Err(WireError::Malformed { cseq }),
        };
        if length > self.limits.body_bytes {
            return Err(WireError::BodyTooLong { limit: self.limits.body_bytes, cseq });
        }
        let total = head_end + length;
        if self.buffer.len() < total {
            // So that its end is found again at once.
            self.scanned = head_end - 1;
            return Ok(None);
        }
        self.scanned = 0;
        let message = self.buffer.split_to(total);
        if is_of_other_version(&message) {
            return Ok(Some(Item::OtherVersion { cseq }));
        }
        match Message::<Vec<u8>>::parse(&message[..]) {
            Ok((Message::Request(request), used)) if used == total => Ok(Some(Item::Request(request))),
            Ok((Message::Response(response), used)) if used == total => Ok(Some(Item::Response(response))),
            _ => Err(WireError::Malformed { cseq }),
        }
    }
}

/// The value of a header that is a number: none without the header, an error if it is something else or there are two.
fn number(head: &[u8], name: &str) -> Result<Option<u32>, ()> {
    let mut found = None;
    for line in head.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        if !line[..colon].eq_ignore_ascii_case(name.as_bytes()) {
            continue;
        }
        let value = line[colon + 1..].trim_ascii();
        let digits = (1..=10).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        let value = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok()).ok_or(())?;
        if found.replace(value).is_some() {
            return Err(());
        }
    }
    Ok(found)
}

/// Whether the first line is a request of RTSP, but neither of version 1.0 nor of 2.0.
fn is_of_other_version(message: &[u8]) -> bool {
    let line = message.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let version = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(_), Some(version), None) => version,
        _ => return false,
    };
    let Some(number) = version.strip_prefix(b"RTSP/") else { return false };
    let digits = number.split(|b| *b == b'.').all(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    digits && number != b"1.0" && number != b"2.0"
}

/// The value of a request's or response's header, by a name whose case does not matter.
pub fn header<'a>(headers: &'a impl AsRef<rtsp_types::Headers>, name: &'static str) -> Option<&'a str> {
    let name = HeaderName::from_static_str(name).ok()?;
    Some(headers.as_ref().get(&name)?.as_str().trim())
}

/// The elements of a header that is a list.
pub fn list<'a>(headers: &'a impl AsRef<rtsp_types::Headers>, name: &'static str) -> impl Iterator<Item = &'a str> {
    let value = header(headers, name).unwrap_or_default();
    value.split(',').map(str::trim).filter(|element| !element.is_empty())
}

/// Number of a request or response.
pub fn cseq(headers: &impl AsRef<rtsp_types::Headers>) -> Option<u32> {
    header(headers, "CSeq")?.parse().ok()
}

/// How a version is written.
pub fn version_name(version: Version) -> &'static str {
    match version {
        Version::V1_0 => "RTSP/1.0",
        Version::V2_0 => "RTSP/2.0",
    }
}

/// A message that is being written. Headers stand in the order in which they are given, and a name may occur twice, which
/// `WWW-Authenticate` needs for clients that look for one scheme a line.
#[derive(Debug, Clone)]
pub struct Outgoing(String);

impl Outgoing {
    /// Begins a request.
    pub fn request(method: &str, uri: &str, version: Version, cseq: u32) -> Self {
        Self(format!("{method} {uri} {}\r\nCSeq: {cseq}\r\n", version_name(version)))
    }

    /// Begins a response.
    pub fn response(version: Version, status: u16, cseq: Option<u32>) -> Self {
        let this = Self(format!("{} {status} {}\r\n", version_name(version), reason(status)));
        match cseq {
            Some(cseq) => this.header("CSeq", cseq),
            None => this,
        }
    }

    /// Adds a header. A line break in its value would begin another header, so there is none.
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        let start = self.0.len() + name.len() + 2;
        write!(self.0, "{name}: {value}").expect("a string takes any text");
        if self.0[start..].contains(char::is_control) {
            let plain: String = self.0[start..].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            self.0.replace_range(start.., &plain);
        }
        self.0.push_str("\r\n");
        self
    }

    /// Adds a header if there is a value for it.
    pub fn header_if(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.header(name, value),
            None => self,
        }
    }

    /// The message, without a body.
    pub fn empty(mut self) -> Bytes {
        self.0.push_str("\r\n");
        self.0.into()
    }

    /// The message with a body.
    pub fn body(self, media_type: &str, body: &[u8]) -> Bytes {
        let head = self.header("Content-Type", media_type).header("Content-Length", body.len()).empty();
        [&head[..], body].concat().into()
    }
}

/// What a status means (RFC 2326 §7.1.1, RFC 7826 §17).
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        412 => "Precondition Failed",
        413 => "Request Message Body Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        451 => "Parameter Not Understood",
        453 => "Not Enough Bandwidth",
        454 => "Session Not Found",
        455 => "Method Not Valid In This State",
        456 => "Header Field Not Valid For Resource",
        457 => "Invalid Range",
        459 => "Aggregate Operation Not Allowed",
        461 => "Unsupported Transport",
        465 => "Notification Reason Unknown",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "RTSP Version Not Supported",
        551 => "Option Not Supported",
        _ => "Unnamed Status",
    }
}

#[cfg(test)]
mod tests {
    use rtsp_types::Method;

    use super::*;

    const LIMITS: WireLimits = WireLimits { head_bytes: 300, body_bytes: 20, frame_bytes: 100 };

    fn splitter(bytes: impl AsRef<[u8]>) -> Splitter {
        let mut splitter = Splitter::new(LIMITS);
        splitter.buffer().extend_from_slice(bytes.as_ref());
        splitter
    }

    const STREAM: &[u8] = b"\r\nSETUP rtsp://h/a@1 RTSP/2.0\r\nCSeq: 7\r\ncontent-length: 3\r\n\r\nabc$\x01\0\x03xyz\
        RTSP/1.0 200 OK\r\nCSeq: 8\r\n\r\n";

    fn check(items: &[Item]) {
        let [Item::Request(request), Item::Frame { channel: 1, payload }, Item::Response(response)] = items else {
            panic!("{items:?}")
        };
        assert_eq!(request.method(), &Method::Setup);
        assert_eq!((cseq(request), request.body().as_slice()), (Some(7), &b"abc"[..]));
        assert_eq!(payload, "xyz");
        assert_eq!((cseq(response), response.version()), (Some(8), Version::V1_0));
    }

    #[test]
    fn messages_and_frames_are_told_apart_however_they_come() {
        for step in [1, 2, 3, 7, STREAM.len()] {
            let (mut splitter, mut items) = (Splitter::new(LIMITS), Vec::new());
            for piece in STREAM.chunks(step) {
                splitter.buffer().extend_from_slice(piece);
                while let Some(item) = splitter.next().unwrap() {
                    items.push(item);
                }
            }
            check(&items);
            assert!(!splitter.is_amid());
        }
    }

    #[test]
    fn limits_hold() {
        assert_eq!(splitter("A".repeat(301)).next().unwrap_err(), WireError::HeadTooLong(300));
        let head = format!("OPTIONS * RTSP/1.0\r\nX: {}\r\n\r\n", "x".repeat(300));
        assert_eq!(splitter(head).next().unwrap_err(), WireError::HeadTooLong(300));
        let body = "OPTIONS * RTSP/1.0\r\nCSeq: 3\r\nContent-Length: 21\r\n\r\n";
        assert_eq!(splitter(body).next().unwrap_err(), WireError::BodyTooLong { limit: 20, cseq: Some(3) });
        assert_eq!(splitter(b"$\0\0\x65").next().unwrap_err(), WireError::FrameTooLong(100));
    }

    #[test]
    fn what_cannot_be_read_says_which_it_was() {
        for (text, number) in [
            ("OPTIONS * RTSP/1.0\r\nCSeq: 3\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nab", Some(3)),
            ("OPTIONS * RTSP/1.0\r\nContent-Length: -1\r\nCSeq: 4\r\n\r\n", Some(4)),
            ("OPTIONS * RTSP/1.0\r\nCSeq: 5\r\nContent-Length:\r\n 1\r\n\r\na", Some(5)),
            ("OPTIONS * RTSP/1.0\r\nCSeq: 5\r\nContent-Length : 1\r\n\r\na", Some(5)),
            ("OPTIONS no-url RTSP/1.0\r\nCSeq: 6\r\n\r\n", Some(6)),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
            ("\0\0\r\n\r\n", None),
            ("RTSP/1.0 2000 OK\r\nCSeq: x\r\n\r\n", None),
        ] {
            assert_eq!(splitter(text).next().unwrap_err(), WireError::Malformed { cseq: number }, "{text}");
        }
    }

    #[test]
    fn other_versions_are_recognised_and_read_past() {
        let mut splitter = splitter("OPTIONS * RTSP/3.0\r\nCSeq: 9\r\n\r\nOPTIONS * RTSP/2.0\r\nCSeq: 10\r\n\r\n");
        assert!(matches!(splitter.next(), Ok(Some(Item::OtherVersion { cseq: Some(9) }))));
        assert!(matches!(splitter.next(), Ok(Some(Item::Request(_)))));
    }

    #[test]
    fn what_is_written_is_read() {
        let request = Outgoing::request("READ", "rtsp://h/a", Version::V2_0, 4)
            .header("Session", "abc")
            .header_if("Range", None::<u32>)
            .header("X", "a\r\nInjected: 1")
            .body("text/x", b"1 head 0-");
        let Ok(Some(Item::Request(read))) = splitter(&request).next() else { panic!("{request:?}") };
        assert_eq!(read.method(), &Method::Extension("READ".into()));
        assert_eq!((header(&read, "session"), header(&read, "Injected")), (Some("abc"), None));
        assert_eq!(read.body(), b"1 head 0-");
        let response = Outgoing::response(Version::V1_0, 457, Some(4)).empty();
        assert_eq!(response, "RTSP/1.0 457 Invalid Range\r\nCSeq: 4\r\n\r\n");
    }

    #[test]
    fn lists_are_split() {
        let Ok(Some(Item::Request(request))) =
            splitter("OPTIONS * RTSP/2.0\r\nRequire: a.b, ,c\r\nRequire: d\r\n\r\n").next()
        else {
            panic!()
        };
        assert_eq!(list(&request, "Require").collect::<Vec<_>>(), ["a.b", "c", "d"]);
        assert_eq!(list(&request, "Supported").count(), 0);
    }
}
