//! Image references: `[registry/]repository[:tag][@digest]`, with Docker's familiar names.
//!
//! The grammar is distribution's `reference` package: `debian` means `docker.io/library/debian`; the first component
//! is a registry if it has a dot, a colon, an upper-case letter, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The registry that a reference without one means.
pub const DOCKER_HUB: &str = "docker.io";

/// The name of an image in a registry; fully qualified once parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`, `ghcr.io`.
    pub registry: String,
    /// `library/debian`: path components, lower case.
    pub repository: String,
    /// `bookworm`; `None` if the text had none (see [`Reference::tag_or_latest`]).
    pub tag: Option<String>,
    /// The digest that pins it.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The tag that is meant: the one given, or `latest` if there is neither tag nor digest.
    pub fn tag_or_latest(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some("latest"),
        }
    }

    /// The same with `:latest` filled in if there is neither tag nor digest: the form images are stored under.
    pub fn with_default_tag(mut self) -> Self {
        self.tag = self.tag_or_latest().map(str::to_owned);
        self
    }

    /// The same repository, by digest and without a tag.
    pub fn by_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// As Docker shows it: without `docker.io/` and `library/`, tag and digest as they are.
    pub fn familiar(&self) -> String {
        let mut name = match (self.registry.as_str(), self.repository.strip_prefix("library/")) {
            (DOCKER_HUB, Some(name)) if !name.contains('/') => name.to_owned(),
            (DOCKER_HUB, _) => self.repository.clone(),
            (registry, _) => format!("{registry}/{}", self.repository),
        };
        self.push_suffix(&mut name);
        name
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    fn push_suffix(&self, name: &mut String) {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
    }
}

/// Text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("invalid reference: the image name is empty")]
    Empty,
    /// Upper case in the repository, the classic.
    #[error("invalid reference {0:?}: repository name must be lowercase")]
    Uppercase(String),
    /// 64 hex digits look like an image ID.
    #[error("invalid reference {0:?}: a repository name cannot be 64 hexadecimal digits")]
    LooksLikeId(String),
    /// More than 255 characters of repository name.
    #[error("invalid reference: the repository name is longer than 255 characters")]
    TooLong,
    /// Anything else.
    #[error("invalid reference format: {0:?}")]
    Format(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let format = || ReferenceError::Format(text.chars().take(300).collect());
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| format())?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; before it, a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first.to_owned(), rest.to_owned()),
            Some(_) => (DOCKER_HUB.to_owned(), name.to_owned()),
            None => (DOCKER_HUB.to_owned(), format!("library/{name}")),
        };
        let (registry, repository) = match registry.as_str() {
            "index.docker.io" | DOCKER_HUB if !repository.contains('/') => {
                (DOCKER_HUB.to_owned(), format!("library/{repository}"))
            }
            "index.docker.io" => (DOCKER_HUB.to_owned(), repository),
            _ => (registry, repository),
        };
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(text.to_owned()));
        }
        if !is_domain(&registry) || !repository.split('/').all(is_path_component) {
            return Err(format());
        }
        if repository.len() > 255 {
            return Err(ReferenceError::TooLong);
        }
        if !tag.is_none_or(is_tag) {
            return Err(format());
        }
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

fn is_registry(component: &str) -> bool {
    component.contains(['.', ':'])
        || component == "localhost"
        || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_ok && host_ok
}

/// `[a-z0-9]+` runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = self.name();
        self.push_suffix(&mut name);
        f.write_str(&name)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn familiar_names_are_qualified_and_back() {
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("me/app", "docker.io/me/app", "me/app"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/me/app:1", "docker.io/me/app:1", "me/app:1"),
            ("localhost/a", "localhost/a", "localhost/a"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x", "127.0.0.1:5000/x"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("ghcr.io/a__b/c--d.e", "ghcr.io/a__b/c--d.e", "ghcr.io/a__b/c--d.e"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("a:b@{digest}").parse().unwrap();
        assert_eq!((reference.tag.as_deref(), reference.digest), (Some("b"), Some(digest)));
        assert_eq!(format!("a@{digest}").parse::<Reference>().unwrap().tag_or_latest(), None);
        assert_eq!("a".parse::<Reference>().unwrap().tag_or_latest(), Some("latest"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            "A",
            "a:",
            "a:b:c",
            "-a",
            "a//b",
            "a/",
            "/a",
            "a@sha256:1",
            "a b",
            "a:-x",
            "a___b",
            "a.-b",
            "a..b",
            "http://x/y",
            "../x",
            "x.com:port/a",
            "a:b/c:d/e",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert!("Me/App".parse::<Reference>().is_err());
        assert!("0".repeat(64).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }
}
