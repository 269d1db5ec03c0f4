//! `type=image`: into the store under its names. `push` takes it on to registries.

use image::Reference;
use store::root::Root;

use super::options::Options;
use super::{AssembledImage, Exported, Listing, estargz, put_documents};
use crate::failure::Failure;

/// Stores images and names them. An image without a name is kept as well, until it is pruned.
pub(crate) fn export_image(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
) -> Result<Exported, Failure> {
    let images = &estargz::convert(root, images, options)?;
    let options = &estargz::after(options);
    let descriptor = put_documents(root, images, options, Listing::Uncompressed)?;
    if options.store {
        root.images().add(&descriptor)?;
        // What is pushed by digest is a part of something that gets the name later.
        for name in options.names.iter().filter(|_| !options.push_by_digest) {
            root.tags().set(name, &descriptor)?;
        }
    }
    let config = match &images[..] {
        [image] => Some(image.config.id()),
        _ => None,
    };
    Ok(Exported { descriptor, config, names: names(options) })
}

/// What an image is called that was exported with `options`.
fn names(options: &Options) -> Vec<Reference> {
    match options.push_by_digest {
        true => options.names.clone(),
        false => options.names.iter().map(|name| name.clone().with_default_tag()).collect(),
    }
}
