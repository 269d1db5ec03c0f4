//! Blobs and manifests into a registry.
//!
//! Two ways to upload. A blob whose digest is known goes in one PUT, which is opened again from the start if it breaks.
//! A blob that is made while it is sent (its digest is known at its end) goes in PATCHes of some MiB, each kept until
//! the registry has it; registries that do not take those get the blob made twice, for the digest and for the PUT.

use std::collections::VecDeque;
use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use image::{Descriptor, Digest, Reference};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::auth::Scopes;
use super::chunk::{Chunk, Part, Stretch};
use super::client::{Endpoint, Fault, Patience, Payload, Request, Way, is_worth_another_try};
use super::error::{RegistryError, redacted};
use super::pull::content_digest;
use super::retry::{Backoff, is_transient};
use super::{Client, Progress};

/// The first chunk of an upload whose digest is not known yet, and the most of one that is in memory. Above the 5 MiB that
/// object stores want of all parts but the last; two of them are held for each transfer.
const CHUNK: u64 = 6 << 20;
/// The longest chunk: registries wait for their disk after each.
const LONGEST_CHUNK: u64 = 48 << 20;
/// After a chunk that took less, the next one may be longer.
const QUICK: Duration = Duration::from_secs(1);
/// Pieces that a body is handed to the connection in: small enough to see it move.
const FRAME: usize = 64 << 10;
/// Fresh uploads that are begun for one blob while the registry forgets the old ones.
const FRESH_STARTS: u32 = 5;

/// Bytes to upload that can be made again: each `open` gives the same.
pub trait Source: Send + Sync {
    /// Starts to make the bytes: some [`Piece::Data`], then one [`Piece::End`]. A channel that closes without an end
    /// is an error. Dropping the receiver stops the maker.
    fn open(&self) -> mpsc::Receiver<Piece>;
}

/// A part of what a [`Source`] makes.
#[derive(Debug)]
pub enum Piece {
    /// More bytes.
    Data(Bytes),
    /// More bytes, which take no memory while they wait.
    Stored(Stretch),
    /// All were given; they hash to `digest` and are `size` bytes.
    End {
        /// The digest of all bytes.
        digest: Digest,
        /// How many there were.
        size: u64,
    },
    /// They cannot be made.
    Failed(Box<dyn Error + Send + Sync>),
}

/// The bytes of a blob whose digest is known.
#[derive(Clone)]
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// From somewhere else.
    Source(Arc<dyn Source>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Source(_) => f.write_str("Source"),
        }
    }
}

/// How a blob came to be where it was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another repository.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// An upload that was begun, or was not needed.
enum Begun {
    Mounted,
    At(Url),
}

impl Client {
    /// Whether the repository of `target` has a blob.
    pub async fn has_blob(&self, target: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        self.has_blob_at(&endpoint, target, digest).await
    }

