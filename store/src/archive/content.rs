//! [`Content`]: images taken together for an archive or a push: documents, and blobs that are files of the root.
//!
//! A locally built image lists its layers uncompressed; here they get the compression that is asked for, once: the
//! compressed blob is kept and remembered. Manifests and indexes above a layer that changed its form are made anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use image::manifest::{Document, media_type};
use image::{Descriptor, DiffId, Digest, Index, Manifest, Reference};

use super::ArchiveError;
use crate::blocks;
use crate::compress::{Algorithm, Compression};
use crate::error::StoreError;
use crate::layer::LayerBlob;
use crate::lease::{Item, Lease};
use crate::root::Root;
use crate::tag::layers_of;

/// How deep indexes may lie in indexes.
const MAX_DEPTH: u32 = 4;

/// In which form layers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As the manifest lists them.
    AsIs,
    /// In this form where the manifest lists them uncompressed; compressed ones stay as they are.
    Prefer(Compression),
    /// All of them in this form.
    Force(Compression),
}

/// Images ready to be written.
#[derive(Debug)]
pub struct Content {
    /// The images in the order given.
    pub images: Vec<ContentImage>,
    /// Manifests, indexes and configs.
    pub documents: BTreeMap<Digest, Vec<u8>>,
    /// Layers.
    pub layers: BTreeMap<Digest, LayerFile>,
    // What is written must not be pruned meanwhile.
    _lease: Lease,
}

/// One image of a [`Content`].
#[derive(Clone, Debug)]
pub struct ContentImage {
    /// Its manifest or index, as it is written.
    pub descriptor: Descriptor,
    /// Its names.
    pub names: Vec<Reference>,
    /// Its manifests as they are written; more than one for an index.
    pub manifests: Vec<(Descriptor, Manifest)>,
}

/// The bytes of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// Its descriptor in the manifest.
    pub descriptor: Descriptor,
    /// A file of the root with exactly these bytes.
    pub path: PathBuf,
    /// The layer, if it is one of an image's file system.
    pub diff_id: Option<DiffId>,
}

impl LayerFile {
    /// Opens it for reading.
    pub fn open(&self) -> Result<File, StoreError> {
        File::open(&self.path).map_err(StoreError::io("open", &self.path))
    }
}

impl Content {
    /// Takes images of `root` together, compressing layers as `packing` says.
    ///
    /// Of an index those manifests are taken that are here. With none of them here it is an error, as is a layer that
    /// is not here.
    pub fn gather(
        root: &Root,
        images: &[(Descriptor, Vec<Reference>)],
        packing: Packing,
    ) -> Result<Self, ArchiveError> {
        let lease = root.lease(images.iter().map(|(descriptor, _)| Item::Image(descriptor.digest)))?;
        let mut gathering =
            Gathering { root, packing, documents: BTreeMap::new(), layers: BTreeMap::new(), lease };
        let mut done = Vec::new();
        for (descriptor, names) in images {
            let mut manifests = Vec::new();
            let descriptor = gathering.document(descriptor, 0, &mut manifests)?;
            if manifests.is_empty() {
                let name = descriptor.digest.to_string();
                return Err(StoreError::Missing { what: "manifest of image", name }.into());
            }
            done.push(ContentImage { descriptor, names: names.clone(), manifests });
        }
        let Gathering { documents, layers, lease, .. } = gathering;
        Ok(Self { images: done, documents, layers, _lease: lease })
    }

    /// The size of everything, bytes.
    pub fn size(&self) -> u64 {
        let documents: u64 = self.documents.values().map(|bytes| bytes.len() as u64).sum();
        documents + self.layers.values().map(|layer| layer.descriptor.size).sum::<u64>()
    }
}

struct Gathering<'a> {
    root: &'a Root,
    packing: Packing,
    documents: BTreeMap<Digest, Vec<u8>>,
    layers: BTreeMap<Digest, LayerFile>,
    lease: Lease,
}

