//! A network in a process: a TCP relay that adds a round-trip delay and caps the bandwidth.
//!
//! What it models: a connection costs one round trip before its first byte; every byte travels half a round trip; all
//! connections share one bottleneck a direction, before which at most about one bandwidth-delay product queues, as in
//! a router. Delayed bytes wait in a line of their own, so delay does not limit throughput. What it does not model:
//! packets, loss and slow start; [`Stalls`] stand in for losses.
//!
//! It runs in a process of its own (`first-launch shaper …`) and tells on standard output which ports it listens on.
//! Commands on standard input: `calibrate MICROSECONDS MICROSECONDS` takes what the relay itself costs off the delay
//! of an exchange, and off that of a connection; `carried` answers with the bytes carried down and up. It ends with its standard input.

use std::collections::VecDeque;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::{Rng, SeedableRng};

/// A router's queue is rarely shorter, however near its ends are; less would be emptied by one late wake-up.
const QUEUE_MIN: Duration = Duration::from_millis(4);

/// How long a connection to the server may take; it is on this machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What the relay does.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShaperArguments {
    /// Round-trip delay in microseconds
    #[arg(long)]
    pub(crate) round_trip_us: u64,
    /// Bandwidth in each direction, in bits a second
    #[arg(long)]
    pub(crate) bits_per_second: u64,
    /// Stall a connection after about so many bytes; 0 is never
    #[arg(long, default_value_t = 0)]
    pub(crate) stall_every_bytes: u64,
    /// How long a stall is, in milliseconds
    #[arg(long, default_value_t = 200)]
    pub(crate) stall_ms: u64,
    /// A server on this machine; each gets a port
    #[arg(long, required = true)]
    pub(crate) target: Vec<SocketAddr>,
}

/// Delays of single connections, as a lost packet causes them.
#[derive(Debug, Clone, Copy)]
struct Stalls {
    every_bytes: u64,
    length: Duration,
}

/// One direction of the network, shared by all connections.
#[derive(Debug)]
struct Bottleneck {
    bytes_per_second: f64,
    queue: Duration,
    /// When the last byte that was let in leaves.
    busy_until: Mutex<Instant>,
    carried: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left numbers and whole chunks behind: both are still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bottleneck {
    fn new(bytes_per_second: f64, round_trip: Duration) -> Self {
        Self {
            bytes_per_second,
            queue: round_trip.max(QUEUE_MIN),
            busy_until: Mutex::new(Instant::now()),
            carried: AtomicU64::new(0),
        }
    }

    /// Waits until the queue has room: what comes from a server before that stays in its socket.
    fn wait_for_room(&self) {
        loop {
            let backlog = locked(&self.busy_until).saturating_duration_since(Instant::now());
            if backlog <= self.queue {
                return;
            }
            thread::sleep(backlog - self.queue);
        }
    }

    /// When the last of `bytes`, which arrive now, have left.
    fn leave(&self, bytes: usize, arrived: Instant) -> Instant {
        self.carried.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut busy_until = locked(&self.busy_until);
        *busy_until = (*busy_until).max(arrived) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        *busy_until
    }

    /// About half a millisecond's bytes: small enough for connections to take turns, large enough to be cheap.
    fn chunk_bytes(&self) -> usize {
        ((self.bytes_per_second * 0.0005) as usize).clamp(8 << 10, 64 << 10)
    }
}

/// Bytes on their way, in order.
#[derive(Debug, Default)]
struct Line {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// No more comes; the far end is told when everything arrived, at this time.
    ended: Option<Instant>,
    /// Nobody is at the far end any more.
    broken: bool,
}

#[derive(Debug)]
struct DelayLine {
    line: Mutex<Line>,
    changed: Condvar,
    /// Bytes it holds when the far end does not read, standing in for a receiver's window.
    limit: usize,
}

impl DelayLine {
    fn new(limit: usize) -> Self {
        Self { line: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Waits for room; `false` when the far end is gone.
    fn wait_for_room(&self) -> bool {
        let line = locked(&self.line);
        let held = self.changed.wait_while(line, |l| l.bytes >= self.limit && !l.broken);
        !held.unwrap_or_else(PoisonError::into_inner).broken
    }

    fn push(&self, due: Instant, chunk: Vec<u8>) {
        let mut line = locked(&self.line);
        line.bytes += chunk.len();
        line.chunks.push_back((due, chunk));
        self.changed.notify_all();
    }

    fn end(&self, due: Instant) {
        locked(&self.line).ended.get_or_insert(due);
        self.changed.notify_all();
    }

    fn break_off(&self) {
        locked(&self.line).broken = true;
        self.changed.notify_all();
    }

    /// The next chunk when it is due; `None` when no more comes.
    fn take(&self) -> Option<Vec<u8>> {
        let line = locked(&self.line);
        let held = self.changed.wait_while(line, |l| l.chunks.is_empty() && l.ended.is_none() && !l.broken);
        let mut line = held.unwrap_or_else(PoisonError::into_inner);
        if line.broken {
            return None;
        }
        let Some((due, chunk)) = line.chunks.pop_front() else {
            let ended = line.ended.unwrap_or_else(Instant::now);
            drop(line);
            sleep_until(ended);
            return None;
        };
        drop(line);
        sleep_until(due);
        locked(&self.line).bytes -= chunk.len();
        self.changed.notify_all();
        Some(chunk)
    }
}

fn sleep_until(due: Instant) {
    let wait = due.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        thread::sleep(wait);
    }
}

/// What all connections share.
#[derive(Debug)]
struct Network {
    round_trip: Duration,
    /// What the relay itself costs a round trip.
    own_cost_us: AtomicU64,
    /// What it costs a connection.
    own_connection_cost_us: AtomicU64,
    down: Bottleneck,
    up: Bottleneck,
    stalls: Option<Stalls>,
    connections: AtomicU64,
}

impl Network {
    fn one_way(&self) -> Duration {
        self.without(&self.own_cost_us) / 2
    }

