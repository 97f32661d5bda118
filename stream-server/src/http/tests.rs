use std::sync::Arc;

use super::*;

#[test]
fn paths_mean_objects_or_what_a_package_offers() {
    let package = |name: &str| name.parse::<PackagePath>().unwrap();
    let object = |path: &str| ObjectPath::new(path).unwrap();
    for (path, target) in [
        ("/app/head", Target::Object(package("app"), object("head"))),
        ("/a/app/launch/0a", Target::Object(package("a/app"), object("launch/0a"))),
        ("/a/app/launch", Target::Launch(package("a/app"))),
        ("/app/events", Target::Events(package("app"))),
        // A package may be called like what one offers.
        ("/events/head", Target::Object(package("events"), object("head"))),
        ("/events/events", Target::Events(package("events"))),
        ("/status/head", Target::Object(package("status"), object("head"))),
    ] {
        assert_eq!(Target::of(path), Some(target), "{path}");
    }
    for path in ["", "/", "/app", "/app/", "/events", "/launch", "/app/events/", "/.app/events", "/-/events", "*"] {
        assert_eq!(Target::of(path), None, "{path}");
    }
}

#[test]
fn failures_say_whether_to_come_back_and_nothing_else() {
    let (package, object, origin) = ("app".parse().unwrap(), "packs/secret".to_owned(), "/srv/secret".to_owned());
    let reason = "away".to_owned();
    let cases = [
        (Error::NotFound { what: object.clone(), origin: origin.clone() }, 404, false),
        (Error::Denied { object: object.clone(), origin: origin.clone(), reason: reason.clone() }, 404, false),
        (Error::Unreachable { object: object.clone(), origin: origin.clone(), reason: reason.clone() }, 503, true),
        (Error::BadAnswer { object, origin, reason }, 502, false),
        (Error::Shared(Arc::new(Error::Cancelled)), 500, false),
    ];
    for (error, status, later) in cases {
        let response = failed(&package, &error);
        assert_eq!(response.status().as_u16(), status, "{error}");
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), later, "{error}");
    }
}
