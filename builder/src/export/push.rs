//! Pushes what was exported, under all of its names.

use std::cell::Cell;

use image::{Descriptor, DiffId};
use store::push::{self, Watch};
use store::registry::{Client, Progress as Report, Pushed};
use store::root::Root;

use super::Exported;
use super::options::Options;
use crate::failure::Failure;
use crate::progress::Task;

/// Pushes an image as `options` say. What comes back says what the registry has now.
pub(crate) async fn push(
    root: &Root,
    client: &Client,
    exported: Exported,
    options: &Options,
    task: &Task,
) -> Result<Exported, Failure> {
    if exported.names.is_empty() {
        return Err(Failure::usage("a tag is needed to push: give -t NAME"));
    }
    let how = push::Options {
        compression: options.compression,
        force: options.force_compression,
        oci: options.oci,
    };
    let watch = Shown { task, layers: Cell::new(0) };
    let mut descriptor = exported.descriptor.clone();
    for name in &exported.names {
        let target = match options.push_by_digest {
            true => image::Reference { tag: None, ..name.clone() },
            false => name.clone(),
        };
        descriptor = push::push(root, client, &exported.descriptor, &target, &how, &watch).await?;
    }
    Ok(Exported { descriptor, ..exported })
}

/// Tells the display of each layer when it is there.
struct Shown<'a> {
    task: &'a Task,
    layers: Cell<usize>,
}

impl Watch for Shown<'_> {
    fn begin(&self, diff_id: &DiffId) -> Report {
        self.layers.set(self.layers.get() + 1);
        self.task.reporter(&diff_id.to_string())
    }

    fn end(&self, diff_id: &DiffId, blob: &Descriptor, _: Pushed) {
        self.task.progress(&diff_id.to_string(), blob.size, Some(blob.size), true);
    }
}
