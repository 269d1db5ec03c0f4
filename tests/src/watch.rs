//! What is left on the host: processes, mounts and files, looked for from outside.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A number of seconds that no other test sleeps: a step that sleeps it can be found among all processes.
pub fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("7{}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The processes of this host that have `text` in their command line.
pub fn processes_with(text: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            // One that has just ended has none.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
        })
        .collect()
}

/// The mounts that this process sees at or below `path`.
pub fn mounts_below(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let path = path.to_str().expect("test paths are UTF-8");
    table.lines().filter(|line| line.contains(path)).map(str::to_owned).collect()
}

/// Waits until `condition` holds; how long that took. `None`: not within `limit`.
pub fn wait_for(limit: Duration, condition: impl Fn() -> bool) -> Option<Duration> {
    let start = Instant::now();
    loop {
        if condition() {
            return Some(start.elapsed());
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names in a directory; none if there is no directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// The files below `dir` that hold `bytes`.
pub fn files_with(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a listed file has a type");
            if kind.is_dir() {
                next.push(entry.path());
            } else if kind.is_file() {
                let content = std::fs::read(entry.path()).unwrap_or_default();
                if content.windows(bytes.len()).any(|window| window == bytes) {
                    found.push(entry.path());
                }
            }
        }
    }
    found
}
