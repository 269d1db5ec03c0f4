//! An in-process registry that misbehaves by script.
//!
//! It speaks the distribution protocol (blobs, mounts, chunked uploads, ranges, manifests, tags, Basic and token logins)
//! over HTTP/1.1 on a free port of loopback, keeps everything in memory and records every request. [`Registry::on`] makes
//! chosen requests go wrong. Written on sockets, so that it can break off, stall and reset where it likes.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use image::Digest;

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    address: String,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// `GET`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    /// The body, as much of it as was read.
    pub body: Vec<u8>,
    /// The status that was answered; 0 for none.
    pub status: u16,
}

impl Recorded {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn query(&self, name: &str) -> Option<String> {
        self.queries(name).next()
    }

    fn queries<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| percent_decoded(value))
        })
    }
}

/// A way to misbehave.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answer this instead of serving the request.
    Answer {
        /// The status.
        status: u16,
        /// Headers besides Content-Length.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// Reset the connection after this many bytes of the request's body.
    Reset(usize),
    /// Serve, but close the connection after this many bytes of the body.
    Truncate(usize),
    /// Serve, but send nothing more after this many bytes of the body, and keep the connection.
    StallAfter(usize),
    /// Never answer.
    Silence,
    /// Serve the headers one byte every so often.
    Drip(Duration),
    /// Serve with the first byte of the body changed.
    Corrupt,
    /// Serve as if the request had no Range.
    IgnoreRange,
    /// Serve with a header replaced, or left out.
    Header(String, Option<String>),
    /// Do what was asked, then answer this status with nothing else.
    DoneBut(u16),
    /// Answer the body in chunks, without Content-Length.
    Chunked,
    /// Serve in HTTP/1.0: no length, the body ends with the connection.
    Http10,
    /// Answer 103 first, with headers that do not count.
    Hints,
    /// Serve, and close the connection without having said so.
    HangUp,
    /// Serve this many requests in a time, answer 429 to the others.
    Limit(usize, Duration),
}

impl Fault {
    /// A bare status.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: String::new() }
    }

    /// A status with one header.
    pub fn with_header(status: u16, name: &str, value: &str) -> Self {
        Self::Answer { status, headers: vec![(name.to_owned(), value.to_owned())], body: String::new() }
    }

    /// An error in the distribution protocol's form.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self::Answer { status, headers: Vec::new(), body }
    }
}

#[derive(Debug)]
struct Rule {
    method: String,
    part: String,
    from: usize,
    to: usize,
    seen: usize,
    // Of those that a limit lets through: when the time began, and how many there were.
    window: Option<(Instant, usize)>,
    fault: Fault,
}

impl Rule {
    fn lets_through(&mut self, most: usize, time: Duration) -> bool {
        let now = Instant::now();
        let (start, passed) = self.window.filter(|(start, _)| now - *start < time).unwrap_or((now, 0));
        self.window = Some((start, passed + 1));
        passed < most
    }
}

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// Everybody everything.
    #[default]
    None,
    /// HTTP Basic.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Tokens from `/token` of this server. Anonymous tokens pull only.
    Token {
        /// The user.
        user: String,
        /// The password, or the refresh token.
        password: String,
        /// What `realm` says; empty for this server's.
        realm: String,
        /// What a token's answer says of its life.
        expires_in: i64,
    },
}

/// Media type and bytes.
type Manifest = (String, Arc<Vec<u8>>);

#[derive(Debug, Default)]
struct State {
    // By repository and digest.
    blobs: BTreeMap<(String, String), Arc<Vec<u8>>>,
    // By repository and tag or digest.
    manifests: BTreeMap<(String, String), Manifest>,
    uploads: HashMap<String, Vec<u8>>,
    next: u64,
    rules: Vec<Rule>,
    recorded: Vec<Recorded>,
    login: Login,
    // Valid tokens and their scopes.
    tokens: HashMap<String, Vec<String>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    address: String,
}

