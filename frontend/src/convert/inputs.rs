//! The inputs of a vertex while it is made: each vertex read once, with the union of what is read of it.

use std::collections::HashSet;
use std::sync::Arc;

use solver::definition::{Definition, Pick, Selector};
use solver::op::Source;
use solver::{Input, Op, VertexId};

/// Inputs and what they are called.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    inputs: Vec<Reading>,
}

#[derive(Debug)]
struct Reading {
    vertex: VertexId,
    // `None`: all of it, by its result.
    picks: Option<Vec<Pick>>,
    base: bool,
    name: String,
}

impl Inputs {
    /// With a root, input 0.
    pub(super) fn with_base(vertex: VertexId) -> Self {
        let base = Reading { vertex, picks: None, base: true, name: "base".to_owned() };
        Self { inputs: vec![base] }
    }

    /// Reads `pick` of `vertex`: the index of the input that has it.
    pub(super) fn read(
        &mut self,
        definition: &Definition,
        vertex: VertexId,
        pick: Pick,
        name: String,
    ) -> usize {
        // All of a result is told apart by the result's own digest; a local directory has none.
        let local = matches!(definition.vertex(vertex).op, Op::Source(Source::Local { .. }));
        let all = pick.path == "/" && pick.exclude.is_empty() && !pick.wildcard && !local;
        let found = self.inputs.iter().position(|input| !input.base && input.vertex == vertex);
        let at = found.unwrap_or_else(|| {
            self.inputs.push(Reading { vertex, picks: Some(Vec::new()), base: false, name });
            self.inputs.len() - 1
        });
        match &mut self.inputs[at].picks {
            picks if all => *picks = None,
            Some(picks) => picks.push(pick),
            None => {}
        }
        at
    }

    /// For the definition: inputs and their names.
    pub(super) fn finish(self) -> (Vec<Input>, Vec<String>) {
        self.inputs
            .into_iter()
            .map(|reading| {
                let selector = reading.picks.map(|mut picks| {
                    let mut seen = HashSet::new();
                    picks.retain(|pick| seen.insert(pick.clone()));
                    Arc::new(Selector { picks })
                });
                (Input { vertex: reading.vertex, selector }, reading.name)
            })
            .unzip()
    }
}
