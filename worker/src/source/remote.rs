//! Git repositories and files from the web: [`Remotes`] finds out what they are now and makes layers of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::layer::Kind;
use image::tree::Pick;
use image::{ChainId, ContentDigest, DiffId, Digest};
use serde::{Deserialize, Serialize};
use solver::Cancel;
use solver::key::ResultDigest;
use solver::op::{self, FileAction, Source};
use solver::record::Snapshot;
use solver::runner::Pin;
use store::lease::Item;
use store::pool;
use store::registry::{Client, Progress};
use store::root::Root;
use store::stat::StatCache;

use super::archive;
use super::git::{Commit, Git, GitAuth};
use super::http::{Download, Http};
use super::local::Directory;
use crate::error::WorkerError;
use crate::exec::Secret;
use crate::file;
use crate::worker::snapshot;

/// Bump when a commit becomes another layer than before.
const CHECKOUT_VERSION: u32 = 1;

/// What remotes may be asked with.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Secrets of the build, by id. `GIT_AUTH_TOKEN`, `GIT_AUTH_HEADER` (also with `.host`), `HTTP_AUTH_TOKEN_host` and
    /// `HTTP_AUTH_HEADER_host` are for remotes.
    pub secrets: BTreeMap<String, Secret>,
    /// Socket of the SSH agent for git.
    pub ssh_agent: Option<PathBuf>,
    /// Proxies for git, as variables.
    pub proxies: Vec<(String, String)>,
}

impl Access {
    fn secret(&self, id: &str) -> Option<String> {
        let bytes = self.secrets.get(id)?.expose();
        Some(String::from_utf8_lossy(bytes).trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Value of `Authorization` for a file at `url`.
    fn http(&self, url: &str) -> Option<String> {
        hosts(url).find_map(|host| {
            let token = || Some(format!("Bearer {}", self.secret(&format!("HTTP_AUTH_TOKEN_{host}"))?));
            self.secret(&format!("HTTP_AUTH_HEADER_{host}")).or_else(token)
        })
    }

    fn git(&self, remote: &str) -> GitAuth {
        let found = |suffix: &str| {
            let token = || {
                let token = self.secret(&format!("GIT_AUTH_TOKEN{suffix}"))?;
                Some(format!("basic {}", STANDARD.encode(format!("x-access-token:{token}"))))
            };
            self.secret(&format!("GIT_AUTH_HEADER{suffix}")).or_else(token)
        };
        let header = hosts(remote).find_map(|host| found(&format!(".{host}"))).or_else(|| found(""));
        GitAuth { header, ssh_agent: self.ssh_agent.clone(), proxies: self.proxies.clone() }
    }
}

/// The host of a URL as secrets name it: with its port, and without.
fn hosts(url: &str) -> impl Iterator<Item = &str> {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let bare = host.rsplit_once(':').map(|(bare, _)| bare).filter(|bare| !bare.is_empty());
    Some(host).filter(|host| !host.is_empty()).into_iter().chain(bare)
}

/// Finds git repositories and files from the web. What was found stays the same for the life of the value.
pub struct Remotes {
    root: Root,
    client: Rc<Client>,
    access: Access,
    pinned: RefCell<HashMap<Source, Pinned>>,
}

impl fmt::Debug for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remotes").field("root", &self.root.path()).finish_non_exhaustive()
    }
}

/// What a source is, by which it can be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The id of a commit.
    Commit(String),
    /// The digest of a file.
    Bytes(Digest),
}

#[derive(Clone, Debug)]
enum Pinned {
    Http(Download),
    Git(Commit),
}

/// What a commit became.
#[derive(Debug, Serialize, Deserialize)]
struct Checkout {
    layer: DiffId,
}

impl Remotes {
    /// Fetches through `client` into `root`.
    pub fn new(root: Root, client: Rc<Client>, access: Access) -> Self {
        Self { root, client, access, pinned: RefCell::default() }
    }

    /// What was found of `source`, if it was looked for.
    pub fn known(&self, source: &Source) -> Option<Known> {
        Some(match self.pinned.borrow().get(source)? {
            Pinned::Git(commit) => Known::Commit(commit.as_str().to_owned()),
            Pinned::Http(download) => Known::Bytes(download.digest),
        })
    }

