//! `save`, `load` and archives as outputs: what other tools read, and what comes back is what went.

use std::path::Path;
use std::process::Command;

use tests::{Base, Outcome, TestEnv};

fn built(env: &TestEnv, name: &str) {
    let context = env.context(
        "archives",
        &[("Dockerfile", "FROM scratch\nCOPY a /dir/a\nCOPY b /b\nCMD [\"/b\"]\n"), ("a", "a"), ("b", "b")],
    );
    let _ = env.rbuild(["-t".as_ref(), name.as_ref(), context.as_os_str()]).ok();
}

fn skopeo_inspect(image: &str) -> serde_json::Value {
    let outcome = Outcome::of(Command::new("skopeo").args(["inspect", "--config", image])).ok();
    serde_json::from_str(&outcome.stdout).expect("skopeo prints JSON")
}

fn id(env: &TestEnv, name: &str) -> String {
    let outcome = env.rbuild(["inspect", name]).ok();
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("inspect prints JSON");
    value[0]["Id"].as_str().expect("an image has an ID").to_owned()
}

#[test]
fn saved_images_are_read_by_others_and_loaded_again() {
    let env = TestEnv::new();
    built(&env, "one:1");
    let _ = env.rbuild(["tag", "one:1", "localhost:5000/two"]).ok();
    let _ = env.rbuild(["save", "-o", "docker.tar", "one:1", "localhost:5000/two"]).ok();
    let _ = env.rbuild(["save", "--format", "oci", "-o", "oci.tar", "one:1"]).ok();
    let path = |name: &str| env.work().join(name).display().to_string();

    for image in [
        format!("docker-archive:{}:one:1", path("docker.tar")),
        format!("docker-archive:{}:localhost:5000/two:latest", path("docker.tar")),
        format!("oci-archive:{}", path("oci.tar")),
    ] {
        assert_eq!(skopeo_inspect(&image)["config"]["Cmd"][0], "/b", "{image}");
    }

    let other = TestEnv::new();
    let loaded = other.rbuild(["load", "-i", &path("docker.tar")]).ok();
    let mut lines: Vec<&str> = loaded.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Loaded image: localhost:5000/two:latest", "Loaded image: one:1"], "{loaded}");
    assert_eq!(id(&other, "one:1"), id(&env, "one:1"));
    // From standard input, compressed.
    let loaded = shell(&other, &format!("gzip < {} | \"$RBUILD\" load -q", path("oci.tar"))).ok();
    assert_eq!(loaded.stdout, "one:1\n");
    // The image itself is the same, byte for byte.
    let _ = other.rbuild(["save", "-o", "again.tar", "one:1", "localhost:5000/two"]).ok();
    let read = |path: &Path| std::fs::read(path).expect("the archive was written");
    assert!(read(&other.work().join("again.tar")) == read(&env.work().join("docker.tar")));
}

#[test]
fn estargz_is_an_image_to_those_who_do_not_know_it() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let context = env.context(
        "stargz",
        &[("Dockerfile", "FROM busybox:1\nCOPY a /dir/a\nRUN ln /dir/a /dir/b\n"), ("a", "text")],
    );
    let layout = env.work().join("layout");
    let flag =
        format!("type=oci,tar=false,dest={},compression=estargz,force-compression=true", layout.display());
    let _ = env.rbuild(["-t", "x:1", "-o", &flag, &context.display().to_string()]).ok();
    let image = format!("oci:{}:1", layout.display());
    let raw = Outcome::of(Command::new("skopeo").args(["inspect", "--raw", &image])).ok().stdout;
    let manifest: serde_json::Value = serde_json::from_str(&raw).expect("JSON");
    for layer in manifest["layers"].as_array().expect("layers") {
        assert!(layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].is_string(), "{layer}");
    }
    let copy = format!("dir:{}", env.work().join("copy").display());
    let _ = Outcome::of(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", &image, &copy]))
        .ok();
    let bundle = env.work().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(&bundle);
    let _ = Outcome::of(&mut umoci).ok();
    assert_eq!(std::fs::read(bundle.join("rootfs/dir/b")).expect("unpacked"), b"text");
    // Loaded, it runs.
    let other = TestEnv::new();
    let _ = other.rbuild(["load", "-i", &layout.display().to_string()]).ok();
    assert_eq!(other.rbuild(["run", "x:1", "cat", "/dir/a"]).ok().stdout, "text");
}

#[test]
fn what_is_no_archive_is_refused() {
    let env = TestEnv::new();
    env.context(".", &[("text", "no tar at all")]);
    let _ = env.rbuild(["load", "-i", "text"]).fails_with(2).says("archive");
    let _ = env.rbuild(["load", "-i", "missing.tar"]).fails_with(2).says("could not open");
    let _ = env.rbuild(["save", "nosuch"]).fails_with(2).says("no such image: nosuch");
    assert!(!env.work().join("missing.tar").exists());
}

#[test]
fn a_build_writes_archives_in_the_form_that_is_asked_for() {
    let env = TestEnv::new();
    let context = env.context("c", &[("Dockerfile", "FROM scratch\nCOPY a /a\nLABEL k=v\n"), ("a", "aaaa")]);
    let build = |output: &str| {
        let context = context.display().to_string();
        env.rbuild(["-t", "x:1", "-o", output, "--iidfile", "iid", "--metadata-file", "meta", &context]).ok()
    };
    let path = |name: &str| env.work().join(name);
    for (output, image, layer) in [
        ("type=oci,dest=oci.tar", "oci-archive:oci.tar", "tar+gzip"),
        ("type=oci,dest=layout,tar=false,compression=zstd", "oci:layout:1", "tar+zstd"),
        ("type=docker,dest=docker.tar,compression=uncompressed", "docker-archive:docker.tar", ""),
    ] {
        let _ = build(output);
        let (transport, rest) = image.split_once(':').expect("a transport");
        let image = format!("{transport}:{}", path(rest).display());
        assert_eq!(skopeo_inspect(&image)["config"]["Labels"]["k"], "v", "{output}");
        let raw = Outcome::of(Command::new("skopeo").args(["inspect", "--raw", &image])).ok();
        assert!(raw.stdout.contains(layer), "{output}: {raw}");

        let iid = std::fs::read_to_string(path("iid")).expect("the ID was written");
        let meta = std::fs::read(path("meta")).expect("the metadata was written");
        let meta: serde_json::Value = serde_json::from_slice(&meta).expect("it is JSON");
        assert_eq!(meta["containerimage.config.digest"], iid.as_str());
        assert_eq!(meta["image.name"], "docker.io/library/x:1");
    }
    // To standard output, and twice the same.
    let tar = |name: &str| {
        let build = format!("\"$RBUILD\" -o type=oci {} > {name}", context.display());
        let _ = shell(&env, &build).ok();
        std::fs::read(path(name)).expect("the archive was written")
    };
    assert!(tar("1.tar") == tar("2.tar"));
    let _ = env
        .rbuild(["-o", "type=oci,dest=x.tar,compresion=zstd", &context.display().to_string()])
        .fails_with(2)
        .says("compresion");
}

fn shell(env: &TestEnv, line: &str) -> Outcome {
    let mut command = env.command(Path::new("/bin/sh"));
    Outcome::of(command.args(["-ec", line]).env("RBUILD", tests::env::rbuild()))
}
