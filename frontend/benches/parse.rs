//! From text to a graph.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frontend::convert::convert;
use frontend::request::Request;

/// Stages on each other, as a large generated Dockerfile has them.
fn dockerfile(stages: usize) -> String {
    let mut text = String::from("FROM scratch AS s0\nCOPY . /src\n");
    for n in 1..stages {
        writeln!(text, "FROM s{} AS s{n}\nARG V{n}=1\nENV N{n}=${{V{n}:-x}}\nLABEL l{n}=\"{n}\"", n - 1)
            .expect("strings grow");
        writeln!(text, "RUN echo $N{n} \\\n && test -e /src # and so on").expect("strings grow");
        writeln!(text, "COPY --from=s0 --chmod=644 /src/{n} /{n}").expect("strings grow");
    }
    text
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("frontend");
    let text = dockerfile(400);
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse 400 stages", |b| b.iter(|| frontend::parse(black_box(text.as_bytes()))));
    let (parsed, _) = frontend::parse(text.as_bytes());
    let (request, images) = (Request::default(), HashMap::new());
    group.bench_function("convert 400 stages", |b| {
        b.iter(|| convert(black_box(&parsed), &request, &images).expect("it is a good one"));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
