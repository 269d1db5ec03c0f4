//! RPM's databases: a header a package, in a table of SQLite (`rpmdb.sqlite`) or in a file of RPM's own (`Packages.db`).
//! The older one, of Berkeley DB, is not read.

use super::database::{distribution, package};
use super::sqlite::{Value, record, rows};
use super::{Package, System, escaped};

/// Packages of `rpmdb.sqlite`; `None`: it cannot be read.
pub(super) fn sqlite(file: &[u8], system: &System) -> Option<Vec<Package>> {
    let rows = rows(file, "Packages")?;
    let headers = rows.iter().filter_map(|row| match record(row)?.last()? {
        Value::Bytes(header) => Some(of_header(header, system)),
        _ => None,
    });
    Some(headers.flatten().collect())
}

/// Packages of `Packages.db` (rpm, `lib/backend/ndb`): pages of slots that say where the headers are.
pub(super) fn ndb(file: &[u8], system: &System) -> Option<Vec<Package>> {
    const PAGE: usize = 4096;
    const SLOT: usize = 16;
    let number = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    if file.get(..4)? != b"RpmP" {
        return None;
    }
    let pages = usize::try_from(number(12)?).ok()?;
    let end = pages.checked_mul(PAGE)?.min(file.len());
    let mut found = Vec::new();
    // The first two slots' place is the file's own header.
    for slot in (2 * SLOT..end).step_by(SLOT) {
        let (Some(magic), Some(index), Some(block)) = (number(slot), number(slot + 4), number(slot + 8))
        else {
            break;
        };
        if magic != u32::from_le_bytes(*b"Slot") || index == 0 || block == 0 {
            continue;
        }
        let at = usize::try_from(block).ok()?.checked_mul(16)?;
        if file.get(at..at.checked_add(4)?)? != b"BlbS" || number(at + 4)? != index {
            return None;
        }
        let size = usize::try_from(number(at + 12)?).ok()?;
        found.extend(of_header(file.get(at + 16..(at + 16).checked_add(size)?)?, system));
    }
    Some(found)
}

/// The package of a header; a key is none.
fn of_header(bytes: &[u8], system: &System) -> Option<Package> {
    let header = Header::new(bytes)?;
    let name = header.text(1000).filter(|name| name != "gpg-pubkey")?;
    let version = format!("{}-{}", header.text(1001)?, header.text(1002)?);
    let vendor = if system.id.is_empty() { "rpm" } else { &system.id };
    let mut url = format!("pkg:rpm/{}/{}@{}", escaped(vendor), escaped(&name), escaped(&version));
    let architecture = header.text(1022).unwrap_or_else(|| "noarch".to_owned());
    url.push_str(&format!("?arch={}", escaped(&architecture)));
    let epoch = header.number(1003).filter(|epoch| *epoch > 0);
    if let Some(epoch) = epoch {
        url.push_str(&format!("&epoch={epoch}"));
    }
    if let Some(source) = header.text(1044) {
        url.push_str(&format!("&upstream={}", escaped(&source)));
    }
    url.push_str(&distribution(system));
    let version = epoch.map_or(version.clone(), |epoch| format!("{epoch}:{version}"));
    Some(package(&name, &version, url, header.text(1014).as_deref()))
}

/// A header: an index of tags, and what they stand for. All numbers are big-endian.
struct Header<'a> {
    index: &'a [u8],
    store: &'a [u8],
}

