//! Caches that travel: built on one host, exported, imported on an empty one. Nothing runs there, and the image is the same.

use std::path::Path;

use tests::registry::Registry;
use tests::{Base, DockerRegistry, Outcome, TestEnv};

/// Every instruction that makes a layer or reads files, and graphs of stages.
pub(super) const CASES: &[(&str, &str)] = &[
    ("run", "FROM $BASE\nRUN echo one > /one\nRUN cat /one > /two\n"),
    ("copy", "FROM $BASE\nCOPY a /a\nCOPY --chmod=600 --chown=nobody dir /dir\n"),
    ("add", "FROM $BASE\nADD a dir/ /d/\n"),
    ("workdir", "FROM $BASE\nWORKDIR /w/x\nRUN pwd > here\n"),
    ("scratch", "FROM scratch\nCOPY a /a\nCOPY dir /dir\n"),
    ("link", "FROM $BASE\nCOPY --link a /a\nCOPY --link dir /dir\n"),
    ("heredocs", "FROM $BASE\nCOPY <<EOF /e\ntext\nEOF\nRUN <<EOF\ncat /e > /f\nEOF\n"),
    (
        "config",
        "FROM $BASE\nARG V=1\nENV A=$V B=2\nLABEL x=y\nUSER nobody\nEXPOSE 80\nVOLUME /v\nSTOPSIGNAL 9\n\
         RUN echo $A > /tmp/a\nHEALTHCHECK CMD true\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"-c\", \"true\"]\n",
    ),
    (
        "mounts",
        "FROM $BASE AS tool\nRUN echo tool > /tool\nFROM $BASE\n\
         RUN --mount=type=bind,target=/src cat /src/a > /a\n\
         RUN --mount=type=bind,from=tool,source=/tool,target=/t cat /t > /t2\n\
         RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/s touch /c/x /s/y /z\n",
    ),
    (
        "copy-from",
        "FROM $BASE AS build\nCOPY a /a\nRUN cat /a > /out\nFROM scratch\nCOPY --from=build /out /out\n",
    ),
    (
        "diamond",
        "FROM $BASE AS base\nRUN echo b > /b\nFROM base AS left\nRUN cat /b > /l\nFROM base AS right\nRUN cat /b > /r\n\
         FROM base\nCOPY --from=left /l /l\nCOPY --from=right /r /r\nRUN cat /l /r > /both\n",
    ),
    (
        "copy-from-image",
        "FROM scratch\nCOPY --from=$BASE /etc/passwd /passwd\nCOPY --from=$BASE /bin/sh /sh\n",
    ),
    ("parents", "FROM $BASE\nCOPY --parents --exclude=**/c dir /p\nCOPY --chmod=u+x,go= a dir/b /q/\n"),
    ("add-archive", "FROM $BASE\nADD files.tar /x/\nADD --unpack=false files.tar /y/\n"),
    (
        "shell",
        "FROM $BASE\nSHELL [\"/bin/sh\", \"-ec\"]\nONBUILD RUN true\nRUN echo $0 > /x\nRUN [\"touch\", \"/y\"]\n",
    ),
    (
        "secrets-and-modes",
        "FROM $BASE\nRUN --mount=type=secret,id=s,env=S [ -z \"$S\" ] && echo > /x\n\
         RUN --network=none echo > /y\n",
    ),
    (
        "overwritten",
        "FROM $BASE\nRUN mkdir /d && echo 1 > /d/1 && echo 2 > /d/2\nRUN rm -r /d && mkdir /d && ln /etc/group /d/g\n\
         COPY dir /d\nRUN rm /d/b && ls /d > /list\n",
    ),
    (
        "stage-on-stage",
        "FROM $BASE AS one\nWORKDIR /one\nCOPY a .\nFROM one AS two\nRUN cat a > b\nFROM $BASE AS unused\nRUN false\n\
         FROM two\nCOPY --from=one --link /one/a /linked\nRUN --mount=type=bind,from=two,target=/two cp /two/one/b /c\n",
    ),
    ("no-layer", "FROM $BASE\nENV A=1\nCMD [\"x\"]\n"),
];

