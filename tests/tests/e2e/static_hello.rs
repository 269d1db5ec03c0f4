//! The main job on real input: compile in Debian, ship from scratch, push, pull elsewhere, run. As root and as a user.

use std::path::Path;
use std::process::Command;

use tests::{Base, DockerRegistry, Outcome, TestEnv};

fn fixture() -> [(&'static str, &'static str); 2] {
    [
        ("Dockerfile", include_str!("../../../fixtures/static-hello/Dockerfile")),
        ("hello.c", include_str!("../../../fixtures/static-hello/hello.c")),
    ]
}

fn build_push_pull_run(env: &TestEnv) {
    let registry = DockerRegistry::start();
    let name = format!("{}/static-hello:1", registry.address());
    Base::Debian.build_in(env);
    let context = env.context("static-hello", &fixture());

    let _ = env.rbuild(["-t", &name, "--push", &context.display().to_string()]).ok();

    // Again: nothing runs, and nothing is asked of any registry.
    let again = env.rbuild(["-t", &name, &context.display().to_string()]).ok();
    let cached = again.stderr.matches(" CACHED").count();
    assert!(cached >= 5, "RUN, WORKDIR, COPY, RUN and COPY --from are cached\n{again}");
    assert!(!again.stderr.contains("DONE 1"), "{again}");

    let inspect = Outcome::of(Command::new("skopeo").args([
        "inspect",
        "--tls-verify=false",
        &format!("docker://{name}"),
    ]))
    .ok();
    assert!(inspect.stdout.contains("\"Architecture\""), "{inspect}");
    let layout = env.work().join("layout");
    let copy = format!("oci:{}:1", layout.display());
    let _ = Outcome::of(Command::new("skopeo").args([
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
        &copy,
    ]))
    .ok();
    let bundle = env.work().join("bundle");
    let image = format!("{}:1", layout.display());
    let _ = Outcome::of(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle)).ok();
    assert_executable(&bundle.join("rootfs/hello"));

    // Elsewhere, where nothing is known.
    let other = TestEnv::new();
    let ran = other.rbuild(["run", "--rm", &name]).ok();
    assert_eq!(ran.stdout, "hello, world\n", "{ran}");
    let ran = other.rbuild(["run", "--rm", &name, "a", "b"]).fails_with(3);
    assert_eq!(ran.stdout, "hello, a\n");
}

fn assert_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).expect("the program is in the image").permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}

#[test]
fn as_root() {
    build_push_pull_run(&TestEnv::new());
}

#[test]
fn as_an_ordinary_user() {
    build_push_pull_run(&TestEnv::rootless());
}
