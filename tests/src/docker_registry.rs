//! A real registry: Debian's `docker-registry`, on a free port of loopback, empty, gone when dropped.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A running `docker-registry`.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Child,
    address: String,
    _data: TempDir,
}

impl DockerRegistry {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// One that only `user` with the password `secret` may use.
    pub fn start_with_login() -> Self {
        // bcrypt of "secret", with the least cost.
        Self::start_with(Some("user:$2a$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"))
    }

    fn start_with(accounts: Option<&str>) -> Self {
        // Bound and released: free a moment later in all likelihood, and nothing else here listens.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port is free").port();
        let address = format!("127.0.0.1:{port}");
        let data = tempfile::tempdir().expect("a temporary directory can be made");
        let auth = accounts.map(|accounts| {
            let path = data.path().join("htpasswd");
            std::fs::write(&path, accounts).expect("a file can be written");
            format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display())
        });
        let auth = auth.unwrap_or_default();
        let config = data.path().join("config.yml");
        let mut file = std::fs::File::create(&config).expect("a file can be written");
        write!(
            file,
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: {address}}}\n{auth}",
            data.path().join("data").display()
        )
        .expect("a file can be written");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, address, _data: data };
        for _ in 0..200 {
            if TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not answer at {}", registry.address);
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
