//! `type=oci` and `type=docker`: images into one file, or an OCI layout in a directory.

use image::Reference;
use store::archive::{Content, Packing, docker_archive, oci_archive, oci_layout};
use store::root::Root;

use super::file::Sink;
use super::options::Options;
use super::{AssembledImage, Exported, Listing, estargz, only_config, put_documents};
use crate::failure::Failure;
use crate::request::{Output, OutputKind};

/// The format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Oci,
    Docker,
}

/// Writes images to where `output` says, standard output if it says nothing.
///
/// Layers that were pulled keep the compressed form they came in while it is at hand, unless another one is forced.
pub(crate) fn export_archive(
    root: &Root,
    images: &[AssembledImage],
    output: &Output,
    tags: &[Reference],
) -> Result<Exported, Failure> {
    let options = Options::new(output, tags)?;
    let format = match output.kind {
        OutputKind::Docker => Format::Docker,
        _ => Format::Oci,
    };
    if format == Format::Docker && images.len() > 1 {
        return Err(Failure::usage(
            "--output type=docker cannot hold images of several platforms: use type=oci",
        ));
    }
    if format == Format::Docker && images.iter().any(|image| !image.attestations.is_empty()) {
        return Err(Failure::usage("--output type=docker cannot hold attestations: use type=oci"));
    }
    if !options.tar && output.dest.is_none() {
        return Err(Failure::usage("dest is required for --output tar=false: give a directory"));
    }
    let images = &estargz::convert(root, images, &options)?;
    let options = estargz::after(&options);
    let descriptor = put_documents(root, images, &options, Listing::AsPulled)?;
    let packing = match options.force_compression {
        true => Packing::Force(options.compression),
        false => Packing::Prefer(options.compression),
    };
    // Before the work of compressing: it may be refused.
    let sink = match options.tar {
        true => Some(Sink::open(output.dest.as_deref(), "dest")?),
        false => None,
    };
    let content = Content::gather(root, &[(descriptor, options.names.clone())], packing)?;
    match (sink, &output.dest) {
        (Some(sink), _) => write(&content, format, sink)?,
        (None, Some(dir)) => oci_layout::write_dir(dir, &content)?,
        (None, None) => unreachable!("checked above"),
    }
    let image = content.images.first().expect("one image was gathered");
    Ok(Exported {
        descriptor: image.descriptor.clone(),
        config: only_config(image.manifests.iter().map(|(_, manifest)| manifest)),
        names: options.names,
    })
}

/// Writes `content` as one tar.
pub(crate) fn write(content: &Content, format: Format, mut sink: Sink) -> Result<(), Failure> {
    match format {
        Format::Oci => oci_archive::write(content, &mut sink)?,
        Format::Docker => docker_archive::write(content, &mut sink)?,
    }
    sink.finish()
}
