//! Dockerfiles in, graphs and configs out, with a resolver of fake images.

use solver::definition::Vertex;
use solver::op::{Copy, Exec, FileAction, MountKind, Network, Security, Sharing, Unpack};
use solver::{Op, VertexId};

use super::*;
use crate::request::{Devices, HostDevice, MainContext, NamedContext};

fn request() -> Request {
    let platform: Platform = "linux/amd64".parse().unwrap();
    Request { build_platform: Some(platform), ..Request::default() }
}

/// The fake image of a name: `onbuild` has triggers, `empty` has nothing, others have a layer.
fn fake(source: &Source) -> ResolvedImage {
    let name = match source {
        Source::Image { reference, .. } => reference.repository.as_str(),
        _ => "other",
    };
    let platform = match source {
        Source::Image { platform, .. } | Source::OciLayout { platform, .. } => platform.clone(),
        _ => Platform::host(),
    };
    let mut config = image::ImageConfig::scratch(&platform);
    if name.ends_with("empty") {
        return ResolvedImage { digest: image::Digest::of(b"empty"), config };
    }
    config.rootfs.diff_ids = vec![format!("sha256:{}", "1".repeat(64)).parse().unwrap()];
    config.history =
        vec![image::config::History { created_by: Some("base".to_owned()), ..Default::default() }];
    config.config.cmd = Some(vec!["sh".to_owned()]);
    if name.ends_with("onbuild") {
        config.config.on_build = ["COPY --from=tools /t /t", "RUN build"].map(str::to_owned).to_vec();
    }
    ResolvedImage { digest: image::Digest::of(name.as_bytes()), config }
}

fn try_convert(text: &str, request: &Request) -> Result<Converted, Vec<Diagnostic>> {
    let (dockerfile, diagnostics) = crate::parse(text.as_bytes());
    let errors: Vec<_> = diagnostics
        .into_iter()
        .filter(|diagnostic| diagnostic.severity == crate::diagnostic::Severity::Error)
        .collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut images = HashMap::new();
    for _ in 0..10 {
        match convert(&dockerfile, request, &images)? {
            Conversion::Complete(converted) => return Ok(*converted),
            Conversion::NeedsTime(source) => {
                panic!("nobody knows when {source:?} was made")
            }
            Conversion::NeedsImages(needed) => {
                assert!(!needed.is_empty());
                for image in needed {
                    let resolved = fake(&image.source);
                    assert!(images.insert(image.source, resolved).is_none(), "asked twice");
                }
            }
        }
    }
    panic!("it never has enough images");
}

fn converted_with(text: &str, request: &Request) -> Converted {
    try_convert(text, request).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"))
}

fn converted(text: &str) -> Converted {
    converted_with(text, &request())
}

fn error(text: &str) -> String {
    error_with(text, &request())
}

fn error_with(text: &str, request: &Request) -> String {
    match try_convert(text, request) {
        Ok(_) => panic!("it converts: {text}"),
        Err(errors) => errors[0].message.clone(),
    }
}

impl Converted {
    fn result_vertex(&self) -> &Vertex {
        self.definition.vertex(self.result.expect("it has files"))
    }

    fn exec(&self) -> &Exec {
        match &self.result_vertex().op {
            Op::Exec(exec) => exec,
            other => panic!("{other:?}"),
        }
    }

    fn actions(&self) -> &[FileAction] {
        match &self.result_vertex().op {
            Op::File(file) => &file.actions,
            other => panic!("{other:?}"),
        }
    }

    fn copy(&self) -> &Copy {
        match self.actions() {
            [FileAction::Copy(copy)] => copy,
            other => panic!("{other:?}"),
        }
    }

    fn history(&self) -> Vec<&str> {
        let new = &self.config.history[self.base_history..];
        new.iter().filter_map(|entry| entry.created_by.as_deref()).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.definition.ids().map(|id| self.definition.vertex(id).metadata.name.as_str()).collect()
    }

    fn vertex(&self, name: &str) -> (VertexId, &Vertex) {
        let ids = self.definition.ids().map(|id| (id, self.definition.vertex(id)));
        ids.into_iter().find(|(_, vertex)| vertex.metadata.name == name).expect(name)
    }

    fn warning_codes(&self) -> Vec<&str> {
        self.warnings.iter().map(|warning| warning.code).collect()
    }
}

#[test]
fn history_and_config_read_as_buildkits() {
    let built = converted(concat!(
        "FROM base\n",
        "ARG A=1 B\n",
        "ENV X=$A Y=\"a b\" PATH=/bin\n",
        "LABEL l=\"$X\"\n",
        "WORKDIR rel\nWORKDIR /\nUSER me:grp\n",
        "EXPOSE 90-91/udp 80\nVOLUME /v /w\nVOLUME [\"/x\"]\n",
        "STOPSIGNAL SIGTERM\nSHELL [\"/bin/ash\", \"-c\"]\n",
        "HEALTHCHECK --interval=5s CMD true\n",
        "CMD echo \"hi\"\nENTRYPOINT [\"a\", \"b\"]\n",
        "ONBUILD RUN later\nMAINTAINER me\nRUN do it\n",
    ));
    assert_eq!(
        built.history(),
        [
            "ARG A=1 B",
            "ENV X=1 Y=a b PATH=/bin",
            "LABEL l=1",
            "WORKDIR /rel",
            "WORKDIR /",
            "USER me:grp",
            "EXPOSE [80/tcp 90/udp 91/udp]",
            "VOLUME [/v /w]",
            "VOLUME [/x]",
            "STOPSIGNAL SIGTERM",
            "SHELL [/bin/ash -c]",
            "HEALTHCHECK {Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
            "CMD [\"/bin/ash\" \"-c\" \"echo \\\"hi\\\"\"]",
            "ENTRYPOINT [\"a\" \"b\"]",
            "MAINTAINER me",
            "RUN |2 A=1 B= /bin/ash -c do it # buildkit",
        ]
    );
    let layers: Vec<bool> =
        built.config.history.iter().filter(|entry| !entry.empty_layer).map(|_| true).collect();
    assert_eq!(layers.len(), 3, "base, WORKDIR /rel, RUN");
    let config = &built.config.config;
    assert_eq!(config.env, ["PATH=/bin", "X=1", "Y=a b"]);
    assert_eq!(config.on_build, ["RUN later"]);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("me:grp", "/"));
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["80/tcp", "90/udp", "91/udp"]);
    assert_eq!(config.cmd.as_deref().map(<[String]>::len), Some(3), "CMD of the stage itself stays");
    assert_eq!(built.config.author.as_deref(), Some("me"));
    assert!(built.config.history.iter().skip(1).all(|entry| entry.comment.is_some()));
}

