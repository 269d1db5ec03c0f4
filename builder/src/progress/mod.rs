//! Shows a build while it runs (`--progress`). Events go into a bounded queue; a thread of its own draws from it, so a
//! slow terminal never holds the build up. What does not fit of a step's output is left out, and said so.
//!
//! `model` is what is known, `text` makes output harmless, `plain`, `tty` and `rawjson` are the views.

mod model;
mod plain;
pub(crate) mod rawjson;
mod text;
mod tty;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use image::ContentDigest;
use jiff::Timestamp;
use solver::driver::Root;
use solver::event::Event;
use solver::{Definition, VertexId};

use crate::ci::Ci;
use model::{Info, Model, StepId, What};
use plain::Plain;
use tty::{Look, Screen};

/// `--progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `tty` on a terminal, else `plain`.
    Auto,
    Tty,
    Plain,
    RawJson,
    /// Nothing but the result's ID, which is not ours to print.
    Quiet,
    None,
}

/// What the views need to know of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// Standard error is one.
    pub(crate) is_terminal: bool,
    /// `NO_COLOR` is not set.
    pub(crate) colour: bool,
    /// Whose log plain lines go into.
    pub(crate) ci: Ci,
    /// `BUILDKIT_TTY_LOG_LINES`.
    pub(crate) log_lines: usize,
    /// Columns and rows now.
    pub(crate) size: fn() -> Option<(usize, usize)>,
}

/// A running display. Clones of its [`Handle`] take events; [`Progress::finish`] ends it.
#[derive(Debug)]
pub(crate) struct Progress {
    handle: Handle,
    // None once it was joined.
    thread: Option<JoinHandle<Model>>,
}

/// Where events go. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Shared>);

/// A step that is the builder's own: loading the Dockerfile, exporting. Dropped before its end it is cancelled.
#[derive(Debug)]
pub(crate) struct Task {
    handle: Handle,
    id: StepId,
    ended: bool,
}

/// What remains when the display is over.
#[derive(Debug)]
pub(crate) struct Report(Model);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" | "auto" => Self::Auto,
            "tty" => Self::Tty,
            "plain" => Self::Plain,
            "rawjson" => Self::RawJson,
            "quiet" => Self::Quiet,
            "none" => Self::None,
            _ => {
                return Err(format!(
                    "invalid progress mode {text:?}: expected auto, tty, plain, quiet, rawjson or none"
                ));
            }
        })
    }
}

