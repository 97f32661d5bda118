//! A packet with a record in it: never a panic, and what is read is written back to the same.
#![no_main]

use bytes::Bytes;
use fs_core::backend::rtsp::record::{FRAME_HEAD_BYTES, Kind, Record, State, heads};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let packet = Bytes::copy_from_slice(bytes);
    let Ok((rtp, record)) = Record::parse(packet.clone()) else { return };
    let heads = heads(0, rtp, &record.head, record.data.len());
    let written = [&heads[FRAME_HEAD_BYTES..], &record.data].concat();
    // The marker says nothing that the flags do not say.
    assert_eq!((written[0], &written[2..]), (packet[0], &packet[2..]));
    if record.head.kind == Kind::State
        && let Ok(state) = State::parse(record.data.clone())
    {
        let again = State::parse(state.encode()).expect("it was a state");
        assert_eq!((again.length, again.tag), (state.length, state.tag));
    }
});
