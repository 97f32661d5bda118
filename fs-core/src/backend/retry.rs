//! Placeholder: retrying.
use super::*;
/// Placeholder.
#[derive(Debug)]
pub struct Retry(Arc<dyn Backend>);
impl Retry {
    /// Placeholder.
    pub fn new(inner: Arc<dyn Backend>, _: crate::config::RetryPolicy) -> Self {
        Self(inner)
    }
}
#[async_trait]
impl Backend for Retry {
    fn origin(&self) -> &str {
        self.0.origin()
    }
    async fn read_range(&self, o: &ObjectPath, r: Range<u64>, q: ReadOptions) -> Result<ByteStream> {
        self.0.read_range(o, r, q).await
    }
    async fn read_small(&self, o: &ObjectPath, l: u64, k: Option<&Validator>) -> Result<SmallRead> {
        self.0.read_small(o, l, k).await
    }
}