impl Terminal {
    /// Standard error's, with what the environment says.
    pub(crate) fn stderr(variable: impl Fn(&str) -> Option<String>) -> Self {
        let log_lines = variable("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
        Self {
            is_terminal: std::io::IsTerminal::is_terminal(&std::io::stderr()),
            colour: variable("NO_COLOR").is_none_or(|value| value.is_empty()),
            ci: Ci::of(&variable),
            log_lines: log_lines.unwrap_or(6),
            size: || {
                let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
                (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
            },
        }
    }
}

impl Progress {
    /// Begins to show. `out` is standard error; the terminal view draws on that by itself.
    pub(crate) fn new(mode: Mode, terminal: Terminal, out: Box<dyn Write + Send>) -> Self {
        let view = match mode {
            Mode::Tty | Mode::Auto if terminal.is_terminal => View::Tty(Screen::new()),
            // As much as can be done without a terminal.
            Mode::Tty | Mode::Auto | Mode::Plain => {
                let began = Timestamp::now().as_second();
                View::Plain(Plain::new(terminal.ci, began))
            }
            Mode::RawJson => View::RawJson { began: Timestamp::now() },
            Mode::Quiet | Mode::None => View::Nothing,
        };
        let shared = Arc::new(Shared {
            began: Instant::now(),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        });
        let painter =
            Painter { shared: shared.clone(), view, terminal, out: Some(out), model: Model::default() };
        let thread = thread::spawn(move || painter.run());
        Self { handle: Handle(shared), thread: Some(thread) }
    }

    /// Where events go.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Shows the rest and stops, as does dropping it. Events that come later are lost.
    pub(crate) fn finish(mut self) -> Report {
        self.close()
    }

    fn close(&mut self) -> Report {
        self.handle.0.lock().closed = true;
        self.handle.0.changed.notify_one();
        // A view that panics is a bug; the build's result is no less good for it.
        Report(self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.close();
    }
}

impl Handle {
    /// Announces the steps that `roots` need, and gives the function that takes the solver's events.
    pub(crate) fn definition(
        &self,
        definition: &Definition,
        roots: &[Root],
    ) -> impl Fn(Event) + Clone + Send + Sync + 'static {
        let mut reached = vec![false; definition.len()];
        let mut open: Vec<VertexId> = roots.iter().map(|root| root.vertex).collect();
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut reached[id.index()], true) {
                open.extend(definition.vertex(id).inputs.iter().map(|input| input.vertex));
            }
        }
        let digest = |id: VertexId| hex_digest(definition.vertex(id).digest);
        let steps: Arc<[Option<StepId>]> = definition
            .ids()
            .map(|id| {
                let vertex = definition.vertex(id);
                // What has no name is nobody's business.
                let shown = reached[id.index()] && !vertex.metadata.name.is_empty();
                shown.then(|| {
                    self.add(Info {
                        name: vertex.metadata.name.clone(),
                        digest: digest(id),
                        inputs: vertex.inputs.iter().map(|input| digest(input.vertex)).collect(),
                    })
                })
            })
            .collect();
        let handle = self.clone();
        move |event: Event| {
            if let Some(step) = steps.get(vertex_of(&event).index()).copied().flatten()
                && let Some(what) = What::of(event)
            {
                handle.push(step, what);
            }
        }
    }

    /// Begins a step of the builder's own.
    pub(crate) fn task(&self, name: &str) -> Task {
        let digest = hex_digest(ContentDigest::of(format!("{name} {:?}", Instant::now()).as_bytes()));
        let id = self.add(Info { name: name.to_owned(), digest, inputs: Vec::new() });
        self.push(id, What::Started);
        Task { handle: self.clone(), id, ended: false }
    }

    fn add(&self, info: Info) -> StepId {
        let mut queue = self.0.lock();
        let id = queue.steps;
        queue.steps += 1;
        queue.push(id, self.0.began.elapsed(), What::Added(info));
        id
    }

    fn push(&self, id: StepId, what: What) {
        // A build that is cached says that thousands of times: it is told at the next tick or with other news.
        let waits = matches!(what, What::Cached);
        self.0.lock().push(id, self.0.began.elapsed(), what);
        if !waits {
            self.0.changed.notify_one();
        }
    }
}

impl Task {
    /// Tells of a transfer in it.
    pub(crate) fn progress(&self, id: &str, current: u64, total: Option<u64>, done: bool) {
        self.handle.push(self.id, What::Progress { id: id.to_owned(), current, total, done });
    }

    /// The same, as transfers report it.
    pub(crate) fn reporter(&self, id: &str) -> store::registry::Progress {
        let (handle, step, id) = (self.handle.clone(), self.id, id.to_owned());
        store::registry::Progress::new(move |current, total| {
            handle.push(step, What::Progress { id: id.clone(), current, total, done: false });
        })
    }

    /// It ended well.
    pub(crate) fn done(self) {
        self.end(What::Completed);
    }

    /// It failed.
    pub(crate) fn failed(self, message: &str) {
        self.end(What::Failed(message.lines().next().unwrap_or_default().to_owned()));
    }

    fn end(mut self, what: What) {
        self.ended = true;
        self.handle.push(self.id, what);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            self.handle.push(self.id, What::Cancelled);
        }
    }
}

impl Report {
    /// The failed step's name and last output, as it stands above the error; none if no step failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.failure()
    }
}

/// Output of steps that waits to be shown, bytes.
const MAX_LOG: usize = 4 * 1024 * 1024;
/// Beyond so many waiting items, transfers are told of only when they end.
const MAX_ITEMS: usize = 4096;
/// How often a terminal is redrawn and a plain log looks whose turn it is.
const TICK: Duration = Duration::from_millis(100);