    /// What `source` is now. No more is fetched than that takes.
    pub async fn pin(&self, source: &Source, progress: Progress) -> Result<Pin, WorkerError> {
        Ok(match self.pinned(source, &progress).await? {
            Pinned::Http(Download { layer, .. }) => Pin {
                result: Some(ResultDigest::image(ChainId::of(&[layer]))),
                snapshot: Some(snapshot(&[layer])),
            },
            Pinned::Git(commit) => {
                let name = checkout_name(source, &commit);
                let layer = self.checkout_layer(&name)?;
                Pin {
                    // Not of the layer, which is only known when the commit was fetched.
                    result: Some(ResultDigest::scratch().with_layer(ContentDigest::of(name.as_bytes()))),
                    snapshot: layer.map(|layer| snapshot(&[layer])),
                }
            }
        })
    }

    /// The files of `source`, as a layer that is here.
    pub async fn load(
        &self,
        source: &Source,
        progress: Progress,
        cancel: &Cancel,
    ) -> Result<Snapshot, WorkerError> {
        let layer = match (self.pinned(source, &progress).await?, source) {
            (Pinned::Http(download), _) => {
                self.http(source).load(&self.root, &self.client, &download, &progress).await?
            }
            (Pinned::Git(commit), _) => self.load_git(source, &commit, cancel).await?,
        };
        Ok(snapshot(&[layer]))
    }

    /// When `source` was made, seconds: the time of a commit, what a server says of a file, or the latest time of a file in
    /// an archive. `None`: it does not say.
    pub async fn time(&self, source: &Source, cancel: &Cancel) -> Result<Option<i64>, WorkerError> {
        if let Pinned::Http(download) = self.pinned(source, &Progress::none()).await?
            && let Some(modified) = download.validators.modified()
        {
            return Ok(Some(modified));
        }
        let snapshot = self.load(source, Progress::none(), cancel).await?;
        let layers = self.root.layers();
        let mut latest = None;
        for layer in &snapshot.layers {
            let index = layers.index(&layer.diff_id)?;
            for entry in index.entries() {
                let time = match (source, &entry.kind) {
                    (Source::Git { .. }, _) => Some(entry.mtime),
                    (_, Kind::File { size, offset, .. }) => {
                        let mut tar = layers.open_tar(&layer.diff_id)?;
                        let io = |source| WorkerError::Io { path: self.root.path().to_owned(), source };
                        tar.seek(SeekFrom::Start(*offset)).map_err(io)?;
                        let file = tar.take(*size);
                        pool::spawn(move || archive::latest(file)).await?
                    }
                    _ => None,
                };
                latest = latest.max(time);
            }
        }
        Ok(latest)
    }

    async fn pinned(&self, source: &Source, progress: &Progress) -> Result<Pinned, WorkerError> {
        if let Some(pinned) = self.pinned.borrow().get(source) {
            return Ok(pinned.clone());
        }
        let pinned = match source {
            Source::Http { .. } => {
                Pinned::Http(self.http(source).pin(&self.root, &self.client, progress).await?)
            }
            Source::Git { remote, .. } => Pinned::Git(git(source).resolve(&self.access.git(remote)).await?),
            _ => unreachable!("only git and http sources are remote"),
        };
        self.pinned.borrow_mut().insert(source.clone(), pinned.clone());
        Ok(pinned)
    }

