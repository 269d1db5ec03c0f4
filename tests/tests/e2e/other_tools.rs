//! Images of every exporter in the hands of other tools: skopeo, umoci and podman read them as what they are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::{Base, DockerRegistry, Outcome, TestEnv};

const DOCKERFILE: &str = "FROM busybox:1\nCOPY --chown=1:2 --chmod=0640 f /data/f\nRUN ln -s f /data/link && cp -p /data/f /data/copy && ln /data/copy /data/hard\n\
                          RUN rm -r /home && mkdir /home && echo new > /home/x\nUSER daemon\nWORKDIR /data\nCMD [\"cat\", \"f\"]\n";

/// All of these read what they read unsafely: nothing here is secret, and loopback has no TLS.
fn skopeo(args: &[&str]) -> String {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", args[0]]);
    if args[0] == "inspect" {
        skopeo.arg("--tls-verify=false");
    } else {
        skopeo.args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
    }
    Outcome::of(skopeo.args(&args[1..])).ok().stdout
}

/// Every file of an OCI image, as umoci unpacks it.
fn unpacked(layout: &str, into: &Path) -> String {
    let _ = Outcome::of(Command::new("umoci").args(["unpack", "--image", layout]).arg(into)).ok();
    listing(&into.join("rootfs"))
}

/// Names, types, modes, owners, links and contents of all that is below `root`.
fn listing(root: &Path) -> String {
    let script = "find . -mindepth 1 ! -path './bin/*' -printf '%P %y %m %U:%G %n %l\\n' | sort; \
                  find . -type f ! -path './bin/*' | sort | xargs cat";
    Outcome::of(Command::new("sh").args(["-c", script]).current_dir(root)).ok().stdout
}

#[test]
fn skopeo_and_umoci_read_what_every_exporter_wrote() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let registry = DockerRegistry::start();
    let context = env.context("out", &[("Dockerfile", DOCKERFILE), ("f", "content\n")]).display().to_string();
    let work = env.work();
    let path = |name: &str| work.join(name).display().to_string();
    let name = |tag: &str| format!("{}/out:{tag}", registry.address());
    let build = |output: &str| {
        // A tag is pushed as well.
        let tag = if output.contains("name=") { vec![] } else { vec!["-t", "out:1"] };
        let args = ["build", "--provenance=false", "-o", output].into_iter().chain(tag);
        env.rbuild(args.chain([context.as_str()])).ok()
    };
    let _ = build(&format!("type=local,dest={}", path("local")));
    let files = listing(&work.join("local"));
    assert!(files.contains("data/link l 777 ") && files.contains("\ndata/hard f "), "{files}");
    let _ = build(&format!("type=tar,dest={}", path("files.tar")));
    std::fs::create_dir(work.join("tar")).expect("a directory can be made");
    let mut tar = Command::new("tar");
    let _ = Outcome::of(tar.args(["--numeric-owner", "-xpf", &path("files.tar"), "-C", &path("tar")])).ok();
    let expected = listing(&work.join("tar"));
    assert!(
        expected.contains("data/hard f 640 1:2 2 \n") && expected.contains("home/x f 644 0:0 1 \n"),
        "{expected}"
    );

    let mut different = String::new();
    for (number, (output, image)) in [
        (format!("type=oci,dest={}", path("a.tar")), format!("oci-archive:{}", path("a.tar"))),
        (
            format!("type=oci,dest={},compression=zstd", path("b.tar")),
            format!("oci-archive:{}", path("b.tar")),
        ),
        (
            format!("type=oci,dest={},compression=uncompressed", path("c.tar")),
            format!("oci-archive:{}", path("c.tar")),
        ),
        (format!("type=oci,dest={},tar=false", path("dir")), format!("oci:{}:1", path("dir"))),
        (format!("type=docker,dest={}", path("d.tar")), format!("docker-archive:{}", path("d.tar"))),
        (format!("type=registry,name={}", name("gzip")), format!("docker://{}", name("gzip"))),
        (
            format!(
                "type=image,name={},push=true,compression=zstd,oci-mediatypes=true,force-compression=true",
                name("zstd")
            ),
            format!("docker://{}", name("zstd")),
        ),
        (
            format!(
                "type=registry,name={},compression=uncompressed,force-compression=true,oci-mediatypes=false",
                name("plain")
            ),
            format!("docker://{}", name("plain")),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let _ = build(&output);
        let config: Value =
            serde_json::from_str(&skopeo(&["inspect", "--config", &image])).expect("a config");
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["cat", "f"]), "{output}");
        let layout = format!("{}:1", path(&format!("copy-{number}")));
        // umoci does not know zstd.
        let _ = skopeo(&["copy", "--dest-compress-format=gzip", &image, &format!("oci:{layout}")]);
        let bundle = work.join(format!("bundle-{number}"));
        let got = unpacked(&layout, &bundle);
        if got != expected {
            writeln!(different, "{output}:\n{got}\n").expect("a string can be written");
        }
    }
    assert!(different.is_empty(), "expected\n{expected}\nbut\n{different}");
}

