//! Layers on their way, as `push` and `pull` show them: bars on a terminal, a line a layer elsewhere.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};

use image::{Descriptor, DiffId, Reference};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use store::push::Watch;
use store::registry::{Progress, Pushed};
use store::root::Root;

/// What goes on, for whoever looks.
#[derive(Debug)]
pub(crate) struct Transfers {
    verb: &'static str,
    how: How,
    layers: RefCell<HashMap<DiffId, Row>>,
}

#[derive(Debug)]
enum How {
    Quiet,
    Lines,
    Bars(MultiProgress),
}

#[derive(Debug)]
struct Row {
    bar: Option<ProgressBar>,
    done: bool,
}

impl Transfers {
    /// `verb` is what a bar says while bytes move.
    pub(crate) fn new(verb: &'static str, quiet: bool) -> Self {
        let how = match quiet {
            true => How::Quiet,
            false if io::stderr().is_terminal() => How::Bars(MultiProgress::new()),
            false => How::Lines,
        };
        Self { verb, how, layers: RefCell::default() }
    }

    /// Says what is pulled.
    pub(crate) fn start(&self, reference: &Reference) {
        let what = reference.tag.clone().or_else(|| reference.digest.map(|digest| digest.to_string()));
        self.line(&format!("{}: Pulling from {}", what.unwrap_or_default(), reference.repository));
    }

    /// A layer that is to be pulled, or is here.
    pub(crate) fn begin_pull(&self, root: &Root, diff_id: &DiffId) -> Progress {
        let is_here = root.layers().contains(diff_id).unwrap_or(false);
        let progress = self.progress(diff_id);
        if is_here {
            self.done(diff_id, "Already exists");
        }
        progress
    }

    /// All that began is there.
    pub(crate) fn finish(&self) {
        let open: Vec<DiffId> = {
            let layers = self.layers.borrow();
            layers.iter().filter(|(_, row)| !row.done).map(|(diff_id, _)| *diff_id).collect()
        };
        for diff_id in open {
            self.done(&diff_id, "Pull complete");
        }
    }

    fn progress(&self, diff_id: &DiffId) -> Progress {
        let mut layers = self.layers.borrow_mut();
        if let Some(Row { bar, .. }) = layers.get(diff_id) {
            return reporting(bar.clone());
        }
        let bar = match &self.how {
            How::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(0));
                bar.set_style(
                    ProgressStyle::with_template("{prefix}: {msg} [{bar:40}] {bytes}/{total_bytes}")
                        .expect("the template is one")
                        .progress_chars("=> "),
                );
                bar.set_prefix(short(diff_id));
                bar.set_message(self.verb);
                Some(bar)
            }
            How::Quiet | How::Lines => None,
        };
        layers.insert(*diff_id, Row { bar: bar.clone(), done: false });
        reporting(bar)
    }

    fn done(&self, diff_id: &DiffId, what: &str) {
        let mut layers = self.layers.borrow_mut();
        let Some(row) = layers.get_mut(diff_id).filter(|row| !row.done) else { return };
        row.done = true;
        if let Some(bar) = row.bar.take() {
            let style = ProgressStyle::with_template("{prefix}: {msg}").expect("the template is one");
            bar.set_style(style);
            bar.finish_with_message(what.to_owned());
        }
        drop(layers);
        if matches!(self.how, How::Lines) {
            self.line(&format!("{}: {what}", short(diff_id)));
        }
    }

    fn line(&self, text: &str) {
        match &self.how {
            How::Quiet => {}
            // Whoever reads may have gone; the transfer goes on.
            How::Lines => drop(writeln!(io::stdout().lock(), "{text}")),
            How::Bars(bars) => drop(bars.println(text)),
        }
    }
}

impl Watch for Transfers {
    fn begin(&self, diff_id: &DiffId) -> Progress {
        self.progress(diff_id)
    }

    fn end(&self, diff_id: &DiffId, _: &Descriptor, how: Pushed) {
        self.done(
            diff_id,
            match how {
                Pushed::Existed => "Layer already exists",
                Pushed::Mounted => "Mounted from another repository",
                Pushed::Uploaded => "Pushed",
            },
        );
    }
}

fn reporting(bar: Option<ProgressBar>) -> Progress {
    match bar {
        None => Progress::none(),
        Some(bar) => Progress::new(move |done, total| {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
        }),
    }
}

fn short(diff_id: &DiffId) -> String {
    diff_id.0.hex().chars().take(12).collect()
}
