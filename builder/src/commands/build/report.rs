//! What a build that went well leaves and says at its end.

use frontend::Diagnostic;

use super::{Build, Left};
use crate::commands::print;
use crate::export::metadata::{self, Built};
use crate::failure::Failure;
use crate::progress::{Mode, rawjson};

impl Build<'_> {
    /// What a build that went well says at its end.
    pub(super) fn tell(&self, left: Left, findings: &[Diagnostic]) -> Result<(), Failure> {
        let Left { exported, cache, provenance, .. } = left;
        *self.digest.borrow_mut() = exported.as_ref().map(|exported| exported.descriptor.digest.to_string());
        if let Some(path) = &self.request.metadata_file {
            let warnings = match self.request.metadata_warnings {
                true => findings
                    .iter()
                    .map(|finding| rawjson::warning(finding, &self.parsed.name, &self.parsed.text))
                    .collect(),
                false => Vec::new(),
            };
            let metadata = metadata::metadata(&Built {
                build_ref: &format!("default/default/{}", self.id),
                exported: exported.as_ref(),
                provenance: &provenance,
                warnings,
                cache: cache.as_ref(),
            });
            metadata::write_metadata(path, &metadata)?;
        }
        if let (Some(path), Some(exported)) = (&self.request.iidfile, &exported) {
            metadata::write_iidfile(path, exported)?;
        }
        if let (true, Some(exported)) = (self.request.quiet, &exported) {
            let id = exported.config.unwrap_or(exported.descriptor.digest);
            print(|out| writeln!(out, "{id}"))?;
        }
        if self.request.explain {
            crate::commands::explain::print_last(self.root, None)?;
        }
        self.warn(findings);
        Ok(())
    }

    /// What was found in the Dockerfile, at the end, where it is seen.
    pub(super) fn warn(&self, findings: &[Diagnostic]) {
        if self.request.quiet {
            return;
        }
        if self.request.progress == Mode::RawJson {
            let lines = findings
                .iter()
                .map(|finding| rawjson::warning_line(finding, &self.parsed.name, &self.parsed.text));
            crate::commands::eprint(&lines.collect::<String>());
            return;
        }
        if let Some(summary) = self.parsed.report(findings, None).summary(self.request.debug) {
            crate::commands::eprint(&summary);
        }
        for finding in findings {
            let place = finding.spans.first().map(|span| self.parsed.place((span.start, span.end)));
            let note = place.and_then(|place| {
                self.session.ci.annotation("warning", &place, finding.code, &finding.message)
            });
            crate::commands::eprint(&note.unwrap_or_default());
        }
    }
}