    /// Whether we may push to `target`, found out by beginning an upload and dropping it: before the build, not after.
    pub async fn check_push(&self, target: &Reference) -> Result<(), RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        let scopes = Scopes::push(&target.repository);
        let Begun::At(location) = self.begin(&endpoint, target, &scopes, None).await? else { return Ok(()) };
        let mut request = Request::new(Method::DELETE, location, &scopes);
        request.retry = false;
        // Registries drop unfinished uploads themselves, some only so.
        let _ = self.call(&endpoint, &request).await;
        Ok(())
    }

    /// Makes sure that the repository of `target` has the blob. `mount_from` is a repository of the same registry that
    /// may have it. With `certain`, the registry's word that it has the blob is not asked for.
    pub async fn push_blob(
        &self,
        target: &Reference,
        descriptor: &Descriptor,
        body: Body,
        mount_from: Option<&str>,
        certain: bool,
        progress: &Progress,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        let _slot = self.transfer(&endpoint, Way::Push).await;
        if !certain && self.has_blob_at(&endpoint, target, &descriptor.digest).await? {
            return Ok(Pushed::Existed);
        }
        let mount_from = mount_from.filter(|from| !certain && *from != target.repository);
        self.put_blob(&endpoint, target, descriptor, body, mount_from, progress).await
    }

    /// Mounts a blob from `from`, a repository of the same registry, if the registry can and will.
    ///
    /// Also true if the blob is there already. For blobs that we do not have.
    pub async fn mount_blob(
        &self,
        target: &Reference,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        if self.has_blob_at(&endpoint, target, digest).await? {
            return Ok(true);
        }
        if from == target.repository {
            return Ok(false);
        }
        let scopes = Scopes::push(&target.repository);
        Ok(matches!(self.begin(&endpoint, target, &scopes, Some((digest, from))).await?, Begun::Mounted))
    }

    /// Uploads what `source` makes while it makes it. Returns what it was.
    ///
    /// What fits into one chunk is only sent if the repository does not have it; with `certain`, its word is not asked for.
    pub async fn push_source(
        &self,
        target: &Reference,
        source: Arc<dyn Source>,
        certain: bool,
        progress: &Progress,
    ) -> Result<(Digest, u64, Pushed), RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        let _slot = self.transfer(&endpoint, Way::Push).await;
        let mut maker = Maker::new(source.open());
        let first = maker.chunk(CHUNK).await?;
        if let Some((digest, size)) = maker.end {
            let descriptor = Descriptor::new("", digest, size);
            if !certain && self.has_blob_at(&endpoint, target, &digest).await? {
                return Ok((digest, size, Pushed::Existed));
            }
            let body = Body::Bytes(first.read().map_err(|error| RegistryError::Source(error.into()))?);
            let pushed = self.put_blob(&endpoint, target, &descriptor, body, None, progress).await?;
            return Ok((digest, size, pushed));
        }
        let scopes = Scopes::push(&target.repository);
        let mut upload = Upload::begin(self, &endpoint, target, &scopes, progress).await?;
        let sent = async {
            let (mut chunk, mut length) = (first, CHUNK);
            loop {
                let began = Instant::now();
                upload.patch(chunk).await?;
                if let Some(end) = maker.end {
                    return Ok(Some(end));
                }
                // Longer ones where the network is fast: on a slow one much would be lost with a connection.
                if began.elapsed() < QUICK {
                    length = (2 * length).min(LONGEST_CHUNK);
                }
                chunk = maker.chunk(length).await?;
                // Nothing but the end was left.
                if chunk.len() == 0 {
                    return Ok(maker.end);
                }
            }
        };
        let end = match sent.await {
            Ok(Some(end)) => end,
            Ok(None) => return Err(RegistryError::Source("the data has no end".into())),
            Err(Stuck::Failed(error)) => return Err(error),
            Err(Stuck::Unsupported) => maker.exhaust().await?,
        };
        if upload.stuck {
            // Made a second time: now that its digest is known, it can go in one piece.
            drop(maker);
            let descriptor = Descriptor::new("", end.0, end.1);
            let pushed = match self.has_blob_at(&endpoint, target, &end.0).await? {
                true => Pushed::Existed,
                false => {
                    self.put_blob(&endpoint, target, &descriptor, Body::Source(source), None, progress)
                        .await?
                }
            };
            return Ok((end.0, end.1, pushed));
        }
        match upload.commit(&end.0).await {
            Ok(()) => Ok((end.0, end.1, Pushed::Uploaded)),
            Err(Stuck::Failed(error)) => Err(error),
            Err(Stuck::Unsupported) => {
                let descriptor = Descriptor::new("", end.0, end.1);
                let pushed = self
                    .put_blob(&endpoint, target, &descriptor, Body::Source(source), None, progress)
                    .await?;
                Ok((end.0, end.1, pushed))
            }
        }
    }

    /// Puts a manifest or index by its tag, or by its digest if `target` has no tag. All it names must be there.
    pub async fn put_manifest(
        &self,
        target: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, RegistryError> {
        let endpoint = self.origin(&target.registry).await?;
        let scopes = Scopes::push(&target.repository);
        let descriptor = Descriptor::of(media_type, &bytes);
        let name = match target.tag_or_latest() {
            Some(tag) => tag.to_owned(),
            None => descriptor.digest.to_string(),
        };
        let url = endpoint.url(&format!("{}/manifests/{name}", target.repository));
        let mut request = Request::new(Method::PUT, url, &scopes);
        let content_type = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Protocol {
            method: Method::PUT,
            url: redacted(&request.url),
            reason: format!("{media_type:?} is no media type"),
        })?;
        request.headers.insert(CONTENT_TYPE, content_type);
        request.payload = Payload::Chunk(bytes.into());
        let response = self.call(&endpoint, &request).await?;
        if !response.status().is_success() {
            return Err(self.refusal(&endpoint, &request, &target.to_string(), response).await);
        }
        check_digest(&response, &target.to_string(), &descriptor.digest)?;
        Ok(descriptor)
    }

    async fn has_blob_at(
        &self,
        endpoint: &Endpoint,
        target: &Reference,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let scopes = Scopes::push(&target.repository);
        let url = endpoint.url(&format!("{}/blobs/{digest}", target.repository));
        let mut request = Request::new(Method::HEAD, url, &scopes);
        let mut status = self.call(endpoint, &request).await?.status();
        if matches!(status, StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED) {
            // Some gateways know no HEAD. The body is dropped with the connection.
            request.method = Method::GET;
            request.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            status = self.call(endpoint, &request).await?.status();
        }
        // Anything else is as good as absent: the upload will tell what is wrong.
        Ok(status.is_success())
    }

    async fn begin(
        &self,
        endpoint: &Endpoint,
        target: &Reference,
        scopes: &Scopes,
        mount: Option<(&Digest, &str)>,
    ) -> Result<Begun, RegistryError> {
        let url = endpoint.url(&format!("{}/blobs/uploads/", target.repository));
        if let Some((digest, from)) = mount {
            let mut url = url.clone();
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
            let scopes = scopes.clone().and_pull(from);
            let request = Request::new(Method::POST, url, &scopes);
            // Whatever a registry has against a mount (no right to read there, no such feature), an upload is the
            // other way.
            if let Ok(response) = self.call(endpoint, &request).await {
                match response.status() {
                    StatusCode::CREATED => return Ok(Begun::Mounted),
                    StatusCode::ACCEPTED => {
                        if let Ok(location) = location(&request, &response) {
                            return Ok(Begun::At(location));
                        }
                    }
                    _ => {}
                }
            }
        }
        let request = Request::new(Method::POST, url, scopes);
        let response = self.call(endpoint, &request).await?;
        if !response.status().is_success() {
            return Err(self.refusal(endpoint, &request, &target.name(), response).await);
        }
        Ok(Begun::At(location(&request, &response)?))
    }

    /// Uploads in one PUT; every attempt begins a new upload.
    async fn put_blob(
        &self,
        endpoint: &Endpoint,
        target: &Reference,
        descriptor: &Descriptor,
        body: Body,
        mount_from: Option<&str>,
        progress: &Progress,
    ) -> Result<Pushed, RegistryError> {
        let scopes = Scopes::push(&target.repository);
        let mut backoff = Backoff::new(&self.config().timing, Instant::now());
        let mut connects = 0;
        let mut starts = 0;
        let mut mount = mount_from.map(|from| (&descriptor.digest, from));
        loop {
            let location = match self.begin(endpoint, target, &scopes, mount.take()).await? {
                Begun::Mounted => return Ok(Pushed::Mounted),
                Begun::At(location) => location,
            };
            starts += 1;
            let mut request = Request::new(Method::PUT, with_digest(location, &descriptor.digest), &scopes);
            request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            request.payload = match &body {
                Body::Bytes(bytes) => Payload::Chunk(bytes.clone().into()),
                Body::Source(source) => Payload::Source(Arc::clone(source), descriptor.size),
            };
            request.patience = Patience::Commit;
            request.retry = false;
            request.progress = Some(progress.clone());
            let fault = match self.call(endpoint, &request).await {
                Ok(response) if response.status().is_success() => {
                    check_digest(&response, &format!("blob {}", descriptor.digest), &descriptor.digest)?;
                    return Ok(Pushed::Uploaded);
                }
                Ok(response) if is_transient(response.status()) => Fault::Answer(response),
                // The upload is forgotten or mixed up: a new one may do.
                Ok(response)
                    if matches!(
                        response.status(),
                        StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE
                    ) && starts < FRESH_STARTS =>
                {
                    Fault::Answer(response)
                }
                Ok(response) => {
                    let what = format!("the upload of blob {}", descriptor.digest);
                    return Err(self.refusal(endpoint, &request, &what, response).await);
                }
                Err(error) if is_worth_another_try(&error, &mut connects) => Fault::Network(error),
                Err(error) => return Err(error),
            };
            self.pause(&mut backoff, endpoint, &request, fault).await?;
        }
    }
}

