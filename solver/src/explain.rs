//! Why a step missed the cache: what it read, part by part ([`recorded_inputs`]), held against the record of the same
//! step in an earlier build ([`explain`]).
//!
//! Names of parts are for people and stable: `command`, `base`, `context`, `file src/main.rs`, `ARG VERSION`,
//! `ENV PATH`, `mount /src`, `user`, `workdir`, ...

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use image::ContentDigest;
use serde::Serialize;

use crate::definition::Vertex;
use crate::key::InputDigest;
use crate::op::{Exec, Op};
use crate::record::{Record, RecordedInput};

/// Why a step is not taken from the cache. `Display` gives one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This step, or what stands in its place, was never built here.
    NeverBuilt,
    /// `--no-cache` or the like.
    NoCache,
    /// It was built like this before, but what it made is gone.
    Evicted,
    /// What it does or reads is not what it was; the most telling change first, never empty.
    Changed(Vec<Change>),
}

/// A part that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// How it differs.
    pub kind: ChangeKind,
    /// The part: `file src/main.rs`.
    pub name: String,
}

/// How a part differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Another content.
    Changed,
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
}

/// What a vertex reads, by name: the parts of its op, then its inputs, then what `files` tells of them in detail.
/// `digests` are its inputs', in order.
pub fn recorded_inputs(
    vertex: &Vertex,
    digests: &[InputDigest],
    files: Vec<RecordedInput>,
) -> Vec<RecordedInput> {
    let mut parts = Parts::default();
    match &vertex.op {
        Op::Exec(exec) => exec_parts(&mut parts, exec, &vertex.metadata.arg_names),
        op => parts.add("command", op),
    }
    for (index, digest) in digests.iter().enumerate() {
        let name = match vertex.metadata.input_names.get(index) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("input {index}"),
        };
        let digest = match digest {
            InputDigest::Result(result) => result.0,
            InputDigest::Selected(selected) => *selected,
        };
        parts.0.push(RecordedInput { name, digest });
    }
    parts.0.extend(files);
    parts.0
}

/// Of `records`, newest first, the one that differs least from what `reads` says: the fewest changes explain it. Of equals
/// the newest.
pub fn nearest(records: impl IntoIterator<Item = Record>, reads: &[RecordedInput]) -> Option<Record> {
    let now: HashSet<(&str, ContentDigest)> = reads.iter().map(|read| (&*read.name, read.digest)).collect();
    let names: HashSet<&str> = reads.iter().map(|read| &*read.name).collect();
    let mut best: Option<(usize, Record)> = None;
    for record in records {
        let inputs = || record.inputs.iter();
        let equal = inputs().filter(|input| now.contains(&(&*input.name, input.digest))).count();
        let named = inputs().filter(|input| names.contains(&*input.name)).count();
        // What is new, what is gone, and what is another: once.
        let changes = (reads.len() + record.inputs.len()).saturating_sub(named + equal);
        if best.as_ref().is_none_or(|(fewest, _)| changes < *fewest) {
            best = Some((changes, record));
        }
    }
    best.map(|(_, record)| record)
}

