//! What was built here, and all that its steps said: `builds/ID/` in the state directory.
//!
//! ```text
//! builds/ID/build.json   what, when and how it ended; written at the beginning and at the end
//!           N.log        the output of step N, as it came; only of steps that said something
//! ```
//!
//! A thread of its own writes. Nothing depends on the journal: what cannot be written is left out. The last
//! [`KEPT`] builds stay.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use solver::Definition;
use solver::definition::VertexId;
use solver::event::Event;

/// How many builds are kept.
const KEPT: usize = 50;
/// A step's log is cut when it is so long, bytes.
const MAX_LOG: u64 = 256 << 20;
/// Events that wait for the disk.
const WAITING: usize = 1024;

/// One build, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    /// Seconds since the epoch.
    pub(crate) began: i64,
    pub(crate) seconds: Option<f64>,
    /// `running`, `done`, or why it failed.
    pub(crate) result: String,
    pub(crate) names: Vec<String>,
    pub(crate) digest: Option<String>,
    pub(crate) context: String,
    pub(crate) steps: Vec<Step>,
}

/// One step of a build.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// `cached`, `done`, `failed`, `cancelled`; empty if it was not looked at.
    pub(crate) state: String,
}

/// Writes down a build that runs.
#[derive(Debug)]
pub(crate) struct Journal {
    sender: SyncSender<Message>,
    states: States,
    thread: JoinHandle<()>,
    began: Instant,
}

/// How steps ended. Looked at once, at the end: a cached build has thousands of them in a moment.
type States = Arc<Mutex<Vec<(usize, &'static str)>>>;

/// Takes in the events of one definition.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    sender: SyncSender<Message>,
    states: States,
    /// The number of its first step.
    first: usize,
}

enum Message {
    Steps(Vec<String>, SyncSender<usize>),
    Log(usize, Vec<u8>),
    End { states: Vec<(usize, &'static str)>, result: String, digest: Option<String>, seconds: f64 },
}

impl Journal {
    /// Begins to write down `entry` below the state directory `root`.
    pub(crate) fn begin(root: &Path, entry: Entry) -> Self {
        let (sender, receiver) = sync_channel(WAITING);
        let dir = root.join("builds").join(&entry.id);
        let builds = root.join("builds");
        let thread = thread::spawn(move || {
            let mut writer = Writer { dir, entry, logs: HashMap::new() };
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&writer.dir);
            // Others are not to read what steps print.
            let works = made.is_ok() && writer.save().is_some();
            for message in receiver {
                // Not until all senders are gone: whoever holds one longer has nothing more to say.
                let is_last = matches!(message, Message::End { .. });
                writer.take(message, works);
                if is_last {
                    break;
                }
            }
            sweep(&builds);
        });
        Self { sender, states: States::default(), thread, began: Instant::now() }
    }

    /// Takes in the steps of a definition, and then what happens to them.
    pub(crate) fn listen(&self, definition: &Definition) -> Listener {
        let names = definition.ids().map(|id| definition.vertex(id).metadata.name.clone()).collect();
        let (reply, first) = sync_channel(1);
        let sent = self.sender.send(Message::Steps(names, reply));
        let first = sent.ok().and_then(|()| first.recv().ok()).unwrap_or(0);
        Listener { sender: self.sender.clone(), states: self.states.clone(), first }
    }

    /// Writes down how it ended, and waits until that is done.
    pub(crate) fn finish(self, result: &str, digest: Option<String>) {
        let seconds = self.began.elapsed().as_secs_f64();
        let states = std::mem::take(&mut *self.states.lock().unwrap_or_else(PoisonError::into_inner));
        let _gone = self.sender.send(Message::End { states, result: result.to_owned(), digest, seconds });
        let _panicked = self.thread.join();
    }
}

impl Listener {
    /// Something happened.
    pub(crate) fn note(&self, event: &Event) {
        let (id, state) = match event {
            Event::Cached(id) => (*id, "cached"),
            Event::Completed(id) => (*id, "done"),
            Event::Failed(id, _) => (*id, "failed"),
            Event::Cancelled(id) => (*id, "cancelled"),
            Event::Log { vertex, data, .. } => {
                let _gone = self.sender.send(Message::Log(self.number(*vertex), data.clone()));
                return;
            }
            Event::Started(_) | Event::Missed(..) | Event::Progress { .. } => return,
        };
        self.states.lock().unwrap_or_else(PoisonError::into_inner).push((self.number(id), state));
    }

