//! Where this crate's tests play: a content root with packages, and servers of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fs_core::package::publish::{DEFAULT_LEVEL, NoProgress, PublishRequest, publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Reloader, ServeError, Server, ServerSettings};

pub(crate) struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("content")).unwrap();
        Self { dir }
    }

    /// The content root, as the server sees it.
    pub(crate) fn content(&self) -> PathBuf {
        std::fs::canonicalize(self.dir.path().join("content")).unwrap()
    }

    /// Something else in the same place.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes a version with one file, to the channel `stable`.
    pub(crate) fn publish(&self, package: &str, version: &str, bytes: &[u8]) {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), bytes).unwrap();
        let (folder, name) = package.rsplit_once('/').unwrap_or(("", package));
        let content_root = self.content().join(folder);
        std::fs::create_dir_all(&content_root).unwrap();
        let request = PublishRequest {
            source: source.path().to_owned(),
            content_root,
            package: name.parse().unwrap(),
            version: version.parse().unwrap(),
            channels: vec!["stable".parse().unwrap()],
            keys_dir: self.path("keys"),
            level: DEFAULT_LEVEL,
            skip_special: false,
            threads: 2,
            profiles: Vec::new(),
            inherit_profiles: true,
        };
        // Publishing blocks and has a runtime of its own, which must not be made within a test's.
        std::thread::scope(|scope| scope.spawn(|| publish(&request, &NoProgress)).join().unwrap()).unwrap();
    }

    /// A package that is made anew has other keys.
    pub(crate) fn forget_keys(&self) {
        std::fs::remove_dir_all(self.path("keys")).unwrap();
    }

    pub(crate) fn settings(&self) -> ServerSettings {
        ServerSettings::new(self.content(), "127.0.0.1:0")
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) reloader: Reloader,
    pub(crate) end: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
}

pub(crate) async fn serve(settings: &ServerSettings) -> Running {
    let server = Server::bind(settings.clone()).await.unwrap();
    let (address, reloader) = (server.address(), server.reloader());
    let (end, ended) = oneshot::channel();
    let task = tokio::spawn(server.run(async {
        ended.await.ok();
    }));
    Running { address, reloader, end: Some(end), task }
}

pub(crate) async fn send(address: SocketAddr, method: &str, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Head (lower case) and body of the answer.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = send(address, method, path, headers).await;
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut all));
    read.await.expect("it ends").unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&all[..end]).to_ascii_lowercase(), all[end + 4..].to_vec())
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("")
}
