//! What is asked of a directory: names, filters and identifiers, as text.

use std::fmt::Write;

use ldap3::{dn_escape, ldap_escape};

use super::super::settings::{DirectoryKind, DirectorySettings};

/// Where and how users and groups are found.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub(super) kind: DirectoryKind,
    pub(super) base: String,
    pub(super) user_attribute: String,
    pub(super) group_attribute: String,
    pub(super) nested: bool,
    bind_as: Option<String>,
}

impl Schema {
    pub(super) fn new(settings: &DirectorySettings) -> Self {
        let (user, group) = match settings.kind {
            DirectoryKind::ActiveDirectory => ("sAMAccountName", "sAMAccountName"),
            DirectoryKind::Ldap => ("uid", "cn"),
        };
        Self {
            kind: settings.kind,
            base: settings.base.clone(),
            user_attribute: settings.user_attribute.clone().unwrap_or_else(|| user.to_owned()),
            group_attribute: settings.group_attribute.clone().unwrap_or_else(|| group.to_owned()),
            nested: settings.nested,
            bind_as: settings.bind_as.clone(),
        }
    }

    /// How `user` binds without having been looked up; `None` if the access file does not say.
    pub(super) fn bind_name(&self, user: &str) -> Option<String> {
        let template = self.bind_as.as_deref()?;
        let domain = template.strip_prefix("{user}@");
        // Who typed a domain meant that one: ann@corp.example, CORP\ann.
        if domain.is_some() && user.contains(['@', '\\']) {
            return Some(user.to_owned());
        }
        let user = if domain.is_some() { user.into() } else { dn_escape(user) };
        Some(template.replace("{user}", &user))
    }

    /// Finds the user who typed `user`.
    pub(super) fn user_filter(&self, user: &str) -> String {
        match self.kind {
            DirectoryKind::ActiveDirectory => {
                // Down-level names: the domain is this directory's, or the user is not in it.
                let account = user.rsplit_once('\\').map_or(user, |(_, account)| account);
                let attribute = if account.contains('@') { "userPrincipalName" } else { &self.user_attribute };
                active_user(&format!("({attribute}={})", ldap_escape(account)))
            }
            DirectoryKind::Ldap => format!("({}={})", self.user_attribute, ldap_escape(user)),
        }
    }

    /// Finds the groups that hold one of `members` (distinguished names), or the account `uid` by its name alone.
    pub(super) fn groups_filter(&self, members: &[String], uid: Option<&str>) -> String {
        let mut filter = "(|".to_owned();
        for member in members {
            let member = ldap_escape(member.as_str());
            // Writing to a string cannot fail.
            let _ = write!(filter, "(member={member})(uniqueMember={member})");
        }
        if let Some(uid) = uid {
            let _ = write!(filter, "(&(objectClass=posixGroup)(memberUid={}))", ldap_escape(uid));
        }
        filter.push(')');
        filter
    }

    /// Finds the groups of these security identifiers.
    pub(super) fn sids_filter(sids: &[Vec<u8>]) -> String {
        let mut filter = "(|".to_owned();
        for sid in sids {
            filter.push_str("(objectSid=");
            for byte in sid {
                let _ = write!(filter, "\\{byte:02x}");
            }
            filter.push(')');
        }
        filter.push(')');
        filter
    }

    /// Finds the user with one of these security identifiers.
    pub(super) fn user_of_sids_filter(sids: &[Vec<u8>]) -> String {
        active_user(&Self::sids_filter(sids))
    }

    /// The user whom an answer to "Who am I?" (RFC 4532) names.
    pub(super) fn who(&self, authzid: &str) -> Option<Who> {
        if let Some(dn) = authzid.strip_prefix("dn:") {
            return (!dn.is_empty()).then(|| Who::Dn(dn.to_owned()));
        }
        // Active Directory: u:CORP\ann
        let name = authzid.strip_prefix("u:")?;
        (!name.is_empty()).then(|| Who::Name(name.to_owned()))
    }
}

