//! The solver as a state machine: no I/O, no clock, no async. Whoever drives it runs the [`Action`]s and hands back
//! what came of them, in any order.
//!
//! | state | leaves when | to |
//! |---|---|---|
//! | Waiting | a source: at once; others: all inputs have a result | Pinning; Selecting (merge, diff: Hit) |
//! | Pinning | the source is pinned | Hit (a local one: Ready) |
//! | Selecting | every selector's digest is known; if only the files can tell, the input is loaded first | Probing; Missed if not to be cached |
//! | Probing | the lookup answers | Hit; Missed |
//! | Hit | somebody needs the files | Loading |
//! | Loading | its own layer is here and the inputs below it are Ready | Ready; Missed if the layer is lost |
//! | Missed | all inputs are Ready (it asks for them) | Running |
//! | Running | it ends, or somebody else turns out to have done it | Ready; Hit |
//! | Ready | never | |
//!
//! What is read of a local source is asked for as soon as the source is pinned, whatever state its users are in.
//!
//! A vertex has its result from Hit, Running's end or Ready on, and its users go on from there: a hit loads nothing.
//! If a lost layer's step runs again and its result is *different*, all that was concluded from the old one is dropped:
//! every vertex downstream goes back to Waiting, its work is cancelled, and what is still right is a hit again.
//!
//! Work is linear in edges: a transition touches the vertex's inputs and users once, with counters instead of scans.
//! Nothing recurses along the graph.

use std::collections::HashMap;
use std::rc::Rc;

use image::ContentDigest;

use crate::definition::{Shape, VertexId};
use crate::key::{CacheKey, InputDigest, ResultDigest};
use crate::record::{Record, Snapshot, SnapshotLayer};

/// A vertex, as the machine sees it.
#[derive(Clone, Debug)]
pub struct Step {
    /// How its result is made up.
    pub shape: Shape,
    /// The digest of its op.
    pub op: ContentDigest,
    /// What it reads. A base, and the inputs of merge and diff, are read whole: no selector.
    pub inputs: Vec<StepInput>,
    /// Do not look it up.
    pub ignore_cache: bool,
}

/// An input of a [`Step`].
#[derive(Clone, Copy, Debug)]
pub struct StepInput {
    /// Whose files; comes before the step that reads it.
    pub vertex: VertexId,
    /// The digest of the selector; never `None` for a local source.
    pub selector: Option<ContentDigest>,
}

/// A vertex whose result is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which.
    pub vertex: VertexId,
    /// Its layers must be on this host in the end. Otherwise it is enough to know them.
    pub want_files: bool,
}

/// Names one piece of work; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Begin; answer with [`Machine::handle`].
    Start(Ticket, Work),
    /// The answer is not needed any more, and is ignored if it comes.
    Cancel(Ticket),
    /// Nothing to do: something to tell.
    Tell(Notice),
}

/// A piece of work, and in brackets how it may be answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Pin a source (`Pinned`).
    Pin(VertexId),
    /// Digest what an input's selector picks (`Selected`, `NeedFiles`). Other users with the same selector share it.
    Select {
        /// What is read.
        from: VertexId,
        /// A vertex that has the selector,
        user: VertexId,
        /// and on which of its inputs.
        input: usize,
    },
    /// Look a key up (`Found`, `NotFound`).
    Lookup(VertexId, CacheKey),
    /// Bring the vertex's own layer here, or all of a source (`Loaded`, `Lost`).
    Load(VertexId),
    /// Run it (`Ran`; `Found` if it was done by somebody else meanwhile).
    Run(VertexId, CacheKey),
}

/// How a piece of work ended. Failures are not for the machine: after one, drop it.
#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    /// A source's identity and, if they are known, layers.
    Pinned(Option<ResultDigest>, Option<Snapshot>),
    /// What a selector picks.
    Selected(ContentDigest),
    /// What a selector picks cannot be told without the files.
    NeedFiles,
    /// There is a record.
    Found(Record),
    /// There is none.
    NotFound,
    /// The files are here; for a source these are its layers.
    Loaded(Option<Snapshot>),
    /// The layer is nowhere. The record must be forgotten before this is said.
    Lost,
    /// It ran; its files are here.
    Ran(Record),
}

