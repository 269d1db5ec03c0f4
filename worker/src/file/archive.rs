//! ADD of archives: a file that is a tar, compressed or not, is read once into a temporary file, from which its entries
//! are then copied.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bstr::ByteSlice;
use image::ContentDigest;
use image::layer::read::ReadError;
use image::layer::write::WriteError;
use image::layer::{Entry, Kind, TarEntry, TarKind, TarReader, whiteout};
use image::tree::{Inode, Location, NewEntry};
use store::compress::Decoder;

use super::{FileError, Files, Options};

/// The entries of the archive `inode`, called `name` in messages; `None` if it is none.
pub(super) fn read(
    name: &str,
    inode: &Inode<'_>,
    files: &mut Files<'_>,
    options: &Options,
) -> Result<Option<Vec<NewEntry>>, FileError> {
    // A stream that cannot even be begun is a file like any other.
    let mut input = Hashing { inner: files.open(&inode.location)?, hasher: blake3::Hasher::new() };
    let Ok(decoder) = Decoder::detect(&mut input) else { return Ok(None) };
    let mut tar = TarReader::new(decoder);
    let Ok(Some(first)) = tar.next_entry() else { return Ok(None) };
    let spooling = |source| FileError::Spool { path: name.to_owned(), source };
    let reading = |source| FileError::Archive { path: name.to_owned(), source };
    let file = tempfile::tempfile_in(&options.temporary).map_err(spooling)?;
    let mut spool =
        Spool { out: io::BufWriter::with_capacity(BUFFER, file), index: files.spools.len(), position: 0 };
    let mut entries = Vec::new();
    let mut next = Some(first);
    while let Some(entry) = next {
        if entry.outside {
            let problem = "it leads out of the directory that it is unpacked into".into();
            return Err(reading(ReadError::Entry { path: entry.path, problem }));
        }
        // Devices are no content: as in BuildKit they are left out.
        if !matches!(entry.kind, TarKind::CharDevice { .. } | TarKind::BlockDevice { .. }) {
            entries.push(spool.entry(entry, &mut tar).map_err(spooling)?);
        }
        next = tar.next_entry().map_err(reading)?;
    }
    // What is unpacked must be what was hashed, all of it: it may have changed meanwhile.
    drop(tar);
    io::copy(&mut input, &mut io::sink()).map_err(spooling)?;
    if input.hasher.finalize().as_bytes() != &inode.content.0 {
        return Err(WriteError::Changed { path: name.trim_start_matches('/').into() }.into());
    }
    let file = spool.out.into_inner().map_err(|error| spooling(error.into_error()))?;
    files.spools.push(Arc::new(file));
    Ok(Some(entries))
}

/// A reader that hashes what it gives.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

struct Spool {
    out: io::BufWriter<std::fs::File>,
    index: usize,
    position: u64,
}

impl Spool {
    fn entry(&mut self, entry: TarEntry, data: &mut impl Read) -> io::Result<NewEntry> {
        let mut location = Location::None;
        let kind = match entry.kind {
            TarKind::File { size, .. } => {
                let (content, written) = self.copy(data)?;
                if written != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if size > 0 {
                    location = Location::Spool { spool: self.index, offset: self.position - size, size };
                }
                Kind::File { size, offset: 0, content }
            }
            TarKind::Directory => Kind::Directory { opaque: false, implied: false },
            TarKind::Symlink(target) => Kind::Symlink { target },
            TarKind::Hardlink(target) => Kind::Hardlink { target },
            TarKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            TarKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            TarKind::Fifo => Kind::Fifo,
        };
        let TarEntry { path, mode, uid, gid, mtime, mut xattrs, .. } = entry;
        xattrs.retain(|name, _| !whiteout::is_unwanted_xattr(name) && may_have(&kind, name));
        Ok(NewEntry { entry: Entry { path, kind, mode, uid, gid, mtime, xattrs }, location })
    }

    fn copy(&mut self, data: &mut impl Read) -> io::Result<(ContentDigest, u64)> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER];
        let mut size = 0;
        loop {
            match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&buffer[..length]);
                    self.out.write_all(&buffer[..length])?;
                    size += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += size;
        Ok((ContentDigest(*hasher.finalize().as_bytes()), size))
    }
}

/// Whether a file of this kind can have the extended attribute `name` on Linux (xattr(7)). Archives of other systems
/// have others, which no file system takes: as in BuildKit they are left out.
fn may_have(kind: &Kind, name: &[u8]) -> bool {
    match name.split_once_str(".") {
        Some((b"user", _)) => matches!(kind, Kind::File { .. } | Kind::Directory { .. }),
        Some((b"security" | b"system" | b"trusted", _)) => true,
        _ => false,
    }
}

const BUFFER: usize = 64 << 10;
