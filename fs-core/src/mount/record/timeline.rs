//! Everything that happened on a mount while it was watched, with times: what a report of a launch is drawn from.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::{Covered, Names, Recorder};
use crate::fetch::{FetchStatistics, Source};
use crate::mount::launch::Arrivals;
use crate::mount::observe::{Observed, Operation};
use crate::mount::{Answer, Mount};
use crate::package::NodeId;
use crate::package::block::Extent;

/// Most questions that are kept, at about 100 bytes each: a launch of thousands of files asks some ten thousand.
const QUESTIONS_MAX: usize = 400_000;
/// Most blocks brought by a stream that are kept.
const ARRIVALS_MAX: usize = 1 << 18;
/// Most samples of what was fetched.
const SAMPLES_MAX: usize = 100_000;
/// Directories looked through for names of files that nobody looked up.
const DIRECTORIES_MAX: usize = 100_000;

/// Questions, arrivals and bytes fetched, in the order in which they were told.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    questions: Vec<Question>,
    arrivals: Vec<Arrived>,
    fetched: Vec<FetchSample>,
    dropped: u64,
}

#[derive(Debug, Clone)]
struct Question {
    at_micros: u64,
    operation: Asked,
    pages_micros: u64,
    blocks_micros: u64,
    source: Option<Source>,
    succeeded: bool,
}

