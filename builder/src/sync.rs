//! Waiting for the disk, after the command has ended and where nobody waits.
//!
//! What a command wrote is believed after a crash of the machine only when it is known to have been on disk. A command
//! that wrote something starts `rbuild internal-sync` and leaves it behind: it holds no lock, no terminal and no pipe.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use store::root::{Epoch, Root};

use crate::failure::{Class, Failure, OrFail as _};

/// Commands often come in rows: one sync does for all that end while it waits.
const DELAY: Duration = Duration::from_secs(1);

/// Sees to it that what this command wrote to `root` becomes safe.
pub(crate) fn start(root: &Root) {
    if !root.has_written() {
        return;
    }
    // The first process of a container takes all others with it.
    if std::process::id() == 1 {
        let _next_time = root.sync();
        return;
    }
    // With nothing that keeps the standard library from vfork: to fork a process with much memory takes long.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--root")
        .arg(root.path())
        .args(["internal-sync", "--epoch", &root.epoch().to_hex()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for the command.
        .process_group(0);
    // If it does not start, a later command's will do its work. It is not waited for, on purpose.
    let _started = command.spawn();
}

/// `rbuild internal-sync`
pub(crate) fn run(path: &Path, epoch: &str) -> Result<(), Failure> {
    let epoch = Epoch::from_hex(epoch).ok_or_else(|| Failure::usage("--epoch is no epoch"))?;
    std::env::set_current_dir("/").or_fail(Class::Host)?;
    let before = Seen::now(path)?;
    // Nothing is open meanwhile: the file system can be unmounted, and the directory removed.
    std::thread::sleep(DELAY);
    if !Seen::now(path)?.goes_on_from(&before) {
        return Ok(());
    }
    // Whoever comes second finds that nothing is left to do. On the directory: a lock of the store's would be a file.
    let directory = File::open(path).or_fail(Class::Host)?;
    directory.lock().or_fail(Class::Host)?;
    if !Seen::now(path)?.goes_on_from(&before) {
        return Ok(());
    }
    Ok(Root::open_in(path, Some(epoch))?.sync()?)
}

/// A state directory as it is at some time.
struct Seen {
    epoch: Epoch,
    names: BTreeSet<OsString>,
}

impl Seen {
    fn now(path: &Path) -> Result<Self, Failure> {
        let names = std::fs::read_dir(path).or_fail(Class::Host)?;
        Ok(Self {
            epoch: Epoch::at(path).or_fail(Class::Host)?,
            names: names
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()
                .or_fail(Class::Host)?,
        })
    }

    /// Whether this is what `before` was, and nobody removes it: a file made in a directory that is being removed would
    /// be in the way. Done for nothing, a later command's sync does it.
    fn goes_on_from(&self, before: &Self) -> bool {
        self.epoch == before.epoch && self.names.is_superset(&before.names)
    }
}
