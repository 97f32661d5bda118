//! Who lets the server wait: a byte now and then, none at all, or none taken of an answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::wire::{Http2, Talk, connect, frame, rest, status, told};
use super::{LARGE, Siege};

/// Between two bytes of who dribbles: no single wait for a byte is ever long.
const PAUSE: Duration = Duration::from_millis(200);
/// Of each kind of them.
const EACH: usize = 10;
/// By then all of them are gone: the longest patience is that with a client who takes nothing, a minute.
const GONE_WITHIN: Duration = Duration::from_secs(100);

/// Something that keeps the server waiting.
struct Slow {
    name: &'static str,
    stream: TcpStream,
    /// What is said again and again.
    drop: &'static [u8],
}

/// Says `first`, and again and again `drop`.
fn slow(address: SocketAddr, name: &'static str, first: impl AsRef<[u8]>, drop: &'static [u8]) -> Slow {
    let mut stream = connect(address);
    stream.write_all(first.as_ref()).expect("the server reads the beginning");
    Slow { name, stream, drop }
}

impl Slow {
    /// Whether the server has given it up.
    fn is_over(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return true,
                // Words of farewell.
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return true,
            }
        }
        matches!(self.stream.write(self.drop), Err(e) if e.kind() != ErrorKind::WouldBlock)
    }
}

/// A request in TLS that does not end, by a client that knows TLS.
fn slow_within_tls(address: SocketAddr) -> (Child, ChildStdin) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &address.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl is installed");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"GET /app/head HTTP/1.1\r\nX: ").expect("openssl reads");
    (child, input)
}

