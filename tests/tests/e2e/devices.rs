//! `RUN --device`: devices of the host by the specs of the Container Device Interface.

use tests::{Base, Outcome, TestEnv};

const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: vendor1.com/device
containerEdits:
  env: [KIND=device]
devices:
- name: foo
  containerEdits:
    env: [FOO=injected]
    deviceNodes:
    - path: /dev/foo
      hostPath: /dev/null
      fileMode: 0640
    - path: /dev/sub/zero
      hostPath: /dev/zero
    mounts:
    - {hostPath: SPECS, containerPath: /specs, options: [ro, rbind]}
    additionalGids: [1234]
- name: free
  annotations: {org.mobyproject.buildkit.device.autoallow: "true", org.mobyproject.buildkit.device.class: small}
  containerEdits: {env: [FREE=1]}
- name: hooked
  containerEdits:
    hooks: [{hookName: createContainer, path: /usr/bin/hook}]
"#;

struct Host {
    env: TestEnv,
}

impl Host {
    fn new() -> Self {
        let mut env = TestEnv::new();
        Base::Busybox.build_in(&env);
        let specs = env.work().join("cdi").display().to_string();
        let _ = env.context("cdi", &[("vendor1.yaml", &SPEC.replace("SPECS", &specs))]);
        let config = env.context("config", &[("rbuild.toml", &format!("[cdi]\nspec-dirs = ['{specs}']\n"))]);
        env.set("RBUILD_CONFIG", &config.join("rbuild.toml").display().to_string());
        Self { env }
    }

    fn build(&self, run: &str, flags: &[&str]) -> Outcome {
        let dockerfile = format!("FROM busybox:1\nUSER 7:8\nRUN {run}\n");
        let context = self.env.context("device", &[("Dockerfile", &dockerfile)]);
        self.env.rbuild([&["--progress=plain", &context.display().to_string()], flags].concat())
    }
}

#[test]
fn a_step_has_what_the_spec_of_its_device_says() {
    let host = Host::new();
    let looks = "--device=vendor1.com/device=foo,required --device=vendor2.com/none \
         set -e; [ $KIND$FOO = deviceinjected ]; stat -c '%F %t:%T %a %u:%g' /dev/foo /dev/sub/zero; \
         echo x > /dev/foo; head -c 3 /dev/sub/zero | wc -c; ls /specs; id -G; ! touch /specs/x";
    let _ = host
        .build(looks, &["--allow", "device"])
        .ok()
        .says("character special file 1:3 640 7:8")
        .says("character special file 1:5 666 7:8")
        .says("vendor1.yaml")
        .says("8 1234");
    let _ = host.build("--device=vendor1.com/device=small test $FREE = 1", &[]).ok();
    let alias = ["--allow", "device=vendor1.com/device=foo,alias=mine"];
    let _ = host.build("--device=mine test $FOO = injected", &alias).ok();
    let _ = host.build("--device=vendor1.com/device=foo test -z \"$NONE\"", &["--check"]).ok();
}

#[test]
fn devices_that_cannot_be_had_are_told_with_their_line() {
    let host = Host::new();
    for (run, flags, message) in [
        (
            "--device=vendor1.com/device=foo true",
            &[][..],
            "allow it with --allow device=vendor1.com/device=foo",
        ),
        (
            "--device=vendor1.com/device=fou,required true",
            &["--allow", "device"],
            "did you mean vendor1.com/device=foo?",
        ),
        ("--device=vendor1.com/device=hooked true", &["--allow", "device"], "rbuild runs no hooks"),
        ("--device=null true", &["--allow", "device"], "write --device=VENDOR/CLASS"),
    ] {
        let outcome = host.build(run, flags).fails_with(3).says(message);
        assert!(outcome.stderr.contains("Dockerfile:3"), "{outcome}");
    }
    let _ = host.build("true", &["--allow", "devices"]).says("unknown --allow");
}
