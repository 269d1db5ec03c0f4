//! A context of 20,000 small files: walked, hashed, copied.

use std::fs;
use std::io;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::tree::{Pick, select};
use solver::Cancel;
use solver::op::{self, FileAction};
use store::stat::StatCache;
use worker::file::{self, Input};
use worker::source::local::Directory;

const FILES: u32 = 20_000;

fn benches(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory can be made");
    for n in 0..FILES {
        let place = dir.path().join(format!("d{}/e{}", n % 20, n % 200));
        fs::create_dir_all(&place).expect("a directory can be made");
        fs::write(place.join(format!("f{n}.txt")), format!("{n}\n").repeat(800)).expect("a file can be made");
    }
    // So that files are older than the clock's grain and their hashes are believed.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let directory = Arc::new(Directory::open::<&str>(dir.path(), &[]).expect("it is there"));
    let picks = [Pick { path: "/", wildcard: false, follow_symlinks: false, exclude: &[], parents: false }];
    let walk = |known: &StatCache| directory.walk(&picks, known, &Cancel::new()).expect("it can be read");
    let walked = walk(&StatCache::default());
    let known = walked.cache.as_ref().expect("all is new");

    let mut group = c.benchmark_group("context");
    group.sample_size(10);
    group.throughput(Throughput::Elements(FILES.into()));
    group.bench_function("walk, nothing known", |b| b.iter(|| walk(&StatCache::default())));
    group.bench_function("walk, all known", |b| b.iter(|| walk(known)));
    group.bench_function("select", |b| b.iter(|| select(&walked.tree, &picks).expect("all is there")));
    group.bench_function("copy", |b| {
        let op = op::File { base: None, actions: vec![FileAction::Copy(op::Copy::all(0, "/"))] };
        let options = || file::Options { created: 0, temporary: dir.path().to_owned(), earlier: None };
        let no_layers = |_: &image::DiffId| unreachable!("the context is no layer");
        b.iter(|| {
            let input = Input { tree: walked.tree.clone(), directory: Some(directory.clone()) };
            store::pool::pool()
                .install(|| file::run(&op, &[input], &no_layers, &options(), &Cancel::new(), io::sink()))
                .expect("nothing changed")
        });
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
