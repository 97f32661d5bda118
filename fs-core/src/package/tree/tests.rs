use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::build::*;
use super::page::*;
use super::walk::{self, Miss, Pages, Walked};
use super::*;
use crate::package::NodeId;
use crate::package::block::{self, BLOCK_MAX_BYTES, Extent};

struct Image {
    object: Vec<u8>,
    read: HashMap<u32, Arc<Page>>,
}

impl Pages for Image {
    fn page(&mut self, _: PageTreeKind, address: &PageAddress) -> Walked<Arc<Page>> {
        if let Some(page) = self.read.get(&address.number) {
            return Ok(page.clone());
        }
        let PageSum { stored, length, hash } = address.sum;
        let at = address.offset as usize;
        let raw = Bytes::from(self.object[at..at + stored as usize].to_vec());
        let decoded = block::decode(&raw, length as usize, &hash, BLOCK_MAX_BYTES, &|| "page".into())
            .and_then(|raw| Page::parse(raw, &|| "page".into()))
            .map_err(Miss::Failed)?;
        let page = Arc::new(decoded);
        self.read.insert(address.number, page.clone());
        Ok(page)
    }
}

fn node(name: &[u8], body: NewBody) -> NewNode {
    NewNode { name: name.to_vec(), mode: 0o644, mtime: (-5, 999_999_999), links: 1, body, xattrs: NewXattrs::None }
}

fn directory(name: &[u8], first_child: u64, children: u64) -> NewNode {
    node(name, NewBody::Directory { first_child, children, parent: NodeId(1) })
}

fn build(nodes: &[NewNode]) -> (TreeRef, TreeLayout, Image) {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = TreeBuilder::new(dir.path()).unwrap();
    nodes.iter().for_each(|n| builder.push(n).unwrap());
    let path = dir.path().join("tree");
    let tree = builder.finish(&mut File::create(&path).unwrap()).unwrap();
    let object = std::fs::read(path).unwrap();
    assert_eq!(tree.bytes, object.len() as u64);
    assert_eq!(tree.object, Hash::of(&object));
    let layout = TreeLayout::new(&tree).unwrap();
    (tree, layout, Image { object, read: HashMap::new() })
}

fn sorted_names(names: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|n| (name_hash(n), n.clone()));
    names
}

#[test]
fn every_name_of_a_large_directory_is_found_in_few_pages() {
    let names = sorted_names((0..100_000).map(|i| format!("file-{i:06}.dat").into_bytes()));
    let mut nodes = vec![directory(b"", 2, names.len() as u64)];
    nodes.extend(names.iter().map(|n| node(n, NewBody::File { size: 0, extents: vec![] })));
    let (tree, layout, mut image) = build(&nodes);
    assert_eq!(tree.nodes.levels.len(), 3, "two levels of indexes over about 500 leaves");
    for i in (0..names.len()).step_by(997) {
        image.read.clear();
        let found = walk::find(&layout, &mut image, NodeId(1), &names[i]).unwrap();
        assert_eq!(found, Some(NodeId(i as u64 + 2)));
        assert!(image.read.len() <= 8, "{} pages for one look-up", image.read.len());
        let absent = [&names[i][..], b"x"].concat();
        assert_eq!(walk::find(&layout, &mut image, NodeId(1), &absent).unwrap(), None);
    }
}

#[test]
fn names_that_differ_in_case_only_are_neighbours_and_told_apart() {
    let names = sorted_names([&b"Read"[..], b"READ", b"read", b"other", b"\xff\xfe"].iter().map(|n| n.to_vec()));
    let mut nodes = vec![directory(b"", 2, names.len() as u64)];
    nodes.extend(names.iter().map(|n| node(n, NewBody::Symlink { target: b"t".to_vec() })));
    let (_, layout, mut image) = build(&nodes);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(walk::find(&layout, &mut image, NodeId(1), name).unwrap(), Some(NodeId(i as u64 + 2)));
    }
    assert_eq!(walk::find(&layout, &mut image, NodeId(1), b"rEAD").unwrap(), None);
}

fn extent(i: u64, offset: u64, length: u32) -> Extent {
    Extent { file_offset: offset, length, pack: 0, pack_offset: i * 10, stored: 10, hash: Hash::of(&i.to_le_bytes()) }
}

