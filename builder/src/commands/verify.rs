//! `rbuild verify`: builds twice, the second time without the cache, and shows the first difference.

use image::DiffId;
use image::layer::{Entry, Kind, LayerIndex};
use store::root::Root;

use super::{Session, build, print};
use crate::attest::Wanted;
use crate::cli::BuildArgs;
use crate::export::AssembledImage;
use crate::failure::{Class, Failure};
use crate::request::{BuildRequest, Call, Output, OutputKind};
use crate::show;

/// `rbuild verify`
pub(crate) fn verify(session: &Session, args: BuildArgs) -> Result<(), Failure> {
    let mut request = build::request(session, args)?;
    if request.call != Call::Build {
        return Err(Failure::usage("--call cannot be used with verify"));
    }
    quietly(&mut request);
    let first = build::perform(session, &request)?;
    request.no_cache = true;
    request.no_cache_filter.clear();
    let second = build::perform(session, &request)?;
    let root = session.open()?;
    for (one, other) in first.iter().zip(&second) {
        if let Some(difference) = difference(&root, one, other)? {
            let message = format!("the image for {} is not reproducible: {difference}", one.platform);
            return Err(Failure::new(Class::Internal, message));
        }
    }
    print(|out| {
        first
            .iter()
            .try_for_each(|image| writeln!(out, "{}: both builds gave {}", image.platform, image.config.id()))
    })
}

/// Nothing leaves, and no clock has a say.
fn quietly(request: &mut BuildRequest) {
    request.outputs = vec![Output { kind: OutputKind::CacheOnly, dest: None, options: Default::default() }];
    request.attestations = Wanted::default();
    request.cache_to.clear();
    request.iidfile = None;
    request.metadata_file = None;
    request.quiet = true;
    let now = jiff::Timestamp::now().as_second();
    request.source_date_epoch.get_or_insert(now);
}

/// The first difference in words.
fn difference(root: &Root, one: &AssembledImage, other: &AssembledImage) -> Result<Option<String>, Failure> {
    let steps: Vec<&str> = one
        .config
        .history
        .iter()
        .filter(|entry| !entry.empty_layer)
        .map(|entry| entry.created_by.as_deref().unwrap_or("a step"))
        .collect();
    for (at, (a, b)) in one.diff_ids().iter().zip(other.diff_ids()).enumerate() {
        if a != b {
            let step = show::shorten(steps.get(at).copied().unwrap_or("a step"), 100);
            return Ok(Some(format!("{}\n  in the layer of {step}", layers(root, a, b)?)));
        }
    }
    if one.diff_ids().len() != other.diff_ids().len() {
        return Ok(Some("the number of layers differs".to_owned()));
    }
    Ok((one.config.to_bytes() != other.config.to_bytes()).then(|| "the configs differ".to_owned()))
}

fn layers(root: &Root, a: &DiffId, b: &DiffId) -> Result<String, Failure> {
    let (a, b) = (root.layers().index(a)?, root.layers().index(b)?);
    Ok(entries(&a, &b).unwrap_or_else(|| "the tars differ in their form".to_owned()))
}

/// The first path that two layers do not have alike.
fn entries(a: &LayerIndex, b: &LayerIndex) -> Option<String> {
    let find = |index: &LayerIndex, entry: &Entry| {
        index.entries().iter().find(|other| other.path == entry.path).cloned()
    };
    for entry in a.entries() {
        let path = format!("/{}", entry.path);
        match find(b, entry) {
            None => return Some(format!("{path} is in the first build only")),
            Some(other) => {
                if let Some(what) = entry_difference(entry, &other) {
                    return Some(format!("{path}: {what}"));
                }
            }
        }
    }
    let more = b.entries().iter().find(|entry| find(a, entry).is_none())?;
    Some(format!("/{} is in the second build only", more.path))
}

fn entry_difference(a: &Entry, b: &Entry) -> Option<String> {
    match (&a.kind, &b.kind) {
        (Kind::File { size: one, .. }, Kind::File { size: other, .. }) if one != other => {
            return Some(format!("the size is {one} and {other} bytes"));
        }
        (Kind::File { content: one, .. }, Kind::File { content: other, .. }) if one != other => {
            return Some("the content differs".to_owned());
        }
        // Where the bytes are follows from what is before them.
        (Kind::File { .. }, Kind::File { .. }) => {}
        (one, other) if one != other => {
            return Some("the kind of file or the link's target differs".to_owned());
        }
        _ => {}
    }
    if a.mode != b.mode {
        return Some(format!("the mode is {:o} and {:o}", a.mode, b.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        return Some(format!("the owner is {}:{} and {}:{}", a.uid, a.gid, b.uid, b.gid));
    }
    if a.mtime != b.mtime {
        return Some(format!("the time is {} and {}", show::rfc3339(a.mtime), show::rfc3339(b.mtime)));
    }
    (a.xattrs != b.xattrs).then(|| "the extended attributes differ".to_owned())
}
