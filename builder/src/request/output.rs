//! `--output`, `--push` and `--load`: where results go.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::text::{csv, parse_bool};
use crate::cli::BuildArgs;
use crate::export::options::annotation_flag;
use crate::failure::Failure;

/// The entitlement that a deleting output needs elsewhere than below the working directory.
pub(super) const LOCAL_DELETE: &str = "buildx.local.delete";

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) kind: OutputKind,
    /// `dest`; `None` is standard output where that is possible.
    pub(crate) dest: Option<PathBuf>,
    /// What else was said, by key.
    pub(crate) options: BTreeMap<String, String>,
}

/// `type` of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// Into the local store, and pushed with `push=true`.
    Image,
    Oci,
    /// A file, as `docker save` writes it.
    Docker,
    /// Into the Docker of this host.
    Load,
    Local,
    Tar,
    /// Nothing but the cache.
    CacheOnly,
}

impl Output {
    /// Whether times in layers are cut to `SOURCE_DATE_EPOCH`: unless it is told not to.
    pub(crate) fn rewrites_times(&self) -> bool {
        self.flag("rewrite-timestamp").ok().flatten().unwrap_or(true)
    }

    /// Whether what was in the directory before goes.
    pub(crate) fn deletes(&self) -> bool {
        self.options.get("mode").is_some_and(|mode| mode == "delete")
    }

    /// A boolean option.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        self.options.get(key).map(|text| parse_bool(key, text)).transpose()
    }
}

/// `--output`, `--push` and `--load` together. Without any of them the image goes into the local store.
pub(super) fn outputs(args: &BuildArgs, tagged: bool) -> Result<Vec<Output>, Failure> {
    let given = args.outputs.iter().filter(|text| !text.is_empty());
    let mut outputs = given.map(|text| output(text)).collect::<Result<Vec<_>, _>>()?;
    if args.push {
        if !outputs.iter().any(|output| output.kind == OutputKind::Image) {
            outputs.push(Output { kind: OutputKind::Image, dest: None, options: BTreeMap::new() });
        }
        for output in outputs.iter_mut().filter(|output| output.kind == OutputKind::Image) {
            output.options.insert("push".to_owned(), "true".to_owned());
        }
    }
    if args.load {
        if outputs.is_empty() {
            outputs.push(Output { kind: OutputKind::Image, dest: None, options: BTreeMap::new() });
        }
        if !outputs.iter().any(|output| output.kind == OutputKind::Load) {
            outputs.push(Output { kind: OutputKind::Load, dest: None, options: BTreeMap::new() });
        }
    }
    if outputs.is_empty() {
        outputs.push(Output { kind: OutputKind::Image, dest: None, options: BTreeMap::new() });
    }
    for text in args.annotations.iter().filter(|text| !text.is_empty()) {
        let pairs = annotation_flag(text)?;
        for output in &mut outputs {
            if matches!(
                output.kind,
                OutputKind::Image | OutputKind::Oci | OutputKind::Docker | OutputKind::Load
            ) {
                output.options.extend(pairs.iter().cloned());
            }
        }
    }
    let pushes = |output: &Output| output.options.get("push").is_some_and(|push| push == "true");
    let named = tagged || outputs.iter().any(|output| output.options.contains_key("name"));
    if outputs.iter().any(pushes) && !named {
        return Err(Failure::usage("a tag is needed to push: give -t NAME"));
    }
    Ok(outputs)
}

