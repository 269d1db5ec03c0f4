//! `images`, `tag`, `rmi`, `history` and `inspect`.

use tests::TestEnv;

fn built(env: &TestEnv, name: &str, text: &str) {
    let context = env.context("c", &[("Dockerfile", "FROM scratch\nCOPY a /a\nENV B=1\n"), ("a", text)]);
    let _ = env.rbuild(["-t".as_ref(), name.as_ref(), context.as_os_str()]).ok();
}

fn names(env: &TestEnv) -> Vec<String> {
    let outcome = env.rbuild(["images", "--format", "json"]).ok();
    let mut names: Vec<String> = outcome
        .stdout
        .lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            let text = |key: &str| value[key].as_str().expect("it is text").to_owned();
            format!("{}:{}", text("Repository"), text("Tag"))
        })
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_is_gone_with_its_last_name() {
    let env = TestEnv::new();
    built(&env, "one", "a");
    let _ = env.rbuild(["tag", "one", "two:2"]).ok();
    assert_eq!(names(&env), ["one:latest", "two:2"]);
    let id = env.rbuild(["images", "-q", "--no-trunc", "one"]).ok().stdout.trim().to_owned();
    assert!(id.starts_with("sha256:"), "{id}");

    let _ = env.rbuild(["rmi", &id]).fails_with(2).says("more than one name");
    let removed = env.rbuild(["rmi", "one"]).ok();
    assert_eq!(removed.stdout, "Untagged: one:latest\n");
    let removed = env.rbuild(["rmi", &id[7..19]]).ok();
    assert!(removed.stdout.starts_with("Untagged: two:2\nDeleted: sha256:"), "{removed}");
    assert_eq!(names(&env), [""; 0]);
    let _ = env.rbuild(["rmi", "one"]).fails_with(2).says("no such image: one");
}

#[test]
fn an_image_that_lost_its_name_to_another_is_listed_without_one() {
    let env = TestEnv::new();
    built(&env, "x:1", "old");
    built(&env, "x:1", "new");
    assert_eq!(names(&env), ["<none>:<none>", "x:1"]);
    let _ = env.rbuild(["prune", "-a", "-f"]).ok();
    assert_eq!(names(&env), ["x:1"]);
}

#[test]
fn history_and_inspect_say_how_an_image_was_made() {
    let env = TestEnv::new();
    built(&env, "x", "a");
    let history = env.rbuild(["history", "--no-trunc", "x"]).ok();
    let lines: Vec<&str> = history.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{history}");
    assert!(lines[0].starts_with("IMAGE"), "{history}");
    assert!(lines[1].contains("ENV B=1"), "newest first\n{history}");
    assert!(lines[2].starts_with("<missing>") && lines[2].contains("COPY a /a"), "{history}");

    let inspect = env.rbuild(["inspect", "x"]).ok();
    let value: serde_json::Value = serde_json::from_str(&inspect.stdout).expect("it is JSON");
    assert_eq!(value[0]["RepoTags"][0], "x:latest");
    assert_eq!(value[0]["Config"]["Env"][1], "B=1", "{inspect}");
    assert_eq!(value[0]["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    let raw = env.rbuild(["inspect", "--raw", "x"]).ok();
    let manifest: serde_json::Value = serde_json::from_str(&raw.stdout).expect("it is JSON");
    assert_eq!(manifest["config"]["digest"], value[0]["Id"]);
}
