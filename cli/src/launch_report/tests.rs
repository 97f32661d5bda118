use super::*;

const HOSTILE: &str = "/</script><script>window.hurt=1</script><img src=x onerror=hurt()>\u{2028}\" & '";

fn trace() -> Value {
    let event = |t: u64, op: &str, path: u64, waits: (u64, u64), source: Option<&str>, ok: bool, found: bool| {
        json!({
            "t": t, "op": op, "path": path, "at": 0, "bytes": 10, "pages": waits.0, "blocks": waits.1,
            "source": source, "ok": ok, "found": found,
        })
    };
    json!({
        "package": "app</title>", "version": "1", "origin": "/c", "took": 2_000_000, "dropped": 0,
        "paths": ["/bin", HOSTILE],
        "events": [
            event(100, "lookup", 0, (300, 0), Some("origin"), true, true),
            event(200, "read", 1, (0, 400), Some("launch_stream"), true, true),
            event(900, "lookup", 0, (0, 0), None, true, false),
            event(950, "read", 1, (0, 0), None, false, true),
        ],
        "arrivals": [
            { "t": 500, "path": 1, "at": 0, "bytes": 1000, "used": 200 },
            { "t": 500, "path": 1, "at": 4096, "bytes": 200, "used": 600 },
            { "t": 500, "path": 1, "at": 8192, "bytes": 30, "used": null },
        ],
        "fetched": [{ "t": 0, "bytes": 0, "requests": 0 }, { "t": 700, "bytes": 5000, "requests": 3 }],
        "files": [{ "path": 1, "read": 4096, "blocks": 65536, "stored": 30000, "streamed": 1230, "wasted": 30 }],
    })
}

fn circumstances() -> Circumstances {
    Circumstances { command: vec!["<b>".into()], cold: true, launch_micros: 1_000_000, since_start_micros: 1_500_000 }
}

#[test]
fn a_trace_is_summed_up() {
    let summary = Summary::of(&trace(), &circumstances());
    let waited = |count, micros: u64| Waited { count, seconds: seconds(micros) };
    let expected = Summary {
        launch_seconds: 1.0,
        // 100..400 and 200..600 overlap.
        waiting_seconds: seconds(500),
        questions: 4,
        reads: 2,
        waited: 2,
        not_found: 1,
        failed: 1,
        by_source: [("launch_stream".to_owned(), waited(1, 400)), ("origin".to_owned(), waited(1, 300))].into(),
        bytes_read: 4096,
        bytes_fetched: 5000,
        requests: 3,
        bytes_streamed: 1230,
        bytes_in_time: 200,
        bytes_wasted: 30,
    };
    assert_eq!(summary, expected);
    assert!(summary.in_words().starts_with("launched in 1.00 s"), "{}", summary.in_words());
}

#[test]
fn nothing_in_the_data_ends_the_script_or_becomes_a_tag() {
    let page = page(&trace(), &circumstances(), &Summary::default());
    assert_eq!(page.matches("</script>").count(), 2, "only the page's own");
    assert!(!page.contains("<img") && !page.contains('\u{2028}') && page.contains("app&lt;/title&gt;"));
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["trace"]["paths"][1], HOSTILE);
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page(&trace(), &circumstances(), &Summary::default());
    for outside in ["src=\"", "href=", "@import", "url(", "fetch(", "https://"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("http://").count(), page.matches("http://www.w3.org/2000/svg").count());
}
