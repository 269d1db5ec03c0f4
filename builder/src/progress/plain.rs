//! `--progress=plain`: lines that can be kept in a log, in the form of BuildKit's.
//!
//! Output of steps that run at the same time is not mixed line by line: one step has the floor until it ends or is
//! silent for a while; what the others say meanwhile waits.

use std::time::Duration;

use super::model::{Model, State, StepId, What};
use crate::ci::Ci;

/// A step that says nothing for so long loses the floor to one that does.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nobody waits longer than this, or with more than this.
const MOST_WAIT: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 256 * 1024;
/// How often an unfinished transfer is mentioned.
const TRANSFER_INTERVAL: Duration = Duration::from_secs(5);

/// The view.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    /// Whose log it goes into.
    ci: Ci,
    /// When the build began, seconds since the epoch.
    began: i64,
    entries: Vec<Entry>,
    /// Steps with something to say, first come first.
    waiting: Vec<StepId>,
    /// Who has the floor, and when it last said something.
    floor: Option<(StepId, Duration)>,
    numbers: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// From when it is shown on.
    number: Option<usize>,
    /// Lines to print, each without its number.
    pending: Vec<String>,
    bytes: usize,
    /// Since when something is pending.
    since: Duration,
    /// The last pending line is the last for now.
    ended: bool,
    /// That it ended was said once.
    told: bool,
    /// When each transfer was last mentioned, and whether as done.
    mentioned: Vec<Option<(Duration, bool)>>,
}

fn never_built() -> String {
    solver::explain::Reason::NeverBuilt.to_string()
}

fn not_used() -> String {
    solver::explain::Reason::NoCache.to_string()
}

impl Plain {
    /// For the log of `ci`, from the time `began`, seconds since the epoch.
    pub(crate) fn new(ci: Ci, began: i64) -> Self {
        Self { ci, began, ..Self::default() }
    }

    /// Takes in what happened, after the model did and gave `lines`.
    pub(crate) fn handle(
        &mut self,
        model: &Model,
        id: StepId,
        now: Duration,
        what: &What,
        lines: &[String],
        out: &mut String,
    ) {
        if self.entries.len() <= id {
            self.entries.resize_with(id + 1, Entry::default);
        }
        let step = &model.steps[id];
        let elapsed = step.elapsed(now).as_secs_f64();
        for line in lines {
            self.say(id, now, format!("{elapsed:.3} {line}"));
        }
        match what {
            What::Added(_) | What::Log { .. } | What::Dropped(_) => {}
            // That a first build finds nothing, or that the cache is not to be used, is no news.
            What::Missed(reason) if reason == &never_built() || reason == &not_used() => {}
            What::Missed(reason) => self.say(id, now, format!("MISS {reason}")),
            What::Started => {
                self.entries[id].ended = false;
                // A context is looked at once for its files and again for each step: once is enough.
                if !self.entries[id].told {
                    self.announce(id, now);
                }
            }
            What::Progress { .. } => self.mention(model, id, now),
            What::Cached | What::Completed if self.entries[id].told && !self.is_heard(id) => {}
            What::Cached | What::Completed | What::Failed(_) | What::Cancelled => {
                let last = match &step.state {
                    State::Cached => "CACHED".to_owned(),
                    State::Failed(message) => format!("ERROR: {message}"),
                    State::Cancelled => "CANCELED".to_owned(),
                    _ => format!("DONE {elapsed:.1}s"),
                };
                self.say(id, now, last);
                (self.entries[id].ended, self.entries[id].told) = (true, true);
            }
        }
        self.print(model, now, out);
    }

    /// Gives the floor on if its owner was silent for too long.
    pub(crate) fn tick(&mut self, model: &Model, now: Duration, out: &mut String) {
        self.print(model, now, out);
    }

    /// Prints all that waits.
    pub(crate) fn finish(&mut self, model: &Model, now: Duration, out: &mut String) {
        self.print(model, now, out);
        while let Some(&next) = self.waiting.first() {
            self.give_floor(model, next, now, out);
            self.print(model, now, out);
        }
        if let Some((floor, _)) = self.floor.take() {
            out.push_str(&self.close(floor, now));
        }
    }

