//! OCI image layouts (image-spec, `image-layout.md`): written into a directory, read from any [`Files`].
//!
//! ```text
//! oci-layout              {"imageLayoutVersion":"1.0.0"}
//! index.json              an index of the images, names as annotations
//! blobs/<alg>/<hex>       everything else
//! ```
//!
//! A directory that is a layout already is added to. `index.json` is written last and by rename: who is interrupted
//! leaves the layout as it was, with some blobs that nobody names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use image::digest::{Hasher, VerifyError};
use image::manifest::{Document, media_type};
use image::{Descriptor, Digest, ImageConfig, Index, Reference};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::content::{Content, ContentImage};
use super::files::{Files, blob_path};
use super::{ANNOTATION_NAME, ANNOTATION_REF, ArchiveError, Loaded, docker_archive};
use crate::compress::{Algorithm, Decoder};
use crate::layer::LayerBlob;
use crate::pool;
use crate::root::Root;
use crate::tag::layers_of;

/// The content of `oci-layout`.
pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// How deep indexes may lie in indexes.
const MAX_DEPTH: u32 = 4;

/// Writes `content` into the layout at `dir`, which is made if it is not there.
pub fn write_dir(dir: &Path, content: &Content) -> Result<(), ArchiveError> {
    let mut index = read_index(dir)?.unwrap_or_else(empty_index);
    for (digest, bytes) in &content.documents {
        write_blob(dir, digest, bytes.len() as u64, &mut &bytes[..])?;
    }
    for (digest, layer) in &content.layers {
        write_blob(dir, digest, layer.descriptor.size, &mut layer.open()?)?;
    }
    write_file(dir, "oci-layout", &mut LAYOUT.as_bytes())?;
    merge(&mut index, entries(content));
    let bytes = serde_json::to_vec(&index).expect("an index has string keys only");
    write_file(dir, "index.json", &mut &bytes[..])
}

/// Writes an artifact into the layout at `dir`: `document` with its config and blobs, files of the root, under `tag`. With
/// `reset` all else in the layout goes afterwards.
pub fn write_artifact(
    dir: &Path,
    tag: &str,
    document: (&str, &[u8]),
    config: &[u8],
    blobs: &[(Digest, u64, std::path::PathBuf)],
    reset: bool,
) -> Result<(), ArchiveError> {
    let mut index = match read_index(dir) {
        // What goes anyway need not be right.
        Err(_) | Ok(None) if reset => empty_index(),
        index => index?.unwrap_or_else(empty_index),
    };
    for (digest, size, path) in blobs {
        // Opened only if it is to be copied: the layout may have what is no longer here.
        if !has_blob(dir, digest, *size) {
            let mut file =
                File::open(path).map_err(|source| ArchiveError::Open { path: path.clone(), source })?;
            write_blob(dir, digest, *size, &mut file)?;
        }
    }
    let (media_type, bytes) = document;
    let mut descriptor = Descriptor::of(media_type, bytes);
    write_blob(dir, &Digest::of(config), config.len() as u64, &mut &config[..])?;
    write_blob(dir, &descriptor.digest, descriptor.size, &mut &bytes[..])?;
    write_file(dir, "oci-layout", &mut LAYOUT.as_bytes())?;
    descriptor.annotations.insert(ANNOTATION_REF.to_owned(), tag.to_owned());
    if reset {
        index.manifests.clear();
    }
    merge(&mut index, vec![descriptor.clone()]);
    let json = serde_json::to_vec(&index).expect("an index has string keys only");
    write_file(dir, "index.json", &mut &json[..])?;
    if reset {
        let keep = blobs.iter().map(|(digest, ..)| *digest);
        let keep: HashSet<Digest> = keep.chain([Digest::of(config), descriptor.digest]).collect();
        remove_others(&dir.join("blobs"), &keep).map_err(ArchiveError::Write)?;
    }
    Ok(())
}

