//! `doctor` on the host that runs the tests, where steps do run.

use tests::TestEnv;

fn facts(env: &TestEnv) -> Vec<(String, String)> {
    let outcome = env.rbuild(["doctor", "--format", "json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("it is JSON");
    assert_eq!(value["ok"], true, "{outcome}");
    let text = |value: &serde_json::Value| value.as_str().expect("it is text").to_owned();
    let facts = value["facts"].as_array().expect("facts are a list");
    facts.iter().map(|fact| (text(&fact["name"]), text(&fact["detail"]))).collect()
}

#[test]
fn root_and_others_are_told_how_steps_run() {
    let detail = |env: &TestEnv, name: &str| {
        let facts = facts(env);
        let (_, detail) = facts.into_iter().find(|(known, _)| known == name).expect("the fact is told");
        detail
    };
    let root = TestEnv::new();
    assert_eq!(detail(&root, "privileges"), "root");
    let user = TestEnv::rootless();
    assert_eq!(detail(&user, "privileges"), "root of a user namespace");
    assert!(detail(&user, "layer mounts").contains("EROFS cannot be mounted in a user namespace"));
    let text = user.rbuild(["doctor"]).ok();
    assert!(text.stdout.contains(&user.root().display().to_string()), "{text}");
}
