//! A layer's index becomes an EROFS image.
//!
//! Twice over the entries: first every inode gets its place, since directories name inodes by their place; then all is
//! written. Inodes are in the order of the index; the blocks of large directories and long links come last.

use std::collections::{BTreeMap, HashMap};

use bstr::{BStr, BString, ByteSlice};

use super::format::{
    BLOCK, CHUNK_INDEX_LEN, DEVICE_AT, DIRENT_LEN, INODE_LEN, INODE_UNIT, INODES_AT, Inode, Layout,
    MAX_CHUNK_BITS, SUPERBLOCK_AT, Superblock, UUID_AT, UUID_LEN, XATTR_ENTRY_LEN, XATTR_HEADER_LEN,
    chunk_index, device_slot, dirent, xattr_name,
};
use crate::layer::index::parent;
use crate::layer::{Entry, Kind, LayerIndex};

/// A layer that has no EROFS image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not make an EROFS image: {path:?} {problem}")]
pub struct ErofsError {
    /// The entry.
    pub path: BString,
    /// What EROFS cannot hold.
    pub problem: &'static str,
}

/// What overlayfs reads as "nothing of the lower layers is seen in this directory".
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Makes the image of a layer: to be mounted with the layer's tar as its one extra device, below an overlayfs of root.
///
/// Deletions are character devices 0:0 and opaque directories carry overlayfs' attribute.
pub fn image(layer: &LayerIndex) -> Result<Vec<u8>, ErofsError> {
    let tar_blocks = u32::try_from(layer.tar_size().div_ceil(BLOCK as u64))
        .map_err(|_| ErofsError { path: BString::default(), problem: "is in a tar of over 2 TiB" })?;
    let mut image = Image { inodes: Vec::new(), by_entry: Vec::new(), out: Vec::new() };
    image.collect(layer)?;
    let end = image.place();
    image.write(end)?;

    let root = u16::try_from(image.inodes[0].at / INODE_UNIT).expect("the root comes first");
    let blocks = u32::try_from(image.out.len() / BLOCK).map_err(|_| too_large(b""))?;
    let superblock = Superblock { root, inodes: image.inodes.len() as u64, blocks };
    image.put(SUPERBLOCK_AT, &superblock.encode());
    image.put(DEVICE_AT, &device_slot(tar_blocks));
    let checksum = checksum(&image.out);
    image.put(UUID_AT, &checksum);
    Ok(image.out)
}

/// Whether these bytes are an image as [`image`] made it: a crash of the machine may have left others in its file.
pub fn is_intact(image: &[u8]) -> bool {
    image.len() >= UUID_AT + UUID_LEN && image[UUID_AT..][..UUID_LEN] == checksum(image)
}

/// The hash of all but the UUID, which holds it.
fn checksum(image: &[u8]) -> [u8; UUID_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&image[..UUID_AT]).update(&image[UUID_AT + UUID_LEN..]);
    let mut short = [0; UUID_LEN];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..UUID_LEN]);
    short
}

struct Image<'a> {
    // The root first.
    inodes: Vec<Node<'a>>,
    // The inode of each entry of the index: hard links share it.
    by_entry: Vec<usize>,
    out: Vec<u8>,
}

struct Node<'a> {
    entry: &'a Entry,
    // Header included; may be empty.
    xattrs: Vec<u8>,
    // What follows the inode in the image itself: a link's target or a directory.
    data: Body<'a>,
    links: u32,
    // Of a directory: the one above it.
    parent: usize,
    // Where it is, once it has a place.
    at: usize,
    // Where its blocks are, if its data does not follow it.
    block: usize,
}