struct Shared {
    began: Instant,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<(StepId, Duration, What)>,
    /// Steps added so far.
    steps: usize,
    log_bytes: usize,
    dropped: HashMap<StepId, u64>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Queue {
    fn push(&mut self, id: StepId, now: Duration, what: What) {
        match &what {
            What::Log { data, .. } => {
                if self.log_bytes + data.len() > MAX_LOG {
                    *self.dropped.entry(id).or_default() += data.len() as u64;
                    return;
                }
                self.log_bytes += data.len();
            }
            What::Progress { done: false, .. } if self.items.len() > MAX_ITEMS => return,
            _ => {}
        }
        if let Some(bytes) = self.dropped.remove(&id) {
            self.items.push_back((id, now, What::Dropped(bytes)));
        }
        self.items.push_back((id, now, what));
    }

    fn take(&mut self) -> VecDeque<(StepId, Duration, What)> {
        self.log_bytes = 0;
        std::mem::take(&mut self.items)
    }
}

#[derive(Debug)]
enum View {
    Tty(Screen),
    Plain(Plain),
    RawJson { began: Timestamp },
    Nothing,
}

/// The thread that draws.
struct Painter {
    shared: Arc<Shared>,
    view: View,
    terminal: Terminal,
    /// `None` after it could not be written to: nobody looks.
    out: Option<Box<dyn Write + Send>>,
    model: Model,
}

impl Painter {
    fn run(mut self) -> Model {
        loop {
            let (items, closed) = self.wait();
            let mut text = String::new();
            for (id, now, what) in items {
                let lines = self.model.apply(id, now, &what);
                match &mut self.view {
                    View::Plain(plain) => plain.handle(&self.model, id, now, &what, &lines, &mut text),
                    View::RawJson { began } => {
                        rawjson::line(&self.model, *began, id, now, &what, &mut text);
                    }
                    View::Tty(_) | View::Nothing => {}
                }
                if text.len() > 64 * 1024 {
                    self.write(&std::mem::take(&mut text));
                }
            }
            let now = self.shared.began.elapsed();
            match &mut self.view {
                View::Plain(plain) if closed => plain.finish(&self.model, now, &mut text),
                View::Plain(plain) => plain.tick(&self.model, now, &mut text),
                View::Tty(screen) if closed => {
                    screen.clear();
                    for line in tty::summary(&self.model, now, look(&self.terminal)) {
                        text.push_str(&line);
                        text.push('\n');
                    }
                }
                View::Tty(screen) => screen.draw(&tty::frame(&self.model, now, look(&self.terminal))),
                View::RawJson { .. } | View::Nothing => {}
            }
            self.write(&text);
            if closed {
                return self.model;
            }
        }
    }

    /// Waits until there is something to do: for a terminal the next tick, otherwise the next event.
    fn wait(&self) -> (VecDeque<(StepId, Duration, What)>, bool) {
        let paced = matches!(self.view, View::Tty(_));
        let idle = |queue: &mut Queue| {
            let calm = if paced { queue.log_bytes < MAX_LOG / 2 } else { queue.items.is_empty() };
            !queue.closed && calm
        };
        let queue = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(queue, TICK, idle);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (queue.take(), queue.closed)
    }

