//! Many clients at one server: all are served, none is left behind, and the server keeps its memory.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use fs_core::backend::rtsp::READ_FEATURE;
use fs_core::backend::rtsp::asked::ASKED_TYPE;
use fs_core::backend::rtsp::record::{Kind, Record};
use fs_core::backend::rtsp::wire::{Item, Outgoing, Splitter, WireLimits};
use rtsp_types::Version;
use tests::{Served, Streamfs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Barrier;

const CLIENTS: usize = 2_000;
/// What each reads, in pieces as launches read.
const PIECES: u64 = 16;
const PIECE_BYTES: u64 = 64 << 10;
const SERVER_MEMORY_MAX_BYTES: u64 = 512 << 20;
/// Many times what it takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(300);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One simulated client: its own address, so that the server can tell it from others.
struct Client {
    number: usize,
    server: SocketAddr,
    object: Arc<Vec<u8>>,
    came: Arc<Vec<AtomicU64>>,
}

impl Client {
    async fn connect(&self) -> Result<TcpStream, Failure> {
        let number = u16::try_from(self.number + 1)?;
        let [high, low] = number.to_be_bytes();
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 1, high, low), 0).into())?;
        Ok(socket.connect(self.server).await?)
    }

    fn ranges(&self) -> impl Iterator<Item = std::ops::Range<u64>> + use<> {
        // Each begins elsewhere, as launches of different things do.
        let first = self.number as u64 % PIECES;
        (0..PIECES).map(move |n| (first + n) % PIECES * PIECE_BYTES).map(|start| start..start + PIECE_BYTES)
    }

    fn check(&self, start: u64, bytes: &[u8]) -> Result<(), Failure> {
        let start = usize::try_from(start)?;
        if self.object.get(start..start + bytes.len()) != Some(bytes) {
            return Err("other bytes came".into());
        }
        self.came[self.number].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn launch_by_http(&self, mut stream: TcpStream) -> Result<(), Failure> {
        for range in self.ranges() {
            let (first, last) = (range.start, range.end - 1);
            let request = format!("GET /app/packs/{PACK} HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-{last}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = BytesMut::new();
            let head = loop {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err("the connection ended".into());
                }
                if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end + 4;
                }
            };
            if !answer.starts_with(b"HTTP/1.1 206") {
                return Err(String::from_utf8_lossy(&answer[..head]).into());
            }
            let mut at = first;
            let mut piece = answer.split_off(head);
            loop {
                self.check(at, &piece)?;
                at += piece.len() as u64;
                if at == range.end {
                    break;
                }
                piece.clear();
                if stream.read_buf(&mut piece).await? == 0 {
                    return Err("the connection ended".into());
                }
            }
        }
        Ok(())
    }

    async fn launch_by_rtsp(&self, mut stream: TcpStream) -> Result<(), Failure> {
        let url = format!("rtsp://{}/app", self.server);
        let setup = Outgoing::request("SETUP", &url, Version::V2_0, 1)
            .header("Pipelined-Requests", 1)
            .header("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")
            .header("Require", READ_FEATURE)
            .empty();
        let lines: String = self
            .ranges()
            .enumerate()
            .map(|(n, range)| format!("{} packs/{PACK} {}-{}\r\n", n + 1, range.start, range.end - 1))
            .collect();
        let reads = Outgoing::request("READ", &url, Version::V2_0, 2)
            .header("Pipelined-Requests", 1)
            .body(ASKED_TYPE, lines.as_bytes());
        stream.write_all(&[&setup[..], &reads].concat()).await?;
        let limits = WireLimits { head_bytes: 64 << 10, body_bytes: 64 << 10, frame_bytes: 64 << 10 };
        let (mut splitter, mut ended) = (Splitter::new(limits), 0);
        while ended < PIECES {
            let Some(item) = splitter.next().map_err(|e| format!("{e:?}"))? else {
                if stream.read_buf(splitter.buffer()).await? == 0 {
                    return Err("the connection ended".into());
                }
                continue;
            };
            match item {
                Item::Response(response) if u16::from(response.status()) == 200 => {}
                Item::Frame { payload, .. } => {
                    let (_, record) = Record::parse(payload).map_err(|e| format!("{e:?}"))?;
                    if record.head.kind != Kind::Data {
                        return Err(format!("refused: {:?}", record.head).into());
                    }
                    self.check(record.head.position, &record.data)?;
                    ended += u64::from(record.head.last);
                }
                other => return Err(format!("unexpected: {other:?}").into()),
            }
        }
        Ok(())
    }
}

