//! Hosts that lack what programs are used to, and files at the edges of what a file can be.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::watch::wait_for;
use tests::{Base, Outcome, TestEnv};

/// Runs a build under a shell line in which `"$@"` is the build.
fn under(env: &TestEnv, line: &str, args: &[&str]) -> Outcome {
    let mut shell = env.command(Path::new("/bin/bash"));
    shell.args(["-ec", line, "sh"]).arg(tests::env::rbuild()).args(args);
    Outcome::of(&mut shell)
}

#[test]
fn a_host_that_lacks_the_usual_makes_no_difference() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "1700000000");
    Base::Busybox.build_in(&env);
    let files: Vec<(String, String)> = (0..300).map(|n| (format!("d/{n}"), format!("{n}"))).collect();
    let mut files: Vec<(&str, &str)> =
        files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let dockerfile = "FROM busybox:1 AS a\nRUN echo a > /a\nFROM busybox:1 AS b\nRUN echo b > /b\n\
                      FROM busybox:1\nCOPY d /d\nCOPY --from=a /a /\nCOPY --from=b /b /\nRUN cat /d/* > /all\n";
    files.push(("Dockerfile", dockerfile));
    let context = env.context("edges", &files).display().to_string();
    let args = ["build", "--no-cache", "--iidfile", &format!("{context}/../iid"), "-t", "x", &context];
    let id = || {
        let id = fs::read_to_string(env.work().join("iid")).expect("it was written");
        fs::remove_file(env.work().join("iid")).expect("a file can be removed");
        id
    };
    let _ = env.rbuild(args).ok();
    let first = id();
    for line in [
        "ulimit -n 64; \"$@\"",
        "ulimit -c 0; ulimit -f 100000; \"$@\"",
        "exec \"$@\" <&-",
        "exec \"$@\" >&-",
        "exec \"$@\" <&- >&- 2>&-",
        "unset HOME DOCKER_CONFIG; \"$@\"",
        "export HOME=/nonexistent TMPDIR=/nonexistent XDG_DATA_HOME= PATH=; exec \"$@\"",
        "export LC_ALL=C LANG=tr_TR.UTF-8 TZ=Asia/Kathmandu; umask 077; \"$@\"",
        "mkdir gone; cd gone; rmdir ../gone; \"$@\"",
        "cd /; \"$@\"",
        "trap '' PIPE; \"$@\" 2>&1 | true",
        "set -o pipefail; \"$@\" 2>&1 | head -c 1 > /dev/null",
    ] {
        let outcome = under(&env, line, &args);
        assert!(outcome.status.success() && !outcome.stderr.contains("panicked"), "{line}: {outcome}");
        assert_eq!(id(), first, "{line}");
    }
    let outcome = under(&env, "mkdir gone; cd gone; rmdir ../gone; \"$@\"", &["build", "."]).fails_with(3);
    assert!(outcome.stderr.contains("could not open context ."), "{outcome}");
    let _ = under(
        &env,
        "set -o pipefail; for command in images builds 'history x' --help; do \"$@\" $command | true; done",
        &[],
    )
    .ok();
}

