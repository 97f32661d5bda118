//! A strict reader of Prometheus' text format: what it accepts, every scraper does.

use std::collections::{BTreeMap, HashMap, HashSet};

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric, with the suffix of a histogram's part.
    pub name: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// Reads an exposition.
///
/// # Errors
/// What is wrong, with the line: unknown forms, samples before their TYPE or apart from it, repeated samples or
/// labels, counters below zero or without `_total`, histograms that are not cumulative or lack `+Inf`.
pub fn parse_prometheus(text: &str) -> Result<Vec<Sample>, String> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    let (mut types, mut samples) = (HashMap::<String, String>::new(), Vec::<Sample>::new());
    let (mut current, mut seen) = (String::new(), HashSet::new());
    for line in text.lines() {
        let wrong = |what: &str| format!("{what}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            if types.contains_key(name) || !is_name(name) || help.is_empty() {
                return Err(wrong("a help that is late, empty, or of no name"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            if !["counter", "gauge", "histogram"].contains(&kind) || !is_name(name) {
                return Err(wrong("an unknown type or a bad name"));
            }
            if kind == "counter" && !name.ends_with("_total") {
                return Err(wrong("a counter's name ends with _total"));
            }
            if types.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(wrong("a metric that comes twice"));
            }
            name.clone_into(&mut current);
        } else {
            let sample = parse_sample(line).ok_or_else(|| wrong("not understood"))?;
            let kind = types.get(&current).ok_or_else(|| wrong("no type before it"))?;
            let suffix = sample.name.strip_prefix(&current).ok_or_else(|| wrong("apart from its metric"))?;
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !suffixes.contains(&suffix) || (kind == "counter" && sample.value < 0.0) {
                return Err(wrong("it does not fit its type"));
            }
            if !seen.insert(format!("{} {:?}", sample.name, sample.labels)) {
                return Err(wrong("a sample that comes twice"));
            }
            samples.push(sample);
        }
    }
    for (name, _) in types.iter().filter(|(_, kind)| *kind == "histogram") {
        check_histogram(name, &samples)?;
    }
    Ok(samples)
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn parse_sample(line: &str) -> Option<Sample> {
    let at = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(at);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = parse_value(after)?;
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = after.strip_prefix(',').filter(|more| !more.starts_with('}')).unwrap_or(after);
            if !after.starts_with([',', '}']) {
                return None;
            }
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').filter(|text| !text.contains(' '))?.parse().ok()?;
    is_name(name).then(|| Sample { name: name.to_owned(), labels, value })
}

/// A quoted value without its first quote, and what follows it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                _ => return None,
            }),
            other => value.push(other),
        }
    }
    None
}

fn check_histogram(name: &str, samples: &[Sample]) -> Result<(), String> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let of = |suffix: &str| {
        let full = format!("{name}{suffix}");
        samples.iter().filter(move |sample| sample.name == full)
    };
    for bucket in of("_bucket") {
        let mut labels = bucket.labels.clone();
        let le = labels.remove("le").ok_or_else(|| format!("a bucket of {name} without le"))?;
        let le = if le == "+Inf" { f64::INFINITY } else { le.parse().map_err(|_| format!("le {le} of {name}"))? };
        series.entry(format!("{labels:?}")).or_default().push((le, bucket.value));
    }
    for (labels, buckets) in &series {
        if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
            return Err(format!("buckets of {name} {labels} are not cumulative: {buckets:?}"));
        }
        let count = of("_count").find(|sample| format!("{:?}", sample.labels) == *labels).map(|sample| sample.value);
        let sum = of("_sum").any(|sample| format!("{:?}", sample.labels) == *labels);
        if buckets.last().map(|last| last.0) != Some(f64::INFINITY) || buckets.last().map(|l| l.1) != count || !sum {
            return Err(format!("{name} {labels} lacks +Inf, its sum or a count that equals it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_is_read_and_bad_refused() {
        let good =
            "# HELP a_total x y\n# TYPE a_total counter\na_total{m=\"q\\\"\\\\\\n\"} 1\na_total{m=\"b\",n=\"\"} 2.5\n";
        let samples = parse_prometheus(good).unwrap();
        assert_eq!((samples[0].labels["m"].as_str(), samples[1].value), ("q\"\\\n", 2.5));
        let histogram = "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum{} 3\nh_count{} 2\n";
        assert_eq!(parse_prometheus(histogram).unwrap().len(), 4);
        for bad in [
            "a 1\n",
            "# TYPE a gauge\na 1",
            "# TYPE a gauge\na 1\na 1\n",
            "# TYPE a counter\na 1\n",
            "# TYPE a gauge\nb 1\n",
            "# TYPE a gauge\na{x=\"1} 1\n",
            "# TYPE a gauge\na{x=\"1\" y=\"2\"} 1\n",
            "# TYPE a gauge\na{x=\"1\",} 1\n",
            "# TYPE a gauge\na one\n",
            "# TYPE a gauge\na 1 2\n",
            &histogram.replace("} 1", "} 5"),
            &histogram.replace("h_count{} 2", "h_count{} 3"),
            &histogram.replace("+Inf", "7"),
        ] {
            assert!(parse_prometheus(bad).is_err(), "{bad}");
        }
    }
}
