//! eStargz: a layer as gzip members that can be fetched and verified one by one
//! (stargz-snapshotter, `docs/estargz.md`).
//!
//! Each file with bytes begins a member, long files one every [`CHUNK`] bytes. Two files are added to the tar: a landmark
//! at its beginning, which says that nothing is worth fetching ahead, and the table of contents at its end. The footer,
//! an empty member, says where the table is. A reader that knows nothing of this sees one gzip stream of one tar, so the
//! layer has another diff ID than the one that it is made of. The bytes depend on the tar and the level alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::digest::Hasher;
use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter};
use image::{ContentDigest, Digest};
use libdeflater::{CompressionLvl, Compressor};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::Serialize;

/// The name of the table of contents in the tar.
pub const TOC: &str = "stargz.index.json";
/// Nothing is to be fetched before it is read.
const LANDMARK: &str = ".no.prefetch.landmark";
/// What a landmark contains.
const LANDMARK_BYTES: &[u8] = &[0xf];
/// Bytes of a file in one member.
const CHUNK: u64 = 4 << 20;
/// How much is compressed at a time, bytes: bounds the memory.
const BATCH: u64 = 32 << 20;
/// The unit of a tar.
const BLOCK: u64 = 512;

/// What was written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The digest of the blob.
    pub(crate) digest: Digest,
    /// Its length, bytes.
    pub(crate) size: u64,
    /// The digest of the table of contents.
    pub(crate) toc: Digest,
    /// The tar that the blob holds: this, so many bytes of the tar it was made of, and that.
    pub(crate) tar: (Vec<u8>, u64, Vec<u8>),
}

impl Written {
    /// The length of the tar that the blob holds.
    pub(crate) fn tar_size(&self) -> u64 {
        let (before, body, after) = &self.tar;
        before.len() as u64 + body + after.len() as u64
    }
}

/// Writes the layer whose tar is `tar` and whose index is `index` as a blob to `sink`. Uses all threads of the pool that
/// it runs on.
pub(crate) fn write(
    tar: &File,
    index: &LayerIndex,
    level: i32,
    sink: &mut impl Write,
) -> io::Result<Written> {
    let level = CompressionLvl::new(level).map_err(|_| io::Error::other("there is no such level"))?;
    let landmark = tar_of_one(LANDMARK, LANDMARK_BYTES)?;
    let (header, data) = landmark.split_at(BLOCK as usize);
    let body = Body::new(tar, index)?;
    let mut out = Out { sink, hasher: Hasher::sha256(), at: 0, level };

    // The landmark's bytes, and all headers up to the first file with bytes.
    let mut first = Member { bytes: data.to_vec(), content: 1, ..Member::default() };
    first.bytes.extend(body.read(0, body.files.first().map_or(body.end, |file| file.offset))?);
    let mut places: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
    let top = Member { bytes: header.to_vec(), ..Member::default() };
    let landmark_place = out.write_all(&[top, first])?.remove(1);
    let mut batch = Vec::new();
    let mut size = 0;
    for (at, file) in body.files.iter().enumerate() {
        let next = body.files.get(at + 1).map_or(body.end, |next| next.offset);
        let mut done = 0;
        while done < file.size {
            let content = CHUNK.min(file.size - done);
            let last = done + content == file.size;
            let end = if last { next } else { file.offset + done + content };
            let bytes = body.read(file.offset + done, end)?;
            size += bytes.len() as u64;
            batch.push(Member { bytes, content, entry: Some(file.entry), chunk_offset: done });
            done += content;
            if size >= BATCH {
                out.write_files(&batch, &mut places)?;
                batch.clear();
                size = 0;
            }
        }
    }
    out.write_files(&batch, &mut places)?;

    let toc = Toc { version: 1, entries: body.entries(index, &places, landmark_place)? };
    let json = serde_json::to_vec_pretty(&toc).expect("a table of contents has string keys only");
    let mut tail = tar_of_one(TOC, &json)?;
    tail.resize(tail.len() + 2 * BLOCK as usize, 0);
    let toc_at = out.at;
    out.write_all(&[Member { bytes: tail.clone(), ..Member::default() }])?;
    out.put(&footer(toc_at))?;
    let tar = (landmark, body.end, tail);
    Ok(Written { digest: out.hasher.finish(), size: out.at, toc: Digest::of(&json), tar })
}

