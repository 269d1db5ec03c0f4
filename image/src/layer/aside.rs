//! The hash of what is written, worked out on another thread where there is one that has time.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::digest::{Digest, Hasher};

/// Starts a job on another thread, at some time or never.
pub type Spawn = fn(Box<dyn FnOnce() + Send>);

/// A SHA-256 of buffers, of which one may be waiting or be worked on.
pub(super) struct Aside {
    shared: Arc<Shared>,
    spawn: Spawn,
}

struct Shared {
    state: Mutex<State>,
    returned: Condvar,
}

enum State {
    /// With a buffer that may be used again.
    Idle(Hasher, Vec<u8>),
    /// The buffer is to be hashed by whoever comes first.
    Waiting(Hasher, Vec<u8>),
    /// Somebody has both, and does not wait for anything.
    Taken,
}

impl Aside {
    /// With a `spawn` that drops its jobs all is done on the thread that asks for it.
    pub(super) fn new(spawn: Spawn) -> Self {
        let state = Mutex::new(State::Idle(Hasher::sha256(), Vec::new()));
        Self { shared: Arc::new(Shared { state, returned: Condvar::new() }), spawn }
    }

    /// Hashes all of `buffer`, now or later. Gives a buffer to go on with, of whatever length and content.
    pub(super) fn hash(&self, buffer: Vec<u8>) -> Vec<u8> {
        let (hasher, free) = self.shared.idle();
        self.shared.put(State::Waiting(hasher, buffer));
        let shared = self.shared.clone();
        (self.spawn)(Box::new(move || shared.work()));
        free
    }

    /// The digest of all buffers and of `rest`.
    pub(super) fn finish(self, rest: &[u8]) -> Digest {
        let (mut hasher, _) = self.shared.idle();
        hasher.update(rest);
        hasher.finish()
    }
}

impl Shared {
    fn put(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.returned.notify_one();
    }

    /// Hashes the buffer that waits, if there still is one.
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Waiting(mut hasher, buffer) => {
                drop(state);
                hasher.update(&buffer);
                self.put(State::Idle(hasher, buffer));
            }
            other => *state = other,
        }
    }

    /// Takes hasher and buffer after all that was given is hashed. What nobody has begun is done here: no thread need be
    /// free.
    fn idle(&self) -> (Hasher, Vec<u8>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Idle(hasher, buffer) => return (hasher, buffer),
                State::Waiting(mut hasher, buffer) => {
                    drop(state);
                    hasher.update(&buffer);
                    return (hasher, buffer);
                }
                State::Taken => state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(spawn: Spawn) -> Digest {
        let aside = Aside::new(spawn);
        let mut buffer = Vec::new();
        for n in 0..200_u8 {
            buffer.clear();
            buffer.resize(1 + usize::from(n) * 300, n);
            buffer = aside.hash(buffer);
        }
        aside.finish(b"rest")
    }

    #[test]
    fn it_is_the_same_digest_whoever_works() {
        let all: Vec<u8> = (0..200_u8).flat_map(|n| vec![n; 1 + usize::from(n) * 300]).collect();
        let expected = Digest::of(&[&all[..], b"rest"].concat());
        assert_eq!(digest(|job| job()), expected, "at once");
        assert_eq!(digest(drop), expected, "never");
        assert_eq!(digest(|job| drop(std::thread::spawn(job))), expected, "at some time");
    }
}
