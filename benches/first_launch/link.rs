//! A shaped link to this machine's servers, measured before it is used.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// Farther off than this, and a link is not what its name says.
const TOLERANCE: f64 = 0.10;

/// How often a link may be measured until it is what it should be: other work on the machine disturbs it.
const ATTEMPTS: usize = 5;

/// No exchange of the check takes so long.
const CHECK_DEADLINE: Duration = Duration::from_secs(60);

/// How long the download of the check takes at the nominal rate.
const DOWNLOAD_SECONDS: f64 = 0.6;

/// A kind of network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Profile {
    /// LAN, WAN, FAR.
    pub(crate) name: &'static str,
    /// Round-trip delay.
    pub(crate) round_trip_ms: f64,
    /// Bandwidth each way.
    pub(crate) mbit_per_second: f64,
}

/// The known kinds.
pub(crate) const PROFILES: [Profile; 3] = [
    Profile { name: "LAN", round_trip_ms: 1.0, mbit_per_second: 1000.0 },
    Profile { name: "WAN", round_trip_ms: 40.0, mbit_per_second: 100.0 },
    Profile { name: "FAR", round_trip_ms: 120.0, mbit_per_second: 50.0 },
];

impl FromStr for Profile {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = PROFILES.into_iter().find(|p| p.name.eq_ignore_ascii_case(name));
        found.with_context(|| format!("no network profile is called {name}; known are LAN, WAN and FAR"))
    }
}

impl Profile {
    fn round_trip(&self) -> Duration {
        Duration::from_secs_f64(self.round_trip_ms / 1000.0)
    }

    fn bytes_per_second(&self) -> f64 {
        self.mbit_per_second * 1e6 / 8.0
    }
}

/// Loss-like stalls of single connections.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct StallOptions {
    /// After about so many bytes; 0 is never.
    pub(crate) every_bytes: u64,
    /// For so long.
    pub(crate) length_ms: u64,
}

/// What a link was measured to be.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Measured {
    /// Median of an exchange on an open connection.
    pub(crate) round_trip_ms: f64,
    /// Median of what a connection costs before its first byte.
    pub(crate) connection_ms: f64,
    /// One connection's download.
    pub(crate) mbit_per_second: f64,
    /// Four connections' download together.
    pub(crate) mbit_per_second_of_four: f64,
}

/// A running shaper. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Link {
    /// What it should be.
    pub(crate) profile: Profile,
    /// What it is.
    pub(crate) measured: Measured,
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    ports: Vec<u16>,
}

impl Link {
    /// Starts a shaper before `targets` and measures it. `strict` refuses a link that is not what it should be.
    pub(crate) fn start(profile: &Profile, targets: &[SocketAddr], stalls: StallOptions, strict: bool) -> Result<Self> {
        let checker = check_server()?;
        // A real network takes nothing from this machine's processors and never waits for them.
        let mut command = Command::new("nice");
        command.args(["-n", "-19"]).arg(std::env::current_exe().context("finding this program")?).arg("shaper");
        command.arg(format!("--round-trip-us={}", profile.round_trip().as_micros()));
        command.arg(format!("--bits-per-second={:.0}", profile.mbit_per_second * 1e6));
        command.arg(format!("--stall-every-bytes={}", stalls.every_bytes));
        command.arg(format!("--stall-ms={}", stalls.length_ms));
        for target in targets.iter().chain([&checker]) {
            command.arg(format!("--target={target}"));
        }
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the shaper")?;
        let commands = process.stdin.take().context("standard input is piped")?;
        let answers = BufReader::new(process.stdout.take().context("standard output is piped")?);
        let unknown = Measured {
            round_trip_ms: f64::NAN,
            connection_ms: f64::NAN,
            mbit_per_second: f64::NAN,
            mbit_per_second_of_four: f64::NAN,
        };
        let mut link =
            Self { profile: profile.clone(), measured: unknown, process, commands, answers, ports: Vec::new() };
        let line = link.answer()?;
        link.ports = line.split(' ').map(|p| p.parse().context("the shaper tells its ports")).collect::<Result<_>>()?;
        ensure!(link.ports.len() == targets.len() + 1, "the shaper tells one port a target");
        link.check(stalls.every_bytes > 0, strict)?;
        Ok(link)
    }

    /// The port that leads to the target of this index.
    pub(crate) fn port(&self, target: usize) -> u16 {
        self.ports[target]
    }

