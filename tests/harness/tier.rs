//! How much a run may cost, and which seeds it tries.

/// How long the tests may take: `STREAMFS_TEST_TIER`, set by `cargo xtask test`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A few minutes in all.
    Quick,
    /// What continuous integration runs.
    Normal,
    /// As long as it takes.
    Full,
}

impl Tier {
    /// The value for this tier.
    pub fn choose<T>(self, quick: T, normal: T, full: T) -> T {
        match self {
            Tier::Quick => quick,
            Tier::Normal => normal,
            Tier::Full => full,
        }
    }
}

/// The tier of this run; normal when nothing is said.
pub fn tier() -> Tier {
    match std::env::var("STREAMFS_TEST_TIER").as_deref() {
        Err(_) | Ok("normal") => Tier::Normal,
        Ok("quick") => Tier::Quick,
        Ok("full") => Tier::Full,
        Ok(other) => panic!("STREAMFS_TEST_TIER is {other:?}; use quick, normal or full"),
    }
}

/// Runs `test` with `count` seeds, or only with `STREAMFS_TEST_SEED` if that is set, and prints the seed of a
/// failure before letting it through.
///
/// The first half of the seeds is always the same, so that a change that breaks them is blamed; the rest is new at
/// every run, so that the tests go on looking.
pub fn seeds(count: u64, test: impl Fn(u64)) {
    let chosen: Vec<u64> = match std::env::var("STREAMFS_TEST_SEED") {
        Ok(text) => vec![text.parse().expect("STREAMFS_TEST_SEED is a number")],
        Err(_) => (0..count).map(|i| if i < count.div_ceil(2) { i + 1 } else { rand::random() }).collect(),
    };
    for seed in chosen {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed; repeat with STREAMFS_TEST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
