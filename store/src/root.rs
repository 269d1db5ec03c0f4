//! [`Root`]: the state directory.
//!
//! ```text
//! version              `rbuild store 1`
//! meta.db              what is here and what was learnt (see db.rs)
//! blobs/<alg>/<hex>    configs, manifests, compressed layers
//! layers/<alg>/<hex>.tar, .idx, .erofs    a layer and its indexes, named by diff ID
//! mounts/<hex>/        layers as directories, a cache of the mounters
//! directories/<kind>/<hex>/    cache mounts, git clones, sandboxes
//! stat/<hex>           stat caches, one a context
//! speeds               how fast layers come from where, see speed.rs
//! locks/<hex>          a lock a key, present while held
//! locks/gc             shared: taking leases and renaming into place; exclusive: prune deciding what goes
//! processes/<id>       locked by a live process; its content is what that process holds (see lease.rs)
//! reserve              space for pruning on a full disk
//! tmp/<id>/            that process' temporary files, work directories and trash
//! ```
//!
//! Whatever is here is complete or absent: it is written below `tmp/`, checked and renamed. The next process to open
//! the root removes what dead ones left in `tmp/`; a process is dead when the lock on its file in `processes/` is free.
//!
//! Files are not synced while somebody waits. Their rows carry the [`Epoch`] in which they were written; after a crash
//! of the machine or a new mount the epoch is another one, and what was not known to be on disk by then is not there.
//! [`Root::sync`] makes it known.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use image::DiffId;
use rustix::fs::{AtFlags, CWD, FlockOperation, StatxFlags};

use crate::blob::Blobs;
use crate::db::Db;
use crate::directory::Directories;
use crate::error::StoreError;
use crate::layer::{IndexCache, Layers};
use crate::lease::Holds;
use crate::lock::Locks;
use crate::record::{Memo, Pins, Records};
use crate::speed::{Meters, Speeds};
use crate::stat::Stats;
use crate::tag::{Images, Tags};
use crate::temp::remove_tree;

/// The content of the file `version`.
const VERSION: &str = "rbuild store 1\n";

/// The name of a file that takes up some space, so that there is some when the disk is full: a prune must be able to
/// write down what it deletes.
pub(crate) const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 4 << 20;

/// Rows used within this many seconds are not marked as used again: a cached build writes nothing.
pub(crate) const USED_GRAIN: i64 = 3600;

/// Why a directory is not to be used as the root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The file system said no.
    #[error("could not {verb} {}: {source}", path.display())]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error("could not use {} as state directory: it belongs to user {owner}, not to user {user}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who is asking.
        user: u32,
    },
    /// Others may write to it.
    #[error("could not use {} as state directory: others may write to it (mode {mode:o})", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another rbuild made it, or no rbuild.
    #[error("could not use {} as state directory: it holds {found:?}, this rbuild knows {:?}", path.display(), VERSION.trim_end())]
    Version {
        /// The directory.
        path: PathBuf,
        /// What its `version` file says.
        found: String,
    },
    /// On a network file system locks and the database's shared memory do not hold what they promise.
    #[error("could not use {} as state directory: it lies on {kind}; a local file system is needed", path.display())]
    Network {
        /// The directory.
        path: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// There are files in it that are not ours.
    #[error("could not use {} as state directory: it is neither empty nor made by rbuild", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
}

impl RootError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { verb, path: path.to_owned(), source }
    }
}

/// Between two of these, bytes that were written but not synced may have been lost: the boot of the machine and the
/// mount of the file system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Epoch([u8; 16]);

impl Epoch {
    /// Its name, for the database and for files that say when they were written.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(boot: &[u8], mount: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(boot).update(&mount.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }

