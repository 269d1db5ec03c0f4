//! The driver and the machine against a plain evaluator: random graphs, edits, lost layers, any order of completion.
//!
//! The world is small: a tree is four files of one byte, a layer sets some of them, and ops are lossy functions of what
//! they read, so that different inputs often give equal outputs.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::pin::Pin as StdPin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::executor::block_on;
use image::{ChainId, ContentDigest, DiffId, Digest};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::definition::{Input, Metadata, Pick};
use crate::key::InputDigest;
use crate::machine::Machine;
use crate::op::{Exec, File, FileAction, Op, Source};
use crate::record::SnapshotLayer;
use crate::runner::Pin;

type Layer = [Option<u8>; 4];
type Tree = [u8; 4];

/// A graph as proptest makes and shrinks it.
#[derive(Clone, Debug)]
struct Plan {
    nodes: Vec<PlanNode>,
}

#[derive(Clone, Debug)]
struct PlanNode {
    kind: u8,
    op: u8,
    inputs: Vec<(Index, Option<u8>)>,
    ignore_cache: bool,
}

/// Everything outside the solver: sources, the cache, the disk.
#[derive(Default)]
struct World {
    sources: RefCell<HashMap<String, Tree>>,
    records: RefCell<HashMap<CacheKey, Record>>,
    steps: RefCell<HashMap<StepId, Record>>,
    memos: RefCell<HashMap<(ResultDigest, ContentDigest), ContentDigest>>,
    layers: RefCell<HashMap<DiffId, Layer>>,
    /// How often a key's layer was lost: an unstable op gives another output each time.
    losses: RefCell<HashMap<CacheKey, u8>>,
    random: Cell<u64>,
    /// One load in so many finds its layer gone; 0 for none.
    lose_one_in: u64,
    /// Op that fails.
    broken: Option<u8>,
    // Of the current build:
    here: RefCell<HashSet<DiffId>>,
    runs: RefCell<Vec<CacheKey>>,
    earlier: RefCell<Option<DiffId>>,
    lost: RefCell<Vec<CacheKey>>,
    loads: RefCell<Vec<VertexId>>,
    pins: Cell<usize>,
    running: Cell<usize>,
    most_running: Cell<usize>,
    locked: Rc<RefCell<HashSet<CacheKey>>>,
    events: RefCell<Vec<Event>>,
}

#[derive(Debug, PartialEq)]
struct Broken(u8);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {} is broken\nin a second line", self.0)
    }
}

/// Is pending for a number of polls.
struct Later(u64);

impl Future for Later {
    type Output = ();

