//! `--load`: an image into Docker, of which there is as much here as the API that is used.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tests::{Base, TestEnv};

/// What a Docker says and was told.
#[derive(Default)]
struct State {
    /// The layers of its images.
    layers: Vec<Vec<String>>,
    /// It refuses archives of fewer blobs.
    least: usize,
    /// The names of files in each archive that came.
    archives: Vec<Vec<String>>,
}

struct Docker {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Docker {
    fn start(env: &TestEnv) -> Self {
        let socket = env.work().join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &shared);
            }
        });
        Self { socket, state }
    }
}

fn answer(mut stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let mut words = lines[0].split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut state = state.lock().expect("no test panics with it");
    let (status, body) = match (method, path) {
        ("GET", "/info") => (200, json!({ "Driver": "overlay2", "DriverStatus": [["a", "b"]] }).to_string()),
        ("GET", "/images/json?all=1") => {
            let ids: Vec<_> = (0..state.layers.len()).map(|n| json!({ "Id": n.to_string() })).collect();
            (200, json!(ids).to_string())
        }
        ("GET", path) if path.starts_with("/images/") => {
            let id: usize = path.split('/').nth(2).and_then(|id| id.parse().ok()).expect("an id");
            (200, json!({ "RootFS": { "Layers": state.layers[id] } }).to_string())
        }
        ("POST", "/images/load?quiet=1") => {
            let archive = chunks(&mut reader);
            let mut archive = tar::Archive::new(&archive[..]);
            let names: Vec<String> = archive
                .entries()
                .expect("a tar")
                .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
                .collect();
            let blobs = names.iter().filter(|name| name.starts_with("blobs/sha256/")).count();
            state.archives.push(names);
            match blobs < state.least {
                true => (500, json!({ "message": "no such layer" }).to_string()),
                false => (200, json!({ "stream": "Loaded image: x:1\n" }).to_string() + "\n"),
            }
        }
        other => (404, format!("{other:?}")),
    };
    let _gone = write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}

fn chunks(reader: &mut impl BufRead) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut size = String::new();
        reader.read_line(&mut size).expect("a chunk");
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).expect("its bytes");
        if size == 0 {
            return all;
        }
        all.extend_from_slice(&chunk[..size]);
    }
}

#[test]
fn docker_gets_the_image_without_the_layers_that_it_has() {
    let mut env = TestEnv::new();
    let docker = Docker::start(&env);
    Base::Busybox.build_in(&env);
    let context = env.context("load", &[("Dockerfile", "FROM busybox:1\nCOPY Dockerfile /f\n")]);
    let context = context.display().to_string();
    env.set("DOCKER_HOST", &format!("unix://{}", docker.socket.display()));
    let blobs = || {
        let archives = &docker.state.lock().expect("no panic").archives;
        let names = archives.last().expect("an archive");
        assert!(names.iter().any(|name| name == "manifest.json"), "{names:?}");
        names.iter().filter(|name| name.starts_with("blobs/sha256/")).count()
    };
    let _ = env.rbuild(["--load", "-t", "x:1", &context]).ok();
    let all = blobs();
    // It has the base now.
    let text = env.rbuild(["inspect", "busybox:1"]).ok().stdout;
    let about: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let base = about[0]["RootFS"]["Layers"].as_array().expect("layers").clone();
    assert!(all > base.len() + 1);
    docker.state.lock().expect("no panic").layers =
        vec![base.iter().map(|layer| layer.as_str().expect("a digest").to_owned()).collect()];
    let _ = env.rbuild(["-o", "type=docker", "-t", "x:1", &context]).ok();
    assert_eq!(blobs(), all - base.len());
    // And has not after all.
    docker.state.lock().expect("no panic").least = all;
    let _ = env.rbuild(["--load", "-t", "x:1", &context]).ok();
    assert_eq!(blobs(), all);
}

#[test]
fn without_a_docker_the_image_is_in_the_store() {
    let mut env = TestEnv::new();
    let context = env.context("none", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /f\n")]);
    let context = context.display().to_string();
    env.set("DOCKER_HOST", "unix:///nonexistent.sock");
    let _ = env.rbuild(["--load", "-t", "x:1", &context]).fails_with(6).says("could not reach Docker");
    env.set("DOCKER_HOST", "");
    if !std::path::Path::new("/var/run/docker.sock").exists() {
        let _ = env.rbuild(["--load", "-t", "x:1", &context]).ok().says("there is no Docker here");
        let _ = env.rbuild(["inspect", "x:1"]).ok();
    }
}
