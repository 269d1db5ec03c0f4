//! Who we are at a registry: Docker's `config.json`, Podman's `auth.json`, and credential helpers.
//!
//! Which files there are is the caller's business (`$DOCKER_CONFIG`, home and run-time directories); nothing here reads
//! the environment. Files are read when a registry asks for a login, never before.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use image::reference::DOCKER_HUB;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// The name of Docker Hub in `config.json` and to helpers.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Password {
        /// The user.
        username: String,
        /// The password, or an access token that serves as one.
        password: Password,
    },
    /// An OAuth2 refresh token (`identitytoken`).
    IdentityToken {
        /// The user, often empty.
        username: String,
        /// The token.
        token: Password,
    },
    /// A bearer token that is sent to the registry as it is (`registrytoken`).
    RegistryToken(Password),
}

impl Credential {
    /// The user's name, if the credential has one.
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Password { username, .. } | Self::IdentityToken { username, .. } => {
                Some(username.as_str()).filter(|name| !name.is_empty())
            }
            Self::RegistryToken(_) => None,
        }
    }
}

/// A credential and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The credential.
    pub credential: Credential,
    /// The file or helper, for messages.
    pub origin: String,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credential.username() {
            Some(name) => write!(f, "user {name} (from {})", self.origin),
            None => write!(f, "a token (from {})", self.origin),
        }
    }
}

/// Where credentials are kept.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Given for this run, by registry; they win.
    pub given: BTreeMap<String, Credential>,
    /// Docker's `config.json`; [`Credentials::store`] writes it.
    pub config: Option<PathBuf>,
    /// More files of the same form, read if the first has nothing: Podman's `auth.json`.
    pub fallbacks: Vec<PathBuf>,
}