/// Why a chunked upload does not go on.
enum Stuck {
    Failed(RegistryError),
    /// The registry does not take chunks as we send them.
    Unsupported,
}

impl From<RegistryError> for Stuck {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

/// An upload in chunks.
struct Upload<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    target: &'a Reference,
    scopes: &'a Scopes,
    progress: &'a Progress,
    location: Url,
    // Bytes that the registry has, as far as we know.
    offset: u64,
    stuck: bool,
}

impl<'a> Upload<'a> {
    async fn begin(
        client: &'a Client,
        endpoint: &'a Endpoint,
        target: &'a Reference,
        scopes: &'a Scopes,
        progress: &'a Progress,
    ) -> Result<Self, RegistryError> {
        let Begun::At(location) = client.begin(endpoint, target, scopes, None).await? else {
            unreachable!("nothing was asked to be mounted");
        };
        Ok(Self { client, endpoint, target, scopes, progress, location, offset: 0, stuck: false })
    }

    /// Sends the next bytes; `Ok` means that the registry has them.
    async fn patch(&mut self, chunk: Chunk) -> Result<(), Stuck> {
        let (start, end) = (self.offset, self.offset + chunk.len());
        let mut backoff = Backoff::new(&self.client.config().timing, Instant::now());
        let mut connects = 0;
        // Answers that say the offsets are wrong.
        let mut confusions = 0;
        while self.offset < end {
            let rest = chunk.behind(self.offset - start);
            let mut request = Request::new(Method::PATCH, self.location.clone(), self.scopes);
            let range = format!("{}-{}", self.offset, end - 1);
            request.headers.insert(CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits"));
            request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            let (base, progress) = (self.offset, self.progress.clone());
            request.progress = Some(Progress::new(move |done, _| progress.report(base + done, None)));
            request.payload = Payload::Chunk(rest);
            request.retry = false;
            let fault = match self.client.call(self.endpoint, &request).await {
                Ok(response) if response.status().is_success() => {
                    if let Ok(location) = location(&request, &response) {
                        self.location = location;
                    }
                    // A registry may take a part only. One that says less than it had before is not to be believed:
                    // some answer from a replica that lags.
                    self.offset = match acknowledged(response.headers()) {
                        Some(taken) if (self.offset + 1..end).contains(&taken) => taken,
                        _ => end,
                    };
                    continue;
                }
                Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    confusions += 1;
                    if confusions > 2 {
                        self.stuck = true;
                        return Err(Stuck::Unsupported);
                    }
                    self.ask_offset(start, end).await?;
                    continue;
                }
                Ok(response) if is_transient(response.status()) => Fault::Answer(response),
                Ok(response)
                    if matches!(
                        response.status(),
                        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PAYLOAD_TOO_LARGE
                    ) =>
                {
                    let what = format!("the upload to {}", self.target.name());
                    return Err(self.client.refusal(self.endpoint, &request, &what, response).await.into());
                }
                // No chunks here, or the upload is gone.
                Ok(_) => {
                    self.stuck = true;
                    return Err(Stuck::Unsupported);
                }
                Err(error) if is_worth_another_try(&error, &mut connects) => Fault::Network(error),
                Err(error) => return Err(error.into()),
            };
            self.client.pause(&mut backoff, self.endpoint, &request, fault).await?;
            self.ask_offset(start, end).await?;
        }
        Ok(())
    }

