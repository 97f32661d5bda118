//! Reading the certificate that a client shows in TLS.

use std::fmt;

use crate::config::ClientCertificate;
use crate::error::{Error, Result};

/// The chain and the key, as they stand in their files (PEM).
///
/// # Errors
/// `Local` for a file that cannot be read.
pub(super) fn read(files: &ClientCertificate) -> Result<(Vec<u8>, Vec<u8>)> {
    let read = |what: &'static str, path| std::fs::read(path).map_err(|e| Error::local(what, path, e));
    Ok((read("read the client's certificate", &files.certificate)?, read("read the client's key", &files.key)?))
}

/// The error of a certificate that cannot be used. It shows nothing of the key.
pub(super) fn unusable(files: &ClientCertificate, why: &dyn fmt::Display) -> Error {
    Error::InvalidInput(format!(
        "{} and {} are not a certificate and its key in PEM: {why}",
        files.certificate.display(),
        files.key.display()
    ))
}
