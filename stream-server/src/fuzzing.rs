//! Parsers of what comes from outside, for the fuzz targets: they are not part of the interface.
//!
//! Each gives what would be shown of the input, or says that it was refused.

use crate::access;

/// The value of an `Authorization` header.
pub fn authorization(value: &str) -> Option<String> {
    access::fuzz_authorization(value)
}

/// The server's access file.
///
/// # Errors
/// The message that an administrator would see.
pub fn access_settings(text: &str) -> Result<String, String> {
    access::fuzz_settings(text)
}

/// A package's `access.toml`.
///
/// # Errors
/// The message that an administrator would see.
pub fn package_access(text: &str) -> Result<String, String> {
    access::PackageAccess::parse(text).map(|access| format!("{access:?}"))
}

/// The subject of a client certificate, as a name of its user.
pub fn certificate_subject(subject: &str) -> bool {
    access::fuzz_subject(subject)
}
