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

#[test]
fn files_are_copied_out_of_an_image() {
    let env = TestEnv::new();
    let dockerfile = "FROM scratch\nCOPY d /srv/d\nCOPY Dockerfile /srv/f\n";
    let context = env.context("cp", &[("Dockerfile", dockerfile), ("d/a", "1"), ("d/e/b", "2")]);
    let _ = env.rbuild(["-t", "x:1", &context.display().to_string()]).ok();
    let read = |path: &str| std::fs::read_to_string(env.work().join(path)).unwrap_or_default();
    std::fs::create_dir(env.work().join("there")).expect("a directory can be made");
    for (source, dest) in
        [("x:1:/srv/f", "there"), ("x:1:/srv/f", "other"), ("x:1:/srv/d", "new"), ("x:1:/srv/d/.", "there")]
    {
        let _ = env.rbuild(["cp", source, dest]).ok();
    }
    assert_eq!((read("there/f"), read("other")), (dockerfile.to_owned(), dockerfile.to_owned()));
    assert_eq!((read("new/a"), read("there/a"), read("there/e/b")), ("1".into(), "1".into(), "2".into()));
    let mut command = env.command(tests::env::rbuild());
    let tar = command.args(["cp", "x:1:/srv/d", "-"]).output().expect("it runs").stdout;
    let mut archive = tar::Archive::new(&tar[..]);
    let names: Vec<String> = archive
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    assert_eq!(names, ["d/", "d/a", "d/e/", "d/e/b"]);
    let _ = env.rbuild(["cp", "x:1:/none", "there"]).fails_with(2).says("there is no /none");
    let _ = env.rbuild(["cp", "x:1:/srv/f", "there/e/"]).ok();
    assert_eq!(read("there/e/f"), dockerfile);
}

#[test]
fn all_tags_of_a_name_are_pushed_and_pulled() {
    let registry = tests::DockerRegistry::start();
    let env = TestEnv::new();
    let name = format!("{}/app", registry.address());
    for (tag, text) in [("1", "one"), ("2", "two")] {
        built(&env, &format!("{name}:{tag}"), text);
    }
    let pushed = env.rbuild(["push", "--all-tags", &name]).ok();
    assert!(pushed.stdout.contains("\n1: digest: ") && pushed.stdout.contains("\n2: digest: "), "{pushed}");
    let other = TestEnv::new();
    let _ = other.rbuild(["pull", "-a", &name]).ok();
    assert_eq!(names(&other), [format!("{name}:1"), format!("{name}:2")]);
    let _ = other.rbuild(["pull", "-a", &format!("{name}:1")]).fails_with(2).says("without a tag");
}
