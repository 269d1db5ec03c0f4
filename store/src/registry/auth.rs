//! Logging in to a registry: challenges, scopes and tokens.
//!
//! One [`Authority`] a host. It learns from the first 401 how the host wants to be asked, asks for a credential once,
//! and keeps a token for each set of scopes until nine tenths of its life are over. One token request at a time is made
//! for a host, so parallel transfers share what the first one gets.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::client::{Client, Endpoint, Patience, Payload, is_loopback};
use super::credentials::{Credential, Login};
use super::error::{Answer, NetworkCause, RegistryError, redacted};

/// Of a token server's answer and of errors.
const LONGEST_TOKEN_ANSWER: usize = 64 << 10;
/// A token without `expires_in`, or with less, is good for this long (distribution's token specification).
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
const TOKEN_ATTEMPTS: u32 = 3;
/// Some helpers give passwords that live for five minutes.
const CREDENTIAL_LIFE: Duration = Duration::from_secs(290);

/// What a request needs to be allowed: `repository:NAME:pull,push`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Scopes(BTreeSet<String>);

impl Scopes {
    pub(super) fn pull(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull")]))
    }

    pub(super) fn push(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull,push")]))
    }

    /// The same, and reading another repository: what a mount needs.
    pub(super) fn and_pull(mut self, repository: &str) -> Self {
        self.0.insert(format!("repository:{repository}:pull"));
        self
    }

    /// Adds what a challenge names and we did not think of. Returns whether that is anything.
    fn add(&mut self, scope: &str) -> bool {
        let mut added = false;
        for scope in scope.split_ascii_whitespace() {
            if !self.0.iter().any(|known| covers(known, scope)) {
                added |= self.0.insert(scope.to_owned());
            }
        }
        added
    }
}

/// Whether `known` grants at least what `scope` asks: same resource, no fewer actions.
fn covers(known: &str, scope: &str) -> bool {
    match (known.rsplit_once(':'), scope.rsplit_once(':')) {
        (Some((have, actions)), Some((want, wanted))) => {
            have == want && wanted.split(',').all(|action| actions.split(',').any(|a| a == action))
        }
        _ => known == scope,
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for scope in &self.0 {
            write!(f, "{separator}{scope}")?;
            separator = " ";
        }
        Ok(())
    }
}

/// One challenge of a `WWW-Authenticate` header (RFC 9110, section 11.6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case.
    pub(super) scheme: String,
    /// Names in lower case.
    pub(super) parameters: HashMap<String, String>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// All challenges of a response.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse_challenges)
        .collect()
}

/// Parses `Scheme name=value, name="quoted", Scheme2 ...`; what it cannot read it skips.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            // Nothing that could start a name: the end, or a byte we do not understand.
            let mut chars = rest.chars();
            if chars.next().is_none() {
                return challenges;
            }
            rest = chars.as_str();
            continue;
        }
        let (name, after) = rest.split_at(end);
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = parse_value(value.trim_start_matches([' ', '\t']));
                challenge.parameters.entry(name.to_ascii_lowercase()).or_insert(value);
                rest = after;
            }
            (Some(value), None) => rest = parse_value(value).1,
            (None, _) => {
                challenges.push(Challenge { scheme: name.to_ascii_lowercase(), parameters: HashMap::new() });
                rest = after;
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

/// Whether a token server at `realm` may be asked on behalf of `registry`: the registry's own host with no weaker
/// scheme, or a public host by https. A registry's challenge is data from a stranger: it must not make us send a
/// password in the clear, or a request into somebody's private network.
fn check_realm(realm: &Url, registry: &Url) -> Result<(), &'static str> {
    if !matches!(realm.scheme(), "https" | "http") {
        return Err("it is not an http address");
    }
    if realm.scheme() == "http" && registry.scheme() == "https" {
        return Err("it is not https, the registry is");
    }
    if realm.host_str() == registry.host_str() || (is_loopback(realm) && is_loopback(registry)) {
        return Ok(());
    }
    if realm.scheme() != "https" {
        return Err("it is not https and on another host than the registry");
    }
    if is_loopback(realm) || realm.host_str().is_none_or(is_private_address) {
        return Err("it is a private address");
    }
    Ok(())
}

