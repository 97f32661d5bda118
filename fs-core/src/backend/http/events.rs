//! Being told of new versions by `streamfs serve`, as server-sent events (docs/HTTP.md).
//!
//! Only a server that says in its answers that it offers them is asked for them, so that plain web servers see no request
//! for something that they do not have. The request names the versions that are in use here, and holds them at the server
//! for as long as it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use reqwest::header;
use reqwest::{Client, Method, Response, StatusCode};
use tokio::sync::{Notify, watch};
use url::Url;

use crate::config::OriginConfig;
use crate::location::PackageVersion;

/// Header in which a server names what it offers beyond stored objects.
pub const OFFERS_HEADER: &str = "streamfs-offers";
/// That it tells of new versions.
pub const OFFERS_EVENTS: &str = "events";
/// Three times what the server lets pass without a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// What `streamfs serve` writes in an event is some hundred bytes.
const EVENT_MAX_BYTES: usize = 64 << 10;
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Versions that are mounted one after the other are told in one request.
const GATHER: Duration = Duration::from_millis(200);
/// More versions of one package than are used anywhere at a time.
const USES_TOLD_MAX: usize = 16;

/// What listens for one package.
#[derive(Debug)]
pub(super) struct Listening(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where events of the package are.
    url: Url,
    client: Client,
    config: Arc<OriginConfig>,
    news: watch::Sender<u64>,
    offered: AtomicBool,
    running: AtomicBool,
    uses: Mutex<BTreeMap<PackageVersion, usize>>,
    uses_changed: Notify,
}

/// A version that is in use, until it is dropped.
struct InUse(Arc<Inner>, PackageVersion);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut uses = self.0.uses.lock();
        let Some(count) = uses.get_mut(&self.1) else { return };
        *count -= 1;
        if *count == 0 {
            uses.remove(&self.1);
            self.0.uses_changed.notify_one();
        }
    }
}

/// Why listening ended.
enum Ended {
    /// Nobody wants to hear any more.
    Unwanted,
    /// There are no events there.
    NotOffered,
    /// The server ended it, or other versions are in use now.
    Orderly,
    Failed(String),
}

impl Listening {
    /// Listens to nothing yet. `folder` is the package's, with a slash at its end.
    pub(super) fn new(folder: &Url, client: Client, config: Arc<OriginConfig>) -> Self {
        let mut url = folder.clone();
        url.set_path(&format!("{}events", folder.path()));
        Self(Arc::new(Inner {
            url,
            client,
            config,
            news: watch::Sender::new(0),
            offered: AtomicBool::new(false),
            running: AtomicBool::new(false),
            uses: Mutex::default(),
            uses_changed: Notify::new(),
        }))
    }

    /// Takes from an answer of the server whether it tells of new versions.
    pub(super) fn learn(&self, answer: &Response) {
        if !answer.status().is_success() && answer.status() != StatusCode::NOT_MODIFIED {
            return;
        }
        let offers = |value: &header::HeaderValue| {
            value.to_str().is_ok_and(|text| text.split(',').any(|offer| offer.trim() == OFFERS_EVENTS))
        };
        let offered = answer.headers().get_all(OFFERS_HEADER).iter().any(offers);
        self.0.offered.store(offered, Ordering::Release);
        if offered {
            self.start();
        }
    }

    /// Changes when the server tells of something new.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        let changes = self.0.news.subscribe();
        self.start();
        changes
    }

    /// Tells the server that `version` is in use until what is returned is dropped.
    pub(super) fn hold(&self, version: &PackageVersion) -> impl Send + Sync + 'static {
        let mut uses = self.0.uses.lock();
        let count = uses.entry(version.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.0.uses_changed.notify_one();
        }
        InUse(self.0.clone(), version.clone())
    }

    /// Begins, if it is offered, somebody wants it, and it has not begun.
    fn start(&self) {
        let wanted = self.0.offered.load(Ordering::Acquire) && self.0.news.receiver_count() > 0;
        if wanted
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.0.running.swap(true, Ordering::AcqRel)
        {
            runtime.spawn(self.0.clone().run());
        }
    }
}

