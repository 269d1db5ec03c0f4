//! The index of an exported cache, as bytes: see `docs/formats/cache.md`. Pure.
//!
//! The outside is BuildKit's `application/vnd.buildkit.cacheconfig.v0` with an empty list of its records; ours are one
//! compressed string beside them. What is read comes from strangers: every length is bounded and every text parsed into
//! its type before anything is done with it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::manifest::media_type;
use image::{ContentDigest, Descriptor, DiffId, Digest, Index, Manifest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use solver::key::{CacheKey, ResultDigest};
use solver::record::{Record, RecordedInput};
use store::compress::{Algorithm, Compression, Decoder, compress_layer};
use store::push::Artifact;

use super::mounts::index::CachedMount;

/// The media type of the config blob.
pub(crate) const CONFIG_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";
/// The field of an image config that holds an inline cache.
pub(crate) const INLINE_FIELD: &str = "rbuild.cache.v1";
/// The longest config blob that is read, bytes.
pub(crate) const MAX_CONFIG: u64 = 32 << 20;

/// The longest text that is inflated from one, bytes.
const MAX_INFLATED: u64 = 128 << 20;
/// The most steps, memos or layers.
const MAX_ENTRIES: usize = 200_000;
/// Files a record names; a miss is explained by the first that differ.
const MAX_FILES: usize = 100;
/// The version of the text inside.
const VERSION: u32 = 1;
/// Containerd's annotation for a blob's diff ID.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What a cache knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CacheIndex {
    /// Steps by key.
    pub(crate) steps: BTreeMap<CacheKey, CachedStep>,
    /// What selectors picked of results.
    pub(crate) memo: BTreeMap<(ResultDigest, ContentDigest), ContentDigest>,
    /// Layers that the cache has, as which blobs.
    pub(crate) layers: Vec<(DiffId, Descriptor)>,
    /// Cache mounts that it has.
    pub(crate) mounts: Vec<CachedMount>,
}

/// A step of a [`CacheIndex`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CachedStep {
    /// Its place in the build.
    pub(crate) step: ContentDigest,
    /// When it was recorded, seconds since the epoch.
    pub(crate) stored: i64,
    /// The instruction.
    pub(crate) name: String,
    /// The record.
    pub(crate) record: Record,
}

/// Bytes that are no cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    /// Not JSON, or fields of the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The records are not the compressed text they should be.
    #[error("its records are damaged: {0}")]
    Damaged(String),
    /// It has no records of ours.
    #[error("it has no records of rbuild")]
    Foreign,
    /// Made by a later rbuild.
    #[error("it has version {0}, this rbuild knows {VERSION}")]
    Version(u32),
    /// More than is read.
    #[error("it is too big")]
    TooBig,
}

#[derive(Serialize, Deserialize)]
struct Config {
    layers: Vec<ConfigLayer>,
    /// BuildKit's; there are none.
    records: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rbuild: Option<String>,
    #[serde(default, rename = "rbuildMounts", skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<CachedMount>,
}

#[derive(Serialize, Deserialize)]
struct ConfigLayer {
    blob: Digest,
    #[serde(default)]
    parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<LayerAnnotations>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerAnnotations {
    #[serde(default)]
    media_type: String,
    #[serde(rename = "diffID")]
    diff_id: DiffId,
    #[serde(default)]
    size: u64,
}

#[derive(Serialize, Deserialize)]
struct Records {
    version: u32,
    steps: Vec<Step>,
    memo: Vec<(Hex, Hex, Hex)>,
}

#[derive(Serialize, Deserialize)]
struct Step {
    key: Hex,
    step: Hex,
    name: String,
    stored: i64,
    layer: DiffId,
    result: Hex,
    op: Hex,
    inputs: Vec<(String, Hex)>,
    seconds: f64,
    bytes: u64,
    created: i64,
}

/// A digest of ours, in hex.
#[derive(Clone, Copy)]
struct Hex(ContentDigest);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.hex())
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| serde::de::Error::custom("expected 64 hex digits"))?;
        Ok(Self(ContentDigest(bytes)))
    }
}

