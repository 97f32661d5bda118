//! Placeholder: a web server as origin.
use crate::error::{Error, Result};
use std::ops::Range;
/// Placeholder.
#[derive(Debug)]
pub struct HttpBackend;
impl HttpBackend {
    /// Placeholder.
    pub fn new(_: &url::Url, _: &crate::location::PackageName, _: &crate::config::OriginConfig) -> Result<Self> {
        Err(Error::Unsupported("placeholder".into()))
    }
}
#[async_trait::async_trait]
impl super::Backend for HttpBackend {
    fn origin(&self) -> &str {
        "?"
    }
    async fn read_range(&self, _: &super::ObjectPath, _: Range<u64>, _: super::ReadOptions) -> Result<super::ByteStream> {
        Err(Error::Unsupported("placeholder".into()))
    }
    async fn read_small(&self, _: &super::ObjectPath, _: u64, _: Option<&super::Validator>) -> Result<super::SmallRead> {
        Err(Error::Unsupported("placeholder".into()))
    }
}