    /// Asks how much of the bytes between `start` and `end` the registry has, after a fault.
    async fn ask_offset(&mut self, start: u64, end: u64) -> Result<(), Stuck> {
        let request = Request::new(Method::GET, self.location.clone(), self.scopes);
        let response = self.client.call(self.endpoint, &request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            self.stuck = true;
            return Err(Stuck::Unsupported);
        }
        if response.status().is_success() {
            if let Ok(location) = location(&request, &response) {
                self.location = location;
            }
            match acknowledged(response.headers()) {
                // What came before the chunk is gone: it was in a chunk that we no longer hold.
                Some(taken) if taken < start && taken > 1 => {}
                Some(taken) if taken <= end => self.offset = taken.max(start),
                _ => {}
            }
        }
        Ok(())
    }

    /// Names the digest: the blob is there afterwards.
    async fn commit(&mut self, digest: &Digest) -> Result<(), Stuck> {
        let mut backoff = Backoff::new(&self.client.config().timing, Instant::now());
        let mut connects = 0;
        loop {
            let mut request =
                Request::new(Method::PUT, with_digest(self.location.clone(), digest), self.scopes);
            request.patience = Patience::Commit;
            request.retry = false;
            let fault = match self.client.call(self.endpoint, &request).await {
                Ok(response) if response.status().is_success() => {
                    check_digest(&response, &format!("blob {digest}"), digest)?;
                    return Ok(());
                }
                Ok(response) if is_transient(response.status()) => Fault::Answer(response),
                Ok(response)
                    if matches!(
                        response.status(),
                        StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::BAD_REQUEST
                    ) =>
                {
                    // It may be the answer to the second of two PUTs, of which the first got through.
                    if self.client.has_blob_at(self.endpoint, self.target, digest).await? {
                        return Ok(());
                    }
                    return Err(Stuck::Unsupported);
                }
                Ok(response) => {
                    let what = format!("the upload of blob {digest}");
                    return Err(self.client.refusal(self.endpoint, &request, &what, response).await.into());
                }
                Err(error) if is_worth_another_try(&error, &mut connects) => Fault::Network(error),
                Err(error) => return Err(error.into()),
            };
            self.client.pause(&mut backoff, self.endpoint, &request, fault).await?;
        }
    }
}

