//! Layers in the form of eStargz ([`compress::estargz`](crate::compress::estargz)): other layers, since the tar has two
//! more files. They are made once, and kept with their blob.

use std::collections::BTreeMap;
use std::io;

use image::layer::index_tar;
use image::manifest::media_type;
use image::{ContentDigest, DiffId, Digest};

use crate::archive::ArchiveError;
use crate::compress::{Algorithm, estargz};
use crate::error::StoreError;
use crate::layer::LayerBlob;
use crate::lease::Item;
use crate::pool;
use crate::root::Root;

/// Annotation of the blob: the digest of its table of contents, by which readers verify what they fetch.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Annotation of the blob: the length of the tar in it.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// The layer as eStargz, with a blob that is here. One that is eStargz already is itself.
pub fn convert(root: &Root, diff_id: &DiffId, level: i32) -> Result<DiffId, ArchiveError> {
    let layers = root.layers();
    if has_blob(root, diff_id)? {
        return Ok(*diff_id);
    }
    let name = |text: String| ContentDigest::of(text.as_bytes()).0;
    let (of, how) =
        (name(format!("layer {diff_id}")), name(format!("estargz of libdeflate 1.26 at {level}")));
    if let Some(known) = root.memo().get(&of, &how)? {
        let known = DiffId(Digest::Sha256(known));
        root.hold([Item::Layer(known)])?;
        if layers.contains(&known)? && has_blob(root, &known)? {
            return Ok(known);
        }
    }
    let index = layers.index(diff_id)?;
    let tar = layers.open_tar(diff_id)?;
    let mut file = root.temp_file()?;
    let failed = |source| StoreError::io("write", layers.tar_path(diff_id))(source);
    let mut write = || estargz::write(&tar, &index, level, &mut file);
    let written = match rayon::current_thread_index() {
        Some(_) => write(),
        None => pool::pool().install(write),
    }
    .map_err(failed)?;
    let mut new = layers.create()?;
    let tar = layers.open_tar(diff_id)?;
    let index = index_tar(estargz::tar_of(&written, tar), &mut new)
        .map_err(|error| failed(io::Error::other(error)))?;
    let made = new.commit(index)?.diff_id;
    root.blobs().publish(file, written.digest, written.size)?;
    let annotations = BTreeMap::from([
        (TOC_DIGEST.to_owned(), written.toc.to_string()),
        (UNCOMPRESSED_SIZE.to_owned(), written.tar_size().to_string()),
    ]);
    let blob = LayerBlob {
        digest: written.digest,
        size: written.size,
        media_type: media_type::OCI_LAYER_GZIP.to_owned(),
        algorithm: Algorithm::Gzip,
        // As if it had come so: nothing compresses it anew.
        level: None,
        annotations,
    };
    layers.remember_blob(&made, &blob)?;
    if let Digest::Sha256(digest) = &made.0 {
        root.memo().put(&of, &how, digest)?;
    }
    Ok(made)
}

fn has_blob(root: &Root, diff_id: &DiffId) -> Result<bool, StoreError> {
    for blob in root.layers().blobs_of(diff_id)? {
        if blob.annotations.contains_key(TOC_DIGEST) {
            root.hold([Item::Blob(blob.digest)])?;
            if root.blobs().contains(&blob.digest)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
