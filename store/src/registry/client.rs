//! One request to a registry: where it goes, who asks, how long we wait, and when we ask again.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use image::Reference;
use image::reference::DOCKER_HUB;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, LOCATION,
};
use reqwest::{Certificate, Identity, Method, Response, StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::auth::{Authority, Refusal, Scopes, is_private_address};
use super::chunk::Chunk;
use super::credentials::{Credential, Login};
use super::error::{Answer, NetworkCause, RegistryError, redacted};
use super::push::{Meter, Upstream};
use super::retry::{Backoff, Next, Timing, is_transient, retry_after};
use super::{Config, KeyPair, Transport};

/// A body that explains an error is read this far.
const LONGEST_ERROR: usize = 64 << 10;
const MOST_REDIRECTS: usize = 5;
/// A name that does not resolve or a port nobody listens on is more often a typing error than a fault.
const CONNECT_ATTEMPTS: u32 = 4;

/// A client for all registries of a run. Cheap to make and to clone; clones share connections, logins and limits.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    // Made at first use: reading the root certificates takes milliseconds.
    http: Mutex<HashMap<Profile, reqwest::Client>>,
    authorities: Mutex<HashMap<String, Arc<Authority>>>,
    transfers: Mutex<HashMap<(String, Way), Arc<Semaphore>>>,
    // Insecure registries that turned out to speak HTTPS or not.
    probed: Mutex<HashMap<String, bool>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// A host that serves a registry: the registry itself or a mirror.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The name its credentials are kept under.
    pub(super) name: String,
    /// Ends in `/v2/` and the mirror's path.
    pub(super) base: Url,
    /// For mirrors: the registry that is meant.
    namespace: Option<String>,
    profile: Profile,
}

impl Endpoint {
    /// The URL of `path` below `/v2/`.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether `url` is on this host: same scheme, name and port.
    fn is_at(&self, url: &Url) -> bool {
        same_origin(&self.base, url)
    }
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// A way to set up TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Profile {
    /// No TLS, no proxy.
    Loopback,
    /// No TLS.
    Plain,
    /// The system's authorities.
    System,
    /// Authorities and certificates of this registry.
    Registry(String),
    /// Whatever certificate.
    Unverified,
}

/// Where a blob goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Pull,
    Push,
}

/// How long to wait for an answer's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Normal,
    /// The registry assembles a blob.
    Commit,
    /// A token server.
    Token,
}

/// What a request sends.
#[derive(Clone)]
pub(super) enum Payload {
    Empty,
    Chunk(Chunk),
    /// Opened anew for each attempt.
    Source(Arc<dyn super::Source>, u64),
}

impl Payload {
    fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Chunk(chunk) => chunk.len(),
            Self::Source(_, size) => *size,
        }
    }
}

/// A request that can be made more than once.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) scopes: &'a Scopes,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload,
    pub(super) patience: Patience,
    /// Ask again after transient faults; if not, the caller gets the answer or the error as it is.
    pub(super) retry: bool,
    pub(super) progress: Option<super::Progress>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: Url, scopes: &'a Scopes) -> Self {
        Self {
            method,
            url,
            scopes,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            patience: Patience::Normal,
            retry: true,
            progress: None,
        }
    }
}

