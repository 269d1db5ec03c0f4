//! Other programs read the tars we write, and we read theirs. A program that is not installed is not asked.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use image::ContentDigest;
use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter, TarKind, TarReader, index_tar};

/// What `program` prints when it is given `input`; `None` if it is not there.
fn run(program: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

fn entry(path: &str, kind: Kind) -> Entry {
    let xattrs = BTreeMap::new();
    Entry { path: path.into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000, xattrs }
}

fn file(size: usize) -> Kind {
    Kind::File { size: size as u64, offset: 0, content: ContentDigest([0; 32]) }
}

/// A layer with one of everything that a tar can be strained with.
fn strained() -> (Vec<u8>, LayerIndex) {
    let long = ["p".repeat(99), "q".repeat(120), "r".repeat(100)].join("/");
    let mut entries = vec![
        (entry("a b\nc", file(3)), "abc"),
        (Entry { mode: 0o6711, uid: 4_000_000_000, gid: 3_000_000, ..entry("big-ids", file(0)) }, ""),
        (entry("device", Kind::CharDevice { major: 10, minor: 229 }), ""),
        (Entry { mode: 0o1777, ..entry("dir", Kind::Directory { opaque: false, implied: false }) }, ""),
        (entry("dir/link", Kind::Symlink { target: "../x".repeat(50).into() }), ""),
        (entry("dir/name", Kind::Hardlink { target: "a b\nc".into() }), ""),
        (entry("fifo", Kind::Fifo), ""),
        (Entry { mtime: 10_000_000_000, ..entry("late", file(1)) }, "x"),
        (Entry { mtime: -5, ..entry("early", file(1)) }, "x"),
        (entry("ü", file(2)), "ue"),
        (entry(&"n".repeat(250), file(1)), "n"),
        (entry(&long, file(4)), "long"),
        (entry(&format!("{}/x", "s".repeat(150)), file(1)), "s"),
    ];
    let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let xattrs = BTreeMap::from([("security.capability".into(), capability[..].into())]);
    entries.push((Entry { xattrs, ..entry("tool", file(4)) }, "tool"));
    entries.sort_by(|(a, _), (b, _)| image::layer::index::path_cmp(&a.path, &b.path));
    let mut writer = LayerWriter::new(Vec::new());
    for (entry, data) in entries {
        let mut data = data.as_bytes();
        let data = if matches!(entry.kind, Kind::File { .. }) { Data::New(&mut data) } else { Data::None };
        writer.append(entry, data).unwrap();
    }
    writer.finish().unwrap()
}

const PYTHON_LIST: &str = r#"
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    for m in tar:
        data = tar.extractfile(m).read() if m.isreg() else b""
        fields = [m.name, m.type.decode(), m.mode, m.uid, m.gid, int(m.mtime), m.linkname, m.devmajor, m.devminor, len(data)]
        print(ascii(fields))
"#;

/// A Python string in the form that `ascii` prints; only what names here need.
fn quoted(name: &str) -> String {
    let mut out = String::from("'");
    for c in name.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            c if c.is_ascii() => out.push(c),
            c => out.push_str(&format!("\\x{:02x}", c as u32)),
        }
    }
    out + "'"
}

#[test]
fn python_reads_what_we_write() {
    let (tar, index) = strained();
    let Some(listing) = run("python3", &["-c", PYTHON_LIST], &tar) else { return };
    let mut expected = String::new();
    for entry in index.entries() {
        let (kind, link, device, size) = match &entry.kind {
            Kind::Directory { implied: true, .. } => continue,
            Kind::Directory { .. } => (5, "".into(), (0, 0), 0),
            Kind::File { size, .. } => (0, "".into(), (0, 0), *size),
            // Python gives the data of the file a link names only where it can seek.
            Kind::Hardlink { target } => (1, target.to_string(), (0, 0), 0),
            Kind::Symlink { target } => (2, target.to_string(), (0, 0), 0),
            Kind::CharDevice { major, minor } => (3, "".into(), (*major, *minor), 0),
            Kind::Fifo => (6, "".into(), (0, 0), 0),
            other => panic!("{other:?}"),
        };
        let Entry { mode, uid, gid, mtime, .. } = entry;
        expected += &format!(
            "[{}, '{kind}', {mode}, {uid}, {gid}, {mtime}, {}, {}, {}, {size}]\n",
            quoted(&entry.path.to_string()),
            quoted(&link),
            device.0,
            device.1
        );
    }
    assert_eq!(String::from_utf8(listing).unwrap(), expected);
}

