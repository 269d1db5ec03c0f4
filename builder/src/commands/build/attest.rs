//! What is said about an image beside it.

use image::tree::Tree;
use solver::Definition;

use super::Build;
use crate::attest::{Attestation, provenance};
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
    ) -> Result<Vec<Attestation>, Failure> {
        let wanted = &self.request.attestations;
        let mut made = Vec::new();
        if wanted.sbom {
            let layers = self.root.layers();
            let indexes = image.diff_ids().iter().map(|diff_id| layers.index(diff_id));
            let tree = Tree::of_layers(indexes.collect::<Result<Vec<_>, _>>()?);
            let packages = sbom::scan(&tree, &layers).or_fail(Class::Host)?;
            let name = self.request.tags.first().map_or_else(|| "image".to_owned(), |tag| tag.familiar());
            let time = image.config.created.as_deref().and_then(crate::show::parse_rfc3339).unwrap_or(0);
            let predicate = sbom::document(&packages, &name, &image.config.id(), time);
            made.push(Attestation {
                predicate_type: "https://spdx.dev/Document",
                predicate,
                file: "sbom.spdx.json",
            });
        }
        if let Some(asked) = &wanted.provenance {
            let request = self.request;
            let facts = provenance::Facts {
                definition,
                platform: &image.platform,
                dockerfile: (&self.parsed.name, &self.parsed.text),
                target: request.target.as_deref(),
                build_args: &request.build_args,
                labels: &request.labels,
                secrets: &request.secrets.keys().cloned().collect::<Vec<_>>(),
                ssh: &request.ssh.keys().cloned().collect::<Vec<_>>(),
                no_cache: request.no_cache,
                remote: match &request.context {
                    ContextSource::Remote(url) => Some(url),
                    _ => None,
                },
                invocation: &self.id,
                times,
            };
            made.push(provenance::provenance(asked, &facts));
        }
        Ok(made)
    }
}
