//! `--ssh id=key`: keys that are given as files are held by an agent of the build's own.
//!
//! OpenSSH's `ssh-agent` and `ssh-add` do the work, under a shell that ends them when its standard input does: an agent
//! never outlives the build, however that ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use store::root::Root;
use store::temp::WorkDir;

use crate::failure::{Class, Failure, OrFail as _};

/// Starts the agent, waits until it answers (five seconds; 1: it has no keys), adds the keys, and stays until nobody holds its
/// input. That its socket is there does not say that it listens.
const SCRIPT: &str = r#"
ssh-agent -D -a "$SSH_AUTH_SOCK" >/dev/null &
trap "kill $! 2>/dev/null" EXIT
tries=0
until ssh-add -l >/dev/null 2>&1 || [ $? -eq 1 ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "ssh-agent does not start" >&2; exit 1; }
    sleep 0.05
done
ssh-add -q -- "$@" || exit 1
echo ready
exec 2>/dev/null
cat >/dev/null
"#;

/// The agents of a build.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    /// Their sockets, by id.
    pub(crate) sockets: BTreeMap<String, PathBuf>,
    own: Vec<Agent>,
}

/// An agent that holds keys of this build.
#[derive(Debug)]
struct Agent {
    child: Child,
    // The socket is in it.
    _dir: WorkDir,
}

impl Agents {
    /// What `--ssh` asks for: a socket is used as it is, keys are held by an agent that lives as long as the value.
    pub(crate) fn new(root: &Root, asked: &BTreeMap<String, Vec<PathBuf>>) -> Result<Self, Failure> {
        let mut agents = Self::default();
        for (id, paths) in asked {
            let is_socket = |path: &PathBuf| {
                std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
            };
            let socket = match &paths[..] {
                [socket] if is_socket(socket) => socket.clone(),
                keys => {
                    if let Some(socket) = keys.iter().find(|path| is_socket(path)) {
                        let message = format!("--ssh {id}: {} is a socket among others", socket.display());
                        return Err(Failure::usage(message).hint("give one socket, or keys"));
                    }
                    let dir = root.work_dir()?;
                    let socket = dir.path().join("agent");
                    agents.own.push(Agent { child: start(id, &socket, keys)?, _dir: dir });
                    socket
                }
            };
            agents.sockets.insert(id.clone(), socket);
        }
        Ok(agents)
    }
}

fn start(id: &str, socket: &Path, keys: &[PathBuf]) -> Result<Child, Failure> {
    let mut child = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .args(keys)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("SSH_AUTH_SOCK", socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for the build, which then ends it.
        .process_group(0)
        .spawn()
        .or_fail(Class::Host)?;
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).or_fail(Class::Host)?;
    if line == "ready\n" {
        return Ok(child);
    }
    let mut why = String::new();
    let _ = child.stderr.take().expect("it is piped").read_to_string(&mut why);
    let _ = child.wait();
    let shown: Vec<String> = keys.iter().map(|key| key.display().to_string()).collect();
    let message = format!("could not use the keys of --ssh {id}={}: {}", shown.join(","), why.trim());
    Err(Failure::usage(message).hint("keys with a passphrase go into an ssh-agent of yours: --ssh ID=SOCKET"))
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its end ends the shell, and that the agent.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_held_as_long_as_the_build_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let key = dir.path().join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let list =
            |socket: &Path| Command::new("ssh-add").arg("-L").env("SSH_AUTH_SOCK", socket).output().unwrap();
        let agents = Agents::new(&root, &[("default".to_owned(), vec![key.clone()])].into()).unwrap();
        let socket = agents.sockets["default"].clone();
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let listed = String::from_utf8(list(&socket).stdout).unwrap();
        assert_eq!(listed.split(' ').nth(1), public.split(' ').nth(1));
        // A socket is passed on.
        let passed = Agents::new(&root, &[("a".to_owned(), vec![socket.clone()])].into()).unwrap();
        assert_eq!(passed.sockets["a"], socket);
        drop(agents);
        assert!(!list(&socket).status.success());
        let missing = [("a".to_owned(), vec![dir.path().join("none")])].into();
        let failure = Agents::new(&root, &missing).unwrap_err();
        assert!(failure.message.contains("none") && failure.class == Class::Usage, "{failure}");
    }
}
