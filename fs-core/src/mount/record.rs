//! Recording what is asked of a mount: first uses for a profile, and everything with its times for a report.
//!
//! A [`Recorder`] watches one mount that nobody else uses
//! ([`Host::pin_apart`](super::host::Host::pin_apart)). It knows nodes by the names that were
//! looked up or listed; the kernel looks every part of a path up on a mount that it sees for the first time, so no
//! name is missing. What it remembers is bounded; what did not fit is counted.
//!
//! What the kernel reads ahead of an application looks like what the application reads. To record what is used and
//! nothing else, an adapter must make the kernel ask for exactly that.

pub mod timeline;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use self::timeline::Timeline;
use super::Mount;
use super::observe::{Observed, Observer, Operation};
use crate::package::NodeId;
use crate::package::profile::{Profile, ProfileEvent, ProfileHeader, Use};

/// Of a launch that is recorded for a profile: with their names about 200 MB, ten times what the largest launch known
/// has.
const PROFILE: Limits = Limits { uses: 1 << 20, names: 1 << 20, only_reads: false };
/// Of what any program asks of a mount: some 15 MB.
const LEARNING: Limits = Limits { uses: 1 << 16, names: 1 << 17, only_reads: true };
/// Unit of reading that recordings tell: the kernel's page.
const PAGE_BYTES: u64 = 4096;
/// Reads that follow one another are told as one up to this length, so that times stay meaningful.
const TOGETHER_MAX_BYTES: u64 = 1 << 20;

/// What a recorder keeps.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Most first uses.
    uses: usize,
    /// Most names: listing large directories brings names that nobody uses.
    names: usize,
    /// Whether uses other than reads are left out.
    only_reads: bool,
}

/// Watches a mount and remembers what it was asked.
pub struct Recorder {
    began: Instant,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Names,
    seen: HashSet<Subject>,
    read: HashMap<NodeId, Covered>,
    uses: Vec<FirstUse>,
    dropped: u64,
    timeline: Option<Timeline>,
}

/// What was used for the first time, reading apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Name(NodeId, Bytes),
    Listing(NodeId),
    Link(NodeId),
    Xattrs(NodeId),
}

struct FirstUse {
    at_micros: u64,
    what: What,
}

enum What {
    Of(Subject),
    Read { node: NodeId, offset: u64, length: u64 },
}

/// Names of nodes, as far as somebody asked for them.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<NodeId, (NodeId, Bytes)>,
}

impl Names {
    /// Notes a name of `node`, unless one is known or there are `most`.
    pub(super) fn learn(&mut self, node: NodeId, parent: NodeId, name: &Bytes, most: usize) {
        if node != NodeId::ROOT && self.known.len() < most {
            // A name may be a slice of a whole page of the tree, which it must not keep alive.
            self.known.entry(node).or_insert_with(|| (parent, Bytes::copy_from_slice(name)));
        }
    }

    /// Path of `node` from the root; `None` if a name on the way is not known.
    pub(super) fn path(&self, node: NodeId) -> Option<Bytes> {
        if node == NodeId::ROOT {
            return Some(Bytes::from_static(b"/"));
        }
        let mut parts = Vec::new();
        let mut at = node;
        while at != NodeId::ROOT {
            let (parent, name) = self.known.get(&at)?;
            parts.push(name);
            at = *parent;
            // No tree is that deep: the adapters refuse longer paths. A loop would be a damaged tree's.
            if parts.len() > 4096 {
                return None;
            }
        }
        let mut path = Vec::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Some(path.into())
    }

    /// Path of `name` in the directory `parent`.
    pub(super) fn path_in(&self, parent: NodeId, name: &[u8]) -> Option<Bytes> {
        let mut path = self.path(parent)?.to_vec();
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Some(path.into())
    }
}

/// Parts of a file that were read: disjoint, by beginning.
#[derive(Debug, Default)]
pub(super) struct Covered {
    parts: BTreeMap<u64, u64>,
}

impl Covered {
    /// Adds `start..end`; tells which parts of it are new.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut new = Vec::new();
        let (mut at, mut from, mut until) = (start, start, end);
        if let Some((&before, &before_end)) = self.parts.range(..start).next_back()
            && before_end >= start
        {
            (from, at) = (before, before_end);
            until = until.max(before_end);
        }
        let over: Vec<(u64, u64)> = self.parts.range(from..=end).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in over {
            if s > at && s.min(end) > at {
                new.push((at, s.min(end)));
            }
            at = at.max(e);
            until = until.max(e);
            self.parts.remove(&s);
        }
        if end > at {
            new.push((at, end));
        }
        if until > from {
            self.parts.insert(from, until);
        }
        new
    }

    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|(s, e)| e - s).sum()
    }
}