    fn http<'a>(&self, source: &'a Source) -> Http<'a> {
        let Source::Http { url, checksum, filename, mode, owner } = source else {
            unreachable!("the caller looked")
        };
        Http {
            url,
            checksum: checksum.as_ref(),
            filename,
            mode: *mode,
            owner: *owner,
            authorization: self.access.http(url),
        }
    }

    fn checkout_layer(&self, name: &str) -> Result<Option<DiffId>, WorkerError> {
        let pin = self.root.pins().get(name)?;
        let checkout = pin.and_then(|pin| serde_json::from_slice::<Checkout>(&pin.value).ok());
        Ok(checkout.map(|checkout| checkout.layer))
    }

    async fn load_git(
        &self,
        source: &Source,
        commit: &Commit,
        cancel: &Cancel,
    ) -> Result<DiffId, WorkerError> {
        let name = checkout_name(source, commit);
        // Another build may be at it; then it is here when the lock is ours.
        let _lock = self.root.locks().lock(name.as_bytes()).await?;
        if let Some(layer) = self.checkout_layer(&name)? {
            // Held first, looked for after: a prune in between takes nothing that is then found.
            self.root.hold([Item::Layer(layer)])?;
            if self.root.layers().contains(&layer)? {
                return Ok(layer);
            }
        }
        let git = git(source);
        let work = self.root.work_dir()?;
        let files = git.checkout(commit, &self.access.git(git.remote), work.path()).await?;
        let (root, cancel) = (self.root.clone(), cancel.clone());
        let layer = pool::spawn(move || layer_of_directory(&root, &files, &cancel)).await??;
        work.close()?;
        let value = serde_json::to_vec(&Checkout { layer }).expect("a digest can be written");
        self.root.pins().put(&name, &value)?;
        Ok(layer)
    }
}

fn git(source: &Source) -> Git<'_> {
    let Source::Git { remote, reference, subdir, keep_git_dir, checksum, submodules } = source else {
        unreachable!("the caller looked")
    };
    Git {
        remote,
        reference: reference.as_deref(),
        subdir: subdir.as_deref(),
        keep_git_dir: *keep_git_dir,
        checksum: checksum.as_deref(),
        submodules: *submodules,
    }
}

/// Names the files of a commit: all that decides what they are.
fn checkout_name(source: &Source, commit: &Commit) -> String {
    let Git { remote, subdir, keep_git_dir, submodules, .. } = git(source);
    let parts = (CHECKOUT_VERSION, remote, commit.as_str(), subdir, keep_git_dir, submodules);
    format!("git {}", serde_json::to_string(&parts).expect("text can be written"))
}

/// Everything in `directory`, owned by root, as a layer.
fn layer_of_directory(root: &Root, directory: &Path, cancel: &Cancel) -> Result<DiffId, WorkerError> {
    let directory = Directory::open::<&str>(directory, &[])?;
    let all = [Pick { path: "/", wildcard: false, follow_symlinks: false, exclude: &[], parents: false }];
    let walked = directory.walk(&all, &StatCache::default(), cancel)?;
    let input = file::Input { tree: walked.tree, directory: Some(std::sync::Arc::new(directory)) };
    let op = op::File { base: None, actions: vec![FileAction::Copy(op::Copy::all(0, "/"))] };
    let options = file::Options { created: 0, earlier: None, temporary: root.temp_dir()?.to_owned() };
    let open_tar = |layer: &DiffId| root.layers().open_tar(layer);
    let (new, index) = file::run(&op, &[input], &open_tar, &options, cancel, root.layers().create()?)?;
    Ok(new.commit(index)?.diff_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(secrets: &[(&str, &str)]) -> Access {
        let secrets = secrets.iter();
        let secrets = secrets.map(|(id, value)| ((*id).to_owned(), Secret::new(value.as_bytes().to_vec())));
        Access { secrets: secrets.collect(), ..Access::default() }
    }

    #[test]
    fn secrets_are_for_the_host_in_their_name() {
        let access = access(&[
            ("HTTP_AUTH_TOKEN_a.example", "t\n"),
            ("HTTP_AUTH_HEADER_b.example:81", "Basic x"),
            ("GIT_AUTH_TOKEN", "any"),
            ("GIT_AUTH_HEADER.git.example", "basic y"),
        ]);
        assert_eq!(access.http("https://a.example/x").as_deref(), Some("Bearer t"));
        assert_eq!(access.http("https://u:p@a.example:8443/x?y").as_deref(), Some("Bearer t"));
        assert_eq!(access.http("https://b.example:81/x").as_deref(), Some("Basic x"));
        assert_eq!(access.http("https://b.example/x"), None);
        let header = |remote| access.git(remote).header.unwrap();
        assert_eq!(header("https://git.example/r.git"), "basic y");
        assert_eq!(header("https://other.example/r.git"), "basic eC1hY2Nlc3MtdG9rZW46YW55");
    }
}
