//! The registry client against a registry that misbehaves: what comes out, and with how many requests.

mod faults;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::manifest::media_type;
use image::{Descriptor, Digest, Reference};
use store::registry::{
    Body, Class, Client, Config, Credential, Credentials, Host, Password, Piece, Progress, Pushed,
    RegistryError, Source, Stretch, Timing,
};
use tests::Registry;
use tests::registry::{Fault, Login};
use tokio::sync::mpsc;

const MS: Duration = Duration::from_millis(1);

/// Patience in milliseconds where the real one has seconds.
fn timing() -> Timing {
    Timing {
        connect: 500 * MS,
        header: 300 * MS,
        commit: 600 * MS,
        token: 400 * MS,
        stall_window: 300 * MS,
        stall_bytes: 1024,
        first_wait: 10 * MS,
        longest_wait: 100 * MS,
        budget: 1500 * MS,
        longest_retry_after: Duration::from_secs(5),
    }
}

fn config() -> Config {
    Config { timing: timing(), ..Config::default() }
}

fn with_login(registry: &Registry, user: &str, password: &str) -> Client {
    let credential = Credential::Password { username: user.to_owned(), password: Password::new(password) };
    let given = [(registry.address().to_owned(), credential)].into();
    Client::new(Config { credentials: Credentials { given, ..Credentials::default() }, ..config() })
}

fn reference(registry: &Registry, name: &str) -> Reference {
    format!("{}/{name}", registry.address()).parse().unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Bytes that differ everywhere.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(len + 4);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The smallest image: a manifest whose config is there.
fn image(registry: &Registry, repository: &str) -> (Digest, Vec<u8>) {
    let config = b"{}";
    registry.put_blob(repository, config);
    let config = Descriptor::of(media_type::OCI_CONFIG, config);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config,
        "layers": [],
    });
    let bytes = manifest.to_string().into_bytes();
    (registry.put_manifest(repository, "1", media_type::OCI_MANIFEST, &bytes), bytes)
}

