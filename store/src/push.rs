//! An image of this root into a registry: tar -> compress -> hash -> upload in one pass, and only what is missing there.
//!
//! A layer goes in the form it has: the blob that was pulled, or the one that we made of it before. Where the registry
//! has that blob, nothing is sent; where a neighbouring repository has it, it is mounted; where only another registry has
//! it, it is passed on without touching the disk. Else the layer's tar is compressed while it is sent. Then the config,
//! then the manifest, then the index.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use image::manifest::{Document, media_type};
use image::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, Reference};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::blocks::{self, Packed};
use crate::compress::{Algorithm, Compression};
use crate::error::StoreError;
use crate::layer::LayerBlob;
use crate::pool;
use crate::registry::{Body, Client, Piece, Progress, Pushed, RegistryError, Source, Stretch};
use crate::root::Root;
use crate::tag::layers_of;
use crate::timing::{self, Of};

/// Compressed bytes that are in no file are handed over in pieces of this length.
const PIECE: usize = 256 << 10;
/// How many pieces may wait for the network.
const PIECES: usize = 8;

/// How an image is pushed.
#[derive(Clone, Debug)]
pub struct Options {
    /// For layers that have no compressed form yet.
    pub compression: Compression,
    /// Compress layers anew that have another one (`force-compression`).
    pub force: bool,
    /// OCI media types for images that were made here, else Docker's.
    pub oci: bool,
}

