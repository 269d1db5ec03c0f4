//! Git repositories as sources: which commit a reference means, and a checkout of it.
//!
//! The `git` program does the work, in an environment where a repository or a URL can make it run nothing: no system or
//! user configuration, no hooks, no prompts, no `ext::` transport, every word that comes from outside after `--`.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use solver::op::redacted;
use tokio::process::Command;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Git<'a> {
    /// Remote without fragment and query.
    pub remote: &'a str,
    /// Branch, tag, full ref or commit; `None` for the default branch.
    pub reference: Option<&'a str>,
    /// Directory in the repository that becomes the root.
    pub subdir: Option<&'a str>,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Commit, or a prefix of one, that it must be.
    pub checksum: Option<&'a str>,
    /// Fetch submodules.
    pub submodules: bool,
}

/// How to log in. Never shown, never in a key.
#[derive(Clone, Default)]
pub struct GitAuth {
    /// Value of an `Authorization` header for an http(s) remote; its submodules on other hosts do not get it.
    pub header: Option<String>,
    /// Socket of an SSH agent.
    pub ssh_agent: Option<PathBuf>,
    /// Proxies, as variables.
    pub proxies: Vec<(String, String)>,
}

impl fmt::Debug for GitAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitAuth")
            .field("header", &self.header.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

/// A full commit id: 40 (or 64, SHA-256) lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit(String);

impl Commit {
    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = matches!(text.len(), 40 | 64)
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        hex.then(|| Self(text.to_owned()))
    }
}

