//! Sizes and durations as people write them: `20G`, `64MiB`, `30s`, `500ms`.

use std::time::Duration;

use crate::error::{Error, Result};

/// Units of size, by their first letter; all are powers of 1024, as for `du -h`.
const SIZE_UNITS: [(&str, u64); 5] = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];

/// Units of time in milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Longest duration that is accepted: a year. Longer ones are typing mistakes, and near the limits of clocks.
const LONGEST_MS: u64 = 366 * 86_400_000;

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

/// Reads a size in bytes: digits and `K`, `M`, `G` or `T` (powers of 1024; `KiB` and `KB` mean the same).
///
/// # Errors
/// `InvalidInput`, naming the text.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Error::InvalidInput(format!("{text:?} is not a size; write a number and K, M, G or T, for example 512M or 20G"))
    };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let unit = unit.to_ascii_uppercase();
    let short = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == short).ok_or_else(bad)?;
    number.checked_mul(*factor).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(bad)
}

/// Reads a duration: digits and `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// `InvalidInput`, naming the text.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || {
        Error::InvalidInput(format!("{text:?} is not a duration; write a number and ms, s, m, h or d, for example 30s"))
    };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let (_, factor) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    number.checked_mul(*factor).filter(|ms| *ms <= LONGEST_MS).map(Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1K", 1024), ("64MiB", 64 << 20), ("20g", 20 << 30), ("3 TB", 3 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "99999999999999T", "1Gi", "18446744073709551615"] {
            assert!(parse_size(text).unwrap_err().to_string().contains("is not a size"), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1 h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), ms, "{text}");
        }
        for text in ["", "30", "s", "1y", "-1s", "400d", "99999999999999999d"] {
            assert!(parse_duration(text).unwrap_err().to_string().contains("is not a duration"), "{text}");
        }
    }
}
