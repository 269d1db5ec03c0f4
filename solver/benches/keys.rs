//! Graphs and keys of 5,000 vertices.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::ContentDigest;
use solver::definition::{Definition, Input, Metadata};
use solver::key::{CacheKey, InputDigest, ResultDigest};
use solver::op::{self, FileAction, Op};

const VERTICES: u32 = 5_000;

/// Each vertex on the one before it.
fn chain() -> Definition {
    let mut definition = Definition::default();
    let mut last = None;
    for n in 0..VERTICES {
        let action = FileAction::Mkdir { path: format!("/work/{n}"), mode: 0o755, owner: None };
        let op = Op::File(op::File { base: last.map(|_| 0), actions: vec![action] });
        let inputs = last.map(|vertex| Input { vertex, selector: None }).into_iter().collect();
        last = Some(definition.add(op, inputs, Metadata::default()));
    }
    definition
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("solver");
    group.throughput(Throughput::Elements(VERTICES.into()));
    group.bench_function("make a definition", |b| b.iter(chain));
    let definition = chain();
    group.bench_function("keys and results", |b| {
        b.iter(|| {
            let layer = ContentDigest::of(b"layer");
            definition.ids().fold(ResultDigest::scratch(), |result, id| {
                let op = black_box(&definition).vertex(id).op_digest;
                let key = CacheKey::of(op, &[InputDigest::Result(result)]);
                black_box(key);
                result.with_layer(layer)
            })
        });
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
