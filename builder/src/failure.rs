//! Every error that ends a command: its class (the exit code), its message and what to do about it.
//!
//! Exit codes are documented in `docs/exit-codes.md`; keep them in step.

use std::error::Error as StdError;
use std::fmt;

use image::reference::DOCKER_HUB;
use store::archive::ArchiveError;
use store::compress::CompressError;
use store::error::StoreError;
use store::push::PushError;
use store::registry::web::WebError;
use store::registry::{CredentialsError, RegistryError};
use store::root::RootError;
use worker::error::WorkerError;
use worker::exec::{ExecError, SpawnError};
use worker::source::git::GitError;
use worker::source::http::HttpError;
use worker::source::image::PullError;
use worker::source::resolve::ImageError;

use crate::ci::Place;

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
    /// Where in the Dockerfile.
    pub(crate) place: Option<Place>,
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
        Self { class, message: message.into(), hints: Vec::new(), report: String::new(), place: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// The failure of an error and its sources, of this class unless an I/O error in the chain says better.
    pub(crate) fn of(class: Class, error: &(dyn StdError + 'static)) -> Self {
        let mut message = error.to_string();
        let mut class = class;
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Messages of thiserror enums often end with their source's already.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            if is_disk_full(error) {
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

impl Failure {
    #[must_use]
    pub(crate) fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
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

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::with(store(&error), &error)
    }
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        let hint = "another place can be given with --root or RBUILD_ROOT";
        Self::with((Class::Host, Some(hint.to_owned())), &error)
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        Self::with(archive(&error), &error)
    }
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        Self::of(Class::Auth, &error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::with(registry(&error), &error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::with(image(&error), &error)
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::with(pull(&error), &error)
    }
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        let (class, hint) = match &error {
            PushError::Registry { source, .. } => registry(source),
            PushError::Unknown(_) => (Class::Internal, Some("pull or build the image again".to_owned())),
            PushError::Store(error) => store(error),
        };
        Self::with((class, hint), &error)
    }
}

impl Failure {
    /// The failure of an image that a Dockerfile names and that could not be had.
    pub(crate) fn from_image(error: &ImageError) -> Self {
        match image(error) {
            (Class::Usage, hint) => Self::with((Class::Dockerfile, hint), error),
            known => Self::with(known, error),
        }
    }

    fn with((class, hint): (Class, Option<String>), error: &(dyn StdError + 'static)) -> Self {
        let failure = Self::of(class, error);
        match hint {
            // The hint for a full disk is the one that helps.
            Some(hint) if failure.class != Class::Disk => failure.hint(hint),
            _ => failure,
        }
    }
}

impl Failure {
    /// The failure of an op.
    pub(crate) fn from_worker(error: &WorkerError) -> Self {
        match error {
            WorkerError::Image(error) => Self::from_image(error),
            error => Self::with(worker(error), error),
        }
    }
}

/// The class of what went wrong with an op, and what to do about it.
fn worker(error: &WorkerError) -> (Class, Option<String>) {
    match error {
        WorkerError::Start { source, .. } if is_foreign(source) => {
            let hint = "the program is for another platform than this host: register QEMU for it \
                        (`docker run --privileged --rm tonistiigi/binfmt --install all`, or the package qemu-user-static), \
                        or build on such a host and join the images with `rbuild index create`";
            (Class::Step, Some(hint.to_owned()))
        }
        WorkerError::Step { .. } | WorkerError::Start { .. } => (Class::Step, None),
        WorkerError::Plan(_)
        | WorkerError::Device(_)
        | WorkerError::Account(_)
        | WorkerError::File(_)
        | WorkerError::Copy(_)
        | WorkerError::Local(_)
        | WorkerError::NoContext(_)
        | WorkerError::Unsupported(_) => (Class::Dockerfile, None),
        WorkerError::Image(error) => image(error),
        WorkerError::Pull(_) => (Class::Network, None),
        WorkerError::Git(error) => git(error),
        WorkerError::Http(error) => http(error),
        WorkerError::Host(_) => (Class::Host, Some("`rbuild doctor` says more".to_owned())),
        WorkerError::Mount(_) | WorkerError::Wait(_) | WorkerError::Io { .. } => (Class::Host, None),
        WorkerError::Diff(_) => (Class::Host, None),
        WorkerError::Store(error) => store(error),
        WorkerError::Panicked(_) => (Class::Internal, None),
        WorkerError::Cancelled => (Class::Cancelled, None),
    }
}

fn is_foreign(error: &SpawnError) -> bool {
    matches!(error, SpawnError::Exec { kind: ExecError::Format, .. })
}

/// The class of a git repository that could not be had, and what to do about it.
fn git(error: &GitError) -> (Class, Option<String>) {
    match error {
        GitError::Program(_) | GitError::Io { .. } => (Class::Host, None),
        GitError::Failed { message, .. } if message.contains("could not read Username") => (
            Class::Auth,
            Some("give a token with --secret id=GIT_AUTH_TOKEN, or keys with --ssh default".to_owned()),
        ),
        GitError::Failed { .. } => (Class::Network, None),
        GitError::NoRef { .. }
        | GitError::Invalid(_)
        | GitError::Checksum { .. }
        | GitError::Subdir { .. } => (Class::Dockerfile, None),
    }
}

/// The class of a file that could not be had from the web, and what to do about it.
fn http(error: &HttpError) -> (Class, Option<String>) {
    match error {
        HttpError::Web(WebError::Status { status, .. }) if matches!(status.as_u16(), 401 | 403) => {
            (Class::Auth, Some("give a token with --secret id=HTTP_AUTH_TOKEN_<host>".to_owned()))
        }
        HttpError::Web(WebError::Status { .. } | WebError::Url { .. })
        | HttpError::Name { .. }
        | HttpError::Checksum { .. } => (Class::Dockerfile, None),
        HttpError::Web(_) | HttpError::Changed(_) => (Class::Network, None),
        HttpError::Write { .. } | HttpError::Layer(_) => (Class::Host, None),
        HttpError::Store(error) => store(error),
    }
}

/// The class of what went wrong with the state directory, and what to do about it.
fn store(error: &StoreError) -> (Class, Option<String>) {
    let again = || Some("it was pruned or damaged: pull or build the image again".to_owned());
    match error {
        error if error.is_disk_full() => (Class::Disk, None),
        StoreError::Io { .. } | StoreError::Db(_) => (Class::Host, None),
        StoreError::Missing { what: "image", .. } => {
            (Class::Usage, Some("`rbuild images` lists them".to_owned()))
        }
        StoreError::Missing { what: "layer" | "blob", .. } => (Class::Internal, again()),
        StoreError::Missing { .. } | StoreError::Document { .. } => (Class::Internal, None),
        StoreError::Ambiguous(_) => (Class::Usage, Some("give more of its digits".to_owned())),
        StoreError::Rejected { .. } => (Class::Network, None),
    }
}

/// The class of what went wrong with an archive.
fn archive(error: &ArchiveError) -> (Class, Option<String>) {
    match error {
        ArchiveError::Store(error) => store(error),
        ArchiveError::Format(_)
        | ArchiveError::Missing(_)
        | ArchiveError::Document { .. }
        | ArchiveError::Read { .. }
        | ArchiveError::Open { .. }
        | ArchiveError::Compress(CompressError::ReadOnly(_) | CompressError::Level { .. }) => {
            (Class::Usage, None)
        }
        ArchiveError::Write(_) | ArchiveError::Compress(CompressError::Io(_)) => (Class::Host, None),
    }
}

/// The class of an image that could not be found, and what to do about it.
fn image(error: &ImageError) -> (Class, Option<String>) {
    match error {
        ImageError::Registry { source, .. } => registry(source),
        ImageError::Store(error) => store(error),
        ImageError::NotHere(_) | ImageError::Platform { .. } | ImageError::NotInLayout { .. } => {
            (Class::Usage, None)
        }
        ImageError::Layout { source, .. } => archive(source),
        ImageError::Config { .. } | ImageError::Nested(_) => (Class::Network, None),
        ImageError::Damaged(_) => (Class::Host, None),
        ImageError::NotImage => (Class::Internal, None),
    }
}

/// The class of a layer that could not be pulled, and what to do about it.
fn pull(error: &PullError) -> (Class, Option<String>) {
    match error {
        PullError::Unknown(_) => (Class::Internal, Some("pull or build the image again".to_owned())),
        PullError::Registry { source, .. } => registry(source),
        PullError::Store { source, .. } => store(source),
        PullError::Here(error) => store(error),
        PullError::Layout { source, .. } => archive(source),
        PullError::Foreign { .. } => (Class::Dockerfile, Some("use another base image".to_owned())),
        PullError::Thread { .. } => (Class::Host, None),
    }
}

/// The class of what went wrong with a registry, and what to do about it.
fn registry(error: &RegistryError) -> (Class, Option<String>) {
    match error {
        RegistryError::Unauthorized { registry, .. } => {
            (Class::Auth, Some(format!("log in with `rbuild login{}`", argument(registry))))
        }
        RegistryError::Denied { registry, login, .. } if login == "anonymously" => {
            (Class::Auth, Some(format!("log in with `rbuild login{}`", argument(registry))))
        }
        RegistryError::Denied { .. } => {
            (Class::Auth, Some("check the name, or ask for rights in that repository".to_owned()))
        }
        RegistryError::NotFound { .. } => (Class::Usage, Some("check the name and the tag".to_owned())),
        RegistryError::Unavailable { .. } | RegistryError::RetryLater { .. } => {
            (Class::Network, Some("the registry is busy or broken: try again later".to_owned()))
        }
        RegistryError::Network { .. } => {
            (Class::Network, Some("check the name of the registry and the network".to_owned()))
        }
        RegistryError::Refused(_)
        | RegistryError::Protocol { .. }
        | RegistryError::Document { .. }
        | RegistryError::Corrupt { .. } => (Class::Network, None),
        RegistryError::Credentials(_) => (Class::Auth, None),
        RegistryError::Config { .. } => (Class::Host, None),
        // Its sources say whether the disk is full.
        RegistryError::Source(_) => (Class::Host, None),
    }
}

/// A registry as an argument of `login`; Docker Hub needs none.
fn argument(registry: &str) -> String {
    match registry {
        DOCKER_HUB => String::new(),
        other => format!(" {other}"),
    }
}

/// Gives an error of a library its class at the place where it leaves it.
pub(crate) trait OrFail<T> {
    fn or_fail(self, class: Class) -> Result<T, Failure>;
}

impl<T, E: StdError + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, class: Class) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(class, &error))
    }
}

