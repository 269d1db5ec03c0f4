//! Files from the web, over the same connections as registries: chunks in, nothing kept.
//!
//! A download is asked for again where it broke, if the server can tell that the file is still the same; else it starts
//! over, and whoever takes the bytes is told so. Bytes are not verified here, and never decoded: `Content-Encoding` is
//! what the server calls a file that is kept as it came.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Client;
use super::auth::is_private_address;
use super::client::{Profile, Stall, is_fleeting, is_loopback, same_origin};
use super::error::{NetworkCause, redacted};
use super::retry::{Backoff, Next, Timing, is_transient, retry_after, tries};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;
/// How much is read of what a server says to something that is sent, bytes.
const LONGEST_REPLY: usize = 64 << 10;
/// A body may take a second for so many bytes.
const SLOWEST: u64 = 64 << 10;

/// A file to fetch.
#[derive(Clone)]
pub struct WebRequest {
    /// Where it is.
    pub url: String,
    /// Value of `Authorization`, for the host of `url` alone.
    pub authorization: Option<String>,
    /// What the file was known by when it was last fetched; empty to get it in any case.
    pub validators: Validators,
    /// More bytes than this are an error.
    pub limit: u64,
}

impl fmt::Debug for WebRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebRequest").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

/// What a server knows a version of a file by. It tells whether to fetch again; what the file *is* only its bytes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`, as it came.
    pub etag: Option<String>,
    /// `Last-Modified`, as it came.
    pub last_modified: Option<String>,
}

impl Validators {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self { etag: text(ETAG), last_modified: text(LAST_MODIFIED) }
    }

    /// The time of `Last-Modified`, seconds since the epoch.
    pub fn modified(&self) -> Option<i64> {
        let time = httpdate::parse_http_date(self.last_modified.as_deref()?).ok()?;
        Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs().cast_signed())
    }

    /// The header that says which file a range is wanted of: a weak tag says nothing about bytes.
    fn if_range(&self) -> Option<&str> {
        self.etag.as_deref().filter(|tag| !tag.starts_with("W/"))
    }
}

/// A file that cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// No URL that can be fetched.
    #[error("could not fetch {url:?}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The server said no.
    #[error("could not fetch {url}: server answered {status}")]
    Status {
        /// The address, without secrets.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// The server was busy or broken for longer than we wait.
    #[error("could not fetch {url}: server answered {status} to {}", tries(*attempts, *waited))]
    Unavailable {
        /// The address, without secrets.
        url: String,
        /// The last answer.
        status: StatusCode,
        /// How often it was asked.
        attempts: u32,
        /// How long altogether.
        waited: Duration,
    },
    /// No answer: name resolution, connection, TLS, or a broken or stalled transfer.
    #[error("could not fetch {url} ({}): {cause}", tries(*attempts, *waited))]
    Network {
        /// The address, without secrets.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// How long altogether.
        waited: Duration,
        /// What broke.
        cause: NetworkCause,
    },
    /// A redirect that is not followed.
    #[error("could not fetch {url}: {reason}")]
    Redirect {
        /// The address, without secrets.
        url: String,
        /// Why not.
        reason: String,
    },
    /// More bytes than a file may have.
    #[error("could not fetch {url}: it is longer than {limit} bytes")]
    TooLong {
        /// The address, without secrets.
        url: String,
        /// How many it may have.
        limit: u64,
    },
    /// No client can be set up.
    #[error("could not fetch {url}: {reason}")]
    Client {
        /// The address, without secrets.
        url: String,
        /// Why.
        reason: String,
    },
}

/// What came of a request.
#[derive(Debug)]
pub enum Fetched {
    /// The file is still the one that the validators were of.
    NotModified,
    /// The file, on its way.
    Body(Box<WebStream>),
}

/// What a [`WebStream`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// Forget what came so far: it begins again.
    Restart,
}

/// A file on its way.
#[derive(Debug)]
pub struct WebStream {
    client: Client,
    request: WebRequest,
    url: Url,
    response: Option<Response>,
    validators: Validators,
    length: Option<u64>,
    received: u64,
    stall: Stall,
    backoff: Backoff,
    connects: u32,
}

