//! The same inputs give the same image, wherever and however it is built.

use tests::{Base, DockerRegistry, Outcome, TestEnv};

use super::disk::Mounted;

const DOCKERFILE: &str = "FROM busybox:1\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\n\
                          RUN echo one > f && ln f g && mkdir d && rm -rf /home\nCOPY --chmod=0600 a b /x/\nUSER nobody\n";

/// The digest of the image after a build with these flags.
fn digest(env: &TestEnv, flags: &[&str]) -> String {
    let context = env.context("same", &[("Dockerfile", DOCKERFILE), ("a", "1"), ("b", "2")]);
    let metadata = env.work().join("metadata.json").display().to_string();
    let context = context.display().to_string();
    let mut args = vec!["-t", "x:1", "--metadata-file", &metadata];
    args.extend(flags);
    args.push(&context);
    let _ = env.rbuild(args).ok();
    let text = std::fs::read_to_string(metadata).expect("it was written");
    let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    value["containerimage.digest"].as_str().expect("an image was made").to_owned()
}

fn with_epoch(mut env: TestEnv, epoch: &str) -> TestEnv {
    env.set("SOURCE_DATE_EPOCH", epoch);
    Base::Busybox.build_in(&env);
    env
}

/// Dockerfiles with all that could tell one host, user or moment from another.
const DOCKERFILES: &[(&str, &str)] = &[
    ("plain", DOCKERFILE),
    (
        "graph",
        "FROM busybox:1 AS base\nRUN echo 'me:x:1234:1234::/home/me:/bin/sh' >> /etc/passwd && mkdir -p /home/me && chown 1234:1234 /home/me && echo x > /x\nFROM base AS left\nRUN cat /x > /l && mkdir -m 1777 /t\n\
         FROM base AS right\nRUN ln -s /x /r && touch -d @1234567890 /old\nFROM base\nCOPY --link --chown=1234 a /linked/a\n\
         COPY --from=left /l /t /left/\nCOPY --from=right /r /old /right/\nUSER me\nRUN echo $HOME > ~/home && umask > ~/umask\n",
    ),
    (
        "large",
        "FROM busybox:1\nRUN i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i + 1)); done > /lines\n\
         ADD a b /d/\nCOPY <<EOF /heredoc\ntext\nEOF\nRUN sort -r /lines > /sorted; date +%Z > /zone; locale > /locale 2>/dev/null; rm /lines\n",
    ),
];

