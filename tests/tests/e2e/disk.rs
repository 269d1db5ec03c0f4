//! Disks that are full, and disks that forget what was not synced.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::watch::{processes_with, wait_for};
use tests::{Base, Outcome, TestEnv};

/// A file system of its own at the state directory of an environment. Unmounted when dropped.
pub(super) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    pub(super) fn tmpfs(env: &TestEnv, size: &str) -> Self {
        let at = env.root();
        std::fs::create_dir(&at).expect("a directory can be made");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"])
            .arg(&at));
        Self { at }
    }

    /// What the root of a container is. The layers of this one are in memory: the host may be a container too.
    fn overlay(env: &TestEnv) -> Self {
        let (at, base) = (env.root(), env.work().join("memory"));
        for dir in [&at, &base] {
            std::fs::create_dir(dir).expect("a directory can be made");
        }
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&base));
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(base.join(name)).expect("a directory can be made");
        }
        let [lower, upper, work] =
            ["lower", "upper", "work"].map(|name| base.join(name).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&at));
        // Its files are still the overlay's.
        run(Command::new("umount").arg("-l").arg(&base));
        run(Command::new("chmod").arg("0700").arg(&at));
        Self { at }
    }

    /// `None`, said aloud: this host mounts no loop devices.
    fn ext4(env: &TestEnv) -> Option<Self> {
        Self::made("ext4", env)
    }

    /// Made by `mkfs` for this kind, if there is one; `None`, said aloud: this host does not have it.
    pub(super) fn made(kind: &str, env: &TestEnv) -> Option<Self> {
        let (at, file) = (env.root(), env.work().join("disk"));
        std::fs::create_dir(&at).expect("a directory can be made");
        let disk = std::fs::File::create(&file).expect("a file can be made");
        // The least that XFS takes.
        disk.set_len(320 << 20).expect("a file can be as long");
        let made = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file).stdout(Stdio::null()).status();
        if !made.is_ok_and(|made| made.success()) || !mount_loop(kind, &file, &at) {
            skipped(&format!("this host makes no {kind} on loop devices"));
            std::fs::remove_dir(&at).expect("nothing is mounted");
            return None;
        }
        run(Command::new("chmod").arg("0700").arg(&at));
        Some(Self { at })
    }

    /// Cuts the power: what is not on disk is gone. Then it is back.
    fn lose_power(&self, env: &TestEnv) {
        // EXT4_IOC_SHUTDOWN with "no log flush", as the kernel's own tests do it.
        let script = "import fcntl, os, struct, sys\n\
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").arg("-c").arg(script).arg(&self.at));
        let unmounted = wait_for(Duration::from_secs(20), || {
            Outcome::of(Command::new("umount").arg(&self.at)).status.success()
        });
        assert!(unmounted.is_some(), "something keeps {} busy", self.at.display());
        assert!(mount_loop("ext4", &env.work().join("disk"), &self.at), "it was mounted before");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn mount_loop(kind: &str, file: &Path, at: &Path) -> bool {
    let mount = Outcome::of(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(file).arg(at));
    mount.status.success()
}

#[track_caller]
fn run(command: &mut Command) {
    let _ = Outcome::of(command).ok();
}

fn build(env: &TestEnv, context: &Path) -> Outcome {
    env.rbuild(["-t".as_ref(), "x".as_ref(), context.as_os_str()])
}

#[test]
fn a_full_disk_is_said_and_can_be_pruned() {
    let env = TestEnv::new();
    let _mounted = Mounted::tmpfs(&env, "24m");
    Base::Busybox.build_in(&env);
    let large = "0123456789abcdef".repeat(4 << 16);
    let context = env.context("large", &[("Dockerfile", "FROM busybox:1\nCOPY a b c d e f /\n")]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        std::fs::write(context.join(name), &large).expect("a file can be written");
    }
    let outcome = build(&env, &context).fails_with(7);
    assert!(outcome.stderr.contains("hint: free some space"), "{outcome}");

    // A step fills it.
    let fill = env.context("fill", &[("Dockerfile", "FROM busybox:1\nRUN dd if=/dev/zero of=/x bs=1M\n")]);
    let outcome = build(&env, &fill).fails_with(7);
    assert!(
        outcome.stderr.contains("did not complete successfully: exit code: 1: no storage space"),
        "{outcome}"
    );
    assert!(outcome.stderr.contains("hint: free some space"), "{outcome}");

    // What failed takes no space, and there is enough to prune and to go on.
    let _ = env.rbuild(["prune", "-f"]).ok();
    let small = env.context("small", &[("Dockerfile", "FROM busybox:1\nRUN echo fine > /x\n")]);
    let _ = build(&env, &small).ok();
    assert_eq!(env.rbuild(["run", "--rm", "x", "cat", "/x"]).ok().stdout, "fine\n");
}

