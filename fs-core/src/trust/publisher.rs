//! Placeholder: signing.
use std::path::Path;

use crate::error::{Error, Result};
use crate::location::PackageName;

/// Placeholder: signs the timestamp anew; returns until when it is valid, seconds since 1970.
pub fn renew(_content_root: &Path, _package: &PackageName, _keys_dir: &Path) -> Result<i64> {
    Err(Error::Unsupported("placeholder: renew".into()))
}
