//! [`Root::sync`]: making sure that what was written survives a crash of the machine, and noting so.

use std::fs::File;

use crate::error::StoreError;
use crate::root::{Epoch, Root};

impl Root {
    /// Waits until all that was written so far is on disk and notes so. After that it survives a crash of the machine.
    ///
    /// Takes as long as the disk does; never called while somebody waits for a build.
    pub fn sync(&self) -> Result<(), StoreError> {
        let pending = self.inner.db.read(|db| unsynced(db, self.epoch()))?;
        if pending.is_empty() {
            return Ok(());
        }
        let dir = File::open(self.path()).map_err(StoreError::io("open", self.path()))?;
        rustix::fs::syncfs(&dir).map_err(|e| StoreError::io("sync", self.path())(e.into()))?;
        self.inner.db.write(|tx| mark_synced(tx, &pending, self.epoch()))?;
        // The marks themselves.
        self.inner.db.sync()?;
        Ok(())
    }

    /// Whether [`Root::sync`] has something to do.
    pub fn is_unsynced(&self) -> Result<bool, StoreError> {
        let ask = "SELECT EXISTS(SELECT 1 FROM layers WHERE epoch = ?1) OR EXISTS(SELECT 1 FROM blobs WHERE epoch = ?1)
            OR EXISTS(SELECT 1 FROM tags WHERE epoch = ?1)";
        Ok(self.inner.db.read(|db| db.query_row(ask, [self.epoch().bytes()], |row| row.get(0)))?)
    }
}

/// Keys of rows whose files may still be on their way to the disk.
#[derive(Debug, Default)]
struct Unsynced {
    layers: Vec<Vec<u8>>,
    blobs: Vec<Vec<u8>>,
    tags: Vec<(String, i64)>,
}

impl Unsynced {
    fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.blobs.is_empty() && self.tags.is_empty()
    }
}

fn unsynced(db: &rusqlite::Connection, epoch: Epoch) -> rusqlite::Result<Unsynced> {
    let keys = |sql: &str| {
        db.prepare_cached(sql)?
            .query_map([epoch.bytes()], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<Vec<u8>>>>()
    };
    Ok(Unsynced {
        layers: keys("SELECT diff_id FROM layers WHERE epoch = ?1")?,
        blobs: keys("SELECT digest FROM blobs WHERE epoch = ?1")?,
        tags: db
            .prepare_cached("SELECT reference, turn FROM tags WHERE epoch = ?1")?
            .query_map([epoch.bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?,
    })
}

fn mark_synced(tx: &rusqlite::Transaction<'_>, pending: &Unsynced, epoch: Epoch) -> rusqlite::Result<()> {
    // A file that was written again meanwhile is the same bytes, but not those that were synced.
    let mut layer = tx.prepare_cached("UPDATE layers SET epoch = NULL WHERE diff_id = ?1 AND epoch = ?2")?;
    for key in &pending.layers {
        layer.execute((key, epoch.bytes()))?;
    }
    let mut blob = tx.prepare_cached("UPDATE blobs SET epoch = NULL WHERE digest = ?1 AND epoch = ?2")?;
    for key in &pending.blobs {
        blob.execute((key, epoch.bytes()))?;
    }
    let mut tag = tx.prepare_cached("UPDATE tags SET epoch = NULL WHERE reference = ?1 AND turn = ?2")?;
    let mut older = tx.prepare_cached("DELETE FROM tags WHERE reference = ?1 AND turn < ?2")?;
    for (reference, turn) in &pending.tags {
        tag.execute((reference, turn))?;
        older.execute((reference, turn))?;
    }
    Ok(())
}
