//! Packages of programming languages, from the files that their installers leave.

use bstr::ByteSlice as _;
use serde::Deserialize;

use super::{Package, escaped};

fn package(name: &str, version: &str, url: String, license: Option<String>) -> Package {
    Package {
        name: name.to_owned(),
        version: version.to_owned(),
        url,
        license: license.filter(|license| !license.is_empty() && !license.contains('\n')),
        found_in: String::new(),
    }
}

/// An installed `package.json`.
pub(super) fn npm(text: &[u8]) -> Vec<Package> {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Vec::new() };
    let (Some(name), Some(version)) = (value["name"].as_str(), value["version"].as_str()) else {
        return Vec::new();
    };
    let url = match name.split_once('/') {
        Some((scope, name)) => format!("pkg:npm/{}/{}@{}", escaped(scope), escaped(name), escaped(version)),
        None => format!("pkg:npm/{}@{}", escaped(name), escaped(version)),
    };
    vec![package(name, version, url, value["license"].as_str().map(str::to_owned))]
}

/// An installed `METADATA` or `PKG-INFO`: headers up to the first empty line.
pub(super) fn python(text: &[u8]) -> Vec<Package> {
    let text = text.to_str_lossy();
    let headers = text.lines().take_while(|line| !line.is_empty());
    let header = |name: &str| {
        let mut found = headers.clone().filter_map(|line| line.split_once(": "));
        found.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let (Some(name), Some(version)) = (header("Name"), header("Version")) else { return Vec::new() };
    let license = header("License-Expression").or_else(|| header("License")).map(str::to_owned);
    // The name as the index knows it (PEP 503).
    let normal = name.to_ascii_lowercase().replace(['_', '.'], "-");
    vec![package(name, version, format!("pkg:pypi/{}@{}", escaped(&normal), escaped(version)), license)]
}

/// `Cargo.lock`.
pub(super) fn cargo_lock(text: &[u8]) -> Vec<Package> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        package: Vec<Locked>,
    }
    #[derive(Deserialize)]
    struct Locked {
        name: String,
        version: String,
    }
    let Ok(lock) = toml::from_str::<Lock>(&text.to_str_lossy()) else { return Vec::new() };
    lock.package.iter().map(|locked| cargo(&locked.name, &locked.version)).collect()
}

/// A crate.
pub(super) fn cargo(name: &str, version: &str) -> Package {
    package(name, version, format!("pkg:cargo/{}@{}", escaped(name), escaped(version)), None)
}

/// A Go module.
pub(super) fn go(path: &str, version: &str) -> Package {
    let path_url: Vec<String> = path.split('/').map(escaped).collect();
    let version = if version.is_empty() { "(devel)" } else { version };
    package(path, version, format!("pkg:golang/{}@{}", path_url.join("/"), escaped(version)), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_has_its_urls() {
        let url =
            |packages: Vec<Package>| packages.into_iter().map(|package| package.url).collect::<Vec<_>>();
        assert_eq!(url(npm(br#"{"name":"@a/b","version":"1.0.0"}"#)), ["pkg:npm/%40a/b@1.0.0"]);
        assert_eq!(url(python(b"Name: Foo_Bar\nVersion: 2\n\nName: no\n")), ["pkg:pypi/foo-bar@2"]);
        let lock = b"version = 3\n[[package]]\nname = 'serde'\nversion = '1.0.1'\n";
        assert_eq!(url(cargo_lock(lock)), ["pkg:cargo/serde@1.0.1"]);
        assert_eq!(go("example.com/a b", "v1+x").url, "pkg:golang/example.com/a%20b@v1%2Bx");
        for broken in [&b""[..], b"{", b"[[package]]", b"\xff\xfe"] {
            assert!(npm(broken).is_empty() && python(broken).is_empty() && cargo_lock(broken).is_empty());
        }
    }
}
