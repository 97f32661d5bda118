//! Objects on a streaming server: `streamfs serve` over RTSP, in clear or under TLS. The protocol is docs/RTSP.md.
//!
//! One connection carries everything. Requests go out as they come, many in one message and many under way; their bytes
//! come back in interleaved frames in any order, what somebody waits for first. A connection that breaks is opened anew by
//! the next request, with the same sessions, and a read goes on where it broke (that is [`super::retry`]'s doing).
//!
//! [`record`], [`wire`], [`asked`], [`target`] and [`transport`] are what both sides must agree on; the server has them from
//! here.

pub mod asked;
pub mod record;
pub mod target;
pub mod transport;
pub mod wire;

mod connection;
mod dial;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use self::asked::{Asked, Part};
use self::connection::{Answer, Cause, Connection, Context, Ended, Event, Phase};
use self::dial::Dialer;
use self::record::Tag;
use super::http::{check, is_private_way};
use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
};
use crate::config::{Credentials, OriginConfig};
use crate::error::{Error, Result};
use crate::location::{PackageName, PackageVersion};

/// Feature tag of READ, CREDIT and CANCEL.
pub const READ_FEATURE: &str = "org.streamfs.read";
/// Feature tag of a client that wants to be told of new versions.
pub const NOTICES_FEATURE: &str = "org.streamfs.notices";
/// `Notify-Reason` of a PLAY_NOTIFY that tells of a new version.
pub const NEW_VERSION_REASON: &str = "org.streamfs.new-version";
/// Name of the parameter by which a client tells how long a launch took: a [`LaunchReport`] as JSON.
pub const LAUNCH_PARAMETER: &str = "org.streamfs.launch";
/// Type of a body of parameters (RFC 7826 §20.3).
pub const PARAMETERS_TYPE: &str = "text/parameters";
/// What a validator of ours begins with.
const VALIDATOR: &str = "rtsp ";
/// Pauses between tries to be told of new versions while the server is away.
const LISTEN_PAUSE_FIRST: Duration = Duration::from_secs(1);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A package on a streaming server.
pub struct RtspBackend {
    shared: Arc<Shared>,
}

impl fmt::Debug for RtspBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtspBackend").field("origin", &self.shared.origin).finish_non_exhaustive()
    }
}

struct Shared {
    context: Arc<Context>,
    origin: String,
    /// Held while connecting, so that all who need a connection wait for one.
    slot: tokio::sync::Mutex<Slot>,
    /// Locked before `current`.
    holds: Mutex<BTreeMap<String, usize>>,
    /// The connection of the slot, for those who cannot wait.
    current: Mutex<Weak<Connection>>,
    /// Whether a task keeps a connection open to hear of new versions.
    listening: AtomicBool,
}

#[derive(Default)]
struct Slot {
    connection: Option<Arc<Connection>>,
    /// When connecting failed last, and why: who waited for that need not try again.
    failed: Option<(Instant, Ended)>,
}

