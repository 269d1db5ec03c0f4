//! The instructions' keywords and flags.

use super::flag::{FlagKind, FlagSpec};
use crate::diagnostic::nearest;

/// What an instruction starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
}

const KEYWORDS: [(&str, Keyword); 18] = [
    ("ADD", Keyword::Add),
    ("ARG", Keyword::Arg),
    ("CMD", Keyword::Cmd),
    ("COPY", Keyword::Copy),
    ("ENTRYPOINT", Keyword::Entrypoint),
    ("ENV", Keyword::Env),
    ("EXPOSE", Keyword::Expose),
    ("FROM", Keyword::From),
    ("HEALTHCHECK", Keyword::Healthcheck),
    ("LABEL", Keyword::Label),
    ("MAINTAINER", Keyword::Maintainer),
    ("ONBUILD", Keyword::Onbuild),
    ("RUN", Keyword::Run),
    ("SHELL", Keyword::Shell),
    ("STOPSIGNAL", Keyword::StopSignal),
    ("USER", Keyword::User),
    ("VOLUME", Keyword::Volume),
    ("WORKDIR", Keyword::Workdir),
];

impl Keyword {
    /// The keyword of a name in any case.
    pub(super) fn parse(name: &str) -> Option<Self> {
        KEYWORDS.iter().find(|(keyword, _)| name.eq_ignore_ascii_case(keyword)).map(|(_, keyword)| *keyword)
    }

    /// In upper case.
    pub(super) fn name(self) -> &'static str {
        KEYWORDS.iter().find(|(_, keyword)| *keyword == self).map_or("", |(name, _)| name)
    }

    /// How it is written, for whoever wrote it otherwise.
    pub(super) fn form(self) -> &'static str {
        match self {
            Self::Add => "ADD SOURCE... DESTINATION",
            Self::Arg => "ARG NAME or ARG NAME=DEFAULT",
            Self::Cmd => "CMD [\"executable\", \"argument\"]",
            Self::Copy => "COPY SOURCE... DESTINATION",
            Self::Entrypoint => "ENTRYPOINT [\"executable\", \"argument\"]",
            Self::Env => "ENV NAME=VALUE",
            Self::Expose => "EXPOSE PORT",
            Self::From => "FROM IMAGE or FROM IMAGE AS NAME",
            Self::Healthcheck => "HEALTHCHECK CMD COMMAND or HEALTHCHECK NONE",
            Self::Label => "LABEL NAME=VALUE",
            Self::Maintainer => "LABEL org.opencontainers.image.authors=NAME",
            Self::Onbuild => "ONBUILD and another instruction",
            Self::Run => "RUN COMMAND",
            Self::Shell => "SHELL [\"executable\", \"argument\"]",
            Self::StopSignal => "STOPSIGNAL SIGTERM or another signal",
            Self::User => "USER NAME or USER NAME:GROUP",
            Self::Volume => "VOLUME /path",
            Self::Workdir => "WORKDIR /path",
        }
    }

    /// The flags it has.
    pub(super) fn flags(self) -> &'static [FlagSpec] {
        const fn text(name: &'static str) -> FlagSpec {
            FlagSpec { name, kind: FlagKind::Text }
        }
        const fn list(name: &'static str) -> FlagSpec {
            FlagSpec { name, kind: FlagKind::List }
        }
        const fn bool(name: &'static str) -> FlagSpec {
            FlagSpec { name, kind: FlagKind::Bool }
        }
        match self {
            Self::From => const { &[text("platform")] },
            Self::Run => const { &[list("mount"), text("network"), text("security"), list("device")] },
            Self::Copy => {
                const {
                    &[
                        text("from"),
                        text("chown"),
                        text("chmod"),
                        bool("link"),
                        bool("parents"),
                        list("exclude"),
                    ]
                }
            }
            Self::Add => {
                const {
                    &[
                        text("chown"),
                        text("chmod"),
                        bool("link"),
                        bool("keep-git-dir"),
                        text("checksum"),
                        bool("unpack"),
                        list("exclude"),
                    ]
                }
            }
            Self::Healthcheck => {
                const {
                    &[
                        text("interval"),
                        text("timeout"),
                        text("start-period"),
                        text("start-interval"),
                        text("retries"),
                    ]
                }
            }
            _ => &[],
        }
    }

    /// The name of the keyword that `name` was probably meant to be.
    pub(super) fn nearest(name: &str) -> Option<&'static str> {
        nearest(name, KEYWORDS.iter().map(|(keyword, _)| *keyword))
    }
}
