//! How long to wait for a registry, and when to ask again.
//!
//! Whether a request may be asked again is decided where it is made; here is only when.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

/// Limits of patience.
#[derive(Clone, Debug)]
pub struct Timing {
    /// To connect, TLS included.
    pub connect: Duration,
    /// From the end of a request to the response's headers.
    pub header: Duration,
    /// The same for the request that completes a blob: registries then move it in their storage.
    pub commit: Duration,
    /// Of a credential helper, and of the whole of a token server's answer.
    pub token: Duration,
    /// A transfer with fewer than [`Timing::stall_bytes`] in this time is broken off.
    pub stall_window: Duration,
    /// See [`Timing::stall_window`].
    pub stall_bytes: u64,
    /// The first wait is at most this; it doubles from there.
    pub first_wait: Duration,
    /// No wait is longer, unless the registry asks for it.
    pub longest_wait: Duration,
    /// After this much time a request is not asked again.
    pub budget: Duration,
    /// A registry that wants us to wait longer is given up.
    pub longest_retry_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            header: Duration::from_secs(60),
            commit: Duration::from_secs(600),
            token: Duration::from_secs(30),
            stall_window: Duration::from_secs(30),
            stall_bytes: 30 << 10,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            budget: Duration::from_secs(300),
            longest_retry_after: Duration::from_secs(300),
        }
    }
}

/// Whether a request answered with `status` may succeed when asked again unchanged.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504 | 507..=599) && status.as_u16() != 511
}

/// The waits between attempts at one request: exponential with full jitter, within a budget.
#[derive(Debug)]
pub(super) struct Backoff {
    started: Instant,
    attempts: u32,
    // Doublings since the last progress.
    step: u32,
    deadline: Instant,
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask again after this time.
    Wait(Duration),
    /// The budget is used up.
    GiveUp,
    /// The registry asked for a longer wait than we grant.
    TooLong(Duration),
}

impl Backoff {
    pub(super) fn new(timing: &Timing, now: Instant) -> Self {
        Self { started: now, attempts: 0, step: 0, deadline: now + timing.budget }
    }

    /// Attempts so far, the one that just failed included, and the time they took.
    pub(super) fn spent(&self, now: Instant) -> (u32, Duration) {
        (self.attempts.max(1), now.saturating_duration_since(self.started))
    }

    /// The same at the end, when the attempt that just failed was not followed by a question about the next one.
    pub(super) fn ended(&self, now: Instant) -> (u32, Duration) {
        (self.attempts + 1, now.saturating_duration_since(self.started))
    }

    /// The transfer moved: what comes next is a new fault with a new budget.
    pub(super) fn progressed(&mut self, timing: &Timing, now: Instant) {
        self.step = 0;
        self.deadline = now + timing.budget;
    }

    /// Decides after a failure. `asked` is the registry's Retry-After; `jitter` is uniform in 0..1.
    pub(super) fn next(
        &mut self,
        timing: &Timing,
        now: Instant,
        asked: Option<Duration>,
        jitter: f64,
    ) -> Next {
        self.attempts += 1;
        if let Some(asked) = asked.filter(|asked| *asked > timing.longest_retry_after) {
            return Next::TooLong(asked);
        }
        let ceiling = timing.first_wait.saturating_mul(1 << self.step.min(16)).min(timing.longest_wait);
        self.step += 1;
        // A tenth of the ceiling at least: full jitter alone could give several requests at once. On top of what the
        // registry asks for, so that its clients do not all come back at the same moment.
        let own = ceiling.mul_f64(0.1 + 0.9 * jitter.clamp(0.0, 1.0));
        // No time at all is no wish: a date that has passed, or a zero.
        let wait = match asked.filter(|asked| !asked.is_zero()) {
            Some(asked) => asked + own.min(asked.max(timing.first_wait)),
            None => own,
        };
        // One attempt may take longer than all of them should, such as a commit that is never answered: it has a second.
        if now + wait > self.deadline && self.attempts > 1 { Next::GiveUp } else { Next::Wait(wait) }
    }
}

/// Reads Retry-After: seconds, or a date, which is taken relative to the answer's own `Date`, so that no clock needs
/// to be right. Past dates are zero; anything else is `None`.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let served = headers
        .get(DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or(now);
    Some(date.duration_since(served).unwrap_or_default())
}