    fn write(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if let Some(out) = &mut self.out
            && out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err()
        {
            self.out = None;
        }
    }
}

fn look(terminal: &Terminal) -> Look {
    let (columns, rows) = (terminal.size)().unwrap_or((80, 24));
    Look { columns, rows, log_lines: terminal.log_lines, colour: terminal.colour }
}

fn vertex_of(event: &Event) -> VertexId {
    match event {
        Event::Started(id)
        | Event::Cached(id)
        | Event::Missed(id, _)
        | Event::Completed(id)
        | Event::Failed(id, _)
        | Event::Cancelled(id) => *id,
        Event::Log { vertex, .. } | Event::Progress { vertex, .. } => *vertex,
    }
}

/// A digest in the form that readers of BuildKit's JSON expect. It names the step and nothing else.
fn hex_digest(digest: ContentDigest) -> String {
    format!("sha256:{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use solver::definition::Metadata;
    use solver::event::Stream;
    use solver::op::{Op, Source};

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const TERMINAL: Terminal =
        Terminal { is_terminal: false, colour: false, ci: Ci::None, log_lines: 6, size: || Some((80, 24)) };

    fn local(definition: &mut Definition, name: &str) -> VertexId {
        let source = Source::Local { name: name.to_owned(), ignore: Vec::new() };
        definition.add(
            Op::Source(source),
            Vec::new(),
            Metadata { name: name.to_owned(), ..Metadata::default() },
        )
    }

    #[test]
    fn events_come_out_in_plain_and_only_of_steps_that_are_needed() {
        let out = Out::default();
        let progress = Progress::new(Mode::Auto, TERMINAL, Box::new(out.clone()));
        progress.handle().task("[internal] load build definition").done();
        let mut definition = Definition::default();
        let (vertex, other) = (local(&mut definition, "RUN x"), local(&mut definition, "unused"));
        let events = progress.handle().definition(&definition, &[Root { vertex, want_files: false }]);
        events(Event::Started(vertex));
        events(Event::Log { vertex, stream: Stream::Stdout, data: b"\x1b[2Jhello\n".to_vec() });
        events(Event::Started(other));
        events(Event::Failed(vertex, "exit code: 1".to_owned()));
        drop(progress.handle().task("exporting"));
        let report = progress.finish();
        let shown = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert!(
            shown.starts_with("#1 [internal] load build definition\n#1 DONE 0.0s\n\n#2 RUN x\n#2 0."),
            "{shown}"
        );
        assert!(shown.contains(" hello\n#2 ERROR: exit code: 1\n\n#3 exporting\n#3 CANCELED\n"), "{shown}");
        assert!(!shown.contains("unused"));
        let failure = report.failure().unwrap();
        assert!(
            failure.starts_with("------\n > RUN x:\n0.") && failure.ends_with(" hello\n------"),
            "{failure}"
        );
    }

    #[test]
    fn quiet_shows_nothing_and_still_knows_what_failed() {
        for mode in [Mode::Quiet, Mode::None] {
            let out = Out::default();
            let progress = Progress::new(mode, TERMINAL, Box::new(out.clone()));
            progress.handle().task("load").failed("no\nsuch file");
            assert_eq!(progress.finish().failure().unwrap(), "------\n > load:\n------");
            assert!(out.0.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn a_flood_is_cut_and_said_to_be() {
        let mut queue = Queue::default();
        let log = || What::Log { stream: Stream::Stdout, data: vec![b'x'; 1024 * 1024] };
        for _ in 0..100 {
            queue.push(0, Duration::ZERO, log());
        }
        assert_eq!(queue.take().len(), 4);
        queue.push(0, Duration::ZERO, What::Completed);
        let told: Vec<What> = queue.take().into_iter().map(|(_, _, what)| what).collect();
        assert_eq!(told, [What::Dropped(96 * 1024 * 1024), What::Completed]);
    }

    #[test]
    fn a_blocked_terminal_does_not_block_the_build() {
        struct Blocked(Arc<Mutex<()>>);
        impl Write for Blocked {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                drop(self.0.lock().unwrap());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let progress = Progress::new(Mode::Plain, TERMINAL, Box::new(Blocked(gate.clone())));
        let handle = progress.handle();
        for number in 0..20_000 {
            let task = handle.task("step");
            task.progress("sha256:aa", number, None, false);
            task.done();
        }
        drop(closed);
        progress.finish();
    }

    #[test]
    fn modes_are_those_of_buildx() {
        for (text, mode) in [("auto", Mode::Auto), ("", Mode::Auto), ("rawjson", Mode::RawJson)] {
            assert_eq!(text.parse(), Ok(mode));
        }
        assert!("fancy".parse::<Mode>().is_err());
    }
}