impl Client {
    /// A client that reaches registries as `config` says. Nothing is opened yet.
    pub fn new(config: Config) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                http: Mutex::default(),
                authorities: Mutex::default(),
                transfers: Mutex::default(),
                probed: Mutex::default(),
            }),
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Verifies `credential` with `registry` and uses it from now on. Keeping it is [`super::Credentials::store`]'s.
    pub async fn login(&self, registry: &str, credential: Credential) -> Result<(), RegistryError> {
        let endpoint = self.origin(registry).await?;
        let login = Login { credential, origin: "login".to_owned() };
        self.authority(&endpoint).set_login(Some(login));
        let scopes = Scopes::default();
        let request = Request::new(Method::GET, endpoint.url(""), &scopes);
        let response = self.call(&endpoint, &request).await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(self.refusal(&endpoint, &request, registry, response).await)
    }

    /// Where `registry` itself is.
    pub(super) async fn origin(&self, registry: &str) -> Result<Endpoint, RegistryError> {
        let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
        self.endpoint(registry, host, "", None).await
    }

    /// Where to pull from: mirrors in order, the registry last.
    pub(super) async fn sources(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let registry = &reference.registry;
        let mut endpoints = Vec::new();
        for mirror in self.shared.config.hosts.get(registry).into_iter().flat_map(|host| &host.mirrors) {
            let (plain, rest) = match mirror.strip_prefix("http://") {
                Some(rest) => (true, rest),
                None => (false, mirror.strip_prefix("https://").unwrap_or(mirror)),
            };
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let mut endpoint = self.endpoint(host, host, path, Some(registry)).await?;
            if plain {
                endpoint.base.set_scheme("http").map_err(|()| config_error(mirror, "it is no host"))?;
            }
            endpoints.push(endpoint);
        }
        endpoints.push(self.origin(registry).await?);
        Ok(endpoints)
    }

    async fn endpoint(
        &self,
        name: &str,
        host: &str,
        path: &str,
        namespace: Option<&str>,
    ) -> Result<Endpoint, RegistryError> {
        let settings = self.shared.config.hosts.get(name);
        let path = path.trim_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("{path}/") };
        let at = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/{path}"))
                .map_err(|error| config_error(name, &error.to_string()))
        };
        let secure = at("https")?;
        let plain = Url::parse(&format!("http://{host}/")).is_ok_and(|url| is_loopback(&url));
        let files = certificates_of(&self.shared.config.certs_dirs, name);
        let own_tls = settings.is_some_and(|host| !host.ca.is_empty() || !host.keypairs.is_empty())
            || !files.ca.is_empty()
            || !files.keypairs.is_empty();
        let (base, profile) = match settings.map(|host| host.transport).unwrap_or_default() {
            Transport::Plain => (at("http")?, Profile::Plain),
            Transport::Insecure if self.speaks_tls(name, &secure).await => (secure, Profile::Unverified),
            Transport::Insecure => (at("http")?, Profile::Plain),
            Transport::Secure if own_tls => (secure, Profile::Registry(name.to_owned())),
            Transport::Secure if plain => (at("http")?, Profile::Loopback),
            Transport::Secure => (secure, Profile::System),
        };
        Ok(Endpoint { name: name.to_owned(), base, namespace: namespace.map(str::to_owned), profile })
    }

    /// Whether an insecure registry answers to HTTPS at all; asked once.
    async fn speaks_tls(&self, name: &str, base: &Url) -> bool {
        if let Some(known) = lock(&self.shared.probed).get(name) {
            return *known;
        }
        let answered = async {
            let http = self.http(&Profile::Unverified).ok()?;
            tokio::time::timeout(self.shared.config.timing.connect, http.get(base.clone()).send())
                .await
                .ok()?
                .ok()
        };
        let speaks = answered.await.is_some();
        lock(&self.shared.probed).insert(name.to_owned(), speaks);
        speaks
    }

    pub(super) fn authority(&self, endpoint: &Endpoint) -> Arc<Authority> {
        let key = format!("{} {}", endpoint.name, endpoint.base.origin().ascii_serialization());
        Arc::clone(lock(&self.shared.authorities).entry(key).or_insert_with(Authority::new))
    }

    /// Waits for one of the endpoint's transfer slots. Pulls and pushes have their own: a blob that is passed on within
    /// a registry needs one of each.
    pub(super) async fn transfer(&self, endpoint: &Endpoint, way: Way) -> OwnedSemaphorePermit {
        let slots = Arc::clone(
            lock(&self.shared.transfers)
                .entry((endpoint.base.origin().ascii_serialization(), way))
                .or_insert_with(|| Arc::new(Semaphore::new(self.shared.config.transfers.max(1)))),
        );
        slots.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Makes `request`, logging in and asking again as needed.
    ///
    /// Any answer that is neither 401 nor transient comes back as it is: what it means depends on the request. See
    /// [`Client::refusal`].
    pub(super) async fn call(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
    ) -> Result<Response, RegistryError> {
        let timing = &self.shared.config.timing;
        let mut backoff = Backoff::new(timing, Instant::now());
        let mut connects = 0;
        loop {
            let fault = match self.attempt(endpoint, request).await {
                Ok(response) if !request.retry || !is_transient(response.status()) => return Ok(response),
                Ok(response) => Fault::Answer(response),
                Err(error) if request.retry && is_worth_another_try(&error, &mut connects) => {
                    Fault::Network(error)
                }
                Err(error) => {
                    let (attempts, waited) = backoff.ended(Instant::now());
                    return Err(after(error, attempts, waited));
                }
            };
            self.pause(&mut backoff, endpoint, request, fault).await?;
        }
    }

    /// Waits before the next attempt, or fails with what went wrong.
    pub(super) async fn pause(
        &self,
        backoff: &mut Backoff,
        endpoint: &Endpoint,
        request: &Request<'_>,
        fault: Fault,
    ) -> Result<(), RegistryError> {
        let timing = &self.shared.config.timing;
        let asked = match &fault {
            Fault::Answer(response) => retry_after(response.headers(), SystemTime::now()),
            Fault::Network(_) => None,
        };
        let next = backoff.next(timing, Instant::now(), asked, fastrand::f64());
        if let Next::Wait(wait) = next {
            drop(fault);
            tokio::time::sleep(wait).await;
            return Ok(());
        }
        let (attempts, waited) = backoff.spent(Instant::now());
        Err(match (fault, next) {
            (Fault::Network(error), _) => after(error, attempts, waited),
            (Fault::Answer(response), next) => {
                let answer = Box::new(self.answer(endpoint, request, response).await);
                match next {
                    Next::TooLong(wait) => RegistryError::RetryLater { wait, answer },
                    Next::Wait(_) | Next::GiveUp => RegistryError::Unavailable { attempts, waited, answer },
                }
            }
        })
    }

    /// Waits as before a second attempt.
    pub(super) async fn short_pause(&self) {
        tokio::time::sleep(self.shared.config.timing.first_wait.mul_f64(0.1 + fastrand::f64())).await;
    }

    /// One attempt, with a login if the host wants one.
    async fn attempt(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, RegistryError> {
        let authority = self.authority(endpoint);
        let ours = endpoint.is_at(&request.url);
        let mut renewed = false;
        loop {
            let mut headers = request.headers.clone();
            // An upload location on another host is signed itself; our login is none of its business.
            let header = if ours { authority.header(self, endpoint, request.scopes).await? } else { None };
            if let Some(header) = &header {
                headers.insert(AUTHORIZATION, header.clone());
            }
            let response = self
                .raw_with(
                    &request.method,
                    &request.url,
                    headers,
                    request.payload.clone(),
                    request.patience,
                    endpoint,
                    request.progress.as_ref(),
                )
                .await?;
            // After a redirect elsewhere it is not the registry that answers.
            if response.status() != StatusCode::UNAUTHORIZED || !ours || !endpoint.is_at(response.url()) {
                return Ok(response);
            }
            let may_help =
                match authority.challenged(endpoint, request.scopes, response.headers(), header.as_ref()) {
                    Ok(()) => header.is_none() || !renewed,
                    Err(Refusal::InsufficientScope) => {
                        return Err(RegistryError::Denied {
                            registry: endpoint.name.clone(),
                            scope: request.scopes.to_string(),
                            login: who(&authority),
                            answer: Box::new(self.answer(endpoint, request, response).await),
                        });
                    }
                    Err(Refusal::Realm(realm, why)) => {
                        return Err(RegistryError::Unauthorized {
                            registry: endpoint.name.clone(),
                            reason: format!("it names a token server that we do not trust, {realm}: {why}"),
                        });
                    }
                    Err(Refusal::NoWay(_)) => false,
                };
            if !may_help {
                let answer = self.answer(endpoint, request, response).await;
                return Err(RegistryError::Unauthorized {
                    registry: endpoint.name.clone(),
                    reason: format!("{} was refused {}: {answer}", request.scopes, who(&authority)),
                });
            }
            renewed |= header.is_some();
        }
    }

    /// One attempt without our login to the registry; redirects are followed.
    pub(super) async fn raw(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        payload: Payload,
        patience: Patience,
        endpoint: &Endpoint,
    ) -> Result<Response, RegistryError> {
        self.raw_with(method, url, headers, payload, patience, endpoint, None).await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one request; a struct would only rename them"
    )]
    async fn raw_with(
        &self,
        method: &Method,
        url: &Url,
        mut headers: HeaderMap,
        payload: Payload,
        patience: Patience,
        endpoint: &Endpoint,
        progress: Option<&super::Progress>,
    ) -> Result<Response, RegistryError> {
        let mut method = method.clone();
        let mut url = url.clone();
        let mut payload = payload;
        for _ in 0..=MOST_REDIRECTS {
            let response = self.once(&method, &url, &headers, &payload, patience, endpoint, progress).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let protocol = |reason: String| RegistryError::Protocol {
                method: method.clone(),
                url: redacted(&url),
                reason,
            };
            let Some(location) = response.headers().get(LOCATION) else {
                return Err(protocol(format!("{status} without a Location")));
            };
            let next = location
                .to_str()
                .ok()
                .and_then(|text| url.join(text).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| protocol("redirected to something that is no URL".to_owned()))?;
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(protocol(format!("redirected from https to {}", redacted(&next))));
            }
            // A public registry has no business in our private network; within one, anything goes.
            let from_private = url.host_str().is_none_or(is_private_address) || is_loopback(&url);
            if !from_private && (next.host_str().is_none_or(is_private_address) || is_loopback(&next)) {
                return Err(protocol(format!("redirected to the private address {}", redacted(&next))));
            }
            if !same_origin(&url, &next) {
                headers.remove(AUTHORIZATION);
                headers.remove(COOKIE);
                if patience == Patience::Token && !matches!(payload, Payload::Empty) {
                    // The body of a token request is a password.
                    return Err(protocol(format!("redirected to {}", redacted(&next))));
                }
            }
            let keeps_method =
                matches!(status.as_u16(), 307 | 308) || matches!(method, Method::GET | Method::HEAD);
            if !keeps_method {
                method = Method::GET;
                payload = Payload::Empty;
                headers.remove(CONTENT_TYPE);
            }
            url = next;
        }
        Err(RegistryError::Protocol {
            method,
            url: redacted(&url),
            reason: format!("more than {MOST_REDIRECTS} redirects"),
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one request; a struct would only rename them"
    )]
    async fn once(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        payload: &Payload,
        patience: Patience,
        endpoint: &Endpoint,
        progress: Option<&super::Progress>,
    ) -> Result<Response, RegistryError> {
        let timing = &self.shared.config.timing;
        let profile = match (&endpoint.profile, url.scheme()) {
            (_, "http") if is_loopback(url) => Profile::Loopback,
            (_, "http") => Profile::Plain,
            (Profile::Unverified, _) if !endpoint.is_at(url) => Profile::System,
            (Profile::Plain | Profile::Loopback, _) => Profile::System,
            (profile, _) => profile.clone(),
        };
        let mut request = self.http(&profile)?.request(method.clone(), url.clone()).headers(headers.clone());
        let meter = match payload {
            Payload::Empty => {
                // A POST or PUT without a body still has a length; some registries answer 411 without.
                if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
                    request = request.header(CONTENT_LENGTH, HeaderValue::from(0u64));
                }
                None
            }
            payload => {
                let (upstream, meter) = Upstream::open(payload, progress.cloned());
                request = request
                    .header(CONTENT_LENGTH, HeaderValue::from(payload.len()))
                    .body(reqwest::Body::wrap_stream(upstream));
                Some(meter)
            }
        };
        let limit = match patience {
            Patience::Normal => timing.header,
            Patience::Commit => timing.commit,
            Patience::Token => timing.token,
        };
        let broken = |cause: NetworkCause| RegistryError::Network {
            method: method.clone(),
            url: redacted(url),
            attempts: 1,
            waited: Duration::ZERO,
            cause,
        };
        let sending = request.send();
        let sent = match &meter {
            None => tokio::time::timeout(limit, sending)
                .await
                .map_err(|_| broken(NetworkCause::NoAnswer(limit)))?,
            Some(meter) => watch(sending, meter, limit, timing).await.map_err(broken)?,
        };
        sent.map_err(|error| match meter.and_then(|meter| meter.take_error()) {
            Some(error) => RegistryError::Source(error),
            None => broken(NetworkCause::Http(error)),
        })
    }

    pub(super) fn http(&self, profile: &Profile) -> Result<reqwest::Client, RegistryError> {
        if let Some(http) = lock(&self.shared.http).get(profile) {
            return Ok(http.clone());
        }
        let http = self.build(profile)?;
        lock(&self.shared.http).insert(profile.clone(), http.clone());
        Ok(http)
    }

    fn build(&self, profile: &Profile) -> Result<reqwest::Client, RegistryError> {
        super::install_crypto();
        let config = &self.shared.config;
        let mut builder = reqwest::Client::builder()
            .user_agent(&config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(config.timing.connect)
            // Proxies close idle connections after 90 s and more; asking on a closed one is a fault less.
            .pool_idle_timeout(Duration::from_secs(55))
            .http2_adaptive_window(true);
        let name = match profile {
            Profile::Registry(name) => name.as_str(),
            _ => "",
        };
        builder = match profile {
            Profile::Loopback => builder.no_proxy().tls_certs_only([]),
            Profile::Plain => builder.tls_certs_only([]),
            Profile::Unverified => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
            Profile::System => builder.tls_certs_only(roots()),
            Profile::Registry(_) => {
                let mut found = certificates_of(&config.certs_dirs, name);
                if let Some(host) = config.hosts.get(name) {
                    found.ca.splice(0..0, host.ca.iter().cloned());
                    found.keypairs.splice(0..0, host.keypairs.iter().cloned());
                }
                let mut trusted = roots();
                for path in &found.ca {
                    let pem = read(name, path)?;
                    trusted.extend(
                        Certificate::from_pem_bundle(&pem)
                            .map_err(|error| config_error(name, &format!("{}: {error}", path.display())))?,
                    );
                }
                let mut builder = builder.tls_certs_only(trusted);
                if let Some(KeyPair { cert, key }) = found.keypairs.first() {
                    let mut pem = read(name, key)?;
                    pem.push(b'\n');
                    pem.extend(read(name, cert)?);
                    builder = builder.identity(
                        Identity::from_pem(&pem)
                            .map_err(|error| config_error(name, &format!("{}: {error}", cert.display())))?,
                    );
                }
                builder
            }
        };
        builder.build().map_err(|error| config_error(name, &error.to_string()))
    }

    /// What an answer that is not the hoped-for one means.
    pub(super) async fn refusal(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
        what: &str,
        response: Response,
    ) -> RegistryError {
        let status = response.status();
        let at_registry = endpoint.is_at(response.url());
        let answer = Box::new(self.answer(endpoint, request, response).await);
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what: what.to_owned(), answer },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if at_registry => RegistryError::Denied {
                registry: endpoint.name.clone(),
                scope: request.scopes.to_string(),
                login: who(&self.authority(endpoint)),
                answer,
            },
            status if is_transient(status) => {
                RegistryError::Unavailable { attempts: 1, waited: Duration::ZERO, answer }
            }
            _ => RegistryError::Refused(answer),
        }
    }

    async fn answer(&self, _endpoint: &Endpoint, request: &Request<'_>, response: Response) -> Answer {
        let status = response.status();
        let url = response.url().clone();
        let body = beginning(response, LONGEST_ERROR, &self.shared.config.timing).await;
        Answer::new(request.method.clone(), &url, status, &body)
    }
}

