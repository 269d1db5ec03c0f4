//! EROFS on disk, as far as we write it (Linux, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`).
//!
//! Numbers are little-endian. An inode is named by its offset divided by 32.

/// Block size in bytes, and its logarithm.
pub(super) const BLOCK: usize = 512;
pub(super) const BLOCK_BITS: u8 = 9;

/// Where the superblock starts, and how long it is.
pub(super) const SUPERBLOCK_AT: usize = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 128;

/// The device table is counted in slots of this many bytes; ours follows the superblock.
pub(super) const SLOT: usize = 128;
pub(super) const DEVICE_AT: usize = SUPERBLOCK_AT + SUPERBLOCK_LEN;

/// Where the first inode, the root, is: the next whole block.
pub(super) const INODES_AT: usize = (DEVICE_AT + SLOT).next_multiple_of(BLOCK);

/// What inode numbers count.
pub(super) const INODE_UNIT: usize = 32;
pub(super) const INODE_LEN: usize = 64;

pub(super) const CHUNK_INDEX_LEN: usize = 8;
pub(super) const DIRENT_LEN: usize = 12;
pub(super) const XATTR_HEADER_LEN: usize = 12;
pub(super) const XATTR_ENTRY_LEN: usize = 4;

/// The largest chunk is this many times a block, as a logarithm.
pub(super) const MAX_CHUNK_BITS: u32 = 31;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;
const CHUNK_INDEXES: u32 = 0x20;

/// Where the volume's UUID is.
pub(super) const UUID_AT: usize = SUPERBLOCK_AT + 48;
pub(super) const UUID_LEN: usize = 16;

pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut out = [0; SUPERBLOCK_LEN];
        put(&mut out, 0, &MAGIC.to_le_bytes());
        put(&mut out, 8, &COMPAT_MTIME.to_le_bytes());
        out[12] = BLOCK_BITS;
        put(&mut out, 14, &self.root.to_le_bytes());
        put(&mut out, 16, &self.inodes.to_le_bytes());
        put(&mut out, 36, &self.blocks.to_le_bytes());
        // Inodes are counted from the start of the image (40), and there are no shared xattrs (44).
        put(&mut out, 80, &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        // One device more, and where its slot is.
        put(&mut out, 86, &1_u16.to_le_bytes());
        put(&mut out, 88, &((DEVICE_AT / SLOT) as u16).to_le_bytes());
        out
    }
}

/// The device table: one device of so many blocks, whose path is given when it is mounted.
pub(super) fn device_slot(blocks: u32) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    put(&mut out, 64, &blocks.to_le_bytes());
    out
}

/// Where an inode's data is.
pub(super) enum Layout {
    /// In whole blocks from this one on.
    Plain { block: u32 },
    /// Directly behind the inode and its xattrs, within one block.
    Inline,
    /// In chunks of `BLOCK << bits` bytes, whose indexes follow the inode and its xattrs.
    Chunks { bits: u32 },
    /// There is none; for devices the number.
    Special { device: u32 },
}

pub(super) struct Inode {
    pub(super) layout: Layout,
    // Length of the xattrs in bytes, header included.
    pub(super) xattrs: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) links: u32,
}

impl Inode {
    /// The extended form: the other one has no time of its own.
    pub(super) fn encode(&self) -> [u8; INODE_LEN] {
        let (layout, data) = match self.layout {
            Layout::Plain { block } => (0, block),
            Layout::Special { device } => (0, device),
            Layout::Inline => (2, 0),
            Layout::Chunks { bits } => (4, bits | CHUNK_INDEXES),
        };
        // The header counts as one, the rest by its fours of bytes.
        let xattrs = match self.xattrs {
            0 => 0,
            length => (1 + (length - XATTR_HEADER_LEN) / 4) as u16,
        };
        let mut out = [0; INODE_LEN];
        put(&mut out, 0, &(1_u16 | layout << 1).to_le_bytes());
        put(&mut out, 2, &xattrs.to_le_bytes());
        put(&mut out, 4, &self.mode.to_le_bytes());
        put(&mut out, 8, &self.size.to_le_bytes());
        put(&mut out, 16, &data.to_le_bytes());
        put(&mut out, 20, &self.number.to_le_bytes());
        put(&mut out, 24, &self.uid.to_le_bytes());
        put(&mut out, 28, &self.gid.to_le_bytes());
        put(&mut out, 32, &self.mtime.to_le_bytes());
        put(&mut out, 44, &self.links.to_le_bytes());
        out
    }
}

/// A chunk that starts at a block of our one device.
pub(super) fn chunk_index(block: u32) -> [u8; CHUNK_INDEX_LEN] {
    let mut out = [0; CHUNK_INDEX_LEN];
    put(&mut out, 2, &1_u16.to_le_bytes());
    put(&mut out, 4, &block.to_le_bytes());
    out
}

/// A directory entry whose name starts at `name` within its block.
pub(super) fn dirent(inode: u64, name: usize, file_type: u8) -> [u8; DIRENT_LEN] {
    let mut out = [0; DIRENT_LEN];
    put(&mut out, 0, &inode.to_le_bytes());
    put(&mut out, 8, &(name as u16).to_le_bytes());
    out[10] = file_type;
    out
}

/// What stands for the beginning of an xattr's name, and the rest; `None` if EROFS has no place for the name.
pub(super) fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let cases: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => cases
            .into_iter()
            .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
            .filter(|(_, rest)| (1..=255).contains(&rest.len())),
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}
