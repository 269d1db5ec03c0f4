//! Files from the web as sources: a layer with the one file.
//!
//! What a URL gave last time is pinned: its digest, what its server knew it by, and the layer it became. The server is
//! asked whether that still holds, unless a checksum says that it must. A download runs past the runtime's thread chunk by
//! chunk into one that hashes and writes; a layer is made of it only when all of it has come.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::thread;

use image::digest::Hasher;
use image::layer::write::WriteError;
use image::layer::{Data, Entry, Kind, LayerWriter};
use image::{ContentDigest, DiffId, Digest};
use serde::{Deserialize, Serialize};
use store::error::StoreError;
use store::lease::Item;
use store::registry::web::{Chunk, Fetched, Validators, WebError, WebRequest};
use store::registry::{Client, Progress};
use store::root::Root;
use tokio::sync::{mpsc, oneshot};

/// Permission bits of a download, as in BuildKit.
const MODE: u16 = 0o600;
/// The longest download, bytes. Far more than anybody adds to an image; an endless body must not fill the disk.
const LONGEST: u64 = 64 << 30;
/// Longest file name that file systems take, bytes.
const LONGEST_NAME: usize = 255;
/// Chunks between the connection and the thread that writes.
const CHUNKS: usize = 32;

/// What to fetch.
#[derive(Clone, Debug)]
pub(crate) struct Http<'a> {
    pub(crate) url: &'a str,
    pub(crate) checksum: Option<&'a Digest>,
    pub(crate) filename: &'a str,
    pub(crate) mode: Option<u16>,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) authorization: Option<String>,
}

/// What a URL gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Download {
    pub(crate) validators: Validators,
    /// Of the bytes: SHA-256, or what a checksum asked for.
    pub(crate) digest: Digest,
    pub(crate) layer: DiffId,
}

