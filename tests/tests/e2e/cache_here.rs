//! The cache of one host: what is reused, why something is not, offline, and by many processes at the same time.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tests::{Base, DockerRegistry, TestEnv};

fn write(context: &str, path: &str, text: &str) {
    std::fs::write(Path::new(context).join(path), text).expect("a file can be written");
}

/// Builds and says what `rbuild explain` says of the step.
fn why(env: &TestEnv, context: &str, step: &str, flags: &[&str]) -> String {
    let _ = env.rbuild([&["build"][..], flags, &[context][..]].concat()).ok();
    let explained = env.rbuild(["explain", step]).ok();
    explained.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_miss_is_explained_by_what_changed() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let other = env.context("other", &[("Dockerfile", "FROM busybox:1\nRUN echo > /new\n")]);
    let _ = env.rbuild(["build", "-t", "other:1", &other.display().to_string()]).ok();
    let run = |base: &str, env: &str, mount: &str, command: &str, user: &str| {
        format!("FROM {base}\nARG VERSION\nENV MODE={env}\n{user}COPY dir /dir\nRUN {mount}{command}\n")
    };
    let plain = run("busybox:1", "a", "", "echo $VERSION", "");
    let context = env.context("explain", &[("Dockerfile", &plain), ("dir/a", "1"), ("dir/b", "1")]);
    let context = &context.display().to_string();
    let ask = |text: &str, step: &str, flags: &[&str]| {
        write(context, "Dockerfile", text);
        why(&env, context, step, flags)
    };
    assert!(ask(&plain, "RUN", &[]).ends_with("never built here"));
    assert!(ask(&plain, "RUN", &[]).starts_with("CACHED"));

    write(context, "dir/b", "2");
    let copy = ask(&plain, "COPY", &[]);
    assert!(copy.ends_with("file dir/b changed") || copy.ends_with("file b changed"), "{copy}");
    let cases = [
        ("ARG VERSION", plain.clone(), &["--build-arg", "VERSION=2"][..]),
        ("ENV MODE changed", run("busybox:1", "b", "", "echo $VERSION", ""), &[]),
        ("command changed", run("busybox:1", "b", "", "echo other", ""), &[]),
        ("base changed", run("other:1", "b", "", "echo other", ""), &[]),
        ("mount /m added", run("other:1", "b", "--mount=type=tmpfs,target=/m ", "echo other", ""), &[]),
        ("the cache is not to be used", run("other:1", "b", "", "echo other", ""), &["--no-cache"]),
    ];
    for (expected, text, flags) in cases {
        let said = ask(&text, "RUN", flags);
        assert!(said.starts_with("RAN") && said.contains(expected), "{said:?} lacks {expected:?}");
    }

    // The reason is a line of plain progress as well, and `--explain` prints all of it.
    write(context, "dir/b", "3");
    let _ = ask(&plain, "RUN", &[]);
    write(context, "dir/b", "4");
    let built = env.rbuild(["build", "--explain", context]).ok();
    assert!(
        built.stderr.lines().any(|l| l.starts_with('#') && l.contains(" MISS ") && l.contains("b changed")),
        "{built}"
    );
    assert!(built.stdout.contains("b changed"), "{built}");

    // What is not stored any more is said to be gone.
    let _ = env.rbuild(["prune", "--all", "-f"]).ok();
    Base::Busybox.build_in(&env);
    let said = why(&env, context, "COPY", &[]);
    assert!(said.contains("no longer stored") || said.contains("never built here"), "{said}");
}