/// Something about a vertex that people like to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It is taken from the cache.
    Hit(VertexId),
    /// It must run, and why.
    Missed(VertexId, Miss),
    /// A merge or diff has its result.
    Composed(VertexId),
}

/// Why a vertex must run, as far as the machine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nothing in the cache.
    NotFound,
    /// The cache was not to be asked.
    Ignored,
    /// It was in the cache, but its layer is gone.
    Lost,
}

/// How far the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is work out, or in [`Machine::actions`].
    Working,
    /// All roots are there.
    Solved,
    /// A source's files could not be had after it was pinned.
    SourceLost(VertexId),
}

/// The machine. After [`Machine::new`], [`Machine::handle`] and [`Machine::verdict`], take the [`Machine::actions`].
#[derive(Debug)]
pub struct Machine {
    steps: Vec<Step>,
    nodes: Vec<Node>,
    /// For each vertex, the reachable vertices that read it and through which input: one entry an edge.
    users: Vec<Vec<(VertexId, usize)>>,
    selections: Vec<Selection>,
    roots: Vec<Root>,
    tickets: HashMap<Ticket, Target>,
    next_ticket: u64,
    actions: Vec<Action>,
    /// Vertices that may be able to move on.
    queue: Vec<Task>,
    lost_source: Option<VertexId>,
    /// Vertices that are `lost`: there is no verdict while there are any, for they may change results.
    lost: usize,
    /// Elementary steps taken: what must be linear.
    effort: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Pinning,
    Selecting,
    Probing,
    Hit,
    Loading,
    Missed,
    Running,
    Ready,
}

#[derive(Debug)]
struct Node {
    state: State,
    ticket: Option<Ticket>,
    /// Inputs that have no result yet.
    unsettled: usize,
    /// What the state waits for: open selectors (Selecting), files (Loading, Missed).
    missing: usize,
    /// It has a result, even if that is `None` as for a local source.
    settled: bool,
    result: Option<ResultDigest>,
    layer: Option<SnapshotLayer>,
    pinned: Option<Snapshot>,
    key: Option<CacheKey>,
    /// Key under which it ran in this build: looked up even if it is not to be cached.
    ran: Option<CacheKey>,
    wanted: bool,
    /// Its layer is gone and was not made again yet.
    lost: bool,
    /// For each input its selection, if it has a selector.
    selections: Vec<Option<usize>>,
    /// Selections that read this vertex.
    read_by: Vec<usize>,
}

/// A selector on a vertex, shared by all users that have it.
#[derive(Debug)]
struct Selection {
    from: VertexId,
    user: VertexId,
    input: usize,
    state: SelectionState,
    /// Vertices in Selecting that wait for it: one entry an edge.
    waiters: Vec<VertexId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SelectionState {
    Idle,
    Asking { ticket: Ticket, files: bool },
    NeedFiles,
    Known(ContentDigest),
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Vertex(VertexId),
    Selection(usize),
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Advance(VertexId),
    Want(VertexId),
}

impl Machine {
    /// A machine for `steps`, ordered so that inputs come first. Only what `roots` reach is looked at.
    pub fn new(steps: Vec<Step>, roots: &[Root]) -> Self {
        let reachable = reachable(&steps, roots);
        let mut users = vec![Vec::new(); steps.len()];
        let mut nodes: Vec<Node> = steps.iter().map(Node::new).collect();
        let mut selections: Vec<Selection> = Vec::new();
        let mut known = HashMap::new();
        for (index, step) in steps.iter().enumerate().filter(|(index, _)| reachable[*index]) {
            let user = VertexId(index as u32);
            for (input, StepInput { vertex: from, selector }) in step.inputs.iter().copied().enumerate() {
                users[from.index()].push((user, input));
                let selection = selector.map(|selector| {
                    *known.entry((from, selector)).or_insert_with(|| {
                        selections.push(Selection::new(from, user, input));
                        nodes[from.index()].read_by.push(selections.len() - 1);
                        selections.len() - 1
                    })
                });
                nodes[index].selections.push(selection);
            }
        }
        let queue = (0..steps.len() as u32).rev().map(VertexId).filter(|id| reachable[id.index()]);
        let mut queue: Vec<Task> = queue.map(Task::Advance).collect();
        queue.extend(roots.iter().filter(|root| root.want_files).map(|root| Task::Want(root.vertex)));
        let mut machine = Self {
            steps,
            nodes,
            users,
            selections,
            roots: roots.to_vec(),
            tickets: HashMap::new(),
            next_ticket: 0,
            actions: Vec::new(),
            queue,
            lost_source: None,
            lost: 0,
            effort: 0,
        };
        machine.settle_queue();
        machine
    }

