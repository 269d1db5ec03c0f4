//! Everything that can go wrong on the way to a registry, one row a fault: what comes of it, and after how many requests.
//!
//! The table is part of docs/faults.md; `RBUILD_UPDATE_DOCS=1` writes it there.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;

use super::*;

/// What is asked of the client.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Resolve `a:1`, so many times.
    Resolve(usize),
    /// Fetch a blob of 300 kB.
    Fetch,
    /// Fetch a config.
    FetchConfig,
    /// Push a blob of 200 kB whose digest is known.
    Push,
    /// The same, which the repository `from` has.
    Mount,
    /// Push three chunks while they are made.
    PushMade,
    /// Push a manifest.
    PutManifest,
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve a tag",
            Self::Fetch => "pull a layer",
            Self::FetchConfig => "pull a config",
            Self::Push => "push a blob",
            Self::Mount => "mount a blob",
            Self::PushMade => "push a layer while it is made",
            Self::PutManifest => "push a manifest",
        }
    }
}

/// What has to come of it.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It works, and what came is what was there.
    Works,
    /// It fails with an error of this class that says this.
    Fails(Class, &'static str),
}

use Outcome::{Fails, Works};

/// The registry that is asked, and another one where it may send us.
type Script = fn(&Registry, &Registry);

/// What goes wrong, what was asked for, what comes of it, and with how many requests to the registry.
type Row = (&'static str, Script, Act, Outcome, RangeInclusive<usize>);

fn answer(status: u16, headers: &[(&str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Fault::Answer { status, headers, body: String::new() }
}

fn header(name: &str, value: &str) -> Fault {
    Fault::Header(name.to_owned(), Some(value.to_owned()))
}

fn without(name: &str) -> Fault {
    Fault::Header(name.to_owned(), None)
}

fn challenge(registry: &Registry, rest: &str) -> Fault {
    let value = format!("Bearer realm=\"http://{}/token\",service=\"test\"{rest}", registry.address());
    Fault::with_header(401, "WWW-Authenticate", &value)
}

fn redirect(to: &str) -> Fault {
    Fault::with_header(307, "Location", to)
}

fn secret_login(registry: &Registry) {
    registry.set_login(token_login("secret"));
}

fn lives(registry: &Registry, expires_in: i64) {
    let Login::Token { user, password, realm, .. } = token_login("secret") else { unreachable!() };
    registry.set_login(Login::Token { user, password, realm, expires_in });
}

fn broken_tokens(registry: &Registry, fault: Fault) {
    secret_login(registry);
    registry.on("", "/token", .., fault);
}

fn text(body: String) -> Fault {
    Fault::Answer { status: 200, headers: Vec::new(), body }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Busy.
    ("429 with `Retry-After: 1`, twice", |r, _| r.on("PUT", "manifests", 1..=2, Fault::with_header(429, "Retry-After", "1")), Act::PutManifest, Works, 3..=3),
    ("429 for ever", |r, _| r.on("GET", "", .., Fault::error(429, "TOOMANYREQUESTS", "slow down")), Act::Resolve(1), Fails(Class::Network, "TOOMANYREQUESTS: slow down"), 4..=80),
    ("429 for ever", |r, _| r.on("POST", "", .., Fault::error(429, "TOOMANYREQUESTS", "slow down")), Act::Push, Fails(Class::Network, "TOOMANYREQUESTS: slow down"), 4..=80),
    ("429 for ever", |r, _| r.on("PUT", "", .., Fault::error(429, "TOOMANYREQUESTS", "slow down")), Act::Push, Fails(Class::Network, "TOOMANYREQUESTS: slow down"), 4..=160),
    ("503 with a `Retry-After` date a second after its own `Date`, in another year", |r, _| r.on("GET", "", 1..=1, answer(503, &[("Date", "Mon, 01 Jan 2001 00:00:00 GMT"), ("Retry-After", "Mon, 01 Jan 2001 00:00:01 GMT")])), Act::Resolve(1), Works, 2..=2),
    ("503 with a `Retry-After` in the past, for ever", |r, _| r.on("GET", "", .., answer(503, &[("Retry-After", "Mon, 01 Jan 2001 00:00:00 GMT")])), Act::Resolve(1), Fails(Class::Network, "503"), 4..=80),
    ("503 with `Retry-After: 86400`", |r, _| r.on("GET", "", .., Fault::with_header(503, "Retry-After", "86400")), Act::Resolve(1), Fails(Class::Network, "registry asks to wait 86400s"), 1..=1),
    ("503 with a `Retry-After` that is garbage", |r, _| r.on("GET", "", 1..=1, Fault::with_header(503, "Retry-After", "soon")), Act::Resolve(1), Works, 2..=2),
    ("500 once", |r, _| r.on("GET", "", 1..=1, Fault::status(500)), Act::Resolve(1), Works, 2..=2),
    ("502, 503, then 504", |r, _| { r.on("GET", "", 1..=1, Fault::status(502)); r.on("GET", "", 2..=2, Fault::status(503)); r.on("GET", "", 3..=3, Fault::status(504)); }, Act::Resolve(1), Works, 4..=4),
    ("503 to each kind of request once", |r, _| for (method, part) in [("HEAD", ""), ("POST", ""), ("PUT", "")] { r.on(method, part, 1..=1, Fault::status(503)) }, Act::Push, Works, 7..=7),
    ("500 for ever", |r, _| r.on("GET", "", .., Fault::status(500)), Act::Resolve(1), Fails(Class::Network, "500"), 4..=80),
    // Transfers that break.
    ("the connection is reset in the middle of a PUT", |r, _| r.on("PUT", "", 1..=1, Fault::Reset(100_000)), Act::Push, Works, 5..=5),
    ("the connection is reset in the middle of a chunk", |r, _| r.on("PATCH", "", 2..=2, Fault::Reset(1_000_000)), Act::PushMade, Works, 7..=7),
    ("the body of a GET ends every 20 kB", |r, _| r.on("GET", "blobs", 1..=14, Fault::Truncate(20_000)), Act::Fetch, Works, 15..=15),
    ("the body ends early, and the Range of the next GET is ignored", |r, _| { r.on("GET", "", 1..=1, Fault::Truncate(50_000)); r.on("GET", "", 2..=2, Fault::IgnoreRange); }, Act::Fetch, Works, 2..=2),
    ("the same, and the Range is answered 416", |r, _| { r.on("GET", "", 1..=1, Fault::Truncate(50_000)); r.on("GET", "", 2..=2, Fault::status(416)); }, Act::Fetch, Works, 3..=3),
    ("the same, and another range comes", |r, _| { r.on("GET", "", 1..=1, Fault::Truncate(50_000)); r.on("GET", "", 2..=2, header("Content-Range", "bytes 70000-299999/300000")); }, Act::Fetch, Works, 3..=3),
    ("the same, and the ETag has changed", |r, _| { r.on("GET", "", 1..=1, Fault::Truncate(50_000)); r.on("GET", "", 2..=2, header("ETag", "\"other\"")); }, Act::Fetch, Works, 2..=2),
    ("one damaged body", |r, _| r.on("GET", "blobs", 1..=1, Fault::Corrupt), Act::FetchConfig, Works, 2..=2),
    ("only damaged bodies", |r, _| r.on("GET", "blobs", .., Fault::Corrupt), Act::FetchConfig, Fails(Class::Corrupt, "expected digest sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, got sha256:"), 2..=2),
    ("one damaged manifest", |r, _| r.on("GET", "manifests", 1..=1, Fault::Corrupt), Act::Resolve(1), Works, 2..=2),
    ("headers one byte every 20 ms", |r, _| r.on("GET", "", 1..=1, Fault::Drip(20 * MS)), Act::Fetch, Works, 2..=2),
    ("a body that stalls", |r, _| r.on("GET", "", 1..=1, Fault::StallAfter(5_000)), Act::Fetch, Works, 2..=2),
    ("no answer to a GET", |r, _| r.on("GET", "", 1..=1, Fault::Silence), Act::Resolve(1), Works, 2..=2),
    ("no answer to a PUT", |r, _| r.on("PUT", "", 1..=1, Fault::Silence), Act::Push, Works, 5..=5),
    ("no answer to anything", |r, _| r.on("", "", .., Fault::Silence), Act::Resolve(1), Fails(Class::Network, "no answer within 0.3s"), 4..=6),
    ("504 to a commit that was done", |r, _| r.on("PUT", "", 1..=1, Fault::DoneBut(504)), Act::PushMade, Works, 7..=7),
    // Logins.
    ("a token that ends before the PUT", |r, _| { secret_login(r); r.on("PUT", "uploads", 1..=1, challenge(r, ",error=\"invalid_token\"")); }, Act::Push, Works, 7..=7),
    ("a token server that answers 404", |r, _| broken_tokens(r, Fault::status(404)), Act::Resolve(1), Fails(Class::Auth, "/token"), 3..=3),
    ("one that answers 500", |r, _| broken_tokens(r, Fault::status(500)), Act::Resolve(1), Fails(Class::Network, "/token"), 4..=4),
    ("one that never answers", |r, _| broken_tokens(r, Fault::Silence), Act::Resolve(1), Fails(Class::Network, "/token"), 2..=3),
    ("one that answers garbage", |r, _| broken_tokens(r, text("garbage".into())), Act::Resolve(1), Fails(Class::Auth, "holds no token"), 2..=2),
    ("one that answers without end", |r, _| broken_tokens(r, text(" ".repeat(1 << 20))), Act::Resolve(1), Fails(Class::Auth, "is too long"), 2..=2),
    ("401 whatever the token", |r, _| { secret_login(r); r.on("", "manifests", .., challenge(r, "")); }, Act::Resolve(1), Fails(Class::Auth, "repository:a:pull"), 5..=5),
    ("insufficient_scope whatever the token", |r, _| { secret_login(r); r.on("", "manifests", .., challenge(r, ",scope=\"repository:a:pull\",error=\"insufficient_scope\"")); }, Act::Resolve(1), Fails(Class::Auth, "repository:a:pull"), 3..=3),
    ("Basic, then Bearer, then Basic", |r, _| { secret_login(r); let basic = || Fault::with_header(401, "WWW-Authenticate", "Basic realm=\"x\""); r.on("", "manifests", 1..=1, basic()); r.on("", "manifests", 2..=2, challenge(r, "")); r.on("", "manifests", 3.., basic()); }, Act::Resolve(1), Fails(Class::Auth, "repository:a:pull"), 4..=4),
    ("401 without a challenge", |r, _| r.on("", "", .., Fault::status(401)), Act::Resolve(1), Fails(Class::Auth, "repository:a:pull"), 1..=1),
    ("403", |r, _| r.on("", "", .., Fault::error(403, "DENIED", "no")), Act::Push, Fails(Class::Auth, "repository:a:pull,push"), 3..=3),
    ("a token whose life is negative", |r, _| lives(r, -5), Act::Resolve(3), Works, 5..=5),
    ("one that lives for ever", |r, _| lives(r, i64::MAX), Act::Resolve(3), Works, 5..=5),
    // Sent elsewhere.
    ("redirects in a circle", |r, _| r.on("", "", .., redirect("/v2/again")), Act::Resolve(1), Fails(Class::Refused, "more than 5 redirects"), 6..=6),
    ("a redirect to no http address", |r, _| r.on("", "", .., redirect("ftp://127.0.0.1/")), Act::Resolve(1), Fails(Class::Refused, "redirected to something that is no URL"), 1..=1),
    ("a redirect to another host, which gets no login", |r, other| { secret_login(r); r.on("GET", "blobs", 2.., redirect(&format!("http://{}{}", other.address(), blob_path(300_000)))); other.put_blob("a", &sample(300_000)); }, Act::Fetch, Works, 3..=3),
    ("no Location for an upload", |r, _| r.on("POST", "", .., without("Location")), Act::Push, Fails(Class::Refused, "the registry sent no Location"), 2..=2),
    ("a Location that is none", |r, _| r.on("POST", "", .., header("Location", "ftp://127.0.0.1/")), Act::Push, Fails(Class::Refused, "the registry sent a Location that is no URL"), 2..=2),
    ("an absolute Location", |r, _| { let at = format!("http://{}/v2/a/blobs/uploads/upload-1", r.address()); r.on("POST", "", .., header("Location", &at)); }, Act::Push, Works, 3..=3),
    // Uploads.
    ("416 to a chunk", |r, _| r.on("PATCH", "", 2..=2, Fault::status(416)), Act::PushMade, Works, 7..=7),
    ("416 to every chunk", |r, _| r.on("PATCH", "", .., Fault::status(416)), Act::PushMade, Works, 8..=10),
    ("a Range that lags behind", |r, _| r.on("PATCH", "", 2..=2, header("Range", "0-5")), Act::PushMade, Works, 5..=6),
    ("no Range", |r, _| r.on("PATCH", "", .., without("Range")), Act::PushMade, Works, 5..=5),
    ("405 to chunks", |r, _| r.on("PATCH", "", .., Fault::status(405)), Act::PushMade, Works, 5..=5),
    ("an upload that is forgotten after two chunks", |r, _| { r.on("PATCH", "", 3.., Fault::error(404, "BLOB_UPLOAD_UNKNOWN", "gone")); }, Act::PushMade, Works, 7..=7),
    ("400 with a code and a message", |r, _| r.on("PUT", "", .., Fault::error(400, "MANIFEST_INVALID", "layers too heavy")), Act::PutManifest, Fails(Class::Refused, "MANIFEST_INVALID: layers too heavy"), 1..=1),
    ("415 with a code and a message", |r, _| r.on("PUT", "", .., Fault::error(415, "UNSUPPORTED", "what is this")), Act::PutManifest, Fails(Class::Refused, "UNSUPPORTED: what is this"), 1..=1),
    ("413 with a code and a message", |r, _| r.on("PUT", "", .., Fault::error(413, "SIZE_INVALID", "too long")), Act::Push, Fails(Class::Refused, "SIZE_INVALID: too long"), 3..=3),
    ("another digest than that of what was sent", |r, _| r.on("PUT", "", .., header("Docker-Content-Digest", "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")), Act::Push, Fails(Class::Corrupt, "sha256:aaaa"), 3..=3),
    ("a mount that is done", |_, _| {}, Act::Mount, Works, 2..=2),
    ("a mount that becomes an upload, which is gone", |r, _| r.on("POST", "mount=", .., Fault::with_header(202, "Location", "/v2/a/blobs/uploads/gone")), Act::Mount, Works, 5..=5),
    ("a mount that is answered 401", |r, _| r.on("POST", "mount=", .., Fault::status(401)), Act::Mount, Works, 4..=4),
    ("a mount that is answered 404", |r, _| r.on("POST", "mount=", .., Fault::status(404)), Act::Mount, Works, 4..=4),
    ("a HEAD that is answered 403", |r, _| r.on("HEAD", "", .., Fault::status(403)), Act::Push, Works, 4..=4),
    ("a HEAD that is answered 405", |r, _| r.on("HEAD", "", .., Fault::status(405)), Act::Push, Works, 4..=4),
    // HTTP.
    ("103 before every answer", |r, _| r.on("", "", .., Fault::Hints), Act::Push, Works, 3..=3),
    ("HTTP/1.0 without lengths", |r, _| r.on("", "", .., Fault::Http10), Act::Fetch, Works, 1..=1),
    ("HTTP/1.0 without lengths", |r, _| r.on("", "", .., Fault::Http10), Act::Push, Works, 3..=3),
    ("bodies in chunks, without lengths", |r, _| r.on("", "", .., Fault::Chunked), Act::Fetch, Works, 1..=1),
    ("connections that are closed after every answer, unannounced", |r, _| r.on("", "", .., Fault::HangUp), Act::Resolve(5), Works, 5..=9),
    ("a manifest of 5 MiB", |r, _| { r.put_manifest("a", "1", media_type::OCI_MANIFEST, &vec![b' '; 5 << 20]); }, Act::Resolve(1), Fails(Class::Corrupt, "longer than 4 MiB"), 2..=2),
    ("a manifest that says it is compressed", |r, _| r.on("GET", "manifests", .., header("Content-Encoding", "gzip")), Act::Resolve(1), Works, 1..=1),
];

fn blob_path(len: usize) -> String {
    format!("/v2/a/blobs/{}", Digest::of(&sample(len)))
}

/// Whether the outcome is the right one; the requests it took.
fn try_row((fault, script, act, outcome, requests): &Row) -> Result<usize, String> {
    let (registry, other) = (Registry::start(), Registry::start());
    let bytes = sample(match act {
        Act::Push | Act::Mount => 200_000,
        Act::PushMade => LONG,
        _ => 300_000,
    });
    image(&registry, "a");
    match act {
        Act::Fetch => drop(registry.put_blob("a", &bytes)),
        Act::Mount => drop(registry.put_blob("from", &bytes)),
        _ => {}
    }
    script(&registry, &other);
    let timing =
        Timing { budget: if fault.contains("Retry-After") { 4000 * MS } else { 1500 * MS }, ..timing() };
    let given = with_login(&registry, "me", "secret").config().credentials.clone();
    let client = Client::new(Config { timing, credentials: given, ..Config::default() });
    let tag = reference(&registry, "a:1");
    let target = reference(&registry, "a");
    let result: Result<(), RegistryError> = run(async {
        match act {
            Act::Resolve(times) => {
                for _ in 0..*times {
                    client.resolve(&tag).await?;
                }
            }
            Act::Fetch => {
                let got = fetch(&client, &target, &Descriptor::of("", &bytes)).await?;
                assert!(got == bytes, "{fault}: other bytes");
            }
            Act::FetchConfig => {
                client.blob_bytes(&target, &Descriptor::of("", b"{}"), 100).await?;
            }
            Act::Push => {
                push(&client, &target, &bytes).await?;
            }
            Act::Mount => {
                let descriptor = Descriptor::of("", &bytes);
                let body = Body::Bytes(bytes.clone().into());
                client.push_blob(&target, &descriptor, body, Some("from"), false, &Progress::none()).await?;
            }
            Act::PushMade => {
                push_made(&client, &target, &bytes).await?;
            }
            Act::PutManifest => {
                let manifest = registry.manifest("a", "1").expect("it was put there");
                client
                    .put_manifest(&reference(&registry, "a:2"), media_type::OCI_MANIFEST, manifest.into())
                    .await?;
            }
        }
        Ok(())
    });
    let count = registry.requests().len();
    let trace = || {
        registry.requests().iter().take(16).fold(String::new(), |mut lines, request| {
            let _ = writeln!(lines, "  {} {} {}", request.method, request.target, request.status);
            lines
        })
    };
    let wrong = |what: String| Err(format!("{fault}, {}: {what}\n{}", act.name(), trace()));
    match (&result, outcome) {
        (Ok(()), Works) => {}
        (Err(error), Fails(class, text)) if error.class() == *class && error.to_string().contains(text) => {}
        _ => return wrong(format!("{outcome:?}: {result:?}")),
    }
    if other.requests().iter().any(|request| request.header("authorization").is_some()) {
        return wrong("another host got the login".to_owned());
    }
    let is_there = registry.blob("a", &Digest::of(&bytes)).is_some_and(|stored| stored == bytes);
    if matches!((act, outcome), (Act::Push | Act::Mount | Act::PushMade, Works)) && !is_there {
        return wrong("the blob is not there".to_owned());
    }
    if !requests.contains(&count) {
        return wrong(format!("{count} requests, not {requests:?}"));
    }
    Ok(count)
}

#[test]
fn every_fault_has_its_outcome_after_so_many_requests() {
    // Most of the time they wait.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    while let Some(row) = ROWS.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                        failed.extend(try_row(row).err());
                    }
                    failed
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no row panics")).collect()
    });
    assert!(failed.is_empty(), "{} of {} rows\n\n{}", failed.len(), ROWS.len(), failed.join("\n"));
}

