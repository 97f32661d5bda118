//! The RTP stream of one session: what its packets are numbered by, and how it ends (RFC 3550).

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use fs_core::backend::rtsp::record::{CLOCK_HZ, RECORD_HEAD_BYTES, Rtp};

/// Seconds from 1900, where NTP begins, to 1970.
const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;
/// Name of the source in RTCP; it is nobody's address.
const CNAME: &[u8] = b"streamfs";
const RTCP_FIRST_BYTE: u8 = 0x80;
const SENDER_REPORT: u8 = 200;
const SOURCE_DESCRIPTION: u8 = 202;
const BYE: u8 = 203;

/// One session's stream.
#[derive(Debug)]
pub(super) struct RtpStream {
    /// Its packets' channel; RTCP has the next.
    pub(super) channel: u8,
    pub(super) ssrc: u32,
    since: Instant,
    sequence: AtomicU16,
    packets: AtomicU32,
    octets: AtomicU32,
    /// Of objects, without heads.
    sent_bytes: AtomicU64,
}

impl RtpStream {
    pub(super) fn new(channel: u8) -> Self {
        Self {
            channel,
            ssrc: rand::random(),
            since: Instant::now(),
            sequence: AtomicU16::new(rand::random()),
            packets: AtomicU32::new(0),
            octets: AtomicU32::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// What the next packet, with so much data in its record, is numbered by.
    pub(super) fn packet(&self, data_bytes: usize) -> Rtp {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.octets.fetch_add((RECORD_HEAD_BYTES + data_bytes) as u32, Ordering::Relaxed);
        self.sent_bytes.fetch_add(data_bytes as u64, Ordering::Relaxed);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        Rtp { sequence, timestamp: self.timestamp(), ssrc: self.ssrc }
    }

    /// Bytes of objects in all packets so far.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The number of the next packet.
    pub(super) fn next_sequence(&self) -> u16 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Time since the session began, in ticks.
    pub(super) fn timestamp(&self) -> u32 {
        (self.since.elapsed().as_micros() * u128::from(CLOCK_HZ) / 1_000_000) as u32
    }

    /// A frame of RTCP that ends the stream: sender report, source description, BYE (RFC 3550 §6.1 wants all three).
    pub(super) fn bye(&self) -> Bytes {
        let mut packet = BytesMut::with_capacity(64);
        packet.put_u8(RTCP_FIRST_BYTE);
        packet.put_u8(SENDER_REPORT);
        packet.put_u16(6); // 32-bit words that follow
        packet.put_u32(self.ssrc);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        packet.put_u32((now.as_secs() + NTP_TO_UNIX_SECONDS) as u32);
        packet.put_u32(((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000) as u32);
        packet.put_u32(self.timestamp());
        packet.put_u32(self.packets.load(Ordering::Relaxed));
        packet.put_u32(self.octets.load(Ordering::Relaxed));

        // One chunk: source, CNAME item, and zeros up to the next word, at least one.
        let chunk = 4 + 2 + CNAME.len();
        let padding = 4 - chunk % 4;
        packet.put_u8(RTCP_FIRST_BYTE | 1);
        packet.put_u8(SOURCE_DESCRIPTION);
        packet.put_u16(((chunk + padding) / 4) as u16);
        packet.put_u32(self.ssrc);
        packet.put_u8(1);
        packet.put_u8(CNAME.len() as u8);
        packet.put_slice(CNAME);
        packet.put_bytes(0, padding);

        packet.put_u8(RTCP_FIRST_BYTE | 1);
        packet.put_u8(BYE);
        packet.put_u16(1);
        packet.put_u32(self.ssrc);

        let mut frame = BytesMut::with_capacity(4 + packet.len());
        frame.put_u8(b'$');
        frame.put_u8(self.channel.wrapping_add(1));
        frame.put_u16(packet.len() as u16);
        frame.put_slice(&packet);
        frame.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_are_numbered_one_after_the_other() {
        let stream = RtpStream::new(2);
        let first = stream.next_sequence();
        for n in 0..3 {
            let rtp = stream.packet(10);
            assert_eq!((rtp.sequence, rtp.ssrc), (first.wrapping_add(n), stream.ssrc));
        }
    }

    /// Walks the compound packet as a receiver does.
    #[tokio::test]
    async fn the_end_is_a_whole_compound_packet() {
        let stream = RtpStream::new(4);
        stream.packet(100);
        let frame = stream.bye();
        assert_eq!(frame[..2], [b'$', 5]);
        assert_eq!(usize::from(u16::from_be_bytes([frame[2], frame[3]])), frame.len() - 4);
        let (mut rest, mut types) = (&frame[4..], Vec::new());
        while !rest.is_empty() {
            assert_eq!(rest[0] >> 6, 2);
            let length = 4 * (usize::from(u16::from_be_bytes([rest[2], rest[3]])) + 1);
            assert_eq!(rest[4..8], stream.ssrc.to_be_bytes());
            types.push(rest[1]);
            rest = &rest[length..];
        }
        assert_eq!(types, [SENDER_REPORT, SOURCE_DESCRIPTION, BYE]);
        assert_eq!(frame[4 + 20..4 + 28], [0, 0, 0, 1, 0, 0, 0, 120], "one packet of 20 + 100 bytes");
    }
}
