use std::fs;
use std::os::unix::fs::symlink;

use image::layer::Entry;
use image::tree::Pick;
use store::stat::StatCache;
use tempfile::TempDir;

use super::*;

/// Stages of a build, their tars kept by diff ID.
#[derive(Default)]
struct Stages {
    tars: HashMap<DiffId, Vec<u8>>,
    earlier: Option<Arc<LayerIndex>>,
}

impl Stages {
    fn run(
        &mut self,
        actions: Vec<FileAction>,
        inputs: &[Input],
        base: Option<usize>,
    ) -> Result<Arc<LayerIndex>, FileError> {
        let temporary = tempfile::tempdir().unwrap();
        let options = Options {
            created: 500,
            temporary: temporary.path().to_owned(),
            earlier: self
                .earlier
                .as_ref()
                .map(|index| Earlier::new(index.entries(), self.tar(&index.diff_id()))),
        };
        let open = |layer: &DiffId| Ok(self.tar(layer));
        let (tar, index) =
            run(&op::File { base, actions }, inputs, &open, &options, &Cancel::new(), Vec::new())?;
        assert_eq!(image::layer::index_tar(&tar[..], io::sink()).unwrap(), index);
        self.tars.insert(index.diff_id(), tar);
        Ok(Arc::new(index))
    }

    fn tar(&self, layer: &DiffId) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.tars[layer]).unwrap();
        file
    }

    fn text(&self, index: &LayerIndex, path: &str) -> String {
        let Kind::File { size, offset, .. } = index.get(path.as_bytes()).unwrap().kind else {
            panic!("no file")
        };
        String::from_utf8(self.tars[&index.diff_id()][offset as usize..][..size as usize].to_vec()).unwrap()
    }
}

fn layers(layers: &[&Arc<LayerIndex>]) -> Input {
    Input { tree: Tree::of_layers(layers.iter().copied().cloned()), directory: None }
}

fn context(dir: &TempDir, ignore: &[&str]) -> Input {
    let directory = Directory::open(dir.path(), ignore).unwrap();
    let pick = Pick { path: "/", wildcard: false, follow_symlinks: true, exclude: &[], parents: false };
    let tree = directory.walk(&[pick], &StatCache::default(), &Cancel::new()).unwrap().tree;
    Input { tree, directory: Some(Arc::new(directory)) }
}

fn copy(input: usize, source: &str, destination: &str) -> op::Copy {
    op::Copy {
        destination: destination.to_owned(),
        allow_empty: false,
        required: true,
        follow_destination: true,
        ..op::Copy::all(input, source)
    }
}

fn mkfile(path: &str, data: &[u8]) -> FileAction {
    FileAction::Mkfile {
        path: path.to_owned(),
        data: data.to_vec(),
        mode: 0o644,
        parents_mode: 0o755,
        owner: None,
        name: None,
    }
}

fn paths(index: &LayerIndex) -> Vec<String> {
    let named = |entry: &&Entry| !matches!(entry.kind, Kind::Directory { implied: true, .. });
    index.entries().iter().filter(named).map(|entry| entry.path.to_string()).collect()
}

#[test]
fn what_an_earlier_layer_has_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..20 {
        fs::write(dir.path().join(format!("f{n}")), format!("content {n}")).unwrap();
    }
    let mut stages = Stages::default();
    let all = || vec![FileAction::Copy(copy(0, "/", "/to"))];
    stages.earlier = Some(stages.run(all(), &[context(&dir, &[])], None).unwrap());
    fs::write(dir.path().join("f7"), "changed").unwrap();
    fs::rename(dir.path().join("f3"), dir.path().join("g3")).unwrap();
    let input = context(&dir, &[]);
    let plain = Stages::default().run(all(), std::slice::from_ref(&input), None).unwrap();
    // Nobody could read these now.
    for n in (0..20).filter(|n| ![3, 7].contains(n)) {
        fs::remove_file(dir.path().join(format!("f{n}"))).unwrap();
    }
    fs::remove_file(dir.path().join("g3")).unwrap();
    let spliced = stages.run(all(), std::slice::from_ref(&input), None).unwrap();
    assert_eq!(spliced, plain);
    assert_eq!(stages.text(&spliced, "to/g3"), "content 3");
    fs::remove_file(dir.path().join("f7")).unwrap();
    assert!(matches!(stages.run(all(), &[input], None), Err(FileError::Context { .. })));
}