#[test]
fn an_index_with_attestations_is_inspected_and_copied_whole() {
    let env = TestEnv::new();
    let registry = DockerRegistry::start();
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY f /f\nLABEL arch=$TARGETARCH\n";
    let context = env.context("index", &[("Dockerfile", dockerfile), ("f", "x")]).display().to_string();
    let name = format!("{}/index:1", registry.address());
    let archive = env.work().join("index.tar").display().to_string();
    let output = format!("type=oci,dest={archive}");
    let args =
        ["build", "--platform=linux/amd64,linux/arm64", "--provenance=mode=max", "--sbom=true", "-t", &name];
    let _ = env.rbuild(args.into_iter().chain(["--push", "-o", &output, &context])).ok();
    for image in [format!("docker://{name}"), format!("oci-archive:{archive}")] {
        let raw: Value = serde_json::from_str(&skopeo(&["inspect", "--raw", &image])).expect("an index");
        let manifests = raw["manifests"].as_array().expect("it is an index");
        let types: Vec<_> = manifests
            .iter()
            .map(|manifest| manifest["annotations"]["vnd.docker.reference.type"].as_str().unwrap_or("image"))
            .collect();
        assert_eq!(types, ["image", "image", "attestation-manifest", "attestation-manifest"], "{image}");
        for arch in ["amd64", "arm64"] {
            let flag = format!("--override-arch={arch}");
            let mut inspect = Command::new("skopeo");
            let inspected = Outcome::of(inspect.args([&flag, "inspect", "--tls-verify=false", &image])).ok();
            let inspected: Value = serde_json::from_str(&inspected.stdout).expect("skopeo prints JSON");
            assert_eq!(inspected["Labels"]["arch"], arch, "{image}");
        }
        // All of it, and nothing else: the copy has the digest of what was copied.
        let copy = env.work().join(format!("copy-{}", &image[..3])).display().to_string();
        let _ = skopeo(&["copy", "--all", &image, &format!("oci:{copy}:1")]);
        let copied: Value =
            serde_json::from_str(&skopeo(&["inspect", "--raw", &format!("oci:{copy}:1")])).expect("an index");
        assert_eq!(copied, raw);
    }
}

/// podman with a storage of its own; vfs needs no mounts.
fn podman(storage: &Path) -> Command {
    let mut podman = Command::new("podman");
    podman.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
    podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]);
    podman
}

#[test]
fn podman_loads_pulls_and_unpacks() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let registry = DockerRegistry::start();
    let context = env.context("out", &[("Dockerfile", DOCKERFILE), ("f", "content\n")]).display().to_string();
    let storage =
        tempfile::Builder::new().prefix("rbuild-podman-").tempdir().expect("a directory can be made");
    let run = |args: &[&str]| Outcome::of(podman(storage.path()).args(args)).ok().stdout;
    let tar = |name: &str| -> (PathBuf, String) {
        let path = env.work().join(name);
        (path.clone(), path.display().to_string())
    };
    let mut images = Vec::new();
    for (kind, file) in [("oci", "oci.tar"), ("docker", "docker.tar")] {
        let output = format!("type={kind},dest={}", tar(file).1);
        let _ = env.rbuild(["build", "-t", &format!("localhost/{kind}:1"), "-o", &output, &context]).ok();
        let _ = run(&["load", "-q", "-i", &tar(file).1]);
        images.push(format!("localhost/{kind}:1"));
    }
    let name = format!("{}/pulled:1", registry.address());
    let _ = env.rbuild(["build", "--push", "-t", &name, &context]).ok();
    let _ = run(&["pull", "-q", "--tls-verify=false", &name]);
    images.push(name);
    for image in images {
        let inspected: Value =
            serde_json::from_str(&run(&["image", "inspect", &image])).expect("podman prints JSON");
        assert_eq!(inspected[0]["User"], "daemon", "{image}");
        // Containers do not start everywhere; their files are there.
        let container = run(&["create", &image]);
        let (path, exported) = tar("exported.tar");
        let _ = run(&["export", "-o", &exported, container.trim()]);
        let shown =
            Outcome::of(Command::new("tar").args(["-xOf", &exported, "data/f", "home/x"])).ok().stdout;
        assert_eq!(shown, "content\nnew\n", "{image}");
        std::fs::remove_file(path).expect("a file can be removed");
    }
    // Files of layers may be read-only directories of others.
    let _ = run(&["rmi", "--all", "--force"]);
}