impl Registry {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
            address: address.clone(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Ok(clone) = stream.try_clone() {
                    accepting.connections.lock().unwrap_or_else(PoisonError::into_inner).push(clone);
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    // A client may hang up whenever it likes.
                    let _ = shared.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Write);
                });
            }
        });
        Self { shared, address }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes the requests with `method` (empty for all) and `part` in their path misbehave, those counted `nth` from 1.
    pub fn on(&self, method: &str, part: &str, nth: impl RangeBounds<usize>, fault: Fault) {
        let from = match nth.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n + 1,
            Bound::Unbounded => 1,
        };
        let to = match nth.end_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n - 1,
            Bound::Unbounded => usize::MAX,
        };
        let rule =
            Rule { method: method.to_owned(), part: part.to_owned(), from, to, seen: 0, window: None, fault };
        self.state().rules.push(rule);
    }

    /// Asks for logins from now on. Tokens given before are no longer valid.
    pub fn set_login(&self, login: Login) {
        let mut state = self.state();
        state.login = login;
        state.tokens.clear();
    }

    /// Forgets all tokens that were given.
    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Stores a blob.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.state().blobs.insert((repository.to_owned(), digest.to_string()), Arc::new(bytes.to_vec()));
        digest
    }

    /// Drops a blob.
    pub fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.state().blobs.remove(&(repository.to_owned(), digest.to_string()));
    }

    /// Stores a manifest under a tag and its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut state = self.state();
        let bytes = Arc::new(bytes.to_vec());
        for name in [tag, &digest.to_string()] {
            state.manifests.insert(
                (repository.to_owned(), name.to_owned()),
                (media_type.to_owned(), Arc::clone(&bytes)),
            );
        }
        digest
    }

    /// A blob's bytes.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        self.state().blobs.get(&(repository.to_owned(), digest.to_string())).map(|bytes| bytes.to_vec())
    }

    /// A manifest's bytes, by tag or digest.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<Vec<u8>> {
        self.state().manifests.get(&(repository.to_owned(), name.to_owned())).map(|(_, bytes)| bytes.to_vec())
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state().recorded.clone()
    }

    /// Those with `method` (empty for all) and `part` in their path.
    pub fn requests_for(&self, method: &str, part: &str) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|request| matches(request, method, part));
        requests
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.state().recorded.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
        for connection in self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn matches(request: &Recorded, method: &str, part: &str) -> bool {
    (method.is_empty() || request.method == method) && request.target.contains(part)
}

