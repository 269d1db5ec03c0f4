//! A build that is ended at one system call after the other, whose disk is full at one point after the other, or whose
//! stored files were damaged: the next one is right, with nothing for anybody to do.
//!
//! A sample of the points; all of them with `RBUILD_EXHAUSTIVE=1` (`just crash`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::watch::{mounts_below, names};
use tests::{Base, DockerRegistry, Outcome, TestEnv};

use super::disk::Mounted;

const DOCKERFILE: &str = "FROM busybox:1 AS a\nCOPY data /data\nRUN cat /data /data > /twice\n\
                          FROM busybox:1\nCOPY --from=a /twice /twice\nRUN --mount=type=cache,target=/c touch /c/x && rm -r /home\n";

/// System calls that change what others see.
const CHANGES: &str = "?rename,?renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,?link,linkat,?symlink,symlinkat,ftruncate,\
                       write,pwrite64,fsync,fdatasync,fchmod,fchown,utimensat,mount,?move_mount,?copy_file_range,?sendfile";

fn exhaustive() -> bool {
    std::env::var_os("RBUILD_EXHAUSTIVE").is_some()
}

/// An environment with a base image and a context, whose state can be as it was again.
struct Fixture {
    env: TestEnv,
    context: String,
    kept: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let env = Self::with_base();
        Self::from(env, DOCKERFILE)
    }

    fn with_base() -> TestEnv {
        let mut env = TestEnv::new();
        env.set("SOURCE_DATE_EPOCH", "1700000000");
        Base::Busybox.build_in(&env);
        env
    }

    fn from(env: TestEnv, dockerfile: &str) -> Self {
        let data = "some data\n".repeat(30_000);
        let context = env.context("c", &[("Dockerfile", dockerfile), ("data", &data)]).display().to_string();
        let kept = env.work().join("kept");
        let fixture = Self { env, context, kept };
        fixture.keep();
        fixture
    }

    /// The state is to be as it is now.
    fn keep(&self) {
        self.copy(&self.env.root(), &self.kept);
    }

    fn restore(&self) {
        self.copy(&self.kept, &self.env.root());
    }

    fn copy(&self, from: &Path, to: &Path) {
        // The process that waits for the disk may remove its own files meanwhile.
        for last in [false, false, false, true] {
            let _ = fs::remove_dir_all(to);
            let copied = Outcome::of(Command::new("cp").arg("-a").arg(from).arg(to));
            if last || copied.status.success() {
                let _ = copied.ok();
                return;
            }
        }
    }

    fn args(&self) -> [&str; 8] {
        // An export reads all of every layer.
        ["build", "-t", "x", "-o", "type=oci,dest=x.tar", "--metadata-file", "meta", &self.context]
    }

    fn build(&self) -> Outcome {
        self.env.rbuild(self.args())
    }

    /// What the last build made.
    fn digest(&self) -> String {
        let text = fs::read_to_string(self.env.work().join("meta")).expect("it was written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        value["containerimage.digest"].as_str().expect("an image was made").to_owned()
    }
}

#[test]
fn a_build_that_is_killed_at_a_system_call_is_made_right_by_the_next() {
    let fixture = Fixture::new();
    let _ = fixture.build().ok();
    let control = fixture.digest();
    let mut point = 1_u32;
    let mut killed = 0;
    loop {
        fixture.restore();
        let _ = fs::remove_file(fixture.env.work().join("x.tar"));
        let mut strace = fixture.env.command(Path::new("strace"));
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={CHANGES}")]);
        strace.args(["-e", &format!("inject={CHANGES}:signal=KILL:when={point}")]);
        let outcome = Outcome::of(strace.arg(tests::env::rbuild()).args(fixture.args()));
        if outcome.status.success() {
            break;
        }
        killed += 1;
        assert_eq!(mounts_below(&fixture.env.root()), [""; 0], "at point {point}");
        let again = fixture.build();
        assert!(again.status.success(), "after point {point}: {again}");
        assert_eq!(fixture.digest(), control, "after point {point}");
        for dir in ["tmp", "processes"] {
            assert_eq!(names(&fixture.env.root().join(dir)), [""; 0], "in {dir} after point {point}");
        }
        let left: Vec<_> =
            names(&fixture.env.work()).into_iter().filter(|name| name.ends_with(".tmp")).collect();
        assert!(left.len() <= 1, "a file that was being written, at most: {left:?}");
        for name in left {
            fs::remove_file(fixture.env.work().join(name)).expect("a file can be removed");
        }
        point += if exhaustive() { 1 } else { point.div_ceil(2) };
    }
    assert!(killed >= 8, "strace is installed and may be used: {killed} of {point}");
}

