//! `--progress=tty`: the steps on a terminal, redrawn in place; what a frame looks like is a pure function.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::model::{Model, State, Step, Transfer};
use super::text::{fit, width};

/// What decides how a frame looks, besides the steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    /// Lines of output below a running step.
    pub(crate) log_lines: usize,
    pub(crate) colour: bool,
}

/// The place on the terminal where frames are drawn over each other.
pub(crate) struct Screen {
    // One bar with all lines as its message: a frame is drawn whole or not at all.
    bar: ProgressBar,
}

impl Screen {
    pub(crate) fn new() -> Self {
        // We draw ten times a second ourselves; the limit is only not to be in the way.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(30));
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is constant"));
        Self { bar }
    }

    pub(crate) fn draw(&self, lines: &[String]) {
        self.bar.set_message(lines.join("\n"));
        self.bar.tick();
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Screen")
    }
}

/// A frame while the build runs: never more than the terminal's rows.
pub(crate) fn frame(model: &Model, now: Duration, look: Look) -> Vec<String> {
    let room = look.rows.saturating_sub(2).max(1);
    let header = header(model, now, look, false);
    let shown: Vec<&Step> = in_order(model).into_iter().filter(|step| step.first.is_some()).collect();
    let running = shown.iter().filter(|step| step.is_running()).count();
    // Running steps first of all, then what has ended last.
    let mut old = room.saturating_sub(running);
    let mut kept: Vec<&Step> = Vec::new();
    for step in shown.iter().rev() {
        if step.is_running() {
            kept.push(step);
        } else if old > 0 {
            old -= 1;
            kept.push(step);
        }
    }
    kept.reverse();
    // Details take the room of what has ended; of running steps the last are the newest.
    let details: Vec<Vec<String>> = kept.iter().map(|step| details(step, now, look)).collect();
    let wanted: usize = kept.len() + details.iter().map(Vec::len).sum::<usize>();
    let mut over = wanted.saturating_sub(room);
    let mut lines = vec![header];
    for (step, details) in kept.iter().zip(details) {
        if over > 0 && !step.is_running() {
            over -= 1;
            continue;
        }
        let cut = over.min(details.len());
        over -= cut;
        lines.push(title(step, now, look));
        lines.extend(details.into_iter().skip(cut));
    }
    lines.truncate(room + 1);
    lines
}

/// What stays on the terminal when the build is over: all that was done.
pub(crate) fn summary(model: &Model, now: Duration, look: Look) -> Vec<String> {
    let steps = in_order(model).into_iter().filter(|step| step.first.is_some());
    std::iter::once(header(model, now, look, true)).chain(steps.map(|step| title(step, now, look))).collect()
}

fn in_order(model: &Model) -> Vec<&Step> {
    let mut steps: Vec<&Step> = model.steps.iter().collect();
    steps.sort_by_key(|step| step.first);
    steps
}

fn header(model: &Model, now: Duration, look: Look, over: bool) -> String {
    let failed = model.steps.iter().any(|step| matches!(step.state, State::Failed(_) | State::Cancelled));
    let end = match over {
        true if !failed => " FINISHED",
        _ => "",
    };
    let seconds = now.as_secs_f64();
    let text = format!("[+] Building {seconds:.1}s ({}/{}){end}", model.ended(), model.steps.len());
    fit(&text, columns(look))
}

fn title(step: &Step, now: Duration, look: Look) -> String {
    let (prefix, colour) = match step.state {
        State::Waiting | State::Running { .. } => ("", ""),
        State::Completed => ("", "\x1b[34m"),
        State::Cached => ("CACHED ", "\x1b[34m"),
        State::Failed(_) => ("ERROR ", "\x1b[31m"),
        State::Cancelled => ("CANCELED ", "\x1b[33m"),
    };
    let left = format!(" => {prefix}{}", step.info.name);
    paint(align(&left, &format!("{:.1}s", step.elapsed(now).as_secs_f64()), look), colour, look)
}

/// Transfers and output of a running step.
fn details(step: &Step, now: Duration, look: Look) -> Vec<String> {
    if !step.is_running() {
        return Vec::new();
    }
    let mut lines: Vec<String> =
        step.transfers.iter().map(|transfer| transfer_line(transfer, now, look)).collect();
    // Without its time in front: the step's own is beside it.
    let mut output: Vec<String> = step
        .tail
        .iter()
        .map(|line| line.split_once(' ').map_or(line, |(_, text)| text).to_owned())
        .chain(step.partial())
        .collect();
    let first = output.len().saturating_sub(look.log_lines);
    lines.extend(output.drain(first..).map(|line| {
        let line = fit(&format!(" => => # {line}"), columns(look));
        paint(line, "\x1b[2m", look)
    }));
    lines
}

fn transfer_line(transfer: &Transfer, now: Duration, look: Look) -> String {
    let took = transfer.ended.unwrap_or(now).saturating_sub(transfer.started).as_secs_f64();
    let left = format!(" => => {}", transfer.text());
    let bar = match transfer.total {
        Some(total) if total > 0 && transfer.ended.is_none() => bar(transfer.current, total),
        _ => String::new(),
    };
    // The numbers say more than the bar.
    let bar = if width(&left) + width(&bar) + 8 > columns(look) { "" } else { &bar };
    let colour = if transfer.ended.is_some() { "\x1b[34m" } else { "" };
    paint(align(&left, &format!("{bar}{took:.1}s"), look), colour, look)
}