/// An answer before it is spoilt.
#[derive(Debug, Default)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn error(status: u16, code: &str) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
            body: format!(r#"{{"errors":[{{"code":"{code}","message":"scripted"}}]}}"#).into_bytes(),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        loop {
            let Some(mut request) = read_head(&mut input)? else { return Ok(()) };
            let fault = self.fault_for(&request);
            let length = request.header("content-length").and_then(|text| text.parse::<usize>().ok());
            let chunked = request.header("transfer-encoding") == Some("chunked");
            if let Some(Fault::Reset(after)) = fault {
                request.body = vec![0; after.min(length.unwrap_or(after))];
                input.read_exact(&mut request.body)?;
                self.state().recorded.push(request);
                // Closing with unread bytes makes the kernel send a reset.
                return stream.shutdown(Shutdown::Both);
            }
            request.body = if chunked {
                read_chunked(&mut input)?
            } else {
                let mut body = vec![0; length.unwrap_or(0)];
                input.read_exact(&mut body)?;
                body
            };
            if let Some(Fault::Silence) = fault {
                self.state().recorded.push(request);
                // Until the client gives up.
                io::copy(&mut input, &mut io::sink())?;
                return Ok(());
            }
            if let Some(Fault::IgnoreRange) = fault {
                request.headers.remove("range");
            }
            let mut response = match &fault {
                Some(Fault::Answer { status, headers, body }) => {
                    Response { status: *status, headers: headers.clone(), body: body.clone().into_bytes() }
                }
                _ => self.answer(&request),
            };
            match &fault {
                Some(Fault::Header(name, value)) => {
                    response.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
                    response.headers.extend(value.clone().map(|value| (name.clone(), value)));
                }
                Some(Fault::DoneBut(status)) => response = Response::new(*status),
                Some(Fault::Corrupt) => {
                    if let Some(byte) = response.body.first_mut() {
                        *byte ^= 0x20;
                    }
                }
                _ => {}
            }
            request.status = response.status;
            let is_head = request.method == "HEAD";
            self.state().recorded.push(request);
            let close = write_response(stream, &response, is_head, fault.as_ref())?;
            if let Some(Fault::StallAfter(_)) = fault {
                io::copy(&mut input, &mut io::sink())?;
            }
            if close {
                return Ok(());
            }
        }
    }

    /// The first rule that wants this request; all rules count it.
    fn fault_for(&self, request: &Recorded) -> Option<Fault> {
        let mut chosen = None;
        for rule in self.state().rules.iter_mut().filter(|rule| matches(request, &rule.method, &rule.part)) {
            rule.seen += 1;
            if chosen.is_none() && (rule.from..=rule.to).contains(&rule.seen) {
                chosen = match rule.fault.clone() {
                    Fault::Limit(most, time) => (!rule.lets_through(most, time)).then(|| Fault::status(429)),
                    fault => Some(fault),
                };
            }
        }
        chosen
    }

    fn answer(&self, request: &Recorded) -> Response {
        if request.path() == "/token" {
            return self.token(request);
        }
        if let Some(refusal) = self.refuse(request) {
            return refusal;
        }
        let Some(path) = request.path().strip_prefix("/v2/") else { return Response::new(404) };
        if path.is_empty() {
            return Response::new(200);
        }
        if let Some((repository, rest)) = path.split_once("/blobs/uploads/") {
            return self.upload(request, repository, rest);
        }
        if let Some((repository, digest)) = path.split_once("/blobs/") {
            return self.serve_blob(request, repository, digest);
        }
        if let Some((repository, name)) = path.split_once("/manifests/") {
            return self.serve_manifest(request, repository, name);
        }
        Response::new(404)
    }

    fn serve_blob(&self, request: &Recorded, repository: &str, digest: &str) -> Response {
        let Some(blob) = self.state().blobs.get(&(repository.to_owned(), digest.to_owned())).cloned() else {
            return Response::error(404, "BLOB_UNKNOWN");
        };
        let response = |status: u16, body: &[u8]| Response {
            status,
            headers: vec![
                ("Docker-Content-Digest".to_owned(), digest.to_owned()),
                ("ETag".to_owned(), format!("\"{digest}\"")),
            ],
            body: body.to_vec(),
        };
        let start = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
        match start {
            Some(start) if start >= blob.len() => Response::new(416),
            Some(start) => response(206, &blob[start..])
                .header("Content-Range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
            None => response(200, &blob),
        }
    }

    fn serve_manifest(&self, request: &Recorded, repository: &str, name: &str) -> Response {
        let key = (repository.to_owned(), name.to_owned());
        if request.method != "PUT" {
            let Some((media_type, bytes)) = self.state().manifests.get(&key).cloned() else {
                return Response::error(404, "MANIFEST_UNKNOWN");
            };
            return Response { status: 200, headers: Vec::new(), body: bytes.to_vec() }
                .header("Content-Type", media_type)
                .header("Docker-Content-Digest", Digest::of(&bytes));
        }
        let media_type = request.header("content-type").unwrap_or_default().to_owned();
        let digest = Digest::of(&request.body);
        let mut state = self.state();
        for named in named_digests(&request.body) {
            let here = (repository.to_owned(), named);
            if !state.blobs.contains_key(&here) && !state.manifests.contains_key(&here) {
                return Response::error(400, "MANIFEST_BLOB_UNKNOWN");
            }
        }
        let bytes = Arc::new(request.body.clone());
        for name in [name.to_owned(), digest.to_string()] {
            state.manifests.insert((repository.to_owned(), name), (media_type.clone(), Arc::clone(&bytes)));
        }
        Response::new(201)
            .header("Docker-Content-Digest", digest)
            .header("Location", format!("/v2/{repository}/manifests/{digest}"))
    }

    fn upload(&self, request: &Recorded, repository: &str, id: &str) -> Response {
        let mut state = self.state();
        let accepted = |status: u16, id: &str, length: usize| {
            Response::new(status)
                .header("Location", format!("/v2/{repository}/blobs/uploads/{id}?state={length}"))
                .header("Range", format!("0-{}", length.saturating_sub(1)))
        };
        let created = |digest: &str| {
            Response::new(201)
                .header("Location", format!("/v2/{repository}/blobs/{digest}"))
                .header("Docker-Content-Digest", digest)
        };
        if request.method == "POST" {
            if let (Some(digest), Some(from)) = (request.query("mount"), request.query("from"))
                && let Some(blob) = state.blobs.get(&(from, digest.clone())).cloned()
            {
                state.blobs.insert((repository.to_owned(), digest.clone()), blob);
                return created(&digest);
            }
            state.next += 1;
            let id = format!("upload-{}", state.next);
            state.uploads.insert(id.clone(), Vec::new());
            return accepted(202, &id, 0);
        }
        let Some(upload) = state.uploads.get_mut(id) else {
            return Response::error(404, "BLOB_UPLOAD_UNKNOWN");
        };
        match request.method.as_str() {
            "GET" => accepted(204, id, upload.len()),
            "PATCH" => {
                let start = request
                    .header("content-range")
                    .and_then(|range| range.split('-').next()?.parse::<usize>().ok());
                if start.is_some_and(|start| start != upload.len()) {
                    return accepted(416, id, upload.len());
                }
                upload.extend_from_slice(&request.body);
                accepted(202, id, upload.len())
            }
            "PUT" => {
                upload.extend_from_slice(&request.body);
                let upload = state.uploads.remove(id).unwrap_or_default();
                let digest = request.query("digest").unwrap_or_default();
                if Digest::of(&upload).to_string() != digest {
                    return Response::error(400, "DIGEST_INVALID");
                }
                state.blobs.insert((repository.to_owned(), digest.clone()), Arc::new(upload));
                created(&digest)
            }
            "DELETE" => {
                state.uploads.remove(id);
                Response::new(204)
            }
            _ => Response::new(405),
        }
    }

    /// What a request without the right to do this gets.
    fn refuse(&self, request: &Recorded) -> Option<Response> {
        let state = self.state();
        let given = request.header("authorization").unwrap_or_default();
        match &state.login {
            Login::None => None,
            Login::Basic { user, password } => (given != basic(user, password)).then(|| {
                Response::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"test\"")
            }),
            Login::Token { realm, .. } => {
                let repository = ["/blobs/", "/manifests/"]
                    .iter()
                    .find_map(|part| Some(request.path().strip_prefix("/v2/")?.split_once(part)?.0));
                let action = if matches!(request.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
                let granted = given.strip_prefix("Bearer ").and_then(|token| state.tokens.get(token));
                let allowed = granted.is_some_and(|scopes| {
                    let may = |repository: &str, action: &str| {
                        scopes.iter().any(|scope| {
                            let mut parts = scope.splitn(3, ':').skip(1);
                            parts.next() == Some(repository)
                                && parts.next().unwrap_or_default().split(',').any(|a| a == action)
                        })
                    };
                    repository.is_none_or(|repository| may(repository, action))
                        && request.query("from").is_none_or(|from| may(&from, "pull"))
                });
                if allowed {
                    return None;
                }
                let realm =
                    if realm.is_empty() { format!("http://{}/token", self.address) } else { realm.clone() };
                let scope = repository
                    .map(|repository| {
                        let actions = if action == "push" { "pull,push" } else { "pull" };
                        format!(",scope=\"repository:{repository}:{actions}\"")
                    })
                    .unwrap_or_default();
                let error = if granted.is_some() { ",error=\"insufficient_scope\"" } else { "" };
                Some(Response::error(401, "UNAUTHORIZED").header(
                    "WWW-Authenticate",
                    format!("Bearer realm=\"{realm}\",service=\"test\"{scope}{error}"),
                ))
            }
        }
    }

    fn token(&self, request: &Recorded) -> Response {
        let mut state = self.state();
        let Login::Token { user, password, expires_in, .. } = state.login.clone() else {
            return Response::new(404);
        };
        let given = request.header("authorization");
        // The form of a POST reads like a query.
        let form = Recorded {
            target: format!("?{}", String::from_utf8_lossy(&request.body)),
            ..Recorded::default()
        };
        let by_form = form.query("refresh_token").or(form.query("password"));
        let known = given == Some(&basic(&user, &password)) || by_form.as_deref() == Some(&password);
        if !known && (given.is_some() || by_form.is_some()) {
            return Response {
                status: 401,
                headers: Vec::new(),
                body: br#"{"details":"incorrect username or password"}"#.to_vec(),
            };
        }
        let asked: Vec<String> = request
            .queries("scope")
            .chain(form.queries("scope"))
            .flat_map(|scopes| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let scopes =
            asked.into_iter().map(|scope| if known { scope } else { scope.replace("pull,push", "pull") });
        state.next += 1;
        let token = format!("token-{}", state.next);
        let scopes = scopes.collect();
        state.tokens.insert(token.clone(), scopes);
        Response {
            status: 200,
            headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
            body: format!(
                r#"{{"token":"{token}","expires_in":{expires_in},"issued_at":"1970-01-01T00:00:00Z"}}"#
            )
            .into_bytes(),
        }
    }
}

/// The digests of the blobs and manifests that a manifest names, found without parsing. Annotations name others.
fn named_digests(manifest: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(manifest);
    text.match_indices("\"sha256:")
        .filter(|(at, _)| text[..*at].trim_end().ends_with("\"digest\":"))
        .filter_map(|(at, _)| text.get(at + 1..at + 1 + 71).map(str::to_owned))
        .collect()
}

pub(crate) fn read_head(input: &mut impl BufRead) -> io::Result<Option<Recorded>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let mut request = Recorded {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        ..Recorded::default()
    };
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(Some(request)) };
        let value = value.trim();
        // Repeated headers are one list.
        request
            .headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|old| {
                old.push_str(", ");
                old.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
}

