//! Archives as contexts: a tar, plain or compressed, unpacked into a directory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::Path;

use image::layer::Kind;
use image::layer::read::{ReadError, index_tar};
use rustix::fs::{Mode, OFlags};
use store::compress::Decoder;

use crate::diff::Marks;
use crate::mount::dirs::{self, ExtractError};

/// An archive that could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It could not be read or decompressed, or there is no room for it.
    #[error("could not read the archive: {0}")]
    Io(#[from] io::Error),
    /// It is no tar that can be unpacked.
    #[error("could not read the archive: {0}")]
    Tar(#[from] ReadError),
    /// A file could not be made.
    #[error(transparent)]
    Extract(#[from] ExtractError),
}

/// Unpacks what `reader` gives into the empty directory `into`: names never lead out of it, links are made and never
/// followed.
pub fn unpack(reader: impl Read, into: &Path) -> Result<(), ArchiveError> {
    // On the same disk as what is unpacked, and without a name.
    let mut tar = tempfile(into)?;
    let decoder = Decoder::detect(reader)?;
    let index = index_tar(decoder, io::BufWriter::new(&tar))?;
    tar.seek(SeekFrom::Start(0))?;
    let dir = rustix::fs::open(into, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)?;
    Ok(dirs::extract(&index, &tar, dir.as_fd(), Marks::Trusted)?)
}

/// The latest time of a file in an archive; `None` if it has no files or is no archive.
pub(crate) fn latest(reader: impl Read) -> Option<i64> {
    let index = index_tar(Decoder::detect(reader).ok()?, io::sink()).ok()?;
    let files = index.entries().iter().filter(|entry| matches!(entry.kind, Kind::File { .. }));
    files.map(|entry| entry.mtime).max()
}

fn tempfile(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?.into())
}