    /// Bytes carried so far, down and up.
    pub(crate) fn carried(&mut self) -> Result<(u64, u64)> {
        writeln!(self.commands, "carried").context("asking the shaper")?;
        let line = self.answer()?;
        let (down, up) = line.split_once(' ').context("the shaper tells two numbers")?;
        Ok((down.parse()?, up.parse()?))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line).context("reading from the shaper")?;
        ensure!(length > 0, "the shaper ended; its own message stands above");
        Ok(line.trim_end().to_owned())
    }

    /// Measures, takes the relay's own cost off its delay, measures again, and refuses what is too far off.
    fn check(&mut self, with_stalls: bool, strict: bool) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[self.ports.len() - 1]));
        let wanted_ms = self.profile.round_trip_ms;
        let (mut exchange_us, mut connection_us) = (0.0, 0.0);
        let mut problem = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt == 0 || problem.contains("round trip") {
                let (exchange_ms, connection_ms) = round_trips(address)?;
                let corrected = |own_us: f64, is_ms: f64| {
                    // Never more than half: who is so far off is refused below.
                    (own_us + (is_ms - wanted_ms) * 1000.0).clamp(0.0, wanted_ms * 500.0)
                };
                connection_us = corrected(connection_us, connection_ms);
                exchange_us = corrected(exchange_us, exchange_ms);
                writeln!(self.commands, "calibrate {exchange_us:.0} {connection_us:.0}")
                    .context("asking the shaper")?;
                // Its answer says that the command before was taken.
                self.carried()?;
            }
            let (round_trip_ms, connection_ms) = round_trips(address)?;
            let bytes = (self.profile.bytes_per_second() * DOWNLOAD_SECONDS) as u64;
            self.measured = Measured {
                round_trip_ms,
                connection_ms,
                mbit_per_second: download(address, bytes, 1)?,
                mbit_per_second_of_four: download(address, bytes / 4, 4)?,
            };
            let off = |is: f64, wanted: f64| (is / wanted - 1.0).abs() > TOLERANCE;
            problem.clear();
            if off(round_trip_ms, wanted_ms) || off(connection_ms, wanted_ms) {
                problem = format!("a round trip takes {round_trip_ms:.2} ms, a connection {connection_ms:.2} ms");
            }
            let rate = self.profile.mbit_per_second;
            // Stalls cost bandwidth: that is what they are for.
            let rates_off =
                off(self.measured.mbit_per_second, rate) || off(self.measured.mbit_per_second_of_four, rate);
            if rates_off && !with_stalls {
                problem.push_str(&format!(
                    " bandwidth is {:.1} Mbit/s, of four connections {:.1}",
                    self.measured.mbit_per_second, self.measured.mbit_per_second_of_four
                ));
            }
            if problem.is_empty() {
                break;
            }
        }
        let Measured { round_trip_ms, connection_ms, mbit_per_second, mbit_per_second_of_four } = self.measured;
        println!(
            "{}: {wanted_ms} ms and {} Mbit/s wanted; measured: round trip {round_trip_ms:.2} ms, connection \
             {connection_ms:.2} ms, {mbit_per_second:.1} Mbit/s, over four connections {mbit_per_second_of_four:.1}",
            self.profile.name, self.profile.mbit_per_second
        );
        if !problem.is_empty() {
            let name = self.profile.name;
            let text = format!("the link {name} is more than {:.0} % off:{problem}", TOLERANCE * 100.0);
            if strict {
                bail!("{text}; other work on this machine disturbs it: run again when there is less");
            }
            eprintln!("first-launch: {text}");
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server that, asked with eight bytes for a number of bytes, sends that many, and listens for the next question.
fn check_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // A client that leaves ends it.
                let _ = answer_questions(stream);
            });
        }
    });
    Ok(address)
}

fn answer_questions(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let block = vec![7; 64 << 10];
    loop {
        let mut question = [0; 8];
        stream.read_exact(&mut question)?;
        let mut left = u64::from_le_bytes(question);
        while left > 0 {
            let part = left.min(block.len() as u64);
            stream.write_all(&block[..part as usize])?;
            left -= part;
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).context("connecting through the shaper")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CHECK_DEADLINE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    stream.write_all(&bytes.to_le_bytes()).context("asking through the shaper")
}

/// Medians, in milliseconds, of an exchange and of what a connection costs more at its first.
fn round_trips(address: SocketAddr) -> Result<(f64, f64)> {
    let (mut exchanges, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let start = Instant::now();
        let mut stream = connect(address)?;
        let mut byte = [0];
        let mut exchange = |stream: &mut TcpStream| -> Result<f64> {
            let start = Instant::now();
            ask(stream, 1)?;
            stream.read_exact(&mut byte).context("waiting for an answer through the shaper")?;
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        };
        exchange(&mut stream)?;
        let first = start.elapsed().as_secs_f64() * 1000.0;
        let mut later = [exchange(&mut stream)?, exchange(&mut stream)?, exchange(&mut stream)?];
        later.sort_by(f64::total_cmp);
        connections.push(first - later[1]);
        exchanges.extend(later);
    }
    Ok((crate::measure::median(&exchanges), crate::measure::median(&connections)))
}

/// Megabits a second of `connections` downloads of `bytes` each, from the first byte that arrives to the last.
fn download(address: SocketAddr, bytes: u64, connections: usize) -> Result<f64> {
    let mut streams = (0..connections).map(|_| connect(address)).collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        ask(stream, bytes)?;
    }
    let times = thread::scope(|scope| {
        let readers: Vec<_> = streams.iter_mut().map(|stream| scope.spawn(move || read_all(stream, bytes))).collect();
        let joined = readers.into_iter().map(|reader| reader.join().expect("reading does not panic"));
        joined.collect::<Result<Vec<(Instant, Instant)>>>()
    })?;
    let first = times.iter().map(|(first, _)| *first).min().context("there are connections")?;
    let last = times.iter().map(|(_, last)| *last).max().context("there are connections")?;
    Ok(bytes as f64 * connections as f64 * 8e-6 / (last - first).as_secs_f64())
}

fn read_all(stream: &mut TcpStream, bytes: u64) -> Result<(Instant, Instant)> {
    let mut buffer = vec![0; 256 << 10];
    let mut got = 0;
    let mut first = None;
    while got < bytes {
        let length = stream.read(&mut buffer).context("downloading through the shaper")?;
        ensure!(length > 0, "a connection through the shaper ended after {got} of {bytes} bytes");
        first.get_or_insert_with(Instant::now);
        got += length as u64;
    }
    Ok((first.context("there were bytes")?, Instant::now()))
}
