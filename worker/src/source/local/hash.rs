//! Hashing files, each read once, and what to remember of it.
//!
//! What is known of a file counts if its inode, size and times are the same and it had been left alone for a while when
//! it was read: a file can change twice within one tick of the clock, and git calls an index entry from within that tick
//! "racily clean". A file whose time is that late is read again. Files with extended attributes are not remembered:
//! so a known file has none, and need not be asked for them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use bstr::BString;
use image::ContentDigest;
use image::layer::Kind;
use rayon::prelude::*;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;
use solver::Cancel;
use store::stat::{StatCache, StatRow};

use super::{LocalError, Seen, Stamp, read_error, xattrs};
use crate::inside;
use crate::until::Until;

/// What hashing came to.
pub(super) struct Hashed<'k> {
    /// What was known before of the files that were seen.
    known: Vec<&'k StatRow>,
    /// What is known now of those that were read.
    read: Vec<StatRow>,
    /// Files that were read.
    pub(super) files: usize,
    /// Their size in bytes.
    pub(super) bytes: u64,
}

/// Fills in contents and attributes of the regular files in `seen`.
pub(super) fn hash<'k>(
    root: BorrowedFd<'_>,
    seen: &mut [Seen],
    known: &'k StatCache,
    cancel: &Cancel,
) -> Result<Hashed<'k>, LocalError> {
    let look_up = |seen: &mut Seen| -> Option<&'k StatRow> {
        let Kind::File { content, .. } = &mut seen.entry.kind else { return None };
        let row = known.get(seen.stamp.dev, seen.stamp.ino).filter(|row| is_clean(row, &seen.stamp))?;
        *content = row.content;
        Some(row)
    };
    let rows: Vec<Option<&StatRow>> = match seen.len() {
        // The pool need not be made for it.
        ..FEW => seen.iter_mut().map(look_up).collect(),
        _ => store::pool::pool().install(|| seen.par_iter_mut().with_min_len(FEW).map(look_up).collect()),
    };
    let mut unknown = Vec::new();
    // Of several names of a file, the one that is read, and the others.
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    let mut others: Vec<(usize, usize)> = Vec::new();
    for (index, (seen, row)) in seen.iter().zip(&rows).enumerate() {
        if row.is_some() || !matches!(seen.entry.kind, Kind::File { .. }) {
            continue;
        }
        let Stamp { dev, ino, links, .. } = seen.stamp;
        if links > 1 && first.contains_key(&(dev, ino)) {
            others.push((index, first[&(dev, ino)]));
        } else {
            first.extend((links > 1).then_some(((dev, ino), index)));
            unknown.push(index);
        }
    }
    let read = |index: &usize| -> Result<(Seen, StatRow), LocalError> {
        if cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        read(root, &seen[*index], cancel)
    };
    let read: Vec<(Seen, StatRow)> = match unknown.len() {
        0..=1 => unknown.iter().map(read).collect::<Result<_, _>>()?,
        _ => store::pool::pool().install(|| unknown.par_iter().map(read).collect::<Result<_, _>>())?,
    };
    let known = rows.into_iter().flatten().collect();
    let mut hashed = Hashed { known, read: Vec::new(), files: read.len(), bytes: 0 };
    for (index, (new, row)) in unknown.into_iter().zip(read) {
        hashed.bytes += row.size;
        if new.entry.xattrs.is_empty() {
            hashed.read.push(row);
        }
        seen[index] = new;
    }
    for (index, first) in others {
        let path = std::mem::take(&mut seen[index].entry.path);
        seen[index] = seen[first].clone();
        seen[index].entry.path = path;
    }
    Ok(hashed)
}

impl Hashed<'_> {
    /// What to know next time: of a whole directory what was seen, else that and what was known of the rest. `None`
    /// if nothing is new.
    pub(super) fn cache(self, known: &StatCache, whole: bool) -> Option<StatCache> {
        // As many as before: the same, or some of them twice.
        if self.files == 0 && (!whole || self.known.len() >= known.rows().len()) {
            return None;
        }
        let mut rows: Vec<StatRow> =
            if whole { self.known.into_iter().copied().collect() } else { known.rows().to_vec() };
        rows.extend(self.read);
        Some(StatCache::new(rows))
    }
}

/// Whether what `row` knows is true of the file that has `stamp` now.
fn is_clean(row: &StatRow, stamp: &Stamp) -> bool {
    let same = (row.size, row.mtime_ns, row.ctime_ns) == (stamp.size, stamp.mtime_ns, stamp.ctime_ns);
    // File systems that count in seconds or 10 ms show it by round numbers; others are as exact as the kernel's tick.
    let grain = if row.ctime_ns % 1_000_000 == 0 { 2_000_000_000 } else { 20_000_000 };
    same && row.ctime_ns.saturating_add(grain) < row.hashed_ns
}

