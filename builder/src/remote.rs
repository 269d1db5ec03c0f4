//! Contexts and Dockerfiles that are elsewhere: git repositories, archives and files on the web.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;

use frontend::download;
use frontend::git::GitUrl;
use image::DiffId;
use image::layer::LayerIndex;
use image::tree::Tree;
use solver::op::{Source, redacted};
use store::registry::Progress;
use store::root::Root;
use worker::file;
use worker::source::remote::Remotes;

use crate::failure::{Class, Failure, OrFail as _};
use crate::progress::{Handle, Task};

/// What a file is called that is a context or a Dockerfile, as in BuildKit.
const FILE_NAME: &str = "context";

/// The source of a context that is a URL, or `github.com/user/repository`.
pub(crate) fn context_source(url: &str, keep_git_dir: bool) -> Result<Source, Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid context {url:?}: {why}"));
    let url = match url.starts_with("github.com/") {
        true => github(url),
        false => url.to_owned(),
    };
    if let Some(git) = GitUrl::parse(&url) {
        let mut git = git.map_err(|error| invalid(&error.to_string()))?;
        git.keep_git_dir = git.keep_git_dir.or(Some(keep_git_dir));
        return Ok(git.into_source());
    }
    if !download::is_http(&url) {
        return Err(invalid("it is neither a git repository nor a file on the web"));
    }
    Ok(file_source(&url))
}

/// The source of a single file.
pub(crate) fn file_source(url: &str) -> Source {
    let filename = FILE_NAME.to_owned();
    Source::Http { url: url.to_owned(), checksum: None, filename, mode: None, owner: None }
}

/// The URL that the short name of a repository stands for.
fn github(short: &str) -> String {
    let end = short.find(['#', '?']).unwrap_or(short.len());
    let (repository, rest) = short.split_at(end);
    let repository = repository.trim_end_matches('/');
    let suffix = if repository.ends_with(".git") { "" } else { ".git" };
    format!("https://{repository}{suffix}{rest}")
}

/// Fetches sources outside of a solve.
#[derive(Debug)]
pub(crate) struct Fetcher<'a> {
    pub(crate) root: &'a Root,
    pub(crate) remotes: &'a Rc<Remotes>,
    pub(crate) runtime: &'a tokio::runtime::Runtime,
    /// Where to tell of it.
    pub(crate) progress: Option<Handle>,
}

/// The files of a source.
#[derive(Debug)]
pub(crate) struct Fetched {
    root: Root,
    tree: Tree,
}

impl Fetcher<'_> {
    /// Fetches `source`, unless it is here as it is now.
    pub(crate) fn fetch(&self, source: &Source) -> Result<Fetched, Failure> {
        let task = self.progress.as_ref().map(|progress| progress.task(&task_name(source)));
        let report = task.as_ref().map_or_else(Progress::none, |task| task.reporter("transferring"));
        let loaded = self.runtime.block_on(crate::commands::until_interrupted(async |cancel| {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Failure::new(Class::Cancelled, "cancelled")),
                loaded = self.remotes.load(source, report, &cancel) => {
                    loaded.map_err(|error| Failure::from_worker(&error))
                }
            }
        }));
        let snapshot = match (loaded, task) {
            (Ok(snapshot), task) => {
                task.into_iter().for_each(Task::done);
                snapshot
            }
            (Err(failure), Some(task)) if failure.class != Class::Cancelled => {
                task.failed(&failure.message);
                return Err(failure);
            }
            (Err(failure), _) => return Err(failure),
        };
        let layers = self.root.layers();
        let indexes = snapshot.layers.iter().map(|layer| layers.index(&layer.diff_id));
        let indexes: Vec<Arc<LayerIndex>> = indexes.collect::<Result<_, _>>()?;
        Ok(Fetched { root: self.root.clone(), tree: Tree::of_layers(indexes) })
    }
}

/// What fetching a source is called, as in BuildKit.
fn task_name(source: &Source) -> String {
    match source {
        Source::Git { remote, .. } => format!("[internal] load git source {}", redacted(remote)),
        _ => "[internal] load remote build context".to_owned(),
    }
}

impl Fetched {
    /// Reads a file whole, but for what is past `limit`; links never lead out of the source. `None`: it is not there.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let layers = self.root.layers();
        let open_tar = |layer: &DiffId| layers.open_tar(layer);
        file::read(&self.tree, path, &open_tar, limit).or_fail(Class::Dockerfile)
    }

    /// The one file that a download is.
    pub(crate) fn file(&self) -> Result<Box<dyn Read>, Failure> {
        let inode = self.tree.get(FILE_NAME.as_bytes()).and_then(|node| node.inode());
        match inode.map(|inode| inode.location) {
            Some(image::tree::Location::Layer { layer, offset, size }) => {
                let mut tar: File = self.root.layers().open_tar(&layer)?;
                tar.seek(SeekFrom::Start(offset)).or_fail(Class::Host)?;
                Ok(Box::new(tar.take(size)))
            }
            // An empty file has no place.
            _ => Ok(Box::new(std::io::empty())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_kind_of_context_they_are() {
        let remote = |url: &str| match context_source(url, false) {
            Ok(Source::Git { remote, reference, .. }) => {
                format!("git {remote} {}", reference.unwrap_or_default())
            }
            Ok(Source::Http { url, .. }) => format!("http {url}"),
            Ok(other) => panic!("{other:?}"),
            Err(_) => "wrong".to_owned(),
        };
        assert_eq!(remote("github.com/a/b"), "git https://github.com/a/b.git ");
        assert_eq!(remote("github.com/a/b.git#v1:d"), "git https://github.com/a/b.git v1");
        assert_eq!(remote("github.com/a/b?ref=v1"), "git https://github.com/a/b.git v1");
        assert_eq!(remote("https://h/r.git"), "git https://h/r.git ");
        assert_eq!(remote("https://h/c.tar.gz"), "http https://h/c.tar.gz");
        assert_eq!(remote("https://h/r.git?what=1"), "wrong");
    }

    #[test]
    fn the_git_directory_is_kept_if_query_or_argument_say_so() {
        let keeps = |url: &str, argument| {
            matches!(context_source(url, argument), Ok(Source::Git { keep_git_dir: true, .. }))
        };
        assert!(!keeps("https://h/r.git", false) && keeps("https://h/r.git", true));
        assert!(keeps("https://h/r.git?keep-git-dir=1", false));
        assert!(!keeps("https://h/r.git?keep-git-dir=0", true));
    }
}
