//! `login`, `logout`, and what a registry with accounts lets one do.

use std::path::Path;

use tests::{DockerRegistry, Outcome, TestEnv};

fn login(env: &TestEnv, registry: &DockerRegistry, password: &str) -> Outcome {
    let mut command = env.command(Path::new("/bin/sh"));
    let line = format!(
        "printf '%s\\n' {password} | \"$RBUILD\" login -u user --password-stdin {}",
        registry.address()
    );
    Outcome::of(command.args(["-ec", &line]).env("RBUILD", tests::env::rbuild()))
}

#[test]
fn pushing_and_pulling_need_a_login_where_the_registry_says_so() {
    let env = TestEnv::new();
    let registry = DockerRegistry::start_with_login();
    let name = format!("{}/x:1", registry.address());
    let context = env.context("c", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "a")]);
    let _ = env.rbuild(["-t".as_ref(), name.as_ref(), context.as_os_str()]).ok();

    let _ = env.rbuild(["push", &name]).fails_with(5).says(&format!("rbuild login {}", registry.address()));
    let _ = login(&env, &registry, "wrong").fails_with(5);
    assert!(!env.docker_config().join("config.json").exists(), "a wrong password is not kept");
    let done = login(&env, &registry, "secret").ok();
    assert_eq!(done.stdout, "Login Succeeded\n");

    let pushed = env.rbuild(["push", &name]).ok();
    let digest = pushed.stdout.split_whitespace().find(|word| word.starts_with("sha256:"));
    let digest = digest.expect("the digest is told").to_owned();
    assert!(pushed.stdout.contains(": Pushed\n"), "{pushed}");
    let again = env.rbuild(["push", "-q", &name]).ok();
    assert_eq!(again.stdout.trim(), digest);

    // Elsewhere, with the same login.
    let mut other = TestEnv::new();
    let _ = other.rbuild(["pull", &name]).fails_with(5);
    other.set("DOCKER_CONFIG", &env.docker_config().display().to_string());
    let pulled = other.rbuild(["pull", &name]).ok();
    assert!(pulled.stdout.contains(&format!("Digest: {digest}\nStatus: Downloaded newer image")), "{pulled}");
    let pulled = other.rbuild(["pull", &name]).ok();
    assert!(pulled.stdout.contains("Status: Image is up to date"), "{pulled}");
    let _ = other.rbuild(["save", "-o", "x.tar", &name]).ok();

    let _ = env.rbuild(["logout", registry.address()]).ok();
    let _ = env.rbuild(["push", &name]).fails_with(5);
}