fn is_disk_full(error: &(dyn StdError + 'static)) -> bool {
    use rustix::io::Errno;
    use std::io::ErrorKind;
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|io| matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
        || error.downcast_ref::<Errno>().is_some_and(|errno| matches!(*errno, Errno::NOSPC | Errno::DQUOT))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn missing(what: &'static str) -> Failure {
        StoreError::Missing { what, name: "x".to_owned() }.into()
    }

    #[test]
    fn who_has_to_act_decides_the_class() {
        assert_eq!(missing("image").class, Class::Usage);
        assert_eq!(missing("layer").class, Class::Internal);
        let denied = RegistryError::Unauthorized { registry: "r:5".to_owned(), reason: "no".to_owned() };
        let failure = Failure::from(denied);
        assert_eq!(failure.class, Class::Auth);
        assert_eq!(failure.hints, ["log in with `rbuild login r:5`"]);
    }

    #[test]
    fn a_full_disk_is_seen_behind_other_errors() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let store = StoreError::Io { verb: "write", path: "/x".into(), source: full() };
        for failure in [
            Failure::from(ArchiveError::Store(store)),
            Failure::from(ArchiveError::Write(full())),
            Failure::from(RegistryError::Source(Box::new(full()))),
        ] {
            assert_eq!(failure.class, Class::Disk, "{failure}");
            assert_eq!(failure.hints.len(), 1, "{failure}");
        }
        assert_eq!(Failure::of(Class::Host, &rustix::io::Errno::NOSPC).class, Class::Disk);
        assert_eq!(Failure::of(Class::Host, &rustix::io::Errno::PERM).class, Class::Host);
    }
}