/// One change of a small build after the other, each undone before the next: what is said of the step that it is about.
#[test]
fn each_kind_of_change_is_named() {
    let mut env = TestEnv::new();
    env.set("TOKEN", "one");
    Base::Busybox.build_in(&env);
    let other = env.context("other", &[("Dockerfile", "FROM busybox:1\nRUN echo > /new\n")]);
    let _ = env.rbuild(["build", "-t", "other:1", &other.display().to_string()]).ok();
    let plain = "FROM busybox:1 AS tool\nRUN echo tool > /tool\nFROM busybox:1\nARG VERSION=1\nENV MODE=a\nWORKDIR /w\n\
        COPY dir /dir\nCOPY --from=tool /tool /tool\nUSER root\n\
        RUN --mount=type=secret,id=s,env=TOKEN --mount=type=bind,source=dir,target=/b echo $VERSION\n";
    let context = env.context("kinds", &[("Dockerfile", plain), ("dir/a", "1"), ("dir/b", "1")]);
    let context = &context.display().to_string();
    let secret = ["--secret", "id=s,env=TOKEN"];
    let _ = env.rbuild([&["build"][..], &secret, &[context.as_str()]].concat()).ok();
    let shell = |command: &str| {
        let done = std::process::Command::new("sh").args(["-ec", command]).current_dir(context).status();
        assert!(done.is_ok_and(|status| status.success()), "{command}");
    };
    // What is done to the context, the flags, the step, and what is said of it.
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("echo 2 > dir/a", &[], "COPY dir", "RAN file dir/a changed"),
        ("echo 1 > dir/new", &[], "COPY dir", "RAN file dir/new added"),
        ("rm dir/b", &[], "COPY dir", "RAN file dir/b removed"),
        ("chmod 700 dir/a", &[], "COPY dir", "RAN file dir/a changed"),
        ("touch -d @1 dir/a", &[], "COPY dir", "CACHED"),
        ("mv dir/a x; rm dir/b; mv x dir/b", &[], "COPY dir", "RAN file dir/a removed"),
        ("echo 3 > dir/a", &[], "COPY --from", "RAN base changed: [stage-1 3/5] COPY dir /dir"),
        ("sed -i s/VERSION=1/VERSION=2/ Dockerfile", &[], "RUN --mount", "RAN ARG VERSION changed"),
        (":", &["--build-arg", "VERSION=3"], "RUN --mount", "RAN ARG VERSION changed"),
        ("sed -i s/MODE=a/MODE=b/ Dockerfile", &[], "RUN --mount", "RAN ENV MODE changed"),
        ("sed -i 's/ENV MODE=a/&\\nENV MORE=1/' Dockerfile", &[], "RUN --mount", "RAN ENV MORE added"),
        ("sed -i 's/echo tool/echo other/' Dockerfile", &[], "RUN echo", "RAN command changed"),
        (
            "sed -i 's/echo tool/echo another/' Dockerfile",
            &[],
            "COPY --from",
            "RAN stage tool changed: [tool 2/2] RUN",
        ),
        ("sed -i 's/WORKDIR .w/&2/' Dockerfile", &[], "WORKDIR", "RAN command changed"),
        ("sed -i 's/USER root/USER nobody/' Dockerfile", &[], "RUN --mount", "RAN user changed"),
        ("sed -i 's/=type=bind,/&ro=false,/' Dockerfile", &[], "RUN --mount", "RAN mount /b changed"),
        (
            "sed -i '3s/busybox:1/other:1/' Dockerfile",
            &[],
            "WORKDIR",
            "RAN base changed: [stage-1 1/5] FROM docker.io/library/other:1",
        ),
        (":", &["--no-cache-filter", "tool"], "RUN echo", "RAN the cache is not to be used (--no-cache"),
        (":", &["--no-cache-filter", "tool"], "WORKDIR", "CACHED"),
        (":", &["--network", "none"], "RUN echo", "RAN network changed"),
        (":", &["--add-host", "h:10.0.0.1"], "RUN echo", "RAN extra hosts added"),
    ];
    for (change, flags, step, expected) in cases {
        shell(change);
        let said = why(&env, context, step, &[&secret[..], flags].concat());
        let (how, what) = expected.split_once(' ').unwrap_or((expected, ""));
        assert!(
            said.starts_with(how) && said.contains(what),
            "{change} {flags:?}: {said:?} lacks {expected:?}"
        );
        // As it was.
        shell("rm -rf dir && mkdir dir && printf 1 > dir/a && printf 1 > dir/b");
        write(context, "Dockerfile", plain);
        let again = why(&env, context, step, &secret);
        assert!(again.starts_with("CACHED"), "{change} undone: {again}");
    }
    // A secret is in no key.
    env.set("TOKEN", "two");
    let said = why(&env, context, "RUN --mount", &secret);
    assert!(said.starts_with("CACHED"), "{said}");
}

