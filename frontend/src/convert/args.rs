//! Build args: what the command line gives, what ARG before the first FROM defines, and the platform's.

use std::collections::HashMap;

use image::Platform;

use crate::ast::{Instruction, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::expand;
use crate::request::Request;

use super::env::Variables;

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
    /// Names of ARGs before the first FROM, set or not.
    pub(super) declared: Vec<String>,
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

        let none = HashMap::new();
        let defaults = evaluate(variables.clone(), &none, globals, escape).ok();
        let globals_set = evaluate(variables, &given, globals, escape)?;
        let declared = definitions(globals).map(|(_, definition)| definition.name.value.clone()).collect();
        Ok(Self { given, globals: globals_set, defaults, declared })
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

fn definitions(globals: &[Instruction]) -> impl Iterator<Item = (&Instruction, &crate::ast::ArgDefinition)> {
    globals.iter().flat_map(|instruction| {
        let definitions = match &instruction.kind {
            InstructionKind::Arg(definitions) => definitions.as_slice(),
            _ => &[],
        };
        definitions.iter().map(move |definition| (instruction, definition))
    })
}

fn evaluate(
    mut variables: Variables,
    given: &HashMap<String, String>,
    globals: &[Instruction],
    escape: char,
) -> Result<Variables, Diagnostic> {
    for (instruction, definition) in definitions(globals) {
        let name = &definition.name.value;
        let value = match (given.get(name), &definition.value) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => {
                let expanded = expand::expand_word(&default.value, escape, &variables)
                    .map_err(|error| Diagnostic::error("expansion", instruction.span, error.to_string()))?;
                Some(expanded.text)
            }
            (None, None) => None,
        };
        if let Some(value) = value {
            variables.set(name, &value);
        }
    }
    Ok(variables)
}
