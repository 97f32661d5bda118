use super::*;
use crate::content::ContentRoot;
use crate::stage::Stage;

/// Longer than anything here takes, unless it is never told.
const DEADLINE: Duration = Duration::from_secs(20);

fn content(stage: &Stage) -> Content {
    Content::new(ContentRoot::Folder(stage.content())).unwrap()
}

/// Waits until the packages are those.
async fn until(notices: &Notices, packages: &[&str]) {
    let looked = async {
        while notices.packages().iter().map(PackagePath::as_str).ne(packages.iter().copied()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looked).await.unwrap();
}

async fn next(heard: &mut broadcast::Receiver<NewVersion>) -> NewVersion {
    tokio::time::timeout(DEADLINE, heard.recv()).await.expect("it is told").unwrap()
}

fn stable(notice: &NewVersion) -> Option<&str> {
    notice.channels.iter().find(|(channel, _)| channel.as_str() == "stable").map(|(_, version)| version.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_told_within_a_second_and_once() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    stage.publish("group/other", "1", b"content");
    let notices = Notices::new();
    let mut heard = notices.subscribe();
    let _noticing = notices.start(content(&stage), Some(Duration::from_secs(600)));
    until(&notices, &["app", "group/other"]).await;
    for version in ["2", "3"] {
        let before = Instant::now();
        stage.publish("group/other", version, version.as_bytes());
        let published = before.elapsed();
        let notice = next(&mut heard).await;
        // A second from the moment on when it is complete; publishing itself takes its time.
        assert!(before.elapsed() < published + Duration::from_secs(1), "{:?}", before.elapsed() - published);
        assert_eq!((notice.package.as_str(), stable(&notice)), ("group/other", Some(version)));
    }
    stage.publish("app", "2", b"more");
    assert_eq!(next(&mut heard).await.package.as_str(), "app", "nothing was told twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_that_come_and_go_are_followed() {
    let stage = Stage::new();
    let notices = Notices::new();
    let mut heard = notices.subscribe();
    let _noticing = notices.start(content(&stage), Some(Duration::from_secs(600)));
    stage.publish("deep/down/app", "1", b"content");
    while stable(&next(&mut heard).await) != Some("1") {}
    std::fs::remove_dir_all(stage.content().join("deep/down/app")).unwrap();
    until(&notices, &[]).await;
    // Anew at the same place: the folder is another.
    stage.forget_keys();
    stage.publish("deep/down/app", "5", b"anew");
    // A package's first version may be noticed before its `head` is there, and then once more.
    while stable(&next(&mut heard).await) != Some("5") {}
    stage.publish("deep/down/app", "6", b"more");
    assert_eq!(stable(&next(&mut heard).await), Some("6"));
}

/// Where the system says nothing, looking often must do.
#[tokio::test(flavor = "multi_thread")]
async fn looking_alone_is_enough() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    let notices = Notices::new();
    let mut heard = notices.subscribe();
    let looking = Looking { notices: notices.clone(), content: content(&stage), seen: BTreeMap::new() };
    let looking = tokio::spawn(looking.at(stage.content(), None, Duration::from_millis(20)));
    until(&notices, &["app"]).await;
    stage.publish("app", "2", b"more");
    let notice = next(&mut heard).await;
    assert_eq!((notice.package.as_str(), stable(&notice)), ("app", Some("2")));
    looking.abort();
}

/// A `head` that is half copied is told when it is whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_told_later() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    let notices = Notices::new();
    let mut heard = notices.subscribe();
    let _noticing = notices.start(content(&stage), Some(Duration::from_secs(600)));
    until(&notices, &["app"]).await;
    let head = stage.content().join("app/head");
    let whole = std::fs::read(&head).unwrap();
    std::fs::write(&head, &whole[..100]).unwrap();
    std::fs::write(&head, &whole).unwrap();
    assert_eq!(stable(&next(&mut heard).await), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_is_asked_for_what_was_asked_for() {
    let stage = Stage::new();
    stage.publish("app", "1", b"content");
    let behind = crate::stage::serve(&stage.settings()).await;
    let url = format!("http://{}", behind.address);
    let front = Content::new(ContentRoot::Origin { url, config: Box::default() }).unwrap();
    front.known(&"app".parse().unwrap()).await.unwrap();
    let notices = Notices::new();
    let mut heard = notices.subscribe();
    let _noticing = notices.start(front, Some(Duration::from_millis(20)));
    until(&notices, &["app"]).await;
    stage.publish("app", "2", b"more");
    assert_eq!(stable(&next(&mut heard).await), Some("2"));
}
