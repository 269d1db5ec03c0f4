//! A secret is seen by the step that mounts it, and is nowhere else: not in files, not in output.

use std::process::Stdio;

use tests::watch::{files_with, mark, processes_with, wait_for};
use tests::{Base, Outcome, TestEnv};

// What the tests' files hold is this, and nothing else of this host is.
const CANARY: &str = "canary-5b1f0c93e2";

const MOUNTS: &str = "--mount=type=secret,id=file --mount=type=secret,id=var,env=TOKEN";

fn build(env: &mut TestEnv, step: &str, progress: &str) -> Outcome {
    env.set("SECRET_VARIABLE", CANARY);
    let dockerfile =
        format!("FROM busybox:1\nRUN {MOUNTS} {step}\nRUN ! grep -r {} /run /etc\n", &CANARY[..6]);
    let context = env.context("secret", &[("Dockerfile", &dockerfile)]);
    // Outside the state directory and the context.
    std::fs::write(env.docker_config().join("secret"), CANARY).expect("a file can be written");
    let file = format!("id=file,src={}", env.docker_config().join("secret").display());
    let context = context.display().to_string();
    let secrets = ["--secret", &file, "--secret", "id=var,env=SECRET_VARIABLE"];
    env.rbuild([["build", "-t", "x", "--progress", progress].as_slice(), &secrets, &[&context]].concat())
}

fn assert_nowhere(env: &TestEnv, outcome: &Outcome) {
    assert!(!outcome.stdout.contains(CANARY) && !outcome.stderr.contains(CANARY), "{outcome}");
    for dir in [env.root(), env.work()] {
        assert_eq!(files_with(&dir, CANARY.as_bytes()), [""; 0].map(std::path::PathBuf::from));
    }
}

#[test]
fn a_step_reads_secrets_and_nothing_keeps_them() {
    let mut env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let reads =
        format!("[ \"$(cat /run/secrets/file)\" = \"$TOKEN\" ] && [ ${{#TOKEN}} = {} ]", CANARY.len());
    for progress in ["plain", "rawjson"] {
        let outcome = build(&mut env, &reads, progress).ok();
        assert_nowhere(&env, &outcome);
    }
    let history = env.rbuild(["history", "--no-trunc", "x"]).ok();
    assert_nowhere(&env, &history);
    let inspect = env.rbuild(["inspect", "x"]).ok();
    assert_nowhere(&env, &inspect);
    let _ = env.rbuild(["save", "-o", "saved.tar", "x"]).ok();
    assert_nowhere(&env, &inspect);
    let _ = build(&mut env, "false # explain", "plain").fails_with(4);
    let explained = env.rbuild(["explain"]).ok();
    assert_nowhere(&env, &explained);
}

#[test]
fn a_failing_step_leaves_no_secret() {
    let mut env = TestEnv::new();
    Base::Busybox.build_in(&env);
    for progress in ["plain", "rawjson"] {
        let outcome = build(&mut env, "cat /run/secrets/file > /dev/null; exit 9", progress).fails_with(4);
        assert_nowhere(&env, &outcome);
    }
}

#[test]
fn a_killed_build_leaves_no_secret() {
    let mut env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let mark = mark();
    env.set("SECRET_VARIABLE", CANARY);
    let dockerfile =
        format!("FROM busybox:1\nRUN {MOUNTS} cat /run/secrets/file > /dev/null; sleep {mark}\n");
    let context = env.context("secret", &[("Dockerfile", &dockerfile)]);
    std::fs::write(env.docker_config().join("secret"), CANARY).expect("a file can be written");
    let file = format!("id=file,src={}", env.docker_config().join("secret").display());
    let mut build = env
        .command(tests::env::rbuild())
        .args(["build", "-t", "x", "--secret", &file, "--secret", "id=var,env=SECRET_VARIABLE"])
        .arg(context)
        .stderr(Stdio::null())
        .spawn()
        .expect("rbuild starts");
    let limit = std::time::Duration::from_secs(30);
    assert!(wait_for(limit, || !processes_with(&format!("sleep {mark}")).is_empty()).is_some());
    build.kill().expect("it runs");
    let _status = build.wait().expect("it ends");
    // Nothing of it is on disk, even before the next command sweeps.
    assert_eq!(files_with(&env.root(), CANARY.as_bytes()), [""; 0].map(std::path::PathBuf::from));
    assert!(wait_for(limit, || processes_with(&mark).is_empty()).is_some());
}
