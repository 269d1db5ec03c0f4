//! `doctor`: what this host can do, and what is missing.

use std::path::Path;

use serde_json::{Value, json};
use store::root::Root;
use worker::diff::Marks;
use worker::mount::{mounter, scratch};
use worker::probe::{Fact, Found, probe};

use super::{Session, print};
use crate::cli::DoctorArgs;
use crate::failure::{Class, Failure};
use crate::show;

/// With less room than this a build of any size fails, bytes.
const LITTLE_SPACE: u64 = 1 << 30;

/// `rbuild doctor`
pub(crate) fn doctor(session: &Session, args: &DoctorArgs) -> Result<(), Failure> {
    let mut facts = probe();
    if let Some(obstacle) = &session.no_steps {
        facts.push(Fact {
            name: "user namespace",
            purpose: "running steps without root",
            found: Found::Missing(obstacle.clone()),
        });
    }
    facts.extend(state(session));
    let missing: Vec<&str> =
        facts.iter().filter(|fact| matches!(fact.found, Found::Missing(_))).map(|fact| fact.name).collect();
    if args.format == "json" {
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "root": session.places.root,
            "ok": missing.is_empty(),
            "facts": facts.iter().map(as_json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&all).expect("JSON values can be written");
        print(|out| writeln!(out, "{text}"))?;
    } else {
        let rows: Vec<Vec<String>> = facts.iter().map(row).collect();
        print(|out| {
            writeln!(
                out,
                "rbuild {}, state in {}\n",
                env!("CARGO_PKG_VERSION"),
                session.places.root.display()
            )?;
            show::table(out, &rows)
        })?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Class::Host, format!("this host cannot run steps: {}", missing.join(", ")))
        .hint("builds without RUN work, and so does what is cached"))
}

/// What is to say about the state directory.
fn state(session: &Session) -> Vec<Fact> {
    let (name, purpose) = ("state directory", "layers, images and the cache");
    let root = match session.open() {
        Ok(root) => root,
        Err(failure) => return vec![Fact { name, purpose, found: Found::Missing(failure.message) }],
    };
    let marks = Marks::of_this_process();
    vec![Fact { name, purpose, found: space(root.path()) }, layers(&root, marks), writes(&root, marks)]
}

fn writes(root: &Root, marks: Marks) -> Fact {
    let found = match scratch::keeps_changes(root, marks) {
        Ok(()) => Found::Yes("in the state directory".to_owned()),
        Err(errno) => Found::Lacking(format!(
            "in memory: overlayfs cannot write to the state directory's file system: {errno}; put it on a volume"
        )),
    };
    Fact { name: "writes of steps", purpose: "steps that write more than fits into memory", found }
}

fn space(path: &Path) -> Found {
    match rustix::fs::statvfs(path) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} free", show::size(free));
            if free < LITTLE_SPACE { Found::Lacking(text) } else { Found::Yes(text) }
        }
        Err(error) => Found::Lacking(error.to_string()),
    }
}

/// Tried where the layers are: it depends on that file system too.
fn layers(root: &Root, marks: Marks) -> Fact {
    let found = match mounter::choose(root, marks).obstacle {
        None => Found::Yes("in place".to_owned()),
        Some(obstacle) => Found::Lacking(format!("extracted into directories: {obstacle}")),
    };
    Fact { name: "layer mounts", purpose: "steps that start at once on new layers", found }
}

fn parts(fact: &Fact) -> (&'static str, &str) {
    match &fact.found {
        Found::Yes(detail) => ("ok", detail),
        Found::Missing(why) => ("missing", why),
        Found::Lacking(why) => ("lacking", why),
    }
}

fn row(fact: &Fact) -> Vec<String> {
    let (status, detail) = parts(fact);
    let detail = match &fact.found {
        Found::Yes(_) => detail.to_owned(),
        Found::Missing(_) | Found::Lacking(_) => format!("{detail} (for {})", fact.purpose),
    };
    vec![status.to_owned(), fact.name.to_owned(), detail]
}

fn as_json(fact: &Fact) -> Value {
    let (status, detail) = parts(fact);
    json!({ "name": fact.name, "purpose": fact.purpose, "status": status, "detail": detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_with_its_purpose() {
        let fact = |found| Fact { name: "n", purpose: "p", found };
        assert_eq!(row(&fact(Found::Yes("d".to_owned()))), ["ok", "n", "d"]);
        assert_eq!(row(&fact(Found::Lacking("why".to_owned()))), ["lacking", "n", "why (for p)"]);
        assert_eq!(as_json(&fact(Found::Missing("why".to_owned())))["status"], "missing");
    }
}