/// What was wrong with an attempt.
pub(super) enum Fault {
    Answer(Response),
    Network(RegistryError),
}

/// Whether an error is one that may go away; counts the connections that could not be made.
pub(super) fn is_worth_another_try(error: &RegistryError, connects: &mut u32) -> bool {
    matches!(error, RegistryError::Network { cause, .. } if is_fleeting(cause, connects))
}

/// Whether a fault is one that may go away; counts the connections that could not be made.
pub(super) fn is_fleeting(cause: &NetworkCause, connects: &mut u32) -> bool {
    match cause {
        NetworkCause::Http(error) if is_certificate_error(error) => false,
        // Its server was asked more than once in that time.
        NetworkCause::NoToken(_) => false,
        NetworkCause::Http(error) if error.is_builder() => false,
        NetworkCause::Http(error) if error.is_connect() => {
            *connects += 1;
            *connects < CONNECT_ATTEMPTS
        }
        _ => true,
    }
}

fn is_certificate_error(error: &reqwest::Error) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = Error::source(error);
    while let Some(cause) = source {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return matches!(
                tls,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::AlertReceived(_)
                    | rustls::Error::PeerIncompatible(_)
            );
        }
        // An io::Error hides the error it wraps from `source`, and here it may wrap another one.
        source = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    false
}

