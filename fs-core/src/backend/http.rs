//! Objects on a web server: any that answers range requests.
//!
//! What cannot be an object's bytes is recognised and named: a server that ignores `Range`, a page of HTML from a
//! login portal, an answer for other bytes than those asked for, one that breaks off.

mod answer;
pub mod events;
mod lanes;
pub mod upload;

use std::error::Error as _;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::header::{self, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use tokio::sync::watch;
use url::Url;

use self::events::Listening;
use self::lanes::Lanes;
use super::{
    Backend, Beginning, ByteStream, Enough, Hold, LaunchReport, ObjectPath, ObjectState, ReadOptions, Validator,
    client_certificate, negotiate,
};
use crate::config::{Credentials, OriginConfig};
use crate::error::{Error, Result};
use crate::location::{PackageName, PackageVersion};
use crate::trust::HEAD_OBJECT;

/// Header of a request for `head` that names what is about to be started, as `/launch` has it in its query
/// (docs/HTTP.md); the answer may then bring all of that launch set behind `head`. Other servers pass over it.
pub const LAUNCH_HEADER: &str = "streamfs-launch";
/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Flow-control windows of HTTP/2. hyper's 2 MiB would hold a fast line with a long round trip back: 8 MiB are
/// 640 Mbit/s at 100 ms.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;

/// A package's folder on a web server.
pub struct HttpBackend {
    lanes: Lanes,
    folder: Url,
    origin: String,
    config: Arc<OriginConfig>,
    listening: Listening,
}

impl fmt::Debug for HttpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBackend").field("folder", &self.folder.as_str()).finish_non_exhaustive()
    }
}

impl HttpBackend {
    /// Reads the folder `package` below `root`, a URL whose path ends in `/`. Connects to nothing yet.
    ///
    /// # Errors
    /// `InvalidInput` for an unusable certificate file or credentials, and for credentials that would cross the
    /// network in clear; `Local` for a certificate file that cannot be read.
    pub fn new(root: &Url, package: &PackageName, config: &OriginConfig) -> Result<Self> {
        let folder = root
            .join(&format!("{}/", package.as_str()))
            .map_err(|e| Error::InvalidInput(format!("cannot make a URL of {root} and {package}: {e}")))?;
        check(&config.credentials)?;
        if config.credentials != Credentials::None && !config.allow_plaintext_credentials && !is_private_way(&folder) {
            return Err(Error::InvalidInput(format!(
                "credentials are not sent to {root} over plain http, where anybody on the way can read them; use https, or set allow_plaintext_credentials for this origin in the configuration file"
            )));
        }
        let config = Arc::new(config.clone());
        let lanes = Lanes::new(client(&config)?, config.clone());
        let origin = folder.as_str().trim_end_matches('/').to_owned();
        let listening = Listening::new(&folder, lanes.ordinary().clone(), config.clone());
        Ok(Self { lanes, folder, origin, config, listening })
    }

    fn url(&self, object: &ObjectPath) -> Url {
        // An object's path holds only characters that stand for themselves in a URL, and no `..`.
        let mut url = self.folder.clone();
        url.set_path(&format!("{}{object}", self.folder.path()));
        url
    }