#[test]
fn other_bytes_of_equal_name_size_and_time_are_seen() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile =
        "FROM busybox:1\nCOPY a /copied\nRUN --mount=type=bind,source=a,target=/a cp /a /bound\n";
    let context = env.context("equal", &[("Dockerfile", dockerfile), ("a", "one\n")]).display().to_string();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    let with_time = |path: &Path| {
        let file = std::fs::File::options().write(true).open(path).expect("a file can be opened");
        file.set_modified(time).expect("a time can be set");
    };
    let file = Path::new(&context).join("a");
    let built = || {
        let _ = env.rbuild(["build", "-t", "x", &context]).ok();
        env.rbuild(["run", "--rm", "x", "cat", "/copied", "/bound"]).ok().stdout
    };
    with_time(&file);
    assert_eq!(built(), "one\none\n");
    // Written in place, right away and again.
    for text in ["two\n", "six\n"] {
        std::fs::write(&file, text).expect("a file can be written");
        with_time(&file);
        assert_eq!(built(), text.repeat(2));
    }
    // Another file in its place.
    let other = Path::new(&context).join("other");
    std::fs::write(&other, "ten\n").expect("a file can be written");
    with_time(&other);
    std::fs::rename(&other, &file).expect("a file can be renamed");
    assert_eq!(built(), "ten\nten\n");
}

#[test]
fn an_unchanged_output_of_a_step_that_ran_again_stops_the_rebuild() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1 AS build\nCOPY a /a\nRUN cut -c1 /a > /first\n\
        FROM busybox:1\nCOPY --from=build /first /\nRUN cat /first > /last\n";
    let context = env.context("cutoff", &[("Dockerfile", dockerfile), ("a", "x1")]).display().to_string();
    let said = |step: &str| env.rbuild(["explain", step]).ok().stdout;
    let _ = env.rbuild(["build", &context]).ok();
    write(&context, "a", "x2");
    let _ = env.rbuild(["build", &context]).ok();
    assert!(said("RUN cut").starts_with("RAN"));
    assert!(said("COPY --from").starts_with("CACHED") && said("RUN cat").starts_with("CACHED"));
    write(&context, "a", "y2");
    let _ = env.rbuild(["build", &context]).ok();
    assert!(said("COPY --from").starts_with("RAN") && said("RUN cat").starts_with("RAN"));
}

#[test]
fn a_tag_means_what_it_meant_until_it_is_pulled() {
    let registry = DockerRegistry::start();
    let base = format!("{}/moving:1", registry.address());
    let maker = TestEnv::new();
    Base::Busybox.build_in(&maker);
    let push = |text: &str| {
        let dockerfile = format!("FROM busybox:1\nRUN echo {text} > /which\n");
        let context = maker.context("moving", &[("Dockerfile", &dockerfile)]).display().to_string();
        let _ = maker.rbuild(["build", "-t", &base, "--push", &context]).ok();
    };
    push("old");
    let env = TestEnv::new();
    let dockerfile = format!("FROM {base}\nRUN cat /which > /seen\n");
    let context = env.context("on-moving", &[("Dockerfile", &dockerfile)]).display().to_string();
    let seen = |flags: &[&str]| {
        let _ = env.rbuild([&["build", "-t", "x"][..], flags, &[context.as_str()]].concat()).ok();
        env.rbuild(["run", "--rm", "x", "cat", "/seen"]).ok().stdout
    };
    assert_eq!(seen(&[]), "old\n");
    push("new");
    assert_eq!(seen(&[]), "old\n");
    assert_eq!(seen(&["--pull"]), "new\n");
    let said = env.rbuild(["explain", "RUN"]).ok().stdout;
    assert!(said.contains("base changed: [1/2] FROM"), "{said}");
    assert_eq!(seen(&[]), "new\n");
}

#[test]
fn steps_expire() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1\nRUN cat /proc/sys/kernel/random/uuid > /when\n";
    let context = env.context("ttl", &[("Dockerfile", dockerfile)]).display().to_string();
    let when = |flags: &[&str]| {
        let _ = env.rbuild([&["build", "-t", "x"][..], flags, &[context.as_str()][..]].concat()).ok();
        env.rbuild(["run", "--rm", "x", "cat", "/when"]).ok().stdout
    };
    let first = when(&[]);
    assert_eq!(when(&["--cache-ttl", "1h"]), first);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let second = when(&["--cache-ttl", "1s"]);
    assert_ne!(second, first);
    assert_eq!(when(&[]), second, "what ran again is what is known");
    let _ = env.rbuild(["build", "--cache-ttl", "soon", &context]).fails_with(2);
}

