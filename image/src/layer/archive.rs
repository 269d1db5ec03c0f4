//! Reading any tar as a stream: ustar, PAX, GNU, v7 and star, as Go's `archive/tar` and with it docker understands them.
//!
//! Names are brought into the form of [`Entry::path`](super::Entry::path) here and cannot point outside the root any
//! more. Where two readers could understand a tar differently, it is refused. Deletions (`.wh.`) are nothing special
//! here, and nobody checks whether a path leads through a symbolic link: [`super::read`] does both for layers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use bstr::{BString, ByteSlice};

use super::header::{self, BLOCK, Header};
use super::pax::{self, Records};
use super::whiteout::PREFIX;

/// One entry of a tar. Its data, if it is a file, is then read from the [`TarReader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// In the form of [`Entry::path`](super::Entry::path); empty for the root, whatever kind the tar says that is.
    pub path: BString,
    /// What kind of file it is.
    pub kind: TarKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch, rounded down.
    pub mtime: i64,
    /// Extended attributes by full name, all of them.
    pub xattrs: BTreeMap<BString, BString>,
    /// As written, its path or the one it is a hard link to leads out of the root.
    pub outside: bool,
}

/// The kinds of file in a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A regular file.
    File {
        /// Length in bytes, holes filled in.
        size: u64,
        /// Where the bytes are in the tar; `None` if they are stored with holes.
        offset: Option<u64>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target as written.
    Symlink(BString),
    /// Another name of an entry; the target in the form of a path.
    Hardlink(BString),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A tar that cannot be read, or is no layer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The reader failed.
    #[error("could not read tar: {0}")]
    Read(#[source] io::Error),
    /// Where the layer's bytes go failed.
    #[error("could not write layer tar: {0}")]
    Write(#[source] io::Error),
    /// The bytes end within an entry.
    #[error("could not read tar: it ends in the middle of an entry, after {offset} bytes")]
    Truncated {
        /// How far it could be read.
        offset: u64,
    },
    /// A header makes no sense.
    #[error("could not read tar header at byte {offset}: {problem}")]
    Header {
        /// Where the header starts.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry makes no sense or cannot be kept.
    #[error("could not read tar entry {path:?}: {problem}")]
    Entry {
        /// Its path.
        path: BString,
        /// What is wrong with it.
        problem: Cow<'static, str>,
    },
    /// More entries than memory should hold.
    #[error("could not index layer: its {entries} entries and more need over {limit} bytes of memory")]
    TooManyEntries {
        /// How many were read.
        entries: usize,
        /// The limit.
        limit: usize,
    },
}

/// The longest path.
const MAX_PATH: usize = 1 << 16;
/// The most directories in each other.
const MAX_DEPTH: usize = 4096;
/// The longest file name and the longest link target that Linux has.
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;
/// The most data ranges in a sparse file.
const MAX_RANGES: usize = 1 << 20;

/// Reads a tar entry by entry; between calls of [`Self::next_entry`] it is the reader of the current file's data.
#[derive(Debug)]
pub struct TarReader<R> {
    input: BufReader<R>,
    // How many bytes were taken from `input`.
    position: u64,
    // What is left of the current entry's data in the tar, and of the zeros behind it.
    data: u64,
    padding: u64,
    sparse: Option<Holes>,
    ended: bool,
}

/// A sparse file being filled in.
#[derive(Debug)]
struct Holes {
    // Offset and length, ascending, within `size`. Taken from the back.
    ranges: Vec<(u64, u64)>,
    size: u64,
    at: u64,
}

impl<R: Read> TarReader<R> {
    /// Reads the tar that `input` gives, uncompressed.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 16, input),
            position: 0,
            data: 0,
            padding: 0,
            sparse: None,
            ended: false,
        }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the entry before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, ReadError> {
        self.skip_data()?;
        let mut pending = Pending::default();
        let mut block = [0; BLOCK];
        loop {
            let offset = self.position;
            let problem = |problem| ReadError::Header { offset, problem };
            if self.ended || !self.read_block(&mut block)? {
                if pending.any() {
                    return Err(ReadError::Truncated { offset: self.position });
                }
                self.ended = true;
                return Ok(None);
            }
            let header = Header(&block);
            if header.is_zero() {
                if self.read_block(&mut block)? && !Header(&block).is_zero() {
                    return Err(problem("a zero block stands in the middle of the archive"));
                }
                self.ended = true;
                continue;
            }
            header.verify().map_err(problem)?;
            match header.typeflag() {
                b'x' | b'g' | b'L' | b'K' => {
                    let size = header.size().and_then(positive).map_err(problem)?;
                    let body = self.read_extension(size, offset)?;
                    pending.add(header.typeflag(), &body).map_err(problem)?;
                }
                // A volume label.
                b'V' => {
                    self.set_data(header.size().and_then(positive).map_err(problem)?);
                    self.skip_data()?;
                }
                _ => return self.entry(&header, pending, offset).map(Some),
            }
        }
    }

    /// Reads on to the end of the input, past the end of the archive.
    pub(crate) fn drain(&mut self) -> Result<(), ReadError> {
        io::copy(&mut self.input, &mut io::sink()).map_err(ReadError::Read).map(|_| ())
    }

    /// The reader below, whose bytes may have been taken already.
    pub(crate) fn into_inner(self) -> R {
        self.input.into_inner()
    }

    fn entry(&mut self, header: &Header<'_>, pending: Pending, offset: u64) -> Result<TarEntry, ReadError> {
        let problem = |problem| ReadError::Header { offset, problem };
        let (records, long_name, long_link) =
            (pending.records.unwrap_or_default(), pending.name, pending.link);
        let raw_name = match (records.path, long_name) {
            (Some(_), Some(_)) => return Err(problem("it has a PAX path and a GNU long name")),
            (Some(name), None) | (None, Some(name)) => name,
            (None, None) => header.name(),
        };
        let raw_name = records.sparse.name.clone().unwrap_or(raw_name);
        let raw_link = match (records.link, long_link) {
            (Some(_), Some(_)) => return Err(problem("it has a PAX link target and a GNU long one")),
            (Some(link), None) | (None, Some(link)) => link,
            (None, None) => header.link(),
        };
        let path = normalise(&raw_name).map_err(|problem| ReadError::Entry {
            path: BString::from(&raw_name[..raw_name.len().min(MAX_NAME)]),
            problem: problem.into(),
        })?;
        let bad = |problem: &'static str| ReadError::Entry { path: path.clone(), problem: problem.into() };

        let size = match records.size {
            Some(size) => size,
            None => header.size().and_then(positive).map_err(bad)?,
        };
        let uid = records.uid.map_or_else(|| header.uid(), Ok).and_then(id).map_err(bad)?;
        let gid = records.gid.map_or_else(|| header.gid(), Ok).and_then(id).map_err(bad)?;
        let mtime = records.mtime.map_or_else(|| header.mtime(), Ok).map_err(bad)?;
        let mode = (header.mode().map_err(bad)? & 0o7777) as u16;

        let outside = leads_out(&raw_name) || (header.typeflag() == b'1' && leads_out(&raw_link));
        let is_sparse = header.typeflag() == b'S' || records.sparse.present;
        let kind = match header.typeflag() {
            0 if raw_name.ends_with(b"/") => TarKind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                self.set_data(size);
                if is_sparse {
                    let holes = self.sparse_map(header, &records.sparse)?.map_err(bad)?;
                    let size = holes.size;
                    self.sparse = Some(holes);
                    TarKind::File { size, offset: None }
                } else {
                    TarKind::File { size, offset: Some(self.position) }
                }
            }
            b'1' => TarKind::Hardlink(normalise(&raw_link).map_err(bad)?),
            b'2' if raw_link.is_empty() => return Err(bad("the symbolic link has no target")),
            b'2' if raw_link.len() > MAX_TARGET => return Err(bad("the link's target is too long")),
            b'2' => TarKind::Symlink(raw_link.into()),
            b'3' | b'4' => {
                let (major, minor) = header.device().map_err(bad)?;
                match header.typeflag() {
                    b'3' => TarKind::CharDevice { major, minor },
                    _ => TarKind::BlockDevice { major, minor },
                }
            }
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            _ => return Err(bad("its type is unknown")),
        };
        Ok(TarEntry { path, kind, mode, uid, gid, mtime, xattrs: records.xattrs, outside })
    }

    /// The data ranges of a sparse file, whatever the format. The inner error is about the entry.
    fn sparse_map(
        &mut self,
        header: &Header<'_>,
        records: &pax::Sparse,
    ) -> Result<Result<Holes, &'static str>, ReadError> {
        let (numbers, size) = if header.typeflag() == b'S' {
            (self.old_sparse_map(header)?, header.sparse_real_size().and_then(positive))
        } else {
            let size = records.real_size.ok_or("the sparse file has no size");
            match (records.major, records.minor) {
                (Some(1), Some(0)) => (self.sparse_map_in_data()?, size),
                (None | Some(0), _) => (Ok(records.map.clone()), size),
                _ => return Ok(Err("its sparse format is unknown")),
            }
        };
        let stored = self.data;
        Ok(numbers.and_then(|numbers| holes(&numbers, size?, stored)))
    }

    fn old_sparse_map(&mut self, header: &Header<'_>) -> Result<Result<Vec<u64>, &'static str>, ReadError> {
        let mut numbers = Vec::new();
        let mut add = |ranges: &[u8]| {
            for field in ranges.chunks_exact(12) {
                numbers.push(field.to_vec());
            }
            numbers.len() <= 2 * MAX_RANGES
        };
        let (ranges, mut more) = header.sparse_ranges();
        add(ranges);
        let mut block = [0; BLOCK];
        while more {
            if !self.read_block(&mut block)? {
                return Err(ReadError::Truncated { offset: self.position });
            }
            if !add(&block[..504]) {
                return Ok(Err("the sparse file has too many ranges"));
            }
            more = block[504] != 0;
        }
        // An all-zero field ends the list.
        Ok(numbers
            .chunks_exact(2)
            .take_while(|pair| pair[0][0] != 0)
            .flatten()
            .map(|field| header::number(field).and_then(positive))
            .collect())
    }

    /// Format 1.0: decimal lines at the start of the data, the number of ranges first, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Result<Vec<u64>, &'static str>, ReadError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        let mut block = [0; BLOCK];
        loop {
            if self.data < BLOCK as u64 {
                return Ok(Err("the sparse map is cut off"));
            }
            self.read_block(&mut block)?;
            self.data -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Ok(Err("the sparse map is malformed"));
                    }
                    continue;
                }
                match pax::unsigned(&line) {
                    Ok(Some(number)) => numbers.push(number),
                    _ => return Ok(Err("the sparse map is malformed")),
                }
                line.clear();
                if numbers[0] > MAX_RANGES as u64 {
                    return Ok(Err("the sparse file has too many ranges"));
                }
                if numbers.len() as u64 == 1 + 2 * numbers[0] {
                    numbers.remove(0);
                    return Ok(Ok(numbers));
                }
            }
        }
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.sparse = None;
    }

    fn skip_data(&mut self) -> Result<(), ReadError> {
        self.sparse = None;
        let length = self.data.saturating_add(self.padding);
        let skipped =
            io::copy(&mut (&mut self.input).take(length), &mut io::sink()).map_err(ReadError::Read)?;
        self.position += skipped;
        // Some writers leave the padding of the last file out, but none writes a part of it.
        if skipped != length && skipped != self.data {
            return Err(ReadError::Truncated { offset: self.position });
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads a block; `false` at the end of the input.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ReadError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Read(error)),
            }
        }
        self.position += filled as u64;
        match filled {
            0 => Ok(false),
            BLOCK => Ok(true),
            _ => Err(ReadError::Truncated { offset: self.position }),
        }
    }

    /// Reads the body of a header that extends the next one.
    fn read_extension(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, ReadError> {
        if size > pax::MAX_LEN {
            return Err(ReadError::Header { offset, problem: "an extended header is longer than 1 MiB" });
        }
        self.set_data(size);
        let mut body = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut body).map_err(ReadError::Read)?;
        self.position += body.len() as u64;
        self.data -= body.len() as u64;
        self.skip_data()?;
        Ok(body)
    }

    fn read_stored(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.data).map_or(buf.len(), |data| data.min(buf.len()));
        if length == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buf[..length])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += n as u64;
        self.data -= n as u64;
        Ok(n)
    }
}