impl CacheIndex {
    /// The config blob.
    pub(crate) fn to_config(&self) -> Vec<u8> {
        let layer = |(diff_id, blob): &(DiffId, Descriptor)| ConfigLayer {
            blob: blob.digest,
            parent: -1,
            annotations: Some(LayerAnnotations {
                media_type: blob.media_type.clone(),
                diff_id: *diff_id,
                size: blob.size,
            }),
        };
        let config = Config {
            layers: self.layers.iter().map(layer).collect(),
            records: Vec::new(),
            rbuild: Some(self.to_text()),
            mounts: self.mounts.clone(),
        };
        serde_json::to_vec(&config).expect("a config has string keys only")
    }

    /// Reads a config blob.
    pub(crate) fn from_config(bytes: &[u8]) -> Result<Self, FormatError> {
        let config: Config = serde_json::from_slice(bytes)?;
        let mut index = Self::from_text(&config.rbuild.ok_or(FormatError::Foreign)?)?;
        let packs = config.mounts.iter().map(|mount| mount.packs.len() + 1).sum::<usize>();
        if config.layers.len() > MAX_ENTRIES || packs > MAX_ENTRIES {
            return Err(FormatError::TooBig);
        }
        let layers = config.layers.into_iter().filter_map(|layer| {
            let LayerAnnotations { media_type, diff_id, size } = layer.annotations?;
            Some((diff_id, Descriptor::new(&media_type, layer.blob, size)))
        });
        index.layers = layers.collect();
        index.mounts = config.mounts;
        Ok(index)
    }

    /// Steps and memos as one line of text: for an image config, which knows its layers.
    pub(crate) fn to_text(&self) -> String {
        let step = |(key, step): (&CacheKey, &CachedStep)| {
            let CachedStep { step, stored, name, record } = step;
            let Record { layer, result, op, inputs, seconds, bytes, created } = record;
            let (files, parts): (Vec<_>, Vec<_>) =
                inputs.iter().partition(|input| input.name.starts_with("file "));
            // A list that is cut says of files that it lacks that they were added: then none says more.
            let files = if files.len() > MAX_FILES { Vec::new() } else { files };
            let inputs = parts.into_iter().chain(files);
            Step {
                key: Hex(key.0),
                step: Hex(*step),
                name: name.clone(),
                stored: *stored,
                layer: *layer,
                result: Hex(result.0),
                op: Hex(*op),
                inputs: inputs.map(|input| (input.name.clone(), Hex(input.digest))).collect(),
                seconds: *seconds,
                bytes: *bytes,
                created: *created,
            }
        };
        let records = Records {
            version: VERSION,
            steps: self.steps.iter().map(step).collect(),
            memo: self.memo.iter().map(|((result, of), is)| (Hex(result.0), Hex(*of), Hex(*is))).collect(),
        };
        let json = serde_json::to_vec(&records).expect("records have no maps and finite numbers");
        let level = Compression::new(Algorithm::Zstd, Some(9)).expect("zstd has a level 9");
        let mut compressed = Vec::new();
        compress_layer(&json[..], level, &mut compressed).expect("memory takes all that is written");
        BASE64.encode(compressed)
    }

