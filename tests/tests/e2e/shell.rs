//! A failed step is not the end: shells in sandboxes.

use std::io::Write as _;
use std::process::Stdio;

use tests::pty::Terminal;
use tests::watch::files_with;
use tests::{Base, Outcome, TestEnv};

/// A step with mounts of all kinds that leaves files everywhere and fails.
const FAILING: &str = "FROM busybox:1 AS seed\nRUN mkdir /seed && echo seed > /seed/s\n\
    FROM busybox:1\nRUN echo before > /before\nENV GREETING=hello\nWORKDIR /work\nUSER nobody:users\n\
    RUN --mount=type=bind,target=/ctx --mount=type=bind,from=seed,source=/seed,target=/seed,rw \
    --mount=type=cache,target=/cache,uid=65534 --mount=type=tmpfs,target=/mem --mount=type=secret,id=key,uid=65534 \
    echo changed > /tmp/changed; echo cached > /cache/c; exit 7\n";

fn environment(dockerfile: &str) -> (TestEnv, String) {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let context = context(&env, dockerfile);
    (env, context)
}

fn context(env: &TestEnv, dockerfile: &str) -> String {
    let files = [("Dockerfile", dockerfile), ("in-context", "context\n")];
    env.context("c", &files).display().to_string()
}

/// The flag for a secret that is in a file beside the context.
fn secret(env: &TestEnv) -> String {
    let dir = env.context("secrets", &[("key", "hunter2\n")]);
    format!("--secret=id=key,src={}/key", dir.display())
}

/// Runs `rbuild` with these arguments and these lines on standard input.
fn with_input(env: &TestEnv, args: &[&str], lines: &str) -> Outcome {
    let path = env.work().join("input");
    std::fs::write(&path, lines).expect("a file can be written");
    let mut command = env.command(tests::env::rbuild());
    command.args(args).stdin(Stdio::from(std::fs::File::open(path).expect("it was written")));
    Outcome::of(&mut command)
}

/// The sandbox that a failed build says it kept.
fn kept(failed: &Outcome) -> String {
    let hint = failed.stderr.lines().find(|line| line.contains("`rbuild shell ")).unwrap_or_default();
    hint.split('`').nth(1).and_then(|command| command.rsplit(' ').next()).unwrap_or_default().to_owned()
}

const LOOK: &str = "id -un; id -gn; pwd; echo $GREETING; cat /before /tmp/changed /ctx/in-context /seed/s /cache/c\n\
    ls /mem | wc -l; cat /run/secrets/key; echo more >> /tmp/changed; exit 5\n";