    /// The one in which what is written to the root at `path` lives. A process that enters a mount namespace asks
    /// before: mounts have other names there, and what others wrote would not be believed.
    pub fn at(path: &Path) -> io::Result<Self> {
        let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
        // Not in rustix' flags yet: an ID that is never used again (Linux 6.8); older kernels give the short one.
        let unique = StatxFlags::from_bits_retain(0x4000);
        let mut path = std::path::absolute(path)?;
        loop {
            match rustix::fs::statx(CWD, &path, AtFlags::empty(), unique | StatxFlags::MNT_ID) {
                Ok(stat) => return Ok(Self::of(&boot, stat.stx_mnt_id)),
                // It will be made on the file system of what is above.
                Err(rustix::io::Errno::NOENT) if path.pop() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As text, for another process.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// What [`Epoch::to_hex`] made.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({})", hex::encode(&self.0[..4]))
    }
}

/// The state directory, open. Clones are the same one; it closes with the last.
#[derive(Clone)]
pub struct Root {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    path: PathBuf,
    epoch: Epoch,
    pub(crate) db: Db,
    // Made at the first need: a build that is cached and takes no lease leaves no trace.
    process: OnceLock<Process>,
    creating: Mutex<()>,
    pub(crate) holds: Holds,
    pub(crate) indexes: IndexCache,
    // When this process wrote which tars.
    pub(crate) tars_written: Mutex<HashMap<DiffId, Instant>>,
    // What was used and is to be marked so, in one transaction at the end.
    used: Mutex<Used>,
    // What this process fetched.
    pub(crate) meters: Meters,
    // Whether this process wrote rows that `Root::sync` has to follow up.
    wrote: AtomicBool,
}

/// Rows whose `last_used` is behind.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) images: Vec<Vec<u8>>,
}

impl Used {
    fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.blobs.is_empty() && self.records.is_empty() && self.images.is_empty()
    }
}

/// This process as others see it.
#[derive(Debug)]
pub(crate) struct Process {
    // Locked as long as it is open. Holds are appended to it.
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    // `tmp/<id>`; made when something is to be put there.
    pub(crate) temp: PathBuf,
    pub(crate) has_temp: OnceLock<()>,
    pub(crate) next: AtomicU64,
}

