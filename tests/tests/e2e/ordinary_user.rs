//! An ordinary user, or the root of a container, gets what root gets, to the byte.

use std::fmt::Write as _;

use tests::{Base, TestEnv};

#[test]
fn the_image_is_the_same_as_of_root() {
    let dockerfile = "FROM busybox:1\nCOPY --chown=daemon:users --chmod=4755 a /a\nWORKDIR /w\n\
        RUN echo b > b && chown 1:100 b && chmod 2711 . && mkfifo f && ln b hard && ln -s b soft && rm /etc/os-release\n\
        USER nobody\nRUN id > /tmp/id && touch -d @1000000 /tmp/old\n\
        USER daemon:users\nRUN --mount=type=cache,target=/cache,uid=1 echo c > /cache/c && id >> /tmp/d\n";
    let digest = |mut env: TestEnv| {
        env.set("SOURCE_DATE_EPOCH", "1700000000");
        Base::Busybox.build_in(&env);
        let context = env.context("same", &[("Dockerfile", dockerfile), ("a", "a")]);
        let _ = env.rbuild(["-t".as_ref(), "x".as_ref(), context.as_os_str()]).ok();
        let ids = env.rbuild(["run", "--rm", "-u", "0", "x", "cat", "/tmp/id", "/tmp/d"]).ok().stdout;
        assert_eq!(
            ids,
            "uid=65534(nobody) gid=65534(nobody) groups=65534(nobody)\nuid=1(daemon) gid=100(users) groups=100(users)\n"
        );
        let iid = env.work().join("iid");
        let args = ["build".as_ref(), "--iidfile".as_ref(), iid.as_os_str(), "-t".as_ref(), "x".as_ref()];
        let _ = env.rbuild(args.into_iter().chain([context.as_os_str()])).ok();
        std::fs::read_to_string(iid).expect("an image ID was written")
    };
    let of_root = digest(TestEnv::new());
    assert_eq!(of_root, digest(TestEnv::rootless()));
    assert_eq!(of_root, digest(TestEnv::container_root()));
}

#[test]
fn many_steps_at_once_unpack_what_they_stand_on_once() {
    let env = TestEnv::rootless();
    Base::Busybox.build_in(&env);
    // Layers of many directories, so that all threads unpack; each of the stages wants all of them at the same time.
    let mut dockerfile = "FROM busybox:1 AS base\n".to_owned();
    for layer in 0..4 {
        writeln!(
            dockerfile,
            "RUN for d in $(seq 60); do mkdir -p /l{layer}/$d && touch /l{layer}/$d/a /l{layer}/$d/b; done"
        )
        .expect("a string can be written");
    }
    dockerfile.push_str("FROM scratch\nCOPY --from=base / /\nCOPY --from=base /l0 /copy\n");
    let base = env.context("base", &[("Dockerfile", &dockerfile)]).display().to_string();
    let _ = env.rbuild(["-t", "base", &base]).ok();
    let stage = |n| format!("FROM base AS s{n}\nRUN ls /l*/60 /copy/60 > /{n}\n");
    let copies: String = (0..8).map(|n| format!("COPY --from=s{n} /{n} /{n}\n")).collect();
    let dockerfile = (0..8).map(stage).collect::<String>() + "FROM scratch\n" + &copies;
    let context = env.context("stages", &[("Dockerfile", &dockerfile)]).display().to_string();
    for _ in 0..3 {
        let _ = env.rbuild(["build", "--no-cache", "-o", "type=cacheonly", &context]).ok();
        // They are made anew the next time.
        for made in std::fs::read_dir(env.root().join("mounts")).expect("it is there") {
            std::fs::remove_dir_all(made.expect("it can be listed").path()).expect("they are only a cache");
        }
    }
}
