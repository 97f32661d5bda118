use super::*;

fn profile(events: &[(&str, Use)]) -> Profile {
    let header = ProfileHeader { package: "calc".into(), version: "7.2".into(), name: "calc".into() };
    let event = |(at, (path, use_)): (usize, &(&str, Use))| ProfileEvent {
        at_micros: 10 * at as u64,
        path: Bytes::copy_from_slice(path.as_bytes()),
        use_: *use_,
    };
    Profile { header, events: events.iter().enumerate().map(event).collect() }
}

fn read(offset: u64, length: u64) -> Use {
    Use::Read { offset, length }
}

fn without_times(profile: &Profile) -> Vec<(String, Use)> {
    profile.events.iter().map(|e| (String::from_utf8_lossy(&e.path).into_owned(), e.use_)).collect()
}

#[test]
fn profiles_return_as_they_went() {
    let mut all = profile(&[
        ("/", Use::List),
        ("/bin", Use::Lookup),
        ("/bin/\"a\\b\n", read(4096, 8192)),
        ("/link", Use::ReadLink),
        ("/bin/ü", Use::Xattrs),
    ]);
    all.events.push(ProfileEvent { at_micros: 99, path: Bytes::from_static(b"/\xff\xfe"), use_: Use::Lookup });
    let bytes = all.to_bytes();
    assert_eq!(Profile::parse(&bytes, "p").unwrap(), all);
    assert_eq!(Profile::parse(&bytes, "p").unwrap().to_bytes(), bytes);
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 7, "one line each");
    let text = all.to_text();
    assert!(text.starts_with("calc: 6 questions about 6 paths of calc 7.2, 8192 bytes read\n"), "{text}");
    assert!(text.contains("0.0 ms  read") && text.contains("8192 bytes at 4096"), "{text}");
    assert_eq!(text.lines().count(), 7, "names cannot break lines: {text}");
}

#[test]
fn the_documented_form_is_read_and_what_is_not_known_ignored() {
    let text = br#"{"streamfs_profile":1,"package":"calc","version":"7.2","name":"calc","host":"x"}
{"t":0,"lookup":"/bin"}

{"t":310,"lookup":{"hex":"2f62ff"},"by":17}
{"t":400,"fadvise":"/bin/calc"}
{"t":702,"read":"/bin/calc","at":0,"bytes":4096}
"#;
    let got = Profile::parse(text, "p").unwrap();
    assert_eq!(got.events.len(), 3);
    assert_eq!(got.events[1].path, &b"/b\xff"[..]);
    assert_eq!(got.events[2].use_, read(0, 4096));
}

#[test]
fn what_is_no_profile_is_refused_with_its_line() {
    const HEADER: &str = r#"{"streamfs_profile":1,"package":"p","version":"1","name":"n"}"#;
    let long = format!(r#"{{"t":0,"lookup":"/{}"}}"#, "x".repeat(PROFILE_LINE_MAX_BYTES));
    let cases = [
        ("", "line 1"),
        ("{}", "line 1"),
        ("\n{}", "line 1"),
        (r#"{"streamfs_profile":1,"package":"p","version":"1","name":"a b"}"#, "line 1"),
        (r#"{"streamfs_profile":1,"package":"p","version":"1","name":""}"#, "line 1"),
        (r#"{"streamfs_profile":2}"#, "format 2"),
        (&format!("{HEADER}\n[]"), "line 2"),
        (&format!("{HEADER}\n{{}}"), "line 2"),
        (&format!("{HEADER}\n\n{{\"t\":-1,\"lookup\":\"/\"}}"), "line 3"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":\"bin\"}}"), "does not begin with /"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":\"/a//b\"}}"), "empty name"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":\"/a/../b\"}}"), "`..`"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":{{\"hex\":\"2fz\"}}}}"), "hexadecimal"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":{{\"hex\":\"2f00\"}}}}"), "NUL"),
        (&format!("{HEADER}\n{{\"t\":0,\"lookup\":\"/\",\"list\":\"/\"}}"), "more than one"),
        (&format!("{HEADER}\n{{\"t\":0,\"read\":\"/a\",\"at\":0}}"), "`bytes`"),
        (&format!("{HEADER}\n{{\"t\":0,\"read\":\"/a\",\"at\":9223372036854775807,\"bytes\":1}}"), "past the end"),
        (&format!("{HEADER}\n{long}"), "longer than"),
    ];
    for (text, expected) in cases {
        let e = Profile::parse(text.as_bytes(), "profile x").unwrap_err().to_string();
        assert!(e.contains("profile x") && e.contains(expected), "{text:.100}: {e}");
    }
    let mut many = HEADER.as_bytes().to_vec();
    for _ in 0..=PROFILE_EVENTS_MAX {
        many.extend_from_slice(b"\n{\"t\":0,\"list\":\"/\"}");
    }
    assert!(Profile::parse(&many, "p").unwrap_err().to_string().contains("more than"));
}

#[test]
fn the_simplest_form_has_whole_pages_once_where_they_were_read_first() {
    let got = profile(&[
        ("/a", Use::Lookup),
        ("/a", read(100, 1)),
        ("/a", Use::Lookup),
        ("/a", read(4096, 1)),
        ("/b", read(0, 0)),
        ("/b", read(8000, 9000)),
        ("/a", read(0, 20_000)),
        ("/a", Use::Xattrs),
    ])
    .normalised();
    let expected = [
        ("/a", Use::Lookup),
        ("/a", read(0, 8192)),
        ("/b", read(4096, 16_384)),
        ("/a", read(8192, 12_288)),
        ("/a", Use::Xattrs),
    ];
    assert_eq!(without_times(&got), expected.map(|(path, use_)| (path.to_owned(), use_)));
    assert_eq!(got.clone().normalised(), got, "it is the simplest");
    assert_eq!(got.read_bytes(), 4096 + 4096 + 16_384 + 12_288);
}

#[test]
fn sequential_reads_become_one() {
    let got = profile(&[("/a", read(0, 4096)), ("/a", read(4096, 4096)), ("/a", read(4000, 9000))]).normalised();
    assert_eq!(without_times(&got), [("/a".to_owned(), read(0, 16_384))]);
}

#[test]
fn merging_keeps_everything_once_and_as_early_as_anybody_asked() {
    let first = profile(&[("/a", read(0, 8192)), ("/b", Use::Lookup), ("/c", read(0, 4096))]);
    let second = profile(&[("/c", read(0, 8192)), ("/b", Use::Lookup), ("/d", Use::List)]);
    let merged = Profile::merge(&[first.clone(), second]).unwrap();
    let expected = [("/a", read(0, 8192)), ("/c", read(0, 8192)), ("/b", Use::Lookup), ("/d", Use::List)];
    assert_eq!(without_times(&merged), expected.map(|(path, use_)| (path.to_owned(), use_)));
    assert!(merged.events.windows(2).all(|pair| pair[0].at_micros <= pair[1].at_micros));
    assert_eq!(Profile::merge(&[first.clone()]).unwrap(), first.clone().normalised());
    assert_eq!(Profile::merge(&[first.clone(), first.clone()]).unwrap(), first.normalised());
    assert_eq!(Profile::merge(&[]), None);
}

#[test]
fn absurd_ranges_take_neither_time_nor_memory() {
    let huge = i64::MAX as u64;
    let got = profile(&[("/a", read(1 << 40, huge - (1 << 40))), ("/a", read(0, huge)), ("/a", read(huge, 5))]);
    let merged = Profile::merge(&[got.clone(), got]).unwrap();
    assert!(merged.events.len() <= 3, "{merged:?}");
}
