//! `du` and `prune`: what no image needs goes, what images need stays.

use tests::TestEnv;

fn built(env: &TestEnv, name: &str, text: &str) {
    let context = env.context("c", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", text)]);
    let _ = env.rbuild(["-t".as_ref(), name.as_ref(), context.as_os_str()]).ok();
}

fn things(env: &TestEnv) -> Vec<serde_json::Value> {
    let outcome = env.rbuild(["du", "--format", "json"]).ok();
    outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn layers(env: &TestEnv) -> usize {
    things(env).iter().filter(|thing| thing["Type"] == "regular").count()
}

#[test]
fn what_no_image_consists_of_is_removed() {
    let env = TestEnv::new();
    built(&env, "keep", "kept");
    built(&env, "drop", "dropped");
    let _ = env.rbuild(["rmi", "drop"]).ok();
    assert_eq!(layers(&env), 2);
    let reclaimable = things(&env).iter().filter(|thing| thing["Reclaimable"] == true).count();
    assert!(reclaimable > 0);

    // Used just now.
    let pruned = env.rbuild(["prune", "-f", "--filter", "until=1h"]).ok();
    assert!(pruned.stdout.ends_with("Total reclaimed space: 0B\n"), "{pruned}");
    let pruned = env.rbuild(["prune", "-f"]).ok();
    assert!(pruned.stdout.contains("Total reclaimed space: "), "{pruned}");
    assert_eq!(layers(&env), 1);
    assert!(things(&env).iter().all(|thing| thing["Reclaimable"] == false), "{:?}", things(&env));

    // What stayed is whole, what went can be made again.
    let _ = env.rbuild(["save", "-o", "kept.tar", "keep"]).ok();
    built(&env, "drop", "dropped");
    let _ = env.rbuild(["save", "-o", "again.tar", "drop"]).ok();
}

#[test]
fn nothing_is_removed_unasked() {
    let env = TestEnv::new();
    built(&env, "x", "a");
    let _ = env.rbuild(["rmi", "x"]).ok();
    let before = things(&env).len();
    let _ = env.rbuild(["prune"]).fails_with(2).says("--force");
    assert_eq!(things(&env).len(), before);
    let _ = env.rbuild(["prune", "-f", "--filter", "until=yesterday"]).fails_with(2).says("24h");
}

#[test]
fn after_a_build_no_more_is_kept_than_was_asked_for() {
    let env = TestEnv::new();
    let build = |name: &str, limit: &str| {
        let text: String = (0..200_000).map(|n| format!("{name} {n}\n")).collect();
        let context = env.context(name, &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", &text)]);
        let _ = env
            .rbuild(["build", "-o", "type=cacheonly", "--store-max", limit, &context.display().to_string()])
            .ok();
    };
    let steps = |name: &str| {
        let context = env.work().join(name).display().to_string();
        let _ = env.rbuild(["build", "-o", "type=cacheonly", &context]).ok();
        env.rbuild(["explain"]).ok().stdout
    };
    build("one", "100m");
    build("two", "100m");
    assert_eq!(layers(&env), 2);
    // Uses are told apart by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // One fits: that of this build, not that of the one before.
    build("three", "4m");
    assert_eq!(layers(&env), 1);
    assert!(steps("three").starts_with("CACHED"));
    assert!(steps("one").contains("evicted"));
    build("four", "1k");
    assert_eq!(layers(&env), 0, "not even what it used itself");
}