#[test]
fn files_travel_from_the_context_through_stages() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("src/a"), "from the context").unwrap();
    fs::write(dir.path().join("src/empty"), "").unwrap();
    let mut stages = Stages::default();
    let first = vec![FileAction::Copy(copy(0, "/src", "/app/")), mkfile("/app/note", b"inline")];
    let first = stages.run(first, &[context(&dir, &[])], None).unwrap();
    assert_eq!(paths(&first), ["app", "app/a", "app/empty", "app/note"]);
    assert_eq!(first.get(b"app/note").unwrap().mtime, 500);

    let second = vec![FileAction::Copy(op::Copy {
        owner: Some(op::Owner { user: "7".into(), group: None }),
        ..copy(1, "/app/a", "/bin/")
    })];
    let base = stages.run(vec![mkfile("/etc/os-release", b"x")], &[], None).unwrap();
    let second = stages.run(second, &[layers(&[&base]), layers(&[&first])], Some(0)).unwrap();
    assert_eq!(paths(&second), ["bin", "bin/a"]);
    assert_eq!(stages.text(&second, "bin/a"), "from the context");
    assert_eq!((second.get(b"bin/a").unwrap().uid, second.get(b"bin").unwrap().gid), (7, 7));

    // The same again changes nothing.
    let inputs = [layers(&[&base, &second]), layers(&[&first])];
    let again = stages
        .run(
            vec![FileAction::Copy(op::Copy {
                owner: Some(op::Owner { user: "7".into(), group: None }),
                ..copy(1, "/app/a", "/bin/")
            })],
            &inputs,
            Some(0),
        )
        .unwrap();
    assert!(again.is_empty());
}

#[test]
fn a_file_that_changed_after_it_was_hashed_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for n in 0..100 {
        fs::write(dir.path().join(format!("b{n}")), format!("{n}")).unwrap();
    }
    for (before, after) in [("one", "two"), ("short", "longer"), ("longer", "short")] {
        fs::write(&path, before).unwrap();
        let input = context(&dir, &[]);
        fs::write(&path, after).unwrap();
        let copied = |source: &str| {
            let actions = vec![FileAction::Copy(copy(0, source, source))];
            Stages::default().run(actions, std::slice::from_ref(&input), None)
        };
        let error = copied("/a").unwrap_err();
        assert!(error.to_string().contains("\"a\""), "{error}");
        // Among so many that they are read ahead.
        let error = copied("/").unwrap_err();
        assert!(error.to_string().contains("\"a\""), "{error}");
    }
    fs::write(&path, "x").unwrap();
    let input = context(&dir, &[]);
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    let error =
        Stages::default().run(vec![FileAction::Copy(copy(0, "/a", "/a"))], &[input], None).unwrap_err();
    assert!(error.to_string().starts_with("could not read /a of the context"), "{error}");
}

#[test]
fn archives_are_known_by_their_content() {
    let mut stages = Stages::default();
    let inner = stages.run(vec![mkfile("/d/x", b"inside"), mkfile("/d/y", b"")], &[], None).unwrap();
    let tar = stages.tars[&inner.diff_id()].clone();
    let packed = zstd_bytes(&tar);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plain"), &tar).unwrap();
    fs::write(dir.path().join("packed"), &packed).unwrap();
    fs::write(dir.path().join("text.tar"), "no archive").unwrap();
    fs::write(dir.path().join("torn"), &tar[..700]).unwrap();
    let input = || [context(&dir, &[])];
    let add = |source: &str| {
        vec![FileAction::Copy(op::Copy { unpack: Unpack::IfArchive, ..copy(0, source, "/to/") })]
    };
    for source in ["/plain", "/packed"] {
        let index = stages.run(add(source), &input(), None).unwrap();
        assert_eq!(paths(&index), ["to", "to/d", "to/d/x", "to/d/y"], "{source}");
        assert_eq!(stages.text(&index, "to/d/x"), "inside");
    }
    let index = stages.run(add("/text.tar"), &input(), None).unwrap();
    assert_eq!(paths(&index), ["to", "to/text.tar"]);
    let index = stages.run(vec![FileAction::Copy(copy(0, "/plain", "/to/"))], &input(), None).unwrap();
    assert_eq!(paths(&index), ["to", "to/plain"]);
    let error = stages.run(add("/torn"), &input(), None).unwrap_err();
    assert!(error.to_string().starts_with("could not unpack /torn: "), "{error}");

    // Changed between hashing and unpacking.
    let inputs = input();
    let mut other = tar.clone();
    let at = tar.windows(6).position(|window| window == b"inside").unwrap();
    other[at] = b'I';
    fs::write(dir.path().join("plain"), &other).unwrap();
    let error = stages.run(add("/plain"), &inputs, None).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
}

