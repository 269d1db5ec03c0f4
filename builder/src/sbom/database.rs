//! The databases of package managers.

use std::collections::BTreeMap;

use bstr::ByteSlice as _;

use super::{Package, System, escaped};

/// Reads `os-release`.
pub(super) fn system(text: &[u8]) -> System {
    let mut system = System::default();
    for line in text.to_str_lossy().lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim().trim_matches(['"', '\'']).to_owned();
        match key.trim() {
            "ID" => system.id = value,
            "VERSION_ID" => system.version = value,
            _ => {}
        }
    }
    system
}

/// Packages of `/var/lib/dpkg/status`, those that are installed.
pub(super) fn dpkg(text: &[u8], system: &System) -> Vec<Package> {
    let text = text.to_str_lossy();
    text.split("\n\n")
        .filter_map(|paragraph| {
            let fields = fields(paragraph, ": ");
            // Distroless images leave the status out.
            if fields.get("Status").is_some_and(|status| !status.ends_with(" installed")) {
                return None;
            }
            let (name, version) = (*fields.get("Package")?, *fields.get("Version")?);
            let vendor = if system.id.is_empty() { "debian" } else { &system.id };
            let mut url = format!("pkg:deb/{vendor}/{}@{}", escaped(name), escaped(version));
            let architecture = fields.get("Architecture").copied().unwrap_or("all");
            url.push_str(&format!("?arch={}{}", escaped(architecture), distribution(system)));
            Some(package(name, version, url, None))
        })
        .collect()
}

/// Packages of `/lib/apk/db/installed`.
pub(super) fn apk(text: &[u8], system: &System) -> Vec<Package> {
    let text = text.to_str_lossy();
    text.split("\n\n")
        .filter_map(|paragraph| {
            let fields = fields(paragraph, ":");
            let (name, version) = (*fields.get("P")?, *fields.get("V")?);
            let vendor = if system.id.is_empty() { "alpine" } else { &system.id };
            let mut url = format!("pkg:apk/{vendor}/{}@{}", escaped(name), escaped(version));
            let architecture = fields.get("A").copied().unwrap_or("noarch");
            url.push_str(&format!("?arch={}{}", escaped(architecture), distribution(system)));
            Some(package(name, version, url, fields.get("L").copied()))
        })
        .collect()
}

pub(super) fn distribution(system: &System) -> String {
    match system.version.is_empty() {
        true => String::new(),
        false => format!("&distro={}-{}", escaped(&system.id), escaped(&system.version)),
    }
}

/// The fields of a paragraph, each on a line; lines that go on are left out.
fn fields<'a>(paragraph: &'a str, separator: &str) -> BTreeMap<&'a str, &'a str> {
    let lines = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
    let mut fields = BTreeMap::new();
    for (key, value) in lines.filter_map(|line| line.split_once(separator)) {
        // Of files and directories, which apk lists after the package, the first is as good as any.
        fields.entry(key).or_insert(value.trim());
    }
    fields
}

pub(super) fn package(name: &str, version: &str, url: String, license: Option<&str>) -> Package {
    Package {
        name: name.to_owned(),
        version: version.to_owned(),
        url,
        license: license.filter(|license| !license.is_empty()).map(str::to_owned),
        found_in: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_s_installed_packages_are_read() {
        let system = system(b"NAME=x\nID=debian\nVERSION_ID=\"12\"\n");
        let text = b"Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1+b1\n\
                     Description: shell\n Version: no\n\nPackage: gone\nStatus: deinstall ok config-files\n\
                     Version: 1\n\nPackage: tzdata\nVersion: 2024a\n";
        let urls: Vec<String> = dpkg(text, &system).into_iter().map(|package| package.url).collect();
        assert_eq!(
            urls,
            [
                "pkg:deb/debian/bash@5.2-1%2Bb1?arch=amd64&distro=debian-12",
                "pkg:deb/debian/tzdata@2024a?arch=all&distro=debian-12"
            ]
        );
    }

    #[test]
    fn alpine_s_packages_are_read() {
        let text = b"C:Q1x\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nF:lib\nR:x\nA:other\n\nP:busybox\nV:1.36\n";
        let packages = apk(text, &System { id: "alpine".to_owned(), version: "3.20".to_owned() });
        assert_eq!(packages[0].url, "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20");
        assert_eq!(packages[0].license.as_deref(), Some("MIT"));
        assert_eq!(packages.len(), 2);
    }
}
