//! Snapshots: what a command shows, kept in files and compared. `RBUILD_BLESS=1` writes them.

use std::path::Path;

use regex::Regex;

use crate::env::{Outcome, TestEnv};

/// Compares snapshots with the files of a directory.
#[derive(Debug)]
pub struct Golden {
    dir: std::path::PathBuf,
    masks: Vec<(Regex, String)>,
    failed: Vec<String>,
}

impl Golden {
    /// With the files of `fixtures/<name>`; what differs from run to run in `env` is masked.
    pub fn new(name: &str, env: &TestEnv) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name);
        let path = |path: &Path| regex::escape(path.to_str().expect("test paths are UTF-8"));
        let masks = [
            (path(&env.work()), "$WORK"),
            (path(&env.root()), "$ROOT"),
            (r"127\.0\.0\.1:\d+".to_owned(), "127.0.0.1:PORT"),
            (r"sha256:[0-9a-f]{12,}".to_owned(), "sha256:DIGEST"),
            (r"\d{4}-\d\d-\d\dT[0-9:.]+Z".to_owned(), "TIME"),
            (r"rbuild logs [0-9a-f]+".to_owned(), "rbuild logs ID"),
            (r"(?m)^(#\d+) \d+\.\d+ ".to_owned(), "$1 T "),
            (r"(?m)^\d+\.\d{3} ".to_owned(), "T "),
            (r"\b\d+\.\ds".to_owned(), "Ts"),
            (r"\d+ attempts in \d+s".to_owned(), "N attempts in Ts"),
        ];
        let masks = masks.map(|(from, to)| {
            (
                Regex::new(&from).expect("it is a pattern"),
                to.replace("$WORK", "$$WORK").replace("$ROOT", "$$ROOT"),
            )
        });
        Self { dir, masks: masks.into(), failed: Vec::new() }
    }

    /// `text` without what differs from run to run.
    pub fn masked(&self, text: &str) -> String {
        self.masks
            .iter()
            .fold(text.to_owned(), |text, (from, to)| from.replace_all(&text, to.as_str()).into_owned())
    }

    /// What a command showed, and how it ended.
    pub fn outcome(&mut self, name: &str, outcome: &Outcome) {
        let mut text = format!("exit status: {}\n", outcome.status.code().unwrap_or(-1));
        for (stream, shown) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
            if !shown.is_empty() {
                text.push_str(&format!("--- {stream}\n{shown}"));
            }
        }
        self.text(name, &text);
    }

    /// Any text.
    pub fn text(&mut self, name: &str, text: &str) {
        let shown = self.masked(text);
        let shown: String = shown.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        let path = self.dir.join(format!("{name}.txt"));
        if std::env::var_os("RBUILD_BLESS").is_some() {
            std::fs::create_dir_all(&self.dir).expect("a directory can be made");
            std::fs::write(&path, shown).expect("a file can be written");
            return;
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if shown != kept {
            self.failed.push(format!("{name}: {}\n--- shown\n{shown}", first_difference(&kept, &shown)));
        }
    }

    /// Fails the test if anything differed.
    #[track_caller]
    pub fn done(self) {
        let Self { failed, dir, .. } = self;
        assert!(
            failed.is_empty(),
            "not as in {}; if it should be, run the test with RBUILD_BLESS=1\n\n{}",
            dir.display(),
            failed.join("\n")
        );
    }
}

fn first_difference(kept: &str, shown: &str) -> String {
    let mut lines = kept.lines().zip(shown.lines()).enumerate();
    match lines.find(|(_, (kept, shown))| kept != shown) {
        Some((at, (kept, shown))) => format!("line {} was\n  {kept}\nand is\n  {shown}", at + 1),
        None => format!("{} lines became {}", kept.lines().count(), shown.lines().count()),
    }
}