    fn poll(mut self: StdPin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl World {
    fn next(&self, below: u64) -> u64 {
        let mut x = self.random.get() | 1;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 11) % below
    }

    fn later(&self) -> Later {
        Later(self.next(8))
    }

    fn source(&self, name: &str) -> Tree {
        self.sources.borrow().get(name).copied().unwrap_or_default()
    }

    fn put(&self, layer: Layer) -> SnapshotLayer {
        let diff_id = diff_id(layer);
        self.layers.borrow_mut().insert(diff_id, layer);
        SnapshotLayer { diff_id, created: None }
    }

    /// The tree of a snapshot. All of it must have been loaded or made in this build.
    fn tree(&self, snapshot: &Snapshot) -> Tree {
        let mut tree = Tree::default();
        for layer in &snapshot.layers {
            assert!(self.here.borrow().contains(&layer.diff_id), "read but not loaded");
            apply(&mut tree, self.layers.borrow()[&layer.diff_id]);
        }
        tree
    }

    fn view(&self, input: &InputRef<'_>) -> Tree {
        match input.vertex.source() {
            Some(Source::Local { name, .. }) => self.source(name),
            _ => self.tree(input.snapshot.as_ref().expect("loaded inputs have layers")),
        }
    }

    fn new_build(&self) {
        self.here.borrow_mut().clear();
        self.runs.borrow_mut().clear();
        self.lost.borrow_mut().clear();
        self.loads.borrow_mut().clear();
        self.events.borrow_mut().clear();
        self.pins.set(0);
    }

    fn solve(&self, definition: &Definition, roots: &[Root]) -> Result<Vec<Solved>, SolveError<Broken>> {
        self.solve_with(definition, roots, &options())
    }

    fn solve_with(
        &self,
        definition: &Definition,
        roots: &[Root],
        options: &Options,
    ) -> Result<Vec<Solved>, SolveError<Broken>> {
        self.new_build();
        let events = |event| self.events.borrow_mut().push(event);
        let solved = block_on(solve(definition, roots, self, self, &events, options));
        assert_eq!(self.running.get(), 0, "something runs after solve returned");
        assert!(self.locked.borrow().is_empty(), "a lock is held after solve returned");
        solved
    }
}

fn options() -> Options {
    Options { parallelism: 2, cancel: Cancel::new(), scope: String::new() }
}

fn diff_id(layer: Layer) -> DiffId {
    DiffId(Digest::of(format!("{layer:?}").as_bytes()))
}

fn content(layer: Layer) -> ContentDigest {
    ContentDigest::of(format!("{layer:?}").as_bytes())
}

fn apply(tree: &mut Tree, layer: Layer) {
    for (file, value) in tree.iter_mut().zip(layer) {
        *file = value.unwrap_or(*file);
    }
}

fn whole(tree: Tree) -> Layer {
    tree.map(Some)
}

/// Which file a selector picks; `None` for all.
fn picked(selector: &Selector) -> Option<usize> {
    selector.picks[0].path.trim_start_matches('/').parse().ok()
}

fn selected(tree: Tree, selector: &Selector) -> ContentDigest {
    match picked(selector) {
        Some(file) => ContentDigest::of(&[file as u8, tree[file]]),
        None => ContentDigest::of(&tree),
    }
}

/// What an op makes of what it reads.
fn evaluate(op: u8, vertex: &crate::definition::Vertex, views: &[Tree], losses: u8) -> Layer {
    let mut layer = Layer::default();
    let mut sum = op % 5;
    for (input, view) in vertex.inputs.iter().zip(views) {
        match input.selector.as_deref().and_then(picked) {
            Some(file) => layer[file] = Some(view[file] / 2),
            None => sum = view.iter().fold(sum, |sum, file| sum.wrapping_add(file / 3)),
        }
    }
    let unstable = if op.is_multiple_of(3) { losses } else { 0 };
    layer[usize::from(op % 4)] = Some(sum.wrapping_add(unstable));
    layer
}

fn op_number(vertex: &crate::definition::Vertex) -> u8 {
    match &vertex.op {
        Op::File(File { actions, .. }) => match &actions[0] {
            FileAction::Mkfile { data, .. } => data[0],
            other => unreachable!("{other:?}"),
        },
        Op::Exec(exec) => exec.args[0].parse().unwrap(),
        other => unreachable!("{other:?}"),
    }
}

fn source_name(vertex: &crate::definition::Vertex) -> &str {
    match vertex.source().unwrap() {
        Source::Local { name, .. } => name,
        Source::Http { url, .. } => url,
        Source::OciLayout { path, .. } => path,
        other => unreachable!("{other:?}"),
    }
}

impl Runner for World {
    type Error = Broken;

    fn pin<'a>(&'a self, job: Job<'a>) -> LocalBoxFuture<'a, Result<Pin, Broken>> {
        self.pins.set(self.pins.get() + 1);
        Box::pin(async move {
            self.later().await;
            let layer = whole(self.source(source_name(job.vertex)));
            Ok(match job.vertex.source() {
                Some(Source::Local { .. }) => Pin::default(),
                // An image: its layers are known from its config.
                Some(Source::OciLayout { .. }) => Pin {
                    result: Some(ResultDigest::image(ChainId::of(&[diff_id(layer)]))),
                    snapshot: Some(Snapshot { layers: vec![self.put(layer)] }),
                },
                _ => Pin { result: Some(ResultDigest::scratch().with_layer(content(layer))), snapshot: None },
            })
        })
    }