/// A host of its own, with the same context as others.
fn host(base: &str, case: &str, dockerfile: &str) -> (TestEnv, String) {
    let env = TestEnv::new();
    let dockerfile = dockerfile.replace("$BASE", base);
    let files = [
        ("Dockerfile", dockerfile.as_str()),
        ("a", "content of a\n"),
        ("dir/b", "b\n"),
        ("dir/sub/c", "c\n"),
    ];
    let context = env.context(case, &files);
    // The names and the time decide its bytes, which are the same on all hosts.
    let tar = std::process::Command::new("tar")
        .args(["--mtime=@1600000000", "--owner=7", "--group=7", "--sort=name", "-cf", "files.tar", "dir"])
        .current_dir(&context)
        .status();
    assert!(tar.is_ok_and(|status| status.success()), "tar packs the files");
    // Checked out twice, files have other times; these decide bytes of layers, so here they are the same.
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for path in ["dir/sub/c", "dir/b", "a", "files.tar", "dir/sub", "dir"] {
        let file = std::fs::File::open(context.join(path)).expect("the file was written");
        file.set_modified(time).expect("a time can be set");
    }
    (env, context.display().to_string())
}

/// A registry that has the base image.
pub(super) fn registry() -> (DockerRegistry, String) {
    let registry = DockerRegistry::start();
    let base = format!("{}/base:1", registry.address());
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let _ = env.rbuild(["tag", "busybox:1", &base]).ok();
    let _ = env.rbuild(["push", &base]).ok();
    (registry, base)
}

fn image_id(env: &TestEnv) -> String {
    std::fs::read_to_string(env.work().join("iid")).expect("--iidfile was written")
}

/// Steps that ran are those that have neither been cached nor are steps.
#[track_caller]
fn nothing_ran(outcome: &Outcome) {
    assert!(outcome.stderr.contains(" steps reused"), "{outcome}");
    let line = outcome.stderr.lines().find(|line| line.starts_with("cache: ")).expect("it was just found");
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[1], words[3], "some steps were not reused\n{outcome}");
    assert!(!outcome.stderr.contains("could not"), "{outcome}");
}

pub(super) fn travels(case: &str, dockerfile: &str, base: &str, to: &str, from: &str, more: &[&str]) {
    let (a, context) = host(base, case, dockerfile);
    let mut args = vec!["build", "--iidfile", "iid", "--cache-to", to];
    args.extend_from_slice(more);
    args.push(&context);
    let _ = a.rbuild(&args).ok();
    let (b, context) = host(base, case, dockerfile);
    let mut args = vec!["build", "--iidfile", "iid", "--cache-from", from];
    args.extend_from_slice(more);
    if to.starts_with("type=inline") {
        args.extend(["--cache-to", to]);
    }
    args.push(&context);
    let built = b.rbuild(&args).ok();
    nothing_ran(&built);
    assert_eq!(image_id(&a), image_id(&b), "{case} {to}");
    // The image is whole: all of its files can be had.
    let again = b.rbuild(["build", "--output", "out", &context]).ok();
    assert!(again.stderr.contains(" DONE "), "{again}");
}

#[test]
fn through_a_registry() {
    let (registry, base) = registry();
    for (n, (case, dockerfile)) in CASES.iter().enumerate() {
        // Each form with some of the cases.
        let form = [
            "mode=min,image-manifest=true",
            "mode=max,image-manifest=false,compression=zstd",
            "mode=max,oci-mediatypes=false",
            "mode=max,compression=uncompressed",
        ][n % 4];
        let cache = format!("{}/cache/{case}:{n}", registry.address());
        let to = format!("type=registry,ref={cache},{form},ignore-error=false");
        travels(case, dockerfile, &base, &to, &cache, &[]);
    }
}