impl RtspBackend {
    /// Reads the package at `root`, a URL whose path ends in `/`. Connects to nothing yet.
    ///
    /// # Errors
    /// `InvalidInput` for an unusable certificate file or credentials, and for credentials that would cross the network in
    /// clear; `Local` for a certificate file that cannot be read.
    pub fn new(root: &Url, package: &PackageName, config: &OriginConfig) -> Result<Self> {
        check(&config.credentials)?;
        if config.credentials != Credentials::None && !config.allow_plaintext_credentials && !is_private_way(root) {
            return Err(Error::InvalidInput(format!(
                "credentials are not sent to {root} over plain rtsp, where anybody on the way can read them; use rtsps, or set allow_plaintext_credentials for this origin in the configuration file"
            )));
        }
        let origin = format!("{root}{package}");
        let context = Arc::new(Context {
            dialer: Dialer::new(root, config)?,
            url: origin.clone(),
            connect_timeout: config.retry.connect_timeout,
            stall_timeout: config.retry.stall_timeout,
            news: watch::Sender::new(0),
            report_launches: config.report_launches,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                context,
                origin,
                slot: tokio::sync::Mutex::default(),
                holds: Mutex::default(),
                current: Mutex::default(),
                listening: AtomicBool::new(false),
            }),
        })
    }

    fn about<'a>(&'a self, object: &'a ObjectPath) -> About<'a> {
        About { object, origin: &self.shared.origin, stall: self.shared.context.stall_timeout }
    }

    async fn ask(&self, asked: Asked) -> Result<Answer> {
        let object = asked.object.clone();
        let answer = match self.shared.connection().await {
            Ok(connection) => connection.ask(asked),
            Err(ended) => Err(ended),
        };
        answer.map_err(|ended| self.about(&object).ended(ended))
    }

    /// Asks for an object's state, and what of its bytes is wanted.
    async fn ask_state(
        &self,
        object: &ObjectPath,
        part: Part,
        known: Option<&Validator>,
    ) -> Result<(Answer, record::State, bool)> {
        let known = known.and_then(|known| Tag::new(known.0.strip_prefix(VALIDATOR)?));
        let is_conditional = known.is_some();
        let asked = Asked { id: 0, object: object.clone(), part, urgent: true, state: true, known, window: None };
        let about = self.about(object);
        let mut answer = self.ask(asked).await?;
        match about.next(&mut answer).await? {
            Some(Event::State { state, unchanged }) if is_conditional || !unchanged => Ok((answer, state, unchanged)),
            Some(Event::Failed { status, reason, position, retry_after }) => {
                Err(about.refused(status, reason, position, retry_after, None))
            }
            _ => Err(about.bad("it did not tell the object's state")),
        }
    }
}

fn validator(tag: &Tag) -> Validator {
    Validator(format!("{VALIDATOR}{}", tag.as_str()))
}

#[async_trait]
impl Backend for RtspBackend {
    fn origin(&self) -> &str {
        &self.shared.origin
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        let (_, state, _) = self.ask_state(object, Part::Nothing, None).await?;
        let record::State { length, modified, tag } = state;
        Ok(ObjectState { length, validator: tag.as_ref().map(validator), modified })
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        if range.is_empty() {
            let Range { start, end } = range;
            return Err(Error::InvalidInput(format!("the range {start}..{end} of {object} holds no bytes")));
        }
        let part = Part::Exactly(range.clone());
        let urgent = options.waited_for;
        let asked = Asked { id: 0, object: object.clone(), part, urgent, state: false, known: None, window: None };
        let answer = self.ask(asked).await?;
        let about = OwnedAbout { object: object.clone(), shared: self.shared.clone() };
        let mut pieces = Pieces { about, answer, all: range.clone(), left: range };
        // The first bytes are awaited here, so that what cannot be read at all fails in the call.
        let first = pieces.next().await?;
        Ok(stream::iter(first.map(Ok)).chain(pieces.into_stream()).boxed())
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let wanted = enough.first_bytes.filter(|wanted| *wanted > 0);
        let part = wanted.map_or(Part::From(0), |wanted| Part::Clipped(0..wanted));
        let (answer, state, unchanged) = self.ask_state(object, part, known).await?;
        if unchanged {
            return Ok(Beginning::NotModified);
        }
        if state.length > limit_bytes {
            let why = format!("it is longer than the {limit_bytes} bytes allowed");
            return Err(self.about(object).bad(why));
        }
        let all = 0..wanted.map_or(state.length, |wanted| wanted.min(state.length));
        let about = OwnedAbout { object: object.clone(), shared: self.shared.clone() };
        let mut pieces = Pieces { about, answer, all: all.clone(), left: all };
        let mut front = BytesMut::new();
        while !enough.is_in(&front)
            && let Some(piece) = pieces.next().await?
        {
            front.extend_from_slice(&piece);
        }
        let validator = state.tag.as_ref().map(validator);
        Ok(Beginning::Object { front: front.freeze(), rest: pieces.into_stream(), validator })
    }

