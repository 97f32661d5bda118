//! Bodies of launch objects: entries into one zstd frame, and back while it arrives.

use bytes::Bytes;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::{LAUNCH_WINDOW_LOG, LaunchEntry};
use crate::error::{Error, Result};

/// zstd level of indices and profiles: they are made once and fetched at every first launch.
pub const LAUNCH_LEVEL: i32 = 19;
/// zstd level of bodies, whose tables take some 400 MiB where the window is as large as it may be.
const BODY_LEVEL: i32 = 22;
/// After so many bytes the encoder is flushed: what came before can then be decoded without what comes after. It costs
/// nothing (docs/PROFILES.md): entries rarely resemble each other so much that one set of tables suits several.
const FLUSH_EVERY_BYTES: usize = 32 << 10;

/// Decodes a body from pieces as they arrive, and gives its entries as soon as their last byte is there.
///
/// What it decodes to is not verified here: its length is, its hashes are not.
pub struct BodyDecoder {
    decoder: Decoder<'static>,
    lengths: Vec<u32>,
    /// The entry that is being decoded.
    current: usize,
    /// Room for all of it.
    bytes: Vec<u8>,
    /// How much of it there is.
    filled: usize,
    /// The frame ended, or what came is broken.
    ended: bool,
    whence: String,
}

impl std::fmt::Debug for BodyDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyDecoder").field("current", &self.current).field("of", &self.lengths.len()).finish()
    }
}

impl BodyDecoder {
    /// A decoder of the body that follows an index of these entries. `whence` names the object in errors.
    ///
    /// # Errors
    /// `Local` if there is no memory for it.
    pub fn new(entries: &[LaunchEntry], whence: impl Into<String>) -> Result<Self> {
        let no_memory = |e| Error::local("prepare", "the decoder of launch objects", e);
        let mut decoder = Decoder::new().map_err(no_memory)?;
        decoder.set_parameter(DParameter::WindowLogMax(LAUNCH_WINDOW_LOG)).map_err(no_memory)?;
        let lengths: Vec<u32> = entries.iter().map(LaunchEntry::length).collect();
        let bytes = vec![0; lengths.first().map_or(0, |length| *length as usize)];
        Ok(Self { decoder, lengths, current: 0, bytes, filled: 0, ended: false, whence: whence.into() })
    }

    /// How many entries are decoded.
    pub fn decoded(&self) -> usize {
        self.current
    }

    /// Takes the next piece of the body; `out` gets the number and the bytes of every entry that it completes, in order.
    ///
    /// # Errors
    /// `Damaged` if it is no zstd frame, needs a larger window, or decodes to less or more than the entries. The decoder
    /// then accepts nothing more; entries that it gave before may be right.
    pub fn feed(&mut self, piece: &[u8], out: &mut impl FnMut(usize, Bytes)) -> Result<()> {
        let mut rest = piece;
        if rest.is_empty() {
            return Ok(());
        }
        loop {
            if self.ended {
                return if rest.is_empty() { Ok(()) } else { Err(self.broken("something follows its last entry")) };
            }
            let complete = self.current == self.lengths.len();
            // One byte of room where nothing more may come shows whether something does.
            let mut too_much = [0];
            let room = if complete { &mut too_much[..] } else { &mut self.bytes[self.filled..] };
            let room_bytes = room.len();
            let status = match self.decoder.run_on_buffers(rest, room) {
                Ok(status) => status,
                Err(e) => return Err(self.broken(&format!("it does not decompress: {e}"))),
            };
            rest = &rest[status.bytes_read..];
            if complete && status.bytes_written > 0 {
                return Err(self.broken("it is longer than its entries"));
            }
            self.filled += status.bytes_written;
            if !complete && self.filled == self.bytes.len() {
                self.give(out);
            }
            self.ended = status.remaining == 0;
            if self.ended && self.current < self.lengths.len() {
                return Err(self.broken("it is shorter than its entries"));
            }
            // Room that is left means that nothing more comes of what was fed.
            if rest.is_empty() && status.bytes_written < room_bytes {
                return Ok(());
            }
            if !self.ended && status.bytes_read == 0 && status.bytes_written == 0 {
                return Err(self.broken("it does not decompress: it makes no progress"));
            }
        }
    }

    /// Tells that no more comes.
    ///
    /// # Errors
    /// `Damaged` if more should have come.
    pub fn finish(&mut self) -> Result<()> {
        match self.ended && self.current == self.lengths.len() {
            true => Ok(()),
            false => Err(self.broken("it is cut off")),
        }
    }

