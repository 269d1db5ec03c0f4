//! Locks by key: equal work in two processes is done once.
//!
//! A lock is an `flock` on `locks/<hash of the key>`; it ends with the process that has it, however that ends. Nothing
//! is wrong when two do have "the same" lock: results are named by their content. The file is removed by whoever lets
//! go; a waiter that then locks the removed file notices and starts again.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::error::StoreError;
use crate::root::{Root, is_at, lock_file};
use crate::usage::children;

/// How long a waiter sleeps before it looks again: between these.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(25);

/// The locks of a root.
#[derive(Clone, Debug)]
pub struct Locks {
    root: Root,
}

/// A held lock; dropping it lets go.
#[must_use = "it is let go when dropped"]
#[derive(Debug)]
pub struct KeyLock {
    path: PathBuf,
    // Closing it unlocks.
    _file: File,
}

impl Locks {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// Takes the lock for `key` unless somebody has it. Keys are any bytes; begin them with what they are about.
    pub fn try_lock(&self, key: &[u8]) -> Result<Option<KeyLock>, StoreError> {
        let path = self.path(key);
        loop {
            match lock_file(&path, FlockOperation::NonBlockingLockExclusive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(StoreError::io("lock", &path)(source)),
                Ok(file) => {
                    if is_at(&file, &path).map_err(StoreError::io("lock", &path))? {
                        return Ok(Some(KeyLock { path, _file: file }));
                    }
                }
            }
        }
    }

    /// Waits for the lock without blocking the thread. Dropping the future stops waiting. Needs tokio's timer.
    pub async fn lock(&self, key: &[u8]) -> Result<KeyLock, StoreError> {
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(lock) = self.try_lock(key)? {
                return Ok(lock);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Waits for the lock on this thread, which must be none of the pool's: those do other jobs while they wait for
    /// their own, and one that waits for a lock may stand on top of one that has it.
    pub fn lock_blocking(&self, key: &[u8]) -> Result<KeyLock, StoreError> {
        debug_assert!(rayon::current_thread_index().is_none(), "a thread of the pool waits for a lock");
        let path = self.path(key);
        loop {
            let file =
                lock_file(&path, FlockOperation::LockExclusive).map_err(StoreError::io("lock", &path))?;
            if is_at(&file, &path).map_err(StoreError::io("lock", &path))? {
                return Ok(KeyLock { path, _file: file });
            }
        }
    }

    /// Removes the files of locks that nobody has: their owners were killed.
    pub(crate) fn sweep(&self) {
        for path in children(&self.root.path().join("locks")) {
            // `gc` is not a lock by key.
            if path.file_name().is_some_and(|name| name.len() == 64)
                && let Ok(file) = lock_file(&path, FlockOperation::NonBlockingLockExclusive)
                && is_at(&file, &path).unwrap_or(false)
            {
                drop(KeyLock { path, _file: file });
            }
        }
    }

    fn path(&self, key: &[u8]) -> PathBuf {
        self.root.path().join("locks").join(blake3::hash(key).to_hex().as_str())
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // While it is still locked: nobody else's lock is taken away.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn one_holder_a_key_and_no_file_left() {
        let (_dir, root) = root();
        let other = Root::open(root.path()).unwrap();
        let lock = root.locks().try_lock(b"a").unwrap().unwrap();
        assert!(other.locks().try_lock(b"a").unwrap().is_none());
        assert!(root.locks().try_lock(b"a").unwrap().is_none());
        assert!(other.locks().try_lock(b"b").unwrap().is_some());
        drop(lock);
        drop(other.locks().try_lock(b"a").unwrap().unwrap());
        assert_eq!(fs::read_dir(root.path().join("locks")).unwrap().count(), 0);
    }

    #[test]
    fn locks_of_the_dead_are_swept_and_those_of_the_living_are_not() {
        let (_dir, root) = root();
        let held = root.locks().try_lock(b"a").unwrap().unwrap();
        let left = root.locks().path(b"b");
        fs::write(&left, "").unwrap();
        fs::write(root.path().join("locks/gc"), "").unwrap();
        root.locks().sweep();
        assert!(!left.exists() && held.path.exists() && root.path().join("locks/gc").exists());
        drop(held);
    }

    #[test]
    fn many_waiters_hold_it_one_after_the_other() {
        let (_dir, root) = root();
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (root, inside) = (Root::open(root.path()).unwrap(), &inside);
                scope.spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    for _ in 0..30 {
                        let lock = match n % 2 {
                            0 => root.locks().lock_blocking(b"k").unwrap(),
                            _ => runtime.block_on(root.locks().lock(b"k")).unwrap(),
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }
}
