//! A real nginx on a port of its own, whose access log is the account of what a client fetched.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::certificates::{AUTHORITY, make_certificates, run};
use crate::{wait_for, wait_for_exit};

/// In clear or under TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http://`
    Http,
    /// `https://`, with a certificate of a CA made for this server; HTTP/2 is on.
    Https,
}

/// What a server does.
#[derive(Debug, Clone)]
pub struct NginxOptions {
    /// In clear or under TLS.
    pub scheme: Scheme,
    /// User and password that it demands.
    pub basic_auth: Option<(String, String)>,
    /// Folders are answered with a list of what is in them.
    pub list_folders: bool,
}

impl Default for NginxOptions {
    fn default() -> Self {
        Self { scheme: Scheme::Http, basic_auth: None, list_folders: false }
    }
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub body_bytes: u64,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: String,
}

/// A running nginx that serves one folder. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    folder: TempDir,
    process: Option<Child>,
    port: u16,
    scheme: Scheme,
}

impl Nginx {
    /// Serves `content` in clear.
    #[track_caller]
    pub fn http(content: &Path) -> Self {
        Self::start(content, &NginxOptions::default())
    }

    /// Serves `content` under TLS.
    #[track_caller]
    pub fn https(content: &Path) -> Self {
        Self::start(content, &NginxOptions { scheme: Scheme::Https, ..NginxOptions::default() })
    }

    /// Serves `content` as `options` say, and waits until it accepts connections.
    ///
    /// # Panics
    /// When nginx or openssl is missing or does not start.
    #[track_caller]
    pub fn start(content: &Path, options: &NginxOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("nginx-test-").tempdir().expect("a temporary folder");
        let mut server = Self { folder, process: None, port: free_port(), scheme: options.scheme };
        if options.scheme == Scheme::Https {
            make_certificates(server.folder.path());
        }
        if let Some((user, password)) = &options.basic_auth {
            let hash = run("openssl", &["passwd", "-apr1", password], server.folder.path());
            fs::write(server.folder.path().join("users"), format!("{user}:{}\n", hash.trim())).expect("own folder");
        }
        server.configure(content, options);
        server.restart();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// URL of the content root, without a slash at its end.
    pub fn url(&self) -> String {
        let scheme = if self.scheme == Scheme::Https { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Certificate of the authority that a client must trust, for `SSL_CERT_FILE`.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join(AUTHORITY)
    }

    /// Starts it (again), on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let folder = self.folder.path();
        let log = File::create(folder.join("start.log")).expect("own folder");
        let child = Command::new("nginx")
            .env("PATH", search_path())
            .arg("-p")
            .arg(folder)
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .arg("-e")
            .arg(folder.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Its workers are ended with it, whatever state it is in.
            .process_group(0)
            .spawn()
            .expect("nginx is needed for the tests; `cargo xtask setup` installs it");
        self.process = Some(child);
        let address = self.address();
        wait_for("nginx to accept connections", Duration::from_secs(20), || {
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().ok().flatten()) {
                let errors = fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default();
                let start = fs::read_to_string(self.folder.path().join("start.log")).unwrap_or_default();
                panic!("nginx ended with {status}: {start}{errors}");
            }
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
        });
    }

    /// Ends it politely: running answers are finished first.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
                // It may have ended.
                let _ = rustix::process::kill_process(pid, Signal::QUIT);
            }
            wait_for_exit(&mut process, "nginx", Duration::from_secs(20));
        }
    }

    /// Ends it at once, in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
                // It may have ended.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = process.wait();
        }
    }

    /// Where the access log ends now; for [`Self::requests_since`].
    pub fn mark(&self) -> u64 {
        fs::metadata(self.access_log()).map_or(0, |m| m.len())
    }

    /// Everything answered so far.
    #[track_caller]
    pub fn requests(&self) -> Vec<Request> {
        self.requests_since(0)
    }

    /// What was answered after `mark`. An answer is logged when its last byte went out, so ask after the client had it.
    #[track_caller]
    pub fn requests_since(&self, mark: u64) -> Vec<Request> {
        let Ok(mut file) = File::open(self.access_log()) else { return Vec::new() };
        file.seek(SeekFrom::Start(mark)).expect("own log");
        let lines = BufReader::new(file).lines().map(|l| l.expect("own log"));
        lines.map(|line| parse(&line).unwrap_or_else(|| panic!("cannot read the access log's line {line:?}"))).collect()
    }

    fn access_log(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    fn configure(&self, content: &Path, options: &NginxOptions) {
        let folder = self.folder.path();
        let mut text = String::new();
        if rustix::process::geteuid().is_root() {
            // Its workers would become somebody who may not enter a test's folders.
            text.push_str("user root;\n");
        }
        let _ = write!(
            text,
            "daemon off;\nworker_processes 1;\npid {dir}/nginx.pid;\nevents {{ worker_connections 512; }}\nhttp {{\n\
             log_format account '$request_method\\t$request_uri\\t$http_range\\t$status\\t$body_bytes_sent\\t$server_protocol';\n\
             access_log {dir}/access.log account;\nsendfile on;\ntcp_nodelay on;\nkeepalive_requests 1000000;\n\
             client_body_temp_path {dir}/t1;\nproxy_temp_path {dir}/t2;\nfastcgi_temp_path {dir}/t3;\nuwsgi_temp_path {dir}/t4;\nscgi_temp_path {dir}/t5;\n\
             server {{\n",
            dir = folder.display(),
        );
        let tls = if self.scheme == Scheme::Https { " ssl http2" } else { "" };
        let _ = writeln!(text, "listen 127.0.0.1:{}{tls};\nroot \"{}\";", self.port, content.display());
        if self.scheme == Scheme::Https {
            let _ =
                writeln!(text, "ssl_certificate {0}/leaf.pem;\nssl_certificate_key {0}/leaf.key;", folder.display());
            // Debian's does not by itself what later ones do.
            text.push_str("ssl_protocols TLSv1.2 TLSv1.3;\n");
        }
        if options.list_folders {
            text.push_str("autoindex on;\nautoindex_exact_size on;\n");
        }
        if options.basic_auth.is_some() {
            let _ = writeln!(text, "auth_basic \"content\";\nauth_basic_user_file {}/users;", folder.display());
        }
        text.push_str("}\n}\n");
        fs::write(folder.join("nginx.conf"), text).expect("own folder");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let errors = fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default();
            eprintln!("--- nginx errors\n{errors}");
        }
    }
}

