//! Flags, variables and configuration files; exit codes; what logs show.

use std::path::Path;

use tests::{Base, Outcome, TestEnv};

fn simple(env: &TestEnv) -> String {
    env.context("simple", &[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "1")]).display().to_string()
}

#[test]
fn mistakes_are_told_with_a_suggestion() {
    let env = TestEnv::new();
    let context = simple(&env);
    let _ = env.rbuild(["build", "--bulid-arg=A", &context]).fails_with(2).says("'--build-arg'");
    let _ = env.rbuild(["imagse"]).fails_with(2).says("'images'");
    let _ = env.rbuild(["build"]).fails_with(2).says("<CONTEXT>");
    let _ = env.rbuild(["--push=maybe", &context]).fails_with(2);
    let _ = env.rbuild(["--push", &context]).fails_with(2).says("a tag is needed to push");
    let _ = env.rbuild(["--resource=memry=1g", &context]).fails_with(2).says("expected one of memory");
}

#[test]
fn flags_of_docker_buildx_are_taken() {
    let env = TestEnv::new();
    let context = simple(&env);
    let flags = [
        "--rm",
        "--force-rm=false",
        "--compress",
        "--isolation=default",
        "-m=1g",
        "--memory-swap=-1",
        "--cpu-shares=512",
        "--cpuset-cpus=0-1",
        "--shm-size=64m",
        "--ulimit=nofile=1024:1024",
        "--network=none",
        "--add-host=a:127.0.0.1",
        "--label=a=b",
        "--no-cache=true",
        "--pull=false",
        "--provenance",
        "mode=min",
        "--sbom=false",
        "--target",
        "",
        "--cache-from=",
        "--output=",
        "--iidfile=",
        "--platform=",
        "--network=",
        "-q",
        "-q",
        "-f",
        "missing",
        "-f",
        "",
        "--squash",
        "--print=build",
    ];
    let _ = env.rbuild(flags.iter().copied().chain([context.as_str()])).ok().says("--squash has no effect");
    let _ = env.rbuild(["--builder=x", &context]).fails_with(2).says("leave --builder out");
    let _ = env.rbuild(["--iidfile=i", "-o", "out", &context]).fails_with(2).says("files have no ID");
    let outcome = env.rbuild(["--secret=id=s,env=NOT_SET", &context]).ok();
    let _ = outcome.says("--secret s is empty: the variable NOT_SET is not set");
}

#[test]
fn an_output_directory_is_emptied_where_that_is_allowed() {
    let env = TestEnv::new();
    let context = simple(&env);
    let here = env.work().join("here");
    for dir in ["here/out", "elsewhere"] {
        std::fs::create_dir_all(env.work().join(dir)).expect("a directory");
        std::fs::write(env.work().join(dir).join("old"), "").expect("a file");
    }
    let build = |dest: &str, more: &str, allow: &str| {
        let output = format!("type=local,dest={dest}{more}");
        Outcome::of(
            env.command(tests::env::rbuild())
                .current_dir(&here)
                .args(["--output", &output, "--allow", allow, &context]),
        )
    };
    let _ = build("out", "", "").ok();
    assert!(here.join("out/old").exists() && here.join("out/f").exists());
    let _ = build("out", ",mode=delete", "").ok();
    assert!(!here.join("out/old").exists() && here.join("out/f").exists());
    let _ = build("../elsewhere", ",mode=delete", "").fails_with(2).says("--allow=buildx.local.delete");
    assert!(env.work().join("elsewhere/old").exists());
    let _ = build("../elsewhere", ",mode=delete", "buildx.local.delete").ok();
    assert!(!env.work().join("elsewhere/old").exists() && env.work().join("elsewhere/f").exists());
    let _ = build("out", ",names=a", "").fails_with(2).says("unknown option \"names\"");
}

#[test]
fn the_metadata_file_has_what_buildx_writes() {
    let mut env = TestEnv::new();
    let context = env.context("meta", &[("Dockerfile", "FROM scratch as x\nCOPY Dockerfile /f\n")]);
    let context = context.display().to_string();
    let metadata = |env: &TestEnv, more: &[&str]| -> serde_json::Value {
        let file = env.work().join("metadata.json");
        let flag = format!("--metadata-file={}", file.display());
        let _ = env.rbuild([flag.as_str(), "-t", "x:1", &context].iter().chain(more)).ok();
        serde_json::from_slice(&std::fs::read(file).expect("it was written")).expect("JSON")
    };
    let cache = format!("--cache-to=type=local,dest={}", env.work().join("cache").display());
    let got = metadata(&env, &["--label=a=b", &cache]);
    let keys: Vec<&str> = got.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "buildx.build.provenance",
            "buildx.build.ref",
            "cache.manifest",
            "containerimage.config.digest",
            "containerimage.descriptor",
            "containerimage.digest",
            "image.name"
        ]
    );
    let provenance = &got["buildx.build.provenance"];
    assert_eq!(provenance["buildType"], "https://mobyproject.org/buildkit@v1");
    assert_eq!(provenance["invocation"]["parameters"]["args"]["label:a"], "b");
    assert!(provenance["metadata"].is_null() && provenance["buildConfig"].is_null());

    env.set("BUILDX_METADATA_PROVENANCE", "max");
    env.set("BUILDX_METADATA_WARNINGS", "1");
    let got = metadata(&env, &["--platform=linux/amd64,linux/arm64"]);
    assert!(got["buildx.build.provenance/linux/arm64"]["metadata"]["buildFinishedOn"].is_string(), "{got}");
    assert!(got["containerimage.config.digest"].is_null());
    assert_eq!(got["buildx.build.warnings"][0]["range"][0]["start"]["line"], 1);
    env.set("BUILDX_METADATA_PROVENANCE", "disabled");
    assert!(metadata(&env, &[])["buildx.build.provenance"].is_null());
}

