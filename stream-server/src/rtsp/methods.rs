//! What each method does.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rtsp_types::{Method, Request, Url, Version};

use fs_core::backend::rtsp::asked::{self, ASKED_TYPE, BadLine};
use fs_core::backend::rtsp::target::Target;
use fs_core::backend::rtsp::transport::interleaved;
use fs_core::backend::rtsp::wire::{Outgoing, cseq, header, list};
use fs_core::backend::rtsp::{LAUNCH_PARAMETER, NOTICES_FEATURE, READ_FEATURE};
use fs_core::backend::{LAUNCH_REPORT_MAX_BYTES, LaunchReport};

use super::describing::{self, Form, Freshness};
use super::dialogue::{Dialogue, SESSION_TIMEOUT_TOLD};
use super::outbox::{Key, NotBegun};
use super::protocol;
use super::replies::Refused;
use super::sending::{Farewell, Sending};
use super::sessions::{About, Record, Session, pipeline_of};
use crate::content::PackagePath;
use crate::metrics::Gauge;

/// All that is done here, as `Public` and `Allow` tell it.
pub(super) const METHODS: &str =
    "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, GET_PARAMETER, SET_PARAMETER, TEARDOWN, READ, CREDIT, CANCEL";
/// Features that a client may require.
pub(super) const FEATURES: [&str; 3] = ["play.basic", READ_FEATURE, NOTICES_FEATURE];
/// Id of what PLAY streams.
const PLAY_ID: u32 = 0;

/// An answer that begins: its name, whether it is urgent, its window, and itself.
pub(super) type Begins = (Key, bool, Option<u64>, Sending);

/// What comes of a request that is done.
pub(super) struct Done {
    pub(super) reply: Bytes,
    pub(super) begins: Vec<Begins>,
}

impl From<Bytes> for Done {
    fn from(reply: Bytes) -> Self {
        Self { reply, begins: Vec::new() }
    }
}

fn ok(request: &Request<Vec<u8>>) -> Outgoing {
    Outgoing::response(request.version(), 200, cseq(request))
}

/// As [`ok`], within a session.
fn ok_in(request: &Request<Vec<u8>>, session: &Session) -> Outgoing {
    ok(request).header("Session", &session.id)
}

/// What a request's URL names.
fn target(request: &Request<Vec<u8>>) -> Result<(Target, &Url), Refused> {
    let url = request.request_uri().ok_or_else(|| Refused::of(400))?;
    Ok((Target::parse(url.path()).ok_or_else(|| Refused::of(404))?, url))
}

