//! Git URLs, as ADD and contexts take them: `git@host:path`, `ssh://`, `git://`, `http(s)://....git`, with
//! `#ref:subdir` or `?ref=..&subdir=..`.

use solver::op::Source;

use crate::suggest::nearest;
use crate::value::boolean;

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
    /// It says two things of one.
    #[error("{key} conflicts: {one:?} vs {other:?} in git URL {url:?}")]
    Conflict {
        /// Of what.
        key: &'static str,
        /// One of them.
        one: String,
        /// The other.
        other: String,
        /// All of it.
        url: String,
    },
    /// A key comes twice.
    #[error("query {key:?} has multiple values in git URL {url:?}")]
    Twice {
        /// The key.
        key: String,
        /// All of it.
        url: String,
    },
    /// A key lacks its value.
    #[error("query {key:?} has no value in git URL {url:?}")]
    NoValue {
        /// The key.
        key: String,
        /// All of it.
        url: String,
    },
    /// A commit is to be fetched, and none is named.
    #[error("fetch-by-commit requires the full commit ID as checksum in git URL {0:?}")]
    ByCommit(String),
    /// A query key nobody knows.
    #[error("unexpected query {key:?} in git URL {url:?}{}", near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default())]
    UnknownKey {
        /// The key.
        key: String,
        /// One that is nearly so.
        near: Option<&'static str>,
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
            let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
            git.reference = some(reference);
            git.subdir = some(subdir);
        }
        let mut by_commit = false;
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(&value.replace('+', " "));
            if seen.contains(&key) {
                return Err(GitUrlError::Twice { key: key.to_owned(), url: url.to_owned() });
            }
            seen.push(key);
            let invalid =
                || GitUrlError::Value { key: key.to_owned(), value: value.clone(), url: url.to_owned() };
            let flag = || if value.is_empty() { Ok(true) } else { boolean(&value).ok_or_else(invalid) };
            let conflict = |known: &str, new: &str| GitUrlError::Conflict {
                key: if key == "subdir" { "subdir" } else { "ref" },
                one: known.to_owned(),
                other: new.to_owned(),
                url: url.to_owned(),
            };
            match key {
                "keep-git-dir" => git.keep_git_dir = Some(flag()?),
                "submodules" => git.submodules = Some(flag()?),
                "fetch-by-commit" => by_commit = flag()?,
                "ref" | "tag" | "branch" | "subdir" | "checksum" | "commit" | "mtime" if value.is_empty() => {
                    return Err(GitUrlError::NoValue { key: key.to_owned(), url: url.to_owned() });
                }
                "ref" | "tag" | "branch" => {
                    let reference = match key {
                        "tag" => format!("refs/tags/{}", value.trim_start_matches("refs/tags/")),
                        "branch" => format!("refs/heads/{}", value.trim_start_matches("refs/heads/")),
                        _ => value,
                    };
                    // The fragment and the keys may say the same, and nothing else.
                    match &git.reference {
                        Some(known) if *known != reference => return Err(conflict(known, &reference)),
                        _ => git.reference = Some(reference),
                    }
                }
                "subdir" => match &git.subdir {
                    Some(known) if *known != value => return Err(conflict(known, &value)),
                    _ => git.subdir = Some(value),
                },
                "checksum" | "commit" => git.checksum = Some(value),
                // Files always have the time of their commit.
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "mtime" => return Err(invalid()),
                _ => {
                    let near = nearest(key, KEYS);
                    return Err(GitUrlError::UnknownKey { key: key.to_owned(), near, url: url.to_owned() });
                }
            }
        }
        // Without a ref the commit is one; and so it is if the ref is not to be asked for.
        if git.reference.is_none() || by_commit {
            match &git.checksum {
                Some(commit) if !by_commit || is_commit(commit) => git.reference = Some(commit.clone()),
                _ if by_commit => return Err(GitUrlError::ByCommit(url.to_owned())),
                _ => {}
            }
        }
        Ok(git)
    }
}

const KEYS: [&str; 10] = [
    "ref",
    "tag",
    "branch",
    "subdir",
    "checksum",
    "commit",
    "keep-git-dir",
    "submodules",
    "mtime",
    "fetch-by-commit",
];

/// A full commit ID, SHA-1 or SHA-256.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
        assert_eq!(url("https://h/r.git?subdir=d#v1").subdir.as_deref(), Some("d"));
        assert_eq!(url("https://h/r.git?ref=v1#v1"), url("https://h/r.git#v1"));
        assert_eq!(url("https://h/r.git?tag=v1&ref=refs/tags/v1"), url("https://h/r.git?tag=refs/tags/v1"));
        assert_eq!(url("https://h/r.git?submodules&keep-git-dir=").submodules, Some(true));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let by_checksum = url(&format!("https://h/r.git?commit={commit}"));
        assert_eq!(by_checksum.reference.as_deref(), Some(commit));
        let by_commit =
            url(&format!("https://h/r.git?branch=main&checksum={commit}&fetch-by-commit&mtime=commit"));
        assert_eq!(by_commit, by_checksum);
    }

    #[test]
    fn contradictions_are_errors() {
        for (query, message) in [
            ("ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("ref=a&tag=b", "ref conflicts: \"a\" vs \"refs/tags/b\""),
            ("tag=a&branch=a", "ref conflicts: \"refs/tags/a\" vs \"refs/heads/a\""),
            ("subdir=a#b:c", "subdir conflicts: \"c\" vs \"a\""),
            ("ref=a&ref=a", "query \"ref\" has multiple values"),
            ("ref", "query \"ref\" has no value"),
            ("subdir=", "query \"subdir\" has no value"),
            ("what=1", "unexpected query \"what\""),
            ("sudbir=1", "(did you mean subdir?)"),
            ("submodules=maybe", "invalid value \"maybe\" of submodules"),
            ("mtime=now", "invalid value \"now\" of mtime"),
            ("fetch-by-commit&ref=a", "fetch-by-commit requires the full commit ID"),
            ("fetch-by-commit=1&checksum=abcdef0", "fetch-by-commit requires the full commit ID"),
        ] {
            let error = GitUrl::parse(&format!("https://h/r.git?{query}")).expect("a git URL").unwrap_err();
            assert!(error.to_string().contains(message), "{query}: {error}");
        }
    }
}
