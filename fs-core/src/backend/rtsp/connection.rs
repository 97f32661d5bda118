//! One connection to a server: what is asked on it goes out together, what comes is handed to whoever asked for it.
//!
//! Two tasks serve a connection. One writes: it takes all orders that wait and makes as few messages of them as it can. The
//! other reads: it never waits for whoever reads a stream, since each is sent only what it has room for (the window).
//! SETUP and the first READ leave together (`Pipelined-Requests`, RFC 7826 §18.33), so that a new connection costs no round
//! trip for its session.

mod receiving;
mod sending;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::LaunchReport;
use super::LAUNCH_PARAMETER;
use super::asked::{Asked, Part};
use super::dial::Dialer;
use super::record::State;

/// How many bytes of a long range may come before somebody takes them: what a line of 640 Mbit/s brings in a round trip of
/// 100 ms, as for HTTP/2.
pub(super) const WINDOW_BYTES: u64 = 8 << 20;

/// What all connections of a backend have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) dialer: Dialer,
    /// URL of the package, without a version.
    pub(super) url: String,
    pub(super) connect_timeout: Duration,
    pub(super) stall_timeout: Duration,
    /// Whether the server is told how long launches took.
    pub(super) report_launches: bool,
    /// Counts what the server told of new versions.
    pub(super) news: watch::Sender<u64>,
}

/// Why a connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) cause: Cause,
    pub(super) reason: String,
}

/// What ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The network, or the server went away.
    Broken,
    /// The server did not keep to the protocol.
    Bad,
    /// The server refused the session.
    Refused { status: u16, retry_after: Option<Duration> },
}

impl Ended {
    fn broken(reason: impl Into<String>) -> Self {
        Self { cause: Cause::Broken, reason: reason.into() }
    }

    fn bad(reason: impl Into<String>) -> Self {
        Self { cause: Cause::Bad, reason: reason.into() }
    }
}

/// How far a connection is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Usable,
    /// The server asked to go elsewhere: what is under way is finished, nothing new begins.
    Leaving,
    Ended(Ended),
}

/// One part of an answer.
#[derive(Debug)]
pub(super) enum Event {
    /// How the object is; `unchanged` if its bytes do not follow for that.
    State { state: State, unchanged: bool },
    /// The bytes at `position`.
    Data { position: u64, bytes: Bytes },
    /// The server's refusal. `position` is the object's length where the range lies beyond it.
    Failed { status: u16, reason: String, position: u64, retry_after: Option<Duration> },
}

struct Told {
    event: Event,
    last: bool,
}

/// A request under way.
struct Flight {
    events: mpsc::UnboundedSender<Told>,
    /// Bytes that the server may have sent by now, and bytes that it has.
    granted: u64,
    received: u64,
}

struct Flights {
    /// Nothing is added once the connection ended.
    open: bool,
    by_id: HashMap<u32, Flight>,
}

/// What the writing task shall do.
enum Order {
    Read(Asked),
    Credit(u32, u64),
    Cancel(u32),
    /// Make a session for a version, so that the server knows that it is in use.
    Hold(String),
    /// Tell how long a launch took.
    Report(String),
    /// End such a session, of this id.
    Release(String, String),
    /// Send this answer to a request of the server.
    Reply(Bytes),
}

/// What a response will be to.
enum Expected {
    Setup,
    Reads(Vec<u32>),
    Hold(String),
    Nothing,
}

/// The session in which everything is read.
struct Session {
    id: String,
    channel: u8,
    timeout: Duration,
}

/// What both tasks and everybody who asks share.
struct Inner {
    context: Arc<Context>,
    /// What all requests present, if anything.
    authorization: Option<String>,
    orders: mpsc::UnboundedSender<Order>,
    flights: Mutex<Flights>,
    next_id: AtomicU32,
    expected: Mutex<HashMap<u32, Expected>>,
    session: OnceLock<Session>,
    /// Sessions of versions that are held, once the server has told them.
    held: Mutex<HashMap<String, Option<String>>>,
    phase: watch::Sender<Phase>,
    heard: Mutex<Instant>,
}

