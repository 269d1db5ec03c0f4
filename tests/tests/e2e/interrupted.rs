//! Builds that are stopped or killed: nothing of them stays, and the next one is right.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::watch::{mark, mounts_below, names, processes_with, wait_for};
use tests::{Base, Outcome, TestEnv};

const SOON: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

/// A build whose step has started grandchildren, one of them in a session of its own, all of which sleep `mark` seconds.
fn sleeping_build(env: &TestEnv, mark: &str) -> Child {
    let step =
        format!("setsid sleep {mark} & (sleep {mark} & sleep {mark}) & trap '' INT TERM HUP; sleep {mark}");
    let dockerfile = format!("FROM busybox:1\nRUN echo 1 > /1\nRUN {step}\n");
    let context = env.context("sleeping", &[("Dockerfile", &dockerfile)]);
    let build = env
        .command(tests::env::rbuild())
        .args(["build", "-t", "sleeping"])
        .arg(context)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("rbuild starts");
    let all = format!("sleep {mark}");
    // Four sleeps, and the shells that have them in their command lines.
    let started = wait_for(LONG, || {
        let sleeps = processes_with(&all).into_iter().filter(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "sleep"
        });
        sleeps.count() == 4
    });
    assert!(started.is_some(), "the step does not start: {:?}", processes_with(&all));
    build
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.expect("kill can be run").success());
}

/// Nothing of a build is left in the state directory.
fn assert_swept(env: &TestEnv) {
    for dir in ["tmp", "processes"] {
        assert_eq!(names(&env.root().join(dir)), [""; 0], "in {dir}");
    }
    assert_eq!(mounts_below(&env.root()), [""; 0]);
}

fn stopped_by(env: &TestEnv, name: &str) {
    Base::Busybox.build_in(env);
    let mark = mark();
    let build = sleeping_build(env, &mark);
    // Of a user that is not ours the process is setpriv's, which became rbuild.
    let start = Instant::now();
    signal(build.id(), name);
    let output = build.wait_with_output().expect("it ends");
    let took = start.elapsed();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(took < SOON, "{took:?}");
    assert_eq!(processes_with(&mark), [0; 0]);
    assert_swept(env);
    // What was done before is not lost.
    let dockerfile = "FROM busybox:1\nRUN echo 1 > /1\n";
    let context = env.context("again", &[("Dockerfile", dockerfile)]);
    let again = env.rbuild(["-t".as_ref(), "again".as_ref(), context.as_os_str()]).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 1, "{again}");
}

#[test]
fn an_interrupt_ends_the_whole_tree_of_a_step_at_once() {
    stopped_by(&TestEnv::new(), "INT");
}

#[test]
fn so_do_termination_and_hangup() {
    let env = TestEnv::new();
    stopped_by(&env, "TERM");
    stopped_by(&env, "HUP");
}

#[test]
fn an_interrupt_ends_a_step_of_an_ordinary_user_as_well() {
    stopped_by(&TestEnv::rootless(), "INT");
}

fn killed(env: &TestEnv) {
    Base::Busybox.build_in(env);
    let mark = mark();
    let mut build = sleeping_build(env, &mark);
    build.kill().expect("it runs");
    let _status = build.wait().expect("it ends");
    assert!(wait_for(SOON, || processes_with(&mark).is_empty()).is_some(), "{:?}", processes_with(&mark));
    assert_eq!(mounts_below(&env.root()), [""; 0]);
    let _ = env.rbuild(["images"]).ok();
    assert_swept(env);
}

#[test]
fn a_step_dies_with_its_killed_builder_and_the_next_command_sweeps() {
    killed(&TestEnv::new());
}

#[test]
fn a_step_of_an_ordinary_user_dies_with_its_killed_builder() {
    killed(&TestEnv::rootless());
}

/// What `/out` of an image holds, without starting it.
fn out(env: &TestEnv, context: &Path) -> Outcome {
    let tar = env.work().join("out.tar");
    let output = format!("type=tar,dest={}", tar.display());
    let _ = env.rbuild(["build".as_ref(), "-o".as_ref(), output.as_ref(), context.as_os_str()]).ok();
    Outcome::of(Command::new("tar").arg("-xOf").arg(tar).arg("out")).ok()
}

#[test]
fn a_build_that_was_killed_anywhere_is_made_right_by_the_next() {
    const ROUNDS: u32 = 16;
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = |round: u32| {
        format!(
            "FROM busybox:1 AS a\nARG ROUND={round}\nCOPY data /data\nRUN echo $ROUND > /a && cat /data >> /a\n\
             FROM busybox:1 AS b\nARG ROUND={round}\nRUN echo b$ROUND > /b\n\
             FROM busybox:1\nCOPY --from=a /a /a\nCOPY --from=b /b /b\nRUN cat /a /b > /out\n"
        )
    };
    let data = "x".repeat(100_000);
    let context = |round| env.context("killed", &[("Dockerfile", &dockerfile(round)), ("data", &data)]);
    let start = Instant::now();
    let _ = env.rbuild(["-t".as_ref(), "x".as_ref(), context(0).as_os_str()]).ok();
    let whole = start.elapsed();
    for round in 1..=ROUNDS {
        let context = context(round);
        let mut build = env
            .command(tests::env::rbuild())
            .args(["build", "-t", "x"])
            .arg(&context)
            .stderr(Stdio::null())
            .spawn()
            .expect("rbuild starts");
        std::thread::sleep(whole * round / ROUNDS);
        // It may be done by now.
        let _ = build.kill();
        let _status = build.wait().expect("it ends");
        let made = out(&env, &context).stdout;
        assert_eq!(made, format!("{round}\n{data}b{round}\n"), "round {round}");
    }
    assert_swept(&env);
}
