//! [`BuildCache`]: what the solver of one build sees: the records of this host, then imported ones. It notes what the
//! build used, which is what an export of it is made of.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use image::{ContentDigest, DiffId};
use solver::definition::Vertex;
use solver::key::{CacheKey, ResultDigest};
use solver::record::{Record, RecordedInput};
use solver::runner::{Cache, StepId};
use store::root::{Root, now};
use worker::cache::StoreCache;

use super::import::Imports;

/// The cache of one build.
#[derive(Debug)]
pub(crate) struct BuildCache<'a> {
    store: StoreCache<'a>,
    root: &'a Root,
    imports: Rc<Imports>,
    /// Older records do not count.
    ttl: Option<Duration>,
    /// Whether somebody will ask what was used.
    notes: bool,
    used: RefCell<Used>,
}

/// What a build used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    /// The records of its steps, found or made.
    pub(crate) records: BTreeMap<CacheKey, Record>,
    /// Selections that led to them.
    pub(crate) memo: BTreeMap<(ResultDigest, ContentDigest), ContentDigest>,
    /// Steps that did not run.
    pub(crate) hits: HashSet<CacheKey>,
}

impl<'a> BuildCache<'a> {
    /// The cache that is kept in `root`, then `imports`. Without `notes` it does not note what is used.
    pub(crate) fn new(root: &'a Root, imports: Rc<Imports>, ttl: Option<Duration>, notes: bool) -> Self {
        Self { store: StoreCache::new(root), root, imports, ttl, notes, used: RefCell::default() }
    }

    /// What was noted so far.
    pub(crate) fn into_used(self) -> Used {
        self.used.into_inner()
    }

    fn found(&self, key: CacheKey, record: Option<Record>) -> Option<Record> {
        let record = record?;
        if self.is_too_old(key) {
            return None;
        }
        self.note(key, &record, true);
        Some(record)
    }

    fn note(&self, key: CacheKey, record: &Record, hit: bool) {
        if !self.notes {
            return;
        }
        let mut used = self.used.borrow_mut();
        // What ran in this build and is found again is no hit.
        if hit && !used.records.contains_key(&key) {
            used.hits.insert(key);
        } else if !hit {
            used.hits.remove(&key);
        }
        used.records.insert(key, record.clone());
    }

    fn note_memo(&self, result: ResultDigest, selector: ContentDigest, selected: ContentDigest) {
        if self.notes {
            self.used.borrow_mut().memo.insert((result, selector), selected);
        }
    }

    fn is_too_old(&self, key: CacheKey) -> bool {
        let Some(ttl) = self.ttl else { return false };
        // Not the record's own time, which SOURCE_DATE_EPOCH decides.
        let entry = self.root.records().entry(&key.0.0);
        entry.ok().flatten().is_some_and(|entry| older_than(entry.created, ttl, now()))
    }
}

fn older_than(created: i64, ttl: Duration, now: i64) -> bool {
    now.saturating_sub(created) > i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

impl Cache for BuildCache<'_> {
    fn lookup(&self, key: CacheKey) -> Option<Record> {
        self.found(key, self.store.lookup(key))
    }

    fn lookup_many(&self, keys: &[CacheKey]) -> Vec<Option<Record>> {
        let records = self.store.lookup_many(keys);
        keys.iter().zip(records).map(|(key, record)| self.found(*key, record)).collect()
    }

    fn lookup_remote(&self, key: CacheKey) -> Option<LocalBoxFuture<'_, Option<Record>>> {
        if self.imports.is_empty() {
            return None;
        }
        let lookup = async move {
            let (record, stored) = self.imports.record(key).await?;
            if self.ttl.is_some_and(|ttl| older_than(stored, ttl, now())) {
                return None;
            }
            self.note(key, &record, true);
            Some(record)
        };
        Some(lookup.boxed_local())
    }

    fn insert(&self, key: CacheKey, step: StepId, vertex: &Vertex, record: &Record) {
        self.note(key, record, false);
        self.store.insert(key, step, vertex, record);
    }

    fn forget(&self, key: CacheKey, layer: DiffId) {
        self.store.forget(key, layer);
    }

    fn previous(&self, step: StepId, reads: &[RecordedInput]) -> Option<Record> {
        self.store.previous(step, reads).or_else(|| self.imports.previous(step, reads))
    }

    fn memo(&self, result: ResultDigest, selector: ContentDigest) -> Option<ContentDigest> {
        let found = self.store.memo(result, selector)?;
        self.note_memo(result, selector, found);
        Some(found)
    }

    fn memo_remote(
        &self,
        result: ResultDigest,
        selector: ContentDigest,
    ) -> Option<LocalBoxFuture<'_, Option<ContentDigest>>> {
        if self.imports.is_empty() {
            return None;
        }
        let ask = async move {
            let found = self.imports.memo(result, selector).await?;
            self.note_memo(result, selector, found);
            Some(found)
        };
        Some(ask.boxed_local())
    }

    fn set_memo(&self, result: ResultDigest, selector: ContentDigest, selected: ContentDigest) {
        self.note_memo(result, selector, selected);
        self.store.set_memo(result, selector, selected);
    }

    fn lock(&self, key: CacheKey) -> LocalBoxFuture<'_, Box<dyn Any>> {
        self.store.lock(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_too_old_after_its_time_and_not_on_it() {
        let ttl = Duration::from_secs(60);
        assert!(!older_than(100, ttl, 160));
        assert!(older_than(100, ttl, 161));
        assert!(!older_than(200, ttl, 160));
        assert!(!older_than(0, Duration::MAX, i64::MAX));
        assert!(older_than(i64::MIN, ttl, 0));
    }
}
