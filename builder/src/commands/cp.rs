//! `rbuild cp`: files out of an image.

use std::path::Path;
use std::rc::Rc;

use bstr::ByteSlice as _;
use image::Platform;
use image::tree::resolve::{Last, resolve};
use image::tree::{Tree, path};
use worker::source::resolve::{Images, Policy};

use super::{Session, run, until_stopped};
use crate::cli::CpArgs;
use crate::export::file::Sink;
use crate::export::flat;
use crate::failure::{Class, Failure, OrFail as _};

/// `rbuild cp`
pub(crate) fn cp(session: &Session, args: &CpArgs) -> Result<(), Failure> {
    let (image, source) = split(&args.source)?;
    let platform: Platform = match &args.platform {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("{error}")))?,
        None => Platform::host(),
    };
    let root = session.open()?;
    let client = Rc::new(crate::registry::client(&session.places)?);
    let images = Images::new(root.clone(), client.clone(), Policy::Missing);
    let config = session
        .runtime()?
        .block_on(until_stopped(async { run::find(&root, &images, &client, image, &platform).await }))?;
    let layers = root.layers();
    let indexes = config.rootfs.diff_ids.iter().map(|diff_id| layers.index(diff_id));
    let tree = Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?);

    let contents = source.ends_with("/.") || source == "/";
    let last = if args.follow_link || contents || source.ends_with('/') { Last::Follow } else { Last::Keep };
    let top = resolve(&tree, source.as_bytes(), last).or_fail(Class::Usage)?;
    let node = tree.get(&top);
    if !top.is_empty() && node.is_none() {
        return Err(Failure::usage(format!("there is no {source} in {image}")));
    }
    let is_dir = node.is_none_or(|node| node.is_dir());
    if !is_dir && (contents || source.ends_with('/')) {
        return Err(Failure::usage(format!("{source} in {image} is not a directory")));
    }
    let part = |directory: String| flat::Part {
        directory,
        top: top.clone(),
        tree: &tree,
        epoch: None,
        documents: Vec::new(),
    };
    // What it is called where it goes.
    let name = match contents || top.is_empty() {
        true => String::new(),
        false => {
            let written = resolve(&tree, source.as_bytes(), Last::Keep).or_fail(Class::Usage)?;
            path::name(&written).to_str_lossy().into_owned()
        }
    };
    if args.dest == "-" {
        let mut sink = Sink::open(None, "a file")?;
        flat::write_tar(&[part(name)], &layers, &mut sink).or_fail(Class::Host)?;
        return sink.finish();
    }
    let dest = Path::new(&args.dest);
    let (below, name) = match (dest.is_dir(), is_dir) {
        (true, _) => (dest.to_owned(), name),
        (false, true) if dest.exists() => {
            return Err(Failure::usage(format!("{} is not a directory", dest.display())));
        }
        (false, true) => (dest.to_owned(), String::new()),
        (false, false) if args.dest.ends_with('/') => {
            return Err(Failure::usage(format!("there is no directory {}", dest.display())));
        }
        (false, false) => {
            let name = dest.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.ok_or_else(|| Failure::usage(format!("{} is no file", dest.display())))?;
            (dest.parent().map(Path::to_owned).unwrap_or_default(), name)
        }
    };
    if !is_dir && below.join(&name).is_dir() {
        return Err(Failure::usage(format!("{} is a directory", below.join(&name).display())));
    }
    flat::write_directory(&part(name), &layers, &below).map(drop).or_fail(Class::Host)
}

/// `IMAGE:PATH`, of which the path is absolute.
fn split(text: &str) -> Result<(&str, &str), Failure> {
    // No reference has a slash after a colon.
    match text.find(":/") {
        Some(at) if at > 0 => Ok((&text[..at], &text[at + 1..])),
        _ => Err(Failure::usage(format!("could not read {text:?}: expected IMAGE:/PATH"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_and_a_path_are_told_apart() {
        assert_eq!(split("x:1:/etc/passwd").unwrap(), ("x:1", "/etc/passwd"));
        assert_eq!(split("localhost:5000/a/b:/").unwrap(), ("localhost:5000/a/b", "/"));
        for bad in ["x", "x:1", "x:etc", ":/etc"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