async fn fetch(
    client: &Client,
    reference: &Reference,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.blob(reference, descriptor, 0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn push(client: &Client, target: &Reference, bytes: &[u8]) -> Result<Pushed, RegistryError> {
    let descriptor = Descriptor::of(media_type::OCI_LAYER, bytes);
    let body = Body::Bytes(Bytes::copy_from_slice(bytes));
    client.push_blob(target, &descriptor, body, None, false, &Progress::none()).await
}

/// Makes its bytes on a thread, in pieces, as a compressor does: in memory, or in a file.
struct Made {
    bytes: Arc<Vec<u8>>,
    file: Option<Arc<File>>,
}

impl Made {
    fn in_memory(bytes: &[u8]) -> Self {
        Self { bytes: Arc::new(bytes.to_vec()), file: None }
    }

    fn in_a_file(bytes: &[u8]) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Self { file: Some(Arc::new(file)), ..Self::in_memory(bytes) }
    }
}

impl Source for Made {
    fn open(&self) -> mpsc::Receiver<Piece> {
        let (send, receive) = mpsc::channel(2);
        let (bytes, file) = (Arc::clone(&self.bytes), self.file.clone());
        std::thread::spawn(move || {
            for (n, data) in (0..).zip(bytes.chunks(100_000)) {
                let piece = match file.clone() {
                    None => Piece::Data(Bytes::copy_from_slice(data)),
                    Some(file) => Piece::Stored(Stretch { file, at: n * 100_000, len: data.len() as u64 }),
                };
                if send.blocking_send(piece).is_err() {
                    return;
                }
            }
            let _ = send.blocking_send(Piece::End { digest: Digest::of(&bytes), size: bytes.len() as u64 });
        });
        receive
    }
}

async fn push_made(
    client: &Client,
    target: &Reference,
    bytes: &[u8],
) -> Result<(Digest, u64, Pushed), RegistryError> {
    push_from(client, target, Made::in_memory(bytes)).await
}

async fn push_from(
    client: &Client,
    target: &Reference,
    made: Made,
) -> Result<(Digest, u64, Pushed), RegistryError> {
    client.push_source(target, Arc::new(made), false, &Progress::none()).await
}

// Pulling.

#[test]
fn a_manifest_is_resolved_by_tag_and_by_digest() {
    let registry = Registry::start();
    let (digest, bytes) = image(&registry, "a/b");
    run(async {
        let client = Client::new(config());
        let tag = reference(&registry, "a/b:1");
        assert_eq!(client.head(&tag).await.unwrap().digest, digest);
        let resolved = client.resolve(&tag).await.unwrap();
        assert_eq!((resolved.descriptor.digest, &resolved.bytes[..]), (digest, &bytes[..]));
        assert_eq!(client.resolve(&tag.by_digest(digest)).await.unwrap().descriptor, resolved.descriptor);
        let error = client.resolve(&reference(&registry, "a/b:none")).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound);
        assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    });
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn a_registry_without_head_or_digest_header_is_asked_by_get() {
    for fault in [Fault::status(405), Fault::Header("Docker-Content-Digest".into(), None)] {
        let registry = Registry::start();
        let (digest, _) = image(&registry, "a");
        registry.on("HEAD", "manifests", .., fault);
        let found = run(Client::new(config()).head(&reference(&registry, "a:1"))).unwrap();
        assert_eq!(found.digest, digest);
    }
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let registry = Registry::start();
    let (digest, _) = image(&registry, "a");
    registry.on("GET", "manifests", 1..=1, Fault::Corrupt);
    run(async {
        let client = Client::new(config());
        // Once may be a fluke.
        client.resolve(&reference(&registry, "a:1")).await.unwrap();
        registry.on("GET", "manifests", .., Fault::Corrupt);
        let error = client.resolve(&reference(&registry, "a:1").by_digest(digest)).await.unwrap_err();
        assert_eq!(error.class(), Class::Corrupt);
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
    });
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn a_manifest_served_as_another_type_or_without_end_is_refused() {
    let registry = Registry::start();
    let (_, bytes) = image(&registry, "a");
    registry.put_manifest("a", "index", media_type::OCI_INDEX, &bytes);
    registry.put_manifest("a", "long", media_type::OCI_MANIFEST, &vec![b' '; (4 << 20) + 1]);
    registry.on("GET", "manifests/long", 2.., Fault::Chunked);
    run(async {
        let client = Client::new(config());
        let error = client.resolve(&reference(&registry, "a:index")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Document { .. }), "{error}");
        for _ in 0..2 {
            let error = client.resolve(&reference(&registry, "a:long")).await.unwrap_err();
            assert!(error.to_string().contains("longer than 4 MiB"), "{error}");
        }
    });
}

#[test]
fn a_blob_is_resumed_where_it_broke_off() {
    let registry = Registry::start();
    let bytes = sample(300_000);
    let digest = registry.put_blob("a", &bytes);
    registry.on("GET", "blobs", 1..=14, Fault::Truncate(20_000));
    let descriptor = Descriptor::new("", digest, bytes.len() as u64);
    let got = run(fetch(&Client::new(config()), &reference(&registry, "a"), &descriptor)).unwrap();
    assert!(got == bytes);
    let requests = registry.requests();
    assert_eq!(requests.len(), 15);
    assert_eq!(requests[1].header("range"), Some("bytes=20000-"));
    assert_eq!(requests[14].header("range"), Some("bytes=280000-"));
}

#[test]
fn a_blob_of_another_length_is_refused_at_once() {
    let registry = Registry::start();
    let bytes = sample(10_000);
    let digest = registry.put_blob("a", &bytes);
    registry.on("GET", "blobs", 3.., Fault::Chunked);
    run(async {
        for size in [9_999, 10_001, 9_999] {
            let descriptor = Descriptor::new("", digest, size);
            let error =
                fetch(&Client::new(config()), &reference(&registry, "a"), &descriptor).await.unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{size}: {error}");
        }
    });
    assert_eq!(registry.requests().len(), 3);
}

#[test]
fn a_small_blob_that_is_damaged_is_fetched_once_more() {
    let registry = Registry::start();
    let digest = registry.put_blob("a", b"{\"x\":1}");
    registry.on("GET", "blobs", 1..=1, Fault::Corrupt);
    let descriptor = Descriptor::new("", digest, 7);
    let reference = reference(&registry, "a");
    run(async {
        let client = Client::new(config());
        assert_eq!(client.blob_bytes(&reference, &descriptor, 100).await.unwrap(), &b"{\"x\":1}"[..]);
        registry.on("GET", "blobs", .., Fault::Corrupt);
        let error = client.blob_bytes(&reference, &descriptor, 100).await.unwrap_err();
        assert_eq!(error.class(), Class::Corrupt);
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        assert!(client.blob_bytes(&reference, &descriptor, 6).await.is_err());
    });
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn stalls_are_broken_off_and_tried_again() {
    for fault in [Fault::StallAfter(5_000), Fault::Silence, Fault::Drip(20 * MS)] {
        let registry = Registry::start();
        let bytes = sample(100_000);
        let digest = registry.put_blob("a", &bytes);
        registry.on("GET", "blobs", 1..=1, fault.clone());
        let descriptor = Descriptor::new("", digest, bytes.len() as u64);
        let start = Instant::now();
        let got = run(fetch(&Client::new(config()), &reference(&registry, "a"), &descriptor)).unwrap();
        assert!(got == bytes, "{fault:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{fault:?}: {:?}", start.elapsed());
        assert_eq!(registry.requests().len(), 2, "{fault:?}");
    }
}

// Waiting.

#[test]
fn retry_after_is_honoured() {
    let registry = Registry::start();
    registry.on("PUT", "manifests", 1..=2, Fault::with_header(429, "Retry-After", "1"));
    image(&registry, "a");
    let manifest = registry.manifest("a", "1").unwrap();
    let start = Instant::now();
    let slow = Config { timing: Timing { budget: Duration::from_secs(20), ..timing() }, ..Config::default() };
    run(Client::new(slow).put_manifest(
        &reference(&registry, "a:2"),
        media_type::OCI_MANIFEST,
        manifest.into(),
    ))
    .unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(registry.requests().len(), 3);
}

#[test]
fn passing_faults_pass() {
    for status in [500, 502, 503, 504, 408, 425] {
        let registry = Registry::start();
        image(&registry, "a");
        registry.on("GET", "manifests", 1..=2, Fault::status(status));
        registry.on("HEAD", "blobs", 1..=1, Fault::status(status));
        registry.on("POST", "uploads", 1..=1, Fault::status(status));
        registry.on("PUT", "uploads", 1..=1, Fault::status(status));
        run(async {
            let client = Client::new(config());
            client.resolve(&reference(&registry, "a:1")).await.unwrap();
            assert_eq!(push(&client, &reference(&registry, "b"), b"x").await.unwrap(), Pushed::Uploaded);
        });
        assert_eq!(registry.requests_for("GET", "").len(), 3);
    }
}

#[test]
fn a_port_where_nobody_listens_is_given_up_soon() {
    let gone = Registry::start().address().to_owned();
    let patient =
        Config { timing: Timing { budget: Duration::from_secs(60), ..timing() }, ..Config::default() };
    let start = Instant::now();
    let error = run(Client::new(patient).resolve(&format!("{gone}/a:1").parse().unwrap())).unwrap_err();
    assert_eq!(error.class(), Class::Network);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("refused") && error.to_string().contains(" attempts in "), "{error}");
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    for fault in [None, Some(Fault::status(404)), Some(Fault::status(500)), Some(Fault::Corrupt)] {
        let (mirror, registry) = (Registry::start(), Registry::start());
        image(&registry, "a");
        let (digest, _) = image(&mirror, "sub/a");
        if let Some(fault) = fault.clone() {
            mirror.on("", "", .., fault);
        }
        let host = Host { mirrors: vec![format!("{}/sub", mirror.address())], ..Host::default() };
        let client =
            Client::new(Config { hosts: [(registry.address().to_owned(), host)].into(), ..config() });
        run(async {
            let resolved = client.resolve(&reference(&registry, "a:1")).await.unwrap();
            assert_eq!(resolved.descriptor.digest, digest);
            // Never pushed to.
            push(&client, &reference(&registry, "a"), b"x").await.unwrap();
        });
        let asked = mirror.requests();
        assert!(asked[0].target.starts_with("/v2/sub/a/manifests/1?ns="), "{}", asked[0].target);
        assert_eq!(registry.requests_for("GET", "").is_empty(), fault.is_none());
        assert!(asked.iter().all(|request| request.method == "GET"));
    }
}

// Logging in.

fn token_login(password: &str) -> Login {
    Login::Token { user: "me".into(), password: password.into(), realm: String::new(), expires_in: 300 }
}

#[test]
fn a_token_is_asked_for_once_and_used_for_all() {
    let registry = Registry::start();
    let bytes = sample(1000);
    let digest = registry.put_blob("a", &bytes);
    image(&registry, "a");
    registry.set_login(token_login("secret"));
    let client = with_login(&registry, "me", "secret");
    let reference = reference(&registry, "a:1");
    run(async {
        client.resolve(&reference).await.unwrap();
        let descriptor = Descriptor::new("", digest, 1000);
        let all = futures::future::join_all((0..8).map(|_| fetch(&client, &reference, &descriptor))).await;
        assert!(all.into_iter().all(|got| got.unwrap() == bytes));
    });
    assert_eq!(registry.requests_for("", "/token").len(), 1);
    // One anonymous question, and then none.
    assert_eq!(registry.requests().len(), 1 + 1 + 1 + 8);
}

#[test]
fn anonymous_tokens_pull_and_do_not_push() {
    let registry = Registry::start();
    image(&registry, "a");
    registry.set_login(token_login("secret"));
    run(async {
        let client = Client::new(config());
        client.resolve(&reference(&registry, "a:1")).await.unwrap();
        let error = client.check_push(&reference(&registry, "a:1")).await.unwrap_err();
        assert_eq!(error.class(), Class::Auth);
        assert!(
            error.to_string().contains("repository:a:pull,push") && error.to_string().contains("anonymously"),
            "{error}"
        );
    });
    assert_eq!(registry.requests_for("", "/token").len(), 2);
}

#[test]
fn a_wrong_password_is_said_with_where_it_came_from() {
    for login in [token_login("secret"), Login::Basic { user: "me".into(), password: "secret".into() }] {
        let registry = Registry::start();
        registry.set_login(login);
        let client = with_login(&registry, "me", "wrong");
        let error = run(client.resolve(&reference(&registry, "a:1"))).unwrap_err();
        assert_eq!(error.class(), Class::Auth);
        assert!(error.to_string().contains("user me (from the command line)"), "{error}");
        assert!(!format!("{error} {error:?} {client:?}").contains("wrong"));
        assert!(registry.requests().len() <= 3);
    }
}

#[test]
fn a_token_that_ends_during_a_push_is_renewed() {
    let registry = Registry::start();
    registry.set_login(token_login("secret"));
    registry.on(
        "PUT",
        "uploads",
        1..=1,
        Fault::with_header(
            401,
            "WWW-Authenticate",
            "Bearer realm=\"http://REALM/token\",service=\"test\",error=\"invalid_token\""
                .replace("REALM", registry.address())
                .as_str(),
        ),
    );
    let client = with_login(&registry, "me", "secret");
    let bytes = sample(500_000);
    run(push(&client, &reference(&registry, "a"), &bytes)).unwrap();
    assert_eq!(registry.blob("a", &Digest::of(&bytes)).unwrap(), bytes);
    assert_eq!(registry.requests_for("", "/token").len(), 2);
    // Not begun again: the same upload, the same bytes.
    assert_eq!(registry.requests_for("POST", "uploads").len(), 1);
}

#[test]
fn a_refresh_token_is_posted_and_got_if_that_fails() {
    for (faults, posts, gets) in [(false, 1, 0), (true, 1, 1)] {
        let registry = Registry::start();
        image(&registry, "a");
        registry.set_login(Login::Token {
            user: String::new(),
            password: "refresh".into(),
            realm: String::new(),
            expires_in: 60,
        });
        if faults {
            registry.on("POST", "/token", .., Fault::status(405));
        }
        let credential =
            Credential::IdentityToken { username: String::new(), token: Password::new("refresh") };
        let given = [(registry.address().to_owned(), credential)].into();
        let client =
            Client::new(Config { credentials: Credentials { given, ..Credentials::default() }, ..config() });
        run(client.resolve(&reference(&registry, "a:1"))).unwrap();
        assert_eq!(registry.requests_for("POST", "/token").len(), posts);
        assert_eq!(registry.requests_for("GET", "/token").len(), gets);
    }
}

#[test]
fn no_password_goes_to_a_token_server_elsewhere() {
    let registry = Registry::start();
    for realm in
        ["http://example.test/token", "file:///etc/passwd", "https://169.254.169.254/token", "//", ""]
    {
        registry.on(
            "GET",
            "manifests",
            ..,
            Fault::with_header(401, "WWW-Authenticate", &format!("Bearer realm=\"{realm}\"")),
        );
        let error =
            run(with_login(&registry, "me", "secret").resolve(&reference(&registry, "a:1"))).unwrap_err();
        assert_eq!(error.class(), Class::Auth, "{error}");
    }
    // A realm that sends us on: the password stays behind.
    let (registry, thief) = (Registry::start(), Registry::start());
    registry.set_login(token_login("secret"));
    registry.on(
        "GET",
        "/token",
        ..,
        Fault::with_header(307, "Location", &format!("http://{}/token", thief.address())),
    );
    run(with_login(&registry, "me", "secret").resolve(&reference(&registry, "a:1"))).unwrap_err();
    assert_eq!(thief.requests().len(), 1);
    assert_eq!(thief.requests()[0].header("authorization"), None);
}

#[test]
fn a_login_is_verified() {
    let registry = Registry::start();
    registry.set_login(token_login("secret"));
    let password = |text: &str| Credential::Password { username: "me".into(), password: Password::new(text) };
    run(async {
        let client = Client::new(config());
        client.login(registry.address(), password("secret")).await.unwrap();
        let error = client.login(registry.address(), password("wrong")).await.unwrap_err();
        assert!(error.to_string().contains("incorrect username or password"), "{error}");
    });
}

// Redirects.

#[test]
fn a_redirect_to_a_store_elsewhere_carries_no_login() {
    let (registry, store) = (Registry::start(), Registry::start());
    let bytes = sample(5000);
    let digest = store.put_blob("a", &bytes);
    registry.set_login(Login::Basic { user: "me".into(), password: "secret".into() });
    registry.on(
        "GET",
        "blobs",
        2..=2,
        Fault::with_header(
            307,
            "Location",
            &format!("http://{}/v2/a/blobs/{digest}?X-Sig=1", store.address()),
        ),
    );
    let client = with_login(&registry, "me", "secret");
    let descriptor = Descriptor::new("", digest, 5000);
    assert!(run(fetch(&client, &reference(&registry, "a"), &descriptor)).unwrap() == bytes);
    assert!(registry.requests()[1].header("authorization").is_some());
    assert_eq!(store.requests()[0].header("authorization"), None);
}

// Pushing.

#[test]
fn a_blob_is_pushed_once() {
    let registry = Registry::start();
    let bytes = sample(200_000);
    let target = reference(&registry, "a/b");
    run(async {
        let client = Client::new(config());
        assert_eq!(push(&client, &target, &bytes).await.unwrap(), Pushed::Uploaded);
        assert_eq!(push(&client, &target, &bytes).await.unwrap(), Pushed::Existed);
    });
    assert_eq!(registry.blob("a/b", &Digest::of(&bytes)).unwrap(), bytes);
    let methods: Vec<_> = registry.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT", "HEAD"]);
}

#[test]
fn a_blob_is_mounted_where_the_registry_can() {
    let bytes = sample(1000);
    let digest = Digest::of(&bytes);
    let descriptor = Descriptor::new("", digest, 1000);
    for (fault, expected) in [
        (None, Pushed::Mounted),
        (Some(Fault::status(401)), Pushed::Uploaded),
        (Some(Fault::status(403)), Pushed::Uploaded),
        (Some(Fault::status(404)), Pushed::Uploaded),
        (Some(Fault::status(405)), Pushed::Uploaded),
        (Some(Fault::with_header(202, "Location", "/v2/to/blobs/uploads/gone")), Pushed::Uploaded),
    ] {
        let registry = Registry::start();
        registry.put_blob("from", &bytes);
        registry.set_login(token_login("secret"));
        if let Some(fault) = fault.clone() {
            registry.on("POST", "mount=", .., fault);
        }
        let client = with_login(&registry, "me", "secret");
        let body = Body::Bytes(bytes.clone().into());
        let pushed = run(client.push_blob(
            &reference(&registry, "to"),
            &descriptor,
            body,
            Some("from"),
            false,
            &Progress::none(),
        ));
        assert_eq!(pushed.unwrap(), expected, "{fault:?}");
        assert_eq!(registry.blob("to", &digest).unwrap(), bytes);
    }
}

#[test]
fn a_layer_that_fits_in_one_chunk_is_only_sent_if_it_is_missing() {
    let registry = Registry::start();
    let bytes = sample(300_000);
    run(async {
        let client = Client::new(config());
        let target = reference(&registry, "a");
        let digest = Digest::of(&bytes);
        assert_eq!(push_made(&client, &target, &bytes).await.unwrap(), (digest, 300_000, Pushed::Uploaded));
        assert_eq!(push_made(&client, &target, &bytes).await.unwrap(), (digest, 300_000, Pushed::Existed));
    });
    assert_eq!(registry.requests_for("PUT", "uploads").len(), 1);
}

/// Three chunks.
const LONG: usize = 14 << 20;

#[test]
fn a_long_layer_goes_in_chunks_while_it_is_made() {
    let registry = Registry::start();
    let bytes = sample(LONG);
    let (digest, size, pushed) =
        run(push_made(&Client::new(config()), &reference(&registry, "a"), &bytes)).unwrap();
    assert_eq!((digest, size, pushed), (Digest::of(&bytes), LONG as u64, Pushed::Uploaded));
    assert!(registry.blob("a", &digest).unwrap() == bytes);
    let patches = registry.requests_for("PATCH", "");
    assert_eq!(patches.len(), 3);
    assert_eq!(patches[1].header("content-range"), Some("6291456-12582911"));
}

#[test]
fn a_broken_chunk_costs_no_more_than_itself() {
    let resets = Fault::Reset(1_000_000);
    let lost_answer = Fault::DoneBut(502);
    let confused = Fault::status(416);
    let stale = Fault::Header("Range".into(), Some("0-5".into()));
    let absent = Fault::Header("Range".into(), None);
    let bytes = sample(LONG);
    for fault in [resets, lost_answer, confused, stale, absent, Fault::status(503)] {
        for made in [Made::in_memory(&bytes), Made::in_a_file(&bytes)] {
            let registry = Registry::start();
            registry.on("PATCH", "", 2..=2, fault.clone());
            let (digest, ..) =
                run(push_from(&Client::new(config()), &reference(&registry, "a"), made)).unwrap();
            assert!(registry.blob("a", &digest).unwrap() == bytes, "{fault:?}");
            assert!(registry.requests_for("PATCH", "").len() <= 4, "{fault:?}");
            assert_eq!(registry.requests_for("POST", "uploads").len(), 1, "{fault:?}");
        }
    }
}

#[test]
fn what_is_in_a_file_goes_in_longer_and_longer_chunks() {
    let registry = Registry::start();
    let bytes = sample(LONG);
    let made = Made::in_a_file(&bytes);
    let (digest, ..) = run(push_from(&Client::new(config()), &reference(&registry, "a"), made)).unwrap();
    assert!(registry.blob("a", &digest).unwrap() == bytes);
    let patches = registry.requests_for("PATCH", "");
    let ranges: Vec<_> = patches.iter().map(|patch| patch.header("content-range").unwrap()).collect();
    assert_eq!(ranges, ["0-6291455".to_owned(), format!("6291456-{}", LONG - 1)]);
}

#[test]
fn a_registry_without_chunks_gets_the_layer_in_one_piece() {
    for fault in [Fault::status(405), Fault::status(416), Fault::status(404), Fault::status(400)] {
        let registry = Registry::start();
        registry.on("PATCH", "", .., fault.clone());
        let bytes = sample(LONG);
        let (digest, _, pushed) =
            run(push_made(&Client::new(config()), &reference(&registry, "a"), &bytes)).unwrap();
        assert_eq!(pushed, Pushed::Uploaded);
        assert!(registry.blob("a", &digest).unwrap() == bytes, "{fault:?}");
    }
}

#[test]
fn a_put_that_is_never_answered_is_broken_off() {
    let registry = Registry::start();
    registry.on("PUT", "uploads", 1..=1, Fault::Silence);
    let start = Instant::now();
    run(push(&Client::new(config()), &reference(&registry, "a"), b"x")).unwrap();
    assert!(start.elapsed() >= 500 * MS && start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_location_may_be_relative_or_elsewhere_and_must_be_there() {
    let registry = Registry::start();
    registry.on("POST", "/v2/none/", .., Fault::Header("Location".into(), None));
    registry.on("POST", "/v2/bad/", .., Fault::Header("Location".into(), Some("http:".into())));
    let client = Client::new(config());
    run(async {
        let error = push(&client, &reference(&registry, "none"), b"x").await.unwrap_err();
        assert!(error.to_string().contains("the registry sent no Location"), "{error}");
        assert!(push(&client, &reference(&registry, "bad"), b"x").await.is_err());
    });
    // Uploads that another host takes: without our login.
    let other = Registry::start();
    registry.set_login(Login::Basic { user: "me".into(), password: "secret".into() });
    let client = with_login(&registry, "me", "secret");
    let elsewhere = format!("http://{}/v2/a/blobs/uploads/upload-1?sig=1", other.address());
    registry.on("POST", "/v2/a/", 2.., Fault::with_header(202, "Location", &elsewhere));
    registry.on("POST", "/v2/a/", 1..=1, Fault::with_header(202, "Location", &elsewhere));
    run(async {
        // Opens upload-1 there.
        push(&Client::new(config()), &reference(&other, "a"), b"y").await.unwrap();
        other.on("PUT", "uploads/upload-1", .., Fault::status(201));
        push(&client, &reference(&registry, "a"), b"x").await.unwrap();
    });
    let put = other.requests_for("PUT", "sig=1").pop().unwrap();
    assert_eq!((put.header("authorization"), &put.body[..]), (None, &b"x"[..]));
}

#[test]
fn a_registry_that_stored_something_else_is_found_out() {
    let registry = Registry::start();
    let other = Some(Digest::of(b"other").to_string());
    registry.on("PUT", "", .., Fault::Header("Docker-Content-Digest".into(), other));
    run(async {
        let client = Client::new(config());
        let bytes = Bytes::from_static(b"{}");
        let target = reference(&registry, "a:1");
        let put = client.put_manifest(&target, media_type::OCI_MANIFEST, bytes);
        assert_eq!(put.await.unwrap_err().class(), Class::Corrupt);
        assert_eq!(
            push(&client, &reference(&registry, "a"), b"x").await.unwrap_err().class(),
            Class::Corrupt
        );
    });
}

#[test]
fn a_head_that_is_forbidden_is_asked_by_get() {
    for status in [403, 405] {
        let registry = Registry::start();
        registry.put_blob("a", b"x");
        registry.on("HEAD", "blobs", .., Fault::status(status));
        let client = Client::new(config());
        assert_eq!(run(push(&client, &reference(&registry, "a"), b"x")).unwrap(), Pushed::Existed);
        assert_eq!(run(push(&client, &reference(&registry, "a"), b"y")).unwrap(), Pushed::Uploaded);
    }
}

#[test]
fn data_that_cannot_be_made_is_our_error() {
    struct Broken;
    impl Source for Broken {
        fn open(&self) -> mpsc::Receiver<Piece> {
            let (send, receive) = mpsc::channel(4);
            send.try_send(Piece::Data(Bytes::from_static(b"abc"))).unwrap();
            send.try_send(Piece::Failed("disk on fire".into())).unwrap();
            receive
        }
    }
    let registry = Registry::start();
    let client = Client::new(config());
    let target = reference(&registry, "a");
    run(async {
        let error =
            client.push_source(&target, Arc::new(Broken), false, &Progress::none()).await.unwrap_err();
        assert!(error.to_string().contains("disk on fire"), "{error}");
        assert_eq!(error.class(), Class::Local);
        let descriptor = Descriptor::new("", Digest::of(b"abcdef"), 6);
        let body = Body::Source(Arc::new(Broken));
        let error =
            client.push_blob(&target, &descriptor, body, None, false, &Progress::none()).await.unwrap_err();
        assert!(error.to_string().contains("disk on fire"), "{error}");
    });
}

#[test]
fn credentials_in_a_config_file_are_found_by_registry() {
    let registry = Registry::start();
    image(&registry, "a");
    registry.set_login(Login::Basic { user: "me".into(), password: "secret".into() });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(
        &path,
        format!(r#"{{"auths":{{"http://{}/v1/":{{"auth":"bWU6c2VjcmV0"}}}}}}"#, registry.address()),
    )
    .unwrap();
    let client = |path: &Path| {
        Client::new(Config {
            credentials: Credentials { config: Some(path.to_owned()), ..Credentials::default() },
            ..config()
        })
    };
    run(async {
        client(&path).resolve(&reference(&registry, "a:1")).await.unwrap();
        let missing = directory.path().join("missing.json");
        let error = client(&missing).resolve(&reference(&registry, "a:1")).await.unwrap_err();
        assert!(error.to_string().contains("there are no credentials for it"), "{error}");
    });
}