/// The data of the current entry, holes filled in with zeros.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(holes) = &mut self.sparse else { return self.read_stored(buf) };
        let (next, length) = match holes.ranges.last() {
            Some(&(offset, length)) if holes.at >= offset => (offset + length, 0),
            Some(&(offset, _)) => (offset, offset - holes.at),
            None => (holes.size, holes.size - holes.at),
        };
        if length > 0 {
            let n = usize::try_from(length).map_or(buf.len(), |length| length.min(buf.len()));
            buf[..n].fill(0);
            holes.at += n as u64;
            return Ok(n);
        }
        if holes.ranges.is_empty() {
            return Ok(0);
        }
        let length = usize::try_from(next - holes.at).map_or(buf.len(), |length| length.min(buf.len()));
        let n = self.read_stored(&mut buf[..length])?;
        if let Some(holes) = &mut self.sparse {
            holes.at += n as u64;
            if holes.at == next {
                holes.ranges.pop();
            }
        }
        Ok(n)
    }
}

/// What headers before an entry say about it.
#[derive(Debug, Default)]
struct Pending {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Pending {
    fn any(&self) -> bool {
        self.records.is_some() || self.name.is_some() || self.link.is_some()
    }

    fn add(&mut self, typeflag: u8, body: &[u8]) -> Result<(), &'static str> {
        let twice = match typeflag {
            b'x' => self.records.replace(Records::parse(body)?).is_some(),
            b'g' => return check_global(&Records::parse(body)?),
            b'L' => self.name.replace(until_nul(body)).is_some(),
            _ => self.link.replace(until_nul(body)).is_some(),
        };
        if twice { Err("an entry has two extended headers of one kind") } else { Ok(()) }
    }
}

