//! What compilers put into programs: Go's build information and the list of `cargo auditable`. Of a program only its
//! section headers and these sections are read. 64-bit little-endian ELF, which is what there is.

use std::io::{self, Read as _};

use serde::Deserialize;

use super::Package;
use super::language::{cargo, go};

/// Longer sections are not read.
const MAX_SECTION: u64 = 32 << 20;

/// Fills a buffer with what is at an offset of the program.
type ReadAt<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// The packages that a program says it was built from; none of what is no such program.
pub(super) fn packages(read: ReadAt<'_>) -> Vec<Package> {
    let Some(sections) = sections(read) else { return Vec::new() };
    let mut found = Vec::new();
    for (name, offset, size) in sections {
        let wanted = match name.as_str() {
            ".go.buildinfo" | ".dep-v0" => size <= MAX_SECTION,
            _ => false,
        };
        let mut bytes = vec![0; if wanted { usize::try_from(size).unwrap_or(0) } else { 0 }];
        if !wanted || read(&mut bytes, offset).is_err() {
            continue;
        }
        found.extend(match name.as_str() {
            ".dep-v0" => auditable(&bytes),
            _ => go_modules(&bytes),
        });
    }
    found
}

/// Name, offset and size of each section.
fn sections(read: ReadAt<'_>) -> Option<Vec<(String, u64, u64)>> {
    let mut header = [0; 64];
    read(&mut header, 0).ok()?;
    // Magic, 64 bits, little-endian.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    let table = u64_at(&header, 0x28)?;
    let (entry, count, names) = (u16_at(&header, 0x3a)?, u16_at(&header, 0x3c)?, u16_at(&header, 0x3e)?);
    if entry != 64 || names >= count {
        return None;
    }
    let mut headers = vec![0; usize::from(count) * 64];
    read(&mut headers, table).ok()?;
    let headers: Vec<&[u8]> = headers.chunks_exact(64).collect();
    let place = |header: &[u8]| Some((u64_at(header, 0x18)?, u64_at(header, 0x20)?));
    let (offset, size) = place(headers[usize::from(names)])?;
    if size > MAX_SECTION {
        return None;
    }
    let mut strings = vec![0; usize::try_from(size).ok()?];
    read(&mut strings, offset).ok()?;
    headers
        .iter()
        .map(|header| {
            let start = usize::try_from(u32_at(header, 0)?).ok()?;
            let name = strings.get(start..)?.split(|byte| *byte == 0).next()?;
            let (offset, size) = place(header)?;
            Some((String::from_utf8_lossy(name).into_owned(), offset, size))
        })
        .collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The list of `cargo auditable`: JSON, deflated.
fn auditable(section: &[u8]) -> Vec<Package> {
    #[derive(Deserialize)]
    struct List {
        packages: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        name: String,
        version: String,
    }
    let mut json = Vec::new();
    let inflated = flate2::read::ZlibDecoder::new(section).take(MAX_SECTION).read_to_end(&mut json);
    let list = inflated.ok().and_then(|_| serde_json::from_slice::<List>(&json).ok());
    list.iter().flat_map(|list| &list.packages).map(|listed| cargo(&listed.name, &listed.version)).collect()
}

/// Go's build information as Go 1.18 and later have it: two strings after a header of 32 bytes, the second of them
/// between 16 bytes that mark its ends.
fn go_modules(section: &[u8]) -> Vec<Package> {
    let inline =
        section.starts_with(b"\xff Go buildinf:") && section.get(15).is_some_and(|flags| flags & 2 != 0);
    let strings = || {
        let (version, rest) = string(section.get(32..)?)?;
        let (modules, _) = string(rest)?;
        Some((version, modules.get(16..modules.len().checked_sub(16)?)?))
    };
    let Some((version, modules)) = strings().filter(|_| inline) else { return Vec::new() };
    let mut found = vec![go("stdlib", String::from_utf8_lossy(version).trim_start_matches("go"))];
    for line in String::from_utf8_lossy(modules).lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("mod" | "dep"), Some(path), Some(version)) => found.push(go(path, version)),
            // The module that stands in for the one before.
            (Some("=>"), Some(path), Some(version)) => {
                found.pop();
                found.push(go(path, version));
            }
            _ => {}
        }
    }
    found
}

/// A string with its length in front (a variable-length integer), and the rest.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let rest = &bytes[at + 1..];
            return Some((rest.get(..length)?, &rest[length..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// An ELF file with these sections and nothing else.
    fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut body = Vec::new();
        let mut headers = vec![0; 64];
        let mut header = |name: usize, offset: usize, size: usize| {
            let mut one = [0; 64];
            one[..4].copy_from_slice(&u32::try_from(name).unwrap().to_le_bytes());
            one[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            one[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            headers.extend_from_slice(&one);
        };
        for (name, bytes) in sections {
            header(names.len(), 64 + body.len(), bytes.len());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            body.extend_from_slice(bytes);
        }
        header(0, 64 + body.len(), names.len());
        body.extend_from_slice(&names);
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        let count = u16::try_from(sections.len() + 2).unwrap();
        file[0x3c..0x3e].copy_from_slice(&count.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&(count - 1).to_le_bytes());
        file.extend(body);
        file.extend(headers);
        file
    }

    fn urls(file: &[u8]) -> Vec<String> {
        let read = |buffer: &mut [u8], at: u64| {
            let at = usize::try_from(at).unwrap();
            let from = file.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(from);
            Ok(())
        };
        packages(&read).into_iter().map(|package| package.url).collect()
    }

    #[test]
    fn programs_tell_what_they_were_built_from() {
        let mut list = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        list.write_all(br#"{"packages":[{"name":"a","version":"1.0.0","source":"crates.io"}]}"#).unwrap();
        let list = list.finish().unwrap();
        let modules = "path\texample.com/m\nmod\texample.com/m\t(devel)\t\ndep\tb.org/x\tv1.2.3\th1:=\n\
                       dep\tc.org/y\tv1\n=>\td.org/z\tv2\th1:=\n";
        let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
        info.resize(32, 0);
        info.push(8);
        info.extend_from_slice(b"go1.22.1");
        let marked = format!("{0}{modules}{0}", "#".repeat(16));
        let length = marked.len();
        info.extend_from_slice(&[(length & 0x7f | 0x80) as u8, (length >> 7) as u8]);
        info.extend_from_slice(marked.as_bytes());
        assert_eq!(
            urls(&elf(&[(".text", b"x"), (".dep-v0", &list), (".go.buildinfo", &info)])),
            [
                "pkg:cargo/a@1.0.0",
                "pkg:golang/stdlib@1.22.1",
                "pkg:golang/example.com/m@%28devel%29",
                "pkg:golang/b.org/x@v1.2.3",
                "pkg:golang/d.org/z@v2"
            ]
        );
    }

    #[test]
    fn what_is_cut_off_or_no_program_tells_nothing() {
        let whole = elf(&[(".go.buildinfo", b"\xff Go buildinf:\x08\x02"), (".dep-v0", b"no zlib")]);
        assert!(urls(&whole).is_empty());
        for length in 0..whole.len() {
            assert!(urls(&whole[..length]).is_empty());
        }
        assert!(urls(b"#!/bin/sh\necho\n").is_empty());
    }
}