impl Client {
    /// Asks for a file. Answers that may go away are waited for, as with registries.
    pub async fn fetch(&self, request: WebRequest) -> Result<Fetched, WebError> {
        let unusable = |reason: String| WebError::Url { url: shown(&request.url), reason };
        let url: Url = request
            .url
            .parse()
            .map_err(|error: <Url as std::str::FromStr>::Err| unusable(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(unusable("expected http:// or https://".to_owned()));
        }
        let backoff = Backoff::new(&self.config().timing, Instant::now());
        let mut stream = WebStream {
            client: self.clone(),
            request,
            url,
            response: None,
            validators: Validators::default(),
            length: None,
            received: 0,
            stall: Stall::default(),
            backoff,
            connects: 0,
        };
        match stream.open().await? {
            Opened::NotModified => Ok(Fetched::NotModified),
            Opened::Resumed | Opened::Begun => Ok(Fetched::Body(Box::new(stream))),
        }
    }
}

/// A request that is no download.
#[derive(Clone)]
pub struct Send<'a> {
    /// `POST`, `PUT`.
    pub method: &'static str,
    /// Where to.
    pub url: &'a str,
    /// Their values are taken for secrets.
    pub headers: &'a [(&'a str, String)],
    /// What is sent.
    pub body: Bytes,
}

impl fmt::Debug for Send<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Send").field("url", &shown(self.url)).finish_non_exhaustive()
    }
}

/// What a server says to a [`Send`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The beginning of the body.
    pub body: Bytes,
}

impl Client {
    /// Sends something, and again if the answer may be another one then: whoever uses it must not mind. Redirects are not
    /// followed.
    pub async fn send(&self, send: &Send<'_>) -> Result<Reply, WebError> {
        let prepared = self.prepare(send)?;
        let timing = &self.config().timing;
        let patience = timing.header + Duration::from_secs(send.body.len() as u64 / SLOWEST);
        let mut backoff = Backoff::new(timing, Instant::now());
        let mut connects = 0;
        loop {
            let answer = tokio::time::timeout(patience, prepared.once(send)).await;
            let fault = match answer {
                Ok(Ok(response)) if is_transient(response.status()) => Fault::Answer(response),
                Ok(Ok(response)) => match tokio::time::timeout(patience, beginning(response)).await {
                    Ok(Ok(reply)) => return Ok(reply),
                    Ok(Err(error)) => Fault::Network(NetworkCause::Http(error)),
                    Err(_) => Fault::Network(NetworkCause::NoAnswer(patience)),
                },
                Ok(Err(error)) => Fault::Network(NetworkCause::Http(error)),
                Err(_) => Fault::Network(NetworkCause::NoAnswer(patience)),
            };
            pause(timing, &mut backoff, &mut connects, &prepared.url, fault).await?;
        }
    }

    /// Sends a small document, once, and gives the status of the answer. What is sent is worth no more than that.
    pub async fn post(
        &self,
        url: &str,
        headers: &[(String, String)],
        body: Vec<u8>,
    ) -> Result<u16, WebError> {
        let headers: Vec<(&str, String)> =
            headers.iter().map(|(name, value)| (&**name, value.clone())).collect();
        let send = Send { method: "POST", url, headers: &headers, body: body.into() };
        let response = self.prepare(&send)?.once(&send).await;
        response
            .map(|response| response.status().as_u16())
            .map_err(|error| WebError::Url { url: shown(url), reason: error.without_url().to_string() })
    }

