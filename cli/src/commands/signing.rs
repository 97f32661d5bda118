//! Signing a published package anew, wherever it is: in a folder, or upon a copy of what a server has.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fs_core::location::{Origin, PackageLocation};
use fs_core::package::publish::staged::Staged;
use fs_core::trust::METADATA_DIR;
use fs_core::trust::keys::KeyStore;
use fs_core::trust::publisher::{PublishOptions, Publisher};

use super::Context;
use super::publish::server_package;

/// The publisher of a package that was published before.
pub(super) struct Signing {
    pub(super) publisher: Publisher,
    /// The copy that it works on, if the package is on a server.
    staged: Option<Staged>,
}

impl Signing {
    /// Opens the package at `location`, to be signed with the keys in the folder that was named, else with the usual ones.
    ///
    /// # Errors
    /// If nothing was published there (opening a publisher would begin a package), it cannot be reached, or the keys are
    /// not here.
    pub(super) async fn open(
        location: &PackageLocation,
        keys: Option<&Path>,
        context: &Context,
    ) -> anyhow::Result<Self> {
        let keys = KeyStore::new(keys_dir(keys, context)?);
        let (staged, dir) = match &location.origin {
            Origin::Folder(content_root) => (None, content_root.join(location.package.as_str())),
            _ => {
                let staged = Staged::open(&server_package(location, context)?).await?;
                let dir = staged.package_dir().to_owned();
                (Some(staged), dir)
            }
        };
        let published = match &staged {
            Some(_) => dir.join(METADATA_DIR).join("timestamp.json").exists(),
            None => dir.join(METADATA_DIR).is_dir(),
        };
        if !published {
            bail!("nothing was published there");
        }
        let options = PublishOptions { staged: staged.is_some(), ..PublishOptions::default() };
        let publisher = Publisher::open(&dir, &keys, options).await?;
        Ok(Self { publisher, staged })
    }

    /// Makes what was committed visible, where it is not so already.
    pub(super) async fn finish(&self, context: &Context) -> anyhow::Result<()> {
        if let Some(staged) = &self.staged {
            staged.send(&self.publisher, 0, &context.bar()).await?;
        }
        Ok(())
    }
}

/// The folder of the private keys: the one that was named, else the one that applies.
pub(super) fn keys_dir(named: Option<&Path>, context: &Context) -> anyhow::Result<PathBuf> {
    match named {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display())),
        None => Ok(context.settings(None)?.keys_dir()?.to_owned()),
    }
}
