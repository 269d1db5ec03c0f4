//! The driver: runs the machine's actions on a [`Runner`] and feeds what comes back to the machine. It knows about
//! waiting, limits, cancelling, locks and events, and nothing about what is a hit.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use futures::future::{self, Either, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use image::DiffId;

use crate::cancel::Cancel;
use crate::definition::{Definition, Selector, Shape, VertexId};
use crate::event::Event;
use crate::explain::{Reason, explain, recorded_inputs};
use crate::key::{CacheKey, ResultDigest};
use crate::machine::{Action, Done, Machine, Miss, Notice, Step, StepInput, Ticket, Verdict, Work};
use crate::record::{Record, RecordedInput, Snapshot};
use crate::runner::{Cache, InputRef, Job, Loaded, Outcome, Runner, Selection, StepId, Task};

pub use crate::machine::Root;

/// How to solve.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many processes run at a time, at least 1. File ops, pulls and lookups do not count.
    pub parallelism: usize,
    /// Stops everything.
    pub cancel: Cancel,
    /// What tells this build's steps from those of other Dockerfiles, for `explain`: Dockerfile, context, platform.
    pub scope: String,
}

/// A root's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// Names its content; `None` for a local source.
    pub result: Option<ResultDigest>,
    /// Its layers; `None` for a local source.
    pub snapshot: Option<Snapshot>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SolveError<E> {
    /// A vertex failed. What else ran was cancelled and has ended.
    #[error("{name}: {source}")]
    Vertex {
        /// Which.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
        /// Why.
        source: E,
    },
    /// [`Options::cancel`] fired; what ran has ended.
    #[error("cancelled")]
    Cancelled,
    /// A local source is used as a base: it has no layers.
    #[error("could not use a local directory as the base of {name}")]
    LocalBase {
        /// Of which vertex.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
    },
    /// A source was pinned but then could not be had.
    #[error("could not load {name}: it is gone since it was resolved")]
    SourceLost {
        /// Which.
        vertex: VertexId,
        /// Its name in progress.
        name: String,
    },
}

/// Solves `definition` for `roots`, which come back in their order. The first failure cancels everything else, and
/// `solve` returns when that has ended.
///
/// What is in the cache is not loaded, but for roots that want files and what a step that missed reads.
pub async fn solve<R: Runner, C: Cache>(
    definition: &Definition,
    roots: &[Root],
    runner: &R,
    cache: &C,
    events: &dyn Fn(Event),
    options: &Options,
) -> Result<Vec<Solved>, SolveError<R::Error>> {
    let machine = Machine::new(steps(definition)?, roots);
    let mut driver = Driver {
        definition,
        runner,
        cache,
        events,
        options,
        machine,
        calls: FuturesUnordered::new(),
        open: HashMap::new(),
        locked: VecDeque::new(),
        processes: 0,
        ran: Rc::default(),
        vertices: vec![Vertex::default(); definition.len()],
        step_ids: Vec::new(),
    };
    let end = driver.drive().await;
    driver.join().await;
    end?;
    Ok(roots
        .iter()
        .map(|root| Solved {
            result: driver.machine.result(root.vertex),
            snapshot: driver.machine.snapshot(root.vertex),
        })
        .collect())
}

/// The machine's view of `definition`.
fn steps<E>(definition: &Definition) -> Result<Vec<Step>, SolveError<E>> {
    definition
        .ids()
        .map(|id| {
            let vertex = definition.vertex(id);
            let shape = vertex.shape();
            let mut inputs = Vec::with_capacity(vertex.inputs.len());
            for (index, input) in vertex.inputs.iter().enumerate() {
                let local = definition.vertex(input.vertex).shape() == Shape::Local;
                let whole = match shape {
                    Shape::Layer { base } => base == Some(index),
                    _ => true,
                };
                if local && whole {
                    let name = vertex.metadata.name.clone();
                    return Err(SolveError::LocalBase { vertex: id, name });
                }
                let selector = match &input.selector {
                    Some(selector) if !whole => Some(selector.digest()),
                    None if local => Some(Selector::all().digest()),
                    _ => None,
                };
                inputs.push(StepInput { vertex: input.vertex, selector });
            }
            Ok(Step { shape, op: vertex.op_digest, inputs, ignore_cache: vertex.metadata.ignore_cache })
        })
        .collect()
}