/// Tells why a step that reads `new` is not the one `old` remembers.
pub fn explain(old: Option<&Record>, new: &[RecordedInput]) -> Reason {
    let Some(old) = old else { return Reason::NeverBuilt };
    let before = by_name(&old.inputs);
    let now = by_name(new);
    let mut changes: Vec<Change> = Vec::new();
    for (name, digest) in &now {
        match before.get(name) {
            Some(known) if known == digest => {}
            Some(_) => changes.push(Change { kind: ChangeKind::Changed, name: (*name).to_owned() }),
            None => changes.push(Change { kind: ChangeKind::Added, name: (*name).to_owned() }),
        }
    }
    // Of very many files no record names any: then none is new because it is named now.
    let names_files = |names: &BTreeMap<&str, _>| names.keys().any(|name| rank(name) == Rank::File);
    let comparable = names_files(&before) == names_files(&now);
    if !comparable {
        changes.retain(|change| rank(&change.name) != Rank::File);
    }
    let removed = before.keys().filter(|name| !now.contains_key(*name));
    let removed = removed.filter(|name| comparable || rank(name) != Rank::File);
    changes.extend(removed.map(|name| Change { kind: ChangeKind::Removed, name: (*name).to_owned() }));
    if changes.iter().any(|change| rank(&change.name) == Rank::File) {
        // The files say what of the whole has changed.
        changes.retain(|change| rank(&change.name) != Rank::Whole);
    }
    changes.sort_by(|a, b| (rank(&a.name), a).cmp(&(rank(&b.name), b)));
    if changes.is_empty() { Reason::Evicted } else { Reason::Changed(changes) }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverBuilt => f.write_str("never built here"),
            Self::NoCache => f.write_str("the cache is not to be used (--no-cache or --no-cache-filter)"),
            Self::Evicted => f.write_str("evicted: its result is no longer stored"),
            Self::Changed(changes) => {
                let Some(first) = changes.first() else { return f.write_str("changed") };
                write!(f, "{first}")?;
                match changes.len() - 1 {
                    0 => Ok(()),
                    more => write!(f, " (and {more} more)"),
                }
            }
        }
    }
}

impl Reason {
    /// The line that `Display` gives, and what the first input is that changed: `name_of` knows it by the input's name.
    pub fn with_names<'a>(&self, name_of: impl Fn(&str) -> Option<&'a str>) -> String {
        let first = match self {
            Self::Changed(changes) => changes.first(),
            _ => None,
        };
        match first.and_then(|change| name_of(&change.name)).filter(|name| !name.is_empty()) {
            Some(name) => format!("{self}: {name}"),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.kind {
            ChangeKind::Changed => "changed",
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
        };
        write!(f, "{} {how}", self.name)
    }
}

#[derive(Default)]
struct Parts(Vec<RecordedInput>);

impl Parts {
    fn add(&mut self, name: impl Into<String>, value: &impl Serialize) {
        let bytes = serde_json::to_vec(value).expect("ops have string keys only and no failing serialisers");
        self.0.push(RecordedInput { name: name.into(), digest: ContentDigest::of(&bytes) });
    }
}

fn exec_parts(parts: &mut Parts, exec: &Exec, arg_names: &[String]) {
    // Every field, so that a new one is not forgotten: it would make misses that cannot be explained.
    let Exec {
        args,
        env,
        cwd,
        user,
        mounts,
        network,
        security,
        devices,
        hostname,
        extra_hosts,
        shm_size,
        ulimits,
        cgroup_parent,
        scripts,
        platform,
        unkeyed: _,
    } = exec;
    // A heredoc's text is as much the command as its arguments.
    parts.add("command", &(args, scripts));
    for variable in env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        let kind = if arg_names.iter().any(|arg| arg == name) { "ARG" } else { "ENV" };
        parts.add(format!("{kind} {name}"), &value);
    }
    parts.add("workdir", cwd);
    parts.add("user", user);
    for mount in mounts {
        parts.add(format!("mount {}", mount.target), mount);
    }
    parts.add("platform", platform);
    // What is rarely set is named only when it is.
    parts.add("network", network);
    parts.add("security", security);
    if !devices.is_empty() {
        parts.add("devices", devices);
    }
    if hostname.is_some() {
        parts.add("hostname", hostname);
    }
    if !extra_hosts.is_empty() {
        parts.add("extra hosts", extra_hosts);
    }
    if shm_size.is_some() {
        parts.add("shm size", shm_size);
    }
    if !ulimits.is_empty() {
        parts.add("ulimits", ulimits);
    }
    if cgroup_parent.is_some() {
        parts.add("cgroup parent", cgroup_parent);
    }
}

/// What explains most comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Command,
    Base,
    File,
    Variable,
    Mount,
    Setting,
    /// An input as a whole: `context`, `stage build`.
    Whole,
}

