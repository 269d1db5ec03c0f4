//! Entries become a layer: a tar with the same bytes for the same entries on any machine, and its index in the same pass.
//!
//! The tar is ustar with PAX records only where a field does not fit: long names, large numbers, extended attributes.
//! User and group names, access and change times never appear, and directories that are only implied are not written.

use std::io::{self, Read, Write};

use bstr::{BString, ByteSlice};

use super::archive::normalise;
use super::aside::{Aside, Spawn};
use super::entry::{Entry, Kind, SYMLINK_MODE};
use super::header::{BLOCK, Fields, MAX_OCTAL_8, MAX_OCTAL_12};
use super::index::{IndexError, LayerIndex, is_below, parent, path_cmp};
use super::{pax, whiteout};
use crate::digest::{ContentDigest, DiffId};

/// Where a file's bytes come from, and what is known of them.
#[expect(missing_debug_implementations, reason = "readers have none")]
pub enum Data<'a> {
    /// There are none: the entry is no file, or an empty one.
    None,
    /// The entry's content digest is not known yet; it is worked out.
    New(&'a mut (dyn Read + Send)),
    /// The bytes must hash to the entry's content digest: they may have changed since it was made.
    Expected(&'a mut (dyn Read + Send)),
    /// The bytes have the entry's content digest: they come from a layer, which never changes.
    Known(&'a mut (dyn Read + Send)),
}

/// An entry that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The writer failed.
    #[error("could not write layer tar: {0}")]
    Write(#[source] io::Error),
    /// A file's bytes could not be read.
    #[error("could not read {path:?} into the layer: {source}")]
    Read {
        /// The file.
        path: BString,
        /// Why.
        source: io::Error,
    },
    /// A file has another length than its entry.
    #[error(
        "could not write {path:?} to the layer: it changed while it was read, from {expected} bytes to {actual}"
    )]
    Size {
        /// The file.
        path: BString,
        /// Its length when it was looked at.
        expected: u64,
        /// Its length when it was read, at least.
        actual: u64,
    },
    /// A file has other bytes than its entry says.
    #[error("could not write {path:?} to the layer: it changed after it was hashed")]
    Changed {
        /// The file.
        path: BString,
    },
    /// The entry has no place in a layer.
    #[error("could not write {path:?} to the layer: {problem}")]
    Entry {
        /// Its path.
        path: BString,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl From<IndexError> for WriteError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Entry { path, problem } => Self::Entry { path, problem },
            _ => unreachable!("only reading an index gives other errors"),
        }
    }
}

/// How many bytes are hashed and written at once.
pub const BUFFER: usize = 1 << 19;

/// Writes a layer, entry by entry in the order of [`path_cmp`].
pub struct LayerWriter<W> {
    out: W,
    // `filled` bytes that are not yet hashed and written.
    buffer: Vec<u8>,
    filled: usize,
    sha256: Aside,
    // Where the next byte goes.
    position: u64,
    entries: Vec<Entry>,
    // Indexes of the directories from the root down to the last entry.
    ancestors: Vec<usize>,
}