struct Driver<'a, R: Runner, C> {
    definition: &'a Definition,
    runner: &'a R,
    cache: &'a C,
    events: &'a dyn Fn(Event),
    options: &'a Options,
    machine: Machine,
    calls: FuturesUnordered<LocalBoxFuture<'a, (Ticket, Output<R::Error>)>>,
    /// What is in `calls` or `locked`.
    open: HashMap<Ticket, Call>,
    /// Steps that hold the lock on their key and wait for their turn to run.
    locked: VecDeque<Locked>,
    /// Processes that run.
    processes: usize,
    /// Keys that ran in this build: their records are good even for a vertex that is not to be cached.
    ran: Rc<RefCell<HashSet<CacheKey>>>,
    vertices: Vec<Vertex>,
    /// Made at the first miss.
    step_ids: Vec<StepId>,
}

/// What the driver keeps of a vertex.
#[derive(Clone, Debug, Default)]
struct Vertex {
    /// Calls that show as work on it.
    busy: usize,
    /// It, or something it is composed of, ran in this build.
    fresh: bool,
    /// What it reads, by name; there from its miss to its run.
    reads: Vec<RecordedInput>,
    /// The layer it made the last time that it was not found.
    earlier: Option<DiffId>,
}

/// A piece of work that was begun.
#[derive(Debug)]
struct Call {
    /// Whose failure it would be.
    vertex: VertexId,
    /// Whose events it makes.
    shown: Option<VertexId>,
    process: bool,
    cancel: Cancel,
    /// The machine does not wait for it any more.
    withdrawn: bool,
}

struct Locked {
    ticket: Ticket,
    vertex: VertexId,
    key: CacheKey,
    guard: Box<dyn Any>,
}

enum Output<E> {
    Done(Done),
    Locked(Locked),
    /// It was cancelled while it waited for a lock.
    Stopped,
    Failed(E),
}