    fn select<'a>(
        &'a self,
        _job: Job<'a>,
        input: InputRef<'a>,
        selector: &'a Selector,
    ) -> LocalBoxFuture<'a, Result<Selection, Broken>> {
        Box::pin(async move {
            self.later().await;
            let here = match &input.snapshot {
                Some(snapshot) => {
                    snapshot.layers.iter().all(|layer| self.here.borrow().contains(&layer.diff_id))
                }
                None => input.result.is_none(),
            };
            if !here {
                return Ok(Selection::NeedFiles);
            }
            Ok(Selection::Digest(selected(self.view(&input), selector)))
        })
    }

    fn selected_files(&self, input: InputRef<'_>, selector: &Selector) -> Vec<RecordedInput> {
        let Some(file) = picked(selector).filter(|_| input.result.is_none()) else { return Vec::new() };
        let digest = ContentDigest::of(&[self.view(&input)[file]]);
        vec![RecordedInput { name: format!("file {file}"), digest }]
    }

    fn load<'a>(
        &'a self,
        job: Job<'a>,
        layers: Option<Snapshot>,
    ) -> LocalBoxFuture<'a, Result<Loaded, Broken>> {
        self.loads.borrow_mut().push(job.id);
        Box::pin(async move {
            self.later().await;
            if job.vertex.source().is_some() {
                let layer = self.put(whole(self.source(source_name(job.vertex))));
                self.here.borrow_mut().insert(layer.diff_id);
                return Ok(Loaded::Here(Snapshot { layers: vec![layer] }));
            }
            if job.cancel.is_cancelled() {
                return Err(Broken(0));
            }
            let layers = layers.unwrap();
            let own = layers.layers[0].diff_id;
            assert_eq!(layers.layers.len(), 1);
            let leased = self.here.borrow().contains(&own);
            if !leased && self.lose_one_in > 0 && self.next(self.lose_one_in) == 0 {
                self.layers.borrow_mut().remove(&own);
            }
            if !self.layers.borrow().contains_key(&own) {
                return Ok(Loaded::Lost);
            }
            self.here.borrow_mut().insert(own);
            Ok(Loaded::Here(layers))
        })
    }

    fn run<'a>(&'a self, job: Job<'a>, task: Task<'a>) -> LocalBoxFuture<'a, Result<Outcome, Broken>> {
        self.runs.borrow_mut().push(task.key);
        *self.earlier.borrow_mut() = task.earlier;
        let process = usize::from(job.vertex.is_process());
        self.running.set(self.running.get() + process);
        self.most_running.set(self.most_running.get().max(self.running.get()));
        Box::pin(async move {
            let op = op_number(job.vertex);
            // A broken op fails late, while others run; the others end only when they are told to.
            let stopped = match self.broken {
                Some(broken) if broken != op => {
                    job.cancel.cancelled().await;
                    true
                }
                Some(_) => {
                    Later(40).await;
                    true
                }
                None => {
                    self.later().await;
                    false
                }
            };
            self.running.set(self.running.get() - process);
            if stopped {
                return Err(Broken(op));
            }
            let views: Vec<Tree> = task.inputs.iter().map(|input| self.view(input)).collect();
            let losses = self.losses.borrow().get(&task.key).copied().unwrap_or_default();
            let layer = evaluate(op, job.vertex, &views, losses);
            let stored = self.put(layer);
            self.here.borrow_mut().insert(stored.diff_id);
            Ok(Outcome { layer: stored.diff_id, content: content(layer), seconds: 0.0, bytes: 0, created: 0 })
        })
    }
}

impl Cache for World {
    fn lookup(&self, key: CacheKey) -> Option<Record> {
        self.records.borrow().get(&key).cloned()
    }

    fn lookup_remote(&self, _key: CacheKey) -> Option<LocalBoxFuture<'_, Option<Record>>> {
        (self.next(2) == 0).then(|| self.later().map(|()| None).boxed_local())
    }

    fn insert(&self, key: CacheKey, step: StepId, _vertex: &crate::definition::Vertex, record: &Record) {
        self.records.borrow_mut().insert(key, record.clone());
        self.steps.borrow_mut().insert(step, record.clone());
    }

    fn forget(&self, key: CacheKey, layer: DiffId) {
        let mut records = self.records.borrow_mut();
        if records.get(&key).is_some_and(|record| record.layer == layer) {
            records.remove(&key);
            *self.losses.borrow_mut().entry(key).or_default() += 1;
            self.lost.borrow_mut().push(key);
        }
    }

    fn previous(&self, step: StepId, _: &[RecordedInput]) -> Option<Record> {
        self.steps.borrow().get(&step).cloned()
    }

    fn memo(&self, result: ResultDigest, selector: ContentDigest) -> Option<ContentDigest> {
        self.memos.borrow().get(&(result, selector)).copied()
    }

    fn set_memo(&self, result: ResultDigest, selector: ContentDigest, selected: ContentDigest) {
        self.memos.borrow_mut().insert((result, selector), selected);
    }

    fn lock(&self, key: CacheKey) -> LocalBoxFuture<'_, Box<dyn Any>> {
        struct Guard(Rc<RefCell<HashSet<CacheKey>>>, CacheKey);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.borrow_mut().remove(&self.1);
            }
        }
        Box::pin(async move {
            while !self.locked.borrow_mut().insert(key) {
                Later(1).await;
            }
            Box::new(Guard(self.locked.clone(), key)) as Box<dyn Any>
        })
    }
}

