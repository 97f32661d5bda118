//! Profiles: recordings of what starting an application asks of a mount.
//!
//! A profile is text: one JSON object a line, the first one the header, then what was asked, in order of first use.
//! It speaks of paths, not of nodes or blocks, so it fits every version of the package that has those paths.
//!
//! ```text
//! {"streamfs_profile":1,"package":"calc","version":"7.2","name":"calc"}
//! {"t":0,"lookup":"/bin"}
//! {"t":310,"lookup":"/bin/calc"}
//! {"t":702,"read":"/bin/calc","at":0,"bytes":4096}
//! {"t":911,"list":"/lib"}
//! {"t":1204,"lookup":"/lib/absent.so"}
//! ```
//!
//! `t` is in microseconds since the recording began. Paths begin with `/`, the root of the version; one that is not
//! UTF-8 is written `{"hex":"2f62..."}`. Readers ignore fields and questions that they do not know. docs/PROFILES.md
//! has all of it.

mod ranges;
mod text;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

pub(super) use self::ranges::Ranges;

/// Newest profile format that this program writes and reads.
pub const PROFILE_FORMAT: u64 = 1;
/// No profile is longer.
pub const PROFILE_MAX_BYTES: usize = 64 << 20;
/// No line of a profile is longer: about 30,000 bytes of any path.
pub const PROFILE_LINE_MAX_BYTES: usize = 64 << 10;
/// Most events of a profile.
pub const PROFILE_EVENTS_MAX: usize = 1 << 20;
/// Reads are rounded to pages of this size, in which systems ask for content.
pub const PROFILE_PAGE_BYTES: u64 = 4096;

/// What is known of a recording as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileHeader {
    /// The package that was mounted.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Which application this is the start of; names the launch set.
    pub name: String,
}

/// Something that was asked of the mount for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileEvent {
    /// Microseconds since the recording began.
    pub at_micros: u64,
    /// Path from the version's root, beginning with `/`; any bytes but NUL.
    pub path: Bytes,
    /// What was asked of it.
    pub use_: Use,
}

/// What was asked of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// It was looked up, found or not.
    Lookup,
    /// It was listed.
    List,
    /// Its link target was read.
    ReadLink,
    /// Its extended attributes were read.
    Xattrs,
    /// These bytes were read.
    Read {
        /// From where, bytes.
        offset: u64,
        /// How many.
        length: u64,
    },
}

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What it is a recording of.
    pub header: ProfileHeader,
    /// In order of first use.
    pub events: Vec<ProfileEvent>,
}

impl Profile {
    /// The same recording in its simplest form: reads rounded to pages of [`PROFILE_PAGE_BYTES`], of each path every byte
    /// and every other question only where it came first, reads that go on where the event before ended joined to it.
    #[must_use]
    pub fn normalised(self) -> Self {
        let mut read: HashMap<Bytes, Ranges> = HashMap::new();
        let mut asked: HashSet<(Bytes, Use)> = HashSet::new();
        let mut events: Vec<ProfileEvent> = Vec::with_capacity(self.events.len());
        for event in self.events {
            let Use::Read { offset, length } = event.use_ else {
                if asked.insert((event.path.clone(), event.use_)) {
                    events.push(event);
                }
                continue;
            };
            for Range { start, end } in read.entry(event.path.clone()).or_default().add(pages(offset, length)) {
                match events.last_mut() {
                    Some(ProfileEvent { path, use_: Use::Read { offset, length }, .. })
                        if *path == event.path && *offset + *length == start =>
                    {
                        *length += end - start;
                    }
                    _ => events.push(ProfileEvent {
                        at_micros: event.at_micros,
                        path: event.path.clone(),
                        use_: Use::Read { offset: start, length: end - start },
                    }),
                }
            }
        }
        Self { header: self.header, events }
    }

    /// The union of several recordings of one launch, in the simplest form; `None` of no recordings.
    ///
    /// What any of them asked for is in it, once, and stands as early as in the recording that asked for it soonest: by how
    /// much was asked for before, in questions and pages, since times depend on the network. So of two things the one that
    /// is always asked for first stays first. The header is the first recording's.
    pub fn merge(profiles: &[Profile]) -> Option<Profile> {
        let header = profiles.first()?.header.clone();
        let mut all = Vec::new();
        for profile in profiles {
            let mut before = 0u64;
            for event in profile.clone().normalised().events {
                let size = match event.use_ {
                    Use::Read { length, .. } => length.div_ceil(PROFILE_PAGE_BYTES),
                    _ => 1,
                };
                all.push((before, event));
                before = before.saturating_add(size);
            }
        }
        // Stable: where two stand equally early, the earlier recording's is first.
        all.sort_by_key(|(before, _)| *before);
        let mut events: Vec<ProfileEvent> = all.into_iter().map(|(_, event)| event).collect();
        let mut latest = 0;
        for event in &mut events {
            latest = latest.max(event.at_micros);
            event.at_micros = latest;
        }
        Some(Profile { header, events }.normalised())
    }

    /// Different paths in it.
    pub fn paths(&self) -> usize {
        self.events.iter().map(|event| &event.path).collect::<HashSet<_>>().len()
    }

    /// Bytes that its reads name together.
    pub fn read_bytes(&self) -> u64 {
        let reads = self.events.iter().map(|event| if let Use::Read { length, .. } = event.use_ { length } else { 0 });
        reads.fold(0, u64::saturating_add)
    }
}

/// The whole pages that a read touches.
fn pages(offset: u64, length: u64) -> Range<u64> {
    const END: u64 = i64::MAX as u64;
    let end = offset.saturating_add(length).min(END);
    if offset >= end {
        return 0..0;
    }
    offset - offset % PROFILE_PAGE_BYTES..end.next_multiple_of(PROFILE_PAGE_BYTES).min(END)
}

#[cfg(test)]
mod tests;