#[test]
fn through_a_directory() {
    let (_registry, base) = registry();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    for (n, (case, dockerfile)) in CASES.iter().enumerate() {
        let (mode, compression) = [("min", "gzip"), ("max", "zstd")][n % 2];
        let path = dir.path().join(format!("{case}-{mode}")).display().to_string();
        let to = format!("type=local,dest={path},mode={mode},compression={compression},ignore-error=false");
        travels(case, dockerfile, &base, &to, &format!("type=local,src={path}"), &[]);
    }
}

#[test]
fn inside_the_image() {
    let (registry, base) = registry();
    for (case, dockerfile) in CASES {
        let image = format!("{}/image/{case}:1", registry.address());
        travels(case, dockerfile, &base, "type=inline", &image, &["-t", &image, "--push"]);
    }
}

#[test]
fn other_tools_read_a_local_cache() {
    let (_registry, base) = registry();
    let (env, context) = host(&base, "layout", CASES[0].1);
    let _ = env.rbuild(["build", "--cache-to", "type=local,dest=cache,mode=max,tag=t", &context]).ok();
    let raw = Outcome::of(std::process::Command::new("skopeo").args([
        "inspect",
        "--raw",
        &format!("oci:{}:t", env.work().join("cache").display()),
    ]))
    .ok();
    assert!(raw.stdout.contains("application/vnd.buildkit.cacheconfig.v0"), "{raw}");
}

fn blobs(layout: &Path) -> usize {
    std::fs::read_dir(layout.join("blobs/sha256")).expect("the layout was written").count()
}

#[test]
fn a_local_cache_grows_until_it_is_reset() {
    let (env, context) = host("scratch", "reset", "FROM scratch\nCOPY a /a\n");
    let build = |more: &str| {
        let to = format!("type=local,dest=cache{more}");
        let _ = env.rbuild(["build", "--cache-to", &to, &context]).ok();
        blobs(&env.work().join("cache"))
    };
    assert_eq!(build(""), 3, "a layer, the config, the manifest");
    std::fs::write(Path::new(&context).join("a"), "other").expect("the file can be written");
    assert_eq!(build(""), 6);
    assert_eq!(build(",reset=true"), 3);
    let (other, context) = host("scratch", "reset", "FROM scratch\nCOPY a /a\n");
    std::fs::write(Path::new(&context).join("a"), "other").expect("the file can be written");
    let from = format!("type=local,src={}", env.work().join("cache").display());
    nothing_ran(&other.rbuild(["build", "--cache-from", &from, &context]).ok());
}

#[test]
fn a_layer_is_fetched_only_when_a_step_that_misses_reads_it() {
    let (_registry, base) = registry();
    let dockerfile = "FROM $BASE\nRUN head -c 3000000 /dev/urandom > /big\nRUN echo one > /one\n";
    let (a, context) = host(&base, "lazy", dockerfile);
    let cache = format!("{}/cache/lazy", base.split('/').next().expect("it has a registry"));
    let to = format!("type=registry,ref={cache},mode=max,ignore-error=false");
    let _ = a.rbuild(["build", "-t", "x", "--cache-to", &to, &context]).ok();

    let layers = |env: &TestEnv| {
        let dir = std::fs::read_dir(env.root().join("layers/sha256")).map(Iterator::count);
        dir.unwrap_or(0)
    };
    let (b, context) = host(&base, "lazy", dockerfile);
    nothing_ran(&b.rbuild(["build", "-t", "x", "--cache-from", &cache, &context]).ok());
    assert_eq!(layers(&b), 0, "nothing was fetched");
    // What misses reads what is below it, which alone is fetched.
    let more = format!("{}RUN wc -c < /big > /size\n", dockerfile.replace("$BASE", &base));
    std::fs::write(Path::new(&context).join("Dockerfile"), more).expect("the file can be written");
    let _ = b.rbuild(["build", "-t", "x", "--cache-from", &cache, &context]).ok();
    let size = b.rbuild(["run", "--rm", "x", "cat", "/size"]).ok();
    assert_eq!(size.stdout.trim(), "3000000");
}