    /// Reads such a text.
    pub(crate) fn from_text(text: &str) -> Result<Self, FormatError> {
        let damaged = |error: &dyn std::fmt::Display| FormatError::Damaged(error.to_string());
        let compressed = BASE64.decode(text).map_err(|error| damaged(&error))?;
        let decoder = Decoder::detect(&compressed[..]).map_err(|error| damaged(&error))?;
        if decoder.algorithm() != Algorithm::Zstd {
            return Err(damaged(&"they are not compressed with zstd"));
        }
        let mut json = Vec::new();
        decoder.take(MAX_INFLATED + 1).read_to_end(&mut json).map_err(|error| damaged(&error))?;
        if json.len() as u64 > MAX_INFLATED {
            return Err(FormatError::TooBig);
        }
        #[derive(Deserialize)]
        struct Probe {
            version: u32,
        }
        let Probe { version } = serde_json::from_slice(&json)?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let records: Records = serde_json::from_slice(&json)?;
        if records.steps.len() > MAX_ENTRIES || records.memo.len() > MAX_ENTRIES {
            return Err(FormatError::TooBig);
        }
        let step = |step: Step| {
            let inputs =
                step.inputs.into_iter().map(|(name, digest)| RecordedInput { name, digest: digest.0 });
            let record = Record {
                layer: step.layer,
                result: ResultDigest(step.result.0),
                op: step.op.0,
                inputs: inputs.collect(),
                seconds: step.seconds.clamp(0.0, 1e9),
                bytes: step.bytes,
                created: step.created,
            };
            (
                CacheKey(step.key.0),
                CachedStep { step: step.step.0, stored: step.stored, name: step.name, record },
            )
        };
        let memo = records.memo.into_iter().map(|(result, of, is)| ((ResultDigest(result.0), of.0), is.0));
        Ok(Self {
            steps: records.steps.into_iter().map(step).collect(),
            memo: memo.collect(),
            ..Self::default()
        })
    }