/// Whether `host` is an address (not a name) that is not on the public internet.
pub(super) fn is_private_address(host: &str) -> bool {
    use std::net::{IpAddr, Ipv4Addr};
    let v4 = |ip: Ipv4Addr| {
        ip.is_private()
            || ip.is_loopback()
            || ip.is_link_local()
            || ip.is_unspecified()
            || ip.is_broadcast()
            || ip.is_multicast()
            || ip.octets()[0] == 0
            || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64)
    };
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(ip)) => v4(ip),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || (ip.segments()[0] & 0xfe00) == 0xfc00
                || (ip.segments()[0] & 0xffc0) == 0xfe80
                || ip.to_ipv4_mapped().is_some_and(v4)
        }
        Err(_) => false,
    }
}

/// How a host wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Debug, Default)]
struct Known {
    way: Option<Way>,
    // With the time it was got; the login itself may be "none".
    login: Option<(Option<Login>, Instant)>,
    tokens: HashMap<Scopes, Token>,
    // Scopes that a challenge added to the ones we asked for.
    widened: HashMap<Scopes, Scopes>,
}

#[derive(Clone, Debug)]
struct Token {
    header: HeaderValue,
    renew: Instant,
}

/// What is known about logging in to one host.
#[derive(Debug)]
pub(super) struct Authority {
    known: Mutex<Known>,
    // One permit: a token is asked for once, whoever else waits for it.
    asking: Semaphore,
}

