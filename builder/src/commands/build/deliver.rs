//! Where the result of a build goes: outputs and caches.

use std::collections::HashSet;

use bstr::ByteSlice as _;
use image::tree::Tree;
use serde_json::{Value, json};
use store::registry::{Client, Progress as Report};
use store::speed::Fetched;
use worker::source::image::pull;

use super::{Build, Made};
use crate::attest;
use crate::cache::export::{self as cache_export, Exports, Material};
use crate::cache::import::Imports;
use crate::export::file::Sink;
use crate::export::{self, AssembledImage, Exported, flat};
use crate::failure::{Class, Failure, OrFail as _};
use crate::progress::Progress;
use crate::request::{Output, OutputKind};

impl Build<'_> {
    /// `--cache-to`
    pub(super) async fn export_caches(
        &self,
        made: &[Made],
        client: &Client,
        imports: &Imports,
        progress: &Progress,
    ) -> Result<Exports, Failure> {
        let caches = &self.request.cache_to;
        if caches.is_empty() {
            return Ok(Exports::default());
        }
        let mut material = Material::default();
        for made in made {
            material.used.records.extend(made.used.records.clone());
            material.used.memo.extend(made.used.memo.clone());
            material.results.extend(made.layers.iter().copied());
            material.named.extend(made.mounts.iter().cloned());
        }
        cache_export::export(self.root, client, imports, caches, &material, &progress.handle()).await
    }

    /// What caches of other builders saved and what they cost, if any were asked for.
    pub(super) fn cache_summary(
        &self,
        made: &[Made],
        imports: &Imports,
        exports: &Exports,
    ) -> Option<String> {
        if !self.request.shares_caches() {
            return None;
        }
        let hits = || made.iter().flat_map(|made| made.used.hits.iter().map(|key| &made.used.records[key]));
        let steps: usize = made.iter().map(|made| made.used.records.len()).sum();
        let mut text = format!(
            "cache: {} of {steps} steps reused, {:.1}s of work saved",
            hits().count(),
            hits().fold(0.0, |sum, record| sum + record.seconds),
        );
        if !self.request.cache_from.is_empty() {
            text.push_str(&format!("; read in {:.2}s", imports.seconds()));
            let Fetched { bytes, seconds } = self.root.speeds().fetched();
            if bytes > 0 {
                text.push_str(&format!(", layers of {:.1} MB in {seconds:.2}s", bytes as f64 / 1e6));
            }
            let (bytes, seconds) = imports.fetched_mounts();
            if bytes > 0 {
                text.push_str(&format!(", cache mounts of {:.1} MB in {seconds:.2}s", bytes as f64 / 1e6));
            }
        }
        if !self.request.cache_to.is_empty() {
            let Exports { sent, seconds } = exports;
            let megabytes = sent.bytes as f64 / 1e6;
            text.push_str(&format!(
                "; written in {seconds:.2}s, {} of {} blobs new, {megabytes:.1} MB",
                sent.new, sent.layers
            ));
        }
        Some(text)
    }

    pub(super) async fn export(
        &self,
        output: &Output,
        made: &[Made],
        client: &Client,
        progress: &Progress,
    ) -> Result<Option<Exported>, Failure> {
        let image = |made: &Made| match &made.as_made {
            Some(as_made) if !output.rewrites_times() => as_made.clone(),
            _ => made.image.clone(),
        };
        let images: Vec<AssembledImage> = made.iter().map(image).collect();
        if output.options.contains_key("compression") && output.flag("force-compression")? == Some(true) {
            // Also what is at its registry only.
            for image in &images {
                pull(self.root, client, image.diff_ids(), |_| Report::none()).await?;
            }
        }
        let task = match output.kind {
            OutputKind::CacheOnly => return Ok(None),
            OutputKind::Image => progress.handle().task("exporting to image"),
            OutputKind::Tar | OutputKind::Local => progress.handle().task("exporting files"),
            OutputKind::Oci => progress.handle().task("exporting to oci image format"),
            OutputKind::Docker => progress.handle().task("exporting to docker image format"),
            OutputKind::Load => progress.handle().task("loading into docker"),
        };
        let exported = match output.kind {
            OutputKind::CacheOnly => None,
            OutputKind::Image => {
                let options = export::options::Options::new(output, &self.request.tags)?;
                let mut exported = export::image::export_image(self.root, &images, &options)?;
                if options.push {
                    task.done();
                    let task = progress.handle().task("pushing layers");
                    let options = export::estargz::after(&options);
                    exported = export::push::push(self.root, client, exported, &options, &task).await?;
                    task.done();
                    return Ok(Some(exported));
                }
                Some(exported)
            }
            OutputKind::Tar | OutputKind::Local => {
                self.export_files(output, made)?;
                None
            }
            OutputKind::Load => {
                let docker = self.request.docker.as_ref().expect("it was found, or the output is another");
                Some(export::archive::load(self.root, &images, output, &self.request.tags, docker)?)
            }
            OutputKind::Oci | OutputKind::Docker => {
                Some(export::archive::export_archive(self.root, &images, output, &self.request.tags)?)
            }
        };
        task.done();
        Ok(exported)
    }

    /// Plain files, of several platforms a directory each, as in BuildKit. What is said about them stands beside them.
    pub(super) fn export_files(&self, output: &Output, made: &[Made]) -> Result<(), Failure> {
        let layers = self.root.layers();
        let split = output.flag("platform-split")?.unwrap_or(made.len() > 1);
        let prefix = output.options.get("attestation-prefix").map_or("", String::as_str);
        let mut trees = Vec::with_capacity(made.len());
        for one in made {
            let indexes = one.layers.iter().map(|layer| layers.index(&layer.diff_id));
            trees.push(Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?));
        }
        let mut parts = Vec::with_capacity(made.len());
        for (one, tree) in made.iter().zip(&trees) {
            let platform = one.image.platform.to_string().replace('/', "_");
            let mut documents = Vec::new();
            if !one.image.attestations.is_empty() {
                let digests = flat::digests(tree, &layers).or_fail(Class::Host)?;
                let subjects: Vec<Value> = digests
                    .iter()
                    .map(|(path, digest)| json!({ "name": path.to_str_lossy(), "digest": { "sha256": digest.hex() } }))
                    .collect();
                for attestation in &one.image.attestations {
                    let name = match attestation.file.rsplit_once('.') {
                        Some((stem, extension)) if made.len() > 1 && !split => {
                            format!("{prefix}{stem}.{platform}.{extension}")
                        }
                        _ => format!("{prefix}{}", attestation.file),
                    };
                    documents.push((name, attest::statement(attestation, subjects.clone())));
                }
            }
            let directory = if split { platform } else { String::new() };
            parts.push(flat::Part {
                directory,
                top: bstr::BString::default(),
                tree,
                epoch: one.epoch,
                documents,
            });
        }
        match (output.kind, &output.dest) {
            (OutputKind::Local, Some(dest)) => {
                let mut written = HashSet::new();
                for part in &parts {
                    written.extend(flat::write_directory(part, &layers, dest).or_fail(Class::Host)?);
                }
                match output.deletes() {
                    true => flat::remove_others(dest, &written).or_fail(Class::Host),
                    false => Ok(()),
                }
            }
            (_, dest) => {
                let mut sink = Sink::open(dest.as_deref(), "dest")?;
                flat::write_tar(&parts, &layers, &mut sink).or_fail(Class::Host)?;
                sink.finish()
            }
        }
    }
}
