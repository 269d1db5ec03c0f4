//! What a build reads besides registries and its directory: the web, git, archives, other contexts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::{Base, Outcome, Page, TestEnv, Web};

/// Builds what stands in a Dockerfile that is the only file of its context, and exports its files.
fn build(env: &TestEnv, dockerfile: &str, more: &[&str]) -> Outcome {
    let context = env.context("context", &[("Dockerfile", dockerfile)]);
    build_at(env, &context.display().to_string(), more)
}

fn build_at(env: &TestEnv, context: &str, more: &[&str]) -> Outcome {
    let out = out(env);
    let _ = std::fs::remove_dir_all(&out);
    let output = format!("type=local,dest={}", out.display());
    env.rbuild([&["build", "--output", &output], more, &[context]].concat())
}

fn out(env: &TestEnv) -> PathBuf {
    env.work().join("out")
}

#[track_caller]
fn read(env: &TestEnv, path: &str) -> String {
    let path = out(env).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b")])
        .envs([("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@b")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A tar of a directory with one file, as `tar` makes it with these flags.
fn tar(env: &TestEnv, name: &str, files: &[(&str, &str)], flags: &str) -> Vec<u8> {
    let dir = env.context(name, files);
    let output = Command::new("tar").args([flags, "-", "."]).current_dir(dir).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn add_fetches_a_file_once_and_again_when_it_changed() {
    let env = TestEnv::new();
    let web = Web::start();
    let page = |body: &str, tag: &str| {
        Page::new(body).with("ETag", tag).with("Last-Modified", "Thu, 01 Jan 1970 00:01:00 GMT")
    };
    web.put("dir/a%20b", page("one", "\"1\""));
    web.put("", page("index", "\"i\""));
    let dockerfile = format!("FROM scratch\nADD {} /d/\nADD {} /e/\n", web.url("dir/a%20b"), web.url(""));
    let _ = build(&env, &dockerfile, &[]).ok();
    assert_eq!(read(&env, "d/a b"), "one");
    assert_eq!(read(&env, "e/__unnamed__"), "index");
    let metadata = std::fs::metadata(out(&env).join("d/a b")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777, 0o600);
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&metadata), 60);

    let again = build(&env, &dockerfile, &[]).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 2, "{again}");
    let statuses = |path| web.requests(path).iter().map(|request| request.status).collect::<Vec<_>>();
    assert_eq!(statuses("/dir"), [200, 304]);
    web.put("dir/a%20b", page("two", "\"2\""));
    let _ = build(&env, &dockerfile, &[]).ok();
    assert_eq!(read(&env, "d/a b"), "two");
}

#[test]
fn add_verifies_unpacks_and_logs_in() {
    let mut env = TestEnv::new();
    let web = Web::start();
    let archive = tar(&env, "archive", &[("in/it", "x")], "-czf");
    web.put("a.tgz", Page::new(archive.clone()));
    web.put("locked", Page { authorization: Some("Bearer secret-token".to_owned()), ..Page::new("open") });
    web.put("b%2F..", Page::new("x"));
    let url = web.url("a.tgz");
    let digest = image::Digest::of(&archive);
    let dockerfile = format!(
        "FROM scratch\nADD --checksum={digest} {url} /packed\nADD --unpack=true {url} /dir/\nADD {url} /\n"
    );
    let _ = build(&env, &dockerfile, &[]).ok();
    assert_eq!(std::fs::read(out(&env).join("packed")).unwrap(), archive);
    assert_eq!(std::fs::read(out(&env).join("a.tgz")).unwrap(), archive);
    assert_eq!(read(&env, "dir/in/it"), "x");

    let wrong = image::Digest::of(b"other");
    let _ = build(&env, &format!("FROM scratch\nADD --checksum={wrong} {url} /\n"), &[])
        .fails_with(3)
        .says(&format!("expected {wrong}, got {digest}"));
    let _ =
        build(&env, &format!("FROM scratch\nADD {} /\n", web.url("missing")), &[]).fails_with(3).says("404");

    env.set("TOKEN", "secret-token");
    let dockerfile = format!("FROM scratch\nADD {} /\n", web.url("locked"));
    let _ = build(&env, &dockerfile, &[]).fails_with(5);
    let secret = format!("id=HTTP_AUTH_TOKEN_{},env=TOKEN", web.address());
    let outcome = build(&env, &dockerfile, &["--secret", &secret]).ok();
    assert!(!outcome.stderr.contains("secret-token"), "{outcome}");
    assert_eq!(read(&env, "locked"), "open");
}

/// A repository with two commits, a tag and a directory, served below `/git/r.git`.
fn repository(env: &TestEnv, web: &Web, authorization: Option<&str>) -> String {
    let dir = env.work().join("repositories");
    std::fs::create_dir_all(&dir).unwrap();
    sh(
        &dir,
        "git init -q -b main w; cd w; mkdir app; echo 1 > app/x; echo '#!/bin/sh' > run; chmod 755 run; ln -s / out
         printf 'FROM scratch\\nCOPY app/x run /\\n' > Dockerfile; printf 'app\\n' > .dockerignore
         printf 'FROM scratch\\nCOPY x /y\\n' > app/Dockerfile
         git add .; git commit -qm 1; git tag v1; echo 2 > app/x; git commit -qam 2; git clone -q --bare . ../r.git",
    );
    web.serve_git(&dir, authorization);
    web.url("git/r.git")
}

#[test]
fn add_checks_out_a_commit_and_remembers_it() {
    let env = TestEnv::new();
    let web = Web::start();
    let url = repository(&env, &web, None);
    let commit = sh(&env.work().join("repositories/w"), "git rev-parse v1");
    let dockerfile = format!(
        "FROM scratch\nADD {url} /head\nADD {url}#v1:app /v1\nADD {url}?tag=v1&subdir=app /tag\n\
         ADD --keep-git-dir=true --checksum={commit} {url}#{commit} /kept\n"
    );
    let _ = build(&env, &dockerfile, &[]).ok();
    for (path, content) in [("head/app/x", "2\n"), ("v1/x", "1\n"), ("tag/x", "1\n"), ("kept/app/x", "1\n")] {
        assert_eq!(read(&env, path), content, "{path}");
    }
    assert!(!out(&env).join("head/.git").exists());
    assert!(read(&env, "kept/.git/HEAD").starts_with(&commit));
    let mode = |path: &str| {
        let metadata = std::fs::metadata(out(&env).join(path)).unwrap();
        std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777
    };
    assert_eq!((mode("head/run"), mode("head/Dockerfile")), (0o755, 0o644));

    let packs = web.requests("git-upload-pack").len();
    let again = build(&env, &dockerfile, &[]).ok();
    assert_eq!(again.stderr.matches(" CACHED").count(), 4, "{again}");
    let asked = web.requests("git-upload-pack").len() - packs;
    assert!(asked <= 2 * 3, "refs are listed, and nothing is fetched: {asked} requests");

    let _ = build(&env, &format!("FROM scratch\nADD {url}#nope /\n"), &[])
        .fails_with(3)
        .says("does not contain ref nope");
    let wrong = format!("FROM scratch\nADD --checksum=0123456789 {url} /\n");
    let _ = build(&env, &wrong, &[]).fails_with(3).says("expected checksum to match 0123456789");
    let _ = build(&env, &format!("FROM scratch\nADD {url}#:out/etc /\n"), &[]).fails_with(3);
}

#[test]
fn a_private_repository_needs_its_token() {
    let mut env = TestEnv::new();
    let web = Web::start();
    // x-access-token:secret-token
    let url = repository(&env, &web, Some("basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0LXRva2Vu"));
    env.set("TOKEN", "secret-token");
    let _ = build_at(&env, &url, &[]).fails_with(5).says("GIT_AUTH_TOKEN");
    let outcome = build_at(&env, &url, &["--secret", "id=GIT_AUTH_TOKEN,env=TOKEN"]).ok();
    assert!(!outcome.stderr.contains("secret-token"), "{outcome}");
    assert_eq!(read(&env, "x"), "2\n");
}

#[test]
fn a_context_may_be_a_repository() {
    let env = TestEnv::new();
    let web = Web::start();
    let url = repository(&env, &web, None);
    // Its ignore file is for those who send directories.
    let _ = build_at(&env, &url, &[]).ok();
    assert_eq!((read(&env, "x"), read(&env, "run")), ("2\n".to_owned(), "#!/bin/sh\n".to_owned()));
    let _ = build_at(&env, &format!("{url}#v1:app"), &[]).ok();
    assert_eq!(read(&env, "y"), "1\n");
    let _ = build_at(&env, &format!("{url}?ref=v1"), &["-f", "app/Dockerfile"]).fails_with(3).says("/x");
    let _ = build_at(&env, &url, &["-f", "nope"]).fails_with(3).says("nope");
    let own = env.context("own", &[("Dockerfile", "FROM scratch\nCOPY . /all\n")]).join("Dockerfile");
    let own = own.display().to_string();
    let _ = build_at(&env, &url, &["-f", &own]).ok();
    assert!(!out(&env).join("all/.git").exists());
    let _ = build_at(&env, &url, &["-f", &own, "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"]).ok();
    assert!(out(&env).join("all/.git/HEAD").exists());
}

#[test]
fn a_context_may_be_an_archive_or_a_dockerfile_on_the_web() {
    let env = TestEnv::new();
    let web = Web::start();
    let files =
        [("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "1"), (".dockerignore", "a"), ("d/a", "2")];
    web.put("c", Page::new(tar(&env, "archive", &files, "-cJf")));
    web.put("Other", Page::new("FROM scratch\nCOPY d/a /b\n"));
    web.put("Alone", Page::new("FROM scratch\nCOPY <<EOF /c\n3\nEOF\n"));
    let _ = build_at(&env, &web.url("c"), &[]).ok();
    assert_eq!(read(&env, "a"), "1");
    let again = build_at(&env, &web.url("c"), &[]).ok();
    assert!(again.stderr.contains(" CACHED"), "{again}");
    let _ = build_at(&env, &web.url("c"), &["-f", &web.url("Other")]).ok();
    assert_eq!(read(&env, "b"), "2");
    let _ = build_at(&env, &web.url("Alone"), &[]).ok();
    assert_eq!(read(&env, "c"), "3\n");
    let local = env.context("local", &[("d/a", "4")]).display().to_string();
    let _ = build_at(&env, &local, &["-f", &web.url("Other")]).ok();
    assert_eq!(read(&env, "b"), "4");
    let _ = build_at(&env, &web.url("none"), &[]).fails_with(3).says("404");
}

#[test]
fn standard_input_may_be_a_context_or_a_dockerfile() {
    let env = TestEnv::new();
    let run = |args: &[&str], input: &[u8]| {
        let _ = std::fs::remove_dir_all(out(&env));
        let mut command = env.command(tests::env::rbuild());
        command.args(["build", "--output", &out(&env).display().to_string()]).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Who fails early does not read it.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let files =
        [("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "1"), ("d/D", "FROM scratch\nCOPY a /b\n")];
    for flags in ["-cf", "-czf", "-cjf", "-cJf", "--zstd -cf"] {
        let (first, last) = flags.split_once(' ').unwrap_or((flags, ""));
        let mut archive = tar(&env, "archive", &files, if last.is_empty() { first } else { last });
        if !last.is_empty() {
            let mut child =
                Command::new("zstd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&archive).unwrap();
            archive = child.wait_with_output().unwrap().stdout;
        }
        run(&["-"], &archive);
        assert_eq!(read(&env, "a"), "1", "{flags}");
        run(&["-f", "d/D", "-"], &archive);
        assert_eq!(read(&env, "b"), "1", "{flags}");
    }
    run(&["-"], b"FROM scratch\nCOPY <<EOF /c\n2\nEOF\n");
    assert_eq!(read(&env, "c"), "2\n");
    let context = env.context("archive", &[]).display().to_string();
    run(&["-f", "-", &context], b"FROM scratch\nCOPY a /e\n");
    assert_eq!(read(&env, "e"), "1");
}

#[test]
fn a_name_may_stand_for_any_kind_of_context() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let web = Web::start();
    let git = repository(&env, &web, None);
    web.put("file", Page::new("from the web"));
    let dir = env.context("dir", &[("f", "from a directory"), ("ignored", ""), (".dockerignore", "ignored")]);
    let image = env.context("image", &[("Dockerfile", "FROM busybox:1\nRUN echo layout > /f\nENV A=b\n")]);
    let layout = env.work().join("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let _ = env.rbuild(["build", "-t", "x:1", "--output", &output, &image.display().to_string()]).ok();
    let dockerfile = "FROM busybox:1 AS stage\nRUN echo stage > /f\n\
        FROM lay\nRUN echo $A > /env\n\
        COPY --from=dir f /dir\nCOPY --from=lay f /layout\nCOPY --from=repo app/x /git\nCOPY --from=web file /web\n\
        COPY --from=img bin/busybox /busybox\nCOPY --from=st f /stage\n\
        RUN --mount=from=dir,target=/m cp /m/f /mount-dir && ! ls /m/ignored\n\
        RUN --mount=from=repo,target=/m cp /m/app/x /mount-git\n\
        RUN --mount=from=lay,target=/m cp /m/f /mount-layout\n\
        RUN --mount=from=web,target=/m cp /m/file /mount-web\n";
    let contexts = [
        format!("dir={}", dir.display()),
        format!("lay=oci-layout://{}", layout.display()),
        format!("repo={git}"),
        format!("web={}", web.url("file")),
        "img=docker-image://busybox:1".to_owned(),
        "st=target:stage".to_owned(),
    ];
    let flags: Vec<&str> = contexts.iter().flat_map(|context| ["--build-context", context]).collect();
    let _ = build(&env, dockerfile, &flags).ok();
    for (path, content) in [
        ("env", "b\n"),
        ("dir", "from a directory"),
        ("layout", "layout\n"),
        ("git", "2\n"),
        ("web", "from the web"),
        ("stage", "stage\n"),
        ("mount-dir", "from a directory"),
        ("mount-git", "2\n"),
        ("mount-layout", "layout\n"),
        ("mount-web", "from the web"),
    ] {
        assert_eq!(read(&env, path), content, "{path}");
    }
    let _ = build(&env, dockerfile, &["--build-context", "dir=/nowhere"]).fails_with(3).says("/nowhere");
    let wrong = format!("lay=oci-layout://{}:nope", layout.display());
    let _ = build(&env, "FROM lay\n", &["--build-context", &wrong]).fails_with(3).says("nope");
}

#[test]
fn a_cache_mount_begins_with_what_it_is_given() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    let dockerfile = |number: u32| {
        format!(
            "FROM busybox:1 AS seed\nRUN mkdir -p /s/d && echo 1 > /s/d/f && chown 7:8 /s/d/f && chmod 700 /s\n\
             FROM busybox:1\nRUN --mount=type=cache,id=c,from=seed,source=/s,target=/c \
             echo {number} && stat -c '%u:%g' /c/d/f >> /c/log && stat -c %a /c >> /c/log && cp /c/log /log\n"
        )
    };
    let _ = build(&env, &dockerfile(1), &[]).ok();
    assert_eq!(read(&env, "log"), "7:8\n700\n");
    // Once: later it is what steps left in it.
    let _ = build(&env, &dockerfile(2), &[]).ok();
    assert_eq!(read(&env, "log"), "7:8\n700\n7:8\n700\n");
    let wrong = "FROM busybox:1\nRUN --mount=type=cache,id=d,from=busybox:1,source=/nope,target=/c true\n";
    let outcome = build(&env, wrong, &[]);
    assert!(!outcome.status.success() && outcome.stderr.contains("nope"), "{outcome}");
}

#[test]
fn a_step_talks_to_an_agent_with_keys_of_the_build() {
    let env = TestEnv::new();
    Base::Busybox.build_in(&env);
    sh(&env.work(), "ssh-keygen -q -t ed25519 -N '' -f key");
    let dockerfile =
        "FROM busybox:1\nRUN --mount=type=ssh,required=true test -S \"$SSH_AUTH_SOCK\" && touch /ok\n";
    let key = format!("default={}", env.work().join("key").display());
    let _ = build(&env, dockerfile, &["--ssh", &key]).ok();
    assert!(out(&env).join("ok").exists());
    let others = "FROM busybox:1\nUSER 7:8\nRUN --mount=type=ssh,id=a,target=/a,uid=7,gid=8,mode=0640 \
                  --mount=type=ssh,id=b,required --mount=type=ssh,id=none,target=/none \
                  test -w /a && test ! -e /none && \
                  stat -c '%n %a %u:%g' \"$SSH_AUTH_SOCK\" /run/buildkit/ssh_agent.1\n";
    let key = |id: &str| format!("{id}={}", env.work().join("key").display());
    let outcome = build(&env, others, &["--progress=plain", "--ssh", &key("a"), "--ssh", &key("b")]).ok();
    let _ = outcome.says("/a 640 7:8").says("/run/buildkit/ssh_agent.1 600 0:0");
    let _ = build(&env, others, &["--no-cache", "--ssh", &key("a")])
        .fails_with(3)
        .says("could not find SSH agent \"b\"");
    let none = format!("default={}", env.work().join("none").display());
    let _ = build(&env, dockerfile, &["--ssh", &none]).fails_with(2).says("none");
}

#[test]
fn the_epoch_can_be_that_of_the_context_or_of_a_stage() {
    let env = TestEnv::new();
    let web = Web::start();
    let repository = repository(&env, &web, None);
    let time = sh(&env.work().join("repositories/w"), "git log -1 --format=%ct");
    let arg = ["--build-arg", "SOURCE_DATE_EPOCH=context"];
    let created = |context: &str, args: &[&str], time: &str| {
        let _ = env.rbuild([&["-t", "x:1"], args, &[context]].concat()).ok();
        let time = sh(&env.work(), &format!("date -u -d @{time} +%Y-%m-%dT%H:%M:%S"));
        let inspected = env.rbuild(["inspect", "x:1"]).ok();
        assert!(inspected.stdout.contains(&format!("\"Created\": \"{time}")), "{time}: {inspected}");
    };
    created(&repository, &arg, &time);

    // Of an archive: what the server says, else its latest file.
    let files = [("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "1")];
    let archive = tar(&env, "archive", &files, "-cf");
    let latest = std::fs::metadata(env.work().join("archive/a")).unwrap();
    web.put("plain.tar", Page::new(archive.clone()));
    web.put("dated.tar", Page::new(archive).with("Last-Modified", "Thu, 01 Jan 1970 00:01:00 GMT"));
    let latest = std::os::unix::fs::MetadataExt::mtime(&latest).to_string();
    created(&web.url("plain.tar"), &arg, &latest);
    created(&web.url("dated.tar"), &arg, "60");

    let dockerfile = format!(
        "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD {} /\nFROM scratch\nCOPY Dockerfile /\n",
        web.url("dated.tar")
    );
    let context = env.context("stage", &[("Dockerfile", &dockerfile)]).display().to_string();
    created(&context, &[], "60");
    created(&context, &["--build-arg", "SOURCE_DATE_EPOCH=61"], "61");
}