/// The error with how often and how long it was tried.
pub(super) fn after(error: RegistryError, times: u32, time: Duration) -> RegistryError {
    match error {
        RegistryError::Network { method, url, cause, .. } => {
            RegistryError::Network { method, url, cause, attempts: times, waited: time }
        }
        error => error,
    }
}

/// Waits for the answer to a request whose body is still being sent: the body must move, and once it is through, the
/// answer must come within `limit`. Time is counted in ticks, so that a stopped and continued process does not find all
/// its deadlines missed.
async fn watch<T>(
    sending: impl Future<Output = T>,
    meter: &Meter,
    limit: Duration,
    timing: &Timing,
) -> Result<T, NetworkCause> {
    let mut sending = std::pin::pin!(sending);
    let tick = (limit.min(timing.stall_window) / 16).max(Duration::from_millis(1));
    let (mut idle, mut since_sent, mut seen) = (Duration::ZERO, Duration::ZERO, 0);
    loop {
        tokio::select! {
            biased;
            result = &mut sending => return Ok(result),
            () = tokio::time::sleep(tick) => {}
        }
        if meter.is_sent() {
            since_sent += tick;
            if since_sent >= limit {
                return Err(NetworkCause::NoAnswer(limit));
            }
        } else if meter.is_waiting_for_source() || meter.moved() - seen >= timing.stall_bytes {
            seen = meter.moved();
            idle = Duration::ZERO;
        } else {
            idle += tick;
            if idle >= timing.stall_window {
                return Err(NetworkCause::Stalled { bytes: timing.stall_bytes, window: timing.stall_window });
            }
        }
    }
}