#[test]
fn extents_of_large_files_are_found_by_position() {
    // Two large files, the first beginning with a hole, so that keys of one lie before and after the other's.
    let far = 1u64 << 33;
    let first: Vec<_> = (0..2_000).map(|i| extent(i, far + i * 65_536, 65_536)).collect();
    let second: Vec<_> = (0..700).map(|i| extent(i + 9_000, i * 1_000, 900)).collect();
    let sizes = (far + 2_000 * 65_536, 700_000);
    let (_, layout, mut image) = build(&[
        directory(b"", 2, 2),
        node(b"a", NewBody::File { size: sizes.0, extents: first.clone() }),
        node(b"b", NewBody::File { size: sizes.1, extents: second.clone() }),
    ]);
    for (number, all, size) in [(2, &first, sizes.0), (3, &second, sizes.1)] {
        for (offset, end) in
            [(0, u64::MAX), (0, 1), (far, far + 1), (far + 65_535, far + 65_537), (950, 1_001), (5, 90_000)]
        {
            let wanted: Vec<_> = all.iter().filter(|e| e.file_offset < end && e.file_end() > offset).copied().collect();
            let got = walk::extents(&layout, &mut image, NodeId(number), offset, end).unwrap();
            assert_eq!(got, (size, if offset < size { wanted } else { vec![] }), "{number} {offset} {end}");
        }
    }
}

#[test]
fn a_tree_that_names_children_before_their_directory_is_refused() {
    let (_, layout, mut image) = build(&[directory(b"", 2, 1), directory(b"loop", 1, 2)]);
    let e = walk::find(&layout, &mut image, NodeId(2), b"loop").unwrap_err();
    assert!(matches!(e, Miss::Failed(Error::Damaged { .. })), "{e:?}");
}

#[test]
fn records_return_as_they_went() {
    let long = NewNode {
        name: vec![b'n'; 255],
        mode: 0o4755,
        mtime: (i64::MIN, 0),
        links: 7,
        body: NewBody::Symlink { target: vec![b't'; 4095] },
        xattrs: NewXattrs::encode(&[(b"user.a".to_vec(), vec![0; 900])]).unwrap(),
    };
    let mut root = directory(b"", 2, 1);
    root.xattrs = NewXattrs::Block(extent(1, 0, 5_000));
    let (_, layout, mut image) = build(&[root, long]);
    let page = walk::node_leaf(&layout, &mut image, NodeId(2)).unwrap();
    let got = page.node(NodeId(2)).unwrap();
    assert_eq!((got.mode, got.mtime_seconds, got.links, got.name.len()), (0o4755, i64::MIN, 7, 255));
    assert_eq!(got.body, NodeBody::Symlink { target: &[b't'; 4095] });
    let XattrPlace::Inline(raw) = got.xattrs else { panic!("{:?}", got.xattrs) };
    let attributes = decode_xattrs(&Bytes::copy_from_slice(raw)).unwrap();
    assert_eq!(attributes, [(Bytes::from_static(b"user.a"), Bytes::from(vec![0; 900]))]);
    let root = page.node(NodeId(1)).unwrap();
    assert_eq!(root.xattrs, XattrPlace::Block(extent(1, 0, 5_000)));
}

#[test]
fn no_flipped_bit_makes_a_page_panic() {
    let nodes = [
        directory(b"", 2, 3),
        node(b"a", NewBody::File { size: 300, extents: vec![extent(1, 0, 100), extent(2, 200, 100)] }),
        node(b"b", NewBody::Symlink { target: b"a".to_vec() }),
        node(b"c", NewBody::Alias(NodeId(2))),
    ];
    let (_, layout, mut image) = build(&nodes);
    let page = walk::node_leaf(&layout, &mut image, NodeId(1)).unwrap();
    for at in 0..page.bytes().len() {
        for bit in 0..8 {
            let mut bad = page.bytes().to_vec();
            bad[at] ^= 1 << bit;
            if let Ok(page) = Page::parse(bad.into(), &|| "p".into()) {
                (0..page.count()).for_each(|i| assert!(page.record(i).is_some() || page.kind() != PageKind::NodeLeaf));
            }
        }
    }
}
