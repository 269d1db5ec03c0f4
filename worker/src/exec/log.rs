//! Bounds what a step shows: so much in all, and no more than so much a second. Pure: bytes and times in, bytes out.

use std::time::Duration;

/// What a step may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Bytes in all; `None` for any number.
    pub size: Option<u64>,
    /// Bytes a second; `None` for any number.
    pub speed: Option<u64>,
}

impl LogLimit {
    /// BuildKit's: 2 MiB, 200 KiB a second.
    pub const BUILDKIT: Self = Self { size: Some(2 << 20), speed: Some(200 << 10) };
    /// None.
    pub const UNLIMITED: Self = Self { size: None, speed: None };
}

/// The output of one step on its way to whoever shows it.
#[derive(Debug)]
pub struct Clip {
    limit: LogLimit,
    shown: u64,
    // The step's second that is being counted, and what was shown in it.
    second: u64,
    shown_in_second: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Showing,
    /// Nothing more until the next second.
    TooFast,
    /// Nothing more.
    TooLong,
}

impl Clip {
    /// For a new step.
    pub fn new(limit: LogLimit) -> Self {
        Self { limit, shown: 0, second: 0, shown_in_second: 0, state: State::Showing }
    }

    /// How much of `bytes`, which came `at` this time of the step's life, may be shown, and what to say about the rest.
    pub fn take<'a>(&mut self, at: Duration, bytes: &'a [u8]) -> (&'a [u8], Option<String>) {
        if at.as_secs() != self.second {
            self.second = at.as_secs();
            self.shown_in_second = 0;
            if self.state == State::TooFast {
                self.state = State::Showing;
            }
        }
        if self.state != State::Showing {
            return (&[], None);
        }
        let left = |limit: Option<u64>, shown| limit.map_or(u64::MAX, |limit| limit.saturating_sub(shown));
        let (in_all, in_second) =
            (left(self.limit.size, self.shown), left(self.limit.speed, self.shown_in_second));
        let length = (bytes.len() as u64).min(in_all).min(in_second);
        self.shown += length;
        self.shown_in_second += length;
        let (shown, rest) = bytes.split_at(length as usize);
        let message = if rest.is_empty() {
            None
        } else if in_all <= in_second {
            self.state = State::TooLong;
            Some(format!("\n[output clipped, log limit {} reached]\n", binary(self.limit.size)))
        } else {
            self.state = State::TooFast;
            Some(format!("\n[output clipped, log speed {}/s reached]\n", binary(self.limit.speed)))
        };
        (shown, message)
    }
}

fn binary(bytes: Option<u64>) -> String {
    match bytes.unwrap_or(u64::MAX) {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn output_ends_at_the_limit_and_says_so_once() {
        let mut clip = Clip::new(LogLimit { size: Some(4), speed: None });
        assert_eq!(clip.take(SECOND, b"abc"), (&b"abc"[..], None));
        let message = "\n[output clipped, log limit 4B reached]\n".to_owned();
        assert_eq!(clip.take(SECOND, b"def"), (&b"d"[..], Some(message)));
        assert_eq!(clip.take(SECOND * 9, b"ghi"), (&b""[..], None));
    }

    #[test]
    fn fast_output_goes_on_in_the_next_second() {
        let mut clip = Clip::new(LogLimit { size: Some(1 << 20), speed: Some(1024) });
        let burst = [b'x'; 2000];
        let (shown, message) = clip.take(SECOND, &burst);
        assert_eq!(
            (shown.len(), message.as_deref()),
            (1024, Some("\n[output clipped, log speed 1KiB/s reached]\n"))
        );
        assert_eq!(clip.take(SECOND, b"y"), (&b""[..], None));
        assert_eq!(clip.take(SECOND * 2, b"z"), (&b"z"[..], None));
    }

    #[test]
    fn without_limits_everything_is_shown() {
        let mut clip = Clip::new(LogLimit::UNLIMITED);
        assert_eq!(clip.take(SECOND, b"abc"), (&b"abc"[..], None));
    }
}
