//! Placeholder: verifying a package's catalog.

/// Placeholder: how sure it is that nothing newer was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Asked just now.
    Fresh,
    /// The origin could not be asked.
    Offline(String),
}
