//! Layers out of registries: download -> verify -> inflate -> index, all at once.
//!
//! The runtime's thread moves chunks only. Behind a bounded channel a thread hashes and inflates, behind another one a
//! second thread indexes, hashes and writes; both spend their time waiting for the network when that is the slow part,
//! which is why they are not threads of the CPU pool. Nothing is stored unless the blob is what its descriptor says and
//! the tar what the image's config says. A step that does not read a layer never asks for it here.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc as blocking;
use std::thread;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::try_join_all;
use image::digest::Verified;
use image::manifest::media_type;
use image::{DiffId, Reference};
use store::archive::{ArchiveError, Files};
use store::compress::Decoder;
use store::error::StoreError;
use store::layer::LayerBlob;
use store::lease::Item;
use store::registry::{Class, Client, Progress, RegistryError};
use store::root::Root;
use store::timing::{self, Of};
use tokio::sync::mpsc;

/// Chunks between the connection and the thread that inflates; hyper's are up to some 100 KiB long.
const CHUNKS: usize = 32;
/// Buffers between the two threads, and their length.
const BUFFERS: usize = 4;
const BUFFER: usize = 512 << 10;
/// How often a blob is fetched if it arrives damaged.
const FETCHES: usize = 2;

/// What stands for the registry in the location of a layer that is in an OCI layout; its repository is the directory.
pub const OCI_LAYOUT: &str = "oci-layout";

/// A layer that could not be got.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No registry is known to have it.
    #[error("could not find layer {0}: it is not here, and no registry is known to have it")]
    Unknown(DiffId),
    /// A registry that should have it did not give it.
    #[error("could not pull layer {diff_id} from {from}: {source}")]
    Registry {
        /// Which layer.
        diff_id: DiffId,
        /// The repository.
        from: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// What came is not the layer, or it could not be stored.
    #[error("could not pull layer {diff_id} from {from}: {source}")]
    Store {
        /// Which layer.
        diff_id: DiffId,
        /// The repository.
        from: String,
        /// Why.
        source: Box<StoreError>,
    },
    /// The OCI layout that should have it did not give it.
    #[error("could not read layer {diff_id} of OCI layout {path}: {source}")]
    Layout {
        /// Which layer.
        diff_id: DiffId,
        /// The directory.
        path: String,
        /// Why.
        source: Box<ArchiveError>,
    },
    /// A layer that its publisher does not allow to be redistributed; its URLs are not followed.
    #[error(
        "could not pull layer {diff_id}: {media_type} layers must be got from their publisher and are not supported"
    )]
    Foreign {
        /// Which layer.
        diff_id: DiffId,
        /// Its media type.
        media_type: String,
    },
    /// The store failed.
    #[error(transparent)]
    Here(#[from] StoreError),
    /// The threads cannot be started.
    #[error("could not start a thread to unpack layer {diff_id}: {source}")]
    Thread {
        /// Which layer.
        diff_id: DiffId,
        /// Why.
        source: io::Error,
    },
}

impl PullError {
    /// Whether the trouble is with who should have the layer, not with this host.
    pub fn is_elsewhere(&self) -> bool {
        match self {
            Self::Unknown(_) | Self::Registry { .. } | Self::Layout { .. } | Self::Foreign { .. } => true,
            Self::Store { source, .. } => is_rejected(source),
            Self::Here(source) => is_rejected(source),
            Self::Thread { .. } => false,
        }
    }
}

fn is_rejected(error: &StoreError) -> bool {
    matches!(error, StoreError::Rejected { .. }) && !error.is_disk_full()
}

/// Makes sure that all of `layers` are here, and holds them until the root is closed. What is missing is fetched in
/// parallel from where it is known to be; `progress` is told about compressed bytes, layer by layer.
pub async fn pull(
    root: &Root,
    client: &Client,
    layers: &[DiffId],
    progress: impl Fn(&DiffId) -> Progress,
) -> Result<(), PullError> {
    let mut seen = HashSet::new();
    let missing = layers.iter().filter(|diff_id| seen.insert(**diff_id));
    try_join_all(missing.map(|diff_id| pull_layer(root, client, *diff_id, progress(diff_id)))).await.map(drop)
}

