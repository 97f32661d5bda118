//! `streamfs serve` as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Streamfs, wait_for_exit};

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