fn rank(name: &str) -> Rank {
    const SETTINGS: &[&str] = &[
        "workdir",
        "user",
        "platform",
        "network",
        "security",
        "devices",
        "hostname",
        "extra hosts",
        "shm size",
        "ulimits",
        "cgroup parent",
    ];
    match name {
        "command" => Rank::Command,
        "base" => Rank::Base,
        _ if name.starts_with("file ") => Rank::File,
        _ if name.starts_with("ARG ") || name.starts_with("ENV ") => Rank::Variable,
        _ if name.starts_with("mount ") => Rank::Mount,
        _ if SETTINGS.contains(&name) => Rank::Setting,
        _ => Rank::Whole,
    }
}

/// Several inputs may have one name (two files of one stage): their digests are compared together.
fn by_name(inputs: &[RecordedInput]) -> BTreeMap<&str, Vec<ContentDigest>> {
    let mut map: BTreeMap<&str, Vec<ContentDigest>> = BTreeMap::new();
    for input in inputs {
        map.entry(&input.name).or_default().push(input.digest);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{Definition, Metadata};
    use crate::key::ResultDigest;
    use crate::op::{Mount, MountKind, Unkeyed};
    use image::{DiffId, Digest};

    fn exec() -> Exec {
        let args = vec!["/bin/sh".to_owned(), "-c".to_owned(), "make".to_owned()];
        Exec {
            env: vec!["PATH=/bin".to_owned(), "VERSION=1".to_owned()],
            cwd: "/src".to_owned(),
            ..Exec::new(args, "linux/amd64".parse().unwrap())
        }
    }

    fn inputs(exec: Exec, base: &str, files: &[(&str, &str)]) -> Vec<RecordedInput> {
        let mut definition = Definition::default();
        let metadata = Metadata {
            input_names: vec!["base".to_owned(), "context".to_owned()],
            arg_names: vec!["VERSION".to_owned()],
            ..Metadata::default()
        };
        let id = definition.add(Op::Exec(exec), Vec::new(), metadata);
        let of = |text: &str| ContentDigest::of(text.as_bytes());
        let all: String = files.iter().map(|(name, content)| format!("{name}={content};")).collect();
        let digests = [InputDigest::Result(ResultDigest(of(base))), InputDigest::Selected(of(&all))];
        let files = files
            .iter()
            .map(|(name, content)| RecordedInput { name: format!("file {name}"), digest: of(content) });
        recorded_inputs(definition.vertex(id), &digests, files.collect())
    }

    fn record(inputs: Vec<RecordedInput>) -> Record {
        Record {
            layer: DiffId(Digest::of(b"layer")),
            result: ResultDigest::scratch(),
            op: ContentDigest::of(b"op"),
            inputs,
            seconds: 1.0,
            bytes: 0,
            created: 0,
        }
    }

    #[test]
    fn a_miss_names_what_changed() {
        let files = [("a.c", "1"), ("b.c", "2")];
        let old = record(inputs(exec(), "debian", &files));
        let mount = Mount {
            target: "/root/.cache".to_owned(),
            kind: MountKind::Tmpfs { size: None, readonly: false },
        };
        let cases: Vec<(&str, Vec<RecordedInput>)> = vec![
            ("evicted: its result is no longer stored", inputs(exec(), "debian", &files)),
            ("base changed", inputs(exec(), "alpine", &files)),
            ("file a.c changed", inputs(exec(), "debian", &[("a.c", "9"), ("b.c", "2")])),
            ("file b.c removed", inputs(exec(), "debian", &[("a.c", "1")])),
            ("file c.c added", inputs(exec(), "debian", &[("a.c", "1"), ("b.c", "2"), ("c.c", "3")])),
            ("file a.c changed (and 1 more)", inputs(exec(), "debian", &[("a.c", "9"), ("b.c", "9")])),
            ("command changed", inputs(Exec { args: vec!["true".to_owned()], ..exec() }, "debian", &files)),
            (
                "command changed (and 2 more)",
                inputs(Exec { args: Vec::new(), user: "nobody".to_owned(), ..exec() }, "alpine", &files),
            ),
            (
                "ARG VERSION changed",
                inputs(
                    Exec { env: vec!["PATH=/bin".to_owned(), "VERSION=2".to_owned()], ..exec() },
                    "debian",
                    &files,
                ),
            ),
            (
                "ENV PATH removed",
                inputs(Exec { env: vec!["VERSION=1".to_owned()], ..exec() }, "debian", &files),
            ),
            ("user changed", inputs(Exec { user: "nobody".to_owned(), ..exec() }, "debian", &files)),
            ("hostname added", inputs(Exec { hostname: Some("x".to_owned()), ..exec() }, "debian", &files)),
            ("mount /root/.cache added", inputs(Exec { mounts: vec![mount], ..exec() }, "debian", &files)),
        ];
        for (expected, new) in cases {
            assert_eq!(explain(Some(&old), &new).to_string(), expected);
        }
        assert_eq!(explain(None, &old.inputs).to_string(), "never built here");
    }

    #[test]
    fn the_nearest_record_explains_and_of_equals_the_newest() {
        let files = [("a.c", "1"), ("b.c", "2")];
        let far = record(inputs(Exec { user: "x".to_owned(), ..exec() }, "alpine", &[("a.c", "0")]));
        let near = record(inputs(exec(), "debian", &[("a.c", "9"), ("b.c", "2")]));
        let older = Record { created: -1, ..near.clone() };
        let now = inputs(exec(), "debian", &files);
        for records in [[&far, &near, &older], [&near, &older, &far], [&near, &far, &older]] {
            let found = nearest(records.map(Clone::clone), &now).unwrap();
            assert_eq!(found, near);
            assert_eq!(explain(Some(&found), &now).to_string(), "file a.c changed");
        }
        assert_eq!(nearest([], &now), None);
    }

    #[test]
    fn of_records_that_have_the_same_in_common_the_one_with_less_else_is_nearest() {
        let before = record(inputs(exec(), "debian", &[("a.c", "1"), ("b.c", "2")]));
        let with_more = record(inputs(exec(), "debian", &[("a.c", "1"), ("b.c", "2"), ("c.c", "3")]));
        let now = inputs(exec(), "debian", &[("a.c", "1")]);
        let found = nearest([with_more, before.clone()], &now).unwrap();
        assert_eq!(explain(Some(&found), &now).to_string(), "file b.c removed");
    }

    #[test]
    fn an_input_that_changed_is_called_by_what_it_is() {
        let old = record(inputs(exec(), "debian", &[]));
        let now = inputs(Exec { user: "x".to_owned(), ..exec() }, "alpine", &[]);
        let name_of = |name: &str| (name == "base").then_some("[2/3] RUN make");
        let reason = explain(Some(&old), &now);
        assert_eq!(reason.with_names(name_of), "base changed (and 1 more): [2/3] RUN make");
        assert_eq!(reason.with_names(|_| None), reason.to_string());
        assert_eq!(Reason::NeverBuilt.with_names(name_of), "never built here");
    }

    #[test]
    fn an_input_without_file_names_is_named_as_a_whole() {
        let old = record(inputs(exec(), "debian", &[]));
        let mut new = old.inputs.clone();
        new.last_mut().unwrap().digest = ContentDigest::of(b"other");
        assert_eq!(explain(Some(&old), &new).to_string(), "context changed");
    }

    #[test]
    fn files_that_only_one_record_names_say_nothing() {
        let old = record(inputs(exec(), "debian", &[]));
        let new = inputs(exec(), "debian", &[("a.c", "1"), ("b.c", "2")]);
        assert_eq!(explain(Some(&old), &new).to_string(), "context changed");
        assert_eq!(explain(Some(&record(new)), &old.inputs).to_string(), "context changed");
    }

    #[test]
    fn what_is_not_in_the_key_is_not_in_the_parts() {
        let unkeyed = Unkeyed { proxy_env: vec!["HTTP_PROXY=x".to_owned()], hosts: Vec::new() };
        assert_eq!(inputs(exec(), "a", &[]), inputs(Exec { unkeyed, ..exec() }, "a", &[]));
    }
}