const PACK: &str = "abababababababababababababababababababababababababababababababab";

/// Most memory that a process has had.
fn most_memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn content(user: &Streamfs) -> (std::path::PathBuf, Arc<Vec<u8>>) {
    let (source, content) = (user.folder("source"), user.folder("content"));
    fs::write(source.join("small"), "small\n").expect("a folder of the test");
    let package = content.join("app");
    user.publish(&source, package.to_str().expect("plain"), "1.0");
    let object: Vec<u8> =
        (0..(PIECES * PIECE_BYTES / 4) as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    write(&package.join("packs").join(PACK), &object);
    (content, Arc::new(object))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a folder of the test");
}

/// Lets all clients begin at once; gives what failed. `watch` runs meanwhile.
fn launch_all<T>(
    server: &Served,
    object: &Arc<Vec<u8>>,
    came: &Arc<Vec<AtomicU64>>,
    watch: impl Future<Output = T>,
) -> (Vec<String>, T) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let barrier = Arc::new(Barrier::new(CLIENTS + 1));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client { number, server: server.address(), object: object.clone(), came: came.clone() };
                let barrier = barrier.clone();
                tokio::spawn(async move {
                    let connected = client.connect().await;
                    barrier.wait().await;
                    let stream = connected?;
                    match number % 2 {
                        0 => client.launch_by_http(stream).await,
                        _ => client.launch_by_rtsp(stream).await,
                    }
                })
            })
            .collect();
        barrier.wait().await;
        let work = async {
            let mut failures = Vec::new();
            for client in clients {
                if let Err(error) = client.await.expect("no panic") {
                    failures.push(error.to_string());
                }
            }
            failures
        };
        tokio::time::timeout(DEADLINE, async { tokio::join!(work, watch) }).await.expect("all are served")
    })
}

#[test]
fn two_thousand_clients_launch_at_once() {
    let user = Streamfs::new();
    let (content, object) = content(&user);
    let server = Served::start(&user, &content, &[]);
    let came: Arc<Vec<AtomicU64>> = Arc::new((0..CLIENTS).map(|_| AtomicU64::new(0)).collect());
    let (failures, ()) = launch_all(&server, &object, &came, async {});
    assert_eq!(failures, Vec::<String>::new());
    assert!(came.iter().all(|bytes| bytes.load(Ordering::Relaxed) == PIECES * PIECE_BYTES));
    let memory = most_memory_bytes(server.pid());
    println!("{CLIENTS} clients: the server had {} MiB at most", memory >> 20);
    assert!(memory < SERVER_MEMORY_MAX_BYTES, "{memory} bytes");
}

/// Where the line is the limit, everybody gets about as much of it.
#[test]
fn a_line_that_is_too_narrow_is_shared_fairly() {
    let user = Streamfs::new();
    let (content, object) = content(&user);
    let server = Served::start(&user, &content, &["--total-rate", "250M"]);
    let came: Arc<Vec<AtomicU64>> = Arc::new((0..CLIENTS).map(|_| AtomicU64::new(0)).collect());
    let half = CLIENTS as u64 * PIECES * PIECE_BYTES / 2;
    let counted = came.clone();
    let (failures, shares) = launch_all(&server, &object, &came, async move {
        loop {
            let mut shares: Vec<u64> = counted.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect();
            if shares.iter().sum::<u64>() >= half {
                shares.sort_unstable();
                return shares;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(failures, Vec::<String>::new());
    let (first, middle, last) = (shares[CLIENTS / 100], shares[CLIENTS / 2], shares[CLIENTS - CLIENTS / 100]);
    println!(
        "when half had come: {first} bytes for the slowest but 1 %, {middle} in the middle, {last} for the fastest but 1 %"
    );
    assert!(first * 2 >= middle && last <= middle * 2, "{first} {middle} {last}");
}
