//! A web server on a free port of loopback: files with validators, redirects, logins, and git repositories.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::registry::{Recorded, read_chunked, read_head};

/// A running server.
#[derive(Debug)]
pub struct Web {
    shared: Arc<Shared>,
    address: String,
}

/// What is behind a path.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// 200 unless said otherwise.
    pub status: Option<u16>,
    /// The bytes.
    pub body: Vec<u8>,
    /// Headers, `ETag` and `Last-Modified` among them: requests that have them already are answered 304.
    pub headers: Vec<(String, String)>,
    /// The `Authorization` that is wanted.
    pub authorization: Option<String>,
    /// Ranges are served.
    pub ranges: bool,
    /// Close the connection after so many bytes, the first time.
    pub breaks_after: Option<usize>,
}

impl Page {
    /// A file that is nothing but its bytes.
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// A redirect.
    pub fn redirect(to: &str) -> Self {
        Self { status: Some(302), ..Self::default() }.with("Location", to)
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<String, Page>,
    /// Directory of bare repositories, below `/git/`, and the login they want.
    repositories: Option<(PathBuf, Option<String>)>,
    recorded: Vec<Recorded>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
    /// Answers everything, if there is one.
    service: Option<Service>,
}

type Answers = dyn Fn(&Recorded) -> Page + Send + Sync;

struct Service(Box<Answers>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

impl Web {
    /// Starts one.
    pub fn start() -> Self {
        Self::serve(|_| Shared::default())
    }

    /// Starts one whose answers `service` makes of requests; it is made with the address.
    pub fn of<S: Fn(&Recorded) -> Page + Send + Sync + 'static>(service: impl FnOnce(&str) -> S) -> Self {
        Self::serve(|address| Shared {
            service: Some(Service(Box::new(service(address)))),
            ..Shared::default()
        })
    }

    fn serve(shared: impl FnOnce(&str) -> Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let shared = Arc::new(shared(&address));
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&accepting)) else { continue };
                thread::spawn(move || {
                    // A client may hang up whenever it likes.
                    let _ = shared.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { shared, address }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL of a path without its slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Serves `page` at `/path` from now on.
    pub fn put(&self, path: &str, page: Page) {
        self.shared.state().pages.insert(format!("/{path}"), page);
    }

    /// Serves the repositories in `directory` below `/git/`, to those who send this `Authorization` if there is one.
    pub fn serve_git(&self, directory: &Path, authorization: Option<&str>) {
        self.shared.state().repositories = Some((directory.to_owned(), authorization.map(str::to_owned)));
    }

    /// The requests so far whose path has `part`.
    pub fn requests(&self, part: &str) -> Vec<Recorded> {
        let state = self.shared.state();
        state.recorded.iter().filter(|request| request.target.contains(part)).cloned().collect()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut input = BufReader::new(stream.try_clone()?);
        let Some(mut request) = read_head(&mut input)? else { return Ok(()) };
        if request.header("transfer-encoding") == Some("chunked") {
            request.body = read_chunked(&mut input)?;
        } else if let Some(length) = request.header("content-length").and_then(|text| text.parse().ok()) {
            request.body = vec![0; length];
            input.read_exact(&mut request.body)?;
        }
        let repositories = self.state().repositories.clone();
        let service = self.service.as_ref().map(|Service(answer)| answer(&request));
        let response = match (&repositories, request.target.strip_prefix("/git/")) {
            _ if service.is_some() => service.unwrap_or_default(),
            (Some((directory, authorization)), Some(_)) => {
                if authorization.is_some() && request.header("authorization") != authorization.as_deref() {
                    Page { status: Some(401), ..Page::default() }
                } else {
                    git(directory, &request)?
                }
            }
            _ => self.page(&request),
        };
        let status = response.status.unwrap_or(200);
        request.status = status;
        self.state().recorded.push(request);
        write!(stream, "HTTP/1.1 {status} Scripted\r\nConnection: close\r\n")?;
        for (name, value) in &response.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        if status != 304 {
            write!(stream, "Content-Length: {}\r\n", response.body.len())?;
        }
        stream.write_all(b"\r\n")?;
        let sent = response.breaks_after.unwrap_or(usize::MAX).min(response.body.len());
        stream.write_all(&response.body[..sent])
    }

    fn page(&self, request: &Recorded) -> Page {
        let mut state = self.state();
        let path = request.target.split('?').next().unwrap_or_default();
        let Some(page) = state.pages.get_mut(path) else {
            return Page { status: Some(404), ..Page::default() };
        };
        let mut answer = page.clone();
        page.breaks_after = None;
        if page.authorization.is_some() && request.header("authorization") != page.authorization.as_deref() {
            return Page { status: Some(401), ..Page::default() };
        }
        let has = |header: &str, validator: &str| {
            let known = request.header(header);
            known.is_some() && known == page.header(validator)
        };
        if has("if-none-match", "etag") || has("if-modified-since", "last-modified") {
            return Page { status: Some(304), body: Vec::new(), ..answer };
        }
        let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        if let Some(from) = from.and_then(|from| from.parse::<usize>().ok())
            && page.ranges
            && has("if-range", "etag")
        {
            let total = answer.body.len();
            answer.body.drain(..from);
            answer.status = Some(206);
            return answer.with("Content-Range", &format!("bytes {from}-{}/{total}", total - 1));
        }
        answer
    }
}

/// Lets git's own server answer.
fn git(directory: &Path, request: &Recorded) -> io::Result<Page> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let header = |name| request.header(name).unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", directory)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", path.trim_start_matches("/git"))
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let body = request.body.clone();
    let feeding = thread::spawn(move || stdin.write_all(&body));
    let output = child.wait_with_output()?.stdout;
    // What it does not read is not missed.
    let _ = feeding.join();
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(output.len());
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let headers: HashMap<&str, &str> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut page = Page::new(output.get(end + 4..).unwrap_or_default());
    page.status = headers.get("Status").and_then(|status| status.split(' ').next()?.parse().ok());
    Ok(match headers.get("Content-Type") {
        Some(kind) => page.with("Content-Type", kind),
        None => page,
    })
}
