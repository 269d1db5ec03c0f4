//! Git URLs, as ADD and contexts take them: `git@host:path`, `ssh://`, `git://`, `http(s)://....git`, with
//! `#ref:subdir` or `?ref=..&subdir=..`.

use crate::value::boolean;
use solver::op::Source;

/// A git URL taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitUrl {
    /// What is cloned: no fragment, no query.
    pub remote: String,
    /// Branch, tag, full ref or commit.
    pub reference: Option<String>,
    /// Directory in it.
    pub subdir: Option<String>,
    /// Commit (or prefix of one) it must be.
    pub checksum: Option<String>,
    /// `keep-git-dir`, if said.
    pub keep_git_dir: Option<bool>,
    /// `submodules`, if said.
    pub submodules: Option<bool>,
}

/// What is wrong with a git URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitUrlError {
    /// Both forms at once.
    #[error("git URL {0:?} has both a fragment and a query: use one of them")]
    BothForms(String),
    /// `ref`, `tag` and `branch` exclude each other.
    #[error("git URL {0:?} says more than one of ref, tag and branch")]
    ManyRefs(String),
    /// A query key nobody knows.
    #[error("unexpected query {key:?} in git URL {url:?}")]
    UnknownKey {
        /// The key.
        key: String,
        /// All of it.
        url: String,
    },
    /// A value that does not fit.
    #[error("invalid value {value:?} of {key} in git URL {url:?}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// All of it.
        url: String,
    },
}

impl GitUrl {
    /// Takes `text` apart; `None` if it is not a git URL.
    pub fn parse(text: &str) -> Option<Result<Self, GitUrlError>> {
        let (before_fragment, fragment) = match text.split_once('#') {
            Some((before, fragment)) => (before, Some(fragment)),
            None => (text, None),
        };
        let (remote, query) = match before_fragment.split_once('?') {
            Some((remote, query)) => (remote, Some(query)),
            None => (before_fragment, None),
        };
        is_git_remote(remote).then(|| Self::from_parts(text, remote, fragment, query))
    }

    /// The source that fetches it.
    pub fn into_source(self) -> Source {
        Source::Git {
            remote: self.remote,
            reference: self.reference,
            subdir: self.subdir,
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            checksum: self.checksum,
            submodules: self.submodules.unwrap_or(true),
        }
    }

    fn from_parts(
        url: &str,
        remote: &str,
        fragment: Option<&str>,
        query: Option<&str>,
    ) -> Result<Self, GitUrlError> {
        let mut git = Self { remote: remote.to_owned(), ..Self::default() };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if let Some(fragment) = fragment {
            if query.is_some_and(|query| !query.is_empty()) {
                return Err(GitUrlError::BothForms(url.to_owned()));
            }
            let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
            git.reference = some(reference);
            git.subdir = some(subdir);
        }
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(&value.replace('+', " "));
            let flag = || {
                let flag = if value.is_empty() { Some(true) } else { boolean(&value) };
                flag.ok_or_else(|| GitUrlError::Value {
                    key: key.to_owned(),
                    value: value.clone(),
                    url: url.to_owned(),
                })
            };
            match key {
                "ref" | "tag" | "branch" => {
                    if git.reference.is_some() {
                        return Err(GitUrlError::ManyRefs(url.to_owned()));
                    }
                    git.reference = some(&match key {
                        "tag" => format!("refs/tags/{}", value.trim_start_matches("refs/tags/")),
                        "branch" => format!("refs/heads/{}", value.trim_start_matches("refs/heads/")),
                        _ => value.clone(),
                    });
                }
                "subdir" => git.subdir = some(&value),
                "checksum" | "commit" => git.checksum = some(&value),
                "keep-git-dir" => git.keep_git_dir = Some(flag()?),
                "submodules" => git.submodules = Some(flag()?),
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "fetch-by-commit" => {
                    flag()?;
                }
                "mtime" => {
                    return Err(GitUrlError::Value { key: key.to_owned(), value, url: url.to_owned() });
                }
                _ => return Err(GitUrlError::UnknownKey { key: key.to_owned(), url: url.to_owned() }),
            }
        }
        Ok(git)
    }
}

fn is_git_remote(remote: &str) -> bool {
    if let Some((scheme, rest)) = remote.split_once("://") {
        let host = rest.split('/').next().unwrap_or("");
        return match scheme {
            "git" | "ssh" => !host.is_empty(),
            "http" | "https" => !host.is_empty() && rest.contains('/') && rest.ends_with(".git"),
            _ => false,
        };
    }
    // scp's form: user@host:path.
    let Some((user, rest)) = remote.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let word = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    word(user, b"-_") && word(host, b"-.") && !path.is_empty()
}

/// Undoes `%20` and the like.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> GitUrl {
        GitUrl::parse(text).expect("a git URL").expect("a valid one")
    }

    #[test]
    fn remotes_are_told_from_files_and_downloads() {
        for git in [
            "git@github.com:a/b.git",
            "git://host/a",
            "ssh://git@host:22/a",
            "https://host/a/b.git",
            "http://host/b.git#main",
        ] {
            assert!(GitUrl::parse(git).is_some(), "{git}");
        }
        for other in ["https://host/a.tar", "a/b.git", "github.com/a/b", "https://x.git", "a@b", "x/@y:z"] {
            assert!(GitUrl::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn fragment_and_query_say_the_same() {
        let fragment = url("https://h/r.git#v1:sub/dir");
        assert_eq!(fragment.reference.as_deref(), Some("v1"));
        assert_eq!(fragment.subdir.as_deref(), Some("sub/dir"));
        assert_eq!(url("https://h/r.git?ref=v1&subdir=sub%2Fdir"), fragment);
        assert_eq!(url("https://h/r.git?tag=v1").reference.as_deref(), Some("refs/tags/v1"));
        let more = url("git@h:r?checksum=abc&keep-git-dir=1&submodules=false");
        assert_eq!((more.checksum.as_deref(), more.keep_git_dir), (Some("abc"), Some(true)));
        assert_eq!(more.submodules, Some(false));
        assert_eq!(more.remote, "git@h:r");
        assert_eq!(url("https://h/r.git#:dir").reference, None);
    }

    #[test]
    fn contradictions_are_errors() {
        for bad in [
            "https://h/r.git?ref=a#b",
            "https://h/r.git?ref=a&tag=b",
            "https://h/r.git?what=1",
            "https://h/r.git?submodules=maybe",
            "https://h/r.git?mtime=now",
        ] {
            assert!(GitUrl::parse(bad).expect("a git URL").is_err(), "{bad}");
        }
    }
}