/// Why a body could not be read whole.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It goes on after the limit.
    TooLong,
    /// The transfer broke.
    Broken(NetworkCause),
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn limited_body(
    mut response: Response,
    limit: usize,
    timing: &Timing,
) -> Result<Vec<u8>, BodyError> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLong);
    }
    let mut body = Vec::new();
    let mut stall = Stall::default();
    while let Some(chunk) = stall.chunk(&mut response, timing).await.map_err(BodyError::Broken)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads the beginning of a body; whatever goes wrong ends it.
async fn beginning(mut response: Response, limit: usize, timing: &Timing) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
            if body.len() >= limit {
                break;
            }
        }
    };
    // An explanation is not worth more waiting than this.
    let _ = tokio::time::timeout(timing.stall_window.min(Duration::from_secs(5)), read).await;
    body
}

/// The stall rule for a body that is read: only the time spent waiting for the network counts.
#[derive(Debug, Default)]
pub(super) struct Stall {
    waited: Duration,
    bytes: u64,
}

impl Stall {
    pub(super) async fn chunk(
        &mut self,
        response: &mut Response,
        timing: &Timing,
    ) -> Result<Option<Bytes>, NetworkCause> {
        let stalled = || NetworkCause::Stalled { bytes: timing.stall_bytes, window: timing.stall_window };
        let left = timing.stall_window.saturating_sub(self.waited);
        let start = Instant::now();
        let chunk = tokio::time::timeout(left, response.chunk())
            .await
            .map_err(|_| stalled())?
            .map_err(NetworkCause::Http)?;
        self.waited += start.elapsed();
        if let Some(chunk) = &chunk {
            self.bytes += chunk.len() as u64;
            if self.bytes >= timing.stall_bytes {
                *self = Self::default();
            } else if self.waited >= timing.stall_window {
                return Err(stalled());
            }
        }
        Ok(chunk)
    }
}

