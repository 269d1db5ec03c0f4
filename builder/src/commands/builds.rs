//! `rbuild builds` and `rbuild logs`.

use std::io;

use super::{Session, print};
use crate::cli::{BuildsArgs, LogsArgs};
use crate::failure::Failure;
use crate::journal::{self, Entry};
use crate::show;

/// `rbuild builds`
pub(crate) fn builds(session: &Session, args: &BuildsArgs) -> Result<(), Failure> {
    let entries = journal::list(session.open()?.path());
    if args.format == "json" {
        return print(|out| {
            entries
                .iter()
                .try_for_each(|entry| writeln!(out, "{}", serde_json::to_string(entry).expect("plain data")))
        });
    }
    let now = jiff::Timestamp::now().as_second();
    let mut table: Vec<Vec<String>> =
        vec![["BUILD", "CREATED", "TOOK", "RESULT", "DIGEST", "NAME"].map(str::to_owned).to_vec()];
    for entry in &entries {
        table.push(vec![
            entry.id.clone(),
            show::ago(now - entry.began),
            entry.seconds.map_or_else(String::new, |seconds| format!("{seconds:.1}s")),
            show::shorten(&entry.result, 40),
            entry
                .digest
                .as_deref()
                .unwrap_or_default()
                .trim_start_matches("sha256:")
                .chars()
                .take(12)
                .collect(),
            entry.names.join(", "),
        ]);
    }
    print(|out| show::table(out, &table))
}

/// `rbuild logs`
pub(crate) fn logs(session: &Session, args: &LogsArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let entry = find(journal::list(root.path()), args.build.as_deref())?;
    let wanted = args.step.as_deref();
    let number = wanted.and_then(|text| text.trim_start_matches('#').parse::<usize>().ok());
    let mut found = false;
    for (at, step) in (1..).zip(&entry.steps) {
        let is_wanted = match (wanted, number) {
            (None, _) => true,
            (_, Some(number)) => at == number,
            (Some(text), None) => step.name.contains(text),
        };
        if !is_wanted {
            continue;
        }
        found = true;
        let mut log = journal::log(root.path(), &entry.id, at);
        // Of one step its output alone, so that it can be processed.
        let heading = wanted.is_none() && (log.is_some() || !step.state.is_empty());
        print(|out| {
            if heading {
                writeln!(out, "#{at} {} {}", step.name, step.state.to_uppercase())?;
            }
            if let Some(log) = &mut log {
                io::copy(log, out)?;
            }
            Ok(())
        })?;
    }
    match (found, wanted) {
        (false, Some(step)) => Err(Failure::usage(format!("build {} has no step {step:?}", entry.id))),
        _ => Ok(()),
    }
}

fn find(entries: Vec<Entry>, id: Option<&str>) -> Result<Entry, Failure> {
    let mut found = entries.into_iter().filter(|entry| id.is_none_or(|id| entry.id.starts_with(id)));
    let first = found.next().ok_or_else(|| match id {
        None => Failure::usage("there was no build in this state directory yet"),
        Some(id) => Failure::usage(format!("there is no build {id:?}")).hint("`rbuild builds` lists them"),
    })?;
    match (id, found.next()) {
        (Some(id), Some(_)) => Err(Failure::usage(format!("more than one build begins with {id:?}"))),
        _ => Ok(first),
    }
}
