//! Layers on their way out and in.

use std::hint::black_box;
use std::io::{self, Read};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use store::compress::{Algorithm, Compression, Decoder, compress_layer};

/// This program: some text, some code, some zeros, as layers have them.
fn sample() -> Vec<u8> {
    let own = std::env::current_exe().and_then(std::fs::read).expect("a program can be read");
    own.iter().copied().cycle().take(16 << 20).collect()
}

fn benches(c: &mut Criterion) {
    let bytes = sample();
    let mut group = c.benchmark_group("compress");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for (algorithm, name, levels) in [
        (Algorithm::Gzip, "gzip", &[1, 6][..]),
        (Algorithm::Zstd, "zstd", &[1, 3]),
        (Algorithm::None, "none", &[0]),
    ] {
        for level in levels {
            let compression = Compression::new(algorithm, Some(*level)).expect("there is such a level");
            group.bench_function(format!("{name} {level}"), |b| {
                b.iter(|| compress_layer(black_box(&bytes[..]), compression, io::sink()).expect("it can be"));
            });
        }
        let compression = Compression::new(algorithm, None).expect("there is one");
        let mut packed = Vec::new();
        compress_layer(&bytes[..], compression, &mut packed).expect("it can be");
        group.bench_function(format!("{name} back"), |b| {
            b.iter(|| {
                let mut decoder = Decoder::detect(black_box(&packed[..])).expect("memory can be read");
                io::copy(&mut decoder.by_ref(), &mut io::sink()).expect("it is whole")
            });
        });
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