/// Is served until `over`; gives how often.
fn goes_on(address: SocketAddr, over: &AtomicBool) -> u32 {
    let mut rounds = 0;
    let mut talk = Talk::with(address);
    let url = "rtsp://h/app";
    let session = talk.session(url);
    while !over.load(Ordering::Relaxed) {
        let answer = told(address, "GET /app/head HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&answer), 200);
        assert_eq!(talk.lines("READ", url, &session, "1 head 0-"), 200);
        assert!(!talk.answer(1).expect("it is served").is_empty());
        rounds += 1;
    }
    rounds
}

#[test]
fn who_keeps_the_server_waiting_is_left() {
    let siege = Siege::with(|user, _| {
        let settings = user.folder("settings").join("config.toml");
        std::fs::write(&settings, "[server]\nidle_timeout = \"3s\"\n").expect("a folder of the test");
        let (settings, trial) = (settings.to_str().expect("plain"), user.folder("tls"));
        ["--config", settings, "--tls-trial", trial.to_str().expect("plain")].map(str::to_owned).to_vec()
    });
    let at = siege.address();
    let (get, post) = ("GET /app/head HTTP/1.1\r\nHost: x\r\n", "POST /app/launches HTTP/1.1\r\nHost: x\r\n");
    let client_hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let mut all: Vec<Slow> = Vec::new();
    for _ in 0..EACH {
        all.push(slow(at, "says nothing", "", b""));
        all.push(slow(at, "a first line", "GET /", b"a"));
        all.push(slow(at, "empty lines", "\r\n", b"\r\n"));
        all.push(slow(at, "a head of HTTP", format!("{get}X: "), b"a"));
        all.push(slow(at, "a second head of HTTP", format!("{get}\r\n{get}X: "), b"a"));
        all.push(slow(at, "idle after a request of HTTP", format!("{get}\r\n"), b""));
        all.push(slow(at, "a body", format!("{post}Content-Length: 1000\r\n\r\n"), b" "));
        all.push(slow(at, "a body in pieces", format!("{post}Transfer-Encoding: chunked\r\n\r\n"), b"1\r\n \r\n"));
        all.push(slow(at, "a body that nobody wants", format!("{get}Content-Length: 1000\r\n\r\n"), b"a"));
        all.push(slow(at, "the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM", b""));
        all.push(slow(at, "a handshake of TLS", client_hello, b"\0"));
        all.push(slow(at, "a silent handshake of TLS", client_hello, b""));
        all.push(slow(at, "a head of RTSP", "OPTIONS * RTSP/2.0\r\nCSeq: 1\r\nX: ", b"a"));
        all.push(slow(at, "a body of RTSP", "OPTIONS * RTSP/2.0\r\nCSeq: 1\r\nContent-Length: 999\r\n\r\n", b"a"));
        all.push(slow(at, "no session", "OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\n", b"\r\n"));
        all.push(slow(at, "a frame of RTSP", "OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\n$\0\x0f\x7f", b"a"));
        let mut silent = Http2::connect(at, 1 << 20);
        assert!(silent.get(1, b"/app/head"));
        all.push(Slow { name: "idle after a request of HTTP/2", stream: silent.stream, drop: b"" });
        let mut half = Http2::connect(at, 1 << 20);
        assert!(half.send(frame::HEADERS, frame::END_STREAM, 1, &[0x82]));
        all.push(Slow { name: "half a head of HTTP/2", stream: half.stream, drop: b"" });
    }
    // These ask for a lot, and take nothing of it: the sockets between here and there fill up.
    let mut takes_nothing: Vec<Slow> = Vec::new();
    for _ in 0..EACH {
        let large = format!("GET /app/{LARGE} HTTP/1.1\r\nHost: x\r\n\r\n");
        takes_nothing.push(slow(at, "takes nothing of HTTP", large, b""));
        let mut talk = Talk::with(at);
        let session = talk.session("rtsp://h/app");
        assert_eq!(talk.lines("READ", "rtsp://h/app", &session, &format!("1 {LARGE} 0-")), 200);
        takes_nothing.push(Slow { name: "takes nothing of RTSP", stream: talk.stream, drop: b"" });
        let mut stuck = Http2::connect(at, (1 << 31) - 1);
        assert!(stuck.send(frame::WINDOW_UPDATE, 0, 0, &((1u32 << 31) - 1 - 65_535).to_be_bytes()));
        assert!(stuck.get(1, format!("/app/{LARGE}").as_bytes()));
        takes_nothing.push(Slow { name: "takes nothing of HTTP/2", stream: stuck.stream, drop: b"" });
    }
    let mut within_tls: Vec<(Child, ChildStdin)> = (0..3).map(|_| slow_within_tls(at)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| goes_on(at, &over));
        let begun = Instant::now();
        let given_up = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Nobody listens here: a wait for something that does not come paces the drops.
            let clock = connect(at);
            while !all.is_empty() || !within_tls.is_empty() {
                all.retain_mut(|slow| !slow.is_over());
                within_tls.retain_mut(|(child, input)| {
                    let writes = input.write_all(b"a").is_ok();
                    let ended = child.try_wait().expect("a child").is_some();
                    if !writes && !ended {
                        // It learned that the connection is closed, and waits for the end of its input.
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    writes && !ended
                });
                let left: Vec<&str> = all.iter().map(|slow| slow.name).collect();
                assert!(begun.elapsed() < GONE_WITHIN, "not given up: {left:?}, within TLS {}", within_tls.len());
                pause(&clock);
            }
            // The server closes; what it sent before still stands in the sockets, so only its count tells. It has one of who
            // is served, and one of the clock.
            tests::wait_for("who takes nothing to be given up", GONE_WITHIN, || {
                (siege.connections() < 5).then_some(())
            });
        }));
        over.store(true, Ordering::Relaxed);
        let rounds = served.join().expect("others are served meanwhile");
        if let Err(panic) = given_up {
            for (child, _) in &mut within_tls {
                let _ = child.kill();
                let _ = child.wait();
            }
            std::panic::resume_unwind(panic);
        }
        assert!(rounds > 100, "{rounds} rounds in {:?}", begun.elapsed());
    });
    drop(takes_nothing);
    siege.survived();
}

/// Lets a moment pass.
fn pause(clock: &TcpStream) {
    clock.set_read_timeout(Some(PAUSE)).expect("a socket");
    // The server closes it sooner or later, then the moments are shorter.
    let _ = (&mut &*clock).read(&mut [0; 64]);
}

/// Who closes one half of the connection is answered, or taken to have left, but never waited for.
#[test]
fn who_says_nothing_more_is_not_waited_for() {
    let siege = Siege::begin(&[]);
    for words in
        ["GET /app/head HTTP/1.1\r\nHost: x\r\n\r\n", "DESCRIBE rtsp://h/app RTSP/1.0\r\nCSeq: 1\r\n\r\n", "", "GET /a"]
    {
        let mut stream = connect(siege.address());
        stream.write_all(words.as_bytes()).expect("the server reads");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let answer = rest(&mut stream);
        assert!([0, 200, 400].contains(&status(&answer)), "{words}: {}", String::from_utf8_lossy(&answer));
    }
    siege.survived();
}
