//! `du` and `prune`: what takes up space, and getting rid of it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::json;
use store::gc::{Filter, Policy, Pruned, Usage, UsageKind};
use store::root::now;

use super::{Session, print};
use crate::cli::{DuArgs, PruneArgs};
use crate::failure::{Class, Failure};
use crate::request::parse_size;
use crate::show;

/// `rbuild du`
pub(crate) fn du(session: &Session, args: &DuArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let mut usages = root.usage()?;
    usages.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    if args.format == "json" {
        return print(|out| usages.iter().try_for_each(|usage| writeln!(out, "{}", as_json(usage))));
    }
    let now = now();
    let totals = Totals::of(&usages);
    print(|out| {
        if args.verbose {
            for usage in &usages {
                writeln!(out, "{}", details(usage, now))?;
            }
        } else {
            let header = ["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED", "DESCRIPTION"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(usages.iter().map(|usage| row(usage, now)));
            show::table(out, &rows)?;
        }
        let mut rows: Vec<Vec<String>> = UsageKind::ALL
            .iter()
            .map(|kind| {
                (*kind, usages.iter().filter(|usage| usage.kind == *kind).map(|usage| usage.size).sum())
            })
            .filter(|(_, size): &(UsageKind, u64)| *size > 0)
            .map(|(kind, size)| vec![format!("{}:", heading(kind)), show::size(size)])
            .collect();
        rows.push(vec!["Reclaimable:".to_owned(), show::size(totals.reclaimable)]);
        rows.push(vec!["Total:".to_owned(), show::size(totals.total)]);
        show::table(out, &rows)
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Totals {
    total: u64,
    reclaimable: u64,
}

impl Totals {
    fn of(usages: &[Usage]) -> Self {
        let sum = |usages: &mut dyn Iterator<Item = &Usage>| usages.map(|usage| usage.size).sum();
        Self {
            total: sum(&mut usages.iter()),
            reclaimable: sum(&mut usages.iter().filter(|usage| usage.is_reclaimable())),
        }
    }
}

fn heading(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Layer => "Layers",
        UsageKind::Blob => "Blobs",
        UsageKind::CacheMount => "Cache mounts",
        UsageKind::Git => "Git clones",
        UsageKind::Local => "Stat caches",
        UsageKind::Sandbox => "Sandboxes",
    }
}

fn row(usage: &Usage, now: i64) -> Vec<String> {
    vec![
        usage.id.chars().take(12).collect(),
        usage.is_reclaimable().to_string(),
        show::size(usage.size),
        show::ago(now - usage.last_used),
        show::shorten(&usage.description.replace(['\n', '\t'], " "), 60),
    ]
}

fn details(usage: &Usage, now: i64) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("ID", usage.id.clone()),
        ("Created at", show::rfc3339(usage.created)),
        ("Reclaimable", usage.is_reclaimable().to_string()),
        ("In use", usage.in_use.to_string()),
        ("Of an image", usage.shared.to_string()),
        ("Size", show::size(usage.size)),
        ("Description", usage.description.replace('\n', " ")),
        ("Last used", show::ago(now - usage.last_used)),
        ("Type", usage.kind.to_string()),
    ] {
        text.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    }
    text
}

fn as_json(usage: &Usage) -> serde_json::Value {
    json!({
        "ID": usage.id, "Type": usage.kind.name(), "Size": usage.size, "Reclaimable": usage.is_reclaimable(),
        "InUse": usage.in_use, "Shared": usage.shared, "CreatedAt": show::rfc3339(usage.created),
        "LastUsedAt": show::rfc3339(usage.last_used), "Description": usage.description,
    })
}

/// `rbuild prune`
pub(crate) fn prune(session: &Session, args: &PruneArgs) -> Result<(), Failure> {
    let policy = policy(args)?;
    let root = session.open()?;
    if !args.force && !confirmed(args.all)? {
        return Ok(());
    }
    let Pruned { removed, images, bytes } = root.prune(&policy)?;
    let now = now();
    print(|out| {
        for digest in &images {
            writeln!(out, "Deleted: {digest}")?;
        }
        if !removed.is_empty() {
            let header = ["ID", "TYPE", "SIZE", "LAST ACCESSED"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(removed.iter().map(|usage| {
                vec![
                    usage.id.chars().take(12).collect(),
                    usage.kind.to_string(),
                    show::size(usage.size),
                    show::ago(now - usage.last_used),
                ]
            }));
            show::table(out, &rows)?;
        }
        writeln!(out, "Total reclaimed space: {}", show::size(bytes))
    })
}

/// Asks. Without a terminal there is nobody to answer, and nothing is removed.
fn confirmed(all: bool) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage("cannot ask whether to prune: standard input is no terminal").hint("give --force")
        );
    }
    let images = if all { "  - all images without a name\n" } else { "" };
    let mut err = io::stderr().lock();
    write!(
        err,
        "WARNING! This will remove:\n{images}  - all build cache that no image consists of\n\nAre you sure you want to continue? [y/N] "
    )
    .and_then(|()| err.flush())
    .map_err(|error| Failure::of(Class::Internal, &error))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::of(Class::Internal, &error))?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn policy(args: &PruneArgs) -> Result<Policy, Failure> {
    let size =
        |flag: &str, text: &Option<String>| text.as_deref().map(|text| parse_size(flag, text)).transpose();
    let mut policy = Policy {
        all: args.all,
        reserved_space: size("--keep-storage", &args.keep_storage)?,
        max_used_space: size("--max-used-space", &args.max_used_space)?,
        ..Policy::default()
    };
    for text in &args.filters {
        let invalid = |why: &str| Failure::usage(format!("invalid --filter {text:?}: {why}"));
        let (name, value) = text.split_once('=').ok_or_else(|| invalid("expected name=value"))?;
        let value = value.trim_start_matches('=');
        match name {
            "until" | "unused-for" => {
                policy.unused_for =
                    Some(duration(value).ok_or_else(|| invalid("expected a time such as 24h or 7d"))?);
            }
            "id" => policy.filters.push(Filter::Id(value.to_owned())),
            "type" => {
                let kind = UsageKind::ALL.into_iter().find(|kind| kind.name() == value);
                let known = UsageKind::ALL.map(UsageKind::name).join(", ");
                policy
                    .filters
                    .push(Filter::Kind(kind.ok_or_else(|| invalid(&format!("types are {known}")))?));
            }
            "description" => policy.filters.push(Filter::Description(value.to_owned())),
            _ => return Err(invalid("filters are until, id, type and description")),
        }
    }
    Ok(policy)
}

/// `24h`, `1h30m`, `7d`, `2w`, or seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                "w" => 604_800.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(filters: &[&str]) -> PruneArgs {
        PruneArgs {
            all: false,
            force: true,
            filters: filters.iter().map(|text| (*text).to_owned()).collect(),
            keep_storage: None,
            max_used_space: None,
        }
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("24h", 86_400), ("1h30m", 5400), ("7d", 604_800), ("90", 90), ("0s", 0)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "1y", "-1h", "1h2", "1e400h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn filters_and_sizes_make_the_policy() {
        let policy = policy(&PruneArgs {
            keep_storage: Some("1g".to_owned()),
            ..args(&["until=24h", "type=exec.cachemount"])
        })
        .unwrap();
        assert_eq!(policy.unused_for, Some(Duration::from_secs(86_400)));
        assert_eq!(policy.reserved_space, Some(1 << 30));
        assert_eq!(policy.filters, [Filter::Kind(UsageKind::CacheMount)]);
        for bad in ["until", "until=yesterday", "type=what", "colour=red"] {
            assert!(super::policy(&args(&[bad])).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_yes_is_yes() {
        for (answer, yes) in [("y\n", true), ("YES\n", true), ("\n", false), ("", false), ("yellow\n", false)]
        {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }
}
