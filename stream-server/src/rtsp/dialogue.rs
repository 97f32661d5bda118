//! One connection's conversation: requests are answered one after the other, and what the server has to say unasked is said
//! in between.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rtsp_types::{Method, Request, Version};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::Instant;

use fs_core::backend::rtsp::NEW_VERSION_REASON;
use fs_core::backend::rtsp::target::Target;
use fs_core::backend::rtsp::wire::{Item, Outgoing, Splitter, WireError, cseq, list};

use super::methods::{self, Done};
use super::outbox::{Key, Outbox};
use super::replies::Refused;
use super::sending::Sending;
use super::sessions::{Session, Sessions};
use super::visitor::Visitor;
use super::{REQUEST_LIMITS, describing, protocol};
use crate::access_log::{Entry, Event, millis};
use crate::content::PackagePath;
use crate::notices::NewVersion;
use crate::{Connection, Shared};

/// A message must be here whole within this time after its first byte.
const MESSAGE_WITHIN: Duration = Duration::from_secs(20);
/// A connection without a session must make one within this time.
const SESSION_WITHIN: Duration = Duration::from_secs(30);
/// A session whose client is not heard of for so long is ended; what the client is told is less, so that a late sign of life
/// is none too late.
const SESSION_TIMEOUT: Duration = Duration::from_secs(75);
pub(super) const SESSION_TIMEOUT_TOLD: u64 = 60;
/// Room that is made for what comes.
const ROOM_BYTES: usize = 4 << 10;

/// One connection's conversation.
pub(super) struct Dialogue {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) outbox: Arc<Outbox<Sending>>,
    pub(super) visitor: Visitor,
    pub(super) sessions: Sessions,
    /// Of the server's own requests; what is told at the end of a stream has its number from here, too.
    numbers: Arc<Numbers>,
    heard: Instant,
    /// Since when a message has been coming.
    amid: Option<Instant>,
    leaving: bool,
}

/// Numbers of the server's own requests.
#[derive(Debug, Default)]
pub(super) struct Numbers(std::sync::atomic::AtomicU32);

impl Numbers {
    pub(super) fn next(&self) -> u32 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed).wrapping_add(1)
    }
}

/// Why the conversation goes on.
enum Occasion {
    Came(usize),
    Broke,
    News(NewVersion),
    MissedNews,
    Ending,
    Time,
}

impl Dialogue {
    pub(super) fn new(connection: Connection, shared: Arc<Shared>, outbox: Arc<Outbox<Sending>>) -> Self {
        let visitor = Visitor::new(connection.peer.ip(), connection.encrypted, connection.certificate.clone());
        let (sessions, numbers, heard) = (Sessions::default(), Arc::default(), Instant::now());
        Self { connection, shared, outbox, visitor, sessions, numbers, heard, amid: None, leaving: false }
    }

    /// Converses until the client leaves, breaks a limit, or was silent for too long.
    pub(super) async fn run<R: AsyncRead + Unpin>(&mut self, read: &mut R) {
        let mut splitter = Splitter::new(REQUEST_LIMITS);
        let mut news = self.shared.notices.subscribe();
        loop {
            loop {
                match splitter.next() {
                    Ok(Some(item)) => {
                        (self.heard, self.amid) = (Instant::now(), None);
                        self.outbox.has_room().await;
                        self.take(item).await;
                    }
                    Ok(None) => break,
                    Err(error) => return self.give_up(error),
                }
            }
            self.amid = splitter.is_amid().then(|| self.amid.unwrap_or_else(Instant::now));
            if self.leaving && self.outbox.under_way() == 0 {
                return;
            }
            match self.wait(read, &mut splitter, &mut news).await {
                Occasion::Came(0) | Occasion::Broke => return,
                Occasion::Came(_) => {}
                Occasion::News(new) => self.tell(Some(&new.package)).await,
                Occasion::MissedNews => self.tell(None).await,
                Occasion::Ending => self.send_away(),
                Occasion::Time => {
                    if self.is_overdue() {
                        return self.expire();
                    }
                }
            }
        }
    }