    async fn send(&self, object: &ObjectPath, request: RequestBuilder) -> Result<Response> {
        let patience = self.config.retry.connect_timeout + self.config.retry.stall_timeout;
        let answer = async {
            let request = authorized(request, &self.config.credentials).await.map_err(|reason| Error::Denied {
                object: object.to_string(),
                origin: self.origin.clone(),
                reason,
            })?;
            request.send().await.map_err(|e| self.failed(object, e))
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.timed_out(object, patience)),
        }
    }

    fn timed_out(&self, object: &ObjectPath, after: Duration) -> Error {
        Error::TimedOut { object: object.to_string(), origin: self.origin.clone(), after }
    }

    /// A failure below HTTP, or of a redirect.
    fn failed(&self, object: &ObjectPath, e: reqwest::Error) -> Error {
        let (object, origin) = (object.to_string(), self.origin.clone());
        let redirect = e.is_redirect();
        let reason = chain(&e.without_url());
        let lower = reason.to_ascii_lowercase();
        if lower.contains("proxy auth") || lower.contains("407") {
            return Error::Denied { object, origin, reason: answer::PROXY_WANTS_LOGIN.to_owned() };
        }
        if redirect {
            return Error::BadAnswer { object, origin, reason };
        }
        Error::Unreachable { object, origin, reason }
    }

    fn answer<'a>(&'a self, object: &'a ObjectPath) -> answer::Context<'a> {
        answer::Context { object, origin: &self.origin }
    }

    /// The answer to a request for `range`, which is that.
    async fn ask_range(
        &self,
        client: &Client,
        object: &ObjectPath,
        range: &Range<u64>,
        options: ReadOptions,
    ) -> Result<Response> {
        let mut request = request(client, Method::GET, self.url(object), &self.config.credentials)
            .header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        if options.bypass_caches {
            request = request.header(header::CACHE_CONTROL, "no-cache").header(header::PRAGMA, "no-cache");
        }
        let response = self.send(object, request).await?;
        let about = self.answer(object);
        about.refusal(&response)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                about.plain_encoding(&response)?;
                about.content_range(&response, range)?;
                Ok(response)
            }
            StatusCode::OK => {
                let is_html = answer::says_html(&response);
                let sample = if is_html { self.sample(response).await } else { Vec::new() };
                Err(if is_html { about.html(&sample) } else { about.ignores_range() })
            }
            other => Err(about.unexpected(other)),
        }
    }

    /// The body as it comes, each wait bounded, up to an end that `check` approves given the bytes that came.
    fn body(&self, object: &ObjectPath, response: Response, expected: u64) -> ByteStream {
        let (origin, object, stall) = (self.origin.clone(), object.clone(), self.config.retry.stall_timeout);
        let broken = move |object: &ObjectPath, origin: &str, reason: String| Error::Unreachable {
            object: object.to_string(),
            origin: origin.to_owned(),
            reason,
        };
        stream::try_unfold((response, 0u64), move |(mut response, came)| {
            let (origin, object) = (origin.clone(), object.clone());
            async move {
                match tokio::time::timeout(stall, response.chunk()).await {
                    Err(_) => Err(Error::TimedOut { object: object.to_string(), origin, after: stall }),
                    Ok(Err(e)) => {
                        let why = format!(
                            "the answer broke off after {came} of {expected} bytes: {}",
                            chain(&e.without_url())
                        );
                        Err(broken(&object, &origin, why))
                    }
                    Ok(Ok(Some(piece))) if came + piece.len() as u64 > expected => {
                        Err(broken(&object, &origin, format!("more than the {expected} bytes asked for came")))
                    }
                    Ok(Ok(Some(piece))) => {
                        let came = came + piece.len() as u64;
                        Ok(Some((piece, (response, came))))
                    }
                    Ok(Ok(None)) if came < expected => {
                        Err(broken(&object, &origin, format!("the answer ended after {came} of {expected} bytes")))
                    }
                    Ok(Ok(None)) => Ok(None),
                }
            }
        })
        .boxed()
    }

    /// The beginning of a body that is not an object, to say what it is. Never fails: it is only for the message.
    async fn sample(&self, mut response: Response) -> Vec<u8> {
        let mut sample = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = response.chunk().await {
                sample.extend_from_slice(&piece);
                if sample.len() >= answer::SAMPLE_BYTES {
                    break;
                }
            }
        };
        // A page that dribbles is named without its title.
        let _ = tokio::time::timeout(Duration::from_secs(2).min(self.config.retry.stall_timeout), read).await;
        sample
    }
}

#[async_trait]
impl Backend for HttpBackend {
    fn origin(&self) -> &str {
        &self.origin
    }

    async fn stat(&self, object: &ObjectPath) -> Result<ObjectState> {
        // A cache in between must ask the origin, as for small objects: whoever asks wants to know what is there now.
        let request = request(self.lanes.ordinary(), Method::HEAD, self.url(object), &self.config.credentials)
            .header(header::CACHE_CONTROL, "no-cache");
        let response = self.send(object, request).await?;
        let about = self.answer(object);
        about.refusal(&response)?;
        if response.status() != StatusCode::OK {
            return Err(about.unexpected(response.status()));
        }
        about.plain_encoding(&response)?;
        about.state(&response)
    }

