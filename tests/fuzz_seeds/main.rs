//! Seeds of the fuzz targets: real objects of a small package, from which mutation starts deep inside each parser.
//!
//! They lie in `fuzz/seeds/TARGET`. This test fails when the format has moved on and a seed no longer parses; then
//! `STREAMFS_WRITE_SEEDS=1 cargo test -p tests --test fuzz_seeds` writes them anew.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fs_core::backend::rtsp::asked;
use fs_core::backend::rtsp::record::Record;
use fs_core::backend::rtsp::target::Target;
use fs_core::backend::rtsp::wire::{Splitter, WireError, WireLimits};
use fs_core::config::Settings;
use fs_core::location::PackageLocation;
use fs_core::package::block::{BLOCK_MAX_BYTES, decompress};
use fs_core::package::descriptor::{Descriptor, LaunchRef, PageTree, TreeRef};
use fs_core::package::launch::{BodyDecoder, LAUNCH_INDEX_MAX_BYTES, parse_index};
use fs_core::package::pack;
use fs_core::package::profile::Profile;
use fs_core::package::tree::PAGE_MAX_BYTES;
use fs_core::package::tree::page::{Page, PageKind};
use fs_core::trust::head::{Head, bytes_before_tail};
use stream_server::fuzzing;
use tests::Streamfs;

/// Whether a target's parser accepts a seed.
type Accepts = fn(&[u8]) -> bool;

const TARGETS: [(&str, Accepts); 16] = [
    ("access_file", |seed| {
        let text = std::str::from_utf8(seed).unwrap_or_default();
        fuzzing::access_settings(text).is_ok() || fuzzing::package_access(text).is_ok()
    }),
    ("authorization", |seed| std::str::from_utf8(seed).is_ok_and(|text| fuzzing::authorization(text).is_some())),
    ("block_decode", |seed| block(seed).is_some()),
    ("certificate_subject", |seed| std::str::from_utf8(seed).is_ok_and(fuzzing::certificate_subject)),
    ("config", |seed| std::str::from_utf8(seed).is_ok_and(|text| Settings::parse(text).is_ok())),
    ("descriptor", |seed| Descriptor::parse(seed, "seed").is_ok()),
    ("head_bundle", |seed| Head::parse(&Bytes::copy_from_slice(seed)).is_ok()),
    ("launch_object", |seed| launch_object(seed).is_some()),
    ("location", |seed| std::str::from_utf8(seed).is_ok_and(|text| text.parse::<PackageLocation>().is_ok())),
    ("pack_index", |seed| pack::parse(seed, "seed").is_ok()),
    ("profile", |seed| Profile::parse(seed, "seed").is_ok()),
    ("rtsp_lines", |seed| asked::reads(seed).is_ok()),
    ("rtsp_record", |seed| Record::parse(Bytes::copy_from_slice(seed)).is_ok()),
    ("rtsp_stream", |seed| dialogue(seed).is_ok_and(|items| items > 3)),
    ("rtsp_target", |seed| std::str::from_utf8(seed).is_ok_and(|text| Target::parse(text).is_some())),
    ("tree_page", |seed| page(seed).is_some()),
];

/// The announced length and the stored bytes, as the target reads them.
fn block(seed: &[u8]) -> Option<Vec<u8>> {
    let (length, stored) = seed.split_first_chunk::<4>()?;
    decompress(stored, u32::from_le_bytes(*length) as usize, BLOCK_MAX_BYTES).ok()
}

/// The index's length, the index and the body, as the target reads them.
fn launch_object(seed: &[u8]) -> Option<()> {
    let (length, rest) = seed.split_first_chunk::<4>()?;
    let (index, body) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let mut decoder = BodyDecoder::new(&parse_index(index, "seed").ok()?, "seed").ok()?;
    decoder.feed(body, &mut |_, _| ()).ok()?;
    decoder.finish().ok()
}

/// How many messages and frames there are, behind the byte by which the target cuts them.
fn dialogue(seed: &[u8]) -> Result<usize, WireError> {
    let mut splitter = Splitter::new(WireLimits { head_bytes: 512, body_bytes: 128, frame_bytes: 256 });
    splitter.buffer().extend_from_slice(seed.get(1..).unwrap_or_default());
    let mut items = 0;
    while splitter.next()?.is_some() {
        items += 1;
    }
    Ok(items)
}

fn page(bytes: &[u8]) -> Option<Page> {
    Page::parse(Bytes::copy_from_slice(bytes), &|| "seed".to_owned()).ok()
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
}