/// Why a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// No `git` program.
    #[error("could not run git: {0} (is it installed?)")]
    Program(#[source] io::Error),
    /// git said no. Its words, with user names and passwords of URLs taken out.
    #[error("could not {what} {remote}: {message}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// From where.
        remote: String,
        /// git's own message.
        message: String,
    },
    /// The remote has no such branch, tag or commit.
    #[error("repository {remote} does not contain ref {reference}")]
    NoRef {
        /// Where.
        remote: String,
        /// What.
        reference: String,
    },
    /// The reference or remote looks like an option.
    #[error("invalid git reference or remote {0:?}")]
    Invalid(String),
    /// The commit is another than the one asked for.
    #[error("expected checksum to match {expected}, got {actual}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// What the reference means.
        actual: String,
    },
    /// The directory in the repository is missing, no directory, or leads out of it.
    #[error("could not open directory {subdir} of {remote}: {source}")]
    Subdir {
        /// Which.
        subdir: String,
        /// Where.
        remote: String,
        /// Why.
        source: io::Error,
    },
    /// The checkout could not be written.
    #[error("could not write checkout {path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Git<'_> {
    /// The commit that the reference means now. Asks the remote unless the reference is a full commit id.
    pub async fn resolve(&self, auth: &GitAuth) -> Result<Commit, GitError> {
        self.check_words()?;
        let commit = match self.reference.map(Commit::parse) {
            Some(Some(commit)) => commit,
            _ => self.ask_remote(auth).await?,
        };
        match self.checksum {
            Some(expected) if !commit.0.starts_with(expected) || expected.len() < 7 => {
                Err(GitError::Checksum { expected: expected.to_owned(), actual: commit.0 })
            }
            _ => Ok(commit),
        }
    }

    /// Checks `commit` out below `directory`, which is empty, and returns the directory that is the source's root.
    ///
    /// The same commit always gives the same files: modes are 0644 or 0755, times those of the commit.
    pub async fn checkout(
        &self,
        commit: &Commit,
        auth: &GitAuth,
        directory: &Path,
    ) -> Result<PathBuf, GitError> {
        self.check_words()?;
        let repository = directory.join("repository");
        fs::create_dir(&repository).map_err(|source| GitError::Io { path: repository.clone(), source })?;
        let git = async |what, args: &[&str]| self.run(what, auth, Some(&repository), args).await;
        git("initialise a repository for", &["-c", "init.defaultBranch=main", "init", "--quiet"]).await?;
        git("prepare", &["remote", "add", "origin", "--", self.remote]).await?;
        self.fetch(commit, &git).await?;
        git("check out", &["checkout", "--quiet", "--force", "--detach", &commit.0]).await?;
        if self.submodules && repository.join(".gitmodules").is_file() {
            let update = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
            git("fetch submodules of", &update).await?;
        }
        let time = git("look into", &["show", "--no-patch", "--format=%ct", &commit.0]).await?;
        let time = time.trim().parse().unwrap_or(0);
        let root = self.subdirectory(&repository)?;
        if self.keep_git_dir {
            self.scrub(&repository, auth).await?;
        } else {
            remove_git_dirs(&repository)?;
        }
        normalise(&root, time)?;
        Ok(root)
    }

    /// Fetches as little as the server lets us: the commit, else what its reference names, else all branches and tags.
    async fn fetch(
        &self,
        commit: &Commit,
        git: &impl AsyncFn(&'static str, &[&str]) -> Result<String, GitError>,
    ) -> Result<(), GitError> {
        let by_commit = ["fetch", "--quiet", "--depth=1", "--no-tags", "origin", "--", &commit.0];
        if git("fetch", &by_commit).await.is_ok() {
            return Ok(());
        }
        let reference = self.reference.unwrap_or("HEAD");
        let object = format!("{}^{{commit}}", commit.0);
        let has = ["cat-file", "-e", &object];
        let by_ref = ["fetch", "--quiet", "--depth=1", "--no-tags", "origin", "--", reference];
        if git("fetch", &by_ref).await.is_ok() && git("look into", &has).await.is_ok() {
            return Ok(());
        }
        let all = ["fetch", "--quiet", "--tags", "origin", "--", "+refs/heads/*:refs/remotes/origin/*"];
        git("fetch", &all).await?;
        match git("look into", &has).await {
            Err(GitError::Failed { .. }) => {
                Err(GitError::NoRef { remote: redacted(self.remote), reference: commit.0.clone() })
            }
            result => result.map(drop),
        }
    }

    fn check_words(&self) -> Result<(), GitError> {
        let transport = self.remote.split_once("::").is_some();
        for word in [Some(self.remote), self.reference].into_iter().flatten() {
            if word.is_empty() || word.starts_with('-') || word.contains(['\0', '\n']) || transport {
                return Err(GitError::Invalid(word.to_owned()));
            }
        }
        Ok(())
    }

    async fn ask_remote(&self, auth: &GitAuth) -> Result<Commit, GitError> {
        let reference = self.reference.unwrap_or("HEAD");
        let listing = self.run("list the refs of", auth, None, &["ls-remote", "--", self.remote]).await?;
        find_ref(&listing, reference)
            .ok_or_else(|| GitError::NoRef { remote: redacted(self.remote), reference: reference.to_owned() })
    }

    fn subdirectory(&self, repository: &Path) -> Result<PathBuf, GitError> {
        let Some(subdir) =
            self.subdir.map(|dir| dir.trim_matches('/')).filter(|dir| !matches!(*dir, "" | "."))
        else {
            return Ok(repository.to_owned());
        };
        let open = || -> io::Result<PathBuf> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(repository, flags, Mode::empty())?;
            // A symbolic link is refused even if it stays inside: what is walked must be what is named.
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            rustix::fs::openat2(root, subdir, flags, Mode::empty(), resolve)?;
            Ok(repository.join(subdir))
        };
        open().map_err(|source| GitError::Subdir {
            subdir: subdir.to_owned(),
            remote: redacted(self.remote),
            source,
        })
    }

    /// Takes credentials and traces of the fetch out of a `.git` that is kept.
    async fn scrub(&self, repository: &Path, auth: &GitAuth) -> Result<(), GitError> {
        let url = redacted(self.remote);
        self.run("clean", auth, Some(repository), &["remote", "set-url", "origin", "--", &url]).await?;
        for name in ["FETCH_HEAD", "ORIG_HEAD", "logs", "hooks"] {
            remove(&repository.join(".git").join(name))?;
        }
        Ok(())
    }

    async fn run(
        &self,
        what: &'static str,
        auth: &GitAuth,
        dir: Option<&Path>,
        args: &[&str],
    ) -> Result<String, GitError> {
        let mut command = Command::new("git");
        command
            .args(["-c", "protocol.ext.allow=never", "-c", "protocol.file.allow=user"])
            .args([
                "-c",
                "core.hooksPath=/dev/null",
                "-c",
                "core.fsmonitor=false",
                "-c",
                "advice.detachedHead=false",
            ])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_SSH_COMMAND", "ssh -F /dev/null -o BatchMode=yes")
            .envs(auth.proxies.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // A build that is given up leaves no transfer behind.
            .kill_on_drop(true);
        // Configuration by variable: arguments would show the header to every user of the machine.
        if let (Some(header), Some(origin)) = (&auth.header, origin(self.remote)) {
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", format!("http.{origin}/.extraheader"))
                .env("GIT_CONFIG_VALUE_0", format!("Authorization: {header}"));
        }
        if let Some(agent) = &auth.ssh_agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        match dir {
            Some(dir) => command.current_dir(dir),
            None => command.current_dir("/"),
        };
        let output = command.output().await.map_err(GitError::Program)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message =
            String::from_utf8_lossy(&output.stderr).trim().replace(self.remote, &redacted(self.remote));
        Err(GitError::Failed { what, remote: redacted(self.remote), message })
    }
}