#[test]
fn gnu_tar_reads_what_we_write() {
    let (tar, index) = strained();
    let args = ["--list", "--quoting-style=literal", "--show-stored-names", "--null", "--file=-"];
    let Some(listing) = run("tar", &args, &tar) else { return };
    let names = index
        .entries()
        .iter()
        .filter(|entry| !matches!(entry.kind, Kind::Directory { implied: true, .. }))
        .map(|entry| format!("{}{}\n", entry.path, if entry.kind.is_dir() { "/" } else { "" }))
        .collect::<String>();
    assert_eq!(String::from_utf8(listing).unwrap(), names);
}

#[test]
fn gnu_tars_formats_read_alike() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(90)).join("e".repeat(60));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), vec![7; 1000]).unwrap();
    std::fs::write(dir.path().join("short"), "x").unwrap();
    std::fs::hard_link(dir.path().join("short"), dir.path().join("tall")).unwrap();
    std::os::unix::fs::symlink("short", dir.path().join("link")).unwrap();
    let root = dir.path().to_str().unwrap();
    let mut seen = Vec::new();
    for format in ["ustar", "gnu", "oldgnu", "posix"] {
        let args =
            ["--create", "--file=-", "--directory", root, "--format", format, "--mtime=@1234567890", "."];
        let Some(tar) = run("tar", &args, b"") else { return };
        let mut copy = Vec::new();
        let index = index_tar(&tar[..], &mut copy).unwrap();
        assert_eq!(copy, tar);
        assert!(index.get(b"short").is_some_and(|entry| entry.mtime == 1_234_567_890));
        seen.push((format, index.content()));
    }
    assert!(seen.iter().all(|(_, content)| *content == seen[0].1), "{seen:?}");
}

#[test]
fn sparse_files_of_every_format_are_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = vec![0_u8; 3_000_000];
    // More ranges than fit into an old header.
    for at in (100_000..2_900_000).step_by(150_000) {
        wanted[at..at + 5000].fill(b'x');
    }
    let path = dir.path().join("holes");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(wanted.len() as u64).unwrap();
    for at in (100_000..2_900_000).step_by(150_000) {
        std::os::unix::fs::FileExt::write_all_at(&file, &wanted[at..at + 5000], at as u64).unwrap();
    }
    drop(file);
    std::fs::write(dir.path().join("z"), "after").unwrap();
    let root = dir.path().to_str().unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let args = [
            &["--create", "--file=-", "--sparse", "--hole-detection=raw", "--directory", root],
            format,
            &["holes", "z"],
        ]
        .concat();
        let Some(tar) = run("tar", &args, b"") else { return };
        assert!(tar.len() < 1_000_000, "it is sparse");
        let mut reader = TarReader::new(&tar[..]);
        let first = reader.next_entry().unwrap().unwrap();
        assert_eq!(first.path, "holes");
        assert_eq!(first.kind, TarKind::File { size: 3_000_000, offset: None });
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert!(bytes == wanted, "{format:?}");
        let second = reader.next_entry().unwrap().unwrap();
        assert_eq!(second.path, "z");
        assert!(reader.next_entry().unwrap().is_none());
        // In a layer their bytes must be in one piece.
        let error = index_tar(&tar[..], std::io::sink()).unwrap_err().to_string();
        assert!(error.contains("sparse"), "{error}");
    }
}
