//! A process that runs: its output, its end, killing it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::{Errno, read};
use rustix::process::Pid;
use solver::event::Stream;
use tokio::io::unix::AsyncFd;

use super::report::Stub;
use super::stub::{self, Place};
use crate::isolate::cgroup;
use crate::isolate::group::{Group, Memory};
use crate::sys::async_fd;
use crate::sys::clone3::Cloned;
use crate::sys::pidfd::send_signal;
use crate::sys::waitid::{Block, Ended, Used, waitid};

/// A process in a sandbox. Dropped, it is killed, with all that it started.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    output: Option<Output>,
    /// The controlling end of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    pub(super) stubs: Vec<Stub>,
    place: Option<(PathBuf, Place)>,
    started: Instant,
    memory: OwnMemory,
    // Set once the process has been waited for.
    exit: Option<Exit>,
}

/// Where the kernel counts what it kills for memory.
#[derive(Debug)]
pub(super) enum OwnMemory {
    /// In a group of the process's own, which goes with it.
    Group(Group),
    /// In one that others are in as well.
    Shared {
        /// The count when it started.
        kills_before: u64,
    },
}

/// How a process ended and what it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// How.
    pub status: Status,
    /// The kernel killed something in it because memory ran out: what is known of it.
    pub out_of_memory: Option<OutOfMemory>,
    /// CPU time and memory of the command and of all children it waited for.
    pub used: Used,
    /// From clone to end.
    pub wall: Duration,
}

/// Memory that was not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The most that was used, bytes, if that is known.
    pub peak: Option<u64>,
    /// How much there was, bytes, if that is known.
    pub limit: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended with code 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0)
    }

    /// The code, or 128 and the signal's number, as shells and Docker have it.
    pub fn code(&self) -> i32 {
        match self.status {
            Status::Code(code) => code,
            Status::Signal(number) => 128 + number,
        }
    }
}

impl Child {
    pub(super) fn new(
        cloned: Cloned,
        output: Option<Output>,
        place: Option<(PathBuf, Place)>,
        started: Instant,
        memory: OwnMemory,
    ) -> Result<Self, Errno> {
        let pidfd = match async_fd::readable(cloned.pidfd) {
            Ok(pidfd) => pidfd,
            Err((pidfd, errno)) => {
                let _gone = send_signal(pidfd.as_fd(), libc::SIGKILL);
                let _gone = waitid(pidfd.as_fd(), Block::Yes);
                return Err(errno);
            }
        };
        Ok(Self {
            pid: cloned.pid,
            pidfd,
            output,
            terminal: None,
            stubs: Vec::new(),
            place,
            started,
            memory,
            exit: None,
        })
    }

    /// Its number on the host.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of the process: readable when it has ended.
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its output, to be read apart from waiting; `None` if it is not piped, or taken already.
    pub fn take_output(&mut self) -> Option<Output> {
        self.output.take()
    }

    /// Sends a signal to the command. As first process of its namespace it ignores what it does not handle, but for
    /// `SIGKILL` and `SIGSTOP`.
    pub fn signal(&self, number: i32) -> Result<(), Errno> {
        match send_signal(self.pidfd.as_fd(), number) {
            // It has ended.
            Err(Errno::SRCH) => Ok(()),
            result => result,
        }
    }

    /// Kills the command and with it all of its PID namespace. [`Child::wait`] returns soon after.
    pub fn kill(&self) {
        // The descriptor is a process of ours: nothing but ESRCH can come, and then there is nothing to kill.
        let _ended = self.signal(libc::SIGKILL);
    }

