//! From a solved build to an image, and where it goes.
//!
//! The build makes an [`AssembledImage`] a platform; an exporter writes them out and says in [`Exported`] what they
//! became: `image` into the store (and on to a registry), `archive` into a file, `flat` as plain files. `metadata`
//! tells the caller about it.

pub(crate) mod archive;
pub(crate) mod assemble;
mod attach;
pub(crate) mod estargz;
pub(crate) mod file;
pub(crate) mod flat;
pub(crate) mod image;
pub(crate) mod metadata;
pub(crate) mod options;
pub(crate) mod push;
pub(crate) mod retime;

use ::image::config::RootFs;
use ::image::manifest::media_type;
use ::image::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, Platform, Reference};
use store::archive::content::pack;
use store::compress::{Algorithm, Compression};
use store::error::StoreError;
use store::root::Root;

use crate::attest::Attestation;
use crate::failure::Failure;
use options::{Annotations, Options};

/// A built image of one platform: its layers are in the store.
#[derive(Clone, Debug)]
pub(crate) struct AssembledImage {
    /// The config, with its layers and times.
    pub(crate) config: ImageConfig,
    /// What it is for; decides its place in an index.
    pub(crate) platform: Platform,
    /// What is said about it.
    pub(crate) attestations: Vec<Attestation>,
}

impl AssembledImage {
    /// The layers, bottom first.
    pub(crate) fn diff_ids(&self) -> &[DiffId] {
        let RootFs { diff_ids, .. } = &self.config.rootfs;
        diff_ids
    }
}

/// What an exporter made.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    /// The manifest, or the index of several platforms, as it was written.
    pub(crate) descriptor: Descriptor,
    /// The config of a single image: Docker's image ID.
    pub(crate) config: Option<Digest>,
    /// Its names.
    pub(crate) names: Vec<Reference>,
}

/// Which descriptor of a layer goes into a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// Its tar, which costs nothing; of a layer that is only known from its registry, what it is there.
    Uncompressed,
    /// The compressed form it was pulled as if that is at hand, else its tar.
    AsPulled,
    /// The form in which it will leave: attestations name the manifest by its digest, so it must not change later.
    Final(Compression, Force),
}

/// Whether layers that have another compressed form are compressed anew.
type Force = bool;

/// Stores configs and manifests, and an index if there are several images. Returns the descriptor of what is on top.
fn put_documents(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
    listing: Listing,
) -> Result<Descriptor, Failure> {
    let annotations = &options.annotations;
    let attested = images.iter().any(|image| !image.attestations.is_empty());
    let listing = match attested {
        true => Listing::Final(options.compression, options.force_compression),
        false => listing,
    };
    let mut manifests = Vec::with_capacity(images.len());
    for image in images {
        let config_type = assemble::config_type(options.oci);
        let config = root.images().put_document(config_type, &image.config.to_bytes())?;
        let layers = image
            .diff_ids()
            .iter()
            .map(|diff_id| layer(root, diff_id, options.oci, listing))
            .collect::<Result<Vec<_>, _>>()?;
        let notes = Annotations::of(&annotations.manifest, Some(&image.platform));
        let bytes = assemble::manifest(config, layers, notes, options.oci);
        let manifest_type = if options.oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST };
        let mut descriptor = root.images().put_document(manifest_type, &bytes)?;
        descriptor.platform = Some(image.platform.clone());
        descriptor.annotations = Annotations::of(&annotations.manifest_descriptor, Some(&image.platform));
        manifests.push(descriptor);
    }
    if let [one] = &mut manifests[..]
        && !attested
    {
        if !annotations.index.is_empty() || !annotations.index_descriptor.is_empty() {
            return Err(Failure::usage("index annotations need an image of several platforms"));
        }
        // Only an index says what a manifest is for.
        return Ok(Descriptor { platform: None, ..one.clone() });
    }
    for (at, image) in images.iter().enumerate().filter(|(_, image)| !image.attestations.is_empty()) {
        manifests.push(attach::attach(root, image, &manifests[at], &options.names)?);
    }
    let index = Index {
        schema_version: 2,
        media_type: if options.oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX }.to_owned(),
        manifests,
        annotations: Annotations::of(&annotations.index, None),
    };
    let bytes = serde_json::to_vec_pretty(&index).expect("an index has string keys only");
    let mut descriptor = root.images().put_document(&index.media_type, &bytes)?;
    descriptor.annotations = Annotations::of(&annotations.index_descriptor, None);
    Ok(descriptor)
}