/// A file that cannot be had from the web.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It could not be fetched.
    #[error(transparent)]
    Web(#[from] WebError),
    /// It must not be called this.
    #[error("could not fetch {url}: {filename:?} cannot be the name of a file")]
    Name {
        /// From where.
        url: String,
        /// The name.
        filename: String,
    },
    /// It is another file than the one asked for.
    #[error("could not use {url}: digest mismatch: expected {expected}, got {actual}")]
    Checksum {
        /// From where.
        url: String,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// It is not the file that it was a moment ago.
    #[error("could not use {0}: it changed during the build")]
    Changed(String),
    /// It could not be written.
    #[error("could not write the download of {url}: {source}")]
    Write {
        /// From where.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// No layer could be made of it.
    #[error(transparent)]
    Layer(#[from] WriteError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Http<'_> {
    /// What the URL gives now. Nothing is fetched if it still is what it gave last time.
    pub(crate) async fn pin(
        &self,
        root: &Root,
        client: &Client,
        progress: &Progress,
    ) -> Result<Download, HttpError> {
        if !is_file_name(self.filename) {
            return Err(HttpError::Name { url: self.url.to_owned(), filename: self.filename.to_owned() });
        }
        let name = self.pin_name();
        let known = root.pins().get(&name)?;
        let known = known.and_then(|pin| serde_json::from_slice::<Download>(&pin.value).ok());
        if let (Some(known), Some(checksum)) = (&known, self.checksum)
            && known.digest == *checksum
        {
            return Ok(known.clone());
        }
        // A digest of another kind than the one asked for cannot be compared: it is worked out of the bytes.
        let comparable = |known: &Download| {
            self.checksum.is_none_or(|checksum| checksum.algorithm() == known.digest.algorithm())
        };
        let validators =
            known.as_ref().filter(|known| comparable(known)).map(|known| known.validators.clone());
        match (self.fetch(root, client, validators.unwrap_or_default(), progress).await?, known) {
            (Some(download), _) => {
                self.remember(root, &download)?;
                self.check(download)
            }
            (None, Some(known)) => self.check(known),
            (None, None) => unreachable!("only a request with validators is answered without a body"),
        }
    }

    /// The layer of what was pinned, fetched if it is not here.
    pub(crate) async fn load(
        &self,
        root: &Root,
        client: &Client,
        pinned: &Download,
        progress: &Progress,
    ) -> Result<DiffId, HttpError> {
        // Held first, looked for after: a prune in between takes nothing that is then found.
        root.hold([Item::Layer(pinned.layer)])?;
        if root.layers().contains(&pinned.layer)? {
            return Ok(pinned.layer);
        }
        let download = self.fetch(root, client, Validators::default(), progress).await?;
        let download = download.expect("a request without validators is answered with a body");
        self.remember(root, &download)?;
        let download = self.check(download)?;
        if download.digest != pinned.digest {
            return Err(HttpError::Changed(self.url.to_owned()));
        }
        Ok(download.layer)
    }

    fn pin_name(&self) -> String {
        let Self { url, filename, mode, owner, .. } = self;
        let (uid, gid) = owner.unwrap_or((0, 0));
        format!("http {:o} {uid}:{gid} {filename} {url}", mode.unwrap_or(MODE))
    }

    fn remember(&self, root: &Root, download: &Download) -> Result<(), StoreError> {
        let value = serde_json::to_vec(download).expect("downloads can be written");
        root.pins().put(&self.pin_name(), &value)
    }

    fn check(&self, download: Download) -> Result<Download, HttpError> {
        match self.checksum {
            Some(expected) if *expected != download.digest => Err(HttpError::Checksum {
                url: self.url.to_owned(),
                expected: expected.to_string(),
                actual: download.digest.to_string(),
            }),
            _ => Ok(download),
        }
    }

    /// Fetches the file and stores its layer; `None`: it is still what `validators` are of.
    async fn fetch(
        &self,
        root: &Root,
        client: &Client,
        validators: Validators,
        progress: &Progress,
    ) -> Result<Option<Download>, HttpError> {
        let request = WebRequest {
            url: self.url.to_owned(),
            authorization: self.authorization.clone(),
            validators,
            limit: LONGEST,
        };
        let mut stream = match client.fetch(request).await? {
            Fetched::NotModified => return Ok(None),
            Fetched::Body(stream) => stream,
        };
        let write = |source| HttpError::Write { url: self.url.to_owned(), source };
        let (pieces, receiver) = mpsc::channel(CHUNKS);
        let (tell, done) = oneshot::channel();
        let file = tempfile::tempfile_in(root.temp_dir()?).map_err(write)?;
        let hasher = self.checksum.map_or_else(Hasher::sha256, Hasher::like);
        thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || {
                // Nobody waits any more: the download was given up.
                let _ = tell.send(receive(receiver, file, hasher));
            })
            .map_err(write)?;
        let mut received = 0;
        while let Some(chunk) = stream.next().await? {
            match &chunk {
                Chunk::Data(bytes) => received += bytes.len() as u64,
                Chunk::Restart => received = 0,
            }
            progress.report(received, stream.length());
            if pieces.send(Piece::Chunk(chunk)).await.is_err() {
                // The thread gave up; `done` says why.
                break;
            }
        }
        let _ = pieces.send(Piece::End).await;
        let received =
            done.await.expect("the thread that writes a download does not panic").map_err(write)?;
        let (root, validators) = (root.clone(), stream.validators().clone());
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let entry = Entry {
            path: self.filename.into(),
            kind: Kind::File { size: received.size, offset: 0, content: received.content },
            mode: self.mode.unwrap_or(MODE),
            uid,
            gid,
            mtime: validators.modified().unwrap_or(0),
            xattrs: Default::default(),
        };
        let digest = received.digest;
        let layer = store::pool::spawn(move || store_layer(&root, entry, received.file)).await;
        let layer = layer.unwrap_or_else(|panicked| Err(write_panicked(panicked)))?;
        Ok(Some(Download { validators, digest, layer }))
    }
}

fn write_panicked(panicked: store::pool::Panicked) -> HttpError {
    HttpError::Write { url: "a layer".to_owned(), source: io::Error::other(panicked) }
}

/// A layer that has one file.
fn store_layer(root: &Root, entry: Entry, mut file: File) -> Result<DiffId, HttpError> {
    let mut layer = LayerWriter::new(root.layers().create()?);
    match entry.kind {
        Kind::File { size: 0, .. } => layer.append(entry, Data::None)?,
        _ => layer.append(entry, Data::Expected(&mut file))?,
    }
    let (new, index) = layer.finish()?;
    Ok(new.commit(index)?.diff_id)
}

enum Piece {
    Chunk(Chunk),
    /// All has come.
    End,
}

/// A file that came whole.
struct Received {
    file: File,
    digest: Digest,
    content: ContentDigest,
    size: u64,
}

/// Hashes and writes what comes.
fn receive(mut pieces: mpsc::Receiver<Piece>, mut file: File, hasher: Hasher) -> io::Result<Received> {
    let fresh = hasher.clone();
    let (mut hasher, mut content, mut size) = (hasher, blake3::Hasher::new(), 0);
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Chunk(Chunk::Data(bytes)) => {
                hasher.update(&bytes);
                content.update(&bytes);
                file.write_all(&bytes)?;
                size += bytes.len() as u64;
            }
            Piece::Chunk(Chunk::Restart) => {
                file.set_len(0)?;
                file.rewind()?;
                (hasher, content, size) = (fresh.clone(), blake3::Hasher::new(), 0);
            }
            Piece::End => {
                file.rewind()?;
                let content = ContentDigest(*content.finalize().as_bytes());
                return Ok(Received { file, digest: hasher.finish(), content, size });
            }
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Whether `name` is one plain component of a path.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= LONGEST_NAME
        && !name.contains(|c: char| c == '/' || c.is_control())
        && !name.starts_with(".wh.")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use ::tests::{Page, Web};
    use image::tree::Tree;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    struct Fixture {
        dir: tempfile::TempDir,
        web: Web,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), web: Web::start() }
        }

        /// Pins and loads, and reads what is in the layer.
        fn get(&self, http: &Http<'_>) -> Result<(Download, Vec<u8>, Entry), HttpError> {
            let root = Root::open(self.dir.path()).unwrap();
            let client = Client::new(store::registry::Config::default());
            let progress = Progress::none();
            run(async {
                let pinned = http.pin(&root, &client, &progress).await?;
                let layer = http.load(&root, &client, &pinned, &progress).await?;
                let tree = Tree::of_layers([root.layers().index(&layer)?]);
                let entry = tree.get(http.filename.as_bytes()).unwrap().entry.clone();
                let Kind::File { size, offset, .. } = entry.kind else { panic!("{entry:?}") };
                let mut tar = root.layers().open_tar(&layer)?;
                let mut bytes = vec![0; size as usize];
                tar.seek(io::SeekFrom::Start(offset)).unwrap();
                tar.read_exact(&mut bytes).unwrap();
                Ok((pinned, bytes, entry))
            })
        }

        fn remove(&self, layer: &DiffId) {
            let root = Root::open(self.dir.path()).unwrap();
            assert!(root.layers().remove(layer).unwrap());
        }
    }

    fn http<'a>(url: &'a str, filename: &'a str) -> Http<'a> {
        Http { url, checksum: None, filename, mode: None, owner: None, authorization: None }
    }

    const DATE: &str = "Thu, 01 Jan 1970 00:01:00 GMT";

    #[test]
    fn a_file_has_the_servers_time_and_is_fetched_once() {
        let fixture = Fixture::new();
        let url = fixture.web.url("f");
        fixture.web.put("f", Page::new("one").with("ETag", "\"1\"").with("Last-Modified", DATE));
        let (first, bytes, entry) = fixture.get(&http(&url, "f")).unwrap();
        assert_eq!((bytes.as_slice(), entry.mode, entry.mtime), (&b"one"[..], 0o600, 60));
        assert_eq!(first.digest, Digest::of(b"one"));
        assert_eq!(fixture.get(&http(&url, "f")).unwrap().0, first);
        let statuses: Vec<u16> = fixture.web.requests("/f").iter().map(|request| request.status).collect();
        assert_eq!(statuses, [200, 304]);
        // Pruned, it comes again; changed, it is another.
        fixture.remove(&first.layer);
        assert_eq!(fixture.get(&http(&url, "f")).unwrap().0, first);
        fixture.web.put("f", Page::new("two").with("ETag", "\"2\""));
        let (second, bytes, entry) = fixture.get(&http(&url, "f")).unwrap();
        assert_eq!((bytes.as_slice(), entry.mtime), (&b"two"[..], 0));
        assert_ne!(second.digest, first.digest);
    }

    #[test]
    fn a_checksum_decides_and_spares_the_question() {
        let fixture = Fixture::new();
        let url = fixture.web.url("f");
        fixture.web.put("f", Page::new("one").with("ETag", "\"1\""));
        let (right, wrong) = (Digest::of(b"one"), Digest::of(b"two"));
        let with = |checksum| Http { checksum: Some(checksum), ..http(&url, "f") };
        assert!(matches!(fixture.get(&with(&wrong)), Err(HttpError::Checksum { .. })));
        fixture.get(&with(&right)).unwrap();
        let asked = fixture.web.requests("/f").len();
        fixture.get(&with(&right)).unwrap();
        assert_eq!(fixture.web.requests("/f").len(), asked);
        // An equal tag proves nothing against a checksum.
        assert!(matches!(fixture.get(&with(&wrong)), Err(HttpError::Checksum { .. })));
    }

    #[test]
    fn hostile_names_are_refused_before_anything_is_asked() {
        let fixture = Fixture::new();
        let url = fixture.web.url("f");
        for name in ["", "..", "a/b", "a\0b", "a\nb", ".wh.x"] {
            assert!(matches!(fixture.get(&http(&url, name)), Err(HttpError::Name { .. })), "{name:?}");
        }
        assert!(fixture.web.requests("/f").is_empty());
    }
}
