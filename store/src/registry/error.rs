//! What can go wrong with a registry, told apart by what a user can do about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use image::Digest;
use image::manifest::DocumentError;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::credentials::CredentialsError;
use super::retry::tries;

/// A request that a registry did not serve.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry does not know us, or no longer.
    #[error("could not log in to {registry}: {reason}")]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was tried, with which credentials, and what came back.
        reason: String,
    },
    /// The registry knows us and says no.
    #[error("access to {registry} denied: {scope} was not granted {login}: {answer}")]
    Denied {
        /// The registry.
        registry: String,
        /// The scope that is missing, as token servers name it (`repository:a/b:pull,push`).
        scope: String,
        /// Whose rights those are: `to user x (from ~/.docker/config.json)` or `anonymously`.
        login: String,
        /// The answer.
        answer: Box<Answer>,
    },
    /// There is no such manifest, tag or blob.
    #[error("could not find {what}: {answer}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The answer.
        answer: Box<Answer>,
    },
    /// The registry understood and refused; asking again would not help.
    #[error("registry refused: {0}")]
    Refused(Box<Answer>),
    /// The registry was busy or broken for longer than we wait.
    #[error("registry unavailable after {}: {answer}", tries(*attempts, *waited))]
    Unavailable {
        /// How often it was asked.
        attempts: u32,
        /// How long altogether.
        waited: Duration,
        /// The last answer.
        answer: Box<Answer>,
    },
    /// The registry wants us to come back later than we are ready to wait.
    #[error("registry asks to wait {}s: {answer}", wait.as_secs())]
    RetryLater {
        /// How long it wants us to wait.
        wait: Duration,
        /// The answer.
        answer: Box<Answer>,
    },
    /// No answer: name resolution, connection, TLS, or a broken or stalled transfer.
    #[error("could not {method} {url} ({}): {cause}", tries(*attempts, *waited))]
    Network {
        /// The method.
        method: Method,
        /// The address, without secrets.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// How long altogether.
        waited: Duration,
        /// What broke.
        cause: NetworkCause,
    },
    /// The registry gave bytes that are not what was asked for.
    #[error("registry gave wrong content for {what}: {reason}")]
    Corrupt {
        /// What was asked for.
        what: String,
        /// In which way it is wrong.
        reason: String,
    },
    /// The answer breaks the protocol.
    #[error("could not {method} {url}: {reason}")]
    Protocol {
        /// The method.
        method: Method,
        /// The address, without secrets.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A manifest or index that is none, or one we do not read.
    #[error("could not read the manifest of {reference}: {source}")]
    Document {
        /// The image.
        reference: String,
        /// What is wrong.
        #[source]
        source: DocumentError,
    },
    /// The credentials of this machine cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The configuration for a registry (mirrors, certificates) is not usable.
    #[error("could not use the configuration of registry {registry}: {reason}")]
    Config {
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The bytes to upload could not be produced.
    #[error("could not read the data to upload: {0}")]
    Source(#[source] Box<dyn Error + Send + Sync>),
}

/// What a user can do about a [`RegistryError`]: the builder maps it to hints and an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Log in, or ask for rights.
    Auth,
    /// Check the name.
    NotFound,
    /// Try again later, check the network.
    Network,
    /// The registry will not take or give this.
    Refused,
    /// Content was tampered with or damaged.
    Corrupt,
    /// Something on this machine: configuration, credentials, the data to upload.
    Local,
}

impl RegistryError {
    /// Which kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Unauthorized { .. } | Self::Denied { .. } => Class::Auth,
            Self::NotFound { .. } => Class::NotFound,
            Self::Unavailable { .. } | Self::RetryLater { .. } | Self::Network { .. } => Class::Network,
            Self::Refused(_) | Self::Protocol { .. } | Self::Document { .. } => Class::Refused,
            Self::Corrupt { .. } => Class::Corrupt,
            Self::Credentials(_) | Self::Config { .. } | Self::Source(_) => Class::Local,
        }
    }

    /// The registry's answer, if there was one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Denied { answer, .. }
            | Self::NotFound { answer, .. }
            | Self::Refused(answer)
            | Self::Unavailable { answer, .. }
            | Self::RetryLater { answer, .. } => Some(answer),
            _ => None,
        }
    }

    /// Whether the registry misses a blob that it said it had.
    pub fn is_blob_unknown(&self) -> bool {
        self.answer().is_some_and(|answer| {
            answer.codes.iter().any(|code| matches!(code.as_str(), "BLOB_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN"))
        })
    }

    pub(super) fn digest(what: impl fmt::Display, expected: Digest, actual: Digest) -> Self {
        Self::Corrupt { what: what.to_string(), reason: format!("expected digest {expected}, got {actual}") }
    }
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum NetworkCause {
    /// Name resolution, connection, TLS or HTTP.
    #[error("{}", Chain(.0))]
    Http(#[source] reqwest::Error),
    /// No response headers in time.
    #[error("no answer within {}s", .0.as_secs_f32())]
    NoAnswer(Duration),
    /// No token in time.
    #[error("no token within {}s", .0.as_secs_f32())]
    NoToken(Duration),
    /// The transfer crawled.
    #[error("transfer stalled: less than {bytes} bytes in {}s", window.as_secs_f32())]
    Stalled {
        /// The least that has to pass in a window.
        bytes: u64,
        /// The length of a window.
        window: Duration,
    },
    /// The body ended early.
    #[error("connection closed after {got} of {expected} bytes")]
    Truncated {
        /// Bytes received.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
}

/// An error with all its causes on one line; reqwest's own message names the URL only.
struct Chain<'a>(&'a reqwest::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut source: Option<&dyn Error> = Error::source(self.0);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        if text.is_empty() {
            // Without a source the message is all there is; its URL may hold a signature.
            text = self.0.to_string();
            if let Some(url) = self.0.url() {
                text = text.replace(url.as_str(), &redacted(url));
            }
        }
        f.write_str(&text)
    }
}

