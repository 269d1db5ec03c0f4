//! TLS to registries: which certificates are taken, and that nothing is ever sent in the clear instead.
//!
//! The certificates in `tls/` are for tests alone: `server.crt` (127.0.0.1, localhost) and `wrong-host.crt` are signed
//! by `ca.crt`, which is valid until 2126.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use image::manifest::media_type;
use image::{Digest, Reference};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use store::registry::{Class, Client, Config, Host, KeyPair, RegistryError, Resolved, Transport};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
}

/// Answers every request with [`MANIFEST`]. With `ask`, clients must show a certificate of our authority.
fn serve(certificate: &str, ask: bool) -> Server {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = vec![CertificateDer::from_pem_file(file(certificate)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let builder = if ask {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("ca.crt")).unwrap()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        ServerConfig::builder().with_client_cert_verifier(verifier)
    } else {
        ServerConfig::builder().with_no_client_auth()
    };
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let mut tls =
                    BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream));
                loop {
                    let mut line = String::new();
                    while tls.read_line(&mut line).is_ok_and(|read| read > 2) {
                        line.clear();
                    }
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n{MANIFEST}",
                        media_type::OCI_MANIFEST,
                        MANIFEST.len()
                    );
                    if line.is_empty() || tls.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Server { address, connections }
}

fn resolve(server: &str, config: Config) -> Result<Resolved, RegistryError> {
    let reference: Reference = format!("{server}/a:1").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Client::new(config).resolve(&reference))
}

fn with_host(server: &str, host: Host) -> Config {
    Config { hosts: [(server.to_owned(), host)].into(), ..Config::default() }
}

#[test]
fn an_authority_of_the_registrys_own_is_trusted() {
    let server = serve("server.crt", false);
    let host = Host { ca: vec![file("ca.crt")], ..Host::default() };
    let resolved = resolve(&server.address, with_host(&server.address, host)).unwrap();
    assert_eq!(resolved.descriptor.digest, Digest::of(MANIFEST.as_bytes()));
    // The same by Docker's directory.
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join(&server.address);
    std::fs::create_dir(&certs).unwrap();
    std::fs::copy(file("ca.crt"), certs.join("ca.crt")).unwrap();
    let config = Config { certs_dirs: vec![dir.path().to_owned()], ..Config::default() };
    resolve(&server.address, config).unwrap();
}

#[test]
fn a_certificate_that_proves_nothing_is_refused_at_once_and_nothing_goes_in_the_clear() {
    for (certificate, authority) in [("server.crt", "other-ca.crt"), ("wrong-host.crt", "ca.crt")] {
        let server = serve(certificate, false);
        let host = Host { ca: vec![file(authority)], ..Host::default() };
        let start = Instant::now();
        let error = resolve(&server.address, with_host(&server.address, host)).unwrap_err();
        assert_eq!(error.class(), Class::Network);
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{error}");
    }
}

#[test]
fn an_insecure_registry_is_taken_as_it_is() {
    let server = serve("wrong-host.crt", false);
    let insecure = || Host { transport: Transport::Insecure, ..Host::default() };
    resolve(&server.address, with_host(&server.address, insecure())).unwrap();
    // One that knows no TLS.
    let plain = tests::Registry::start();
    plain.put_manifest("a", "1", media_type::OCI_MANIFEST, MANIFEST.as_bytes());
    resolve(plain.address(), with_host(plain.address(), insecure())).unwrap();
}

#[test]
fn a_client_certificate_is_shown() {
    let server = serve("server.crt", true);
    let ca = vec![file("ca.crt")];
    let bare = Host { ca: ca.clone(), ..Host::default() };
    let mut impatient = with_host(&server.address, bare);
    impatient.timing.budget = Duration::from_millis(300);
    resolve(&server.address, impatient).unwrap_err();
    let keypairs = vec![KeyPair { cert: file("server.crt"), key: file("server.key") }];
    resolve(&server.address, with_host(&server.address, Host { ca, keypairs, ..Host::default() })).unwrap();
}
