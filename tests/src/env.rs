//! [`TestEnv`]: a place to run `rbuild` in that nothing outside reaches: own state, home, configuration and variables.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

/// A hermetic place to run `rbuild` in.
#[derive(Debug)]
pub struct TestEnv {
    dir: TempDir,
    user: Option<User>,
    may_administer: bool,
    vars: Vec<(String, String)>,
}

/// What a run of `rbuild` came to.
#[must_use]
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    command: String,
}

/// An ordinary user that tests may run as.
#[derive(Clone, Debug)]
pub struct User {
    name: String,
}

impl TestEnv {
    /// An empty environment for the user that runs the tests.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("rbuild-test-")
            .tempdir()
            .expect("a temporary directory can be made");
        let env = Self { dir, user: None, may_administer: true, vars: Vec::new() };
        for name in ["home", "work", "config"] {
            std::fs::create_dir(env.dir.path().join(name)).expect("a directory can be made");
        }
        env
    }

    /// An empty environment for an ordinary user with a range of subordinate ids; made once on this machine if there is
    /// none. Tests run as root.
    pub fn rootless() -> Self {
        let user = User::ensure("rbuild-test");
        let env = Self { user: Some(user.clone()), ..Self::new() };
        run(Command::new("chown").args(["-R", &user.name]).arg(env.dir.path()));
        run(Command::new("chmod").arg("0755").arg(env.dir.path()));
        env
    }

    /// An empty environment for what root is in a container that is not privileged: without CAP_SYS_ADMIN.
    pub fn container_root() -> Self {
        Self { may_administer: false, ..Self::new() }
    }

    /// A directory for contexts and outputs.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The state directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The directory of `config.json`.
    pub fn docker_config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// Sets a variable for all runs that follow.
    pub fn set(&mut self, name: &str, value: &str) {
        self.vars.push((name.to_owned(), value.to_owned()));
    }

    /// Writes files of a context below [`TestEnv::work`] and returns its directory. Owned by the user of the environment.
    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.work().join(name);
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        for (path, content) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("the context is above"))
                .expect("a directory can be made");
            std::fs::write(path, content).expect("a file can be written");
        }
        if let Some(user) = &self.user {
            run(Command::new("chown").args(["-R", &user.name]).arg(&dir));
        }
        dir
    }

    /// A command that runs `program` in this environment, as its user.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match &self.user {
            None if self.may_administer => Command::new(program),
            None => {
                let mut command = Command::new("setpriv");
                command.args(["--bounding-set", "-sys_admin", "--"]).arg(program);
                command
            }
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", &user.name, "--regid", &user.name, "--init-groups", "--"])
                    .arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path().join("home"))
            .env("RBUILD_ROOT", self.root())
            .env("DOCKER_CONFIG", self.docker_config())
            .env("NO_COLOR", "1")
            .env("BUILDKIT_PROGRESS", "plain")
            .env("RUST_BACKTRACE", "1")
            .envs(self.vars.iter().map(|(name, value)| (name, value)))
            .current_dir(self.work())
            .stdin(Stdio::null());
        command
    }

    /// Runs `rbuild` with these arguments to its end.
    pub fn rbuild<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        let mut command = self.command(rbuild());
        command.args(args);
        Outcome::of(&mut command)
    }
}

impl Default for TestEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl Outcome {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command: format!("{command:?}"),
        }
    }

    /// Fails the test with all output unless it ended well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Fails the test with all output unless it ended with this exit code, and without a panic.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        assert!(!self.stderr.contains("panicked at"), "{self}");
        self
    }

    /// Fails the test unless standard error has `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "standard error lacks {text:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, stdout, stderr, command } = self;
        write!(f, "{command}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

impl User {
    fn ensure(name: &str) -> Self {
        static MADE: OnceLock<()> = OnceLock::new();
        MADE.get_or_init(|| {
            let exists = Command::new("id").arg(name).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !exists.is_ok_and(|status| status.success()) {
                // useradd gives a range in /etc/subuid and /etc/subgid by itself.
                run(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", name]));
            }
        });
        Self { name: name.to_owned() }
    }
}

/// The `rbuild` of this workspace, built now if it is not up to date, in a place that any user can reach.
pub fn rbuild() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace");
        run(Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "builder"]).current_dir(workspace));
        // The test binary is target/<profile>/deps/<name>.
        let me = std::env::current_exe().expect("a process knows its binary");
        let profile = me.ancestors().nth(2).expect("tests are two levels below the profile's directory");
        copied(&profile.join("rbuild"), &place_for_all(profile))
    })
}

/// A directory for copies of the binary: below `profile` if other users may go there, else a temporary one.
fn place_for_all(profile: &Path) -> PathBuf {
    let is_open = |dir: &Path| dir.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 != 0);
    let me = rustix::process::getuid().as_raw();
    let dir = if profile.ancestors().all(is_open) {
        profile.join("test-binaries")
    } else {
        std::env::temp_dir().join(format!("rbuild-test-binaries-{me}"))
    };
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let metadata = dir.metadata().expect("it was made");
    assert_eq!(metadata.uid(), me, "{} belongs to somebody else", dir.display());
    run(Command::new("chmod").arg("0755").arg(&dir));
    dir
}

/// A copy of `binary` in `dir` that stays as it is while the next one is built. There is one of each build; what is older
/// than an hour no test uses any more.
fn copied(binary: &Path, dir: &Path) -> PathBuf {
    let metadata = binary.metadata().expect("the binary was built");
    let build = dir.join(format!("{}-{}", metadata.mtime_nsec(), metadata.size()));
    for entry in std::fs::read_dir(dir).expect("a directory can be listed").flatten() {
        let age = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
        if entry.path() != build && age.is_some_and(|age| age > Duration::from_secs(3600)) {
            let _gone_already = std::fs::remove_dir_all(entry.path());
        }
    }
    let copy = build.join("rbuild");
    if !copy.exists() {
        std::fs::create_dir_all(&build).expect("a directory can be made");
        let half = build.join(format!("half-{}", std::process::id()));
        std::fs::copy(binary, &half).expect("the binary was built");
        std::fs::rename(&half, &copy).expect("a file can be renamed");
    }
    copy
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