#[test]
fn a_disk_filled_to_the_last_byte_can_be_pruned() {
    let env = TestEnv::new();
    let _mounted = Mounted::tmpfs(&env, "16m");
    Base::Busybox.build_in(&env);
    // Layers that no image needs, then somebody else's bytes.
    let context =
        env.context("unused", &[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", &"a".repeat(1 << 20))]);
    let _ = build(&env, &context).ok();
    let _ = env.rbuild(["rmi", "x"]).ok();
    let filled = Outcome::of(
        Command::new("dd")
            .args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}", env.work().join("../state/tmp/foreign").display())),
    );
    assert!(!filled.status.success(), "the disk is full: {filled}");
    let small = env.context("small", &[("Dockerfile", "FROM busybox:1\nRUN echo fine > /x\n"), ("b", "b")]);
    let outcome = build(&env, &small);
    assert!(outcome.status.success() || outcome.status.code() == Some(7), "{outcome}");
    let _ = env.rbuild(["prune", "-f"]).ok();
    let _ = build(&env, &small).ok();
}

#[test]
fn a_loss_of_power_loses_no_byte_of_what_a_build_uses() {
    let env = TestEnv::new();
    let Some(mounted) = Mounted::ext4(&env) else { return };
    let mut lines = String::new();
    for line in 0..5000 {
        writeln!(lines, "line {line}").expect("a string can be written");
    }
    let dockerfile =
        "FROM busybox:1\nCOPY lines /lines\nRUN cat /lines /lines > /twice && md5sum /twice > /sum\n";
    let check = |env: &TestEnv| {
        let ran = env.rbuild(["run", "--rm", "x", "sh", "-c", "md5sum -c /sum && cat /lines"]).ok();
        assert_eq!(ran.stdout, format!("/twice: OK\n{lines}"));
    };

    // At once: nothing is on disk but a record here and there, and nothing of it is believed.
    Base::Busybox.build_in(&env);
    let context = env.context("power", &[("Dockerfile", dockerfile), ("lines", &lines)]);
    let _ = build(&env, &context).ok();
    mounted.lose_power(&env);
    Base::Busybox.build_in(&env);
    let _ = build(&env, &context).ok();
    check(&env);

    // A while later all of it is there.
    let root = env.root().display().to_string();
    let synced = wait_for(Duration::from_secs(60), || processes_with(&root).is_empty());
    assert!(synced.is_some(), "{:?} wait for the disk", processes_with(&root));
    mounted.lose_power(&env);
    check(&env);
    let again = build(&env, &context).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 2, "{again}");
    check(&env);
}

#[test]
fn a_state_directory_in_the_root_of_a_container_gives_the_same_image() {
    let build = |env: &TestEnv| {
        Base::Busybox.build_in(env);
        let steps = env.context(
            "steps",
            &[(
                "Dockerfile",
                "FROM busybox:1 AS a\nRUN mkdir -p /d/e && echo 1 > /d/e/f && rm /etc/group\n\
                 RUN rm -r /d && mkdir /d && echo 2 > /d/g && ! test -e /etc/group\n\
                 FROM busybox:1\nCOPY --from=a /d /d\nRUN rm /d/g\n\
                 RUN --mount=from=a,target=/a,rw ! test -e /d/g && cat /a/d/g && ! test -e /a/d/e && rm /a/d/g\n",
            )],
        );
        env.rbuild(["-q".as_ref(), "-t".as_ref(), "x".as_ref(), steps.as_os_str()]).ok().stdout
    };
    let (mut plain, mut env) = (TestEnv::new(), TestEnv::new());
    for env in [&mut plain, &mut env] {
        env.set("SOURCE_DATE_EPOCH", "1700000000");
    }
    let _mounted = Mounted::overlay(&env);
    assert_eq!(build(&env), build(&plain));
    let doctor = env.rbuild(["doctor"]).ok();
    assert!(doctor.stdout.contains("in memory: overlayfs cannot write to the state directory"), "{doctor}");
    assert_eq!(env.rbuild(["run", "--rm", "x", "sh", "-c", "echo > /y && ls /d"]).ok().stdout, "");
}

#[test]
fn a_cached_build_leaves_nothing_to_sync() {
    let env = TestEnv::new();
    let context = env.context("cached", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "1")]);
    let root = env.root().display().to_string();
    let _ = build(&env, &context).ok();
    assert!(!processes_with(&root).is_empty(), "what was built is on its way to the disk");
    assert!(wait_for(Duration::from_secs(60), || processes_with(&root).is_empty()).is_some());
    let _ = build(&env, &context).ok();
    assert_eq!(processes_with(&root), [0; 0]);
}

#[expect(clippy::print_stderr, reason = "a test that cannot run here says so")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
