//! How registries are reached: credentials, certificates, mirrors and insecure hosts, from this host's files.
//!
//! Credential files are named here and read by `store` when a registry asks for a login. Hosts come from `rbuild.toml`
//! (`[registry."name"]`) and from `buildkitd.toml`, which has the same tables, so a host set up for BuildKit needs no
//! second configuration; Docker's own `daemon.json` is read for its insecure registries and mirrors.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use image::reference::DOCKER_HUB;
use serde::Deserialize;
use store::registry::{Client, Config, Credentials, Host, KeyPair, Transport};

use crate::environment::Places;
use crate::failure::{Class, Failure};

/// A client for all registries of this run.
pub(crate) fn client(places: &Places) -> Result<Client, Failure> {
    Ok(Client::new(config(places)?))
}

/// How registries are reached from this host.
pub(crate) fn config(places: &Places) -> Result<Config, Failure> {
    let mut hosts = BTreeMap::new();
    for path in &places.daemon_files {
        let Some(text) = read(path)? else { continue };
        let parsed = match path.extension().is_some_and(|extension| extension == "json") {
            true => from_docker(&text),
            false => from_buildkit(&text),
        };
        let found = parsed.map_err(|reason| {
            Failure::new(Class::Host, format!("could not read registries from {}: {reason}", path.display()))
        })?;
        // The first file that knows a registry counts.
        for (name, host) in found {
            hosts.entry(name).or_insert(host);
        }
    }
    Ok(Config {
        hosts,
        certs_dirs: places.certs_dirs.clone(),
        credentials: credentials(places),
        ..Config::default()
    })
}

/// Where credentials are kept.
pub(crate) fn credentials(places: &Places) -> Credentials {
    Credentials {
        given: BTreeMap::new(),
        config: Some(places.docker_config.clone()),
        fallbacks: places.other_auth_files.clone(),
    }
}

/// The proxies that Docker's configuration has for containers: names and values as RUN gets them, in both cases.
pub(crate) fn proxies(places: &Places) -> Vec<(String, String)> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct File {
        proxies: BTreeMap<String, BTreeMap<String, String>>,
    }
    let text = std::fs::read(&places.docker_config).unwrap_or_default();
    let file: File = serde_json::from_slice(&text).unwrap_or_default();
    let default = file.proxies.get("default").into_iter().flatten();
    default
        .filter_map(|(key, value)| {
            let name = match key.as_str() {
                "httpProxy" => "HTTP_PROXY",
                "httpsProxy" => "HTTPS_PROXY",
                "ftpProxy" => "FTP_PROXY",
                "noProxy" => "NO_PROXY",
                "allProxy" => "ALL_PROXY",
                _ => return None,
            };
            Some([(name.to_owned(), value.clone()), (name.to_ascii_lowercase(), value.clone())])
        })
        .flatten()
        .collect()
}

/// A client that lets `registries` be reached without verified certificates; `client` itself if there are none.
pub(crate) fn insecure<'a>(client: Client, registries: impl IntoIterator<Item = &'a str>) -> Client {
    let mut registries = registries.into_iter().peekable();
    if registries.peek().is_none() {
        return client;
    }
    let mut config = client.config().clone();
    for registry in registries {
        allow_insecure(&mut config, registry);
    }
    Client::new(config)
}

/// Lets a registry be reached without verified certificates, as `registry.insecure=true` asks.
pub(crate) fn allow_insecure(config: &mut Config, registry: &str) {
    config.hosts.entry(registry.to_owned()).or_default().transport = Transport::Insecure;
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // Somebody else's configuration that is not for us to read is not there.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        Err(error) => Err(Failure::new(Class::Host, format!("could not read {}: {error}", path.display()))),
    }
}

/// The `[registry]` tables of `buildkitd.toml`.
fn from_buildkit(text: &str) -> Result<BTreeMap<String, Host>, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct File {
        registry: BTreeMap<String, Registry>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Registry {
        mirrors: Vec<String>,
        http: Option<bool>,
        insecure: Option<bool>,
        ca: Vec<PathBuf>,
        keypair: Vec<Pair>,
    }
    #[derive(Deserialize)]
    struct Pair {
        key: PathBuf,
        cert: PathBuf,
    }
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let transport = |registry: &Registry| match (registry.http, registry.insecure) {
        (Some(true), _) => Transport::Plain,
        (_, Some(true)) => Transport::Insecure,
        _ => Transport::Secure,
    };
    // A mirror's own table says whether it speaks plain HTTP.
    let mirror = |name: &String| {
        let host = name.split('/').next().unwrap_or(name);
        match file.registry.get(host).is_some_and(|registry| registry.http == Some(true)) {
            true if !name.contains("://") => format!("http://{name}"),
            _ => name.clone(),
        }
    };
    Ok(file
        .registry
        .iter()
        .map(|(name, registry)| {
            let host = Host {
                transport: transport(registry),
                mirrors: registry.mirrors.iter().map(mirror).collect(),
                ca: registry.ca.clone(),
                keypairs: registry
                    .keypair
                    .iter()
                    .map(|pair| KeyPair { cert: pair.cert.clone(), key: pair.key.clone() })
                    .collect(),
            };
            (name.clone(), host)
        })
        .collect())
}

/// The insecure registries and mirrors of `daemon.json`.
fn from_docker(text: &str) -> Result<BTreeMap<String, Host>, String> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "kebab-case", default)]
    struct File {
        registry_mirrors: Vec<String>,
        insecure_registries: Vec<String>,
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    // Networks (`10.0.0.0/8`) would need every name resolved before it is known how to connect to it.
    for name in file.insecure_registries.iter().filter(|name| !name.contains('/')) {
        hosts.entry(name.clone()).or_default().transport = Transport::Insecure;
    }
    if !file.registry_mirrors.is_empty() {
        hosts.entry(DOCKER_HUB.to_owned()).or_default().mirrors = file
            .registry_mirrors
            .iter()
            .map(|mirror| mirror.trim_end_matches('/').trim_start_matches("https://").to_owned())
            .collect();
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_set_up_for_buildkit_are_known() {
        let hosts = from_buildkit(
            r#"
            debug = true
            [worker.oci]
            enabled = true
            [registry."docker.io"]
            mirrors = ["mirror:5000", "other.example/hub"]
            [registry."mirror:5000"]
            http = true
            [registry."own.example"]
            ca = ["/etc/own.pem"]
            [[registry."own.example".keypair]]
            key = "/k"
            cert = "/c"
            "#,
        )
        .unwrap();
        assert_eq!(hosts["docker.io"].mirrors, ["http://mirror:5000", "other.example/hub"]);
        assert_eq!(hosts["mirror:5000"].transport, Transport::Plain);
        assert_eq!(hosts["own.example"].ca, [PathBuf::from("/etc/own.pem")]);
        assert_eq!(hosts["own.example"].keypairs, [KeyPair { cert: "/c".into(), key: "/k".into() }]);
        assert!(from_buildkit("[registry").is_err());
    }

    #[test]
    fn hosts_set_up_for_docker_are_known() {
        let hosts = from_docker(
            r#"{"registry-mirrors": ["https://m.example/", "http://n:5000"],
                "insecure-registries": ["old:5000", "10.0.0.0/8"], "log-level": "warn"}"#,
        )
        .unwrap();
        assert_eq!(hosts["docker.io"].mirrors, ["m.example", "http://n:5000"]);
        assert_eq!(hosts["old:5000"].transport, Transport::Insecure);
        assert_eq!(hosts.len(), 2);
        assert!(from_docker("").unwrap().is_empty());
    }
}