/// Finds what `reference` means in the output of `ls-remote`: the exact name first, then a branch, then a tag; an
/// annotated tag means the commit it points to.
fn find_ref(listing: &str, reference: &str) -> Option<Commit> {
    let refs: Vec<(&str, &str)> = listing.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |name: &str| refs.iter().find(|(_, ref_name)| *ref_name == name).map(|(commit, _)| *commit);
    let names = [reference.to_owned(), format!("refs/heads/{reference}"), format!("refs/tags/{reference}")];
    names.iter().find_map(|name| find(&format!("{name}^{{}}")).or_else(|| find(name))).and_then(Commit::parse)
}

/// Scheme and host of an http(s) URL.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let host = rest.split('/').next().unwrap_or(rest);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    Some(format!("{scheme}://{host}"))
}

/// Gives everything below `root` the time `seconds`, and modes that do not depend on who checked it out.
fn normalise(root: &Path, seconds: i64) -> Result<(), GitError> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        let error = |source| GitError::Io { path: path.clone(), source };
        let metadata = fs::symlink_metadata(&path).map_err(error)?;
        let mode = match metadata.permissions().mode() {
            _ if metadata.is_dir() => 0o755,
            mode if mode & 0o100 != 0 => 0o755,
            _ => 0o644,
        };
        if !metadata.is_symlink() {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(error)?;
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).map_err(error)? {
                paths.push(entry.map_err(error)?.path());
            }
        }
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| error(errno.into()))?;
    }
    Ok(())
}

