use std::time::Duration;

use fs_core::backend::rtsp::record::{Kind, State};
use fs_core::backend::rtsp::wire::header;

use super::talk::Talk;
use super::{PACK, numbers, stage};
use crate::stage::{Running, Stage, serve};

const URL: &str = "rtsp://h/team/app";

/// A client with a session, and what must live as long as it does.
struct Reader {
    talk: Talk,
    session: String,
    _server: Running,
    stage: Stage,
}

impl Reader {
    async fn of(length: usize) -> Self {
        let stage = stage(length);
        let server = serve(&stage.settings()).await;
        let mut talk = Talk::with(server.address).await;
        let session = talk.setup(URL, &[]).await;
        Self { talk, session, _server: server, stage }
    }

    /// Makes a request with these lines; its status.
    async fn ask(&mut self, method: &str, lines: &str) -> u16 {
        let headers = [("Session", self.session.as_str()), ("Require", "org.streamfs.read")];
        let response = self.talk.ask(&format!("{method} {URL} RTSP/2.0"), &headers, lines).await;
        response.status().into()
    }
}

#[tokio::test]
async fn many_ranges_are_read_at_once() {
    let all = numbers(3_000_000);
    let mut reader = Reader::of(all.len()).await;
    let ranges =
        [(1u32, 0usize..1), (2, 0..3_000_000), (3, 2_999_999..3_000_000), (4, 65_502..65_505), (5, 7..1_000_007)];
    let lines: Vec<String> = ranges.iter().map(|(id, r)| format!("{id} {PACK} {}-{}", r.start, r.end - 1)).collect();
    assert_eq!(reader.ask("READ", &lines.join("\n")).await, 200);
    let mut came: Vec<Vec<u8>> = vec![Vec::new(); ranges.len()];
    let mut left = ranges.len();
    while left > 0 {
        let record = reader.talk.record().await;
        let (_, range) = &ranges[record.head.id as usize - 1];
        let bytes = &mut came[record.head.id as usize - 1];
        assert_eq!((record.head.kind, record.head.position), (Kind::Data, (range.start + bytes.len()) as u64));
        bytes.extend_from_slice(&record.data);
        left -= usize::from(record.head.last);
        assert_eq!(record.head.last, bytes.len() == range.len());
    }
    for ((id, range), bytes) in ranges.iter().zip(came) {
        assert!(bytes == all[range.clone()], "{id}");
    }
}

#[tokio::test]
async fn parts_are_as_documented() {
    let all = numbers(1_000);
    let mut reader = Reader::of(all.len()).await;
    std::fs::write(reader.stage.content().join("team/app/metadata/empty"), "").unwrap();
    let lines = format!(
        "1 {PACK} 990-1009\n2 {PACK} 990-1009 clip\n3 {PACK} 990-\n4 {PACK} - state\n5 packs/nothing 0-9\n\
         6 metadata/empty 0- state\n7 metadata/empty 0-\n8 {PACK} 2000-\n9 {PACK} 1000-1009 clip state"
    );
    assert_eq!(reader.ask("READ", &lines).await, 200);
    // They come in any order, so each is picked from all.
    let mut records = Vec::new();
    let mut open = 9;
    while open > 0 {
        let record = reader.talk.record().await;
        open -= u32::from(record.head.last);
        records.push(record);
    }
    let of = |id: u32| records.iter().filter(move |record| record.head.id == id).collect::<Vec<_>>();
    let bytes = |id: u32| of(id).iter().flat_map(|record| record.data.to_vec()).collect::<Vec<_>>();
    let status = |id: u32| (of(id)[0].head.kind, of(id)[0].head.status, of(id)[0].head.position);
    assert_eq!(status(1), (Kind::Failure, 457, 1_000), "the failure tells how long it is");
    assert_eq!(bytes(2), all[990..]);
    assert_eq!(bytes(3), all[990..]);
    let state = State::parse(of(4)[0].data.clone()).unwrap();
    assert!(state.length == 1_000 && state.modified.is_some() && state.tag.is_some() && of(4).len() == 1);
    assert_eq!(status(5), (Kind::Failure, 404, 0));
    assert_eq!((of(6).len(), of(6)[0].head.kind), (1, Kind::State));
    assert_eq!((of(7).len(), of(7)[0].head.kind, bytes(7).len()), (1, Kind::Data, 0));
    assert_eq!(status(8), (Kind::Failure, 457, 1_000));
    assert_eq!((of(9).len(), of(9)[0].head.kind), (1, Kind::State));
    // What is known is not sent again.
    let tag = state.tag.unwrap();
    assert_eq!(reader.ask("READ", &format!("10 {PACK} 0- state known={}", tag.as_str())).await, 200);
    let answer = reader.talk.answer(10).await;
    assert!(answer.bytes.is_empty() && answer.state.unwrap().0 == 304);
    assert_eq!(reader.ask("READ", &format!("11 {PACK} 0- state known=other")).await, 200);
    assert_eq!(reader.talk.answer(11).await.bytes, all);
}

