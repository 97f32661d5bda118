//! Users of client certificates.
//!
//! The TLS layer has verified the chain; here is only decided whose it is. The subject is text by RFC 4514
//! (`CN=Ann Example,O=Example`), the alternative names are plain: `ann@example`, `host.example`, `spiffe://…`.

use super::name_is_usable;
use super::settings::{CertificateSettings, CertificateUser, UserFrom};

/// The user of a certificate; `None` if the access file knows none for it.
pub(super) fn holder(settings: &CertificateSettings, subject: &str, names: &[String]) -> Option<String> {
    let is_listed = |user: &&CertificateUser| {
        user.subject.as_deref() == Some(subject) || user.name.as_ref().is_some_and(|name| names.contains(name))
    };
    if let Some(listed) = settings.users.iter().find(is_listed) {
        return Some(listed.user.clone());
    }
    let user = match settings.user_from? {
        UserFrom::CommonName => common_name(subject)?,
        UserFrom::Uri => only(names.iter().filter(|name| name.contains("://")))?.clone(),
        UserFrom::Email => only(names.iter().filter(|name| name.contains('@') && !name.contains("://")))?.clone(),
    };
    name_is_usable(&user).then_some(user)
}

/// The only one; where there are several, which of them is meant would be a guess.
fn only<T>(mut names: impl Iterator<Item = T>) -> Option<T> {
    let first = names.next()?;
    names.next().is_none().then_some(first)
}

/// The only CN of a subject by RFC 4514.
fn common_name(subject: &str) -> Option<String> {
    let parts = attributes(subject)?;
    only(parts.into_iter().filter(|(kind, _)| kind.eq_ignore_ascii_case("CN") || kind == "2.5.4.3")).map(|(_, cn)| cn)
}

/// Types and values of a distinguished name, from left to right; `None` if it is none.
fn attributes(name: &str) -> Option<Vec<(String, String)>> {
    let mut out = Vec::new();
    let mut rest = name.trim();
    while !rest.is_empty() {
        let (kind, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        out.push((kind.trim().to_owned(), value));
        rest = after.trim_start();
    }
    Some(out)
}

/// A value and what follows the `,` or `+` behind it. RFC 4514 §2.4: a backslash stands before a special character, or
/// before two digits of a byte.
fn value(text: &str) -> Option<(String, &str)> {
    // Written as the bytes of its encoding: nothing that is a name.
    if text.starts_with('#') {
        return None;
    }
    let mut bytes = Vec::new();
    // Length up to which blanks at the end are meant.
    let mut kept = 0;
    let mut at = 0;
    let all = text.as_bytes();
    while let Some(&byte) = all.get(at) {
        at += 1;
        match byte {
            b',' | b'+' | b';' => {
                bytes.truncate(trimmed(&bytes, kept));
                return Some((String::from_utf8(bytes).ok()?, &text[at..]));
            }
            b'\\' => {
                let next = *all.get(at)?;
                at += 1;
                let second = all.get(at).copied();
                match (digit(next), second.and_then(digit)) {
                    (Some(high), Some(low)) => {
                        at += 1;
                        bytes.push((high << 4) | low);
                    }
                    _ => bytes.push(next),
                }
                kept = bytes.len();
            }
            b' ' if bytes.is_empty() => {}
            byte => bytes.push(byte),
        }
    }
    bytes.truncate(trimmed(&bytes, kept));
    Some((String::from_utf8(bytes).ok()?, ""))
}

/// A subject as text by RFC 4514, from its types and values in their order from left to right: what stands in a value
/// cannot look like another attribute.
pub(crate) fn subject_text<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (kind, value) in parts {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(kind);
        out.push('=');
        let last = value.chars().count().saturating_sub(1);
        for (at, character) in value.chars().enumerate() {
            match character {
                '\0' => out.push_str("\\00"),
                ' ' if at == 0 || at == last => out.push_str("\\ "),
                '#' if at == 0 => out.push_str("\\#"),
                '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => {
                    out.push('\\');
                    out.push(character);
                }
                other => out.push(other),
            }
        }
    }
    out
}

