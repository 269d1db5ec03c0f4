//! `--timings`: what a build spent its time on, as a table, or as a trace file that Perfetto and Chrome open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use store::timing::{self, Of, Timed};

use crate::export::file;
use crate::failure::Failure;

/// Where timings go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Timings {
    /// A table, on standard error.
    Table,
    /// A trace.
    File(PathBuf),
}

impl Timings {
    /// Begins to note them; `flag` is what was given to `--timings`, nothing for a table.
    pub(crate) fn begin(flag: &str) -> Self {
        timing::enable();
        if flag.is_empty() { Self::Table } else { Self::File(PathBuf::from(flag)) }
    }

    /// Shows or writes them. `steps` are the names of the steps, by index.
    pub(crate) fn show(&self, steps: &[String]) -> Result<(), Failure> {
        let phases = timing::take();
        let name = |of: &Of| name(of, steps);
        match self {
            Self::Table => {
                crate::commands::eprint(&table(&phases, name));
                Ok(())
            }
            Self::File(path) => write_trace(path, &phases, name),
        }
    }
}

fn name(of: &Of, steps: &[String]) -> String {
    match of {
        Of::Build => "build".to_owned(),
        Of::Layer(diff_id) => format!("layer {}", diff_id.0.short()),
        Of::Step(index) => match steps.get(*index) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("step {index}"),
        },
    }
}

struct Row<'a> {
    of: Of,
    /// With something, of what was added so far.
    busy: Duration,
    until: Duration,
    phases: Vec<(&'a str, Duration)>,
}

impl<'a> Row<'a> {
    /// Adds a phase that began no earlier than those before. Phases may lie in each other: time counts once for the
    /// whole.
    fn add(&mut self, phase: &'a Timed) {
        let end = phase.began + phase.took;
        self.busy += end.saturating_sub(self.until.max(phase.began));
        self.until = self.until.max(end);
        match self.phases.iter_mut().find(|(what, _)| *what == phase.what) {
            Some((_, took)) => *took += phase.took,
            None => self.phases.push((phase.what, phase.took)),
        }
    }
}

/// A line for each step, with its phases in the order in which they began.
fn table(phases: &[Timed], name: impl Fn(&Of) -> String) -> String {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for phase in phases {
        let at = rows.iter().position(|row| row.of == phase.of).unwrap_or_else(|| {
            rows.push(Row { of: phase.of, busy: Duration::ZERO, until: Duration::ZERO, phases: Vec::new() });
            rows.len() - 1
        });
        rows[at].add(phase);
    }
    let mut out = String::from("\nTimings, in milliseconds:\n");
    for Row { of, busy, phases, .. } in rows {
        let _ = write!(out, "{:9.2}  {}\n          ", millis(busy), name(&of));
        for (what, took) in phases {
            let _ = write!(out, "  {what} {:.2}", millis(took));
        }
        out.push('\n');
    }
    out
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Chrome's trace event format: one track for each step.
fn trace(phases: &[Timed], name: impl Fn(&Of) -> String) -> Value {
    let mut tracks: BTreeMap<String, usize> = BTreeMap::new();
    let mut events = Vec::new();
    for phase in phases {
        let key = format!("{:?}", phase.of);
        let next = tracks.len();
        let track = *tracks.entry(key).or_insert_with(|| {
            let args = json!({ "name": name(&phase.of) });
            events.push(json!({ "ph": "M", "pid": 1, "tid": next, "name": "thread_name", "args": args }));
            events.push(json!({ "ph": "M", "pid": 1, "tid": next, "name": "thread_sort_index", "args": { "sort_index": next } }));
            next
        });
        events.push(json!({
            "ph": "X", "pid": 1, "tid": track, "name": phase.what, "cat": "rbuild",
            "ts": phase.began.as_secs_f64() * 1e6, "dur": phase.took.as_secs_f64() * 1e6,
        }));
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

fn write_trace(path: &Path, phases: &[Timed], name: impl Fn(&Of) -> String) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(&trace(phases, name)).expect("plain data");
    file::write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases() -> Vec<Timed> {
        let ms = Duration::from_millis;
        vec![
            Timed { what: "look up", of: Of::Build, began: ms(1), took: ms(2) },
            Timed { what: "exec", of: Of::Step(4), began: ms(3), took: ms(10) },
            Timed { what: "diff", of: Of::Step(4), began: ms(13), took: ms(5) },
            Timed { what: "hash", of: Of::Step(4), began: ms(14), took: ms(2) },
            Timed { what: "look up", of: Of::Build, began: ms(20), took: ms(1) },
        ]
    }

    fn name(of: &Of) -> String {
        if *of == Of::Build { "build".to_owned() } else { "RUN x".to_owned() }
    }

    #[test]
    fn phases_of_a_step_add_up() {
        assert_eq!(
            table(&phases(), name),
            "\nTimings, in milliseconds:\n     3.00  build\n            look up 3.00\n    15.00  RUN x\n            exec 10.00  diff 5.00  hash 2.00\n"
        );
    }

    #[test]
    fn every_step_is_a_track_of_the_trace() {
        let trace = trace(&phases(), name);
        let events = trace["traceEvents"].as_array().unwrap();
        let exec = events.iter().find(|event| event["name"] == "exec").unwrap();
        assert_eq!((exec["ts"].as_f64(), exec["dur"].as_f64()), (Some(3000.0), Some(10_000.0)));
        let named = events.iter().find(|event| event["ph"] == "M" && event["tid"] == exec["tid"]).unwrap();
        assert_eq!(named["args"]["name"], "RUN x");
        assert_eq!(events.iter().filter(|event| event["ph"] == "X").count(), 5);
    }
}