/// Credentials that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file is there and cannot be read.
    #[error("could not read credentials from {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("could not parse credentials in {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, without its content.
        reason: String,
    },
    /// The file cannot be replaced.
    #[error("could not write credentials to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No file was named to keep credentials in.
    #[error("could not keep credentials: no configuration directory")]
    NoFile,
    /// A helper did not do its job.
    #[error("credential helper {helper} failed to {action} for {registry}: {reason}")]
    Helper {
        /// `docker-credential-x`.
        helper: String,
        /// `get`, `store` or `erase`.
        action: &'static str,
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Credentials {
    /// The login for `registry`; `None` means anonymous. A helper gets `patience` to answer.
    ///
    /// A file that is not there has nothing; one that cannot be read or parsed is an error, not an anonymous pull that
    /// fails later for another reason.
    pub async fn get(&self, registry: &str, patience: Duration) -> Result<Option<Login>, CredentialsError> {
        if let Some(credential) = self.given.get(registry) {
            return Ok(Some(Login { credential: credential.clone(), origin: "the command line".to_owned() }));
        }
        for path in self.config.iter().chain(&self.fallbacks) {
            let Some(bytes) = read(path)? else { continue };
            let file: ConfigFile = parse(path, &bytes)?;
            if let Some(helper) = file.helper(registry) {
                let found = helper_get(helper, registry, patience).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            if let Some(credential) = file.credential(path, registry)? {
                return Ok(Some(Login { credential, origin: path.display().to_string() }));
            }
        }
        Ok(None)
    }

    /// Keeps `credential` for `registry`: with the helper that the file names, else in the file.
    ///
    /// Returns where it is kept now.
    pub async fn store(
        &self,
        registry: &str,
        credential: &Credential,
        patience: Duration,
    ) -> Result<String, CredentialsError> {
        let path = self.config.as_ref().ok_or(CredentialsError::NoFile)?;
        let mut document = document(path)?;
        let file: ConfigFile = parse_value(path, &document)?;
        let key = key_of(registry);
        let (username, secret) = match credential {
            Credential::Password { username, password } => (username.as_str(), password),
            Credential::IdentityToken { token, .. } => ("<token>", token),
            Credential::RegistryToken(token) => ("", token),
        };
        if let Some(helper) = file.helper(registry) {
            let input = json!({ "ServerURL": key, "Username": username, "Secret": secret.reveal() });
            run_helper(helper, "store", registry, &input.to_string(), patience).await?;
            // Docker lists the registry without its secret, so that `docker logout` knows of it.
            auths(&mut document).insert(key, json!({}));
            write(path, &document)?;
            return Ok(format!("docker-credential-{helper}"));
        }
        let entry = match credential {
            Credential::Password { username, password } => {
                json!({ "auth": STANDARD.encode(format!("{username}:{}", password.reveal())) })
            }
            Credential::IdentityToken { username, token } => {
                json!({ "auth": STANDARD.encode(format!("{username}:")), "identitytoken": token.reveal() })
            }
            Credential::RegistryToken(token) => json!({ "registrytoken": token.reveal() }),
        };
        auths(&mut document).insert(key, entry);
        write(path, &document)?;
        Ok(path.display().to_string())
    }

    /// Forgets the login for `registry`. Returns whether there was one in the file.
    pub async fn erase(&self, registry: &str, patience: Duration) -> Result<bool, CredentialsError> {
        let path = self.config.as_ref().ok_or(CredentialsError::NoFile)?;
        let mut document = document(path)?;
        let file: ConfigFile = parse_value(path, &document)?;
        if let Some(helper) = file.helper(registry) {
            run_helper(helper, "erase", registry, &key_of(registry), patience).await?;
        }
        let auths = auths(&mut document);
        let before = auths.len();
        auths.retain(|key, _| registry_of(key) != registry);
        let erased = auths.len() < before;
        if erased {
            write(path, &document)?;
        }
        Ok(erased)
    }
}

impl ConfigFile {
    fn helper(&self, registry: &str) -> Option<&str> {
        self.cred_helpers
            .iter()
            .find(|(key, _)| registry_of(key) == registry)
            .map(|(_, helper)| helper.as_str())
            .or(Some(self.creds_store.as_str()))
            .filter(|helper| !helper.is_empty())
    }

    fn credential(&self, path: &Path, registry: &str) -> Result<Option<Credential>, CredentialsError> {
        let Some((key, auth)) = self.auths.iter().find(|(key, _)| registry_of(key) == registry) else {
            return Ok(None);
        };
        let (mut username, mut password) = (auth.username.clone(), auth.password.clone());
        if !auth.auth.is_empty() {
            let text = auth.auth.trim_end_matches('=');
            let decoded = STANDARD_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let (name, secret) = pair.ok_or_else(|| CredentialsError::Parse {
                path: path.to_owned(),
                reason: format!("`auth` of {key:?} is not base64 of user:password"),
            })?;
            // Docker pads passwords with NULs in some old versions.
            (username, password) = (name.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        Ok(if !auth.registrytoken.is_empty() {
            Some(Credential::RegistryToken(Password::new(&auth.registrytoken)))
        } else if !auth.identitytoken.is_empty() {
            Some(Credential::IdentityToken { username, token: Password::new(&auth.identitytoken) })
        } else if username.is_empty() {
            None
        } else {
            Some(Credential::Password { username, password: Password::new(password) })
        })
    }
}

/// The registry that a key of `auths` or `credHelpers` means: old Docker versions wrote URLs.
fn registry_of(key: &str) -> &str {
    let host = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match host.split('/').next().unwrap_or(host) {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn key_of(registry: &str) -> String {
    if registry == DOCKER_HUB { HUB_KEY.to_owned() } else { registry.to_owned() }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialsError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CredentialsError::Read { path: path.to_owned(), source }),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, CredentialsError> {
    let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    // Where, not what: serde's message may quote a secret.
    serde_json::from_slice(bytes).map_err(|error| CredentialsError::Parse {
        path: path.to_owned(),
        reason: format!("invalid JSON at line {} column {}", error.line(), error.column()),
    })
}

fn parse_value(path: &Path, document: &Map<String, Value>) -> Result<ConfigFile, CredentialsError> {
    serde_json::from_value(Value::Object(document.clone())).map_err(|_| CredentialsError::Parse {
        path: path.to_owned(),
        reason: "a field has the wrong type".to_owned(),
    })
}

fn document(path: &Path) -> Result<Map<String, Value>, CredentialsError> {
    match read(path)? {
        Some(bytes) => parse(path, &bytes),
        None => Ok(Map::new()),
    }
}

fn auths(document: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let entry = document.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry.as_object_mut().expect("made an object above")
}

/// Replaces the file in one step, readable by its owner only. A symlink (dotfile managers make them) stays one.
fn write(path: &Path, document: &Map<String, Value>) -> Result<(), CredentialsError> {
    let failed = |source| CredentialsError::Write { path: path.to_owned(), source };
    let path = &match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(failed(error)),
    };
    let directory = path.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut bytes = serde_json::to_vec_pretty(document).expect("a JSON value serialises");
    bytes.push(b'\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(name);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The write is what failed; a leftover that cannot be removed either is not worth another message.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

async fn helper_get(
    helper: &str,
    registry: &str,
    patience: Duration,
) -> Result<Option<Login>, CredentialsError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let Some(output) = run_helper(helper, "get", registry, &key_of(registry), patience).await? else {
        return Ok(None);
    };
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| CredentialsError::Helper {
        helper: format!("docker-credential-{helper}"),
        action: "get",
        registry: registry.to_owned(),
        reason: "its answer is not JSON with Username and Secret".to_owned(),
    })?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let credential = if answer.username == "<token>" {
        Credential::IdentityToken { username: String::new(), token: Password::new(answer.secret) }
    } else {
        Credential::Password { username: answer.username, password: Password::new(answer.secret) }
    };
    Ok(Some(Login { credential, origin: format!("docker-credential-{helper}") }))
}

/// Runs `docker-credential-HELPER ACTION`. `None` means that the helper knows nothing of the registry.
async fn run_helper(
    helper: &str,
    action: &'static str,
    registry: &str,
    input: &str,
    patience: Duration,
) -> Result<Option<Vec<u8>>, CredentialsError> {
    let failed = |reason: String| CredentialsError::Helper {
        helper: format!("docker-credential-{helper}"),
        action,
        registry: registry.to_owned(),
        reason,
    };
    // The name comes from a file: it must not lead out of PATH.
    if helper.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    let work = async {
        let mut child = Command::new(format!("docker-credential-{helper}"))
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its input may still answer.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(patience, work).await {
        Err(_) => return Err(failed(format!("no answer within {}s", patience.as_secs_f32()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed("it is not installed".to_owned()));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    // Helpers say why on standard output.
    let said = super::error::one_line(&String::from_utf8_lossy(&output.stdout));
    if said.contains("credentials not found") || (action == "erase" && said.contains("not found")) {
        return Ok(None);
    }
    Err(failed(if said.is_empty() { format!("it ended with {}", output.status) } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn from(text: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (directory, Credentials { config: Some(path), ..Credentials::default() })
    }

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.to_owned(), password: Password::new(password) }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_way_to_write_a_login_is_read() {
        let (_directory, credentials) = from(
            r#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"dTpwOnE="},
                "plain.example":{"username":"a","password":"b"},
                "unpadded.example":{"auth":"dTpw"},
                "identity.example":{"auth":"dTo=","identitytoken":"t"},
                "registry.example":{"registrytoken":"r"},
                "http://old.example:5000/v2/":{"auth":"dTpw"},
                "empty.example":{}
            },"other":1}"#,
        );
        for (registry, expected) in [
            ("docker.io", Some(password("u", "p:q"))),
            ("plain.example", Some(password("a", "b"))),
            ("unpadded.example", Some(password("u", "p"))),
            (
                "identity.example",
                Some(Credential::IdentityToken { username: "u".into(), token: Password::new("t") }),
            ),
            ("registry.example", Some(Credential::RegistryToken(Password::new("r")))),
            ("old.example:5000", Some(password("u", "p"))),
            ("old.example", None),
            ("empty.example", None),
            ("unknown.example", None),
        ] {
            let found = credentials.get(registry, PATIENCE).await.unwrap().map(|login| login.credential);
            assert_eq!(found, expected, "{registry}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_broken_file_is_an_error_without_its_secrets() {
        let (_directory, credentials) = from(r#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#);
        let error = credentials.get("r", PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains("user:password") && !error.contains("secret"), "{error}");
        let (_directory, credentials) = from(r#"{"auths":{"r":{"auth":["hunter2"]}}}"#);
        let error = credentials.get("r", PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
        let (_directory, credentials) = from("");
        assert_eq!(credentials.get("r", PATIENCE).await.unwrap(), None);
        assert!(!format!("{:?}", password("u", "hunter2")).contains("hunter2"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn storing_keeps_the_rest_of_the_file_and_hides_it() {
        let (directory, credentials) = from(r#"{"psFormat":"x","auths":{"a":{"auth":"dTpw"}}}"#);
        credentials.store("docker.io", &password("me", "s"), PATIENCE).await.unwrap();
        let path = directory.path().join("config.json");
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(value["psFormat"], "x");
        assert_eq!(value["auths"]["a"]["auth"], "dTpw");
        assert_eq!(value["auths"][HUB_KEY]["auth"], STANDARD.encode("me:s"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(credentials.erase("docker.io", PATIENCE).await.unwrap());
        assert!(!credentials.erase("docker.io", PATIENCE).await.unwrap());
        assert_eq!(credentials.get("docker.io", PATIENCE).await.unwrap(), None);
        assert!(credentials.get("a", PATIENCE).await.unwrap().is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_helper_is_named() {
        let (_directory, credentials) = from(r#"{"credHelpers":{"r.example":"rbuild-no-such"}}"#);
        let error = credentials.get("r.example", PATIENCE).await.unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-rbuild-no-such") && error.contains("not installed"),
            "{error}"
        );
        assert_eq!(credentials.get("other.example", PATIENCE).await.unwrap(), None);
    }
}