enum Body<'a> {
    None,
    Link(&'a [u8]),
    Directory { names: Vec<(&'a [u8], usize)>, size: usize },
}

impl<'a> Image<'a> {
    /// Makes an inode of every entry and finds out what is in which directory.
    fn collect(&mut self, layer: &'a LayerIndex) -> Result<(), ErofsError> {
        let mut directories: HashMap<&BStr, usize> = HashMap::new();
        for entry in layer.entries() {
            let fail = |problem| Err(ErofsError { path: entry.path.clone(), problem });
            let above = parent(&entry.path).map(|dir| directories[dir.as_bstr()]);
            let inode = if let Kind::Hardlink { target } = &entry.kind {
                let Ok(at) = layer.position(target) else {
                    return fail("is a hard link to a file of another layer");
                };
                let inode = self.by_entry[at];
                self.inodes[inode].links += 1;
                inode
            } else {
                let data = match &entry.kind {
                    Kind::Symlink { target } => Body::Link(target),
                    Kind::Directory { .. } => Body::Directory { names: Vec::new(), size: 0 },
                    _ => Body::None,
                };
                let inode = self.inodes.len();
                let links = if entry.kind.is_dir() { 2 } else { 1 };
                let xattrs = encode_xattrs(entry)?;
                self.inodes.push(Node {
                    entry,
                    xattrs,
                    data,
                    links,
                    parent: above.unwrap_or(inode),
                    at: 0,
                    block: 0,
                });
                inode
            };
            self.by_entry.push(inode);
            if entry.kind.is_dir() {
                directories.insert(entry.path.as_bstr(), inode);
            }
            let Some(above) = above else { continue };
            let dir = parent(&entry.path).map_or(0, |dir| if dir.is_empty() { 0 } else { dir.len() + 1 });
            if entry.kind.is_dir() {
                self.inodes[above].links += 1;
            }
            if let Body::Directory { names, .. } = &mut self.inodes[above].data {
                names.push((&entry.path[dir..], inode));
            }
        }
        for (inode, node) in self.inodes.iter_mut().enumerate() {
            let parent = node.parent;
            if let Body::Directory { names, size } = &mut node.data {
                names.extend([(&b"."[..], inode), (b"..", parent)]);
                names.sort_unstable_by_key(|(name, _)| *name);
                *size = directory_size(names);
            }
        }
        Ok(())
    }

    /// Gives every inode its place and gives the length of the image.
    fn place(&mut self) -> usize {
        let mut at = INODES_AT;
        for node in &mut self.inodes {
            let head = INODE_LEN + node.xattrs.len();
            let inline = node.inline_len();
            // What is inline may not lie in two blocks.
            while inline > 0 && (at + head) % BLOCK + inline > BLOCK {
                at += INODE_UNIT;
            }
            node.at = at;
            at += match node.chunk_bits() {
                Some(bits) => {
                    (at + head).next_multiple_of(CHUNK_INDEX_LEN) - at + node.chunks(bits) * CHUNK_INDEX_LEN
                }
                None => head + inline,
            };
            at = at.next_multiple_of(INODE_UNIT);
        }
        at = at.next_multiple_of(BLOCK);
        for node in &mut self.inodes {
            let length = node.data.len();
            if length > node.inline_len() {
                node.block = at / BLOCK;
                at += length.next_multiple_of(BLOCK);
            }
        }
        at
    }

    fn write(&mut self, end: usize) -> Result<(), ErofsError> {
        self.out = vec![0; end];
        for inode in 0..self.inodes.len() {
            let node = &self.inodes[inode];
            let (at, head, entry) = (node.at, INODE_LEN + node.xattrs.len(), node.entry);
            let inline = node.inline_len();
            let layout = match (&entry.kind, node.chunk_bits()) {
                (_, Some(bits)) => Layout::Chunks { bits },
                (Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }, _) => {
                    Layout::Special { device: device_number(entry, *major, *minor)? }
                }
                (_, None) if inline > 0 => Layout::Inline,
                (_, None) => {
                    Layout::Plain { block: u32::try_from(node.block).map_err(|_| too_large(&entry.path))? }
                }
            };
            let encoded = Inode {
                layout,
                xattrs: node.xattrs.len(),
                mode: file_type(&entry.kind).0 | entry.mode,
                size: node.size(),
                number: u32::try_from(inode + 1).map_err(|_| too_large(&entry.path))?,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                links: node.links,
            }
            .encode();
            let data_at = if inline > 0 { at + head } else { node.block * BLOCK };
            let xattrs = std::mem::take(&mut self.inodes[inode].xattrs);
            self.put(at, &encoded);
            self.put(at + INODE_LEN, &xattrs);

            let node = &self.inodes[inode];
            match &node.data {
                Body::None => {}
                Body::Link(target) => {
                    let target = *target;
                    self.put(data_at, target);
                }
                Body::Directory { names, .. } => {
                    let blocks = directory_blocks(names);
                    let mut bytes = Vec::new();
                    for names in blocks {
                        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
                        self.encode_names(names, &mut bytes);
                    }
                    self.put(data_at, &bytes);
                }
            }
            if let (Kind::File { offset, .. }, Some(bits)) = (&entry.kind, self.inodes[inode].chunk_bits()) {
                let first = (at + head).next_multiple_of(CHUNK_INDEX_LEN);
                for chunk in 0..self.inodes[inode].chunks(bits) {
                    let block = offset / BLOCK as u64 + ((chunk as u64) << bits);
                    let block = u32::try_from(block).expect("the tar has fewer blocks");
                    self.put(first + chunk * CHUNK_INDEX_LEN, &chunk_index(block));
                }
            }
        }
        Ok(())
    }

    /// One block of a directory: entries first, then their names.
    fn encode_names(&self, names: &[(&[u8], usize)], out: &mut Vec<u8>) {
        let mut name_at = names.len() * DIRENT_LEN;
        for (name, inode) in names {
            let node = &self.inodes[*inode];
            let number = (node.at / INODE_UNIT) as u64;
            out.extend_from_slice(&dirent(number, name_at, file_type(&node.entry.kind).1));
            name_at += name.len();
        }
        for (name, _) in names {
            out.extend_from_slice(name);
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.out[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl Node<'_> {
    /// How many bytes follow the inode in its block; all of its data or none.
    fn inline_len(&self) -> usize {
        let length = self.data.len();
        // The place behind the inode and its xattrs can be moved by 32 bytes at a time.
        let waste = (INODE_LEN + self.xattrs.len()) % INODE_UNIT;
        if length + waste <= BLOCK { length } else { 0 }
    }

    /// The size of chunks, for files with bytes: one chunk if it can be.
    fn chunk_bits(&self) -> Option<u32> {
        let Kind::File { size: size @ 1.., .. } = self.entry.kind else { return None };
        let blocks = size.div_ceil(BLOCK as u64);
        Some(blocks.next_power_of_two().trailing_zeros().min(MAX_CHUNK_BITS))
    }

    fn chunks(&self, bits: u32) -> usize {
        let blocks = self.size().div_ceil(BLOCK as u64);
        usize::try_from(blocks.div_ceil(1 << bits)).expect("few chunks: they are large")
    }

    fn size(&self) -> u64 {
        match self.entry.kind {
            Kind::File { size, .. } => size,
            _ => self.data.len() as u64,
        }
    }
}

impl Body<'_> {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Link(target) => target.len(),
            Self::Directory { size, .. } => *size,
        }
    }
}

/// Deals names out to blocks, in order.
fn directory_blocks<'n, 'a>(names: &'n [(&'a [u8], usize)]) -> Vec<&'n [(&'a [u8], usize)]> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (at, (name, _)) in names.iter().enumerate() {
        let length = DIRENT_LEN + name.len();
        if used + length > BLOCK {
            blocks.push(&names[start..at]);
            (start, used) = (at, 0);
        }
        used += length;
    }
    blocks.push(&names[start..]);
    blocks
}