#[test]
fn a_disk_that_is_full_at_any_point_is_said_and_pruned() {
    let env = TestEnv::new();
    let _mounted = Mounted::tmpfs(&env, "32m");
    Base::Busybox.build_in(&env);
    let filler = env.root().join("filler");
    let mut codes = Vec::new();
    let sizes: &[u64] = &[0, 4, 16, 64, 160, 320, 640, 1280, 2560, 5120, 10240];
    let between =
        |pair: &[u64]| (0..8).map(|part| pair[0] + (pair[1] - pair[0]) * part / 8).collect::<Vec<_>>();
    let left: Vec<u64> = match exhaustive() {
        true => sizes.windows(2).flat_map(between).collect(),
        false => sizes.to_vec(),
    };
    for (round, free) in left.into_iter().enumerate() {
        let data = format!("{round}\n").repeat(200_000);
        let dockerfile = "FROM busybox:1\nCOPY data /data\nRUN cat /data > /out && rm /data\n";
        let context =
            env.context("full", &[("Dockerfile", dockerfile), ("data", &data)]).display().to_string();
        // All of it, but this many KiB.
        let _full = Outcome::of(
            Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())),
        );
        let file = fs::File::options().write(true).open(&filler).expect("it was written");
        let length = file.metadata().expect("it is there").len();
        file.set_len(length.saturating_sub(free << 10)).expect("a file can be cut");
        drop(file);
        let outcome = env.rbuild(["build", "-t", "x", &context]);
        let code = outcome.status.code();
        assert!(matches!(code, Some(0 | 7)) && !outcome.stderr.contains("panicked"), "{free} KiB: {outcome}");
        assert!(code == Some(0) || outcome.stderr.contains("hint: free some space"), "{free} KiB: {outcome}");
        codes.extend(code);
        let _ = env.rbuild(["prune", "-f"]).ok();
        fs::remove_file(&filler).expect("a file can be removed");
        let _ = env.rbuild(["build", "-t", "x", &context]).ok();
        let shown = env.rbuild(["run", "--rm", "x", "md5sum", "/out"]).ok().stdout;
        let expected = Outcome::of(Command::new("md5sum").arg(format!("{context}/data"))).ok().stdout;
        assert_eq!(shown.split(' ').next(), expected.split(' ').next(), "{free} KiB");
        let _ = env.rbuild(["rmi", "x"]).ok();
        let _ = env.rbuild(["prune", "-f", "--all"]).ok();
        Base::Busybox.build_in(&env);
    }
    assert!(codes.contains(&0) && codes.contains(&7), "{codes:?}");
}

/// What it is called, and how it is done to a file.
type Damage = (&'static str, fn(&Path));

fn files_below(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory can be listed") {
        let entry = entry.expect("a directory can be listed");
        match entry.file_type().expect("a listed file has a type") {
            kind if kind.is_dir() => files_below(&entry.path(), into),
            kind if kind.is_file() => into.push(entry.path()),
            _ => {}
        }
    }
}