#[test]
fn a_cache_that_fails_does_not_fail_the_build() {
    let (env, context) = host("scratch", "failing", "FROM scratch\nCOPY a /a\n");
    let nowhere = "127.0.0.1:1/cache";
    let from = ["--cache-from", nowhere, "--cache-from", "type=local,src=/nowhere"];
    let _ = env
        .rbuild([&["build"][..], &from[..], &[context.as_str()][..]].concat())
        .ok()
        .says("could not import cache");
    let to = format!("type=registry,ref={nowhere}");
    let _ = env.rbuild(["build", "--cache-to", &to, &context]).ok().says("could not export cache");
    let to = format!("{to},ignore-error=false");
    let failed = env.rbuild(["build", "--cache-to", &to, &context]);
    assert!(!failed.status.success(), "{failed}");
    let _ = env.rbuild(["build", "--cache-to", "type=floppy", &context]).fails_with(2);
}

#[test]
fn hostile_caches_are_told_of_and_ignored() {
    let (env, context) = host("scratch", "hostile", "FROM scratch\nCOPY a /a\n");
    let _ = env.rbuild(["build", "--cache-to", "type=local,dest=cache", &context]).ok();
    let blobs = env.work().join("cache/blobs/sha256");
    let sound: Vec<_> = std::fs::read_dir(&blobs)
        .expect("the layout was written")
        .map(|entry| entry.expect("a directory can be listed").path())
        .map(|path| (path.clone(), std::fs::read(&path).expect("a file can be read")))
        .collect();
    for (path, bytes) in &sound {
        for damaged in [&bytes[..bytes.len() / 2], b"", b"{}", b"nonsense"] {
            std::fs::write(path, damaged).expect("a file can be written");
            let (other, context) = host("scratch", "hostile", "FROM scratch\nCOPY a /a\n");
            let from = format!("type=local,src={}", env.work().join("cache").display());
            let built = other.rbuild(["build", "--output", "out", "--cache-from", &from, &context]).ok();
            assert!(!built.stderr.contains("panicked"), "{built}");
            let a = std::fs::read_to_string(other.work().join("out/a")).expect("it was built");
            assert_eq!(a, "content of a\n");
        }
        std::fs::write(path, bytes).expect("a file can be written");
    }
}

#[test]
fn what_is_known_here_is_not_replaced() {
    let (env, context) = host("scratch", "poison", "FROM scratch\nCOPY a /a\n");
    let _ = env
        .rbuild(["build", "-t", "x", "--iidfile", "iid", "--cache-to", "type=local,dest=cache", &context])
        .ok();
    let before = image_id(&env);
    let again = env
        .rbuild(["build", "-t", "x", "--iidfile", "iid", "--cache-from", "type=local,src=cache", &context])
        .ok();
    // All is known here: the cache is not even read.
    assert!(!again.stderr.contains("importing cache manifest"), "{again}");
    assert_eq!(image_id(&env), before);
}

#[test]
fn cache_mounts_travel_and_sources_keep_their_times() {
    let (registry, base) = registry();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let local = dir.path().display();
    mounts_travel(&base, &format!("type=local,dest={local}"), &format!("type=local,src={local}"));
    let place = format!("type=registry,ref={}/cache/mounts", registry.address());
    mounts_travel(&base, &place, &place);
}

