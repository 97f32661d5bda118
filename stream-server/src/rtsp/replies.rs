//! Answers that refuse, and how they are written.

use bytes::Bytes;
use rtsp_types::Version;

use fs_core::backend::rtsp::wire::Outgoing;

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Refused {
    pub(super) fn of(status: u16) -> Self {
        Self { status, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// To somebody who has to say who they are.
    pub(super) fn challenged(challenges: Vec<String>) -> Self {
        let headers = challenges.into_iter().map(|challenge| ("WWW-Authenticate", challenge)).collect();
        Self { status: 401, headers }
    }

    pub(super) fn response(&self, version: Version, cseq: Option<u32>) -> Bytes {
        let response = Outgoing::response(version, self.status, cseq);
        self.headers.iter().fold(response, |response, (name, value)| response.header(name, value)).empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_challenge_has_a_line_of_its_own() {
        let refused = Refused::challenged(vec!["Basic realm=\"x\"".into(), "Bearer".into()]);
        let text = "RTSP/1.0 401 Unauthorized\r\nCSeq: 7\r\nWWW-Authenticate: Basic realm=\"x\"\r\nWWW-Authenticate: Bearer\r\n\r\n";
        assert_eq!(refused.response(Version::V1_0, Some(7)), text);
        assert_eq!(Refused::of(454).response(Version::V2_0, None), "RTSP/2.0 454 Session Not Found\r\n\r\n");
    }
}