#[test]
fn an_absolute_workdir_stays_as_it_is_written() {
    for (text, working_dir, cwd) in [
        ("WORKDIR /a/", "/a/", "/a"),
        ("WORKDIR /a/../b//c", "/a/../b//c", "/b/c"),
        ("WORKDIR /a/\nWORKDIR b/", "/a/b", "/a/b"),
        ("WORKDIR /a/\nWORKDIR \"\"", "/a/", "/a"),
        ("WORKDIR /a/./\nWORKDIR ..", "/", "/"),
    ] {
        let built = converted(&format!("FROM base AS x\n{text}\nFROM x\nRUN pwd\n"));
        assert_eq!(
            (built.config.config.working_dir.as_str(), built.exec().cwd.as_str()),
            (working_dir, cwd),
            "{text}"
        );
        assert_eq!(
            built.history().iter().rev().nth(1),
            Some(&format!("WORKDIR {working_dir}").as_str()),
            "{text}"
        );
    }
}

#[test]
fn several_sources_need_no_directory_to_go_to() {
    let built = converted("FROM base\nCOPY a b* <<EOF /c\nx\nEOF\n");
    let destinations: Vec<&str> = built
        .actions()
        .iter()
        .map(|action| match action {
            FileAction::Copy(copy) => copy.destination.as_str(),
            FileAction::Mkfile { path, .. } => path.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(destinations, ["/c"; 3]);
    assert_eq!(built.history(), ["COPY a b* <<EOF /c # buildkit"]);
}

#[test]
fn case_counts_in_the_name_of_a_base() {
    let stages = "FROM base AS Build\nRUN x\nFROM base\nCOPY --from=BUILD /x /x\n";
    assert!(converted(stages).names().iter().any(|name| name.contains("[build 2/2] RUN x")));
    let errors = try_convert("FROM base AS Build\nFROM Build\n", &request()).unwrap_err();
    assert!(errors[0].message.contains("failed to parse stage name \"Build\""), "{}", errors[0].message);
    assert_eq!(errors[0].help.as_deref(), Some("did you mean build?"));
}

#[test]
fn entrypoint_resets_a_cmd_that_is_inherited_only() {
    assert_eq!(converted("FROM base\nENTRYPOINT x").config.config.cmd, None);
    let own = converted("FROM base\nCMD [\"y\"]\nENTRYPOINT x");
    assert_eq!(own.config.config.cmd.unwrap(), ["y"]);
    let stage = converted("FROM base AS a\nCMD [\"y\"]\nFROM a\nENTRYPOINT x");
    assert_eq!(stage.config.config.cmd, None);
}

#[test]
fn scratch_is_nothing_with_a_path() {
    let built = converted("FROM scratch");
    assert_eq!(built.result, None);
    assert_eq!(built.config.config.working_dir, "/");
    assert_eq!(built.config.config.env.len(), 1);
    assert!(built.definition.is_empty());
    let run = converted("FROM scratch\nRUN [\"x\"]");
    let root = run.definition.vertex(run.result_vertex().inputs[0].vertex);
    assert!(matches!(root.op, Op::Merge) && root.inputs.is_empty());
    assert_eq!(converted("FROM empty").result, None);
}

#[test]
fn only_what_the_target_needs_is_converted() {
    let text =
        "FROM a AS one\nRUN one\nFROM b AS two\nRUN two\nFROM c AS three\nCOPY --from=one /x /x\nFROM d\n";
    let target = Request { target: Some("THREE".to_owned()), ..request() };
    let names = converted_with(text, &target).names().join("\n");
    assert!(names.contains("one") && names.contains("library/c") && !names.contains("two"));
    assert!(!names.contains("library/d"));

    let unknown = Request { target: Some("thre".to_owned()), ..request() };
    let errors = try_convert(text, &unknown).unwrap_err();
    assert_eq!(errors[0].message, "target stage \"thre\" could not be found");
    assert_eq!(errors[0].help.as_deref(), Some("did you mean three?"));
}

#[test]
fn all_images_of_reachable_stages_are_asked_for_at_once() {
    let (dockerfile, _) =
        crate::parse(b"FROM a AS x\nFROM b AS y\nFROM c\nCOPY --from=x / /\nCOPY --from=tool / /\n");
    let Ok(Conversion::NeedsImages(needed)) = convert(&dockerfile, &request(), &HashMap::new()) else {
        panic!("it needs images")
    };
    let names: Vec<String> = needed
        .iter()
        .map(|image| match &image.source {
            Source::Image { reference, .. } => reference.familiar(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["a:latest", "c:latest"], "not of y, which nothing needs, nor the config of a --from");
}

#[test]
fn stage_names_in_progress() {
    let built =
        converted("FROM a AS x\nRUN 1\nFROM x\nWORKDIR /w\nCOPY --link f$A .\nENV A=1\nRUN echo $A '$B'\n");
    let digest = image::Digest::of(b"library/a");
    assert_eq!(
        built.names(),
        [
            &format!("[x 1/2] FROM docker.io/library/a:latest@{digest}"),
            "[x 2/2] RUN 1",
            "[stage-1 1/3] WORKDIR /w",
            "[internal] load build context",
            "[stage-1 2/3] COPY --link f .",
            "[stage-1 2/3] LINK COPY --link f .",
            "[stage-1 3/3] RUN echo 1 '$B'",
        ]
    );
    let many = Request { multi_platform: true, platform: Some("linux/arm64".parse().unwrap()), ..request() };
    let cross = "FROM --platform=linux/amd64 a\nARG TARGETARCH\nRUN x";
    assert_eq!(
        converted_with(cross, &many).names(),
        [
            &format!("[linux/amd64 1/2] FROM docker.io/library/a:latest@{digest}"),
            "[linux/amd64->arm64 2/2] RUN x"
        ]
    );
}

#[test]
fn args_have_scopes() {
    let with = |args: &[(&str, &str)]| Request {
        build_args: args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..request()
    };
    let global = "ARG V=1\nARG U\nFROM base\nARG V\nARG U\nRUN x";
    for (args, expected) in [
        (&[][..], "RUN |2 V=1 U= /bin/sh -c x # buildkit"),
        (&[("V", "2")], "RUN |2 V=2 U= /bin/sh -c x # buildkit"),
        (&[("V", ""), ("U", "3")], "RUN |2 V= U=3 /bin/sh -c x # buildkit"),
    ] {
        assert_eq!(converted_with(global, &with(args)).history().last(), Some(&expected));
    }
    // Not declared: not there. Declared in one stage: inherited by FROM, not by others.
    let built = converted("FROM base AS a\nARG V=1\nFROM a\nRUN x");
    assert_eq!(built.history().last(), Some(&"RUN |1 V=1 /bin/sh -c x # buildkit"));
    let built = converted("FROM base AS a\nARG V=1\nFROM base\nRUN x");
    assert_eq!(built.history().last(), Some(&"RUN /bin/sh -c x # buildkit"));
    // The later line wins for what follows, ENV stays in the image.
    let built = converted("FROM base\nENV X=1\nARG X=2\nRUN a");
    assert!(built.exec().env.contains(&"X=2".to_owned()));
    assert_eq!(built.result_vertex().metadata.arg_names, ["X"]);
    assert!(built.config.config.env.contains(&"X=1".to_owned()));
    // Every pair of ARG sees the one before; ENV's do not.
    let built = converted("FROM base\nARG a=1 b=$a\nENV c=2 d=$c$b");
    assert!(built.config.config.env.contains(&"d=1".to_owned()));

    let built =
        converted_with("FROM base\nARG KNOWN", &with(&[("KNOWN", "1"), ("UNKNOWN", "1"), ("no_proxy", "x")]));
    assert_eq!(built.unused_build_args, ["UNKNOWN"]);
}

#[test]
fn platform_args_exist_before_from() {
    let text = "FROM --platform=$BUILDPLATFORM img-${TARGETARCH}${TARGETVARIANT} AS bin\nARG TARGETPLATFORM TARGETSTAGE\nRUN x";
    let arm = Request { platform: Some("linux/arm/v7".parse().unwrap()), ..request() };
    let built = converted_with(text, &arm);
    assert_eq!(
        built.history().last(),
        Some(&"RUN |2 TARGETPLATFORM=linux/arm/v7 TARGETSTAGE=bin /bin/sh -c x # buildkit")
    );
    let (_, from) = built.vertex(built.names()[0]);
    let Some(Source::Image { reference, platform }) = from.source() else { panic!() };
    assert_eq!(
        (reference.repository.as_str(), platform.to_string().as_str()),
        ("library/img-armv7", "linux/amd64")
    );
    assert_eq!(built.config.platform(), "linux/arm/v7".parse().unwrap(), "the result is for what was asked");
}

#[test]
fn proxies_reach_run_but_not_its_key_or_history() {
    let plain = converted("FROM base\nRUN x");
    let proxied = Request { build_args: vec![("HTTP_PROXY".to_owned(), "p".to_owned())], ..request() };
    let built = converted_with("FROM base\nRUN x", &proxied);
    assert_eq!(built.exec().unkeyed.proxy_env, ["HTTP_PROXY=p", "http_proxy=p"]);
    assert_eq!(built.result_vertex().digest, plain.result_vertex().digest);
    assert_eq!(built.history(), plain.history());
}

#[test]
fn run_forms() {
    let exec = converted("FROM base\nWORKDIR /w\nUSER u\nRUN [\"a\", \"b c\"]");
    assert_eq!((exec.exec().args.join("|").as_str(), exec.exec().cwd.as_str()), ("a|b c", "/w"));
    assert_eq!(exec.exec().user, "u");
    assert_eq!(exec.history().last(), Some(&"RUN a b c # buildkit"));

    let script = converted("FROM base\nRUN <<EOF\necho 1\necho 2\nEOF\n");
    assert_eq!(script.exec().args, ["/bin/sh", "-c", "echo 1\necho 2\n"]);
    assert!(script.names().last().unwrap().ends_with("RUN <<EOF (echo 1...)"));

    let file = converted("FROM base\nRUN <<EOF\n#!/usr/bin/env x\n$y\nEOF\n");
    assert_eq!(file.exec().args, ["/bin/sh", "-c", "/dev/pipes/EOF"]);
    assert_eq!(file.exec().scripts["/dev/pipes/EOF"], "#!/usr/bin/env x\n$y\n");

    let mixed = converted("FROM base\nRUN cat <<A >f && cat <<B\n1\nA\n2\nB\n");
    assert_eq!(mixed.exec().args[2], "cat <<A >f && cat <<B\n1\nA\n2\nB");
}

#[test]
fn run_mounts() {
    let text = concat!(
        "FROM base AS dep\nRUN dep\nFROM base\nWORKDIR /w\nARG D=cached\n",
        "RUN --mount=target=src,source=sub ",
        "--mount=type=cache,target=/$D,sharing=locked,uid=1 ",
        "--mount=type=cache,id=x,target=c,from=dep,source=/from ",
        "--mount=type=tmpfs,target=/t,size=1m ",
        "--mount=type=secret,id=a/b,required=true ",
        "--mount=type=secret,id=tok,env=TOKEN ",
        "--mount=type=ssh --mount=type=bind,from=dep,target=/d,rw make\n"
    );
    let namespace = [("BUILDKIT_CACHE_MOUNT_NS".to_owned(), "ns".to_owned())].to_vec();
    let built = converted_with(text, &Request { build_args: namespace, ..request() });
    let exec = built.exec();
    let targets: Vec<&str> = exec.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(
        targets,
        ["/w/src", "/cached", "/w/c", "/t", "/run/secrets/b", "", "/run/buildkit/ssh_agent.0", "/d"]
    );
    let kind = |index: usize| exec.mounts[index].kind.clone();
    assert_eq!(kind(0), MountKind::Bind { input: Some(1), source: "/sub".to_owned(), writable: false });
    assert_eq!(
        kind(1),
        MountKind::Cache {
            id: "ns//cached".to_owned(),
            sharing: Sharing::Locked,
            input: None,
            source: "/".to_owned(),
            mode: 0o755,
            uid: 1,
            gid: 0,
            readonly: false
        }
    );
    assert!(
        matches!(kind(2), MountKind::Cache { id, input: Some(2), source, .. } if id == "ns/x" && source == "/from")
    );
    assert_eq!(kind(3), MountKind::Tmpfs { size: Some(1 << 20), readonly: false });
    assert!(matches!(kind(5), MountKind::Secret { env: Some(env), required: false, .. } if env == "TOKEN"));
    assert!(matches!(kind(7), MountKind::Bind { input: Some(2), writable: true, .. }));
    assert!(exec.env.contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned()));

    let inputs = &built.result_vertex().inputs;
    assert!(inputs[0].selector.is_none(), "the root is read whole");
    let picks = &inputs[1].selector.as_ref().unwrap().picks;
    assert_eq!((picks.len(), picks[0].path.as_str()), (1, "/sub"));
    assert!(inputs[2].selector.is_none(), "one of the mounts has all of it");
    assert_eq!(built.result_vertex().metadata.input_names, ["base", "context", "stage dep"]);
    assert!(error("FROM base\nRUN --mount=type=tmpfs,target=/ x").contains("invalid mount target"));
}

#[test]
fn privileges_need_permission() {
    for (flag, entitlement) in
        [("--network=host", "network.host"), ("--security=insecure", "security.insecure")]
    {
        let text = format!("FROM base\nRUN {flag} x");
        assert_eq!(error(&text), format!("{entitlement} is not allowed"));
        converted_with(&text, &Request { allow: vec![entitlement.to_owned()], ..request() });
    }
    let device = HostDevice { name: "v.com/c=d".to_owned(), class: None, auto_allow: false };
    let devices = Some(Devices { list: vec![device], ..Devices::default() });
    let asks = Request { devices, ..request() };
    let text = "FROM base\nRUN --device=v.com/c=d --device=v.com/c --device=v.com/none x";
    let refused = error_with(text, &asks);
    assert_eq!(refused, "device v.com/c=d is requested by the build but not allowed");
    let built = converted_with(text, &Request { allow: vec!["device".to_owned()], ..asks.clone() });
    assert_eq!(built.exec().devices, ["v.com/c=d"]);
    assert_eq!(converted_with(text, &asks.without_running()).exec().devices, [""; 0]);
    let none = converted("FROM base\nRUN --network=none x");
    assert_eq!((none.exec().network, none.exec().security), (Network::None, Security::Sandbox));
}

#[test]
fn copy_of_the_context() {
    let ignore = vec![(1, "*.log".to_owned())];
    let built = converted_with(
        "FROM base\nWORKDIR /w\nCOPY --chown=1:2 --chmod=u+x --exclude=*.md a b* sub/\n",
        &Request { ignore, ..request() },
    );
    let [FileAction::Copy(a), FileAction::Copy(b)] = built.actions() else { panic!() };
    assert_eq!(
        (a.source.as_str(), a.destination.as_str(), a.wildcard, a.required),
        ("/a", "/w/sub/", false, true)
    );
    assert_eq!((b.source.as_str(), b.wildcard, b.allow_empty, b.required), ("/b*", true, true, false));
    assert_eq!((a.input, b.input, a.unpack), (1, 1, Unpack::Never));
    let owner = a.owner.as_ref().unwrap();
    assert_eq!((owner.user.as_str(), owner.group.as_deref()), ("1", Some("2")));
    assert_eq!(a.mode.as_deref(), Some("u+x"));
    let vertex = built.result_vertex();
    let picks = &vertex.inputs[1].selector.as_ref().unwrap().picks;
    assert_eq!(picks.iter().map(|pick| pick.path.as_str()).collect::<Vec<_>>(), ["/a", "/b*"]);
    assert_eq!(picks[0].exclude, ["*.md"]);
    let context = built.definition.vertex(vertex.inputs[1].vertex);
    let expected = Source::Local { name: "context".to_owned(), ignore: vec!["*.log".to_owned()] };
    assert_eq!(context.source(), Some(&expected));
    assert_eq!(built.history().last(), Some(&"COPY --chown=1:2 --chmod=u+x a b* sub/ # buildkit"));

    let outside = converted("FROM base\nCOPY ../../x /y");
    assert_eq!(outside.copy().source, "/x", "nothing is above the context");
    let root = converted("FROM base\nCOPY . .");
    assert_eq!((root.copy().source.as_str(), root.copy().destination.as_str()), ("/", "/"));
    assert!(root.result_vertex().inputs[1].selector.is_some(), "a directory is always read by paths");
}

#[test]
fn copy_from_stages_images_and_contexts() {
    let text = "FROM base AS one\nRUN 1\nFROM base\nCOPY --from=ONE /a /a\nCOPY --from=0 / /b\nCOPY --from=img /c /c\nCOPY --from=dir d /d\n";
    let contexts = [("dir".to_owned(), NamedContext::Local { ignore: vec!["x".to_owned()] })].into();
    let built = converted_with(text, &Request { contexts, ..request() });
    let by_name = |name: &str| built.vertex(name).1;
    let one = by_name("[stage-1 2/5] COPY --from=ONE /a /a");
    assert_eq!(one.metadata.input_names, ["base", "stage one"]);
    assert!(one.inputs[1].selector.is_some());
    assert!(by_name("[stage-1 3/5] COPY --from=0 / /b").inputs[1].selector.is_none());
    let image = by_name("[stage-1 4/5] COPY --from=img /c /c");
    assert!(matches!(
        built.definition.vertex(image.inputs[1].vertex).source(),
        Some(Source::Image { reference, .. }) if reference.familiar() == "img:latest"
    ));
    let dir = built.definition.vertex(built.result_vertex().inputs[1].vertex);
    assert_eq!(dir.source(), Some(&Source::Local { name: "dir".to_owned(), ignore: vec!["x".to_owned()] }));
    assert!(!built.history().last().unwrap().contains("--from"));
}

#[test]
fn stages_must_come_in_order() {
    for (text, message) in [
        ("FROM base AS a\nCOPY --from=a / /", "circular dependency detected on stage: a"),
        (
            "FROM base AS a\nCOPY --from=b / /\nFROM base AS b\nCOPY --from=a / /",
            "circular dependency detected on stage: a",
        ),
        (
            "FROM base AS a\nCOPY --from=b / /\nFROM base AS b\nFROM a",
            "cannot copy from stage \"b\", it needs to be defined before current stage \"a\"",
        ),
        (
            "FROM base AS a\nRUN --mount=from=b,target=/x y\nFROM base AS b\nFROM a",
            "cannot mount from stage \"b\", it needs to be defined before current stage \"a\"",
        ),
        ("FROM base\nCOPY --from=7 / /", "invalid stage index 7"),
        ("FROM $nope", "base name ($nope) should not be blank"),
        (
            "FROM --platform=what? base",
            "failed to parse platform what?: invalid platform \"what?\": expected os/architecture[/variant], for example linux/arm64",
        ),
    ] {
        assert_eq!(error(text), message);
    }
    // A later stage of the same name does not change what FROM meant.
    let built = converted("FROM base AS a\nRUN first\nFROM a AS a\nRUN second\n");
    assert_eq!(built.history(), ["RUN /bin/sh -c first # buildkit", "RUN /bin/sh -c second # buildkit"]);
}

#[test]
fn link_makes_a_layer_of_its_own() {
    let built = converted("FROM base\nCOPY --link a /a\n");
    let merge = built.result_vertex();
    assert!(matches!(merge.op, Op::Merge));
    let layer = built.definition.vertex(merge.inputs[1].vertex);
    let Op::File(file) = &layer.op else { panic!() };
    assert_eq!(file.base, None);
    let [FileAction::Copy(copy)] = &file.actions[..] else { panic!() };
    assert!(!copy.follow_destination && copy.input == 0);
    assert!(matches!(converted("FROM base\nCOPY --link --chmod=1 a /a").result_vertex().op, Op::File(_)));
    assert!(matches!(converted("FROM scratch\nCOPY --link a /a").result_vertex().op, Op::File(_)));
    for good in ["1", "1:2", "root:root", ":5", "5:", "$NONE"] {
        converted(&format!("FROM base\nCOPY --link --chown={good} a /a"));
    }
    converted("FROM base\nCOPY --link --chmod=1 --chown=www a /a");
    for (chown, name) in [("www", "www"), ("0:www", "www")] {
        let message =
            format!("--chown with --link cannot look up {name:?}: the layer is made without the image");
        assert_eq!(error(&format!("FROM base\nCOPY --link --chown={chown} a /a")), message);
    }
}

#[test]
fn owners_have_names_where_there_is_an_image_to_find_them_in() {
    for (user, group) in
        [("5", None), ("5", Some("6")), ("", Some("5")), ("5", Some("")), ("root", Some("root"))]
    {
        let chown = group.map_or_else(|| user.to_owned(), |group| format!("{user}:{group}"));
        let number = |name: &str| if matches!(name, "" | "root") { "0".to_owned() } else { name.to_owned() };
        for line in [format!("COPY --chown={chown} a /a"), format!("ADD --chown={chown} <<E /a\nx\nE")] {
            let built = converted(&format!("FROM scratch\n{line}\n"));
            let owner = match &built.actions()[0] {
                FileAction::Copy(copy) => copy.owner.clone().unwrap(),
                FileAction::Mkfile { owner, .. } => owner.clone().unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!((owner.user, owner.group), (number(user), group.map(number)), "{line}");
        }
    }
    let message = "could not look up \"web\": the image is empty and has no /etc/passwd and /etc/group";
    for text in
        ["COPY --chown=web a /a", "ADD --chown=0:web a /a", "USER web\nWORKDIR /w", "USER 1:web\nWORKDIR /w"]
    {
        assert_eq!(error(&format!("FROM scratch\n{text}\n")), message, "{text}");
        assert_eq!(error(&format!("FROM empty\n{text}\n")), message, "{text}");
        converted(&format!("FROM base\n{text}\n"));
        converted(&format!("FROM scratch\nCOPY b /b\n{text}\n"));
    }
    converted("FROM scratch\nUSER web\nWORKDIR /\n");
}

#[test]
fn parents_split_at_the_pivot() {
    for (source, root, pattern, required) in
        [("a/b", "/", "a/b", true), ("x/./y/**/z*", "/x", "y/**/z*", false), ("./a", "/", "a", true)]
    {
        let built = converted(&format!("FROM base\nCOPY --parents {source} /d/"));
        let copy = built.copy();
        assert_eq!((copy.source.as_str(), copy.parents.as_deref()), (root, Some(pattern)), "{source}");
        assert_eq!(copy.required, required);
    }
}

#[test]
fn add_takes_archives_urls_and_git() {
    assert_eq!(converted("FROM base\nADD a.tar /").copy().unpack, Unpack::IfArchive);
    assert_eq!(converted("FROM base\nADD --unpack=false a.tar /").copy().unpack, Unpack::Never);

    let sum = format!("sha256:{}", "a".repeat(64));
    let built = converted(&format!("FROM base\nADD --checksum={sum} https://h/d/f.tgz?x=1 /dl/"));
    let vertex = built.result_vertex();
    let source = built.definition.vertex(vertex.inputs[1].vertex).source().unwrap();
    assert!(matches!(source, Source::Http { filename, checksum: Some(_), .. } if filename == "f.tgz"));
    assert_eq!((built.copy().source.as_str(), built.copy().unpack), ("/f.tgz", Unpack::Never));
    assert!(vertex.inputs[1].selector.is_none());

    let built = converted("FROM base\nADD --keep-git-dir=true https://h/r.git#v1:sub /src");
    let source = built.definition.vertex(built.result_vertex().inputs[1].vertex).source().unwrap();
    assert!(matches!(source, Source::Git { keep_git_dir: true, subdir: Some(dir), .. } if dir == "sub"));

    for (text, message) in [
        ("COPY https://h/f /", "source can't be a URL for COPY"),
        ("COPY git@h:r.git /", "source can't be a git ref for COPY"),
        ("ADD --checksum=sha256:1 a /", "checksum requires HTTP(S) or Git sources"),
        (
            "ADD --keep-git-dir=false https://h/r.git?keep-git-dir=1 /",
            "inconsistent keep-git-dir configuration",
        ),
    ] {
        assert_eq!(error(&format!("FROM base\n{text}")), message);
    }
    assert!(error("FROM base\nCOPY --chmod=9 a /").contains("invalid chmod parameter"));
}

#[test]
fn inline_files() {
    let built = converted("FROM base\nENV V=1\nCOPY --chmod=0755 <<A <<\"B\" /d/\n$V '$V'\nA\n$V\nB\n");
    let [FileAction::Mkfile { data: a, mode, name, .. }, FileAction::Mkfile { data: b, path, .. }] =
        built.actions()
    else {
        panic!()
    };
    assert_eq!((a.as_slice(), b.as_slice()), (&b"1 '1'\n"[..], &b"$V\n"[..]));
    assert_eq!((*mode, name.as_deref(), path.as_str()), (0o755, Some("A"), "/d/"));
    assert_eq!(built.history().last(), Some(&"COPY --chmod=0755 <<A <<B /d/ # buildkit"));
}

#[test]
fn triggers_fire_where_the_image_is_used() {
    let text = "FROM base AS tools\nRUN t\nFROM onbuild\nRUN own\n";
    let built = converted(text);
    assert_eq!(
        built.history(),
        ["COPY /t /t # buildkit", "RUN /bin/sh -c build # buildkit", "RUN /bin/sh -c own # buildkit"]
    );
    assert!(built.config.config.on_build.is_empty());
    assert!(built.names().contains(&"[stage-1 3/4] ONBUILD RUN build"));
    // The span of a trigger that is not in the file is that of FROM.
    let span = built.vertex("[stage-1 3/4] ONBUILD RUN build").1.metadata.span.unwrap();
    assert_eq!(&text[span.0..span.1], "FROM onbuild");

    // Of a stage: in stages from it, not in theirs.
    let built = converted("FROM base AS a\nONBUILD RUN x\nFROM a AS b\nRUN y\nFROM b\nRUN z");
    let runs = ["RUN /bin/sh -c x # buildkit", "RUN /bin/sh -c y # buildkit", "RUN /bin/sh -c z # buildkit"];
    assert_eq!(built.history(), runs);

    // One that cannot be read is an error where it fires, and only there.
    for trigger in ["COPY a", "NONSENSE x", "COPY --bad a b"] {
        let text = format!("FROM base AS a\nONBUILD {trigger}\n");
        assert_eq!(converted(&text).config.config.on_build, [trigger]);
        assert!(!error(&format!("{text}FROM a")).is_empty(), "{trigger}");
    }
}

#[test]
fn named_contexts_stand_in_for_images_and_stages() {
    let request = |name: &str, context: NamedContext| Request {
        contexts: [(name.to_owned(), context)].into(),
        ..request()
    };
    let image = || NamedContext::Image("other:1".parse().unwrap());
    for name in ["base", "docker.io/library/base:latest", "base::linux/amd64"] {
        let built = converted_with("FROM base\nRUN x", &request(name, image()));
        assert!(built.names()[0].contains("library/other:1@"), "{name}");
    }
    let built = converted_with("FROM base AS dep\nRUN dep\nFROM dep\nRUN x", &request("dep", image()));
    assert_eq!(built.history(), ["RUN /bin/sh -c x # buildkit"]);

    let built =
        converted_with("FROM base\nRUN x", &request("base", NamedContext::Local { ignore: Vec::new() }));
    let root = built.definition.vertex(built.result_vertex().inputs[0].vertex);
    assert!(matches!(&root.op, Op::File(file) if file.base.is_none()));
    assert!(root.inputs[0].selector.is_some());

    let local = NamedContext::Local { ignore: Vec::new() };
    let built =
        converted_with("FROM base AS dep\nRUN dep\nFROM base\nCOPY --from=dep a /", &request("dep", local));
    let source = built.definition.vertex(built.result_vertex().inputs[1].vertex).source();
    assert!(matches!(source, Some(Source::Local { .. })), "no layer is made of it");

    let other = NamedContext::Stage("b".to_owned());
    let built = converted_with("FROM x AS b\nRUN b\nFROM base\nRUN y", &request("base", other));
    assert_eq!(built.history().len(), 2);
    let circle = NamedContext::Stage("a".to_owned());
    assert!(error_with("FROM base AS a\nFROM a", &request("a", circle)).contains("circular"));
}

#[test]
fn a_context_can_be_elsewhere_or_nowhere() {
    let git = Source::Git {
        remote: "https://h/r.git".to_owned(),
        reference: None,
        subdir: None,
        keep_git_dir: false,
        checksum: None,
        submodules: true,
    };
    let remote = Request { main_context: MainContext::Source(git.clone()), ..request() };
    let built = converted_with("FROM base\nCOPY a /a", &remote);
    assert_eq!(built.definition.vertex(built.result_vertex().inputs[1].vertex).source(), Some(&git));
    let empty = Request { main_context: MainContext::Empty, ..request() };
    let built = converted_with("FROM base\nCOPY a /a", &empty);
    assert!(matches!(built.definition.vertex(built.result_vertex().inputs[1].vertex).op, Op::Merge));
}

#[test]
fn conversion_warns_of_what_text_alone_does_not_show() {
    for (text, codes) in [
        ("FROM base\nENV A=$PAHT", &["UndefinedVar"][..]),
        ("FROM base\nARG A\nENV B=$A", &[]),
        ("ARG V\nFROM base:$V", &["InvalidDefaultArgInFrom"]),
        ("FROM base$X", &["UndefinedArgInFrom"]),
        ("FROM --platform=$TARGETPLATFORM base", &["RedundantTargetPlatform"]),
        ("FROM base\nCOPY dir/x.log a /b/\nADD . /c", &["CopyIgnoredFile"]),
    ] {
        let args = vec![("V".to_owned(), "1".to_owned())];
        let ignore = vec![(1, "**/*.log".to_owned())];
        let built = converted_with(text, &Request { build_args: args, ignore, ..request() });
        assert_eq!(built.warning_codes(), codes, "{text}");
    }
}

#[test]
fn no_cache_is_for_all_or_for_some_stages() {
    let text = "FROM base AS a\nRUN a\nFROM base\nCOPY --from=a / /\nRUN b\n";
    let ignored = |request: Request| -> Vec<String> {
        let built = converted_with(text, &request);
        let vertices = built.definition.ids().map(|id| built.definition.vertex(id));
        vertices.filter(|v| v.metadata.ignore_cache).map(|v| v.metadata.stage.clone()).collect()
    };
    assert!(ignored(request()).is_empty());
    assert_eq!(ignored(Request { no_cache: true, ..request() }), ["a", "stage-1", "stage-1"]);
    assert_eq!(ignored(Request { no_cache_filter: vec!["A".to_owned()], ..request() }), ["a"]);
}

#[test]
fn epochs_come_from_args() {
    let given = |value: &str| Request {
        build_args: vec![("SOURCE_DATE_EPOCH".to_owned(), value.to_owned())],
        ..request()
    };
    assert_eq!(converted_with("FROM base", &given("5")).source_date_epoch, Some(5));
    assert_eq!(converted("ARG SOURCE_DATE_EPOCH=7\nFROM base").source_date_epoch, Some(7));
    assert_eq!(converted("FROM base").source_date_epoch, None);
    assert!(error_with("FROM base", &given("soon")).starts_with("invalid SOURCE_DATE_EPOCH"));
}

#[test]
fn the_epoch_is_the_time_of_what_it_names() {
    let http = |url: &str, filename: &str| Source::Http {
        url: url.to_owned(),
        checksum: None,
        filename: filename.to_owned(),
        mode: None,
        owner: None,
    };
    let git = crate::git::GitUrl::parse("https://h/r.git#v1").unwrap().unwrap().into_source();
    let stage = "FROM scratch AS src\nARG HOST=x\nADD https://$HOST/a.tar /\nFROM base\n";
    let named = |source: &Source| [("other".to_owned(), NamedContext::Source(source.clone()))].into();
    for (value, text, source, request) in [
        (
            "context",
            "FROM base",
            http("https://x/c", "context"),
            Request { context_source: Some(http("https://x/c", "context")), ..request() },
        ),
        ("other", "FROM base", git.clone(), Request { contexts: named(&git), ..request() }),
        ("SRC", stage, http("https://x/a.tar", "a.tar"), request()),
        ("src", "FROM scratch AS src\nADD https://h/r.git#v1 /\nFROM base", git.clone(), request()),
    ] {
        // Given, or the default of an ARG: both are numbers then.
        let reads = format!("{text}\nARG SOURCE_DATE_EPOCH\nENV E=$SOURCE_DATE_EPOCH");
        let given = Request {
            build_args: vec![("SOURCE_DATE_EPOCH".to_owned(), value.to_owned())],
            ..request.clone()
        };
        for (text, request) in
            [(reads.clone(), given), (format!("ARG SOURCE_DATE_EPOCH={value}\n{reads}"), request)]
        {
            let (dockerfile, _) = crate::parse(text.as_bytes());
            let Ok(Conversion::NeedsTime(needed)) = convert(&dockerfile, &request, &HashMap::new()) else {
                panic!("{text}")
            };
            assert_eq!(*needed, source);
            for (time, shown) in [(Some(5), "E=5"), (None, "E=")] {
                let known = Request { times: [(source.clone(), time)].into(), ..request.clone() };
                let built = converted_with(&text, &known);
                assert_eq!(built.source_date_epoch, time);
                assert_eq!(built.config.config.env.last().map(String::as_str), Some(shown), "{text}");
            }
        }
    }
    // A local context has no time.
    assert_eq!(converted("ARG SOURCE_DATE_EPOCH=context\nFROM base").source_date_epoch, None);
    for (stages, message) in [
        ("FROM base AS src\nFROM base", "stage must use FROM scratch"),
        ("FROM scratch AS src\nFROM base", "stage must contain exactly one remote ADD"),
        ("FROM scratch AS src\nADD a /\nFROM base", "stage source must be a single HTTP(S) or Git ADD"),
        ("FROM scratch AS src\nADD http://h/a http://h/b /\nFROM base", "exactly one remote ADD source"),
        ("FROM scratch AS src\nADD http://h/a /\nADD http://h/a /\nFROM base", "exactly one remote ADD"),
        ("FROM scratch AS src\nENV A=b\nFROM base", "source-only requirements: unsupported env instruction"),
        ("FROM base AS srv", "invalid SOURCE_DATE_EPOCH: src"),
    ] {
        let error = error(&format!("ARG SOURCE_DATE_EPOCH=src\n{stages}"));
        assert!(error.contains(message), "{stages}: {error}");
    }
}

#[test]
fn errors_of_several_stages_come_together() {
    let text = "FROM base AS a\nSTOPSIGNAL nope\nFROM base AS b\nEXPOSE x\nFROM base\nCOPY --from=a / /\nCOPY --from=b / /\n";
    let errors = try_convert(text, &request()).unwrap_err();
    let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["invalid signal: nope", "invalid containerPort: x"]);
}

#[test]
fn thousands_of_stages_and_lines_are_no_matter() {
    let mut chain = "FROM base AS s0\n".to_owned();
    for index in 1..2_000 {
        chain.push_str(&format!("FROM s{} AS s{index}\nENV V{index}=1\nRUN step {index}\n", index - 1));
    }
    let built = converted(&chain);
    assert_eq!(built.history().len(), 2 * 1_999);
    let mut lines = "FROM base\n".to_owned();
    for index in 0..50_000 {
        lines.push_str(&format!("ENV A{index}=$A{}\nLABEL l{index}=$x\n", index.max(1) - 1));
    }
    assert_eq!(converted(&lines).config.config.labels.len(), 50_000);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(lines in proptest::collection::vec(line(), 0..12)) {
        let text = format!("ARG G=1\nFROM base AS a\n{}\n", lines.join("\n"));
        let _ = try_convert(&text, &request());
    }
}

fn line() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let keyword = prop::sample::select(vec![
        "FROM",
        "RUN",
        "COPY",
        "ADD",
        "ARG",
        "ENV",
        "LABEL",
        "EXPOSE",
        "VOLUME",
        "USER",
        "WORKDIR",
        "STOPSIGNAL",
        "CMD",
        "ENTRYPOINT",
        "SHELL",
        "HEALTHCHECK",
        "ONBUILD RUN",
        "ONBUILD COPY",
    ]);
    let word = prop::sample::select(vec![
        "a",
        "b AS b",
        "--from=a",
        "--from=0",
        "--from=9",
        "--link",
        "--parents",
        "x/./y",
        "/",
        "",
        ".",
        "..",
        "$G",
        "${G:-x}",
        "'",
        "\"",
        "\\",
        "[\"a\"]",
        "k=v",
        "k=$k",
        "1-3/udp",
        "65536",
        "é=é",
        "<<EOF",
        "EOF",
        "--mount=type=cache,target=$G",
        "--mount=from=a,target=x",
        "--chown=$G:",
        "https://h/r.git#x",
        "http://",
        "SIGTERM",
        "9",
        "NONE",
        "AS",
        "scratch",
        "--platform=$G",
        "*",
        "[",
    ]);
    (keyword, prop::collection::vec(word, 0..5))
        .prop_map(|(keyword, words)| format!("{keyword} {}", words.join(" ")))
}

#[test]
fn errors_say_what_to_do() {
    for (line, help) in [
        ("ENV A=${B", "close it with }"),
        ("ENV A='b", "close the quote"),
        ("ENV A=${B^}", "there are ${NAME:-word}"),
        ("ENV A=${B:?}", "--build-arg B=VALUE"),
        ("EXPOSE 99999", "write 1 to 65535"),
        ("EXPOSE 80/tpc", "/tcp, /udp"),
        ("STOPSIGNAL SIGTREM", "did you mean SIGTERM?"),
        ("STOPSIGNAL nothing-like-it", "write a name like SIGTERM"),
        ("RUN --mount=type=cache x", "target=/path"),
        ("RUN --mount=type=cahce,target=/x y", "did you mean cache?"),
        ("RUN --mount=tagret=/x y", "did you mean target?"),
        ("COPY --from=5 a b", "the last one is 0"),
        ("COPY --from=s a b", "stages before it"),
        ("COPY https://h/a /", "use ADD"),
        ("USER", "write USER NAME or USER NAME:GROUP"),
        ("WORKDIR", "write WORKDIR /path"),
        ("ARG =b", "write ARG NAME or ARG NAME=DEFAULT"),
        ("HEALTHCHECK CMDD x", "HEALTHCHECK CMD COMMAND"),
        ("HEALTHCHECK --interval=1 CMD x", "30s, 1m30s"),
        ("ONBUILD ONBUILD RUN x", "a trigger is one other instruction"),
        ("RUN --network=host x", "--allow network.host"),
        ("FROM a AS 1b", "start it with a letter"),
        ("FROM $X", "--build-arg"),
    ] {
        let errors = try_convert(&format!("FROM base AS s\n{line}\n"), &request()).unwrap_err();
        let error = &errors[0];
        let shown = error.help.as_deref().unwrap_or_default();
        assert!(shown.contains(help), "{line}: {} {shown:?}", error.message);
        assert!(error.spans[0].start > "FROM base".len(), "{line}");
    }
}