impl Authority {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), asking: Semaphore::new(1) })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        // Nothing in here is half done when a holder panics.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses `login` from now on, whatever the files say.
    pub(super) fn set_login(&self, login: Option<Login>) {
        *self.known() = Known { login: Some((login, Instant::now())), ..Known::default() };
    }

    /// The Authorization header for a request to `endpoint`; `None` as long as the host did not ask for one.
    pub(super) async fn header(
        &self,
        client: &Client,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let Some(way) = self.known().way.clone() else { return Ok(None) };
        let cached = |known: &Known| {
            known
                .tokens
                .get(scopes)
                .filter(|token| token.renew > Instant::now())
                .map(|token| token.header.clone())
        };
        if let Some(header) = cached(&self.known()) {
            return Ok(Some(header));
        }
        let _turn = self.asking.acquire().await.expect("the semaphore is never closed");
        if let Some(header) = cached(&self.known()) {
            return Ok(Some(header));
        }
        let login = self.login(client, endpoint).await?;
        let token = match (&way, &login) {
            (_, Some(Login { credential: Credential::RegistryToken(token), .. })) => Token {
                header: bearer(token.reveal()).ok_or_else(|| RegistryError::Unauthorized {
                    registry: endpoint.name.clone(),
                    reason: "the registry token has characters that a header cannot carry".to_owned(),
                })?,
                renew: Instant::now() + LONGEST_LIFE,
            },
            (Way::Basic, Some(Login { credential: Credential::Password { username, password }, .. })) => {
                Token { header: basic(username, password.reveal()), renew: Instant::now() + LONGEST_LIFE }
            }
            (Way::Basic, Some(login)) => {
                return Err(RegistryError::Unauthorized {
                    registry: endpoint.name.clone(),
                    reason: format!("it wants a user and a password, and there is only {login}"),
                });
            }
            (Way::Basic, None) => {
                return Err(RegistryError::Unauthorized {
                    registry: endpoint.name.clone(),
                    reason: "it wants a user and a password, and there are no credentials for it".to_owned(),
                });
            }
            (Way::Bearer { realm, service }, login) => {
                let wanted = self.known().widened.get(scopes).cloned().unwrap_or_else(|| scopes.clone());
                fetch_token(client, endpoint, realm, service.as_deref(), &wanted, login.as_ref()).await?
            }
        };
        let header = token.header.clone();
        self.known().tokens.insert(scopes.clone(), token);
        Ok(Some(header))
    }

    /// Learns from a 401 to a request that carried `sent`. `Ok` means that asking again may help.
    pub(super) fn challenged(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<(), Refusal> {
        let challenges = challenges(headers);
        let bearer = challenges.iter().find(|c| c.scheme == "bearer" && c.parameter("realm").is_some());
        let basic = challenges.iter().any(|c| c.scheme == "basic");
        let mut known = self.known();
        // Somebody else may have renewed it in the meantime.
        if known.tokens.get(scopes).is_some_and(|token| Some(&token.header) == sent) {
            known.tokens.remove(scopes);
        }
        let way = match bearer {
            Some(challenge) => {
                let realm = challenge.parameter("realm").unwrap_or_default();
                let url = Url::parse(realm).map_err(|_| Refusal::Realm(realm.to_owned(), "it is no URL"))?;
                check_realm(&url, &endpoint.base).map_err(|why| Refusal::Realm(redacted(&url), why))?;
                let mut widened = scopes.clone();
                let widened_now = challenge.parameter("scope").is_some_and(|scope| widened.add(scope));
                if sent.is_some()
                    && !widened_now
                    && challenge.parameter("error") == Some("insufficient_scope")
                {
                    return Err(Refusal::InsufficientScope);
                }
                if widened_now {
                    known.widened.insert(scopes.clone(), widened);
                }
                Way::Bearer { realm: url, service: challenge.parameter("service").map(str::to_owned) }
            }
            None if basic => Way::Basic,
            None => {
                let schemes: Vec<_> = challenges.iter().map(|c| c.scheme.as_str()).collect();
                return Err(Refusal::NoWay(schemes.join(", ")));
            }
        };
        known.way = Some(way);
        Ok(())
    }

    /// The login that is used, as far as it was looked up.
    pub(super) fn who(&self) -> Option<String> {
        self.known().login.as_ref().and_then(|(login, _)| login.as_ref().map(Login::to_string))
    }

    async fn login(&self, client: &Client, endpoint: &Endpoint) -> Result<Option<Login>, RegistryError> {
        if let Some((login, at)) = &self.known().login
            && at.elapsed() < CREDENTIAL_LIFE
        {
            return Ok(login.clone());
        }
        let config = client.config();
        let login = config.credentials.get(&endpoint.name, config.timing.token).await?;
        self.known().login = Some((login.clone(), Instant::now()));
        Ok(login)
    }
}