impl Gathering<'_> {
    fn document(
        &mut self,
        descriptor: &Descriptor,
        depth: u32,
        manifests: &mut Vec<(Descriptor, Manifest)>,
    ) -> Result<Descriptor, ArchiveError> {
        self.lease.add(Item::Blob(descriptor.digest))?;
        let bytes = self.root.blobs().read(&descriptor.digest)?;
        let document = Document::parse(&bytes, Some(&descriptor.media_type))
            .map_err(|source| ArchiveError::Document { digest: descriptor.digest, source })?;
        match document {
            Document::Manifest(manifest) => {
                let (written, manifest) = self.manifest(descriptor, bytes, manifest)?;
                manifests.push((written.clone(), manifest));
                Ok(written)
            }
            Document::Index(index) if depth < MAX_DEPTH => {
                self.index(descriptor, bytes, index, depth, manifests)
            }
            Document::Index(_) => Err(ArchiveError::Format("indexes lie too deep in indexes".to_owned())),
        }
    }

    fn index(
        &mut self,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        mut index: Index,
        depth: u32,
        manifests: &mut Vec<(Descriptor, Manifest)>,
    ) -> Result<Descriptor, ArchiveError> {
        // Attestations name the manifest they are about by its digest.
        let mut renamed = Vec::new();
        for child in &mut index.manifests {
            let is_image =
                media_type::is_manifest(&child.media_type) || media_type::is_index(&child.media_type);
            if !is_image || !self.root.blobs().contains(&child.digest)? {
                continue;
            }
            let written = self.document(child, depth + 1, manifests)?;
            if written.digest != child.digest {
                renamed.push((child.digest.to_string(), written.digest.to_string()));
                *child = written;
            }
        }
        if renamed.is_empty() {
            self.documents.insert(descriptor.digest, bytes);
            return Ok(descriptor.clone());
        }
        for value in index.manifests.iter_mut().flat_map(|child| child.annotations.values_mut()) {
            if let Some((_, new)) = renamed.iter().find(|(old, _)| old == value) {
                new.clone_into(value);
            }
        }
        let bytes = serde_json::to_vec(&index).expect("an index has string keys only");
        Ok(self.made_anew(descriptor, bytes))
    }

    fn manifest(
        &mut self,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
        mut manifest: Manifest,
    ) -> Result<(Descriptor, Manifest), ArchiveError> {
        self.lease.add(Item::Blob(manifest.config.digest))?;
        self.documents.insert(manifest.config.digest, self.root.blobs().read(&manifest.config.digest)?);
        let is_image =
            matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
        let mut changed = false;
        if is_image {
            let config = self.root.images().config(&manifest.config)?;
            let is_docker = manifest.config.media_type == media_type::DOCKER_CONFIG;
            for (at, (diff_id, listed)) in layers_of(&manifest, &config)?.into_iter().enumerate() {
                let file = self.layer(diff_id, &listed, is_docker)?;
                changed |= file.descriptor != listed;
                manifest.layers[at] = file.descriptor.clone();
                self.layers.insert(file.descriptor.digest, file);
            }
        } else {
            for listed in &manifest.layers {
                let file = self.blob(listed, None)?;
                self.layers.insert(listed.digest, file);
            }
        }
        if !changed {
            self.documents.insert(descriptor.digest, bytes);
            return Ok((descriptor.clone(), manifest));
        }
        let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
        Ok((self.made_anew(descriptor, bytes), manifest))
    }

    fn made_anew(&mut self, old: &Descriptor, bytes: Vec<u8>) -> Descriptor {
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        self.documents.insert(digest, bytes);
        Descriptor { digest, size, ..old.clone() }
    }

    fn layer(
        &mut self,
        diff_id: DiffId,
        listed: &Descriptor,
        is_docker: bool,
    ) -> Result<LayerFile, ArchiveError> {
        self.lease.add(Item::Layer(diff_id))?;
        let is_tar = Algorithm::of_media_type(&listed.media_type).is_some();
        // What is attached to an image rather than part of its file system goes as it is.
        if !is_tar {
            return self.blob(listed, None);
        }
        let as_listed = listed.digest != diff_id.0;
        match self.packing {
            Packing::AsIs => self.blob(listed, Some(diff_id)),
            Packing::Prefer(_) if as_listed && self.root.blobs().contains(&listed.digest)? => {
                self.blob(listed, Some(diff_id))
            }
            Packing::Prefer(compression) | Packing::Force(compression) => {
                self.packed(diff_id, compression, is_docker)
            }
        }
    }

    /// The blob of a descriptor, which for an uncompressed layer is its tar.
    fn blob(&mut self, listed: &Descriptor, diff_id: Option<DiffId>) -> Result<LayerFile, ArchiveError> {
        let (blobs, layers) = (self.root.blobs(), self.root.layers());
        self.lease.add(Item::Blob(listed.digest))?;
        let path = if blobs.contains(&listed.digest)? {
            blobs.path(&listed.digest)
        } else if diff_id.is_some_and(|diff_id| diff_id.0 == listed.digest)
            && layers.contains(&DiffId(listed.digest))?
        {
            layers.tar_path(&DiffId(listed.digest))
        } else {
            return Err(StoreError::Missing { what: "blob", name: listed.digest.to_string() }.into());
        };
        Ok(LayerFile { descriptor: listed.clone(), path, diff_id })
    }

    fn packed(
        &mut self,
        diff_id: DiffId,
        compression: Compression,
        is_docker: bool,
    ) -> Result<LayerFile, ArchiveError> {
        let algorithm = compression.algorithm;
        let media_type = match is_docker {
            true => algorithm.docker_media_type(),
            false => algorithm.oci_media_type(),
        }
        .ok_or(crate::compress::CompressError::ReadOnly(algorithm))?;
        if algorithm == Algorithm::None {
            let Some(size) = self.root.layers().size(&diff_id)? else {
                return Err(StoreError::Missing { what: "layer", name: diff_id.to_string() }.into());
            };
            return self.blob(&Descriptor::new(media_type, diff_id.0, size), Some(diff_id));
        }
        let blob = pack(self.root, &diff_id, compression, matches!(self.packing, Packing::Force(_)))?;
        let descriptor = Descriptor { media_type: media_type.to_owned(), ..blob.descriptor() };
        self.blob(&descriptor, Some(diff_id))
    }
}