    /// What to do now; each action is given once.
    #[must_use = "work that is not begun never ends"]
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes the answer to a ticket.
    pub fn handle(&mut self, ticket: Ticket, done: Done) {
        match self.tickets.remove(&ticket) {
            Some(Target::Vertex(id)) => {
                self.node(id).ticket = None;
                self.vertex_done(id, done);
            }
            Some(Target::Selection(index)) => self.selection_done(index, done),
            None => {} // cancelled meanwhile
        }
        self.settle_queue();
    }

    /// Whether the roots are there.
    pub fn verdict(&mut self) -> Verdict {
        if let Some(id) = self.lost_source {
            return Verdict::SourceLost(id);
        }
        let there = |root: &Root| {
            let node = &self.nodes[root.vertex.index()];
            node.settled && (node.state == State::Ready || !node.wanted)
        };
        if self.lost > 0 || !self.roots.iter().all(there) {
            return Verdict::Working;
        }
        // The layers of a git or http source are known when it was fetched.
        let unknown: Vec<VertexId> = self
            .roots
            .iter()
            .map(|root| root.vertex)
            .filter(|&id| self.steps[id.index()].shape != Shape::Local && self.snapshot(id).is_none())
            .collect();
        if unknown.is_empty() {
            return Verdict::Solved;
        }
        self.queue.extend(unknown.into_iter().map(Task::Want));
        self.settle_queue();
        Verdict::Working
    }

    /// The result of a vertex, as far as it is known.
    pub fn result(&self, id: VertexId) -> Option<ResultDigest> {
        self.nodes[id.index()].result
    }

    /// The key of a vertex, once it was probed.
    pub fn key(&self, id: VertexId) -> Option<CacheKey> {
        self.nodes[id.index()].key
    }

    /// What a vertex's layer goes on top of. Known once its inputs are.
    pub fn parent(&self, id: VertexId) -> Option<ResultDigest> {
        let step = &self.steps[id.index()];
        match step.shape {
            Shape::Layer { base: Some(base) } => self.result(step.inputs[base].vertex),
            _ => Some(ResultDigest::scratch()),
        }
    }

    /// What a vertex reads, in the order of its inputs, as its key takes it in. Known once it was looked up.
    pub fn input_digests(&self, id: VertexId) -> Option<Vec<InputDigest>> {
        let inputs = self.steps[id.index()].inputs.iter().zip(&self.nodes[id.index()].selections);
        inputs
            .map(|(input, selection)| match selection.map(|index| self.selections[index].state) {
                Some(SelectionState::Known(digest)) => Some(InputDigest::Selected(digest)),
                Some(_) => None,
                None => self.result(input.vertex).map(InputDigest::Result),
            })
            .collect()
    }

