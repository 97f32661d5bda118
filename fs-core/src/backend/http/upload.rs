//! Bringing objects to a streaming server: docs/HTTP.md, "Publishing". Each request may be repeated without harm, and is,
//! until the read deadline has passed in vain.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::header::{self, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method, Response, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::{HttpBackend, answer, authorized, client, request};
use crate::backend::{ObjectPath, Validator};
use crate::config::RetryPolicy;
use crate::error::{Error, Result};

/// What is read from disk and handed to the connection at a time.
const PIECE_BYTES: usize = 256 << 10;
/// After the last byte went out, a server hashes and syncs: some seconds for the longest objects on slow disks.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Tries of what a server says came damaged, or is refused for reasons that may pass.
const TRIES: u32 = 3;
/// How a refusal begins that says that a condition is missing (RFC 6585, section 3).
const UNCONDITIONAL: &str = "428";
/// Tries of anything: a connection that always breaks at the same place never gets through.
const TRIES_MAX: u32 = 100;
/// As much of a server's words as is shown.
const WORDS_MAX_BYTES: usize = 2000;

/// What the state of a package must be for new metadata to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing is published yet.
    Absent,
    /// `head` is as it was when this was read with it.
    Unchanged(Validator),
}

/// How uploads get on, and whether they shall. Shared between those who upload and whoever watches.
#[derive(Debug, Default)]
pub struct Transfer {
    sent_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Transfer {
    /// Bytes that went out, without those of requests that failed.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Acquire)
    }

    /// Lets what is under way end with `Cancelled`.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// Writes objects of one package to a server.
pub struct Uploader {
    backend: HttpBackend,
    client: Client,
}

/// Why one try failed.
struct Failed {
    error: Error,
    /// How often it makes sense to try in all.
    tries: u32,
}

impl Uploader {
    /// Writes to where `backend` reads from, with connections of its own.
    ///
    /// # Errors
    /// As those of [`HttpBackend::new`].
    pub fn new(backend: HttpBackend) -> Result<Self> {
        let client = client(&backend.config)?;
        Ok(Self { backend, client })
    }

    /// Asks whether this may be published to, before anything long is sent.
    ///
    /// # Errors
    /// As [`Self::put_file`].
    pub async fn check(&self) -> Result<()> {
        let object = ObjectPath::new(crate::trust::HEAD_OBJECT)?;
        let transfer = Arc::new(Transfer::default());
        self.persistently(|| async {
            let sent = Sent::new(transfer.clone());
            // Without a condition nothing is ever changed; whoever may publish is told that it is missing.
            match self.put(&object, Body::from(Bytes::new()), 0, None, &sent).await {
                Err(Failed { error: Error::NotTaken { reason, .. }, .. }) if reason.starts_with(UNCONDITIONAL) => {
                    Ok(())
                }
                other => other,
            }
        })
        .await
    }

    /// Stores the bytes of `file` as `object`.
    ///
    /// # Errors
    /// `Denied`; `NotTaken` with the server's reason; `Unreachable` or `TimedOut` once it was tried for long enough;
    /// `Local`; `Cancelled`.
    pub async fn put_file(&self, object: &ObjectPath, file: &Path, transfer: &Arc<Transfer>) -> Result<()> {
        self.persistently(|| async {
            let sent = Arc::new(Sent::new(transfer.clone()));
            let opened = tokio::fs::File::open(file).await;
            let opened = opened.map_err(|e| Failed { error: Error::local("open", file, e), tries: 1 })?;
            let length =
                opened.metadata().await.map_err(|e| Failed { error: Error::local("read", file, e), tries: 1 })?;
            let body = Body::wrap_stream(pieces(opened, sent.clone()));
            let answered = self.put(object, body, length.len(), None, &sent).await;
            if answered.is_err() {
                sent.forget();
            }
            answered
        })
        .await
    }