#[test]
fn whatever_is_damaged_in_the_store_no_image_is_wrong() {
    // What came from a registry can be had again.
    let (registry, env) = (DockerRegistry::start(), Fixture::with_base());
    let name = format!("{}/base:1", registry.address());
    let _ = env.rbuild(["tag", "busybox:1", &name]).ok();
    let _ = env.rbuild(["push", &name]).ok();
    for args in [vec!["rmi", &name, "busybox:1"], vec!["prune", "-f", "--all"]] {
        let _ = env.rbuild(args).ok();
    }
    let fixture = Fixture::from(env, &DOCKERFILE.replace("busybox:1", &name));
    let _ = fixture.build().ok();
    let control = fixture.digest();
    fixture.keep();
    let root = fixture.env.root();
    // Of what was kept: a process that waits for the disk may come and go in the state directory. Its own files do not
    // count, nor does what nobody reads.
    let mut files = Vec::new();
    files_below(&fixture.kept, &mut files);
    let passing = ["builds", "reserve", "processes", "locks", "tmp"].map(|name| fixture.kept.join(name));
    files.retain(|file| !passing.iter().any(|passing| file.starts_with(passing)));
    files.sort();
    let here = |file: &PathBuf| root.join(file.strip_prefix(&fixture.kept).expect("it is below"));
    let files: Vec<PathBuf> = files.iter().map(here).collect();
    assert!(files.len() > 10, "{files:?}");
    let damages: [Damage; 4] = [
        ("a flipped bit", |path| {
            let mut bytes = fs::read(path).expect("a file can be read");
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 4;
            }
            fs::write(path, bytes).expect("a file can be written");
        }),
        ("half of it", |path| {
            let file = fs::File::options().write(true).open(path).expect("a file can be opened");
            let length = file.metadata().expect("it is open").len();
            file.set_len(length / 2).expect("a file can be cut");
        }),
        ("nothing in it", |path| drop(fs::File::create(path).expect("a file can be written"))),
        ("no file", |path| fs::remove_file(path).expect("a file can be removed")),
    ];
    let mut wrong = Vec::new();
    for (number, file) in files.iter().enumerate() {
        for (which, (damage, apply)) in damages.iter().enumerate() {
            if !exhaustive() && number % damages.len() != which {
                continue;
            }
            fixture.restore();
            apply(file);
            let name = file.strip_prefix(&root).expect("it is below").display();
            let mut outcome = fixture.build();
            if outcome.status.code().is_none() || outcome.stderr.contains("panicked") {
                wrong.push(format!("{name}, {damage}: {outcome}"));
            }
            if !outcome.status.success() {
                // It was said; what was found damaged is made again.
                outcome = fixture.build();
            }
            if file.ends_with("version") {
                // Who made this, and how, nobody can say: it is refused, and left alone.
                if which > 0
                    && (outcome.status.code() != Some(8) || !outcome.stderr.contains("state directory"))
                {
                    wrong.push(format!("{name}, {damage}: {outcome}"));
                }
            } else if !outcome.status.success() {
                wrong.push(format!("{name}, {damage}, and again: {outcome}"));
            } else if fixture.digest() != control {
                wrong.push(format!("{name}, {damage}: another image\n{outcome}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} files\n\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

#[test]
fn a_build_that_nobody_reads_from_can_be_interrupted() {
    let fixture = Fixture::new();
    let mut build = fixture.env.command(tests::env::rbuild());
    // The archive does not fit into the pipe, so the export waits for ever, and not for us.
    build.args(["build", "-o", "type=oci", &fixture.context]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut build = build.spawn().expect("rbuild starts");
    let mut said = String::new();
    let mut stderr = std::io::BufReader::new(build.stderr.take().expect("it is piped"));
    while !said.contains("exporting") {
        let read = std::io::BufRead::read_line(&mut stderr, &mut said).expect("it is text");
        assert!(read > 0, "{said}");
    }
    for _ in 0..2 {
        let signal = rustix::process::Signal::INT;
        let pid = rustix::process::Pid::from_child(&build);
        rustix::process::kill_process(pid, signal).expect("it runs");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let start = std::time::Instant::now();
    let status = build.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(start.elapsed().as_secs() < 1, "{:?}", start.elapsed());
}