pub(crate) fn read_chunked(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + length, 0);
        input.read_exact(&mut body[start..])?;
        input.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Writes the response; whether the connection is to be closed.
fn write_response(
    mut stream: &TcpStream,
    response: &Response,
    is_head: bool,
    fault: Option<&Fault>,
) -> io::Result<bool> {
    let chunked = matches!(fault, Some(Fault::Chunked));
    let old = matches!(fault, Some(Fault::Http10));
    let mut head = String::new();
    if let Some(Fault::Hints) = fault {
        head.push_str("HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\nLink: </x>\r\n\r\n");
    }
    let version = if old { "1.0" } else { "1.1" };
    head.push_str(&format!("HTTP/{version} {} Scripted\r\n", response.status));
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if response.status != 204 && !old {
        head.push_str(&format!("Content-Length: {}\r\n", response.body.len()));
    }
    head.push_str("\r\n");
    if let Some(Fault::Drip(pause)) = fault {
        for byte in head.bytes() {
            stream.write_all(&[byte])?;
            thread::sleep(*pause);
        }
    } else {
        stream.write_all(head.as_bytes())?;
    }
    if is_head {
        return Ok(old);
    }
    match fault {
        Some(Fault::Truncate(after)) => {
            stream.write_all(&response.body[..(*after).min(response.body.len())])?;
            Ok(true)
        }
        Some(Fault::StallAfter(after)) => {
            stream.write_all(&response.body[..(*after).min(response.body.len())])?;
            Ok(true)
        }
        Some(Fault::Chunked) => {
            for chunk in response.body.chunks(1000) {
                write!(stream, "{:x}\r\n", chunk.len())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
            Ok(false)
        }
        _ => {
            stream.write_all(&response.body)?;
            Ok(matches!(fault, Some(Fault::Http10 | Fault::HangUp)))
        }
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The header of a Basic login.
pub fn basic(user: &str, password: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for group in format!("{user}:{password}").as_bytes().chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= group.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}