fn selector(file: u8) -> Arc<Selector> {
    let mut selector = Selector::all();
    selector.picks[0] = Pick { path: format!("/{file}"), ..selector.picks[0].clone() };
    Arc::new(selector)
}

fn file_op(op: u8, base: bool) -> Op {
    let make = FileAction::Mkfile {
        path: "/n".to_owned(),
        data: vec![op],
        mode: 0o644,
        parents_mode: 0o755,
        owner: None,
        name: None,
    };
    Op::File(File { base: base.then_some(0), actions: vec![make] })
}

fn exec_op(op: u8) -> Op {
    let platform = "linux/amd64".parse().unwrap();
    Op::Exec(Exec { cwd: "/".to_owned(), ..Exec::new(vec![op.to_string()], platform) })
}

fn image(name: &str) -> Op {
    let platform = "linux/amd64".parse().unwrap();
    Op::Source(Source::OciLayout { path: name.to_owned(), tag: None, digest: None, platform })
}

fn local(name: &str) -> Op {
    Op::Source(Source::Local { name: name.to_owned(), ignore: Vec::new() })
}

fn http(name: &str) -> Op {
    Op::Source(Source::Http {
        url: name.to_owned(),
        checksum: None,
        filename: "f".to_owned(),
        mode: None,
        owner: None,
    })
}

fn input(vertex: VertexId, file: Option<u8>) -> Input {
    Input { vertex, selector: file.map(selector) }
}

fn named(stage: &str, name: &str) -> Metadata {
    Metadata { stage: stage.to_owned(), name: name.to_owned(), ..Metadata::default() }
}

/// The plan as a definition, and the vertex of each of its nodes.
fn define(plan: &Plan, ignore_cache: bool) -> (Definition, Vec<VertexId>) {
    let mut definition = Definition::default();
    let mut ids = vec![definition.add(image("base"), Vec::new(), Metadata::default())];
    for (index, node) in plan.nodes.iter().enumerate() {
        let name = format!("source {index}");
        let mut inputs: Vec<Input> =
            node.inputs.iter().map(|(from, file)| input(ids[from.index(ids.len())], *file)).collect();
        let base = !node.inputs.is_empty() && node.op % 2 == 0;
        let whole = |count: usize, inputs: &mut Vec<Input>, definition: &Definition| {
            for input in inputs.iter_mut().take(count) {
                let local = definition.vertex(input.vertex).shape() == Shape::Local;
                *input = self::input(if local { VertexId(0) } else { input.vertex }, None);
            }
        };
        let op = match node.kind % 10 {
            0 => image(&name),
            1 => local(&name),
            2 => http(&name),
            3 => {
                whole(inputs.len(), &mut inputs, &definition);
                Op::Merge
            }
            4 => {
                inputs.extend([input(VertexId(0), None), input(ids[index], None)]);
                inputs.truncate(2);
                whole(2, &mut inputs, &definition);
                Op::Diff
            }
            5 | 6 if !inputs.is_empty() => {
                whole(1, &mut inputs, &definition);
                exec_op(node.op)
            }
            _ => {
                whole(usize::from(base), &mut inputs, &definition);
                file_op(node.op, base)
            }
        };
        if matches!(op, Op::Source(_)) {
            inputs.clear();
        }
        let ignore_cache = ignore_cache && node.ignore_cache;
        ids.push(definition.add(op, inputs, Metadata { ignore_cache, ..named("s", &name) }));
    }
    (definition, ids)
}

/// What a vertex is, computed in the plainest way.
#[derive(Clone, Debug, Default)]
struct Value {
    layers: Vec<Layer>,
    result: Option<ResultDigest>,
    tree: Tree,
}

