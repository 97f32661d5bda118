//! Who may read and who may publish: a package's `access.toml`, and the same rules in the server's own file.
//!
//! ```toml
//! [read]
//! users = ["ann"]
//! groups = ["Engineering"]
//! logged_in = false        # everybody who is known
//! everyone = false         # also who did not say who they are
//!
//! [publish]                # who may publish may read, too
//! groups = ["Release"]
//! ```

use fs_core::config::explain_toml;
use serde::Deserialize;

use super::{Action, Identity};

/// Longest `access.toml`: some thousand names.
pub(crate) const ACCESS_FILE_MAX_BYTES: usize = 256 << 10;

/// Who may do what with one package.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PackageAccess {
    /// May read.
    pub(crate) read: Allowed,
    /// May publish, and read.
    pub(crate) publish: Allowed,
}

/// Those who are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Allowed {
    users: Vec<String>,
    groups: Vec<String>,
    logged_in: bool,
    everyone: bool,
}

impl PackageAccess {
    /// Reads the text of an `access.toml`.
    ///
    /// # Errors
    /// What is wrong with it and in which line, for a message that names the file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > ACCESS_FILE_MAX_BYTES {
            return Err(format!("it is longer than {ACCESS_FILE_MAX_BYTES} bytes"));
        }
        let access: Self = toml::from_str(text).map_err(|e| explain_toml(text, &e))?;
        access.check()?;
        Ok(access)
    }

    /// What the type alone does not say.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.publish.everyone {
            return Err("publishing cannot be open to everyone; name users or groups, or say logged_in".to_owned());
        }
        self.read.check()?;
        self.publish.check()
    }

    /// Nobody may do anything.
    pub(crate) fn nobody() -> Self {
        Self::default()
    }

    /// Whether `identity` may do `action`.
    pub(crate) fn allows(&self, identity: &Identity, action: Action) -> bool {
        match action {
            Action::Publish => self.publish.includes(identity),
            Action::Read => self.read.includes(identity) || self.publish.includes(identity),
        }
    }
}

impl Allowed {
    pub(super) fn check(&self) -> Result<(), String> {
        let names = self.users.iter().chain(&self.groups);
        for name in names {
            if name.trim() != name || name.is_empty() || name.chars().any(char::is_control) {
                return Err(format!("{name:?} cannot be a user or group"));
            }
            if name == "*" {
                return Err("\"*\" is no name; write logged_in = true or everyone = true".to_owned());
            }
        }
        Ok(())
    }

    /// Whether `identity` is one of those meant.
    pub(crate) fn includes(&self, identity: &Identity) -> bool {
        self.everyone
            || !identity.is_anonymous()
                && (self.logged_in
                    || self.users.iter().any(|name| identity.is_called(name))
                    || self.groups.iter().any(|name| identity.is_member_of(name)))
    }
}

/// The rules of the server's own file, by names of packages.
#[derive(Debug, Clone, Default)]
pub(super) struct RulesByName {
    exact: Vec<(String, PackageAccess)>,
    /// `team/` for `team/*`; the empty prefix for `*`. Longest first.
    below: Vec<(String, PackageAccess)>,
}

