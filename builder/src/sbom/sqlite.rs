//! As much of SQLite's file format as it takes to read the rows of a table (sqlite.org/fileformat2.html). The file is a
//! stranger's, so it is not given to SQLite itself; what is wrong in it ends the reading.

/// The rows of the table `name`, each a record.
pub(super) fn rows(file: &[u8], name: &str) -> Option<Vec<Vec<u8>>> {
    let pages = Pages::new(file)?;
    let root = pages.rows(1)?.into_iter().find_map(|row| {
        let [Value::Bytes(kind), Value::Bytes(found), _, Value::Number(root), ..] = &record(&row)?[..] else {
            return None;
        };
        (*kind == b"table" && *found == name.as_bytes()).then(|| u32::try_from(*root).ok())?
    })?;
    pages.rows(root)
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Number(i64),
    /// A text or a blob.
    Bytes(&'a [u8]),
}

/// The columns of a record; a floating-point number is null.
pub(super) fn record(row: &[u8]) -> Option<Vec<Value<'_>>> {
    let (header, mut at) = varint(row)?;
    let header = usize::try_from(header).ok()?;
    let mut body = row.get(header..)?;
    let mut values = Vec::new();
    while at < header {
        let (kind, len) = varint(row.get(at..header)?)?;
        at += len;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let size = usize::try_from(size).ok()?;
        let (bytes, rest) = (body.get(..size)?, body.get(size..)?);
        body = rest;
        values.push(match kind {
            0 | 7 => Value::Null,
            8 => Value::Number(0),
            9 => Value::Number(1),
            1..=6 => Value::Number(integer(bytes)),
            _ => Value::Bytes(bytes),
        });
    }
    Some(values)
}

/// The deepest tree that is read: SQLite's own are far lower.
const MAX_DEPTH: u32 = 20;

struct Pages<'a> {
    file: &'a [u8],
    size: usize,
    /// Of a page, what is not reserved.
    usable: usize,
}

impl<'a> Pages<'a> {
    fn new(file: &'a [u8]) -> Option<Self> {
        if file.get(..16)? != b"SQLite format 3\0" {
            return None;
        }
        let size = match u16::from_be_bytes([file[16], file[17]]) {
            1 => 65_536,
            size => usize::from(size),
        };
        let usable = size.checked_sub(usize::from(*file.get(20)?))?;
        (size >= 512 && size.is_power_of_two() && usable >= 480).then_some(Self { file, size, usable })
    }

    fn page(&self, number: u32) -> Option<&'a [u8]> {
        let start = usize::try_from(number.checked_sub(1)?).ok()?.checked_mul(self.size)?;
        self.file.get(start..start.checked_add(self.size)?)
    }

    /// The rows of the table that begins at a page.
    fn rows(&self, root: u32) -> Option<Vec<Vec<u8>>> {
        let mut rows = Vec::new();
        // Each page is in one tree once: more visits than pages are a loop.
        let mut left = self.file.len() / self.size + 1;
        self.walk(root, MAX_DEPTH, &mut left, &mut rows)?;
        Some(rows)
    }

    fn walk(&self, number: u32, depth: u32, left: &mut usize, rows: &mut Vec<Vec<u8>>) -> Option<()> {
        *left = left.checked_sub(1)?;
        let depth = depth.checked_sub(1)?;
        let page = self.page(number)?;
        // The file's own header is on the first page.
        let at = if number == 1 { 100 } else { 0 };
        let kind = *page.get(at)?;
        let count = usize::from(u16_at(page, at + 3)?);
        let pointers = at + if kind == 5 { 12 } else { 8 };
        for cell in 0..count {
            let cell = usize::from(u16_at(page, pointers + 2 * cell)?);
            match kind {
                5 => self.walk(u32_at(page, cell)?, depth, left, rows)?,
                13 => rows.push(self.payload(page, cell)?),
                _ => return None,
            }
        }
        if kind == 5 { self.walk(u32_at(page, at + 8)?, depth, left, rows) } else { Some(()) }
    }

    /// The record of a cell, which may go on in other pages.
    fn payload(&self, page: &[u8], cell: usize) -> Option<Vec<u8>> {
        let (size, len) = varint(page.get(cell..)?)?;
        let start = cell + len;
        let start = start + varint(page.get(start..)?)?.1;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.file.len())?;
        let most = self.usable - 35;
        let local = if size <= most {
            size
        } else {
            let least = (self.usable - 12) * 32 / 255 - 23;
            let fitting = least + (size - least) % (self.usable - 4);
            if fitting <= most { fitting } else { least }
        };
        let mut bytes = page.get(start..start + local)?.to_vec();
        let mut next = if local < size { u32_at(page, start + local)? } else { 0 };
        while bytes.len() < size {
            let page = self.page(next)?;
            let take = (size - bytes.len()).min(self.usable - 4);
            bytes.extend_from_slice(page.get(4..4 + take)?);
            next = u32_at(page, 0)?;
        }
        Some(bytes)
    }
}

/// A number of one to nine bytes, and how many.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0u64;
    for (at, byte) in bytes.iter().take(9).enumerate() {
        if at == 8 {
            return Some(((number << 8) | u64::from(*byte), 9));
        }
        number = (number << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, at + 1));
        }
    }
    None
}

fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number, byte| (number << 8) | i64::from(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;

    /// A database that SQLite made.
    fn database(blobs: &[Vec<u8>]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE Other(x); CREATE TABLE Packages(hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)",
            )
            .unwrap();
        let connection = connection.unchecked_transaction().unwrap();
        for blob in blobs {
            connection.execute("INSERT INTO Packages(blob) VALUES (?1)", [blob]).unwrap();
        }
        connection.commit().unwrap();
        std::fs::read(path).unwrap()
    }

    fn blobs(file: &[u8]) -> Option<Vec<Vec<u8>>> {
        let blob = |row: &Vec<u8>| match record(row)?[..] {
            [Value::Null, Value::Bytes(bytes)] => Some(bytes.to_vec()),
            _ => None,
        };
        rows(file, "Packages")?.iter().map(blob).collect()
    }

    #[test]
    fn rows_are_read_that_sqlite_has_written() {
        // Some lie in one page, some go on in many; there are more than one page has.
        let all: Vec<Vec<u8>> =
            (0..400usize).map(|n| (0..n * 37 % 9000).map(|at| (at + n) as u8).collect()).collect();
        let file = database(&all);
        assert!(blobs(&file).unwrap() == all);
        assert_eq!(blobs(&database(&[])).unwrap(), Vec::<Vec<u8>>::new());
        assert!(rows(&file, "Missing").is_none());
        assert!(rows(b"no database", "Packages").is_none());
    }

    #[test]
    fn numbers_have_signs() {
        assert_eq!(integer(&[0xff, 0xfe]), -2);
        assert_eq!(varint(&[0x81, 0x01]), Some((129, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_no_trouble(at in 0usize..16_384, byte: u8, cut in 0usize..16_384) {
            static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
            let all = || (0..8usize).map(|n| vec![n as u8; n * 700]).collect::<Vec<_>>();
            let mut file = WHOLE.get_or_init(|| database(&all())).clone();
            let len = file.len();
            file[at % len] = byte;
            file.truncate(len - cut % len);
            let _ends = blobs(&file);
        }
    }
}
