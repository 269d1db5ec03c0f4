//! `meta.db`: the schema, how it is opened, migrated and used.
//!
//! SQLite in WAL mode. Opened at the first use; opening a database that exists runs no DDL and reads one page. Every
//! change is one `BEGIN IMMEDIATE` transaction. `synchronous=NORMAL`: a power loss may take the last transactions, never
//! tear one. What the database says about *files* is only believed by whoever uses one after its size was looked at, and,
//! if the file was not known to be on disk, only within the [`Epoch`](crate::root::Epoch) in which it was written.
//!
//! A damaged database is moved aside and begun anew: a cache lost, not a store lost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, config::DbConfig, ffi};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The version of the schema below; a higher one is refused, a lower one migrated.
const VERSION: i64 = 5;

/// How long to wait for others.
const PATIENCE: Duration = Duration::from_secs(20);

/// A WAL longer than this is written back when the connection closes, so that the next one opens fast.
const LONG_WAL: u64 = 1 << 20;

/// Digests are blobs of 32 (SHA-256, BLAKE3) or 64 bytes; times are seconds since the epoch. A non-null `epoch` says in
/// which boot a file was written that is not yet known to be on disk.
const SCHEMA: &str = "
CREATE TABLE layers(
    diff_id BLOB PRIMARY KEY, tar_size INTEGER NOT NULL, index_size INTEGER NOT NULL, index_hash BLOB NOT NULL,
    created INTEGER NOT NULL, last_used INTEGER NOT NULL, epoch BLOB
) WITHOUT ROWID;
CREATE TABLE blobs(
    digest BLOB PRIMARY KEY, size INTEGER NOT NULL, created INTEGER NOT NULL, last_used INTEGER NOT NULL, epoch BLOB
) WITHOUT ROWID;
CREATE TABLE layer_blobs(
    diff_id BLOB NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL,
    algorithm INTEGER NOT NULL, level INTEGER, annotations TEXT NOT NULL,
    PRIMARY KEY (diff_id, digest)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_digest ON layer_blobs(digest);
CREATE TABLE locations(
    digest BLOB NOT NULL, registry TEXT NOT NULL, repository TEXT NOT NULL, seen INTEGER NOT NULL,
    PRIMARY KEY (digest, registry, repository)
) WITHOUT ROWID;
CREATE TABLE images(
    digest BLOB PRIMARY KEY, descriptor TEXT NOT NULL, stored INTEGER NOT NULL, last_used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE tags(
    reference TEXT NOT NULL, turn INTEGER NOT NULL, digest BLOB NOT NULL, time INTEGER NOT NULL, epoch BLOB,
    PRIMARY KEY (reference, turn)
) WITHOUT ROWID;
CREATE TABLE memo(
    result BLOB NOT NULL, selector BLOB NOT NULL, digest BLOB NOT NULL, last_used INTEGER NOT NULL,
    PRIMARY KEY (result, selector)
) WITHOUT ROWID;
CREATE TABLE pins(source TEXT PRIMARY KEY, value BLOB NOT NULL, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE directories(
    kind INTEGER NOT NULL, name BLOB NOT NULL, description TEXT NOT NULL,
    created INTEGER NOT NULL, last_used INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
";

/// With a rowid and the bytes last: SQLite compares keys of a table without one by reading whole rows, and those of records
/// that name thousands of files are as long as all others together.
const RECORDS: &str = "
CREATE TABLE records(
    key BLOB NOT NULL PRIMARY KEY, step BLOB NOT NULL, diff_id BLOB NOT NULL,
    created INTEGER NOT NULL, last_used INTEGER NOT NULL, uses INTEGER NOT NULL, description TEXT NOT NULL,
    origin TEXT, seconds REAL NOT NULL, bytes BLOB NOT NULL
);
CREATE INDEX records_step ON records(step, created);
CREATE INDEX records_layer ON records(diff_id);
";

/// Where deflated blocks are: in which blob, from which byte on. The hash is of their bytes.
const BLOCKS: &str = "
CREATE TABLE blocks(
    key BLOB PRIMARY KEY, blob BLOB NOT NULL, at INTEGER NOT NULL, size INTEGER NOT NULL, hash BLOB NOT NULL
) WITHOUT ROWID;
";

/// Why the database did not serve.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite's own words.
    #[error("could not use the database {}: {source}", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A later rbuild made it.
    #[error("could not use the database {}: it has version {found}, this rbuild knows {VERSION}; use a newer rbuild", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

impl DbError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Sql { source, .. } if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

/// The database, opened when it is first asked something.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    // `None` until the first use.
    connection: Mutex<Option<Connection>>,
}

impl Db {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, connection: Mutex::new(None) }
    }

    /// Runs `ask` outside of a transaction.
    pub(crate) fn read<T>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DbError> {
        let mut guard = self.lock();
        ask(self.opened(&mut guard)?).map_err(|source| self.sql(source))
    }

    /// Runs `ask` in one transaction that only reads: many questions lock once, and nothing changes between them.
    pub(crate) fn read_many<T>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DbError> {
        self.read(|connection| {
            let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
            let value = ask(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Runs `change` in one transaction; an error undoes it.
    pub(crate) fn write<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, DbError> {
        let mut guard = self.lock();
        let connection = self.opened(&mut guard)?;
        let run = || {
            let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|source| self.sql(source))
    }

    /// Waits until what was written is on disk.
    pub(crate) fn sync(&self) -> Result<(), DbError> {
        // Writes the log to disk before it copies it; gives way to others at work.
        self.read(|db| db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        // A panic between two statements left no half transaction: it was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened<'a>(&self, slot: &'a mut Option<Connection>) -> Result<&'a Connection, DbError> {
        if slot.is_none() {
            *slot = Some(self.open()?);
        }
        Ok(slot.as_ref().expect("it was just put there"))
    }

    fn open(&self) -> Result<Connection, DbError> {
        match open(&self.path) {
            Err(DbError::Sql { source, .. }) if is_damage(&source) => {
                set_aside(&self.path);
                open(&self.path)
            }
            other => other,
        }
    }

    fn sql(&self, source: rusqlite::Error) -> DbError {
        DbError::Sql { path: self.path.clone(), source }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let Some(connection) = self.lock().take() else { return };
        let wal = self.path.with_extension("db-wal");
        if fs::metadata(wal).is_ok_and(|meta| meta.len() > LONG_WAL) {
            // Others at work: they will do it.
            let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
    }
}

fn open(path: &Path) -> Result<Connection, DbError> {
    match open_made(path) {
        Ok(Some(connection)) => return Ok(connection),
        Ok(None) => {}
        // Seen by whoever looks while another makes it.
        Err(DbError::Sql { source, .. }) if is_half_made(&source) => {}
        Err(error) => return Err(error),
    }
    // One at a time: SQLite refuses some of its steps at once, where it waits with others. Where the directory cannot be
    // locked, that has to do.
    let directory = path.parent().map(File::open).and_then(Result::ok);
    let _locked = directory.as_ref().map(File::lock);
    if let Some(connection) = open_made(path)? {
        return Ok(connection);
    }
    let sql = |source| DbError::Sql { path: path.to_owned(), source };
    let connection = connect(path).map_err(sql)?;
    create(&connection).and_then(|()| tune(&connection)).map_err(sql)?;
    Ok(connection)
}

/// The database as it is used; `None`: it has not been made.
fn open_made(path: &Path) -> Result<Option<Connection>, DbError> {
    let sql = |source| DbError::Sql { path: path.to_owned(), source };
    let connection = connect(path).map_err(sql)?;
    match version(&connection).map_err(sql)? {
        0 => return Ok(None),
        VERSION => {}
        1..VERSION => migrate(&connection).map_err(sql)?,
        found => return Err(DbError::Newer { path: path.to_owned(), found }),
    }
    tune(&connection).map_err(sql)?;
    Ok(Some(connection))
}

fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 256)?;
    // KiB. A build of thousands of steps looks into every page; no other one fills it.
    connection.pragma_update(None, "cache_size", -8192)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match Connection::open_with_flags(path, flags) {
        Err(error) if error.sqlite_error_code() == Some(ffi::ErrorCode::CannotOpen) => {
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_CREATE)
        }
        other => other,
    }?;
    connection.busy_timeout(PATIENCE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    // Another process may have been first, where they could not be kept apart.
    if version(&transaction)? == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.execute_batch(RECORDS)?;
        transaction.execute_batch(BLOCKS)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// From version 1, which did not say where a record came from (all were made here), 2, which did not say how long a step
/// took, 3, which knew no blocks, and 4, whose records had no rowid.
fn migrate(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    if found < VERSION {
        let origin = if found <= 1 { "NULL" } else { "origin" };
        let seconds = if found <= 2 { "0" } else { "seconds" };
        transaction.execute_batch(
            "ALTER TABLE records RENAME TO old; DROP INDEX records_step; DROP INDEX records_layer",
        )?;
        transaction.execute_batch(RECORDS)?;
        transaction.execute_batch(&format!(
            "INSERT INTO records SELECT key, step, diff_id, created, last_used, uses, description, {origin}, {seconds}, bytes
             FROM old; DROP TABLE old"
        ))?;
        if found <= 3 {
            transaction.execute_batch(BLOCKS)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn is_half_made(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ffi::ErrorCode::DatabaseBusy | ffi::ErrorCode::ReadOnly))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error(),
        Some(ffi::Error { code: ffi::ErrorCode::DatabaseCorrupt | ffi::ErrorCode::NotADatabase, .. })
    )
}

/// Moves a damaged database out of the way; the last one is kept for whoever wants to look.
fn set_aside(path: &Path) {
    for (from, to) in [("db", "db.damaged"), ("db-wal", "db-wal.damaged"), ("db-shm", "db-shm.damaged")] {
        let _ = fs::rename(path.with_extension(from), path.with_extension(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_database_opens_again_and_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.db");
        let pin =
            |db: &Db| db.write(|tx| tx.execute("INSERT INTO pins VALUES ('a', x'00', 1)", [])).map(|_| ());
        pin(&Db::new(path.clone())).unwrap();
        let db = Db::new(path);
        assert!(pin(&db).unwrap_err().to_string().contains("UNIQUE"));
        let count: i64 = db.read(|c| c.query_row("SELECT count(*) FROM pins", [], |row| row.get(0))).unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn whoever_comes_first_makes_it_and_the_others_wait() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("meta.db");
            let all_are_there = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for n in 0..8 {
                    let (db, all_are_there) = (Db::new(path.clone()), &all_are_there);
                    scope.spawn(move || {
                        all_are_there.wait();
                        db.write(|tx| tx.execute("INSERT INTO pins VALUES (?1, x'00', 1)", [n])).unwrap();
                    });
                }
            });
            let count = |db: &Connection| db.query_row("SELECT count(*) FROM pins", [], |row| row.get(0));
            let count: i64 = Db::new(path).read(count).unwrap();
            assert_eq!(count, 8);
        }
    }

    #[test]
    fn older_versions_get_what_they_lack() {
        for (version, columns, values) in [
            (1, "", ""),
            (2, ", origin TEXT", ", 'cache'"),
            (3, ", origin TEXT, seconds REAL NOT NULL DEFAULT 0", ", 'cache', 5"),
            (4, ", origin TEXT, seconds REAL NOT NULL DEFAULT 0", ", 'cache', 5"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("meta.db");
            Db::new(path.clone())
                .write(|tx| {
                    if version <= 3 {
                        tx.execute_batch("DROP TABLE blocks")?;
                    }
                    tx.execute_batch(&format!(
                        "DROP TABLE records;
                         CREATE TABLE records(
                             key BLOB PRIMARY KEY, step BLOB NOT NULL, diff_id BLOB NOT NULL, bytes BLOB NOT NULL,
                             created INTEGER NOT NULL, last_used INTEGER NOT NULL, uses INTEGER NOT NULL,
                             description TEXT NOT NULL{columns}
                         ) WITHOUT ROWID;
                         CREATE INDEX records_step ON records(step, created);
                         CREATE INDEX records_layer ON records(diff_id);
                         INSERT INTO records VALUES (x'01', x'02', x'03', x'04', 1, 2, 3, 'RUN x'{values})"
                    ))?;
                    tx.pragma_update(None, "user_version", version)
                })
                .unwrap();
            type Found = (Vec<u8>, Vec<u8>, String, Option<String>, f64, i64);
            let read = Db::new(path).read(|db| {
                db.query_row(
                    "SELECT key, bytes, description, origin, seconds, (SELECT count(*) FROM blocks) FROM records",
                    [],
                    |row| {
                        let value = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
                        Ok::<Found, _>(value)
                    },
                )
            });
            let (origin, seconds) = match version {
                1 => (None, 0.0),
                2 => (Some("cache".to_owned()), 0.0),
                _ => (Some("cache".to_owned()), 5.0),
            };
            let expected = (vec![1], vec![4], "RUN x".to_owned(), origin, seconds, 0);
            assert_eq!(read.unwrap(), expected, "{version}");
        }
    }

    #[test]
    fn a_later_version_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.db");
        Db::new(path.clone()).write(|tx| tx.pragma_update(None, "user_version", 99)).unwrap();
        for _ in 0..2 {
            let error = Db::new(path.clone()).read(|_| Ok(())).unwrap_err();
            assert!(matches!(error, DbError::Newer { found: 99, .. }), "{error}");
        }
    }

    #[test]
    fn a_damaged_database_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.db");
        fs::write(&path, vec![7; 8192]).unwrap();
        Db::new(path.clone()).write(|tx| tx.execute("DELETE FROM pins", [])).unwrap();
        assert_eq!(fs::read(path.with_extension("db.damaged")).unwrap(), vec![7; 8192]);
    }

    #[test]
    fn a_long_log_is_cut_when_the_database_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.db");
        let wal = path.with_extension("db-wal");
        let db = Db::new(path.clone());
        db.write(|tx| tx.execute("INSERT INTO pins VALUES ('a', zeroblob(3000000), 1)", [])).unwrap();
        assert!(fs::metadata(&wal).unwrap().len() > LONG_WAL);
        drop(db);
        assert_eq!(fs::metadata(&wal).unwrap().len(), 0);
        let size = |db: &Db| {
            db.read(|c| c.query_row("SELECT length(value) FROM pins", [], |row| row.get::<_, i64>(0)))
        };
        assert_eq!(size(&Db::new(path)).unwrap(), 3_000_000);
    }

    #[test]
    fn an_error_undoes_the_whole_change() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::new(dir.path().join("meta.db"));
        db.write(|tx| {
            tx.execute("INSERT INTO pins VALUES ('a', x'00', 1)", [])?;
            tx.execute("INSERT INTO pins VALUES ('a', x'00', 1)", [])
        })
        .unwrap_err();
        let count: i64 = db.read(|c| c.query_row("SELECT count(*) FROM pins", [], |row| row.get(0))).unwrap();
        assert_eq!(count, 0);
    }
}
