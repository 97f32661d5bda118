//! How far what an origin said can be relied on, in words and as JSON.

use fs_core::mount::host::Pinned;
use fs_core::trust::client::Freshness;
use serde::{Deserialize, Serialize};

/// How new a package's metadata is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The origin gave it when it was asked last.
    #[default]
    Fresh,
    /// The origin is away; this is what it gave before.
    Offline,
    /// The origin gave nothing that is valid still; this is what was accepted before.
    Expired,
}

/// How new a package's metadata is, and why it is no newer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FreshnessReport {
    pub(crate) state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl From<&Freshness> for FreshnessReport {
    fn from(freshness: &Freshness) -> Self {
        let (state, reason) = match freshness {
            Freshness::Fresh => (State::Fresh, None),
            Freshness::Offline { reason } => (State::Offline, Some(reason.clone())),
            Freshness::Expired { what, when } => {
                (State::Expired, Some(format!("{what} expired on {when}; its publisher runs: streamfs renew")))
            }
        };
        Self { state, reason }
    }
}

impl FreshnessReport {
    /// The origin could not be asked, for `reason`.
    pub(crate) fn offline(reason: String) -> Self {
        Self { state: State::Offline, reason: Some(reason) }
    }

    /// Whether the origin gave it when it was asked last.
    pub(crate) fn is_fresh(&self) -> bool {
        self.state == State::Fresh
    }

    /// What is wrong, if something is: `offline: …`.
    pub(crate) fn in_words(&self) -> Option<String> {
        let state = match self.state {
            State::Fresh => return None,
            State::Offline => "offline",
            State::Expired => "expired metadata",
        };
        Some(format!("{state}: {}", self.reason.as_deref().unwrap_or("for an unknown reason")))
    }
}

/// What whoever uses a version should know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TrustReport {
    pub(crate) freshness: FreshnessReport,
    /// Whether the package's root key was trusted for being the first that was seen, just now.
    pub(crate) trusted_on_first_use: bool,
    /// Whether the publisher withdrew the version.
    pub(crate) revoked: bool,
}

impl From<&Pinned> for TrustReport {
    fn from(pinned: &Pinned) -> Self {
        let Pinned { freshness, trusted_on_first_use, revoked, .. } = pinned;
        Self { freshness: freshness.into(), trusted_on_first_use: *trusted_on_first_use, revoked: *revoked }
    }
}

/// What was done with a version, and what is to be said of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OfVersion<T> {
    pub(crate) version: String,
    #[serde(flatten)]
    pub(crate) summary: T,
    #[serde(flatten)]
    pub(crate) trust: TrustReport,
}

impl TrustReport {
    /// One sentence about each thing that is not as usual, about `version`.
    pub(crate) fn warnings(&self, version: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.revoked {
            warnings.push(format!(
                "version {version} was REVOKED by its publisher; use another one (see: streamfs versions)"
            ));
        }
        if let Some(words) = self.freshness.in_words() {
            warnings.push(format!("there may be a newer version than {version}, {words}"));
        }
        warnings
    }

    /// What was decided in the user's place.
    pub(crate) fn remark(&self) -> Option<&'static str> {
        self.trusted_on_first_use.then_some(
            "trusted the package's root key on first use; to be sure that it is the publisher's, give its root.json with --trust-root",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_usual_is_not_mentioned() {
        let usual = TrustReport::default();
        assert!(usual.warnings("1").is_empty() && usual.remark().is_none());
    }

    #[test]
    fn everything_else_is() {
        let freshness = FreshnessReport::offline("no route".to_owned());
        let report = TrustReport { freshness, trusted_on_first_use: true, revoked: true };
        let all = report.warnings("1.2").join("\n");
        for part in ["version 1.2 was REVOKED", "offline: no route"] {
            assert!(all.contains(part), "{all}");
        }
        assert!(report.remark().unwrap().contains("first use"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["freshness"]["state"], "offline");
    }
}