/// Takes chunks of a wanted length from a source's pieces.
struct Maker {
    pieces: mpsc::Receiver<Piece>,
    left: Part,
    end: Option<(Digest, u64)>,
}

impl Maker {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, left: Part::default(), end: None }
    }

    /// The next `length` bytes, or fewer: no more than [`CHUNK`] in memory, and all that are left before the end, which is
    /// then known.
    async fn chunk(&mut self, length: u64) -> Result<Chunk, RegistryError> {
        let mut chunk = Chunk::default();
        let mut memory = 0;
        loop {
            let room = match self.left {
                Part::Memory(_) => (length - chunk.len()).min(CHUNK - memory),
                Part::Stored(_) => length - chunk.len(),
            };
            if self.left.len() > room {
                chunk.push(self.left.split_to(room));
                return Ok(chunk);
            }
            if let Part::Memory(bytes) = &self.left {
                memory += bytes.len() as u64;
            }
            chunk.push(std::mem::take(&mut self.left));
            match self.pieces.recv().await {
                Some(Piece::Data(bytes)) => self.left = Part::Memory(bytes),
                Some(Piece::Stored(stretch)) => self.left = Part::Stored(stretch),
                Some(Piece::End { digest, size }) => {
                    self.end = Some((digest, size));
                    return Ok(chunk);
                }
                Some(Piece::Failed(error)) => return Err(RegistryError::Source(error)),
                None => return Err(RegistryError::Source("the data broke off".into())),
            }
        }
    }

    /// Lets the source come to its end.
    async fn exhaust(&mut self) -> Result<(Digest, u64), RegistryError> {
        loop {
            if let Some(end) = self.end {
                return Ok(end);
            }
            self.chunk(LONGEST_CHUNK).await?;
        }
    }
}

/// Where an upload goes on: relative or absolute.
fn location(request: &Request<'_>, response: &Response) -> Result<Url, RegistryError> {
    let protocol = |reason: &str| RegistryError::Protocol {
        method: request.method.clone(),
        url: redacted(&request.url),
        reason: reason.to_owned(),
    };
    let text = response
        .headers()
        .get(LOCATION)
        .ok_or_else(|| protocol("the registry sent no Location"))?
        .to_str()
        .map_err(|_| protocol("the registry sent a Location that is no URL"))?;
    let url = response
        .url()
        .join(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| protocol("the registry sent a Location that is no URL"))?;
    if request.url.scheme() == "https" && url.scheme() == "http" {
        // Registries behind a proxy that ends TLS think they are asked by HTTP.
        let mut secure = url.clone();
        if url.host_str() == request.url.host_str() && secure.set_scheme("https").is_ok() {
            if url.port() == Some(80) {
                // Port 80 was the one that the registry made up with the scheme.
                let _ = secure.set_port(request.url.port());
            }
            return Ok(secure);
        }
        return Err(protocol("the registry sent an http Location for an https registry"));
    }
    Ok(url)
}

