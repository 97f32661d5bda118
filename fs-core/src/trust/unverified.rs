//! What a package's metadata says, taken at its word: for servers, which pass packages on, show them and say that
//! something is new. No byte is believed for it: clients verify what they are given, as always.

use tough::schema::{Signed, Targets};

use super::head::Head;
use super::{Catalog, record};
use crate::error::{Error, Result};

/// The versions and channels that the newest targets file in `head` tells of.
///
/// # Errors
/// `Damaged` if there is none, or it cannot be read.
pub fn catalog(head: &Head) -> Result<Catalog> {
    let bad = |why: String| Error::damaged(super::HEAD_OBJECT, why);
    let newest = head.numbered("targets").pop_last();
    let (number, bytes) = newest.ok_or_else(|| bad("it has no list of versions".to_owned()))?;
    let unreadable = |why: String| bad(format!("its {number}.targets.json is unreadable: {why}"));
    let targets: Signed<Targets> = serde_json::from_slice(bytes).map_err(|e| unreadable(e.to_string()))?;
    record::catalog(&targets.signed.targets).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::backend::ObjectPath;
    use crate::stage::Stage;
    use crate::trust::head::bytes_before_tail;

    #[test]
    fn what_was_published_is_told() {
        let stage = Stage::new();
        let source = stage.folder("source");
        std::fs::write(source.join("file"), "content").unwrap();
        stage.publish(&source, "1");
        stage.publish(&source, "2");
        let mut bytes = std::fs::read(stage.package_dir().join("head")).unwrap();
        bytes.truncate(bytes_before_tail(&bytes).unwrap());
        let told = catalog(&Head::parse(&bytes.into()).unwrap()).unwrap();
        assert_eq!(told.versions.iter().map(|v| v.version.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(told.resolve(None, "app").unwrap().version.as_str(), "2");
    }

    #[test]
    fn a_bundle_without_it_and_nonsense_are_errors() {
        let mut head = Head::default();
        assert!(catalog(&head).unwrap_err().to_string().contains("no list of versions"));
        head.insert(ObjectPath::new("metadata/3.targets.json").unwrap(), Bytes::from_static(b"{}"));
        assert!(catalog(&head).unwrap_err().to_string().contains("3.targets.json"));
    }
}
