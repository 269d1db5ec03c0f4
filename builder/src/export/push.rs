//! Pushes what was exported, under all of its names.

use std::cell::Cell;
use std::collections::BTreeSet;

use image::{Descriptor, DiffId, Reference};
use store::push::{self, Watch};
use store::registry::{Client, Progress as Report, Pushed};
use store::root::Root;

use super::Exported;
use super::options::Options;
use crate::failure::Failure;
use crate::progress::Task;
use crate::registry::allow_insecure;

/// Pushes an image as `options` say. What comes back says what the registry has now.
pub(crate) async fn push(
    root: &Root,
    client: &Client,
    exported: Exported,
    options: &Options,
    task: &Task,
) -> Result<Exported, Failure> {
    if options.names.is_empty() {
        return Err(Failure::usage("a tag is needed to push: give -t NAME"));
    }
    let client = &match options.insecure {
        true => insecure(client, &options.names),
        false => client.clone(),
    };
    let how = push::Options {
        compression: options.compression,
        force: options.force_compression,
        oci: options.oci,
    };
    let watch = Shown { task, layers: Cell::new(0) };
    let stored = exported.descriptor;
    let mut descriptor = stored.clone();
    for name in &options.names {
        let target = match options.push_by_digest {
            true => name.by_digest(stored.digest),
            false => name.clone().with_default_tag(),
        };
        let pushed = push::push(root, client, &stored, &target, &how, &watch).await?;
        descriptor = Descriptor { annotations: stored.annotations.clone(), ..pushed };
    }
    Ok(Exported { descriptor, ..exported })
}

/// A client that does not verify the certificates of the registries of `names`.
fn insecure(client: &Client, names: &[Reference]) -> Client {
    let mut config = client.config().clone();
    for registry in names.iter().map(|name| name.registry.as_str()).collect::<BTreeSet<_>>() {
        allow_insecure(&mut config, registry);
    }
    Client::new(config)
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