fn output(text: &str) -> Result<Output, Failure> {
    if text == "-" {
        return Ok(Output { kind: OutputKind::Tar, dest: None, options: BTreeMap::new() });
    }
    let fields = csv(text).map_err(|error| Failure::usage(format!("invalid --output {text:?}: {error}")))?;
    // A lone value without `=` is a directory.
    if let [only] = &fields[..]
        && !only.contains('=')
    {
        return Ok(Output { kind: OutputKind::Local, dest: Some(only.into()), options: BTreeMap::new() });
    }
    let mut kind = None;
    let mut dest = None;
    let mut options = BTreeMap::new();
    for field in &fields {
        let (key, value) = field.split_once('=').ok_or_else(|| {
            Failure::usage(format!("invalid --output {text:?}: expected key=value, got {field:?}"))
        })?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = Some(value.to_owned()),
            "dest" => dest = Some(value.to_owned()),
            // Annotations keep their case.
            _ => {
                options.insert(key.trim().to_owned(), value.to_owned());
            }
        }
    }
    let kind = match kind.as_deref() {
        Some("image") => OutputKind::Image,
        Some("registry") => {
            options.insert("push".to_owned(), "true".to_owned());
            OutputKind::Image
        }
        Some("oci") => OutputKind::Oci,
        // Without a file it goes where `docker images` shows it.
        Some("docker") if dest.is_none() && !options.contains_key("tar") => OutputKind::Load,
        Some("docker") => OutputKind::Docker,
        Some("local") => OutputKind::Local,
        Some("tar") => OutputKind::Tar,
        Some("cacheonly") => OutputKind::CacheOnly,
        Some(other) => {
            let known = ["image", "registry", "oci", "docker", "local", "tar", "cacheonly"];
            return Err(Failure::usage(format!(
                "unknown type {other:?} in --output: expected one of {}",
                known.join(", ")
            )));
        }
        None => return Err(Failure::usage(format!("invalid --output {text:?}: type is missing"))),
    };
    let dest = match dest.as_deref() {
        Some("-") | None => None,
        Some(path) => Some(PathBuf::from(path)),
    };
    match (kind, &dest) {
        (OutputKind::Local, None) => {
            return Err(Failure::usage("dest is required for --output type=local: give a directory"));
        }
        (OutputKind::Local | OutputKind::Tar, _) => file_options(kind, &options)?,
        _ => {}
    }
    Ok(Output { kind, dest, options })
}

/// Those of images are read where one is made.
fn file_options(kind: OutputKind, options: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (key, value) in options {
        match key.as_str() {
            "platform-split" | "rewrite-timestamp" => drop(parse_bool(key, value)?),
            "attestation-prefix" => {}
            "mode" if kind == OutputKind::Local && matches!(value.as_str(), "copy" | "delete") => {}
            "mode" if kind == OutputKind::Local => {
                return Err(Failure::usage(format!("mode in --output is copy or delete, not {value:?}")));
            }
            key => return Err(Failure::usage(format!("unknown option {key:?} in --output for plain files"))),
        }
    }
    Ok(())
}

/// Allowed to delete is what is below the working directory, and with `--allow=buildx.local.delete` the rest.
pub(crate) fn check_deletes(outputs: &[Output], here: &Path, allow: &[String]) -> Result<(), Failure> {
    for output in outputs.iter().filter(|output| output.deletes()) {
        let dest = output.dest.as_deref().unwrap_or(here);
        // Where links lead to, as far as it is there.
        let real = |path: &Path| {
            let there = path.ancestors().find_map(|parent| Some((parent, parent.canonicalize().ok()?)));
            let (parent, found) = there?;
            Some(found.join(path.strip_prefix(parent).ok()?))
        };
        let below = match (real(&here.join(dest)), real(here)) {
            (Some(dest), Some(here)) => {
                dest != here
                    && dest.starts_with(here)
                    && !dest.components().any(|part| part == Component::ParentDir)
            }
            _ => false,
        };
        if !below && !allow.iter().any(|one| one == LOCAL_DELETE) {
            return Err(Failure::usage(format!(
                "mode=delete would remove what else is in {}, which is not below the working directory: \
                 allow it with --allow={LOCAL_DELETE}",
                dest.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_plain_files_may_be_told_is_known() {
        for text in ["type=local,dest=out,mode=copy", "type=tar,dest=out.tar,platform-split=false"] {
            assert!(output(text).is_ok(), "{text}");
        }
        for text in [
            "type=local,dest=out,mode=move",
            "type=tar,dest=out.tar,mode=delete",
            "type=local,dest=out,names=a",
        ] {
            assert!(output(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_directory_is_emptied_below_this_one_or_with_leave() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("here");
        std::fs::create_dir_all(here.join("out")).unwrap();
        std::os::unix::fs::symlink(dir.path(), here.join("up")).unwrap();
        let check = |dest: &str, allow: &[String]| {
            let output = output(&format!("type=local,dest={dest},mode=delete")).unwrap();
            check_deletes(&[output], &here, allow).is_ok()
        };
        for dest in ["out", "out/to/come", "new", "./out", "out/../out"] {
            assert!(check(dest, &[]), "{dest}");
        }
        for dest in [".", "..", "../other", "/", "up", "up/other", "out/..", "new/../..", "new/../new/out"] {
            assert!(!check(dest, &[]), "{dest}");
            assert!(check(dest, &[LOCAL_DELETE.to_owned()]), "{dest}");
        }
    }
}