    /// Waits until it has ended and everything it started is gone. Idempotent; safe to drop and call again.
    pub async fn wait(&mut self) -> Result<Exit, Errno> {
        loop {
            if let Some(exit) = self.exit {
                return Ok(exit);
            }
            let mut ready = self
                .pidfd
                .readable()
                .await
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            match waitid(self.pidfd.as_fd(), Block::No) {
                Ok(Some(ended)) => {
                    drop(ready);
                    self.ended(ended);
                }
                Ok(None) => ready.clear_ready(),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Gives all output to `sink` and waits. Ends when the command has, even if somebody else holds its pipes.
    pub async fn run(&mut self, mut sink: impl FnMut(Stream, &[u8])) -> Result<Exit, Errno> {
        let Some(mut output) = self.output.take() else { return self.wait().await };
        let exit = loop {
            tokio::select! {
                biased;
                chunk = output.next() => match chunk? {
                    Some((stream, bytes)) => sink(stream, bytes),
                    None => break self.wait().await?,
                },
                exit = self.wait() => break exit?,
            }
        };
        while let Some((stream, bytes)) = output.now()? {
            sink(stream, bytes);
        }
        Ok(exit)
    }

    /// Waits for a process that is known to end at once.
    pub(super) fn reap(&mut self) {
        if self.exit.is_none()
            && let Ok(Some(ended)) = waitid(self.pidfd.as_fd(), Block::Yes)
        {
            self.ended(ended);
        }
    }

    fn ended(&mut self, (ended, used): (Ended, Used)) {
        let wall = self.started.elapsed();
        let status = match ended {
            Ended::Exited(code) => Status::Code(code),
            Ended::Signalled(number) => Status::Signal(number),
        };
        // A shell tells of its child's death by SIGKILL with code 137.
        let killed = matches!(status, Status::Signal(libc::SIGKILL) | Status::Code(137));
        let out_of_memory = match &self.memory {
            OwnMemory::Group(group) => {
                let Memory { kills, peak, limit } = group.memory();
                (kills > 0 && status != Status::Code(0)).then_some(OutOfMemory { peak, limit })
            }
            OwnMemory::Shared { kills_before } => (killed && cgroup::oom_kills() > *kills_before)
                .then(|| OutOfMemory { peak: Some(used.max_rss), limit: cgroup::memory_limit() }),
        };
        self.exit = Some(Exit { status, out_of_memory, used, wall });
        if let Some((base, place)) = &self.place {
            stub::remove(base, *place, &self.stubs);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
            // SIGKILL cannot be refused: this takes as long as the kernel needs to end the namespace.
            self.reap();
        }
    }
}

/// What a process writes to its standard output and error.
pub struct Output {
    stdout: Option<AsyncFd<OwnedFd>>,
    stderr: Option<AsyncFd<OwnedFd>>,
    buffer: Box<[u8]>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stdout, stderr, .. } = self;
        f.debug_struct("Output").field("stdout", stdout).field("stderr", stderr).finish_non_exhaustive()
    }
}

impl Output {
    /// Memory for output that is read and not yet taken.
    const CHUNK: usize = 64 << 10;

    pub(super) fn new(stdout: OwnedFd, stderr: OwnedFd) -> Result<Self, Errno> {
        let register = |fd| async_fd::readable(fd).map(Some).map_err(|(_, errno)| errno);
        Ok(Self {
            stdout: register(stdout)?,
            stderr: register(stderr)?,
            buffer: vec![0; Self::CHUNK].into_boxed_slice(),
        })
    }

    /// The next piece, as it was written, or `None` when both streams have ended. Nothing is lost if the future is
    /// dropped.
    pub async fn next(&mut self) -> Result<Option<(Stream, &[u8])>, Errno> {
        loop {
            let (stream, got) = match (&self.stdout, &self.stderr) {
                (None, None) => return Ok(None),
                (Some(out), None) => (Stream::Stdout, try_read(out, &mut self.buffer).await?),
                (None, Some(err)) => (Stream::Stderr, try_read(err, &mut self.buffer).await?),
                (Some(out), Some(err)) => tokio::select! {
                    biased;
                    ready = out.readable() => {
                        (Stream::Stdout, take(ready, &mut self.buffer)?)
                    }
                    ready = err.readable() => {
                        (Stream::Stderr, take(ready, &mut self.buffer)?)
                    }
                },
            };
            match got {
                None => {}
                Some(0) => self.close(stream),
                Some(length) => return Ok(Some((stream, &self.buffer[..length]))),
            }
        }
    }

    /// What can be read without waiting.
    pub fn now(&mut self) -> Result<Option<(Stream, &[u8])>, Errno> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let source = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
            let Some(fd) = source else { continue };
            match read(fd, &mut self.buffer[..]) {
                Ok(0) => self.close(stream),
                Ok(length) => return Ok(Some((stream, &self.buffer[..length]))),
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    }

    fn close(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
    }
}

type Ready<'a> = std::io::Result<tokio::io::unix::AsyncFdReadyGuard<'a, OwnedFd>>;

async fn try_read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    take(fd.readable().await, buffer)
}

/// Reads once; `None` if there is nothing after all.
fn take(ready: Ready<'_>, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let mut ready = ready.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    match read(ready.get_inner(), buffer) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::WOULDBLOCK) => {
            ready.clear_ready();
            Ok(None)
        }
        Err(Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
