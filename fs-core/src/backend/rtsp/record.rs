//! Records: what interleaved frames carry, for both sides of the connection.
//!
//! A frame is `$`, a channel, a length (RFC 2326 §10.12, RFC 7826 §14), and then one RTP packet (RFC 3550 §5.1), so that
//! any RTSP client can tell where it ends and what it is. The packet's payload is one record, in network byte order:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | id of the request that it answers; 0 for what PLAY streams |
//! | 1 | kind: 0 data, 1 state, 2 failure |
//! | 1 | flags: bit 0 is set on the last record of a request |
//! | 2 | status: 200; of a state 304 where the object is unchanged; of a failure why |
//! | 8 | position in the object of the first byte; of a failure with status 457 the object's length |
//! | 4 | length of what follows, up to the end of the packet |
//! | … | the bytes; a [`State`]; or words for a log, in UTF-8 |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest packet in a frame: its length has 16 bits.
pub const FRAME_MAX_BYTES: usize = 65_535;
/// `$`, channel, length.
pub const FRAME_HEAD_BYTES: usize = 4;
/// The fixed part of an RTP header; nothing of ours has more.
pub const RTP_HEAD_BYTES: usize = 12;
/// What stands before a record's data.
pub const RECORD_HEAD_BYTES: usize = 20;
/// Most data in one record.
pub const RECORD_DATA_MAX_BYTES: usize = FRAME_MAX_BYTES - RTP_HEAD_BYTES - RECORD_HEAD_BYTES;
/// All that stands before a record's data in a frame.
pub const HEADS_BYTES: usize = FRAME_HEAD_BYTES + RTP_HEAD_BYTES + RECORD_HEAD_BYTES;
/// The dynamic payload type (RFC 3551 §3) that SDP maps to records.
pub const PAYLOAD_TYPE: u8 = 96;
/// Ticks a second of the RTP timestamps.
pub const CLOCK_HZ: u32 = 90_000;
/// Longest [`Tag`].
pub const TAG_MAX_BYTES: usize = 64;

/// RTP version 2, no padding, no extension, no contributing sources.
const RTP_FIRST_BYTE: u8 = 0x80;
const LAST: u8 = 1;
const MARKER: u8 = 0x80;

/// A packet that is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRecord(&'static str);

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the object.
    Data,
    /// How long the object is, and by what its state can be told.
    State,
    /// The request failed.
    Failure,
}

/// What stands before a record's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// The request that it answers.
    pub id: u32,
    /// What it tells.
    pub kind: Kind,
    /// Whether nothing more comes for that request.
    pub last: bool,
    /// As in a response of RTSP.
    pub status: u16,
    /// Where in the object the data begins.
    pub position: u64,
}

/// A record as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What stands before its data.
    pub head: RecordHead,
    /// Its data.
    pub data: Bytes,
}

/// What changes from one RTP packet of a stream to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtp {
    /// Counts packets, modulo 65,536.
    pub sequence: u16,
    /// In ticks of [`CLOCK_HZ`].
    pub timestamp: u32,
    /// Which source it is from.
    pub ssrc: u32,
}

/// Everything that stands in a frame before `data_bytes` of data, which are at most [`RECORD_DATA_MAX_BYTES`].
pub fn heads(channel: u8, rtp: Rtp, head: &RecordHead, data_bytes: usize) -> Bytes {
    assert!(data_bytes <= RECORD_DATA_MAX_BYTES, "a record holds at most {RECORD_DATA_MAX_BYTES} bytes");
    let mut out = BytesMut::with_capacity(HEADS_BYTES);
    out.put_u8(b'$');
    out.put_u8(channel);
    out.put_u16((RTP_HEAD_BYTES + RECORD_HEAD_BYTES + data_bytes) as u16);
    out.put_u8(RTP_FIRST_BYTE);
    out.put_u8(PAYLOAD_TYPE | if head.last { MARKER } else { 0 });
    out.put_u16(rtp.sequence);
    out.put_u32(rtp.timestamp);
    out.put_u32(rtp.ssrc);
    out.put_u32(head.id);
    out.put_u8(match head.kind {
        Kind::Data => 0,
        Kind::State => 1,
        Kind::Failure => 2,
    });
    out.put_u8(if head.last { LAST } else { 0 });
    out.put_u16(head.status);
    out.put_u64(head.position);
    out.put_u32(data_bytes as u32);
    out.freeze()
}

impl Record {
    /// Reads the packet of one frame. Total: any bytes are a record or an error.
    ///
    /// # Errors
    /// [`NoRecord`], saying what is wrong with it.
    pub fn parse(mut packet: Bytes) -> Result<(Rtp, Self), NoRecord> {
        if packet.len() < RTP_HEAD_BYTES + RECORD_HEAD_BYTES {
            return Err(NoRecord("the packet is shorter than its heads"));
        }
        if packet.get_u8() != RTP_FIRST_BYTE {
            return Err(NoRecord("the packet is not a plain one of RTP version 2"));
        }
        if packet.get_u8() & !MARKER != PAYLOAD_TYPE {
            return Err(NoRecord("the packet is of another payload type"));
        }
        let rtp = Rtp { sequence: packet.get_u16(), timestamp: packet.get_u32(), ssrc: packet.get_u32() };
        let id = packet.get_u32();
        let kind = match packet.get_u8() {
            0 => Kind::Data,
            1 => Kind::State,
            2 => Kind::Failure,
            _ => return Err(NoRecord("the record is of an unknown kind")),
        };
        let last = match packet.get_u8() {
            0 => false,
            LAST => true,
            _ => return Err(NoRecord("the record has unknown flags")),
        };
        let (status, position) = (packet.get_u16(), packet.get_u64());
        if packet.get_u32() as usize != packet.len() {
            return Err(NoRecord("the record has another length than it says"));
        }
        if position.checked_add(packet.len() as u64).is_none() {
            return Err(NoRecord("the record lies beyond the end of any object"));
        }
        Ok((rtp, Self { head: RecordHead { id, kind, last, status, position }, data: packet }))
    }
}

