//! A small HTTP/1.1 server that does what no good server does, on purpose and exactly when told.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection before answering.
    Close,
    /// Sends so many bytes of the body, then closes the connection.
    DieAfter(usize),
    /// Sends so many bytes of the body, then nothing more, with the connection open.
    StallAfter(usize),
    /// Answers with this status and a short text.
    Status(u16),
    /// Answers 200 with an HTML page, as captive portals and misconfigured servers do.
    HtmlPage,
    /// Answers a range request with 200 and the whole object.
    IgnoreRange,
    /// Answers 206 with a body shorter by so many bytes, and a `Content-Length` that agrees.
    ShortBody(usize),
    /// Inverts a bit of the body's byte at this place (of the last byte, if it is shorter).
    FlipByte(usize),
    /// Sends so many bytes at a time, with this pause between.
    Trickle(usize, Duration),
    /// Answers 206 with a `Content-Range` that is not what was asked for.
    WrongRange,
}

type Condition = Box<dyn Fn(&ServedRequest) -> bool + Send + Sync>;

/// When a fault happens.
pub struct Rule {
    applies: Condition,
    fault: Fault,
    left: Option<usize>,
}

impl Rule {
    /// The fault happens to every request that satisfies `applies`.
    pub fn when(applies: impl Fn(&ServedRequest) -> bool + Send + Sync + 'static, fault: Fault) -> Self {
        Self { applies: Box::new(applies), fault, left: None }
    }

    /// The fault happens to every request.
    pub fn always(fault: Fault) -> Self {
        Self::when(|_| true, fault)
    }

    /// The fault happens to requests whose path contains `part`.
    pub fn on_path(part: &str, fault: Fault) -> Self {
        let part = part.to_owned();
        Self::when(move |r| r.path.contains(&part), fault)
    }

    /// The fault happens only the first `count` times.
    pub fn times(mut self, count: usize) -> Self {
        self.left = Some(count);
        self
    }
}

/// A request that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRequest {
    /// Counted from 0.
    pub number: usize,
    /// Path, decoded.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Whether caches on the way were told to keep out.
    pub no_cache: bool,
}