#[test]
fn files_at_the_edges_come_through_as_they_are() {
    let env = TestEnv::new();
    let context = env.context("odd", &[("Dockerfile", "FROM scratch\nCOPY d /\n")]);
    let dir = context.join("d");
    fs::create_dir(&dir).expect("a directory can be made");
    let long = [b'n'; 255];
    let names: &[&[u8]] = &[
        b"\xff\xfe",
        b"new\nline",
        b"back\\slash",
        b"quotes'\"`",
        b"-dash",
        b"--",
        b"Case",
        b"case",
        b"\xc3\xa9",
        b"e\xcc\x81",
        b" ",
        b"tab\t",
        b"$x",
        b"%s",
        b"[x]",
        b"*",
        b"~",
        b"\x01\x7f",
        &long,
    ];
    let seconds = |seconds: i64| match u64::try_from(seconds) {
        Ok(after) => std::time::UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => std::time::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()),
    };
    let times = [-1, 0, 1, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 33) - 1, 1 << 33, (1 << 33) + (1 << 32)];
    for (at, name) in names.iter().enumerate() {
        let path = dir.join(OsStr::from_bytes(name));
        fs::write(&path, name).expect("a file can be written");
        let file = fs::File::open(&path).expect("a file can be opened");
        file.set_modified(seconds(times[at % times.len()])).expect("a time can be set");
    }
    let deep = (0..300).fold(dir.join("deep"), |path, level| path.join(level.to_string()));
    fs::create_dir_all(deep).expect("directories can be made");
    let sparse = fs::File::create(dir.join("sparse")).expect("a file can be made");
    sparse.set_len(200 << 20).expect("a file can have holes");
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("a socket can be made");
    let made = Command::new("sh")
        .args(["-c", "mkfifo fifo; ln Case same; ln -s /nowhere link"])
        .current_dir(&dir)
        .status();
    assert!(made.is_ok_and(|status| status.success()));

    let tar = env.work().join("out.tar").display().to_string();
    let output = format!("type=tar,dest={tar}");
    let _ = env.rbuild(["build".as_ref(), "-o".as_ref(), output.as_ref(), context.as_os_str()]).ok();
    let out = env.work().join("out");
    fs::create_dir(&out).expect("a directory can be made");
    let _ = Outcome::of(Command::new("tar").args(["-xSpf", &tar]).arg("-C").arg(&out)).ok();
    let listed = |dir: &Path| {
        // A socket is nothing that an image can have.
        let line = "find . -mindepth 1 ! -type s -printf '%P\\0%y %m %s %Ts %n %l\\0' | sort -z";
        let shown = Command::new("sh").args(["-c", line]).current_dir(dir).output().expect("sh runs");
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        // Sizes of directories are the file system's.
        let lines = text.split('\n').flat_map(|part| part.split('\0'));
        lines.filter(|part| !part.starts_with("d ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (expected, got) = (listed(&dir), listed(&out));
    let differ: Vec<_> = expected.iter().zip(&got).filter(|(expected, got)| expected != got).collect();
    assert!(expected.len() == got.len() && differ.is_empty(), "expected and got: {differ:?}");
}

#[test]
fn a_file_of_a_terabyte_can_be_interrupted() {
    let env = TestEnv::new();
    let context = env.context("huge", &[("Dockerfile", "FROM scratch\nCOPY huge /\n")]);
    let huge = fs::File::create(context.join("huge")).expect("a file can be made");
    huge.set_len(1 << 40).expect("a file can have holes");
    let mut build = env.command(tests::env::rbuild());
    let mut build = build.arg("build").arg(&context).stderr(Stdio::null()).spawn().expect("rbuild starts");
    // It has opened the file when it is in its table.
    let fds = format!("/proc/{}/fd", build.id());
    let is_open = || {
        let mut fds = fs::read_dir(&fds).into_iter().flatten().flatten();
        fds.any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.ends_with("huge")))
    };
    assert!(wait_for(Duration::from_secs(30), is_open).is_some());
    let start = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&build), rustix::process::Signal::INT)
        .expect("it runs");
    assert_eq!(build.wait().expect("it ends").code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn what_a_step_says_is_shown_as_text_and_kept_as_it_is() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let step = "RUN printf '\\377\\000\\033]0;evil\\007\\033[2J\\r\\n'; head -c 5000000 /dev/zero | tr '\\000' x; echo; echo end";
    let context = env.context("loud", &[("Dockerfile", &format!("FROM busybox:1\n{step}\n"))]);
    let mut build = env.command(tests::env::rbuild());
    let shown = build.arg("build").arg(&context).output().expect("rbuild runs");
    assert!(shown.status.success());
    let text = String::from_utf8(shown.stderr).expect("what is shown is text");
    assert!(!text.contains(['\u{1b}', '\u{7}', '\0']), "{}", &text[..500]);
    assert!(text.lines().any(|line| line.ends_with(" end")), "the last line is shown");
    let mut logs = env.command(tests::env::rbuild());
    let kept = logs.args(["logs", "--help"]).output().expect("rbuild runs");
    assert!(kept.status.success());
    let kept = files_of_builds(&env);
    assert_eq!(kept.len(), 1);
    assert!(kept[0].starts_with(b"\xff\0\x1b]0;evil\x07\x1b[2J\r\n"), "{:?}", &kept[0][..40]);
    assert!(kept[0].ends_with(b"x\nend\n") && kept[0].len() > 5_000_000, "{}", kept[0].len());
}

/// The outputs that are kept.
fn files_of_builds(env: &TestEnv) -> Vec<Vec<u8>> {
    let builds = fs::read_dir(env.root().join("builds")).expect("builds are kept");
    let files = builds.flatten().flat_map(|build| fs::read_dir(build.path()).into_iter().flatten().flatten());
    let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|log| fs::read(log.path()).expect("a file can be read")).filter(|log| !log.is_empty()).collect()
}

#[test]
fn thousands_of_instructions_and_stages_are_no_matter() {
    let env = TestEnv::new();
    let lines: String = (0..2000).map(|n| format!("ENV V{n}={n}\n")).collect();
    let stages: String = (1..1000).map(|n| format!("FROM s{} AS s{n}\nLABEL l{n}={n}\n", n - 1)).collect();
    let dockerfile = format!("FROM scratch AS s0\nCOPY Dockerfile /\n{lines}{stages}");
    let context = env.context("many", &[("Dockerfile", &dockerfile)]).display().to_string();
    let start = Instant::now();
    let _ = env.rbuild(["build", "-t", "x", &context]).ok();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let config: serde_json::Value =
        serde_json::from_str(&env.rbuild(["inspect", "x"]).ok().stdout).expect("inspect prints JSON");
    // And PATH.
    assert_eq!(config[0]["Config"]["Env"].as_array().map(Vec::len), Some(2001));
    assert_eq!(config[0]["Config"]["Labels"].as_object().map(serde_json::Map::len), Some(999));
}
