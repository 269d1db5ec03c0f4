//! What the logs of CI services understand: groups that fold, and messages that are shown beside the code.

/// Whose log this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ci {
    #[default]
    None,
    /// Workflow commands: `::group::`, `::error file=..`.
    GitHub,
    /// Sections, in escape sequences.
    GitLab,
}

impl Ci {
    /// As the service's own variables say.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name| variable(name).is_some_and(|value| value == "true");
        match () {
            () if is_set("GITHUB_ACTIONS") => Self::GitHub,
            () if is_set("GITLAB_CI") => Self::GitLab,
            () => Self::None,
        }
    }

    /// The line that begins a group, with its heading. `time` is seconds since the epoch.
    pub(crate) fn open(self, id: usize, heading: &str, time: i64) -> String {
        match self {
            Self::None => format!("{heading}\n"),
            Self::GitHub => format!("::group::{heading}\n"),
            Self::GitLab => format!("\x1b[0Ksection_start:{time}:rbuild_{id}\r\x1b[0K{heading}\n"),
        }
    }

    /// What ends a group.
    pub(crate) fn close(self, id: usize, time: i64) -> String {
        match self {
            Self::None => String::new(),
            Self::GitHub => "::endgroup::\n".to_owned(),
            Self::GitLab => format!("\x1b[0Ksection_end:{time}:rbuild_{id}\r\x1b[0K\n"),
        }
    }

    /// A message beside a line of a file; `None` where there is no such thing.
    pub(crate) fn annotation(self, level: &str, place: &Place, title: &str, message: &str) -> Option<String> {
        if self != Self::GitHub {
            return None;
        }
        let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
        let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
        let Place { file, first, last } = place;
        Some(format!(
            "::{level} file={},line={first},endLine={last},title={}::{}\n",
            property(file),
            property(title),
            data(message)
        ))
    }
}

/// Lines of a file of the checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_marks() {
        let of = |name: &'static str| Ci::of(|asked| (asked == name).then(|| "true".to_owned()));
        assert_eq!(of("GITHUB_ACTIONS").open(1, "#1 RUN x", 5), "::group::#1 RUN x\n");
        assert_eq!(of("GITLAB_CI").open(1, "h", 5), "\x1b[0Ksection_start:5:rbuild_1\r\x1b[0Kh\n");
        assert_eq!(of("GITLAB_CI").close(1, 6), "\x1b[0Ksection_end:6:rbuild_1\r\x1b[0K\n");
        assert_eq!(of("CI").open(1, "h", 5), "h\n");
    }

    #[test]
    fn what_has_a_meaning_is_escaped() {
        let place = Place { file: "a,b:c".to_owned(), first: 2, last: 3 };
        assert_eq!(
            Ci::GitHub.annotation("error", &place, "t", "50%\nx:y").unwrap(),
            "::error file=a%2Cb%3Ac,line=2,endLine=3,title=t::50%25%0Ax:y\n"
        );
        assert_eq!(Ci::GitLab.annotation("error", &place, "t", "m"), None);
    }
}