    /// The layers of a vertex, if they are known.
    ///
    /// A merge is the layers of its inputs one after the other; where an input begins with all that is below it
    /// already, that is not repeated. A diff is what is left of input 1 without the layers it shares with input 0.
    pub fn snapshot(&self, id: VertexId) -> Option<Snapshot> {
        let mut composed: HashMap<VertexId, Rc<Vec<SnapshotLayer>>> = HashMap::new();
        let mut open = vec![id];
        while let Some(&top) = open.last() {
            let (bottom, own) = self.spine(top)?;
            let mut layers = Vec::new();
            if let Some(bottom) = bottom {
                let step = &self.steps[bottom.index()];
                let unknown = open.len();
                if matches!(step.shape, Shape::Merge | Shape::Diff) {
                    let inputs = step.inputs.iter().map(|input| input.vertex);
                    open.extend(inputs.filter(|input| !composed.contains_key(input)));
                }
                if open.len() > unknown {
                    continue;
                }
                let of = |input: usize| &composed[&step.inputs[input].vertex];
                match step.shape {
                    Shape::Merge => {
                        (0..step.inputs.len()).for_each(|input| merge_onto(&mut layers, of(input)));
                    }
                    Shape::Diff => layers.extend_from_slice(beyond(of(0), of(1))),
                    _ => layers.clone_from(&self.nodes[bottom.index()].pinned.as_ref()?.layers),
                }
            }
            layers.extend(own);
            composed.insert(top, Rc::new(layers));
            open.pop();
        }
        let layers = composed.remove(&id)?;
        Some(Snapshot { layers: Rc::unwrap_or_clone(layers) })
    }

    /// What [`Work::Load`] means: the vertex's own layer, or a source's layers if they are known.
    pub fn own_layers(&self, id: VertexId) -> Option<Snapshot> {
        let node = &self.nodes[id.index()];
        match node.layer {
            Some(layer) => Some(Snapshot { layers: vec![layer] }),
            None => node.pinned.clone(),
        }
    }

    /// Elementary steps taken so far, for the test that they are few.
    #[cfg(test)]
    pub(crate) fn effort(&self) -> u64 {
        self.effort
    }

    /// From `id` down along bases: the first vertex that makes no layer, if there is one, and the layers above it.
    fn spine(&self, id: VertexId) -> Option<(Option<VertexId>, Vec<SnapshotLayer>)> {
        let mut layers = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            let step = &self.steps[id.index()];
            let Shape::Layer { base } = step.shape else { break };
            layers.push(self.nodes[id.index()].layer?);
            at = base.map(|base| step.inputs[base].vertex);
        }
        layers.reverse();
        Some((at, layers))
    }

    fn vertex_done(&mut self, id: VertexId, done: Done) {
        let state = self.node(id).state;
        match (state, done) {
            (State::Pinning, Done::Pinned(result, snapshot)) => {
                let local = self.steps[id.index()].shape == Shape::Local;
                assert!(local || result.is_some(), "a runner pins all sources but local ones to a result");
                self.node(id).pinned = snapshot;
                self.settle(id, result);
                if local { self.ready(id) } else { self.hit(id) }
            }
            (State::Probing, Done::Found(record)) => {
                self.take_record(id, &record);
                self.tell(Notice::Hit(id));
                self.hit(id);
            }
            (State::Probing, Done::NotFound) => self.miss(id, Miss::NotFound),
            (State::Loading, Done::Loaded(snapshot)) => {
                if self.steps[id.index()].shape == Shape::Source {
                    self.node(id).pinned = snapshot;
                }
                self.node(id).missing -= 1;
                self.queue.push(Task::Advance(id));
            }
            (State::Loading, Done::Lost) if self.steps[id.index()].shape == Shape::Source => {
                self.lost_source.get_or_insert(id);
            }
            (State::Loading, Done::Lost) => {
                self.set_lost(id, true);
                self.miss(id, Miss::Lost);
            }
            (State::Running, Done::Ran(record)) => {
                self.node(id).ran = self.node(id).key;
                self.take_record(id, &record);
                self.ready(id);
            }
            (State::Running, Done::Found(record)) => {
                self.take_record(id, &record);
                self.tell(Notice::Hit(id));
                self.hit(id);
            }
            (state, done) => unreachable!("{done:?} is no answer to {state:?} of vertex {id:?}"),
        }
    }