/// Why a 401 cannot be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The token server must not be asked.
    Realm(String, &'static str),
    /// The token we got does not allow this.
    InsufficientScope,
    /// No scheme that we know; the ones offered.
    NoWay(String),
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let mut value =
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            .expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks a token server (distribution's token specification; OAuth2 for refresh tokens).
async fn fetch_token(
    client: &Client,
    endpoint: &Endpoint,
    realm: &Url,
    service: Option<&str>,
    scopes: &Scopes,
    login: Option<&Login>,
) -> Result<Token, RegistryError> {
    let credential = login.map(|login| &login.credential);
    let ask = async |oauth: bool| {
        let (method, url, headers, body) = if oauth {
            post_request(realm, service, scopes, credential)
        } else {
            get_request(realm, service, scopes, credential)
        };
        client
            .raw(&method, &url, headers, body, Patience::Token, endpoint)
            .await
            .map(|answer| (method, url, answer))
    };
    let oauth_first = matches!(credential, Some(Credential::IdentityToken { .. }));
    let mut oauth = oauth_first;
    let work = async {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (method, url, response) = match ask(oauth).await {
                Err(RegistryError::Network { .. }) if attempt < TOKEN_ATTEMPTS => {
                    client.short_pause().await;
                    continue;
                }
                result => result?,
            };
            let status = response.status();
            let body = super::client::limited_body(response, LONGEST_TOKEN_ANSWER, &client.config().timing)
                .await
                .map_err(|_| RegistryError::Unauthorized {
                    registry: endpoint.name.clone(),
                    reason: format!(
                        "the answer of the token server {} is too long or broke off",
                        redacted(realm)
                    ),
                })?;
            // Servers know one way or the other, or take this credential one way only.
            let misunderstood = match status {
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => true,
                // A wrong password stays wrong.
                StatusCode::UNAUTHORIZED => oauth_first,
                _ => false,
            };
            let other_way = misunderstood && credential.is_some() && oauth == oauth_first;
            if other_way {
                oauth = !oauth;
                continue;
            }
            if super::retry::is_transient(status) && attempt < TOKEN_ATTEMPTS {
                client.short_pause().await;
                continue;
            }
            return Ok((attempt, Answer::new(method, &url, status, &body), body));
        }
    };
    let start = Instant::now();
    let limit = client.config().timing.token;
    let (attempts, answer, body) = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(RegistryError::Network {
            method: Method::GET,
            url: redacted(realm),
            attempts: 1,
            waited: start.elapsed(),
            cause: NetworkCause::NoToken(limit),
        })
    })?;
    if super::retry::is_transient(answer.status) {
        return Err(RegistryError::Unavailable {
            attempts,
            waited: start.elapsed(),
            answer: Box::new(answer),
        });
    }
    let refused = |reason: String| RegistryError::Unauthorized { registry: endpoint.name.clone(), reason };
    if !answer.status.is_success() {
        let who = login.map_or_else(|| "anonymous access".to_owned(), Login::to_string);
        return Err(refused(format!("the token server refused {scopes} for {who}: {answer}")));
    }
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<f64>,
    }
    let no_token = || refused(format!("the answer of the token server {} holds no token", redacted(realm)));
    let body: Body = serde_json::from_slice(&body).map_err(|_| no_token())?;
    let token = body
        .token
        .filter(|t| !t.is_empty())
        .or(body.access_token)
        .filter(|t| !t.is_empty())
        .ok_or_else(no_token)?;
    // `issued_at` is the server's clock and is not looked at.
    let life = body
        .expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(SHORTEST_LIFE)
        .clamp(SHORTEST_LIFE, LONGEST_LIFE);
    Ok(Token { header: bearer(&token).ok_or_else(no_token)?, renew: Instant::now() + life.mul_f64(0.9) })
}

type TokenRequest = (Method, Url, HeaderMap, Payload);

fn get_request(
    realm: &Url,
    service: Option<&str>,
    scopes: &Scopes,
    credential: Option<&Credential>,
) -> TokenRequest {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        for scope in &scopes.0 {
            query.append_pair("scope", scope);
        }
        if let Some(name) = credential.and_then(Credential::username) {
            query.append_pair("account", name);
        }
    }
    let mut headers = HeaderMap::new();
    match credential {
        Some(Credential::Password { username, password }) => {
            headers.insert(AUTHORIZATION, basic(username, password.reveal()));
        }
        Some(Credential::IdentityToken { username, token }) => {
            headers.insert(AUTHORIZATION, basic(username, token.reveal()));
        }
        Some(Credential::RegistryToken(_)) | None => {}
    }
    (Method::GET, url, headers, Payload::Empty)
}