/// A URL up to its path.
fn base(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

fn package(target: &Target) -> Result<PackagePath, Refused> {
    target.package.parse().map_err(|_| Refused::of(404))
}

/// Refuses a URL that names something else than the session. `*` and the host alone name nothing (RFC 7826 §13.8).
fn check_url(request: &Request<Vec<u8>>, session: &Session) -> Result<(), Refused> {
    let Some(url) = request.request_uri() else { return Ok(()) };
    let names = Target::parse(url.path()).map(|target| target.package);
    match names {
        Some(package) if package.is_empty() || package == session.about.target.package => Ok(()),
        _ => Err(Refused::of(459)),
    }
}

fn not_understood(bad: &BadLine) -> Refused {
    Refused::of(451).with("Streamfs-Error", bad)
}

fn not_begun(why: NotBegun) -> Refused {
    match why {
        NotBegun::Full => Refused::of(453),
        NotBegun::Taken => Refused::of(451).with("Streamfs-Error", "an id is in use"),
    }
}

/// What SET_PARAMETER tells of a launch.
fn launch_report(request: &Request<Vec<u8>>) -> Option<LaunchReport> {
    if *request.method() != Method::SetParameter || request.body().len() > LAUNCH_REPORT_MAX_BYTES {
        return None;
    }
    let (name, value) = std::str::from_utf8(request.body()).ok()?.split_once(':')?;
    if name == LAUNCH_PARAMETER { serde_json::from_str(value.trim()).ok() } else { None }
}

/// Bodies are lines of ours, unless they are said to be something else.
fn check_type(request: &Request<Vec<u8>>) -> Result<(), Refused> {
    match header(request, "Content-Type") {
        Some(kind) if !kind.eq_ignore_ascii_case(ASKED_TYPE) => Err(Refused::of(415)),
        _ => Ok(()),
    }
}

impl Dialogue {
    /// Lets a client in that may read a package.
    async fn enter(&mut self, request: &Request<Vec<u8>>, package: &PackagePath) -> Result<(), Refused> {
        self.visitor.enter(&self.shared.gate, header(request, "Authorization"), package).await
    }

    pub(super) fn options(&self, request: &Request<Vec<u8>>) -> Done {
        let reply = ok(request).header("Public", METHODS).header("Server", SERVER);
        // RTSP 1.0 has no such header, and clients of it that ask by it all the same.
        let asks = request.version() == Version::V2_0 || header(request, "Supported").is_some();
        reply.header_if("Supported", asks.then(|| FEATURES.join(", "))).empty().into()
    }

    pub(super) async fn describe(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let (target, url) = target(request)?;
        let package = package(&target)?;
        self.enter(request, &package).await?;
        let form = describing::form(request)?;
        let content = &self.shared.content;
        let freshness = describing::freshness(content, &package).await?;
        describing::version(content, &package, target.version.as_ref()).await?;
        let version = request.version();
        let told = |reply: Outgoing| {
            reply
                .header_if(Freshness::tag_header(version), freshness.quoted())
                .header_if("Last-Modified", freshness.last_modified())
        };
        if freshness.is_known_to(request) {
            let refused = Refused::of(304);
            let tag = freshness.quoted().map(|tag| (Freshness::tag_header(version), tag));
            return Err(tag.into_iter().fold(refused, |refused, (name, tag)| refused.with(name, tag)));
        }
        let reply = told(ok(request)).header("Server", SERVER);
        let body = match form {
            Form::Sdp => {
                let presentation = Target { is_stream: false, ..target };
                let reply = reply.header("Content-Base", format!("{}{presentation}/", base(url)));
                let text = describing::sdp(&presentation, &freshness, version);
                reply.body(describing::SDP_TYPE, text.as_bytes())
            }
            Form::Head => reply.body(describing::HEAD_TYPE, &describing::head(content, &package).await?),
        };
        Ok(body.into())
    }

    pub(super) async fn setup(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let (target, url) = target(request)?;
        if target.package.is_empty() {
            // The content root is an aggregate of packages, and nothing that can be streamed as one.
            return Err(Refused::of(459));
        }
        let package = package(&target)?;
        self.enter(request, &package).await?;
        if self.is_leaving() {
            return Err(Refused::of(503).with("Retry-After", 1));
        }
        let content = &self.shared.content;
        let freshness = describing::freshness(content, &package).await?;
        let version = describing::version(content, &package, target.version.as_ref()).await?;
        if !freshness.is_demanded_by(request) {
            return Err(Refused::of(412));
        }
        let transport = header(request, "Transport").and_then(interleaved).ok_or_else(|| Refused::of(461))?;
        let presentation = Target { is_stream: false, ..target };
        let session = if header(request, "Session").is_some() {
            // A presentation has one stream, so nothing can be added to it; its transport is what it is.
            let session = self.sessions.of(request)?;
            if session.about.target != presentation {
                return Err(Refused::of(459));
            }
            if session.playing {
                return Err(Refused::of(455));
            }
            session
        } else {
            let about = About {
                target: presentation,
                package,
                version,
                base: base(url),
                rtsp: request.version(),
                notices: list(request, "Supported").any(|feature| feature == NOTICES_FEATURE),
            };
            let user = self.visitor.user().map(str::to_owned);
            let (peer, tls) = (self.connection.peer.ip(), self.connection.encrypted);
            let (package, version) = (about.package.clone(), about.version.clone());
            self.connection.presence.client().reads(user.as_deref(), &package, version.as_ref());
            let session = self.sessions.begin(about, transport.channel, pipeline_of(request), &self.shared.uses)?;
            let (log, rtp, since) = (self.shared.log.clone(), session.rtp.clone(), Instant::now());
            let counted = self.shared.metrics.hold(Gauge::Sessions);
            session.record = Some(Record { log, peer, tls, user, package, version, rtp, since, _counted: counted });
            session
        };
        let (channel, ssrc) = (session.rtp.channel, session.rtp.ssrc);
        let transport = format!(
            "RTP/AVP/TCP;unicast;interleaved={channel}-{};ssrc={ssrc:08X};mode=\"PLAY\"",
            channel.wrapping_add(1)
        );
        let reply = ok(request)
            .header("Session", format!("{};timeout={SESSION_TIMEOUT_TOLD}", session.id))
            .header("Transport", transport)
            .header_if("Pipelined-Requests", pipeline_of(request));
        let reply = match request.version() {
            Version::V1_0 => reply,
            Version::V2_0 => reply
                .header("Accept-Ranges", "npt")
                .header("Media-Properties", "Beginning-Only, Immutable, Unlimited")
                .header("Supported", FEATURES.join(", ")),
        };
        Ok(reply.header("Server", SERVER).empty().into())
    }

    pub(super) async fn play(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let anew = describing::from_beginning(request)?;
        let session = self.sessions.of(request)?;
        check_url(request, session)?;
        let (package, version) = (session.about.package.clone(), session.about.version.clone());
        self.enter(request, &package).await?;
        let session = self.sessions.of(request)?;
        let key = Self::key(session, PLAY_ID);
        let begins = if !anew && self.outbox.pause(key, false) {
            Vec::new()
        } else {
            let object = describing::played(&self.shared.content, &package, version.as_ref()).await?;
            self.outbox.cancel(key);
            self.outbox.may_begin(&[key]).map_err(not_begun)?;
            let bits_per_second = header(request, "Bandwidth").and_then(|bits| bits.parse().ok());
            let numbers = self.numbers().clone();
            let session = self.sessions.of(request)?;
            let farewell = farewell(session, cseq(request), numbers);
            let protocol = protocol(request.version());
            let rtp = session.rtp.clone();
            vec![(key, false, None, Sending::of_play(object, package, rtp, protocol, bits_per_second, farewell))]
        };
        let session = self.sessions.of(request)?;
        session.playing = true;
        let info = rtp_info(session, request.version());
        let reply = ok_in(request, session).header("Range", "npt=0-").header("RTP-Info", info);
        let reply = match request.version() {
            Version::V1_0 => reply,
            Version::V2_0 => reply.header_if("Seek-Style", header(request, "Seek-Style").map(|_| "RAP")),
        };
        Ok(Done { reply: reply.empty(), begins })
    }

    pub(super) fn pause(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let session = self.sessions.of(request)?;
        check_url(request, session)?;
        let key = Self::key(session, PLAY_ID);
        if !session.playing {
            return Err(Refused::of(455));
        }
        let reply = ok_in(request, session);
        // What has ended pauses already.
        self.outbox.pause(key, true);
        let range = (request.version() == Version::V2_0).then_some("npt=0-");
        Ok(reply.header_if("Range", range).empty().into())
    }

    /// Empty, it keeps a session alive (RFC 2326 §10.8, RFC 7826 §13.8). The only parameter is one that clients set, to tell how
    /// long a launch took.
    pub(super) fn parameters(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let names_session = header(request, "Session").is_some() || pipeline_of(request).is_some();
        let reply = match names_session {
            true => ok_in(request, self.sessions.of(request)?),
            false => ok(request),
        };
        if request.body().iter().all(u8::is_ascii_whitespace) {
            return Ok(reply.empty().into());
        }
        let report = launch_report(request).ok_or_else(|| Refused::of(451))?;
        // Only who was let in has a session.
        let package = self.sessions.of(request)?.about.package.clone();
        self.shared.launched(&self.connection, self.visitor.user(), &package, report);
        Ok(reply.empty().into())
    }

    pub(super) fn teardown(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let session = self.sessions.of(request)?;
        check_url(request, session)?;
        let number = session.number;
        self.outbox.cancel_session(number);
        self.sessions.end(number);
        Ok(ok(request).empty().into())
    }

    pub(super) async fn read(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let session = self.sessions.of(request)?;
        check_url(request, session)?;
        check_type(request)?;
        let (package, number, rtp) = (session.about.package.clone(), session.number, session.rtp.clone());
        let reply = ok_in(request, session).empty();
        let asked = asked::reads(request.body()).map_err(|bad| not_understood(&bad))?;
        self.enter(request, &package).await?;
        let mut keys: Vec<Key> = asked.iter().map(|asked| (number, asked.id)).collect();
        self.outbox.may_begin(&keys).map_err(not_begun)?;
        keys.sort_unstable();
        if keys.windows(2).any(|two| two[0] == two[1]) {
            return Err(not_begun(NotBegun::Taken));
        }
        let protocol = protocol(request.version());
        let begins = asked.into_iter().map(|asked| {
            let (key, urgent, window) = ((number, asked.id), asked.urgent, asked.window);
            (key, urgent, window, Sending::of_read(asked, package.clone(), rtp.clone(), protocol))
        });
        Ok(Done { reply, begins: begins.collect() })
    }

    pub(super) fn credit(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let session = self.sessions.of(request)?;
        check_type(request)?;
        let (number, reply) = (session.number, ok_in(request, session).empty());
        for (id, bytes) in asked::credits(request.body()).map_err(|bad| not_understood(&bad))? {
            self.outbox.credit((number, id), bytes);
        }
        Ok(reply.into())
    }

    pub(super) fn cancel(&mut self, request: &Request<Vec<u8>>) -> Result<Done, Refused> {
        let session = self.sessions.of(request)?;
        check_type(request)?;
        let (number, reply) = (session.number, ok_in(request, session).empty());
        for id in asked::ids(request.body()).map_err(|bad| not_understood(&bad))? {
            self.outbox.cancel((number, id));
        }
        Ok(reply.into())
    }
}

/// Value of `Server`.
const SERVER: &str = concat!("streamfs/", env!("CARGO_PKG_VERSION"));

/// Where a stream stands (RFC 2326 §12.33, RFC 7826 §18.45).
fn rtp_info(session: &Session, version: Version) -> String {
    let url = stream_url(session);
    let (ssrc, sequence, time) = (session.rtp.ssrc, session.rtp.next_sequence(), session.rtp.timestamp());
    match version {
        Version::V1_0 => format!("url={url};seq={sequence};rtptime={time}"),
        Version::V2_0 => format!("url=\"{url}\" ssrc={ssrc:08X}:seq={sequence};rtptime={time}"),
    }
}

fn stream_url(session: &Session) -> String {
    format!("{}{}", session.about.base, Target { is_stream: true, ..session.about.target.clone() })
}

/// What ends a stream: BYE, and in RTSP 2.0 the word that says so (RFC 7826 §13.5.1).
fn farewell(session: &Session, play: Option<u32>, numbers: Arc<super::dialogue::Numbers>) -> Farewell {
    let (rtp, id, rtsp) = (session.rtp.clone(), session.id.clone(), session.about.rtsp);
    let (url, stream) = (format!("{}{}", session.about.base, session.about.target), stream_url(session));
    let play = play.unwrap_or_default();
    Farewell(Box::new(move || {
        let mut words = vec![rtp.bye()];
        if rtsp == Version::V2_0 {
            let info = format!("url=\"{stream}\" ssrc={:08X}:seq={}", rtp.ssrc, rtp.next_sequence());
            let notify = Outgoing::request("PLAY_NOTIFY", &url, rtsp, numbers.next())
                .header("Session", &id)
                .header("Notify-Reason", "end-of-stream")
                .header("Request-Status", format!("cseq={play} status=200 reason=\"OK\""))
                .header("Range", "npt=0-")
                .header("RTP-Info", info);
            words.push(notify.empty());
        }
        words
    }))
}
