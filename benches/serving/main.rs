//! How fast the streaming server sends: its protocols beside each other, and beside nginx, in one run.
//!
//! ```text
//! stream   one connection, one object from its beginning to its end        nginx / streamfs
//! blocks   many blocks of an object, 64 asked for at a time                HTTP/2 / RTSP, both from streamfs by TLS
//! ```
//!
//! Each measurement is repeated, in turns, so that what else the machine does meets all alike. Everything runs on one
//! machine: client and server share its processors, so the ratios mean more than the rates.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use fs_core::backend::{Backend, ObjectPath, ReadOptions, open};
use fs_core::config::OriginConfig;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tests::{Nginx, Served, Streamfs};
use tokio::runtime::Runtime;

/// Measures how fast the streaming server sends
#[derive(Debug, Parser)]
struct Arguments {
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Length of the object, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..))]
    mebibytes: u64,
    /// Length of a block, in KiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    block_kib: u64,
    /// Write what was measured to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Blocks that are asked for at a time, as launches ask.
const IN_FLIGHT: usize = 64;
const OBJECT: &str = "packs/cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd";
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One way to have bytes sent, and how long it took each time.
struct Way {
    name: &'static str,
    send: Box<dyn Fn() -> anyhow::Result<u64>>,
    took: Vec<Duration>,
    bytes: u64,
}

impl Way {
    fn new(name: &'static str, send: impl Fn() -> anyhow::Result<u64> + 'static) -> Self {
        Self { name, send: Box::new(send), took: Vec::new(), bytes: 0 }
    }

