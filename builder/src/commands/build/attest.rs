//! What is said about an image beside it.

use image::tree::Tree;
use image::{Digest, Platform};
use serde_json::{Value, json};
use solver::Definition;
use solver::op::Source;
use worker::source::remote::Known;
use worker::source::resolve::Images;

use super::Build;
use crate::attest::{Attestation, Mode, Provenance, provenance};
use crate::export::AssembledImage;
use crate::failure::{Class, Failure, OrFail as _};
use crate::request::ContextSource;
use crate::sbom;

impl Build<'_> {
    /// What is said about an image beside it.
    pub(super) fn attest(
        &self,
        definition: &Definition,
        image: &AssembledImage,
        times: Option<(i64, i64)>,
        images: &Images,
    ) -> Result<Vec<Attestation>, Failure> {
        let wanted = &self.request.attestations;
        let mut made = Vec::new();
        if wanted.sbom {
            let layers = self.root.layers();
            let indexes = image.diff_ids().iter().map(|diff_id| layers.index(diff_id));
            let tree = Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?);
            let found = sbom::scan(&tree, &layers).or_fail(Class::Host)?;
            for unread in &found.unread {
                crate::commands::eprint(&format!(
                    "WARNING: the bill of materials is not complete: {unread}\n"
                ));
            }
            let name = self.request.tags.first().map_or_else(|| "image".to_owned(), |tag| tag.familiar());
            let time = image.config.created.as_deref().and_then(crate::show::parse_rfc3339).unwrap_or(0);
            let predicate = sbom::document(&found, &name, &image.config.id(), time);
            made.push(Attestation {
                predicate_type: "https://spdx.dev/Document",
                predicate,
                file: "sbom.spdx.json".to_owned(),
            });
        }
        if let Some(asked) = &wanted.provenance {
            let resolved = |source: &Source| self.resolved(source, images);
            made.push(provenance::provenance(
                asked,
                &self.facts(definition, &image.platform, times, &resolved),
            ));
        }
        Ok(made)
    }

    /// What `--metadata-file` has of the provenance: in the older version of SLSA, as buildx writes it there.
    pub(super) fn provenance_for_metadata(
        &self,
        definition: &Definition,
        platform: &Platform,
        times: (i64, i64),
        images: &Images,
    ) -> Option<Value> {
        self.request.metadata_file.as_ref()?;
        let mode = self.request.metadata_provenance?;
        let resolved = |source: &Source| self.resolved(source, images);
        let facts = self.facts(definition, platform, Some(times), &resolved);
        let predicate = provenance::predicate(&Provenance::default(), &facts);
        let mut predicate = provenance::version_0_2(&predicate);
        if mode == Mode::Min {
            for key in ["buildConfig", "metadata"] {
                predicate.as_object_mut().and_then(|predicate| predicate.remove(key));
            }
        }
        Some(predicate)
    }

    /// What a source was in this build.
    fn resolved(&self, source: &Source, images: &Images) -> Option<Value> {
        let of = |digest: Digest| json!({ digest.algorithm(): digest.hex() });
        match source {
            Source::Image { .. } | Source::OciLayout { .. } => images.known(source).map(of),
            Source::Local { .. } => None,
            Source::Git { .. } | Source::Http { .. } => Some(match self.remotes.known(source)? {
                Known::Commit(commit) => json!({ "sha1": commit }),
                Known::Bytes(digest) => of(digest),
            }),
        }
    }

    fn facts<'a>(
        &'a self,
        definition: &'a Definition,
        platform: &'a Platform,
        times: Option<(i64, i64)>,
        resolved: &'a dyn Fn(&Source) -> Option<Value>,
    ) -> provenance::Facts<'a> {
        let request = self.request;
        provenance::Facts {
            definition,
            platform,
            dockerfile: (&self.parsed.name, &self.parsed.text),
            target: request.target.as_deref(),
            build_args: &request.build_args,
            labels: &request.labels,
            secrets: request.secrets.keys().collect(),
            ssh: request.ssh.keys().collect(),
            no_cache: request.no_cache,
            remote: match &request.context {
                ContextSource::Remote(url) => Some(url),
                _ => None,
            },
            context: self.context.source.as_ref(),
            resolved,
            invocation: &self.id,
            times,
        }
    }
}