fn keeps(env: &TestEnv, context: &str) {
    let secret = secret(env);
    let failed =
        env.rbuild(["build", "--on-error=keep", &secret, context]).fails_with(4).says("exit code: 7");
    let id = kept(&failed);
    assert!(!id.is_empty(), "{failed}");
    let listed = env.rbuild(["shell"]).ok().stdout;
    assert!(listed.contains(&id) && listed.contains("echo changed"), "{listed}");
    assert!(files_with(&env.root(), b"hunter2").is_empty(), "a secret is kept");

    let looked = with_input(env, &["shell", &secret, &id], LOOK).fails_with(5);
    let expected = "nobody\nusers\n/work\nhello\nbefore\nchanged\ncontext\nseed\ncached\n0\nhunter2\n";
    assert_eq!(looked.stdout, expected, "{looked}");
    // What is changed in it stays; a secret that nobody brings is not there.
    let again = env.rbuild(["shell", &id, "--", "/bin/cat", "/tmp/changed"]).ok();
    assert_eq!(again.stdout, "changed\nmore\n");
    let _ = env.rbuild(["shell", &id, "--", "/bin/cat", "/run/secrets/key"]).fails_with(1);

    let du = env.rbuild(["du", "--format=json"]).ok().stdout;
    assert!(du.contains(r#""Type":"exec.sandbox""#), "{du}");
    let _ = env.rbuild(["prune", "--force", "--filter=type=exec.sandbox"]).ok();
    let _ = env.rbuild(["shell", &id]).fails_with(2).says("there is no kept sandbox");
}

#[test]
fn the_sandbox_of_a_failed_step_can_be_kept_opened_and_pruned() {
    let (env, context) = environment(FAILING);
    keeps(&env, &context);
}

#[test]
fn an_ordinary_users_as_well() {
    let env = TestEnv::rootless();
    Base::Busybox.build_in(&env);
    let context = context(&env, FAILING);
    keeps(&env, &context);
}

#[test]
fn one_shell_is_in_a_sandbox_and_it_is_not_pruned_meanwhile() {
    let (env, context) = environment(FAILING);
    let secret = secret(&env);
    let id = kept(&env.rbuild(["build", "--on-error=keep", &secret, &context]).fails_with(4));
    let mut command = env.command(tests::env::rbuild());
    let mut first = command
        .args(["shell", &id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rbuild starts");
    let mut keys = first.stdin.take().expect("it is piped");
    let mut answer = std::io::BufReader::new(first.stdout.take().expect("it is piped"));
    let mut line = String::new();
    keys.write_all(b"echo in\n").expect("a shell reads");
    std::io::BufRead::read_line(&mut answer, &mut line).expect("a shell writes");
    assert_eq!(line, "in\n");
    let _ = env.rbuild(["shell", &id]).fails_with(2).says("another shell is in it");
    let _ = env.rbuild(["prune", "--force", "--all"]).ok();
    keys.write_all(b"cat /before /tmp/changed\nexit\n").expect("a shell reads");
    line.clear();
    std::io::Read::read_to_string(&mut answer, &mut line).expect("a shell writes");
    assert_eq!(line, "before\nchanged\n");
    assert!(first.wait().expect("it ends").success());
}

#[test]
fn a_shell_opens_at_once_at_a_terminal() {
    let (env, context) = environment(FAILING);
    let secret = secret(&env);
    let _ = env.rbuild(["build", "--on-error=shell", &context]).fails_with(2).says("needs a terminal");
    let mut command = env.command(tests::env::rbuild());
    command.args(["build", "--on-error=shell", &secret, &context]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_for("exit leaves it");
    terminal.send("cat /tmp/changed /run/secrets/key; tty; stty size\n");
    terminal.wait_for("24 80");
    terminal.send("exit 3\n");
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(4), "{shown}");
    assert!(shown.contains("changed\r\nhunter2\r\n/dev/"), "{shown}");
    assert_eq!(env.rbuild(["shell"]).ok().stdout.lines().count(), 1, "it is gone with the shell");
}

#[test]
fn any_step_can_be_looked_at_before_and_after() {
    let dockerfile = "FROM busybox:1\nENV A=1\nCOPY in-context /copied\n\
        RUN --mount=type=secret,id=key echo made > /made\nRUN exit 1\n";
    let (env, context) = environment(dockerfile);
    let secret = secret(&env);
    let look = |args: &[&str], lines: &str| {
        with_input(&env, &[&["shell", &secret][..], args, &[&context]].concat(), lines).ok().stdout
    };
    let _ = env.rbuild(["build", &context]).fails_with(4);
    assert_eq!(
        look(&["--before=echo made"], "cat /copied /run/secrets/key; ls /made\ntrue\n"),
        "context\nhunter2\n"
    );
    assert_eq!(look(&["--after=echo made"], "cat /made; echo $A; rm /made\n"), "made\n1\n");
    assert_eq!(look(&["--before=exit 1"], "cat /made\n"), "made\n");
    assert_eq!(look(&["--after=COPY"], "cat /copied; ls /made\ntrue\n"), "context\n");
    assert_eq!(look(&["--before=COPY"], "ls /copied\ntrue\n"), "");
    assert_eq!(look(&["--after=FROM"], "ls /copied; echo $A\n"), "1\n");
    let _ = env.rbuild(["shell", "--before=nothing", &context]).fails_with(2).says("there is no step");
    let _ = env.rbuild(["shell", "--before=FROM", &context]).fails_with(2).says("nothing before");
    let _ = env.rbuild(["shell", "--before=context", &context]).fails_with(2);
    let _ = env.rbuild(["shell", "--after=exit 1", &context]).fails_with(4);
    let _ = env.rbuild(["shell", "--after=COPY", &context, "--", "/bin/nothing"]).fails_with(127);
}
