//! The crates import each other in one direction only: the table of `docs/ARCHITECTURE.md`, held against what cargo says.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may import of ours, and what it must not reach, however indirectly.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("image", &[], &["tokio", "reqwest", "rusqlite", "rustix", "libc"]),
    ("solver", &["image"], &["tokio", "reqwest", "rusqlite", "rustix"]),
    ("frontend", &["image", "solver"], &["tokio", "reqwest", "rusqlite", "rustix"]),
    ("store", &["image"], &[]),
    ("worker", &["image", "solver", "store"], &[]),
    ("builder", &["frontend", "image", "solver", "store", "worker"], &[]),
];

/// Only these may depend on the heavy crates directly.
const OWNERS: &[(&str, &str)] = &[("reqwest", "store"), ("rusqlite", "store")];

/// Crates below which a forbidden one is fine: they ask it about the CPU or random numbers, or (`tar`) only their header
/// type is used.
const EXEMPT_PARENTS: &[&str] =
    &["blake3", "cpufeatures", "getrandom", "rand_core", "zlib-rs", "memchr", "tar"];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

#[test]
fn crates_import_in_one_direction() {
    let metadata = metadata();
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        names.insert(package["id"].as_str().expect("id"), package["name"].as_str().expect("name"));
    }
    // Normal dependencies only: tests may use what they like.
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().expect("nodes") {
        let from = names[node["id"].as_str().expect("id")];
        for dep in node["deps"].as_array().expect("deps") {
            let normal =
                dep["dep_kinds"].as_array().expect("dep_kinds").iter().any(|kind| kind["kind"].is_null());
            if normal {
                edges.entry(from).or_default().insert(names[dep["pkg"].as_str().expect("pkg")]);
            }
        }
    }
    let ours: BTreeSet<&str> = TABLE.iter().map(|(name, ..)| *name).collect();
    for (name, allowed, forbidden) in TABLE {
        let direct = edges.get(name).cloned().unwrap_or_default();
        for import in direct.iter().filter(|import| ours.contains(*import)) {
            assert!(allowed.contains(import), "{name} must not import {import}");
        }
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = vec![name];
        while let Some(krate) = next.pop() {
            if reached.insert(krate) && !EXEMPT_PARENTS.contains(&krate) {
                next.extend(edges.get(krate).into_iter().flatten().copied());
            }
        }
        for krate in *forbidden {
            assert!(!reached.contains(krate), "{name} must not reach {krate}");
        }
    }
    for (krate, owner) in OWNERS {
        for (from, imports) in &edges {
            if ours.contains(from) && imports.contains(krate) {
                assert_eq!(from, owner, "only {owner} may import {krate}");
            }
        }
    }
}
