//! Pushing images of a store: what is sent, and what the registry has then.

use std::collections::BTreeMap;

use image::layer::{Data, Entry, Kind, LayerWriter};
use image::manifest::{Document, media_type};
use image::{Descriptor, DiffId, Digest, ImageConfig, Manifest, Platform, Reference};
use store::compress::{Algorithm, Compression};
use store::push::{Options, PushError, push};
use store::registry::{Client, Config};
use store::root::Root;
use tests::Registry;
use tests::registry::Fault;

struct Fixture {
    _dir: tempfile::TempDir,
    root: Root,
    registry: Registry,
    client: Client,
}

fn options(algorithm: Algorithm) -> Options {
    Options { compression: Compression::new(algorithm, None).unwrap(), force: false, oci: true }
}

fn tar(content: &[u8]) -> Vec<u8> {
    let kind =
        Kind::File { size: content.len() as u64, offset: 0, content: image::ContentDigest::of(content) };
    let mut writer = LayerWriter::new(Vec::new());
    let entry =
        Entry { path: "file".into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() };
    writer.append(entry, Data::New(&mut &content[..])).unwrap();
    writer.finish().unwrap().0
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        Self { _dir: dir, root, registry: Registry::start(), client: Client::new(Config::default()) }
    }

    /// An image made here, with a layer for each content.
    fn image(&self, contents: &[&[u8]]) -> Descriptor {
        let mut config = ImageConfig::scratch(&Platform::new("linux", "amd64", None));
        for content in contents {
            let tar = tar(content);
            let diff_id = DiffId(Digest::of(&tar));
            self.root.layers().ingest(&tar[..], &diff_id).unwrap();
            config.rootfs.diff_ids.push(diff_id);
        }
        self.root.images().put_local(&config).unwrap()
    }

    fn target(&self, name: &str) -> Reference {
        format!("{}/{name}", self.registry.address()).parse().unwrap()
    }

    fn push(&self, image: &Descriptor, name: &str, options: &Options) -> Result<Descriptor, PushError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(push(&self.root, &self.client, image, &self.target(name), options, &()))
    }

    /// Checks that the registry has a whole image under the name; its manifest.
    fn pushed(&self, repository: &str, tag: &str, descriptor: &Descriptor) -> Manifest {
        let bytes = self.registry.manifest(repository, tag).unwrap();
        assert_eq!(Descriptor::of(&descriptor.media_type, &bytes), *descriptor);
        let Document::Manifest(manifest) = Document::parse(&bytes, None).unwrap() else { panic!() };
        let config = self.registry.blob(repository, &manifest.config.digest).unwrap();
        let config: ImageConfig = serde_json::from_slice(&config).unwrap();
        assert_eq!(config.rootfs.diff_ids.len(), manifest.layers.len());
        for (diff_id, layer) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
            let blob = self.registry.blob(repository, &layer.digest).unwrap();
            assert_eq!(blob.len() as u64, layer.size);
            let mut tar = Vec::new();
            let mut decoder = store::compress::Decoder::detect(&blob[..]).unwrap();
            std::io::Read::read_to_end(&mut decoder, &mut tar).unwrap();
            assert_eq!(DiffId(Digest::of(&tar)), *diff_id);
        }
        manifest
    }

    fn uploads(&self) -> usize {
        self.registry.requests_for("PUT", "uploads").len()
    }
}

#[test]
fn an_image_made_here_is_compressed_and_only_sent_once() {
    for (algorithm, kind) in [
        (Algorithm::Gzip, media_type::OCI_LAYER_GZIP),
        (Algorithm::Zstd, media_type::OCI_LAYER_ZSTD),
        (Algorithm::None, media_type::OCI_LAYER),
    ] {
        let fixture = Fixture::new();
        let image = fixture.image(&[b"one", &vec![2; 9_000_000], b"three"]);
        let first = fixture.push(&image, "a:1", &options(algorithm)).unwrap();
        let manifest = fixture.pushed("a", "1", &first);
        assert!(manifest.layers.iter().all(|layer| layer.media_type == kind));
        assert_eq!(fixture.uploads(), 4);
        fixture.registry.clear_requests();
        assert_eq!(fixture.push(&image, "a:2", &options(algorithm)).unwrap(), first);
        fixture.pushed("a", "2", &first);
        // Three layers, the config, the manifest.
        assert_eq!(fixture.registry.requests_for("HEAD", "").len(), 4);
        assert_eq!(fixture.registry.requests().len(), 5);
    }
}

#[test]
fn what_another_repository_has_is_mounted() {
    let fixture = Fixture::new();
    let image = fixture.image(&[b"one", b"two"]);
    let first = fixture.push(&image, "a:1", &options(Algorithm::Gzip)).unwrap();
    fixture.registry.clear_requests();
    assert_eq!(fixture.push(&image, "b:1", &options(Algorithm::Gzip)).unwrap(), first);
    fixture.pushed("b", "1", &first);
    assert_eq!(fixture.registry.requests_for("POST", "mount=").len(), 2);
    assert_eq!(fixture.uploads(), 1);
}

