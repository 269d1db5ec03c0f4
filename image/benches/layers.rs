//! Layers and trees of 10,000 small files.

use std::hint::black_box;
use std::io;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::ContentDigest;
use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter, index_tar};
use image::tree::{Pick, Tree, select};

const FILES: usize = 10_000;
const SIZE: usize = 4_000;

fn entries() -> Vec<Entry> {
    let entry = |path: String, kind| Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        xattrs: std::collections::BTreeMap::new(),
    };
    let content = ContentDigest::of(&vec![7; SIZE]);
    (0..FILES / 100)
        .flat_map(|dir| {
            let directory = entry(format!("d{dir:03}"), Kind::Directory { opaque: false, implied: false });
            let files = (0..100).map(move |file| {
                let kind = Kind::File { size: SIZE as u64, offset: 0, content };
                entry(format!("d{dir:03}/file{file:03}.txt"), kind)
            });
            std::iter::once(directory).chain(files)
        })
        .collect()
}

fn write(entries: Vec<Entry>, out: impl io::Write + Send, hash: bool) -> LayerIndex {
    let bytes = vec![7; SIZE];
    let mut layer = LayerWriter::new(out);
    for entry in entries {
        let mut bytes = &bytes[..];
        let data = match (&entry.kind, hash) {
            (Kind::File { .. }, true) => Data::New(&mut bytes),
            (Kind::File { .. }, false) => Data::Known(&mut bytes),
            _ => Data::None,
        };
        layer.append(entry, data).expect("it is in order");
    }
    layer.finish().expect("memory takes it").1
}

fn benches(c: &mut Criterion) {
    let mut tar = Vec::new();
    let index = write(entries(), &mut tar, true);
    let bytes = index.to_bytes();

    let mut group = c.benchmark_group("layer");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(tar.len() as u64));
    group.bench_function("write, contents known", |b| b.iter(|| write(entries(), io::sink(), false)));
    group.bench_function("write, contents new", |b| b.iter(|| write(entries(), io::sink(), true)));
    group.bench_function("index a tar", |b| {
        b.iter(|| index_tar(black_box(&tar[..]), io::sink()).expect("it is one"));
    });
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("write an index", |b| b.iter(|| black_box(&index).to_bytes()));
    group.bench_function("read an index", |b| {
        b.iter(|| LayerIndex::from_bytes(black_box(&bytes)).expect("it is one"));
    });
    group.bench_function("EROFS image", |b| {
        b.iter(|| image::erofs::image(black_box(&index)).expect("it fits"));
    });
    group.finish();

    let index = Arc::new(index);
    let tree = Tree::of_layers([index.clone(), index]);
    let mut group = c.benchmark_group("tree");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("select everything", |b| {
        let pick = Pick { path: "/", wildcard: false, follow_symlinks: false, exclude: &[], parents: false };
        b.iter(|| select(black_box(&tree), &[pick]).expect("all is there"));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("look a path up", |b| {
        b.iter(|| tree.get(black_box(b"d050/file050.txt")).is_some());
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