#[derive(Debug, Clone)]
enum Asked {
    Lookup { parent: NodeId, name: Bytes, found: bool },
    List(NodeId),
    ReadLink(NodeId),
    Xattrs(NodeId),
    Read { node: NodeId, offset: u64, length: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Arrived {
    at_micros: u64,
    node: NodeId,
    offset: u64,
    length: u64,
}

/// How much had been fetched at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FetchSample {
    /// Microseconds since watching began.
    pub t: u64,
    /// Stored bytes received since then.
    pub bytes: u64,
    /// Requests made since then.
    pub requests: u64,
}

/// What happened on a mount. Paths are shown as text; names that are no text are shown as far as they are.
#[derive(Debug, Clone, Serialize)]
pub struct Trace {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Content root, without credentials.
    pub origin: String,
    /// How long was watched, in microseconds.
    pub took: u64,
    /// Paths that the others name by position.
    pub paths: Vec<String>,
    /// Every question, in the order they were asked.
    pub events: Vec<TraceEvent>,
    /// Blocks that the launch stream brought, in that order.
    pub arrivals: Vec<TraceArrival>,
    /// How bytes fetched grew.
    pub fetched: Vec<FetchSample>,
    /// Files that were read, or that a stream brought blocks of.
    pub files: Vec<TraceFile>,
    /// Questions and arrivals that did not fit.
    pub dropped: u64,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceEvent {
    /// When it was asked, in microseconds since watching began.
    pub t: u64,
    /// `lookup`, `list`, `readlink`, `xattrs` or `read`.
    pub op: String,
    /// Which path.
    pub path: usize,
    /// Where a read began, bytes.
    pub at: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Microseconds that it waited for tree pages.
    pub pages: u64,
    /// Microseconds that it waited for blocks.
    pub blocks: u64,
    /// The farthest that anything it waited for came from.
    pub source: Option<Source>,
    /// Whether it was answered, rather than failed.
    pub ok: bool,
    /// Whether what it named exists.
    pub found: bool,
}

/// A block that came before anybody had to ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TraceArrival {
    /// Microseconds since watching began.
    pub t: u64,
    /// Which path.
    pub path: usize,
    /// Where it stands, bytes.
    pub at: u64,
    /// Its length.
    pub bytes: u64,
    /// When any of it was read for the first time; `None`: never, it was brought for nothing.
    pub used: Option<u64>,
}

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TraceFile {
    /// Which path.
    pub path: usize,
    /// Bytes that were read, each counted once.
    pub read: u64,
    /// Bytes of the blocks that these are in, uncompressed: what has to be brought to read them.
    pub blocks: u64,
    /// The same as stored.
    pub stored: u64,
    /// Bytes that a launch stream brought.
    pub streamed: u64,
    /// Of these, in blocks of which nothing was read.
    pub wasted: u64,
}

impl Timeline {
    pub(super) fn add(&mut self, at_micros: u64, event: &Observed) {
        if self.questions.len() >= QUESTIONS_MAX {
            self.dropped += 1;
            return;
        }
        let operation = match &event.operation {
            Operation::Lookup { parent, name, found } => {
                Asked::Lookup { parent: *parent, name: name.clone(), found: found.is_some() }
            }
            Operation::List { dir, .. } => Asked::List(*dir),
            Operation::ReadLink { node } => Asked::ReadLink(*node),
            Operation::Xattrs { node } => Asked::Xattrs(*node),
            Operation::Read { node, offset, length } => Asked::Read { node: *node, offset: *offset, length: *length },
        };
        self.questions.push(Question {
            at_micros,
            operation,
            pages_micros: micros(event.waits.pages),
            blocks_micros: micros(event.waits.blocks),
            source: event.waits.farthest,
            succeeded: event.succeeded,
        });
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Arrivals for Recorder {
    fn arrived(&self, node: NodeId, offset: u64, block: &Bytes) {
        let at_micros = micros(self.began.elapsed());
        let mut state = self.state.lock();
        let Some(timeline) = &mut state.timeline else { return };
        if timeline.arrivals.len() < ARRIVALS_MAX {
            timeline.arrivals.push(Arrived { at_micros, node, offset, length: block.len() as u64 });
        } else {
            timeline.dropped += 1;
        }
    }
}

impl Recorder {
    /// Notes how much has been fetched since watching began, `statistics` being now and `before` then. To be called
    /// now and then; what did not change is not kept.
    pub fn sample(&self, statistics: &FetchStatistics, before: &FetchStatistics) {
        let t = micros(self.began.elapsed());
        let bytes = statistics.bytes_fetched.saturating_sub(before.bytes_fetched);
        let requests = statistics.requests.saturating_sub(before.requests);
        let mut state = self.state.lock();
        let Some(Timeline { fetched, .. }) = &mut state.timeline else { return };
        let changed = fetched.last().is_none_or(|last| (last.bytes, last.requests) != (bytes, requests));
        if changed && fetched.len() < SAMPLES_MAX {
            fetched.push(FetchSample { t, bytes, requests });
        }
    }

    /// What happened so far on `mount`, the one that this watches. Asks only what is at hand.
    pub fn trace(&self, mount: &Arc<Mount>) -> Trace {
        let took = micros(self.began.elapsed());
        let mut state = self.state.lock();
        let Some(timeline) = &state.timeline else { return Trace::empty(mount, took) };
        let (mut questions, arrivals) = (timeline.questions.clone(), timeline.arrivals.clone());
        let (fetched, dropped) = (timeline.fetched.clone(), timeline.dropped + state.dropped);
        let mut names = std::mem::take(&mut state.names);
        drop(state);
        questions.sort_by_key(|question| question.at_micros);
        let unnamed: HashSet<NodeId> =
            arrivals.iter().map(|a| a.node).filter(|node| !names.known.contains_key(node)).collect();
        find_names(mount, &mut names, unnamed);

        let mut trace = Trace { fetched, dropped, ..Trace::empty(mount, took) };
        let mut paths = Paths { names: &names, numbers: HashMap::new(), all: &mut trace.paths };
        let mut read: HashMap<NodeId, FileReads> = HashMap::new();
        for question in &questions {
            let (op, path, at, bytes, found) = match &question.operation {
                Asked::Lookup { parent, name, found } => ("lookup", paths.number_in(*parent, name), 0, 0, *found),
                Asked::List(node) => ("list", paths.number(*node), 0, 0, true),
                Asked::ReadLink(node) => ("readlink", paths.number(*node), 0, 0, true),
                Asked::Xattrs(node) => ("xattrs", paths.number(*node), 0, 0, true),
                Asked::Read { node, offset, length } => {
                    let reads = read.entry(*node).or_default();
                    reads.covered.add(*offset, offset + length);
                    reads.all.push((*offset, offset + length, question.at_micros));
                    ("read", paths.number(*node), *offset, *length, true)
                }
            };
            trace.events.push(TraceEvent {
                t: question.at_micros,
                op: op.to_owned(),
                path,
                at,
                bytes,
                pages: question.pages_micros,
                blocks: question.blocks_micros,
                source: question.source,
                ok: question.succeeded,
                found,
            });
        }
        let mut streamed: HashMap<NodeId, (u64, u64)> = HashMap::new();
        for arrived in arrivals {
            let used = read.get(&arrived.node).and_then(|r| r.first(arrived.offset, arrived.offset + arrived.length));
            let (brought, wasted) = streamed.entry(arrived.node).or_default();
            *brought += arrived.length;
            *wasted += if used.is_none() { arrived.length } else { 0 };
            let path = paths.number(arrived.node);
            trace.arrivals.push(TraceArrival {
                t: arrived.at_micros,
                path,
                at: arrived.offset,
                bytes: arrived.length,
                used,
            });
        }
        let nodes: HashSet<NodeId> = read.keys().chain(streamed.keys()).copied().collect();
        for node in nodes {
            let covered = read.get(&node).map(|reads| &reads.covered);
            let extents = covered.map(|covered| touched(mount, node, covered)).unwrap_or_default();
            let (streamed, wasted) = streamed.get(&node).copied().unwrap_or_default();
            trace.files.push(TraceFile {
                path: paths.number(node),
                read: covered.map_or(0, Covered::bytes),
                blocks: extents.iter().map(|e| u64::from(e.length)).sum(),
                stored: extents.iter().map(|e| u64::from(e.stored)).sum(),
                streamed,
                wasted,
            });
        }
        trace.files.sort_by_key(|file| file.path);
        self.state.lock().names = names;
        trace
    }
}

impl Trace {
    fn empty(mount: &Mount, took: u64) -> Self {
        let identity = mount.identity();
        Self {
            package: identity.package.clone(),
            version: identity.version.clone(),
            origin: identity.origin.clone(),
            took,
            paths: Vec::new(),
            events: Vec::new(),
            arrivals: Vec::new(),
            fetched: Vec::new(),
            files: Vec::new(),
            dropped: 0,
        }
    }
}

#[derive(Default)]
struct FileReads {
    covered: Covered,
    all: Vec<(u64, u64, u64)>,
}

impl FileReads {
    /// When any of `start..end` was read for the first time.
    fn first(&self, start: u64, end: u64) -> Option<u64> {
        self.all.iter().filter(|(s, e, _)| *s < end && *e > start).map(|(_, _, t)| *t).min()
    }
}

/// Each path once, and its number.
struct Paths<'a> {
    names: &'a Names,
    numbers: HashMap<(NodeId, Option<Bytes>), usize>,
    all: &'a mut Vec<String>,
}

impl Paths<'_> {
    fn number(&mut self, node: NodeId) -> usize {
        // By parent and name where they are known, so that looking a file up and reading it are the same path.
        match self.names.known.get(&node) {
            Some((parent, name)) => self.number_in(*parent, &name.clone()),
            None => self.insert((node, None), |names| names.path(node)),
        }
    }