/// The digests of their images, compressed, when built by `rbuild` behind these words.
fn digests(env: &TestEnv, before: &[&str], flags: &[&str]) -> Vec<String> {
    let build = |(name, dockerfile): &(&str, &str)| {
        let context = env.context(name, &[("Dockerfile", dockerfile), ("a", "1"), ("b", "2")]);
        let metadata = env.work().join("metadata.json");
        let mut words = before.to_vec();
        let program = tests::env::rbuild().to_str().expect("its path is text");
        words.extend([program, "build", "-o", "type=oci,dest=out.tar", "--metadata-file"]);
        let mut command = env.command(words[0].as_ref());
        // Each cache has its place.
        let flags = flags.iter().map(|flag| flag.replace("NAME", name));
        command.args(&words[1..]).arg(&metadata).args(flags).arg(context);
        let _ = Outcome::of(&mut command).ok();
        let text = std::fs::read_to_string(metadata).expect("it was written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        value["containerimage.digest"].as_str().expect("an image was made").to_owned()
    };
    DOCKERFILES.iter().map(build).collect()
}

#[test]
fn who_builds_where_and_how_makes_no_difference() {
    const EPOCH: &str = "1700000000";
    let root = with_epoch(TestEnv::new(), EPOCH);
    let registry = DockerRegistry::start();
    let caches = root.work().join("caches").display().to_string();
    let local = format!("--cache-to=type=local,mode=max,dest={caches}/NAME");
    let remote = format!("--cache-to=type=registry,mode=max,ref={}/cache:NAME", registry.address());
    let first = digests(&root, &[], &[&local, &remote]);
    let mut wrong = Vec::new();
    let mut check = |how: &str, digests: Vec<String>| {
        if digests != first {
            wrong.push(format!("{how}: {digests:?}"));
        }
    };
    check("from the cache", digests(&root, &[], &[]));
    check("one step at a time", digests(&root, &[], &["--no-cache", "--jobs=1"]));
    check("on one processor", digests(&root, &["taskset", "-c", "0"], &["--no-cache"]));
    for umask in ["000", "077"] {
        let line = format!("umask {umask}; exec \"$@\"");
        check(&line, digests(&root, &["sh", "-c", &line, "sh"], &["--no-cache"]));
    }
    let elsewhere =
        ["env", "TZ=Asia/Kathmandu", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8", "HOME=/", "USER=x"];
    check("in another country", digests(&root, &elsewhere, &["--no-cache"]));

    let local = format!("--cache-from=type=local,src={caches}/NAME");
    let remote = format!("--cache-from=type=registry,ref={}/cache:NAME", registry.address());
    check("with an imported cache", digests(&with_epoch(TestEnv::new(), EPOCH), &[], &[&local]));
    check("with a cache from a registry", digests(&with_epoch(TestEnv::new(), EPOCH), &[], &[&remote]));
    check("as a user", digests(&with_epoch(TestEnv::rootless(), EPOCH), &[], &[]));
    check("as root of a container", digests(&with_epoch(TestEnv::container_root(), EPOCH), &[], &[]));

    let env = TestEnv::new();
    let _mounted = Mounted::tmpfs(&env, "128m");
    check("on tmpfs", digests(&with_epoch(env, EPOCH), &[], &[]));
    for kind in ["ext4", "xfs", "btrfs"] {
        let env = TestEnv::new();
        if let Some(_mounted) = Mounted::made(kind, &env) {
            check(kind, digests(&with_epoch(env, EPOCH), &[], &[]));
        }
    }
    assert!(wrong.is_empty(), "at first: {first:?}\n{}", wrong.join("\n"));
}

#[test]
fn an_epoch_counts_for_what_is_in_the_cache_as_well() {
    let mut env = TestEnv::new();
    env.set("SOURCE_DATE_EPOCH", "1700000000");
    Base::Busybox.build_in(&env);
    env.set("SOURCE_DATE_EPOCH", "");
    let now = digest(&env, &[]);
    let flag = ["--build-arg=SOURCE_DATE_EPOCH=1600000000"];
    let old = digest(&env, &flag);
    assert_ne!(old, now);
    assert_eq!(digest(&env, &["--no-cache", flag[0]]), old);
}

#[test]
fn layers_keep_their_times_where_that_is_asked_for() {
    let env = with_epoch(TestEnv::new(), "1600000000");
    let context = env.context("times", &[("Dockerfile", "FROM busybox:1\nRUN echo > /f\n")]);
    let context = context.display().to_string();
    let _ = env
        .rbuild([
            "-o",
            "type=oci,dest=cut.tar",
            "-o",
            "type=oci,dest=kept.tar,rewrite-timestamp=false",
            &context,
        ])
        .ok();
    let layers = |archive: &str| {
        let image = format!("oci-archive:{}", env.work().join(archive).display());
        let mut skopeo = std::process::Command::new("skopeo");
        let text = Outcome::of(skopeo.args(["inspect", "--config", &image])).ok().stdout;
        let config: serde_json::Value = serde_json::from_str(&text).expect("skopeo prints JSON");
        config["rootfs"]["diff_ids"].as_array().expect("layers").clone()
    };
    let (cut, kept) = (layers("cut.tar"), layers("kept.tar"));
    assert_eq!(cut[0], kept[0], "the base's");
    assert_ne!(cut[1], kept[1]);

    let mut env = env;
    env.set("SOURCE_DATE_EPOCH", "");
    let _ = env
        .rbuild(["-o", "type=image,rewrite-timestamp=true", &context])
        .ok()
        .says("without SOURCE_DATE_EPOCH");
}

#[test]
fn verify_shows_the_first_difference() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nRUN echo same > /same\nRUN head -c 8 /dev/urandom > /random\n";
    let context =
        env.context("verify", &[("Dockerfile", dockerfile), ("Same", "FROM busybox:1\nRUN echo > /f\n")]);
    let same = context.join("Same").display().to_string();
    let context = context.display().to_string();
    let outcome = env.rbuild(["verify", &context]).fails_with(1);
    let _ = outcome.says("/random: the content differs").says("head -c 8");
    let outcome = env.rbuild(["verify", "-f", &same, &context]).ok();
    assert!(outcome.stdout.contains("both builds gave sha256:"), "{outcome}");
}
