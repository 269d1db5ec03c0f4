//! `--on-error` and `rbuild shell`: looking around in sandboxes.

/// `--on-error`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    Stop,
    /// A shell in the sandbox, and then it goes.
    Shell,
    /// The sandbox stays.
    Keep,
}

impl OnError {
    /// What clap has checked.
    pub(super) fn of(text: &str) -> Self {
        match text {
            "shell" => Self::Shell,
            "keep" => Self::Keep,
            _ => Self::Stop,
        }
    }
}

/// A sandbox to open in place of building.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) when: When,
    /// The step's number or a part of its name.
    pub(crate) step: String,
    /// What to run in place of a shell.
    pub(crate) command: Vec<String>,
}

/// `--before` or `--after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}