/// Go and docker ignore a global header, GNU tar and Python apply it. So it may say nothing about what is where.
fn check_global(records: &Records) -> Result<(), &'static str> {
    let Records { path, link, size, sparse, xattrs, .. } = records;
    if path.is_some() || link.is_some() || size.is_some() || sparse.present || !xattrs.is_empty() {
        return Err("a global header changes names, sizes or attributes");
    }
    Ok(())
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.find_byte(0).unwrap_or(bytes.len())].to_vec()
}

fn positive(number: i64) -> Result<u64, &'static str> {
    u64::try_from(number).map_err(|_| "a size is negative")
}

fn id(number: i64) -> Result<u32, &'static str> {
    match u32::try_from(number) {
        // chown(2) takes the largest one for "leave it".
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err("a user or group ID is out of range"),
    }
}

/// Brings a stranger's name into the form of an entry's path, relative to the root and inside it: `..` goes up no
/// further.
pub fn normalise(name: &[u8]) -> Result<BString, &'static str> {
    if name.len() > MAX_PATH {
        return Err("the path is too long");
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split_str("/") {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            // The deletion of a file with the longest name has a longer one.
            _ if part.strip_prefix(PREFIX).unwrap_or(part).len() > MAX_NAME => {
                return Err("a name is longer than 255 bytes");
            }
            _ if part.contains(&0) => return Err("a name contains NUL"),
            _ => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err("the path is too deep");
    }
    Ok(bstr::join("/", parts).into())
}

/// Whether `name` has a `..` that goes up further than the names before it went down.
fn leads_out(name: &[u8]) -> bool {
    let mut depth = 0_usize;
    name.split_str("/").any(|part| {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
        false
    })
}

/// Checks a sparse file's map against its length and the length of its stored data.
fn holes(numbers: &[u64], size: u64, stored: u64) -> Result<Holes, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err("the sparse map is malformed");
    }
    let mut ranges = Vec::with_capacity(numbers.len() / 2);
    let (mut end, mut sum) = (0_u64, 0_u64);
    for pair in numbers.chunks_exact(2) {
        let (offset, length) = (pair[0], pair[1]);
        if offset < end {
            return Err("the sparse map is out of order");
        }
        end = offset.checked_add(length).filter(|end| *end <= size).ok_or("the sparse map is too long")?;
        sum += length;
        if length > 0 {
            ranges.push((offset, length));
        }
    }
    if sum != stored {
        return Err("the sparse map does not match the data");
    }
    ranges.reverse();
    Ok(Holes { ranges, size, at: 0 })
}