impl<W> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter")
            .field("position", &self.position)
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl<W: Write + Send> LayerWriter<W> {
    /// Starts a layer that is written to `out`, in large pieces.
    pub fn new(out: W) -> Self {
        Self::with(out, drop)
    }

    /// The same for a caller who has threads: with `spawn`, what was written is hashed while more is read.
    pub fn with(out: W, spawn: Spawn) -> Self {
        Self {
            out,
            buffer: vec![0; BUFFER],
            filled: 0,
            sha256: Aside::new(spawn),
            position: 0,
            entries: vec![Entry::implied(b"")],
            ancestors: vec![0],
        }
    }

    /// Adds an entry, which must come behind all before it. Missing parent directories are implied.
    ///
    /// Offsets need not be filled in, and a file's content digest only as `data` says. A hard link to a file of this
    /// layer must come behind it and takes over its attributes. Extended attributes that have no place in a layer
    /// ([`whiteout::is_unwanted_xattr`]) are left out. The writer cannot be used after an error.
    pub fn append(&mut self, mut entry: Entry, data: Data<'_>) -> Result<(), WriteError> {
        self.check_and_settle(&mut entry)?;
        if entry.path.is_empty() {
            self.entries.clear();
            self.ancestors.clear();
        } else {
            self.imply_parents(&entry)?;
        }
        match (&mut entry.kind, data) {
            (Kind::Directory { opaque, implied }, Data::None) => {
                let (opaque, implied) = (*opaque, *implied);
                if !implied {
                    self.write_header(&entry)?;
                }
                if opaque {
                    self.write_deletion(&entry.path, whiteout::OPAQUE)?;
                }
                self.ancestors.push(self.entries.len());
            }
            (Kind::Whiteout, Data::None) => {
                let dir = parent(&entry.path).unwrap_or_default();
                let name = entry.path[dir.len()..].strip_prefix(b"/").unwrap_or(&entry.path[dir.len()..]);
                let name = [whiteout::PREFIX, name].concat();
                self.write_deletion(dir, &name)?;
            }
            (Kind::File { size: 0, .. }, Data::None) => {
                self.write_header(&entry)?;
                let end = self.position;
                if let Kind::File { offset, content, .. } = &mut entry.kind {
                    *offset = end;
                    *content = ContentDigest::of(b"");
                }
            }
            (Kind::File { .. }, data @ (Data::New(_) | Data::Expected(_) | Data::Known(_))) => {
                self.write_header(&entry)?;
                self.write_data(&mut entry, data)?;
            }
            (Kind::File { .. }, Data::None) => return Err(problem(&entry, "its bytes are missing")),
            (_, Data::None) => self.write_header(&entry)?,
            (_, _) => return Err(problem(&entry, "only files have bytes")),
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Ends the archive and gives the index.
    pub fn finish(mut self) -> Result<(W, LayerIndex), WriteError> {
        self.put(&[0; 2 * BLOCK])?;
        let rest = &self.buffer[..self.filled];
        self.out.write_all(rest).and_then(|()| self.out.flush()).map_err(WriteError::Write)?;
        let diff_id = DiffId(self.sha256.finish(rest));
        let index = LayerIndex::new(self.entries, diff_id, self.position)?;
        Ok((self.out, index))
    }

    /// Refuses what cannot be read back, and fills in what follows from the rest.
    fn check_and_settle(&mut self, entry: &mut Entry) -> Result<(), WriteError> {
        match normalise(&entry.path) {
            Ok(path) if path == entry.path => {}
            Ok(_) => return Err(problem(entry, "the path is not in normal form")),
            Err(what) => return Err(problem(entry, what)),
        }
        let name = entry.path.rsplit_str("/").next().unwrap_or_default();
        if name.starts_with(whiteout::PREFIX) {
            return Err(problem(entry, "names that begin with .wh. mean deletions in a layer"));
        }
        let last = self.entries.last().expect("the root is always there");
        let replaces_root = entry.path.is_empty() && self.entries.len() == 1 && self.position == 0;
        if !replaces_root && path_cmp(&last.path, &entry.path).is_ge() {
            return Err(problem(entry, "not in order"));
        }
        if entry.mode > 0o7777 {
            return Err(problem(entry, "the mode has more than permission bits"));
        }
        entry.xattrs.retain(|name, _| !whiteout::is_unwanted_xattr(name));
        if entry.xattrs.keys().any(|name| name.is_empty() || name.find_byteset(b"=\0").is_some()) {
            return Err(problem(entry, "the name of an extended attribute cannot be written"));
        }
        // The most negative number has no positive one to be written with.
        entry.mtime = entry.mtime.max(-i64::MAX);
        match &entry.kind {
            Kind::Whiteout | Kind::Directory { implied: true, .. } => {
                let directory = entry.kind.is_dir();
                let Entry { path, kind, .. } = std::mem::replace(entry, Entry::implied(b""));
                *entry = Entry { path, kind, mode: if directory { 0o755 } else { 0 }, ..Entry::implied(b"") };
            }
            Kind::Symlink { target } if target.is_empty() || target.contains(&0) || target.len() > 4095 => {
                return Err(problem(entry, "the symbolic link's target cannot be written"));
            }
            Kind::Symlink { .. } => entry.mode = SYMLINK_MODE,
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Err(problem(entry, "a character device 0:0 is overlayfs' mark of a deletion"));
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
                if u64::from(*major.max(minor)) > MAX_OCTAL_8 =>
            {
                return Err(problem(entry, "the device number is out of range"));
            }
            Kind::Hardlink { target } => {
                if target.is_empty() || !normalise(target).is_ok_and(|normal| normal == *target) {
                    return Err(problem(entry, "the link's target is not in normal form"));
                }
                if let Ok(at) = self.entries.binary_search_by(|other| path_cmp(&other.path, target)) {
                    let file = &self.entries[at];
                    (entry.mode, entry.uid, entry.gid, entry.mtime) =
                        (file.mode, file.uid, file.gid, file.mtime);
                    entry.xattrs.clone_from(&file.xattrs);
                }
            }
            _ => {}
        }
        if entry.path.is_empty() && !entry.kind.is_dir() {
            return Err(problem(entry, "only a directory can be the root"));
        }
        Ok(())
    }

    fn imply_parents(&mut self, entry: &Entry) -> Result<(), WriteError> {
        while let Some(at) = self.ancestors.last()
            && !is_below(&entry.path, &self.entries[*at].path)
        {
            self.ancestors.pop();
        }
        let above = self.ancestors.last().map_or(0, |at| self.entries[*at].path.len());
        let dir = parent(&entry.path).unwrap_or_default();
        if self.entries.last().is_some_and(|last| is_below(&entry.path, &last.path) && !last.kind.is_dir()) {
            return Err(problem(entry, "its parent is not a directory of the layer"));
        }
        for (at, _) in entry.path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > above) {
            debug_assert!(at <= dir.len());
            self.ancestors.push(self.entries.len());
            self.entries.push(Entry::implied(&entry.path[..at]));
        }
        Ok(())
    }

    fn write_header(&mut self, entry: &Entry) -> Result<(), WriteError> {
        let mut name = entry.path.to_vec();
        if entry.kind.is_dir() {
            name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
        }
        let (typeflag, link, size, device) = match &entry.kind {
            Kind::File { size, .. } => (b'0', &b""[..], *size, None),
            Kind::Hardlink { target } => (b'1', &target[..], 0, None),
            Kind::Symlink { target } => (b'2', &target[..], 0, None),
            Kind::CharDevice { major, minor } => (b'3', &b""[..], 0, Some((*major, *minor))),
            Kind::BlockDevice { major, minor } => (b'4', &b""[..], 0, Some((*major, *minor))),
            Kind::Directory { .. } => (b'5', &b""[..], 0, None),
            Kind::Fifo => (b'6', &b""[..], 0, None),
            Kind::Whiteout => return Err(problem(entry, "deletions have no header of their own")),
        };

        let mut records = Vec::new();
        for (name, value) in &entry.xattrs {
            pax::push(&mut records, &[pax::XATTR, name].concat(), value);
        }
        let mut number = |key: &str, value: u64, max| {
            if value <= max {
                return value;
            }
            pax::push(&mut records, key.as_bytes(), value.to_string().as_bytes());
            0
        };
        let gid = number("gid", entry.gid.into(), MAX_OCTAL_8);
        let uid = number("uid", entry.uid.into(), MAX_OCTAL_8);
        let size = number("size", size, MAX_OCTAL_12);
        let mtime = match u64::try_from(entry.mtime) {
            Ok(mtime) if mtime <= MAX_OCTAL_12 => mtime,
            _ => {
                pax::push(&mut records, b"mtime", entry.mtime.to_string().as_bytes());
                0
            }
        };
        let link = if link.len() <= 100 {
            link
        } else {
            pax::push(&mut records, b"linkpath", link);
            &link[..100]
        };
        let (prefix, short) = split_name(&name).unwrap_or_else(|| {
            pax::push(&mut records, b"path", &name);
            (b"", &name[..100])
        });

        if records.len() as u64 > pax::MAX_LEN {
            return Err(problem(entry, "its extended attributes are longer than 1 MiB"));
        }
        if !records.is_empty() {
            let header = Fields {
                prefix: b"",
                name: b"PaxHeaders.0",
                link: b"",
                typeflag: b'x',
                mode: 0o644,
                uid: 0,
                gid: 0,
                size: records.len() as u64,
                mtime: 0,
                device: None,
            };
            self.put(&header.encode())?;
            self.put(&records)?;
            self.pad()?;
        }
        let small = |number| u32::try_from(number).expect("it fits an octal field of 8 bytes");
        let header = Fields {
            prefix,
            name: short,
            link,
            typeflag,
            mode: entry.mode,
            uid: small(uid),
            gid: small(gid),
            size,
            mtime,
            device,
        };
        self.put(&header.encode())
    }

    /// Writes the empty file that means a deletion. It has no attributes: nobody reads them.
    fn write_deletion(&mut self, dir: &[u8], name: &[u8]) -> Result<(), WriteError> {
        let path = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
        let kind = Kind::File { size: 0, offset: 0, content: ContentDigest([0; 32]) };
        self.write_header(&Entry { path: path.into(), kind, mode: 0, ..Entry::implied(b"") })
    }

    /// Copies exactly the bytes that the entry promises.
    fn write_data(&mut self, entry: &mut Entry, data: Data<'_>) -> Result<(), WriteError> {
        let path = &entry.path;
        let Kind::File { size, offset, content } = &mut entry.kind else { return Ok(()) };
        let (reader, hash, compare) = match data {
            Data::None => return Ok(()),
            Data::New(reader) => (reader, true, false),
            Data::Expected(reader) => (reader, true, true),
            Data::Known(reader) => (reader, false, false),
        };
        let read_error = |source| WriteError::Read { path: path.clone(), source };
        let size_error = |actual| WriteError::Size { path: path.clone(), expected: *size, actual };
        *offset = self.position;
        let mut hasher = hash.then(blake3::Hasher::new);
        let mut left = *size;
        while left > 0 {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let room = room(&mut self.buffer[self.filled..], left);
            let n = fill(reader, room, hasher.as_mut()).map_err(read_error)?;
            if n == 0 {
                return Err(size_error(*size - left));
            }
            self.filled += n;
            self.position += n as u64;
            left -= n as u64;
        }
        if read_some(reader, &mut [0]).map_err(read_error)? > 0 {
            return Err(size_error(*size + 1));
        }
        if let Some(hasher) = hasher {
            let actual = ContentDigest(*hasher.finalize().as_bytes());
            if compare && actual != *content {
                return Err(WriteError::Changed { path: path.clone() });
            }
            *content = actual;
        }
        self.pad()
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let n = bytes.len().min(BUFFER - self.filled);
            self.buffer[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            self.position += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Fills the block up with zeros.
    fn pad(&mut self) -> Result<(), WriteError> {
        let padding = self.position.wrapping_neg() % BLOCK as u64;
        self.put(&[0; BLOCK][..padding as usize])
    }

    /// Writes the full buffer, and has it hashed.
    fn flush(&mut self) -> Result<(), WriteError> {
        self.out.write_all(&self.buffer).map_err(WriteError::Write)?;
        self.buffer = self.sha256.hash(std::mem::take(&mut self.buffer));
        self.buffer.resize(BUFFER, 0);
        self.filled = 0;
        Ok(())
    }
}

/// As much of `buffer` as `left` bytes need.
fn room(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..len]
}

/// Reads what one call gives into `room`, and hashes it.
fn fill(reader: &mut dyn Read, room: &mut [u8], hasher: Option<&mut blake3::Hasher>) -> io::Result<usize> {
    let n = read_some(reader, room)?;
    if let Some(hasher) = hasher {
        hasher.update(&room[..n]);
    }
    Ok(n)
}

fn read_some(reader: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn problem(entry: &Entry, problem: &'static str) -> WriteError {
    WriteError::Entry { path: entry.path.clone(), problem }
}

/// Cuts a name at a slash so that both parts fit a ustar header: 155 bytes and 100.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return Some((b"", name));
    }
    // The slash between the parts is not stored; the one that ends a directory's name must be.
    let slash = name[..name.len() - 1].get(..156).unwrap_or(&name[..name.len() - 1]).rfind_byte(b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (!prefix.is_empty() && rest.len() <= 100).then_some((prefix, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::index_tar;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { kind, mode: 0o644, ..Entry::implied(path.as_bytes()) }
    }

    fn file(size: u64) -> Kind {
        Kind::File { size, offset: 0, content: ContentDigest([0; 32]) }
    }

    fn directory() -> Kind {
        Kind::Directory { opaque: false, implied: false }
    }

    fn fails(entries: Vec<(Entry, &[u8])>) -> String {
        let mut writer = LayerWriter::new(io::sink());
        for (entry, mut bytes) in entries {
            let data = match entry.kind {
                Kind::File { .. } => Data::New(&mut bytes),
                _ => Data::None,
            };
            if let Err(error) = writer.append(entry, data) {
                return error.to_string();
            }
        }
        writer.finish().map(|_| String::new()).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn it_is_the_same_layer_on_two_threads() {
        let spawn: Spawn = |job| drop(std::thread::spawn(job));
        let mut noise = vec![0; 4 * BUFFER];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for size in [0, 1, BUFFER - BLOCK, BUFFER, BUFFER + 1, 3 * BUFFER + 77] {
            let write = |mut writer: LayerWriter<Vec<u8>>, given: usize| {
                for name in ["a", "b"] {
                    let data = match size {
                        0 => Data::None,
                        _ => Data::New(&mut &noise[..given]),
                    };
                    writer.append(entry(name, file(size as u64)), data)?;
                }
                writer.finish()
            };
            let (tar, index) = write(LayerWriter::new(Vec::new()), size).unwrap();
            assert!(index_tar(&tar[..], io::sink()).unwrap() == index, "{size}");
            let (other_tar, other_index) = write(LayerWriter::with(Vec::new(), spawn), size).unwrap();
            assert!(other_tar == tar && other_index == index, "{size}");
            if size > 0 {
                let error = write(LayerWriter::with(Vec::new(), spawn), size - 1).unwrap_err();
                assert!(
                    matches!(error, WriteError::Size { actual, .. } if actual == size as u64 - 1),
                    "{size}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_refused() {
        for (entries, message) in [
            (vec![(entry("b", Kind::Fifo), &b""[..]), (entry("a", Kind::Fifo), b"")], "not in order"),
            (vec![(entry("a", Kind::Fifo), b""), (entry("a", Kind::Fifo), b"")], "not in order"),
            (vec![(entry("a.b", Kind::Fifo), b""), (entry("a/b", Kind::Fifo), b"")], "not in order"),
            (vec![(entry("a/", Kind::Fifo), b"")], "normal form"),
            (vec![(entry("/a", Kind::Fifo), b"")], "normal form"),
            (vec![(entry("a/../b", Kind::Fifo), b"")], "normal form"),
            (vec![(entry("a", Kind::Fifo), b""), (entry("a/b", Kind::Fifo), b"")], "not a directory"),
            (vec![(entry("", Kind::Fifo), b"")], "only a directory"),
            (vec![(entry("x/.wh.a", Kind::Fifo), b"")], ".wh."),
            (vec![(entry("a", Kind::CharDevice { major: 0, minor: 0 }), b"")], "0:0"),
            (
                vec![(entry("a", Kind::Hardlink { target: "b".into() }), b""), (entry("b", file(0)), b"")],
                "file before",
            ),
            (
                vec![
                    (entry("a", directory()), b""),
                    (entry("b", Kind::Hardlink { target: "a".into() }), b""),
                ],
                "file before",
            ),
            (vec![(entry("a", file(3)), b"ab")], "from 3 bytes to 2"),
            (vec![(entry("a", file(3)), b"abcd")], "from 3 bytes to 4"),
        ] {
            let error = fails(entries.clone());
            assert!(error.contains(message), "{error} for {entries:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_what_it_was_is_an_error() {
        let mut writer = LayerWriter::new(io::sink());
        let kind = Kind::File { size: 1, offset: 0, content: ContentDigest::of(b"a") };
        writer.append(entry("a", kind.clone()), Data::Expected(&mut &b"a"[..])).unwrap();
        let error = writer.append(entry("b", kind), Data::Expected(&mut &b"b"[..])).unwrap_err();
        assert!(matches!(error, WriteError::Changed { path } if path == "b"));
    }

    #[test]
    fn names_are_cut_where_both_parts_fit() {
        let long = |n| vec![b'x'; n];
        assert_eq!(split_name(&long(100)), Some((&b""[..], &long(100)[..])));
        assert_eq!(split_name(&long(101)), None);
        let both = [&long(155)[..], b"/", &long(100)].concat();
        assert_eq!(split_name(&both), Some((&long(155)[..], &long(100)[..])));
        assert_eq!(split_name(&[&long(156)[..], b"/", &long(99)].concat()), None);
        assert_eq!(split_name(&[&long(155)[..], b"/", &long(101)].concat()), None);
        // A directory's own slash is no place to cut.
        let directory = [&long(50)[..], b"/", &long(99), b"/"].concat();
        assert_eq!(split_name(&directory), Some((&long(50)[..], &directory[51..])));
        assert_eq!(split_name(&[&long(100)[..], b"/"].concat()), None);
    }

    fn name() -> BoxedStrategy<Vec<u8>> {
        let text = prop_oneof![
            4 => "[a-d]",
            2 => "[a-c][.][a-c]",
            1 => "[ -~äß\n]{1,20}".prop_map(|name| name.replace('/', "_")),
            1 => "[a-z]{90,255}",
        ];
        prop_oneof![
            8 => text.prop_map(String::into_bytes),
            1 => proptest::collection::vec(128_u8..=255, 1..4),
        ]
        .prop_filter("a name", |name| {
            normalise(name).is_ok_and(|normal| normal == *name) && !name.starts_with(whiteout::PREFIX)
        })
        .boxed()
    }

    type Node = (Entry, Vec<u8>);

    fn node() -> impl Strategy<Value = Node> {
        let path = proptest::collection::vec(name(), 1..6).prop_map(|parts| parts.join(&b'/')).boxed();
        let number = || prop_oneof![any::<u32>(), 0..3000_u32].prop_map(|n| n.min(u32::MAX - 1));
        let kind = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..1500).prop_map(|bytes| (file(bytes.len() as u64), bytes)),
            3 => any::<bool>().prop_map(|opaque| (Kind::Directory { opaque, implied: false }, vec![])),
            1 => proptest::collection::vec(1..=255_u8, 1..200)
                .prop_map(|target| (Kind::Symlink { target: target.into() }, vec![])),
            1 => Just((Kind::Fifo, vec![])),
            1 => Just((Kind::Whiteout, vec![])),
            1 => (1..4096_u32, 0..1_048_576_u32)
                .prop_map(|(major, minor)| (Kind::CharDevice { major, minor }, vec![])),
            1 => (1..4096_u32, 0..1_048_576_u32)
                .prop_map(|(major, minor)| (Kind::BlockDevice { major, minor }, vec![])),
            2 => path.clone().prop_map(|target| (Kind::Hardlink { target: target.into() }, vec![])),
        ];
        let xattrs = proptest::collection::btree_map(
            "user\\.[a-z]{1,3}".prop_map(BString::from),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(BString::from),
            0..3,
        );
        let mtime = prop_oneof![0..2_000_000_000_i64, any::<i64>()];
        (path, kind, 0..0o10000_u16, number(), number(), mtime, xattrs).prop_map(
            |(path, (kind, bytes), mode, uid, gid, mtime, xattrs)| {
                (Entry { path: path.into(), kind, mode, uid, gid, mtime, xattrs }, bytes)
            },
        )
    }

    /// A layer of those nodes that have a place in it.
    fn write(mut nodes: Vec<Node>) -> (Vec<u8>, LayerIndex) {
        nodes.sort_by(|(a, _), (b, _)| path_cmp(&a.path, &b.path));
        nodes.dedup_by(|(a, _), (b, _)| a.path == b.path);
        let mut writer = LayerWriter::new(Vec::new());
        let mut written: Vec<Entry> = Vec::new();
        for (entry, bytes) in nodes.clone() {
            let below_other =
                written.iter().any(|dir| is_below(&entry.path, &dir.path) && !dir.kind.is_dir());
            let bad_link = match &entry.kind {
                // Either to a file before it or to a lower layer's.
                Kind::Hardlink { target } => {
                    !written.iter().any(|file| file.path == *target && matches!(file.kind, Kind::File { .. }))
                        && nodes.iter().any(|(other, _)| {
                            other.path == *target
                                || is_below(&other.path, target)
                                || is_below(target, &other.path)
                        })
                }
                _ => false,
            };
            if below_other || bad_link {
                continue;
            }
            let mut reader = &bytes[..];
            let data = match entry.kind {
                Kind::File { .. } => Data::New(&mut reader),
                _ => Data::None,
            };
            writer.append(entry.clone(), data).unwrap();
            written.push(entry);
        }
        writer.finish().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_as_the_same_index(nodes in proptest::collection::vec(node(), 0..40)) {
            let (tar, index) = write(nodes.clone());
            let mut copy = Vec::new();
            let read = index_tar(&tar[..], &mut copy).unwrap();
            prop_assert_eq!(&copy, &tar);
            prop_assert_eq!(&read, &index);
            for (entry, bytes) in &nodes {
                if let Some(Entry { kind: Kind::File { size, offset, content }, .. }) = read.get(&entry.path)
                    && *size == bytes.len() as u64
                    && *content == ContentDigest::of(bytes)
                {
                    prop_assert_eq!(&tar[*offset as usize..][..bytes.len()], &bytes[..]);
                }
            }
            prop_assert_eq!(LayerIndex::from_bytes(&index.to_bytes()), Ok(index));
            // The same entries give the same bytes.
            prop_assert_eq!(write(nodes).0, tar);
        }
    }
}
