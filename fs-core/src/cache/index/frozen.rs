//! The index's file as it stands: it is read, and what would be written to it stays in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use parking_lot::Mutex;
use redb::StorageBackend;

use crate::platform;

/// Unit in which writes are kept: a page of the database.
const PAGE_BYTES: u64 = 4096;

/// A file that is not written. Its memory grows with what is written to it, which is little: opening a database that
/// was not closed, and no change after that.
#[derive(Debug)]
pub(super) struct Frozen {
    file: File,
    over: Mutex<Over>,
}

#[derive(Debug)]
struct Over {
    length: u64,
    /// Bytes of the file that still count: beyond, there are zeros.
    file_length: u64,
    pages: HashMap<u64, Vec<u8>>,
}

impl Frozen {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, over: Mutex::new(Over { length, file_length: length, pages: HashMap::new() }) })
    }

    /// The page of that number, as it is on disk.
    fn page(&self, over: &Over, number: u64) -> io::Result<Vec<u8>> {
        let start = number * PAGE_BYTES;
        let there = over.file_length.saturating_sub(start).min(PAGE_BYTES);
        let mut page = platform::read_exact_at(&self.file, there as usize, start)?;
        page.resize(PAGE_BYTES as usize, 0);
        Ok(page)
    }
}

/// Pages that a range touches, and which part of each.
fn touched(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset + length as u64;
    (offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |number| {
        let start = number * PAGE_BYTES;
        (number, (offset.max(start) - start) as usize..(end.min(start + PAGE_BYTES) - start) as usize)
    })
}

impl StorageBackend for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over.lock();
        if offset + out.len() as u64 > over.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = out;
        let length = rest.len();
        for (number, part) in touched(offset, length) {
            let (here, after) = rest.split_at_mut(part.len());
            match over.pages.get(&number) {
                Some(page) => here.copy_from_slice(&page[part]),
                None => here.copy_from_slice(&self.page(&over, number)?[part]),
            }
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut over = self.over.lock();
        if length < over.length {
            over.file_length = over.file_length.min(length);
            over.pages.retain(|number, _| number * PAGE_BYTES < length);
            // What is beyond the end in its page must be zero if the file grows again.
            let (last, keep) = (length / PAGE_BYTES, (length % PAGE_BYTES) as usize);
            if let Some(page) = over.pages.get_mut(&last) {
                page[keep..].fill(0);
            }
        }
        over.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over.lock();
        if offset + data.len() as u64 > over.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = data;
        for (number, part) in touched(offset, data.len()) {
            let (here, after) = rest.split_at(part.len());
            if !over.pages.contains_key(&number) {
                let page = self.page(&over, number)?;
                over.pages.insert(number, page);
            }
            if let Some(page) = over.pages.get_mut(&number) {
                page[part].copy_from_slice(here);
            }
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::noise;

    #[test]
    fn writes_are_read_back_and_the_file_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let original = noise(1, 10_000);
        std::fs::write(&path, &original).unwrap();
        let frozen = Frozen::open(&path).unwrap();
        let mut model = original.clone();
        let read = |from: usize, to: usize| {
            let mut out = vec![1; to - from];
            frozen.read(from as u64, &mut out).map(|()| out)
        };
        assert_eq!(read(0, 10_000).unwrap(), model);
        frozen.write(4000, &[7; 5000]).unwrap();
        model[4000..9000].fill(7);
        assert_eq!(read(3000, 10_000).unwrap(), model[3000..]);
        frozen.set_len(20_000).unwrap();
        model.resize(20_000, 0);
        assert_eq!(read(9500, 20_000).unwrap(), model[9500..]);
        frozen.set_len(5000).unwrap();
        frozen.set_len(9000).unwrap();
        model.truncate(5000);
        model.resize(9000, 0);
        assert_eq!(read(0, 9000).unwrap(), model, "what was cut off does not come back");
        assert!(read(8999, 9001).is_err() && frozen.write(8999, b"ab").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), original);
    }
}
