//! A cancellation token: one per build, a child per piece of work.
//!
//! Async code awaits [`Cancel::cancelled`]; blocking loops on other threads look at [`Cancel::is_cancelled`] once per
//! block. Nothing is ever un-cancelled.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

/// Tells work to stop. Clones are the same token.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    /// `cancelled` is set under this lock, so that nobody registers after the wake-up and sleeps for ever.
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    next: u64,
    wakers: HashMap<u64, Waker>,
    children: Vec<Weak<Inner>>,
    /// Sweep dropped children when there are this many.
    sweep_at: usize,
}

/// Completes when its [`Cancel`] is cancelled.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Cancelled {
    cancel: Cancel,
    key: Option<u64>,
}

impl Cancel {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, or alone.
    pub fn child(&self) -> Self {
        let child = Self::new();
        let mut listeners = self.0.lock();
        if self.is_cancelled() {
            child.0.cancelled.store(true, Ordering::Release);
        } else {
            if listeners.children.len() >= listeners.sweep_at {
                listeners.children.retain(|child| child.strong_count() > 0);
                listeners.sweep_at = (listeners.children.len() * 2).max(16);
            }
            listeners.children.push(Arc::downgrade(&child.0));
        }
        child
    }

    /// Cancels this token and its children. Idempotent.
    pub fn cancel(&self) {
        let mut open = vec![self.0.clone()];
        while let Some(token) = open.pop() {
            let mut listeners = token.lock();
            token.cancelled.store(true, Ordering::Release);
            let wakers = std::mem::take(&mut listeners.wakers);
            let children = std::mem::take(&mut listeners.children);
            drop(listeners);
            wakers.into_values().for_each(Waker::wake);
            open.extend(children.iter().filter_map(Weak::upgrade));
        }
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Waits until it is cancelled.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled { cancel: self.clone(), key: None }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Listeners> {
        // No code panics while it holds the lock half-way through a change.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let token = self.cancel.0.clone();
        let mut listeners = token.lock();
        if self.cancel.is_cancelled() {
            return Poll::Ready(());
        }
        let key = *self.key.get_or_insert_with(|| {
            listeners.next += 1;
            listeners.next
        });
        listeners.wakers.insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.cancel.0.lock().wakers.remove(&key);
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn cancelling_reaches_children_and_not_parents() {
        let build = Cancel::new();
        let (a, b) = (build.child(), build.child());
        let grandchild = a.child();
        a.cancel();
        assert!(a.is_cancelled() && grandchild.is_cancelled());
        assert!(!b.is_cancelled() && !build.is_cancelled());
        build.cancel();
        assert!(b.is_cancelled());
        assert!(build.child().is_cancelled());
    }

    #[test]
    fn whoever_waits_is_woken() {
        let build = Cancel::new();
        let vertex = build.child();
        let waiter = std::thread::spawn({
            let vertex = vertex.clone();
            move || futures::executor::block_on(vertex.cancelled())
        });
        build.cancel();
        waiter.join().unwrap();
        assert_eq!(vertex.cancelled().now_or_never(), Some(()));
    }

    #[test]
    fn children_that_are_gone_are_forgotten() {
        let build = Cancel::new();
        for _ in 0..10_000 {
            drop(build.child());
        }
        assert!(build.0.lock().children.len() < 64);
    }
}
