//! A stand-in for the cache service of GitHub Actions: entries that are written once, found by key or by the beginning of
//! one, with Azure's blob storage behind signed URLs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::registry::Recorded;
use crate::web::{Page, Web};

/// The token that it wants.
pub const TOKEN: &str = "token-of-a-job";

/// Starts one. Its URL is what `ACTIONS_RESULTS_URL` is in a job.
pub fn actions_cache() -> Web {
    Web::of(|address| {
        let state = Mutex::new(State { address: address.to_owned(), ..State::default() });
        move |request: &Recorded| state.lock().unwrap_or_else(PoisonError::into_inner).answer(request)
    })
}

#[derive(Debug, Default)]
struct State {
    address: String,
    /// In the order in which they were made; the number is that of the blob.
    entries: Vec<Entry>,
    blobs: Vec<Vec<u8>>,
    /// Pieces that are in no blob yet.
    pieces: BTreeMap<(usize, String), Vec<u8>>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    version: String,
    is_complete: bool,
}

impl State {
    fn answer(&mut self, request: &Recorded) -> Page {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        match path.strip_prefix("/twirp/github.actions.results.api.v1.CacheService/") {
            Some(_) if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) => {
                status(401, r#"{"code":"unauthenticated"}"#)
            }
            Some(call) => self.call(call, &serde_json::from_slice(&request.body).unwrap_or_default()),
            None => match path.strip_prefix("/blob/").and_then(|n| n.parse().ok()) {
                Some(n) if n < self.blobs.len() && query.starts_with("sig=") => self.blob(request, n, query),
                _ => status(404, ""),
            },
        }
    }

    fn call(&mut self, call: &str, asked: &Value) -> Page {
        let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        let (key, version) = (text("key"), text("version"));
        // As the service: a version is a SHA-256 in hex, a key is short and has no comma.
        if version.len() != 64 || key.is_empty() || key.len() > 512 || key.contains(',') {
            return status(400, r#"{"code":"invalid_argument"}"#);
        }
        let at = self.entries.iter().position(|entry| entry.key == key && entry.version == version);
        let address = self.address.clone();
        let url = |n: usize| format!("http://{address}/blob/{n}?sig=signed");
        match call {
            "GetCacheEntryDownloadURL" => {
                let complete = |entry: &Entry| entry.is_complete && entry.version == version;
                let restore = asked["restore_keys"].as_array().cloned().unwrap_or_default();
                let begins = |entry: &Entry| {
                    restore
                        .iter()
                        .any(|begin| begin.as_str().is_some_and(|begin| entry.key.starts_with(begin)))
                };
                let newest = self.entries.iter().rposition(|entry| complete(entry) && begins(entry));
                match at.filter(|at| complete(&self.entries[*at])).or(newest) {
                    None => status(200, r#"{"ok":false}"#),
                    Some(n) => {
                        let found = json!({
                            "ok": true,
                            "signed_download_url": url(n),
                            "matched_key": self.entries[n].key,
                        });
                        status(200, &found.to_string())
                    }
                }
            }
            "CreateCacheEntry" if at.is_some() => status(409, r#"{"code":"already_exists"}"#),
            "CreateCacheEntry" => {
                self.entries.push(Entry { key, version, is_complete: false });
                self.blobs.push(Vec::new());
                let n = self.entries.len() - 1;
                status(200, &json!({ "ok": true, "signed_upload_url": url(n) }).to_string())
            }
            "FinalizeCacheEntryUpload" => {
                let Some(n) = at else { return status(404, r#"{"code":"not_found"}"#) };
                let is_whole = asked["size_bytes"].as_u64() == Some(self.blobs[n].len() as u64);
                self.entries[n].is_complete = is_whole;
                status(200, &json!({ "ok": is_whole, "entry_id": "1" }).to_string())
            }
            _ => status(404, r#"{"code":"bad_route"}"#),
        }
    }

    fn blob(&mut self, request: &Recorded, n: usize, query: &str) -> Page {
        if request.method == "GET" {
            return Page::new(self.blobs[n].clone());
        }
        let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        match field("comp") {
            None if request.header("x-ms-blob-type") == Some("BlockBlob") => {
                self.blobs[n].clone_from(&request.body);
            }
            Some("block") => {
                let name = field("blockid").unwrap_or_default().replace("%3D", "=").replace("%2B", "+");
                let _new = self.pieces.insert((n, name), request.body.clone());
            }
            Some("blocklist") => {
                let list = String::from_utf8_lossy(&request.body);
                let names = list.split("<Latest>").skip(1).filter_map(|rest| rest.split('<').next());
                self.blobs[n] = names
                    .flat_map(|name| self.pieces.get(&(n, name.to_owned())).cloned().unwrap_or_default())
                    .collect();
            }
            _ => return status(400, ""),
        }
        status(201, "")
    }
}

fn status(status: u16, body: &str) -> Page {
    Page { status: Some(status), ..Page::new(body) }
}
