use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use image::tree::select;
use tempfile::TempDir;

use super::*;

fn context() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for path in ["src/deep", "docs/api", "node_modules/x"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    for path in [
        "Dockerfile",
        "a.txt",
        "b.txt",
        "src/main.rs",
        "src/deep/lib.rs",
        "docs/api/x.md",
        "node_modules/x/y.js",
    ] {
        fs::write(at(path), path).unwrap();
    }
    fs::set_permissions(at("a.txt"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("/src/main.rs", at("main")).unwrap();
    symlink("../../../../../etc/passwd", at("escape")).unwrap();
    symlink("src", at("code")).unwrap();
    fs::hard_link(at("b.txt"), at("src/hard")).unwrap();
    dir
}

fn pick(path: &str) -> Pick<'_> {
    Pick { path, wildcard: true, follow_symlinks: true, exclude: &[], parents: false }
}

fn walk(dir: &TempDir, ignore: &[&str], picks: &[Pick<'_>]) -> Walked {
    let directory = Directory::open(dir.path(), ignore).unwrap();
    directory.walk(picks, &StatCache::default(), &Cancel::new()).unwrap()
}

fn names(walked: &Walked) -> Vec<String> {
    let tree = &walked.tree;
    tree.walk(tree.root()).map(|node| node.entry.path.to_string()).collect()
}

#[test]
fn only_what_is_named_is_seen() {
    let dir = context();
    let exclude = ["deep".to_owned()];
    for (picks, read, want) in [
        (vec![pick("/a.txt")], 1, &["a.txt"][..]),
        (vec![pick("/*.txt")], 2, &["a.txt", "b.txt"]),
        (vec![pick("/main")], 1, &["main", "src", "src/main.rs"]),
        (vec![pick("/code/deep")], 1, &["code", "src", "src/deep", "src/deep/lib.rs"]),
        (vec![pick("/escape")], 0, &["escape"]),
        (vec![pick("/../src/deep")], 1, &["src", "src/deep", "src/deep/lib.rs"]),
        (vec![pick("/nothing"), pick("/a.txt/x")], 0, &[]),
        (vec![Pick { exclude: &exclude, ..pick("/src") }], 2, &["src", "src/hard", "src/main.rs"]),
        (vec![Pick { parents: true, ..pick("/**/*.md") }], 1, &["docs", "docs/api", "docs/api/x.md"]),
        (
            vec![Pick { parents: true, wildcard: false, ..pick("/docs/api") }],
            1,
            &["docs", "docs/api", "docs/api/x.md"],
        ),
        (vec![pick("/docs"), pick("/docs/api/x.md")], 1, &["docs", "docs/api", "docs/api/x.md"]),
    ] {
        let walked = walk(&dir, &[], &picks);
        // A file on the way may be seen, but is not read.
        let read_or_link = names(&walked);
        assert_eq!(read_or_link, want, "{picks:?}");
        assert_eq!(walked.read_files, read, "{picks:?}");
    }
}

#[test]
fn everything_belongs_to_root_and_keeps_what_else_it_is() {
    let dir = context();
    let walked = walk(&dir, &[], &[pick("/")]);
    let get = |path: &str| walked.tree.get(path.as_bytes()).unwrap();
    assert_eq!((get("a.txt").entry.mode, get("a.txt").entry.uid), (0o640, 0));
    assert_eq!(get("main").entry.kind, Kind::Symlink { target: "/src/main.rs".into() });
    assert_eq!(get("src/hard").entry.kind, Kind::Hardlink { target: "b.txt".into() });
    assert_eq!(get("src/hard").inode().unwrap().content, image::ContentDigest::of(b"b.txt"));
    assert_eq!(get("src/main.rs").inode().unwrap().content, image::ContentDigest::of(b"src/main.rs"));
}

#[test]
fn ignored_files_are_not_there_at_all() {
    let dir = context();
    for (ignore, picks, want) in [
        (
            &["node_modules", "src", "*.txt", "main", "code", "escape"][..],
            vec![pick("/")],
            &["Dockerfile", "docs", "docs/api", "docs/api/x.md"][..],
        ),
        (&["**", "!src/deep/*.rs"], vec![pick("/")], &["src", "src/deep", "src/deep/lib.rs"]),
        (&["src", "!src/new"], vec![pick("/src")], &[]),
        (&["src/main.rs"], vec![pick("/main")], &["main", "src"]),
        (&["main"], vec![pick("/main")], &[]),
        (&["*.txt"], vec![pick("/*.txt"), pick("/a.txt")], &[]),
        (&["src/deep"], vec![pick("/code/deep/lib.rs")], &["code", "src"]),
        (&["docs"], vec![Pick { parents: true, ..pick("/**/*.md") }], &[]),
    ] {
        let walked = walk(&dir, ignore, &picks);
        assert_eq!(names(&walked), want, "{ignore:?} {picks:?}");
    }
    let hidden = walk(&dir, &["src/main.rs"], &[pick("/main")]);
    assert_eq!(hidden.read_files, 0);
}

#[test]
fn pipes_do_not_block_and_sockets_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let walked = walk(&dir, &[], &[pick("/")]);
    assert_eq!(names(&walked), ["fifo"]);
    assert_eq!(walked.skipped, ["socket"]);
    let directory = Directory::open::<&str>(dir.path(), &[]).unwrap();
    // Asked for as a file nevertheless, it does not block either.
    drop(directory.open_file(b"fifo"));
}

#[test]
fn known_files_are_not_read_again_and_changed_ones_are() {
    let dir = context();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let directory = Directory::open::<&str>(dir.path(), &[]).unwrap();
    let walk = |known: &StatCache| directory.walk(&[pick("/")], known, &Cancel::new()).unwrap();
    let digest = |walked: &Walked| select(&walked.tree, &[pick("/")]).unwrap().digest;

    let first = walk(&StatCache::default());
    assert_eq!(first.read_files, 7);
    let cache = first.cache.as_ref().unwrap().clone();
    assert_eq!(cache.rows().len(), 7);
    // As if they had been read long after they were written.
    let later = |rows: &[store::stat::StatRow]| {
        let rows =
            rows.iter().map(|row| store::stat::StatRow { hashed_ns: row.hashed_ns + 60_000_000_000, ..*row });
        StatCache::new(rows.collect())
    };
    let known = later(cache.rows());
    let second = walk(&known);
    assert_eq!((second.read_files, second.cache.is_none()), (0, true));
    assert_eq!(digest(&second), digest(&first));

    // Same length, same mtime: only the change time tells.
    let path = dir.path().join("a.txt");
    fs::write(&path, "A.TXT").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let third = walk(&known);
    assert_eq!(third.read_files, 1);
    assert_ne!(digest(&third), digest(&first));

    // A removed file is forgotten. The new one is made before: it must not be given the removed one's inode.
    fs::write(dir.path().join("src/new"), "new").unwrap();
    fs::remove_file(&path).unwrap();
    let fourth = walk(&known);
    assert_eq!(fourth.cache.unwrap().rows().len(), 7);
    // A walk of a part keeps what it knows of the rest.
    let part = directory.walk(&[pick("/src")], &known, &Cancel::new()).unwrap();
    assert_eq!(part.cache.unwrap().rows().len(), 8);
}

#[test]
fn attributes_are_kept_and_never_trusted_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "x").unwrap();
    if rustix::fs::setxattr(&path, "user.note", b"1", rustix::fs::XattrFlags::empty()).is_err() {
        return;
    }
    let walked = walk(&dir, &[], &[pick("/")]);
    let node = walked.tree.get(b"f").unwrap();
    assert_eq!(node.entry.xattrs.get(&BString::from("user.note")), Some(&"1".into()));
    assert_eq!(walked.cache.unwrap().rows(), []);
}

