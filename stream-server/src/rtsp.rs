//! RTSP: stands in for it until it is there. Every request is answered that it is not implemented.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::{Connection, Shared};

/// Speaks RTSP on one connection until it ends. `stream` yields first what was read while sniffing.
pub(crate) async fn serve<S>(mut stream: S, _connection: Connection, _shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Whoever does not read the answer has no use for it.
    let _ = stream.write_all(b"RTSP/1.0 501 Not Implemented\r\nConnection: close\r\n\r\n").await;
    let _ = stream.shutdown().await;
}
