//! What is below `tmp/` while it is being made: files and work directories, gone with their owner unless named.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use crate::error::StoreError;
use crate::root::Root;

impl Root {
    /// A directory of this process on the file system of the root. What is in it is gone when the process is.
    pub fn temp_dir(&self) -> Result<&Path, StoreError> {
        let process = self.process()?;
        if process.has_temp.get().is_none() {
            match DirBuilder::new().mode(0o700).create(&process.temp) {
                // Another thread was first.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(StoreError::io("make", &process.temp))?,
            }
            let _ = process.has_temp.set(());
        }
        Ok(&process.temp)
    }

    /// A path in [`Root::temp_dir`] that nobody else has.
    pub fn temp_path(&self, what: &str) -> Result<PathBuf, StoreError> {
        let number = self.process()?.next.fetch_add(1, Ordering::Relaxed);
        Ok(self.temp_dir()?.join(format!("{what}-{number}")))
    }

    /// A new file in [`Root::temp_dir`].
    pub fn temp_file(&self) -> Result<TempFile, StoreError> {
        let path = self.temp_path("file")?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(TempFile { file, path: Some(path) })
    }

    /// A new empty directory for a step, removed with all that is in it when it is dropped.
    pub fn work_dir(&self) -> Result<WorkDir, StoreError> {
        let path = self.temp_path("work")?;
        DirBuilder::new().mode(0o700).create(&path).map_err(StoreError::io("make", &path))?;
        Ok(WorkDir { path, root: self.clone() })
    }

    /// Moves `path`, a file or directory of this root, out of sight and removes it. Gone already is fine.
    pub fn remove(&self, path: &Path) -> Result<(), StoreError> {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        let trash = self.temp_path("trash")?;
        match fs::rename(path, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io("remove", path)(source)),
            Ok(()) => remove_tree(&trash).map_err(StoreError::io("remove", &trash)),
        }
    }
}

/// A file below `tmp/` that is removed unless it is given a name.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    // `None` once it was renamed away.
    path: Option<PathBuf>,
}

impl TempFile {
    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        self.path.as_deref().expect("only rename takes the path, and it takes self")
    }

    /// Gives it its name, over whatever had it.
    pub fn rename(mut self, to: &Path) -> io::Result<File> {
        rename_into(self.path(), to)?;
        self.path = None;
        self.file.try_clone()
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TempFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// A directory below `tmp/`, removed when dropped.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    // Keeps the process registered as long as the directory is there.
    root: Root,
}

impl WorkDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves something inside the directory to `to` in the root, over nothing.
    pub fn keep(&self, inside: &Path, to: &Path) -> Result<(), StoreError> {
        rename_into(&self.path.join(inside), to).map_err(StoreError::io("create", to))
    }

    /// Removes it now and says if that did not work.
    pub fn close(self) -> Result<(), StoreError> {
        self.root.remove(&self.path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = remove_tree(&self.path);
    }
}

/// Renames and makes the directory of `to` if that is what is missing.
pub(crate) fn rename_into(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = to.parent() else { return Err(error) };
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            fs::rename(from, to)
        }
        other => other,
    }
}

/// Removes a file or a directory with all that is in it; directories that a step made unreadable too.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !meta.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes every directory below `path` one that its owner may change.
fn open_up(path: &Path) -> io::Result<()> {
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(())
}
