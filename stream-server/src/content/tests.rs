use futures::TryStreamExt;

use super::*;
use crate::stage::Stage;

fn package(name: &str) -> PackagePath {
    name.parse().unwrap()
}

async fn all(object: &Object) -> Vec<u8> {
    object.read(0..object.length).await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat()
}

#[tokio::test]
async fn objects_are_read_as_they_are_stored_and_nothing_else_is() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    let content = Content::new(ContentRoot::Folder(stage.content())).unwrap();
    let head = content.object(&package("app"), &path("head")).await.unwrap();
    assert_eq!(all(&head).await, std::fs::read(stage.content().join("app/head")).unwrap());
    std::fs::create_dir(stage.content().join("app/packs/0a")).unwrap();
    let absent = ErrorKind::NotFound;
    for (name, object, kind) in [
        ("app", "packs/0b", absent),
        ("app", "packs/0a", ErrorKind::InvalidInput),
        ("other", "head", absent),
        ("app/packs", "head", absent),
    ] {
        let error = content.object(&package(name), &path(object)).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{name} {object}: {error}");
    }
}

/// Between asking for an object and reading it, another may take its name: the bytes must belong to the length.
#[tokio::test]
async fn an_object_that_is_replaced_is_read_to_its_end() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    let content = Content::new(ContentRoot::Folder(stage.content())).unwrap();
    let before = std::fs::read(stage.content().join("app/head")).unwrap();
    let head = content.object(&package("app"), &path("head")).await.unwrap();
    stage.publish("app", "2", b"other content");
    assert_eq!(all(&head).await, before);
    let next = content.object(&package("app"), &path("head")).await.unwrap();
    assert_ne!(next.tag(), head.tag());
}

#[tokio::test]
async fn what_metadata_says_is_known_and_kept_until_it_changes() {
    let stage = Stage::new();
    stage.publish("group/app", "1", b"content");
    let content = Content::new(ContentRoot::Folder(stage.content())).unwrap();
    let app = package("group/app");
    let first = content.known(&app).await.unwrap();
    assert_eq!(first.catalog.resolve(None, "app").unwrap().version.as_str(), "1");
    assert!(Arc::ptr_eq(&first, &content.known(&app).await.unwrap()), "it is read once");
    stage.publish("group/app", "2", b"more");
    let second = content.known(&app).await.unwrap();
    assert_eq!(second.catalog.resolve(None, "app").unwrap().version.as_str(), "2");
    assert_ne!(first.tag, second.tag);

    std::fs::remove_file(stage.content().join("group/app/head")).unwrap();
    let bare = content.known(&app).await.unwrap();
    assert!(bare.head.is_none() && bare.tag != second.tag);
    assert_eq!(content.known(&package("nothing")).await.err().unwrap().kind(), ErrorKind::NotFound);
    std::fs::write(stage.content().join("group/app/head"), b"nonsense").unwrap();
    assert_eq!(content.known(&app).await.err().unwrap().kind(), ErrorKind::Damaged);
}

/// A server may stand in front of another one.
#[tokio::test]
async fn an_origin_is_served_as_a_folder_is() {
    let stage = Stage::new();
    stage.publish("app", "1", &[7; 100_000]);
    let behind = crate::stage::serve(&stage.settings()).await;
    let url = format!("http://{}", behind.address);
    let front = Content::new(ContentRoot::Origin { url, config: Box::default() }).unwrap();
    assert!(front.folder().is_none() && front.asked_for().is_empty());
    let head = front.object(&package("app"), &path("head")).await.unwrap();
    let stored = std::fs::read(stage.content().join("app/head")).unwrap();
    assert_eq!(all(&head).await, stored);
    assert!(head.modified.is_some());
    let part = head.read(3..10).await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(part, stored[3..10]);
    assert_eq!(front.known(&package("app")).await.unwrap().catalog.versions.len(), 1);
    assert_eq!(front.asked_for(), [package("app")]);
    let absent = front.object(&package("app"), &path("packs/00")).await.err().unwrap();
    assert_eq!(absent.kind(), ErrorKind::NotFound, "{absent}");
}

#[test]
fn a_missing_folder_and_a_location_without_sense_are_refused() {
    let error = Content::new(ContentRoot::Folder("/does/not/exist".into())).err().unwrap().to_string();
    assert!(error.contains("/does/not/exist"), "{error}");
    let wrong = ContentRoot::Origin { url: "ftp://x".to_owned(), config: Box::default() };
    assert!(Content::new(wrong).err().unwrap().to_string().contains("ftp"));
}
