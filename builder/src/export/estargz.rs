//! `compression=estargz`: images of layers that can be fetched file by file.

use store::root::Root;
use store::stargz;

use super::AssembledImage;
use super::options::Options;
use crate::failure::Failure;

/// The images with their layers as eStargz, if `options` ask for that. Layers that came compressed stay what they are
/// unless that is forced.
pub(super) fn convert(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
) -> Result<Vec<AssembledImage>, Failure> {
    let mut images = images.to_vec();
    if !options.estargz {
        return Ok(images);
    }
    let layers = root.layers();
    for diff_id in images.iter_mut().flat_map(|image| &mut image.config.rootfs.diff_ids) {
        let came = layers.blobs_of(diff_id)?.iter().any(|blob| blob.level.is_none());
        if !came || options.force_compression {
            *diff_id = stargz::convert(root, diff_id, options.compression.level)?;
        }
    }
    Ok(images)
}

/// What is left to do with images that [`convert`] has made: their layers have their form.
pub(crate) fn after(options: &Options) -> Options {
    Options { force_compression: options.force_compression && !options.estargz, ..options.clone() }
}