#[test]
fn flags_go_before_variables_and_these_before_files() {
    let mut env = TestEnv::new();
    let context = simple(&env);
    let file = env.work().join("rbuild.toml");
    std::fs::write(&file, "[build]\ntag = ['file:1', 'file:2']\n").expect("a file can be written");
    env.set("RBUILD_CONFIG", &file.display().to_string());
    let names = |env: &TestEnv| env.rbuild(["images", "--format", "json"]).ok().stdout;
    let _ = env.rbuild([&context]).ok();
    assert!(names(&env).contains("file"));
    env.set("RBUILD_TAG", "variable:1");
    let _ = env.rbuild(["rmi", "file:1", "file:2"]).ok();
    let _ = env.rbuild([&context]).ok();
    assert!(names(&env).contains("variable") && !names(&env).contains("file"));
    let _ = env.rbuild(["rmi", "variable:1"]).ok();
    let _ = env.rbuild(["-t", "flag:1", &context]).ok();
    assert!(names(&env).contains("flag") && !names(&env).contains("variable"));

    std::fs::write(&file, "[build]\nprogres = 'plain'\n").expect("a file can be written");
    let _ = env.rbuild([&context]).fails_with(2).says("--progres");
}

#[test]
fn exit_codes_tell_who_has_to_act() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let write = |name: &str, text: &str| env.context(name, &[("Dockerfile", text)]).display().to_string();
    let _ = env.rbuild([&write("syntax", "FROM scratch\nRUNN x\n")]).fails_with(3);
    let _ = env.rbuild([&write("missing", "FROM scratch\nCOPY nothing /\n")]).fails_with(3);
    let _ = env.rbuild([&write("step", "FROM busybox:1\nRUN exit 9\n")]).fails_with(4).says("exit code: 9");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let _ = env.rbuild([&write("network", &format!("FROM {closed}/x:1\n"))]).fails_with(6);
    let _ = env.rbuild(["/nonexistent"]).fails_with(3);

    // A container that is not privileged and in which nobody makes a user namespace.
    let host = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin -- \"$0\" \"$1\"";
    let mut lacking = env.command(Path::new("unshare"));
    lacking.args(["--user", "--map-root-user", "sh", "-c", host]).arg(tests::env::rbuild());
    lacking.arg(write("host", "FROM busybox:1\nRUN echo\n"));
    let _ = Outcome::of(&mut lacking)
        .fails_with(8)
        .says("sysctl user.max_user_namespaces is 0")
        .says("rbuild doctor");
}

#[test]
fn logs_are_kept_and_the_failure_says_where() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nRUN echo first\nRUN seq 1 500; exit 1\n";
    let context = env.context("logs", &[("Dockerfile", dockerfile)]).display().to_string();
    let failed = env.rbuild(["-t", "logs:1", &context]).fails_with(4);
    let hint = failed.stderr.lines().find(|line| line.contains("rbuild logs")).expect("a hint").to_owned();
    let words: Vec<&str> = hint.split('`').nth(1).expect("a command").split(' ').skip(1).collect();
    let log = env.rbuild(&words).ok().stdout;
    assert_eq!(log.lines().count(), 500, "{log}");
    let all = env.rbuild(["logs"]).ok().stdout;
    assert!(all.contains("RUN echo first DONE\nfirst\n"), "{all}");
    let builds = env.rbuild(["builds"]).ok().stdout;
    assert!(builds.contains("exit 1") && builds.contains("logs:1"), "{builds}");
    let _ = env.rbuild(["logs", "zzz"]).fails_with(2);
}

#[test]
fn github_shows_groups_and_messages_beside_the_code() {
    let mut env = TestEnv::new();
    env.set("GITHUB_ACTIONS", "true");
    Base::Busybox.build_in(&env);
    let context = env.context("sub", &[("Dockerfile", "FROM busybox:1 as x\nRUN echo hi\nRUN false\n")]);
    assert!(context.is_absolute());
    let failed = env.rbuild(["sub"]).fails_with(4);
    let _ = failed
        .says("::group::#")
        .says("::endgroup::\n")
        .says("\n::error file=sub/Dockerfile,line=3,endLine=3,title=rbuild::process");
    let outcome = env.rbuild(["--call=check", "sub"]);
    assert_eq!(outcome.stdout.matches("FromAsCasing").count().min(1), 1, "{outcome}");
}