fn plain(world: &World, definition: &Definition) -> Vec<Value> {
    let mut values: Vec<Value> = Vec::new();
    for id in definition.ids() {
        let vertex = definition.vertex(id);
        let of = |input: usize| &values[vertex.inputs[input].vertex.index()];
        let all = || (0..vertex.inputs.len()).map(of);
        let value = match (&vertex.op, vertex.shape()) {
            (Op::Source(_), shape) => {
                let tree = world.source(source_name(vertex));
                let result = match shape {
                    Shape::Local => None,
                    _ if matches!(vertex.source(), Some(Source::OciLayout { .. })) => {
                        Some(ResultDigest::image(ChainId::of(&[diff_id(whole(tree))])))
                    }
                    _ => Some(ResultDigest::scratch().with_layer(content(whole(tree)))),
                };
                Value { layers: vec![whole(tree)], result, tree }
            }
            (_, Shape::Layer { base }) => {
                let digests: Vec<InputDigest> = all()
                    .zip(&vertex.inputs)
                    .map(|(value, input)| match (&input.selector, value.result) {
                        (Some(selector), _) => InputDigest::Selected(selected(value.tree, selector)),
                        (None, Some(result)) => InputDigest::Result(result),
                        (None, None) => InputDigest::Selected(selected(value.tree, &Selector::all())),
                    })
                    .collect();
                let key = CacheKey::of(vertex.op.digest(), &digests);
                let losses = world.losses.borrow().get(&key).copied().unwrap_or_default();
                let views: Vec<Tree> = all().map(|value| value.tree).collect();
                let layer = evaluate(op_number(vertex), vertex, &views, losses);
                let below = base.map(|base| of(base).clone()).unwrap_or_default();
                let result = below.result.unwrap_or(ResultDigest::scratch()).with_layer(content(layer));
                Value {
                    layers: [below.layers, vec![layer]].concat(),
                    result: Some(result),
                    ..Value::default()
                }
            }
            (_, Shape::Diff) => {
                let shared = of(0).layers.iter().zip(&of(1).layers).take_while(|(a, b)| a == b).count();
                let result = ResultDigest::diff(of(0).result.unwrap(), of(1).result.unwrap());
                Value { layers: of(1).layers[shared..].to_vec(), result: Some(result), ..Value::default() }
            }
            _ => {
                let mut layers: Vec<Layer> = Vec::new();
                for value in all() {
                    let known = if value.layers.starts_with(&layers) { layers.len() } else { 0 };
                    layers.extend(&value.layers[known..]);
                }
                let results: Vec<ResultDigest> = all().map(|value| value.result.unwrap()).collect();
                Value { layers, result: Some(ResultDigest::merge(&results)), ..Value::default() }
            }
        };
        let mut tree = Tree::default();
        value.layers.iter().for_each(|&layer| apply(&mut tree, layer));
        values.push(Value { tree, ..value });
    }
    values
}

/// Vertices whose files a build that runs nothing may load: what makes up the roots that want files, and those whose
/// layers nobody knows before they are fetched.
fn may_load(definition: &Definition, roots: &[Root]) -> HashSet<VertexId> {
    let fetched = |id: &VertexId| matches!(definition.vertex(*id).source(), Some(Source::Http { .. }));
    roots
        .iter()
        .map(|root| (root.want_files, made_up_of(definition, root.vertex)))
        .filter(|(want_files, parts)| *want_files || parts.iter().any(fetched))
        .flat_map(|(_, parts)| parts)
        .collect()
}

fn made_up_of(definition: &Definition, root: VertexId) -> HashSet<VertexId> {
    let mut found = HashSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        if found.insert(id) {
            let vertex = definition.vertex(id);
            let inputs = vertex.inputs.iter().map(|input| input.vertex);
            match vertex.shape() {
                Shape::Layer { base } => open.extend(inputs.skip(base.unwrap_or(usize::MAX)).take(1)),
                _ => open.extend(inputs),
            }
        }
    }
    found
}

