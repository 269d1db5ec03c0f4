//! What can go wrong while an op is run, told apart by whose fault it is.

use std::io;
use std::path::PathBuf;

use image::tree::CopyError;
use image::tree::accounts::AccountError;
use store::error::StoreError;
use store::pool::Panicked;

use crate::cdi::CdiError;
use crate::diff::DiffError;
use crate::exec::{Exit, OutOfMemory, PlanError, SpawnError, Status};
use crate::file::FileError;
use crate::mount::MountError;
use crate::source::git::GitError;
use crate::source::http::HttpError;
use crate::source::image::PullError;
use crate::source::local::LocalError;
use crate::source::resolve::ImageError;

/// Why an op could not be done.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The command ran and failed. Reads as BuildKit says it.
    #[error("process {command:?} did not complete successfully: {}", ended(.exit))]
    Step {
        /// The command, as it would be typed.
        command: String,
        /// How it ended.
        exit: Box<Exit>,
        /// There was no space left when it ended, which is the likely reason.
        #[source]
        disk_full: Option<io::Error>,
    },
    /// The command could not be started; `exit` is what a shell would say.
    #[error("process {command:?} could not be started: {source}")]
    Start {
        /// The command, as it would be typed.
        command: String,
        /// Why.
        source: Box<SpawnError>,
    },
    /// The op asks for what cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The step cannot have a device.
    #[error(transparent)]
    Device(#[from] CdiError),
    /// `USER` names nobody.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file op could not be done.
    #[error(transparent)]
    File(#[from] FileError),
    /// A selector names what is not there.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A directory of the host cannot be read.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// There is no context of this name.
    #[error("there is no context {0:?}")]
    NoContext(String),
    /// An image cannot be had.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A layer cannot be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A git repository cannot be had.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A file cannot be had from the web.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Layers cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What a step wrote cannot be stored.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// This host cannot run steps, and why.
    #[error("could not run a step on this host: {0}")]
    Host(String),
    /// The kernel failed while a step ran.
    #[error("could not wait for the process: {0}")]
    Wait(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory cannot be written to.
    #[error("could not write {path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A feature that is not there yet.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    /// A bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

impl From<ImageError> for WorkerError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

fn out_of_memory(OutOfMemory { peak, limit }: OutOfMemory) -> String {
    let known = [("peak", peak), ("limit", limit)];
    let known: Vec<String> = known
        .into_iter()
        .filter_map(|(what, bytes)| Some(format!("{what} {:.1} MB", bytes? as f64 / 1e6)))
        .collect();
    match known.is_empty() {
        true => " (killed: out of memory)".to_owned(),
        false => format!(" (killed: out of memory, {})", known.join(", ")),
    }
}

fn ended(exit: &Exit) -> String {
    let reason = exit.out_of_memory.map(out_of_memory).unwrap_or_default();
    match exit.status {
        Status::Code(code) => format!("exit code: {code}{reason}"),
        Status::Signal(signal) => format!("killed by signal {signal}, exit code: {}{reason}", 128 + signal),
    }
}