    fn give(&mut self, out: &mut impl FnMut(usize, Bytes)) {
        let next = self.lengths.get(self.current + 1).map_or(0, |length| *length as usize);
        let bytes = std::mem::replace(&mut self.bytes, vec![0; next]);
        let number = self.current;
        self.current += 1;
        self.filled = 0;
        out(number, Bytes::from(bytes));
    }

    fn broken(&mut self, reason: &str) -> Error {
        self.ended = true;
        Error::damaged(self.whence.as_str(), format!("its body is unreadable: {reason}"))
    }
}

/// Encodes a body: the same entries give the same bytes.
pub struct BodyEncoder {
    encoder: Encoder<'static>,
    stored: Vec<u8>,
    buffer: Vec<u8>,
    since_flush: usize,
}

impl BodyEncoder {
    /// An encoder of a body whose entries are `bytes` together.
    ///
    /// # Errors
    /// `Local` if there is no memory for it.
    pub fn new(bytes: u64) -> Result<Self> {
        let no_memory = |e| Error::local("prepare", "the compressor", e);
        let mut encoder = Encoder::new(BODY_LEVEL).map_err(no_memory)?;
        if bytes > 1 << LAUNCH_WINDOW_LOG {
            encoder.set_parameter(CParameter::WindowLog(LAUNCH_WINDOW_LOG)).map_err(no_memory)?;
        }
        // Short bodies take small tables then, and their readers a small window.
        encoder.set_pledged_src_size(Some(bytes)).map_err(no_memory)?;
        Ok(Self { encoder, stored: Vec::new(), buffer: vec![0; 128 << 10], since_flush: 0 })
    }

