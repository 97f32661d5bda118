//! Micro benchmarks of the core. `cargo bench -p benches` runs them; each says which question it answers.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use benches::{host, location, node_of, program_like, publish_to, sample};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fastcdc::v2020::FastCDC;
use fs_core::mount::host::LoadWish;
use fs_core::package::Hash;
use fs_core::package::block::{BLOCK_AVERAGE_BYTES, BLOCK_MAX_BYTES, BLOCK_MIN_BYTES, Encoder};
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;

/// What does publishing cost per byte, step by step and as a whole on one compressing thread?
fn publishing(c: &mut Criterion) {
    let input = program_like(1, 16 * MIB);
    let mut group = c.benchmark_group("publishing");
    group.throughput(Throughput::Bytes(input.len() as u64)).sample_size(10);
    group.bench_function("cut 16 MiB", |b| {
        b.iter(|| FastCDC::new(&input, BLOCK_MIN_BYTES, BLOCK_AVERAGE_BYTES, BLOCK_MAX_BYTES).count());
    });
    group.bench_function("hash 16 MiB by 64 KiB", |b| {
        b.iter(|| input.chunks(65_536).map(|block| Hash::of(black_box(block)).0[0]).fold(0u8, u8::wrapping_add));
    });
    group.bench_function("compress 16 MiB by 64 KiB", |b| {
        let mut encoder = Encoder::new(fs_core::package::publish::DEFAULT_LEVEL).unwrap();
        b.iter(|| input.chunks(65_536).map(|block| encoder.encode(block.to_vec()).len()).sum::<usize>());
    });
    let dir = tempfile::tempdir().unwrap();
    let source = sample(&dir.path().join("source"), 16 * MIB, 0).unwrap();
    let number = AtomicU64::new(0);
    group.bench_function("publish 16 MiB, one worker", |b| {
        b.iter_batched(
            || dir.path().join(number.fetch_add(1, Ordering::Relaxed).to_string()),
            |root| publish_to(&root, &source, "p", "1", 1).unwrap(),
            BatchSize::PerIteration,
        );
    });
}

/// What do a look-up and a cached read cost, which a mount adds to the kernel's own work?
fn reading(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let source = sample(&dir.path().join("source"), 64 * MIB, 20_000).unwrap();
    publish_to(dir.path(), &source, "p", "1", 2).unwrap();
    let location = location(dir.path(), "p").unwrap();
    let host = runtime.block_on(host(dir.path())).unwrap();
    let mount = runtime.block_on(host.mount(&location, None)).unwrap();
    runtime.block_on(async { host.begin_load(&mount, &LoadWish::default()).unwrap().finished().await }).unwrap();
    let many = node_of(&runtime, &mount, &["many"]).unwrap();
    let large = node_of(&runtime, &mount, &["large"]).unwrap();

    let mut group = c.benchmark_group("tree");
    let names: Vec<String> = (0..200).map(|i| format!("d{i:03}")).collect();
    let mut i = 0;
    group.bench_function("look up, found", |b| {
        b.iter(|| {
            i = (i + 1) % names.len();
            runtime.block_on(mount.lookup(many.id, names[i].as_bytes()).wait()).unwrap()
        });
    });
    group.bench_function("look up, not found", |b| {
        b.iter(|| runtime.block_on(mount.lookup(many.id, b"absent").wait()).unwrap());
    });
    group.bench_function("list 100 entries", |b| {
        let folder = runtime.block_on(mount.lookup(many.id, b"d042").wait()).unwrap().unwrap();
        b.iter(|| runtime.block_on(mount.read_dir(folder.id, 0, 100).wait()).unwrap());
    });
    group.finish();

    let mut group = c.benchmark_group("read");
    for (name, length) in [("cached 4 KiB", 4096), ("cached 1 MiB", MIB)] {
        group.throughput(Throughput::Bytes(length as u64));
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 7 * length as u64) % (63 * MIB as u64);
                runtime.block_on(mount.read(large.id, at, length).wait()).unwrap()
            });
        });
    }
    // From a local content root into an empty cache: everything but the network.
    group.throughput(Throughput::Bytes(64 * MIB as u64)).sample_size(10).measurement_time(Duration::from_secs(10));
    let number = AtomicU64::new(0);
    group.bench_function("cold 64 MiB from a folder, by 128 KiB", |b| {
        b.iter_batched(
            || {
                let cache = dir.path().join(format!("cold{}", number.fetch_add(1, Ordering::Relaxed)));
                let host = runtime.block_on(benches::host(&cache)).unwrap();
                let mount = runtime.block_on(host.mount(&location, None)).unwrap();
                (host, mount)
            },
            |(host, mount)| {
                for at in (0..64 * MIB as u64).step_by(128 << 10) {
                    runtime.block_on(mount.read(large.id, at, 128 << 10).wait()).unwrap();
                }
                (host, mount)
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(micro, publishing, reading);
criterion_main!(micro);
