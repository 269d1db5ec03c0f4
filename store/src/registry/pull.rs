//! Manifests and blobs out of a registry.

use bytes::Bytes;
use image::manifest::{Document, media_type};
use image::{Descriptor, Digest, Reference};
use reqwest::header::{
    ACCEPT, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LINK, RANGE,
};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Client;
use super::auth::Scopes;
use super::client::{BodyError, Endpoint, Fault, Request, Stall, Way, is_worth_another_try, limited_body};
use super::error::{NetworkCause, RegistryError, redacted};
use super::retry::{Backoff, is_transient};

/// Of a manifest or an index (distribution-spec: registries should take 4 MiB at least).
const LONGEST_MANIFEST: usize = 4 << 20;

/// How many tags are asked for at a time.
const TAGS: usize = 1000;

const MANIFEST_TYPES: [&str; 4] =
    [media_type::OCI_INDEX, media_type::DOCKER_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST];

/// What a registry has for a reference.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Type, digest and size of the document.
    pub descriptor: Descriptor,
    /// The document as served; they hash to the descriptor's digest.
    pub bytes: Bytes,
    /// The document.
    pub document: Document,
}

impl Client {
    /// Asks what `reference` points at without fetching it, which Docker Hub does not count as a pull.
    pub async fn head(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.each_source(reference, async |endpoint, retry| self.head_at(endpoint, reference, retry).await)
            .await
    }

