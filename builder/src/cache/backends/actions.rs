//! `type=gha`: the cache service of GitHub Actions, in its second version.
//!
//! Not through OpenDAL, whose service finds exact keys only and takes the service's version from the environment. Here an
//! entry is written once and never again, and the oldest ones go when a repository has too many. A blob's key is its
//! digest, so that once is enough. An index gets a new key each time, `KEY#TIME`; the service gives the newest whose key
//! begins with `KEY#`.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use image::Digest;
use serde::{Deserialize, Serialize};
use store::registry::Client;
use store::registry::web::{Chunk, Fetched, Send, WebRequest};
use store::root::now;
use worker::error::WorkerError;

use crate::cache::CacheError;
use crate::cache::options::Objects;

/// Where the service is, below the URL of the results service.
const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService";
/// Entries of other programs, and of another version of ours, are not ours to read.
const VERSION: &str = "rbuild cache 1";
/// An entry goes in one piece if it is no longer than this, else in pieces of this length, bytes.
const PIECE: u64 = 32 << 20;

/// The cache service, as a job of GitHub Actions reaches it.
#[derive(Clone)]
pub(crate) struct Actions {
    client: Client,
    /// Of the results service, without a slash at the end.
    url: String,
    token: String,
    version: String,
}

/// Why the cache service did not give or take something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionsError {
    /// There is nothing to talk to.
    #[error(
        "{0} is not set: it is, for actions, in a job of GitHub Actions; for `run:` steps an action has to pass it on \
         (crazy-max/ghaction-github-runtime does)"
    )]
    Outside(&'static str),
    /// The first service.
    #[error("the first version of the cache service was switched off: leave `version` out")]
    Version,
    /// It cannot be reached.
    #[error(transparent)]
    Web(#[from] store::registry::web::WebError),
    /// It says no.
    #[error("the cache service answered {status} to {what}: {text}")]
    Refused {
        /// The request.
        what: &'static str,
        /// The status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// It says something else.
    #[error("could not read the answer of the cache service to {what}: {source}")]
    Answer {
        /// The request.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
}

#[derive(Serialize)]
struct Find<'a> {
    key: &'a str,
    restore_keys: &'a [&'a str],
    version: &'a str,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    signed_download_url: String,
    #[serde(default)]
    matched_key: String,
}

#[derive(Serialize)]
struct Create<'a> {
    key: &'a str,
    version: &'a str,
}

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    signed_upload_url: String,
}

#[derive(Serialize)]
struct Finish<'a> {
    key: &'a str,
    version: &'a str,
    size_bytes: u64,
}

#[derive(Deserialize)]
struct Finished {
    #[serde(default)]
    ok: bool,
}