/// The same for one layer.
pub async fn pull_layer(
    root: &Root,
    client: &Client,
    diff_id: DiffId,
    progress: Progress,
) -> Result<(), PullError> {
    // Held first, looked for after: a prune in between takes nothing that is then found.
    root.hold([Item::Layer(diff_id)])?;
    let layers = root.layers();
    if layers.contains(&diff_id)? {
        return Ok(());
    }
    // Another process may be at it; then it is here when the lock is ours.
    let _lock = root.locks().lock(format!("layer {diff_id}").as_bytes()).await?;
    if layers.contains(&diff_id)? {
        return Ok(());
    }
    let mut failure = None;
    for blob in layers.blobs_of(&diff_id)? {
        if root.blobs().contains(&blob.digest)? {
            let work = Work::new(root, diff_id, &blob)?;
            return work.read(root.blobs().open(&blob.digest)?, &blob).await;
        }
        for (registry, repository) in layers.locations(&blob.digest)? {
            let from = Reference { registry, repository, tag: None, digest: None };
            let speeds = root.speeds();
            let transfer = speeds.begin(&from.registry);
            let pulled = if from.registry == OCI_LAYOUT {
                read_layout(root, diff_id, &blob, &from.repository).await
            } else {
                pull_blob(root, client, diff_id, &blob, &from, &progress).await
            };
            match pulled {
                Ok(()) => {
                    transfer.end(layers.size(&diff_id)?.unwrap_or(0));
                    return Ok(());
                }
                Err(error) => {
                    if matches!(&error, PullError::Registry { source, .. } if source.class() == Class::NotFound)
                    {
                        layers.forget_location(&blob.digest, &from.registry, &from.repository)?;
                    }
                    // A full disk is full for the next registry's bytes as well.
                    let disk_full =
                        matches!(&error, PullError::Store { source, .. } if source.is_disk_full());
                    if disk_full {
                        return Err(error);
                    }
                    failure.get_or_insert(error);
                }
            }
        }
    }
    Err(failure.unwrap_or(PullError::Unknown(diff_id)))
}

/// A layer in an OCI layout of this host.
async fn read_layout(root: &Root, diff_id: DiffId, blob: &LayerBlob, path: &str) -> Result<(), PullError> {
    let failed = |source| PullError::Layout { diff_id, path: path.to_owned(), source: Box::new(source) };
    let files = Files::open(root, Path::new(path)).map_err(failed)?;
    let found = files.blob(&blob.descriptor()).map_err(failed)?;
    let file = found.ok_or_else(|| failed(ArchiveError::Missing(blob.digest.to_string())))?;
    Work::new(root, diff_id, blob)?.read(file, blob).await
}

async fn pull_blob(
    root: &Root,
    client: &Client,
    diff_id: DiffId,
    blob: &LayerBlob,
    from: &Reference,
    progress: &Progress,
) -> Result<(), PullError> {
    let foreign = blob.media_type == media_type::DOCKER_FOREIGN_LAYER_GZIP
        || blob.media_type.contains(".nondistributable.");
    let descriptor = blob.descriptor();
    let registry = |source: RegistryError| match source.class() {
        Class::NotFound if foreign => PullError::Foreign { diff_id, media_type: blob.media_type.clone() },
        _ => PullError::Registry { diff_id, from: from.name(), source: Box::new(source) },
    };
    for attempt in 0.. {
        let fetched = async {
            // The slot for the transfer comes first: no threads for what has to wait.
            let mut stream = client.blob(from, &descriptor, attempt).await.map_err(registry)?;
            let Work { chunks, done } = Work::new(root, diff_id, blob)?;
            let mut received = 0;
            while let Some(chunk) = stream.next().await.map_err(registry)? {
                received += chunk.len() as u64;
                if chunks.send(chunk).await.is_err() {
                    // The threads gave up; `done` says why.
                    break;
                }
                progress.report(received, Some(blob.size));
            }
            drop((chunks, stream));
            finished(done).await.map_err(|error| PullError::Store {
                diff_id,
                from: from.name(),
                source: Box::new(error),
            })
        };
        let again = attempt + 1 < FETCHES;
        match fetched.await {
            // Damaged on the way, perhaps: once more, from another mirror if there is one.
            Err(PullError::Store { source, .. })
                if again && matches!(*source, StoreError::Rejected { .. }) => {}
            Err(PullError::Registry { source, .. }) if again && source.class() == Class::Corrupt => {}
            result => return result,
        }
    }
    unreachable!("the last attempt returns")
}

