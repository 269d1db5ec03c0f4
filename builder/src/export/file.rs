//! Files that a command writes for its caller: whole or not at all, under their names only when they are complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::failure::{Class, Failure};

/// Standard output, or a file that gets its name in [`Sink::finish`]. Dropped before, it leaves nothing.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout(BufWriter<Stdout>),
    File(BufWriter<File>, Target),
}

/// Where the file of a [`Sink`] is and will be.
#[derive(Debug)]
pub(crate) struct Target {
    dest: PathBuf,
    // `None`: a pipe or device, written as it is.
    temporary: Option<PathBuf>,
}

/// The temporary files that there are now: of a process that ends without dropping anything.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what was not finished, just before the process ends.
pub(crate) fn remove_unfinished() {
    for temporary in unfinished().drain(..) {
        let _ = fs::remove_file(temporary);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Gone if it was renamed.
            let _ = fs::remove_file(temporary);
            unfinished().retain(|other| other != temporary);
        }
    }
}

impl Sink {
    /// Standard output if there is no `dest`; a terminal is refused: what comes is no text.
    pub(crate) fn open(dest: Option<&Path>, option: &str) -> Result<Self, Failure> {
        match dest {
            Some(dest) => Self::create(dest),
            None if io::stdout().is_terminal() => Err(Failure::usage(format!(
                "refusing to write an archive to a terminal: give {option}, or redirect"
            ))),
            None => Ok(Self::Stdout(BufWriter::with_capacity(1 << 17, io::stdout()))),
        }
    }

    /// A file. One that is there is replaced in the end, unless it is a pipe or a device.
    pub(crate) fn create(dest: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| could_not_write(dest, &error);
        // A link stays one.
        let dest = match fs::canonicalize(dest) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => dest.to_owned(),
            Err(error) => return Err(failed(error)),
        };
        let special = fs::metadata(&dest).is_ok_and(|meta| !meta.is_file() && !meta.is_dir());
        if special {
            let file = OpenOptions::new().write(true).open(&dest).map_err(failed)?;
            return Ok(Self::File(buffered(file), Target { dest, temporary: None }));
        }
        if dest.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(dest.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?);
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = dest.with_file_name(name);
        let file = File::create(&temporary).map_err(failed)?;
        unfinished().push(temporary.clone());
        Ok(Self::File(buffered(file), Target { dest, temporary: Some(temporary) }))
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(mut out) => match out.flush() {
                // Who reads has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                result => result.map_err(|error| could_not_write(Path::new("standard output"), &error)),
            },
            Self::File(mut file, target) => {
                let failed = |error: io::Error| could_not_write(&target.dest, &error);
                file.flush().map_err(failed)?;
                match &target.temporary {
                    Some(temporary) => fs::rename(temporary, &target.dest).map_err(failed),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(file, _) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(file, _) => file.flush(),
        }
    }
}

/// Writes a small file in one step.
pub(crate) fn write(dest: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut sink = Sink::create(dest)?;
    sink.write_all(bytes).map_err(|error| could_not_write(dest, &error))?;
    sink.finish()
}

fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(1 << 17, file)
}

fn could_not_write(path: &Path, error: &io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::Disk,
        _ => Class::Usage,
    };
    Failure::new(class, format!("could not write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("out");
        fs::write(&dest, "old").unwrap();
        let mut sink = Sink::create(&dest).unwrap();
        sink.write_all(b"new").unwrap();
        assert_eq!(fs::read(&dest).unwrap(), b"old");
        sink.finish().unwrap();
        assert_eq!(fs::read(&dest).unwrap(), b"new");
        // Given up: nothing changes, nothing is left.
        drop(Sink::create(&dest).unwrap());
        assert_eq!(fs::read(&dest).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        fs::write(dir.path().join("real"), "").unwrap();
        write(&link, b"x").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(dir.path().join("real")).unwrap(), b"x");
        write(Path::new("/dev/null"), b"x").unwrap();
        assert_eq!(write(dir.path(), b"x").unwrap_err().class, Class::Usage);
    }
}