impl std::fmt::Debug for Actions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actions").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Actions {
    /// Nothing is asked yet.
    pub(crate) fn open(objects: &Objects, client: &Client) -> Result<Self, ActionsError> {
        let setting = |name, variable| {
            let known = objects.settings.get(name).filter(|value| !value.is_empty());
            known.cloned().ok_or(ActionsError::Outside(variable))
        };
        if objects.settings.get("version").is_some_and(|version| version == "1") {
            return Err(ActionsError::Version);
        }
        Ok(Self {
            client: client.clone(),
            url: setting("url_v2", "ACTIONS_RESULTS_URL")?.trim_end_matches('/').to_owned(),
            token: setting("token", "ACTIONS_RUNTIME_TOKEN")?,
            version: Digest::of(VERSION.as_bytes()).hex(),
        })
    }

    /// Whether there is an entry `key`.
    pub(crate) async fn has(&self, key: &str) -> Result<bool, ActionsError> {
        Ok(self.find(key, &[]).await?.is_some_and(|found| found.matched_key == key))
    }

    /// The entry `key`, from its beginning.
    pub(crate) async fn read(&self, key: &str, limit: u64) -> Result<Option<Bytes>, ActionsError> {
        match self.find(key, &[]).await? {
            Some(found) if found.matched_key == key => self.download(&found, limit).await.map(Some),
            _ => Ok(None),
        }
    }

    /// What was last written under `key` with [`Actions::replace`].
    pub(crate) async fn newest(&self, key: &str, limit: u64) -> Result<Option<Bytes>, ActionsError> {
        let begin = format!("{key}#");
        match self.find(&begin, &[&begin]).await? {
            Some(found) if found.matched_key.starts_with(&begin) => {
                self.download(&found, limit).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Gives the bytes of the entry `key` to `take` as they come; `None`: all of them come again. `false`: there is none.
    pub(crate) async fn stream(
        &self,
        key: &str,
        limit: u64,
        mut take: impl AsyncFnMut(Option<Bytes>) -> Result<(), CacheError>,
    ) -> Result<bool, CacheError> {
        let Some(found) = self.find(key, &[]).await?.filter(|found| found.matched_key == key) else {
            return Ok(false);
        };
        let request = request(&found, limit);
        let Fetched::Body(mut body) = self.client.fetch(request).await.map_err(ActionsError::from)? else {
            unreachable!("it was not asked whether there is another version")
        };
        while let Some(chunk) = body.next().await.map_err(ActionsError::from)? {
            match chunk {
                Chunk::Data(bytes) => take(Some(bytes)).await?,
                Chunk::Restart => take(None).await?,
            }
        }
        Ok(true)
    }

    /// Writes a file as the entry `key`. `false`: there is one already, or somebody else writes it.
    pub(crate) async fn put(&self, key: &str, from: &Path, size: u64) -> Result<bool, CacheError> {
        let Some(url) = self.create(key).await? else { return Ok(false) };
        let failed = |source| WorkerError::Io { path: from.to_owned(), source };
        let file = File::open(from).map_err(failed)?;
        let piece = |at: u64| -> Result<Bytes, CacheError> {
            let len = usize::try_from(PIECE.min(size - at)).expect("a piece fits in memory");
            let mut bytes = vec![0; len];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, at).map_err(failed)?;
            Ok(bytes.into())
        };
        if size <= PIECE {
            self.upload(&url, piece(0)?).await?;
        } else {
            let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
            for (n, at) in (0..size).step_by(PIECE as usize).enumerate() {
                // Names of one length, in base64.
                let name =
                    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{n:09}"));
                let part =
                    format!("{}&comp=block&blockid={}", url, name.replace('=', "%3D").replace('+', "%2B"));
                self.send("a piece", "PUT", &part, &[], piece(at)?).await?;
                list.push_str(&format!("<Latest>{name}</Latest>"));
            }
            list.push_str("</BlockList>");
            self.send("the list of pieces", "PUT", &format!("{url}&comp=blocklist"), &[], list.into())
                .await?;
        }
        self.finish(key, size).await?;
        Ok(true)
    }

    /// Writes what [`Actions::newest`] then finds.
    pub(crate) async fn replace(&self, key: &str, bytes: Bytes) -> Result<(), ActionsError> {
        let key = format!("{key}#{}-{:08x}", now(), fastrand::u32(..));
        // Nobody else has this key: whoever is asked for it again had created it before.
        let Some(url) = self.create(&key).await? else { return Ok(()) };
        let size = bytes.len() as u64;
        self.upload(&url, bytes).await?;
        self.finish(&key, size).await
    }

    async fn find(&self, key: &str, restore_keys: &[&str]) -> Result<Option<Found>, ActionsError> {
        let what = "GetCacheEntryDownloadURL";
        let answer = self.call(what, &Find { key, restore_keys, version: &self.version }).await?;
        let found: Option<Found> = answer.map(|body| parse(what, &body)).transpose()?;
        Ok(found.filter(|found| found.ok && !found.signed_download_url.is_empty()))
    }

    /// Where to put an entry that is not there yet.
    async fn create(&self, key: &str) -> Result<Option<String>, ActionsError> {
        let what = "CreateCacheEntry";
        let answer = self.call(what, &Create { key, version: &self.version }).await?;
        let created: Option<Created> = answer.map(|body| parse(what, &body)).transpose()?;
        Ok(created.filter(|created| created.ok).map(|created| created.signed_upload_url))
    }

    async fn finish(&self, key: &str, size_bytes: u64) -> Result<(), ActionsError> {
        let what = "FinalizeCacheEntryUpload";
        let answer = self.call(what, &Finish { key, version: &self.version, size_bytes }).await?;
        let finished: Option<Finished> = answer.map(|body| parse(what, &body)).transpose()?;
        match finished {
            Some(Finished { ok: true }) => Ok(()),
            _ => Err(ActionsError::Refused { what, status: 200, text: "it is not ok".to_owned() }),
        }
    }

    /// Asks the service. `None`: there is no such entry, or there is one where none was to be.
    async fn call(&self, what: &'static str, body: &impl Serialize) -> Result<Option<Bytes>, ActionsError> {
        let body = serde_json::to_vec(body).expect("plain data");
        let headers = [
            ("Authorization", format!("Bearer {}", self.token)),
            ("Content-Type", "application/json".to_owned()),
        ];
        let url = format!("{}/{SERVICE}/{what}", self.url);
        match self.send(what, "POST", &url, &headers, body.into()).await {
            Ok(body) => Ok(Some(body)),
            Err(ActionsError::Refused { status: 404 | 409, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a whole entry to the blob storage behind the service, Azure's.
    async fn upload(&self, url: &str, bytes: Bytes) -> Result<(), ActionsError> {
        let headers = [("x-ms-blob-type", "BlockBlob".to_owned())];
        self.send("an entry", "PUT", url, &headers, bytes).await.map(drop)
    }

    async fn download(&self, found: &Found, limit: u64) -> Result<Bytes, ActionsError> {
        let Fetched::Body(mut body) = self.client.fetch(request(found, limit)).await? else {
            unreachable!("it was not asked whether there is another version")
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await? {
            match chunk {
                Chunk::Data(chunk) => bytes.extend_from_slice(&chunk),
                Chunk::Restart => bytes.clear(),
            }
        }
        Ok(bytes.into())
    }

    async fn send(
        &self,
        what: &'static str,
        method: &'static str,
        url: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Bytes, ActionsError> {
        let reply = self.client.send(&Send { method, url, headers, body }).await?;
        if (200..300).contains(&reply.status) {
            return Ok(reply.body);
        }
        let text: String = String::from_utf8_lossy(&reply.body).chars().take(300).collect();
        Err(ActionsError::Refused { what, status: reply.status, text })
    }
}

fn request(found: &Found, limit: u64) -> WebRequest {
    WebRequest {
        url: found.signed_download_url.clone(),
        authorization: None,
        validators: Default::default(),
        limit,
    }
}

fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, body: &[u8]) -> Result<T, ActionsError> {
    serde_json::from_slice(body).map_err(|source| ActionsError::Answer { what, source })
}