    fn selection_done(&mut self, index: usize, done: Done) {
        let SelectionState::Asking { files, .. } = self.selections[index].state else {
            unreachable!("only a selection that was asked has a ticket")
        };
        let from = self.selections[index].from;
        match done {
            Done::Selected(digest) => {
                self.selections[index].state = SelectionState::Known(digest);
                for waiter in std::mem::take(&mut self.selections[index].waiters) {
                    self.effort += 1;
                    self.node(waiter).missing -= 1;
                    self.queue.push(Task::Advance(waiter));
                }
            }
            Done::NeedFiles if files => {
                self.lost_source.get_or_insert(from);
            }
            Done::NeedFiles if self.node(from).state == State::Ready => self.ask(index),
            Done::NeedFiles => {
                self.selections[index].state = SelectionState::NeedFiles;
                self.queue.push(Task::Want(from));
            }
            done => unreachable!("{done:?} is no answer to a selection"),
        }
    }

    /// Moves vertices on until nothing moves without an answer from outside.
    fn settle_queue(&mut self) {
        while let Some(task) = self.queue.pop() {
            self.effort += 1;
            match task {
                Task::Advance(id) => self.advance(id),
                Task::Want(id) => {
                    if !std::mem::replace(&mut self.node(id).wanted, true)
                        && self.node(id).state == State::Hit
                    {
                        self.load(id);
                    }
                }
            }
        }
    }

    /// Moves a vertex on if it can. Idempotent.
    fn advance(&mut self, id: VertexId) {
        let Node { state, unsettled, missing, .. } = *self.node(id);
        match (state, self.steps[id.index()].shape) {
            (State::Waiting, _) if unsettled > 0 => {}
            (State::Waiting, Shape::Source | Shape::Local) => self.start(id, State::Pinning, Work::Pin(id)),
            (State::Waiting, Shape::Layer { .. }) => self.select(id),
            (State::Waiting, Shape::Merge | Shape::Diff) => {
                let inputs = self.steps[id.index()].inputs.iter();
                let results: Vec<ResultDigest> =
                    inputs.filter_map(|input| self.nodes[input.vertex.index()].result).collect();
                let result = match (self.steps[id.index()].shape, results.as_slice()) {
                    (Shape::Diff, &[lower, upper]) => ResultDigest::diff(lower, upper),
                    _ => ResultDigest::merge(&results),
                };
                self.settle(id, Some(result));
                self.tell(Notice::Composed(id));
                self.hit(id);
            }
            (State::Selecting, _) if missing == 0 => self.probe(id),
            (State::Loading, _) if missing == 0 => self.ready(id),
            (State::Missed, _) if missing == 0 => {
                let key = self.node(id).key.expect("a vertex is probed before it is missed");
                self.start(id, State::Running, Work::Run(id, key));
            }
            _ => {}
        }
    }

    fn select(&mut self, id: VertexId) {
        self.node(id).state = State::Selecting;
        self.node(id).missing = 0;
        for input in 0..self.node(id).selections.len() {
            self.effort += 1;
            let Some(index) = self.node(id).selections[input] else { continue };
            let state = self.selections[index].state;
            if matches!(state, SelectionState::Known(_)) {
                continue;
            }
            self.node(id).missing += 1;
            self.selections[index].waiters.push(id);
            if state == SelectionState::Idle {
                self.ask(index);
            }
        }
        self.queue.push(Task::Advance(id));
    }

    fn ask(&mut self, index: usize) {
        let Selection { from, user, input, .. } = self.selections[index];
        let files = self.node(from).state == State::Ready;
        let ticket = self.ticket(Target::Selection(index));
        self.selections[index].state = SelectionState::Asking { ticket, files };
        self.actions.push(Action::Start(ticket, Work::Select { from, user, input }));
    }

    fn probe(&mut self, id: VertexId) {
        let inputs =
            self.input_digests(id).expect("inputs are settled and selected before a vertex is probed");
        let key = CacheKey::of(self.steps[id.index()].op, &inputs);
        self.node(id).key = Some(key);
        if self.steps[id.index()].ignore_cache && self.node(id).ran != Some(key) {
            return self.miss(id, Miss::Ignored);
        }
        self.start(id, State::Probing, Work::Lookup(id, key));
    }

    fn hit(&mut self, id: VertexId) {
        self.node(id).state = State::Hit;
        if self.node(id).wanted {
            self.load(id);
        }
    }