impl<'a> Header<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_be_bytes(bytes)).ok()
        };
        let (count, size) = (number(0)?, number(4)?);
        let split = 8usize.checked_add(count.checked_mul(16)?)?;
        Some(Self { index: bytes.get(8..split)?, store: bytes.get(split..split.checked_add(size)?)? })
    }

    /// Type and place of a tag's value.
    fn find(&self, tag: u32) -> Option<(u32, &'a [u8])> {
        let entry = self.index.chunks_exact(16).find(|entry| entry[..4] == tag.to_be_bytes())?;
        let number = |at: usize| u32::from_be_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        Some((number(4), self.store.get(usize::try_from(number(8)).ok()?..)?))
    }

    fn text(&self, tag: u32) -> Option<String> {
        // A string, or one in several languages.
        let (6 | 9, bytes) = self.find(tag)? else { return None };
        let text = bytes.split(|byte| *byte == 0).next()?;
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }

    fn number(&self, tag: u32) -> Option<u32> {
        let (4, bytes) = self.find(tag)? else { return None };
        Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, epoch: Option<u32>) -> Vec<u8> {
        let texts = [(1000, name), (1001, "5.1.8"), (1002, "9.el9"), (1014, "GPLv3+"), (1022, "x86_64")];
        let (mut index, mut store): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        let mut add = |tag: u32, kind: u32, bytes: &[u8]| {
            for number in [tag, kind, store.len() as u32, 1] {
                index.extend(number.to_be_bytes());
            }
            store.extend(bytes);
        };
        if let Some(epoch) = epoch {
            add(1003, 4, &epoch.to_be_bytes());
        }
        for (tag, text) in texts {
            add(tag, if tag == 1014 { 9 } else { 6 }, &[text.as_bytes(), b"\0"].concat());
        }
        let mut bytes = Vec::new();
        bytes.extend((index.len() as u32 / 16).to_be_bytes());
        bytes.extend((store.len() as u32).to_be_bytes());
        bytes.extend(index);
        bytes.extend(store);
        bytes
    }

    fn system() -> System {
        System { id: "rhel".to_owned(), version: "9.3".to_owned() }
    }

    #[test]
    fn headers_tell_of_packages() {
        let found = of_header(&header("bash", Some(1)), &system()).unwrap();
        assert_eq!(found.url, "pkg:rpm/rhel/bash@5.1.8-9.el9?arch=x86_64&epoch=1&distro=rhel-9.3");
        assert_eq!((found.version.as_str(), found.license.as_deref()), ("1:5.1.8-9.el9", Some("GPLv3+")));
        assert_eq!(of_header(&header("gpg-pubkey", None), &system()), None);
        let whole = header("bash", None);
        for end in 0..whole.len() {
            assert_eq!(of_header(&whole[..end], &system()), None);
        }
    }

    #[test]
    fn packages_are_found_in_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpmdb.sqlite");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)",
            )
            .unwrap();
        for name in ["bash", "gpg-pubkey", "zlib"] {
            connection.execute("INSERT INTO Packages(blob) VALUES (?1)", [header(name, None)]).unwrap();
        }
        drop(connection);
        let found = sqlite(&std::fs::read(path).unwrap(), &system()).unwrap();
        assert_eq!(found.iter().map(|package| package.name.as_str()).collect::<Vec<_>>(), ["bash", "zlib"]);
        assert_eq!(sqlite(b"x", &system()), None);
    }

    #[test]
    fn packages_are_found_in_rpm_s_own_file() {
        let mut file = vec![0; 4096];
        file[..4].copy_from_slice(b"RpmP");
        file[12..16].copy_from_slice(&1u32.to_le_bytes());
        for (slot, name) in [(2, "bash"), (4, "zlib")] {
            let (header, at) = (header(name, None), file.len());
            let mut place = b"Slot".to_vec();
            for number in [slot, at as u32 / 16, 1] {
                place.extend(u32::to_le_bytes(number));
            }
            file[slot as usize * 16..slot as usize * 16 + 16].copy_from_slice(&place);
            file.extend(b"BlbS");
            for number in [slot, 1, header.len() as u32] {
                file.extend(u32::to_le_bytes(number));
            }
            file.extend(header);
            file.resize(file.len().next_multiple_of(16), 0);
        }
        let found = ndb(&file, &system()).unwrap();
        assert_eq!(found.iter().map(|package| package.name.as_str()).collect::<Vec<_>>(), ["bash", "zlib"]);
        file.truncate(4200);
        assert_eq!(ndb(&file, &system()), None);
    }
}
