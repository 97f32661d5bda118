//! The sessions of one connection. Interleaved frames live and die with their connection, and so do sessions here: an id
//! means nothing on another one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rtsp_types::{Request, Version};

use fs_core::backend::rtsp::target::Target;
use fs_core::backend::rtsp::wire::header;
use fs_core::location::PackageVersion;

use super::replies::Refused;
use super::rtp::RtpStream;
use crate::access_log::{AccessLog, Entry, Event, millis};
use crate::content::PackagePath;
use crate::metrics::{Counted, Protocol};

/// Sessions of one connection: a client has one for each version that it has mounted, and one to read in.
const SESSIONS_MAX: usize = 64;

/// Which versions are in use, by RTSP sessions and by those who listen over HTTP. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses(Arc<Mutex<BTreeMap<(PackagePath, PackageVersion), usize>>>);

impl Uses {
    /// How many use each version.
    pub(crate) fn list(&self) -> Vec<(PackagePath, PackageVersion, usize)> {
        self.0.lock().iter().map(|((package, version), count)| (package.clone(), version.clone(), *count)).collect()
    }

    /// One more uses `version`, until what is returned is dropped.
    pub(crate) fn begin(&self, package: PackagePath, version: PackageVersion) -> Use {
        let key = (package, version);
        *self.0.lock().entry(key.clone()).or_default() += 1;
        Use { uses: self.clone(), key }
    }
}

/// Counts as one session of a version until it is dropped.
#[derive(Debug)]
pub(crate) struct Use {
    uses: Uses,
    key: (PackagePath, PackageVersion),
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.uses.0.lock();
        if let Some(count) = uses.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                uses.remove(&self.key);
            }
        }
    }
}

/// What a session is of.
#[derive(Debug)]
pub(super) struct About {
    /// As the client names it.
    pub(super) target: Target,
    pub(super) package: PackagePath,
    /// The version that this meant when the session was made; none for the package as a whole.
    pub(super) version: Option<PackageVersion>,
    /// Scheme and host as the client writes them, for URLs in what is sent to it.
    pub(super) base: String,
    /// What the client speaks.
    pub(super) rtsp: Version,
    /// Whether it wants to be told of new versions.
    pub(super) notices: bool,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// On this connection.
    pub(super) number: u16,
    /// For the client.
    pub(super) id: String,
    pub(super) about: About,
    pub(super) rtp: Arc<RtpStream>,
    /// Whether PLAY has begun a stream that TEARDOWN did not end.
    pub(super) playing: bool,
    /// Writes of it in the access log once it is over.
    pub(super) record: Option<Record>,
    _use: Option<Use>,
}

/// What the access log tells of a session when it is over.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) log: AccessLog,
    pub(super) peer: IpAddr,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) package: PackagePath,
    pub(super) version: Option<PackageVersion>,
    pub(super) rtp: Arc<RtpStream>,
    pub(super) since: Instant,
    pub(super) _counted: Counted,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.log.record(Entry {
            protocol: Some(Protocol::Rtsp),
            user: self.user.as_deref(),
            package: Some(self.package.as_str()),
            version: self.version.as_ref().map(PackageVersion::as_str),
            bytes: Some(self.rtp.sent_bytes()),
            ms: Some(millis(self.since.elapsed())),
            ..Entry::new(Event::Session, self.peer, self.tls)
        });
    }
}

/// The sessions of one connection.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: Vec<Session>,
    /// By what stood in `Pipelined-Requests` of the SETUP that made them.
    pipelines: HashMap<u32, u16>,
    next_number: u16,
}

impl Sessions {
    /// Makes a session, on `channel` if nothing else is.
    pub(super) fn begin(
        &mut self,
        about: About,
        channel: Option<u8>,
        pipeline: Option<u32>,
        uses: &Uses,
    ) -> Result<&mut Session, Refused> {
        let channel = channel.filter(|channel| self.is_free(*channel)).or_else(|| self.free_channel());
        // Numbers do not come again, so that a request of an ended session cannot be taken for one of another.
        let number = self.next_number;
        let (Some(channel), Some(next), true) = (channel, number.checked_add(1), self.all.len() < SESSIONS_MAX) else {
            return Err(Refused::of(453));
        };
        self.next_number = next;
        if let Some(pipeline) = pipeline {
            self.pipelines.insert(pipeline, number);
        }
        let in_use = about.version.clone().map(|version| uses.begin(about.package.clone(), version));
        let id = format!("{:032x}", rand::random::<u128>());
        let rtp = Arc::new(RtpStream::new(channel));
        self.all.push(Session { number, id, about, rtp, playing: false, record: None, _use: in_use });
        Ok(self.all.last_mut().expect("it was pushed just now"))
    }

    fn is_free(&self, channel: u8) -> bool {
        // RTCP has the channel behind.
        channel < u8::MAX && self.all.iter().all(|session| session.rtp.channel.abs_diff(channel) > 1)
    }

    fn free_channel(&self) -> Option<u8> {
        (0..u8::MAX).step_by(2).find(|channel| self.is_free(*channel))
    }