impl Inner {
    async fn run(self: Arc<Self>) {
        let (mut known, mut pause) = (None, PAUSE_FIRST);
        loop {
            let before = known.clone();
            match self.listen(&mut known).await {
                Ended::Unwanted => {
                    self.running.store(false, Ordering::Release);
                    // Somebody may have come just before.
                    if self.news.receiver_count() == 0 || self.running.swap(true, Ordering::AcqRel) {
                        return;
                    }
                    pause = PAUSE_FIRST;
                }
                Ended::NotOffered => {
                    self.offered.store(false, Ordering::Release);
                    self.running.store(false, Ordering::Release);
                    return;
                }
                Ended::Orderly => pause = PAUSE_FIRST,
                Ended::Failed(why) => {
                    tracing::debug!(url = %self.url, why, "nobody tells of new versions");
                    if known != before {
                        pause = PAUSE_FIRST;
                    }
                }
            }
            // Many clients that lost a server at once do not come back at once.
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)) => {}
                () = self.news.closed() => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Listens once. `known` is the state of the package that was told last.
    async fn listen(&self, known: &mut Option<String>) -> Ended {
        tokio::time::sleep(GATHER).await;
        let mut url = self.url.clone();
        {
            let uses = self.uses.lock();
            for version in uses.keys().take(USES_TOLD_MAX) {
                url.query_pairs_mut().append_pair("using", version.as_str());
            }
        }
        let listening = async {
            let request = super::request(&self.client, Method::GET, url, &self.config.credentials)
                .header(header::ACCEPT, "text/event-stream")
                .header(header::CACHE_CONTROL, "no-cache");
            let answer = async {
                let request = super::authorized(request, &self.config.credentials).await?;
                request.send().await.map_err(|e| e.without_url().to_string())
            };
            let patience = self.config.retry.connect_timeout + self.config.retry.stall_timeout;
            match tokio::time::timeout(patience, answer).await {
                Ok(Ok(response)) => self.heed(response, known).await,
                Ok(Err(why)) => Ended::Failed(why),
                Err(_) => Ended::Failed("no answer".to_owned()),
            }
        };
        tokio::select! {
            ended = listening => ended,
            () = self.news.closed() => Ended::Unwanted,
            () = self.uses_changed.notified() => Ended::Orderly,
        }
    }

    async fn heed(&self, mut response: Response, known: &mut Option<String>) -> Ended {
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_events = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        match status {
            StatusCode::OK if is_events => {}
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ended::NotOffered,
            status => return Ended::Failed(status.to_string()),
        }
        let mut text = BytesMut::new();
        loop {
            match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(piece))) => text.extend_from_slice(&piece),
                Ok(Ok(None)) => return Ended::Orderly,
                Ok(Err(e)) => return Ended::Failed(e.without_url().to_string()),
                Err(_) => return Ended::Failed(format!("nothing came for {} s", SILENCE_MAX.as_secs())),
            }
            while let Some(state) = next_state(&mut text) {
                if known.as_ref().is_some_and(|known| *known != state) {
                    self.news.send_modify(|news| *news = news.wrapping_add(1));
                }
                *known = Some(state);
            }
            if text.len() > EVENT_MAX_BYTES {
                return Ended::Failed("an event is too long".to_owned());
            }
        }
    }
}

/// Takes the next whole event that has an id off `text`, and tells its id.
fn next_state(text: &mut BytesMut) -> Option<String> {
    loop {
        let end = text.windows(2).position(|two| two == b"\n\n")?;
        let event = text.split_to(end + 2);
        let id = event.as_ref().split(|byte: &u8| *byte == b'\n').find_map(|line| line.strip_prefix(b"id: "));
        if let Some(id) = id.and_then(|id| std::str::from_utf8(id).ok()) {
            return Some(id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_however_the_bytes_come() {
        let all = b"retry: 2000\n\nevent: state\nid: a1\ndata: {}\n\n: still here\n\nevent: version\nid: b2\ndata: {}\n\nid: c";
        for cut in 0..all.len() {
            let (mut text, mut ids) = (BytesMut::new(), Vec::new());
            for part in [&all[..cut], &all[cut..]] {
                text.extend_from_slice(part);
                ids.extend(std::iter::from_fn(|| next_state(&mut text)));
            }
            assert_eq!(ids, ["a1", "b2"], "{cut}");
            assert_eq!(&text[..], b"id: c");
        }
    }
}
