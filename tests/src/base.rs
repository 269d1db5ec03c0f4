//! Base images for tests, made from Debian packages: nothing is downloaded from a registry, nothing committed as a blob.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::env::TestEnv;

/// A base image that tests build on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// `busybox:1`: the static busybox of `busybox-static` and a minimal `/etc`.
    Busybox,
    /// `debian:bookworm`: `debootstrap --variant=minbase`; apt works in it.
    Debian,
}

impl Base {
    /// The tag it gets.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Busybox => "busybox:1",
            Self::Debian => "debian:bookworm",
        }
    }

    /// Builds the image in `env` under [`Base::tag`].
    pub fn build_in(self, env: &TestEnv) {
        let dockerfile = match self {
            Self::Busybox => {
                "FROM scratch\nADD root.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nCMD [\"sh\"]\n"
            }
            Self::Debian => {
                "FROM scratch\nADD root.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nCMD [\"bash\"]\n"
            }
        };
        let context = env.context(&format!("base-{self:?}"), &[("Dockerfile", dockerfile)]);
        std::fs::copy(self.root_tar(), context.join("root.tar")).expect("the tar can be copied");
        let _ = env.rbuild(["build".as_ref(), "-t".as_ref(), self.tag().as_ref(), context.as_os_str()]).ok();
    }

    /// The root as a tar archive, made once a checkout.
    pub fn root_tar(self) -> PathBuf {
        static MAKING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-bases");
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        let tar = dir.join(format!("{self:?}.tar"));
        // Other test processes may be at it as well.
        let lock = std::fs::File::create(dir.join("lock")).expect("a file can be made");
        lock.lock().expect("a file can be locked");
        if !tar.exists() {
            let root = tempfile::tempdir().expect("a temporary directory can be made");
            match self {
                Self::Busybox => busybox(root.path()),
                Self::Debian => debian(root.path()),
            }
            let half = dir.join("half.tar");
            run(Command::new("tar")
                .arg("-C")
                .arg(root.path())
                .arg("--numeric-owner")
                .arg("-cf")
                .arg(&half)
                .arg("."));
            std::fs::rename(half, &tar).expect("a file can be renamed");
        }
        tar
    }
}

fn busybox(root: &Path) {
    for dir in ["bin", "etc", "root", "proc", "sys", "dev", "usr", "var", "home", "tmp"] {
        std::fs::create_dir(root.join(dir)).expect("a directory can be made");
    }
    run(Command::new("chmod").arg("1777").arg(root.join("tmp")));
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox-static is installed");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("a link can be made");
    }
    let write =
        |path: &str, text: &str| std::fs::write(root.join(path), text).expect("a file can be written");
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    );
    write("etc/group", "root:x:0:\ndaemon:x:1:\nusers:x:100:\nnobody:x:65534:\n");
    write("etc/os-release", "ID=busybox\nNAME=BusyBox\n");
}

fn debian(root: &Path) {
    run(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(root).stdout(Stdio::null()));
    for pattern in ["var/cache/apt/archives/*.deb", "var/lib/apt/lists/*"] {
        run(Command::new("sh").arg("-c").arg(format!("rm -rf {}/{pattern}", root.display())));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
