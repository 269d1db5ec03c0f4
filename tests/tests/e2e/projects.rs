//! Dockerfiles as projects ship them, `fixtures/projects/*`, are built and run. They need the package registries.

use std::path::{Path, PathBuf};

use tests::{Base, TestEnv};

/// A project's image in an environment of its own.
struct Project {
    env: TestEnv,
    dir: PathBuf,
}

impl Project {
    fn new(name: &str) -> Self {
        let env = TestEnv::new();
        Base::Debian.build_in(&env);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/projects").join(name);
        Self { env, dir }
    }

    /// Builds it as `app`. Where the host trusts certificates of its own, steps have to as well.
    fn build(&self, args: &[&str]) {
        let mut command: Vec<String> = vec!["build".to_owned(), "-t".to_owned(), "app".to_owned()];
        if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
            command.extend(["--secret".to_owned(), format!("id=ca,src={bundle}")]);
            for name in ["PIP_CERT", "NODE_EXTRA_CA_CERTS", "CARGO_HTTP_CAINFO"] {
                command.extend(["--build-arg".to_owned(), format!("{name}=/run/secrets/ca")]);
            }
        }
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        command.push(self.dir.display().to_string());
        let _ = self.env.rbuild(command).ok();
    }

    /// What the image says when it is run with `args`.
    fn run(&self, args: &[&str]) -> String {
        let args = ["run", "--rm", "app"].iter().chain(args);
        self.env.rbuild(args).ok().stdout
    }
}

#[test]
fn a_python_service_with_a_virtual_environment() {
    let project = Project::new("python");
    project.build(&[]);
    assert_eq!(project.run(&["greet", "<you>"]), "<p>Hello, &lt;you&gt;!</p>\n");
}

#[test]
fn a_node_service_with_npm_and_a_bundler() {
    let project = Project::new("node");
    project.build(&[]);
    assert_eq!(project.run(&["node", "dist/server.mjs", "<you>"]), "<p>Hello, &lt;you&gt;!</p>\n");
}

#[test]
fn a_rust_program_with_cached_dependencies() {
    let project = Project::new("rust");
    project.build(&["--target", "test"]);
    project.build(&[]);
    assert_eq!(project.run(&["3723"]), "1h 2m 3s\n");
}

#[test]
fn a_static_c_program_on_nothing_else() {
    let project = Project::new("c");
    project.build(&["--build-arg", "VERSION=1.2.3"]);
    assert_eq!(project.run(&["--version"]), "tally 1.2.3\n");
}

#[test]
fn a_service_from_debian_packages() {
    let project = Project::new("debian-service");
    project.build(&["--build-arg", "PORT=8081"]);
    let script = "nginx -e stderr -g 'daemon off;' & exec 3<>/dev/null; for i in $(seq 50); do \
        { exec 3<>/dev/tcp/127.0.0.1/$PORT; } 2>/dev/null && break; sleep 0.1; done; \
        printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let page = project.run(&["bash", "-c", script]);
    assert!(page.ends_with("<h1>It is served.</h1>\n"), "{page}");
}
