//! What is on the screen of a terminal while a build runs, and what stays there.

use std::time::Duration;

use tests::pty::{Screen, Terminal};
use tests::watch::wait_for;
use tests::{Base, Golden, TestEnv};

/// A step with output wider than any terminal here, which goes on until it is told to end.
const STEP: &str = "printf 'wide %0300d\\n' 7; printf 'bell \\007 title \\033]0;evil\\007 up \\033[9A red \\033[31m\\n'; \
                    echo last; until test -e /c/go; do sleep 0.1; done";

fn dockerfile() -> String {
    format!(
        "FROM busybox:1\nCOPY f /f\nRUN --mount=type=cache,target=/c {STEP}\nRUN echo {} > /long\n",
        "a-very-long-command-".repeat(20)
    )
}

/// Lets the step end.
fn let_go(env: &TestEnv) {
    let dockerfile = "FROM busybox:1\nARG N\nRUN --mount=type=cache,target=/c touch /c/go\n";
    let context = env.context("go", &[("Dockerfile", dockerfile)]);
    let _ = env.rbuild(["build".as_ref(), context.as_os_str()]).ok();
}

fn start(env: &TestEnv, columns: u16, rows: u16) -> Terminal {
    let context = env.context("terminal", &[("Dockerfile", &dockerfile()), ("f", "1")]);
    let mut command = env.command(tests::env::rbuild());
    command.args(["build", "--progress=tty", "-t", "x"]).arg(context).env("TERM", "xterm-256color");
    Terminal::start(&command, columns, rows)
}

/// What is shown fits, so that every line begins as one of ours, and nothing a step says has reached the terminal.
#[track_caller]
fn assert_sound(raw: &str, screen: &Screen) {
    let (first, rest) = screen.lines.split_first().expect("there is something on the screen");
    assert!(first.starts_with("[+] Building "), "{screen}");
    assert!(rest.iter().all(|line| line.starts_with(" => ")), "a line is wider than the terminal:\n{screen}");
    assert!(!raw.contains('\u{7}') && !raw.contains("\u{1b}]"), "a step speaks to the terminal: {raw:?}");
}

#[test]
fn a_build_fits_its_terminal_and_leaves_a_summary() {
    for (columns, rows) in [(80, 24), (200, 50)] {
        let env = TestEnv::new();
        Base::Busybox.build_in(&env);
        let mut golden = Golden::new("cli", &env);
        let terminal = start(&env, columns, rows);
        terminal.wait_for("last");
        let screen = terminal.screen();
        assert_sound(&terminal.shown(), &screen);
        golden.text(&format!("tty-{columns}x{rows}-running"), &screen.to_string());
        let_go(&env);
        let (status, raw, screen) = terminal.end_with_screen();
        assert!(status.success(), "{raw}");
        assert_sound(&raw, &screen);
        golden.text(&format!("tty-{columns}x{rows}-done"), &screen.to_string());
        golden.done();
    }
}

#[test]
fn a_terminal_that_becomes_narrower_is_filled_as_it_is_now() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let terminal = start(&env, 120, 40);
    terminal.wait_for("last");
    terminal.resize(50, 12);
    let narrow = || terminal.screen().lines.iter().skip(1).all(|line| line.starts_with(" => "));
    // The next frame, or the one after it.
    assert!(wait_for(Duration::from_secs(5), narrow).is_some(), "{}", terminal.screen());
    let_go(&env);
    let (status, raw, screen) = terminal.end_with_screen();
    assert!(status.success(), "{raw}");
    assert_sound(&raw, &screen);
    assert!(screen.lines[0].ends_with("FINISHED"), "{screen}");
}

#[test]
fn colours_are_shown_unless_they_are_not_wanted() {
    let coloured = |env: &TestEnv| {
        let context = env.context("simple", &[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "1")]);
        let mut command = env.command(tests::env::rbuild());
        command.args(["build", "--progress=tty"]).arg(context);
        let (status, shown) = Terminal::start(&command, 80, 24).end();
        assert!(status.success(), "{shown}");
        shown.contains("\u{1b}[34m")
    };
    let mut env = TestEnv::new();
    env.set("TERM", "xterm-256color");
    assert!(!coloured(&env), "NO_COLOR is set");
    env.set("NO_COLOR", "");
    assert!(coloured(&env));
}