/// Whether the layout at `dir` has a blob of this length.
pub fn has_blob(dir: &Path, digest: &Digest, size: u64) -> bool {
    let path = dir.join("blobs").join(digest.algorithm()).join(digest.hex());
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

fn read_index(dir: &Path) -> Result<Option<Index>, ArchiveError> {
    match fs::read(dir.join("index.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| ArchiveError::Format(format!("index.json: {error}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ArchiveError::Open { path: dir.join("index.json"), source }),
    }
}

/// Removes files whose names are digests that are not in `keep`.
fn remove_others(blobs: &Path, keep: &HashSet<Digest>) -> io::Result<()> {
    for algorithm in fs::read_dir(blobs)? {
        let algorithm = algorithm?;
        if !algorithm.file_type()?.is_dir() {
            continue;
        }
        for blob in fs::read_dir(algorithm.path())? {
            let blob = blob?;
            let name = format!("{}:{}", algorithm.file_name().display(), blob.file_name().display());
            if name.parse::<Digest>().is_ok_and(|digest| !keep.contains(&digest)) {
                fs::remove_file(blob.path())?;
            }
        }
    }
    Ok(())
}

/// The `index.json` of a layout that holds `content` alone.
pub(crate) fn index_json(content: &Content) -> Vec<u8> {
    let index = Index { manifests: entries(content), ..empty_index() };
    serde_json::to_vec(&index).expect("an index has string keys only")
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        manifests: Vec::new(),
        annotations: BTreeMap::new(),
    }
}

/// One entry a name; one without for an image that has none.
fn entries(content: &Content) -> Vec<Descriptor> {
    let named = |image: &ContentImage, name: Option<&Reference>| {
        let mut descriptor = image.descriptor.clone();
        if let Some(name) = name {
            let tag = name.tag_or_latest().map(str::to_owned);
            descriptor
                .annotations
                .insert(ANNOTATION_NAME.to_owned(), name.clone().with_default_tag().to_string());
            descriptor.annotations.extend(tag.map(|tag| (ANNOTATION_REF.to_owned(), tag)));
        }
        descriptor
    };
    content
        .images
        .iter()
        .flat_map(|image| match image.names.is_empty() {
            true => vec![named(image, None)],
            false => image.names.iter().map(|name| named(image, Some(name))).collect(),
        })
        .collect()
}

/// Adds entries; an old one with the same name, or the same image without a name, goes.
fn merge(index: &mut Index, new: Vec<Descriptor>) {
    let same = |a: &Descriptor, b: &Descriptor| match (
        a.annotations.get(ANNOTATION_NAME),
        b.annotations.get(ANNOTATION_NAME),
    ) {
        (Some(a), Some(b)) => a == b,
        (None, None) => {
            a.digest == b.digest
                || a.annotations
                    .get(ANNOTATION_REF)
                    .is_some_and(|name| b.annotations.get(ANNOTATION_REF) == Some(name))
        }
        _ => false,
    };
    index.manifests.retain(|old| !new.iter().any(|new| same(old, new)));
    index.manifests.extend(new);
}

fn write_blob(dir: &Path, digest: &Digest, size: u64, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
    if has_blob(dir, digest, size) {
        return Ok(());
    }
    write_file(dir, &format!("blobs/{}/{}", digest.algorithm(), digest.hex()), bytes)
}

fn write_file(dir: &Path, path: &str, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
    let to = dir.join(path);
    let parent = to.parent().expect("it is below the directory");
    DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(ArchiveError::Write)?;
    let mut file = tempfile::Builder::new()
        .prefix(".rbuild-")
        .permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(ArchiveError::Write)?;
    io::copy(bytes, &mut file).and_then(|_| file.flush()).map_err(ArchiveError::Write)?;
    file.persist(&to).map_err(|error| ArchiveError::Write(error.error))?;
    Ok(())
}

/// A layout, open for reading.
#[derive(Debug)]
pub struct OciLayout {
    files: Files,
    index: Index,
}

impl OciLayout {
    /// Opens the layout in a directory, or in a tar.
    pub fn open(root: &Root, path: &Path) -> Result<Self, ArchiveError> {
        Self::new(Files::open(root, path)?)
    }

    /// The layout among `files`.
    pub fn new(files: Files) -> Result<Self, ArchiveError> {
        let Some(layout) = files.document("oci-layout")? else {
            return Err(ArchiveError::Missing("oci-layout".to_owned()));
        };
        let layout: serde_json::Value =
            serde_json::from_slice(&layout).map_err(|e| ArchiveError::Format(format!("oci-layout: {e}")))?;
        let version =
            layout.get("imageLayoutVersion").and_then(|version| version.as_str()).unwrap_or_default();
        if !version.starts_with("1.") {
            return Err(ArchiveError::Format(format!("it has layout version {version:?}, not 1.0.0")));
        }
        let Some(bytes) = files.document("index.json")? else {
            return Err(ArchiveError::Missing("index.json".to_owned()));
        };
        match Document::parse(&bytes, None) {
            Ok(Document::Index(index)) => Ok(Self { files, index }),
            Ok(Document::Manifest(_)) => Err(ArchiveError::Format("index.json is no index".to_owned())),
            Err(source) => Err(ArchiveError::Document { digest: Digest::of(&bytes), source }),
        }
    }