/// Removes `.git` of the repository and the `.git` files or directories of its submodules.
fn remove_git_dirs(directory: &Path) -> Result<(), GitError> {
    let error = |source| GitError::Io { path: directory.to_owned(), source };
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(error)? {
            let entry = entry.map_err(error)?;
            if entry.file_name() == ".git" {
                remove(&entry.path())?;
            } else if entry.file_type().map_err(error)?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), GitError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.map_err(|source| GitError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    fn sh(dir: &Path, script: &str) -> String {
        let output =
            std::process::Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn repository() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let script = "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
            GIT_COMMITTER_EMAIL=a@b; git init -q -b main .; mkdir -p app; echo 1 > app/x; ln -s / evil; git add .; \
            git commit -qm 1; git tag -a v1 -m v1; echo 2 > app/x; git commit -qam 2; git branch side v1";
        sh(dir.path(), script);
        let remote = format!("file://{}", dir.path().display());
        (dir, remote)
    }

    fn source(remote: &str) -> Git<'_> {
        Git { remote, reference: None, subdir: None, keep_git_dir: false, checksum: None, submodules: true }
    }

    #[test]
    fn references_mean_commits_and_are_checked_out() {
        let (dir, remote) = repository();
        let auth = GitAuth::default();
        let head = sh(dir.path(), "git rev-parse main");
        let v1 = sh(dir.path(), "git rev-parse 'v1^{commit}'");
        let resolve =
            |reference| block(Git { reference, ..source(&remote) }.resolve(&auth)).map(|commit| commit.0);
        assert_eq!(resolve(None).unwrap(), head);
        assert_eq!(resolve(Some("v1")).unwrap(), v1);
        assert_eq!(resolve(Some("side")).unwrap(), v1);
        assert_eq!(resolve(Some("refs/heads/main")).unwrap(), head);
        assert!(matches!(resolve(Some("nope")), Err(GitError::NoRef { .. })));
        for (reference, content) in [("v1", "1\n"), ("main", "2\n"), (v1.as_str(), "1\n")] {
            let out = tempfile::tempdir().unwrap();
            let git = Git { reference: Some(reference), subdir: Some("app"), ..source(&remote) };
            let root =
                block(async { git.checkout(&git.resolve(&auth).await.unwrap(), &auth, out.path()).await })
                    .unwrap();
            assert_eq!(fs::read_to_string(root.join("x")).unwrap(), content);
            assert!(!out.path().join("repository/.git").exists());
            let metadata = fs::metadata(root.join("x")).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o644);
            let time = sh(dir.path(), &format!("git show -s --format=%ct '{reference}^{{commit}}'"));
            assert_eq!(
                std::os::unix::fs::MetadataExt::mtime(&metadata).to_string(),
                time.lines().last().unwrap()
            );
        }
    }

    #[test]
    fn a_checksum_must_match() {
        let (dir, remote) = repository();
        let head = sh(dir.path(), "git rev-parse main");
        let auth = GitAuth::default();
        assert!(block(Git { checksum: Some(&head[..12]), ..source(&remote) }.resolve(&auth)).is_ok());
        let wrong = Git { checksum: Some("0123456789ab"), ..source(&remote) };
        assert!(matches!(block(wrong.resolve(&auth)), Err(GitError::Checksum { .. })));
    }

    #[test]
    fn words_that_git_would_obey_are_refused() {
        let (_dir, remote) = repository();
        let auth = GitAuth::default();
        let marker = tempfile::tempdir().unwrap();
        let evil = format!("--upload-pack=touch {}/x", marker.path().display());
        assert!(block(Git { reference: Some(&evil), ..source(&remote) }.resolve(&auth)).is_err());
        let transport = format!("ext::sh -c touch% {}/x", marker.path().display());
        assert!(block(source(&transport).resolve(&auth)).is_err());
        assert!(block(source("-oProxyCommand=x").resolve(&auth)).is_err());
        assert!(!marker.path().join("x").exists());
    }

    #[test]
    fn a_subdirectory_never_leads_out() {
        let (_dir, remote) = repository();
        let auth = GitAuth::default();
        for subdir in ["evil/etc", "../..", "missing", "app/x"] {
            let out = tempfile::tempdir().unwrap();
            let git = Git { subdir: Some(subdir), ..source(&remote) };
            let result = block(async { git.checkout(&git.resolve(&auth).await?, &auth, out.path()).await });
            assert!(matches!(result, Err(GitError::Subdir { .. })), "{subdir}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        assert!(
            !format!("{:?}", GitAuth { header: Some("secret".into()), ..GitAuth::default() })
                .contains("secret")
        );
    }
}
