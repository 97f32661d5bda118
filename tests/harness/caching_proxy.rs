//! HTTP caches as companies have them, in front of a server: nginx with slices, and squid.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::wait_for;

/// Which cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// nginx, which keeps slices of 1 MiB.
    NginxSlices,
    /// squid, which fetches whole objects when a part is asked for.
    Squid,
}

/// A running cache in front of one server. Ends when dropped.
#[derive(Debug)]
pub struct CachingProxy {
    folder: TempDir,
    process: Child,
    port: u16,
}

impl CachingProxy {
    /// Starts an empty cache in front of `origin`, and waits until it accepts connections.
    ///
    /// # Panics
    /// When it is missing or does not start.
    #[track_caller]
    pub fn start(kind: CacheKind, origin: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("cache-test-").tempdir().expect("a temporary folder");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        drop(listener);
        let dir = folder.path();
        let mut command = match kind {
            CacheKind::NginxSlices => {
                fs::write(dir.join("nginx.conf"), nginx(dir, port, origin)).expect("own folder");
                let mut command = Command::new("nginx");
                command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
                command
            }
            CacheKind::Squid => {
                fs::write(dir.join("squid.conf"), squid(dir, port, origin)).expect("own folder");
                if rustix::process::geteuid().is_root() {
                    // It becomes another user, who must be able to write its logs.
                    give_to(dir, "proxy");
                }
                let mut command = Command::new("squid");
                command.arg("-N").arg("-f").arg(dir.join("squid.conf"));
                command
            }
        };
        let log = File::create(dir.join("start.log")).expect("own folder");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
        command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Its workers are ended with it, whatever state it is in.
        let process = command.process_group(0).spawn();
        let process = process.unwrap_or_else(|e| panic!("{kind:?} is needed ({e}); `cargo xtask setup` installs it"));
        let mut proxy = Self { folder, process, port };
        wait_for("the cache to accept connections", Duration::from_secs(60), || {
            if let Some(status) = proxy.process.try_wait().expect("a child can be waited for") {
                panic!("{kind:?} ended with {status}: {}", proxy.logs());
            }
            TcpStream::connect_timeout(&proxy.address(), Duration::from_millis(200)).ok()
        });
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// URL of the content root behind it, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn logs(&self) -> String {
        let names = ["start.log", "error.log", "cache.log"];
        names.iter().filter_map(|name| fs::read_to_string(self.folder.path().join(name)).ok()).collect()
    }
}

impl Drop for CachingProxy {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the cache's logs\n{}", self.logs());
        }
    }
}

fn nginx(dir: &Path, port: u16, origin: SocketAddr) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let dir = dir.display();
    format!(
        "{user}daemon off;\nworker_processes 1;\npid {dir}/nginx.pid;\nevents {{ worker_connections 512; }}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {dir}/t1;\nproxy_temp_path {dir}/t2;\nfastcgi_temp_path {dir}/t3;\n\
         uwsgi_temp_path {dir}/t4;\nscgi_temp_path {dir}/t5;\n\
         proxy_cache_path {dir}/cache levels=1:2 keys_zone=objects:10m max_size=1g;\n\
         server {{\nlisten 127.0.0.1:{port};\nlocation / {{\n\
         slice 1m;\nproxy_cache objects;\nproxy_cache_key $uri$is_args$args$slice_range;\n\
         proxy_set_header Range $slice_range;\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\n\
         proxy_cache_lock on;\nproxy_pass http://{origin};\n}}\n\
         location ~ /events$ {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://{origin}; }}\n\
         }}\n}}\n"
    )
}

fn squid(dir: &Path, port: u16, origin: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1 no-vhost\n\
         cache_peer {ip} parent {origin_port} 0 no-query originserver name=origin\n\
         http_access allow all\ncache_peer_access origin allow all\n\
         range_offset_limit -1\nquick_abort_min -1 KB\ncollapsed_forwarding on\n\
         cache_mem 256 MB\nmaximum_object_size 256 MB\nmaximum_object_size_in_memory 256 MB\n\
         pid_filename {dir}/squid.pid\naccess_log none\ncache_log {dir}/cache.log\ncache_store_log none\n\
         coredump_dir {dir}\nshutdown_lifetime 1 seconds\npinger_enable off\nvisible_hostname cache.example\n",
        ip = origin.ip(),
        origin_port = origin.port(),
    )
}

/// Makes `dir` and what is in it the property of `user`.
fn give_to(dir: &Path, user: &str) {
    let status = Command::new("chown").arg("-R").arg(user).arg(dir).status();
    assert!(status.is_ok_and(|status| status.success()), "there is no user {user}; `cargo xtask setup` installs squid");
}
