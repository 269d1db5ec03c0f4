//! What is known of the steps of a build: what every view draws from. Times are durations since the build began.

use std::time::Duration;

use solver::event::{Event, Stream};

use super::text::{Lines, Tail, clean};

/// Index of a step in a [`Model`].
pub(crate) type StepId = usize;

/// How many lines of a step are kept for the report of its failure.
pub(crate) const REPORT_LINES: usize = 40;

/// Something happened to a step: [`Event`] without its vertex, and what is not the solver's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// It exists. Comes before all else.
    Added(Info),
    Started,
    Cached,
    Log {
        stream: Stream,
        data: Vec<u8>,
    },
    /// It is not taken from the cache, for this reason.
    Missed(String),
    /// So many bytes of its output were left out.
    Dropped(u64),
    Progress {
        id: String,
        current: u64,
        total: Option<u64>,
        done: bool,
    },
    Completed,
    Failed(String),
    Cancelled,
}

/// What a step is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) name: String,
    /// Names it in machine-readable output: `sha256:<hex>`.
    pub(crate) digest: String,
    pub(crate) inputs: Vec<String>,
}

/// The steps so far.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) steps: Vec<Step>,
}

/// One step.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) info: Info,
    pub(crate) state: State,
    /// When it first started.
    pub(crate) first: Option<Duration>,
    /// Time it took in finished spells: a source may be pinned, and much later fetched.
    pub(crate) spent: Duration,
    pub(crate) transfers: Vec<Transfer>,
    /// Lines with the time in front, as they are reported.
    pub(crate) tail: Tail,
    lines: [Lines; 2],
}

/// Where a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    Running { since: Duration },
    Completed,
    Cached,
    Failed(String),
    Cancelled,
}

/// Measurable work of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) id: String,
    pub(crate) current: u64,
    pub(crate) total: Option<u64>,
    pub(crate) started: Duration,
    pub(crate) ended: Option<Duration>,
}

/// Transfers kept of a step.
const MAX_TRANSFERS: usize = 256;

impl What {
    /// An event as a step's; `None` if views do not show it.
    pub(crate) fn of(event: Event) -> Option<Self> {
        Some(match event {
            Event::Started(_) => Self::Started,
            Event::Cached(_) => Self::Cached,
            Event::Missed(_, reason) => Self::Missed(reason),
            Event::Log { stream, data, .. } => Self::Log { stream, data },
            Event::Progress { id, current, total, done, .. } => Self::Progress { id, current, total, done },
            Event::Completed(_) => Self::Completed,
            Event::Failed(_, message) => Self::Failed(message),
            Event::Cancelled(_) => Self::Cancelled,
        })
    }
}

impl Model {
    /// Takes in what happened; gives the lines of output that it completes, for views that print them.
    pub(crate) fn apply(&mut self, id: StepId, now: Duration, what: &What) -> Vec<String> {
        if let What::Added(info) = what {
            debug_assert_eq!(id, self.steps.len(), "steps are added in order");
            let info = Info { name: clean(info.name.as_bytes()), ..info.clone() };
            self.steps.push(Step::new(info));
            return Vec::new();
        }
        let step = &mut self.steps[id];
        let mut out = Vec::new();
        match what {
            What::Added(_) => {}
            What::Started => {
                step.state = State::Running { since: now };
                step.first.get_or_insert(now);
            }
            What::Missed(_) => {}
            What::Cached => step.end(now, State::Cached),
            What::Log { stream, data } => step.lines[*stream as usize].push(data, |line| out.push(line)),
            What::Dropped(bytes) => out.push(format!("[{} of output left out]", crate::show::size(*bytes))),
            What::Progress { id, current, total, done } => {
                step.transfer(clean(id.as_bytes()), *current, *total, done.then_some(now), now);
            }
            What::Completed | What::Failed(_) | What::Cancelled => {
                out.extend(step.lines.iter_mut().filter_map(Lines::finish));
            }
        }
        let seconds = step.elapsed(now).as_secs_f64();
        out.iter().for_each(|line| step.tail.push(format!("{seconds:.3} {line}")));
        match what {
            What::Completed => step.end(now, State::Completed),
            What::Failed(message) => step.end(now, State::Failed(clean(message.as_bytes()))),
            What::Cancelled => step.end(now, State::Cancelled),
            _ => {}
        }
        out
    }