    fn load(&mut self, id: VertexId) {
        let below = self.want_inputs(id, State::Loading);
        self.node(id).missing = below;
        if matches!(self.steps[id.index()].shape, Shape::Source | Shape::Layer { .. }) {
            self.node(id).missing += 1;
            self.start(id, State::Loading, Work::Load(id));
        }
        self.queue.push(Task::Advance(id));
    }

    fn miss(&mut self, id: VertexId, why: Miss) {
        self.tell(Notice::Missed(id, why));
        let below = self.want_inputs(id, State::Missed);
        self.node(id).missing = below;
        self.queue.push(Task::Advance(id));
    }

    /// Enters `state`, and asks for the inputs that it needs; returns how many are not there.
    fn want_inputs(&mut self, id: VertexId, state: State) -> usize {
        self.node(id).state = state;
        let mut missing = 0;
        for input in 0..self.steps[id.index()].inputs.len() {
            self.effort += 1;
            let from = self.steps[id.index()].inputs[input].vertex;
            if self.needs(id, input) && self.node(from).state != State::Ready {
                missing += 1;
                self.queue.push(Task::Want(from));
            }
        }
        missing
    }

    /// Whether a vertex, in its state, needs the files of an input.
    fn needs(&self, id: VertexId, input: usize) -> bool {
        match (self.nodes[id.index()].state, self.steps[id.index()].shape) {
            (State::Missed, _) => true,
            (State::Loading, Shape::Layer { base }) => base == Some(input),
            // A diff needs the lower one too: what it shares with the upper is known once both are.
            (State::Loading, Shape::Merge | Shape::Diff) => true,
            _ => false,
        }
    }

    fn ready(&mut self, id: VertexId) {
        self.node(id).state = State::Ready;
        for edge in 0..self.users[id.index()].len() {
            self.effort += 1;
            let (user, input) = self.users[id.index()][edge];
            if self.needs(user, input) {
                self.node(user).missing -= 1;
                self.queue.push(Task::Advance(user));
            }
        }
        // All that is read of a local source is asked at once, whatever else its users wait for: every key needs it in
        // the end, and a file that is missing should fail a build before hours of steps, not after.
        let eager = self.steps[id.index()].shape == Shape::Local;
        for read in 0..self.node(id).read_by.len() {
            let index = self.node(id).read_by[read];
            match self.selections[index].state {
                SelectionState::NeedFiles => self.ask(index),
                SelectionState::Idle if eager => self.ask(index),
                _ => {}
            }
        }
    }

    fn settle(&mut self, id: VertexId, result: Option<ResultDigest>) {
        self.node(id).result = result;
        if std::mem::replace(&mut self.node(id).settled, true) {
            return;
        }
        for edge in 0..self.users[id.index()].len() {
            self.effort += 1;
            let (user, _) = self.users[id.index()][edge];
            self.node(user).unsettled -= 1;
            if self.node(user).unsettled == 0 {
                self.queue.push(Task::Advance(user));
            }
        }
    }

    fn set_lost(&mut self, id: VertexId, lost: bool) {
        self.lost -= usize::from(std::mem::replace(&mut self.node(id).lost, lost));
        self.lost += usize::from(lost);
    }

    fn take_record(&mut self, id: VertexId, record: &Record) {
        self.set_lost(id, false);
        let node = self.node(id);
        node.layer = Some(SnapshotLayer { diff_id: record.layer, created: Some(record.created) });
        let changed = node.settled && node.result != Some(record.result);
        self.settle(id, Some(record.result));
        if changed {
            self.forget_downstream(id);
        }
    }

