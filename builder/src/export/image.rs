//! `type=image`: into the store, under its names.

use image::Reference;
use store::root::Root;

use super::options::Options;
use super::{AssembledImage, Exported, Listing, put_documents};
use crate::failure::Failure;

/// Stores images and names them. An image without a name is kept as well, until it is pruned.
pub(crate) fn export_image(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
) -> Result<Exported, Failure> {
    let descriptor = put_documents(root, images, options, Listing::Uncompressed)?;
    let mut names: Vec<Reference> =
        options.names.iter().map(|name| name.clone().with_default_tag()).collect();
    if options.name_canonical {
        names.extend(options.names.iter().map(|name| name.by_digest(descriptor.digest)));
    }
    if options.store {
        root.images().add(&descriptor)?;
        for name in names.iter().filter(|name| name.digest.is_none()) {
            root.tags().set(name, &descriptor)?;
        }
    }
    let config = match images {
        [image] => Some(image.config.id()),
        _ => None,
    };
    Ok(Exported { descriptor, config, names })
}