impl<'a, R: Runner, C: Cache> Driver<'a, R, C> {
    async fn drive(&mut self) -> Result<(), SolveError<R::Error>> {
        loop {
            if self.options.cancel.is_cancelled() {
                return Err(SolveError::Cancelled);
            }
            // Before the verdict: there may be something to tell.
            let actions = self.machine.actions();
            if !actions.is_empty() {
                self.perform(actions);
                continue;
            }
            match self.machine.verdict() {
                Verdict::Working => {}
                Verdict::Solved => return Ok(()),
                Verdict::SourceLost(vertex) => {
                    (self.events)(Event::Failed(vertex, "it is gone since it was resolved".to_owned()));
                    return Err(SolveError::SourceLost { vertex, name: self.name(vertex) });
                }
            }
            // The verdict may have asked for more.
            let actions = self.machine.actions();
            if !actions.is_empty() {
                self.perform(actions);
                continue;
            }
            let call = match future::select(self.calls.next(), self.options.cancel.cancelled()).await {
                Either::Left((call, _)) => call,
                Either::Right(_) => return Err(SolveError::Cancelled),
            };
            let (ticket, output) = call.expect("the machine waits only for calls that were begun");
            self.completed(ticket, output)?;
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut lookups = Vec::new();
        for action in actions {
            match action {
                Action::Start(ticket, Work::Lookup(vertex, key)) => lookups.push((ticket, vertex, key)),
                Action::Start(ticket, work) => self.start(ticket, work),
                Action::Cancel(ticket) => self.withdraw(ticket),
                Action::Tell(notice) => self.tell(notice),
            }
        }
        let keys: Vec<CacheKey> = lookups.iter().map(|&(_, _, key)| key).collect();
        let records = if keys.is_empty() { Vec::new() } else { self.cache.lookup_many(&keys) };
        for ((ticket, vertex, key), record) in lookups.into_iter().zip(records) {
            let remote = if record.is_none() { self.cache.lookup_remote(key) } else { None };
            match (record, remote) {
                (Some(record), _) => self.machine.handle(ticket, Done::Found(record)),
                (None, None) => self.machine.handle(ticket, Done::NotFound),
                (None, Some(remote)) => {
                    let cancel = self.open(ticket, vertex, None);
                    self.call(ticket, async move {
                        match future::select(remote, cancel.cancelled()).await {
                            Either::Left((record, _)) => {
                                Output::Done(record.map_or(Done::NotFound, Done::Found))
                            }
                            Either::Right(_) => Output::Stopped,
                        }
                    });
                }
            }
        }
    }

    fn start(&mut self, ticket: Ticket, work: Work) {
        match work {
            Work::Pin(id) => {
                let job = self.job(ticket, id, Some(id));
                let pin = self.runner.pin(job);
                self.call(ticket, async move {
                    match pin.await {
                        Ok(pin) => Output::Done(Done::Pinned(pin.result, pin.snapshot)),
                        Err(error) => Output::Failed(error),
                    }
                });
            }
            Work::Select { from, user, input } => self.select(ticket, from, user, input),
            Work::Load(id) => {
                let source = self.definition.vertex(id).shape() == Shape::Source;
                let job = self.job(ticket, id, source.then_some(id));
                let layers = self.machine.own_layers(id);
                let own = layers.as_ref().and_then(|snapshot| snapshot.layers.last()).map(|own| own.diff_id);
                let load = self.runner.load(job, layers);
                let (cache, key) = (self.cache, self.machine.key(id));
                self.call(ticket, async move {
                    match load.await {
                        Ok(Loaded::Here(snapshot)) => Output::Done(Done::Loaded(Some(snapshot))),
                        Ok(Loaded::Lost) => {
                            if let (Some(key), Some(layer)) = (key, own) {
                                cache.forget(key, layer);
                            }
                            Output::Done(Done::Lost)
                        }
                        Err(error) => Output::Failed(error),
                    }
                });
            }
            Work::Run(id, key) => {
                let cancel = self.open(ticket, id, None);
                let ignore_cache = self.definition.vertex(id).metadata.ignore_cache;
                let (cache, ran) = (self.cache, self.ran.clone());
                self.call(ticket, async move {
                    let guard = match future::select(cache.lock(key), cancel.cancelled()).await {
                        Either::Left((guard, _)) => guard,
                        Either::Right(_) => return Output::Stopped,
                    };
                    // Whoever had the lock before may have done it.
                    let usable = !ignore_cache || ran.borrow().contains(&key);
                    match cache.lookup(key) {
                        Some(record) if usable => Output::Done(Done::Found(record)),
                        _ => Output::Locked(Locked { ticket, vertex: id, key, guard }),
                    }
                });
            }
            Work::Lookup(..) => unreachable!("lookups are done together"),
        }
    }

    fn select(&mut self, ticket: Ticket, from: VertexId, user: VertexId, input: usize) {
        let result = self.machine.result(from);
        let selector = self.selector(user, input);
        let digest = selector.digest();
        if let Some(selected) = result.and_then(|result| self.cache.memo(result, digest)) {
            return self.machine.handle(ticket, Done::Selected(selected));
        }
        let local = self.definition.vertex(from).shape() == Shape::Local;
        let job = self.job(ticket, from, local.then_some(from));
        let (runner, cache, input) = (self.runner, self.cache, self.input(from));
        let remote = result.and_then(|result| cache.memo_remote(result, digest));
        let cancel = job.cancel.clone();
        self.call(ticket, async move {
            if let Some(remote) = remote {
                match future::select(remote, cancel.cancelled()).await {
                    Either::Left((Some(selected), _)) => return Output::Done(Done::Selected(selected)),
                    Either::Left((None, _)) => {}
                    Either::Right(_) => return Output::Stopped,
                }
            }
            match runner.select(job, input, &selector).await {
                Ok(Selection::NeedFiles) => Output::Done(Done::NeedFiles),
                Ok(Selection::Digest(selected)) => {
                    if let Some(result) = result {
                        cache.set_memo(result, digest, selected);
                    }
                    Output::Done(Done::Selected(selected))
                }
                Err(error) => Output::Failed(error),
            }
        });
    }

    /// Begins what is locked, as far as the limit allows.
    fn run_locked(&mut self) {
        let mut waiting = VecDeque::new();
        while let Some(locked) = self.locked.pop_front() {
            let process = self.definition.vertex(locked.vertex).is_process();
            if process && self.processes >= self.options.parallelism.max(1) {
                waiting.push_back(locked);
                continue;
            }
            self.processes += usize::from(process);
            self.run(locked, process);
        }
        self.locked = waiting;
    }

    fn run(&mut self, Locked { ticket, vertex: id, key, guard }: Locked, process: bool) {
        self.show(id);
        let vertex = self.definition.vertex(id);
        let call = self.open.get_mut(&ticket).expect("what is locked is open");
        (call.shown, call.process) = (Some(id), process);
        let job = Job { id, vertex, cancel: call.cancel.clone() };
        let inputs = vertex.inputs.iter().map(|input| self.input(input.vertex)).collect();
        let earlier = self.vertices[id.index()].earlier;
        let run = self.runner.run(job, Task { key, inputs, earlier });
        let parent = self.machine.parent(id).expect("a vertex runs when its inputs have results");
        let reads = std::mem::take(&mut self.vertices[id.index()].reads);
        let step = self.step_id(id);
        let (cache, ran) = (self.cache, self.ran.clone());
        self.call(ticket, async move {
            let output = match run.await {
                Ok(Outcome { layer, content, seconds, bytes, created }) => {
                    let result = parent.with_layer(content);
                    let op = vertex.op_digest;
                    let record = Record { layer, result, op, inputs: reads, seconds, bytes, created };
                    cache.insert(key, step, vertex, &record);
                    ran.borrow_mut().insert(key);
                    Output::Done(Done::Ran(record))
                }
                Err(error) => Output::Failed(error),
            };
            drop(guard);
            output
        });
    }

    fn completed(&mut self, ticket: Ticket, output: Output<R::Error>) -> Result<(), SolveError<R::Error>> {
        if let Output::Locked(locked) = output {
            if self.open.get(&ticket).is_some_and(|call| call.withdrawn) {
                self.open.remove(&ticket);
            } else {
                self.locked.push_back(locked);
                self.run_locked();
            }
            return Ok(());
        }
        let call = self.open.remove(&ticket).expect("every call is open until it completes");
        self.processes -= usize::from(call.process);
        let ended_well = matches!(output, Output::Done(_));
        match output {
            // An error of something that was told to stop is no error.
            Output::Failed(source) if !call.withdrawn && !self.options.cancel.is_cancelled() => {
                let vertex = call.vertex;
                let message = source.to_string();
                let line = message.lines().next().unwrap_or_default().to_owned();
                (self.events)(Event::Failed(vertex, line));
                return Err(SolveError::Vertex { vertex, name: self.name(vertex), source });
            }
            Output::Done(done) => {
                if matches!(done, Done::Ran(_)) {
                    self.vertices[call.vertex.index()].fresh = true;
                }
                self.unshow(&call, ended_well);
                self.machine.handle(ticket, done);
            }
            _ => self.unshow(&call, ended_well),
        }
        self.run_locked();
        Ok(())
    }

    /// Stops what is still going on, and waits for its end.
    async fn join(&mut self) {
        self.locked.clear();
        for call in self.open.values_mut() {
            call.withdrawn = true;
            call.cancel.cancel();
        }
        while let Some((ticket, output)) = self.calls.next().await {
            if let Some(call) = self.open.remove(&ticket) {
                self.unshow(&call, matches!(output, Output::Done(_)));
            }
        }
    }

    fn withdraw(&mut self, ticket: Ticket) {
        if let Some(call) = self.open.get_mut(&ticket) {
            call.withdrawn = true;
            call.cancel.cancel();
        }
        if let Some(index) = self.locked.iter().position(|locked| locked.ticket == ticket) {
            self.locked.remove(index);
            self.open.remove(&ticket);
        }
    }

    fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Hit(id) => (self.events)(Event::Cached(id)),
            Notice::Missed(id, why) => {
                let reason = self.reason(id, why);
                let metadata = &self.definition.vertex(id).metadata;
                let inputs = &self.definition.vertex(id).inputs;
                // What a context is goes without saying.
                let name_of = |name: &str| {
                    let at = metadata.input_names.iter().position(|known| known == name)?;
                    let input = self.definition.vertex(inputs.get(at)?.vertex);
                    (input.shape() != Shape::Local).then_some(&*input.metadata.name)
                };
                (self.events)(Event::Missed(id, reason.with_names(name_of)));
            }
            Notice::Composed(id) => {
                let mut inputs = self.definition.vertex(id).inputs.iter();
                let fresh = inputs.any(|input| self.vertices[input.vertex.index()].fresh);
                self.vertices[id.index()].fresh = fresh;
                if fresh {
                    (self.events)(Event::Started(id));
                    (self.events)(Event::Completed(id));
                } else {
                    (self.events)(Event::Cached(id));
                }
            }
        }
    }

    fn reason(&mut self, id: VertexId, why: Miss) -> Reason {
        let vertex = self.definition.vertex(id);
        let digests = self.machine.input_digests(id).expect("a vertex is missed when its inputs are known");
        let mut files = Vec::new();
        for (index, input) in vertex.inputs.iter().enumerate() {
            let local = self.definition.vertex(input.vertex).shape() == Shape::Local;
            if input.selector.is_some() || local {
                let selector = self.selector(id, index);
                files.extend(self.runner.selected_files(self.input(input.vertex), &selector));
            }
        }
        let reads = recorded_inputs(vertex, &digests, files);
        let reason = match why {
            Miss::Ignored => Reason::NoCache,
            Miss::Lost => Reason::Evicted,
            Miss::NotFound => {
                let previous = self.cache.previous(self.step_id(id), &reads);
                self.vertices[id.index()].earlier = previous.as_ref().map(|record| record.layer);
                explain(previous.as_ref(), &reads)
            }
        };
        self.vertices[id.index()].reads = reads;
        reason
    }

    fn step_id(&mut self, id: VertexId) -> StepId {
        if self.step_ids.is_empty() {
            let mut positions: HashMap<&str, usize> = HashMap::new();
            for id in self.definition.ids() {
                let vertex = self.definition.vertex(id);
                let position = positions.entry(&vertex.metadata.stage).or_default();
                *position += usize::from(matches!(vertex.shape(), Shape::Layer { .. }));
                self.step_ids.push(StepId::new(&self.options.scope, &vertex.metadata.stage, *position));
            }
        }
        self.step_ids[id.index()]
    }

    fn selector(&self, user: VertexId, input: usize) -> Selector {
        match &self.definition.vertex(user).inputs[input].selector {
            Some(selector) => Selector::clone(selector),
            None => Selector::all(),
        }
    }

    fn input(&self, id: VertexId) -> InputRef<'a> {
        let vertex = self.definition.vertex(id);
        let snapshot = if vertex.shape() == Shape::Local { None } else { self.machine.snapshot(id) };
        InputRef { id, vertex, result: self.machine.result(id), snapshot }
    }

    fn job(&mut self, ticket: Ticket, id: VertexId, shown: Option<VertexId>) -> Job<'a> {
        let cancel = self.open(ticket, id, shown);
        Job { id, vertex: self.definition.vertex(id), cancel }
    }

    fn open(&mut self, ticket: Ticket, vertex: VertexId, shown: Option<VertexId>) -> Cancel {
        if let Some(id) = shown {
            self.show(id);
        }
        let cancel = self.options.cancel.child();
        let call = Call { vertex, shown, process: false, cancel: cancel.clone(), withdrawn: false };
        self.open.insert(ticket, call);
        cancel
    }

    fn call(&self, ticket: Ticket, call: impl Future<Output = Output<R::Error>> + 'a) {
        self.calls.push(Box::pin(async move { (ticket, call.await) }));
    }

    fn show(&mut self, id: VertexId) {
        let busy = &mut self.vertices[id.index()].busy;
        *busy += 1;
        if *busy == 1 {
            (self.events)(Event::Started(id));
        }
    }

    fn unshow(&mut self, call: &Call, ended_well: bool) {
        let Some(id) = call.shown else { return };
        let busy = &mut self.vertices[id.index()].busy;
        *busy -= 1;
        if *busy == 0 {
            (self.events)(if ended_well { Event::Completed(id) } else { Event::Cancelled(id) });
        }
    }

    fn name(&self, id: VertexId) -> String {
        self.definition.vertex(id).metadata.name.clone()
    }
}

#[cfg(test)]
mod tests;
