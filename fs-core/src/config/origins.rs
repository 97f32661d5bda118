//! Which settings apply to which content root.

use std::sync::Arc;

use parking_lot::RwLock;

use super::OriginConfig;
use crate::error::{Error, Result};
use crate::location::{PackageLocation, without_password};

/// Settings of origins by URL prefix. Clones share one table, so that credentials learnt later reach whoever opens an
/// origin then.
#[derive(Debug, Clone, Default)]
pub struct OriginTable {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    fallback: OriginConfig,
    /// By normalized prefix.
    rules: Vec<(String, OriginConfig)>,
}

impl OriginTable {
    /// A table that answers `fallback` for every origin without a rule of its own.
    pub fn new(fallback: OriginConfig) -> Self {
        Self { inner: Arc::new(RwLock::new(Inner { fallback, rules: Vec::new() })) }
    }

    /// Sets what applies below `prefix`: a content root, a folder of them, or one package. The rule of an equal
    /// prefix is replaced.
    ///
    /// # Errors
    /// `InvalidInput` if `prefix` is neither an absolute path nor a URL that can name a content root.
    pub fn set(&self, prefix: &str, config: OriginConfig) -> Result<()> {
        let prefix = normalized_prefix(prefix)?;
        let mut inner = self.inner.write();
        inner.rules.retain(|(known, _)| *known != prefix);
        inner.rules.push((prefix, config));
        Ok(())
    }

    /// What applies to the package at `location`: the rule with the longest matching prefix.
    pub fn lookup(&self, location: &PackageLocation) -> OriginConfig {
        let key = location.package_key();
        let inner = self.inner.read();
        inner
            .rules
            .iter()
            .filter(|(prefix, _)| covers(prefix, &key))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or_else(|| inner.fallback.clone(), |(_, config)| config.clone())
    }
}

/// Whether `key` is `prefix` or lies below it. Whole components only: credentials for `https://h/team` must not go to
/// `https://h/teammate`, nor those for `https://h` to `https://h:8443`.
fn covers(prefix: &str, key: &str) -> bool {
    key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A content root, a folder of them or a package, as it is written everywhere: credentials are kept by that.
///
/// # Errors
/// `InvalidInput` if `prefix` is neither an absolute path nor a URL that can name a content root.
pub fn normalized_origin(prefix: &str) -> Result<String> {
    normalized_prefix(prefix)
}

/// Of `origins` ([`normalized_origin`]), the one that `location` belongs to: the longest that is it or lies above it.
pub fn nearest_origin<'a>(origins: impl Iterator<Item = &'a str>, location: &PackageLocation) -> Option<&'a str> {
    let key = location.package_key();
    origins.filter(|origin| covers(origin, &key)).max_by_key(|origin| origin.len())
}

/// `prefix` as [`PackageLocation::package_key`] would write it, without a slash at the end.
pub(super) fn normalized_prefix(prefix: &str) -> Result<String> {
    let bad =
        |why: &str| Error::InvalidInput(format!("the origin {:?} cannot be used: {why}", without_password(prefix)));
    let trimmed = prefix.trim_end_matches('/');
    if !trimmed.contains("://") && !std::path::Path::new(prefix).is_absolute() {
        return Err(bad("it must be an absolute path or a URL"));
    }
    let probe: PackageLocation = format!("{trimmed}/x").parse().map_err(|e: Error| bad(&e.to_string()))?;
    Ok(probe.origin.to_string().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Credentials;
    use super::*;

    fn bearer(token: &str) -> OriginConfig {
        OriginConfig { credentials: Credentials::Bearer(token.to_owned()), ..OriginConfig::default() }
    }

    fn answer(table: &OriginTable, location: &str) -> Credentials {
        table.lookup(&location.parse().unwrap()).credentials
    }

    #[test]
    fn the_longest_prefix_of_whole_components_wins() {
        let table = OriginTable::new(OriginConfig::default());
        table.set("https://H.example/", bearer("host")).unwrap();
        table.set("https://h.example/team", bearer("team")).unwrap();
        table.set("/srv/content", bearer("folder")).unwrap();
        for (location, token) in [
            ("https://h.example/x/app", Some("host")),
            ("https://h.example/team/app@1", Some("team")),
            ("https://h.example:443/team/app", Some("team")),
            ("https://h.example/teammate/app", Some("host")),
            ("https://h.example:8443/team/app", None),
            ("http://h.example/team/app", None),
            ("https://h.example.evil.example/team/app", None),
            ("/srv/content/app", Some("folder")),
            ("file:///srv/content/app", Some("folder")),
            ("/srv/content2/app", None),
        ] {
            let expected = token.map_or(Credentials::None, |t| Credentials::Bearer(t.to_owned()));
            assert!(answer(&table, location) == expected, "{location}");
        }
    }

    #[test]
    fn the_nearest_origin_is_found_by_whole_components() {
        let origins = ["https://h", "https://h/team", "https://h/team/app"];
        let nearest = |location: &str| nearest_origin(origins.into_iter(), &location.parse().unwrap());
        assert_eq!(nearest("https://h/team/app@1"), Some("https://h/team/app"));
        assert_eq!(nearest("https://h/team/application"), Some("https://h/team"));
        assert_eq!(nearest("https://h/teammate/app"), Some("https://h"));
        assert_eq!(nearest("https://h.example/app"), None);
        assert_eq!(normalized_origin("https://H:443/team//").unwrap(), "https://h/team");
        assert!(normalized_origin("team").is_err());
    }

    #[test]
    fn clones_share_and_rules_are_replaced() {
        let table = OriginTable::default();
        let other = table.clone();
        table.set("https://h/c", bearer("old")).unwrap();
        table.set("https://h/c/", bearer("new")).unwrap();
        assert!(answer(&other, "https://h/c/app") == Credentials::Bearer("new".to_owned()));
    }
}