    /// How many steps have ended.
    pub(crate) fn ended(&self) -> usize {
        self.steps.iter().filter(|step| step.is_ended()).count()
    }

    /// The last output of the step that failed, between rules, as it stands above the error.
    pub(crate) fn failure(&self) -> Option<String> {
        let step = self.steps.iter().find(|step| matches!(step.state, State::Failed(_)))?;
        let mut report = format!("------\n > {}:\n", step.info.name);
        for line in step.tail.iter() {
            report.push_str(line);
            report.push('\n');
        }
        report.push_str("------");
        Some(report)
    }
}

impl Step {
    fn new(info: Info) -> Self {
        Self {
            info,
            state: State::Waiting,
            first: None,
            spent: Duration::ZERO,
            transfers: Vec::new(),
            tail: Tail::new(REPORT_LINES),
            lines: Default::default(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    pub(crate) fn is_ended(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Running { .. })
    }

    /// Time it worked so far.
    pub(crate) fn elapsed(&self, now: Duration) -> Duration {
        match self.state {
            State::Running { since } => self.spent + now.saturating_sub(since),
            _ => self.spent,
        }
    }

    /// Output of a line that has not ended.
    pub(crate) fn partial(&self) -> Option<String> {
        self.lines.iter().rev().find_map(Lines::partial)
    }

    fn end(&mut self, now: Duration, state: State) {
        self.spent = self.elapsed(now);
        self.first.get_or_insert(now);
        if !matches!(state, State::Failed(_)) {
            // Nobody asks for it, and there may be thousands of steps.
            self.tail.clear();
        }
        self.state = state;
    }

    fn transfer(
        &mut self,
        id: String,
        current: u64,
        total: Option<u64>,
        ended: Option<Duration>,
        now: Duration,
    ) {
        if let Some(known) = self.transfers.iter_mut().find(|transfer| transfer.id == id) {
            (known.current, known.ended) = (current, ended);
            known.total = total.or(known.total);
        } else if self.transfers.len() < MAX_TRANSFERS {
            self.transfers.push(Transfer { id, current, total, started: now, ended });
        }
    }
}

impl Transfer {
    /// `sha256:... 1.05MB / 3.37MB`, or without sizes what it is.
    pub(crate) fn text(&self) -> String {
        let size = crate::show::size;
        let colon = if self.id.contains(':') { "" } else { ":" };
        match (self.current, self.total) {
            (current, Some(total)) if total > 0 => {
                format!("{}{colon} {} / {}", self.id, size(current), size(total))
            }
            (0, _) => self.id.clone(),
            (current, _) => format!("{}{colon} {}", self.id, size(current)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_failure_is_reported_with_the_last_lines_of_its_step() {
        let mut model = Model::default();
        let info = Info { name: "[2/2] RUN make".to_owned(), ..Info::default() };
        model.apply(0, at(0), &What::Added(info));
        model.apply(0, at(1), &What::Started);
        for number in 0..100 {
            let data = format!("line {number}\n").into_bytes();
            model.apply(0, at(2), &What::Log { stream: Stream::Stdout, data });
        }
        model.apply(0, at(3), &What::Log { stream: Stream::Stderr, data: b"\x1b[31mno end".to_vec() });
        assert_eq!(model.failure(), None);
        model.apply(0, at(4), &What::Failed("exit code: 2".to_owned()));
        let report = model.failure().unwrap();
        let lines: Vec<&str> = report.lines().collect();
        assert_eq!(lines.len(), REPORT_LINES + 3);
        assert_eq!(lines[..3], ["------", " > [2/2] RUN make:", "1.000 line 61"]);
        assert_eq!(lines[REPORT_LINES..], ["1.000 line 99", "3.000 no end", "------"]);
    }

    #[test]
    fn time_counts_only_while_a_step_works() {
        let mut model = Model::default();
        model.apply(0, at(0), &What::Added(Info::default()));
        for (time, what) in [(1, What::Started), (3, What::Completed), (10, What::Started)] {
            model.apply(0, at(time), &what);
        }
        assert_eq!(model.steps[0].elapsed(at(11)), at(3));
        assert_eq!(model.ended(), 0);
    }
}
