//! Leases: what live processes hold, so that pruning leaves it.
//!
//! A process' file in `processes/` is locked as long as the process lives; into it goes a line for each thing it holds
//! (`+layer <hex>`) or no longer holds (`-layer <hex>`). A holder takes `locks/gc` shared while it writes the line, and
//! looks *after that* whether the thing is there; a prune takes the lock exclusively, reads the lines of the live and
//! moves what is not wanted out of the way before it lets go. So either the prune sees the line, or the holder sees
//! that the thing is gone.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use image::{DiffId, Digest};
use rustix::fs::FlockOperation;

use crate::directory::DirectoryId;
use crate::error::StoreError;
use crate::root::Root;

/// Something that can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A layer with its indexes and its directory.
    Layer(DiffId),
    /// A blob.
    Blob(Digest),
    /// An image with all that belongs to it.
    Image(Digest),
    /// A cache mount or clone.
    Directory(DirectoryId),
}

impl Item {
    fn line(&self, sign: char) -> String {
        match self {
            Self::Layer(diff_id) => format!("{sign}layer {diff_id}\n"),
            Self::Blob(digest) => format!("{sign}blob {digest}\n"),
            Self::Image(digest) => format!("{sign}image {digest}\n"),
            Self::Directory(id) => format!("{sign}directory {id}\n"),
        }
    }

    fn parse(line: &str) -> Option<(bool, Self)> {
        let held = line.starts_with('+');
        let (kind, name) = line.get(1..)?.split_once(' ')?;
        let item = match kind {
            "layer" => Self::Layer(name.parse().ok()?),
            "blob" => Self::Blob(name.parse().ok()?),
            "image" => Self::Image(name.parse().ok()?),
            "directory" => Self::Directory(name.parse().ok()?),
            _ => return None,
        };
        Some((held, item))
    }
}

impl From<DiffId> for Item {
    fn from(diff_id: DiffId) -> Self {
        Self::Layer(diff_id)
    }
}

/// How often this process holds each thing.
#[derive(Default)]
pub(crate) struct Holds(Mutex<HashMap<Item, usize>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<Item, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds things until it is dropped.
#[must_use = "what it holds may be pruned when it is dropped"]
pub struct Lease {
    root: Root,
    items: Vec<Item>,
}

impl Root {
    /// Holds `items` until the lease is dropped. They need not be there; look for them after, not before.
    pub fn lease(&self, items: impl IntoIterator<Item = Item>) -> Result<Lease, StoreError> {
        let items: Vec<Item> = items.into_iter().collect();
        self.take(&items, None)?;
        Ok(Lease { root: self.clone(), items })
    }

    /// Holds `items` until the root is closed.
    pub fn hold(&self, items: impl IntoIterator<Item = Item>) -> Result<(), StoreError> {
        let items: Vec<Item> = items.into_iter().collect();
        self.take(&items, None)
    }

    /// Holds nothing any more: what this process did is done, and a prune may take what it used.
    pub fn let_go(&self) {
        let mut holds = self.inner.holds.lock();
        let lines: String = holds.drain().map(|(item, _)| item.line('-')).collect();
        if let (false, Ok(process)) = (lines.is_empty(), self.process()) {
            // Held too long is harmless.
            let _ = (&process.file).write_all(format!("\n{lines}").as_bytes());
        }
    }

    /// Holds `items` until the root is closed and runs `publish`, which moves them to their places and writes their
    /// rows, while no prune is deciding.
    pub(crate) fn publish<T>(
        &self,
        items: &[Item],
        publish: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let lock = self.gc_lock(FlockOperation::LockShared)?;
        self.take(items, Some(&lock))?;
        let value = publish()?;
        drop(lock);
        Ok(value)
    }

    fn take(&self, items: &[Item], lock: Option<&File>) -> Result<(), StoreError> {
        let mut holds = self.inner.holds.lock();
        let mut new = String::new();
        let mut seen = HashSet::new();
        for item in items.iter().filter(|item| !holds.contains_key(item) && seen.insert(**item)) {
            new.push_str(&item.line('+'));
        }
        if !new.is_empty() {
            // A line that a full disk cut off must not take this one with it.
            new.insert(0, '\n');
            let process = self.process()?;
            let _own_lock = match lock {
                Some(_) => None,
                None => Some(self.gc_lock(FlockOperation::LockShared)?),
            };
            // One write in append mode: lines of other threads do not mix with it.
            (&process.file).write_all(new.as_bytes()).map_err(StoreError::io("write", &process.path))?;
        }
        for item in items {
            *holds.entry(*item).or_default() += 1;
        }
        Ok(())
    }

    /// All that live processes hold. The caller has `locks/gc` exclusively.
    pub(crate) fn held(&self) -> Result<HashSet<Item>, StoreError> {
        let dir = self.path().join("processes");
        let mut held = HashSet::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let path = entry.map_err(StoreError::io("read", &dir))?.path();
            let Ok(mut file) = File::open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(StoreError::io("read", &path))?;
            apply(&text, &mut held);
        }
        Ok(held)
    }
}

fn apply(text: &str, held: &mut HashSet<Item>) {
    let mut own: HashSet<Item> = HashSet::new();
    // A last line without its end is still being written, by somebody who does not have the lock: not taken yet.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        match Item::parse(line) {
            Some((true, item)) => own.insert(item),
            Some((false, item)) => own.remove(&item),
            None => false,
        };
    }
    held.extend(own);
}

impl Lease {
    /// Holds more.
    pub fn add(&mut self, item: Item) -> Result<(), StoreError> {
        self.root.take(&[item], None)?;
        self.items.push(item);
        Ok(())
    }

    /// What is held.
    pub fn items(&self) -> &[Item] {
        &self.items
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut holds = self.root.inner.holds.lock();
        let mut gone = String::new();
        for item in &self.items {
            if let Some(count) = holds.get_mut(item) {
                *count -= 1;
                if *count == 0 {
                    holds.remove(item);
                    gone.push_str(&item.line('-'));
                }
            }
        }
        if let (false, Ok(process)) = (gone.is_empty(), self.root.process()) {
            // Held too long is harmless.
            let _ = (&process.file).write_all(gone.as_bytes());
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.items).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;

    fn layer(name: &str) -> Item {
        Item::Layer(DiffId(Digest::of(name.as_bytes())))
    }

    #[test]
    fn what_one_process_holds_another_sees_until_it_is_let_go() {
        let (_dir, root) = root();
        let other = Root::open(root.path()).unwrap();
        assert!(other.held().unwrap().is_empty());
        let first = root.lease([layer("a"), layer("b")]).unwrap();
        let second = root.lease([layer("b"), Item::Blob(Digest::of(b"c"))]).unwrap();
        assert_eq!(other.held().unwrap().len(), 3);
        drop(first);
        assert_eq!(other.held().unwrap(), HashSet::from([layer("b"), Item::Blob(Digest::of(b"c"))]));
        drop(second);
        assert!(other.held().unwrap().is_empty());
        root.hold([layer("d")]).unwrap();
        assert_eq!(root.held().unwrap(), HashSet::from([layer("d")]));
        drop(root);
        assert!(other.held().unwrap().is_empty());
    }

    #[test]
    fn a_line_that_is_still_being_written_does_not_count() {
        let mut held = HashSet::new();
        let whole = layer("a").line('+');
        apply(&format!("{whole}{}", layer("b").line('+').trim_end()), &mut held);
        apply("garbage\n+layer sha256:zz\n\n", &mut held);
        assert_eq!(held, HashSet::from([layer("a")]));
    }
}
