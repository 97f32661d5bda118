//! `streamfs serve` as a process of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Sample, Streamfs, parse_prometheus, wait_for_exit};

/// Longer than a server takes to end that has nothing to wait for.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// A running `streamfs serve`. Ends when dropped.
#[derive(Debug)]
pub struct Served {
    process: Child,
    address: SocketAddr,
    arguments: Vec<String>,
}

impl Served {
    /// Serves `content` on a free port, with more arguments, and waits until it is there.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(user: &Streamfs, content: &Path, more: &[&str]) -> Self {
        let mut arguments = vec!["serve".to_owned(), content.to_str().expect("tests use plain paths").to_owned()];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let (process, address) = begin(user, &arguments, "127.0.0.1:0");
        Self { process, address, arguments }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// URL of the content root, without a slash at its end.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// How many sockets it has open, and how many other descriptors.
    pub fn open_descriptors(&self) -> (usize, usize) {
        let (sockets, others): (Vec<_>, Vec<_>) =
            self.descriptors().into_iter().partition(|target| target.starts_with("socket:"));
        (sockets.len(), others.len())
    }

    /// Whether one of its descriptors is of something with this in its name.
    pub fn has_open(&self, name: &str) -> bool {
        self.descriptors().iter().any(|target| target.contains(name))
    }

    fn descriptors(&self) -> Vec<String> {
        let listed = fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("the server runs");
        // One that was closed meanwhile cannot be read.
        let targets = listed.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.map(|target| target.to_string_lossy().into_owned()).collect()
    }

    /// The most memory that was resident so far, in bytes.
    pub fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no memory is told: {status}")) << 10
    }

    /// What it counts, of a server that shows it to everybody.
    #[track_caller]
    pub fn metrics(&self) -> Vec<Sample> {
        let mut stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(END_DEADLINE)).expect("a socket");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_default();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        parse_prometheus(text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The sum of what it counts under this name, of samples with all these labels.
    #[track_caller]
    pub fn counted(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let has =
            |sample: &Sample| labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value));
        let samples = self.metrics();
        samples.iter().filter(|sample| sample.name == name && has(sample)).map(|sample| sample.value).sum::<f64>()
            as u64
    }

    /// Starts it again on the same port, after it was ended.
    #[track_caller]
    pub fn restart(&mut self, user: &Streamfs) {
        let (process, address) = begin(user, &self.arguments, &self.address.to_string());
        assert_eq!(address, self.address);
        self.process = process;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.process, "the server", END_DEADLINE)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[track_caller]
fn begin(user: &Streamfs, arguments: &[String], listen: &str) -> (Child, SocketAddr) {
    let mut command = user.streamfs(arguments);
    command.args(["--listen", listen, "--json"]).stdout(Stdio::piped());
    let mut process = command.spawn().expect("the built program runs");
    let output = process.stdout.take().expect("it is a pipe");
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).expect("a pipe can be read");
    let told: Value =
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("the server told no address ({e}): {line}"));
    let address = told["address"].as_str().and_then(|address| address.parse().ok());
    (process, address.unwrap_or_else(|| panic!("the server told no address: {line}")))
}
