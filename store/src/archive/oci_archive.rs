//! An OCI image layout as a tar: the same content gives the same bytes.

use std::io::{Read, Write};

use image::layer::{Data, Entry, Kind, LayerWriter};

use super::ArchiveError;
use super::content::Content;
use super::oci_layout::{LAYOUT, index_json};

/// Writes `content` to `sink`.
pub fn write(content: &Content, sink: impl Write + Send) -> Result<(), ArchiveError> {
    let mut small =
        vec![("index.json".to_owned(), index_json(content)), ("oci-layout".to_owned(), LAYOUT.into())];
    write_tar(content, &mut small, sink)
}

/// Writes the blobs of `content` and some small files.
pub(crate) fn write_tar(
    content: &Content,
    small: &mut [(String, Vec<u8>)],
    sink: impl Write + Send,
) -> Result<(), ArchiveError> {
    let mut tar = LayerWriter::new(sink);
    let mut blobs: Vec<(String, u64, Source<'_>)> = Vec::new();
    for (digest, bytes) in &content.documents {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        blobs.push((path, bytes.len() as u64, Source::Bytes(bytes)));
    }
    for (digest, layer) in &content.layers {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        blobs.push((path, layer.descriptor.size, Source::Layer(layer)));
    }
    blobs.sort_by(|a, b| a.0.cmp(&b.0));
    blobs.dedup_by(|a, b| a.0 == b.0);
    append(&mut tar, "blobs", None, &mut std::io::empty())?;
    let mut dir = "";
    for (path, size, source) in &blobs {
        let (parent, _) = path.rsplit_once('/').expect("blobs lie two directories deep");
        if parent != dir {
            append(&mut tar, parent, None, &mut std::io::empty())?;
            dir = parent;
        }
        match source {
            Source::Bytes(bytes) => append(&mut tar, path, Some(*size), &mut &bytes[..])?,
            Source::Layer(layer) => append(&mut tar, path, Some(*size), &mut layer.open()?)?,
        }
    }
    small.sort();
    for (path, bytes) in small {
        append(&mut tar, path, Some(bytes.len() as u64), &mut &bytes[..])?;
    }
    let (mut sink, _) = tar.finish().map_err(failed)?;
    sink.flush().map_err(ArchiveError::Write)
}

enum Source<'a> {
    Bytes(&'a [u8]),
    Layer(&'a super::content::LayerFile),
}

fn append(
    tar: &mut LayerWriter<impl Write + Send>,
    path: &str,
    size: Option<u64>,
    bytes: &mut (dyn Read + Send),
) -> Result<(), ArchiveError> {
    let content = image::ContentDigest::of(b"");
    let (kind, mode, data) = match size {
        None => (Kind::Directory { opaque: false, implied: false }, 0o755, Data::None),
        Some(0) => (Kind::File { size: 0, offset: 0, content }, 0o644, Data::None),
        // Nobody asks for the archive's own index: no hash is worked out.
        Some(size) => (Kind::File { size, offset: 0, content }, 0o644, Data::Known(bytes)),
    };
    let entry = Entry { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: Default::default() };
    tar.append(entry, data).map_err(failed)
}

fn failed(error: image::layer::write::WriteError) -> ArchiveError {
    match error {
        image::layer::write::WriteError::Write(error) => ArchiveError::Write(error),
        other => ArchiveError::Write(std::io::Error::other(other)),
    }
}