#[test]
fn every_seed_is_accepted() {
    if std::env::var_os("STREAMFS_WRITE_SEEDS").is_some() {
        write();
    }
    for (target, accepts) in TARGETS {
        let entries = fs::read_dir(folder(target)).unwrap_or_else(|e| panic!("fuzz/seeds/{target}: {e}"));
        let seeds: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed").path()).collect();
        assert!(!seeds.is_empty(), "fuzz/seeds/{target} is empty");
        for seed in seeds {
            assert!(accepts(&fs::read(&seed).expect("a seed")), "{} is of another format", seed.display());
        }
    }
}

/// Writes all seeds anew.
fn write() {
    for (target, seeds) in made() {
        let folder = folder(target);
        // A folder that is not there yet needs no emptying.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the checkout can be written");
        for (name, seed) in seeds {
            fs::write(folder.join(name), seed).expect("the checkout can be written");
        }
    }
}

/// A package's `head` without its tail, as the target reads it.
fn head(package: &Path) -> Vec<u8> {
    let mut bytes = fs::read(package.join("head")).expect("a head");
    bytes.truncate(bytes_before_tail(&bytes).expect("a head"));
    bytes
}

type Seeds = BTreeMap<&'static str, Vec<(String, Vec<u8>)>>;

fn made() -> Seeds {
    let mut seeds = Seeds::new();
    let mut add = |target, name: &str, seed: &[u8]| {
        seeds.entry(target).or_default().push((name.to_owned(), seed.to_vec()));
    };
    let user = Streamfs::new();
    let source = user.folder("source");
    sample(&source);
    let package = user.folder("content").join("app");
    user.publish(&source, package.to_str().expect("plain"), "1.0");
    let only = |folder: &str| {
        let entries = fs::read_dir(package.join(folder)).expect("a published package");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an object").path()).collect();
        paths.sort();
        fs::read(&paths[0]).expect("an object")
    };
    let descriptor = only("descriptors");
    add("descriptor", "small", &descriptor);
    let descriptor = Descriptor::parse(&descriptor, "published").expect("a descriptor");
    add("head_bundle", "one-version", &head(&package));
    let stored = fs::read(package.join(descriptor.packs[0].path().as_str())).expect("a pack");
    add("pack_index", "small", &stored);
    for (number, entry) in pack::parse(&stored, "published").expect("a pack").iter().enumerate() {
        let at = entry.offset as usize;
        let mut seed = entry.length.to_le_bytes().to_vec();
        seed.extend_from_slice(&stored[at..at + entry.stored as usize]);
        if seed.len() < 4_000 && number < 4 {
            add("block_decode", &format!("block-{number}"), &seed);
        }
    }
    for (kind, page) in pages(&package, &descriptor.tree) {
        add("tree_page", kind, &page);
    }
    let recording = user.home().join("recording");
    fs::write(&recording, PROFILE).expect("a folder of the test");
    add("profile", "small", PROFILE.as_bytes());
    let launched = user.folder("content").join("launched");
    let arguments = ["publish", "--version", "1.0", "--json", "--profile"].map(OsStr::new);
    user.ok(arguments.into_iter().chain([recording.as_os_str(), source.as_os_str(), launched.as_os_str()]));
    add("head_bundle", "with-a-tail", &head(&launched));
    let (descriptor, set) = launch_set(&launched);
    add("descriptor", "launch", &descriptor);
    let object = fs::read(launched.join(set.path().as_str())).expect("a launch object");
    let (index, body) = object.split_at(set.index.stored as usize);
    let index = decompress(index, set.index.length as usize, LAUNCH_INDEX_MAX_BYTES).expect("an index");
    add("launch_object", "small", &[&set.index.length.to_le_bytes(), &index[..], body].concat());
    add("config", "full", CONFIG.as_bytes());
    add("access_file", "server", ACCESS.as_bytes());
    add("access_file", "package", b"[read]\nusers = [\"ann\"]\ngroups = [\"Engineering\"]\nlogged_in = true\n");
    for (name, value) in
        [("basic", "Basic dGVzdDoxMjPCow=="), ("bearer", "Bearer mF_9.B5f-4.1JqM"), ("negotiate", "Negotiate YWJj")]
    {
        add("authorization", name, value.as_bytes());
    }
    add("certificate_subject", "escaped", br"O=x\,y,CN=J\C3\BCrgen+UID=7");
    for (name, text) in [("folder", "/srv/content/app@1.0"), ("web", "https://host:8443/content/app@stable")] {
        add("location", name, text.as_bytes());
    }
    seeds
}

