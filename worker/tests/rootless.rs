//! A step without root: this binary becomes an ordinary user, enters a user namespace and runs a step there. It has a
//! `main` of its own because a process must do that before it has a second thread; it answers `--list` as test
//! binaries do.
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "it is its own test harness")]
#![expect(clippy::disallowed_methods, clippy::exit, reason = "it is its own test harness")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use solver::op::Security;
use worker::exec::{Access, Identity, Lower, Mount, Network, Plan, Root, Secret, Source, Stdio, spawn};
use worker::isolate::userns::{Entered, Ids, enter};

const MODE: &str = "ROOTLESS_TEST_EXPECTS";

const TESTS: &[(&str, fn())] = &[
    ("a_user_without_subordinate_ids_runs_steps_as_root", without_range),
    ("a_user_with_subordinate_ids_runs_steps_as_anybody", with_range),
];

fn main() {
    if let Ok(expected) = std::env::var(MODE) {
        return inside(&expected);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ignored = args.iter().any(|arg| arg == "--ignored");
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in TESTS.iter().filter(|_| !ignored) {
            println!("{name}: test");
        }
        return;
    }
    let filter = args.iter().find(|arg| !arg.starts_with("--"));
    for (name, test) in
        TESTS.iter().filter(|(name, _)| !ignored && filter.is_none_or(|filter| name.contains(filter)))
    {
        println!("test {name}");
        test();
    }
}

fn without_range() {
    let Some(binary) = prepare() else { return };
    // A number that nobody has.
    run(
        Command::new("setpriv").args(["--reuid=54321", "--regid=54321", "--clear-groups"]).arg(binary),
        "single",
    );
}

fn with_range() {
    let Some(binary) = prepare() else { return };
    let nobody = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !nobody.contains("nobody:x:65534:")
        || ["/usr/bin/newuidmap", "/etc/subuid", "/etc/subgid"].iter().any(|path| !Path::new(path).exists())
    {
        eprintln!("SKIPPED: needs the user nobody, newuidmap, and files to mount on");
        return;
    }
    // In a mount namespace of its own, /etc/subuid gives nobody a range.
    let script = "for f in subuid subgid; do \
                    printf 'nobody:200000:65536\\n' > $0.$f && mount --bind $0.$f /etc/$f || exit 1; \
                  done; exec setpriv --reuid=65534 --regid=65534 --clear-groups $0";
    run(Command::new("unshare").args(["-m", "sh", "-c", script]).arg(binary), "range");
}

/// A copy of this binary that other users can reach.
fn prepare() -> Option<std::path::PathBuf> {
    let tools = ["/usr/bin/setpriv", "/usr/bin/unshare", "/bin/busybox"];
    if !rustix::process::geteuid().is_root() || tools.iter().any(|tool| !Path::new(tool).exists()) {
        eprintln!("SKIPPED: needs root to become somebody else, setpriv, unshare and a static /bin/busybox");
        return None;
    }
    let base = tempfile::Builder::new().prefix("rootless").tempdir().unwrap().keep();
    let copy = base.join("test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Some(copy)
}

fn run(command: &mut Command, mode: &str) {
    let binary = command.get_args().last().unwrap().to_owned();
    let status = command.env(MODE, mode).status().unwrap();
    fs::remove_dir_all(Path::new(&binary).parent().unwrap()).unwrap();
    if !status.success() {
        std::process::exit(1);
    }
}

/// In the process that is an ordinary user.
fn inside(expected: &str) {
    assert!(!rustix::process::geteuid().is_root());
    let entered = match enter() {
        Ok(entered) => entered,
        Err(obstacle) => {
            eprintln!("SKIPPED: {obstacle}");
            return;
        }
    };
    match expected {
        "single" => assert_eq!(entered, Entered::Single),
        _ => assert_eq!(entered, Entered::Range(65536)),
    }
    assert!(rustix::process::geteuid().is_root() && Ids::current().is_namespace());

    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name);
    for directory in ["layer/bin", "layer/etc", "layer/old", "upper", "work"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    fs::write(path("layer/old/file"), "x").unwrap();
    fs::copy("/bin/busybox", path("layer/bin/busybox")).unwrap();
    for applet in
        ["sh", "id", "cat", "ls", "mkdir", "touch", "rm", "chown", "hostname", "stat", "wc", "grep", "mount"]
    {
        symlink("busybox", path("layer/bin").join(applet)).unwrap();
    }
    let content = Secret::new(b"127.0.0.1 localhost\n".to_vec());
    let hosts = Source::File { content, mode: 0o644, uid: 0, gid: 0 };
    let mut plan = Plan {
        root: Root::Overlay {
            lowers: vec![Lower::Directory(path("layer"))],
            access: Access::Writable { upper: path("upper"), work: path("work") },
        },
        read_only: false,
        skeletons: Some(path("skeletons")),
        mounts: vec![Mount { target: "/etc/hosts".into(), source: hosts, readonly: true }],
        args: ["sh", "-c", "echo $$; id -u; cat /etc/hosts; rm -r /old; touch /new; grep CapEff /proc/self/status; \
                head -c1 /proc/keys 2>/dev/null; ls /sys/fs >/dev/null && echo sys; touch /sys/x 2>/dev/null; \
                echo x > /dev/null && echo null; mount -t tmpfs x /tmp 2>/dev/null || echo no mount"]
            .map(String::from)
            .to_vec(),
        env: vec!["PATH=/bin".into()],
        secret_env: vec![],
        cwd: "/".into(),
        identity: Identity::default(),
        hostname: "box".into(),
        network: Network::Host,
        security: Security::Sandbox,
        no_new_privileges: false,
        limits: vec![],
        shm_size: 64 << 20,
        group: Default::default(),
    };
    let want = "1\n0\n127.0.0.1 localhost\nCapEff:\t00000000a80425fb\nsys\nnull\nno mount\n";
    assert_eq!(step(&plan).unwrap(), want);
    let mut names: Vec<_> = fs::read_dir(path("upper"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["new", "old"]);

    // Its own network, and as another user.
    plan.network = Network::None;
    plan.identity = Identity { uid: 1000, gid: 1000, ..Identity::default() };
    plan.args[2] = "id -u; ls /sys/class/net".into();
    let _used = fs::remove_dir_all(path("work"));
    fs::create_dir(path("work")).unwrap();
    match entered {
        Entered::Single => {
            let error = step(&plan).unwrap_err();
            assert!(error.contains("user namespace has no such id"), "{error}");
        }
        _ => {
            assert_eq!(step(&plan).unwrap(), "1000\nlo\n");
            plan.identity = Identity::default();
            plan.args[2] = "touch /mine && chown 7:8 /mine".into();
            let _used = fs::remove_dir_all(path("work"));
            fs::create_dir(path("work")).unwrap();
            step(&plan).unwrap();
            assert_eq!(path("upper/mine").metadata().unwrap().uid(), 7);
        }
    }
    println!("ok: {entered:?}");
}

fn step(plan: &Plan) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut child = spawn(plan, Stdio::Piped { stdin: None }).await.map_err(|error| error.to_string())?;
        let mut output = Vec::new();
        let exit = child.run(|_, bytes| output.extend_from_slice(bytes)).await.unwrap();
        let output = String::from_utf8_lossy(&output).into_owned();
        if exit.success() { Ok(output) } else { Err(format!("{exit:?} {output}")) }
    })
}
