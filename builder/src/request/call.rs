//! `--call`: what to do with the Dockerfile.

use super::text::{csv, parse_bool};
use crate::failure::Failure;

/// `--call`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Build,
    Check {
        json: bool,
        /// Findings do not make it fail.
        ignore_status: bool,
    },
    Outline {
        json: bool,
    },
    Targets {
        json: bool,
    },
    /// Which calls there are.
    Describe {
        json: bool,
    },
}

pub(super) fn call(text: &str, check: bool) -> Result<Call, Failure> {
    let fields = csv(text).map_err(|error| Failure::usage(format!("invalid --call {text:?}: {error}")))?;
    let mut name = "";
    let mut json = false;
    let mut ignore_status = false;
    for field in &fields {
        match field.split_once('=') {
            Some(("ignorestatus", value)) => ignore_status = parse_bool("ignorestatus", value)?,
            None if field == "ignorestatus" => ignore_status = true,
            Some(("format", "json")) => json = true,
            Some(("format", "text")) => {}
            Some(("name", value)) => name = value,
            Some(_) => {
                return Err(Failure::usage(format!("invalid --call {text:?}: unknown option {field:?}")));
            }
            None => name = field,
        }
    }
    match (name, check) {
        ("build" | "check" | "lint" | "", true) | ("check" | "lint", false) => {
            Ok(Call::Check { json, ignore_status })
        }
        ("build" | "", false) => Ok(Call::Build),
        ("outline", false) => Ok(Call::Outline { json }),
        ("targets", false) => Ok(Call::Targets { json }),
        ("subrequests.describe", false) => Ok(Call::Describe { json }),
        (_, true) => Err(Failure::usage("--check and --call cannot be used together")),
        (other, false) => Err(Failure::usage(format!(
            "unknown --call {other:?}: expected build, check, outline, targets or subrequests.describe"
        ))),
    }
}
