//! `--load`: an image into the Docker that runs on this host, or on the one that its command line talks to.
//!
//! Docker's API over a socket: what `docker load` sends, without the layers that Docker has. Podman's socket speaks the
//! same.

mod http;

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use image::{DiffId, Digest};
use serde::Deserialize;
use serde_json::Value;

use crate::failure::{Class, Failure};
use http::{Connection, Response};

/// Where Docker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

/// Where Docker listens if nobody says another place.
const DEFAULT: &str = "/var/run/docker.sock";
/// Of more images than this Docker is not asked what layers they have.
const MAX_IMAGES: usize = 200;

impl Endpoint {
    /// What `context` says, else `DOCKER_HOST`, `DOCKER_CONTEXT`, the current context of `config.json`, or the usual
    /// place. `None`: there is no Docker.
    pub(crate) fn find(
        context: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
        config: &Path,
    ) -> Result<Option<Self>, Failure> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let current = || {
            let text = std::fs::read(config).ok()?;
            let config: Value = serde_json::from_slice(&text).ok()?;
            config["currentContext"].as_str().map(str::to_owned)
        };
        let host = match context {
            Some(name) => in_context(name, config)?,
            None => match set("DOCKER_HOST") {
                Some(host) => Some(host),
                None => match set("DOCKER_CONTEXT").or_else(current) {
                    Some(name) => in_context(&name, config)?,
                    None => None,
                },
            },
        };
        let Some(host) = host else {
            let usual = Self::Unix(DEFAULT.into());
            return match usual.connect() {
                Ok(_) => Ok(Some(usual)),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(usual.unreachable(&error)),
            };
        };
        let endpoint = Self::parse(&host)?;
        endpoint.connect().map_err(|error| endpoint.unreachable(&error))?;
        Ok(Some(endpoint))
    }

    fn parse(host: &str) -> Result<Self, Failure> {
        match host.split_once("://") {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => {
                let address = address.trim_end_matches('/');
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }))
            }
            _ => Err(Failure::usage(format!(
                "could not load into Docker at {host:?}: expected unix:// or tcp://"
            ))
            .hint("`rbuild save NAME | docker load` takes any way that docker knows")),
        }
    }

    fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => Connection::unix(path),
            Self::Tcp(address) => Connection::tcp(address),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let failure = Failure::new(Class::Network, format!("could not reach Docker at {self}: {error}"));
        match error.kind() {
            io::ErrorKind::PermissionDenied => failure.hint(
                "without --load the image is kept in rbuild's own store; `rbuild save` writes an archive",
            ),
            _ => failure,
        }
    }

    /// Layers that Docker has, as long as that is worth knowing: those of its images, if it takes archives without them.
    pub(crate) fn layers(&self) -> BTreeSet<Vec<DiffId>> {
        self.ask_for_layers().unwrap_or_default()
    }

    fn ask_for_layers(&self) -> Option<BTreeSet<Vec<DiffId>>> {
        let info: Value = self.get("/info")?;
        // containerd's store wants whole archives.
        let status = info["DriverStatus"].as_array().cloned().unwrap_or_default();
        if !info["Driver"].is_string() || status.iter().any(|pair| pair[0] == "driver-type") {
            return None;
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            id: String,
        }
        let images: Vec<Listed> = self.get("/images/json?all=1")?;
        if images.len() > MAX_IMAGES {
            return None;
        }
        let mut chains = BTreeSet::new();
        for image in images {
            let Some(about) = self.get::<Value>(&format!("/images/{}/json", image.id)) else { continue };
            let layers = about["RootFS"]["Layers"].as_array().cloned().unwrap_or_default();
            let layers: Option<Vec<DiffId>> =
                layers.iter().map(|layer| Some(DiffId(layer.as_str()?.parse::<Digest>().ok()?))).collect();
            chains.extend(layers);
        }
        Some(chains)
    }

    fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Option<T> {
        let mut response = self.connect().ok()?.get(path).ok()?;
        let mut body = Vec::new();
        response.body.read_to_end(&mut body).ok()?;
        (response.status == 200).then(|| serde_json::from_slice(&body).ok()).flatten()
    }

    /// Sends an archive, which `write` writes. Returns what Docker says of it.
    pub(crate) fn load(
        &self,
        write: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), Failure>,
    ) -> Result<Vec<String>, Failure> {
        let connection = self.connect().map_err(|error| self.unreachable(&error))?;
        let failed = |why: &dyn std::fmt::Display| {
            Failure::new(Class::Network, format!("could not load into Docker at {self}: {why}"))
        };
        let mut upload = connection.post("/images/load?quiet=1").map_err(|error| failed(&error))?;
        let written = write(&mut upload);
        // Docker may have refused, and closed, before it had all: what it says is the better reason.
        let Response { status, mut body } = match (upload.finish(), written) {
            (Ok(response), _) => response,
            (Err(_), Err(failure)) => return Err(failure),
            (Err(error), Ok(())) => return Err(failed(&error)),
        };
        let mut text = String::new();
        body.read_to_string(&mut text).map_err(|error| failed(&error))?;
        let mut said = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let message: Value = serde_json::from_str(line).unwrap_or(Value::Null);
            if let Some(error) = message["error"].as_str().or_else(|| message["message"].as_str()) {
                return Err(failed(&error));
            }
            said.extend(message["stream"].as_str().map(|line| line.trim_end().to_owned()));
        }
        match status {
            200 => Ok(said),
            other => Err(failed(&format!("it answers with status {other}"))),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// The layers of an image that need not be sent: it begins like an image that Docker has.
pub(crate) fn shared<'a>(diff_ids: &'a [DiffId], chains: &BTreeSet<Vec<DiffId>>) -> &'a [DiffId] {
    let common = |chain: &Vec<DiffId>| chain.iter().zip(diff_ids).take_while(|(a, b)| a == b).count();
    &diff_ids[..chains.iter().map(common).max().unwrap_or(0)]
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The host of a context of Docker's command line; `default` has none.
fn in_context(name: &str, config: &Path) -> Result<Option<String>, Failure> {
    if name == "default" {
        return Ok(None);
    }
    let id = Digest::of(name.as_bytes()).hex();
    let file = config.with_file_name("contexts").join("meta").join(id).join("meta.json");
    let host = std::fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        .and_then(|meta| meta["Endpoints"]["docker"]["Host"].as_str().map(str::to_owned));
    match host {
        Some(host) => Ok(Some(host)),
        None => Err(Failure::usage(format!("there is no Docker context {name:?} in {}", config.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn find(
        context: Option<&str>,
        variables: &[(&str, &str)],
        config: &Path,
    ) -> Result<Option<Endpoint>, Failure> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        Endpoint::find(context, |name| variables.get(name).map(|value| (*value).to_owned()), config)
    }

    #[test]
    fn docker_is_where_its_own_command_line_looks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (config, socket) = (dir.path().join("config.json"), dir.path().join("s"));
        let _listener = UnixListener::bind(&socket).unwrap();
        let there = Some(Endpoint::Unix(socket.clone()));
        let host = format!("unix://{}", socket.display());
        assert_eq!(find(None, &[("DOCKER_HOST", &host)], &config).unwrap(), there);
        let meta = dir.path().join("contexts/meta").join(Digest::of(b"ci").hex());
        std::fs::create_dir_all(&meta).unwrap();
        let text = serde_json::json!({ "Name": "ci", "Endpoints": { "docker": { "Host": host } } });
        std::fs::write(meta.join("meta.json"), text.to_string()).unwrap();
        assert_eq!(find(None, &[("DOCKER_CONTEXT", "ci")], &config).unwrap(), there);
        assert_eq!(find(Some("ci"), &[("DOCKER_HOST", "unix:///none")], &config).unwrap(), there);
        std::fs::write(&config, r#"{"currentContext":"ci"}"#).unwrap();
        assert_eq!(find(None, &[], &config).unwrap(), there);
        // What was named has to be there.
        for (context, host) in [(Some("other"), ""), (None, "unix:///none"), (None, "ssh://host")] {
            assert!(find(context, &[("DOCKER_HOST", host)], &config).is_err(), "{context:?} {host}");
        }
        assert_eq!(Endpoint::parse("tcp://h").ok(), Some(Endpoint::Tcp("h:2375".to_owned())));
        assert_eq!(Endpoint::parse("tcp://h:1").ok(), Some(Endpoint::Tcp("h:1".to_owned())));
    }

    #[test]
    fn layers_are_shared_from_the_bottom() {
        let layer = |n: u8| DiffId(Digest::of(&[n]));
        let chains = BTreeSet::from([vec![layer(1), layer(2), layer(9)], vec![layer(3)]]);
        let image = [layer(1), layer(2), layer(3)];
        assert_eq!(shared(&image, &chains), &image[..2]);
        assert!(shared(&image, &BTreeSet::new()).is_empty());
        assert!(shared(&[layer(2)], &chains).is_empty());
    }
}