    fn hold(&self, version: &PackageVersion) -> Hold {
        self.shared.hold(version.as_str());
        Hold::until_dropped(HeldVersion { shared: self.shared.clone(), version: version.to_string() })
    }

    async fn report_launch(&self, report: &LaunchReport) -> Result<()> {
        // Without a connection nobody would wait for one only to tell this.
        if self.shared.context.report_launches
            && let Some(connection) = self.shared.current.lock().upgrade()
        {
            connection.report(report);
        }
        Ok(())
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        let changes = self.shared.context.news.subscribe();
        Shared::listen(&self.shared);
        Some(changes)
    }
}

/// A version that somebody uses.
struct HeldVersion {
    shared: Arc<Shared>,
    version: String,
}

impl Drop for HeldVersion {
    fn drop(&mut self) {
        self.shared.release(&self.version);
    }
}

impl Shared {
    /// A connection on which something may be asked: the one there is, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, Ended> {
        let began = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some(connection) = slot.connection.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        if let Some((_, ended)) = slot.failed.as_ref().filter(|(when, _)| *when >= began) {
            return Err(ended.clone());
        }
        // What is under way on the old one keeps that alive for itself.
        slot.connection = None;
        match Connection::open(&self.context).await {
            Ok(connection) => {
                self.use_for_holds(&connection);
                slot.failed = None;
                slot.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(ended) => {
                slot.failed = Some((Instant::now(), ended.clone()));
                Err(ended)
            }
        }
    }

    /// Makes the sessions anew that the connection before had.
    fn use_for_holds(&self, connection: &Arc<Connection>) {
        let holds = self.holds.lock();
        *self.current.lock() = Arc::downgrade(connection);
        for version in holds.keys() {
            connection.hold(version);
        }
    }

    fn hold(&self, version: &str) {
        let mut holds = self.holds.lock();
        let count = holds.entry(version.to_owned()).or_default();
        *count += 1;
        if *count == 1
            && let Some(connection) = self.current.lock().upgrade()
        {
            connection.hold(version);
        }
    }

    fn release(&self, version: &str) {
        let mut holds = self.holds.lock();
        let Some(count) = holds.get_mut(version) else { return };
        *count -= 1;
        if *count == 0 {
            holds.remove(version);
            if let Some(connection) = self.current.lock().upgrade() {
                connection.release(version);
            }
        }
    }

    /// Begins to keep a connection open for what the server tells unasked, if that is not being done.
    fn listen(this: &Arc<Self>) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !this.listening.swap(true, Ordering::AcqRel)
        {
            runtime.spawn(listen(Arc::downgrade(this)));
        }
    }
}

/// Keeps a connection open while somebody wants to hear of new versions. What was told while there was none counts as news
/// afterwards.
async fn listen(shared: Weak<Shared>) {
    let (mut missed, mut pause) = (false, LISTEN_PAUSE_FIRST);
    loop {
        let Some(strong) = shared.upgrade() else { return };
        if strong.context.news.receiver_count() == 0 {
            strong.listening.store(false, Ordering::Release);
            // Somebody may have come just before.
            if strong.context.news.receiver_count() == 0 || strong.listening.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        let phase = strong.connection().await.map(|connection| connection.phase());
        if let Ok(mut phase) = phase {
            if missed {
                strong.context.news.send_modify(|news| *news = news.wrapping_add(1));
            }
            drop(strong);
            (missed, pause) = (true, LISTEN_PAUSE_FIRST);
            // An error means that the connection is gone altogether.
            let _ = phase.wait_for(|phase| !matches!(phase, Phase::Usable)).await;
        } else {
            drop(strong);
            missed = true;
        }
        // Many clients that lost a server at once do not come back at once.
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(LISTEN_PAUSE_MAX);
    }
}

/// What an answer is about, for messages.
struct About<'a> {
    object: &'a ObjectPath,
    origin: &'a str,
    stall: Duration,
}

struct OwnedAbout {
    object: ObjectPath,
    shared: Arc<Shared>,
}

impl OwnedAbout {
    fn get(&self) -> About<'_> {
        About { object: &self.object, origin: &self.shared.origin, stall: self.shared.context.stall_timeout }
    }
}

