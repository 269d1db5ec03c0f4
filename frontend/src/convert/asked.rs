//! What the converted stages ask of whoever builds them: build args, secrets, SSH agents, caches. For `outline`.

use std::collections::{BTreeMap, BTreeSet};

use solver::op::{Mount, MountKind};

use crate::ast::Span;

use super::args::Args;

/// By name. Of an ARG that several stages declare, the last one's default counts: the target comes last.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) args: BTreeMap<String, AskedArg>,
    pub(crate) secrets: BTreeMap<String, AskedMount>,
    pub(crate) ssh: BTreeMap<String, AskedMount>,
    pub(crate) caches: BTreeMap<String, Span>,
}

/// An ARG.
#[derive(Clone, Debug, Default)]
pub(crate) struct AskedArg {
    pub(crate) value: String,
    pub(crate) description: Option<String>,
    pub(crate) span: Span,
}

/// A secret or an SSH agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskedMount {
    pub(crate) required: bool,
    pub(crate) span: Span,
}

impl Asked {
    /// A stage uses `name` of the global scope; the ARGs that its default is made of are used as well.
    pub(super) fn global(&mut self, name: &str, args: &Args) {
        let mut seen = BTreeSet::new();
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            let Some(global) = args.declared.get(name) else { continue };
            if !seen.insert(name) {
                continue;
            }
            let value = args.global(name).unwrap_or("").to_owned();
            let arg = AskedArg { value, description: global.description.clone(), span: global.span };
            self.args.insert(name.to_owned(), arg);
            open.extend(global.needs.iter().map(String::as_str));
        }
    }

    /// A RUN has these mounts.
    pub(super) fn mounts(&mut self, mounts: &[Mount], span: Span) {
        for mount in mounts {
            let (known, id, required) = match &mount.kind {
                MountKind::Secret { id, required, .. } => (&mut self.secrets, id, *required),
                MountKind::Ssh { id, required, .. } => (&mut self.ssh, id, *required),
                MountKind::Cache { id, .. } => {
                    self.caches.entry(id.clone()).or_insert(span);
                    continue;
                }
                MountKind::Bind { .. } | MountKind::Tmpfs { .. } => continue,
            };
            let asked = known.entry(id.clone()).or_insert(AskedMount { required, span });
            asked.required |= required;
        }
    }
}