#[test]
fn attributes_that_no_file_can_have_are_left_out_of_archives() {
    let attributes = ["com.apple.provenance", "security.capability", "trusted.a", "user", "user.b"];
    let mut archive = LayerWriter::new(Vec::new());
    for (path, kind) in [
        ("dir", Kind::Directory { opaque: false, implied: false }),
        ("link", Kind::Symlink { target: "dir".into() }),
        ("pipe", Kind::Fifo),
    ] {
        let xattrs = attributes.map(|name| (name.into(), "value".into())).into();
        let entry = Entry { path: path.into(), kind, mode: 0o700, uid: 0, gid: 0, mtime: 0, xattrs };
        archive.append(entry, Data::None).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("archive"), archive.finish().unwrap().0).unwrap();
    let add = op::Copy { unpack: Unpack::IfArchive, ..copy(0, "/archive", "/") };
    let index = Stages::default().run(vec![FileAction::Copy(add)], &[context(&dir, &[])], None).unwrap();
    let names = |path: &str| -> Vec<String> {
        index.get(path.as_bytes()).unwrap().xattrs.keys().map(ToString::to_string).collect()
    };
    assert_eq!(names("dir"), ["security.capability", "trusted.a", "user.b"]);
    assert_eq!(names("link"), ["security.capability", "trusted.a"]);
    assert_eq!(names("pipe"), ["security.capability", "trusted.a"]);
}

