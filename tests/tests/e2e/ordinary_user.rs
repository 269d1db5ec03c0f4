//! An ordinary user, or the root of a container, gets what root gets, to the byte.

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
