//! The registry client (distribution-spec): chunks in, chunks out.
//!
//! Async, and all of it runs on the one thread of the caller's runtime: nothing here hashes, compresses or writes
//! layers. Whoever pulls or pushes an image puts the CPU work beside it (`worker/source/image.rs`,
//! `builder/export/registry.rs`). Nothing is connected, read or allocated before the first request.
//!
//! An upload in short: HEAD the blob; if it is absent, POST opens an upload (or mounts the blob from a neighbouring
//! repository), PATCH adds chunks, PUT names the digest and completes it. Layers go before the config, the config
//! before the manifest, because a registry refuses a manifest whose blobs it does not have.

mod auth;
mod chunk;
mod client;
pub mod credentials;
pub mod error;
mod pull;
mod push;
mod retry;
pub mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use chunk::Stretch;
pub use client::Client;
pub use credentials::{Credential, Credentials, CredentialsError, Login, Password};
pub use error::{Answer, Class, NetworkCause, RegistryError};
pub use pull::{BlobStream, Resolved};
pub use push::{Body, Piece, Pushed, Source};
pub use retry::Timing;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is special about some registries, by the name that references use (`docker.io`, `localhost:5000`).
    pub hosts: BTreeMap<String, Host>,
    /// Directories like `/etc/docker/certs.d`: in each, one per registry with `*.crt` (authorities) and
    /// `*.cert` + `*.key` (client certificates).
    pub certs_dirs: Vec<PathBuf>,
    /// Who we are.
    pub credentials: Credentials,
    /// How patient we are.
    pub timing: Timing,
    /// Blobs at a time, for each registry.
    pub transfers: usize,
    /// What we call ourselves.
    pub user_agent: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            certs_dirs: Vec::new(),
            credentials: Credentials::default(),
            timing: Timing::default(),
            transfers: 4,
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// What is special about a registry.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// How to connect.
    pub transport: Transport,
    /// Asked first, in this order, and only to pull: `host[:port][/path]`, with `http://` in front for plain HTTP.
    pub mirrors: Vec<String>,
    /// PEM files of authorities to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates; the first is used.
    pub keypairs: Vec<KeyPair>,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM file of the certificate chain.
    pub cert: PathBuf,
    /// PEM file of the key.
    pub key: PathBuf,
}

/// How to connect to a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// HTTPS with verified certificates; plain HTTP on loopback addresses, as Docker does.
    #[default]
    Secure,
    /// HTTPS with whatever certificate, else plain HTTP ("insecure registry").
    Insecure,
    /// Plain HTTP.
    Plain,
}

/// Told about bytes as they move: how many so far (less than before when something starts over), and how many in all
/// if that is known.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(u64, Option<u64>) + Send + Sync>);

impl Progress {
    /// Calls `report` for every chunk; it must not block.
    pub fn new(report: impl Fn(u64, Option<u64>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Nobody is interested.
    pub fn none() -> Self {
        Self::new(|_, _| {})
    }

    /// Reports.
    pub fn report(&self, done: u64, total: Option<u64>) {
        (self.0)(done, total);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// Makes ring the process' implementation of TLS' algorithms: whoever speaks TLS calls it first.
pub fn install_crypto() {
    // Fails if somebody installed one before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
