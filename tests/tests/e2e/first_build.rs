//! What every build must do, on a small base image.

use tests::{Base, TestEnv};

#[test]
fn a_dockerfile_without_run_needs_no_namespace() {
    // No user namespaces at all for this user: `unshare --user` inside one with a limit of 0 is refused.
    let env = TestEnv::rootless();
    let context =
        env.context("plain", &[("Dockerfile", "FROM scratch\nCOPY a /a\nWORKDIR /w\n"), ("a", "1")]);
    let out = env.work().join("out.tar");
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec {} build --output type=oci,dest={} {}",
        tests::env::rbuild().display(),
        out.display(),
        context.display()
    );
    // The limit is set inside a namespace of its own, where it counts for what is below it.
    let mut command = env.command("/usr/bin/unshare".as_ref());
    let _ = tests::Outcome::of(command.args(["--user", "--map-root-user", "sh", "-c", &script])).ok();
    assert!(out.exists());
}

#[test]
fn steps_run_once_and_are_cached_by_content() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile =
        "FROM busybox:1\nCOPY a /a\nRUN cat /a > /b && cat /proc/sys/kernel/random/uuid > /when\nCOPY b /c\n";
    let context = env.context("cached", &[("Dockerfile", dockerfile), ("a", "1"), ("b", "1")]);
    let context = context.display().to_string();
    let when = |tag: &str| env.rbuild(["run", "--rm", tag, "cat", "/when"]).ok().stdout;

    let _ = env.rbuild(["-t", "x:1", &context]).ok();
    let first = when("x:1");
    let again = env.rbuild(["-t", "x:2", &context]).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 3, "{again}");
    assert_eq!(when("x:2"), first);

    // Another time of the same content is no change; other content is, even with the same size and time.
    let a = std::path::Path::new(&context).join("a");
    let times = std::fs::metadata(&a).unwrap().modified().unwrap();
    std::fs::write(&a, "1").unwrap();
    let _ = env.rbuild(["-t", "x:3", &context]).ok();
    assert_eq!(when("x:3"), first);
    std::fs::write(&a, "2").unwrap();
    std::fs::File::options().write(true).open(&a).unwrap().set_modified(times).unwrap();
    let _ = env.rbuild(["-t", "x:4", &context]).ok();
    assert_ne!(when("x:4"), first);
    assert_eq!(env.rbuild(["run", "--rm", "x:4", "cat", "/b"]).ok().stdout, "2");

    // What comes after the change alone does not run the steps before it.
    std::fs::write(std::path::Path::new(&context).join("b"), "3").unwrap();
    let last = env.rbuild(["-t", "x:5", &context]).ok();
    assert_eq!(last.stderr.matches(" CACHED").count(), 2, "{last}");
}

#[test]
fn a_failing_step_says_where_and_why() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nRUN true\nRUN echo before; echo to-stderr >&2; exit 7\n";
    let context = env.context("failing", &[("Dockerfile", dockerfile)]);
    let outcome = env.rbuild(["-t", "x", &context.display().to_string()]).fails_with(4);
    for text in ["Dockerfile:3", ">>> RUN echo before", "before", "to-stderr", "exit code: 7"] {
        assert!(outcome.stderr.contains(text), "{text:?} is missing\n{outcome}");
    }
    let _ = env.rbuild(["run", "x"]).fails_with(125);
}

#[test]
fn a_mistake_in_the_dockerfile_is_shown_with_a_suggestion() {
    let env = TestEnv::new();
    let context = env.context("typo", &[("Dockerfile", "FROM scratch\nCOPPY a /a\nENV\n")]);
    let outcome = env.rbuild(["-t", "x", &context.display().to_string()]).fails_with(3);
    for text in ["Dockerfile:2", "COPPY", "did you mean COPY?", "Dockerfile:3"] {
        assert!(outcome.stderr.contains(text), "{text:?} is missing\n{outcome}");
    }
}

#[test]
fn a_step_sees_no_mount_of_the_host() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let context =
        env.context("mounts", &[("Dockerfile", "FROM busybox:1\nRUN cat /proc/self/mountinfo > /mounts\n")]);
    let _ = env.rbuild(["-t", "x", &context.display().to_string()]).ok();
    let mounts = env.rbuild(["run", "--rm", "x", "cat", "/mounts"]).ok().stdout;
    let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    // One root: nothing lies over or under it that leaving the root directory could lead to.
    assert_eq!(points.iter().filter(|point| **point == "/").count(), 1, "{mounts}");
    let known = ["/", "/proc", "/dev", "/sys", "/etc"];
    let below = |point: &str| known.iter().any(|dir| point == *dir || point.starts_with(&format!("{dir}/")));
    assert!(points.iter().all(|point| below(point)), "{mounts}");
}

#[test]
fn a_missing_source_fails_before_anything_runs() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nRUN sleep 100\nCOPY nofile /x\n";
    let context = env.context("missing", &[("Dockerfile", dockerfile), ("nofiles", "")]);
    let started = std::time::Instant::now();
    let outcome = env.rbuild(["-t", "x", &context.display().to_string()]).fails_with(3).says("/nofile");
    assert!(outcome.stderr.contains("did you mean"), "{outcome}");
    assert!(started.elapsed().as_secs() < 90, "it did not wait for the step");
}