    fn prepare(&self, send: &Send<'_>) -> Result<Prepared, WebError> {
        let unusable = |reason: String| WebError::Url { url: shown(send.url), reason };
        let url: Url =
            send.url.parse().map_err(|error: <Url as std::str::FromStr>::Err| unusable(error.to_string()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in send.headers {
            let name: HeaderName = name.parse().map_err(|_| unusable(format!("{name:?} is no header")))?;
            let mut value = header_value(&name, value).map_err(unusable)?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let method = send.method.parse().expect("methods are constants");
        let http = self
            .http(&profile(&url))
            .map_err(|error| WebError::Client { url: redacted(&url), reason: error.to_string() })?;
        Ok(Prepared { http, method, url, headers })
    }
}

struct Prepared {
    http: reqwest::Client,
    method: Method,
    url: Url,
    headers: HeaderMap,
}

impl Prepared {
    async fn once(&self, send: &Send<'_>) -> reqwest::Result<Response> {
        let request = self.http.request(self.method.clone(), self.url.clone());
        request.headers(self.headers.clone()).body(send.body.clone()).send().await
    }
}

/// An answer with as much of its body as is read.
async fn beginning(mut response: Response) -> reqwest::Result<Reply> {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < LONGEST_REPLY
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(LONGEST_REPLY);
    Ok(Reply { status, body: body.into() })
}

fn header_value(name: &HeaderName, text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("the value for {name} cannot be sent in a header"))
}

/// How a server that is no registry is spoken to.
fn profile(url: &Url) -> Profile {
    match url.scheme() {
        "http" if is_loopback(url) => Profile::Loopback,
        "http" => Profile::Plain,
        _ => Profile::System,
    }
}

enum Opened {
    NotModified,
    Resumed,
    Begun,
}

impl WebStream {
    /// What the server knows the file by.
    pub fn validators(&self) -> &Validators {
        &self.validators
    }

    /// How long it is, if that is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; `None` when all have come.
    pub async fn next(&mut self) -> Result<Option<Chunk>, WebError> {
        let timing = self.client.config().timing.clone();
        loop {
            let Some(response) = &mut self.response else {
                match self.open().await? {
                    Opened::Resumed => continue,
                    Opened::Begun | Opened::NotModified => {
                        self.received = 0;
                        return Ok(Some(Chunk::Restart));
                    }
                }
            };
            let cause = match self.stall.chunk(response, &timing).await {
                Ok(Some(chunk)) => {
                    self.received += chunk.len() as u64;
                    if self.received > self.request.limit {
                        return Err(self.too_long());
                    }
                    self.backoff.progressed(&timing, Instant::now());
                    return Ok(Some(Chunk::Data(chunk)));
                }
                Ok(None) => match self.length {
                    Some(expected) if expected != self.received => {
                        NetworkCause::Truncated { got: self.received, expected }
                    }
                    _ => return Ok(None),
                },
                Err(cause) => cause,
            };
            self.response = None;
            self.pause(Fault::Network(cause)).await?;
        }
    }

    /// Asks for the file, or for what is missing of it.
    async fn open(&mut self) -> Result<Opened, WebError> {
        self.stall = Stall::default();
        loop {
            let resuming = self.received > 0 && self.validators.if_range().is_some();
            let fault = match self.ask(resuming).await {
                Ok(response) if is_transient(response.status()) => Fault::Answer(response),
                Ok(response) => match response.status() {
                    StatusCode::NOT_MODIFIED if self.received == 0 && self.is_conditional() => {
                        return Ok(Opened::NotModified);
                    }
                    StatusCode::PARTIAL_CONTENT
                        if resuming && range_start(response.headers()) == Some(self.received) =>
                    {
                        self.response = Some(response);
                        return Ok(Opened::Resumed);
                    }
                    StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT if resuming => {
                        // It cannot do ranges after all.
                        self.validators = Validators::default();
                        continue;
                    }
                    StatusCode::OK => {
                        self.length = response.content_length();
                        if self.length.is_some_and(|length| length > self.request.limit) {
                            return Err(self.too_long());
                        }
                        self.validators = Validators::of(response.headers());
                        self.response = Some(response);
                        return Ok(Opened::Begun);
                    }
                    status => return Err(WebError::Status { url: redacted(response.url()), status }),
                },
                Err(Failed::Network(cause)) => Fault::Network(cause),
                Err(Failed::Final(error)) => return Err(error),
            };
            self.pause(fault).await?;
        }
    }

    fn is_conditional(&self) -> bool {
        self.request.validators != Validators::default()
    }

    /// One attempt; redirects are followed.
    async fn ask(&self, resuming: bool) -> Result<Response, Failed> {
        let mut headers = HeaderMap::new();
        // The bytes that are stored, and not some encoding of them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut add = |name: HeaderName, text: &str| -> Result<(), Failed> {
            let mut value = header_value(&name, text)
                .map_err(|reason| Failed::Final(WebError::Url { url: redacted(&self.url), reason }))?;
            value.set_sensitive(name == AUTHORIZATION);
            headers.insert(name, value);
            Ok(())
        };
        if let Some(authorization) = &self.request.authorization {
            add(AUTHORIZATION, authorization)?;
        }
        if resuming {
            add(RANGE, &format!("bytes={}-", self.received))?;
            add(IF_RANGE, self.validators.if_range().unwrap_or_default())?;
        } else if self.received == 0 {
            let known = &self.request.validators;
            if let Some(etag) = &known.etag {
                add(IF_NONE_MATCH, etag)?;
            } else if let Some(time) = &known.last_modified {
                add(IF_MODIFIED_SINCE, time)?;
            }
        }
        let mut url = self.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.once(&url, &headers).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = redirect(&url, response.headers())
                .map_err(|reason| Failed::Final(WebError::Redirect { url: redacted(&url), reason }))?;
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        let reason = format!("more than {MOST_REDIRECTS} redirects");
        Err(Failed::Final(WebError::Redirect { url: redacted(&self.url), reason }))
    }

    async fn once(&self, url: &Url, headers: &HeaderMap) -> Result<Response, Failed> {
        let http = self.client.http(&profile(url)).map_err(|error| {
            Failed::Final(WebError::Client { url: redacted(url), reason: error.to_string() })
        })?;
        let limit = self.client.config().timing.header;
        let sending = http.request(Method::GET, url.clone()).headers(headers.clone()).send();
        match tokio::time::timeout(limit, sending).await {
            Err(_) => Err(Failed::Network(NetworkCause::NoAnswer(limit))),
            Ok(Err(error)) => Err(Failed::Network(NetworkCause::Http(error))),
            Ok(Ok(response)) => Ok(response),
        }
    }

    async fn pause(&mut self, fault: Fault) -> Result<(), WebError> {
        let timing = &self.client.config().timing;
        pause(timing, &mut self.backoff, &mut self.connects, &self.url, fault).await
    }

    fn too_long(&self) -> WebError {
        WebError::TooLong { url: redacted(&self.url), limit: self.request.limit }
    }
}

/// Waits before the next attempt, or fails with what went wrong.
async fn pause(
    timing: &Timing,
    backoff: &mut Backoff,
    connects: &mut u32,
    url: &Url,
    fault: Fault,
) -> Result<(), WebError> {
    let asked = match &fault {
        Fault::Answer(response) => retry_after(response.headers(), SystemTime::now()),
        Fault::Network(_) => None,
    };
    let hopeless = match &fault {
        Fault::Network(cause) => !is_fleeting(cause, connects),
        Fault::Answer(_) => false,
    };
    let next = backoff.next(timing, Instant::now(), asked, fastrand::f64());
    if let (Next::Wait(wait), false) = (next, hopeless) {
        drop(fault);
        tokio::time::sleep(wait).await;
        return Ok(());
    }
    let (attempts, waited) = backoff.spent(Instant::now());
    let url = redacted(url);
    Err(match fault {
        Fault::Network(cause) => WebError::Network { url, attempts, waited, cause },
        Fault::Answer(response) => WebError::Unavailable { url, status: response.status(), attempts, waited },
    })
}

enum Fault {
    Answer(Response),
    Network(NetworkCause),
}

enum Failed {
    Network(NetworkCause),
    Final(WebError),
}

/// Where a redirect leads, or why it is not followed.
fn redirect(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let next = headers
        .get(LOCATION)
        .and_then(|location| from.join(location.to_str().ok()?).ok())
        .filter(|next| matches!(next.scheme(), "http" | "https") && next.host_str().is_some())
        .ok_or("redirected to something that is no URL")?;
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(format!("redirected from https to {}", redacted(&next)));
    }
    // A public server has no business in our private network; within one, anything goes.
    let is_private = |url: &Url| url.host_str().is_none_or(is_private_address) || is_loopback(url);
    if !is_private(from) && is_private(&next) {
        return Err(format!("redirected to the private address {}", redacted(&next)));
    }
    Ok(next)
}

