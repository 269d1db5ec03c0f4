//! What a build spends its time on, if somebody wants to know: phases of steps and layers, from any thread.
//!
//! Off unless [`enable`] was called, and then a phase costs one look at a flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use image::DiffId;

/// What a phase belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The build as a whole.
    Build,
    /// A step: the index of its vertex.
    Step(usize),
    /// A layer on its way in or out.
    Layer(DiffId),
}

/// A phase that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// What was done.
    pub what: &'static str,
    /// For whom.
    pub of: Of,
    /// When it began, since [`enable`].
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
}

/// A phase; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the phase ends when it is dropped"]
pub struct Phase(Option<(&'static str, Of, Instant)>);

static ENABLED: AtomicBool = AtomicBool::new(false);
static BEGAN: OnceLock<Instant> = OnceLock::new();
static PHASES: Mutex<Vec<Timed>> = Mutex::new(Vec::new());

/// Begins to note phases.
pub fn enable() {
    let _ = BEGAN.set(Instant::now());
    ENABLED.store(true, Ordering::Relaxed);
}

/// Begins a phase.
pub fn phase(what: &'static str, of: Of) -> Phase {
    Phase(ENABLED.load(Ordering::Relaxed).then(|| (what, of, Instant::now())))
}

/// The phases that ended since the last call, in the order in which they began.
pub fn take() -> Vec<Timed> {
    let mut phases = std::mem::take(&mut *PHASES.lock().unwrap_or_else(PoisonError::into_inner));
    phases.sort_by_key(|phase| phase.began);
    phases
}

impl Phase {
    /// Ends it here.
    pub fn end(self) {}
}

impl Drop for Phase {
    fn drop(&mut self) {
        let Some((what, of, start)) = self.0.take() else { return };
        let began = BEGAN.get().map_or(Duration::ZERO, |began| start.saturating_duration_since(*began));
        let timed = Timed { what, of, began, took: start.elapsed() };
        PHASES.lock().unwrap_or_else(PoisonError::into_inner).push(timed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_noted_once_somebody_wants_them() {
        phase("before", Of::Build).end();
        enable();
        let outer = phase("outer", Of::Step(3));
        std::thread::scope(|scope| {
            scope.spawn(|| phase("inner", Of::Build).end());
        });
        outer.end();
        // Other tests of this process may leave theirs.
        let phases = take();
        let find = |what: &str| phases.iter().find(|phase| phase.what == what);
        let (outer, inner) = (find("outer").unwrap(), find("inner").unwrap());
        assert_eq!(outer.of, Of::Step(3));
        assert!(outer.began <= inner.began && outer.took >= inner.took);
        assert!(find("before").is_none() && !take().iter().any(|phase| phase.what == "outer"));
    }
}