/// The length of `bytes` without unescaped blanks at their end.
fn trimmed(bytes: &[u8], kept: usize) -> usize {
    let blanks = bytes.iter().rev().take_while(|byte| **byte == b' ').count();
    (bytes.len() - blanks).max(kept)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> CertificateSettings {
        toml::from_str(text).unwrap()
    }

    fn user(settings: &CertificateSettings, subject: &str, names: &[&str]) -> Option<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        holder(settings, subject, &names)
    }

    #[test]
    fn listed_certificates_come_first() {
        let it = settings(
            "user_from = \"common_name\"\n[[user]]\nsubject = \"CN=ci,O=Example\"\nuser = \"build\"\ngroups = [\"release\"]\n[[user]]\nname = \"spiffe://x/web\"\nuser = \"web\"",
        );
        assert_eq!(user(&it, "CN=ci,O=Example", &[]).as_deref(), Some("build"));
        assert_eq!(user(&it, "CN=whatever", &["a", "spiffe://x/web"]).as_deref(), Some("web"));
        assert_eq!(user(&it, "CN=ci,O=Evil", &[]).as_deref(), Some("ci"));
        let only_listed = settings("[[user]]\nname = \"a\"\nuser = \"b\"");
        assert_eq!(user(&only_listed, "CN=a", &[]), None);
    }

    #[test]
    fn common_names_are_found_whatever_is_escaped() {
        let it = settings("user_from = \"common_name\"");
        for (subject, name) in [
            ("CN=ann", Some("ann")),
            ("O=Example, cn = Ann Example ", Some("Ann Example")),
            ("O=CN\\=eve,CN=ann", Some("ann")),
            ("O=x\\,CN=eve,CN=ann", Some("ann")),
            ("CN=a\\,b", Some("a,b")),
            ("CN=J\\C3\\BCrgen", Some("Jürgen")),
            ("CN=ann+UID=7,O=x", Some("ann")),
            ("2.5.4.3=ann", Some("ann")),
            ("CN=ann,CN=eve", None),
            ("O=Example", None),
            ("", None),
            ("CN=", None),
            ("ann", None),
            ("CN=\\ff", None),
            ("CN=x\\", None),
            ("CN=#0403616e6e", None),
            ("CN=a\\00b", None),
        ] {
            assert_eq!(user(&it, subject, &[]).as_deref(), name, "{subject}");
        }
    }

    #[test]
    fn what_is_in_a_value_does_not_become_another_attribute() {
        let values = ["eve,CN=admin", "a+CN=b", " ann ", "#04", "J\u{fc}rgen", "a\\", "x=y;z", "\"q\"", "nul\0", ""];
        for value in values {
            let text = subject_text([("O", value), ("CN", "ann")]);
            let parts = attributes(&text).unwrap();
            let expected = [("O", value), ("CN", "ann")].map(|(kind, value)| (kind.to_owned(), value.to_owned()));
            assert_eq!(parts, expected, "{text}");
        }
        assert_eq!(subject_text([("CN", "ann"), ("O", "Example, Inc.")]), "CN=ann,O=Example\\, Inc.");
    }

    #[test]
    fn alternative_names_count_only_when_there_is_one() {
        let mail = settings("user_from = \"email\"");
        assert_eq!(user(&mail, "CN=x", &["host", "ann@x.example"]).as_deref(), Some("ann@x.example"));
        assert_eq!(user(&mail, "CN=x", &["ann@x.example", "eve@x.example"]), None);
        assert_eq!(user(&mail, "CN=x", &["https://ann@x.example"]), None);
        let uri = settings("user_from = \"uri\"");
        assert_eq!(user(&uri, "CN=x", &["ann@x", "spiffe://x/web"]).as_deref(), Some("spiffe://x/web"));
    }
}