/// Cache mounts go with the cache in a place: what was built from files that did not change is there on an empty builder.
pub(super) fn mounts_travel(base: &str, to: &str, from: &str) {
    // What make does: a product is made again where its source is newer.
    let dockerfile = "FROM $BASE\nCOPY dir /src\nRUN --mount=type=cache,target=/out \
        for f in b sub/c; do o=/out/$(basename $f).o; \
          if [ ! -e $o ] || [ /src/$f -nt $o ]; then echo built $f; cp /src/$f $o; fi; done\n\
        RUN --mount=type=cache,target=/out --mount=type=bind,source=dir,target=/bound \
          stat -c '%Y %n' /bound/b /src/b /out/b.o /out/c.o && touch /x\n";
    let (a, context) = host(base, "mounts", dockerfile);
    let to = format!("{to},mode=max,mounts=true,ignore-error=false");
    let built = a.rbuild(["build", "--cache-to", &to, &context]).ok();
    assert!(built.stderr.contains("built b") && built.stderr.contains("built sub/c"), "{built}");

    // On an empty builder, checked out later, one file is another.
    let (b, context) = host(base, "mounts", dockerfile);
    let path = Path::new(&context);
    for file in ["dir/b", "dir/sub/c"] {
        let text = std::fs::read_to_string(path.join(file)).expect("a file can be read");
        std::fs::write(path.join(file), text).expect("a file can be written");
    }
    std::fs::write(path.join("dir/b"), "other").expect("a file can be written");
    let plain = b.rbuild(["build", "--cache-from", from, "--no-cache", "-t", "plain", &context]).ok();
    assert!(plain.stderr.contains("built sub/c"), "{plain}");
    let b = TestEnv::new();
    let from = format!("{from},mounts=true");
    let built =
        b.rbuild(["build", "--iidfile", "iid", "--cache-from", &from, "--cache-to", &to, &context]).ok();
    assert!(built.stderr.contains("importing cache mount /out"), "{built}");
    assert!(built.stderr.contains("built b") && !built.stderr.contains("built sub/c"), "{built}");
    // In layers files have the times that they have in the context.
    let _ = b.rbuild(["build", "--output", "out", &context]).ok();
    let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).expect("it is there");
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    };
    assert_eq!(seconds(time(&b.work().join("out/src/sub/c"))), seconds(time(&path.join("dir/sub/c"))));
}
#[test]
fn what_a_registry_has_costs_one_small_request_a_blob() {
    let registry = Registry::start();
    let steps: String = (0..6).map(|n| format!("COPY <<EOF /{n}\n{n}\nEOF\n")).collect();
    let (env, context) = host("scratch", "asks", &format!("FROM scratch\n{steps}"));
    let to = format!("type=registry,ref={}/cache,mode=max,ignore-error=false", registry.address());
    let export = || {
        registry.clear_requests();
        let _ = env.rbuild(["build", "--cache-to", &to, &context]).ok();
        registry.requests()
    };
    let first = export();
    let uploads = first.iter().filter(|request| request.method == "POST").count();
    assert_eq!(uploads, 7, "six layers and the config: {first:#?}");
    let again = export();
    let of_blobs = again.iter().filter(|request| request.target.contains("/blobs/")).collect::<Vec<_>>();
    assert_eq!(of_blobs.len(), 7, "{of_blobs:#?}");
    assert!(of_blobs.iter().all(|request| request.method == "HEAD"), "{of_blobs:#?}");
    let rest: Vec<_> = again.iter().filter(|request| !request.target.contains("/blobs/")).collect();
    assert!(rest.len() <= 3, "the manifest, and asking for what is there: {rest:#?}");
    // One more step: its layer goes and no other.
    let more = format!("FROM scratch\n{steps}COPY a /a\n");
    std::fs::write(Path::new(&context).join("Dockerfile"), more).expect("the file can be written");
    let uploads = export().iter().filter(|request| request.method == "POST").count();
    assert_eq!(uploads, 2, "the layer and the config");
    // On an empty builder the index is read, and nothing else.
    registry.clear_requests();
    let empty = TestEnv::new();
    let from = format!("{}/cache", registry.address());
    nothing_ran(&empty.rbuild(["build", "-o", "type=cacheonly", "--cache-from", &from, &context]).ok());
    let asked: Vec<_> = registry.requests().into_iter().filter(|request| request.target != "/v2/").collect();
    assert!(asked.len() == 2 && asked.iter().all(|request| request.method == "GET"), "{asked:#?}");
}

