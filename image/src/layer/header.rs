//! The 512-byte header block of a tar entry (POSIX.1-2017, `pax`, "ustar Interchange Format"; GNU tar's `tar.h`).

/// Headers and data come in blocks of this many bytes.
pub(crate) const BLOCK: usize = 512;

/// The largest number an octal field of 8 bytes holds.
pub(crate) const MAX_OCTAL_8: u64 = 0o7_777_777;
/// The largest number an octal field of 12 bytes holds.
pub(crate) const MAX_OCTAL_12: u64 = 0o77_777_777_777;

/// A header block as it was read. Accessors parse on demand, since which fields mean something depends on the type.
#[derive(Debug)]
pub(crate) struct Header<'a>(pub(crate) &'a [u8; BLOCK]);

impl Header<'_> {
    /// Whether the block is all zero, as two of them end an archive.
    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Fails unless the checksum is right; some old tars summed signed bytes.
    pub(crate) fn verify(&self) -> Result<(), &'static str> {
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        let sum = octal(&self.0[148..156])?;
        if sum == unsigned || sum == signed { Ok(()) } else { Err("its checksum is wrong") }
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// Name as far as it fits in the header: POSIX archives cut long ones in two.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = string(&self.0[..100]);
        if &self.0[257..263] != b"ustar\0" {
            return name.to_vec();
        }
        let star = &self.0[508..512] == b"tar\0";
        let prefix = string(if star { &self.0[345..476] } else { &self.0[345..500] });
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        string(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i64, &'static str> {
        number(&self.0[100..108])
    }

    pub(crate) fn uid(&self) -> Result<i64, &'static str> {
        number(&self.0[108..116])
    }

    pub(crate) fn gid(&self) -> Result<i64, &'static str> {
        number(&self.0[116..124])
    }

    pub(crate) fn size(&self) -> Result<i64, &'static str> {
        number(&self.0[124..136])
    }

    pub(crate) fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.0[136..148])
    }

    pub(crate) fn device(&self) -> Result<(u32, u32), &'static str> {
        let part = |field| u32::try_from(number(field)?).map_err(|_| "its device number is out of range");
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    /// GNU's old sparse format: the length of the whole file.
    pub(crate) fn sparse_real_size(&self) -> Result<i64, &'static str> {
        number(&self.0[483..495])
    }

    /// GNU's old sparse format: the four data ranges in the header, and whether a block with more follows.
    pub(crate) fn sparse_ranges(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }
}

fn string(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// A number field: octal, or GNU's base-256 when the top bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64, &'static str> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big-endian; the top bit is only the mark.
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        let byte = match (at, negative) {
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = (value << 8) | i128::from(byte);
    }
    i64::try_from(value).map_err(|_| "a number is out of range")
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let start = field.iter().position(|byte| !matches!(byte, b' ' | 0)).unwrap_or(field.len());
    let digits = string(&field[start..]);
    let end = digits.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value * 8 + i64::from(digit - b'0')),
        _ => Err("a number is not octal"),
    })
}

/// What to write into a header. Fields must fit: names 100 bytes and a prefix of 155, numbers their octal fields.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) prefix: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) typeflag: u8,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) device: Option<(u32, u32)>,
}

impl Fields<'_> {
    /// The header block: ustar, no user or group name.
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..self.name.len()].copy_from_slice(self.name);
        put_octal(&mut block[100..108], u64::from(self.mode));
        put_octal(&mut block[108..116], u64::from(self.uid));
        put_octal(&mut block[116..124], u64::from(self.gid));
        put_octal(&mut block[124..136], self.size);
        put_octal(&mut block[136..148], self.mtime);
        block[156] = self.typeflag;
        block[157..157 + self.link.len()].copy_from_slice(self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        let (major, minor) = self.device.unwrap_or_default();
        put_octal(&mut block[329..337], u64::from(major));
        put_octal(&mut block[337..345], u64::from(minor));
        block[345..345 + self.prefix.len()].copy_from_slice(self.prefix);
        let sum = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
        put_octal(&mut block[148..155], sum);
        block[155] = b' ';
        block
    }
}

/// Octal digits and a NUL.
fn put_octal(field: &mut [u8], value: u64) {
    let (last, digits) = field.split_last_mut().expect("number fields are not empty");
    *last = 0;
    let mut value = value;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    debug_assert_eq!(value, 0, "the caller moves what does not fit to a PAX record");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"        ", Ok(0)),
            (b"77777777", Ok(0o77_777_777)),
            (b"12\x00junk\0", Ok(0o12)),
            (b"12 4\0\0\0\0", Err("a number is not octal")),
            (b"0000648\0", Err("a number is not octal")),
            (b"-1\0\0\0\0\0\0", Err("a number is not octal")),
            (b"\x80\0\0\0\xee\x6b\x28\x00", Ok(4_000_000_000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Err("a number is out of range")),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn a_written_header_reads_back() {
        let block = Fields {
            prefix: b"some/dir",
            name: b"file",
            link: b"",
            typeflag: b'3',
            mode: 0o4755,
            uid: 1000,
            gid: 0o7_777_777,
            size: 0,
            mtime: MAX_OCTAL_12,
            device: Some((10, 229)),
        }
        .encode();
        let header = Header(&block);
        header.verify().unwrap();
        assert_eq!(header.name(), b"some/dir/file");
        assert_eq!(header.mode(), Ok(0o4755));
        assert_eq!((header.uid(), header.gid()), (Ok(1000), Ok(MAX_OCTAL_8 as i64)));
        assert_eq!(header.mtime(), Ok(MAX_OCTAL_12 as i64));
        assert_eq!(header.device(), Ok((10, 229)));
        let mut wrong = block;
        wrong[0] ^= 1;
        assert!(Header(&wrong).verify().is_err());
    }
}