/// An image that could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry did not take it.
    #[error("could not push {what} to {target}: {source}")]
    Registry {
        /// `layer ..`, `config`, `manifest`.
        what: String,
        /// Where to.
        target: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// A layer is neither here nor where it once was.
    #[error("could not push layer {0}: it is not here, and no registry is known to have it")]
    Unknown(DiffId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens to a layer on its way, for whoever shows it.
pub trait Watch {
    /// A layer begins; the bytes are its compressed ones.
    fn begin(&self, diff_id: &DiffId) -> Progress;
    /// It is there.
    fn end(&self, diff_id: &DiffId, blob: &Descriptor, how: Pushed);
}

/// Nobody watches.
impl Watch for () {
    fn begin(&self, _: &DiffId) -> Progress {
        Progress::none()
    }

    fn end(&self, _: &DiffId, _: &Descriptor, _: Pushed) {}
}

/// Pushes what is stored under `image`, a manifest or an index, as `target`. Returns what the registry has now: layers
/// that were not compressed here are there, so the digest is another one for images made here.
///
/// Of an index that is here in part, that part is pushed.
pub async fn push(
    root: &Root,
    client: &Client,
    image: &Descriptor,
    target: &Reference,
    options: &Options,
    watch: &impl Watch,
) -> Result<Descriptor, PushError> {
    let push = Push { root, client, target, options, watch };
    match root.images().document(image)? {
        Document::Manifest(manifest) => push.manifest(image, &manifest, target).await,
        Document::Index(index) => push.index(image, &index).await,
    }
}

/// What an artifact of layers is, once it is known which blobs they are.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its manifest or index: media type and bytes.
    pub document: (String, Vec<u8>),
    /// Its config.
    pub config: Bytes,
}

/// Pushes layers, then the config and the document that `make` makes of their blobs, in the layers' order. A layer that is
/// neither here nor at a registry has none. Returns the document's descriptor.
pub async fn push_artifact(
    root: &Root,
    client: &Client,
    layers: &[DiffId],
    target: &Reference,
    options: &Options,
    watch: &impl Watch,
    make: impl Fn(&[Option<Descriptor>]) -> Artifact,
) -> Result<Descriptor, PushError> {
    let push = &Push { root, client, target, options, watch };
    let mut certain = false;
    loop {
        let work = layers.iter().map(|&diff_id| async move {
            // As a manifest made here lists it: uncompressed, of a length that does not matter.
            let named = Descriptor::new(media_type::OCI_LAYER, diff_id.0, 0);
            match push.layer(diff_id, &named, certain).await {
                Ok(blob) => Ok(Some(blob)),
                Err(PushError::Unknown(_)) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let blobs = try_join_all(work).await?;
        let Artifact { document: (media_type, bytes), config } = make(&blobs);
        let descriptor = Descriptor::of("", &config);
        push.client
            .push_blob(target, &descriptor, Body::Bytes(config), None, certain, &Progress::none())
            .await
            .map_err(|error| push.refused("cache config", error))?;
        match push.put_document(target, &media_type, &bytes).await {
            Err(PushError::Registry { source, .. }) if source.is_blob_unknown() && !certain => certain = true,
            result => return result,
        }
    }
}

struct Push<'a, W> {
    root: &'a Root,
    client: &'a Client,
    target: &'a Reference,
    options: &'a Options,
    watch: &'a W,
}

impl<W: Watch> Push<'_, W> {
    async fn index(&self, descriptor: &Descriptor, index: &Index) -> Result<Descriptor, PushError> {
        let mut pushed = index.clone();
        pushed.manifests.clear();
        for child in &index.manifests {
            if !self.root.blobs().contains(&child.digest)? {
                continue;
            }
            let Document::Manifest(manifest) = self.root.images().document(child)? else { continue };
            let by_digest = Reference { tag: None, ..self.target.by_digest(child.digest) };
            let there = self.manifest(child, &manifest, &by_digest).await?;
            pushed.manifests.push(Descriptor {
                digest: there.digest,
                size: there.size,
                media_type: there.media_type,
                ..child.clone()
            });
        }
        if pushed.manifests.is_empty() {
            return Err(StoreError::Missing { what: "image", name: descriptor.digest.to_string() }.into());
        }
        let bytes = if pushed == *index {
            self.root.blobs().read(&descriptor.digest)?
        } else {
            serde_json::to_vec_pretty(&pushed).expect("an index has string keys only")
        };
        self.put_document(self.target, &descriptor.media_type, &bytes).await
    }

    async fn manifest(
        &self,
        descriptor: &Descriptor,
        manifest: &Manifest,
        target: &Reference,
    ) -> Result<Descriptor, PushError> {
        let original = self.root.blobs().read(&descriptor.digest)?;
        let config = self.root.blobs().read(&manifest.config.digest)?;
        let layers = serde_json::from_slice::<ImageConfig>(&config)
            .ok()
            .and_then(|config| layers_of(manifest, &config).ok())
            .filter(|_| manifest.artifact_type.is_none());
        let mut certain = false;
        loop {
            let (media_type, bytes) = match &layers {
                Some(layers) => {
                    let work = layers.iter().map(|(diff_id, blob)| self.layer(*diff_id, blob, certain));
                    let blobs = try_join_all(work).await?;
                    self.fill_in(manifest, blobs, &original)
                }
                None => {
                    // An artifact: blobs that we know nothing of but their digests.
                    try_join_all(manifest.layers.iter().map(|blob| self.stored_blob(blob, certain))).await?;
                    (descriptor.media_type.clone(), original.clone())
                }
            };
            let body = Body::Bytes(Bytes::from(config.clone()));
            self.client
                .push_blob(self.target, &manifest.config, body, None, certain, &Progress::none())
                .await
                .map_err(|error| self.refused("config", error))?;
            match self.put_document(target, &media_type, &bytes).await {
                // It said that it had a blob, and now it has not: a cache that lies, or a deletion meanwhile.
                Err(PushError::Registry { source, .. }) if source.is_blob_unknown() && !certain => {
                    certain = true;
                }
                result => return result,
            }
        }
    }

    /// The manifest with the blobs that are at the registry; as it was, if they are the ones it names.
    fn fill_in(&self, manifest: &Manifest, blobs: Vec<Descriptor>, original: &[u8]) -> (String, Vec<u8>) {
        let same = manifest.layers.iter().map(|l| l.digest).eq(blobs.iter().map(|blob| blob.digest));
        if same {
            let kind =
                if manifest.media_type.is_empty() { media_type::OCI_MANIFEST } else { &manifest.media_type };
            return (kind.to_owned(), original.to_vec());
        }
        let (kind, config_kind) = if self.options.oci {
            (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
        } else {
            (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
        };
        let mut filled = manifest.clone();
        filled.media_type = kind.to_owned();
        filled.config.media_type = config_kind.to_owned();
        filled.layers = blobs;
        (kind.to_owned(), serde_json::to_vec_pretty(&filled).expect("a manifest has string keys only"))
    }

    async fn put_document(
        &self,
        target: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Descriptor, PushError> {
        let target = match target.digest {
            // The digest may be another one by now.
            Some(_) => target.by_digest(Digest::of(bytes)),
            None => target.clone(),
        };
        self.client
            .put_manifest(&target, media_type, Bytes::copy_from_slice(bytes))
            .await
            .map_err(|error| self.refused("manifest", error))
    }

    /// Makes sure that the layer is there. Returns the blob that it is there.
    async fn layer(
        &self,
        diff_id: DiffId,
        named: &Descriptor,
        certain: bool,
    ) -> Result<Descriptor, PushError> {
        let layers = self.root.layers();
        let progress = self.watch.begin(&diff_id);
        let have_tar = layers.contains(&diff_id)?;
        let mut failure = None;
        for blob in self.forms(diff_id, named)? {
            let descriptor = self.descriptor(&blob, named);
            match self.place(&descriptor, certain, &progress).await {
                Ok(Some(how)) => {
                    layers.remember_location(&blob.digest, &self.target.registry, &self.target.repository)?;
                    self.watch.end(&diff_id, &descriptor, how);
                    return Ok(descriptor);
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        if !have_tar {
            return Err(failure.unwrap_or(PushError::Unknown(diff_id)));
        }
        let compression = self.options.compression;
        let source = Arc::new(TarSource { root: self.root.clone(), diff_id, compression });
        let upload = timing::phase("upload", Of::Layer(diff_id));
        let (digest, size, how) = self
            .client
            .push_source(self.target, source, certain, &progress)
            .await
            .map_err(|error| self.refused(&format!("layer {diff_id}"), error))?;
        upload.end();
        let blob = LayerBlob {
            digest,
            size,
            media_type: compression.algorithm.oci_media_type().unwrap_or(media_type::OCI_LAYER).to_owned(),
            algorithm: compression.algorithm,
            level: Some(compression.level),
            annotations: BTreeMap::new(),
        };
        layers.remember_blob(&diff_id, &blob)?;
        layers.remember_location(&digest, &self.target.registry, &self.target.repository)?;
        let descriptor = self.descriptor(&blob, named);
        self.watch.end(&diff_id, &descriptor, how);
        Ok(descriptor)
    }

    /// The compressed forms in which the layer may be pushed without compressing it, the best first.
    fn forms(&self, diff_id: DiffId, named: &Descriptor) -> Result<Vec<LayerBlob>, StoreError> {
        let wanted = self.options.compression;
        let mut forms = self.root.layers().blobs_of(&diff_id)?;
        let rank = |blob: &LayerBlob| {
            let ours = blob.algorithm == wanted.algorithm && blob.level == Some(wanted.level);
            match () {
                // What the manifest names keeps its digest.
                () if blob.digest == named.digest && blob.digest != diff_id.0 => Some(0),
                // What was pulled is at registries already.
                () if blob.level.is_none() => Some(1),
                () if ours => Some(2),
                () => None,
            }
        };
        forms.retain(|blob| match self.options.force {
            true => {
                blob.algorithm == wanted.algorithm && blob.level.is_none_or(|level| level == wanted.level)
            }
            false => rank(blob).is_some(),
        });
        forms.sort_by_key(rank);
        if named.digest != diff_id.0 && !self.options.force && forms.iter().all(|f| f.digest != named.digest)
        {
            forms.insert(
                0,
                LayerBlob {
                    digest: named.digest,
                    size: named.size,
                    media_type: named.media_type.clone(),
                    algorithm: Algorithm::of_media_type(&named.media_type).unwrap_or(Algorithm::None),
                    level: None,
                    annotations: named.annotations.clone(),
                },
            );
        }
        Ok(forms)
    }

    /// The blob's descriptor in a manifest of the kind that is pushed.
    fn descriptor(&self, blob: &LayerBlob, named: &Descriptor) -> Descriptor {
        if blob.digest == named.digest {
            return named.clone();
        }
        let kind = match self.options.oci {
            true => blob.algorithm.oci_media_type(),
            false => blob.algorithm.docker_media_type(),
        };
        let mut descriptor = blob.descriptor();
        if let Some(kind) = kind {
            descriptor.media_type = kind.to_owned();
        }
        descriptor
    }

    /// Makes sure that a blob is there, if it can be had without making it. `None`: it cannot.
    async fn place(
        &self,
        blob: &Descriptor,
        certain: bool,
        progress: &Progress,
    ) -> Result<Option<Pushed>, PushError> {
        let layers = self.root.layers();
        let refused = |error| self.refused(&format!("layer {}", blob.digest), error);
        let locations = layers.locations(&blob.digest)?;
        let neighbours = locations.iter().filter(|(registry, repository)| {
            *registry == self.target.registry && *repository != self.target.repository
        });
        let neighbour = neighbours.map(|(_, repository)| repository.as_str()).next();
        if self.root.blobs().contains(&blob.digest)? {
            let body = Body::Source(Arc::new(BlobSource { root: self.root.clone(), blob: blob.clone() }));
            let pushed = self.client.push_blob(self.target, blob, body, neighbour, certain, progress);
            return pushed.await.map(Some).map_err(refused);
        }
        if !certain {
            if self.client.has_blob(self.target, &blob.digest).await.map_err(refused)? {
                return Ok(Some(Pushed::Existed));
            }
            layers.forget_location(&blob.digest, &self.target.registry, &self.target.repository)?;
            if let Some(from) = neighbour
                && self.client.mount_blob(self.target, &blob.digest, from).await.map_err(refused)?
            {
                return Ok(Some(Pushed::Mounted));
            }
        }
        let mut failure = None;
        for (registry, repository) in locations {
            if registry == self.target.registry && repository == self.target.repository {
                continue;
            }
            let from = Reference { registry, repository, tag: None, digest: None };
            let body = Body::Source(Arc::new(RemoteSource {
                client: self.client.clone(),
                from,
                blob: blob.clone(),
            }));
            match self.client.push_blob(self.target, blob, body, None, true, progress).await {
                Ok(pushed) => return Ok(Some(pushed)),
                // The other registry's trouble; there may be another way.
                Err(RegistryError::Source(error)) => failure = Some(RegistryError::Source(error)),
                Err(error) => return Err(refused(error)),
            }
        }
        failure.map_or(Ok(None), |error| Err(refused(error)))
    }

    /// Pushes a blob of an artifact.
    async fn stored_blob(&self, blob: &Descriptor, certain: bool) -> Result<(), PushError> {
        match self.place(blob, certain, &Progress::none()).await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Missing { what: "blob", name: blob.digest.to_string() }.into()),
        }
    }

    fn refused(&self, what: &str, error: RegistryError) -> PushError {
        PushError::Registry { what: what.to_owned(), target: self.target.familiar(), source: Box::new(error) }
    }
}

/// A layer's tar, compressed while it is sent.
struct TarSource {
    root: Root,
    diff_id: DiffId,
    compression: Compression,
}

impl Source for TarSource {
    fn open(&self) -> mpsc::Receiver<Piece> {
        let (root, diff_id, compression) = (self.root.clone(), self.diff_id, self.compression);
        on_pool(move |pieces| {
            let _phase = timing::phase("compress", Of::Layer(diff_id));
            let take = |packed: Packed<'_>| match packed {
                Packed::Bytes(bytes) => pieces.bytes(bytes),
                Packed::Stored(stretch) => pieces.stored(stretch),
            };
            let compressed = blocks::pack(&root, &diff_id, compression, false, take)?;
            Ok((compressed.digest, compressed.size))
        })
    }
}

/// A compressed blob of the store.
struct BlobSource {
    root: Root,
    blob: Descriptor,
}

impl Source for BlobSource {
    /// Not on the pool, whose threads may be long at work on other layers: the file is read when its bytes are sent.
    fn open(&self) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(2);
        let pieces = match self.whole() {
            Ok(whole) => {
                let end = Piece::End { digest: self.blob.digest, size: whole.len };
                vec![Piece::Stored(whole), end]
            }
            Err(error) => vec![Piece::Failed(error)],
        };
        for piece in pieces {
            sender.try_send(piece).expect("there is room for two");
        }
        receiver
    }
}

impl BlobSource {
    fn whole(&self) -> Result<Stretch, Box<dyn std::error::Error + Send + Sync>> {
        let file = self.root.blobs().open(&self.blob.digest)?;
        let len = file.metadata()?.len();
        Ok(Stretch { file: Arc::new(file), at: 0, len })
    }
}

/// A blob of another registry, passed on. The registry that gets it checks its digest.
pub(crate) struct RemoteSource {
    pub(crate) client: Client,
    pub(crate) from: Reference,
    pub(crate) blob: Descriptor,
}

impl Source for RemoteSource {
    fn open(&self) -> mpsc::Receiver<Piece> {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let (client, from, blob) = (self.client.clone(), self.from.clone(), self.blob.clone());
        let fetch = async move {
            let work = async {
                let mut stream = client.blob(&from, &blob, 0).await?;
                while let Some(chunk) = stream.next().await? {
                    if pieces.send(Piece::Data(chunk)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok::<(), RegistryError>(())
            };
            // Ends with the upload, however long the other registry would take.
            let last = tokio::select! {
                () = pieces.closed() => return,
                result = work => match result {
                    Ok(()) => Piece::End { digest: blob.digest, size: blob.size },
                    Err(error) => Piece::Failed(Box::new(error)),
                },
            };
            let _ = pieces.send(last).await;
        };
        tokio::spawn(fetch);
        receiver
    }
}

type Made = Result<(Digest, u64), Box<dyn std::error::Error + Send + Sync>>;

/// Runs a job of the pool that hands over the pieces.
fn on_pool(make: impl FnOnce(&mut Pieces) -> Made + Send + 'static) -> mpsc::Receiver<Piece> {
    let (sender, receiver) = mpsc::channel(PIECES);
    drop(pool::start(move || {
        let mut pieces = Pieces { sender, stored: None };
        let made = make(&mut pieces).and_then(|made| {
            pieces.rest()?;
            Ok(made)
        });
        let last = match made {
            Ok((digest, size)) => Piece::End { digest, size },
            Err(error) => Piece::Failed(error),
        };
        // Nobody listens any more: the upload was given up.
        let _ = pieces.send(last);
    }));
    receiver
}

/// Bytes to the runtime's thread.
struct Pieces {
    sender: mpsc::Sender<Piece>,
    // What is in a file does not wait for the network: it grows while there is no room for it.
    stored: Option<Stretch>,
}

impl Pieces {
    fn send(&self, piece: Piece) -> io::Result<()> {
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.rest()?;
        bytes.chunks(PIECE).try_for_each(|piece| self.send(Piece::Data(Bytes::copy_from_slice(piece))))
    }

    /// The bytes of the file behind those that came before.
    fn stored(&mut self, stretch: Stretch) -> io::Result<()> {
        let whole = match self.stored.take() {
            Some(before) => Stretch { len: before.len + stretch.len, ..before },
            None => stretch,
        };
        match self.sender.try_send(Piece::Stored(whole)) {
            Err(TrySendError::Full(Piece::Stored(whole))) => self.stored = Some(whole),
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            Ok(()) => {}
        }
        Ok(())
    }

    fn rest(&mut self) -> io::Result<()> {
        self.stored.take().map_or(Ok(()), |stretch| self.send(Piece::Stored(stretch)))
    }
}
