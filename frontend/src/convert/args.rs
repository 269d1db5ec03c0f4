//! Build args: what the command line gives, what ARG before the first FROM defines, and the platform's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use image::Platform;

use crate::ast::{Instruction, InstructionKind, Span};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::request::Request;

use super::env::Variables;
use super::epoch;

/// Predefined in the global scope.
pub(super) const PLATFORM_ARGS: [&str; 11] = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];

/// The args that exist before the first stage.
#[derive(Debug)]
pub(super) struct Args {
    given: HashMap<String, String>,
    /// Global scope: platform args and ARGs before the first FROM.
    pub(super) globals: Variables,
    /// The same as if nothing had been given: checks that the defaults alone make sense.
    pub(super) defaults: Option<Variables>,
    /// ARGs before the first FROM, set or not.
    pub(super) declared: BTreeMap<String, GlobalArg>,
}

/// An ARG before the first FROM.
#[derive(Clone, Debug, Default)]
pub(super) struct GlobalArg {
    pub(super) span: Span,
    pub(super) description: Option<String>,
    /// The ARGs that its default uses.
    pub(super) needs: BTreeSet<String>,
}

impl Args {
    pub(super) fn new(
        request: &Request,
        build: &Platform,
        target: &Platform,
        target_name: Option<&str>,
        globals: &[Instruction],
        escape: char,
    ) -> Result<Self, Diagnostic> {
        let given: HashMap<String, String> = request.build_args.iter().cloned().collect();
        let mut variables = Variables::default();
        let mut set = |name: &str, value: &str| {
            variables.set(name, given.get(name).map_or(value, String::as_str));
        };
        for (prefix, platform) in [("BUILD", build), ("TARGET", target)] {
            set(&format!("{prefix}PLATFORM"), &platform.to_string());
            set(&format!("{prefix}OS"), &platform.os);
            set(&format!("{prefix}OSVERSION"), platform.os_version.as_deref().unwrap_or(""));
            set(&format!("{prefix}ARCH"), &platform.architecture);
            set(&format!("{prefix}VARIANT"), platform.variant.as_deref().unwrap_or(""));
        }
        set("TARGETSTAGE", target_name.filter(|name| !name.is_empty()).unwrap_or("default"));

        let defaults = evaluate(variables.clone(), &HashMap::new(), globals, escape).ok();
        let (globals, declared) = evaluate(variables, &given, globals, escape)?;
        Ok(Self { given, globals, defaults: defaults.map(|(variables, _)| variables), declared })
    }

    /// Puts the time in the place of the name of what has it.
    pub(super) fn settle_epoch(&mut self, epoch: Option<i64>) {
        let text = epoch.map(|seconds| seconds.to_string()).unwrap_or_default();
        if let Some(given) = self.given.get_mut(epoch::NAME).filter(|given| !given.is_empty()) {
            given.clone_from(&text);
        }
        if self.globals.get(epoch::NAME).is_some_and(|global| !global.is_empty()) {
            self.globals.set(epoch::NAME, &text);
        }
    }

    /// What `--build-arg` says of `name`.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str)
    }

    /// All names that `--build-arg` sets.
    pub(super) fn given_names(&self) -> impl Iterator<Item = &str> {
        self.given.keys().map(String::as_str)
    }

    /// The value of `name` in the global scope.
    pub(super) fn global(&self, name: &str) -> Option<&str> {
        self.globals.get(name)
    }
}

/// The global scope after all ARGs, and what they are.
fn evaluate(
    mut variables: Variables,
    given: &HashMap<String, String>,
    globals: &[Instruction],
    escape: char,
) -> Result<(Variables, BTreeMap<String, GlobalArg>), Diagnostic> {
    let mut declared: BTreeMap<String, GlobalArg> = BTreeMap::new();
    for instruction in globals {
        let InstructionKind::Arg(definitions) = &instruction.kind else { continue };
        for definition in definitions {
            let name = &definition.name.value;
            let arg = declared.entry(name.clone()).or_default();
            arg.span = instruction.span;
            arg.description.clone_from(&definition.comment);
            if let Some(value) = given.get(name) {
                arg.needs.clear();
                variables.set(name, value);
            } else if let Some(default) = &definition.value {
                let expanded = expand::expand_word(&default.value, escape, &variables)
                    .map_err(|error| error.diagnostic(instruction.span))?;
                // What its own earlier default needed, it still needs.
                if !expanded.used.contains(name) {
                    arg.needs.clear();
                }
                arg.needs.extend(expanded.used.into_iter().filter(|used| used != name));
                variables.set(name, &expanded.text);
            }
        }
    }
    Ok((variables, declared))
}