    fn median_seconds(&self) -> f64 {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[took.len() / 2].as_secs_f64()
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.median_seconds()
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name("streamfs");
    if !program.exists() {
        bail!("{} is missing; build it: cargo build --release -p cli", program.display());
    }
    let user = Streamfs::with_program(&program);
    let content = user.folder("content");
    let length = arguments.mebibytes << 20;
    make(&user, &content, length)?;
    let trial = user.folder("tls");
    let server = Served::start(&user, &content, &["--tls-trial", trial.to_str().context("plain")?]);
    let nginx = Nginx::http(&content);
    let runtime = Arc::new(Runtime::new()?);
    let config = OriginConfig { ca_files: vec![trial.join("ca.pem")], ..OriginConfig::default() };
    let backend = |scheme: &str| -> anyhow::Result<Arc<dyn Backend>> {
        Ok(open(&format!("{}/app", server.url(scheme)).parse()?, &config)?)
    };
    let block = arguments.block_kib << 10;
    let whole = |address: SocketAddr| move || stream_whole(address, length);
    let by_blocks = |backend: Arc<dyn Backend>| {
        let runtime = runtime.clone();
        move || runtime.block_on(read_blocks(&*backend, length, block))
    };
    let in_one = |backend: Arc<dyn Backend>| {
        let runtime = runtime.clone();
        move || runtime.block_on(read_whole(&*backend, length))
    };
    let mut ways = [
        Way::new("stream: nginx, HTTP/1.1", whole(nginx.address())),
        Way::new("stream: streamfs, HTTP/1.1", whole(server.address())),
        Way::new("stream: streamfs, HTTP/2 by TLS", in_one(backend("https")?)),
        Way::new("stream: streamfs, RTSP by TLS", in_one(backend("rtsps")?)),
        Way::new("stream: streamfs, RTSP", in_one(backend("rtsp")?)),
        Way::new("blocks: streamfs, HTTP/2 by TLS", by_blocks(backend("https")?)),
        Way::new("blocks: streamfs, RTSP by TLS", by_blocks(backend("rtsps")?)),
        Way::new("blocks: streamfs, HTTP/1.1", by_blocks(backend("http")?)),
        Way::new("blocks: streamfs, RTSP", by_blocks(backend("rtsp")?)),
    ];
    for way in &ways {
        // What is measured is sending, not the disk.
        (way.send)()?;
    }
    for run in 0..arguments.runs {
        for way in &mut ways {
            let begun = Instant::now();
            way.bytes = (way.send)()?;
            way.took.push(begun.elapsed());
            if way.bytes != length {
                bail!("{}: {} of {length} bytes came", way.name, way.bytes);
            }
        }
        eprintln!("run {} of {}", run + 1, arguments.runs);
    }
    for way in &ways {
        println!("{:<34} {:>7.0} MB/s", way.name, way.rate());
    }
    let rate = |name: &str| ways.iter().find(|way| way.name == name).map_or(f64::NAN, Way::rate);
    let ratios = [
        (
            "one stream, streamfs / nginx (HTTP/1.1)",
            rate("stream: streamfs, HTTP/1.1") / rate("stream: nginx, HTTP/1.1"),
        ),
        (
            "blocks, RTSP / HTTP/2 (by TLS)",
            rate("blocks: streamfs, RTSP by TLS") / rate("blocks: streamfs, HTTP/2 by TLS"),
        ),
        (
            "one stream, RTSP / HTTP/2 (by TLS)",
            rate("stream: streamfs, RTSP by TLS") / rate("stream: streamfs, HTTP/2 by TLS"),
        ),
        ("blocks, RTSP / HTTP/1.1 (in clear)", rate("blocks: streamfs, RTSP") / rate("blocks: streamfs, HTTP/1.1")),
    ];
    for (name, ratio) in ratios {
        println!("{name:<42} {ratio:.2}");
    }
    if let Some(path) = &arguments.json {
        write_json(path, arguments, &ways, &ratios)?;
    }
    Ok(())
}

fn write_json(path: &Path, arguments: &Arguments, ways: &[Way], ratios: &[(&str, f64)]) -> anyhow::Result<()> {
    let seconds = |way: &Way| way.took.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
    let ways: Vec<Value> = ways
        .iter()
        .map(|way| json!({ "name": way.name, "seconds": seconds(way), "megabytes_per_second": way.rate() }))
        .collect();
    let ratios: Vec<Value> = ratios.iter().map(|(name, ratio)| json!({ "name": name, "ratio": ratio })).collect();
    let all = json!({
        "object_mebibytes": arguments.mebibytes,
        "block_kibibytes": arguments.block_kib,
        "in_flight": IN_FLIGHT,
        "ways": ways,
        "ratios": ratios,
    });
    std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// A package, with an object beside its own that neither compresses nor repeats.
fn make(user: &Streamfs, content: &Path, length: u64) -> anyhow::Result<()> {
    let source = user.folder("source");
    std::fs::write(source.join("small"), "small\n")?;
    let package = content.join("app");
    user.publish(&source, package.to_str().context("plain")?, "1.0");
    let mut file = std::io::BufWriter::new(std::fs::File::create(package.join(OBJECT))?);
    let mut random = StdRng::seed_from_u64(1);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..length >> 20 {
        random.fill_bytes(&mut piece);
        file.write_all(&piece)?;
    }
    Ok(file.flush()?)
}

/// The object by one plain request, with a client that costs as little as can be.
fn stream_whole(address: SocketAddr, length: u64) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET /app/{OBJECT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut buffer = vec![0; 256 << 10];
    let (mut came, mut head) = (0u64, Vec::new());
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        if came > 0 {
            came += read as u64;
            continue;
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            if !head.starts_with(b"HTTP/1.1 200") {
                bail!("{}", String::from_utf8_lossy(&head[..end]));
            }
            came = (head.len() - end - 4) as u64;
        }
    }
    if came == length { Ok(came) } else { bail!("{came} of {length} bytes came") }
}

fn object() -> ObjectPath {
    ObjectPath::new(OBJECT).expect("a plain path")
}

async fn read_range(backend: &dyn Backend, range: std::ops::Range<u64>) -> fs_core::Result<u64> {
    let options = ReadOptions { waited_for: true, ..ReadOptions::default() };
    let mut bytes = backend.read_range(&object(), range, options).await?;
    let mut came = 0;
    while let Some(piece) = bytes.try_next().await? {
        came += piece.len() as u64;
    }
    Ok(came)
}

async fn read_whole(backend: &dyn Backend, length: u64) -> anyhow::Result<u64> {
    Ok(read_range(backend, 0..length).await?)
}

async fn read_blocks(backend: &dyn Backend, length: u64, block: u64) -> anyhow::Result<u64> {
    let blocks = (0..length.div_ceil(block)).map(|n| n * block..((n + 1) * block).min(length));
    let reads = stream::iter(blocks.map(|range| read_range(backend, range))).buffer_unordered(IN_FLIGHT);
    Ok(reads.try_fold(0, |sum, came| async move { Ok(sum + came) }).await?)
}
