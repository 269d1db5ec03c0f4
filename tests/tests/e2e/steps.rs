//! Steps with much around them: mounts of one directory, more layers than the kernel takes.

use tests::{Base, TestEnv};

#[test]
fn a_cache_mount_is_locked_once_for_all_mounts_of_it() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let mount =
        |target: &str, sharing: &str| format!("--mount=type=cache,id=c,target={target},sharing={sharing}");
    for sharing in ["locked", "private", "shared"] {
        let run = format!("RUN {} {} touch /a/x && ls /b > /out", mount("/a", sharing), mount("/b", sharing));
        let context = env.context(sharing, &[("Dockerfile", &format!("FROM busybox:1\n{run}\n"))]);
        let _ = env.rbuild(["-t", "x:1", &context.display().to_string()]).ok();
        assert_eq!(env.rbuild(["run", "--rm", "x:1", "cat", "/out"]).ok().stdout, "x\n", "{sharing}");
    }
}

#[test]
fn an_image_may_have_more_layers_than_the_kernel_puts_over_each_other() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let directories: String = (0..520).map(|number| format!("WORKDIR /d/{number}\n")).collect();
    let dockerfile =
        format!("FROM busybox:1\n{directories}RUN ls /d | wc -l > /out\nRUN cat /out > /again\n");
    let context = env.context("deep", &[("Dockerfile", &dockerfile)]);
    let _ = env.rbuild(["-t", "x:1", &context.display().to_string()]).ok();
    assert_eq!(env.rbuild(["run", "--rm", "x:1", "cat", "/again"]).ok().stdout, "520\n");
}

#[test]
fn layers_made_for_a_source_date_epoch_are_the_same_from_the_cache() {
    let env = TestEnv::new();
    let context = env.context("epoch", &[("Dockerfile", "FROM scratch\nCOPY a /d/a\n"), ("a", "1")]);
    let context = context.display().to_string();
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1000"];
    let digest =
        |flags: &[&str]| env.rbuild([&["-q", "-t", "x:1", &context][..], flags].concat()).ok().stdout;
    let _without = digest(&[]);
    let after = digest(&epoch);
    let fresh = digest(&[&epoch[..], &["--no-cache"]].concat());
    assert_eq!(after, fresh);
}

#[test]
fn a_step_that_takes_more_memory_than_it_may_says_so() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let step = "FROM busybox:1\nRUN head -c 90000000 /dev/zero | sort\n";
    let context = env.context("memory", &[("Dockerfile", step)]).display().to_string();
    let limits = ["--resource=memory=24m,memory-swap=24m", "--cgroup-parent=rbuild-test"];
    let outcome = env.rbuild(limits.iter().copied().chain([context.as_str()]));
    for controller in ["memory", "cpu", "pids", "."] {
        let _not_there = std::fs::remove_dir(format!("/sys/fs/cgroup/{controller}/rbuild-test"));
    }
    // Not everywhere may groups be made.
    if outcome.stderr.contains("have no effect") {
        return;
    }
    let outcome = outcome.fails_with(4).says("killed: out of memory").says("limit 25.2 MB");
    assert!(!outcome.stderr.contains("WARNING"), "{outcome}");
    let outcome = env.rbuild([
        "run",
        "--memory=24m",
        "--memory-swap=24m",
        "busybox:1",
        "sh",
        "-c",
        "head -c 90000000 /dev/zero | sort",
    ]);
    assert!(!outcome.status.success(), "{outcome}");
    let limited =
        ["run", "--pids-limit=10", "--cpus=0.5", "--ulimit=nofile=99", "busybox:1", "sh", "-c", "ulimit -n"];
    assert_eq!(env.rbuild(limited).ok().stdout, "99\n");
    let _ = env.rbuild(["run", "--cpus=0", "busybox:1"]).fails_with(125);
}