    /// Its `index.json`.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The image with this digest, or this tag or name; with neither the only one, or the one called `latest`.
    pub fn find(&self, name: Option<&str>, digest: Option<&Digest>) -> Option<&Descriptor> {
        let manifests = &self.index.manifests;
        if let Some(digest) = digest {
            return manifests.iter().find(|image| image.digest == *digest);
        }
        let named = |name: &str| {
            manifests.iter().find(|image| {
                [ANNOTATION_REF, ANNOTATION_NAME]
                    .iter()
                    .any(|key| image.annotations.get(*key).is_some_and(|n| n == name))
            })
        };
        match name {
            Some(name) => named(name),
            None if manifests.len() == 1 => manifests.first(),
            None => named("latest"),
        }
    }

    /// Reads a manifest or index, verified, without storing it.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ArchiveError> {
        let missing = || ArchiveError::Missing(blob_path(descriptor));
        self.files.blob_document(descriptor)?.ok_or_else(missing)
    }

    /// Reads any blob that is no longer than `limit`, verified, without storing it.
    pub fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        self.files.blob_bytes(descriptor, limit)?.ok_or_else(|| ArchiveError::Missing(blob_path(descriptor)))
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, ArchiveError> {
        Ok(self.files.file(&blob_path(descriptor))?.is_some())
    }

    /// Brings a layer into the root, verified, from the blob that is said to be it. `false`: the blob is not there.
    pub fn bring_layer(
        &self,
        root: &Root,
        diff_id: image::DiffId,
        blob: &Descriptor,
    ) -> Result<bool, ArchiveError> {
        if !self.has_blob(blob)? {
            return Ok(false);
        }
        import_layer(root, &self.files, Some(diff_id), blob).map(|()| true)
    }

    /// Stores an image with its layers. Of an index those manifests are taken that are in the layout.
    pub fn import(&self, root: &Root, descriptor: &Descriptor) -> Result<(), ArchiveError> {
        import(root, &self.files, descriptor, 0)
    }
}

/// Stores all images of a layout, a docker archive or a `docker save` tar; notes them as images, names them not.
pub fn load(root: &Root, files: Files) -> Result<Vec<Loaded>, ArchiveError> {
    let docker = files.document("manifest.json")?;
    let is_layout = files.file("oci-layout")?.is_some() && files.file("index.json")?.is_some();
    let loaded = match docker {
        None if !is_layout => {
            return Err(ArchiveError::Format(
                "it is no image: neither index.json with oci-layout nor manifest.json is in it".to_owned(),
            ));
        }
        Some(manifest) if !is_layout => docker_archive::load(root, &files, &manifest)?,
        docker => {
            let names = docker.as_deref().map(docker_archive::names).transpose()?.unwrap_or_default();
            load_layout(root, OciLayout::new(files)?, &names)?
        }
    };
    for image in &loaded {
        root.images().add(&image.descriptor)?;
    }
    Ok(loaded)
}

fn load_layout(
    root: &Root,
    layout: OciLayout,
    names_by_config: &HashMap<String, Vec<Reference>>,
) -> Result<Vec<Loaded>, ArchiveError> {
    let mut loaded: Vec<Loaded> = Vec::new();
    for entry in &layout.index.manifests {
        // Skopeo and buildah put the whole name where others have the tag alone.
        let whole = entry.annotations.get(ANNOTATION_REF).filter(|name| name.contains([':', '/']));
        let name =
            entry.annotations.get(ANNOTATION_NAME).or(whole).and_then(|name| name.parse::<Reference>().ok());
        let mut descriptor = entry.clone();
        descriptor.annotations.remove(ANNOTATION_NAME);
        descriptor.annotations.remove(ANNOTATION_REF);
        if let Some(same) = loaded.iter_mut().find(|image| image.descriptor.digest == descriptor.digest) {
            same.names.extend(name);
            continue;
        }
        layout.import(root, &descriptor)?;
        loaded.push(Loaded { descriptor, names: name.into_iter().collect() });
    }
    for image in loaded.iter_mut().filter(|image| image.names.is_empty()) {
        for (_, manifest) in root.images().manifests(&image.descriptor)? {
            let names = names_by_config.get(&manifest.config.digest.hex());
            image.names.extend(names.into_iter().flatten().cloned());
        }
    }
    Ok(loaded)
}