/// An open connection. Dropping it closes it.
pub(super) struct Connection {
    inner: Arc<Inner>,
    tasks: [JoinHandle<()>; 2],
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &*self.inner.phase.borrow()).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inner.end(Ended::broken("the connection was closed"));
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    /// Connects, and sends what makes a session. Whether the server grants it shows in the first answer.
    pub(super) async fn open(context: &Arc<Context>) -> Result<Arc<Self>, Ended> {
        let patience = context.connect_timeout;
        let connecting = async { tokio::try_join!(context.dialer.connect(), context.dialer.authorization()) };
        let (duplex, authorization) = match tokio::time::timeout(patience, connecting).await {
            Ok(connected) => connected.map_err(Ended::broken)?,
            Err(_) => return Err(Ended::broken(format!("connecting took longer than {} ms", patience.as_millis()))),
        };
        let (read, write) = tokio::io::split(duplex);
        let (orders, queue) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            context: context.clone(),
            authorization,
            orders,
            flights: Mutex::new(Flights { open: true, by_id: HashMap::new() }),
            next_id: AtomicU32::new(1),
            expected: Mutex::default(),
            session: OnceLock::new(),
            held: Mutex::default(),
            phase: watch::Sender::new(Phase::Usable),
            heard: Mutex::new(Instant::now()),
        });
        let (sending, receiving) = (inner.clone(), inner.clone());
        let tasks = [
            tokio::spawn(async move {
                let ended = sending::send(write, queue, &sending).await;
                sending.end(ended);
            }),
            tokio::spawn(async move {
                let ended = receiving::receive(read, &receiving).await;
                receiving.end(ended);
            }),
        ];
        Ok(Arc::new(Self { inner, tasks }))
    }

    /// Whether something new may be asked on it.
    pub(super) fn is_usable(&self) -> bool {
        matches!(*self.inner.phase.borrow(), Phase::Usable)
    }

    /// Tells when nothing new may be asked on it any more.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase.subscribe()
    }

    /// Asks for something. The id is given here.
    pub(super) fn ask(self: &Arc<Self>, mut asked: Asked) -> Result<Answer, Ended> {
        let granted = match &asked.part {
            Part::Nothing => 0,
            Part::Exactly(range) | Part::Clipped(range) => (range.end - range.start).min(WINDOW_BYTES),
            Part::From(_) => WINDOW_BYTES,
        };
        let fits = match &asked.part {
            Part::Nothing => true,
            Part::Exactly(range) | Part::Clipped(range) => range.end - range.start <= WINDOW_BYTES,
            Part::From(_) => false,
        };
        asked.window = (!fits).then_some(WINDOW_BYTES);
        let (events, told) = mpsc::unbounded_channel();
        {
            let mut flights = self.inner.flights.lock();
            if !flights.open {
                return Err(self.inner.ended());
            }
            asked.id = loop {
                let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
                // After four thousand million requests numbers come again.
                if id != 0 && !flights.by_id.contains_key(&id) {
                    break id;
                }
            };
            flights.by_id.insert(asked.id, Flight { events, granted, received: 0 });
        }
        let answer = Answer {
            connection: self.clone(),
            id: asked.id,
            told,
            credits: asked.window.is_some(),
            untold: 0,
            done: false,
        };
        self.inner.order(Order::Read(asked));
        Ok(answer)
    }

    /// Tells the server that a version is in use.
    pub(super) fn hold(&self, version: &str) {
        if self.inner.held.lock().insert(version.to_owned(), None).is_none() {
            self.inner.order(Order::Hold(version.to_owned()));
        }
    }

    /// Tells the server that a version is no longer in use.
    pub(super) fn release(&self, version: &str) {
        // If the server has not told its session yet, whoever takes the answer sees that nobody holds it any more.
        if let Some(Some(session)) = self.inner.held.lock().remove(version) {
            self.inner.order(Order::Release(version.to_owned(), session));
        }
    }

    /// Tells the server how long a launch took.
    pub(super) fn report(&self, report: &LaunchReport) {
        let text = serde_json::to_string(report).expect("plain fields have a form in JSON");
        self.inner.order(Order::Report(format!("{LAUNCH_PARAMETER}: {text}\r\n")));
    }

    /// Somebody waited for `stall` in vain. If nothing at all came meanwhile, it is the connection.
    pub(super) fn suspect(&self, stall: Duration) {
        // Something may have come just after that wait began.
        if self.inner.heard.lock().elapsed() >= stall / 2 {
            self.inner.end(Ended::broken(format!("the server sent nothing for {} ms", stall.as_millis())));
        }
    }
}

impl Inner {
    fn order(&self, order: Order) {
        // Without a task that takes it the connection has ended, and everybody is told.
        let _ = self.orders.send(order);
    }

    /// Ends the connection for everybody. Only the first reason counts.
    fn end(&self, ended: Ended) {
        let first = self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Ended(_));
            if first {
                *phase = Phase::Ended(ended);
            }
            first
        });
        if first {
            let mut flights = self.flights.lock();
            flights.open = false;
            // Whoever waits for them sees that nothing comes any more.
            flights.by_id.clear();
        }
    }

    fn leave(&self) {
        self.phase.send_if_modified(|phase| {
            let usable = matches!(phase, Phase::Usable);
            if usable {
                *phase = Phase::Leaving;
            }
            usable
        });
    }

    fn ended(&self) -> Ended {
        match &*self.phase.borrow() {
            Phase::Ended(ended) => ended.clone(),
            _ => Ended::broken("the connection is closing"),
        }
    }

    fn fail(&self, id: u32, status: u16, reason: &str, retry_after: Option<Duration>) {
        if let Some(flight) = self.flights.lock().by_id.remove(&id) {
            let event = Event::Failed { status, reason: reason.to_owned(), position: 0, retry_after };
            let _ = flight.events.send(Told { event, last: true });
        }
    }
}

/// What comes for one request. Dropping it cancels the request.
pub(super) struct Answer {
    connection: Arc<Connection>,
    id: u32,
    told: mpsc::UnboundedReceiver<Told>,
    /// Whether the server waits for credit after the window.
    credits: bool,
    /// Bytes taken that the server does not know of.
    untold: u64,
    done: bool,
}

impl Answer {
    /// What comes next; `None` when all has come.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Ended> {
        if self.done {
            return Ok(None);
        }
        let Some(Told { event, last }) = self.told.recv().await else {
            self.done = true;
            return Err(self.connection.inner.ended());
        };
        self.done = last;
        if let Event::Data { bytes, .. } = &event {
            self.took(bytes.len() as u64);
        }
        Ok(Some(event))
    }

    /// The connection on which it comes.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn took(&mut self, bytes: u64) {
        if !self.credits || self.done {
            return;
        }
        self.untold += bytes;
        // Before the window is used up, so that the line does not idle; not for every record.
        if self.untold >= WINDOW_BYTES / 4 {
            let bytes = std::mem::take(&mut self.untold);
            if let Some(flight) = self.connection.inner.flights.lock().by_id.get_mut(&self.id) {
                flight.granted += bytes;
            }
            self.connection.inner.order(Order::Credit(self.id, bytes));
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.done && self.connection.inner.flights.lock().by_id.remove(&self.id).is_some() {
            self.connection.inner.order(Order::Cancel(self.id));
        }
    }
}