    /// Makes the metadata in `bundle` that of the package, if `precondition` holds.
    ///
    /// # Errors
    /// As [`Self::put_file`], and `Busy` if somebody else has published meanwhile.
    pub async fn commit(&self, bundle: Bytes, precondition: &Precondition, transfer: &Arc<Transfer>) -> Result<()> {
        let object = ObjectPath::new(crate::trust::HEAD_OBJECT)?;
        let condition = match precondition {
            Precondition::Absent => Some((header::IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Precondition::Unchanged(validator) => {
                let (_, value) = answer::condition(validator)
                    .filter(|(name, _)| name == header::IF_NONE_MATCH)
                    .ok_or_else(|| Error::NotTaken {
                        what: object.to_string(),
                        origin: self.backend.origin.clone(),
                        reason: "it gives head no ETag, so it is no server to publish to".to_owned(),
                    })?;
                Some((header::IF_MATCH, value))
            }
        };
        self.persistently(|| async {
            let sent = Arc::new(Sent::new(transfer.clone()));
            sent.all.store(true, Ordering::Release);
            self.put(&object, Body::from(bundle.clone()), bundle.len() as u64, condition.clone(), &sent).await
        })
        .await
    }

    /// Tries until it works, makes no sense any more, or the deadline passed without progress.
    async fn persistently<F>(&self, attempt: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<(), Failed>>,
    {
        let RetryPolicy { read_deadline, first_backoff, max_backoff, .. } = self.backend.config.retry;
        let mut patience = read_deadline;
        let mut backoff = first_backoff;
        for tried in 1..=TRIES_MAX {
            let begun = Instant::now();
            let Failed { error, tries } = match attempt().await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            let mut pause = backoff.mul_f64(rand::random_range(0.5..1.0));
            if let Error::Overloaded { retry_after, .. } = &error {
                pause = pause.max(*retry_after);
            }
            // What took long moved for most of that time.
            patience = patience.saturating_sub(begun.elapsed().min(self.backend.config.retry.stall_timeout) + pause);
            if tried >= tries.min(TRIES_MAX) || patience.is_zero() {
                return Err(error);
            }
            tracing::debug!(tried, ?pause, %error, "trying again");
            tokio::time::sleep(pause).await;
            backoff = (backoff * 2).min(max_backoff);
        }
        unreachable!("the last try ends it")
    }

    async fn put(
        &self,
        object: &ObjectPath,
        body: Body,
        length: u64,
        condition: Option<(HeaderName, HeaderValue)>,
        sent: &Sent,
    ) -> Result<(), Failed> {
        let backend = &self.backend;
        let once = |error| Failed { error, tries: 1 };
        let mut put = request(&self.client, Method::PUT, backend.url(object), &backend.config.credentials)
            .header(header::CONTENT_LENGTH, length)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        if let Some((name, value)) = condition {
            put = put.header(name, value);
        }
        let put = authorized(put, &backend.config.credentials).await.map_err(|reason| {
            let (object, origin) = (object.to_string(), backend.origin.clone());
            once(Error::Denied { object, origin, reason })
        })?;
        let stall = backend.config.retry.stall_timeout;
        let answered = tokio::select! {
            answered = put.send() => answered.map_err(|e| backend.failed(object, e)),
            stopped = sent.stopped(stall) => return Err(match stopped {
                Stopped::Cancelled => once(Error::Cancelled),
                Stopped::Stalled(after) => Failed { error: backend.timed_out(object, after), tries: u32::MAX },
            }),
        };
        match answered {
            Ok(response) => self.judge(object, response).await,
            Err(error) => Err(Failed { error, tries: u32::MAX }),
        }
    }

    /// What the answer means.
    async fn judge(&self, object: &ObjectPath, response: Response) -> Result<(), Failed> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let (what, origin) = (object.to_string(), self.backend.origin.clone());
        if let Err(error) = self.backend.answer(object).refusal(&response)
            && status != StatusCode::FORBIDDEN
            && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::INSUFFICIENT_STORAGE)
        {
            let tries = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS { u32::MAX } else { 1 };
            let error = match error {
                Error::NotFound { .. } => Error::NotTaken {
                    what,
                    origin,
                    reason: "404: it is not there for you; who may publish it is not you, or nobody may".to_owned(),
                },
                error => error,
            };
            return Err(Failed { error, tries });
        }
        let words = words(&self.backend.sample(response).await);
        let reason = if words.is_empty() { status.to_string() } else { format!("{}: {words}", status.as_u16()) };
        Err(match status {
            StatusCode::PRECONDITION_FAILED => {
                let reason = "another publisher has changed it meanwhile, and nothing of this publication is visible; publish again to go on from there".to_owned();
                Failed { error: Error::Busy { what: origin, reason }, tries: 1 }
            }
            StatusCode::FORBIDDEN => Failed { error: Error::NotTaken { what, origin, reason }, tries: 1 },
            StatusCode::CONFLICT => Failed { error: Error::Incomplete { origin, reason }, tries: 1 },
            // It came damaged: on the way, perhaps.
            StatusCode::UNPROCESSABLE_ENTITY => {
                Failed { error: Error::NotTaken { what, origin, reason }, tries: TRIES }
            }
            _ => Failed { error: Error::NotTaken { what, origin, reason }, tries: 1 },
        })
    }
}

/// One line of what a server says.
fn words(sample: &[u8]) -> String {
    let text = String::from_utf8_lossy(&sample[..sample.len().min(WORDS_MAX_BYTES)]);
    if answer::is_html(sample, false) {
        return String::new();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect()
}

/// How one request gets on.
struct Sent {
    transfer: Arc<Transfer>,
    bytes: AtomicU64,
    /// Whether all was handed to the connection.
    all: AtomicBool,
}

enum Stopped {
    Cancelled,
    Stalled(Duration),
}

impl Sent {
    fn new(transfer: Arc<Transfer>) -> Self {
        Self { transfer, bytes: AtomicU64::new(0), all: AtomicBool::new(false) }
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.transfer.sent_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// What went out counts for nothing: the request begins anew.
    fn forget(&self) {
        self.transfer.sent_bytes.fetch_sub(self.bytes.swap(0, Ordering::AcqRel), Ordering::AcqRel);
    }

    /// Returns when it shall go on no more: nothing moved for `stall`, or somebody said so.
    async fn stopped(&self, stall: Duration) -> Stopped {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.transfer.cancelled.load(Ordering::Acquire) {
                return Stopped::Cancelled;
            }
            let now = self.bytes.load(Ordering::Acquire);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            let patience = if self.all.load(Ordering::Acquire) { ANSWER_WITHIN.max(stall) } else { stall };
            if since.elapsed() > patience {
                return Stopped::Stalled(patience);
            }
        }
    }
}

fn pieces(file: tokio::fs::File, sent: Arc<Sent>) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((file, sent), |(mut file, sent)| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let read = file.read(&mut piece).await?;
        if read == 0 {
            sent.all.store(true, Ordering::Release);
            return Ok(None);
        }
        piece.truncate(read);
        sent.add(read as u64);
        Ok(Some((Bytes::from(piece), (file, sent))))
    })
    .boxed()
}
