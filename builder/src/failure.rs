//! Every error that ends a command: its class (the exit code), its message and what to do about it.
//!
//! Exit codes are documented in `docs/exit-codes.md`; keep them in step.

use std::fmt;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    /// One message, without `error:`.
    pub(crate) message: String,
    /// What to do, a sentence each.
    pub(crate) hints: Vec<String>,
    /// Rendered excerpts that are printed before the message, as they are.
    pub(crate) report: String,
}

/// Classes of failure: who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A bug, or something no other class fits.
    Internal,
    /// Bad flags or arguments.
    Usage,
    /// The Dockerfile or the context is wrong.
    Dockerfile,
    /// A step ran and failed.
    Step,
    /// A registry refused our credentials.
    Auth,
    /// A registry or another server could not be reached or did not do its work.
    Network,
    /// No space left.
    Disk,
    /// This host lacks something.
    Host,
    /// Stopped by a signal.
    Cancelled,
    /// `rbuild run`: the container's own exit status.
    Exit(u8),
}

impl Class {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Dockerfile => 3,
            Self::Step => 4,
            Self::Auth => 5,
            Self::Network => 6,
            Self::Disk => 7,
            Self::Host => 8,
            Self::Cancelled => 130,
            Self::Exit(code) => code,
        }
    }
}

impl Failure {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hints: Vec::new(), report: String::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// The failure of an error and its sources, of this class unless an I/O error in the chain says better.
    pub(crate) fn of(class: Class, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut class = class;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Messages of thiserror enums often end with their source's already.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            {
                class = Class::Disk;
            }
            cause = error.source();
        }
        let mut failure = Self::new(class, message);
        if class == Class::Disk {
            failure.hints.push("free some space, or run `rbuild prune`".to_owned());
        }
        failure
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    #[must_use]
    pub(crate) fn report(mut self, report: impl Into<String>) -> Self {
        self.report = report.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.report.is_empty() {
            f.write_str(self.report.trim_end_matches('\n'))?;
            f.write_str("\n")?;
        }
        if !self.message.is_empty() {
            write!(f, "ERROR: {}", self.message)?;
        }
        for hint in &self.hints {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Gives an error of a library its class at the place where it leaves it.
pub(crate) trait OrFail<T> {
    fn or_fail(self, class: Class) -> Result<T, Failure>;
}

impl<T, E: std::error::Error + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, class: Class) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(class, &error))
    }
}

impl Failure {
    /// The failure of an image that could not be had.
    pub(crate) fn from_image(error: &worker::source::resolve::ImageError) -> Self {
        use worker::source::resolve::ImageError;
        let class = match error {
            ImageError::Registry { source, .. } => match source.class() {
                store::registry::Class::Auth => Class::Auth,
                store::registry::Class::NotFound => Class::Dockerfile,
                store::registry::Class::Network
                | store::registry::Class::Refused
                | store::registry::Class::Corrupt => Class::Network,
                store::registry::Class::Local => Class::Host,
            },
            ImageError::NotHere(_) | ImageError::Platform { .. } => Class::Dockerfile,
            ImageError::Config { .. } | ImageError::Nested(_) => Class::Network,
            ImageError::NotImage | ImageError::Store(_) => Class::Internal,
        };
        let failure = Self::of(class, error);
        match class {
            Class::Auth => failure.hint("`rbuild login` stores credentials"),
            _ => failure,
        }
    }
}
