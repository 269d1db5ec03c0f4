//! Waiting for the disk, after the command has ended and where nobody waits.
//!
//! What a command wrote is believed after a crash of the machine only when it is known to have been on disk. A command
//! that wrote something starts `rbuild internal-sync` and leaves it behind: it holds no lock, no terminal and no pipe.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use store::root::{Epoch, Root};

use crate::failure::{Class, Failure};

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
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--root")
        .arg(root.path())
        .args(["internal-sync", "--epoch", &root.epoch().to_hex()])
        .current_dir("/")
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
    let here = || Epoch::at(path).map_err(|error| Failure::of(Class::Host, &error));
    let before = here()?;
    // Nothing is open meanwhile: the file system can be unmounted, and the directory removed.
    std::thread::sleep(DELAY);
    if here()? != before || !path.join("version").exists() {
        return Ok(());
    }
    let root = Root::open_in(path, Some(epoch))?;
    // Whoever comes second finds that nothing is left to do.
    let _one_at_a_time = root.locks().lock_blocking(b"sync")?;
    Ok(root.sync()?)
}
