//! What READ, CREDIT and CANCEL ask for: lines of words, for both sides of the connection.
//!
//! ```text
//! 17 packs/9ab3… 0-65535
//! 18 packs/9ab3… 262144-327679 urgent
//! 19 head 0-131071 clip state known=5f2c… window=1048576
//! 20 launch/77f1… 0- window=8388608
//! 21 metadata/timestamp.json - state
//! ```

use std::fmt;
use std::ops::Range;

use super::record::Tag;
use crate::backend::ObjectPath;

/// Media type of the bodies of READ, CREDIT and CANCEL.
pub const ASKED_TYPE: &str = "application/vnd.streamfs.read";
/// Most lines of one message.
pub const LINES_MAX: usize = 256;

/// A line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadLine {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Which bytes of an object are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// None, only its state: `-`.
    Nothing,
    /// All of these, or it fails: `FIRST-LAST`. Not empty.
    Exactly(Range<u64>),
    /// Those of these that there are: `FIRST-LAST` and the word `clip`. Not empty.
    Clipped(Range<u64>),
    /// From there to its end: `FIRST-`.
    From(u64),
}

/// One line of READ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What records of the answer carry. Not 0, and not that of another request under way in the session.
    pub id: u32,
    /// What is to be read.
    pub object: ObjectPath,
    /// Which bytes of it.
    pub part: Part,
    /// Whether somebody waits for it, so that it goes before what is not: `urgent`.
    pub urgent: bool,
    /// Whether the object's state is told before its bytes: `state`.
    pub state: bool,
    /// No bytes are wanted if this is its state: `known=TAG`.
    pub known: Option<Tag>,
    /// How many bytes may come before more are credited; any number without it: `window=BYTES`.
    pub window: Option<u64>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.id, self.object)?;
        match &self.part {
            Part::Nothing => f.write_str("-")?,
            Part::Exactly(range) => write!(f, "{}-{}", range.start, range.end - 1)?,
            Part::Clipped(range) => write!(f, "{}-{} clip", range.start, range.end - 1)?,
            Part::From(first) => write!(f, "{first}-")?,
        }
        for (word, is_there) in [(" urgent", self.urgent), (" state", self.state)] {
            f.write_str(if is_there { word } else { "" })?;
        }
        if let Some(tag) = &self.known {
            write!(f, " known={}", tag.as_str())?;
        }
        if let Some(bytes) = self.window {
            write!(f, " window={bytes}")?;
        }
        Ok(())
    }
}

impl Asked {
    fn parse(line: &str) -> Result<Self, &'static str> {
        let mut words = line.split(' ');
        let id = words.next().and_then(id).ok_or("it does not begin with an id")?;
        let object = words.next().unwrap_or_default();
        let object = ObjectPath::new(object).map_err(|_| "its second word is not the path of an object")?;
        let range = words.next().and_then(range).ok_or("its third word is not a range")?;
        let mut asked =
            Self { id, object, part: Part::Nothing, urgent: false, state: false, known: None, window: None };
        let mut clip = false;
        for word in words {
            match word.split_once('=') {
                None if word == "urgent" => asked.urgent = true,
                None if word == "state" => asked.state = true,
                None if word == "clip" => clip = true,
                Some(("known", tag)) => asked.known = Some(Tag::new(tag).ok_or("known is not a tag")?),
                Some(("window", bytes)) => {
                    asked.window = Some(decimal(bytes).filter(|b| *b > 0).ok_or("window is not a number of bytes")?);
                }
                _ => return Err("it has a word that is not known"),
            }
        }
        asked.part = match range {
            (None, None) => Part::Nothing,
            (Some(first), None) => Part::From(first),
            (Some(first), Some(last)) if clip => Part::Clipped(first..last + 1),
            (Some(first), Some(last)) => Part::Exactly(first..last + 1),
            (None, Some(_)) => return Err("its range has no first byte"),
        };
        if clip && !matches!(asked.part, Part::Clipped(_)) {
            return Err("clip needs a range with a last byte");
        }
        if !asked.state && (asked.known.is_some() || asked.part == Part::Nothing) {
            return Err("without the word state nothing tells the answer");
        }
        Ok(asked)
    }
}

/// A number without sign or needless zeros.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn id(text: &str) -> Option<u32> {
    u32::try_from(decimal(text)?).ok().filter(|id| *id != 0)
}

/// First and last byte, as far as they are there.
fn range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (first, last) = text.split_once('-')?;
    let first = if first.is_empty() { None } else { Some(decimal(first)?) };
    // The end behind the last byte must be a number, too.
    let last = if last.is_empty() { None } else { Some(decimal(last).filter(|last| *last < u64::MAX)?) };
    let backwards = first.zip(last).is_some_and(|(first, last)| first > last);
    (!backwards).then_some((first, last))
}