    /// Fetches the manifest or index of `reference`, by digest if it has one, and verifies it.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        self.each_source(reference, async |endpoint, retry| {
            match self.manifest_at(endpoint, reference, retry).await {
                // Damaged once may be a fluke of a proxy on the way.
                Err(RegistryError::Corrupt { .. }) => self.manifest_at(endpoint, reference, retry).await,
                result => result,
            }
        })
        .await
    }

    /// The tags that a registry has of the name of `reference`.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Page {
            // Some registries say null for none.
            tags: Option<Vec<String>>,
        }
        let endpoint = self.origin(&reference.registry).await?;
        let scopes = Scopes::pull(&reference.repository);
        let what = format!("tags of {}", reference.name());
        let mut all: Vec<String> = Vec::new();
        loop {
            let mut url = endpoint.url(&format!("{}/tags/list", reference.repository));
            url.query_pairs_mut().append_pair("n", &TAGS.to_string());
            if let Some(last) = all.last() {
                url.query_pairs_mut().append_pair("last", last);
            }
            let request = Request::new(Method::GET, url, &scopes);
            let response = self.call(&endpoint, &request).await?;
            if !response.status().is_success() {
                return Err(self.refusal(&endpoint, &request, &what, response).await);
            }
            let goes_on = response.headers().contains_key(LINK);
            let bytes = match limited_body(response, LONGEST_MANIFEST, &self.config().timing).await {
                Ok(bytes) => bytes,
                Err(BodyError::TooLong) => {
                    return Err(RegistryError::Corrupt { what, reason: "the list is too long".to_owned() });
                }
                Err(BodyError::Broken(cause)) => return Err(network(&request, cause)),
            };
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|error| RegistryError::Corrupt { what: what.clone(), reason: error.to_string() })?;
            let before = all.len();
            for tag in page.tags.unwrap_or_default() {
                if !all.contains(&tag) {
                    all.push(tag);
                }
            }
            if !goes_on || all.len() == before {
                return Ok(all);
            }
        }
    }

    /// Starts to fetch a blob of `reference`'s repository. The stream's bytes are not verified; the `attempt`th time
    /// (from 0) the blob is asked of another mirror, if there is one.
    pub async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        attempt: usize,
    ) -> Result<BlobStream, RegistryError> {
        let mut endpoints = self.sources(reference).await?;
        let skip = attempt.min(endpoints.len() - 1);
        endpoints.drain(..skip);
        let last = endpoints.pop().expect("sources end with the registry itself");
        for endpoint in endpoints {
            if let Ok(stream) = self.blob_at(endpoint, reference, descriptor, false).await {
                return Ok(stream);
            }
        }
        self.blob_at(last, reference, descriptor, true).await
    }

    /// Fetches a small blob, such as a config, and verifies it.
    pub async fn blob_bytes(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        if descriptor.size > limit {
            return Err(RegistryError::Corrupt {
                what: format!("blob {}", descriptor.digest),
                reason: format!("it is {} bytes long, and at most {limit} are read", descriptor.size),
            });
        }
        let mut attempt = 0;
        loop {
            let result = async {
                let mut stream = self.blob(reference, descriptor, attempt).await?;
                let mut bytes = Vec::with_capacity(descriptor.size as usize);
                while let Some(chunk) = stream.next().await? {
                    bytes.extend_from_slice(&chunk);
                }
                let actual = digest_like(&descriptor.digest, &bytes);
                if actual != descriptor.digest {
                    let what = format!("blob {}", descriptor.digest);
                    return Err(RegistryError::digest(what, descriptor.digest, actual));
                }
                Ok(Bytes::from(bytes))
            };
            match result.await {
                Err(RegistryError::Corrupt { .. }) if attempt == 0 => attempt = 1,
                result => return result,
            }
        }
    }

    /// Asks the mirrors in order and the registry last; only the registry is worth waiting for, and its error counts.
    async fn each_source<T>(
        &self,
        reference: &Reference,
        ask: impl AsyncFn(&Endpoint, bool) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let endpoints = self.sources(reference).await?;
        let (last, mirrors) = endpoints.split_last().expect("sources end with the registry itself");
        for endpoint in mirrors {
            if let Ok(found) = ask(endpoint, false).await {
                return Ok(found);
            }
        }
        ask(last, true).await
    }

    async fn head_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        retry: bool,
    ) -> Result<Descriptor, RegistryError> {
        let scopes = Scopes::pull(&reference.repository);
        let mut request = manifest_request(Method::HEAD, endpoint, reference, &scopes);
        request.retry = retry;
        let response = self.call(endpoint, &request).await?;
        if response.status().is_success()
            && let Some(digest) = content_digest(response.headers())
            && let Some(size) = response.headers().get(reqwest::header::CONTENT_LENGTH)
            && let Some(size) = size.to_str().ok().and_then(|text| text.parse().ok())
            && let Some(media_type) = content_type(response.headers())
            && reference.digest.is_none_or(|wanted| wanted == digest)
        {
            return Ok(Descriptor::new(&media_type, digest, size));
        }
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.refusal(endpoint, &request, &reference.to_string(), response).await);
        }
        // Some registries know no HEAD, or leave out the digest.
        Ok(self.manifest_at(endpoint, reference, retry).await?.descriptor)
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        retry: bool,
    ) -> Result<Resolved, RegistryError> {
        let what = reference.to_string();
        let scopes = Scopes::pull(&reference.repository);
        let mut request = manifest_request(Method::GET, endpoint, reference, &scopes);
        request.retry = retry;
        let timing = &self.config().timing;
        let mut backoff = Backoff::new(timing, Instant::now());
        let (headers, bytes) = loop {
            let response = self.call(endpoint, &request).await?;
            if !response.status().is_success() {
                return Err(self.refusal(endpoint, &request, &what, response).await);
            }
            let headers = response.headers().clone();
            match limited_body(response, LONGEST_MANIFEST, timing).await {
                Ok(bytes) => break (headers, Bytes::from(bytes)),
                Err(BodyError::TooLong) => {
                    let reason = format!("it is longer than {} MiB", LONGEST_MANIFEST >> 20);
                    return Err(RegistryError::Corrupt { what, reason });
                }
                Err(BodyError::Broken(cause)) if retry => {
                    let error = network(&request, cause);
                    self.pause(&mut backoff, endpoint, &request, Fault::Network(error)).await?;
                }
                Err(BodyError::Broken(cause)) => return Err(network(&request, cause)),
            }
        };
        let promised = content_digest(&headers);
        let wanted = reference.digest.or(promised);
        let digest = match &wanted {
            Some(wanted) => digest_like(wanted, &bytes),
            None => Digest::of(&bytes),
        };
        if let Some(wanted) = wanted
            && wanted != digest
        {
            return Err(RegistryError::digest(what, wanted, digest));
        }
        let served = content_type(&headers);
        let document = Document::parse(&bytes, served.as_deref())
            .map_err(|source| RegistryError::Document { reference: what, source })?;
        let media_type = match &document {
            Document::Index(index) if !index.media_type.is_empty() => index.media_type.clone(),
            Document::Manifest(manifest) if !manifest.media_type.is_empty() => manifest.media_type.clone(),
            Document::Index(_) => media_type::OCI_INDEX.to_owned(),
            Document::Manifest(_) => media_type::OCI_MANIFEST.to_owned(),
        };
        Ok(Resolved { descriptor: Descriptor::new(&media_type, digest, bytes.len() as u64), bytes, document })
    }

    async fn blob_at(
        &self,
        endpoint: Endpoint,
        reference: &Reference,
        descriptor: &Descriptor,
        retry: bool,
    ) -> Result<BlobStream, RegistryError> {
        let permit = self.transfer(&endpoint, Way::Pull).await;
        let mut stream = BlobStream {
            client: self.clone(),
            backoff: Backoff::new(&self.config().timing, Instant::now()),
            scopes: Scopes::pull(&reference.repository),
            repository: reference.repository.clone(),
            digest: descriptor.digest,
            size: descriptor.size,
            received: 0,
            skip: 0,
            etag: None,
            whole_only: false,
            response: None,
            stall: Stall::default(),
            retry,
            endpoint,
            _permit: permit,
        };
        stream.open().await?;
        Ok(stream)
    }
}