    async fn wait<R: AsyncRead + Unpin>(
        &self,
        read: &mut R,
        splitter: &mut Splitter,
        news: &mut Receiver<NewVersion>,
    ) -> Occasion {
        let buffer = splitter.buffer();
        buffer.reserve(ROOM_BYTES);
        // What is under way may end without a sign; that is looked for now and then.
        let look = if self.leaving { Instant::now() + Duration::from_millis(50) } else { self.deadline() };
        tokio::select! {
            came = read.read_buf(buffer) => came.map_or(Occasion::Broke, Occasion::Came),
            new = next_news(news) => new,
            () = self.connection.is_ending(), if !self.leaving => Occasion::Ending,
            () = tokio::time::sleep_until(look) => Occasion::Time,
        }
    }

    /// When patience ends.
    fn deadline(&self) -> Instant {
        let silence = if self.sessions.is_empty() { SESSION_WITHIN } else { SESSION_TIMEOUT };
        let silent = self.heard + silence;
        self.amid.map_or(silent, |since| silent.min(since + MESSAGE_WITHIN))
    }

    fn is_overdue(&mut self) -> bool {
        let now = Instant::now();
        if self.amid.is_some_and(|since| now >= since + MESSAGE_WITHIN) {
            return true;
        }
        // Who takes what is sent is there, though nothing is heard of it.
        self.heard = self.outbox.last_turn().map_or(self.heard, |took| took.max(self.heard));
        now >= self.deadline()
    }

    async fn take(&mut self, item: Item) {
        match item {
            Item::Request(request) => self.answer(request).await,
            Item::OtherVersion { cseq } => {
                // RFC 7826 §17.5.6: in the highest version that is spoken here.
                self.outbox.say(Outgoing::response(Version::V2_0, 505, cseq).empty());
                self.shared.metrics.request(protocol(Version::V2_0), 505, 0);
            }
            // Answers to what was told are signs of life, and no more; so is RTCP.
            Item::Response(_) | Item::Frame { .. } => {}
        }
    }

    async fn answer(&mut self, request: Request<Vec<u8>>) {
        let (version, number, begun) = (request.version(), cseq(&request), Instant::now());
        let done = match number {
            Some(_) => self.dispatch(&request).await,
            None => Err(Refused::of(400)),
        };
        match done {
            Ok(Done { reply, begins }) => {
                self.shared.metrics.request(protocol(version), 200, 0);
                // The response stands before what it answers.
                self.outbox.say(reply);
                for (key, urgent, window, sending) in begins {
                    self.outbox.begin(key, urgent, window, sending);
                }
            }
            Err(refused) => {
                self.shared.metrics.request(protocol(version), refused.status, 0);
                self.log_refused(&request, refused.status, begun);
                self.outbox.say(refused.response(version, number));
            }
        }
    }

    /// Of what succeeds the log tells when the session is over.
    fn log_refused(&self, request: &Request<Vec<u8>>, status: u16, begun: Instant) {
        let target = request.request_uri().and_then(|url| Target::parse(url.path()));
        self.shared.log.record(Entry {
            protocol: Some(protocol(request.version())),
            user: self.visitor.user(),
            package: target.as_ref().map(|target| target.package.as_str()),
            method: Some(request.method().into()),
            status: Some(status),
            ms: Some(millis(begun.elapsed())),
            ..Entry::new(Event::Request, self.connection.peer.ip(), self.connection.encrypted)
        });
    }

    async fn dispatch(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let required = list(request, "Require").chain(list(request, "Proxy-Require"));
        let unknown: Vec<&str> = required.filter(|feature| !methods::FEATURES.contains(feature)).collect();
        if !unknown.is_empty() {
            return Err(Refused::of(551).with("Unsupported", unknown.join(", ")));
        }
        match request.method() {
            Method::Options => Ok(self.options(request)),
            Method::Describe => self.describe(request).await,
            Method::Setup => self.setup(request).await,
            Method::Play => self.play(request).await,
            Method::Pause => self.pause(request),
            Method::GetParameter | Method::SetParameter => self.parameters(request),
            Method::Teardown => self.teardown(request),
            Method::Extension(method) if method == "READ" => self.read(request).await,
            Method::Extension(method) if method == "CREDIT" => self.credit(request),
            Method::Extension(method) if method == "CANCEL" => self.cancel(request),
            // Known, and nothing for a client to do here.
            Method::Announce | Method::Record | Method::Redirect | Method::PlayNotify => {
                Err(Refused::of(405).with("Allow", methods::METHODS))
            }
            Method::Extension(_) => Err(Refused::of(501).with("Public", methods::METHODS)),
        }
    }