    fn number_in(&mut self, parent: NodeId, name: &Bytes) -> usize {
        self.insert((parent, Some(name.clone())), |names| names.path_in(parent, name))
    }

    fn insert(&mut self, key: (NodeId, Option<Bytes>), path: impl FnOnce(&Names) -> Option<Bytes>) -> usize {
        let (names, all) = (self.names, &mut *self.all);
        let node = key.0;
        *self.numbers.entry(key).or_insert_with(|| {
            let shown = path(names).map(|path| String::from_utf8_lossy(&path).into_owned());
            all.push(shown.unwrap_or_else(|| format!("node {}", node.0)));
            all.len() - 1
        })
    }
}

/// Blocks of `node` in which something of `covered` lies.
fn touched(mount: &Arc<Mount>, node: NodeId, covered: &Covered) -> Vec<Extent> {
    let parts: Vec<(u64, u64)> = covered.parts.iter().map(|(s, e)| (*s, *e)).collect();
    let answer = mount.answer(move |this, held| {
        let id = this.file(held, node)?.id;
        let mut all: Vec<Extent> = Vec::new();
        for (start, end) in &parts {
            let more = this.extents(held, id, &(*start..*end))?;
            all.extend(more.into_iter().filter(|e| e.file_end() > *start && e.file_offset < *end));
            all.dedup_by_key(|extent| extent.file_offset);
        }
        Ok(all)
    });
    match answer {
        Answer::Ready(Ok(extents)) => extents,
        // What was read just now is hardly away again; a report does without it then.
        Answer::Ready(Err(_)) | Answer::Later(_) => Vec::new(),
    }
}

/// Looks through the directories that are at hand for the names of `unnamed`.
fn find_names(mount: &Arc<Mount>, names: &mut Names, mut unnamed: HashSet<NodeId>) {
    let mut directories = VecDeque::from([NodeId::ROOT]);
    let mut looked = 0;
    while let Some(dir) = directories.pop_front()
        && !unnamed.is_empty()
        && looked < DIRECTORIES_MAX
    {
        looked += 1;
        let mut cursor = 0;
        while let Answer::Ready(Ok(entries)) = mount.read_dir(dir, cursor, 256)
            && let Some(last) = entries.last()
        {
            cursor = last.next_cursor;
            for entry in entries {
                if entry.node.kind == crate::package::NodeKind::Directory {
                    names.learn(entry.node.id, dir, &entry.name, super::PROFILE.names);
                    directories.push_back(entry.node.id);
                } else if unnamed.remove(&entry.node.id) {
                    names.learn(entry.node.id, dir, &entry.name, super::PROFILE.names);
                }
            }
        }
    }
}