impl RulesByName {
    /// Adds the rule for `pattern`: the name of a package, `FOLDER/*` for all packages below a folder, or `*`.
    ///
    /// # Errors
    /// If it is neither, or has a rule already.
    pub(super) fn add(&mut self, pattern: &str, access: PackageAccess) -> Result<(), String> {
        let is_name =
            |name: &str| name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('*'));
        let (list, key, usable) = match pattern.strip_suffix('*') {
            Some("") => (&mut self.below, "", true),
            Some(prefix) => (&mut self.below, prefix, prefix.strip_suffix('/').is_some_and(is_name)),
            None => (&mut self.exact, pattern, is_name(pattern)),
        };
        if !usable {
            return Err(format!("{pattern:?} is no package; write its name, FOLDER/* or *"));
        }
        if list.iter().any(|(known, _)| known == key) {
            return Err(format!("{pattern:?} has two rules"));
        }
        list.push((key.to_owned(), access));
        list.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        Ok(())
    }

    /// The rule for `package`: its own, else that of the nearest folder.
    pub(super) fn of(&self, package: &str) -> Option<&PackageAccess> {
        let exact = self.exact.iter().find(|(name, _)| name == package);
        let nearest = || self.below.iter().find(|(prefix, _)| package.starts_with(prefix.as_str()));
        exact.or_else(nearest).map(|(_, access)| access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Identity {
        Identity::for_test("ann", &["engineering"])
    }

    fn may(text: &str, identity: &Identity) -> (bool, bool) {
        let access = PackageAccess::parse(text).unwrap();
        (access.allows(identity, Action::Read), access.allows(identity, Action::Publish))
    }

    #[test]
    fn users_groups_and_wider_circles_are_let_in() {
        let nobody = Identity::anonymous();
        for (text, ann_may, nobody_may) in [
            ("", (false, false), (false, false)),
            ("[read]\nusers = [\"ann\"]", (true, false), (false, false)),
            ("[read]\nusers = [\"Ann\"]", (true, false), (false, false)),
            ("[read]\nusers = [\"anne\"]", (false, false), (false, false)),
            ("[read]\nusers = [\"engineering\"]", (false, false), (false, false)),
            ("[read]\ngroups = [\"Engineering\"]", (true, false), (false, false)),
            ("[read]\ngroups = [\"ann\"]", (false, false), (false, false)),
            ("[read]\nlogged_in = true", (true, false), (false, false)),
            ("[read]\neveryone = true", (true, false), (true, false)),
            ("[publish]\nusers = [\"ann\"]", (true, true), (false, false)),
            ("[publish]\nlogged_in = true", (true, true), (false, false)),
        ] {
            assert_eq!(may(text, &ann()), ann_may, "{text}");
            assert_eq!(may(text, &nobody), nobody_may, "{text}");
        }
    }

    #[test]
    fn names_of_tokens_compare_exactly() {
        let token = Identity::of_token_for_test("aBc", &["Staff"]);
        assert_eq!(may("[read]\nusers = [\"abc\"]", &token), (false, false));
        assert_eq!(may("[read]\nusers = [\"aBc\"]", &token), (true, false));
        assert_eq!(may("[read]\ngroups = [\"staff\"]", &token), (false, false));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, part) in [
            ("[raed]", "line 1"),
            ("[read]\nuser = [\"ann\"]", "line 2: unknown field `user`"),
            ("[read]\nusers = \"ann\"", "line 2"),
            ("[read]\nusers = [\"*\"]", "logged_in"),
            ("[read]\nusers = [\"\"]", "cannot be"),
            ("[read]\ngroups = [\" a\"]", "cannot be"),
            ("[publish]\neveryone = true", "everyone"),
        ] {
            let error = PackageAccess::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(PackageAccess::parse(&"#\n".repeat(200_000)).unwrap_err().contains("longer"));
    }

    #[test]
    fn the_nearest_rule_counts() {
        let named = |name: &str| PackageAccess::parse(&format!("[read]\nusers = [\"{name}\"]")).unwrap();
        let mut rules = RulesByName::default();
        for (pattern, name) in [("*", "all"), ("team/*", "team"), ("team/deep/*", "deep"), ("team/app", "own")] {
            rules.add(pattern, named(name)).unwrap();
        }
        for (package, rule) in
            [("app", "all"), ("team/app", "own"), ("team/other", "team"), ("team/deep/x", "deep"), ("teammate", "all")]
        {
            assert_eq!(rules.of(package).unwrap().read.users, [rule], "{package}");
        }
        assert!(RulesByName::default().of("app").is_none());
    }

    #[test]
    fn unusable_patterns_are_refused() {
        let mut rules = RulesByName::default();
        rules.add("app", PackageAccess::nobody()).unwrap();
        for pattern in ["", "/", "/app", "app/", "a*", "*/app", "../*", "a//b", "app", "/*"] {
            assert!(rules.add(pattern, PackageAccess::nobody()).is_err(), "{pattern}");
        }
    }
}