fn zstd_bytes(bytes: &[u8]) -> Vec<u8> {
    // A frame of raw blocks: magic, no flags with a window, then blocks of at most 128 KiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let mut blocks = bytes.chunks(64 << 10).peekable();
    while let Some(block) = blocks.next() {
        let header = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

#[test]
fn names_of_owners_come_from_the_base() {
    let mut stages = Stages::default();
    let accounts =
        [mkfile("/usr/passwd", b"root:x:0:0::/:\nweb:x:33:34::/:\n"), mkfile("/etc/group", b"adm:x:4:\n")];
    let base = stages.run(accounts.to_vec(), &[], None).unwrap();
    let link = Tree::of_entries(vec![(
        Entry {
            path: "etc/passwd".into(),
            kind: Kind::Symlink { target: "../../usr/passwd".into() },
            mode: 0o777,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: Default::default(),
        },
        Location::None,
    )]);
    let tree = layers(&[&base]).tree.with(&link);
    let input = Input { tree, directory: None };
    let owner = |user: &str, group: Option<&str>| {
        Some(op::Owner { user: user.into(), group: group.map(str::to_owned) })
    };
    let mut run = |owner| {
        let mkdir = FileAction::Mkdir { path: "/new".to_owned(), mode: 0o755, owner };
        let index = stages.run(vec![mkdir], std::slice::from_ref(&input), Some(0))?;
        let entry = index.get(b"new").unwrap().clone();
        Ok::<_, FileError>((entry.uid, entry.gid))
    };
    assert_eq!(run(owner("web", None)).unwrap(), (33, 34));
    assert_eq!(run(owner("web", Some("adm"))).unwrap(), (33, 4));
    assert_eq!(run(owner("12", None)).unwrap(), (12, 12));
    let open = |_: &DiffId| unreachable!("the files are in the layer that was read before");
    let (passwd, group) = account_files(&Tree::empty(), &open).unwrap();
    assert!(passwd.is_empty() && group.is_empty());
    assert_eq!(run(owner("ghost", None)).unwrap(), (0, 0));
}

#[test]
fn account_files_that_are_no_files_are_refused() {
    let special = |kind: Kind| {
        let entry = Entry {
            path: "etc/passwd".into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: Default::default(),
        };
        Input { tree: Tree::of_entries(vec![(entry, Location::None)]), directory: None }
    };
    let huge = Kind::File { size: 11 << 20, offset: 0, content: image::ContentDigest([0; 32]) };
    for (kind, problem) in [
        (Kind::Fifo, "/etc/passwd is not a regular file"),
        (Kind::Directory { opaque: false, implied: false }, "/etc/passwd is not a regular file"),
        (Kind::Symlink { target: "passwd".into() }, "too many levels of symbolic links"),
        (huge, "it has 11534336 bytes"),
    ] {
        let owner = Some(op::Owner { user: "web".into(), group: None });
        let mkdir = FileAction::Mkdir { path: "/new".to_owned(), mode: 0o755, owner };
        let error = Stages::default().run(vec![mkdir], &[special(kind)], Some(0)).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_missing_source_says_what_may_be_meant() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "").unwrap();
    fs::write(dir.path().join("secret"), "").unwrap();
    let mut stages = Stages::default();
    let stage = stages.run(vec![mkfile("/srv/server", b"")], &[], None).unwrap();
    let inputs = [context(&dir, &["secret"]), layers(&[&stage])];
    for (input, source, want) in [
        (0, "/config.jsn", "could not copy /config.jsn: not found; did you mean /config.json?"),
        (0, "/secret", "could not copy /secret: excluded by the ignore pattern \"secret\""),
        (1, "/srv/sevrer", "could not copy /srv/sevrer: not found; did you mean /srv/server?"),
    ] {
        let error = stages.run(vec![FileAction::Copy(copy(input, source, "/x"))], &inputs, None).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn what_is_copied_keeps_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let set = |path: &str, seconds| {
        File::open(dir.path().join(path)).unwrap().set_modified(at(seconds)).unwrap();
    };
    fs::create_dir_all(dir.path().join("d/sub")).unwrap();
    fs::write(dir.path().join("f"), "f").unwrap();
    fs::write(dir.path().join("d/sub/g"), "g").unwrap();
    // Also after 2038.
    set("f", 4_000_000_000);
    set("d/sub/g", 1_000);
    set("d/sub", 2_000);
    let mut stages = Stages::default();
    let input = [context(&dir, &[])];
    let changed = |copy: op::Copy| op::Copy {
        owner: Some(op::Owner { user: "5".to_owned(), group: None }),
        mode: Some("0600".to_owned()),
        ..copy
    };
    let by_pattern = |copy: op::Copy| op::Copy { wildcard: true, ..copy };
    let with_parents = |pattern: &str| op::Copy { parents: Some(pattern.to_owned()), ..copy(0, "/", "/to/") };
    for (action, path, time) in [
        (copy(0, "/f", "/f"), "f", 4_000_000_000),
        (copy(0, "/f", "/other"), "other", 4_000_000_000),
        (copy(0, "/f", "/made/"), "made/f", 4_000_000_000),
        (changed(copy(0, "/f", "/f")), "f", 4_000_000_000),
        (by_pattern(copy(0, "/d/*/g", "/g")), "g", 1_000),
        (copy(0, "/d", "/to"), "to/sub", 2_000),
        (copy(0, "/d", "/to"), "to/sub/g", 1_000),
        (changed(copy(0, "/d", "/to")), "to/sub", 2_000),
        (with_parents("d/sub/g"), "to/d/sub/g", 1_000),
        (with_parents("d/sub/g"), "to/d/sub", 2_000),
    ] {
        let shown = format!("{action:?}");
        let index = stages.run(vec![FileAction::Copy(action)], &input, None).unwrap();
        assert_eq!(index.get(path.as_bytes()).unwrap().mtime, time, "{path} {shown}");
        // Through another stage, too.
        let again = FileAction::Copy(copy(0, "/", "/again"));
        let copied = stages.run(vec![again], &[layers(&[&index])], None).unwrap();
        let path = format!("again/{path}");
        assert_eq!(copied.get(path.as_bytes()).unwrap().mtime, time, "{path} {shown}");
    }
}
