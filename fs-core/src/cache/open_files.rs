//! How many blobs' files are open at once.

use std::collections::VecDeque;
use std::sync::Weak;

use parking_lot::Mutex;

use super::Blob;

/// Files open at once. Systems commonly give a process 1,024 descriptors, of which connections, the kernel's requests
/// and passthrough files need theirs.
pub(super) const OPEN_FILES_MAX: usize = 256;

/// The open files in the order in which they will be considered for closing.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    queue: Mutex<VecDeque<Weak<Blob>>>,
}

impl OpenFiles {
    /// Notes that a blob's file was opened, and closes others that were not used lately. The caller holds no blob's
    /// lock, because this takes others'.
    pub(super) fn admit(&self, blob: &Weak<Blob>) {
        let mut surplus = {
            let mut queue = self.queue.lock();
            queue.push_back(blob.clone());
            queue.len().saturating_sub(OPEN_FILES_MAX)
        };
        // Each file gets a second chance at most once here: readers that keep all of them in use do not make this
        // go on for ever.
        let mut chances = OPEN_FILES_MAX;
        while surplus > 0 {
            let Some(oldest) = self.queue.lock().pop_front() else { return };
            if let Some(other) = oldest.upgrade()
                && !other.close(chances > 0)
            {
                chances -= 1;
                self.queue.lock().push_back(oldest);
                continue;
            }
            surplus -= 1;
        }
    }
}