fn check(world: &World, definition: &Definition, roots: &[Root], solved: &[Solved]) {
    let values = plain(world, definition);
    for (root, solved) in roots.iter().zip(solved) {
        let value = &values[root.vertex.index()];
        assert_eq!(solved.result, value.result, "result of {:?}", root.vertex);
        if definition.vertex(root.vertex).shape() == Shape::Local {
            continue;
        }
        let snapshot = solved.snapshot.as_ref().unwrap();
        let expected: Vec<DiffId> = value.layers.iter().map(|&layer| diff_id(layer)).collect();
        let layers: Vec<DiffId> = snapshot.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(layers, expected, "layers of {:?}", root.vertex);
        if root.want_files {
            assert_eq!(world.tree(snapshot), value.tree);
        }
    }
    // A key runs once, and once more each time its layer was lost.
    let mut allowed: HashMap<CacheKey, usize> = HashMap::new();
    world.lost.borrow().iter().for_each(|&key| *allowed.entry(key).or_default() += 1);
    for &key in world.runs.borrow().iter() {
        let left = allowed.entry(key).or_insert(0);
        if *left == usize::MAX {
            panic!("{key} ran more than once");
        }
        *left = left.checked_sub(1).unwrap_or(usize::MAX);
    }
}

/// Each vertex that the roots reach has ended by its last event.
fn check_events(world: &World, definition: &Definition, roots: &[Root]) {
    let mut last: HashMap<VertexId, &'static str> = HashMap::new();
    for event in world.events.borrow().iter() {
        match event {
            Event::Started(id) => last.insert(*id, "started"),
            Event::Missed(id, _) => last.insert(*id, "missed"),
            Event::Cached(id) | Event::Completed(id) | Event::Failed(id, _) | Event::Cancelled(id) => {
                last.insert(*id, "ended")
            }
            Event::Log { .. } | Event::Progress { .. } => None,
        };
    }
    assert!(last.values().all(|last| *last == "ended"), "{:?}", world.events.borrow());
    let reached = crate::machine::reachable(&steps::<Broken>(definition).unwrap(), roots);
    let told = definition.ids().all(|id| last.contains_key(&id) == reached[id.index()]);
    assert!(told, "{:?}", world.events.borrow());
}

prop_compose! {
    fn plan_node()(
        kind in any::<u8>(),
        op in 0..60_u8,
        inputs in prop::collection::vec((any::<Index>(), prop::option::of(0..4_u8)), 0..4),
        ignore_cache in prop::bool::weighted(0.1),
    ) -> PlanNode {
        PlanNode { kind, op, inputs, ignore_cache }
    }
}