fn with_digest(mut location: Url, digest: &Digest) -> Url {
    location.query_pairs_mut().append_pair("digest", &digest.to_string());
    location
}

/// How many bytes `Range: 0-LAST` says there are. `0-0` is what registries say for none as well as for one.
fn acknowledged(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?.trim();
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let last: u64 = text.strip_prefix("0-")?.parse().ok()?;
    Some(if last == 0 { 0 } else { last.checked_add(1)? })
}

fn check_digest(response: &Response, what: &str, expected: &Digest) -> Result<(), RegistryError> {
    match content_digest(response.headers()) {
        Some(actual) if actual != *expected && actual.algorithm() == expected.algorithm() => {
            Err(RegistryError::digest(what, *expected, actual))
        }
        _ => Ok(()),
    }
}

/// What the watcher of a request sees of its body.
#[derive(Debug)]
pub(super) struct Meter {
    moved: AtomicU64,
    sent: AtomicBool,
    waiting: AtomicBool,
    error: Mutex<Option<Box<dyn Error + Send + Sync>>>,
}

impl Meter {
    /// Bytes handed to the connection.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Whether that was all.
    pub(super) fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the connection waits for us, not we for the connection.
    pub(super) fn is_waiting_for_source(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Why the body broke off, if it was us.
    pub(super) fn take_error(&self) -> Option<Box<dyn Error + Send + Sync>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A request body in small frames.
pub(super) struct Upstream {
    parts: VecDeque<Part>,
    pieces: Option<mpsc::Receiver<Piece>>,
    total: u64,
    meter: Arc<Meter>,
    progress: Option<Progress>,
}

impl Upstream {
    pub(super) fn open(payload: &Payload, progress: Option<Progress>) -> (Self, Arc<Meter>) {
        let (parts, pieces, total) = match payload {
            Payload::Empty => (VecDeque::new(), None, 0),
            Payload::Chunk(chunk) => (chunk.clone().into_parts(), None, chunk.len()),
            Payload::Source(source, size) => (VecDeque::new(), Some(source.open()), *size),
        };
        let meter = Arc::new(Meter {
            moved: AtomicU64::new(0),
            sent: AtomicBool::new(total == 0),
            waiting: AtomicBool::new(false),
            error: Mutex::new(None),
        });
        (Self { parts, pieces, total, meter: Arc::clone(&meter), progress }, meter)
    }

    fn fail(&self, error: Box<dyn Error + Send + Sync>) -> Poll<Option<Result<Bytes, std::io::Error>>> {
        let text = error.to_string();
        *self.meter.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        Poll::Ready(Some(Err(std::io::Error::other(text))))
    }
}

impl futures::Stream for Upstream {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(front) = this.parts.front_mut() {
                let frame = match front.next(FRAME) {
                    Ok(frame) => frame,
                    Err(error) => return this.fail(error.into()),
                };
                if front.len() == 0 {
                    this.parts.pop_front();
                }
                if frame.is_empty() {
                    continue;
                }
                let moved =
                    this.meter.moved.fetch_add(frame.len() as u64, Ordering::Relaxed) + frame.len() as u64;
                if moved >= this.total {
                    this.meter.sent.store(true, Ordering::Relaxed);
                }
                if let Some(progress) = &this.progress {
                    progress.report(moved, Some(this.total));
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            let Some(pieces) = &mut this.pieces else { return Poll::Ready(None) };
            this.meter.waiting.store(true, Ordering::Relaxed);
            let piece = ready!(pieces.poll_recv(context));
            this.meter.waiting.store(false, Ordering::Relaxed);
            match piece {
                Some(Piece::Data(bytes)) => this.parts.push_back(Part::Memory(bytes)),
                Some(Piece::Stored(stretch)) => this.parts.push_back(Part::Stored(stretch)),
                Some(Piece::End { size, .. }) => {
                    this.pieces = None;
                    if size != this.total {
                        return this.fail(format!("it is {size} bytes long, not {}", this.total).into());
                    }
                }
                Some(Piece::Failed(error)) => return this.fail(error),
                None => return this.fail("the data broke off".into()),
            }
        }
    }
}
