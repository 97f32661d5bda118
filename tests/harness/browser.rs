//! A real browser that is told what to look at: headless Chromium by its DevTools protocol over pipes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Streamfs, wait_for};

/// A page that stays open. Ends when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
}

impl Browser {
    /// Opens `url`; whoever certifies its server is believed.
    ///
    /// # Panics
    /// Without Chromium (`cargo xtask setup`), or when it cannot be talked to.
    #[track_caller]
    pub fn open(user: &Streamfs, url: &str) -> Self {
        // It talks by the descriptors 3 and 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null", "sh", "chromium"])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"])
            .arg(format!("--user-data-dir={}", user.folder("browser").display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let requests = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut browser = Self { process, requests, answers, session: None, last_id: 0 };
        let target = browser.call("Target.createTarget", json!({ "url": url }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser
    }

    /// What the script's last expression comes to.
    #[track_caller]
    pub fn evaluate(&mut self, script: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({ "expression": script, "returnByValue": true }));
        assert!(result.get("exceptionDetails").is_none(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until the script's last expression is true.
    #[track_caller]
    pub fn wait_until(&mut self, script: &str) {
        wait_for(script, Duration::from_secs(30), || (self.evaluate(script) == true).then_some(()));
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        let mut text = request.to_string().into_bytes();
        text.push(0);
        self.requests.write_all(&text).expect("the browser listens; is chromium installed (cargo xtask setup)?");
        loop {
            let mut text = Vec::new();
            self.answers.read_until(0, &mut text).expect("the browser answers");
            assert_eq!(text.pop(), Some(0), "the browser ended");
            let answer: Value = serde_json::from_slice(&text).expect("JSON");
            // Everything else is news of what it does.
            if answer["id"] == self.last_id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