/// Whether the host is this machine. Docker takes plain HTTP for granted there.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost"
        || host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(|ip: std::net::IpAddr| {
            match ip {
                std::net::IpAddr::V4(ip) => ip.is_loopback(),
                std::net::IpAddr::V6(ip) => ip.is_loopback(),
            }
        })
}

fn who(authority: &Authority) -> String {
    authority.who().map_or_else(|| "anonymously".to_owned(), |who| format!("to {who}"))
}

/// The system's authorities, or Mozilla's where there are none: in a container from scratch.
fn roots() -> Vec<Certificate> {
    let native = rustls_native_certs::load_native_certs().certs;
    let native: Vec<_> = native.iter().filter_map(|der| Certificate::from_der(der).ok()).collect();
    if !native.is_empty() {
        return native;
    }
    webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok())
        .collect()
}

/// Files of certificates for one registry.
#[derive(Debug, Default)]
struct Certificates {
    ca: Vec<PathBuf>,
    keypairs: Vec<KeyPair>,
}

/// The certificates that `directories` have for `registry`, by Docker's naming.
fn certificates_of(directories: &[PathBuf], registry: &str) -> Certificates {
    let mut found = Certificates::default();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory.join(registry)) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.ca.push(path),
                Some("cert") => found.keypairs.push(KeyPair { key: path.with_extension("key"), cert: path }),
                _ => {}
            }
        }
    }
    found
}

fn read(registry: &str, path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|error| config_error(registry, &format!("{}: {error}", path.display())))
}

fn config_error(registry: &str, reason: &str) -> RegistryError {
    RegistryError::Config { registry: registry.to_owned(), reason: reason.to_owned() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Maps of finished values: nothing is half done when a holder panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
