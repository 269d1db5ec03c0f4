//! The one CPU pool: hashing, tar, compression. And [`Budget`], what all pipelines together may hold in memory.
//!
//! A thread a core, made at the first use; a cached build never makes it. Jobs do not wait for each other except
//! through rayon (`join`, `scope`, parallel iterators), which works while it waits.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use futures::channel::oneshot;

/// The pool.
pub fn pool() -> &'static rayon::ThreadPool {
    static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        rayon::ThreadPoolBuilder::new()
            .thread_name(|n| format!("cpu-{n}"))
            .build()
            .expect("threads can be started: without them there is nothing to do but end")
    })
}

/// How many threads the pool has.
pub fn threads() -> usize {
    pool().current_num_threads()
}

/// Starts a job whose result the pool does not carry: for [`LayerWriter::with`](image::layer::LayerWriter::with).
pub fn aside(job: Box<dyn FnOnce() + Send>) {
    pool().spawn(job);
}

/// A job that panicked, which is a bug.
#[derive(Debug, thiserror::Error)]
#[error("internal error: a job panicked: {0}")]
pub struct Panicked(pub String);

/// Runs `job` on the pool; the future gives what it returns. The job runs to its end even if the future is dropped.
pub async fn spawn<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
    start(job).await.unwrap_or_else(|_| Err(Panicked("it sent no result".to_owned())))
}

/// Runs `job` on a thread beside the pool: for what is mostly too short to make the pool for it, and asks it for help
/// when it is long.
pub async fn beside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| match error.try_into_panic() {
        Ok(panic) => Panicked(text(&*panic)),
        Err(error) => Panicked(error.to_string()),
    })
}

/// Starts `job` on the pool now; the receiver gives what it returns.
pub fn start<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<Result<T, Panicked>> {
    let (sender, receiver) = oneshot::channel();
    pool().spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
            .map_err(|panic| Panicked(text(&*panic)));
        // Nobody waits any more: fine.
        let _ = sender.send(result);
    });
    receiver
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// A number of bytes that reservations share.
#[derive(Clone, Debug)]
pub struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
#[must_use = "it is given back when dropped"]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { shared: Arc::new(Shared { total, free: Mutex::new(total), freed: Condvar::new() }) }
    }

    /// Reserves `bytes` if they are free now. More than the whole budget counts as the whole.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let bytes = bytes.min(self.shared.total);
        let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(bytes)?;
        Some(Reservation { shared: self.shared.clone(), bytes })
    }

    /// Waits until `bytes` are free. Never on a thread of the pool, which those who would give back may need.
    pub fn reserve(&self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.shared.total);
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.shared.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Reservation { shared: self.shared.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.shared.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.shared.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_gives_its_value_and_a_panic_is_an_error() {
        assert_eq!(futures::executor::block_on(spawn(|| 6 * 7)).unwrap(), 42);
        let error = futures::executor::block_on(spawn(|| assert!(std::hint::black_box(false), "oh {}", 1)));
        assert!(error.unwrap_err().to_string().contains("oh 1"));
    }

    #[test]
    fn a_budget_is_never_overdrawn_and_comes_back() {
        let budget = Budget::new(10);
        let six = budget.reserve(6);
        assert!(budget.try_reserve(5).is_none());
        let four = budget.try_reserve(4).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(budget.reserve(100)));
            drop(six);
            drop(four);
            waiter.join().unwrap();
        });
        assert!(budget.try_reserve(10).is_some());
    }
}
