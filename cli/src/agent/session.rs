//! One connection: reads requests, runs them side by side, writes their replies. When the peer leaves, what still
//! runs for it is dropped.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::protocol::{PROTOCOL, REQUEST_MAX_BYTES, Reply, ReplyLine, Request, RequestLine, next_line, to_line};
use super::requests;
use super::worker::Shared;

/// Requests of one connection that run at once; further ones wait to be read.
const REQUESTS_AT_ONCE: usize = 32;

/// Replies that wait for a slow peer; beyond, its requests wait.
const REPLIES_QUEUED: usize = 64;

/// Serves `stream` until the peer leaves.
pub(crate) async fn run(stream: UnixStream, shared: &Arc<Shared>) {
    let (reader, writer) = stream.into_split();
    let shared = shared.clone();
    converse(reader, writer, move |request, replies| {
        let shared = shared.clone();
        async move { requests::answer(request, &shared, replies).await }
    })
    .await;
}

/// Where a request sends its progress.
#[derive(Clone)]
pub(crate) struct Replies {
    id: u64,
    out: mpsc::Sender<ReplyLine>,
}

impl Replies {
    pub(crate) async fn send(&self, reply: Reply) {
        // The receiver is gone only when the peer is, and then nobody wants to know.
        let _ = self.out.send(ReplyLine { id: self.id, reply }).await;
    }
}

async fn converse<R, W, A, F>(reader: R, mut writer: W, answer: A)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    A: Fn(Request, Replies) -> F,
    F: Future<Output = anyhow::Result<serde_json::Value>> + Send + 'static,
{
    let mut reader = BufReader::new(reader);
    let (out, mut queue) = mpsc::channel::<ReplyLine>(REPLIES_QUEUED);
    let mut running = JoinSet::new();
    let read = async {
        loop {
            while running.len() >= REQUESTS_AT_ONCE || running.try_join_next().is_some() {
                if running.len() >= REQUESTS_AT_ONCE {
                    running.join_next().await;
                }
            }
            let line = match next_line(&mut reader, REQUEST_MAX_BYTES).await {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a connection broke");
                    break;
                }
            };
            let (id, request) = match parse(&line) {
                Ok(parsed) => parsed,
                Err((id, message)) => {
                    let _ = out.send(ReplyLine { id, reply: Reply::Failed { message } }).await;
                    continue;
                }
            };
            let replies = Replies { id, out: out.clone() };
            let work = answer(request, replies.clone());
            running.spawn(async move {
                let reply = match work.await {
                    Ok(value) => Reply::Done { value },
                    Err(error) => Reply::Failed { message: crate::report::error_line(&error).unwrap_or_default() },
                };
                replies.send(reply).await;
            });
        }
    };
    let write = async {
        while let Some(line) = queue.recv().await {
            if writer.write_all(&to_line(&line)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
    // Dropping the set ends what still runs.
}

/// Id and request of a line; else the id, as far as known, and what is wrong. A line is never quoted: it may hold
/// credentials.
fn parse(line: &[u8]) -> Result<(u64, Request), (u64, String)> {
    let line: RequestLine =
        serde_json::from_slice(line).map_err(|_| (0, "the request is not a line of this protocol".to_owned()))?;
    if line.v != PROTOCOL {
        let message = format!(
            "the agent (streamfs {}) speaks protocol {PROTOCOL}, this command {}; unmount what it hosts so that it ends, then try again",
            env!("CARGO_PKG_VERSION"),
            line.v
        );
        return Err((line.id, message));
    }
    let request = serde_json::from_value(line.request)
        .map_err(|_| (line.id, "the agent does not know this request; is it of another version?".to_owned()))?;
    Ok((line.id, request))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex, split};

    use super::*;

    async fn exchange(input: &str) -> Vec<ReplyLine> {
        let (mut client, server): (DuplexStream, DuplexStream) = duplex(1 << 20);
        let (reader, writer) = split(server);
        let task = tokio::spawn(converse(reader, writer, |request, replies| async move {
            match request {
                Request::Ping {} => {
                    replies.send(Reply::Progress { done: 1, total: 2, message: "half".to_owned() }).await;
                    Ok(serde_json::Value::Null)
                }
                _ => anyhow::bail!("no"),
            }
        }));
        client.write_all(input.as_bytes()).await.unwrap();
        let mut reader = BufReader::new(client);
        let mut lines = Vec::new();
        for _ in 0..input.lines().map(|l| 1 + usize::from(l.contains("ping") && l.contains("\"v\":1"))).sum() {
            let line = next_line(&mut reader, 1 << 20).await.unwrap().unwrap();
            lines.push(serde_json::from_slice(&line).unwrap());
        }
        drop(reader);
        task.await.unwrap();
        lines
    }

    #[tokio::test]
    async fn requests_are_answered_by_their_id() {
        let lines = exchange("{\"v\":1,\"id\":7,\"request\":{\"type\":\"ping\"}}\n").await;
        assert!(
            matches!(&lines[0], ReplyLine { id: 7, reply: Reply::Progress { done: 1, total: 2, .. } }),
            "{lines:?}"
        );
        assert!(matches!(&lines[1], ReplyLine { id: 7, reply: Reply::Done { .. } }), "{lines:?}");
        let lines = exchange("{\"v\":1,\"id\":8,\"request\":{\"type\":\"status\"}}\n").await;
        assert!(
            matches!(&lines[0], ReplyLine { id: 8, reply: Reply::Failed { message } } if message == "no"),
            "{lines:?}"
        );
    }

    #[tokio::test]
    async fn nonsense_is_answered_without_quoting_it() {
        for input in [
            "token=secret\n",
            "{\"v\":9,\"id\":3,\"request\":{\"type\":\"ping\",\"token\":\"secret\"}}\n",
            "{\"v\":1,\"id\":3,\"request\":{\"type\":\"secret\"}}\n",
        ] {
            let lines = exchange(input).await;
            let Reply::Failed { message } = &lines[0].reply else { panic!("{lines:?}") };
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[tokio::test]
    async fn work_ends_with_its_connection() {
        struct Told(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let (mut client, server) = duplex(1 << 16);
        let (reader, writer) = split(server);
        let (dropped, was_dropped) = tokio::sync::oneshot::channel();
        let told = parking_lot::Mutex::new(Some(Told(Some(dropped))));
        let task = tokio::spawn(converse(reader, writer, move |_, replies| {
            let told = told.lock().take();
            async move {
                let _told = told;
                replies.send(Reply::Progress { done: 0, total: 0, message: String::new() }).await;
                std::future::pending().await
            }
        }));
        client.write_all(b"{\"v\":1,\"id\":1,\"request\":{\"type\":\"ping\"}}\n").await.unwrap();
        client.read_u8().await.unwrap();
        drop(client);
        was_dropped.await.unwrap();
        task.await.unwrap();
    }
}
