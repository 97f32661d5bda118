//! Counters of mounts, as JSON and for Prometheus.

use std::fs;

use tests::{Nginx, Streamfs, parse_prometheus};

use crate::{in_folder, noise, sample, served_sample};

#[test]
fn what_was_read_and_waited_for_is_counted_and_scrapers_can_read_it() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let server = Nginx::http(&content);
    let mount = user.mount(&format!("{}/app", server.url()), "a \"quoted\" folder");
    assert_eq!(fs::read(mount.join("folder/large")).expect("a file of the mount"), noise(3_000_000, 7));

    let text = user.ok(["status", "--prometheus"]).stdout;
    let samples = parse_prometheus(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let dir = mount.path().to_str().expect("plain");
    let value = |name: &str, more: &[(&str, &str)]| {
        let mut found = samples.iter().filter(|s| {
            s.name == name && more.iter().all(|(label, value)| s.labels.get(*label).is_some_and(|v| v == value))
        });
        found.next().map(|s| s.value).unwrap_or_else(|| panic!("no {name} {more:?}:\n{text}"))
    };
    assert_eq!(value("streamfs_mount_info", &[("mount", dir), ("version", "1.0")]), 1.0);
    assert!(value("streamfs_reads_total", &[("mount", dir)]) >= 1.0);
    assert_eq!(value("streamfs_read_bytes_total", &[("mount", dir)]), 3_000_000.0);
    assert!(value("streamfs_fetched_bytes_total", &[("mount", dir)]) >= 3_000_000.0, "it does not compress");
    assert_eq!(value("streamfs_questions_failed_total", &[("mount", dir)]), 0.0);
    let waited = [("mount", dir), ("cause", "blocks"), ("source", "origin")];
    let (count, sum) =
        (value("streamfs_read_wait_seconds_count", &waited), value("streamfs_read_wait_seconds_sum", &waited));
    assert!(count >= 1.0 && sum > 0.0 && sum < 600.0, "{count} {sum}");
    assert!(value("streamfs_source_bytes_total", &[("source", "origin")]) > 0.0);
    assert!(value("streamfs_cache_used_bytes", &[]) > 0.0);

    let statistics = user.status_of(mount.path())["statistics"].clone();
    let waits = statistics["waits"].as_array().expect("a list");
    assert!(waits.iter().any(|w| w["cause"] == "blocks" && w["source"] == "origin"), "{statistics}");
    assert_eq!(statistics["bytes_read"], 3_000_000);
    assert_eq!(statistics["launch"]["phase"], "none");

    mount.unmount();
    assert_eq!(
        parse_prometheus(&user.ok(["status", "--prometheus"]).stdout)
            .expect("readable")
            .iter()
            .filter(|s| s.labels.contains_key("mount"))
            .count(),
        0,
        "nothing is mounted any more"
    );
}

#[test]
fn failed_questions_are_counted() {
    let user = Streamfs::new();
    let (source, content) = (user.folder("source"), user.folder("content"));
    sample(&source);
    user.publish(&source, &in_folder(&content, "app"), "1.0");
    let server = Nginx::http(&content);
    let mount = user.mount_with(&format!("{}/app", server.url()), "mnt", &["--deadline", "1s"]);
    fs::metadata(mount.join("text")).expect("a file of the mount");
    drop(server);
    assert!(fs::read(mount.join("text")).is_err(), "its origin is gone");
    assert!(user.status_of(mount.path())["statistics"]["questions_failed"].as_u64() > Some(0));
    mount.unmount();
}

/// What is loaded, and a version that was replaced and still has users.
#[test]
fn loads_and_older_versions_are_told() {
    let (user, source, _server, location) = served_sample();
    user.ok(["load", &location]);
    let mount = user.mount(&location, "mnt");
    let held = fs::File::open(mount.join("small")).expect("opens");
    fs::write(source.join("new"), "x").expect("own folder");
    user.publish(&source, &in_folder(&user.home().join("content"), "app"), "2.0");
    user.ok(["remount", mount.path().to_str().expect("plain")]);
    let text = user.ok(["status", "--prometheus"]).stdout;
    let samples = parse_prometheus(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let value = |name: &str, label: &str, wanted: &str| {
        let found = samples.iter().find(|s| s.name == name && s.labels.get(label).is_some_and(|v| v == wanted));
        found.unwrap_or_else(|| panic!("no {name} of {wanted}:\n{text}")).value
    };
    assert_eq!(value("streamfs_older_version_in_use", "version", "1.0"), 1.0);
    let loaded = format!("{location}@1.0");
    assert_eq!(value("streamfs_load_offline_ready", "location", &loaded), 1.0);
    assert_eq!(value("streamfs_load_failed", "location", &loaded), 0.0);
    let done = value("streamfs_load_done_bytes", "location", &loaded);
    assert!(done > 3_000_000.0 && done == value("streamfs_load_bytes", "location", &loaded), "{done}");
    drop(held);
}