/// First byte of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    text.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

fn shown(url: &str) -> String {
    url.parse().map_or_else(|_| url.to_owned(), |url| redacted(&url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_neither_down_nor_in() {
        let next = |from: &str, to: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, to.parse().unwrap())]);
            redirect(&from.parse().unwrap(), &headers).map(String::from)
        };
        assert_eq!(next("http://h/a/b", "c").unwrap(), "http://h/a/c");
        assert_eq!(next("http://h/a", "https://i/").unwrap(), "https://i/");
        assert_eq!(next("http://10.0.0.1/", "http://169.254.1.1/").unwrap(), "http://169.254.1.1/");
        for (from, to) in [
            ("https://h/", "http://h/"),
            ("http://h/", "file:///etc/passwd"),
            ("http://h/", "http://169.254.169.254/latest"),
            ("https://h/", "https://[::1]/"),
            ("http://h/", "http://localhost:1/"),
        ] {
            assert!(next(from, to).is_err(), "{to}");
        }
    }

    #[test]
    fn times_are_read_and_credentials_are_not_shown() {
        let known =
            Validators { etag: None, last_modified: Some("Thu, 01 Jan 1970 00:01:00 GMT".to_owned()) };
        assert_eq!(known.modified(), Some(60));
        assert_eq!(Validators::default().modified(), None);
        let request = WebRequest {
            url: "https://me:pw@h/x?token=t".to_owned(),
            authorization: Some("Bearer secret".to_owned()),
            validators: Validators::default(),
            limit: 1,
        };
        let text = format!("{request:?}");
        assert!(!text.contains("pw") && !text.contains("secret") && !text.contains("=t"), "{text}");
    }
}