/// `1 attempt in 0s`, `5 attempts in 31s`.
pub(super) fn tries(attempts: u32, time: Duration) -> String {
    let plural = if attempts == 1 { "" } else { "s" };
    format!("{attempts} attempt{plural} in {}s", time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing::default()
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_the_budget() {
        let timing = timing();
        let start = Instant::now();
        let mut backoff = Backoff::new(&timing, start);
        let mut now = start;
        let mut waits = Vec::new();
        while let Next::Wait(wait) = backoff.next(&timing, now, None, 1.0) {
            waits.push(wait.as_secs_f64());
            now += wait;
        }
        assert_eq!(waits[..7], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]);
        assert!(now - start <= timing.budget && waits.len() < 20, "{waits:?}");
        assert_eq!(backoff.spent(now).0 as usize, waits.len() + 1);
    }

    #[test]
    fn a_wish_for_no_time_does_not_keep_the_waits_short() {
        let timing = timing();
        let now = Instant::now();
        let mut backoff = Backoff::new(&timing, now);
        let waits: Vec<Next> =
            (0..4).map(|_| backoff.next(&timing, now, Some(Duration::ZERO), 1.0)).collect();
        assert_eq!(waits, [1, 2, 4, 8].map(|doubled| Next::Wait(timing.first_wait * doubled)));
    }

    #[test]
    fn an_attempt_that_took_all_the_time_has_a_second() {
        let timing = timing();
        let start = Instant::now();
        let late = start + timing.commit;
        assert!(late > start + timing.budget);
        let mut backoff = Backoff::new(&timing, start);
        assert_eq!(backoff.next(&timing, late, None, 1.0), Next::Wait(timing.first_wait));
        assert_eq!(backoff.next(&timing, late, None, 1.0), Next::GiveUp);
    }

    #[test]
    fn jitter_never_gives_an_instant_loop() {
        let timing = timing();
        let now = Instant::now();
        for asked in [None, Some(Duration::ZERO)] {
            let mut backoff = Backoff::new(&timing, now);
            let Next::Wait(wait) = backoff.next(&timing, now, asked, 0.0) else { panic!() };
            assert!(wait >= Duration::from_millis(50), "{wait:?}");
        }
    }

    #[test]
    fn the_registry_is_obeyed_within_limits() {
        let timing = timing();
        let now = Instant::now();
        let mut backoff = Backoff::new(&timing, now);
        let Next::Wait(wait) = backoff.next(&timing, now, Some(Duration::from_secs(7)), 0.5) else {
            panic!()
        };
        assert!(wait >= Duration::from_secs(7) && wait < Duration::from_secs(8), "{wait:?}");
        let day = Duration::from_secs(86_400);
        assert_eq!(backoff.next(&timing, now, Some(day), 0.5), Next::TooLong(day));
    }

    #[test]
    fn progress_starts_over() {
        let timing = timing();
        let start = Instant::now();
        let mut backoff = Backoff::new(&timing, start);
        for _ in 0..5 {
            backoff.next(&timing, start, None, 1.0);
        }
        let later = start + timing.budget;
        backoff.progressed(&timing, later);
        assert_eq!(backoff.next(&timing, later, None, 1.0), Next::Wait(timing.first_wait));
    }

    #[test]
    fn retry_after_is_read_in_both_forms_whatever_the_clock_says() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + seconds);
        let read = |value: &str, date: Option<u64>, now| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, httpdate::fmt_http_date(at(date)).parse().unwrap());
            }
            retry_after(&headers, now)
        };
        let date = httpdate::fmt_http_date(at(30));
        const YEAR: u64 = 31_536_000;
        assert_eq!(read("2", None, at(0)), Some(Duration::from_secs(2)));
        assert_eq!(read("86400", None, at(0)), Some(Duration::from_secs(86_400)));
        assert_eq!(read(&date, None, at(0)), Some(Duration::from_secs(30)));
        assert_eq!(read(&date, Some(0), at(YEAR)), Some(Duration::from_secs(30)));
        assert_eq!(read(&date, Some(40), at(0)), Some(Duration::ZERO));
        for garbage in ["", "soon", "-1", "1.5", "99999999999999999999999999"] {
            assert_eq!(read(garbage, None, at(0)), None, "{garbage}");
        }
    }

    #[test]
    fn only_transient_answers_are_asked_again() {
        for (status, again) in [
            (200, false),
            (400, false),
            (401, false),
            (404, false),
            (408, true),
            (413, false),
            (425, true),
            (429, true),
            (500, true),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (505, false),
        ] {
            assert_eq!(is_transient(StatusCode::from_u16(status).unwrap()), again, "{status}");
        }
    }
}
