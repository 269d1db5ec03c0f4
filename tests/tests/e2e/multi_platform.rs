//! Images of several platforms: one build, or several joined.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use tests::{DockerRegistry, Outcome, TestEnv};

const DOCKERFILE: &str = "FROM --platform=$BUILDPLATFORM scratch AS tools\nCOPY f /tool\n\
                          FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY --from=tools /tool /tool\n";

fn raw(image: &str) -> Value {
    let mut skopeo = Command::new("skopeo");
    let outcome = Outcome::of(skopeo.args(["inspect", "--raw", "--tls-verify=false", image])).ok();
    serde_json::from_str(&outcome.stdout).expect("skopeo prints the manifest")
}

fn platforms(index: &Value) -> Vec<String> {
    let manifests = index["manifests"].as_array().expect("it is an index");
    let name = |platform: &Value| {
        format!(
            "{}/{}",
            platform["os"].as_str().unwrap_or(""),
            platform["architecture"].as_str().unwrap_or("")
        )
    };
    manifests.iter().map(|manifest| name(&manifest["platform"])).collect()
}

#[test]
fn one_build_gives_an_index_in_the_order_asked_for() {
    let env = TestEnv::new();
    let registry = DockerRegistry::start();
    let context = env.context("multi", &[("Dockerfile", DOCKERFILE), ("f", "x")]);
    let name = format!("{}/multi:1", registry.address());
    let context = context.display().to_string();
    let args =
        ["--platform=linux/arm64,linux/amd64", "-t", &name, "--push", "-o", "type=oci,dest=a.tar", &context];
    let _ = env.rbuild(args).ok();
    for image in [format!("docker://{name}"), format!("oci-archive:{}/a.tar", env.work().display())] {
        assert_eq!(platforms(&raw(&image)), ["linux/arm64", "linux/amd64"], "{image}");
    }
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "inspect",
        "--config",
        "--tls-verify=false",
        "--override-arch=arm64",
        &format!("docker://{name}"),
    ]);
    let config: Value = serde_json::from_str(&Outcome::of(&mut skopeo).ok().stdout).expect("a config");
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["config"]["Labels"]["arch"], "arm64");
}

#[test]
fn images_of_native_builders_are_joined() {
    let env = TestEnv::new();
    let registry = DockerRegistry::start();
    let context = env.context("joined", &[("Dockerfile", DOCKERFILE), ("f", "x")]);
    let context = context.display().to_string();
    let name = |tag: &str| format!("{}/joined:{tag}", registry.address());
    for arch in ["amd64", "arm64"] {
        let platform = format!("--platform=linux/{arch}");
        let _ = env.rbuild([&platform, "-t", &name(arch), "--push", &context]).ok();
    }
    // Into another repository of the same registry, so that blobs have to come along.
    let target = format!("{}/other/place:1", registry.address());
    let _ = env.rbuild(["index", "create", "-t", &target, &name("amd64"), &name("arm64")]).ok();
    assert_eq!(platforms(&raw(&format!("docker://{target}"))), ["linux/amd64", "linux/arm64"]);
    let layout = format!("oci:{}/layout:1", env.work().display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--all", "--src-tls-verify=false", &format!("docker://{target}"), &layout]);
    let _ = Outcome::of(&mut skopeo).ok();
    let shown = env.rbuild(["index", "inspect", &target]).ok();
    assert!(shown.stdout.contains("Platform:  linux/arm64"), "{shown}");
    let _ = env.rbuild(["index", "inspect", &name("nothing")]).fails_with(2);
}

#[test]
fn a_program_of_another_platform_says_what_is_missing() {
    let env = TestEnv::new();
    let context = env.context("foreign", &[("Dockerfile", "FROM scratch\nCOPY p /p\nRUN [\"/p\"]\n")]);
    // An ELF header for a machine that nobody emulates.
    let mut program = vec![0; 120];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    program[16..20].copy_from_slice(&[2, 0, 0x26, 0x90]);
    let path = context.join("p");
    std::fs::write(&path, program).expect("a file can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let outcome = env.rbuild([&context.display().to_string()]).fails_with(4);
    let _ = outcome.says("exec format error").says("register QEMU");
}