    /// The number of a step in `rbuild logs`.
    pub(crate) fn number(&self, id: VertexId) -> usize {
        self.first + id.index()
    }
}

struct Writer {
    dir: PathBuf,
    entry: Entry,
    logs: HashMap<usize, Option<(File, u64)>>,
}

impl Writer {
    fn take(&mut self, message: Message, works: bool) {
        match message {
            Message::Steps(names, reply) => {
                // Numbers begin with 1, as everywhere that steps are shown.
                let _gone = reply.send(self.entry.steps.len() + 1);
                self.entry.steps.extend(names.into_iter().map(|name| Step { name, ..Step::default() }));
            }
            Message::Log(number, data) if works => self.log(number, &data),
            Message::Log(..) => {}
            Message::End { states, result, digest, seconds } => {
                for (number, state) in states {
                    if let Some(step) = self.entry.steps.get_mut(number - 1) {
                        state.clone_into(&mut step.state);
                    }
                }
                self.entry.result = result;
                self.entry.digest = digest;
                self.entry.seconds = Some(seconds);
                if works {
                    let _left_out = self.save();
                }
            }
        }
    }

    fn log(&mut self, number: usize, data: &[u8]) {
        let path = self.dir.join(format!("{number}.log"));
        let log = self.logs.entry(number).or_insert_with(|| {
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            Some((file.ok()?, 0))
        });
        let Some((file, length)) = log else { return };
        *length += data.len() as u64;
        if file.write_all(data).is_err() {
            *log = None;
        } else if *length > MAX_LOG {
            let _last = file.write_all(b"\n[output clipped]\n");
            *log = None;
        }
    }

    fn save(&self) -> Option<()> {
        let temp = self.dir.join("build.json.new");
        let json = serde_json::to_vec(&self.entry).expect("plain data");
        fs::write(&temp, json).ok()?;
        fs::rename(&temp, self.dir.join("build.json")).ok()
    }
}

/// All builds that are kept, the last first.
pub(crate) fn list(root: &Path) -> Vec<Entry> {
    let dirs = fs::read_dir(root.join("builds")).into_iter().flatten().flatten();
    let mut entries: Vec<Entry> = dirs
        .filter_map(|dir| serde_json::from_slice(&fs::read(dir.path().join("build.json")).ok()?).ok())
        .collect();
    entries.sort_by(|a, b| (b.began, &b.id).cmp(&(a.began, &a.id)));
    entries
}

/// The output of a step; `None` if it said nothing.
pub(crate) fn log(root: &Path, id: &str, number: usize) -> Option<File> {
    File::open(root.join("builds").join(id).join(format!("{number}.log"))).ok()
}

/// A name for a build that begins now: they sort by time.
pub(crate) fn new_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{now:011x}{:06x}", std::process::id() & 0xff_ffff)
}

/// Removes all builds but the last. Their names sort by time.
fn sweep(builds: &Path) {
    let dirs = fs::read_dir(builds).into_iter().flatten().flatten();
    let mut names: Vec<_> = dirs.map(|dir| dir.file_name()).collect();
    names.sort();
    let old = names.len().saturating_sub(KEPT);
    for name in &names[..old] {
        let _later = fs::remove_dir_all(builds.join(name));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_happened_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry { id: "b1".to_owned(), began: 5, result: "running".to_owned(), ..Entry::default() };
        let journal = Journal::begin(dir.path(), entry);
        let (reply, first) = sync_channel(1);
        let names = vec!["FROM x".to_owned(), "RUN y".to_owned()];
        journal.sender.send(Message::Steps(names, reply)).unwrap();
        assert_eq!(first.recv().unwrap(), 1);
        journal.states.lock().unwrap().push((1, "cached"));
        journal.sender.send(Message::Log(2, b"a\n".to_vec())).unwrap();
        journal.sender.send(Message::Log(2, b"b\n".to_vec())).unwrap();
        journal.finish("done", Some("sha256:x".to_owned()));
        let kept = list(dir.path()).remove(0);
        assert_eq!((kept.result.as_str(), kept.digest.as_deref()), ("done", Some("sha256:x")));
        assert_eq!(kept.steps[0].state, "cached");
        let mut text = String::new();
        log(dir.path(), "b1", 2).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a\nb\n");
        assert!(log(dir.path(), "b1", 1).is_none());
    }

    #[test]
    fn old_builds_go() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..KEPT + 3 {
            fs::create_dir_all(dir.path().join(format!("{number:03}"))).unwrap();
        }
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT);
        assert!(!dir.path().join("002").exists() && dir.path().join("003").exists());
    }

    #[test]
    fn where_nothing_can_be_written_builds_go_on() {
        let journal = Journal::begin("/proc/nowhere".as_ref(), Entry::default());
        journal.finish("done", None);
    }
}
