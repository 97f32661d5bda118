//! Many at a time: who only is there, who asks for more than anybody can take, and who comes more often than others may.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use tests::{assert_same_tree, wait_for};

use super::wire::{Http2, Talk, connect, frame, status};
use super::{DEADLINE, LARGE, Siege, may_open};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// Whether the server has closed the connection. What it said is passed over.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// A connection that was served once, and then is only there.
fn idle(address: SocketAddr, number: usize) -> TcpStream {
    match number % 3 {
        0 => {
            let mut stream = connect(address);
            stream.write_all(HEALTH).expect("the server reads");
            let mut first = [0; 12];
            stream.read_exact(&mut first).expect("it answers");
            assert_eq!(&first, b"HTTP/1.1 200");
            stream
        }
        1 => {
            let mut http2 = Http2::connect(address, 65_535);
            assert!(http2.get(1, b"/healthz"));
            assert_eq!(http2.answer(1), (200, b"ok\n".to_vec()));
            http2.stream
        }
        _ => {
            let mut talk = Talk::with(address);
            talk.session("rtsp://h/app");
            talk.stream
        }
    }
}

/// Three thousand that are only there, and one who works: who works is done before the first of them has been sent away,
/// which is what patience with them is measured by, and each of them costs little.
#[test]
fn thousands_who_are_only_there_are_in_nobodys_way() {
    const IDLE: usize = 3000;
    /// What a connection may cost: its task, what it reads into and writes from (some KiB each), and for RTSP what waits to
    /// be sent. Thirty thousand would fit into a GiB.
    const EACH_BYTES: u64 = 32 << 10;
    may_open(IDLE as u64 + 1000);
    let siege = Siege::begin(&[]);
    let before = siege.server.most_memory();
    let mut crowd: Vec<TcpStream> = (0..IDLE).map(|number| idle(siege.address(), number)).collect();
    assert_eq!(siege.connections(), IDLE);
    let counted = |protocol| siege.server.counted("streamfs_server_connections", &[("protocol", protocol)]);
    assert!(counted("rtsp") >= IDLE as u64 / 3 && counted("http") >= IDLE as u64 / 3 * 2);
    for scheme in ["http", "rtsp"] {
        let mount = siege.user.mount(&format!("{}/app", siege.server.url(scheme)), &format!("mnt-{scheme}"));
        assert_same_tree(&siege.source, mount.path());
        mount.unmount();
    }
    let gone = crowd.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
    assert_eq!(gone, 0, "the one who works was not done before {gone} of them were sent away");
    let cost = siege.server.most_memory() - before;
    eprintln!(
        "{IDLE} idle connections took {} KiB each, {} MiB in all",
        (cost / IDLE as u64) >> 10,
        (before + cost) >> 20
    );
    assert!(cost < EACH_BYTES * IDLE as u64, "{} bytes for each of them", cost / IDLE as u64);
    drop(crowd);
    siege.survived();
}

/// One client asks for all there is, as often as it may, on many connections, and takes nothing.
#[test]
fn who_asks_for_everything_and_takes_nothing_bounds_what_is_held() {
    const CONNECTIONS: usize = 200;
    const STREAMS: u32 = 100;
    /// All connections share 128 MiB of pieces that are read, and 64 MiB of frames that are to be written; HTTP/2 holds 64 KiB
    /// of each stream, which is 32 MiB here; the program itself and what connections cost anyhow is the rest.
    const MEMORY_BYTES: u64 = 256 << 20;
    let siege = Siege::begin(&[]);
    let url = "rtsp://h/app";
    let mut all: Vec<Talk> = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut talk = Talk::with(siege.address());
        let session = talk.session(url);
        let header = format!("Session: {session}\r\n");
        // Responses are not taken either; 512 requests are under way, the rest is refused.
        talk.stream.set_write_timeout(Some(std::time::Duration::from_millis(500))).expect("a socket");
        for message in 0..7 {
            let lines: Vec<String> = (1..=100).map(|line| format!("{} {LARGE} 0-", message * 100 + line)).collect();
            if !talk.send(&format!("READ {url} RTSP/2.0"), &header, &lines.join("\n")) {
                break;
            }
        }
        all.push(talk);
    }
    // The same by HTTP/2: as many streams as may be, all with room for everything.
    let mut streams: Vec<Http2> = Vec::new();
    for _ in 0..CONNECTIONS / 40 {
        let mut http2 = Http2::connect(siege.address(), (1 << 31) - 1);
        assert!(http2.send(frame::WINDOW_UPDATE, 0, 0, &((1u32 << 31) - 1 - 65_535).to_be_bytes()));
        for stream in 0..STREAMS {
            assert!(http2.get(stream * 2 + 1, format!("/app/{LARGE}").as_bytes()));
        }
        streams.push(http2);
    }
    // All that is asked has been answered as far as it will be: the counts stand still while others are served.
    let sent = || siege.server.counted("streamfs_server_requests_total", &[("protocol", "rtsp")]);
    let mut last = 0;
    wait_for("the server to have had enough", DEADLINE, || {
        siege.is_well();
        let now = sent();
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let mount = siege.user.mount(&format!("{}/app", siege.server.url("rtsp")), "mnt-meanwhile");
    assert_same_tree(&siege.source, mount.path());
    mount.unmount();
    let most = siege.server.most_memory();
    eprintln!("{} MiB with {CONNECTIONS} connections who take nothing", most >> 20);
    assert!(most < MEMORY_BYTES, "{most} bytes");
    drop((all, streams));
    siege.survived();
}

/// The status with which a client from another address of this machine is answered; 0 if it is not.
fn from_elsewhere(siege: &Siege) -> u16 {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "20", "--interface", "127.0.0.2", "--output", "/dev/null"]);
    let answer = command.args(["--write-out", "%{http_code}", &format!("{}/healthz", siege.server.url("http"))]);
    let output = answer.output().expect("curl is installed");
    String::from_utf8_lossy(&output.stdout).parse().unwrap_or(0)
}

#[test]
fn an_address_has_so_many_connections_and_no_more() {
    let siege = Siege::begin(&["--connections-per-address", "8"]);
    let mut mine: Vec<TcpStream> = (0..8).map(|number| idle(siege.address(), number)).collect();
    // The ninth is closed before it is heard.
    let mut ninth = connect(siege.address());
    let _ = ninth.write_all(HEALTH);
    let mut answer = Vec::new();
    let _ = ninth.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(from_elsewhere(&siege), 200, "others are not held responsible");
    drop(mine.pop());
    wait_for("the place to be free", DEADLINE, || {
        let mut next = connect(siege.address());
        let _ = next.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let _ = next.read_to_end(&mut answer);
        (status(&answer) == 200).then_some(())
    });
    assert!(mine.iter_mut().all(|stream| !is_closed(stream)), "who was there stays");
    drop(mine);
    siege.survived();
}

#[test]
fn who_comes_when_all_places_are_taken_waits_for_one() {
    let siege = Siege::begin(&["--connections", "6"]);
    let mut mine: Vec<TcpStream> = (0..6).map(|number| idle(siege.address(), number)).collect();
    let mut waiting = connect(siege.address());
    waiting.write_all(HEALTH).expect("the system takes it");
    assert!(mine.iter_mut().all(|stream| !is_closed(stream)) && !is_closed(&mut waiting));
    drop(mine.pop());
    waiting.set_nonblocking(false).expect("a socket");
    let mut first = [0; 12];
    waiting.read_exact(&mut first).expect("it is served when there is room");
    assert_eq!(&first, b"HTTP/1.1 200");
    drop((mine, waiting));
    siege.survived();
}
