//! Files of the context, read ahead: while some are written to the layer, the next are read and hashed on the other
//! cores. Opening a small file takes longer than writing it.

use std::io::Read;
use std::mem::take;
use std::sync::Arc;

use image::ContentDigest;
use image::layer::Kind;
use image::tree::{Location, NewEntry};
use rayon::prelude::*;
use solver::Cancel;

use super::earlier::Earlier;
use crate::source::local::Directory;

/// Larger files are read when their turn comes.
const MAX_FILE: u64 = 256 << 10;

/// How much is read ahead at once, in bytes and in entries. As much again is being written meanwhile.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ENTRIES: usize = 2048;

/// Fewer files are read one by one: threads would take longer to start.
const MIN_FILES: usize = 32;

/// Entries that are written one after the other, and what was read of their files.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<NewEntry>,
    /// By entry; not all are read ahead.
    pub(super) read: Vec<Option<Contents>>,
    /// Which are to be.
    wanted: Vec<usize>,
}

/// All bytes of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    /// They are what was hashed before.
    pub(super) expected: bool,
}

/// Cuts the entries into batches. Of files whose bytes are `earlier`'s, none is read.
pub(super) fn batches(entries: Vec<NewEntry>, earlier: Option<&Earlier>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Batch::default(), 0);
    for new in entries {
        let size = match (&new.entry.kind, &new.location) {
            (Kind::File { size, .. }, Location::Host { .. })
                if (1..=MAX_FILE).contains(size)
                    && !earlier.is_some_and(|earlier| earlier.has(&new.entry)) =>
            {
                batch.wanted.push(batch.entries.len());
                *size
            }
            _ => 0,
        };
        bytes += size;
        batch.entries.push(new);
        if bytes >= BATCH_BYTES || batch.entries.len() >= BATCH_ENTRIES {
            batches.push(take(&mut batch));
            bytes = 0;
        }
    }
    batches.push(batch);
    batches
}

impl Batch {
    /// Whether it is worth it.
    pub(super) fn is_to_be_read(&self) -> bool {
        self.wanted.len() >= MIN_FILES
    }

    /// Reads its files, on all threads of the pool. What cannot be read is left for its turn, which says why.
    pub(super) fn read(&mut self, directories: &[Arc<Directory>], cancel: &Cancel) {
        let wanted = take(&mut self.wanted);
        let entries = &self.entries;
        let contents: Vec<Option<Contents>> = wanted
            .par_iter()
            .map(|at| if cancel.is_cancelled() { None } else { contents(&entries[*at], directories) })
            .collect();
        self.read.resize_with(self.entries.len(), || None);
        for (at, contents) in wanted.into_iter().zip(contents) {
            self.read[at] = contents;
        }
    }
}

fn contents(new: &NewEntry, directories: &[Arc<Directory>]) -> Option<Contents> {
    let (Kind::File { size, content, .. }, Location::Host { directory, path }) =
        (&new.entry.kind, &new.location)
    else {
        return None;
    };
    let file = directories.iter().find(|known| known.id() == *directory)?.open_file(path).ok()?;
    // One more: it may have grown.
    let mut bytes = Vec::with_capacity(*size as usize + 1);
    file.take(size + 1).read_to_end(&mut bytes).ok()?;
    let expected = bytes.len() as u64 == *size && ContentDigest::of(&bytes) == *content;
    Some(Contents { bytes, expected })
}