    /// Adds the bytes of an entry; gives what is ready to be written.
    ///
    /// # Errors
    /// `Local` if the compressor fails.
    pub fn add(&mut self, entry: &[u8]) -> Result<Vec<u8>> {
        let mut input = InBuffer::around(entry);
        while input.pos() < entry.len() {
            let mut output = OutBuffer::around(&mut self.buffer[..]);
            self.encoder.run(&mut input, &mut output).map_err(failed)?;
            let written = output.pos();
            self.stored.extend_from_slice(&self.buffer[..written]);
        }
        self.since_flush += entry.len();
        if self.since_flush >= FLUSH_EVERY_BYTES {
            self.since_flush = 0;
            loop {
                let mut output = OutBuffer::around(&mut self.buffer[..]);
                let left = self.encoder.flush(&mut output).map_err(failed)?;
                let written = output.pos();
                self.stored.extend_from_slice(&self.buffer[..written]);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(std::mem::take(&mut self.stored))
    }

    /// The end of the frame.
    ///
    /// # Errors
    /// `Local` if the compressor fails, or the entries were not as many bytes as was said.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        loop {
            let mut output = OutBuffer::around(&mut self.buffer[..]);
            let left = self.encoder.finish(&mut output, true).map_err(failed)?;
            let written = output.pos();
            self.stored.extend_from_slice(&self.buffer[..written]);
            if left == 0 {
                return Ok(self.stored);
            }
        }
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::local("compress", "a launch object", e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{Hash, NodeId};
    use crate::stage::noise;

    fn entries_of(parts: &[Vec<u8>]) -> Vec<LaunchEntry> {
        let entry = |part: &Vec<u8>| {
            let hash = Hash::of(part);
            LaunchEntry::Block {
                node: NodeId(2),
                offset: 0,
                length: part.len() as u32,
                prefix: super::super::hash_prefix(&hash),
            }
        };
        parts.iter().map(entry).collect()
    }

    fn encode(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut encoder = BodyEncoder::new(parts.iter().map(|part| part.len() as u64).sum()).unwrap();
        let mut body = Vec::new();
        for part in parts {
            body.extend(encoder.add(part).unwrap());
        }
        body.extend(encoder.finish().unwrap());
        body
    }

    fn parts() -> Vec<Vec<u8>> {
        let text = |seed: u32, length: u32| (0..length).map(|i| ((i * i + seed) >> 3) as u8 & 0x1f).collect();
        vec![text(1, 700), text(2, 1), text(3, 2000), text(1, 700), text(5, 30_000)]
    }

    fn decode(entries: &[LaunchEntry], pieces: &[&[u8]]) -> Result<Vec<Bytes>> {
        let mut decoder = BodyDecoder::new(entries, "launch object l")?;
        let mut got = Vec::new();
        for piece in pieces {
            decoder.feed(piece, &mut |number, bytes| {
                assert_eq!(number, got.len());
                got.push(bytes);
            })?;
            assert_eq!(decoder.decoded(), got.len());
        }
        decoder.finish()?;
        Ok(got)
    }

    #[test]
    fn bodies_return_however_they_are_split() {
        let parts = parts();
        let (entries, body) = (entries_of(&parts), encode(&parts));
        for at in 0..=body.len() {
            let got = decode(&entries, &[&body[..at], &body[at..]]).unwrap();
            assert_eq!(got, parts, "split at {at}");
        }
        let single: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(decode(&entries, &single).unwrap(), parts);
        assert!(decode(&[], &[&encode(&[])]).unwrap().is_empty());
    }

    #[test]
    fn bodies_that_are_cut_lengthened_or_belong_to_another_index_are_refused() {
        let parts = parts();
        let (entries, body) = (entries_of(&parts), encode(&parts));
        for length in 0..body.len() {
            let e = decode(&entries, &[&body[..length]]).unwrap_err().to_string();
            assert!(e.contains("launch object l") && e.contains("cut off"), "{e}");
        }
        for tail in [&[0][..], &body[..], b"\x50\x2a\x4d\x18\0\0\0\0"] {
            assert!(decode(&entries, &[&body, tail]).is_err());
            assert!(decode(&entries, &[&[&body, tail].concat()]).is_err());
        }
        let longer = decode(&entries[..4], &[&body]).unwrap_err().to_string();
        assert!(longer.contains("longer than its entries"), "{longer}");
        let more = [&entries[..], &entries[..1]].concat();
        assert!(decode(&more, &[&body]).unwrap_err().to_string().contains("shorter than its entries"));
        assert!(decode(&[], &[&body]).is_err());
        // Two frames are not one, even if their content is right together.
        let two = [encode(&parts[..2]), encode(&parts[2..])].concat();
        assert!(decode(&entries, &[&two]).is_err());
    }

    #[test]
    fn flipped_bits_never_panic_and_never_change_lengths() {
        let parts = parts();
        let (entries, body) = (entries_of(&parts), encode(&parts));
        for at in 0..body.len() {
            for bit in 0..8 {
                let mut bad = body.clone();
                bad[at] ^= 1 << bit;
                if let Ok(got) = decode(&entries, &[&bad]) {
                    assert!(got.iter().zip(&parts).all(|(got, part)| got.len() == part.len()));
                }
            }
        }
    }

    #[test]
    fn a_decoder_that_failed_stays_failed() {
        let parts = parts();
        let (entries, body) = (entries_of(&parts), encode(&parts));
        let mut decoder = BodyDecoder::new(&entries, "l").unwrap();
        decoder.feed(b"no frame", &mut |_, _| panic!("nothing comes of it")).unwrap_err();
        decoder.feed(&body, &mut |_, _| panic!("nothing comes of it")).unwrap_err();
        assert!(decoder.finish().is_err());
    }

    #[test]
    fn a_frame_that_needs_a_larger_window_is_refused() {
        let parts = parts();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(LAUNCH_WINDOW_LOG + 2).unwrap();
        for part in &parts {
            std::io::Write::write_all(&mut encoder, part).unwrap();
        }
        let e = decode(&entries_of(&parts), &[&encoder.finish().unwrap()]).unwrap_err().to_string();
        assert!(e.contains("does not decompress"), "{e}");
    }

    #[test]
    fn entries_come_soon_after_their_bytes() {
        let length = 32 << 10;
        let parts: Vec<Vec<u8>> = (0..40).map(|i| noise(i, length)).collect();
        let (entries, body) = (entries_of(&parts), encode(&parts));
        let mut decoder = BodyDecoder::new(&entries, "l").unwrap();
        let (mut fed, mut worst) = (0, 0);
        for piece in body.chunks(1000) {
            fed += piece.len();
            decoder.feed(piece, &mut |_, _| ()).unwrap();
            worst = worst.max(fed.saturating_sub(decoder.decoded() * length));
        }
        // One entry and what its frame and its piece add: no entry waits for the next.
        assert!(worst <= length + 2000, "{worst}");
        decoder.finish().unwrap();
    }
}