/// An HTTP answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The method.
    pub method: Method,
    /// The address, without secrets.
    pub url: String,
    /// The status.
    pub status: StatusCode,
    /// The registry's own codes: `MANIFEST_INVALID`, `DENIED`.
    pub codes: Vec<String>,
    /// The registry's own message.
    pub message: Option<String>,
}

impl Answer {
    /// Reads what a registry says in the body of an error (distribution-spec, "Error Codes"), or a token server
    /// (`{"error": ..}`, `{"details": ..}`).
    pub(super) fn new(method: Method, url: &Url, status: StatusCode, body: &[u8]) -> Self {
        let (codes, message) = diagnose(body);
        Self { method, url: redacted(url), status, codes, message }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.method, self.url, self.status)?;
        if !self.codes.is_empty() {
            write!(f, ": {}", self.codes.join(", "))?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

fn diagnose(body: &[u8]) -> (Vec<String>, Option<String>) {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Diagnostic>,
        #[serde(default)]
        error: Option<String>,
        #[serde(default)]
        error_description: Option<String>,
        #[serde(default, alias = "message")]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Diagnostic {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        detail: serde_json::Value,
    }
    let Ok(body_fields) = serde_json::from_slice::<Body>(body) else {
        let text = String::from_utf8_lossy(body);
        let is_html = text.trim_start().starts_with('<');
        return (Vec::new(), (!is_html).then(|| one_line(&text)).filter(|text| !text.is_empty()));
    };
    if body_fields.errors.is_empty() {
        let message = body_fields.error_description.or(body_fields.details).map(|text| one_line(&text));
        return (body_fields.error.map(|code| one_line(&code)).into_iter().collect(), message);
    }
    let mut codes = Vec::new();
    let mut messages = Vec::new();
    for error in body_fields.errors.iter().take(5) {
        codes.push(one_line(&error.code));
        let mut message = error.message.as_deref().map(one_line).unwrap_or_default();
        if !error.detail.is_null() {
            message.push_str(&format!(" ({})", one_line(&error.detail.to_string())));
        }
        messages.push(message.trim().to_owned());
    }
    messages.retain(|message| !message.is_empty());
    (codes, (!messages.is_empty()).then(|| messages.join("; ")))
}

/// Text from outside, fit for a terminal: no control characters, at most 300 characters.
pub(super) fn one_line(text: &str) -> String {
    let clean: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    clean.trim().to_owned()
}

/// A URL without userinfo and without the values of its query, where signatures and tokens are.
pub(super) fn redacted(url: &Url) -> String {
    let mut clean = url.clone();
    // Fails only for URLs that cannot have userinfo.
    let _ = clean.set_username("");
    let _ = clean.set_password(None);
    if url.query().is_some() {
        clean.set_query(None);
        let mut pairs = clean.query_pairs_mut();
        for (name, value) in url.query_pairs() {
            // What the distribution protocol itself puts there is no secret and helps to understand.
            let known = matches!(
                &*name,
                "digest" | "mount" | "from" | "ns" | "scope" | "service" | "n" | "last" | "account"
            );
            pairs.append_pair(&name, if known { &value } else { "xxxxx" });
        }
    }
    clean.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_registry_says_is_kept() {
        let url = Url::parse("https://u:p@r.example/v2/a/manifests/x?sig=secret&digest=sha256:1").unwrap();
        let answer = |body: &str| Answer::new(Method::PUT, &url, StatusCode::BAD_REQUEST, body.as_bytes());
        let given = answer(r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no","detail":{"a":1}}]}"#);
        assert_eq!(given.codes, ["MANIFEST_INVALID"]);
        assert_eq!(
            given.to_string(),
            "PUT https://r.example/v2/a/manifests/x?sig=xxxxx&digest=sha256%3A1: 400 Bad Request: \
             MANIFEST_INVALID: no ({\"a\":1})"
        );
        assert_eq!(answer(r#"{"details":"incorrect username"}"#).message.unwrap(), "incorrect username");
        assert_eq!(answer("plain\n\x1b[31mtext").message.unwrap(), "plain  [31mtext");
        assert_eq!(answer("<html>..").message, None);
        assert_eq!(answer("").message, None);
    }

    #[test]
    fn a_missing_blob_is_recognised_by_its_code() {
        let url = Url::parse("https://r/").unwrap();
        let refused = |body: &str| {
            RegistryError::Refused(Box::new(Answer::new(
                Method::PUT,
                &url,
                StatusCode::BAD_REQUEST,
                body.as_bytes(),
            )))
        };
        assert!(refused(r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#).is_blob_unknown());
        assert!(!refused(r#"{"errors":[{"code":"MANIFEST_INVALID"}]}"#).is_blob_unknown());
    }
}
