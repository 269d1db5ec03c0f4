//! `type=oci` and `type=docker`: images into one file, or an OCI layout in a directory.

use image::{DiffId, Reference};
use store::archive::{Content, Packing, docker_archive, oci_archive, oci_layout};
use store::compress::{Algorithm, Compression};
use store::root::Root;

use super::file::Sink;
use super::options::Options;
use super::{AssembledImage, Exported, Listing, estargz, only_config, put_documents};
use crate::docker::{Endpoint, shared};
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
    if format == Format::Docker {
        refuse_indexes(images)?;
    }
    if !options.tar && output.dest.is_none() {
        return Err(Failure::usage("dest is required for --output tar=false: give a directory"));
    }
    let packing = match options.force_compression && !options.estargz {
        true => Packing::Force(options.compression),
        false => Packing::Prefer(options.compression),
    };
    // Before the work of compressing: it may be refused.
    let sink = match options.tar {
        true => Some(Sink::open(output.dest.as_deref(), "dest")?),
        false => None,
    };
    let (content, exported) = gather(root, images, &options, packing)?;
    match (sink, &output.dest) {
        (Some(sink), _) => write(&content, format, sink)?,
        (None, Some(dir)) => oci_layout::write_dir(dir, &content)?,
        (None, None) => unreachable!("checked above"),
    }
    Ok(exported)
}

/// Sends an image to `docker`, without the layers that are there.
pub(crate) fn load(
    root: &Root,
    images: &[AssembledImage],
    output: &Output,
    tags: &[Reference],
    docker: &Endpoint,
) -> Result<Exported, Failure> {
    refuse_indexes(images)?;
    let options = Options::new(output, tags)?;
    // Nothing is gained by compressing what stays on this host.
    let packing = match output.options.contains_key("compression") {
        true => Packing::Prefer(options.compression),
        false => Packing::Prefer(Compression::new(Algorithm::None, None).expect("it has no levels")),
    };
    let (mut content, exported) = gather(root, images, &options, packing)?;
    let all = content.layers.clone();
    let chains = docker.layers();
    let there: Vec<DiffId> =
        images.iter().flat_map(|image| shared(image.diff_ids(), &chains)).copied().collect();
    content.layers.retain(|_, layer| layer.diff_id.is_none_or(|diff_id| !there.contains(&diff_id)));
    let send = |content: &Content| docker.load(|out| Ok(docker_archive::write(content, out)?));
    if let Err(failure) = send(&content) {
        if content.layers.len() == all.len() {
            return Err(failure);
        }
        // Somebody may have removed one meanwhile.
        content.layers = all;
        send(&content)?;
    }
    Ok(exported)
}

fn refuse_indexes(images: &[AssembledImage]) -> Result<(), Failure> {
    if images.len() > 1 {
        return Err(Failure::usage(
            "--output type=docker cannot hold images of several platforms: use type=oci",
        ));
    }
    if images.iter().any(|image| !image.attestations.is_empty()) {
        return Err(Failure::usage("--output type=docker cannot hold attestations: use type=oci"));
    }
    Ok(())
}

/// Takes together what an archive holds.
fn gather(
    root: &Root,
    images: &[AssembledImage],
    options: &Options,
    packing: Packing,
) -> Result<(Content, Exported), Failure> {
    let images = &estargz::convert(root, images, options)?;
    let options = estargz::after(options);
    let descriptor = put_documents(root, images, &options, Listing::AsPulled)?;
    let content = Content::gather(root, &[(descriptor, options.names.clone())], packing)?;
    let image = content.images.first().expect("one image was gathered");
    let exported = Exported {
        descriptor: image.descriptor.clone(),
        config: only_config(image.manifests.iter().map(|(_, manifest)| manifest)),
        names: options.names,
    };
    Ok((content, exported))
}

/// Writes `content` as one tar.
pub(crate) fn write(content: &Content, format: Format, mut sink: Sink) -> Result<(), Failure> {
    match format {
        Format::Oci => oci_archive::write(content, &mut sink)?,
        Format::Docker => docker_archive::write(content, &mut sink)?,
    }
    sink.finish()
}
