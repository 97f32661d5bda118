//! HTTP/1.1 and HTTP/2 on one connection, within limits of time and memory.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service as _;

use super::Told;
use super::counted::{Activity, Counted};
use crate::metrics::Protocol;
use crate::{Connection, Shared};

/// A request's head may be so long: far more than any client of ours sends.
const HEAD_MAX_BYTES: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// Requests of one HTTP/2 connection that are answered at a time: a client that launches has some 64.
const STREAMS_MAX: u32 = 128;
/// What is buffered for one HTTP/2 stream beside the piece being sent. More would only be memory: what a slow client does
/// not take stays unread.
const STREAM_BUFFER_BYTES: usize = 64 << 10;
/// Streams that a client opened and reset, not yet dealt with; more than that is an attack.
const RESET_STREAMS_MAX: usize = 64;
/// A silent HTTP/2 connection is asked so often whether anybody is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpTimes {
    /// A connection without requests.
    pub(crate) idle: Duration,
}

/// Answers requests on one connection until it ends.
pub(crate) async fn serve<S>(
    stream: S,
    version: Version,
    connection: Connection,
    shared: Arc<Shared>,
    router: Router,
    times: HttpTimes,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _counted = shared.metrics.connection(Protocol::Http);
    let (connection, activity) = (Arc::new(connection), Activity::new());
    let service = {
        let (connection, activity) = (connection.clone(), activity.clone());
        service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(connection.clone());
            let (shared, running) = (shared.clone(), activity.begin());
            let (connection, method) = (connection.clone(), request.method().clone());
            let (answered, begun) = (router.clone().call(request), Instant::now());
            async move {
                let mut response = answered.await?;
                let told = response.extensions_mut().remove::<Told>();
                shared.metrics.answered_after(Protocol::Http, begun.elapsed());
                let status = response.status().as_u16();
                Ok::<_, Infallible>(response.map(|body| Counted {
                    body,
                    status,
                    sent_bytes: 0,
                    shared,
                    connection,
                    method,
                    told,
                    begun,
                    _running: running,
                }))
            }
        })
    };
    let io = TokioIo::new(stream);
    let ended = match version {
        Version::One => {
            let mut builder = http1::Builder::new();
            // The time for a request's head counts from the answer before it, so it is also that of being idle. The first
            // one has come in full already.
            builder.timer(TokioTimer::new()).header_read_timeout(times.idle);
            builder.max_headers(HEADERS_MAX).max_header_size(HEAD_MAX_BYTES);
            let mut speaking = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = speaking.as_mut() => ended,
                () = connection.is_ending() => {
                    speaking.as_mut().graceful_shutdown();
                    speaking.await
                }
            }
        }
        Version::Two => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
            builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEAD_MAX_BYTES as u32);
            builder.max_send_buf_size(STREAM_BUFFER_BYTES).max_pending_accept_reset_streams(RESET_STREAMS_MAX);
            let mut speaking = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = speaking.as_mut() => ended,
                () = async { tokio::select! { () = connection.is_ending() => {}, () = activity.idle(times.idle) => {} } } => {
                    speaking.as_mut().graceful_shutdown();
                    speaking.await
                }
            }
        }
    };
    if let Err(error) = ended {
        // Clients that leave, time out or speak nonsense: nothing that an administrator could do anything about.
        tracing::debug!(peer = %connection.peer, %error, "a connection broke off");
    }
}
