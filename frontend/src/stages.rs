//! Stages: what stands between one FROM and the next. Structure and names only; nothing is expanded here.

use std::collections::HashMap;

use crate::ast::{Dockerfile, From, Instruction, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::suggest;

/// All stages of a file.
#[derive(Debug)]
pub struct Stages<'a> {
    /// ARG instructions before the first FROM.
    pub globals: &'a [Instruction],
    /// The stages in order.
    pub stages: Vec<Stage<'a>>,
    // Lower-case name to the last stage that has it.
    by_name: HashMap<String, usize>,
}

/// One stage.
#[derive(Debug)]
pub struct Stage<'a> {
    /// Its place in the file, from 0.
    pub index: usize,
    /// Its name in lower case.
    pub name: Option<String>,
    /// The whole FROM.
    pub instruction: &'a Instruction,
    /// What FROM says.
    pub from: &'a From,
    /// The instructions after FROM.
    pub body: &'a [Instruction],
}

impl<'a> Stages<'a> {
    /// Cuts a file into stages.
    pub fn of(dockerfile: &'a Dockerfile) -> Self {
        let instructions = dockerfile.instructions.as_slice();
        let starts: Vec<usize> = (0..instructions.len())
            .filter(|&at| matches!(instructions[at].kind, InstructionKind::From(_)))
            .collect();
        let globals = &instructions[..starts.first().copied().unwrap_or(instructions.len())];
        let mut stages = Vec::with_capacity(starts.len());
        let mut by_name = HashMap::new();
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(instructions.len());
            let InstructionKind::From(from) = &instructions[start].kind else { continue };
            let name = from.name.as_ref().map(|name| name.value.to_lowercase());
            if let Some(name) = &name {
                by_name.insert(name.clone(), index);
            }
            stages.push(Stage {
                index,
                name,
                instruction: &instructions[start],
                from,
                body: &instructions[start + 1..end],
            });
        }
        Self { globals, stages, by_name }
    }

    /// The last stage of that name, whatever its case.
    pub fn named(&self, name: &str) -> Option<&Stage<'a>> {
        self.by_name.get(&name.to_lowercase()).map(|&index| &self.stages[index])
    }

    /// All names, for suggestions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().filter_map(|stage| stage.name.as_deref())
    }

    /// The stage to build: the one named, or the last.
    pub fn target(&self, name: Option<&str>) -> Result<&Stage<'a>, Diagnostic> {
        let found = match name {
            None | Some("") => self.stages.last(),
            Some(name) => match self.named(name) {
                Some(stage) => Some(stage),
                None => {
                    let message = format!("target stage {name:?} could not be found");
                    let span = self.stages.last().map(|stage| stage.instruction.span).unwrap_or_default();
                    let error = Diagnostic::error("unknown-target", span, message);
                    return Err(suggest::help(error, name, self.names()));
                }
            },
        };
        found.ok_or_else(|| {
            Diagnostic::error("no-stages", Default::default(), "dockerfile contains no stages to build")
        })
    }
}

impl Stage<'_> {
    /// As progress shows it: its name, or `stage-N`.
    pub fn display(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("stage-{}", self.index))
    }
}
