//! What is done on either side, and how long it took.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};

/// One thing to measure.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Page cache, dentries and inodes are dropped before; else it is done twice and the second time counts.
    pub(crate) cold: bool,
    pub(crate) work: fn(&Path, Option<u32>) -> Result<Duration>,
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "sequential read of 1 GiB, page cache dropped", cold: true, work: sequential },
        Case { name: "sequential read of 1 GiB, hot", cold: false, work: sequential },
        Case { name: "20,000 random reads of 4 KiB, hot", cold: false, work: random },
        Case { name: "walk and stat 50,000 files, caches dropped", cold: true, work: walk },
        Case { name: "walk and stat 50,000 files, hot", cold: false, work: walk },
    ]
}

/// Drops page cache, dentries and inodes of the whole machine.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")
}

fn timed(user: Option<u32>, work: impl FnOnce() -> Result<()> + Send) -> Result<Duration> {
    // A mount belongs to its user alone. Credentials of a thread are enough, and end with it.
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            if let Some(uid) = user {
                let uid = rustix::process::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).context("becoming the user")?;
            }
            let started = Instant::now();
            work()?;
            Ok(started.elapsed())
        });
        worker.join().expect("measuring does not panic")
    })
}

fn sequential(dir: &Path, user: Option<u32>) -> Result<Duration> {
    timed(user, || {
        let mut file = File::open(dir.join("large"))?;
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => total += n as u64,
            }
        }
        ensure!(total == file.metadata()?.len(), "the file was not read whole");
        Ok(())
    })
}

fn random(dir: &Path, user: Option<u32>) -> Result<Duration> {
    timed(user, || {
        let file = File::open(dir.join("large"))?;
        let pages = file.metadata()?.len() / 4096;
        let mut random = rand::rngs::StdRng::seed_from_u64(3);
        let mut buffer = [0; 4096];
        for _ in 0..20_000 {
            file.read_exact_at(&mut buffer, random.random_range(0..pages) * 4096)?;
        }
        Ok(())
    })
}

fn walk(dir: &Path, user: Option<u32>) -> Result<Duration> {
    fn visit(dir: &Path, files: &mut usize, bytes: &mut u64) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                visit(&entry.path(), files, bytes)?;
            } else {
                *files += 1;
                *bytes += meta.size();
            }
        }
        Ok(())
    }
    timed(user, || {
        let (mut files, mut bytes) = (0, 0);
        visit(&dir.join("many"), &mut files, &mut bytes)?;
        ensure!(files == 50_000 && bytes > 0, "{files} files were found");
        Ok(())
    })
}
