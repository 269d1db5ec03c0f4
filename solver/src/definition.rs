//! A [`Definition`]: the directed acyclic graph of a build. Equal vertices are one vertex.

use std::collections::HashMap;
use std::sync::Arc;

use image::ContentDigest;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};

use crate::op::{Op, Source};

/// A vertex of one definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub u32);

impl VertexId {
    /// As an index into a slice with an element a vertex.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One step of the build.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it reads, in the order the op counts.
    pub inputs: Vec<Input>,
    /// What people see.
    pub metadata: Metadata,
    /// Hash of op and inputs: equal vertices have equal digests. Not a cache key.
    pub digest: ContentDigest,
    /// [`Op::digest`], computed once.
    pub op_digest: ContentDigest,
}

/// What of an op decides how its result is made up; all the machine knows of ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A source that is pinned, and fetched when its files are needed.
    Source,
    /// A local directory: no layers, no result, always read through selectors.
    Local,
    /// Runs and makes one layer on top of input `base`.
    Layer {
        /// Which input; `None` for nothing.
        base: Option<usize>,
    },
    /// Its inputs over each other.
    Merge,
    /// What input 1 has on top of input 0.
    Diff,
}

/// An edge: a vertex reads another's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Whose files.
    pub vertex: VertexId,
    /// Which of them; `None` for all.
    pub selector: Option<Arc<Selector>>,
}

/// Which files of an input an op reads: the union of its picks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// What is picked.
    pub picks: Vec<Pick>,
}

/// One path or pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pick {
    /// Absolute and clean; everything below a directory is meant too.
    pub path: String,
    /// `path` is a pattern of Go's `filepath.Match`.
    pub wildcard: bool,
    /// If `path` is a symbolic link, what it points to is read.
    pub follow_symlinks: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// `--parents`: the names of parent directories matter, and `**` is allowed.
    pub parents: bool,
}

/// What people see of a vertex. Not part of its digest, nor of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `[stage-1 2/4] RUN make`, as BuildKit's progress shows it.
    pub name: String,
    /// Stage it belongs to, as shown; empty for none.
    pub stage: String,
    /// Byte range of the instruction in the Dockerfile.
    pub span: Option<(usize, usize)>,
    /// Never take it from the cache.
    pub ignore_cache: bool,
    /// What each input is, for `explain`: `base`, `context`, `stage build`, ...
    pub input_names: Vec<String>,
    /// Which variables of an exec's environment come from ARG rather than ENV, for `explain`.
    pub arg_names: Vec<String>,
}

/// A build graph and the vertices whose files are wanted.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    graph: DiGraph<Vertex, ()>,
    by_digest: HashMap<ContentDigest, VertexId>,
}

impl Selector {
    /// Picks everything: what a local source is read through if nobody says less.
    pub fn all() -> Self {
        let everything = Pick {
            path: "/".to_owned(),
            wildcard: false,
            follow_symlinks: false,
            exclude: Vec::new(),
            parents: false,
        };
        Self { picks: vec![everything] }
    }

    /// The digest of the selector itself (not of what it picks).
    pub fn digest(&self) -> ContentDigest {
        let bytes =
            serde_json::to_vec(self).expect("selectors have string keys only and no failing serialisers");
        ContentDigest::of(&bytes)
    }
}

impl Definition {
    /// Adds a vertex, or finds the equal one that is there. Inputs are vertices of this definition: there is no way
    /// to make a cycle. Of two equal vertices the first one's metadata stays, but `ignore_cache` of either counts.
    pub fn add(&mut self, op: Op, inputs: Vec<Input>, metadata: Metadata) -> VertexId {
        let op_digest = op.digest();
        let digest = self.vertex_digest(op_digest, &inputs);
        if let Some(&id) = self.by_digest.get(&digest) {
            self.graph[node(id)].metadata.ignore_cache |= metadata.ignore_cache;
            return id;
        }
        let mut sources: Vec<VertexId> = inputs.iter().map(|input| input.vertex).collect();
        sources.sort_unstable();
        sources.dedup();
        let index = self.graph.add_node(Vertex { op, inputs, metadata, digest, op_digest });
        let id = VertexId(index.index() as u32);
        for source in sources {
            // Not `update_edge`, which looks through all edges of the source: a context can have tens of thousands.
            self.graph.add_edge(node(source), index, ());
        }
        self.by_digest.insert(digest, id);
        id
    }