/// An empty member that says where the member with the table of contents begins.
fn footer(toc_at: u64) -> Vec<u8> {
    let name = format!("{toc_at:016x}STARGZ");
    let field = (name.len() as u16).to_le_bytes();
    let extra = (name.len() as u16 + 4).to_le_bytes();
    let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    bytes.extend(extra);
    bytes.extend(b"SG");
    bytes.extend(field);
    bytes.extend(name.as_bytes());
    // One stored block, the last one, of no bytes; their checksum and their number.
    bytes.extend([1, 0, 0, 0xff, 0xff]);
    bytes.extend([0; 8]);
    bytes
}

/// A tar of one file, without its end.
fn tar_of_one(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let entry = Entry {
        path: name.into(),
        kind: Kind::File { size: bytes.len() as u64, offset: 0, content: ContentDigest::of(bytes) },
        mode: 0o444,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: BTreeMap::new(),
    };
    let mut writer = LayerWriter::new(Vec::new());
    let mut rest = bytes;
    writer.append(entry, Data::Known(&mut rest)).map_err(io::Error::other)?;
    let (mut tar, _) = writer.finish().map_err(io::Error::other)?;
    tar.truncate(tar.len() - 2 * BLOCK as usize);
    Ok(tar)
}

/// What one member is made of.
#[derive(Debug, Default)]
struct Member {
    bytes: Vec<u8>,
    /// How many of them are a file's; the others are headers of what follows.
    content: u64,
    /// The file, by its place in the index.
    entry: Option<usize>,
    /// Where in the file they begin.
    chunk_offset: u64,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    chunk_offset: u64,
    size: u64,
    digest: Digest,
}

/// The blob as far as it was written.
struct Out<'a, W> {
    sink: &'a mut W,
    hasher: Hasher,
    at: u64,
    level: CompressionLvl,
}

impl<W: Write> Out<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.sink.write_all(bytes)
    }

    /// Compresses members side by side and writes them in order.
    fn write_all(&mut self, members: &[Member]) -> io::Result<Vec<Place>> {
        let level = self.level;
        let compress = |compressor: &mut Compressor, member: &Member| {
            let mut out = vec![0; compressor.gzip_compress_bound(member.bytes.len())];
            let len = compressor.gzip_compress(&member.bytes, &mut out).map_err(io::Error::other)?;
            out.truncate(len);
            let content = usize::try_from(member.content).map_err(io::Error::other)?;
            Ok::<_, io::Error>((out, Digest::of(&member.bytes[..content])))
        };
        let compressed = members.par_iter().map_init(|| Compressor::new(level), compress);
        let compressed: Vec<(Vec<u8>, Digest)> = compressed.collect::<io::Result<_>>()?;
        let mut places = Vec::with_capacity(members.len());
        for (member, (bytes, digest)) in members.iter().zip(compressed) {
            let (offset, chunk_offset, size) = (self.at, member.chunk_offset, member.content);
            places.push(Place { offset, chunk_offset, size, digest });
            self.put(&bytes)?;
        }
        Ok(places)
    }

    fn write_files(
        &mut self,
        members: &[Member],
        places: &mut BTreeMap<usize, Vec<Place>>,
    ) -> io::Result<()> {
        for (member, place) in members.iter().zip(self.write_all(members)?) {
            let entry = member.entry.expect("these members are files");
            places.entry(entry).or_default().push(place);
        }
        Ok(())
    }
}

/// The tar that is converted.
struct Body<'a> {
    tar: &'a File,
    /// Files with bytes, in the order of these.
    files: Vec<InTar>,
    /// Where its entries end: what follows are zeros.
    end: u64,
}

struct InTar {
    entry: usize,
    offset: u64,
    size: u64,
}

impl<'a> Body<'a> {
    fn new(tar: &'a File, index: &LayerIndex) -> io::Result<Self> {
        let mut files = Vec::new();
        for (entry, found) in index.entries().iter().enumerate() {
            if let Kind::File { size, offset, .. } = found.kind
                && size > 0
            {
                files.push(InTar { entry, offset, size });
            }
        }
        files.sort_by_key(|file| file.offset);
        let data_end = files.last().map_or(0, |file| (file.offset + file.size).next_multiple_of(BLOCK));
        let mut body = Self { tar, files, end: data_end };
        let rest = body.read(data_end, index.tar_size().max(data_end))?;
        // Headers have bytes that are not zero, the end of a tar has none.
        let used = rest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
        body.end += used.next_multiple_of(BLOCK);
        Ok(body)
    }

    fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
        self.tar.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    /// The table of contents, files with bytes in their order.
    fn entries(
        &self,
        index: &LayerIndex,
        places: &BTreeMap<usize, Vec<Place>>,
        landmark: Place,
    ) -> io::Result<Vec<TocEntry>> {
        let mut all =
            vec![TocEntry { name: LANDMARK.to_owned(), kind: "reg", mode: 0o444, ..TocEntry::default() }];
        all[0].place(1, landmark, true);
        all[0].digest = Some(landmark.digest);
        let mut with_bytes = self.files.iter();
        for found in index.entries() {
            // In place of the next file of the index the next one of the tar: the table is read in order of offsets.
            let is_file = matches!(found.kind, Kind::File { size, .. } if size > 0);
            let at = if is_file { with_bytes.next() } else { None };
            let entry = at.map_or(found, |file| &index.entries()[file.entry]);
            let Some(mut listed) = TocEntry::of(entry) else { continue };
            let opaque = matches!(entry.kind, Kind::Directory { opaque: true, .. });
            if let Some(file) = at {
                let chunks = places.get(&file.entry).map_or(&[][..], Vec::as_slice);
                listed.digest = Some(match chunks {
                    [one] => one.digest,
                    _ => self.digest(file)?,
                });
                for (number, chunk) in chunks.iter().enumerate() {
                    let last = number + 1 == chunks.len();
                    if number == 0 {
                        listed.place(file.size, *chunk, last);
                        all.push(listed.clone());
                    } else {
                        let name = listed.name.clone();
                        let mut more = TocEntry { name, kind: "chunk", ..TocEntry::default() };
                        more.place(0, *chunk, last);
                        all.push(more);
                    }
                }
                continue;
            }
            let name = listed.name.clone();
            all.push(listed);
            if opaque {
                let name = format!("{name}.wh..wh..opq");
                all.push(TocEntry { name, kind: "reg", ..TocEntry::default() });
            }
        }
        Ok(all)
    }

    /// The digest of a file of several chunks.
    fn digest(&self, file: &InTar) -> io::Result<Digest> {
        let mut hasher = Hasher::sha256();
        let mut done = 0;
        while done < file.size {
            let next = (done + CHUNK).min(file.size);
            hasher.update(&self.read(file.offset + done, file.offset + next)?);
            done = next;
        }
        Ok(hasher.finish())
    }
}

#[derive(Serialize)]
struct Toc {
    version: u32,
    entries: Vec<TocEntry>,
}

/// One line of the table of contents.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_name: Option<String>,
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_major: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_minor: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TocEntry {
    /// An entry as its header in the tar has it; `None`: it has none.
    fn of(entry: &Entry) -> Option<Self> {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let mut listed = Self {
            name: path.clone(),
            kind: "reg",
            mode: entry.mode.into(),
            uid: entry.uid,
            gid: entry.gid,
            modified: jiff::Timestamp::from_second(entry.mtime)
                .ok()
                .filter(|_| entry.mtime != 0)
                .map(|time| time.to_string()),
            xattrs: entry
                .xattrs
                .iter()
                .map(|(name, value)| {
                    (String::from_utf8_lossy(name).into_owned(), STANDARD.encode(value.as_slice()))
                })
                .collect(),
            ..Self::default()
        };
        let link = |target: &[u8]| Some(String::from_utf8_lossy(target).into_owned());
        match &entry.kind {
            Kind::Directory { implied: true, .. } => return None,
            Kind::File { .. } => {}
            Kind::Directory { .. } => {
                listed.kind = "dir";
                listed.name = if path.is_empty() { "./".to_owned() } else { format!("{path}/") };
            }
            Kind::Symlink { target } => (listed.kind, listed.link_name) = ("symlink", link(target)),
            Kind::Hardlink { target } => (listed.kind, listed.link_name) = ("hardlink", link(target)),
            Kind::CharDevice { major, minor } => {
                (listed.kind, listed.dev_major, listed.dev_minor) = ("char", Some(*major), Some(*minor));
            }
            Kind::BlockDevice { major, minor } => {
                (listed.kind, listed.dev_major, listed.dev_minor) = ("block", Some(*major), Some(*minor));
            }
            Kind::Fifo => listed.kind = "fifo",
            Kind::Whiteout => {
                let (dir, name) =
                    path.rsplit_once('/').map_or(("", path.as_str()), |(dir, name)| (dir, name));
                let slash = if dir.is_empty() { "" } else { "/" };
                return Some(Self {
                    name: format!("{dir}{slash}.wh.{name}"),
                    kind: "reg",
                    ..Self::default()
                });
            }
        }
        Some(listed)
    }

    /// Says where bytes of it are. Of the last chunk the length is not said, as the format wants it.
    fn place(&mut self, size: u64, chunk: Place, last: bool) {
        self.size = size;
        self.offset = chunk.offset;
        self.chunk_offset = chunk.chunk_offset;
        self.chunk_size = if last { 0 } else { chunk.size };
        self.chunk_digest = Some(chunk.digest);
    }
}