    /// Says what is wrong, as far as that can be said, and reads no further.
    fn give_up(&self, error: WireError) {
        let (status, number) = match error {
            WireError::HeadTooLong(_) | WireError::FrameTooLong(_) => (400, None),
            WireError::BodyTooLong { cseq, .. } => (413, cseq),
            WireError::Malformed { cseq } => (400, cseq),
        };
        tracing::debug!(peer = %self.connection.peer, %error, "a client does not speak RTSP");
        self.shared.metrics.request(protocol(Version::V2_0), status, 0);
        self.outbox.say(Outgoing::response(Version::V2_0, status, number).header("Connection", "close").empty());
    }

    /// A request of the server's to the client of a session.
    fn request(&self, method: &str, session: &Session) -> Outgoing {
        let about = &session.about;
        let url = format!("{}{}", about.base, about.target);
        Outgoing::request(method, &url, about.rtsp, self.numbers.next()).header("Session", &session.id)
    }

    /// Tells the sessions of a package, or all, that it has changed.
    async fn tell(&mut self, package: Option<&PackagePath>) {
        let mut told: Vec<Bytes> = Vec::new();
        for session in self.sessions.iter().filter(|session| session.about.notices) {
            let about = &session.about;
            if package.is_some_and(|package| *package != about.package)
                || self.visitor.enter(&self.shared.gate, None, &about.package).await.is_err()
            {
                continue;
            }
            told.push(match about.rtsp {
                Version::V2_0 => {
                    self.request("PLAY_NOTIFY", session).header("Notify-Reason", NEW_VERSION_REASON).empty()
                }
                Version::V1_0 => {
                    let Ok(freshness) = describing::freshness(&self.shared.content, &about.package).await else {
                        continue;
                    };
                    let body = describing::sdp(&about.target, &freshness, about.rtsp);
                    self.request("ANNOUNCE", session).body(describing::SDP_TYPE, body.as_bytes())
                }
            });
        }
        for words in told {
            self.outbox.has_room().await;
            self.outbox.say(words);
        }
    }

    /// The server is about to end: clients shall go to another one, or come back to the next.
    fn send_away(&mut self) {
        self.leaving = true;
        for session in self.sessions.iter() {
            let location = format!("{}{}", session.about.base, session.about.target);
            let redirect = self.request("REDIRECT", session).header("Location", location);
            let redirect = match session.about.rtsp {
                Version::V1_0 => redirect,
                Version::V2_0 => redirect.header("Terminate-Reason", "Server-Admin"),
            };
            self.outbox.say(redirect.empty());
        }
    }

    /// Whether the server is about to end.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Numbers of the server's own requests.
    pub(super) fn numbers(&self) -> &Arc<Numbers> {
        &self.numbers
    }

    /// The client was silent for too long: its sessions end (RFC 7826 §13.7.2), and then the connection.
    fn expire(&mut self) {
        for session in self.sessions.end_all() {
            self.outbox.cancel_session(session.number);
            if session.about.rtsp == Version::V2_0 {
                let teardown = self.request("TEARDOWN", &session).header("Terminate-Reason", "Session-Timeout");
                self.outbox.say(teardown.empty());
            }
        }
    }

    /// How an answer is named within the connection.
    pub(super) fn key(session: &Session, id: u32) -> Key {
        (session.number, id)
    }
}

async fn next_news(news: &mut Receiver<NewVersion>) -> Occasion {
    match news.recv().await {
        Ok(new) => Occasion::News(new),
        Err(RecvError::Lagged(_)) => Occasion::MissedNews,
        // Nothing is noticed any more.
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