#[test]
fn only_new_chunks_of_a_cache_mount_go_also_to_an_insecure_registry() {
    let registry = Registry::start();
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nARG N\nRUN --mount=type=cache,target=/c \
        [ -e /c/big ] || head -c 8000000 /dev/urandom > /c/big; echo $N > /c/n\n";
    let context = env.context("chunks", &[("Dockerfile", dockerfile)]).display().to_string();
    // For rbuild an address like any other, not loopback: without the option it speaks HTTPS.
    let port = registry.address().rsplit(':').next().expect("it has a port").to_owned();
    let to = format!("type=registry,ref=[::ffff:7f00:1]:{port}/cache,mounts=true");
    let arg = |n: u32| format!("N={n}");
    let strict = format!("{to},ignore-error=false");
    let _ = env.rbuild(["build", "--build-arg", &arg(0), "--cache-to", &strict, &context]).fails_with(6);
    let to = format!("{to},registry.insecure=true");
    let sent = |n: u32, to: &str, from: &str| {
        registry.clear_requests();
        let to = format!("{to},ignore-error=false");
        let args = ["build", "--build-arg", &arg(n), "--cache-to", &to, "--cache-from", from, &context];
        let _ = env.rbuild(args).ok();
        registry.requests().iter().map(|request| request.body.len()).sum::<usize>()
    };
    let (first, second) = (sent(1, &to, &to), sent(2, &to, &to));
    assert!(first > 8_000_000, "{first}");
    assert!(second < 2_000_000, "{second}");
    // Nor to a new cache beside one that is read.
    let third = sent(3, &to.replace("/cache,", "/cache:branch,"), &to);
    assert!(third < 2_000_000, "{third}");
    // What was removed there goes again.
    let manifest = registry.manifest("cache", "latest").expect("it was written");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
    for layer in manifest["layers"].as_array().expect("it has blobs") {
        if layer["mediaType"] == "application/vnd.rbuild.mount.v1.pack+zstd" {
            let digest = layer["digest"].as_str().and_then(|text| text.parse().ok()).expect("a digest");
            registry.remove_blob("cache", &digest);
        }
    }
    let fourth = sent(4, &to, &to);
    assert!(fourth > 8_000_000, "{fourth}");
}

#[test]
fn several_caches_are_written_and_read() {
    let (one, one_context) = host("scratch", "one", "FROM scratch\nCOPY a /a\n");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |kind: &str, name: &str| format!("type=local,{kind}={}", dir.path().join(name).display());
    let (first, second) = (at("dest", "first"), at("dest", "second"));
    let _ = one.rbuild(["build", "--cache-to", &first, "--cache-to", &second, &one_context]).ok();
    let (two, two_context) = host("scratch", "two", "FROM scratch\nCOPY dir /dir\n");
    let _ = two.rbuild(["build", "--cache-to", &at("dest", "third"), &two_context]).ok();

    let empty = TestEnv::new();
    let (second, third, none) = (at("src", "second"), at("src", "third"), at("src", "none"));
    let from = ["--cache-from", &none, "--cache-from", &second, "--cache-from", &third];
    for context in [&one_context, &two_context] {
        let built = empty.rbuild([&["build", "-o", "out"][..], &from[..], &[context.as_str()][..]].concat());
        let built = built.ok();
        let line = built.stderr.lines().find(|line| line.starts_with("cache: "));
        assert!(line.is_some_and(|line| line.starts_with("cache: 1 of 1 steps reused")), "{built}");
    }
}
