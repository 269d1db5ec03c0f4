//! [`Files`]: the files of an archive, a tar or a directory, by path.
//!
//! A tar that is a plain file on disk is read in place; any other stream is decompressed into a temporary file first.
//! Nothing is unpacked: a path in the tar names a range of it, and links in the tar are followed among these names. In
//! a directory paths are resolved beneath it by the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use image::Descriptor;
use image::digest::Verified;
use image::layer::archive::{TarKind, TarReader};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::ArchiveError;
use crate::blob::MAX_DOCUMENT;
use crate::compress::{Algorithm, Decoder};
use crate::root::Root;

/// How many links may lie on the way to a file.
const MAX_LINKS: u32 = 16;

/// How many entries a tar may have.
const MAX_ENTRIES: usize = 1 << 20;

/// The files of an archive.
#[derive(Debug)]
pub struct Files(Kind);

#[derive(Debug)]
enum Kind {
    Directory(File),
    Tar { tar: Arc<File>, places: HashMap<Vec<u8>, Place> },
}

#[derive(Debug)]
enum Place {
    Range { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// A file of an archive, open.
#[derive(Debug)]
pub struct ArchiveFile {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Files {
    /// Opens a directory or a tar, compressed or not.
    pub fn open(root: &Root, path: &Path) -> Result<Self, ArchiveError> {
        let open = |source| ArchiveError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        let meta = file.metadata().map_err(open)?;
        if meta.is_dir() {
            return Ok(Self(Kind::Directory(file)));
        }
        if meta.is_file() {
            let decoder = Decoder::detect(&file).map_err(open)?;
            if decoder.algorithm() == Algorithm::None {
                (&file).rewind().map_err(open)?;
                return Self::index(file);
            }
            (&file).rewind().map_err(open)?;
        }
        Self::read(root, file)
    }

    /// Takes all of a stream, a tar that may be compressed.
    pub fn read(root: &Root, reader: impl Read) -> Result<Self, ArchiveError> {
        let stream = |source| ArchiveError::Read { name: "the stream".to_owned(), source };
        let mut decoder = Decoder::detect(reader).map_err(stream)?;
        let mut temp = root.temp_file()?;
        io::copy(&mut decoder, &mut temp).map_err(stream)?;
        let mut file = temp.file().try_clone().map_err(stream)?;
        file.rewind().map_err(stream)?;
        // Its name goes with `temp`, the file when the last range of it is closed.
        Self::index(file)
    }

    fn index(file: File) -> Result<Self, ArchiveError> {
        let mut tar = TarReader::new(&file);
        let mut places = HashMap::new();
        let bad = |error: image::layer::read::ReadError| ArchiveError::Format(error.to_string());
        while let Some(entry) = tar.next_entry().map_err(bad)? {
            let place = match entry.kind {
                TarKind::File { size, offset: Some(offset) } => Place::Range { offset, size },
                TarKind::Symlink(target) => match join(&entry.path, &target) {
                    Some(target) => Place::Link(target),
                    None => continue,
                },
                TarKind::Hardlink(target) => Place::Link(target.into()),
                _ => continue,
            };
            places.insert(entry.path.into(), place);
            if places.len() > MAX_ENTRIES {
                return Err(ArchiveError::Format("it has too many files".to_owned()));
            }
        }
        Ok(Self(Kind::Tar { tar: Arc::new(file), places }))
    }

    /// Opens a file; `None`: it is not there.
    pub fn file(&self, path: &str) -> Result<Option<ArchiveFile>, ArchiveError> {
        let failed = |source: io::Error| ArchiveError::Read { name: path.to_owned(), source };
        match &self.0 {
            Kind::Directory(dir) => {
                // NONBLOCK: a fifo must not keep us waiting.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                    Ok(fd) => File::from(fd),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(error) => return Err(failed(error.into())),
                };
                let meta = file.metadata().map_err(failed)?;
                if !meta.is_file() {
                    return Err(failed(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it is not a regular file",
                    )));
                }
                Ok(Some(ArchiveFile { file: Arc::new(file), offset: 0, end: meta.len() }))
            }
            Kind::Tar { tar, places } => {
                let mut path = path.as_bytes();
                for _ in 0..MAX_LINKS {
                    match places.get(path) {
                        None => return Ok(None),
                        Some(Place::Link(target)) => path = target,
                        Some(Place::Range { offset, size }) => {
                            let end = offset.saturating_add(*size);
                            return Ok(Some(ArchiveFile { file: tar.clone(), offset: *offset, end }));
                        }
                    }
                }
                Err(ArchiveError::Format("links in it lead to each other".to_owned()))
            }
        }
    }

    /// Reads a small file whole; `None`: it is not there.
    pub fn document(&self, path: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(mut file) = self.file(path)? else { return Ok(None) };
        if file.size() > MAX_DOCUMENT {
            return Err(ArchiveError::Format(format!("{path} is too long")));
        }
        let mut bytes = Vec::new();
        match file.read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(ArchiveError::Read { name: path.to_owned(), source }),
        }
    }

    /// Opens the blob that `descriptor` describes, to be verified as it is read; `None`: it is not there.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Option<Verified<ArchiveFile>>, ArchiveError> {
        let path = blob_path(descriptor);
        Ok(self.file(&path)?.map(|file| Verified::new(file, descriptor.digest, descriptor.size)))
    }

    /// Reads and verifies a document; `None`: it is not there.
    pub fn blob_document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.blob_bytes(descriptor, MAX_DOCUMENT)
    }

    /// A blob of no more than `limit` bytes, verified.
    pub fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let name = || blob_path(descriptor);
        if descriptor.size > limit {
            return Err(ArchiveError::Format(format!("{} is too long", name())));
        }
        let Some(mut blob) = self.blob(descriptor)? else { return Ok(None) };
        let mut bytes = Vec::new();
        match blob.read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(ArchiveError::Read { name: name(), source }),
        }
    }
}

impl ArchiveFile {
    /// Bytes that are left.
    pub fn size(&self) -> u64 {
        self.end - self.offset
    }
}

impl Read for ArchiveFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.size()).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..len], self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// Where a layout has a blob.
pub(crate) fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/{}/{}", descriptor.digest.algorithm(), descriptor.digest.hex())
}

/// What the link at `path` with this target means, among the names of the tar; `None`: something outside.
fn join(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    parts.pop();
    if target.first() == Some(&b'/') {
        parts.clear();
    }
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_among_the_names_of_the_tar() {
        for (path, target, found) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "layer2.tar", Some("a/layer2.tar")),
            ("a/layer.tar", "/b", Some("b")),
            ("a", "../b", None),
            ("a/b", "../../etc/passwd", None),
        ] {
            assert_eq!(
                join(path.as_bytes(), target.as_bytes()),
                found.map(|f| f.as_bytes().to_vec()),
                "{target}"
            );
        }
    }
}