#[tokio::test]
async fn windows_hold_until_there_is_credit() {
    let mut reader = Reader::of(500_000).await;
    assert_eq!(reader.ask("READ", &format!("1 {PACK} 0- window=100000")).await, 200);
    let mut came = 0;
    while came < 100_000 {
        came += reader.talk.record().await.data.len();
    }
    assert_eq!(came, 100_000);
    // Something else overtakes it, so nothing more of it was on its way.
    assert_eq!(reader.ask("READ", &format!("2 {PACK} 0-9")).await, 200);
    assert_eq!(reader.talk.record().await.head.id, 2);
    assert_eq!(reader.ask("CREDIT", "1 50000\n99 5").await, 200);
    while came < 150_000 {
        came += reader.talk.record().await.data.len();
    }
    assert_eq!(came, 150_000);
    assert_eq!(reader.ask("CREDIT", "1 9999999").await, 200);
    assert_eq!(reader.talk.answer(1).await.bytes.len(), 350_000);
}

#[tokio::test]
async fn what_is_cancelled_stops() {
    let mut reader = Reader::of(64 << 20).await;
    assert_eq!(reader.ask("READ", &format!("1 {PACK} 0-\n2 {PACK} 0- window=10")).await, 200);
    reader.talk.record().await;
    // More than sockets hold, so that it is under way still.
    assert_eq!(reader.ask("CANCEL", "1\n2").await, 200);
    reader.talk.frames.clear();
    // Its id is free again, and what comes is of the new one alone.
    assert_eq!(reader.ask("READ", &format!("1 {PACK} 4-7")).await, 200);
    assert_eq!(reader.talk.answer(1).await.bytes, [0, 0, 0, 1]);
}

/// A reader that waits does not stand behind a stream that nobody waits for: neither behind what the server has read of it,
/// nor behind anything but what the sockets hold already.
#[tokio::test]
async fn who_waits_overtakes_a_stream() {
    let mut reader = Reader::of(256 << 20).await;
    assert_eq!(reader.ask("READ", &format!("1 {PACK} 0-")).await, 200);
    let mut before = 0usize;
    while before < 8 << 20 {
        before += reader.talk.record().await.data.len();
    }
    assert_eq!(reader.ask("READ", &format!("2 {PACK} 0-99999 urgent")).await, 200);
    let (mut behind, mut came) = (0usize, 0);
    while came < 100_000 {
        let record = reader.talk.record().await;
        match record.head.id {
            1 => behind += record.data.len(),
            _ => came += record.data.len(),
        }
    }
    assert!(behind < 24 << 20, "{behind} bytes of the stream came first");
}

#[tokio::test]
async fn a_stream_pauses_and_goes_on() {
    let mut reader = Reader::of(10).await;
    // As a launch object would, it takes longer than the sockets hold.
    let head = numbers(64 << 20);
    let app = reader.stage.content().join("team/app");
    let whole = [&std::fs::read(app.join("head")).unwrap()[..], &head].concat();
    std::fs::write(app.join("head"), &whole).unwrap();
    let session = reader.session.clone();
    let within = [("Session", session.as_str())];
    let play = reader.talk.ask(&format!("PLAY {URL} RTSP/2.0"), &within, "").await;
    assert_eq!(header(&play, "Range"), Some("npt=0-"));
    let pause = reader.talk.ask(&format!("PAUSE {URL} RTSP/2.0"), &within, "").await;
    assert_eq!(u16::from(pause.status()), 200);
    // What is on its way still comes; then nothing does but what is asked for.
    assert_eq!(reader.ask("READ", &format!("7 {PACK} 0-3 urgent")).await, 200);
    let mut came = 0;
    loop {
        let record = reader.talk.record().await;
        match record.head.id {
            0 => came += record.data.len(),
            _ => break,
        }
    }
    assert!(came < whole.len(), "it was paused in time");
    reader.talk.ask(&format!("PLAY {URL} RTSP/2.0"), &within, "").await;
    while came < whole.len() {
        let record = reader.talk.record().await;
        assert_eq!(record.head.position, came as u64, "it goes on where it was");
        came += record.data.len();
    }
}

#[tokio::test]
async fn a_stream_keeps_the_pace_that_was_asked_for() {
    let mut reader = Reader::of(10).await;
    let app = reader.stage.content().join("team/app");
    let whole = [&std::fs::read(app.join("head")).unwrap()[..], &numbers(300_000)].concat();
    std::fs::write(app.join("head"), &whole).unwrap();
    let began = std::time::Instant::now();
    let headers = [("Session", reader.session.as_str()), ("Bandwidth", "4000000")];
    reader.talk.ask(&format!("PLAY {URL} RTSP/2.0"), &headers, "").await;
    let mut came = 0;
    while came < whole.len() {
        came += reader.talk.record().await.data.len();
    }
    // 2.4 Mbit at 4 Mbit/s are 0.6 s, of which the last batch is there early.
    assert!(began.elapsed() > Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn places_are_bounded() {
    let mut reader = Reader::of(1_000_000).await;
    let lines =
        |from: u32| (from..from + 256).map(|id| format!("{id} {PACK} 0- window=1")).collect::<Vec<_>>().join("\n");
    assert_eq!(reader.ask("READ", &lines(1)).await, 200);
    assert_eq!(reader.ask("READ", &lines(257)).await, 200);
    assert_eq!(reader.ask("READ", &format!("600 {PACK} 0-1")).await, 453);
    assert_eq!(reader.ask("CANCEL", "5").await, 200);
    assert_eq!(reader.ask("READ", &format!("600 {PACK} 0-1")).await, 200);
    assert_eq!(reader.talk.answer(600).await.bytes, [0, 0]);
}
