//! What each command does.

pub(crate) mod archive;
pub(crate) mod housekeeping;
pub(crate) mod images;

use std::io::{self, Write};

use store::root::Root;

use crate::cli::{Cli, CompletionArgs};
use crate::environment::Places;
use crate::failure::{Class, Failure, OrFail as _};

/// What commands work with.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) places: Places,
}

impl Session {
    /// Opens the state directory.
    pub(crate) fn open(&self) -> Result<Root, Failure> {
        Ok(Root::open(&self.places.root)?)
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
    use clap::CommandFactory as _;
    let mut command = Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "rbuild", &mut script);
    print(|out| out.write_all(&script))
}
