//! The SSH agent of a step: a socket of the step's own, whose requests are handed on as far as they change nothing.
//!
//! A step may ask which keys there are and have them sign; keys are neither added nor removed, and the agent is not
//! locked, as in BuildKit. The protocol is draft-ietf-sshm-ssh-agent: each message is its length in four bytes, and
//! then its type and what belongs to it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::inside;

const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// SSH_AGENT_FAILURE, as a message.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
/// OpenSSH's own limit on a message.
const LONGEST: usize = 256 << 10;

/// A socket that hands on what is allowed, as long as the value lives.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Makes the socket in the directory `dir`, for `owner` and with the permission bits `mode`; what comes goes to the
    /// socket `agent`.
    pub(crate) fn start(dir: &Path, agent: &Path, mode: u16, owner: (u32, u32)) -> io::Result<Self> {
        let socket = dir.join("agent");
        let listener = bind(dir)?;
        fs::set_permissions(&socket, Permissions::from_mode(u32::from(mode)))?;
        chown(&socket, Some(owner.0), Some(owner.1))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (agent, stop) = (agent.to_owned(), stopped.clone());
        let thread = thread::Builder::new()
            .name("ssh agent".to_owned())
            .spawn(move || serve(&listener, &agent, &stop))?;
        Ok(Self { socket, stopped, thread: Some(thread) })
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the thread; if it cannot be reached, it has ended.
        let parent = self.socket.parent().unwrap_or(Path::new("/"));
        let woken = File::open(parent).and_then(|dir| UnixStream::connect(short(&dir)));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn bind(dir: &Path) -> io::Result<UnixListener> {
    let dir = File::open(dir)?;
    UnixListener::bind(short(&dir))
}

/// The socket in `dir` by a path that fits into an address, which has 108 bytes for it.
fn short(dir: &File) -> PathBuf {
    Path::new(&inside::proc_path(dir.as_fd())).join("agent")
}

fn serve(listener: &UnixListener, agent: &Path, stopped: &AtomicBool) {
    let mut open: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
    for client in listener.incoming() {
        if stopped.load(Ordering::Acquire) {
            break;
        }
        open.retain(|(_, thread)| !thread.is_finished());
        // A step that opens too many connections is told by their end.
        let Ok(client) = client else { continue };
        let (Ok(end), Ok(agent)) = (client.try_clone(), UnixStream::connect(agent)) else { continue };
        let spawned = thread::Builder::new().name("ssh agent".to_owned()).spawn(move || {
            // What went wrong is the client's to notice: its connection ends, though `end` is still open.
            let _ = hand_on(&client, &agent);
            let _ = client.shutdown(Shutdown::Both);
        });
        if let Ok(thread) = spawned {
            open.push((end, thread));
        }
    }
    for (client, thread) in open {
        let _ = client.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

/// Answers the requests of one connection until it ends.
fn hand_on(mut client: impl Read + Write, mut agent: impl Read + Write) -> io::Result<()> {
    while let Some(request) = receive(&mut client)? {
        if !matches!(request.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST))) {
            client.write_all(&FAILURE)?;
            continue;
        }
        send(&mut agent, &request)?;
        match receive(&mut agent)? {
            Some(answer) => send(&mut client, &answer)?,
            None => client.write_all(&FAILURE)?,
        }
    }
    Ok(())
}

/// The next message; `None` if there is none.
fn receive(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of the SSH agent's has a wrong length",
        ));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message)?;
    Ok(Some(message))
}

fn send(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    to.write_all(&[&length[..], message].concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        send(&mut message, &[&[kind], rest].concat()).unwrap();
        message
    }

    /// Answers each request with its type and 100 more.
    fn echo(dir: &Path) -> PathBuf {
        let socket = dir.join("real");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                thread::spawn(move || {
                    while let Ok(Some(request)) = receive(&mut client) {
                        let _ = send(&mut client, &[request[0] + 100]);
                    }
                });
            }
        });
        socket
    }

    #[test]
    fn keys_of_a_real_agent_stay() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let run = |program: &str, args: &[&str], socket: &Path| {
            let mut command = std::process::Command::new(program);
            command.args(args).env("SSH_AUTH_SOCK", socket).output().unwrap().status.success()
        };
        let key = dir.path().join("key").display().to_string();
        assert!(run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key], &real));
        let mut ssh_agent = std::process::Command::new("ssh-agent");
        let ssh_agent = ssh_agent.args(["-D", "-a"]).arg(&real).stdout(std::process::Stdio::null());
        let mut ssh_agent = ssh_agent.spawn().unwrap();
        while !real.exists() {
            thread::yield_now();
        }
        assert!(run("ssh-add", &["-q", &key], &real));
        let agent = Agent::start(dir.path(), &real, 0o600, (0, 0)).unwrap();
        assert!(run("ssh-add", &["-l"], agent.socket()));
        // Signs something and verifies it.
        assert!(run("ssh-add", &["-T", &format!("{key}.pub")], agent.socket()));
        for refused in [&["-D"][..], &["-d", &key], &["-q", &key]] {
            assert!(!run("ssh-add", refused, agent.socket()), "{refused:?}");
        }
        assert!(run("ssh-add", &["-l"], &real));
        drop(agent);
        ssh_agent.kill().unwrap();
        ssh_agent.wait().unwrap();
    }

    #[test]
    fn keys_are_listed_and_sign_and_nothing_else_is_done() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than an address of a socket.
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let agent = Agent::start(&deep, &echo(dir.path()), 0o640, (0, 0)).unwrap();
        assert_eq!(fs::metadata(agent.socket()).unwrap().mode() & 0o7777, 0o640);
        let directory = File::open(&deep).unwrap();
        let mut client = UnixStream::connect(short(&directory)).unwrap();
        // 1, 17, 25, 26: add; 9, 18, 19: remove; 20, 21: cards; 22, 23: lock, unlock; 27: extensions.
        for kind in [1, 9, 11, 13, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 0, 255] {
            client.write_all(&message(kind, b"rest")).unwrap();
            let answer = receive(&mut client).unwrap().unwrap();
            let expected = if matches!(kind, 11 | 13) { kind + 100 } else { 5 };
            assert_eq!(answer, [expected], "{kind}");
        }
        // Too long, or empty: the connection ends.
        for wrong in [[0xff, 0xff, 0xff, 0xff], [0, 0, 0, 0]] {
            let mut client = UnixStream::connect(short(&directory)).unwrap();
            client.write_all(&wrong).unwrap();
            assert_eq!(receive(&mut client).unwrap_or(None), None);
        }
        drop(agent);
        assert_eq!(receive(&mut client).unwrap_or(None), None);
        // A process that another test is about to start may have the socket open until it does.
        let mut tries = 200;
        while UnixStream::connect(short(&directory)).is_ok() {
            tries -= 1;
            assert!(tries > 0, "the agent is still there");
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
