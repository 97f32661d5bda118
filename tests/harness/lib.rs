//! What the test programs share: the built command in a world of its own, real servers, real application trees,
//! random trees, and an exact comparison of two trees.
//!
//! Nothing here checks the product; tests do, and name in their failures what they expected. Everything a test
//! starts ends with the value that started it, also when the test panics.

mod browser;
mod caching_proxy;
mod compare;
mod fault_server;
mod generated;
mod nginx;
mod prometheus;
mod random_tree;
mod served;
mod streamfs;
mod tier;
mod trees;
mod waiting;

pub use browser::Browser;
pub use caching_proxy::{CacheKind, CachingProxy};
pub use compare::{assert_same_tree, compare_trees};
pub use fault_server::{Fault, FaultServer, Rule, ServedRequest};
pub use generated::{GENERATED_CONTENT, generated_version};
pub use nginx::{Nginx, NginxOptions, Request, Scheme};
pub use prometheus::{Sample, parse_prometheus};
pub use random_tree::{TreeLimits, random_tree};
pub use served::Served;
pub use streamfs::{MountGuard, Outcome, Streamfs, is_mount_point};
pub use tier::{Tier, seeds, tier};
pub use trees::{NODE_TREE, PYTHON_TREE, TREES_FOLDER, node_tree, python_tree, target_dir};
pub use waiting::{wait_for, wait_for_exit};