    /// Whether it has the floor or is going to.
    fn is_heard(&self, id: StepId) -> bool {
        self.waiting.contains(&id) || self.floor.is_some_and(|(floor, _)| floor == id)
    }

    fn announce(&mut self, id: StepId, now: Duration) {
        if !self.is_heard(id) {
            self.entries[id].since = now;
            self.waiting.push(id);
        }
    }

    fn say(&mut self, id: StepId, now: Duration, line: String) {
        self.announce(id, now);
        let entry = &mut self.entries[id];
        entry.bytes += line.len();
        entry.pending.push(line);
    }

    fn mention(&mut self, model: &Model, id: StepId, now: Duration) {
        let transfers = &model.steps[id].transfers;
        self.entries[id].mentioned.resize(transfers.len(), None);
        for (index, transfer) in transfers.iter().enumerate() {
            let due = match self.entries[id].mentioned[index] {
                Some((_, true)) => false,
                Some((last, false)) => transfer.ended.is_some() || now >= last + TRANSFER_INTERVAL,
                None => true,
            };
            if due {
                let took = transfer.ended.unwrap_or(now).saturating_sub(transfer.started).as_secs_f64();
                let done = if transfer.ended.is_some() { " done" } else { "" };
                self.entries[id].mentioned[index] = Some((now, transfer.ended.is_some()));
                self.say(id, now, format!("{} {took:.1}s{done}", transfer.text()));
            }
        }
    }

    fn print(&mut self, model: &Model, now: Duration, out: &mut String) {
        loop {
            if let Some((floor, last)) = self.floor {
                let spoke = !self.entries[floor].pending.is_empty();
                self.print_pending(floor, out);
                let last = if spoke { now } else { last };
                self.floor = Some((floor, last));
                if std::mem::take(&mut self.entries[floor].ended) {
                    out.push('\n');
                    out.push_str(&self.close(floor, now));
                    self.floor = None;
                } else if !self.waiting.iter().any(|&id| self.is_due(id, last, now)) {
                    return;
                }
            }
            // Who is over is told first: it is the older news.
            let over = self.waiting.iter().copied().find(|&id| self.entries[id].ended);
            let Some(next) = over.or_else(|| self.waiting.first().copied()) else { return };
            self.give_floor(model, next, now, out);
        }
    }

    /// Whether `id` need not wait any longer for one that last spoke at `last`.
    fn is_due(&self, id: StepId, last: Duration, now: Duration) -> bool {
        let entry = &self.entries[id];
        let patient = now < last + PATIENCE && now < entry.since + MOST_WAIT && entry.bytes < MOST_BYTES;
        !entry.pending.is_empty() && !patient
    }

    fn give_floor(&mut self, model: &Model, id: StepId, now: Duration, out: &mut String) {
        if let Some((floor, _)) = self.floor.take() {
            let number = self.entries[floor].number.unwrap_or_default();
            out.push_str(&format!("#{number} ...\n\n"));
            out.push_str(&self.close(floor, now));
            // It is heard again when it says something.
        }
        self.waiting.retain(|&waiting| waiting != id);
        self.floor = Some((id, now));
        let number = *self.entries[id].number.get_or_insert_with(|| {
            self.numbers += 1;
            self.numbers
        });
        let heading = format!("#{number} {}", model.steps[id].info.name);
        out.push_str(&self.ci.open(number, &heading, self.began + now.as_secs().cast_signed()));
    }

    /// What ends the part of a step in the log.
    fn close(&self, id: StepId, now: Duration) -> String {
        let number = self.entries[id].number.unwrap_or_default();
        self.ci.close(number, self.began + now.as_secs().cast_signed())
    }

