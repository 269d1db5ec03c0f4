//! PAX extended header records: `"<length> <key>=<value>\n"`, cut by their length alone, since values hold any byte
//! (POSIX.1-2017, `pax`, "pax Extended Header").

use std::collections::BTreeMap;

use bstr::{BString, ByteSlice};

/// The longest extended header that is read, as in Go's `archive/tar`.
pub(crate) const MAX_LEN: u64 = 1 << 20;

/// What extended attributes' keys begin with.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extended records say about the next entry. An absent field leaves the header's.
#[derive(Debug, Default, Clone)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<i64>,
    pub(crate) xattrs: BTreeMap<BString, BString>,
    pub(crate) sparse: Sparse,
}

/// GNU's sparse formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Offset and length by turns.
    pub(crate) map: Vec<u64>,
    /// Any `GNU.sparse.` record was there.
    pub(crate) present: bool,
}

impl Records {
    /// Reads a whole extended header. Of equal keys the last one counts; an empty value takes the record back.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = split(bytes)?;
            records.set(key, value)?;
            bytes = rest;
        }
        Ok(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(XATTR) {
            if name.is_empty() || name.contains(&0) {
                return Err("an extended attribute has no proper name");
            }
            self.xattrs.insert(name.into(), value.into());
            return Ok(());
        }
        let text = |value: &[u8]| match value {
            b"" => Ok(None),
            _ if value.contains(&0) => Err("a PAX name contains NUL"),
            _ => Ok(Some(value.to_vec())),
        };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = unsigned(value)?,
            b"uid" => self.uid = unsigned(value)?.map(u64::cast_signed),
            b"gid" => self.gid = unsigned(value)?.map(u64::cast_signed),
            b"mtime" => self.mtime = seconds(value)?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let sparse = &mut self.sparse;
        sparse.present = true;
        match key {
            b"major" => sparse.major = unsigned(value)?,
            b"minor" => sparse.minor = unsigned(value)?,
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.real_size = unsigned(value)?,
            b"map" => {
                sparse.map = value
                    .split_str(",")
                    .map(|number| unsigned(number)?.ok_or("a sparse map has an empty number"))
                    .collect::<Result<_, _>>()?;
            }
            b"offset" | b"numbytes" => {
                // Format 0.0 repeats them by turns.
                if (key == b"offset") != (sparse.map.len().is_multiple_of(2)) {
                    return Err("a sparse map is out of order");
                }
                sparse.map.push(unsigned(value)?.ok_or("a sparse map has an empty number")?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Key, value and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Takes one record off.
fn split(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or("a PAX record has no length")?;
    let length = unsigned(&bytes[..space])?.ok_or("a PAX record has no length")?;
    let length = usize::try_from(length).map_err(|_| "a PAX record is too long")?;
    if length < space + 1 || length > bytes.len() {
        return Err("a PAX record's length is wrong");
    }
    let (record, rest) = bytes.split_at(length);
    let Some((b'\n', record)) = record[space + 1..].split_last() else {
        return Err("a PAX record does not end where it says");
    };
    let equals = record.iter().position(|byte| *byte == b'=').ok_or("a PAX record has no value")?;
    if equals == 0 || record[..equals].contains(&0) {
        return Err("a PAX record has no proper key");
    }
    Ok((&record[..equals], &record[equals + 1..], rest))
}

/// Decimal digits that fit in an `i64`; `None` for no digits at all.
pub(crate) fn unsigned(text: &[u8]) -> Result<Option<u64>, &'static str> {
    let value = text.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'9' => value
            .checked_mul(10)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or("a PAX number is out of range"),
        _ => Err("a PAX number is not decimal"),
    })?;
    Ok((!text.is_empty()).then(|| value.cast_unsigned()))
}

/// A time, rounded down to whole seconds.
fn seconds(text: &[u8]) -> Result<Option<i64>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once_str(".").unwrap_or((digits, b""));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("a PAX time is not decimal");
    }
    let whole = unsigned(whole)?.ok_or("a PAX time is not decimal")?.cast_signed();
    let below = fraction.iter().any(|digit| *digit != b'0');
    Ok(Some(match negative {
        false => whole,
        // i64::MIN cannot be reached: `whole` is at most i64::MAX.
        true => (-whole).saturating_sub(i64::from(below)),
    }))
}

/// Appends one record. The length counts its own digits.
pub(crate) fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Space, equals sign, newline.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_by_length() {
        let mut bytes = Vec::new();
        push(&mut bytes, b"SCHILY.xattr.security.capability", b"\x01\n12 path=evil\n\0");
        push(&mut bytes, b"size", b"1099511627776");
        push(&mut bytes, b"path", "ä/b".as_bytes());
        push(&mut bytes, b"mtime", b"-1.5");
        push(&mut bytes, b"comment", b"");
        let records = Records::parse(&bytes).unwrap();
        assert_eq!(records.xattrs[&BString::from("security.capability")], &b"\x01\n12 path=evil\n\0"[..]);
        assert_eq!(records.size, Some(1 << 40));
        assert_eq!(records.path.unwrap(), "ä/b".as_bytes());
        assert_eq!(records.mtime, Some(-2));
    }

    #[test]
    fn a_length_that_counts_its_own_digits_is_found() {
        for len in [0, 1, 85, 86, 87, 88, 89, 90, 985, 986, 987, 988, 9983, 99_982] {
            let mut bytes = Vec::new();
            push(&mut bytes, b"path", &vec![b'x'; len]);
            let space = bytes.iter().position(|b| *b == b' ').unwrap();
            assert_eq!(std::str::from_utf8(&bytes[..space]).unwrap().parse(), Ok(bytes.len()));
        }
    }

    #[test]
    fn the_last_of_equal_records_counts_and_an_empty_one_takes_it_back() {
        let records = Records::parse(b"10 path=a\n10 path=b\n9 size=7\n8 size=\n").unwrap();
        assert_eq!(records.path.unwrap(), b"b");
        assert_eq!(records.size, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b" path=a\n",
            b"0 \n",
            b"5 a=\n\n",
            b"100 path=a\n",
            b"8 path=a\n",
            b"11 path=a\n",
            b"8 patha\n",
            b"6 =ab\n",
            b"11 path=\0a\n",
            b"10 size=x\n",
            b"11 size=-1\n",
            b"+10 path=a\n",
            b"99999999999 path=a\n",
            b"29 size=99999999999999999999\n",
            b"12 mtime=1e\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{}", bad.as_bstr());
        }
    }
}
