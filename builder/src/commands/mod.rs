//! What each command does.

pub(crate) mod archive;
pub(crate) mod build;
pub(crate) mod builds;
pub(crate) mod call;
pub(crate) mod cp;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod housekeeping;
pub(crate) mod images;
pub(crate) mod index;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod shell;
mod signals;
pub(crate) mod transfer;
pub(crate) mod verify;

use std::cell::OnceCell;
use std::io::{self, Write};

use solver::cancel::Cancel;
use store::root::{Epoch, Root};

use crate::ci::Ci;
use crate::cli::CompletionArgs;
use crate::config::Config;
use crate::environment::Places;
use crate::failure::{Class, Failure, OrFail as _};

/// What commands work with.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) places: Places,
    /// What the configuration files say.
    pub(crate) config: Config,
    /// Whose log is written to.
    pub(crate) ci: Ci,
    /// The boot and mount that the state directory lives in.
    pub(crate) epoch: Option<Epoch>,
    /// Why this host cannot run steps, if it cannot.
    pub(crate) no_steps: Option<String>,
    /// The state directory, if the command has opened it.
    pub(crate) opened: OnceCell<Root>,
}

impl Session {
    /// Opens the state directory.
    pub(crate) fn open(&self) -> Result<Root, Failure> {
        if let Some(root) = self.opened.get() {
            return Ok(root.clone());
        }
        let root = Root::open_in(&self.places.root, self.epoch)?;
        Ok(self.opened.get_or_init(|| root).clone())
    }

    /// A runtime on this thread, on which all waiting is done.
    pub(crate) fn runtime(&self) -> Result<tokio::runtime::Runtime, Failure> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail(Class::Host)
    }
}

/// Writes to standard output. A reader that has gone away is no failure: there is nobody to tell.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).or_fail(Class::Internal),
        _ => Ok(()),
    }
}

/// `rbuild completion`
pub(crate) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let mut command = crate::cli::command();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "rbuild", &mut script);
    print(|out| out.write_all(&script))
}

/// Runs `work`, which is to stop soon when its token fires: that is at the first signal that means to stop. The second
/// one ends the process at once, and so does time; what that leaves, the next start sweeps.
pub(crate) async fn until_interrupted<T, F: Future<Output = Result<T, Failure>>>(
    work: impl FnOnce(Cancel) -> F,
) -> Result<T, Failure> {
    let cancel = Cancel::new();
    let _listening = signals::listen(&cancel)?;
    match work(cancel.clone()).await {
        Err(_) if cancel.is_cancelled() => Err(Failure::new(Class::Cancelled, "cancelled")),
        result => result,
    }
}

/// Runs `work`, which is dropped at the first signal that means to stop: for what leaves nothing half done.
pub(crate) async fn until_stopped<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    until_interrupted(async |cancel| {
        tokio::select! {
            biased;
            result = work => result,
            () = cancel.cancelled() => Err(Failure::new(Class::Cancelled, "cancelled")),
        }
    })
    .await
}

/// Writes to standard error.
#[expect(clippy::print_stderr, reason = "what goes beside a command's output")]
pub(crate) fn eprint(text: &str) {
    eprint!("{text}");
}
