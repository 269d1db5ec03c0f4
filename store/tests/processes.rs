//! Several processes and one root: what a killed one leaves, who gets its lock, what its lease was worth.
//!
//! The test binary starts itself again as the other process: `RBUILD_TEST_PART` says what that is to do.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::{DiffId, Digest};
use store::Root;
use store::gc::Policy;
use store::lease::Item;

const PART: &str = "RBUILD_TEST_PART";
const ROOT: &str = "RBUILD_TEST_ROOT";

fn tar(zeros: usize) -> Vec<u8> {
    vec![0; 1024 + 512 * zeros]
}

/// What the other process does: it says `ready` on standard output and waits to be killed.
#[test]
fn part() {
    let Ok(part) = std::env::var(PART) else { return };
    let root = Root::open(Path::new(&std::env::var(ROOT).unwrap())).unwrap();
    let diff_id = DiffId(Digest::of(&tar(0)));
    let mut kept: Vec<Box<dyn std::any::Any>> = Vec::new();
    match part.as_str() {
        "lock" => kept.push(Box::new(root.locks().lock_blocking(b"step").unwrap())),
        "lease" => kept.push(Box::new(root.lease([Item::Layer(diff_id)]).unwrap())),
        "half a layer" => {
            let mut layer = root.layers().create().unwrap();
            layer.write_all(&tar(0)).unwrap();
            layer.file().unwrap();
            let work = root.work_dir().unwrap();
            std::fs::create_dir_all(work.path().join("upper/etc")).unwrap();
            kept.push(Box::new((layer, work)));
        }
        "churn" => {
            let mut said = false;
            for zeros in (0..200).cycle() {
                let diff_id = DiffId(Digest::of(&tar(zeros)));
                root.layers().ingest(&tar(zeros)[..], &diff_id).unwrap();
                root.pins().put("churn", format!("{zeros}").as_bytes()).unwrap();
                // The first is removed again.
                if !said && zeros > 0 {
                    say_ready();
                    said = true;
                }
                if zeros % 7 == 0 {
                    root.layers().remove(&diff_id).unwrap();
                }
            }
        }
        other => panic!("no part {other:?}"),
    }
    say_ready();
    loop {
        std::thread::park();
    }
}

fn say_ready() {
    // On a line of its own: the harness writes on this stream too.
    std::io::stdout().write_all(b"\nready\n").unwrap();
}

/// The other process, killed when dropped.
struct Other(Child);

impl Other {
    fn start(part: &str, root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "part", "--nocapture"])
            .env(PART, part)
            .env(ROOT, root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let ready = out.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "the other process ended before it was ready");
        Self(child)
    }

    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn the_waiter_takes_over_when_the_holder_of_a_lock_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(&dir.path().join("root")).unwrap();
    let other = Other::start("lock", root.path());
    assert!(root.locks().try_lock(b"step").unwrap().is_none());
    assert!(root.locks().try_lock(b"another").unwrap().is_some());
    other.kill();
    let killed = Instant::now();
    let _lock = root.locks().lock_blocking(b"step").unwrap();
    assert!(killed.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_lease_holds_as_long_as_its_process_lives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    let diff_id = DiffId(Digest::of(&tar(0)));
    let root = Root::open(&path).unwrap();
    root.layers().ingest(&tar(0)[..], &diff_id).unwrap();
    drop(root);
    let other = Other::start("lease", &path);
    let root = Root::open(&path).unwrap();
    assert!(root.prune(&Policy { all: true, ..Policy::default() }).unwrap().removed.is_empty());
    assert!(root.usage().unwrap()[0].in_use);
    other.kill();
    assert_eq!(root.prune(&Policy::default()).unwrap().removed.len(), 1);
    assert!(!root.layers().contains(&diff_id).unwrap());
}

#[test]
fn the_next_process_removes_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    let other = Other::start("half a layer", &path);
    Root::open(&path).unwrap();
    assert_eq!(count(&path.join("tmp")), 1, "it lives: what it has stays");
    other.kill();
    let root = Root::open(&path).unwrap();
    assert_eq!((count(&path.join("tmp")), count(&path.join("processes"))), (0, 0));
    assert!(!root.layers().contains(&DiffId(Digest::of(&tar(0)))).unwrap());
}

#[test]
fn a_root_whose_writer_was_killed_at_any_moment_opens_and_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    for round in 0..12 {
        let other = Other::start("churn", &path);
        std::thread::sleep(Duration::from_millis(round * 3));
        other.kill();
        let root = Root::open(&path).unwrap();
        let mut here = 0;
        for zeros in 0..200 {
            let diff_id = DiffId(Digest::of(&tar(zeros)));
            if root.layers().contains(&diff_id).unwrap() {
                here += 1;
                root.layers().index(&diff_id).unwrap();
                assert_eq!(std::fs::read(root.layers().tar_path(&diff_id)).unwrap(), tar(zeros));
            }
        }
        assert!(here > 0 && root.pins().get("churn").unwrap().is_some());
        if round % 4 == 3 {
            assert_eq!(root.prune(&Policy::default()).unwrap().removed.len(), here);
            assert_eq!(count(&path.join("layers/sha256")), 0);
        }
    }
}