/// Tells an object's state, to ask later whether it changed: what stands in `MTag`, without quotes. 1 to 64 ASCII letters,
/// digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// Checks `text` and wraps it.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let fits = (1..=TAG_MAX_BYTES).contains(&text.len());
        let ok = fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        ok.then_some(Self(text))
    }

    /// The tag of a state that an origin tells by `validator`, which is not shown: it may tell of the origin's insides.
    pub fn of(validator: &super::super::Validator) -> Self {
        Self(blake3::hash(validator.0.as_bytes()).to_hex()[..32].to_owned())
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Data of a record of kind [`Kind::State`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Length of the object: 8 bytes.
    pub length: u64,
    /// When it changed last, if the server knows: 8 bytes, seconds since 1970; 0 if not.
    pub modified: Option<SystemTime>,
    /// What tells its state: the rest, if the server knows one.
    pub tag: Option<Tag>,
}

impl State {
    /// The record's data.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + 8 + TAG_MAX_BYTES);
        out.put_u64(self.length);
        let since = self.modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        out.put_u64(since.map_or(0, |since| since.as_secs()));
        out.put_slice(self.tag.as_ref().map_or("", Tag::as_str).as_bytes());
        out.freeze()
    }

    /// Reads a record's data.
    ///
    /// # Errors
    /// [`NoRecord`] if it is too short, or has something else than a tag in it.
    pub fn parse(mut data: Bytes) -> Result<Self, NoRecord> {
        let mut number = || data.try_get_u64().map_err(|_| NoRecord("the state of an object is cut off"));
        let (length, since) = (number()?, Duration::from_secs(number()?));
        let modified = Some(since).filter(|since| !since.is_zero()).and_then(|since| UNIX_EPOCH.checked_add(since));
        let tag = match std::str::from_utf8(&data) {
            Ok("") => None,
            Ok(text) => Some(Tag::new(text).ok_or(NoRecord("the tag of an object is not one"))?),
            Err(_) => return Err(NoRecord("the tag of an object is not text")),
        };
        Ok(Self { length, modified, tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTP: Rtp = Rtp { sequence: 0x0102, timestamp: 0x0304_0506, ssrc: 0x0708_090a };

    fn head() -> RecordHead {
        RecordHead { id: 0x1112_1314, kind: Kind::Data, last: true, status: 200, position: 0x2122_2324_2526_2728 }
    }

    /// Fixed bytes: others implement this from docs/RTSP.md.
    #[test]
    fn the_heads_are_as_documented() {
        let heads = heads(4, RTP, &head(), 3);
        let expected = [
            "24040023",                 // $, channel, 12 + 20 + 3
            "80e00102030405060708090a", // RTP with the marker
            "11121314",
            "00",
            "01",
            "00c8",
            "2122232425262728",
            "00000003",
        ];
        assert_eq!(hex::encode(&heads), expected.concat());
        assert_eq!(heads.len(), HEADS_BYTES);
    }

    fn packet(head: &RecordHead, data: &[u8]) -> Bytes {
        [&heads(0, RTP, head, data.len())[FRAME_HEAD_BYTES..], data].concat().into()
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in [Kind::Data, Kind::State, Kind::Failure] {
            for data in [&b""[..], b"abc", &[7; RECORD_DATA_MAX_BYTES]] {
                let head = RecordHead { kind, last: kind == Kind::State, ..head() };
                let (rtp, record) = Record::parse(packet(&head, data)).unwrap();
                assert_eq!((rtp, record.head), (RTP, head));
                assert_eq!(record.data, data);
            }
        }
    }

    #[test]
    fn the_longest_record_fills_a_frame() {
        let heads = heads(0, RTP, &head(), RECORD_DATA_MAX_BYTES);
        assert_eq!(heads[2..4], [0xff, 0xff]);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let good = packet(&head(), b"abc");
        for (at, what) in [(0, "version"), (1, "payload type"), (16, "kind"), (17, "flags"), (31, "length")] {
            let mut changed = good.to_vec();
            changed[at] ^= 0x12;
            let error = Record::parse(changed.into()).unwrap_err().to_string();
            assert!(error.contains(what), "{at}: {error}");
        }
        for length in 0..good.len() {
            assert!(Record::parse(good.slice(..length)).is_err(), "{length}");
        }
        let far = RecordHead { position: u64::MAX - 1, ..head() };
        assert!(Record::parse(packet(&far, b"abc")).is_err());
    }

    #[test]
    fn states_are_read_and_written() {
        let modified = Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        for state in [
            State { length: 5, modified: None, tag: None },
            State { length: u64::MAX, modified, tag: Tag::new("aZ-_09") },
        ] {
            assert_eq!(State::parse(state.encode()).unwrap(), state);
        }
        for (numbers, tag) in [(15, &b""[..]), (16, b"a b"), (16, b"\xff")] {
            assert!(State::parse([&[1; 16][..numbers], tag].concat().into()).is_err(), "{numbers}");
        }
        assert_eq!(Tag::new(""), None);
        assert_eq!(Tag::new("x".repeat(TAG_MAX_BYTES + 1)), None);
    }
}