#[test]
fn the_page_of_faults_has_this_table() {
    const START: &str = "<!-- made by store/tests/registry/faults.rs -->\n";
    const END: &str = "<!-- end -->\n";
    let mut table =
        String::from("\n| the registry, asked to | does | rbuild | requests |\n|---|---|---|---|\n");
    for (fault, _, act, outcome, requests) in ROWS {
        let outcome = match outcome {
            Works => "goes on".to_owned(),
            Fails(class, text) => {
                format!("fails ({}): \u{201c}{text}\u{201d}", format!("{class:?}").to_lowercase())
            }
        };
        let requests = match (requests.start(), requests.end()) {
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from} to {to}"),
        };
        writeln!(table, "| {} | {fault} | {outcome} | {requests} |", act.name())
            .expect("a string can be written");
    }
    table.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (before, rest) = page.split_once(START).expect("the table has its place");
    let (old, after) = rest.split_once(END).expect("the table has an end");
    if std::env::var_os("RBUILD_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{START}{table}{END}{after}"))
            .expect("the page can be written");
    } else {
        assert_eq!(old, table, "run this test with RBUILD_UPDATE_DOCS=1");
    }
}

#[test]
fn a_crowd_that_a_registry_turns_away_gets_through_without_storming_it() {
    const CROWD: usize = 20;
    let registry = Registry::start();
    image(&registry, "a");
    registry.on("", "", .., Fault::Limit(4, 50 * MS));
    let tag = reference(&registry, "a:1");
    let config =
        Config { timing: Timing { budget: Duration::from_secs(20), ..timing() }, ..Config::default() };
    run(async {
        // Each a client of its own, as on so many hosts.
        let clients: Vec<Client> = (0..CROWD).map(|_| Client::new(config.clone())).collect();
        let all = futures::future::join_all(clients.iter().map(|client| client.resolve(&tag))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    });
    let requests = registry.requests().len();
    assert!((CROWD..CROWD * 10).contains(&requests), "{requests}");
}

#[test]
fn a_name_with_a_dead_address_is_reached_by_another() {
    // `localhost` is ::1 as well, where nobody listens.
    let registry = Registry::start();
    image(&registry, "a");
    let port = registry.address().rsplit_once(':').expect("an address has a port").1;
    run(Client::new(config()).resolve(&format!("localhost:{port}/a:1").parse().unwrap())).unwrap();
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn a_dead_mirror_is_passed_over() {
    let registry = Registry::start();
    image(&registry, "a");
    let gone = Registry::start().address().to_owned();
    let host = Host { mirrors: vec![gone], ..Host::default() };
    let client = Client::new(Config { hosts: [(registry.address().to_owned(), host)].into(), ..config() });
    run(client.resolve(&reference(&registry, "a:1"))).unwrap();
    assert_eq!(registry.requests().len(), 1);
}
