//! Devices of the host for steps: `RUN --device`, by the Container Device Interface.
//!
//! A spec is a YAML or JSON file that a driver's installer left in one of a few directories. It names devices of one kind,
//! and says for each what a container needs for it: device nodes, mounts, variables. [`Registry::load`] reads all specs,
//! [`Registry::apply`] does to a plan what they say. Hooks are programs that would run with all privileges on the
//! host: rbuild does not run them and refuses devices that need one.

mod apply;
mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use apply::CdiError;
use spec::{Device, Spec, SpecError};

/// Where specs are, the last one winning; as BuildKit has it.
pub const DIRECTORIES: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];

/// A spec is not larger than this.
const MAX_SIZE: u64 = 16 << 20;

const CLASS: &str = "org.mobyproject.buildkit.device.class";
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// The host's devices.
#[derive(Debug, Default)]
pub struct Registry {
    devices: BTreeMap<String, Entry>,
    directories: Vec<PathBuf>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    spec: Rc<Spec>,
    /// Which of the spec's devices.
    index: usize,
    /// In which directory the spec was.
    directory: usize,
}

impl Entry {
    fn device(&self) -> &Device {
        &self.spec.devices[self.index]
    }

    /// An annotation of the device, or else of its spec.
    fn annotation(&self, name: &str) -> Option<&str> {
        let device = self.device().annotations.get(name);
        device.or_else(|| self.spec.annotations.get(name)).map(String::as_str)
    }
}

/// A device, as far as whoever asks for it must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// `vendor/class=name`.
    pub name: &'a str,
    /// Another name, which several may share.
    pub class: Option<&'a str>,
    /// Every build may have it.
    pub auto_allow: bool,
}

impl Registry {
    /// Reads the specs in `directories`. What cannot be read is a problem for those who want its devices, and for nobody
    /// else: see [`Registry::problems`].
    pub fn load(directories: &[PathBuf]) -> Self {
        let mut registry = Self { directories: directories.to_vec(), ..Self::default() };
        let mut ambiguous = BTreeSet::new();
        for (number, directory) in directories.iter().enumerate() {
            let files = match files(directory) {
                Ok(files) => files,
                Err(error) => {
                    registry.problems.push(format!("could not read {}: {error}", directory.display()));
                    continue;
                }
            };
            for path in files {
                match read(&path) {
                    Ok(spec) => registry.add(spec, number, &mut ambiguous),
                    Err(error) => {
                        registry.problems.push(format!("could not read {}: {error}", path.display()));
                    }
                }
            }
        }
        for name in ambiguous {
            registry.devices.remove(&name);
            registry.problems.push(format!("several specs describe {name}"));
        }
        registry
    }

    /// Devices of later directories hide those of earlier ones; two in one directory hide each other.
    fn add(&mut self, spec: Spec, directory: usize, ambiguous: &mut BTreeSet<String>) {
        let spec = Rc::new(spec);
        for (index, device) in spec.devices.iter().enumerate() {
            let name = format!("{}={}", spec.kind, device.name);
            let entry = Entry { spec: spec.clone(), index, directory };
            let known = self.devices.insert(name.clone(), entry);
            if known.is_some_and(|known| known.directory == directory) {
                ambiguous.insert(name);
            } else {
                ambiguous.remove(&name);
            }
        }
    }

    /// All devices by name.
    pub fn devices(&self) -> impl Iterator<Item = Described<'_>> {
        self.devices.iter().map(|(name, entry)| Described {
            name,
            class: entry.annotation(CLASS),
            auto_allow: entry.annotation(AUTO_ALLOW).is_some_and(is_true),
        })
    }

    /// Where specs were looked for.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// What is wrong with specs, a sentence each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// What Go's `strconv.ParseBool` takes for true.
fn is_true(text: &str) -> bool {
    ["1", "t", "T", "true", "TRUE", "True"].contains(&text)
}

/// The specs of a directory, by name. None if it is not there.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_spec = path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
        if is_spec && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Spec, SpecError> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)?;
    Spec::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, devices: &[&str]) -> String {
        let device = |name: &&str| format!("- name: {name}\n  containerEdits:\n    env: [\"NAME={name}\"]\n");
        let devices: String = devices.iter().map(device).collect();
        format!("cdiVersion: 0.6.0\nkind: {kind}\nannotations: {{{CLASS}: all}}\ndevices:\n{devices}")
    }

    #[test]
    fn later_directories_hide_earlier_ones_and_equals_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let directories = ["etc", "run", "none"].map(at).to_vec();
        fs::create_dir(at("etc")).unwrap();
        fs::create_dir(at("run")).unwrap();
        let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
        write("etc/a.yaml", &spec("v.com/a", &["x", "y"]));
        write(
            "etc/b.json",
            r#"{"cdiVersion":"0.5.0","kind":"v.com/b","devices":[
            {"name":"z","annotations":{"org.mobyproject.buildkit.device.autoallow":"true"},
             "containerEdits":{"env":["A=b"]}}]}"#,
        );
        write("etc/c.yaml", &spec("v.com/a", &["y"]));
        write("run/c.yaml", &spec("v.com/a", &["x"]));
        write("etc/README", "no spec");
        write("run/bad.yaml", "cdiVersion: [");
        let registry = Registry::load(&directories);
        let shown: Vec<_> = registry
            .devices()
            .map(|device| format!("{} {} {}", device.name, device.class.unwrap_or("-"), device.auto_allow))
            .collect();
        assert_eq!(shown, ["v.com/a=x all false", "v.com/b=z - true"]);
        assert_eq!(registry.devices["v.com/a=x"].directory, 1);
        let [bad, twice] = registry.problems() else { panic!("{:?}", registry.problems()) };
        assert!(bad.contains("run/bad.yaml"), "{bad}");
        assert_eq!(twice, "several specs describe v.com/a=y");
    }
}