    fn print_pending(&mut self, id: StepId, out: &mut String) {
        let entry = &mut self.entries[id];
        let number = entry.number.unwrap_or_default();
        for line in entry.pending.drain(..) {
            out.push_str(&format!("#{number} {line}\n"));
        }
        entry.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use solver::event::Stream;

    use super::super::model::Info;
    use super::*;

    /// Runs a script of (milliseconds, step, what) and gives what is printed.
    fn shown(names: &[&str], script: Vec<(u64, StepId, What)>) -> String {
        let (mut model, mut plain, mut out) = (Model::default(), Plain::default(), String::new());
        let added = names
            .iter()
            .enumerate()
            .map(|(id, name)| (0, id, What::Added(Info { name: (*name).to_owned(), ..Info::default() })));
        let mut last = Duration::ZERO;
        for (time, id, what) in added.chain(script) {
            last = Duration::from_millis(time);
            plain.tick(&model, last, &mut out);
            let lines = model.apply(id, last, &what);
            plain.handle(&model, id, last, &what, &lines, &mut out);
        }
        plain.finish(&model, last, &mut out);
        out
    }

    fn log(text: &str) -> What {
        What::Log { stream: Stream::Stdout, data: text.as_bytes().to_vec() }
    }

    fn progress(current: u64, done: bool) -> What {
        What::Progress { id: "sha256:aa".to_owned(), current, total: Some(3_000_000), done }
    }

    #[test]
    fn steps_one_after_the_other() {
        let script = vec![
            (0, 0, What::Started),
            (100, 0, progress(1_000_000, false)),
            (200, 0, progress(2_000_000, false)),
            (300, 0, progress(3_000_000, true)),
            (400, 0, What::Completed),
            (400, 1, What::Cached),
            (500, 2, What::Started),
            (623, 2, log("hello\nwor")),
            (700, 2, log("ld\n")),
            (900, 2, What::Failed("exit code: 1".to_owned())),
        ];
        let expected = "\
#1 [1/3] FROM busybox
#1 sha256:aa 1.00MB / 3.00MB 0.0s
#1 sha256:aa 3.00MB / 3.00MB 0.2s done
#1 DONE 0.4s

#2 [2/3] COPY . .
#2 CACHED

#3 [3/3] RUN make
#3 0.123 hello
#3 0.200 world
#3 ERROR: exit code: 1

";
        assert_eq!(shown(&["[1/3] FROM busybox", "[2/3] COPY . .", "[3/3] RUN make"], script), expected);
    }

    #[test]
    fn a_step_that_goes_on_after_its_end_is_told_of_again_if_it_says_something() {
        let script = vec![
            (0, 0, What::Started),
            (100, 0, What::Completed),
            (200, 0, What::Started),
            (300, 0, What::Completed),
            (400, 1, What::Started),
            (500, 0, What::Started),
            (600, 1, What::Completed),
            (700, 0, progress(3_000_000, true)),
            (800, 0, What::Completed),
        ];
        let expected = "\
#1 [1/2] FROM busybox
#1 DONE 0.1s

#2 [2/2] RUN make
#2 DONE 0.2s

#1 [1/2] FROM busybox
#1 sha256:aa 3.00MB / 3.00MB 0.0s done
#1 DONE 0.5s

";
        assert_eq!(shown(&["[1/2] FROM busybox", "[2/2] RUN make"], script), expected);
    }

    #[test]
    fn steps_at_the_same_time_are_told_apart() {
        let script = vec![
            (0, 0, What::Started),
            (0, 1, What::Started),
            (100, 0, log("a1\n")),
            (200, 1, log("b1\n")),
            (300, 0, log("a2\n")),
            // Silent for five seconds: the other has the floor now.
            (6_000, 1, log("b2\n")),
            (6_100, 0, log("a3\n")),
            (6_200, 1, What::Completed),
            (6_300, 0, What::Cancelled),
        ];
        let expected = "\
#1 A
#1 0.100 a1
#1 0.300 a2
#1 ...

#2 B
#2 0.200 b1
#2 6.000 b2
#2 DONE 6.2s

#1 A
#1 6.100 a3
#1 CANCELED

";
        assert_eq!(shown(&["A", "B"], script), expected);
    }

    #[test]
    fn a_loud_step_does_not_make_others_wait_for_ever() {
        let mut script = vec![(0, 0, What::Started), (0, 1, What::Started), (0, 1, log("me too\n"))];
        script.extend((1..200).map(|number| (number * 100, 0, log("x\n"))));
        let shown = shown(&["A", "B"], script);
        let before = shown.split("me too").next().unwrap().matches(" x\n").count();
        assert!((90..110).contains(&before), "{before}");
    }
}