/// A blob on its way: exactly as many bytes as its descriptor says, asked for again where the last connection broke.
///
/// The bytes are as the registry gave them: whoever takes them verifies the digest.
#[derive(Debug)]
pub struct BlobStream {
    client: Client,
    endpoint: Endpoint,
    scopes: Scopes,
    repository: String,
    digest: Digest,
    size: u64,
    received: u64,
    // Bytes of the current response that were received before.
    skip: u64,
    etag: Option<HeaderValue>,
    // The server does not do ranges right.
    whole_only: bool,
    response: Option<Response>,
    stall: Stall,
    backoff: Backoff,
    retry: bool,
    _permit: OwnedSemaphorePermit,
}

impl BlobStream {
    /// The next bytes; `None` when all have come.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.received == self.size {
                return self.finish().await;
            }
            let Some(response) = &mut self.response else {
                self.open().await?;
                continue;
            };
            let timing = &self.client.config().timing;
            let cause = match self.stall.chunk(response, timing).await {
                Ok(Some(mut chunk)) => {
                    if self.skip > 0 {
                        let skipped = self.skip.min(chunk.len() as u64);
                        self.skip -= skipped;
                        chunk = chunk.split_off(skipped as usize);
                    }
                    if chunk.is_empty() {
                        continue;
                    }
                    self.received += chunk.len() as u64;
                    if self.received > self.size {
                        return Err(self.corrupt("it is longer than its descriptor says"));
                    }
                    self.backoff.progressed(timing, Instant::now());
                    return Ok(Some(chunk));
                }
                Ok(None) => NetworkCause::Truncated { got: self.received, expected: self.size },
                Err(cause) => cause,
            };
            self.response = None;
            let request = Request::new(Method::GET, self.url(), &self.scopes);
            let error = network(&request, cause);
            if !self.retry {
                return Err(error);
            }
            self.client.pause(&mut self.backoff, &self.endpoint, &request, Fault::Network(error)).await?;
        }
    }

    /// All promised bytes are there: nothing may follow.
    async fn finish(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if let Some(mut response) = self.response.take()
            && let Ok(Some(chunk)) = self.stall.chunk(&mut response, &self.client.config().timing).await
            && !chunk.is_empty()
        {
            return Err(self.corrupt("it is longer than its descriptor says"));
        }
        Ok(None)
    }

    fn url(&self) -> reqwest::Url {
        self.endpoint.url(&format!("{}/blobs/{}", self.repository, self.digest))
    }

    fn corrupt(&self, reason: &str) -> RegistryError {
        RegistryError::Corrupt { what: format!("blob {}", self.digest), reason: reason.to_owned() }
    }

    /// Asks for what is missing.
    async fn open(&mut self) -> Result<(), RegistryError> {
        if self.size == 0 {
            return Ok(());
        }
        self.stall = Stall::default();
        loop {
            let mut request = Request::new(Method::GET, self.url(), &self.scopes);
            request.retry = false;
            let resuming = self.received > 0 && !self.whole_only;
            if resuming {
                let range = format!("bytes={}-", self.received);
                request.headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits"));
                if let Some(etag) = &self.etag {
                    request.headers.insert(IF_RANGE, etag.clone());
                }
            }
            let mut connects = 0;
            let fault = match self.client.call(&self.endpoint, &request).await {
                Ok(response) if self.retry && is_transient(response.status()) => Fault::Answer(response),
                Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && resuming => {
                    self.whole_only = true;
                    continue;
                }
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT && resuming => {
                    match content_range(response.headers()) {
                        Some((start, total)) if start <= self.received => {
                            if total.is_some_and(|total| total != self.size) {
                                return Err(self.corrupt("its length is not what its descriptor says"));
                            }
                            self.skip = self.received - start;
                            self.response = Some(response);
                            return Ok(());
                        }
                        // A range that we did not ask for.
                        _ => {
                            self.whole_only = true;
                            continue;
                        }
                    }
                }
                Ok(response) if response.status() == StatusCode::OK => {
                    if response.content_length().is_some_and(|length| length != self.size) {
                        return Err(self.corrupt("its length is not what its descriptor says"));
                    }
                    // A weak tag says nothing about bytes.
                    let tag = response.headers().get(ETAG).cloned();
                    self.etag = tag.filter(|tag| !tag.as_bytes().starts_with(b"W/"));
                    self.skip = self.received;
                    self.response = Some(response);
                    return Ok(());
                }
                Ok(response) => {
                    let what = format!("blob {} of {}", self.digest, self.repository);
                    return Err(self.client.refusal(&self.endpoint, &request, &what, response).await);
                }
                Err(error) if self.retry && is_worth_another_try(&error, &mut connects) => {
                    Fault::Network(error)
                }
                Err(error) => return Err(error),
            };
            self.client.pause(&mut self.backoff, &self.endpoint, &request, fault).await?;
        }
    }
}