#[test]
fn stages_can_be_left_out_of_the_cache() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = "FROM busybox:1 AS a\nRUN cat /proc/sys/kernel/random/uuid > /a\nFROM busybox:1 AS b\nRUN cat /proc/sys/kernel/random/uuid > /b\n\
                      FROM busybox:1\nCOPY --from=a /a /\nCOPY --from=b /b /\n";
    let context = env.context("filter", &[("Dockerfile", dockerfile)]).display().to_string();
    let times = |flags: &[&str]| {
        let _ = env.rbuild([&["build", "-t", "x"][..], flags, &[context.as_str()][..]].concat()).ok();
        let both = env.rbuild(["run", "--rm", "x", "cat", "/a", "/b"]).ok().stdout;
        let mut lines = both.lines().map(str::to_owned);
        (lines.next().expect("a has a line"), lines.next().expect("b has a line"))
    };
    let (a, b) = times(&[]);
    let (other_a, same_b) = times(&["--no-cache-filter", "a"]);
    assert!(other_a != a && same_b == b);
    assert_eq!(times(&[]), (other_a, b));
}

#[test]
fn a_linked_layer_is_put_on_another_base_as_it_is() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let other = env.context("other", &[("Dockerfile", "FROM busybox:1\nRUN echo > /new && rm /etc/group\n")]);
    let _ = env.rbuild(["build", "-t", "other:1", &other.display().to_string()]).ok();
    let linked = "ARG BASE\nFROM $BASE\nCOPY --link dir /made/dir\nADD --link file /made/\n";
    let files = &[("Dockerfile", linked), ("dir/a", "1"), ("file", "2")];
    let context = &env.context("linked", files).display().to_string();
    let layers = |base: &str| -> Vec<String> {
        let base_arg = format!("BASE={base}");
        let _ = env.rbuild(["build", "-t", "x", "--build-arg", &base_arg, context]).ok();
        for step in ["COPY", "ADD"] {
            let explained = env.rbuild(["explain", step]).ok();
            assert_eq!(explained.stdout.starts_with("CACHED"), base == "other:1", "{explained}");
        }
        let inspected = env.rbuild(["inspect", "x"]).ok().stdout;
        let inspected: serde_json::Value = serde_json::from_str(&inspected).expect("it is JSON");
        serde_json::from_value(inspected[0]["RootFS"]["Layers"].clone()).expect("a list of digests")
    };
    let (one, two) = (layers("busybox:1"), layers("other:1"));
    assert_eq!((one.len(), two.len()), (3, 4));
    assert_eq!(one[1..], two[2..]);
    let seen = env.rbuild(["run", "--rm", "x", "cat", "/made/dir/a", "/made/file"]).ok().stdout;
    assert_eq!(seen, "12");
}

#[test]
fn a_cached_build_needs_no_registry() {
    let registry = DockerRegistry::start();
    let base = format!("{}/base:1", registry.address());
    let maker = TestEnv::new();
    Base::Busybox.build_in(&maker);
    let _ = maker.rbuild(["tag", "busybox:1", &base]).ok();
    let _ = maker.rbuild(["push", &base]).ok();

    let env = TestEnv::new();
    let dockerfile = format!("FROM {base}\nCOPY a /a\nRUN cat /a > /b\n");
    let context = env.context("offline", &[("Dockerfile", &dockerfile), ("a", "1")]).display().to_string();
    let cache = format!("{}/cache", registry.address());
    let _ = env.rbuild(["build", "-t", "x", "--iidfile", "first", "--cache-to", &cache, &context]).ok();
    drop(registry);
    let again = env.rbuild(["build", "-t", "x", "--iidfile", "again", "--cache-from", &cache, &context]).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 2, "{again}");
    let id = |name: &str| std::fs::read_to_string(env.work().join(name)).expect("it was written");
    assert_eq!(id("first"), id("again"));
    // With the base's layers here, what is new is built as well.
    write(&context, "a", "2");
    let _ = env.rbuild(["build", "-t", "x", &context]).ok();
}

