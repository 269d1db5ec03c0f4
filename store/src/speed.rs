//! [`Speeds`]: how fast layers come from where, as measured. What fetching one would cost is weighed with it.
//!
//! The file `speeds` has one line a place: its name, a tab, and the speeds of the last builds that fetched something
//! from there, bytes of tar a second, the latest last. It is rewritten whole by rename; of two builds that end in the
//! same moment one is forgotten. What is torn or of another form says nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::StoreError;
use crate::root::Root;

/// Builds that are remembered of a place; with the median of an odd number one that was slowed down by something else
/// does not count.
const BUILDS: usize = 9;
/// Places that are remembered.
const PLACES: usize = 100;
/// What is shorter says more of delays than of speed, bytes of tar.
const SHORTEST: u64 = 1 << 20;

/// What this process fetched so far, by place.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<BTreeMap<String, Meter>>);

/// What came from one place. Time counts while at least one transfer runs: those beside each other share the line.
#[derive(Debug, Default)]
struct Meter {
    running: usize,
    since: Option<Instant>,
    busy: Duration,
    bytes: u64,
}

/// The speeds of a root.
#[derive(Clone, Debug)]
pub struct Speeds {
    root: Root,
}

/// A transfer that runs. Dropped, it brought nothing.
#[derive(Debug)]
pub struct Transfer<'a> {
    speeds: &'a Speeds,
    place: &'a str,
    bytes: u64,
}

/// What came from all places.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fetched {
    /// Bytes of tar.
    pub bytes: u64,
    /// Seconds in which something was on its way; of several places their sum.
    pub seconds: f64,
}

impl Speeds {
    pub(crate) fn new(root: Root) -> Self {
        Self { root }
    }

    /// A layer begins to come from `place`: the name of a registry, or of another kind of place.
    pub fn begin<'a>(&'a self, place: &'a str) -> Transfer<'a> {
        let mut meters = self.meters();
        let meter = meters.entry(place.to_owned()).or_default();
        if meter.running == 0 {
            meter.since = Some(Instant::now());
        }
        meter.running += 1;
        Transfer { speeds: self, place, bytes: 0 }
    }

    /// What this process fetched.
    pub fn fetched(&self) -> Fetched {
        let meters = self.meters();
        let (bytes, busy) =
            meters.values().fold((0, Duration::ZERO), |(b, t), meter| (b + meter.bytes, t + meter.busy));
        Fetched { bytes, seconds: busy.as_secs_f64() }
    }

    /// What a second brings from `place`, bytes of tar: the median of this build and the last ones. `None`: nothing came
    /// from there yet.
    pub fn of(&self, place: &str) -> Option<f64> {
        let mut speeds = self.read().remove(place).unwrap_or_default();
        speeds.extend(self.meters().get(place).and_then(Meter::speed));
        median(&last(speeds))
    }

    /// Keeps what was measured, and begins anew.
    pub fn keep(&self) -> Result<(), StoreError> {
        let meters = std::mem::take(&mut *self.meters());
        let new: Vec<(String, f64)> =
            meters.into_iter().filter_map(|(place, meter)| Some((place, meter.speed()?))).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut all = self.read();
        for (place, speed) in new {
            let speeds = all.remove(&place).unwrap_or_default();
            // The places that were used last are those that stay.
            while all.len() >= PLACES {
                all.pop_first();
            }
            all.insert(place, last(speeds.into_iter().chain([speed]).collect()));
        }
        let temp = self.root.temp_path("speeds")?;
        let path = self.root.path().join("speeds");
        fs::write(&temp, to_text(&all)).map_err(StoreError::io("write", &temp))?;
        fs::rename(&temp, &path).map_err(StoreError::io("write", &path))
    }

    fn read(&self) -> BTreeMap<String, Vec<f64>> {
        fs::read_to_string(self.root.path().join("speeds")).map(|text| from_text(&text)).unwrap_or_default()
    }

    fn meters(&self) -> MutexGuard<'_, BTreeMap<String, Meter>> {
        self.root.inner.meters.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer<'_> {
    /// All of it is here: so many bytes of tar.
    pub fn end(mut self, bytes: u64) {
        self.bytes = bytes;
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let mut meters = self.speeds.meters();
        let Some(meter) = meters.get_mut(self.place) else { return };
        meter.running = meter.running.saturating_sub(1);
        meter.bytes += self.bytes;
        if meter.running == 0
            && let Some(since) = meter.since.take()
        {
            meter.busy += since.elapsed();
        }
    }
}

impl Meter {
    fn speed(&self) -> Option<f64> {
        let busy = self.busy + self.since.map_or(Duration::ZERO, |since| since.elapsed());
        (self.bytes >= SHORTEST && !busy.is_zero()).then(|| self.bytes as f64 / busy.as_secs_f64())
    }
}

fn last(speeds: Vec<f64>) -> Vec<f64> {
    speeds[speeds.len().saturating_sub(BUILDS)..].to_vec()
}

fn median(speeds: &[f64]) -> Option<f64> {
    let mut sorted = speeds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn to_text(all: &BTreeMap<String, Vec<f64>>) -> String {
    let mut text = String::new();
    for (place, speeds) in all {
        let speeds: Vec<String> = speeds.iter().map(|speed| format!("{speed:.0}")).collect();
        let _always = writeln!(text, "{place}\t{}", speeds.join(" "));
    }
    text
}

fn from_text(text: &str) -> BTreeMap<String, Vec<f64>> {
    let line = |line: &str| {
        let (place, speeds) = line.split_once('\t')?;
        let speeds = speeds.split(' ').map(|speed| speed.parse::<f64>().ok().filter(|speed| *speed >= 1.0));
        Some((place.to_owned(), last(speeds.collect::<Option<_>>()?)))
    };
    text.lines().filter_map(line).take(PLACES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_last_builds_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        let root = Root::open(&path).unwrap();
        assert_eq!(root.speeds().of("registry"), None);
        for (n, speed) in [1e6, 50e6, 60e6, 70e6, 55e6].into_iter().enumerate() {
            let meter = Meter {
                bytes: 100 << 20,
                busy: Duration::from_secs_f64((100 << 20) as f64 / speed),
                ..Meter::default()
            };
            root.speeds().meters().insert("registry".to_owned(), meter);
            assert!(root.speeds().of("registry").is_some(), "build {n} knows what it measured itself");
            root.speeds().keep().unwrap();
        }
        // What came to little says nothing.
        root.speeds().begin("other").end(SHORTEST - 1);
        root.speeds().keep().unwrap();
        drop(root);
        let root = Root::open(&path).unwrap();
        let found = root.speeds().of("registry").unwrap();
        assert!((found - 55e6).abs() < 10.0, "{found}");
        assert_eq!(root.speeds().of("other"), None);
    }

    #[test]
    fn transfers_beside_each_other_share_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let speeds = root.speeds();
        let (one, two) = (speeds.begin("a"), speeds.begin("a"));
        one.end(10);
        assert_eq!(speeds.fetched(), Fetched { bytes: 10, seconds: 0.0 }, "the other one still runs");
        drop(two);
        assert!(speeds.fetched().seconds > 0.0);
        assert_eq!(speeds.fetched().bytes, 10);
    }

    #[test]
    fn other_bytes_are_nothing_known() {
        let known = from_text("a\t100 200\nnonsense\nb\tNaN\nc\t-1\nd\tinf x\n\te\n");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(from_text(&to_text(&known)), known);
        let many = (0..20).map(|n| n.to_string()).skip(1).collect::<Vec<_>>().join(" ");
        assert_eq!(from_text(&format!("a\t{many}"))["a"].len(), BUILDS);
    }
}