    /// The session that a request names, by its id or by its pipeline.
    ///
    /// # Errors
    /// 454 if it names none, or one that is not there.
    pub(super) fn of(&mut self, request: &Request<Vec<u8>>) -> Result<&mut Session, Refused> {
        let number = self.number_of(request)?;
        self.all.iter_mut().find(|session| session.number == number).ok_or_else(|| Refused::of(454))
    }

    fn number_of(&self, request: &Request<Vec<u8>>) -> Result<u16, Refused> {
        let none = || Refused::of(454);
        if let Some(named) = header(request, "Session") {
            // What a client repeats of the timeout is not part of the id.
            let id = named.split(';').next().unwrap_or_default().trim();
            return self.all.iter().find(|session| session.id == id).map(|session| session.number).ok_or_else(none);
        }
        pipeline_of(request).and_then(|pipeline| self.pipelines.get(&pipeline)).copied().ok_or_else(none)
    }

    /// Ends the session of this number.
    pub(super) fn end(&mut self, number: u16) {
        self.all.retain(|session| session.number != number);
        self.pipelines.retain(|_, of| *of != number);
    }

    /// Ends all.
    pub(super) fn end_all(&mut self) -> Vec<Session> {
        self.pipelines.clear();
        std::mem::take(&mut self.all)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// The number in a request's `Pipelined-Requests` (RFC 7826 §18.33).
pub(super) fn pipeline_of(request: &Request<Vec<u8>>) -> Option<u32> {
    header(request, "Pipelined-Requests")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rtsp_types::Method;

    use super::*;

    fn about(version: Option<&str>) -> About {
        About {
            target: Target::parse("/app").unwrap(),
            package: "app".parse().unwrap(),
            version: version.map(|v| v.parse().unwrap()),
            base: "rtsp://h".to_owned(),
            rtsp: Version::V2_0,
            notices: false,
        }
    }

    fn request(headers: &[(&str, &str)]) -> Request<Vec<u8>> {
        let request = Request::builder(Method::Play, Version::V2_0);
        let named = headers.iter().fold(request, |request, (name, value)| {
            request.header(rtsp_types::HeaderName::try_from(*name).unwrap(), *value)
        });
        named.build(Vec::new())
    }

    #[test]
    fn sessions_are_found_by_id_or_pipeline() {
        let (mut sessions, uses) = (Sessions::default(), Uses::default());
        let first = sessions.begin(about(None), None, Some(3), &uses).unwrap().id.clone();
        let second = sessions.begin(about(None), None, None, &uses).unwrap().id.clone();
        assert!(first.len() == 32 && first != second);
        assert_eq!(sessions.of(&request(&[("Session", &second)])).unwrap().number, 1);
        assert_eq!(sessions.of(&request(&[("Session", &format!("{first};timeout=60"))])).unwrap().number, 0);
        assert_eq!(sessions.of(&request(&[("Pipelined-Requests", "3")])).unwrap().number, 0);
        for unknown in [&[("Session", "0")][..], &[("Session", "")], &[("Pipelined-Requests", "4")], &[]] {
            assert_eq!(sessions.of(&request(unknown)).unwrap_err().status, 454);
        }
        // An id counts for more than a pipeline.
        let both = request(&[("Session", "x"), ("Pipelined-Requests", "3")]);
        assert_eq!(sessions.of(&both).unwrap_err().status, 454);
        sessions.end(0);
        assert_eq!(sessions.of(&request(&[("Pipelined-Requests", "3")])).unwrap_err().status, 454);
        assert_eq!(sessions.begin(about(None), None, None, &uses).unwrap().number, 2, "numbers do not come again");
    }

    #[test]
    fn no_two_sessions_share_a_channel() {
        let (mut sessions, uses) = (Sessions::default(), Uses::default());
        let mut begin = |channel| sessions.begin(about(None), channel, None, &uses).map(|s| s.rtp.channel);
        assert_eq!(begin(Some(1)), Ok(1));
        // 0 and 2 are its neighbours'.
        assert_eq!(begin(Some(2)), Ok(4));
        assert_eq!(begin(None), Ok(6));
        assert_eq!(begin(Some(255)), Ok(8));
        for _ in 4..SESSIONS_MAX {
            begin(None).unwrap();
        }
        assert_eq!(begin(None).unwrap_err().status, 453);
    }

    #[test]
    fn versions_in_use_are_counted() {
        let (mut sessions, uses) = (Sessions::default(), Uses::default());
        for version in [Some("1"), Some("1"), Some("2"), None] {
            sessions.begin(about(version), None, None, &uses).unwrap();
        }
        let shown = || uses.list().into_iter().map(|(p, v, n)| format!("{p} {v} {n}")).collect::<Vec<_>>();
        assert_eq!(shown(), ["app 1 2", "app 2 1"]);
        sessions.end(0);
        assert_eq!(shown(), ["app 1 1", "app 2 1"]);
        drop(sessions.end_all());
        assert!(shown().is_empty());
    }
}
