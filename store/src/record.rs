//! What the cache remembers: records of steps, digests of selections, pins of sources. All bytes; the solver and the
//! worker know what they mean.
//!
//! A record is true whether or not its layer is still here, so records outlive pruned layers, and need no
//! [`Epoch`](crate::root::Epoch): who wants the layer asks [`Layers::contains`](crate::layer::Layers::contains).

use image::DiffId;
use rusqlite::OptionalExtension;

use crate::error::StoreError;
use crate::layer::digest_of;
use crate::root::{Root, USED_GRAIN, now};

/// The records of steps, by key.
#[derive(Clone, Debug)]
pub struct Records {
    root: Root,
}

/// A record to be kept.
#[derive(Clone, Debug)]
pub struct NewRecord<'a> {
    /// The step's key.
    pub key: [u8; 32],
    /// Names the step across builds whose keys differ (the same instruction of the same stage): what
    /// [`Records::previous`] finds it by.
    pub step: [u8; 32],
    /// The layer it made.
    pub diff_id: DiffId,
    /// The encoded record.
    pub bytes: &'a [u8],
    /// What it was, for `du`.
    pub description: &'a str,
    /// How long it took: what is dear stays longer.
    pub seconds: f64,
}

/// A record with all that is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Names the step across builds.
    pub step: [u8; 32],
    /// The encoded record.
    pub bytes: Vec<u8>,
    /// When it was made, by the clock of the host that made it; seconds since the epoch.
    pub created: i64,
    /// What it was, for `du`.
    pub description: String,
    /// The cache it was imported from; `None`: made here.
    pub origin: Option<String>,
}

impl Records {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// The record under `key`.
    pub fn get(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get_many([key])?.pop().flatten())
    }

    /// The records under `keys`, in their order.
    pub fn get_many<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a [u8; 32]>,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut stale = Vec::new();
        let recent = now() - USED_GRAIN;
        let found = self.root.inner.db.read_many(|db| {
            let mut query = db.prepare_cached("SELECT bytes, last_used FROM records WHERE key = ?1")?;
            keys.into_iter()
                .map(|key| {
                    let row: Option<(Vec<u8>, i64)> =
                        query.query_row([&key[..]], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                    Ok(row.map(|(bytes, last_used)| {
                        if last_used < recent {
                            stale.push(key.to_vec());
                        }
                        bytes
                    }))
                })
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        if !stale.is_empty() {
            self.root.used(|used| used.records.append(&mut stale));
        }
        Ok(found)
    }

    /// Keeps a record, over an older one with its key.
    pub fn put(&self, record: &NewRecord<'_>) -> Result<(), StoreError> {
        let now = now();
        self.insert("INSERT OR REPLACE", record, None, now, now)?;
        Ok(())
    }

    /// Keeps a record of another host unless there is one with its key: what is imported never replaces what was seen
    /// here. `origin` says which cache it came from, `created` when it was made there.
    pub fn put_new(&self, record: &NewRecord<'_>, origin: &str, created: i64) -> Result<bool, StoreError> {
        let now = now();
        Ok(self.insert("INSERT OR IGNORE", record, Some(origin), created.min(now), now)? > 0)
    }

    /// The number of rows that changed.
    fn insert(
        &self,
        how: &str,
        record: &NewRecord<'_>,
        origin: Option<&str>,
        created: i64,
        now: i64,
    ) -> Result<usize, StoreError> {
        let sql = format!("{how} INTO records VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9)");
        Ok(self.root.inner.db.write(|tx| {
            tx.prepare_cached(&sql)?.execute((
                &record.key[..],
                &record.step[..],
                record.diff_id.0.bytes(),
                created,
                now,
                record.description,
                origin,
                record.seconds,
                record.bytes,
            ))
        })?)
    }

    /// The record under `key` with all that is kept of it. That it was asked for is no use of it.
    pub fn entry(&self, key: &[u8; 32]) -> Result<Option<StoredRecord>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT step, bytes, created, description, origin FROM records WHERE key = ?1")?
                .query_row([&key[..]], |row| {
                    Ok(StoredRecord {
                        step: row.get(0)?,
                        bytes: row.get(1)?,
                        created: row.get(2)?,
                        description: row.get(3)?,
                        origin: row.get(4)?,
                    })
                })
                .optional()
        })?)
    }

    /// The last records of a step under whatever keys, newest first: with them a miss is explained. No more than `most`, and
    /// none after `bytes` bytes of them.
    pub fn previous(&self, step: &[u8; 32], most: u32, bytes: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            let sql = "SELECT bytes FROM records WHERE step = ?1 ORDER BY created DESC LIMIT ?2";
            let mut query = db.prepare_cached(sql)?;
            let mut rows = query.query((&step[..], most))?;
            let (mut found, mut length) = (Vec::new(), 0);
            while length < bytes
                && let Some(row) = rows.next()?
            {
                let record: Vec<u8> = row.get(0)?;
                length += record.len();
                found.push(record);
            }
            Ok(found)
        })?)
    }

    /// Forgets a record. `false`: there was none.
    pub fn forget(&self, key: &[u8; 32]) -> Result<bool, StoreError> {
        Ok(self.root.inner.db.write(|tx| {
            Ok(tx.prepare_cached("DELETE FROM records WHERE key = ?1")?.execute([&key[..]])? > 0)
        })?)
    }

    /// All keys, with the layers of their records.
    pub fn list(&self) -> Result<Vec<([u8; 32], DiffId)>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            let mut query = db.prepare_cached("SELECT key, diff_id FROM records ORDER BY created, key")?;
            let rows = query.query_map([], |row| {
                Ok(digest_of(row.get_ref(1)?.as_blob()?).map(|digest| (row.get(0), DiffId(digest))))
            })?;
            rows.filter_map(Result::transpose)
                .map(|row| row.and_then(|(key, diff_id)| Ok((key?, diff_id))))
                .collect()
        })?)
    }
}