fn manifest_request<'a>(
    method: Method,
    endpoint: &Endpoint,
    reference: &Reference,
    scopes: &'a Scopes,
) -> Request<'a> {
    let name = match (&reference.digest, reference.tag_or_latest()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        (None, None) => unreachable!("a reference without a digest has a tag or means latest"),
    };
    let url = endpoint.url(&format!("{}/manifests/{name}", reference.repository));
    let mut request = Request::new(method, url, scopes);
    for accepted in MANIFEST_TYPES {
        request.headers.append(ACCEPT, HeaderValue::from_static(accepted));
    }
    request
}

pub(super) fn network(request: &Request<'_>, cause: NetworkCause) -> RegistryError {
    RegistryError::Network {
        method: request.method.clone(),
        url: redacted(&request.url),
        attempts: 1,
        waited: std::time::Duration::ZERO,
        cause,
    }
}

/// `Docker-Content-Digest`, where it is one that we know.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim().to_owned())
}

/// First byte and total length of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total: Option<u64> = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    (first <= last).then_some((first, total))
}

fn digest_like(wanted: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = image::digest::Hasher::like(wanted);
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_or_distrusted() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 0-0/*"), Some((0, None)));
        for bad in
            ["", "bytes */10", "bytes 9-5/10", "bytes=5-9/10", "bytes 5-9", "items 5-9/10", "bytes a-b/c"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
