//! Signals that mean to stop.
//!
//! A thread waits for them: work that computes or writes for long without waiting for anything, such as an export, does
//! not let the other one look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use solver::cancel::Cancel;
use tokio::signal::unix::{SignalKind, signal};

use crate::export::file;
use crate::failure::{Class, Failure, OrFail as _};

/// So long work has to come to its end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    over: Arc<AtomicBool>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Fires `cancel` at the first signal, and ends the process at the second or when the work has had its time.
pub(super) fn listen(cancel: &Cancel) -> Result<Listening, Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let listening = Listening { over: Arc::clone(&over) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail(Class::Host)?;
    let mut signals = {
        let _context = runtime.enter();
        let mut kinds = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            kinds.push(signal(kind).or_fail(Class::Host)?);
        }
        kinds
    };
    let cancel = cancel.clone();
    // Ends with the process.
    let listen = move || {
        runtime.block_on(async {
            next(&mut signals).await;
            cancel.cancel();
            let _either = tokio::time::timeout(GRACE, next(&mut signals)).await;
            if !over.load(Ordering::SeqCst) {
                end();
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).or_fail(Class::Host)?;
    Ok(listening)
}

async fn next(signals: &mut [tokio::signal::unix::Signal]) {
    let all = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures::future::select_all(all).await;
}

/// Ends the process, whatever the others do.
#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the thread that returns to main does not come to it"
)]
fn end() -> ! {
    file::remove_unfinished();
    let stderr = rustix::stdio::stderr();
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Who does not read must not hold us up.
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&none)).is_ok_and(|ready| ready > 0) {
        let _unheard = rustix::io::write(stderr, b"\nERROR: cancelled\n");
    }
    std::process::exit(Class::Cancelled.exit_code().into())
}
