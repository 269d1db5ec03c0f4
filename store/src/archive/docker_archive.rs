//! What `docker save` writes and `docker load` reads: an OCI layout with `manifest.json` and `repositories` beside it.
//!
//! Before version 25 Docker wrote `<id>/layer.tar` and `<id>.json` and no layout; such archives are read too. Only
//! `manifest.json` says which is whose.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use image::Reference;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::files::Files;
use super::oci_archive::write_tar;
use super::oci_layout::{LAYOUT, index_json, parse_config};
use super::{ArchiveError, Loaded};
use crate::compress::Decoder;
use crate::pool;
use crate::root::Root;

/// One image in `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    // `null` for an image without a name.
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Writes `content` to `sink`.
pub fn write(content: &Content, sink: impl Write + Send) -> Result<(), ArchiveError> {
    let mut items = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for image in &content.images {
        for (_, manifest) in &image.manifests {
            let path = |digest: &image::Digest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
            let names: Vec<&Reference> = image.names.iter().collect();
            for name in &names {
                if let (Some(tag), Some(top)) = (name.tag_or_latest(), manifest.layers.last()) {
                    let repository = Reference { tag: None, digest: None, ..(*name).clone() }.familiar();
                    repositories.entry(repository).or_default().insert(tag.to_owned(), top.digest.hex());
                }
            }
            let tags: Vec<String> =
                names.iter().map(|name| (*name).clone().with_default_tag().familiar()).collect();
            items.push(Item {
                config: path(&manifest.config.digest),
                repo_tags: (!tags.is_empty()).then_some(tags),
                layers: manifest.layers.iter().map(|layer| path(&layer.digest)).collect(),
            });
        }
    }
    let mut small = vec![
        ("index.json".to_owned(), index_json(content)),
        ("manifest.json".to_owned(), serde_json::to_vec(&items).expect("strings only")),
        ("oci-layout".to_owned(), LAYOUT.into()),
    ];
    if !repositories.is_empty() {
        small.push(("repositories".to_owned(), serde_json::to_vec(&repositories).expect("strings only")));
    }
    write_tar(content, &mut small, sink)
}

/// The names that a `manifest.json` gives to configs, by the config's hash in hex.
pub(crate) fn names(manifest: &[u8]) -> Result<HashMap<String, Vec<Reference>>, ArchiveError> {
    let mut names = HashMap::new();
    for item in parse(manifest)? {
        let file = item.config.rsplit('/').next().unwrap_or_default();
        let hash = file.strip_suffix(".json").unwrap_or(file).to_owned();
        names.insert(hash, references(&item));
    }
    Ok(names)
}

/// Stores the images of an archive that is no layout.
pub(crate) fn load(root: &Root, files: &Files, manifest: &[u8]) -> Result<Vec<Loaded>, ArchiveError> {
    let mut loaded = Vec::new();
    for item in parse(manifest)? {
        let missing = |path: &str| ArchiveError::Missing(path.to_owned());
        let bytes = files.document(&item.config)?.ok_or_else(|| missing(&item.config))?;
        let config = parse_config(&bytes)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != item.layers.len() {
            let (layers, named) = (item.layers.len(), diff_ids.len());
            return Err(ArchiveError::Format(format!(
                "{} names {named} layers, manifest.json {layers}",
                item.config
            )));
        }
        pool::pool().install(|| {
            diff_ids.iter().zip(&item.layers).collect::<Vec<_>>().into_par_iter().try_for_each(
                |(diff_id, path)| {
                    root.hold([(*diff_id).into()])?;
                    if root.layers().contains(diff_id)? {
                        return Ok(());
                    }
                    let file = files.file(path)?.ok_or_else(|| missing(path))?;
                    let read = |source| ArchiveError::Read { name: path.clone(), source };
                    root.layers().ingest(Decoder::detect(file).map_err(read)?, diff_id)?;
                    Ok::<(), ArchiveError>(())
                },
            )
        })?;
        let descriptor = root.images().put_local_as(&bytes, &diff_ids)?;
        loaded.push(Loaded { descriptor, names: references(&item) });
    }
    Ok(loaded)
}

fn parse(manifest: &[u8]) -> Result<Vec<Item>, ArchiveError> {
    serde_json::from_slice(manifest).map_err(|error| ArchiveError::Format(format!("manifest.json: {error}")))
}

fn references(item: &Item) -> Vec<Reference> {
    item.repo_tags.iter().flatten().filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::load;
    use crate::layer::tests::tar;
    use crate::root::tests::root;
    use image::layer::{Data, Entry, Kind, LayerWriter};
    use image::{ContentDigest, DiffId, Digest, ImageConfig, Platform};

    /// A tar as `docker save` made it before version 25: two images share a layer by a link.
    fn old_archive(layer: &[u8]) -> (Vec<u8>, Digest) {
        let mut config = ImageConfig::scratch(&Platform::new("linux", "amd64", None));
        config.rootfs.diff_ids = vec![DiffId(Digest::of(&tar(0))), DiffId(Digest::of(&tar(0)))];
        // Bytes that we would not write so: they are the image's ID and must stay.
        let config = [b"  ", &config.to_bytes()[..]].concat();
        let id = Digest::of(&config);
        let manifest = format!(
            r#"[{{"Config":"{0}.json","RepoTags":["old:1","localhost:5000/old:2"],"Layers":["1/layer.tar","2/layer.tar"]}}]"#,
            id.hex()
        );
        let mut files: Vec<(String, Result<&[u8], &str>)> = vec![
            (format!("{}.json", id.hex()), Ok(&config)),
            ("1/layer.tar".to_owned(), Ok(layer)),
            ("2/layer.tar".to_owned(), Err("../1/layer.tar")),
            ("manifest.json".to_owned(), Ok(manifest.as_bytes())),
        ];
        files.sort_by(|a, b| image::layer::index::path_cmp(a.0.as_bytes(), b.0.as_bytes()));
        let mut out = LayerWriter::new(Vec::new());
        for (path, content) in files {
            let kind = match content {
                Ok(bytes) => {
                    Kind::File { size: bytes.len() as u64, offset: 0, content: ContentDigest::of(bytes) }
                }
                Err(target) => Kind::Symlink { target: target.into() },
            };
            let entry = Entry {
                path: path.into(),
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: 0,
                xattrs: BTreeMap::new(),
            };
            match content {
                Ok(mut bytes) => out.append(entry, Data::New(&mut bytes)).unwrap(),
                Err(_) => out.append(entry, Data::None).unwrap(),
            }
        }
        (out.finish().unwrap().0, id)
    }

    #[test]
    fn old_docker_archives_load_with_their_image_id() {
        let gzip = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&tar(0)).unwrap();
            encoder.finish().unwrap()
        };
        for layer in [tar(0), gzip] {
            let (_dir, root) = root();
            let (archive, id) = old_archive(&layer);
            let loaded = load(&root, Files::read(&root, &archive[..]).unwrap()).unwrap();
            assert_eq!(
                loaded[0].names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                ["old:1", "localhost:5000/old:2"]
            );
            assert_eq!(root.images().list().unwrap()[0].manifests[0].id, id);
        }
    }

    #[test]
    fn a_layer_that_is_not_its_diff_id_is_refused() {
        let (_dir, root) = root();
        let (archive, _) = old_archive(&tar(1));
        let error = load(&root, Files::read(&root, &archive[..]).unwrap()).unwrap_err().to_string();
        assert!(error.contains("does not match its digest"), "{error}");
        assert!(root.images().list().unwrap().is_empty());
    }
}