#[test]
fn docker_types_are_used_when_asked_for() {
    let fixture = Fixture::new();
    let image = fixture.image(&[b"one"]);
    let docker = Options { oci: false, ..options(Algorithm::Gzip) };
    let pushed = fixture.push(&image, "a:1", &docker).unwrap();
    let manifest = fixture.pushed("a", "1", &pushed);
    assert_eq!(pushed.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(manifest.config.media_type, media_type::DOCKER_CONFIG);
    assert_eq!(manifest.layers[0].media_type, media_type::DOCKER_LAYER_GZIP);
}

#[test]
fn a_pulled_image_keeps_its_digest_even_if_its_layers_were_never_here() {
    let (here, source) = (Fixture::new(), Fixture::new());
    let image = source.image(&[b"one", b"two"]);
    let published = source.push(&image, "base:1", &options(Algorithm::Zstd)).unwrap();
    let bytes = source.registry.manifest("base", "1").unwrap();
    let Document::Manifest(manifest) = Document::parse(&bytes, None).unwrap() else { panic!() };
    let config = source.registry.blob("base", &manifest.config.digest).unwrap();
    let images = here.root.images();
    images.put_document(&published.media_type, &bytes).unwrap();
    images.put_document(&manifest.config.media_type, &config).unwrap();
    for layer in &manifest.layers {
        here.root.layers().remember_location(&layer.digest, source.registry.address(), "base").unwrap();
    }
    // Passed on from one registry to the other.
    assert_eq!(here.push(&published, "mine:1", &options(Algorithm::Gzip)).unwrap(), published);
    here.pushed("mine", "1", &published);
    // Within a registry that refuses to mount, through us.
    here.registry.on("POST", "mount=", .., Fault::status(405));
    assert_eq!(here.push(&published, "yours:1", &options(Algorithm::Gzip)).unwrap(), published);
    here.pushed("yours", "1", &published);
}

#[test]
fn a_blob_the_registry_only_says_it_has_is_sent_after_all() {
    let fixture = Fixture::new();
    let image = fixture.image(&[b"one", b"two"]);
    fixture.registry.on("HEAD", "blobs", .., Fault::status(200));
    let pushed = fixture.push(&image, "a:1", &options(Algorithm::Gzip)).unwrap();
    fixture.pushed("a", "1", &pushed);
    assert_eq!(fixture.registry.requests_for("PUT", "manifests").len(), 2);
    // Not for ever.
    let fixture = Fixture::new();
    let image = fixture.image(&[b"one"]);
    fixture.registry.on("PUT", "manifests", .., Fault::error(400, "MANIFEST_BLOB_UNKNOWN", "lost"));
    let error = fixture.push(&image, "a:1", &options(Algorithm::Gzip)).unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN: lost"), "{error}");
    assert_eq!(fixture.registry.requests_for("PUT", "manifests").len(), 2);
}

#[test]
fn a_layer_that_is_nowhere_is_named() {
    let fixture = Fixture::new();
    let image = fixture.image(&[b"one"]);
    let diff_id = DiffId(Digest::of(&tar(b"one")));
    fixture.root.layers().remove(&diff_id).unwrap();
    let error = fixture.push(&image, "a:1", &options(Algorithm::Gzip)).unwrap_err();
    assert!(matches!(error, PushError::Unknown(missing) if missing == diff_id), "{error}");
}

#[test]
fn an_index_goes_with_the_manifests_that_are_here() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.image(&[b"one"]), fixture.image(&[b"two"]));
    let mut absent = Descriptor::of(media_type::OCI_MANIFEST, b"never pulled");
    absent.platform = Some(Platform::new("linux", "s390x", None));
    let index = image::Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        manifests: vec![one, absent, two],
        annotations: BTreeMap::new(),
    };
    let index = fixture.root.images().put_index(&index).unwrap();
    fixture.push(&index, "a:1", &options(Algorithm::Gzip)).unwrap();
    let bytes = fixture.registry.manifest("a", "1").unwrap();
    let Document::Index(index) = Document::parse(&bytes, None).unwrap() else { panic!() };
    assert_eq!(index.manifests.len(), 2);
    for child in index.manifests {
        fixture.pushed("a", &child.digest.to_string(), &child);
    }
}

/// Where Debian's `docker-registry` is installed.
#[test]
fn a_real_registry_takes_an_image_and_gives_it_back() {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("docker-registry").exists()));
    if !found {
        return;
    }
    let registry = tests::DockerRegistry::start();
    let fixture = Fixture::new();
    // One layer goes in chunks, one in one piece.
    let mut noise = 1u32;
    let long: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    })
    .take(15_000_000)
    .collect();
    let image = fixture.image(&[b"short", &long]);
    let target: Reference = format!("{}/a/b:1", registry.address()).parse().unwrap();
    let other: Reference = format!("{}/c:1", registry.address()).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (root, client) = (&fixture.root, &fixture.client);
        client.check_push(&target).await.unwrap();
        let pushed = push(root, client, &image, &target, &options(Algorithm::Gzip), &()).await.unwrap();
        assert_eq!(push(root, client, &image, &other, &options(Algorithm::Gzip), &()).await.unwrap(), pushed);
        for reference in [&target, &other] {
            assert_eq!(client.head(reference).await.unwrap(), pushed);
            let resolved = client.resolve(reference).await.unwrap();
            let Document::Manifest(manifest) = resolved.document else { panic!() };
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                let bytes = client.blob_bytes(reference, blob, 1 << 30).await.unwrap();
                assert_eq!(bytes.len() as u64, blob.size);
            }
        }
        let absent = client.resolve(&Reference { tag: Some("absent".into()), ..target }).await.unwrap_err();
        assert_eq!(absent.class(), store::registry::Class::NotFound);
    });
}