const BAR: usize = 20;

fn bar(current: u64, total: u64) -> String {
    let full = (current.min(total) as f64 / total as f64 * BAR as f64) as usize;
    format!("[{}{}] ", "=".repeat(full), " ".repeat(BAR - full))
}

/// One line with `right` at the right edge; the left gives way.
fn align(left: &str, right: &str, look: Look) -> String {
    let columns = columns(look);
    let room = columns.saturating_sub(width(right) + 1);
    if room < 8 {
        return fit(left, columns);
    }
    let left = fit(left, room);
    let gap = columns - width(&left) - width(right);
    format!("{left}{}{right}", " ".repeat(gap))
}

/// The last column stays free: some terminals wrap when it is written.
fn columns(look: Look) -> usize {
    look.columns.saturating_sub(1)
}

fn paint(line: String, colour: &str, look: Look) -> String {
    if look.colour && !colour.is_empty() { format!("{colour}{line}\x1b[0m") } else { line }
}

#[cfg(test)]
mod tests {
    use solver::event::Stream;

    use super::super::model::{Info, What};
    use super::*;

    fn look(columns: usize, rows: usize) -> Look {
        Look { columns, rows, log_lines: 6, colour: false }
    }

    fn model(script: &[(u64, usize, What)], names: &[&str]) -> Model {
        let mut model = Model::default();
        for (id, name) in names.iter().enumerate() {
            let info = Info { name: (*name).to_owned(), ..Info::default() };
            model.apply(id, Duration::ZERO, &What::Added(info));
        }
        for (time, id, what) in script {
            model.apply(*id, Duration::from_millis(*time), what);
        }
        model
    }

    fn log(lines: usize) -> What {
        let data = (0..lines).map(|line| format!("line {line}\n")).collect::<String>().into_bytes();
        What::Log { stream: Stream::Stdout, data }
    }

    fn busy() -> Model {
        let progress = What::Progress {
            id: "sha256:aa".to_owned(),
            current: 1_500_000,
            total: Some(3_000_000),
            done: false,
        };
        model(
            &[
                (0, 0, What::Started),
                (500, 0, What::Completed),
                (500, 1, What::Cached),
                (600, 2, What::Started),
                (700, 2, log(8)),
                (700, 3, What::Started),
                (800, 3, progress),
            ],
            &[
                "[internal] load build definition",
                "[1/4] FROM busybox",
                "[2/4] RUN make",
                "[b 1/1] FROM debian",
                "[4/4] RUN x",
            ],
        )
    }

    #[test]
    fn a_frame_shows_what_is_done_and_what_runs() {
        let frame = frame(&busy(), Duration::from_millis(1200), look(60, 24));
        let expected = [
            "[+] Building 1.2s (2/5)",
            " => [internal] load build definition                   0.5s",
            " => CACHED [1/4] FROM busybox                          0.0s",
            " => [2/4] RUN make                                     0.6s",
            " => => # line 2",
            " => => # line 3",
            " => => # line 4",
            " => => # line 5",
            " => => # line 6",
            " => => # line 7",
            " => [b 1/1] FROM debian                                0.5s",
            " => => sha256:aa 1.50MB / 3.00MB                       0.4s",
        ];
        assert_eq!(frame, expected);
        let wide = super::frame(&busy(), Duration::from_millis(1200), look(80, 24));
        assert!(wide[11].ends_with("3.00MB                    [==========          ] 0.4s"), "{wide:?}");
    }

    #[test]
    fn what_runs_stays_when_there_is_little_room() {
        let now = Duration::from_millis(1200);
        let frame = frame(&busy(), now, look(60, 6));
        assert_eq!(frame.len(), 5);
        assert!(frame.iter().any(|line| line.contains("[2/4] RUN make")), "{frame:?}");
        assert!(frame.iter().any(|line| line.contains("[b 1/1]")), "{frame:?}");
        for (columns, rows) in [(1, 1), (3, 2), (10, 3), (80, 24), (500, 100)] {
            let frame = super::frame(&busy(), now, look(columns, rows));
            assert!(frame.len() <= rows.max(2), "{rows}: {frame:?}");
            assert!(frame.iter().all(|line| width(line) <= columns), "{columns}: {frame:?}");
        }
    }

    #[test]
    fn many_steps_at_once_fit() {
        let names: Vec<String> = (0..100).map(|number| format!("step {number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let script: Vec<_> = (0..100).flat_map(|id| [(0, id, What::Started), (1, id, log(3))]).collect();
        assert!(frame(&model(&script, &names), Duration::ZERO, look(80, 24)).len() <= 23);
    }

    #[test]
    fn the_summary_lists_every_step_and_colours_are_a_choice() {
        let mut model = busy();
        let now = Duration::from_secs(2);
        model.apply(2, now, &What::Failed("exit code: 1".to_owned()));
        model.apply(3, now, &What::Cancelled);
        let plain = summary(&model, now, look(60, 5));
        assert_eq!(plain.len(), 5);
        assert_eq!(plain[0], "[+] Building 2.0s (4/5)");
        assert_eq!(plain[3], " => ERROR [2/4] RUN make                               1.4s");
        let coloured = summary(&model, now, Look { colour: true, ..look(60, 5) });
        assert_eq!(coloured[3], format!("\x1b[31m{}\x1b[0m", plain[3]));
        assert!(plain.iter().all(|line| !line.contains('\x1b')));
    }
}
