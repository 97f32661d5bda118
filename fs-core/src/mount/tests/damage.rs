//! Every stored object damaged in every way: an error that names it, never a wrong byte, and all is well when it is
//! repaired.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::mount::Mount;
use crate::mount::host::Host;
use crate::package::NodeKind;
use crate::package::publish::NoProgress;
use crate::stage::{Stage, assert_same, content, noise, walk};

/// Two versions, so that there are two trees and two packs.
fn published() -> (Stage, PathBuf) {
    let stage = Stage::new();
    let source = stage.folder("source");
    fs::create_dir(source.join("dir")).unwrap();
    for i in 0..30 {
        fs::write(source.join(format!("dir/file-{i}")), noise(i, 5000)).unwrap();
    }
    fs::write(source.join("large"), noise(100, 1 << 20)).unwrap();
    stage.publish(&source, "1");
    fs::write(source.join("more"), noise(101, 1 << 20)).unwrap();
    stage.publish(&source, "2");
    (stage, source)
}

/// Reads everything; the first error.
async fn read_all(mount: &Arc<Mount>, source: &Path) -> Result<(), Error> {
    let mut first = Ok(());
    for (path, node) in walk(mount).await? {
        if node.kind != NodeKind::File {
            continue;
        }
        match content(mount, &node, 1 << 20).await {
            Ok(bytes) => assert!(bytes == fs::read(source.join(&path)).unwrap(), "wrong bytes in {}", path.display()),
            Err(e) => first = first.and(Err(e)),
        }
    }
    first
}

fn damage(way: &str, object: &Path, bytes: &[u8], objects: &[PathBuf]) {
    match way {
        "delete" => fs::remove_file(object).unwrap(),
        "truncate" => fs::write(object, &bytes[..bytes.len() / 2]).unwrap(),
        "empty" => fs::write(object, b"").unwrap(),
        "flip" => {
            let mut bad = bytes.to_vec();
            // In every stretch of 64 bytes, so that whatever is read is damaged.
            bad.iter_mut().step_by(64).for_each(|b| *b ^= 0x10);
            fs::write(object, bad).unwrap();
        }
        _ => {
            let other = objects.iter().find(|o| o.parent() == object.parent() && *o != object).unwrap();
            fs::write(object, fs::read(other).unwrap()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_object_is_named_and_heals_when_it_is_repaired() {
    let (stage, source) = published();
    let objects: Vec<PathBuf> = stage.stored().into_keys().collect();
    let in_use = |o: &&PathBuf| ["trees", "packs"].iter().any(|d| o.parent().is_some_and(|p| p.ends_with(d)));
    let (host, _) = stage.recorded("first").await;
    let descriptor = stage.mount(&host, "2").await.descriptor().clone();
    let mut tried = 0;
    for object in objects.iter().filter(in_use) {
        let name = object.file_name().unwrap().to_str().unwrap();
        let needed =
            descriptor.tree.object.to_string() == name || descriptor.packs.iter().any(|p| p.object.to_string() == name);
        let good = fs::read(object).unwrap();
        for way in ["delete", "truncate", "empty", "flip", "swap"] {
            damage(way, object, &good, &objects);
            let cache = format!("cache-{tried}");
            let host = stage.host_through(&cache, stage.backend()).await;
            let result = match host.mount(&stage.location("2"), None).await {
                Ok(mount) => {
                    let read = read_all(&mount, &source).await;
                    let told = host.verify(&mount, Arc::new(NoProgress)).await.unwrap().damaged;
                    assert_eq!(told.len(), usize::from(needed), "{way} {name}: {told:?}");
                    assert!(told.iter().all(|t| t.contains(name)), "{way} {name}: {told:?}");
                    read
                }
                Err(e) => Err(e),
            };
            match result {
                Ok(()) => assert!(!needed, "{way} of {name} was not noticed"),
                Err(e) => {
                    assert!(needed, "{way} of {name}: {e}");
                    assert!(e.to_string().contains(name), "{way} of {name} is not named: {e}");
                    let kinds = [ErrorKind::NotFound, ErrorKind::Damaged, ErrorKind::BadAnswer];
                    assert!(kinds.contains(&e.kind()), "{way} of {name}: {e}");
                }
            }
            fs::write(object, &good).unwrap();
            let mount = stage.mount(&host, "2").await;
            assert_same(&mount, &source).await;
            tried += 1;
        }
    }
    assert!(tried >= 20, "two trees and two packs in five ways: {tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_descriptor_is_told_by_verify() {
    // Mounting takes the descriptor from the bundle or from this machine, and verify looked at neither place.
    let (stage, _) = published();
    let (host, _) = stage.recorded("cache").await;
    let mount = stage.mount(&host, "2").await;
    let verify = |host: Arc<Host>, mount: Arc<Mount>| async move {
        host.verify(&mount, Arc::new(NoProgress)).await.unwrap().damaged
    };
    assert_eq!(verify(host.clone(), mount.clone()).await, Vec::<String>::new());
    let is_descriptor = |path: &PathBuf| {
        path.parent().is_some_and(|p| p.ends_with("descriptors"))
            && path.file_name().unwrap().to_str().unwrap().contains(&mount.identity().descriptor)
    };
    let object = stage.stored().into_keys().find(is_descriptor).unwrap();
    fs::write(&object, b"{}").unwrap();
    let told = verify(host.clone(), mount.clone()).await;
    assert!(told.len() == 1 && told[0].contains("descriptors/"), "{told:?}");
    fs::remove_file(&object).unwrap();
    assert_eq!(verify(host, mount).await.len(), 1);
}