fn post_request(
    realm: &Url,
    service: Option<&str>,
    scopes: &Scopes,
    credential: Option<&Credential>,
) -> TokenRequest {
    let mut form = Url::parse("form:/").expect("a constant URL");
    {
        let mut pairs = form.query_pairs_mut();
        pairs.append_pair("client_id", "rbuild");
        if let Some(service) = service {
            pairs.append_pair("service", service);
        }
        pairs.append_pair("scope", &scopes.to_string());
        match credential {
            Some(Credential::Password { username, password }) => {
                pairs.append_pair("grant_type", "password");
                pairs.append_pair("username", username);
                pairs.append_pair("password", password.reveal());
            }
            Some(Credential::IdentityToken { token, .. }) => {
                pairs.append_pair("grant_type", "refresh_token");
                pairs.append_pair("refresh_token", token.reveal());
            }
            Some(Credential::RegistryToken(_)) | None => {}
        }
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let body = Bytes::from(form.query().unwrap_or_default().to_owned());
    (Method::POST, realm.clone(), headers, Payload::Chunk(body.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        parse_challenges(text)
            .into_iter()
            .map(|challenge| {
                let mut parameters: Vec<_> = challenge.parameters.into_iter().collect();
                parameters.sort();
                (challenge.scheme, parameters)
            })
            .collect()
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>()
        };
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![(
                    "bearer",
                    pairs(&[
                        ("realm", "https://auth.docker.io/token"),
                        ("scope", "repository:a/b:pull,push"),
                        ("service", "registry.docker.io"),
                    ]),
                )],
            ),
            (r#"Basic realm="a \"b\", c""#, vec![("basic", pairs(&[("realm", r#"a "b", c"#)]))]),
            ("basic", vec![("basic", vec![])]),
            (
                r#"Basic realm=x, BEARER Realm = "y" , error=invalid_token"#,
                vec![
                    ("basic", pairs(&[("realm", "x")])),
                    ("bearer", pairs(&[("error", "invalid_token"), ("realm", "y")])),
                ],
            ),
            (r#"Bearer realm="unterminated"#, vec![("bearer", pairs(&[("realm", "unterminated")]))]),
            ("", vec![]),
            ("=,=\"", vec![]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(scheme, list): (&str, _)| (scheme.to_owned(), list)).collect();
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_survived(text in ".{0,200}") {
            parse_challenges(&text);
        }
    }

    #[test]
    fn a_realm_must_not_be_weaker_than_the_registry_or_inside_a_private_network() {
        for (registry, realm, allowed) in [
            ("https://r.example/", "https://r.example/token", true),
            ("https://r.example/", "https://auth.example/token", true),
            ("https://r.example:5000/", "https://r.example/token", true),
            ("https://r.example/", "http://r.example/token", false),
            ("https://r.example/", "http://auth.example/token", false),
            ("http://r.example/", "http://r.example:5001/token", true),
            ("http://r.example/", "https://auth.example/token", true),
            ("http://r.example/", "http://auth.example/token", false),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5001/token", true),
            ("http://localhost:5000/", "http://127.0.0.1:5001/token", true),
            ("https://r.example/", "https://127.0.0.1/token", false),
            ("https://r.example/", "https://localhost/token", false),
            ("https://r.example/", "https://10.0.0.1/token", false),
            ("https://r.example/", "https://169.254.169.254/latest", false),
            ("https://r.example/", "https://[fe80::1]/token", false),
            ("https://r.example/", "https://[::ffff:10.0.0.1]/token", false),
            ("https://10.0.0.5/", "https://10.0.0.5/token", true),
            ("https://r.example/", "file:///etc/passwd", false),
        ] {
            let result = check_realm(&Url::parse(realm).unwrap(), &Url::parse(registry).unwrap());
            assert_eq!(result.is_ok(), allowed, "{registry} -> {realm}: {result:?}");
        }
    }

    #[test]
    fn a_scope_that_is_covered_adds_nothing() {
        let mut scopes = Scopes::push("a/b");
        assert!(!scopes.add("repository:a/b:pull"));
        assert!(scopes.add("repository:a/b:delete registry:catalog:*"));
        assert_eq!(Scopes::push("a").and_pull("b").to_string(), "repository:a:pull,push repository:b:pull");
    }
}