prop_compose! {
    fn plan()(nodes in prop::collection::vec(plan_node(), 1..24)) -> Plan {
        Plan { nodes }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_order_any_edit_and_any_loss_give_the_plain_result(
        plan in plan(),
        edits in prop::collection::vec((any::<Index>(), 0..60_u8, 0..4_usize), 0..5),
        wanted in prop::collection::vec((any::<Index>(), any::<bool>()), 1..3),
        random in any::<u64>(),
        lose_one_in in 0..5_u64,
    ) {
        let mut plan = plan;
        let mut world = World { lose_one_in, random: Cell::new(random), ..World::default() };
        let roots = |ids: &[VertexId]| -> Vec<Root> {
            let last = Root { vertex: *ids.last().unwrap(), want_files: true };
            let others =
                wanted.iter().map(|(index, want_files)| Root { vertex: *index.get(ids), want_files: *want_files });
            others.chain([last]).collect()
        };
        for edit in 0..=edits.len() {
            world.lose_one_in = lose_one_in;
            let (definition, ids) = define(&plan, true);
            let all_roots = roots(&ids);
            let solved = world.solve(&definition, &all_roots).unwrap();
            check(&world, &definition, &all_roots, &solved);
            check_events(&world, &definition, &all_roots);

            // The same again: nothing runs, and nothing is loaded but what is asked for.
            world.lose_one_in = 0;
            let (definition, ids) = define(&plan, false);
            let roots = roots(&ids);
            let solved = world.solve(&definition, &roots).unwrap();
            check(&world, &definition, &roots, &solved);
            check_events(&world, &definition, &roots);
            if lose_one_in == 0 {
                prop_assert_eq!(world.runs.borrow().len(), 0);
                let may = may_load(&definition, &roots);
                for id in world.loads.borrow().iter() {
                    prop_assert!(may.contains(id), "loaded {:?}", id);
                }
            }

            if let Some((node, op, file)) = edits.get(edit) {
                let index = node.index(plan.nodes.len());
                plan.nodes[index].op = *op;
                let name = format!("source {index}");
                world.sources.borrow_mut().entry(name).or_default()[*file] = *op;
            }
        }
    }
}

fn fan(width: u8) -> (Definition, Vec<Root>) {
    let mut definition = Definition::default();
    let base = definition.add(image("base"), Vec::new(), Metadata::default());
    let roots = (1..=width).map(|op| {
        let vertex = definition.add(exec_op(op), vec![input(base, None)], named("s", &format!("RUN {op}")));
        Root { vertex, want_files: false }
    });
    let roots = roots.collect();
    (definition, roots)
}

#[test]
fn the_first_failure_cancels_what_runs_and_names_its_step() {
    let (definition, roots) = fan(3);
    let world = World { broken: Some(2), ..World::default() };
    let options = Options { parallelism: 3, ..options() };
    let error = world.solve_with(&definition, &roots, &options).unwrap_err();
    assert!(matches!(error, SolveError::Vertex { source: Broken(2), .. }), "{error:?}");
    assert_eq!(error.to_string(), "RUN 2: op 2 is broken\nin a second line");
    let events = world.events.borrow();
    assert!(events.contains(&Event::Failed(roots[1].vertex, "op 2 is broken".to_owned())));
    for other in [0, 2] {
        assert!(events.contains(&Event::Cancelled(roots[other].vertex)), "{events:?}");
    }
}

#[test]
fn cancelling_stops_everything_and_waits_for_its_end() {
    let (definition, roots) = fan(3);
    // Nothing ends by itself.
    let world = World { broken: Some(99), ..World::default() };
    let options = options();
    let events = |event| world.events.borrow_mut().push(event);
    let build = solve(&definition, &roots, &world, &world, &events, &options);
    let user = async {
        Later(100).await;
        options.cancel.cancel();
    };
    let (solved, ()) = block_on(future::join(build, user));
    assert!(matches!(solved, Err(SolveError::Cancelled)), "{solved:?}");
    assert_eq!(world.running.get(), 0);
    assert!(world.events.borrow().iter().all(|event| !matches!(event, Event::Failed(..))));
}

#[test]
fn no_more_processes_run_at_a_time_than_allowed() {
    for parallelism in [1, 3, 8] {
        let (definition, roots) = fan(8);
        let world = World::default();
        world.solve_with(&definition, &roots, &Options { parallelism, ..options() }).unwrap();
        assert_eq!(world.most_running.get(), parallelism);
        assert_eq!(world.runs.borrow().len(), 8);
    }
}

#[test]
fn a_miss_says_what_changed_since_the_last_build() {
    let world = World::default();
    let build = |op: u8, ignore_cache: bool| {
        let mut definition = Definition::default();
        let context = definition.add(local("context"), Vec::new(), Metadata::default());
        let metadata = Metadata { ignore_cache, ..named("s", "COPY") };
        let vertex = definition.add(file_op(op, false), vec![input(context, Some(1))], metadata);
        world.solve(&definition, &[Root { vertex, want_files: false }]).unwrap();
        let events = world.events.borrow();
        let told = events.iter().find_map(|event| match event {
            Event::Missed(id, reason) if *id == vertex => Some(reason.clone()),
            Event::Cached(id) if *id == vertex => Some("cached".to_owned()),
            _ => None,
        });
        told.unwrap()
    };
    assert_eq!(build(1, false), "never built here");
    assert_eq!(*world.earlier.borrow(), None);
    let made = world.records.borrow().values().next().unwrap().layer;
    assert_eq!(build(1, false), "cached");
    world.sources.borrow_mut().insert("context".to_owned(), [0, 9, 0, 0]);
    assert_eq!(build(1, false), "file 1 changed");
    // What it made then is not to be made twice.
    assert_eq!(*world.earlier.borrow(), Some(made));
    world.sources.borrow_mut().insert("context".to_owned(), [7, 9, 7, 7]);
    assert_eq!(build(1, false), "cached");
    assert_eq!(build(2, false), "command changed");
    assert_eq!(build(2, true), "the cache is not to be used (--no-cache or --no-cache-filter)");
    world.records.borrow_mut().clear();
    assert_eq!(build(2, false), "evicted: its result is no longer stored");
}

#[test]
fn a_lost_layer_that_comes_out_different_drops_what_was_built_on_the_old_one() {
    let mut definition = Definition::default();
    // Op 3 is unstable. `late` misses and needs its files; `early` was a hit on the old ones.
    let unstable = definition.add(file_op(3, false), Vec::new(), named("a", "unstable"));
    let early = definition.add(file_op(4, true), vec![input(unstable, None)], named("b", "early"));
    let roots = [Root { vertex: early, want_files: false }];
    let mut world = World::default();
    let before = world.solve(&definition, &roots).unwrap();
    let late = definition.add(
        file_op(8, true),
        vec![input(unstable, None), input(early, Some(3))],
        named("c", "late"),
    );
    let roots = [roots[0], Root { vertex: late, want_files: true }];
    world.lose_one_in = 1;
    let after = world.solve(&definition, &roots).unwrap();
    check(&world, &definition, &roots, &after);
    assert_ne!(before[0].result, after[0].result);
    assert!(!world.lost.borrow().is_empty());
}

#[test]
fn a_local_directory_is_no_base() {
    let mut definition = Definition::default();
    let context = definition.add(local("context"), Vec::new(), Metadata::default());
    let vertex = definition.add(file_op(2, true), vec![input(context, None)], named("s", "COPY"));
    let solved = World::default().solve(&definition, &[Root { vertex, want_files: false }]);
    assert!(matches!(solved, Err(SolveError::LocalBase { .. })), "{solved:?}");
}

#[test]
fn what_no_root_reads_is_not_looked_at() {
    let (mut definition, roots) = fan(2);
    let other = definition.add(http("elsewhere"), Vec::new(), Metadata::default());
    definition.add(file_op(9, true), vec![input(other, None)], Metadata::default());
    let world = World::default();
    world.solve(&definition, &roots[..1]).unwrap();
    assert_eq!(world.pins.get(), 1);
    assert_eq!(world.runs.borrow().len(), 1);
}

/// Counts the machine's elementary steps on a no-op build, with instant answers.
fn effort(definition: &Definition, root: VertexId) -> u64 {
    let root = Root { vertex: root, want_files: false };
    let mut machine = Machine::new(steps::<Broken>(definition).unwrap(), &[root]);
    loop {
        let actions = machine.actions();
        if actions.is_empty() {
            assert_eq!(machine.verdict(), Verdict::Solved);
            return machine.effort();
        }
        for action in actions {
            let Action::Start(ticket, work) = action else { continue };
            let done = match work {
                Work::Pin(id) => match definition.vertex(id).shape() {
                    Shape::Local => Done::Pinned(None, None),
                    _ => Done::Pinned(Some(ResultDigest::scratch()), Some(Snapshot::default())),
                },
                Work::Select { .. } => Done::Selected(ContentDigest::of(b"selected")),
                Work::Lookup(_, key) => Done::Found(Record {
                    layer: diff_id(Layer::default()),
                    result: ResultDigest(key.0),
                    op: key.0,
                    inputs: Vec::new(),
                    seconds: 0.0,
                    bytes: 0,
                    created: 0,
                }),
                Work::Load(_) | Work::Run(..) => unreachable!("a no-op neither loads nor runs"),
            };
            machine.handle(ticket, done);
        }
    }
}

#[test]
fn a_no_op_is_linear_in_the_size_of_the_graph() {
    let chain = |length: u32| {
        let mut definition = Definition::default();
        let context = definition.add(local("context"), Vec::new(), Metadata::default());
        let mut last = definition.add(image("base"), Vec::new(), Metadata::default());
        for number in 0..length {
            let Op::File(File { base, .. }) = file_op(0, true) else { unreachable!() };
            let path = format!("/{number}");
            let actions = vec![FileAction::Mkdir { path, mode: 0o755, owner: None }];
            let inputs = vec![input(last, None), input(context, Some((number % 4) as u8))];
            last = definition.add(Op::File(File { base, actions }), inputs, Metadata::default());
        }
        effort(&definition, last)
    };
    let fan = |width: u32| {
        let mut definition = Definition::default();
        let mut inputs = Vec::new();
        for number in 0..width {
            let leaf = definition.add(image(&number.to_string()), Vec::new(), Metadata::default());
            inputs.extend([input(leaf, None), input(leaf, None)]);
        }
        let root = definition.add(Op::Merge, inputs, Metadata::default());
        effort(&definition, root)
    };
    for graph in [&chain as &dyn Fn(u32) -> u64, &fan] {
        let (small, large) = (graph(500), graph(5_000));
        assert!(large <= small * 10 + 100, "{small} steps for 500 vertices, {large} for 5,000");
        assert!(large <= 5_000 * 12, "{large}");
    }
}