/// What the threads share.
struct Shared {
    content: PathBuf,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<ServedRequest>>,
    open: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
    end: Condvar,
    waiting: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server. Ends when dropped, with every connection.
pub struct FaultServer {
    shared: Arc<Shared>,
    port: u16,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultServer {
    /// Serves `content` faultlessly, until rules are given.
    pub fn start(content: &Path) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            content: content.to_owned(),
            rules: Mutex::default(),
            requests: Mutex::default(),
            open: Mutex::default(),
            ended: AtomicBool::new(false),
            end: Condvar::new(),
            waiting: Mutex::default(),
        });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &for_acceptor));
        Self { shared, port, acceptor: Some(acceptor) }
    }

    /// URL of the content root, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Replaces all rules; the first that applies to a request decides.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        *lock(&self.shared.rules) = rules;
    }

    /// What was asked for so far, faults included.
    pub fn requests(&self) -> Vec<ServedRequest> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        {
            // Under the lock that a hanging answer waits with, so that none misses it.
            let _waiting = lock(&self.shared.waiting);
            self.shared.ended.store(true, Ordering::SeqCst);
            self.shared.end.notify_all();
        }
        for stream in lock(&self.shared.open).drain(..) {
            // The client may have closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The acceptor waits in accept: one more connection lets it see that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.open).push(copy);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that leaves is not an error of the server.
            let _ = serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Answers requests on one connection until either side has enough.
fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader, shared)? {
        let fault = choose(shared, &request);
        if !answer(stream, shared, &request, fault.as_ref())? {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>, shared: &Shared) -> io::Result<Option<ServedRequest>> {
    let mut line = String::new();
    if reader.by_ref().take(64 << 10).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    let (mut range, mut no_cache) = (None, false);
    loop {
        let mut header = String::new();
        if reader.by_ref().take(64 << 10).read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("range") {
            range = Some(value.trim().to_owned());
        }
        no_cache |= name.eq_ignore_ascii_case("cache-control") && value.contains("no-cache");
    }
    let mut requests = lock(&shared.requests);
    let request = ServedRequest { number: requests.len(), path, range, no_cache };
    requests.push(request.clone());
    Ok(Some(request))
}

fn choose(shared: &Shared, request: &ServedRequest) -> Option<Fault> {
    let mut rules = lock(&shared.rules);
    let rule = rules.iter_mut().find(|r| r.left != Some(0) && (r.applies)(request))?;
    if let Some(left) = &mut rule.left {
        *left -= 1;
    }
    Some(rule.fault.clone())
}

/// Waits until the server ends.
fn hang(shared: &Shared) {
    let mut waiting = lock(&shared.waiting);
    while !shared.ended.load(Ordering::SeqCst) {
        waiting = shared.end.wait(waiting).unwrap_or_else(PoisonError::into_inner);
    }
}

fn head(status: &str, length: usize, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n")
}

/// Answers one request; tells whether the connection goes on.
fn answer(mut stream: &TcpStream, shared: &Shared, request: &ServedRequest, fault: Option<&Fault>) -> io::Result<bool> {
    let send = |mut stream: &TcpStream, status: &str, more: &str, body: &[u8]| -> io::Result<bool> {
        stream.write_all(head(status, body.len(), more).as_bytes())?;
        stream.write_all(body)?;
        Ok(true)
    };
    match fault {
        Some(Fault::Hang) => {
            hang(shared);
            return Ok(false);
        }
        Some(Fault::Close) => return Ok(false),
        Some(Fault::Status(code)) => {
            return send(stream, &format!("{code} Injected"), "Content-Type: text/plain\r\n", b"injected\n");
        }
        Some(Fault::HtmlPage) => {
            let page = b"<!DOCTYPE html><html><body>Please log in</body></html>";
            return send(stream, "200 OK", "Content-Type: text/html; charset=utf-8\r\n", page);
        }
        _ => {}
    }
    let inside = !request.path.split('/').any(|part| part == "..");
    let path = shared.content.join(request.path.trim_start_matches('/'));
    let Ok(whole) = (if inside { fs::read(&path) } else { Err(io::ErrorKind::NotFound.into()) }) else {
        return send(stream, "404 Not Found", "", b"");
    };
    let wanted = if fault == Some(&Fault::IgnoreRange) { None } else { request.range.as_deref() };
    let (status, more, mut body) = match wanted.map(|r| parse_range(r, whole.len())) {
        None => ("200 OK", String::new(), whole),
        Some(None) => {
            let more = format!("Content-Range: bytes */{}\r\n", whole.len());
            return send(stream, "416 Range Not Satisfiable", &more, b"");
        }
        Some(Some((first, last))) => {
            let shift = usize::from(fault == Some(&Fault::WrongRange));
            let more = format!("Content-Range: bytes {}-{}/{}\r\n", first + shift, last + shift, whole.len());
            ("206 Partial Content", more, whole[first..=last].to_vec())
        }
    };
    let more = format!("{more}Accept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n");
    match fault {
        Some(Fault::ShortBody(by)) => {
            body.truncate(body.len().saturating_sub(*by));
            send(stream, status, &more, &body)
        }
        Some(Fault::FlipByte(at)) => {
            let at = (*at).min(body.len().saturating_sub(1));
            if let Some(byte) = body.get_mut(at) {
                *byte ^= 0x10;
            }
            send(stream, status, &more, &body)
        }
        Some(Fault::DieAfter(count) | Fault::StallAfter(count)) => {
            stream.write_all(head(status, body.len(), &more).as_bytes())?;
            stream.write_all(&body[..(*count).min(body.len())])?;
            if matches!(fault, Some(Fault::StallAfter(_))) {
                hang(shared);
            }
            Ok(false)
        }
        Some(Fault::Trickle(piece, pause)) => {
            stream.write_all(head(status, body.len(), &more).as_bytes())?;
            for piece in body.chunks((*piece).max(1)) {
                stream.write_all(piece)?;
                // The slowness is what is being tested.
                std::thread::sleep(*pause);
            }
            Ok(true)
        }
        _ => send(stream, status, &more, &body),
    }
}

/// First and last byte of `bytes=a-b`, `bytes=a-` or `bytes=-n`; `None` if the object has none of them.
fn parse_range(text: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let end = length.checked_sub(1)?;
    let (first, last) = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), last) => (first, last.unwrap_or(end).min(end)),
        (None, Some(count)) => (length.saturating_sub(count), end),
        (None, None) => return None,
    };
    (first <= last && first < length).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(server: &FaultServer, headers: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        write!(stream, "GET /f HTTP/1.1\r\nHost: h\r\n{headers}\r\n").unwrap();
        let mut answer = Vec::new();
        // Connections are kept alive: the pause, or the end, ends the reading.
        let _ = stream.read_to_end(&mut answer);
        let split = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |i| i + 4);
        (String::from_utf8(answer[..split].to_vec()).unwrap(), answer[split..].to_vec())
    }

    #[test]
    fn does_right_when_nothing_is_said_and_wrong_as_told() {
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join("f"), "0123456789").unwrap();
        let server = FaultServer::start(content.path());
        let range = "Range: bytes=2-5\r\n";
        assert_eq!(get(&server, range).1, b"2345");
        for (fault, status, body) in [
            (Fault::Hang, "", &b""[..]),
            (Fault::Close, "", b""),
            (Fault::DieAfter(2), "206", b"23"),
            (Fault::StallAfter(1), "206", b"2"),
            (Fault::Status(503), "503", b"injected\n"),
            (Fault::IgnoreRange, "200", b"0123456789"),
            (Fault::ShortBody(1), "206", b"234"),
            (Fault::FlipByte(0), "206", b"\"345"),
            (Fault::Trickle(2, Duration::from_millis(1)), "206", b"2345"),
            (Fault::WrongRange, "206", b"2345"),
        ] {
            server.set_rules(vec![Rule::on_path("/f", fault.clone()).times(1)]);
            let (head, found) = get(&server, range);
            assert!(head.split(' ').nth(1).unwrap_or("").starts_with(status), "{fault:?}: {head}");
            assert_eq!(found, body, "{fault:?}");
            assert_eq!(get(&server, range).1, b"2345", "after {fault:?}");
        }
        assert_eq!(server.requests().len(), 21);
        assert!(get(&server, "Range: bytes=10-\r\n").0.contains("416"));
    }
}
