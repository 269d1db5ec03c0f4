//! Which image a name means: [`Images`] finds manifests and configs, never layers.
//!
//! In order: an image of this store that has the name, what the name meant when it was last asked for, the registry. So a
//! build whose bases are known asks nobody. With [`Policy::Newest`] the registry comes first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use image::manifest::Document;
use image::{Descriptor, Digest, ImageConfig, Manifest, Platform, Reference};
use solver::op::Source;
use store::compress::Algorithm;
use store::error::StoreError;
use store::layer::LayerBlob;
use store::registry::{Client, RegistryError};
use store::root::Root;
use store::tag::layers_of;

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
        reference: Reference,
        /// Why.
        source: Box<RegistryError>,
    },
    /// There is no such image here, and no registry is to be asked.
    #[error("there is no image {} on this host", .0.familiar())]
    NotHere(Reference),
    /// It is for other platforms.
    #[error("image {reference} has no manifest for {platform}; it has {available}", reference = reference.familiar())]
    Platform {
        /// Which image.
        reference: Reference,
        /// What was wanted.
        platform: Platform,
        /// What there is.
        available: String,
    },
    /// Its config is not JSON that is a config.
    #[error("could not read the config of image {reference}: {source}", reference = reference.familiar())]
    Config {
        /// Which image.
        reference: Reference,
        /// Why.
        source: serde_json::Error,
    },
    /// An index in an index.
    #[error("could not use image {}: its index leads to another index", .0.familiar())]
    Nested(Reference),
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
            return Err(ImageError::NotHere(reference.clone()));
        }
        match self.ask_registry(reference, platform).await {
            // An image that was only ever built here has no registry to be newer in.
            Err(ImageError::Registry { .. }) if self.root.tags().get(reference)?.is_some() => {
                self.look_here(reference, platform)?.ok_or_else(|| ImageError::NotHere(reference.clone()))
            }
            result => result,
        }
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

    async fn ask_registry(&self, reference: &Reference, platform: &Platform) -> Result<Found, ImageError> {
        let failed = |source| ImageError::Registry { reference: reference.clone(), source: Box::new(source) };
        let images = self.root.images();
        let top = self.client.resolve(reference).await.map_err(failed)?;
        images.put_document(&top.descriptor.media_type, &top.bytes)?;
        let (descriptor, manifest) = match top.document {
            Document::Manifest(manifest) => (top.descriptor, manifest),
            Document::Index(index) => {
                let Some(wanted) = index.select(platform) else {
                    let names = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
                    let names: Vec<String> =
                        names.filter(|p| p.os != "unknown").map(ToString::to_string).collect();
                    return Err(ImageError::Platform {
                        reference: reference.clone(),
                        platform: platform.clone(),
                        available: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
                    });
                };
                let inner = self.client.resolve(&reference.by_digest(wanted.digest)).await.map_err(failed)?;
                images.put_document(&inner.descriptor.media_type, &inner.bytes)?;
                match inner.document {
                    Document::Manifest(manifest) => (inner.descriptor, manifest),
                    Document::Index(_) => return Err(ImageError::Nested(reference.clone())),
                }
            }
        };
        let bytes = self.client.blob_bytes(reference, &manifest.config, MAX_CONFIG).await.map_err(failed)?;
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|source| ImageError::Config { reference: reference.clone(), source })?;
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

fn pin_name(reference: &Reference, platform: &Platform) -> String {
    format!("image {reference} {platform}")
}

impl Found {
    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }
}
