//! Which image a name means: [`Images`] finds manifests and configs, never layers.
//!
//! In order: an image of this store that has the name, what the name meant when it was last asked for, the registry. So a
//! build whose bases are known asks nobody. With [`Policy::Newest`] the registry comes first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use image::manifest::Document;
use image::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference};
use solver::op::Source;
use store::archive::{ArchiveError, OciLayout};
use store::compress::Algorithm;
use store::error::StoreError;
use store::layer::LayerBlob;
use store::registry::{Client, RegistryError};
use store::root::Root;
use store::tag::layers_of;

use super::image::OCI_LAYOUT;

/// The largest image config that is read, bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// An image, as far as it is known without its layers.
#[derive(Clone, Debug)]
pub struct Found {
    /// The name it was found under.
    pub reference: Reference,
    /// Its manifest's descriptor.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: ImageConfig,
}

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// If the name is not known here.
    #[default]
    Missing,
    /// Always: `--pull`.
    Newest,
    /// Never.
    Never,
}

/// An image that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry did not give it.
    #[error("could not resolve image {reference}: {source}", reference = reference.familiar())]
    Registry {
        /// Which image.
        reference: Box<Reference>,
        /// Why.
        source: Box<RegistryError>,
    },
    /// There is no such image here, and no registry is to be asked.
    #[error("there is no image {} on this host", .0.familiar())]
    NotHere(Box<Reference>),
    /// It has a name here, and its manifest or config is lost.
    #[error("image {} is damaged on this host, and no registry has it: build, load or pull it again", .0.familiar())]
    Damaged(Box<Reference>),
    /// It is for other platforms.
    #[error("image {reference} has no manifest for {platform}; it has {available}", reference = reference.familiar())]
    Platform {
        /// Which image.
        reference: Box<Reference>,
        /// What was wanted.
        platform: Box<Platform>,
        /// What there is.
        available: String,
    },
    /// Its config is not JSON that is a config.
    #[error("could not read the config of image {reference}: {source}", reference = reference.familiar())]
    Config {
        /// Which image.
        reference: Box<Reference>,
        /// Why.
        source: serde_json::Error,
    },
    /// An index in an index.
    #[error("could not use image {}: its index leads to another index", .0.familiar())]
    Nested(Box<Reference>),
    /// An OCI layout that cannot be read.
    #[error("could not read OCI layout {path}: {source}")]
    Layout {
        /// The directory.
        path: String,
        /// Why.
        source: Box<ArchiveError>,
    },
    /// The layout has no such image.
    #[error("could not find an image in OCI layout {path}: {wanted}")]
    NotInLayout {
        /// The directory.
        path: String,
        /// What was looked for.
        wanted: String,
    },
    /// A source that is no image, which is a bug.
    #[error("internal error: the source is not an image")]
    NotImage,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds images by name. What was found stays the same for the life of the value.
#[derive(Debug)]
pub struct Images {
    root: Root,
    client: Rc<Client>,
    policy: Policy,
    found: RefCell<HashMap<Source, Rc<Found>>>,
}

impl Images {
    /// Looks in `root`, then at registries through `client`.
    pub fn new(root: Root, client: Rc<Client>, policy: Policy) -> Self {
        Self { root, client, policy, found: RefCell::default() }
    }

    /// The registry client.
    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// The manifest that was found for `source`, if it was looked for.
    pub fn known(&self, source: &Source) -> Option<Digest> {
        self.found.borrow().get(source).map(|found| found.digest())
    }

    /// The image that `reference` means for `platform`.
    pub async fn find(&self, reference: &Reference, platform: &Platform) -> Result<Rc<Found>, ImageError> {
        let key = Source::Image { reference: reference.clone(), platform: platform.clone() };
        if let Some(found) = self.found.borrow().get(&key) {
            return Ok(found.clone());
        }
        let found = Rc::new(self.look(&reference.clone().with_default_tag(), platform).await?);
        self.found.borrow_mut().insert(key, found.clone());
        Ok(found)
    }