fn layer(root: &Root, diff_id: &DiffId, oci: bool, listing: Listing) -> Result<Descriptor, Failure> {
    let layers = root.layers();
    let size = layers.size(diff_id)?;
    if let (Some(_), Listing::Final(compression, force)) = (size, listing) {
        return final_layer(root, diff_id, oci, compression, force);
    }
    if let (Some(size), Listing::Uncompressed) = (size, listing) {
        return Ok(tar(diff_id, size, oci));
    }
    for blob in layers.blobs_of(diff_id)?.iter().filter(|blob| blob.level.is_none()) {
        let algorithm = blob.algorithm;
        let kind = if oci { algorithm.oci_media_type() } else { algorithm.docker_media_type() };
        let at_hand = root.blobs().contains(&blob.digest)?
            || (listing != Listing::AsPulled && !layers.locations(&blob.digest)?.is_empty());
        if let (Some(kind), true) = (kind, at_hand) {
            return Ok(Descriptor { media_type: kind.to_owned(), ..blob.descriptor() });
        }
    }
    match size {
        Some(size) => Ok(tar(diff_id, size, oci)),
        None => Err(StoreError::Missing { what: "layer", name: diff_id.to_string() }.into()),
    }
}

/// The layer as it will leave, compressed now if it must be.
fn final_layer(
    root: &Root,
    diff_id: &DiffId,
    oci: bool,
    compression: Compression,
    force: Force,
) -> Result<Descriptor, Failure> {
    let media_type = |algorithm: Algorithm| match oci {
        true => algorithm.oci_media_type(),
        false => algorithm.docker_media_type(),
    };
    if !force {
        for blob in root.layers().blobs_of(diff_id)?.iter().filter(|blob| blob.level.is_none()) {
            if let (Some(kind), true) = (media_type(blob.algorithm), root.blobs().contains(&blob.digest)?) {
                return Ok(Descriptor { media_type: kind.to_owned(), ..blob.descriptor() });
            }
        }
    }
    if compression.algorithm == Algorithm::None {
        let size = root.layers().size(diff_id)?.unwrap_or_default();
        return Ok(tar(diff_id, size, oci));
    }
    let blob = pack(root, diff_id, compression, force)?;
    let mut descriptor = blob.descriptor();
    if let Some(kind) = media_type(blob.algorithm) {
        kind.clone_into(&mut descriptor.media_type);
    }
    Ok(descriptor)
}

fn tar(diff_id: &DiffId, size: u64, oci: bool) -> Descriptor {
    let kind = if oci { media_type::OCI_LAYER } else { media_type::DOCKER_LAYER };
    Descriptor::new(kind, diff_id.0, size)
}

