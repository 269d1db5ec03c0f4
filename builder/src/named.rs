//! `--build-context name=value`: what a name stands for.

use std::path::{Path, PathBuf};

use frontend::download;
use frontend::git::GitUrl;
use frontend::request::NamedContext;
use image::{Digest, Platform};
use solver::op::Source;

use crate::build::NamedContexts;
use crate::failure::{Class, Failure};

/// What all `--build-context` of a build mean.
pub(crate) fn named_contexts(flags: &[(String, String)]) -> Result<NamedContexts, Failure> {
    let mut contexts = NamedContexts::default();
    for (name, value) in flags {
        let described = match remote(value).map_err(|why| invalid(name, value, &why))? {
            Some(described) => described,
            None => {
                let path = directory(name, value, Path::new(value))?;
                let ignore = match std::fs::read(path.join(".dockerignore")) {
                    Ok(text) => {
                        frontend::ignore::parse(&text).into_iter().map(|(_, pattern)| pattern).collect()
                    }
                    Err(_) => Vec::new(),
                };
                contexts.directories.insert(name.clone(), path);
                NamedContext::Local { ignore }
            }
        };
        let described = match described {
            NamedContext::Source(Source::OciLayout { path, tag, digest, platform }) => {
                let path = directory(name, value, Path::new(&path))?.display().to_string();
                NamedContext::Source(Source::OciLayout { path, tag, digest, platform })
            }
            other => other,
        };
        contexts.described.insert(name.clone(), described);
    }
    Ok(contexts)
}

/// What `value` means if it is no directory.
fn remote(value: &str) -> Result<Option<NamedContext>, String> {
    if let Some(git) = GitUrl::parse(value) {
        return git
            .map(|git| Some(NamedContext::Source(git.into_source())))
            .map_err(|error| error.to_string());
    }
    let (scheme, rest) = match value.split_once("://") {
        Some(parts) => parts,
        None => match value.split_once(':') {
            Some(parts @ ("target" | "docker-image", _)) => parts,
            _ => return Ok(None),
        },
    };
    Ok(Some(match scheme {
        "docker-image" => NamedContext::Image(
            rest.parse().map_err(|error: image::reference::ReferenceError| error.to_string())?,
        ),
        "target" => NamedContext::Stage(rest.to_owned()),
        "oci-layout" => NamedContext::Source(layout(rest)),
        "http" | "https" => NamedContext::Source(Source::Http {
            url: value.to_owned(),
            checksum: None,
            filename: download::file_name(value).unwrap_or_else(|| "download".to_owned()),
            mode: None,
            owner: None,
        }),
        other => return Err(format!("{other}:// is no kind of context")),
    }))
}

/// `path[:tag][@digest]`
fn layout(text: &str) -> Source {
    let (text, digest) = match text.rsplit_once('@') {
        Some((before, digest)) => match digest.parse::<Digest>() {
            Ok(digest) => (before, Some(digest)),
            Err(_) => (text, None),
        },
        None => (text, None),
    };
    // A colon in the name of a directory that is there is no tag.
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.is_empty() && !tag.contains('/') && !Path::new(text).is_dir() => {
            (path, Some(tag.to_owned()))
        }
        _ => (text, None),
    };
    // Each stage asks for its own platform.
    Source::OciLayout { path: path.to_owned(), tag, digest, platform: Platform::host() }
}

fn directory(name: &str, value: &str, path: &Path) -> Result<PathBuf, Failure> {
    let path = path.canonicalize().map_err(|error| {
        Failure::new(Class::Dockerfile, format!("could not open context {name}={value}: {error}"))
    })?;
    if !path.is_dir() {
        let message = format!("could not open context {name}={value}: it is not a directory");
        return Err(Failure::new(Class::Dockerfile, message));
    }
    Ok(path)
}

fn invalid(name: &str, value: &str, why: &str) -> Failure {
    Failure::usage(format!("invalid --build-context {name}={value}: {why}"))
        .hint("give a directory, docker-image://, oci-layout://, a git or http(s) URL, or target:STAGE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_say_what_they_are() {
        let kind = |value: &str| match remote(value) {
            Ok(None) => "directory",
            Ok(Some(NamedContext::Image(_))) => "image",
            Ok(Some(NamedContext::Stage(_))) => "stage",
            Ok(Some(NamedContext::Source(Source::OciLayout { .. }))) => "layout",
            Ok(Some(NamedContext::Source(Source::Git { .. }))) => "git",
            Ok(Some(NamedContext::Source(Source::Http { .. }))) => "http",
            Ok(Some(other)) => panic!("{other:?}"),
            Err(_) => "wrong",
        };
        for (value, expected) in [
            ("../dir", "directory"),
            ("a:b", "directory"),
            ("docker-image://alpine:3", "image"),
            ("docker-image://UPPER", "wrong"),
            ("target:base", "stage"),
            ("oci-layout://dir:tag", "layout"),
            ("https://h/r.git#main", "git"),
            ("git@h:r", "git"),
            ("https://h/file", "http"),
            ("s3://bucket", "wrong"),
        ] {
            assert_eq!(kind(value), expected, "{value}");
        }
    }

    #[test]
    fn layouts_are_taken_apart() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let parts = |text: &str| match layout(text) {
            Source::OciLayout { path, tag, digest, .. } => {
                (path, tag, digest.map(|digest| digest.to_string()))
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(parts("/a/b"), ("/a/b".to_owned(), None, None));
        assert_eq!(parts("/a/b:1"), ("/a/b".to_owned(), Some("1".to_owned()), None));
        assert_eq!(parts(&format!("b@{digest}")), ("b".to_owned(), None, Some(digest.clone())));
        assert_eq!(parts(&format!("b:1@{digest}")), ("b".to_owned(), Some("1".to_owned()), Some(digest)));
        assert_eq!(parts("/a:1/b"), ("/a:1/b".to_owned(), None, None));
    }
}