fn import(root: &Root, files: &Files, descriptor: &Descriptor, depth: u32) -> Result<(), ArchiveError> {
    let Some(bytes) = files.blob_document(descriptor)? else {
        return Err(ArchiveError::Missing(blob_path(descriptor)));
    };
    let document = Document::parse(&bytes, Some(&descriptor.media_type))
        .map_err(|source| ArchiveError::Document { digest: descriptor.digest, source })?;
    match document {
        Document::Index(index) => {
            if depth == MAX_DEPTH {
                return Err(ArchiveError::Format("indexes lie too deep in indexes".to_owned()));
            }
            for child in &index.manifests {
                if files.file(&blob_path(child))?.is_some() {
                    import(root, files, child, depth + 1)?;
                }
            }
        }
        Document::Manifest(manifest) => {
            let Some(config_bytes) = files.blob_document(&manifest.config)? else {
                return Err(ArchiveError::Missing(blob_path(&manifest.config)));
            };
            let config = match manifest.config.media_type.as_str() {
                media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Some(parse_config(&config_bytes)?),
                _ => None,
            };
            let layers = match &config {
                Some(config) => layers_of(&manifest, config)?
                    .into_iter()
                    .map(|(diff_id, layer)| (Some(diff_id), layer))
                    .collect::<Vec<_>>(),
                None => manifest.layers.iter().map(|layer| (None, layer.clone())).collect(),
            };
            pool::pool().install(|| {
                layers
                    .into_par_iter()
                    .try_for_each(|(diff_id, layer)| import_layer(root, files, diff_id, &layer))
            })?;
            put(root, &manifest.config.digest, &config_bytes)?;
        }
    }
    // Above what it names: a document that is here has all that it names and that was in the archive.
    put(root, &descriptor.digest, &bytes)
}

fn put(root: &Root, digest: &Digest, bytes: &[u8]) -> Result<(), ArchiveError> {
    Ok(root.blobs().put(digest, bytes.len() as u64, bytes)?)
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|error| ArchiveError::Format(format!("config: {error}")))
}