/// Digests of what selectors pick from results.
#[derive(Clone, Debug)]
pub struct Memo {
    root: Root,
}

impl Memo {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// What was remembered for this result and selector.
    pub fn get(&self, result: &[u8; 32], selector: &[u8; 32]) -> Result<Option<[u8; 32]>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT digest FROM memo WHERE result = ?1 AND selector = ?2")?
                .query_row([&result[..], &selector[..]], |row| row.get(0))
                .optional()
        })?)
    }

    /// Remembers what another host says, unless something is known.
    pub fn put_new(
        &self,
        result: &[u8; 32],
        selector: &[u8; 32],
        digest: &[u8; 32],
    ) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("INSERT OR IGNORE INTO memo VALUES (?1, ?2, ?3, ?4)")?.execute((
                &result[..],
                &selector[..],
                &digest[..],
                now(),
            ))
        })?;
        Ok(())
    }

    /// Remembers it.
    pub fn put(&self, result: &[u8; 32], selector: &[u8; 32], digest: &[u8; 32]) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO memo VALUES (?1, ?2, ?3, ?4)")?.execute((
                &result[..],
                &selector[..],
                &digest[..],
                now(),
            ))
        })?;
        Ok(())
    }
}

/// What a source that may move (a tag, a branch, a URL) pointed at, and when.
#[derive(Clone, Debug)]
pub struct Pins {
    root: Root,
}

/// One pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What it pointed at, encoded by whoever resolved it.
    pub value: Vec<u8>,
    /// When that was seen, seconds since the epoch.
    pub time: i64,
}

impl Pins {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// What `source` pointed at.
    pub fn get(&self, source: &str) -> Result<Option<Pin>, StoreError> {
        Ok(self.root.inner.db.read(|db| {
            db.prepare_cached("SELECT value, time FROM pins WHERE source = ?1")?
                .query_row([source], |row| Ok(Pin { value: row.get(0)?, time: row.get(1)? }))
                .optional()
        })?)
    }

