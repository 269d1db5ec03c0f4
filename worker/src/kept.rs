//! The directory of a cache mount in the store, and how it becomes a tar and a directory again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use image::layer::read::index_tar;
use rustix::fs::{Mode, OFlags};
use store::root::Root;

use crate::diff::{self, Marks};
use crate::error::WorkerError;
use crate::inside;
use crate::mount::{MountError, dirs};
use crate::seen::{Seen, Written};

/// Where a mount's directory keeps its files, and beside them what it saw and when it was last written.
#[derive(Clone, Debug)]
pub struct MountDirectory(PathBuf);

impl MountDirectory {
    /// The kept directory at `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What steps see.
    pub fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    /// What it saw; `None`: nothing yet.
    pub fn seen(&self) -> Option<Seen> {
        Seen::from_bytes(&fs::read(self.0.join("seen")).ok()?)
    }

    /// Notes what it saw, before a step writes to it.
    pub fn set_seen(&self, seen: &Seen) -> io::Result<()> {
        // Until the step has ended, it is not known when it was last written.
        match fs::remove_file(self.0.join("written")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Torn by a kill, it says nothing: then steps see the times of layers.
        fs::write(self.0.join("seen"), seen.to_bytes())
    }

    /// When it was last written, seconds since the epoch; `None`: that is not known.
    pub fn written(&self) -> Option<i64> {
        fs::read_to_string(self.0.join("written")).ok()?.trim().parse().ok()
    }

    /// Notes that a step that had it has ended.
    pub fn set_written(&self, second: i64) -> io::Result<()> {
        fs::write(self.0.join("written"), second.to_string())
    }

    pub(crate) fn state(&self) -> (Seen, Written) {
        (self.seen().unwrap_or_default(), self.written().map_or(Written::Unknown, Written::At))
    }
}

/// The key of the lock on the mount called `name`.
pub fn lock_name(name: &[u8]) -> Vec<u8> {
    [b"cache mount ", name].concat()
}

/// What a tar does not say of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Mode, user and group of the directory itself.
    pub root: (u16, u32, u32),
    /// Nanoseconds of the modification times of the tar's entries, in order.
    pub nanoseconds: Vec<u32>,
}

/// Writes the files of a mount to `out` as a tar. Nobody may write to them meanwhile: a file that changes is an error.
pub fn save<W: Write + Send>(directory: &MountDirectory, out: W) -> Result<(W, Attributes), WorkerError> {
    let path = directory.files();
    let failed = |source| WorkerError::Io { path: path.clone(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let options = diff::Options { marks: Marks::of_this_process(), lower: None };
    let (out, _, nanoseconds) = diff::write_layer_with_nanoseconds(dir.as_fd(), &options, out)?;
    let meta = fs::metadata(&path).map_err(failed)?;
    let mode = u16::try_from(meta.mode() & 0o7777).expect("twelve bits");
    Ok((out, Attributes { root: (mode, meta.uid(), meta.gid()), nanoseconds }))
}

/// Makes the files of a mount of a tar that [`save`] wrote, complete or not at all.
pub fn restore(
    root: &Root,
    tar: impl Read,
    attributes: &Attributes,
    directory: &MountDirectory,
) -> Result<(), WorkerError> {
    let temp = root.temp_path("mount")?;
    let failed = |source| WorkerError::Io { path: temp.clone(), source };
    let mut plain = tempfile::tempfile_in(root.temp_dir()?).map_err(failed)?;
    let index = index_tar(tar, io::BufWriter::new(&mut plain))
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    fs::create_dir(&temp).map_err(failed)?;
    let dir = File::open(&temp).map_err(failed)?;
    dirs::extract(&index, &plain, dir.as_fd(), Marks::of_this_process()).map_err(MountError::from)?;
    if attributes.nanoseconds.len() == index.entries().len() {
        for (entry, nanoseconds) in index.entries().iter().zip(&attributes.nanoseconds) {
            // What this host cannot make is not there.
            let Ok(fd) = inside::open(dir.as_fd(), &entry.path, OFlags::PATH, Mode::empty()) else {
                continue;
            };
            inside::set_mtime(fd.as_fd(), entry.mtime, i64::from(*nanoseconds).min(999_999_999))
                .map_err(|errno| failed(errno.into()))?;
        }
    }
    publish(&temp, attributes.root, &directory.files()).map_err(failed)
}

/// Makes `temp` the files of a mount; they are complete. The mode and the owner are those of the directory itself.
pub(crate) fn publish(temp: &Path, (mode, uid, gid): (u16, u32, u32), files: &Path) -> io::Result<()> {
    fs::set_permissions(temp, fs::Permissions::from_mode(u32::from(mode & 0o7777)))?;
    std::os::unix::fs::chown(temp, Some(uid), Some(gid))?;
    fs::rename(temp, files)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_directory_comes_back_with_all_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let [from, to] = ["from", "to"].map(|name| MountDirectory::new(&dir.path().join(name)));
        fs::create_dir_all(from.files().join("a/b")).unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(from.files().join("a/x"), "x").unwrap();
        fs::hard_link(from.files().join("a/x"), from.files().join("a/b/y")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.files().join("link")).unwrap();
        fs::set_permissions(from.files().join("a/x"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(from.files(), fs::Permissions::from_mode(0o1777)).unwrap();
        let time = UNIX_EPOCH + Duration::new(1_000_000, 123_456_789);
        File::open(from.files().join("a/x")).unwrap().set_modified(time).unwrap();
        File::open(from.files().join("a/b")).unwrap().set_modified(time).unwrap();

        let (tar, attributes) = save(&from, Vec::new()).unwrap();
        restore(&root, &tar[..], &attributes, &to).unwrap();
        let look = |directory: &MountDirectory| {
            let mut seen = BTreeMap::new();
            for path in ["", "a", "a/x", "a/b", "a/b/y", "link"] {
                let meta = fs::symlink_metadata(directory.files().join(path)).unwrap();
                let time = (!path.is_empty()).then(|| meta.modified().unwrap());
                seen.insert(path, (meta.mode(), meta.uid(), meta.nlink(), time));
            }
            seen
        };
        assert_eq!(look(&from), look(&to));
        assert_eq!(fs::read(to.files().join("a/b/y")).unwrap(), b"x");
        assert_eq!(fs::read_link(to.files().join("link")).unwrap(), Path::new("/nowhere"));
        // Cut short, it leaves nothing.
        fs::remove_dir_all(to.files()).unwrap();
        restore(&root, &tar[..700], &attributes, &to).unwrap_err();
        assert!(!to.files().exists());
    }

    #[test]
    fn what_a_directory_keeps_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mount = MountDirectory::new(dir.path());
        assert_eq!((mount.seen(), mount.written()), (None, None));
        let mounts = [mount.state()];
        mount.set_seen(&mounts[0].0).unwrap();
        mount.set_written(101).unwrap();
        assert_eq!(mount.state(), (mounts[0].0.clone(), Written::At(101)));
        mount.set_seen(&mounts[0].0).unwrap();
        assert_eq!(mount.written(), None, "a step has it");
        fs::write(dir.path().join("seen"), b"rbuild seen 1\n\xff\xff").unwrap();
        assert_eq!(mount.seen(), None);
    }
}