/// Reads a file; again if it changed meanwhile, but not for ever.
fn read(root: BorrowedFd<'_>, seen: &Seen, cancel: &Cancel) -> Result<(Seen, StatRow), LocalError> {
    let path = &seen.entry.path;
    let mut last = Errno::AGAIN;
    for _ in 0..TRIES {
        let hashed_ns = now_ns();
        // Without blocking: a pipe may have taken its place.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = match inside::open(root, path, flags, Mode::empty()) {
            Ok(fd) => fd,
            // It is something else now, or about to be: the last word is the error.
            Err(error @ (Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::NXIO)) => {
                last = error;
                continue;
            }
            Err(source) => return Err(read_error(path)(source)),
        };
        let before = rustix::fs::fstat(&fd).map_err(read_error(path))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(LocalError::Changing(path.clone()));
        }
        let xattrs: BTreeMap<BString, BString> = xattrs(fd.as_fd()).map_err(read_error(path))?;
        let mut file = File::from(fd);
        let read = content(&mut Until::new(&mut file, cancel), before.st_size as u64);
        let (content, size) = read.map_err(|error| match cancel.is_cancelled() {
            true => LocalError::Cancelled,
            false => read_error(path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        })?;
        let after = rustix::fs::fstat(&file).map_err(read_error(path))?;
        let (stamp, end) = (Stamp::of(&before), Stamp::of(&after));
        if stamp != end || stamp.size != size {
            last = Errno::AGAIN;
            continue;
        }
        let mut new = seen.clone();
        new.entry.kind = Kind::File { size, offset: 0, content };
        new.entry.mode = (before.st_mode & 0o7777) as u16;
        new.entry.mtime = before.st_mtime;
        new.entry.xattrs = xattrs;
        new.stamp = stamp;
        let Stamp { dev, ino, mtime_ns, ctime_ns, .. } = stamp;
        return Ok((new, StatRow { dev, ino, size, mtime_ns, ctime_ns, hashed_ns, content }));
    }
    match last {
        Errno::AGAIN => Err(LocalError::Changing(path.clone())),
        source => Err(read_error(path)(source)),
    }
}

/// Hash and length of what is in `file`, whose size should be `size`. Of a longer file a part is read: its size has
/// changed, and the caller looks. Some files of the kernel's say that they are empty and are not, so one read is made.
fn content(file: &mut impl Read, size: u64) -> std::io::Result<(ContentDigest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut done = 0;
    let mut buffer = vec![0; size.clamp(1, BUFFER) as usize];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                hasher.update(&buffer[..length]);
                done += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if done >= size {
            break;
        }
    }
    Ok((ContentDigest(*hasher.finalize().as_bytes()), done))
}

fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// So many files are looked up by one thread.
const FEW: usize = 4096;

/// How often a file that changes is read.
const TRIES: usize = 3;

/// How much is read at once: small files are many, and large ones do not mind.
const BUFFER: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_the_size_it_has_and_one_that_lies_is_found_out() {
        for (bytes, size, read) in
            [(&b""[..], 0, 0), (b"abc", 3, 3), (b"ab", 3, 2), (b"not empty", 0, 1), (b"longer", 3, 3)]
        {
            let (digest, length) = content(&mut &bytes[..], size).unwrap();
            assert_eq!(
                (digest, length),
                (ContentDigest::of(&bytes[..read]), read as u64),
                "{bytes:?} {size}"
            );
        }
        // However large the pieces are that it is read in.
        let bytes = vec![7; 3 * BUFFER as usize + 5];
        let read = content(&mut &bytes[..], bytes.len() as u64).unwrap();
        assert_eq!(read, (ContentDigest::of(&bytes), bytes.len() as u64));
    }

    #[test]
    fn what_is_known_counts_only_if_the_file_was_left_alone() {
        let stamp = Stamp { dev: 1, ino: 2, links: 1, size: 3, mtime_ns: 50, ctime_ns: 1_000_000_001 };
        let row = StatRow {
            dev: 1,
            ino: 2,
            size: 3,
            mtime_ns: 50,
            ctime_ns: 1_000_000_001,
            hashed_ns: 1_020_000_002,
            content: ContentDigest::of(b"x"),
        };
        assert!(is_clean(&row, &stamp));
        for dirty in [
            Stamp { size: 4, ..stamp },
            Stamp { mtime_ns: 51, ..stamp },
            Stamp { ctime_ns: 1_000_000_002, ..stamp },
        ] {
            assert!(!is_clean(&row, &dirty), "{dirty:?}");
        }
        assert!(!is_clean(&StatRow { hashed_ns: 1_020_000_001, ..row }, &stamp));
        // A clock that counts in seconds.
        let (row, stamp) =
            (StatRow { ctime_ns: 1_000_000_000, ..row }, Stamp { ctime_ns: 1_000_000_000, ..stamp });
        assert!(!is_clean(&row, &stamp));
        assert!(is_clean(&StatRow { hashed_ns: 3_000_000_001, ..row }, &stamp));
        // A time that is not over yet.
        let future = i64::MAX;
        assert!(!is_clean(&StatRow { ctime_ns: future, ..row }, &Stamp { ctime_ns: future, ..stamp }));
    }
}