/// How much was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordedTotals {
    /// First uses.
    pub uses: u64,
    /// Files that were read.
    pub files_read: u64,
    /// Bytes of them that were read, each counted once, in whole pages.
    pub bytes_read: u64,
    /// Uses that did not fit any more; 0 for any launch that is one.
    pub dropped: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("totals", &self.totals()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// One that remembers first uses, for a profile. Time counts from now.
    pub fn new() -> Self {
        Self::keeping(PROFILE, State::default())
    }

    /// One that remembers little but what was read, for launches that nobody asked to record.
    pub(super) fn for_learning() -> Self {
        Self::keeping(LEARNING, State::default())
    }

    /// One that also remembers every single question with its waits, for a report.
    pub fn with_timeline() -> Self {
        Self::keeping(PROFILE, State { timeline: Some(Timeline::default()), ..State::default() })
    }

    fn keeping(limits: Limits, state: State) -> Self {
        Self { began: Instant::now(), limits, state: Mutex::new(state) }
    }

    /// How much was recorded so far.
    pub fn totals(&self) -> RecordedTotals {
        let state = self.state.lock();
        RecordedTotals {
            uses: state.uses.len() as u64,
            files_read: state.read.len() as u64,
            bytes_read: state.read.values().map(Covered::bytes).sum(),
            dropped: state.dropped,
        }
    }

    /// What was recorded so far, as a recording of the launch `name` of `mount`'s version.
    pub fn profile(&self, mount: &Mount, name: &str) -> Profile {
        let header = ProfileHeader {
            package: mount.identity().package.clone(),
            version: mount.identity().version.clone(),
            name: name.to_owned(),
        };
        let state = self.state.lock();
        let mut events: Vec<ProfileEvent> = state.uses.iter().filter_map(|used| state.event(used)).collect();
        // They were told when they were answered; what counts is when they were asked.
        events.sort_by_key(|event| event.at_micros);
        Profile { header, events }
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Observer for Recorder {
    fn observed(&self, event: &Observed) {
        let at_micros = self.micros(event.at);
        let limits = &self.limits;
        let mut state = self.state.lock();
        if let Some(timeline) = &mut state.timeline {
            timeline.add(at_micros, event);
        }
        if !event.succeeded {
            return;
        }
        match &event.operation {
            Operation::Lookup { parent, name, found } => {
                if let Some(node) = found {
                    state.names.learn(*node, *parent, name, limits.names);
                }
                state.first(limits, at_micros, Subject::Name(*parent, name.clone()));
            }
            Operation::List { dir, entries } => {
                for (name, node) in entries {
                    state.names.learn(*node, *dir, name, limits.names);
                }
                state.first(limits, at_micros, Subject::Listing(*dir));
            }
            Operation::ReadLink { node } => state.first(limits, at_micros, Subject::Link(*node)),
            Operation::Xattrs { node } => state.first(limits, at_micros, Subject::Xattrs(*node)),
            Operation::Read { node, offset, length } => state.read(limits, at_micros, *node, *offset, *length),
        }
    }
}

impl State {
    fn first(&mut self, limits: &Limits, at_micros: u64, subject: Subject) {
        if limits.only_reads || self.seen.contains(&subject) || !self.has_room(limits) {
            return;
        }
        self.seen.insert(subject.clone());
        self.uses.push(FirstUse { at_micros, what: What::Of(subject) });
    }

    fn read(&mut self, limits: &Limits, at_micros: u64, node: NodeId, offset: u64, length: u64) {
        let start = offset - offset % PAGE_BYTES;
        if !self.read.contains_key(&node) && !self.has_room(limits) {
            return;
        }
        // The end is the read's own: it goes to the end of a page or of the file.
        let new = self.read.entry(node).or_default().add(start, offset.saturating_add(length));
        for (start, end) in new {
            if let Some(FirstUse { what: What::Read { node: last, offset, length }, .. }) = self.uses.last_mut()
                && *last == node
                && *offset + *length == start
                && end - *offset <= TOGETHER_MAX_BYTES
            {
                *length = end - *offset;
            } else if self.has_room(limits) {
                let what = What::Read { node, offset: start, length: end - start };
                self.uses.push(FirstUse { at_micros, what });
            }
        }
    }

    fn has_room(&mut self, limits: &Limits) -> bool {
        let room = self.uses.len() < limits.uses;
        self.dropped += u64::from(!room);
        room
    }

    fn event(&self, used: &FirstUse) -> Option<ProfileEvent> {
        let names = &self.names;
        let (path, use_) = match &used.what {
            What::Of(Subject::Name(parent, name)) => (names.path_in(*parent, name)?, Use::Lookup),
            What::Of(Subject::Listing(node)) => (names.path(*node)?, Use::List),
            What::Of(Subject::Link(node)) => (names.path(*node)?, Use::ReadLink),
            What::Of(Subject::Xattrs(node)) => (names.path(*node)?, Use::Xattrs),
            What::Read { node, offset, length } => (names.path(*node)?, Use::Read { offset: *offset, length: *length }),
        };
        Some(ProfileEvent { at_micros: used.at_micros, path, use_ })
    }
}