fn directory_size(names: &[(&[u8], usize)]) -> usize {
    let blocks = directory_blocks(names);
    let last = blocks.last().map_or(0, |names| names.iter().map(|(name, _)| DIRENT_LEN + name.len()).sum());
    (blocks.len() - 1) * BLOCK + last
}

/// Header and entries; nothing at all if there are none.
fn encode_xattrs(entry: &Entry) -> Result<Vec<u8>, ErofsError> {
    let mut xattrs: BTreeMap<&[u8], &[u8]> =
        entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    if let Kind::Directory { opaque: true, .. } = entry.kind {
        xattrs.insert(OPAQUE.0, OPAQUE.1);
    }
    let mut out = vec![0; XATTR_HEADER_LEN];
    for (name, value) in xattrs {
        // The kernel knows no other names either: a file in a directory could not have it.
        let Some((prefix, rest)) = xattr_name(name) else { continue };
        let size = u16::try_from(value.len()).map_err(|_| ErofsError {
            path: entry.path.clone(),
            problem: "has an extended attribute of 64 KiB or more",
        })?;
        out.extend_from_slice(&[rest.len() as u8, prefix]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(XATTR_ENTRY_LEN), 0);
    }
    match out.len() {
        XATTR_HEADER_LEN => Ok(Vec::new()),
        length if (length - XATTR_HEADER_LEN) / 4 < usize::from(u16::MAX) => Ok(out),
        _ => Err(ErofsError { path: entry.path.clone(), problem: "has over 256 KiB of extended attributes" }),
    }
}

/// The bits of the mode and the number in directories.
fn file_type(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File { .. } | Kind::Hardlink { .. } => (0o100_000, 1),
        Kind::Directory { .. } => (0o040_000, 2),
        Kind::CharDevice { .. } | Kind::Whiteout => (0o020_000, 3),
        Kind::BlockDevice { .. } => (0o060_000, 4),
        Kind::Fifo => (0o010_000, 5),
        Kind::Symlink { .. } => (0o120_000, 7),
    }
}

/// A device number in the form that Linux has for 32 bits.
fn device_number(entry: &Entry, major: u32, minor: u32) -> Result<u32, ErofsError> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(ErofsError {
            path: entry.path.clone(),
            problem: "has a device number that Linux has not",
        });
    }
    Ok((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

fn too_large(path: &[u8]) -> ErofsError {
    ErofsError { path: path.into(), problem: "makes the image too large" }
}