/// The tar that a blob holds, to be read once.
pub(crate) fn tar_of<'a>(written: &'a Written, source: impl Read + 'a) -> impl Read + 'a {
    let (before, body, after) = &written.tar;
    before.as_slice().chain(source.take(*body)).chain(after.as_slice())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use flate2::read::{GzDecoder, MultiGzDecoder};
    use image::layer::index_tar;
    use serde_json::Value;

    use super::*;

    /// A layer with one of everything, and one file of three chunks.
    fn layer() -> (File, LayerIndex) {
        let big: Vec<u8> = (0..2 * CHUNK + 1000).map(|n| (n % 251) as u8 ^ (n >> 13) as u8).collect();
        let directory = |opaque| Kind::Directory { opaque, implied: false };
        let file = |bytes: &[u8]| Kind::File {
            size: bytes.len() as u64,
            offset: 0,
            content: ContentDigest::of(bytes),
        };
        let entries: Vec<(&str, Kind, &[u8])> = vec![
            ("big", file(&big), &big),
            ("d", directory(true), b""),
            ("d/a", file(b"hello"), b"hello"),
            ("d/empty", file(b""), b""),
            ("d/gone", Kind::Whiteout, b""),
            ("d/h", Kind::Hardlink { target: "d/a".into() }, b""),
            ("d/l", Kind::Symlink { target: "a".into() }, b""),
            ("n", Kind::CharDevice { major: 1, minor: 3 }, b""),
            ("z", file(b"last"), b"last"),
            ("zz", directory(false), b""),
        ];
        let mut writer = LayerWriter::new(tempfile::tempfile().unwrap());
        for (path, kind, bytes) in entries {
            let entry = Entry {
                path: path.into(),
                mode: if kind.is_dir() { 0o755 } else { 0o640 },
                kind,
                uid: 7,
                gid: 8,
                mtime: 1_600_000_000,
                xattrs: BTreeMap::from([("user.x".into(), "y".into())]),
            };
            let has_data = matches!(entry.kind, Kind::File { size, .. } if size > 0);
            let mut rest = bytes;
            let data = if has_data { Data::New(&mut rest) } else { Data::None };
            let entry = match entry.kind {
                Kind::Whiteout | Kind::Hardlink { .. } => Entry { xattrs: BTreeMap::new(), ..entry },
                _ => entry,
            };
            writer.append(entry, data).unwrap();
        }
        writer.finish().unwrap()
    }

    /// A reader of the format that knows nothing but its description: the table of contents by the footer, and each
    /// file from its members alone.
    struct Reader<'a> {
        blob: &'a [u8],
        toc: Vec<u8>,
    }

    impl<'a> Reader<'a> {
        fn new(blob: &'a [u8]) -> Self {
            let footer = &blob[blob.len() - 51..];
            assert_eq!(&footer[..4], &[0x1f, 0x8b, 8, 4]);
            assert_eq!(&footer[10..16], &[26, 0, b'S', b'G', 22, 0]);
            assert_eq!(&footer[32..38], b"STARGZ");
            let at = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
            let mut none = Vec::new();
            GzDecoder::new(footer).read_to_end(&mut none).unwrap();
            assert!(none.is_empty());
            let mut archive = tar::Archive::new(GzDecoder::new(&blob[at..]));
            let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
            assert_eq!(entry.path_bytes().as_ref(), TOC.as_bytes());
            let mut toc = Vec::new();
            entry.read_to_end(&mut toc).unwrap();
            Self { blob, toc }
        }

        /// The files by name, each verified chunk by chunk.
        fn files(&self) -> HashMap<String, Vec<u8>> {
            let toc: Value = serde_json::from_slice(&self.toc).unwrap();
            assert_eq!(toc["version"], 1);
            let entries = toc["entries"].as_array().unwrap();
            let mut files: HashMap<String, Vec<u8>> = HashMap::new();
            let mut sizes: HashMap<String, u64> = HashMap::new();
            let mut last_offset = 0;
            for entry in entries.iter().filter(|entry| entry["offset"].is_u64()) {
                let name = entry["name"].as_str().unwrap();
                if entry["type"] == "reg" {
                    sizes.insert(name.to_owned(), entry["size"].as_u64().unwrap());
                }
                let offset = entry["offset"].as_u64().unwrap();
                assert!(offset > last_offset, "in order");
                last_offset = offset;
                let begin = entry["chunkOffset"].as_u64().unwrap_or(0);
                let size = entry["chunkSize"].as_u64().unwrap_or(sizes[name] - begin);
                let mut bytes = vec![0; size as usize];
                GzDecoder::new(&self.blob[offset as usize..]).read_exact(&mut bytes).unwrap();
                assert_eq!(entry["chunkDigest"], Digest::of(&bytes).to_string());
                let file = files.entry(name.to_owned()).or_default();
                assert_eq!(file.len() as u64, begin);
                file.extend(bytes);
            }
            for entry in entries.iter().filter(|entry| entry["digest"].is_string()) {
                let name = entry["name"].as_str().unwrap();
                assert_eq!(entry["digest"], Digest::of(&files[name]).to_string());
            }
            files
        }
    }

    #[test]
    fn files_are_read_by_the_table_of_contents_alone() {
        let (tar, index) = layer();
        let mut blob = Vec::new();
        let written = write(&tar, &index, 6, &mut blob).unwrap();
        assert_eq!((written.digest, written.size), (Digest::of(&blob), blob.len() as u64));
        let reader = Reader::new(&blob);
        assert_eq!(written.toc, Digest::of(&reader.toc));
        let files = reader.files();
        assert_eq!(files["d/a"], b"hello");
        assert_eq!(files["z"], b"last");
        assert_eq!(files[".no.prefetch.landmark"], [0xf]);
        assert_eq!(files["big"].len() as u64, 2 * CHUNK + 1000);
        assert_eq!(files.len(), 4);

        let toc: Value = serde_json::from_slice(&reader.toc).unwrap();
        let lines: Vec<(&str, &str)> = toc["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["type"].as_str().unwrap(), entry["name"].as_str().unwrap()))
            .collect();
        assert_eq!(
            lines,
            [
                ("reg", ".no.prefetch.landmark"),
                ("reg", "big"),
                ("chunk", "big"),
                ("chunk", "big"),
                ("dir", "d/"),
                ("reg", "d/.wh..wh..opq"),
                ("reg", "d/a"),
                ("reg", "d/empty"),
                ("reg", "d/.wh.gone"),
                ("hardlink", "d/h"),
                ("symlink", "d/l"),
                ("char", "n"),
                ("reg", "z"),
                ("dir", "zz/"),
            ]
        );
        let link = &toc["entries"][10];
        assert_eq!(
            (link["linkName"].as_str(), link["modtime"].as_str()),
            (Some("a"), Some("2020-09-13T12:26:40Z"))
        );
        assert_eq!(link["xattrs"]["user.x"], "eQ==");
        assert_eq!(toc["entries"][11]["devMinor"], 3);
    }

    #[test]
    fn readers_that_do_not_know_it_see_a_tar() {
        let (tar, index) = layer();
        let mut blob = Vec::new();
        let written = write(&tar, &index, 1, &mut blob).unwrap();
        let mut plain = Vec::new();
        MultiGzDecoder::new(&blob[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain.len() as u64, written.tar_size());
        let mut again = Vec::new();
        let mut source = &tar;
        io::Seek::rewind(&mut source).unwrap();
        tar_of(&written, source).read_to_end(&mut again).unwrap();
        assert!(plain == again);
        let new = index_tar(&plain[..], io::sink()).unwrap();
        let names = |index: &LayerIndex| -> Vec<String> {
            index.entries().iter().map(|entry| entry.path.to_string()).collect()
        };
        let mut expected = names(&index);
        expected.extend([LANDMARK.to_owned(), TOC.to_owned()]);
        expected.sort_by(|a, b| image::layer::index::path_cmp(a.as_bytes(), b.as_bytes()));
        let mut found = names(&new);
        found.retain(|name| !name.is_empty());
        expected.retain(|name| !name.is_empty());
        assert_eq!(found, expected);
    }

    #[test]
    fn the_bytes_do_not_depend_on_threads() {
        let (tar, index) = layer();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| write(&tar, &index, 1, &mut io::sink()).unwrap().digest)
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn a_layer_of_nothing_has_the_landmark() {
        let writer = LayerWriter::new(tempfile::tempfile().unwrap());
        let (tar, index) = writer.finish().unwrap();
        let mut blob = Vec::new();
        write(&tar, &index, 1, &mut blob).unwrap();
        assert_eq!(Reader::new(&blob).files().len(), 1);
    }
}