fn start(env: &TestEnv, args: &[&str]) -> Child {
    let mut command = env.command(tests::env::rbuild());
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rbuild can be started")
}

#[track_caller]
fn ended_well(child: Child) {
    let output = child.wait_with_output().expect("it can be waited for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Builders of one state directory at the same time, beside one that prunes all it can: every image is right, and equal
/// steps ran once: whoever runs one gets another random name into its image.
#[test]
fn many_builders_do_equal_work_once_beside_a_prune() {
    for builders in [2, 5, 16] {
        let env = TestEnv::new();
        Base::Busybox.build_in(&env);
        // Equal in all: one step. Different in each: another.
        let dockerfile = "FROM busybox:1\nCOPY a /a\n\
            RUN sleep 0.2; cat /a /proc/sys/kernel/random/uuid > /equal\n\
            ARG N\nRUN echo $N > /own\n";
        let context = env.context("many", &[("Dockerfile", dockerfile), ("a", "content\n")]);
        let context = context.display().to_string();
        let mut all: Vec<Child> = (0..builders)
            .map(|n| {
                let (tag, arg) = (format!("x:{n}"), format!("N={n}"));
                start(&env, &["build", "-t", &tag, "--build-arg", &arg, &context])
            })
            .collect();
        while all.iter_mut().any(|child| child.try_wait().expect("it can be asked").is_none()) {
            let _ = env.rbuild(["prune", "-f", "--keep-storage", "0"]).ok();
        }
        all.into_iter().for_each(ended_well);
        let mut names = std::collections::BTreeSet::new();
        for n in 0..builders {
            let both = env.rbuild(["run", "--rm", &format!("x:{n}"), "cat", "/equal", "/own"]).ok();
            let lines: Vec<&str> = both.stdout.lines().collect();
            assert_eq!((lines[0], lines[2]), ("content", n.to_string().as_str()));
            names.insert(lines[1].to_owned());
        }
        assert_eq!(names.len(), 1, "with {builders} builders the step ran more than once: {names:?}");
    }
}

#[test]
fn a_damaged_layer_is_read_again_or_made_again() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let steps = "FROM busybox:1\nRUN echo one > /one\n";
    let context = env.context("damage", &[("Dockerfile", steps)]).display().to_string();
    let _ = env.rbuild(["build", "-t", "x", &context]).ok();
    let layers = env.root().join("layers/sha256");
    let of_the_step = || {
        let files = std::fs::read_dir(&layers).expect("there are layers");
        let mut tars = files.map(|entry| entry.expect("a directory can be listed").path());
        // Right after the header of the file.
        let is_it = |tar: &PathBuf| {
            let bytes = std::fs::read(tar).expect("a file can be read");
            tar.extension().is_some_and(|e| e == "tar") && bytes.get(512..516) == Some(b"one\n")
        };
        tars.find(is_it).expect("the step made a layer")
    };
    for damage in ["index lost", "index torn", "index and tar"] {
        let tar = of_the_step();
        let index = tar.with_extension("idx");
        match damage {
            "index lost" => std::fs::remove_file(&index).expect("a file can be removed"),
            _ => std::fs::write(&index, "nonsense").expect("a file can be written"),
        }
        if damage == "index and tar" {
            let mut bytes = std::fs::read(&tar).expect("a file can be read");
            bytes[512] ^= 1;
            std::fs::write(&tar, bytes).expect("a file can be written");
        }
        write(&context, "Dockerfile", &format!("{steps}RUN grep one /one # {damage}\n"));
        let built = env.rbuild(["build", "-t", "x", &context]).ok();
        assert_eq!(built.stderr.contains("no longer stored"), damage == "index and tar", "{damage}: {built}");
        let one = env.rbuild(["run", "--rm", "x", "cat", "/one"]).ok();
        assert_eq!(one.stdout, "one\n", "{damage}");
        write(&context, "Dockerfile", steps);
        let _ = env.rbuild(["build", "-t", "x", &context]).ok();
    }
}
