//! Dockerfiles and ignore files with damage: whatever bytes come, there is an answer, and it can be shown.
//!
//! Starts from the Dockerfiles of the fixtures and does to them what a fuzzer does: bytes change, pieces go, come twice,
//! or come from another file. `just fuzz` runs many cases.

#![expect(clippy::print_stderr, reason = "what large files take is for whoever looks")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use frontend::diagnostic::RenderStyle;
use frontend::request::{Conversion, Devices, HostDevice, Request, ResolvedImage};
use image::tree::Patterns;
use image::{Digest, ImageConfig, Platform};
use proptest::prelude::*;

/// Dockerfiles of the fixtures, and lines of what they do not have.
static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut files = vec![MORE.as_bytes().to_vec()];
    let mut directories = vec![fixtures];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("fixtures can be read") {
            let path = entry.expect("fixtures can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if path.is_dir() {
                directories.push(path);
            } else if name.contains("Dockerfile") || name == ".dockerignore" {
                files.push(fs::read(path).expect("fixtures can be read"));
            }
        }
    }
    files.sort();
    files
});

const MORE: &str = r#"# syntax=docker/dockerfile:1
# check=skip=all;error=true
ARG BASE=alpine:${TAG:-1} SOURCE_DATE_EPOCH=src
FROM --platform=$BUILDPLATFORM ${BASE%:*}:${BASE##*:} AS base
FROM scratch AS src
ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 https://h/a%20b.tar /
FROM base AS one
ENV A=${B:+x} C="${A/x/y}" D='${A}' E=${A//[a-z]*/\$}
ENV F legacy
RUN --mount=type=cache,id=$A,target=/c,sharing=locked,uid=1,mode=0700 --mount=type=secret,id=s,env=S,required \
    --mount=type=ssh --mount=type=tmpfs,size=1g,target=/t --mount="from=base,source=/a,target=/b" \
    --device=v.com/d=a,required --network=none --security=sandbox <<-EOF bash <<"X"
	echo $A
	EOF
Y
X
COPY --link --parents --exclude=**/*.[ch] --chown=$A:1 --chmod=u=rwX,go-w a/./b* "c d" /x/
COPY --from=base <<E1 <<E2 /y/
one $A
E1
E2
ADD --keep-git-dir=true git@h:a/b.git#ref:dir https://h/r.git?tag=v1&submodules=0&checksum=abcdef1 /g/
ONBUILD COPY --from=base a b
HEALTHCHECK --interval=1m30s --timeout=1h --retries=3 --start-interval=5ms CMD ["a", "\u00e9"]
EXPOSE 80-90/udp 1:2/tcp ${A:-443}
LABEL "a b"="c\
 d" e=f
SHELL ["/bin/sh", "-c"]
STOPSIGNAL SIGRTMIN+3
VOLUME ["/a", "$A"]
USER $A:${B:-1}
WORKDIR ../..
MAINTAINER nobody
CMD a "b
"#;

/// What is put in.
const PIECES: [&[u8]; 24] = [
    b"\0",
    b"\xff",
    b"\xc3",
    b"\n",
    b"\r\n",
    b"\\\n",
    b"`\n",
    b" ",
    b"$",
    b"${",
    b"}",
    b"${A:-${A",
    b"\"",
    b"'",
    b"\\",
    b"#",
    b"<<EOF\n",
    b"--mount=",
    b",",
    b"=",
    b"*",
    b"[",
    b"\xef\xbb\xbf",
    b"# escape=`\n",
];

#[derive(Clone, Debug)]
enum Damage {
    /// Put a piece in.
    Insert(prop::sample::Index, usize),
    /// Put a byte in place of another.
    Byte(prop::sample::Index, u8),
    /// Take some bytes out.
    Remove(prop::sample::Index, usize),
    /// Bytes of a file again.
    Splice(prop::sample::Index, prop::sample::Index, prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), 0..PIECES.len()).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (at(), 1..40_usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (at(), at(), at(), 1..200_usize)
            .prop_map(|(at, file, from, length)| Damage::Splice(at, file, from, length)),
    ]
}

fn damaged(file: prop::sample::Index, all: Vec<Damage>) -> Vec<u8> {
    let mut bytes = file.get(&CORPUS).clone();
    for damage in all {
        let length = bytes.len();
        match damage {
            Damage::Insert(at, piece) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, PIECES[piece].iter().copied());
            }
            Damage::Byte(at, byte) if length > 0 => bytes[at.index(length)] = byte,
            Damage::Byte(..) => bytes.push(0),
            Damage::Remove(at, count) => {
                let at = at.index(length + 1);
                bytes.drain(at..length.min(at + count));
            }
            Damage::Splice(at, file, from, count) => {
                let other = file.get(&CORPUS);
                let from = from.index(other.len() + 1);
                let at = at.index(length + 1);
                bytes.splice(at..at, other[from..other.len().min(from + count)].iter().copied());
            }
        }
    }
    bytes
}

/// All that is done with a Dockerfile before anything runs.
fn read(bytes: &[u8]) {
    let (dockerfile, errors) = frontend::parse(bytes);
    let text = frontend::text::decode(bytes);
    let show = |all: &[frontend::Diagnostic]| {
        for one in all {
            assert!(!one.render("Dockerfile", &text, RenderStyle::Plain).is_empty());
            for span in &one.spans {
                assert!(span.start <= span.end && span.end <= text.len(), "{span:?} of {}", text.len());
            }
        }
    };
    show(&errors);
    show(&frontend::lint::check(&dockerfile));
    let _ = frontend::lint::Config::new(&dockerfile, None);
    let device = HostDevice { name: "v.com/d=a".to_owned(), class: None, auto_allow: true };
    let mut request = Request {
        build_platform: Some(Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            ..Platform::host()
        }),
        build_args: vec![("A".to_owned(), "a b".to_owned())],
        devices: Some(Devices { list: vec![device], ..Devices::default() }),
        ..Request::default()
    };
    let _ = frontend::outline::outline(&dockerfile, &text, &request).map_err(|errors| show(&errors));
    let mut images = HashMap::new();
    loop {
        match frontend::convert(&dockerfile, &request, &images) {
            Err(errors) => {
                assert!(!errors.is_empty());
                break show(&errors);
            }
            Ok(Conversion::Complete(converted)) => break show(&converted.warnings),
            Ok(Conversion::NeedsTime(source)) => {
                assert!(request.times.insert(*source, Some(1)).is_none(), "asked twice");
            }
            Ok(Conversion::NeedsImages(needed)) => {
                for image in needed {
                    let config = ImageConfig::scratch(&Platform::host());
                    let resolved = ResolvedImage { digest: Digest::of(b"image"), config };
                    assert!(images.insert(image.source, resolved).is_none(), "asked twice");
                }
            }
        }
    }
}

/// All that is done with an ignore file.
fn ignore(bytes: &[u8]) {
    let patterns: Vec<String> =
        frontend::ignore::parse(bytes).into_iter().map(|(_, pattern)| pattern).collect();
    if let Ok(patterns) = Patterns::new(&patterns) {
        for path in [
            "a",
            "a/b",
            "src/main.rs",
            "a/very/long/path/with/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
        ] {
            let _ = patterns.matching(path.as_bytes());
            let _ = patterns.may_match_below(path.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_dockerfiles_have_an_answer(file in any::<prop::sample::Index>(), all in prop::collection::vec(damage(), 0..12)) {
        read(&damaged(file, all));
    }

    #[test]
    fn damaged_ignore_files_have_an_answer(file in any::<prop::sample::Index>(), all in prop::collection::vec(damage(), 0..12)) {
        ignore(&damaged(file, all));
    }
}

#[test]
fn the_corpus_itself_is_read() {
    assert!(CORPUS.len() > 20, "{}", CORPUS.len());
    for file in CORPUS.iter() {
        read(file);
        ignore(file);
    }
    let (_, errors) = frontend::parse(MORE.as_bytes());
    assert_eq!(errors, []);
}

/// Inputs whose parts could each cost what all before them cost, or a frame of stack.
#[test]
fn large_files_are_read_with_little_stack_in_little_time() {
    let size = std::env::var("RBUILD_FUZZ_SIZE").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let repeated = |before: &str, piece: &str, after: &str| {
        format!("FROM a\n{before}{}{after}", piece.repeat(size / piece.len()))
    };
    let files = [
        ("one line", repeated("RUN ", "x", "")),
        ("words", repeated("ENV ", "A=b ", "")),
        ("continuations", repeated("RUN ", "\\\n", "x")),
        ("comments in a line", repeated("RUN a \\\n", "# x\n", "b")),
        ("nested expansions", repeated("ENV A=", "${A:-", "")),
        (
            "closed nested expansions",
            format!("FROM a\nENV A={}{}", "${A:-".repeat(size / 6), "}".repeat(size / 6)),
        ),
        ("expansions", repeated("ENV A=", "$A", "")),
        ("quotes", repeated("ENV A=", "\"'", "")),
        ("escapes", repeated("ENV A=", "\\\\", "")),
        ("nested arrays", repeated("CMD ", "[", "")),
        ("an array", repeated("CMD [\"a\"", ",\"a\"", "]")),
        ("heredocs that never end", repeated("RUN ", "<<A ", "")),
        ("a heredoc", repeated("RUN <<A\n", "$A\n", "A\n")),
        ("copied heredocs", repeated("", "COPY <<A /a\nA\n", "")),
        ("fields", repeated("RUN --mount=type=bind", ",rw", " x")),
        ("flags", repeated("RUN ", "--mount=type=tmpfs,target=/t ", "x")),
        ("unknown flags", repeated("RUN ", "--x=y ", "x")),
        ("triggers", repeated("", "ONBUILD RUN x\n", "")),
        ("nested triggers", repeated("", "ONBUILD ", "RUN x")),
        ("unknown instructions", repeated("", "RUM x\n", "")),
        ("args", repeated("", "ARG A=$A\n", "")),
        ("labels", repeated("LABEL ", "a=b ", "")),
        ("ports", repeated("EXPOSE ", "80 ", "")),
        ("bytes", repeated("RUN ", "\0", "")),
        ("not UTF-8", repeated("RUN ", "\u{fffd}", "")),
        ("patterns", repeated("ENV A=${A#", "*?", "}")),
        ("excludes", repeated("COPY ", "--exclude=a* ", "a b")),
        ("sources", repeated("COPY ", "a* ", "/b/")),
        ("directives", repeated("# check=skip=", "A,", "")),
    ];
    for (name, file) in files {
        let began = std::time::Instant::now();
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        let read = thread.spawn(move || {
            read(file.as_bytes());
            ignore(file.as_bytes());
        });
        read.expect("a thread can be made").join().expect(name);
        // Twice the size must not take four times as long; how long it takes depends on the machine.
        eprintln!("{name}: {:?}", began.elapsed());
    }
}