#[test]
fn a_large_flat_directory_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..2500 {
        fs::write(dir.path().join(format!("f{n:04}")), n.to_string()).unwrap();
    }
    let walked = walk(&dir, &["f1*"], &[pick("/")]);
    assert_eq!(names(&walked).len(), 1500);
    assert!(names(&walked).is_sorted());
}

#[test]
fn a_missing_path_says_why() {
    let dir = context();
    let directory = Directory::open(dir.path(), &["node_modules", "*.txt"]).unwrap();
    for (source, want) in [
        ("/a.txt", "excluded by the ignore pattern \"*.txt\""),
        ("/node_modules/x/y.js", "excluded by the ignore pattern \"node_modules\""),
        ("/dockerfile", "not found; did you mean /Dockerfile?"),
        ("/src/mian.rs", "not found; did you mean /src/main.rs?"),
        ("/c.txt", "not found"),
        ("/no/such/dir", "not found"),
        ("/", "not found"),
    ] {
        assert_eq!(directory.missing(source).to_string(), want, "{source}");
    }
}

#[test]
fn a_link_that_takes_a_files_place_is_not_followed() {
    let dir = context();
    let directory = Directory::open::<&str>(dir.path(), &[]).unwrap();
    fs::remove_file(dir.path().join("a.txt")).unwrap();
    symlink("/etc/passwd", dir.path().join("a.txt")).unwrap();
    assert_eq!(directory.open_file(b"a.txt").unwrap_err(), Errno::LOOP);
    fs::remove_dir_all(dir.path().join("docs")).unwrap();
    symlink("/etc", dir.path().join("docs")).unwrap();
    assert!(directory.open_file(b"docs/passwd").is_err());
}

#[test]
fn deep_directories_are_walked() {
    let dir = tempfile::tempdir().unwrap();
    let deep = vec!["d"; 300].join("/");
    fs::create_dir_all(dir.path().join(&deep)).unwrap();
    fs::write(dir.path().join(&deep).join("f"), "x").unwrap();
    assert_eq!(names(&walk(&dir, &[], &[pick("/")])).len(), 301);
}

#[test]
fn many_directories_and_a_big_one_are_seen_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut want: Vec<String> = Vec::new();
    let mut put = |path: String, file: bool| {
        match file {
            true => fs::write(dir.path().join(&path), "").unwrap(),
            false => fs::create_dir(dir.path().join(&path)).unwrap(),
        }
        want.push(path);
    };
    for name in ["a", "a-b", "a.c", "b", "big"] {
        put(name.to_owned(), false);
    }
    for number in 0..60 {
        put(format!("a/{number}"), false);
        put(format!("a/{number}/x"), false);
        put(format!("a/{number}.txt"), true);
        (0..30).for_each(|file| put(format!("a/{number}/x/{file}"), true));
    }
    (0..2500).for_each(|file| put(format!("big/{file}"), true));
    want.sort_by(|a, b| path::compare(a.as_bytes(), b.as_bytes()));
    assert_eq!(names(&walk(&dir, &[], &[pick("/")])), want);
    // A part of it, with what leads there.
    want.retain(|path| path == "a" || path.starts_with("a/7/") || path == "a/7");
    assert_eq!(names(&walk(&dir, &[], &[pick("/a/7"), pick("/a/7/x/3")])), want);
}