/// The two threads that make a layer of a compressed blob.
struct Work {
    chunks: mpsc::Sender<Bytes>,
    done: oneshot::Receiver<Result<(), StoreError>>,
}

impl Work {
    fn new(root: &Root, diff_id: DiffId, blob: &LayerBlob) -> Result<Self, PullError> {
        let (chunks, receiver) = mpsc::channel(CHUNKS);
        let done = start(root, diff_id, blob, Chunks { receiver, current: Bytes::new() })
            .map_err(|source| PullError::Thread { diff_id, source })?;
        Ok(Self { chunks, done })
    }

    /// Feeds the threads from a file of this host.
    async fn read(self, mut file: impl Read + Send + 'static, blob: &LayerBlob) -> Result<(), PullError> {
        let Self { chunks, done } = self;
        // The file is local, so a pool job can read it; if the threads end early, they say why.
        let read = store::pool::spawn(move || -> io::Result<()> {
            let mut buffer = vec![0; 256 << 10];
            loop {
                let len = file.read(&mut buffer)?;
                if len == 0 || chunks.blocking_send(Bytes::copy_from_slice(&buffer[..len])).is_err() {
                    return Ok(());
                }
            }
        });
        let read = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        finished(done).await?;
        read.map_err(|source| {
            PullError::Here(StoreError::Rejected { what: "blob", digest: blob.digest, source })
        })
    }
}

async fn finished(done: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), StoreError> {
    done.await.unwrap_or_else(|_| {
        // The sender is only dropped without a word by a panic.
        panic!("the thread that stores a layer panicked")
    })
}

/// Starts the threads on compressed bytes: one verifies and inflates, one indexes and stores.
fn start(
    root: &Root,
    diff_id: DiffId,
    blob: &LayerBlob,
    compressed: impl Read + Send + 'static,
) -> io::Result<oneshot::Receiver<Result<(), StoreError>>> {
    let verified = Verified::new(compressed, blob.digest, blob.size);
    let (full, filled) = blocking::sync_channel(BUFFERS);
    let (give_back, empty) = blocking::channel();
    for _ in 0..=BUFFERS {
        // The receiver is in this function: it cannot be gone.
        let _ = give_back.send(Vec::new());
    }
    thread::Builder::new().name("inflate".to_owned()).spawn(move || inflate(verified, &full, &empty))?;
    let (tell, done) = oneshot::channel();
    let root = root.clone();
    thread::Builder::new().name("unpack".to_owned()).spawn(move || {
        let mut inflated = Inflated { filled, give_back, current: Vec::new(), at: 0, end: false };
        let unpack = timing::phase("unpack", Of::Layer(diff_id));
        let mut result = root.layers().ingest(&mut inflated, &diff_id).map(drop);
        unpack.end();
        if let Err(StoreError::Rejected { source, .. }) = &mut result
            && let Err(error) = io::copy(&mut inflated, &mut io::sink())
        {
            // Nonsense in the tar of a blob that is not the right one: the blob is what is wrong.
            *source = error;
        }
        // Nobody waits any more: the pull was given up.
        let _ = tell.send(result);
    })?;
    Ok(done)
}

type Buffers = blocking::SyncSender<io::Result<Vec<u8>>>;

/// Gives the inflated bytes, then an empty buffer: only then is the blob known to be the right one.
fn inflate(mut verified: Verified<impl Read>, full: &Buffers, empty: &blocking::Receiver<Vec<u8>>) {
    let mut work = || -> io::Result<()> {
        {
            let mut decoder = Decoder::detect(&mut verified)?;
            while let Ok(mut buffer) = empty.recv() {
                buffer.resize(BUFFER, 0);
                let mut len = 0;
                let mut more = true;
                while more && len < BUFFER {
                    let n = decoder.read(&mut buffer[len..])?;
                    len += n;
                    more = n > 0;
                }
                buffer.truncate(len);
                if len > 0 && full.send(Ok(buffer)).is_err() {
                    return Ok(());
                }
                if !more {
                    break;
                }
            }
        }
        // What the decoder did not want to see belongs to the blob as well.
        io::copy(&mut verified, &mut io::sink())?;
        // An unpacking thread that ended knows why.
        let _ = full.send(Ok(Vec::new()));
        Ok(())
    };
    if let Err(error) = work() {
        // What does not inflate is most often not what was promised, which says more.
        let error = io::copy(&mut verified, &mut io::sink()).err().unwrap_or(error);
        let _ = full.send(Err(error));
    }
}

