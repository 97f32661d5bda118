//! Placeholder: a folder as origin.
use crate::error::{Error, Result};
use std::ops::Range;
/// Placeholder.
#[derive(Debug)]
pub struct LocalBackend(std::path::PathBuf);
impl LocalBackend {
    /// Placeholder.
    pub fn new(path: std::path::PathBuf) -> Self {
        Self(path)
    }
}
#[async_trait::async_trait]
impl super::Backend for LocalBackend {
    fn origin(&self) -> &str {
        self.0.to_str().unwrap_or("?")
    }
    async fn read_range(&self, _: &super::ObjectPath, _: Range<u64>, _: super::ReadOptions) -> Result<super::ByteStream> {
        Err(Error::Unsupported("placeholder".into()))
    }
    async fn read_small(&self, _: &super::ObjectPath, _: u64, _: Option<&super::Validator>) -> Result<super::SmallRead> {
        Err(Error::Unsupported("placeholder".into()))
    }
}