impl About<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadAnswer { object: self.object.to_string(), origin: self.origin.to_owned(), reason: reason.into() }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { object: self.object.to_string(), origin: self.origin.to_owned(), reason }
    }

    /// The connection ended, or none could be made.
    fn ended(&self, ended: Ended) -> Error {
        let Ended { cause, reason } = ended;
        match cause {
            Cause::Broken => self.unreachable(reason),
            Cause::NoTicket => {
                Error::Denied { object: self.object.to_string(), origin: self.origin.to_owned(), reason }
            }
            Cause::Bad => self.bad(format!("{reason}; is this a streamfs server?")),
            Cause::Refused { status, retry_after } => self.refused(status, reason, 0, retry_after, None),
        }
    }

    /// The server's refusal. `wanted` is the range that was asked for.
    fn refused(
        &self,
        status: u16,
        reason: String,
        position: u64,
        retry_after: Option<Duration>,
        wanted: Option<&Range<u64>>,
    ) -> Error {
        let (object, origin) = (self.object.to_string(), self.origin.to_owned());
        match status {
            404 => Error::NotFound { what: object, origin },
            401 | 403 => Error::Denied { object, origin, reason: format!("{status} {}", wire::reason(status)) },
            457 => {
                let wanted = wanted.map_or_else(String::new, |r| format!(", bytes {}..{} are needed", r.start, r.end));
                self.bad(format!(
                    "the object is shorter than published: {position} bytes{wanted}; it was truncated or replaced"
                ))
            }
            501 | 551 => self.bad(format!("{reason}; this server does not offer what streamfs needs (docs/RTSP.md)")),
            453 | 500 | 503 => match retry_after {
                Some(retry_after) => {
                    Error::Overloaded { object, origin, reason: format!("{status} {reason}"), retry_after }
                }
                None => self.unreachable(format!("{status} {reason}")),
            },
            _ => self.bad(format!("{status} {reason}")),
        }
    }

    /// The next part of the answer, which must not be waited for too long.
    async fn next(&self, answer: &mut Answer) -> Result<Option<Event>> {
        match tokio::time::timeout(self.stall, answer.next()).await {
            Ok(Ok(event)) => Ok(event),
            Ok(Err(ended)) => Err(self.ended(ended)),
            Err(_) => {
                answer.connection().suspect(self.stall);
                let (object, origin) = (self.object.to_string(), self.origin.to_owned());
                Err(Error::TimedOut { object, origin, after: self.stall })
            }
        }
    }
}

/// The bytes of one answer.
struct Pieces {
    about: OwnedAbout,
    answer: Answer,
    all: Range<u64>,
    left: Range<u64>,
}

impl Pieces {
    /// The next bytes; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Self { about, answer, all, left } = self;
        let about = about.get();
        loop {
            let (came, expected) = (left.start - all.start, all.end - all.start);
            match about.next(answer).await? {
                None if left.is_empty() => return Ok(None),
                None => return Err(about.unreachable(format!("the answer ended after {came} of {expected} bytes"))),
                Some(Event::Data { bytes, .. }) if bytes.is_empty() => {}
                Some(Event::Data { position, bytes }) => {
                    if position != left.start || bytes.len() as u64 > left.end - left.start {
                        let end = position.saturating_add(bytes.len() as u64);
                        return Err(about.bad(format!(
                            "it sent the bytes {position}..{end}, where those from {} to {} were due",
                            left.start, left.end
                        )));
                    }
                    left.start += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Some(Event::Failed { status, reason, position, retry_after }) => {
                    return Err(about.refused(status, reason, position, retry_after, Some(&*all)));
                }
                Some(Event::State { .. }) => return Err(about.bad("it told the object's state amid its bytes")),
            }
        }
    }

    fn into_stream(self) -> ByteStream {
        stream::try_unfold(self, |mut pieces| async move { Ok(pieces.next().await?.map(|piece| (piece, pieces))) })
            .boxed()
    }
}

#[cfg(test)]
mod tests;