fn import_layer(
    root: &Root,
    files: &Files,
    diff_id: Option<image::DiffId>,
    listed: &Descriptor,
) -> Result<(), ArchiveError> {
    let blob = files.blob(listed)?;
    let missing = || ArchiveError::Missing(blob_path(listed));
    let diff_id = diff_id.filter(|_| Algorithm::of_media_type(&listed.media_type).is_some());
    let Some(diff_id) = diff_id else {
        // No part of a file system: an attestation, say.
        return Ok(root.blobs().put(&listed.digest, listed.size, blob.ok_or_else(missing)?)?);
    };
    root.hold([diff_id.into()])?;
    let here = root.layers().contains(&diff_id)?;
    if listed.digest == diff_id.0 {
        if !here {
            root.layers().ingest(blob.ok_or_else(missing)?, &diff_id)?;
        }
        return Ok(());
    }
    root.blobs().put(&listed.digest, listed.size, blob.ok_or_else(missing)?)?;
    let file: File = root.blobs().open(&listed.digest)?;
    let read = |source| ArchiveError::Read { name: blob_path(listed), source };
    let decoder = Decoder::detect(file).map_err(read)?;
    let algorithm = decoder.algorithm();
    if here {
        // The layer is; that this blob is it compressed must still be seen, once.
        if root.layers().layers_of(&listed.digest)?.contains(&diff_id) {
            return Ok(());
        }
        let mut tar = decoder;
        let mut hasher = Hasher::like(&diff_id.0);
        let mut buf = vec![0; 256 << 10];
        loop {
            match tar.read(&mut buf).map_err(read)? {
                0 => break,
                n => hasher.update(&buf[..n]),
            }
        }
        let actual = hasher.finish();
        if actual != diff_id.0 {
            let error = VerifyError::Digest { expected: diff_id.0, actual };
            return Err(read(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
    } else {
        root.layers().ingest(decoder, &diff_id)?;
    }
    let blob = LayerBlob {
        digest: listed.digest,
        size: listed.size,
        media_type: listed.media_type.clone(),
        algorithm,
        level: None,
        annotations: listed.annotations.clone(),
    };
    Ok(root.layers().remember_blob(&diff_id, &blob)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Packing, oci_archive};
    use crate::compress::Compression;
    use crate::error::StoreError;
    use crate::root::tests::root;
    use crate::tag;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn gather(root: &Root, packing: Packing) -> Content {
        let images = [
            (tag::tests::store(root, 0), vec![reference("a:1"), reference("localhost:5000/b")]),
            (tag::tests::store(root, 1), vec![]),
        ];
        Content::gather(root, &images, packing).unwrap()
    }

    fn prefer(algorithm: Algorithm) -> Packing {
        Packing::Prefer(Compression::new(algorithm, None).unwrap())
    }

    fn names(loaded: &[Loaded]) -> Vec<Vec<String>> {
        loaded.iter().map(|image| image.names.iter().map(Reference::to_string).collect()).collect()
    }

    fn content_of(files: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut todo = vec![files.to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => {
                        found.push((path.strip_prefix(files).unwrap().to_owned(), fs::read(path).unwrap()));
                    }
                }
            }
        }
        found.sort();
        found
    }

    /// `content` in each form, as the path of an archive.
    fn forms(dir: &Path, content: &Content) -> Vec<std::path::PathBuf> {
        let path = |name: &str| dir.join(name);
        write_dir(&path("layout"), content).unwrap();
        oci_archive::write(content, File::create(path("oci.tar")).unwrap()).unwrap();
        docker_archive::write(content, File::create(path("docker.tar")).unwrap()).unwrap();
        let tar = fs::read(path("oci.tar")).unwrap();
        fs::write(path("oci.tar.zst"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
        ["layout", "oci.tar", "docker.tar", "oci.tar.zst"].map(path).into()
    }

    #[test]
    fn images_survive_every_form_in_every_compression() {
        for packing in
            [Packing::AsIs, prefer(Algorithm::Gzip), prefer(Algorithm::Zstd), prefer(Algorithm::None)]
        {
            let (_from_dir, from) = root();
            let content = gather(&from, packing);
            let dir = tempfile::tempdir().unwrap();
            for path in forms(dir.path(), &content) {
                let (_to_dir, to) = root();
                let loaded = load(&to, Files::open(&to, &path).unwrap()).unwrap();
                assert_eq!(
                    names(&loaded),
                    [vec!["docker.io/library/a:1", "localhost:5000/b:latest"], vec![]],
                    "{}",
                    path.display()
                );
                for (image, written) in loaded.iter().zip(&content.images) {
                    assert_eq!(image.descriptor, written.descriptor);
                    let (_, manifest) = to.images().manifests(&image.descriptor).unwrap().pop().unwrap();
                    let config = to.images().config(&manifest.config).unwrap();
                    for diff_id in &config.rootfs.diff_ids {
                        to.layers().index(diff_id).unwrap();
                        assert_eq!(from.layers().size(diff_id).unwrap(), to.layers().size(diff_id).unwrap());
                    }
                }
                // And once more, where all is there.
                let again = load(&to, Files::open(&to, &path).unwrap()).unwrap();
                assert_eq!(again, loaded);
                assert_eq!(to.images().list().unwrap().len(), 2);
            }
        }
    }

    #[test]
    fn the_same_images_give_the_same_bytes() {
        let write = || {
            let (_dir, root) = root();
            let content = gather(&root, prefer(Algorithm::Gzip));
            let (mut oci, mut docker) = (Vec::new(), Vec::new());
            oci_archive::write(&content, &mut oci).unwrap();
            docker_archive::write(&content, &mut docker).unwrap();
            (Digest::of(&oci), Digest::of(&docker))
        };
        assert_eq!(write(), write());
    }

    #[test]
    fn a_layer_is_compressed_once() {
        let (_dir, root) = root();
        let first = gather(&root, prefer(Algorithm::Gzip));
        for layer in first.layers.values() {
            let written = fs::metadata(&layer.path).unwrap().modified().unwrap();
            gather(&root, prefer(Algorithm::Gzip));
            assert_eq!(fs::metadata(&layer.path).unwrap().modified().unwrap(), written);
            assert_eq!(layer.descriptor.media_type, media_type::OCI_LAYER_GZIP);
        }
        assert_eq!(first.layers.len(), 2);
    }

    #[test]
    fn a_layout_is_added_to_and_a_name_moves() {
        let (_dir, root) = root();
        let out = tempfile::tempdir().unwrap();
        let write = |zeros, name: &str| {
            let image = tag::tests::store(&root, zeros);
            let content =
                Content::gather(&root, &[(image.clone(), vec![reference(name)])], Packing::AsIs).unwrap();
            write_dir(out.path(), &content).unwrap();
            image
        };
        write(0, "a:1");
        let b = write(1, "b:1");
        let a = write(2, "a:1");
        let layout = OciLayout::open(&root, out.path()).unwrap();
        assert_eq!(layout.index().manifests.len(), 2);
        assert_eq!(layout.find(Some("docker.io/library/a:1"), None).unwrap().digest, a.digest);
        assert_eq!(layout.find(None, Some(&b.digest)).unwrap().digest, b.digest);
        assert_eq!(layout.find(None, None), None);
        assert!(content_of(out.path()).iter().all(|(path, _)| !path.to_string_lossy().contains(".rbuild-")));
    }

    #[test]
    fn spoilt_bytes_are_refused_and_name_the_blob() {
        let (_dir, from) = root();
        let content = gather(&from, prefer(Algorithm::Gzip));
        let out = tempfile::tempdir().unwrap();
        write_dir(out.path(), &content).unwrap();
        for (path, bytes) in content_of(out.path()) {
            if !path.starts_with("blobs") {
                continue;
            }
            let file = out.path().join(&path);
            let mut other = bytes.clone();
            other[bytes.len() / 2] ^= 1;
            for spoilt in [other, bytes[..bytes.len() - 1].to_vec(), [&bytes[..], b"x"].concat(), Vec::new()]
            {
                fs::write(&file, spoilt).unwrap();
                let (_to_dir, to) = root();
                let error = load(&to, Files::open(&to, out.path()).unwrap()).unwrap_err().to_string();
                assert!(error.contains(&*path.file_name().unwrap().to_string_lossy()), "{error}");
            }
            fs::remove_file(&file).unwrap();
            let (_to_dir, to) = root();
            let error = load(&to, Files::open(&to, out.path()).unwrap()).unwrap_err();
            assert!(matches!(error, ArchiveError::Missing(_)), "{error}");
            fs::write(&file, bytes).unwrap();
        }
    }

    #[test]
    fn a_blob_that_is_not_the_layer_its_config_names_is_refused() {
        for layer_is_here in [false, true] {
            let (_dir, root) = root();
            let real = tag::tests::store(&root, 0);
            let (_, manifest) = root.images().manifests(&real).unwrap().pop().unwrap();
            let blob = zstd::encode_all(&crate::layer::tests::tar(3)[..], 1).unwrap();
            let digest = root.blobs().put_bytes(&blob).unwrap();
            let layers = vec![Descriptor::new(media_type::OCI_LAYER_ZSTD, digest, blob.len() as u64)];
            let forged = root.images().put_manifest(&image::Manifest { layers, ..manifest }).unwrap();
            let content = Content::gather(&root, &[(forged, vec![])], Packing::AsIs).unwrap();
            let mut tar = Vec::new();
            oci_archive::write(&content, &mut tar).unwrap();
            let (_to_dir, to) = crate::root::tests::root();
            if layer_is_here {
                crate::layer::tests::store(&to, 0);
            }
            let error = load(&to, Files::read(&to, &tar[..]).unwrap()).unwrap_err().to_string();
            assert!(error.contains("does not match its digest"), "{error}");
            assert!(to.images().list().unwrap().is_empty());
        }
    }

    #[test]
    fn a_tar_that_is_no_image_and_a_lost_layer_are_errors() {
        let (_dir, root) = root();
        let error = load(&root, Files::read(&root, &[0; 1024][..]).unwrap()).unwrap_err();
        assert!(matches!(error, ArchiveError::Format(_)), "{error}");
        assert!(Files::read(&root, &b"hello"[..]).is_err());
        let image = tag::tests::store(&root, 0);
        let (_, manifest) = root.images().manifests(&image).unwrap().pop().unwrap();
        root.layers().remove(&image::DiffId(manifest.layers[0].digest)).unwrap();
        for packing in [Packing::AsIs, prefer(Algorithm::Gzip)] {
            let error = Content::gather(&root, &[(image.clone(), vec![])], packing).unwrap_err();
            assert!(matches!(error, ArchiveError::Store(StoreError::Missing { .. })), "{error}");
        }
    }
}