    /// The delay of a connection that the relay adds.
    fn connection(&self) -> Duration {
        self.without(&self.own_connection_cost_us)
    }

    fn without(&self, own: &AtomicU64) -> Duration {
        self.round_trip.saturating_sub(Duration::from_micros(own.load(Ordering::Relaxed)))
    }

    fn line_bytes(&self) -> usize {
        ((self.down.bytes_per_second * self.round_trip.as_secs_f64()) as usize * 4).max(1 << 20)
    }
}

/// Moves bytes of one direction into its line. `not_before` is when the sender may have sent its first byte.
fn read_side(network: &Network, bottleneck: &Bottleneck, from: &TcpStream, line: &DelayLine, not_before: Instant) {
    let number = network.connections.fetch_add(1, Ordering::Relaxed);
    // The same connections stall at the same places in every run.
    let mut random = rand::rngs::StdRng::seed_from_u64(number);
    let mut next_stall = |stalls: Stalls| (-(1.0 - random.random::<f64>()).ln() * stalls.every_bytes as f64) as u64;
    let mut until_stall = network.stalls.map(&mut next_stall);
    let mut held_until = not_before;
    let mut from = from;
    loop {
        bottleneck.wait_for_room();
        if !line.wait_for_room() {
            return;
        }
        let mut chunk = vec![0; bottleneck.chunk_bytes()];
        let length = from.read(&mut chunk).unwrap_or(0);
        let arrived = Instant::now().max(not_before);
        if length == 0 {
            line.end(arrived.max(held_until) + network.one_way());
            return;
        }
        chunk.truncate(length);
        if let (Some(stalls), Some(left)) = (network.stalls, &mut until_stall) {
            match left.checked_sub(length as u64) {
                Some(rest) => *left = rest,
                None => {
                    held_until = held_until.max(arrived + stalls.length);
                    *left = next_stall(stalls);
                }
            }
        }
        let left = bottleneck.leave(length, arrived).max(held_until);
        line.push(left + network.one_way(), chunk);
    }
}

/// Hands the bytes of a line over as they are due.
fn write_side(line: &DelayLine, to: &TcpStream) {
    let mut writer = to;
    while let Some(chunk) = line.take() {
        if writer.write_all(&chunk).is_err() {
            line.break_off();
            break;
        }
    }
    // It may be closed already.
    let _ = to.shutdown(Shutdown::Write);
}

fn serve(network: &Arc<Network>, client: TcpStream, target: SocketAddr) -> Result<()> {
    let accepted = Instant::now();
    let established = accepted + network.connection();
    client.set_nodelay(true)?;
    let client = Arc::new(client);
    let up = Arc::new(DelayLine::new(network.line_bytes()));
    let down = Arc::new(DelayLine::new(network.line_bytes()));
    thread::scope(|scope| {
        scope.spawn(|| read_side(network, &network.up, &client, &up, established));
        // The server hears of the connection with its third packet.
        sleep_until(established + network.one_way());
        let server = TcpStream::connect_timeout(&target, CONNECT_DEADLINE).and_then(|server| {
            server.set_nodelay(true)?;
            // What waits in this socket is beyond the modelled queue: as little as keeps the line busy.
            rustix::net::sockopt::set_socket_recv_buffer_size(&server, 256 << 10)?;
            Ok(server)
        });
        match server {
            Ok(server) => {
                let (server, down, up) = (Arc::new(server), &down, &up);
                let (writer, reader) = (server.clone(), server.clone());
                scope.spawn(move || {
                    write_side(up, &writer);
                });
                scope.spawn(move || {
                    read_side(network, &network.down, &reader, down, established);
                });
                write_side(down, &client);
                // Either the server said everything or the client is gone; in both cases nobody waits for more.
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
                up.break_off();
                down.break_off();
                Ok(())
            }
            Err(e) => {
                let _ = client.shutdown(Shutdown::Both);
                up.break_off();
                Err(e).with_context(|| format!("cannot connect to {target}"))
            }
        }
    })
}

/// Runs the relay until standard input ends.
pub(crate) fn run(arguments: &ShaperArguments) -> Result<()> {
    // Inherited by the threads: without it a sleep ends up to 50 us late, which a LAN's delay is not much more than.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).context("asking for exact timers")?;
    let round_trip = Duration::from_micros(arguments.round_trip_us);
    let bytes_per_second = arguments.bits_per_second as f64 / 8.0;
    let stalls = (arguments.stall_every_bytes > 0).then(|| Stalls {
        every_bytes: arguments.stall_every_bytes,
        length: Duration::from_millis(arguments.stall_ms),
    });
    let network = Arc::new(Network {
        round_trip,
        own_cost_us: AtomicU64::new(0),
        own_connection_cost_us: AtomicU64::new(0),
        down: Bottleneck::new(bytes_per_second, round_trip),
        up: Bottleneck::new(bytes_per_second, round_trip),
        stalls,
        connections: AtomicU64::new(0),
    });
    let mut ports = Vec::new();
    for target in arguments.target.iter().copied() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        ports.push(listener.local_addr()?.port().to_string());
        let network = network.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                let network = network.clone();
                thread::spawn(move || {
                    if let Err(e) = serve(&network, client, target) {
                        eprintln!("shaper: {e:#}");
                    }
                });
            }
        });
    }
    let mut out = std::io::stdout();
    writeln!(out, "{}", ports.join(" ")).and_then(|()| out.flush()).context("telling the ports")?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("reading a command")?;
        match line.split_once(' ') {
            Some(("calibrate", costs)) => {
                let (exchange, connection) = costs.split_once(' ').context("calibrate takes two numbers")?;
                for (cost, place) in [(exchange, &network.own_cost_us), (connection, &network.own_connection_cost_us)] {
                    place.store(cost.parse().context("calibrate takes microseconds")?, Ordering::Relaxed);
                }
            }
            None if line == "carried" => {
                let carried = [&network.down, &network.up].map(|b| b.carried.load(Ordering::Relaxed));
                writeln!(out, "{} {}", carried[0], carried[1]).and_then(|()| out.flush()).context("answering")?;
            }
            _ => bail!("unknown command {line:?}"),
        }
    }
    Ok(())
}
