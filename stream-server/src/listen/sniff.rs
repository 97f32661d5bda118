//! What somebody speaks who has just connected, from the first bytes.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head of a first request that is waited for here; a longer one is refused by whoever gets it.
const HEAD_MAX_BYTES: usize = 16 << 10;
/// Longest first line.
const LINE_MAX_BYTES: usize = 4 << 10;
/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS record with a handshake in it (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// What somebody speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// TLS, with something in it.
    Tls,
    /// HTTP/1.1, or nothing that is known: an HTTP/1.1 server says best what is wrong with it.
    Http1,
    /// HTTP/2.
    Http2,
    /// RTSP of any version.
    Rtsp,
}

/// Reads from `stream` until it is clear what is spoken; for HTTP/1.1, until its first request's head is there. Gives
/// back what was read; `None` if nothing came before the end.
pub(super) async fn sniff<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<(Bytes, Speech)>> {
    let mut came = BytesMut::with_capacity(1024);
    let mut looked_at = 0;
    loop {
        if let Some(speech) = speech(&came, looked_at) {
            return Ok(Some((came.freeze(), speech)));
        }
        looked_at = came.len();
        if stream.read_buf(&mut came).await? == 0 {
            return Ok((!came.is_empty()).then(|| (came.freeze(), Speech::Http1)));
        }
    }
}

/// What these first bytes are; `None` if more of them are needed, as was said of the first `looked_at`.
fn speech(came: &[u8], looked_at: usize) -> Option<Speech> {
    if *came.first()? == HANDSHAKE {
        return Some(Speech::Tls);
    }
    if came.starts_with(HTTP2) {
        return Some(Speech::Http2);
    }
    if HTTP2.starts_with(came) {
        return None;
    }
    // A request may have empty lines before it (RFC 9112, section 2.2).
    let begins = came.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(came.len());
    let request = &came[begins..];
    let Some(end) = request.iter().position(|b| *b == b'\n') else {
        return (came.len() >= LINE_MAX_BYTES).then_some(Speech::Http1);
    };
    let version = request[..end].trim_ascii_end().rsplit(|b| *b == b' ').next().unwrap_or_default();
    if version.starts_with(b"RTSP/") {
        return Some(Speech::Rtsp);
    }
    // Whoever dribbles shall not make this look through everything again and again.
    let new = &came[looked_at.saturating_sub(3)..];
    let is_whole = new.windows(4).any(|w| w == b"\r\n\r\n") || new.windows(2).any(|w| w == b"\n\n");
    (is_whole || came.len() >= HEAD_MAX_BYTES).then_some(Speech::Http1)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn first_bytes_tell_what_is_spoken() {
        let long = [b"GET /".as_slice(), &[b'a'; HEAD_MAX_BYTES]].concat();
        let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(HEAD_MAX_BYTES / 6 + 1)].concat();
        for (bytes, expected) in [
            (b"\x16\x03\x01".as_slice(), Speech::Tls),
            (HTTP2, Speech::Http2),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Speech::Http1),
            (b"\r\nGET / HTTP/1.0\n\n", Speech::Http1),
            (b"PRI / HTTP/1.1\r\n\r\n", Speech::Http1),
            (b"OPTIONS rtsp://h/app RTSP/1.0\r\n", Speech::Rtsp),
            (b"\r\n\r\nOPTIONS * RTSP/2.0\n", Speech::Rtsp),
            (b"DESCRIBE rtsp://h/app RTSP/9.9 \r\n", Speech::Rtsp),
            (b"OPTIONS * HTTP/1.1\r\n\r\n", Speech::Http1),
            (b"GET /RTSP/1.0 HTTP/1.1\r\n\r\n", Speech::Http1),
            (b"nonsense\r\n\r\n", Speech::Http1),
            (&long, Speech::Http1),
            (&many, Speech::Http1),
        ] {
            assert_eq!(speech(bytes, 0), Some(expected), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
        for bytes in [b"".as_slice(), b"P", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", &HTTP2[..20], b"\r\n\r\n"] {
            assert_eq!(speech(bytes, 0), None, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn bytes_may_come_one_by_one() {
        for (bytes, expected) in [
            (HTTP2, Speech::Http2),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), Speech::Http1),
            (b"OPTIONS * RTSP/1.0\r\n", Speech::Rtsp),
        ] {
            let (mut client, mut server) = tokio::io::duplex(1);
            let sent = tokio::spawn(async move {
                client.write_all(bytes).await.unwrap();
                client
            });
            let (came, speech) = sniff(&mut server).await.unwrap().unwrap();
            assert_eq!((&came[..], speech), (bytes, expected));
            drop(sent.await);
        }
        let (client, mut server) = tokio::io::duplex(1);
        drop(client);
        assert!(sniff(&mut server).await.unwrap().is_none());
    }
}