/// The blob of a layer in a form, made unless it is here: the one that we made before in just this form or, unless
/// `exact`, any of the algorithm, such as the one the layer was pulled as.
pub fn pack(
    root: &Root,
    diff_id: &DiffId,
    compression: Compression,
    exact: bool,
) -> Result<LayerBlob, ArchiveError> {
    let (layers, blobs) = (root.layers(), root.blobs());
    let known = layers.blobs_of(diff_id)?;
    let ours = known.iter().filter(|blob| blob.level == Some(compression.level));
    let others = known.iter().filter(|blob| !exact && blob.level.is_none());
    for blob in others.chain(ours).filter(|blob| blob.algorithm == compression.algorithm) {
        root.hold([Item::Blob(blob.digest)])?;
        if blobs.contains(&blob.digest)? {
            return Ok(blob.clone());
        }
    }
    let media_type = compression
        .algorithm
        .oci_media_type()
        .ok_or(crate::compress::CompressError::ReadOnly(compression.algorithm))?;
    // Two processes that push the same layer compress it once.
    let key = format!("pack {diff_id} {} {}", compression.algorithm.code(), compression.level);
    let _lock = root.locks().lock_blocking(key.as_bytes())?;
    if let Some(blob) = layers.blob_as(diff_id, compression)?
        && blobs.contains(&blob.digest)?
    {
        return Ok(blob);
    }
    let compressed = blocks::pack(root, diff_id, compression, true, |_| Ok(()))?;
    let blob = LayerBlob {
        digest: compressed.digest,
        size: compressed.size,
        media_type: media_type.to_owned(),
        algorithm: compression.algorithm,
        level: Some(compression.level),
        annotations: BTreeMap::new(),
    };
    layers.remember_blob(diff_id, &blob)?;
    Ok(blob)
}
