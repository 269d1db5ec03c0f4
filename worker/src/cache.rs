//! The solver's cache, kept in the store: records, memos and locks.
//!
//! A cache saves work and never decides what is right: what cannot be read is not there, what cannot be written is not
//! remembered. Such errors are logged and else ignored.

use std::any::Any;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use image::{ContentDigest, DiffId};
use solver::definition::Vertex;
use solver::explain::nearest;
use solver::key::{CacheKey, ResultDigest};
use solver::record::{Record, RecordedInput};
use solver::runner::{Cache, StepId};
use store::error::StoreError;
use store::lease::Item;
use store::record::NewRecord;
use store::root::Root;
use store::timing::{self, Of};

/// How often a lock that another process holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Of so many records of a step, the newest, one explains why it missed; fewer if they name very many files.
const COMPARED: u32 = 64;
const COMPARED_BYTES: usize = 4 << 20;

/// Records of this root.
#[derive(Debug)]
pub struct StoreCache<'a> {
    root: &'a Root,
}

impl<'a> StoreCache<'a> {
    /// The cache that is kept in `root`.
    pub fn new(root: &'a Root) -> Self {
        Self { root }
    }

    /// Which layers are here or known to be somewhere; they are held until the root is closed. One whose files turn out to
    /// be gone when they are needed is lost: its step runs again.
    fn can_be_had(&self, diff_ids: &[DiffId]) -> Result<Vec<bool>, StoreError> {
        // Held first, looked for after: a prune in between takes nothing that is then found. All at once: a lease is a
        // lock and a write.
        self.root.hold(diff_ids.iter().copied().map(Item::Layer))?;
        let layers = self.root.layers();
        let listed = layers.listed(diff_ids)?;
        diff_ids.iter().zip(listed).map(|(id, listed)| Ok(listed || layers.can_be_fetched(id)?)).collect()
    }
}

impl Cache for StoreCache<'_> {
    fn lookup(&self, key: CacheKey) -> Option<Record> {
        self.lookup_many(&[key]).pop().flatten()
    }

    fn lookup_many(&self, keys: &[CacheKey]) -> Vec<Option<Record>> {
        let _phase = timing::phase("look up", Of::Build);
        let found = logged("look up records", self.root.records().get_many(keys.iter().map(|key| &key.0.0)));
        let Some(found) = found else { return vec![None; keys.len()] };
        let mut records: Vec<Option<Record>> = found.into_iter().map(|bytes| decode(&bytes?)).collect();
        let layers: Vec<DiffId> = records.iter().flatten().map(|record| record.layer).collect();
        let Some(usable) = logged("look up layers", self.can_be_had(&layers)) else {
            return vec![None; keys.len()];
        };
        for (record, usable) in records.iter_mut().filter(|record| record.is_some()).zip(usable) {
            record.take_if(|_| !usable);
        }
        records
    }

    fn insert(&self, key: CacheKey, step: StepId, vertex: &Vertex, record: &Record) {
        let _phase = timing::phase("record", Of::Build);
        let bytes = encode(record);
        let new = NewRecord {
            key: key.0.0,
            step: step.0.0,
            diff_id: record.layer,
            bytes: &bytes,
            description: &vertex.metadata.name,
            seconds: record.seconds,
        };
        logged("keep a record", self.root.records().put(&new));
    }

    fn forget(&self, key: CacheKey, layer: DiffId) {
        // Somebody may have made it again meanwhile.
        let known = logged("look up a record", self.root.records().get(&key.0.0)).flatten();
        if known.and_then(|bytes| decode(&bytes)).is_some_and(|record| record.layer != layer) {
            return;
        }
        logged("forget a record", self.root.records().forget(&key.0.0));
    }

    fn previous(&self, step: StepId, reads: &[RecordedInput]) -> Option<Record> {
        let found =
            logged("look up a step", self.root.records().previous(&step.0.0, COMPARED, COMPARED_BYTES))?;
        nearest(found.iter().filter_map(|bytes| decode(bytes)), reads)
    }

    fn memo(&self, result: ResultDigest, selector: ContentDigest) -> Option<ContentDigest> {
        logged("look up a selection", self.root.memo().get(&result.0.0, &selector.0))?.map(ContentDigest)
    }

    fn set_memo(&self, result: ResultDigest, selector: ContentDigest, selected: ContentDigest) {
        logged("keep a selection", self.root.memo().put(&result.0.0, &selector.0, &selected.0));
    }

    fn lock(&self, key: CacheKey) -> LocalBoxFuture<'_, Box<dyn Any>> {
        let locks = self.root.locks();
        async move {
            loop {
                match locks.try_lock(&key.0.0) {
                    Ok(Some(lock)) => return Box::new(lock) as Box<dyn Any>,
                    Ok(None) => tokio::time::sleep(LOCK_INTERVAL).await,
                    // Without a lock two processes may do the same work twice; nothing worse.
                    Err(error) => {
                        tracing::warn!("could not lock a step: {error}");
                        return Box::new(());
                    }
                }
            }
        }
        .boxed_local()
    }
}

/// A record as it is kept.
pub fn encode(record: &Record) -> Vec<u8> {
    postcard::to_stdvec(record).expect("records are plain data")
}

/// A record as it was kept; `None` if it is none, which is logged.
pub fn decode(bytes: &[u8]) -> Option<Record> {
    logged("read a record", postcard::from_bytes(bytes))
}

fn logged<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Option<T> {
    result.inspect_err(|error| tracing::warn!("could not {what}: {error}")).ok()
}