    /// The vertex `id`.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.graph[node(id)]
    }

    /// How many vertices there are; their ids are `0..len`, inputs before the vertices that read them.
    pub fn len(&self) -> usize {
        self.graph.node_count()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.graph.node_count() == 0
    }

    /// All ids, inputs before the vertices that read them.
    pub fn ids(&self) -> impl Iterator<Item = VertexId> + use<> {
        (0..self.graph.node_count() as u32).map(VertexId)
    }

    /// The vertices that read `id`'s files.
    pub fn users(&self, id: VertexId) -> impl Iterator<Item = VertexId> + '_ {
        self.graph
            .neighbors_directed(node(id), Direction::Outgoing)
            .map(|index| VertexId(index.index() as u32))
    }

    fn vertex_digest(&self, op: ContentDigest, inputs: &[Input]) -> ContentDigest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&op.0);
        for input in inputs {
            hasher.update(&self.vertex(input.vertex).digest.0);
            match &input.selector {
                Some(selector) => hasher.update(&[1]).update(&selector.digest().0),
                None => hasher.update(&[0]),
            };
        }
        ContentDigest(*hasher.finalize().as_bytes())
    }
}

impl Vertex {
    /// The source, if it is one.
    pub fn source(&self) -> Option<&Source> {
        match &self.op {
            Op::Source(source) => Some(source),
            _ => None,
        }
    }

    /// Whether it runs a process, of which there are only so many at a time.
    pub fn is_process(&self) -> bool {
        matches!(self.op, Op::Exec(_))
    }

    /// How its result is made up.
    pub fn shape(&self) -> Shape {
        match &self.op {
            Op::Source(Source::Local { .. }) => Shape::Local,
            Op::Source(_) => Shape::Source,
            Op::Exec(_) => Shape::Layer { base: (!self.inputs.is_empty()).then_some(0) },
            Op::File(file) => Shape::Layer { base: file.base },
            Op::Merge => Shape::Merge,
            Op::Diff => Shape::Diff,
        }
    }
}

fn node(id: VertexId) -> NodeIndex {
    NodeIndex::new(id.index())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{File, FileAction};

    fn local(name: &str) -> Op {
        Op::Source(Source::Local { name: name.to_owned(), ignore: Vec::new() })
    }

    fn mkdir(path: &str) -> Op {
        Op::File(File {
            base: Some(0),
            actions: vec![FileAction::Mkdir { path: path.to_owned(), mode: 0o755, owner: None }],
        })
    }

    #[test]
    fn equal_vertices_are_one() {
        let mut definition = Definition::default();
        let input = |vertex| Input { vertex, selector: None };
        let a = definition.add(local("context"), Vec::new(), Metadata::default());
        let b = definition.add(local("other"), Vec::new(), Metadata::default());
        let x = definition.add(mkdir("/x"), vec![input(a)], Metadata::default());
        assert_eq!(definition.add(local("context"), Vec::new(), Metadata::default()), a);
        let no_cache = Metadata { ignore_cache: true, ..Metadata::default() };
        assert_eq!(definition.add(mkdir("/x"), vec![input(a)], no_cache), x);
        assert!(definition.vertex(x).metadata.ignore_cache);
        assert_ne!(definition.add(mkdir("/x"), vec![input(b)], Metadata::default()), x);
        assert_eq!(definition.users(a).collect::<Vec<_>>(), [x]);
    }
}