/// Users of Active Directory that `filter` finds and that are not disabled.
fn active_user(filter: &str) -> String {
    // 1.2.840.113556.1.4.803 tests bits; 2 is ACCOUNTDISABLE.
    format!("(&(objectClass=user){filter}(!(userAccountControl:1.2.840.113556.1.4.803:=2)))")
}

/// Who a connection is bound as.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Distinguished name.
    Dn(String),
    /// Name to be looked up.
    Name(String),
}

/// Whether these bytes are a security identifier (MS-DTYP 2.4.2.2): revision 1, a count, six bytes of authority, and
/// that many numbers of four bytes.
pub(super) fn is_sid(bytes: &[u8]) -> bool {
    matches!(bytes, [1, count, ..] if *count <= 15 && bytes.len() == 8 + 4 * usize::from(*count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(kind: &str, bind_as: &str) -> Schema {
        let text =
            format!("kind = \"{kind}\"\nurls = [\"ldaps://dc\"]\nbase = \"dc=corp,dc=example\"\nbind_as = {bind_as:?}");
        Schema::new(&toml::from_str(&text).unwrap())
    }

    #[test]
    fn users_bind_by_the_template() {
        let ad = schema("active-directory", "{user}@corp.example");
        for (typed, bound) in
            [("ann", "ann@corp.example"), ("ann@sub.corp.example", "ann@sub.corp.example"), ("CORP\\ann", "CORP\\ann")]
        {
            assert_eq!(ad.bind_name(typed).as_deref(), Some(bound));
        }
        let ldap = schema("ldap", "uid={user},ou=people,dc=x");
        assert_eq!(ldap.bind_name("ann").as_deref(), Some("uid=ann,ou=people,dc=x"));
        let escaped = ldap.bind_name("ann,ou=admins").unwrap();
        assert!(!escaped.contains("ann,ou=admins") && escaped.ends_with(",ou=people,dc=x"), "{escaped}");
    }

    #[test]
    fn what_is_typed_cannot_change_a_filter() {
        let ad = schema("active-directory", "{user}@x");
        assert!(ad.user_filter("CORP\\ann").contains("(sAMAccountName=ann)"));
        assert!(ad.user_filter("ann@corp.example").contains("(userPrincipalName=ann@corp.example)"));
        let injected = ad.user_filter("*)(objectClass=*");
        assert!(injected.contains("(sAMAccountName=\\2a\\29\\28objectClass=\\2a)"), "{injected}");
        let ldap = schema("ldap", "cn={user}");
        assert_eq!(ldap.user_filter("a*"), "(uid=a\\2a)");
        let groups = ldap.groups_filter(&["cn=a(b),dc=x".to_owned()], Some("ann"));
        assert_eq!(
            groups,
            "(|(member=cn=a\\28b\\29,dc=x)(uniqueMember=cn=a\\28b\\29,dc=x)(&(objectClass=posixGroup)(memberUid=ann)))"
        );
    }

    #[test]
    fn identifiers_are_recognised_and_written() {
        // S-1-5-32-545: every byte of it is ASCII, so it may come as text.
        let users = [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 33, 2, 0, 0];
        assert!(is_sid(&users));
        assert!(!is_sid(&users[..15]) && !is_sid(&[]) && !is_sid(&[2, 0, 0, 0, 0, 0, 0, 5]));
        let filter = Schema::sids_filter(&[users.to_vec()]);
        assert_eq!(filter, "(|(objectSid=\\01\\02\\00\\00\\00\\00\\00\\05\\20\\00\\00\\00\\21\\02\\00\\00))");
    }

    #[test]
    fn answers_to_who_am_i_are_understood() {
        let it = schema("ldap", "cn={user}");
        assert_eq!(it.who("dn:uid=ann,dc=x"), Some(Who::Dn("uid=ann,dc=x".to_owned())));
        assert_eq!(it.who("u:CORP\\ann"), Some(Who::Name("CORP\\ann".to_owned())));
        for anonymous in ["", "dn:", "u:", "x"] {
            assert_eq!(it.who(anonymous), None);
        }
    }
}
