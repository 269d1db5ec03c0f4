//! Resource limits: `--ulimit` text, and what of it this process may set.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A limit on a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// Applied; `None` for no limit.
    pub soft: Option<u64>,
    /// How far the process may raise it; `None` for no limit.
    pub hard: Option<u64>,
}

/// Why a `--ulimit` cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("could not read the ulimit {0:?}: it is not NAME=SOFT[:HARD] with a known name")]
pub struct LimitError(String);

/// `name=soft[:hard]`; -1 or `unlimited` is no limit.
pub fn parse(text: &str) -> Result<Limit, LimitError> {
    let parsed = || {
        let (name, values) = text.split_once('=')?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (resource, soft, hard) = (resource(name)?, number(soft)?, number(hard)?);
        // No limit is the largest.
        let fits = soft.unwrap_or(u64::MAX) <= hard.unwrap_or(u64::MAX);
        fits.then_some(Limit { resource, soft, hard })
    };
    parsed().ok_or_else(|| LimitError(text.to_owned()))
}

/// The limit as far as this process may set it: raising a hard limit needs `CAP_SYS_RESOURCE`, which a container often
/// lacks, and a step must not fail for that.
pub(crate) fn clamp(limit: Limit) -> Rlimit {
    let ceiling = getrlimit(limit.resource).maximum;
    let min = |wanted: Option<u64>| match (wanted, ceiling) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Rlimit { current: min(limit.soft), maximum: min(limit.hard) }
}

/// Lets this process open as many files as it may: every layer that is mounted in place is one, and 1024, where most
/// hosts begin, are few for a large build. Steps have what this process had before.
pub(crate) fn raise_files() {
    FILES_BEFORE.get_or_init(|| {
        let own = getrlimit(Resource::Nofile);
        // Should it be refused, the old limit holds.
        let _as_before = setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum });
        own.current
    });
}

/// The limit on open files that steps have if they ask for none, if it is not ours.
pub(crate) fn files() -> Option<Limit> {
    FILES_BEFORE.get().map(|soft| Limit { resource: Resource::Nofile, soft: *soft, hard: None })
}

static FILES_BEFORE: OnceLock<Option<u64>> = OnceLock::new();

fn number(text: &str) -> Option<Option<u64>> {
    if matches!(text, "-1" | "unlimited") { Some(None) } else { text.parse().ok().map(Some) }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name.to_ascii_lowercase().as_str() {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_docker_reads_them() {
        let nofile = |soft, hard| Ok(Limit { resource: Resource::Nofile, soft, hard });
        assert_eq!(parse("nofile=1024"), nofile(Some(1024), Some(1024)));
        assert_eq!(parse("nofile=1024:2048"), nofile(Some(1024), Some(2048)));
        assert_eq!(parse("nofile=-1"), nofile(None, None));
        assert_eq!(parse("nofile=10:-1"), nofile(Some(10), None));
        for bad in ["", "nofile", "nofile=", "nofile=x", "files=1", "nofile=2:1", "nofile=-1:5", "nofile=-2"]
        {
            assert_eq!(parse(bad), Err(LimitError(bad.into())));
        }
    }

    #[test]
    fn a_limit_is_never_above_our_own_hard_limit() {
        let own = getrlimit(Resource::Nofile).maximum;
        let clamped = clamp(Limit { resource: Resource::Nofile, soft: None, hard: None });
        assert_eq!(clamped.maximum, own);
    }

    #[test]
    fn files_are_raised_for_us_and_not_for_steps() {
        let before = getrlimit(Resource::Nofile);
        raise_files();
        raise_files();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!((raised.current, raised.maximum), (before.maximum, before.maximum));
        assert_eq!(files().map(clamp).unwrap().current, before.current);
    }
}
