//! What stands behind `head`: the beginning of the launch object that whoever mounts the package most likely wants.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;

use super::super::files::blocking;
use super::super::head::{HEAD_TAIL_BYTES, TailOf};
use super::Publisher;
use crate::error::Result;
use crate::location::DEFAULT_CHANNEL;
use crate::package::descriptor::{Descriptor, LaunchRef};

impl Publisher {
    /// The beginning of the first launch object of the version that the default channel points at (without one: the
    /// first channel by name), and what it is. None if there is no such object, or it is not here as it should be: then
    /// nothing is lost but a round trip at each launch.
    pub(super) async fn tail(&self) -> Result<Option<(TailOf, Bytes)>> {
        let Some(set) = self.likely_launch().await else { return Ok(None) };
        let object = self.dir.join(set.path().as_str());
        let bytes = u32::try_from(set.bytes.min(HEAD_TAIL_BYTES)).expect("a tail is shorter than 4 GiB");
        let of = TailOf { object: set.object, object_bytes: set.bytes, bytes };
        blocking(move || match beginning(&object, &of) {
            Ok(begun) => Ok(Some((of, begun))),
            Err(error) => {
                let object = object.display();
                tracing::warn!(%object, %error, "a launch object cannot be read; head is written without its beginning");
                Ok(None)
            }
        })
        .await
    }

    async fn likely_launch(&self) -> Option<LaunchRef> {
        let channels = &self.catalog.channels;
        let default = channels.iter().find(|(channel, _)| channel.as_str() == DEFAULT_CHANNEL);
        let (_, version) = default.or_else(|| channels.first_key_value())?;
        let record = self.catalog.versions.iter().find(|v| v.version == *version)?;
        // A version whose descriptor is lost, damaged or of a newer format has none that is known here.
        let bytes = self.descriptor(record).await.ok()?;
        let descriptor = Descriptor::parse(&bytes, record.descriptor_object().as_str()).ok()?;
        descriptor.launch.into_iter().next()
    }
}

fn beginning(object: &Path, of: &TailOf) -> io::Result<Bytes> {
    let mut file = File::open(object)?;
    let length = file.metadata()?.len();
    if length != of.object_bytes {
        let why = format!("it has {length} bytes instead of {}", of.object_bytes);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; of.bytes as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}