    /// The whole cache: a manifest with the config blob and the layers, or an index that lists both. Layers without a blob
    /// are not in it.
    pub(crate) fn artifact(
        mut self,
        layers: &[DiffId],
        blobs: &[Option<Descriptor>],
        oci: bool,
        image_manifest: bool,
    ) -> Artifact {
        let there = layers.iter().zip(blobs).filter_map(|(diff_id, blob)| Some((*diff_id, blob.clone()?)));
        self.layers = there.collect();
        let listed = self.layers.iter().map(|(diff_id, blob)| {
            let annotations = BTreeMap::from([(UNCOMPRESSED.to_owned(), diff_id.to_string())]);
            Descriptor { annotations, ..blob.clone() }
        });
        let mounts = self.mounts.iter().flat_map(|mount| [&mount.index].into_iter().chain(&mount.packs));
        let mut listed: Vec<Descriptor> = listed.chain(mounts.cloned()).collect();
        let config = self.to_config();
        let descriptor = Descriptor::of(CONFIG_TYPE, &config);
        let (kind, bytes) = if image_manifest {
            let manifest = Manifest {
                schema_version: 2,
                media_type: media_type::OCI_MANIFEST.to_owned(),
                artifact_type: None,
                config: descriptor,
                layers: listed,
                subject: None,
                annotations: BTreeMap::new(),
            };
            (media_type::OCI_MANIFEST, serde_json::to_vec(&manifest))
        } else {
            listed.push(descriptor);
            let kind = if oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX };
            let index = Index {
                schema_version: 2,
                media_type: kind.to_owned(),
                manifests: listed,
                annotations: BTreeMap::new(),
            };
            (kind, serde_json::to_vec(&index))
        };
        let bytes = bytes.expect("manifests have string keys only");
        Artifact { document: (kind.to_owned(), bytes), config: config.into() }
    }

    /// The blobs by layer, for look-ups.
    pub(crate) fn blobs(&self) -> HashMap<DiffId, Descriptor> {
        self.layers.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(steps: usize) -> CacheIndex {
        let digest = |n: usize| ContentDigest::of(&n.to_le_bytes());
        let mut index = CacheIndex::default();
        for n in 0..steps {
            let files =
                (0..n).map(|file| RecordedInput { name: format!("file {file}"), digest: digest(file) });
            let command = RecordedInput { name: "command".to_owned(), digest: digest(n) };
            let record = Record {
                layer: DiffId(Digest::of(&n.to_le_bytes())),
                result: ResultDigest(digest(n)),
                op: digest(n),
                inputs: std::iter::once(command).chain(files).collect(),
                seconds: 1.5,
                bytes: 1024,
                created: 7,
            };
            let step = CachedStep { step: digest(n), stored: 9, name: format!("RUN {n}"), record };
            index.steps.insert(CacheKey(digest(n)), step);
            index.memo.insert((ResultDigest(digest(n)), digest(0)), digest(n));
            index.layers.push((
                DiffId(Digest::of(&n.to_le_bytes())),
                Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"blob"), n as u64),
            ));
        }
        index
    }

    #[test]
    fn an_index_comes_back_as_it_was() {
        for steps in [0, 1, 20] {
            let index = sample(steps);
            assert_eq!(CacheIndex::from_config(&index.to_config()).unwrap(), index);
            assert_eq!(index.to_config(), sample(steps).to_config());
        }
    }

    #[test]
    fn a_record_of_very_many_files_names_none() {
        let index = sample(MAX_FILES + 2);
        let back = CacheIndex::from_text(&index.to_text()).unwrap();
        let names = |n: usize| back.steps[&CacheKey(ContentDigest::of(&n.to_le_bytes()))].record.inputs.len();
        assert_eq!((names(MAX_FILES), names(MAX_FILES + 1)), (MAX_FILES + 1, 1));
    }

    #[test]
    fn a_step_is_a_few_hundred_bytes() {
        let text = sample(50).to_text();
        assert!(text.len() / 50 < 1000, "{}", text.len() / 50);
    }

    #[test]
    fn both_forms_list_the_blobs() {
        let index = sample(2);
        let layers: Vec<DiffId> = index.layers.iter().map(|(diff_id, _)| *diff_id).collect();
        let blobs = [Some(index.layers[0].1.clone()), None];
        for (oci, image_manifest) in [(true, true), (true, false), (false, false)] {
            let artifact = index.clone().artifact(&layers, &blobs, oci, image_manifest);
            let document: serde_json::Value = serde_json::from_slice(&artifact.document.1).unwrap();
            assert_eq!(document["mediaType"], artifact.document.0);
            let list = if image_manifest { &document["layers"] } else { &document["manifests"] };
            assert_eq!(list[0]["annotations"][UNCOMPRESSED], layers[0].to_string());
            let config = if image_manifest { &document["config"] } else { &list[1] };
            assert_eq!(config["mediaType"], CONFIG_TYPE);
            assert_eq!(CacheIndex::from_config(&artifact.config).unwrap().layers.len(), 1);
        }
    }

    fn packed(json: &[u8]) -> String {
        let level = Compression::new(Algorithm::Zstd, None).unwrap();
        let mut out = Vec::new();
        compress_layer(json, level, &mut out).unwrap();
        BASE64.encode(out)
    }

    #[test]
    fn hostile_texts_are_errors() {
        let zeros = vec![b' '; MAX_INFLATED as usize + 10];
        for (text, expected) in [
            ("!".to_owned(), "damaged"),
            (BASE64.encode(b"plain text"), "not compressed with zstd"),
            (packed(b"{}"), "version"),
            (packed(br#"{"version":2}"#), "version 2"),
            (packed(br#"{"version":1,"steps":[{}],"memo":[]}"#), "missing field"),
            (packed(br#"{"version":1,"steps":[],"memo":[["00","00","00"]]}"#), "64 hex digits"),
            (packed("[".repeat(100_000).as_bytes()), ""),
            (packed(&zeros), "too big"),
        ] {
            let error = CacheIndex::from_text(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
        for config in
            ["", "{}", "[]", r#"{"layers":[],"records":[]}"#, r#"{"layers":[{"blob":"x"}],"records":[]}"#]
        {
            assert!(CacheIndex::from_config(config.as_bytes()).is_err(), "{config}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_config_is_an_error_or_an_index(at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
            let mut config = sample(3).to_config();
            let at = at.index(config.len());
            if cut { config.truncate(at) } else { config[at] = byte }
            let _ = CacheIndex::from_config(&config);
        }
    }
}