    /// `id` has another result than it had: everything concluded from the old one goes. A vertex that took the old
    /// result from the same key goes too: a key has one result in a build.
    fn forget_downstream(&mut self, id: VertexId) {
        let key = self.node(id).key;
        let twin = |node: &Node| key.is_some() && node.key == key && node.settled;
        let mut gone: Vec<bool> = self.nodes.iter().map(twin).collect();
        gone[id.index()] = false;
        let twins = (0..gone.len()).filter(|&twin| gone[twin]).map(|twin| VertexId(twin as u32));
        let mut open: Vec<VertexId> = twins.chain([id]).collect();
        while let Some(id) = open.pop() {
            for &(user, _) in &self.users[id.index()] {
                if !std::mem::replace(&mut gone[user.index()], true) {
                    open.push(user);
                }
            }
        }
        for user in (0..gone.len()).filter(|&user| gone[user]) {
            self.set_lost(VertexId(user as u32), false);
            if let Some(ticket) = self.nodes[user].ticket.take() {
                self.withdraw(ticket);
            }
            let wanted = self.roots.iter().any(|root| root.want_files && root.vertex.index() == user);
            let node = &mut self.nodes[user];
            node.state = State::Waiting;
            (node.settled, node.result, node.layer, node.key) = (false, None, None, None);
            (node.missing, node.wanted) = (0, wanted);
        }
        for index in 0..self.selections.len() {
            let selection = &mut self.selections[index];
            selection.waiters.retain(|waiter| !gone[waiter.index()]);
            if selection.from == id || gone[selection.from.index()] {
                let before = std::mem::replace(&mut selection.state, SelectionState::Idle);
                if let SelectionState::Asking { ticket, .. } = before {
                    self.withdraw(ticket);
                }
            }
        }
        for user in (0..gone.len()).filter(|&user| gone[user]) {
            let inputs = self.steps[user].inputs.iter();
            self.nodes[user].unsettled =
                inputs.filter(|input| !self.nodes[input.vertex.index()].settled).count();
            self.queue.push(Task::Advance(VertexId(user as u32)));
        }
    }

    fn start(&mut self, id: VertexId, state: State, work: Work) {
        let ticket = self.ticket(Target::Vertex(id));
        let node = self.node(id);
        node.state = state;
        node.ticket = Some(ticket);
        self.actions.push(Action::Start(ticket, work));
    }

    fn ticket(&mut self, target: Target) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tickets.insert(ticket, target);
        ticket
    }

    fn withdraw(&mut self, ticket: Ticket) {
        self.tickets.remove(&ticket);
        self.actions.push(Action::Cancel(ticket));
    }

    fn tell(&mut self, notice: Notice) {
        self.actions.push(Action::Tell(notice));
    }

    fn node(&mut self, id: VertexId) -> &mut Node {
        &mut self.nodes[id.index()]
    }
}

impl Node {
    fn new(step: &Step) -> Self {
        Self {
            state: State::Waiting,
            ticket: None,
            unsettled: step.inputs.len(),
            missing: 0,
            settled: false,
            result: None,
            layer: None,
            pinned: None,
            key: None,
            ran: None,
            wanted: false,
            lost: false,
            selections: Vec::new(),
            read_by: Vec::new(),
        }
    }
}

impl Selection {
    fn new(from: VertexId, user: VertexId, input: usize) -> Self {
        Self { from, user, input, state: SelectionState::Idle, waiters: Vec::new() }
    }
}

/// For each vertex, whether a root is it or reads it.
pub fn reachable(steps: &[Step], roots: &[Root]) -> Vec<bool> {
    let mut reached = vec![false; steps.len()];
    let mut open: Vec<VertexId> = roots.iter().map(|root| root.vertex).collect();
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut reached[id.index()], true) {
            open.extend(steps[id.index()].inputs.iter().map(|input| input.vertex));
        }
    }
    reached
}

fn merge_onto(layers: &mut Vec<SnapshotLayer>, next: &[SnapshotLayer]) {
    let same = |(a, b): (&SnapshotLayer, &SnapshotLayer)| a.diff_id == b.diff_id;
    // Only a whole prefix can be dropped: had something been laid over part of it, repeating it would matter.
    let repeated = next.len() >= layers.len() && layers.iter().zip(next).all(same);
    let from = if repeated { layers.len() } else { 0 };
    layers.extend_from_slice(&next[from..]);
}

fn beyond<'a>(lower: &[SnapshotLayer], upper: &'a [SnapshotLayer]) -> &'a [SnapshotLayer] {
    let shared = lower.iter().zip(upper).take_while(|(a, b)| a.diff_id == b.diff_id).count();
    &upper[shared..]
}
