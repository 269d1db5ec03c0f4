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