fn parse(line: &str) -> Option<Request> {
    let mut fields = line.split('\t');
    let mut next = || fields.next().map(str::to_owned);
    Some(Request {
        method: next()?,
        path: next()?,
        range: next().map(|r| (r != "-" && !r.is_empty()).then_some(r))?,
        status: next()?.parse().ok()?,
        body_bytes: next()?.parse().ok()?,
        protocol: next()?,
    })
}

/// A port that nothing listens on at the moment. Linux does not hand it out again soon, but another process may
/// take it: then nginx says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Debian keeps nginx where ordinary users do not look.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn get(server: &Nginx, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn serves_ranges_and_accounts_for_them() {
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join("file"), "0123456789").unwrap();
        let mut server = Nginx::http(content.path());
        assert!(get(&server, "/file", "Range: bytes=2-4\r\n").ends_with("\r\n\r\n234"));
        let mark = server.mark();
        server.stop();
        assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
        server.restart();
        assert!(get(&server, "/none", "").starts_with("HTTP/1.1 404"));
        let all = server.requests();
        assert_eq!((all[0].range.as_deref(), all[0].status, all[0].body_bytes), (Some("bytes=2-4"), 206, 3));
        let later = server.requests_since(mark);
        assert_eq!((later.len(), later[0].status, later[0].range.as_deref()), (1, 404, None));
    }

    #[test]
    fn demands_a_password_when_asked_to() {
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join("file"), "x").unwrap();
        let basic_auth = Some(("user".to_owned(), "secret".to_owned()));
        let server = Nginx::start(content.path(), &NginxOptions { basic_auth, ..NginxOptions::default() });
        assert!(get(&server, "/file", "").starts_with("HTTP/1.1 401"));
        assert!(get(&server, "/file", "Authorization: Basic dXNlcjpzZWNyZXQ=\r\n").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn certificates_are_accepted_by_those_who_trust_the_authority() {
        let content = tempfile::tempdir().unwrap();
        let server = Nginx::https(content.path());
        let address = format!("127.0.0.1:{}", server.port);
        let ca = server.ca_file();
        let arguments =
            ["s_client", "-connect", &address, "-verify_return_error", "-verify_ip", "127.0.0.1", "-alpn", "h2"];
        let said = run("openssl", &[&arguments[..], &["-CAfile", ca.to_str().unwrap()]].concat(), content.path());
        assert!(said.contains("Verify return code: 0") && said.contains("ALPN protocol: h2"), "{said}");
    }
}
