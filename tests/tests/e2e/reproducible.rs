//! The same inputs give the same image, wherever and however it is built.

use tests::{Base, Outcome, TestEnv};

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

#[test]
fn who_builds_and_how_makes_no_difference() {
    let root = with_epoch(TestEnv::new(), "1700000000");
    let first = digest(&root, &[]);
    assert_eq!(digest(&root, &[]), first, "from the cache");
    assert_eq!(digest(&root, &["--no-cache", "--jobs=1"]), first, "one at a time");
    assert_eq!(digest(&root, &["--no-cache", "--jobs=2"]), first, "two at a time");
    assert_eq!(digest(&with_epoch(TestEnv::new(), "1700000000"), &[]), first, "in another place");
    assert_eq!(digest(&with_epoch(TestEnv::rootless(), "1700000000"), &[]), first, "as a user");
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