    /// Notes what `source` points at now.
    pub fn put(&self, source: &str, value: &[u8]) -> Result<(), StoreError> {
        self.root.inner.db.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO pins VALUES (?1, ?2, ?3)")?.execute((
                source,
                value,
                now(),
            ))
        })?;
        Ok(())
    }

    /// Forgets a pin.
    pub fn forget(&self, source: &str) -> Result<(), StoreError> {
        self.root
            .inner
            .db
            .write(|tx| tx.prepare_cached("DELETE FROM pins WHERE source = ?1")?.execute([source]))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::root;
    use image::Digest;

    #[test]
    fn records_come_back_by_key_and_by_step() {
        let (_dir, root) = root();
        let records = root.records();
        let diff_id = DiffId(Digest::of(b"layer"));
        let record = |key: u8, bytes| NewRecord {
            key: [key; 32],
            step: [9; 32],
            diff_id,
            bytes,
            description: "RUN x",
            seconds: 0.0,
        };
        records.put(&record(1, b"one")).unwrap();
        assert!(!records.put_new(&record(1, b"imported"), "elsewhere", 5).unwrap());
        assert!(records.put_new(&record(2, b"two"), "elsewhere", 5).unwrap());
        assert_eq!(records.entry(&[1; 32]).unwrap().unwrap().origin, None);
        let imported = records.entry(&[2; 32]).unwrap().unwrap();
        assert_eq!((imported.origin.as_deref(), imported.created), (Some("elsewhere"), 5));
        assert_eq!(
            records.get_many([&[2; 32], &[3; 32], &[1; 32]]).unwrap(),
            [Some(b"two".to_vec()), None, Some(b"one".to_vec())]
        );
        assert_eq!(records.previous(&[9; 32], 8, 1 << 20).unwrap().len(), 2);
        assert_eq!(records.previous(&[9; 32], 1, 1 << 20).unwrap().len(), 1);
        assert_eq!(records.previous(&[9; 32], 8, 1).unwrap().len(), 1, "one in any case");
        assert!(records.previous(&[8; 32], 8, 1 << 20).unwrap().is_empty());
        assert_eq!(records.list().unwrap().len(), 2);
        assert!(records.forget(&[1; 32]).unwrap() && !records.forget(&[1; 32]).unwrap());
        assert_eq!(records.get(&[1; 32]).unwrap(), None);
    }

    #[test]
    fn memos_and_pins_are_replaced() {
        let (_dir, root) = root();
        assert_eq!(root.memo().get(&[1; 32], &[2; 32]).unwrap(), None);
        root.memo().put(&[1; 32], &[2; 32], &[3; 32]).unwrap();
        root.memo().put(&[1; 32], &[2; 32], &[4; 32]).unwrap();
        assert_eq!(root.memo().get(&[1; 32], &[2; 32]).unwrap(), Some([4; 32]));
        root.pins().put("docker-image://a", b"x").unwrap();
        root.pins().put("docker-image://a", b"y").unwrap();
        assert_eq!(root.pins().get("docker-image://a").unwrap().unwrap().value, b"y");
        root.pins().forget("docker-image://a").unwrap();
        assert_eq!(root.pins().get("docker-image://a").unwrap(), None);
    }

    #[test]
    fn a_cached_build_writes_nothing() {
        let (dir, root) = root();
        let diff_id = DiffId(Digest::of(b"layer"));
        let record =
            NewRecord { key: [1; 32], step: [1; 32], diff_id, bytes: b"", description: "", seconds: 0.0 };
        root.records().put(&record).unwrap();
        root.records().get(&[1; 32]).unwrap();
        drop(root);
        let root = Root::open(&dir.path().join("root")).unwrap();
        let written = |root: &Root| {
            root.inner
                .db
                .read(|db| db.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0)))
                .unwrap()
        };
        root.records().get(&[1; 32]).unwrap();
        root.flush().unwrap();
        assert_eq!(written(&root), 0);
        root.inner.db.write(|tx| tx.execute("UPDATE records SET last_used = 5", [])).unwrap();
        root.records().get(&[1; 32]).unwrap();
        root.flush().unwrap();
        let uses: i64 = root
            .inner
            .db
            .read(|db| db.query_row("SELECT uses FROM records WHERE last_used > 5", [], |row| row.get(0)))
            .unwrap();
        assert_eq!(uses, 1);
    }
}