impl Root {
    /// Opens the root at `path`, makes it if there is none, and removes what dead processes left.
    ///
    /// The directory is refused when it belongs to another user, when others may write to it, when a later rbuild made
    /// it, and when it has files in it that rbuild did not make.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        Self::open_in(path, None)
    }

    /// The same, in an [`Epoch`] that was asked for earlier.
    pub fn open_in(path: &Path, epoch: Option<Epoch>) -> Result<Self, RootError> {
        let path = std::path::absolute(path).map_err(RootError::io("resolve", path))?;
        let meta = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(RootError::io("make", &path))?;
                fs::metadata(&path)
            }
            other => other,
        }
        .map_err(RootError::io("read", &path))?;
        check_owner(&path, &meta)?;
        let version = path.join("version");
        match fs::read_to_string(&version) {
            Ok(text) if text == VERSION => {}
            // The machine went down when it had just been made.
            Ok(text) if text.is_empty() => create(&path)?,
            Ok(text) => {
                let found = text.trim_end().chars().take(100).collect();
                return Err(RootError::Version { path, found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path)?,
            Err(error) => return Err(RootError::io("read", &version)(error)),
        }
        let stat = rustix::fs::statfs(&path).map_err(|error| RootError::io("read", &path)(error.into()))?;
        if let Some(kind) = network(stat.f_type) {
            return Err(RootError::Network { path, kind });
        }
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => Epoch::at(&path).map_err(RootError::io("read", &path))?,
        };
        let root = Self {
            inner: Arc::new(Inner {
                db: Db::new(path.join("meta.db")),
                path,
                epoch,
                process: OnceLock::new(),
                creating: Mutex::new(()),
                holds: Holds::default(),
                indexes: IndexCache::default(),
                tars_written: Mutex::default(),
                used: Mutex::new(Used::default()),
                meters: Meters::default(),
                wrote: AtomicBool::new(false),
            }),
        };
        root.sweep();
        Ok(root)
    }

    /// Where it is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The boot and mount that unsynced bytes live in.
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// Whether this process has written something that is safe only after [`Root::sync`].
    pub fn has_written(&self) -> bool {
        self.inner.wrote.load(Ordering::Relaxed)
    }

    /// The epoch, for a row of something that is being written.
    pub(crate) fn stamp(&self) -> &[u8] {
        self.inner.wrote.store(true, Ordering::Relaxed);
        self.inner.epoch.bytes()
    }

    /// The layers.
    pub fn layers(&self) -> Layers {
        Layers::new(self.clone())
    }

    /// The blobs.
    pub fn blobs(&self) -> Blobs {
        Blobs::new(self.clone())
    }

    /// The images.
    pub fn images(&self) -> Images {
        Images::new(self.clone())
    }

    /// The names of images.
    pub fn tags(&self) -> Tags {
        Tags::new(self.clone())
    }

    /// The cache records.
    pub fn records(&self) -> Records {
        Records::new(self.clone())
    }

    /// Digests of selections from results.
    pub fn memo(&self) -> Memo {
        Memo::new(self.clone())
    }

    /// What moving names pointed at.
    pub fn pins(&self) -> Pins {
        Pins::new(self.clone())
    }

    /// The stat caches.
    pub fn stats(&self) -> Stats {
        Stats::new(self.clone())
    }

    /// How fast layers come from where.
    pub fn speeds(&self) -> Speeds {
        Speeds::new(self.clone())
    }

    /// Cache mounts and clones.
    pub fn directories(&self) -> Directories {
        Directories::new(self.clone())
    }

    /// The locks by key.
    pub fn locks(&self) -> Locks {
        Locks::new(self.clone())
    }

    /// Writes down what was used since the root was opened. Happens by itself when the root closes.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }

    pub(crate) fn process(&self) -> Result<&Process, StoreError> {
        if let Some(process) = self.inner.process.get() {
            return Ok(process);
        }
        let _one_at_a_time = self.inner.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inner.process.get().is_none() {
            let process = Process::register(self.path())?;
            self.inner.process.set(process).expect("only set here, under a lock");
        }
        Ok(self.inner.process.get().expect("it was set above"))
    }

    /// The file that takes a lock for all that must not run into a prune, see lease.rs.
    pub(crate) fn gc_lock(&self, operation: FlockOperation) -> Result<File, StoreError> {
        let path = self.path().join("locks/gc");
        lock_file(&path, operation).map_err(StoreError::io("lock", &path))
    }

    pub(crate) fn used(&self, note: impl FnOnce(&mut Used)) {
        note(&mut self.inner.used.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Removes what dead processes left. What cannot be removed stays for the next try.
    fn sweep(&self) {
        let processes = self.path().join("processes");
        for id in names(&processes) {
            let path = processes.join(&id);
            let Ok(file) = File::open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && remove_tree(&self.path().join("tmp").join(&id)).is_ok()
            {
                let _ = fs::remove_file(&path);
            }
        }
        let temp = self.path().join("tmp");
        for id in names(&temp) {
            // A live process' file is there before its directory.
            if !processes.join(&id).exists() {
                let _ = remove_tree(&temp.join(&id));
            }
        }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Root").field(&self.inner.path).finish()
    }
}

impl Inner {
    fn flush(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if used.is_empty() {
            return Ok(());
        }
        let now = now();
        self.db.write(|tx| {
            for (sql, keys) in [
                ("UPDATE layers SET last_used = ?2 WHERE diff_id = ?1", &used.layers),
                ("UPDATE blobs SET last_used = ?2 WHERE digest = ?1", &used.blobs),
                ("UPDATE records SET last_used = ?2, uses = uses + 1 WHERE key = ?1", &used.records),
                ("UPDATE images SET last_used = ?2 WHERE digest = ?1", &used.images),
            ] {
                let mut update = tx.prepare_cached(sql)?;
                for key in keys {
                    update.execute((key, now))?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Only a hint for pruning.
        let _ = self.flush();
    }
}

impl Process {
    fn register(root: &Path) -> Result<Self, StoreError> {
        loop {
            let id = format!("{}-{:016x}", std::process::id(), random());
            let path = root.join("processes").join(&id);
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(StoreError::io("create", &path))?;
            // Between the two calls somebody's sweep may have taken it for a dead one's.
            let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if !locked || !is_at(&file, &path).map_err(StoreError::io("read", &path))? {
                continue;
            }
            let temp = root.join("tmp").join(&id);
            return Ok(Self { file, path, temp, has_temp: OnceLock::new(), next: AtomicU64::new(0) });
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What is left is the next process' to sweep.
        if remove_tree(&self.temp).is_ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Seconds since the epoch; a clock before 1970 is 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// Opens `path` and takes a lock on it; it is held until the file is closed.
pub(crate) fn lock_file(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return Ok(file),
        }
    }
}

/// Whether `path` still names `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes some space for bad times; not having it is no error.
pub(crate) fn make_reserve(root: &Path) {
    let path = root.join(RESERVE);
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).and_then(
        |file| Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?),
    );
    if made.is_err() {
        let _ = fs::remove_file(&path);
    }
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect()
}

fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), RootError> {
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        return Err(RootError::Owner { path: path.to_owned(), owner: meta.uid(), user });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(RootError::Writable { path: path.to_owned(), mode });
    }
    if mode & 0o077 != 0 {
        // Layers have setuid programs in them.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(RootError::io("protect", path))?;
    }
    Ok(())
}

/// The name of a network file system with this magic number (statfs(2)).
fn network(magic: rustix::fs::FsWord) -> Option<&'static str> {
    // The field's width differs by architecture; the number has 32 bits.
    match magic as u32 {
        0x6969 => Some("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        _ => None,
    }
}

/// Fills an empty directory. Two processes may do it at once.
fn create(path: &Path) -> Result<(), RootError> {
    const DIRS: [&str; 7] = ["blobs", "layers", "mounts", "locks", "processes", "stat", "tmp"];
    const MORE: [&str; 4] = ["directories", RESERVE, "version", "lost+found"];
    let ours = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| {
            DIRS.contains(&name)
                || MORE.contains(&name)
                || ["version-", "meta.db"].iter().any(|start| name.starts_with(start))
        })
    };
    if !names(path).iter().all(ours) {
        // Another process may have made it since, and be at work in it.
        if fs::read_to_string(path.join("version")).is_ok_and(|text| text == VERSION) {
            return Ok(());
        }
        return Err(RootError::Foreign { path: path.to_owned() });
    }
    for dir in DIRS
        .map(|name| path.join(name))
        .into_iter()
        .chain([path.join("blobs/sha256"), path.join("layers/sha256")])
    {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(RootError::io("make", &dir))?,
        }
    }
    make_reserve(path);
    // Last, and by rename: with it the root is complete.
    let temp = path.join(format!("version-{:016x}", random()));
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(VERSION.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path.join("version"))
    };
    written().map_err(RootError::io("write", &temp))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A root of its own for a test; gone with the directory.
    pub(crate) fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn a_root_opens_again_and_is_private() {
        let (dir, root) = root();
        let path = dir.path().join("root");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        drop(root);
        Root::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Root::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn directories_that_are_not_ours_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        assert!(matches!(Root::open(dir.path()), Err(RootError::Foreign { .. })));
        let (later, root) = root();
        drop(root);
        let path = later.path().join("root");
        fs::write(path.join("version"), "rbuild store 2\n").unwrap();
        let error = Root::open(&path).unwrap_err().to_string();
        assert!(error.contains("rbuild store 2") && error.contains("rbuild store 1"), "{error}");
        fs::write(path.join("version"), VERSION).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(Root::open(&path), Err(RootError::Writable { mode: 0o770, .. })));
    }

    #[test]
    fn temporary_files_and_work_directories_go_with_their_owner() {
        let (_dir, root) = root();
        let file = root.temp_file().unwrap();
        let work = root.work_dir().unwrap();
        fs::create_dir_all(work.path().join("a/b")).unwrap();
        let (file_path, work_path) = (file.path().to_owned(), work.path().to_owned());
        drop((file, work));
        assert!(!file_path.exists() && !work_path.exists());
        let temp = root.temp_dir().unwrap().to_owned();
        fs::write(temp.join("left"), "").unwrap();
        let path = root.path().to_owned();
        drop(root);
        assert!(!temp.exists());
        assert_eq!(names(&path.join("processes")).len(), 0);
    }

    #[test]
    fn what_dead_processes_left_is_swept_and_what_live_ones_have_is_not() {
        let (_dir, root) = root();
        let alive = root.temp_file().unwrap();
        // A dead process: its file is there and nobody has it locked.
        for (id, has_file) in [("1-dead", true), ("2-dead", false)] {
            let temp = root.path().join("tmp").join(id);
            fs::create_dir_all(temp.join("work-0/deep")).unwrap();
            fs::set_permissions(temp.join("work-0"), fs::Permissions::from_mode(0o000)).unwrap();
            if has_file {
                fs::write(root.path().join("processes").join(id), "").unwrap();
            }
        }
        let other = Root::open(root.path()).unwrap();
        assert!(alive.path().exists());
        assert_eq!(names(&other.path().join("tmp")).len(), 1);
        assert_eq!(names(&other.path().join("processes")).len(), 1);
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        assert_eq!(network(0x6969), Some("NFS"));
        for local in [0xef53, 0x0102_1994, 0x5846_5342] {
            assert_eq!(network(local), None);
        }
    }

    #[test]
    fn epochs_differ_by_boot_and_by_mount() {
        assert_eq!(Epoch::of(b"a", 1), Epoch::of(b"a", 1));
        assert_ne!(Epoch::of(b"a", 1), Epoch::of(b"b", 1));
        assert_ne!(Epoch::of(b"a", 1), Epoch::of(b"a", 2));
    }
}
