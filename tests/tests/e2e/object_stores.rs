//! Caches in object stores, through real servers: Debian's Redis, and for S3 moto out of Python's package index.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::TestEnv;
use tests::actions::{TOKEN, actions_cache};

use super::cache_travels::{CASES, mounts_travel, registry, travels};

/// What is installed for S3, with the parts of moto that it needs.
const PACKAGES: [&str; 3] = ["moto[s3]==5.2.1", "flask>=3", "flask-cors>=5"];

/// A server on a free port of loopback, gone when dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// `args` are followed by the port.
    fn start(program: &Path, args: &[&str]) -> Self {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port is free").port();
        let mut command = Command::new(program);
        command.args(args).arg(port.to_string());
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let server = Self { process, address: format!("127.0.0.1:{port}") };
        for _ in 0..600 {
            if TcpStream::connect(&server.address).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} does not answer", program.display());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// moto's server, installed once a checkout.
fn moto() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-moto");
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let lock = std::fs::File::create(dir.join("lock")).expect("a file can be made");
    lock.lock().expect("a file can be locked");
    let done = dir.join("done");
    if !done.exists() {
        let venv = dir.join("venv");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        let pip = venv.join("bin/pip");
        run(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES));
        std::fs::write(&done, "").expect("a file can be written");
    }
    dir.join("venv/bin/moto_server")
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn all(place: &str) {
    all_named(place, "name");
}

/// `name` is the option that tells caches in a place apart.
fn all_named(place: &str, name: &str) {
    let (_registry, base) = registry();
    for (n, (case, dockerfile)) in CASES.iter().enumerate() {
        let mode = ["min", "max"][n % 2];
        let place = format!("{place},{name}={case}");
        travels(case, dockerfile, &base, &format!("{place},mode={mode},ignore-error=false"), &place, &[]);
    }
    let place = format!("{place},{name}=all-mounts");
    mounts_travel(&base, &place, &place);
}

#[test]
fn a_cache_travels_through_redis() {
    let redis = Server::start(Path::new("redis-server"), &["--save", "", "--bind", "127.0.0.1", "--port"]);
    all(&format!("type=redis,url=redis://{}", redis.address));
}

#[test]
fn a_cache_travels_through_s3() {
    let moto = Server::start(&moto(), &["-H", "127.0.0.1", "-p"]);
    let mut stream = TcpStream::connect(&moto.address).expect("it answers");
    let host = &moto.address;
    let request =
        format!("PUT /caches HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it takes a request");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    all(&format!(
        "type=s3,endpoint_url=http://{host},use_path_style=true,region=us-east-1,bucket=caches,prefix=ci/,\
         access_key_id=key,secret_access_key=secret"
    ));
}

#[test]
fn a_cache_travels_through_github_actions() {
    let service = actions_cache();
    let place = format!("type=gha,url_v2=http://{}/,token={TOKEN}", service.address());
    all_named(&place, "scope");
    // A layer that goes in pieces.
    let (env, other) = (TestEnv::new(), TestEnv::new());
    let files = [("Dockerfile", "FROM scratch\nCOPY big /big\n")];
    let context = env.context("big", &files);
    let mut seed = 1_u32;
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    });
    std::fs::write(context.join("big"), noise.take(70 << 20).collect::<Vec<_>>())
        .expect("a file can be written");
    let context = context.display().to_string();
    let to = format!("{place},scope=big,ignore-error=false");
    let _ = env.rbuild(["build", "--cache-to", &to, &context]).ok();
    assert!(service.requests("comp=blocklist").len() == 1);
    let built = other.rbuild(["build", "--cache-from", &format!("{place},scope=big"), "-o", "out", &context]);
    let built = built.ok().says("cache: 1 of 1 steps reused").says("layers of 73.4 MB in ");
    assert!(!built.stderr.contains("could not"), "{built}");
    let same = std::fs::read(other.work().join("out/big")).expect("it was built");
    assert!(same == std::fs::read(format!("{context}/big")).expect("it was written"));
}

#[test]
fn outside_of_github_actions_there_is_no_cache_and_that_is_said() {
    let env = TestEnv::new();
    let context =
        env.context("none", &[("Dockerfile", "FROM scratch\nCOPY <<a /a\na\n")]).display().to_string();
    let _ = env
        .rbuild(["build", "--cache-from", "type=gha", "--cache-to", "type=gha,mode=max", &context])
        .ok()
        .says("could not import cache from gha buildkit: ACTIONS_RESULTS_URL is not set")
        .says("could not export cache to gha buildkit: ACTIONS_RESULTS_URL is not set");
    let strict = ["build", "--cache-to", "type=gha,ignore-error=false", &context];
    let _ = env.rbuild(strict).fails_with(6);
    // A wrong token is told of, and is in no message.
    let service = actions_cache();
    let place = format!("type=gha,url_v2=http://{},token=not-the-token", service.address());
    let refused = env.rbuild(["build", "--cache-to", &place, &context]).ok().says("answered 401");
    assert!(!refused.stderr.contains("not-the-token"), "{refused}");
}

#[test]
fn a_cache_travels_through_a_plain_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    all(&format!("type=fs,root={}", dir.path().display()));
}
