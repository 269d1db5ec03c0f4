//! `rbuild run`: a process with the caller's terminal or streams, signals and ports.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::plan::Plan;
use super::spawn::{SpawnError, Stdio, spawn};
use super::wait::Exit;
use crate::isolate::network::{Publish, PublishError, publish};
use crate::sys::async_fd;

/// A process to run for a caller who waits for it.
#[derive(Debug)]
pub struct Container {
    /// The process and its sandbox.
    pub plan: Plan,
    /// What it reads and writes.
    pub io: Io,
    /// Ports of it that the host shows.
    pub publish: Vec<Publish>,
    /// The signal that asks it to end; sent for `SIGTERM`.
    pub stop_signal: i32,
    /// How long it may take to end after that.
    pub stop_timeout: Duration,
}

/// What a container reads and writes.
#[derive(Debug)]
pub enum Io {
    /// These, as they are: standard input, output and error.
    Streams([OwnedFd; 3]),
    /// A terminal of its own, shown on the caller's.
    Terminal {
        /// The caller's terminal, to read keys from. Its mode is changed while the container runs.
        input: OwnedFd,
        /// To show the output on.
        output: OwnedFd,
    },
}

/// Why a container could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It could not be started; see [`SpawnError::exit_code`].
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A port is taken.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The caller's terminal is none.
    #[error("the input device is not a TTY")]
    NotATerminal,
    /// The terminal, signals, waiting.
    #[error("could not run the container: {0}")]
    System(#[source] Errno),
}

/// Runs to the end. Signals that come to rbuild go to the container; the second one that asks it to end kills it, as does
/// the end of [`Container::stop_timeout`] after the first. Call on the main thread.
pub async fn run_container(container: Container) -> Result<Exit, RunError> {
    let Container { plan, io, publish: ports, stop_signal, stop_timeout } = container;
    let mut signals = Signals::new().map_err(system)?;
    let (stdio, caller) = match io {
        Io::Streams(streams) => (Stdio::Given(streams), None),
        Io::Terminal { input, output } => {
            let size = tcgetwinsize(&input).map_err(|_| RunError::NotATerminal)?;
            (Stdio::Terminal(size), Some((input, output)))
        }
    };
    let mut child = spawn(&plan, stdio).await?;
    let pidfd = child.pidfd().try_clone_to_owned().map_err(|error| system(error_number(&error)))?;
    let _ports = publish(&ports, plan.network, pidfd).await?;
    let mut relay = match (caller, child.terminal.take()) {
        (Some((input, output)), Some(terminal)) => Some(Relay::new(input, output, terminal).map_err(system)?),
        _ => None,
    };

    let mut asked = false;
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            exit = child.wait() => {
                let exit = exit.map_err(system)?;
                if let Some(relay) = &mut relay {
                    relay.drain();
                }
                return Ok(exit);
            }
            number = signals.next() => {
                if number == libc::SIGWINCH {
                    if let Some(relay) = &relay {
                        relay.resize();
                    }
                } else if ends(number) && asked {
                    child.kill();
                } else {
                    child.signal(if number == libc::SIGTERM { stop_signal } else { number }).map_err(system)?;
                    if ends(number) {
                        asked = true;
                        deadline.as_mut().reset(tokio::time::Instant::now() + stop_timeout);
                    }
                }
            }
            () = &mut deadline, if asked => {
                child.kill();
                asked = false;
            }
            () = relay_some(&mut relay), if relay.is_some() => {}
        }
    }
}

/// Whether a signal asks a process to end.
fn ends(number: i32) -> bool {
    matches!(number, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}

fn system(errno: Errno) -> RunError {
    RunError::System(errno)
}

fn error_number(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The signals that a container gets.
#[derive(Debug)]
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn new() -> Result<Self, Errno> {
        let numbers = [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGWINCH,
        ];
        let listen = |number| signal(SignalKind::from_raw(number)).map(|signal| (number, signal));
        let signals = numbers.into_iter().map(listen).collect::<Result<_, _>>();
        signals.map(Self).map_err(|error| error_number(&error))
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Between the caller's terminal and the container's.
#[derive(Debug)]
struct Relay {
    caller: RawMode,
    output: OwnedFd,
    // `None` once the container has closed its end.
    container: Option<AsyncFd<OwnedFd>>,
    // Keys that the container has not taken yet.
    keys: Vec<u8>,
}

/// Most keys that are held for a container that does not read; more wait in the caller's terminal.
const KEYS: usize = 4096;

impl Relay {
    fn new(input: OwnedFd, output: OwnedFd, container: OwnedFd) -> Result<Self, Errno> {
        fcntl_setfl(&container, fcntl_getfl(&container)? | OFlags::NONBLOCK)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let container = async_fd::register(container, both).map_err(|(_, errno)| errno)?;
        Ok(Self { caller: RawMode::enter(input)?, output, container: Some(container), keys: Vec::new() })
    }

    fn resize(&self) {
        if let (Some(container), Ok(size)) = (&self.container, tcgetwinsize(self.caller.terminal.get_ref())) {
            let size: Winsize = size;
            // A terminal that has just been closed needs no size.
            let _closed = tcsetwinsize(container, size);
        }
    }

    /// Moves what can be moved, in either direction; returns after something was.
    async fn step(&mut self) {
        let Some(container) = &self.container else { return std::future::pending().await };
        tokio::select! {
            ready = container.readable() => {
                let Ok(mut ready) = ready else { return self.container = None };
                match show(ready.get_inner().as_fd(), &self.output) {
                    Ok(true) => {}
                    Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    // EIO: the last process with the terminal is gone.
                    Ok(false) | Err(_) => self.container = None,
                }
            }
            ready = container.writable(), if !self.keys.is_empty() => {
                let Ok(mut ready) = ready else { return self.container = None };
                match write(ready.get_inner(), &self.keys) {
                    Ok(written) => drop(self.keys.drain(..written)),
                    Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                    Err(_) => self.keys.clear(),
                }
            }
            ready = self.caller.terminal.readable(), if self.keys.len() < KEYS => {
                let Ok(mut ready) = ready else { return };
                let mut buffer = [0; KEYS];
                // One read for each readiness: it does not block, though the descriptor could.
                if let Ok(length) = read(ready.get_inner(), &mut buffer[..]) {
                    self.keys.extend_from_slice(&buffer[..length]);
                }
                ready.clear_ready();
            }
        }
    }

    /// Shows what is left after the container's end.
    fn drain(&mut self) {
        while let Some(container) = &self.container
            && matches!(show(container.as_fd(), &self.output), Ok(true))
        {}
    }
}

async fn relay_some(relay: &mut Option<Relay>) {
    match relay {
        Some(relay) => relay.step().await,
        None => std::future::pending().await,
    }
}

/// Passes one piece of output on; `false` at its end.
fn show(from: BorrowedFd<'_>, to: &OwnedFd) -> Result<bool, Errno> {
    let mut buffer = [0; 16384];
    let length = read(from, &mut buffer[..])?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length > 0)
}

/// The caller's terminal in raw mode; as it was before when dropped.
#[derive(Debug)]
struct RawMode {
    terminal: AsyncFd<OwnedFd>,
    before: Termios,
}

impl RawMode {
    fn enter(terminal: OwnedFd) -> Result<Self, Errno> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = async_fd::register(terminal, Interest::READABLE).map_err(|(_, errno)| errno)?;
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has been closed needs no mode.
        let _closed = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
