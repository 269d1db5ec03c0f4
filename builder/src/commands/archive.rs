//! `save` and `load`: images to and from archives.

use std::io::{self, IsTerminal as _};

use image::{Descriptor, Reference};
use store::archive::{self, Content, Files, Loaded, Packing};
use store::compress::{Algorithm, Compression};
use store::registry::Progress;
use store::root::Root;
use worker::source::image::pull as pull_layers;

use super::images::find;
use super::{Session, print, until_stopped};
use crate::cli::{LoadArgs, SaveArgs};
use crate::export::archive::{Format, write};
use crate::export::file::Sink;
use crate::failure::Failure;
use crate::registry;

/// `rbuild save`
pub(crate) fn save(session: &Session, args: &SaveArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let images = args.images.iter().map(|text| named(&root, text)).collect::<Result<Vec<_>, _>>()?;
    let format = match args.format.as_str() {
        "oci" => Format::Oci,
        _ => Format::Docker,
    };
    let sink = Sink::open(args.output.as_deref(), "-o FILE")?;
    let images = together(images);
    fetch(session, &root, &images)?;
    // A pulled layer whose compressed form was not kept goes as its tar, like those that were made here.
    let tar = Compression { algorithm: Algorithm::None, level: 0 };
    let content = Content::gather(&root, &images, Packing::Prefer(tar))?;
    write(&content, format, sink)
}

/// Gets the layers that no step has needed yet from where they are known to be.
fn fetch(session: &Session, root: &Root, images: &[(Descriptor, Vec<Reference>)]) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for (descriptor, _) in images {
        for (_, manifest) in root.images().manifests(descriptor)? {
            for diff_id in root.images().config(&manifest.config)?.rootfs.diff_ids {
                if !root.layers().contains(&diff_id)? {
                    missing.push(diff_id);
                }
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let client = registry::client(&session.places)?;
    session.runtime()?.block_on(until_stopped(async {
        Ok(pull_layers(root, &client, &missing, |_| Progress::none()).await?)
    }))
}

/// An image, and the name it gets in the archive: the one it was called by. Called by ID it has none, as in Docker.
fn named(root: &Root, text: &str) -> Result<(Descriptor, Option<Reference>), Failure> {
    let descriptor = find(root, text)?;
    let name = match text.parse::<Reference>().map(Reference::with_default_tag) {
        Ok(name) if name.digest.is_none() && root.tags().get(&name)?.is_some() => Some(name),
        _ => None,
    };
    Ok((descriptor, name))
}

/// Names of the same image put together, in the order of the command line.
fn together(images: Vec<(Descriptor, Option<Reference>)>) -> Vec<(Descriptor, Vec<Reference>)> {
    let mut all: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
    for (descriptor, name) in images {
        match all.iter_mut().find(|(other, _)| other.digest == descriptor.digest) {
            Some((_, names)) => names.extend(name.filter(|name| !names.contains(name))),
            None => all.push((descriptor, name.into_iter().collect())),
        }
    }
    all
}

/// `rbuild load`
pub(crate) fn load(session: &Session, args: &LoadArgs) -> Result<(), Failure> {
    if args.input.is_none() && io::stdin().is_terminal() {
        return Err(Failure::usage(
            "requested load from stdin, but stdin is a terminal: give -i, or redirect",
        ));
    }
    let root = session.open()?;
    let files = match &args.input {
        Some(path) => Files::open(&root, path)?,
        None => Files::read(&root, io::stdin().lock())?,
    };
    let loaded = archive::load(&root, files)?;
    let mut lines = Vec::new();
    for image in &loaded {
        lines.extend(tag(&root, image)?);
    }
    root.flush()?;
    print(|out| {
        lines.iter().try_for_each(|(text, name)| match args.quiet {
            true => writeln!(out, "{name}"),
            false => writeln!(out, "{text}: {name}"),
        })
    })
}

/// Sets the names of a loaded image, and says so.
fn tag(root: &Root, image: &Loaded) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut lines = Vec::new();
    for name in image.names.iter().filter(|name| name.digest.is_none()) {
        let name = name.clone().with_default_tag();
        root.tags().set(&name, &image.descriptor)?;
        lines.push(("Loaded image", name.familiar()));
    }
    if lines.is_empty() {
        let manifests = root.images().manifests(&image.descriptor)?;
        let id = match &manifests[..] {
            [(_, manifest)] => manifest.config.digest,
            _ => image.descriptor.digest,
        };
        lines.push(("Loaded image ID", id.to_string()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use image::Digest;
    use image::manifest::media_type;

    use super::*;

    #[test]
    fn names_of_one_image_are_put_together() {
        let descriptor =
            |text: &str| Descriptor::new(media_type::OCI_MANIFEST, Digest::of(text.as_bytes()), 1);
        let name = |text: &str| Some(text.parse::<Reference>().unwrap());
        let all = together(vec![
            (descriptor("1"), name("a:1")),
            (descriptor("2"), None),
            (descriptor("1"), name("b:1")),
            (descriptor("1"), name("a:1")),
        ]);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].1, [name("a:1").unwrap(), name("b:1").unwrap()]);
        assert!(all[1].1.is_empty());
    }
}