/// Reads a body line by line. Lines end with a line feed, before which a carriage return may stand; the last need not.
fn lines<T>(body: &[u8], parse: impl Fn(&str) -> Result<T, &'static str>) -> Result<Vec<T>, BadLine> {
    let text = std::str::from_utf8(body).map_err(|_| BadLine { line: 1, why: "the body is not text" })?;
    let mut parsed = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let bad = |why| BadLine { line: at + 1, why };
        if at >= LINES_MAX {
            return Err(bad("there are too many lines"));
        }
        parsed.push(parse(line).map_err(bad)?);
    }
    if parsed.is_empty() { Err(BadLine { line: 1, why: "there is none" }) } else { Ok(parsed) }
}

/// Reads the body of READ.
///
/// # Errors
/// [`BadLine`]; then none of it is done.
pub fn reads(body: &[u8]) -> Result<Vec<Asked>, BadLine> {
    lines(body, Asked::parse)
}

/// Reads the body of CREDIT: lines of an id, and a number of bytes that may come in addition.
///
/// # Errors
/// As [`reads`].
pub fn credits(body: &[u8]) -> Result<Vec<(u32, u64)>, BadLine> {
    lines(body, |line| {
        let (id_word, bytes) = line.split_once(' ').ok_or("it is not an id and a number of bytes")?;
        id(id_word).zip(decimal(bytes)).ok_or("it is not an id and a number of bytes")
    })
}

/// Reads the body of CANCEL: lines of an id.
///
/// # Errors
/// As [`reads`].
pub fn ids(body: &[u8]) -> Result<Vec<u32>, BadLine> {
    lines(body, |line| id(line).ok_or("it is not an id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text = "17 packs/9ab3 0-65535\n18 packs/9ab3 262144-327679 urgent\n\
            19 head 0-131071 clip state known=5f2c window=1048576\n20 launch/77f1 0- window=8388608\n\
            4294967295 metadata/timestamp.json - state\n1 a 18446744073709551614-18446744073709551614";
        let asked = reads(text.as_bytes()).unwrap();
        assert_eq!(asked.len(), 6);
        assert_eq!(asked[0].part, Part::Exactly(0..65_536));
        assert!(asked[1].urgent && !asked[0].urgent);
        assert_eq!((&asked[2].part, asked[2].window), (&Part::Clipped(0..131_072), Some(1 << 20)));
        assert_eq!(asked[3].part, Part::From(0));
        assert_eq!((&asked[4].part, asked[4].state), (&Part::Nothing, true));
        let again: Vec<String> = asked.iter().map(Asked::to_string).collect();
        assert_eq!(again.join("\n"), text);
        assert_eq!(reads(text.replace('\n', "\r\n").as_bytes()).unwrap(), asked);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (line, why) in [
            ("", "id"),
            ("x packs/a 0-1", "id"),
            ("0 packs/a 0-1", "id"),
            ("01 packs/a 0-1", "id"),
            ("+1 packs/a 0-1", "id"),
            ("4294967296 packs/a 0-1", "id"),
            ("1", "object"),
            ("1 ../a 0-1", "object"),
            ("1 /a 0-1", "object"),
            ("1 a\0 0-1", "object"),
            ("1 a", "range"),
            ("1 a 1", "range"),
            ("1 a 2-1", "range"),
            ("1 a 0-18446744073709551615", "range"),
            ("1 a -5", "first byte"),
            ("1 a 0-1 ", "word"),
            ("1 a 0-1 fast", "word"),
            ("1 a 0- clip", "clip"),
            ("1 a -", "state"),
            ("1 a 0-1 known=x", "state"),
            ("1 a 0-1 state known=\"", "tag"),
            ("1 a 0-1 window=0", "window"),
        ] {
            let error = reads(format!("1 a 0-1\n{line}\n").as_bytes()).unwrap_err();
            assert_eq!(error.line, 2, "{line}");
            assert!(error.why.contains(why), "{line}: {error}");
        }
        assert!(reads(b"").is_err());
        assert!(reads(b"\xff").is_err());
        assert_eq!(reads("1 a 0-1\n".repeat(LINES_MAX + 1).as_bytes()).unwrap_err().line, LINES_MAX + 1);
    }

    #[test]
    fn credits_and_ids_are_read() {
        assert_eq!(credits(b"1 5\n2 0").unwrap(), [(1, 5), (2, 0)]);
        assert_eq!(ids(b"1\n2\n").unwrap(), [1, 2]);
        for bad in ["1", "1 -5", "1 5 6", "x 1"] {
            assert!(credits(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(ids(b"1 2").is_err());
    }
}