    async fn read_range(&self, object: &ObjectPath, range: Range<u64>, options: ReadOptions) -> Result<ByteStream> {
        if range.is_empty() {
            let Range { start, end } = range;
            return Err(Error::InvalidInput(format!("the range {start}..{end} of {object} holds no bytes")));
        }
        let (url, config) = (self.url(object), self.config.clone());
        let open = move |client: &Client| {
            request(client, Method::GET, url, &config.credentials).header(header::RANGE, "bytes=0-0")
        };
        let lane = self.lanes.take(&range, options, open);
        match self.ask_range(&lane.client, object, &range, options).await {
            Ok(response) => {
                let body = self.body(object, response, range.end - range.start);
                Ok(body.inspect_err(move |_| lane.failed()).boxed())
            }
            Err(error) => {
                lane.failed();
                Err(error)
            }
        }
    }

    async fn read_beginning(
        &self,
        object: &ObjectPath,
        limit_bytes: u64,
        known: Option<&Validator>,
        enough: Enough<'_>,
    ) -> Result<Beginning> {
        let mut request = request(self.lanes.ordinary(), Method::GET, self.url(object), &self.config.credentials);
        // A cache in between must ask the origin whether it changed: freshness is what small objects are read for.
        request = request.header(header::CACHE_CONTROL, "no-cache");
        if let Some((name, value)) = known.and_then(answer::condition) {
            request = request.header(name, value);
        }
        if let Some(wish) = enough.launch {
            request = request.header(LAUNCH_HEADER, wish.query());
        }
        let wanted = enough.first_bytes.filter(|wanted| *wanted > 0);
        if let Some(wanted) = wanted {
            request = request.header(header::RANGE, format!("bytes=0-{}", wanted - 1));
        }
        let mut response = self.send(object, request).await?;
        if object.as_str() == HEAD_OBJECT {
            self.listening.learn(&response);
        }
        let about = self.answer(object);
        if response.status() == StatusCode::NOT_MODIFIED && known.is_some() {
            return Ok(Beginning::NotModified);
        }
        about.refusal(&response)?;
        let (promised, whole) = match (response.status(), wanted) {
            (StatusCode::OK, _) => (response.content_length(), response.content_length()),
            (StatusCode::PARTIAL_CONTENT, Some(wanted)) => {
                let (promised, whole) = about.first_bytes(&response, wanted)?;
                (Some(promised), whole)
            }
            (other, _) => return Err(about.unexpected(other)),
        };
        about.plain_encoding(&response)?;
        if promised.max(whole).is_some_and(|n| n > limit_bytes) {
            return Err(about.too_long(limit_bytes));
        }
        let (says_html, validator) = (answer::says_html(&response), answer::validator(&response));
        let mut front = BytesMut::new();
        let mut ended = false;
        while !ended && !enough.is_in(&front) {
            match tokio::time::timeout(self.config.retry.stall_timeout, response.chunk()).await {
                Err(_) => return Err(self.timed_out(object, self.config.retry.stall_timeout)),
                Ok(Err(e)) => return Err(self.failed(object, e)),
                Ok(Ok(Some(piece))) => {
                    front.extend_from_slice(&piece);
                    if front.len() as u64 > limit_bytes {
                        return Err(about.too_long(limit_bytes));
                    }
                }
                Ok(Ok(None)) => ended = true,
            }
        }
        let came = front.len() as u64;
        if promised.is_some_and(|n| if ended { n != came } else { n < came }) {
            return Err(about.short(came, promised.unwrap_or(0)));
        }
        if answer::is_html(&front, says_html) {
            return Err(about.html(&front));
        }
        let rest = match (ended, promised) {
            (true, _) => stream::empty().boxed(),
            (false, Some(promised)) => self.body(object, response, promised - came),
            // Without a length its end is what ends it; what is too much breaks it off.
            (false, None) => {
                let unsure = self.body(object, response, limit_bytes - came);
                unsure.take_while(|piece| std::future::ready(piece.is_ok())).boxed()
            }
        };
        Ok(Beginning::Object { front: front.freeze(), rest, validator })
    }

    fn hold(&self, version: &PackageVersion) -> Hold {
        Hold::until_dropped(self.listening.hold(version))
    }

    async fn report_launch(&self, report: &LaunchReport) -> Result<()> {
        if !self.config.report_launches {
            return Ok(());
        }
        let mut url = self.folder.clone();
        url.set_path(&format!("{}launches", self.folder.path()));
        let about = ObjectPath::new("launches")?;
        let text = serde_json::to_vec(report).expect("plain fields have a form in JSON");
        let request = request(self.lanes.ordinary(), Method::POST, url, &self.config.credentials)
            .header(header::CONTENT_TYPE, "application/json")
            .body(text);
        let response = self.send(&about, request).await?;
        self.answer(&about).refusal(&response)
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.listening.changes())
    }
}