    /// The image that a source means: one in a registry or store by name, or one in an OCI layout.
    pub async fn find_source(&self, source: &Source) -> Result<Rc<Found>, ImageError> {
        match source {
            Source::Image { reference, platform } => self.find(reference, platform).await,
            Source::OciLayout { path, tag, digest, platform } => {
                if let Some(found) = self.found.borrow().get(source) {
                    return Ok(found.clone());
                }
                let found = Rc::new(self.read_layout(path, tag.as_deref(), digest.as_ref(), platform)?);
                self.found.borrow_mut().insert(source.clone(), found.clone());
                Ok(found)
            }
            _ => Err(ImageError::NotImage),
        }
    }

    async fn look(&self, reference: &Reference, platform: &Platform) -> Result<Found, ImageError> {
        if self.policy != Policy::Newest
            && let Some(found) = self.look_here(reference, platform)?
        {
            return Ok(found);
        }
        if self.policy == Policy::Never {
            return Err(self.lost(reference)?);
        }
        match self.ask_registry(reference, platform).await {
            // An image that was only ever built here has no registry to be newer in.
            Err(ImageError::Registry { .. }) if self.root.tags().get(reference)?.is_some() => {
                match self.look_here(reference, platform)? {
                    Some(found) => Ok(found),
                    None => Err(self.lost(reference)?),
                }
            }
            result => result,
        }
    }

    /// What to say of an image that is not here, or not whole.
    fn lost(&self, reference: &Reference) -> Result<ImageError, StoreError> {
        let reference = Box::new(reference.clone());
        Ok(match self.root.tags().get(&reference)? {
            Some(_) => ImageError::Damaged(reference),
            None => ImageError::NotHere(reference),
        })
    }

    fn look_here(&self, reference: &Reference, platform: &Platform) -> Result<Option<Found>, ImageError> {
        let tagged = match reference.digest {
            None => self.root.tags().get(reference)?,
            Some(digest) => self.root.images().get(&digest)?,
        };
        let pinned = match &tagged {
            Some(_) => None,
            None => self.pinned(reference, platform)?,
        };
        let Some(descriptor) = tagged.or(pinned) else { return Ok(None) };
        let found = self.root.images().manifest(&descriptor, platform).and_then(|manifest| {
            let Some((descriptor, manifest)) = manifest else { return Ok(None) };
            let config = self.root.images().config(&manifest.config)?;
            Ok(Some(Found { reference: reference.clone(), descriptor, manifest, config }))
        });
        match found {
            // A document that was pruned or damaged is fetched again.
            Err(error) if error.is_missing() => Ok(None),
            result => Ok(result?),
        }
    }