/// The config of an image that has one manifest only.
fn only_config<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Option<Digest> {
    let mut manifests = manifests.into_iter().filter(|manifest| manifest.artifact_type.is_none());
    match (manifests.next(), manifests.next()) {
        (Some(manifest), None) => Some(manifest.config.digest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use ::image::layer::{Data, Entry, Kind, LayerWriter};
    use ::image::manifest::Document;
    use store::archive::{Files, Loaded, load};
    use store::layer::LayerBlob;

    use super::*;
    use crate::request::{Output, OutputKind};

    /// An image an image of one layer for `platform`.
    pub(crate) fn built(root: &Root, text: &str, architecture: &str) -> AssembledImage {
        let mut writer = LayerWriter::new(root.layers().create().unwrap());
        let entry = Entry {
            path: "file".into(),
            kind: Kind::File {
                size: text.len() as u64,
                offset: 0,
                content: ::image::ContentDigest::of(text.as_bytes()),
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        };
        writer.append(entry, Data::New(&mut text.as_bytes())).unwrap();
        let (new, index) = writer.finish().unwrap();
        let diff_id = new.commit(index).unwrap().diff_id;
        let platform = Platform::new("linux", architecture, None);
        let mut config = ImageConfig::scratch(&platform);
        config.rootfs.diff_ids.push(diff_id);
        AssembledImage { config, platform, attestations: Vec::new() }
    }

    fn output(kind: OutputKind, dest: Option<&Path>, pairs: &[(&str, &str)]) -> Output {
        Output {
            kind,
            dest: dest.map(Path::to_owned),
            options: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn reload(dir: &Path, archive: &Path) -> (Root, Vec<Loaded>) {
        let root = Root::open(&dir.join(format!("other-{}", archive.display().to_string().len()))).unwrap();
        let loaded = load(&root, Files::open(&root, archive).unwrap()).unwrap();
        (root, loaded)
    }

    #[test]
    fn an_archive_holds_the_image_as_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let image = built(&root, "hello", "amd64");
        let tags = ["a:1".parse().unwrap()];
        for (name, kind, pairs, layer_type) in [
            ("1", OutputKind::Oci, &[("name", "b:2")][..], media_type::OCI_LAYER_GZIP),
            ("22", OutputKind::Oci, &[("compression", "zstd"), ("tar", "false")], media_type::OCI_LAYER_ZSTD),
            ("333", OutputKind::Docker, &[("compression", "uncompressed")], media_type::DOCKER_LAYER),
            ("4444", OutputKind::Docker, &[("annotation.k", "v")], media_type::OCI_LAYER_GZIP),
        ] {
            let dest = dir.path().join(name);
            let output = output(kind, Some(&dest), pairs);
            let exported =
                archive::export_archive(&root, std::slice::from_ref(&image), &output, &tags).unwrap();
            assert_eq!(exported.config, Some(image.config.id()));
            assert_eq!(dest.is_dir(), name == "22");
            let (other, loaded) = reload(dir.path(), &dest);
            assert_eq!(loaded[0].descriptor.digest, exported.descriptor.digest);
            assert_eq!(loaded[0].names.len(), exported.names.len());
            let Document::Manifest(manifest) = other.images().document(&loaded[0].descriptor).unwrap() else {
                panic!("not a manifest");
            };
            assert_eq!(manifest.layers[0].media_type, layer_type);
            assert_eq!(manifest.annotations.contains_key("k"), name == "4444");
            assert!(other.layers().contains(&image.diff_ids()[0]).unwrap());
        }
    }

    #[test]
    fn several_platforms_make_an_index_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let images = [built(&root, "arm", "arm64"), built(&root, "amd", "amd64")];
        let dest = dir.path().join("index.tar");
        let pairs = [("annotation-index.i", "1"), ("annotation-manifest[linux/arm64].m", "2")];
        let oci = output(OutputKind::Oci, Some(&dest), &pairs);
        let exported = archive::export_archive(&root, &images, &oci, &[]).unwrap();
        assert_eq!(exported.config, None);
        let (other, loaded) = reload(dir.path(), &dest);
        let Document::Index(index) = other.images().document(&loaded[0].descriptor).unwrap() else {
            panic!("not an index");
        };
        assert_eq!(index.annotations["i"], "1");
        let platforms: Vec<String> =
            index.manifests.iter().map(|m| m.platform.as_ref().unwrap().to_string()).collect();
        assert_eq!(platforms, ["linux/arm64", "linux/amd64"]);
        let manifests = other.images().manifests(&loaded[0].descriptor).unwrap();
        let notes: Vec<usize> = manifests.iter().map(|(_, manifest)| manifest.annotations.len()).collect();
        assert_eq!(notes, [1, 0]);

        let docker = output(OutputKind::Docker, Some(&dest), &[]);
        assert!(archive::export_archive(&root, &images, &docker, &[]).is_err());
        // One platform has no index to be annotated.
        assert!(archive::export_archive(&root, &images[..1], &oci, &[]).is_err());
    }

    #[test]
    fn a_base_layer_that_is_only_at_its_registry_keeps_its_compressed_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let mut image = built(&root, "own", "amd64");
        let base = DiffId(Digest::of(b"base"));
        image.config.rootfs.diff_ids.insert(0, base);
        let options = Options::new(&output(OutputKind::Image, None, &[]), &[]).unwrap();
        let put = || put_documents(&root, std::slice::from_ref(&image), &options, Listing::Uncompressed);
        assert!(put().is_err(), "nobody has it");
        let blob = LayerBlob {
            digest: Digest::of(b"blob"),
            size: 4,
            media_type: media_type::DOCKER_LAYER_GZIP.to_owned(),
            algorithm: Algorithm::Gzip,
            level: None,
            annotations: BTreeMap::new(),
        };
        root.layers().remember_blob(&base, &blob).unwrap();
        root.layers().remember_location(&blob.digest, "r:5000", "base").unwrap();
        let Document::Manifest(manifest) = root.images().document(&put().unwrap()).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.layers[0].digest, blob.digest);
        assert_eq!(manifest.layers[0].media_type, media_type::OCI_LAYER_GZIP);
        assert_eq!(manifest.layers[1].digest, image.diff_ids()[1].0);
    }

    #[test]
    fn attestations_stand_beside_their_image_and_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let mut image = built(&root, "x", "amd64");
        image.attestations.push(Attestation {
            predicate_type: "https://spdx.dev/Document",
            predicate: serde_json::json!({}),
            file: "sbom.spdx.json".to_owned(),
        });
        let dest = dir.path().join("a.tar");
        let oci = output(OutputKind::Oci, Some(&dest), &[]);
        let tags = ["a:1".parse().unwrap()];
        let exported = archive::export_archive(&root, std::slice::from_ref(&image), &oci, &tags).unwrap();
        assert_eq!(exported.config, Some(image.config.id()));
        let (other, loaded) = reload(dir.path(), &dest);
        let Document::Index(index) = other.images().document(&loaded[0].descriptor).unwrap() else {
            panic!("not an index");
        };
        let [about, attestation] = &index.manifests[..] else { panic!("two manifests") };
        assert_eq!(attestation.platform.as_ref().unwrap().to_string(), "unknown/unknown");
        assert_eq!(attestation.annotations["vnd.docker.reference.digest"], about.digest.to_string());
        let Document::Manifest(manifest) = other.images().document(attestation).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.subject.unwrap().digest, about.digest);
        let statement = other.blobs().read(&manifest.layers[0].digest).unwrap();
        let statement: serde_json::Value = serde_json::from_slice(&statement).unwrap();
        assert_eq!(statement["subject"][0]["digest"]["sha256"], about.digest.hex());
        assert_eq!(statement["subject"][0]["name"], "pkg:docker/a@1?platform=linux%2Famd64");

        let docker = output(OutputKind::Docker, Some(&dest), &[]);
        assert!(archive::export_archive(&root, &[image], &docker, &[]).is_err());
    }

    #[test]
    fn layers_become_estargz_once_and_stay_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let image = built(&root, "hello", "amd64");
        let dest = dir.path().join("a.tar");
        let pairs = [("compression", "estargz"), ("compression-level", "6"), ("force-compression", "true")];
        let oci = output(OutputKind::Oci, Some(&dest), &pairs);
        let export = || archive::export_archive(&root, std::slice::from_ref(&image), &oci, &[]).unwrap();
        let exported = export();
        assert_eq!(export().descriptor, exported.descriptor);
        let (other, loaded) = reload(dir.path(), &dest);
        let Document::Manifest(manifest) = other.images().document(&loaded[0].descriptor).unwrap() else {
            panic!("not a manifest");
        };
        let [layer] = &manifest.layers[..] else { panic!("one layer") };
        assert_eq!(layer.media_type, media_type::OCI_LAYER_GZIP);
        assert!(layer.annotations["containerd.io/snapshot/stargz/toc.digest"].starts_with("sha256:"));
        let config = other.images().config(&manifest.config).unwrap();
        assert_ne!(config.rootfs.diff_ids, image.config.rootfs.diff_ids);
        let index = other.layers().index(&config.rootfs.diff_ids[0]).unwrap();
        assert!(index.entries().iter().any(|entry| entry.path == "stargz.index.json"));
        let docker = output(OutputKind::Docker, Some(&dest), &[pairs[0], ("oci-mediatypes", "false")]);
        assert!(archive::export_archive(&root, &[image], &docker, &[]).is_err());
    }

    #[test]
    fn an_image_is_kept_under_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        let built = built(&root, "x", "amd64");
        let output = output(OutputKind::Image, None, &[("name", "b:2"), ("name-canonical", "true")]);
        let tags = ["a:1".parse().unwrap()];
        let options = Options::new(&output, &tags).unwrap();
        let exported = image::export_image(&root, std::slice::from_ref(&built), &options).unwrap();
        assert_eq!(exported.config, Some(built.config.id()));
        for name in ["a:1", "b:2"] {
            let found = root.tags().get(&name.parse().unwrap()).unwrap().unwrap();
            assert_eq!(found.digest, exported.descriptor.digest);
        }
        let names: Vec<String> = exported.names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["a:1", "b:2"]);
    }
}