/// A request as all are made.
fn request(client: &Client, method: Method, url: Url, credentials: &Credentials) -> RequestBuilder {
    let request = client.request(method, url).header(header::ACCEPT_ENCODING, "identity");
    // Given with the request, not with the client: reqwest drops them when a redirect leaves the host.
    match credentials {
        // A ticket is good for one sending; `authorized` adds it.
        Credentials::None | Credentials::Kerberos => request,
        Credentials::Basic { user, password } => request.basic_auth(user, Some(password)),
        Credentials::Bearer(token) => request.bearer_auth(token),
    }
}

/// `request` with a Kerberos ticket for the server that it goes to, if that is how to log in.
///
/// # Errors
/// Why there is none.
async fn authorized(request: RequestBuilder, credentials: &Credentials) -> Result<RequestBuilder, String> {
    if *credentials != Credentials::Kerberos {
        return Ok(request);
    }
    let (client, request) = request.build_split();
    let mut request = request.map_err(|e| e.without_url().to_string())?;
    let value = negotiate::authorization(request.url().host_str().unwrap_or_default()).await?;
    let mut value = HeaderValue::from_str(&value).map_err(|e| e.to_string())?;
    value.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, value);
    Ok(RequestBuilder::from_parts(client, request))
}

/// What connects to servers as `config` says.
fn client(config: &OriginConfig) -> Result<Client> {
    let retry = &config.retry;
    let mut builder = Client::builder()
        .user_agent(concat!("streamfs/", env!("CARGO_PKG_VERSION")))
        .tcp_nodelay(true)
        .connect_timeout(retry.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(retry.stall_timeout)
        .referer(false)
        // Our own wrapper tries again, with the deadline in view.
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::custom(redirect));
    for path in &config.ca_files {
        let pem = std::fs::read(path).map_err(|e| Error::local("read the certificate authorities in", path, e))?;
        let bad =
            |why: String| Error::InvalidInput(format!("{} holds no usable certificates in PEM: {why}", path.display()));
        let certs = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(e.to_string()))?;
        if certs.is_empty() {
            return Err(bad("there is none in it".to_owned()));
        }
        builder = builder.tls_certs_merge(certs);
    }
    if let Some(files) = &config.client_certificate {
        let (chain, key) = client_certificate::read(files)?;
        let identity = reqwest::Identity::from_pem(&[chain, b"\n".to_vec(), key].concat());
        builder = builder.identity(identity.map_err(|e| client_certificate::unusable(files, &e))?);
    }
    builder
        .build()
        .map_err(|e| Error::Unsupported(format!("cannot set up the HTTP client: {}", chain(&e.without_url()))))
}

/// Whether nobody between here and the server can read along.
pub(super) fn is_private_way(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        // Of schemes that the URL standard does not know, addresses are names, too.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    };
    matches!(url.scheme(), "https" | "rtsps") || loopback
}

/// Refuses credentials that cannot be sent, with a message of ours: a later one would have to show them.
pub(super) fn check(credentials: &Credentials) -> Result<()> {
    match credentials {
        Credentials::Kerberos => negotiate::check(),
        Credentials::Basic { user, .. } if user.contains(':') => {
            Err(Error::InvalidInput("a user name for HTTP Basic cannot hold a colon".to_owned()))
        }
        Credentials::Bearer(token) if HeaderValue::from_str(token).is_err() => Err(Error::InvalidInput(
            "the access token holds characters that cannot be sent (a line break, perhaps)".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let from_https = attempt.previous().last().is_some_and(|u| u.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error(format!("it redirects more than {REDIRECTS_MAX} times"))
    } else if from_https && attempt.url().scheme() != "https" {
        attempt.error("it redirects from https to plain http, which is not followed")
    } else {
        attempt.follow()
    }
}

/// The error and its causes in one line: reqwest's own text alone says only "error sending request".
fn chain(e: &reqwest::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
impl HttpBackend {
    /// Waits until reads that somebody waits for have a connection of their own.
    pub(super) async fn until_express(&self) {
        self.lanes.until_open().await;
    }
}