    /// An image in an OCI layout. Its layers stay there until they are needed.
    fn read_layout(
        &self,
        path: &str,
        tag: Option<&str>,
        digest: Option<&Digest>,
        platform: &Platform,
    ) -> Result<Found, ImageError> {
        let failed = |source| ImageError::Layout { path: path.to_owned(), source: Box::new(source) };
        let damaged = |digest, source| failed(ArchiveError::Document { digest, source });
        let layout = OciLayout::open(&self.root, Path::new(path)).map_err(failed)?;
        let top = layout.find(tag, digest).ok_or_else(|| {
            let wanted = match (tag, digest) {
                (_, Some(digest)) => format!("{digest} is not there"),
                (Some(tag), None) => format!("tag {tag:?} is not there"),
                (None, None) => "it has several, and none is called latest".to_owned(),
            };
            ImageError::NotInLayout { path: path.to_owned(), wanted }
        })?;
        let reference = Reference {
            registry: OCI_LAYOUT.to_owned(),
            repository: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: Some(top.digest),
        };
        let read = |descriptor: &Descriptor| -> Result<Document, ImageError> {
            let bytes = layout.document(descriptor).map_err(failed)?;
            self.root.images().put_document(&descriptor.media_type, &bytes)?;
            Document::parse(&bytes, Some(&descriptor.media_type))
                .map_err(|source| damaged(descriptor.digest, source))
        };
        let (descriptor, manifest) = match read(top)? {
            Document::Manifest(manifest) => (top.clone(), manifest),
            Document::Index(index) => {
                let wanted = select(&reference, &index, platform)?;
                match read(wanted)? {
                    Document::Manifest(manifest) => (wanted.clone(), manifest),
                    Document::Index(_) => return Err(ImageError::Nested(Box::new(reference))),
                }
            }
        };
        let bytes = layout.document(&manifest.config).map_err(failed)?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Config { reference: Box::new(reference.clone()), source })?;
        self.root.images().put_document(&manifest.config.media_type, &bytes)?;
        self.remember_layers(&reference, &manifest, &config)?;
        Ok(Found { reference, descriptor, manifest, config })
    }

    async fn ask_registry(&self, reference: &Reference, platform: &Platform) -> Result<Found, ImageError> {
        let failed = |source| ImageError::Registry {
            reference: Box::new(reference.clone()),
            source: Box::new(source),
        };
        let images = self.root.images();
        let top = self.client.resolve(reference).await.map_err(failed)?;
        images.put_document(&top.descriptor.media_type, &top.bytes)?;
        let (descriptor, manifest) = match top.document {
            Document::Manifest(manifest) => (top.descriptor, manifest),
            Document::Index(index) => {
                let wanted = select(reference, &index, platform)?;
                let inner = self.client.resolve(&reference.by_digest(wanted.digest)).await.map_err(failed)?;
                images.put_document(&inner.descriptor.media_type, &inner.bytes)?;
                match inner.document {
                    Document::Manifest(manifest) => (inner.descriptor, manifest),
                    Document::Index(_) => return Err(ImageError::Nested(Box::new(reference.clone()))),
                }
            }
        };
        let bytes = self.client.blob_bytes(reference, &manifest.config, MAX_CONFIG).await.map_err(failed)?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Config { reference: Box::new(reference.clone()), source })?;
        images.put_document(&manifest.config.media_type, &bytes)?;
        self.remember_layers(reference, &manifest, &config)?;
        self.pin(reference, platform, &descriptor)?;
        Ok(Found { reference: reference.clone(), descriptor, manifest, config })
    }

    /// Notes which blobs the layers are, and that this repository has them.
    fn remember_layers(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        config: &ImageConfig,
    ) -> Result<(), ImageError> {
        let layers = self.root.layers();
        for (diff_id, descriptor) in layers_of(manifest, config)? {
            layers.remember_blob(
                &diff_id,
                &LayerBlob {
                    digest: descriptor.digest,
                    size: descriptor.size,
                    algorithm: Algorithm::of_media_type(&descriptor.media_type).unwrap_or(Algorithm::None),
                    media_type: descriptor.media_type,
                    level: None,
                    annotations: descriptor.annotations,
                },
            )?;
            layers.remember_location(&descriptor.digest, &reference.registry, &reference.repository)?;
        }
        Ok(())
    }

    fn pin(
        &self,
        reference: &Reference,
        platform: &Platform,
        descriptor: &Descriptor,
    ) -> Result<(), ImageError> {
        let value = serde_json::to_vec(descriptor).expect("descriptors can be written");
        Ok(self.root.pins().put(&pin_name(reference, platform), &value)?)
    }

    fn pinned(&self, reference: &Reference, platform: &Platform) -> Result<Option<Descriptor>, ImageError> {
        let pin = self.root.pins().get(&pin_name(reference, platform))?;
        Ok(pin.and_then(|pin| serde_json::from_slice(&pin.value).ok()))
    }
}

/// The manifest of `index` for `platform`.
fn select<'i>(
    reference: &Reference,
    index: &'i Index,
    platform: &Platform,
) -> Result<&'i Descriptor, ImageError> {
    index.select(platform).ok_or_else(|| {
        let names = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
        let names: Vec<String> = names.filter(|p| p.os != "unknown").map(ToString::to_string).collect();
        ImageError::Platform {
            reference: Box::new(reference.clone()),
            platform: Box::new(platform.clone()),
            available: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        }
    })
}

fn pin_name(reference: &Reference, platform: &Platform) -> String {
    format!("image {reference} {platform}")
}

impl Found {
    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }
}