/// A tree with every kind of page, of record and of block.
fn sample(root: &Path) {
    fs::write(root.join("text"), "text\n".repeat(400)).expect("a folder of the test");
    fs::write(root.join("raw"), [7, 1, 8, 2, 8]).expect("a folder of the test");
    fs::write(root.join("empty"), "").expect("a folder of the test");
    fs::hard_link(root.join("text"), root.join("another name")).expect("a folder of the test");
    std::os::unix::fs::symlink("text", root.join("link")).expect("a folder of the test");
    let attributes = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("raw"), "user.note", b"a value", attributes).expect("user attributes");
    fs::create_dir(root.join("folder")).expect("a folder of the test");
    for i in 0..250 {
        fs::write(root.join(format!("folder/file {i}")), format!("{i}")).expect("a folder of the test");
    }
    // Many blocks, and therefore extents beyond the record.
    let many: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    fs::write(root.join("many blocks"), many).expect("a folder of the test");
}

/// The only descriptor of a package and its only launch set.
fn launch_set(package: &Path) -> (Vec<u8>, LaunchRef) {
    let entry = fs::read_dir(package.join("descriptors")).expect("a published package").next().expect("a descriptor");
    let bytes = fs::read(entry.expect("a descriptor").path()).expect("a descriptor");
    let set = Descriptor::parse(&bytes, "published").expect("a descriptor").launch[0].clone();
    (bytes, set)
}

const PROFILE: &str = r#"{"streamfs_profile":1,"package":"launched","version":"1.0","name":"app"}
{"t":0,"lookup":"/text"}
{"t":10,"read":"/text","at":0,"bytes":2000}
{"t":20,"lookup":{"hex":"2fff"}}
{"t":30,"read":"/many blocks","at":8192,"bytes":4096}
{"t":40,"readlink":"/link"}
{"t":50,"xattrs":"/raw"}
{"t":60,"list":"/"}
"#;

/// One page of each kind.
fn pages(package: &Path, tree: &TreeRef) -> BTreeMap<&'static str, Vec<u8>> {
    let object = fs::read(package.join(tree.path().as_str())).expect("a tree object");
    let mut found = BTreeMap::new();
    let mut walk = |tree: &PageTree| {
        let (mut offset, mut sum) = (0, tree.root);
        for level in &tree.levels {
            let at = (level.offset + offset) as usize;
            let stored = &object[at..at + sum.stored as usize];
            let bytes = decompress(stored, sum.length as usize, PAGE_MAX_BYTES).expect("a page");
            let page = page(&bytes).expect("a page");
            let name = match page.kind() {
                PageKind::NodeLeaf => "node-leaf",
                PageKind::NodeIndex => "node-index",
                PageKind::ExtentLeaf => "extent-leaf",
                PageKind::ExtentIndex => "extent-index",
            };
            if let Some(entry) = page.entry(0) {
                (offset, sum) = (entry.offset, entry.sum);
            }
            found.insert(name, bytes);
        }
    };
    walk(&tree.nodes);
    tree.extents.as_ref().map(&mut walk);
    found
}

const CONFIG: &str = r#"[agent]
cache_dir = "/c"
cache_size = "2G"
keep_free = "100M"
memory = "8M"
poll_interval = "5s"
read_deadline = "20s"
stall_timeout = "3s"
connect_timeout = "1s"
idle_exit = "1m"

[publish]
keys_dir = "/k"

[[origin]]
url = "https://a.example/content"
ca_file = "/ca.pem"
credentials = { user = "u", password_file = "/p" }

[[origin]]
url = "https://b.example"
credentials = { token_file = "/t" }
"#;

const ACCESS: &str = r#"allow_in_clear = false
package_files = false

[cache]
ttl = "30s"
entries = 500

[failed_logins]
per_user = 5
per_address = 50
window = "10m"

[passwords]
file = "users"

[[token]]
issuer = "https://login.example/"
audience = ["streamfs"]
jwks_url = "https://login.example/keys"
algorithms = ["RS256", "EdDSA"]
user_claim = "preferred_username"
groups_claim = "realm_access.roles"
prefix = "oidc:"
leeway = "30s"

[[token]]
issuer = "ci"
audience = ["streamfs", "other"]
jwks_file = "/etc/ci.jwks"

[certificates]
user_from = "common_name"
directory_groups = true
[[certificates.user]]
subject = "CN=build,O=Example"
user = "build"
groups = ["release"]

[directory]
kind = "active-directory"
urls = ["ldaps://dc1.corp.example", "ldaps://dc2.corp.example:3269"]
ca_file = "corp-ca.pem"
base = "DC=corp,DC=example"
account = "streamfs@corp.example"
password_file = "directory.password"
deadline = "3s"

[status]
groups = ["Operators"]

[default.read]
logged_in = true

[[package]]
name = "team/*"
read = { groups = ["Team"] }
publish = { users = ["build"] }
"#;