/// Compressed bytes from the runtime's thread, as a reader.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let len = buf.len().min(self.current.len());
        buf[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

/// Inflated bytes from the other thread, as a reader.
struct Inflated {
    filled: blocking::Receiver<io::Result<Vec<u8>>>,
    give_back: blocking::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    end: bool,
}

impl Read for Inflated {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.end {
            let next = self.filled.recv().unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the thread that inflates ended early"))
            });
            // Nothing follows an error.
            self.end = next.is_err();
            let next = next?;
            // A thread that is done takes no buffers back.
            let _ = self.give_back.send(std::mem::replace(&mut self.current, next));
            self.at = 0;
            self.end = self.current.is_empty();
        }
        let len = buf.len().min(self.current.len() - self.at);
        buf[..len].copy_from_slice(&self.current[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use ::tests::Registry;
    use ::tests::registry::Fault;
    use image::Digest;
    use image::layer::{Data, Entry, Kind, LayerWriter};
    use store::compress::{Algorithm, Compression, compress_layer};
    use store::registry::{Config, Timing};

    use super::*;

    /// A layer with one file, and its tar.
    fn tar(content: &[u8]) -> (DiffId, Vec<u8>) {
        let mut writer = LayerWriter::new(Vec::new());
        let kind =
            Kind::File { size: content.len() as u64, offset: 0, content: image::ContentDigest::of(content) };
        let entry = Entry {
            path: "file".into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: BTreeMap::new(),
        };
        writer.append(entry, Data::New(&mut &content[..])).unwrap();
        let (tar, index) = writer.finish().unwrap();
        (index.diff_id(), tar)
    }

    fn compressed(tar: &[u8], algorithm: Algorithm) -> Vec<u8> {
        let mut bytes = Vec::new();
        compress_layer(tar, Compression::new(algorithm, None).unwrap(), &mut bytes).unwrap();
        bytes
    }

    struct Fixture {
        _dir: tempfile::TempDir,
        root: Root,
        registry: Registry,
        client: Client,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::open(dir.path()).unwrap();
            let timing = Timing {
                first_wait: Duration::from_millis(5),
                budget: Duration::from_millis(500),
                ..Timing::default()
            };
            let client = Client::new(Config { timing, ..Config::default() });
            Self { _dir: dir, root, registry: Registry::start(), client }
        }

        /// Puts the blob into the registry and notes that it is there and what it should be.
        fn publish(&self, diff_id: DiffId, blob: &[u8], media_type: &str) -> Digest {
            let digest = self.registry.put_blob("base", blob);
            let blob = LayerBlob {
                digest,
                size: blob.len() as u64,
                media_type: media_type.to_owned(),
                algorithm: Algorithm::of_media_type(media_type).unwrap_or(Algorithm::None),
                level: None,
                annotations: BTreeMap::new(),
            };
            self.root.layers().remember_blob(&diff_id, &blob).unwrap();
            self.root.layers().remember_location(&digest, self.registry.address(), "base").unwrap();
            digest
        }

        fn pull(&self, layers: &[DiffId]) -> Result<(), PullError> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(pull(&self.root, &self.client, layers, |_| Progress::none()))
        }

        fn tar(&self, diff_id: &DiffId) -> Vec<u8> {
            let mut bytes = Vec::new();
            self.root.layers().open_tar(diff_id).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        }
    }

    #[test]
    fn layers_of_every_form_come_whole_and_only_once() {
        let fixture = Fixture::new();
        let mut layers = Vec::new();
        for (n, media_type) in [
            media_type::OCI_LAYER_GZIP,
            media_type::DOCKER_LAYER_GZIP,
            media_type::OCI_LAYER_ZSTD,
            media_type::OCI_LAYER,
        ]
        .into_iter()
        .enumerate()
        {
            let (diff_id, tar) = tar(&vec![n as u8; 3_000_000]);
            let algorithm = Algorithm::of_media_type(media_type).unwrap();
            fixture.publish(diff_id, &compressed(&tar, algorithm), media_type);
            layers.push((diff_id, tar));
        }
        let names: Vec<DiffId> = layers.iter().map(|(diff_id, _)| *diff_id).collect();
        for _ in 0..2 {
            fixture.pull(&[&names[..], &names[..]].concat()).unwrap();
        }
        for (diff_id, tar) in layers {
            assert!(fixture.tar(&diff_id) == tar);
        }
        assert_eq!(fixture.registry.requests().len(), 4);
    }

    #[test]
    fn a_damaged_layer_is_fetched_once_more_and_never_stored() {
        let fixture = Fixture::new();
        let (diff_id, tar) = tar(b"content");
        let blob = compressed(&tar, Algorithm::Gzip);
        let digest = fixture.publish(diff_id, &blob, media_type::OCI_LAYER_GZIP);
        fixture.registry.on("GET", "blobs", 1..=2, Fault::Corrupt);
        let error = fixture.pull(&[diff_id]).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {digest}, got sha256:")), "{error}");
        assert!(!fixture.root.layers().contains(&diff_id).unwrap());
        assert_eq!(fixture.registry.requests().len(), 2);
        fixture.registry.on("GET", "blobs", 1..=1, Fault::Corrupt);
        fixture.pull(&[diff_id]).unwrap();
        assert!(fixture.tar(&diff_id) == tar);
        assert_eq!(fixture.registry.requests().len(), 4);
    }

    #[test]
    fn a_blob_that_is_not_the_layer_it_is_said_to_be_is_refused() {
        let fixture = Fixture::new();
        let ((diff_id, _), (other, tar)) = (tar(b"one"), tar(b"two"));
        fixture.publish(diff_id, &compressed(&tar, Algorithm::Gzip), media_type::OCI_LAYER_GZIP);
        let error = fixture.pull(&[diff_id]).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {diff_id}, got {other}")), "{error}");
        // Behind the gzip stream, and part of the digest.
        let mut trailing = compressed(&tar, Algorithm::Gzip);
        trailing.extend_from_slice(b"garbage");
        fixture.publish(other, &trailing, media_type::OCI_LAYER_GZIP);
        fixture.pull(&[other]).unwrap_err();
        assert!(!fixture.root.layers().contains(&other).unwrap());
    }

    #[test]
    fn the_next_place_is_asked_when_one_has_lost_a_layer() {
        let fixture = Fixture::new();
        let (diff_id, tar) = tar(b"content");
        let blob = compressed(&tar, Algorithm::Gzip);
        let digest = fixture.publish(diff_id, &blob, media_type::OCI_LAYER_GZIP);
        let second = Registry::start();
        second.put_blob("base", &blob);
        fixture.root.layers().remember_location(&digest, second.address(), "base").unwrap();
        fixture.registry.remove_blob("base", &digest);
        fixture.pull(&[diff_id]).unwrap();
        assert!(fixture.tar(&diff_id) == tar);
    }

    #[test]
    fn what_nobody_has_is_said_to_be_nowhere() {
        let fixture = Fixture::new();
        let (diff_id, _) = tar(b"content");
        assert!(matches!(fixture.pull(&[diff_id]), Err(PullError::Unknown(_))));
        let digest = fixture.publish(diff_id, b"x", media_type::DOCKER_FOREIGN_LAYER_GZIP);
        fixture.registry.remove_blob("base", &digest);
        let error = fixture.pull(&[diff_id]).unwrap_err();
        assert!(matches!(error, PullError::Foreign { .. }), "{error}");
    }

    #[test]
    fn a_compressed_layer_in_the_store_is_used_without_a_registry() {
        let fixture = Fixture::new();
        let (diff_id, tar) = tar(&[7; 2_000_000]);
        let blob = compressed(&tar, Algorithm::Zstd);
        fixture.publish(diff_id, &blob, media_type::OCI_LAYER_ZSTD);
        fixture.root.blobs().put_bytes(&blob).unwrap();
        fixture.pull(&[diff_id]).unwrap();
        assert!(fixture.tar(&diff_id) == tar);
        assert_eq!(fixture.registry.requests().len(), 0);
    }
}
