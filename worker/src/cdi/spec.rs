//! A CDI spec: what one file says, checked. Fields that are not known are errors, as in CDI's own library: what they ask
//! for would be missing without a word.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Versions of the format.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Devices of one kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    /// `vendor/class`.
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// Done once if any device is wanted.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a container needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    /// `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<IgnoredAny>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IgnoredAny>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DeviceNode {
    /// In the container, and on the host if `host_path` is empty.
    pub(super) path: String,
    pub(super) host_path: String,
    /// `b`, `c`, `u` (as `c`), `p`, or empty: as it is on the host.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// Why a file is no spec.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpecError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is no YAML, or not of this form.
    #[error("{0}")]
    Format(String),
    /// A value cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Spec {
    /// Reads YAML, and so JSON too.
    pub(super) fn parse(text: &str) -> Result<Self, SpecError> {
        // Modes are written as `0666`, which the YAML of CDI's library takes for octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        let spec: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| SpecError::Format(error.to_string()))?;
        spec.check().map_err(SpecError::Invalid)?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("there is no version {:?} of CDI", self.cdi_version));
        }
        let is_kind =
            self.kind.split_once('/').is_some_and(|(vendor, class)| is_label(vendor) && is_label(class));
        if !is_kind {
            return Err(format!("the kind {:?} is not VENDOR/CLASS", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        self.container_edits.check()?;
        for (index, device) in self.devices.iter().enumerate() {
            if !is_name(&device.name) {
                return Err(format!("{:?} is no name of a device", device.name));
            }
            if self.devices[..index].iter().any(|other| other.name == device.name) {
                return Err(format!("there are two devices {:?}", device.name));
            }
            if device.container_edits.is_empty() {
                return Err(format!("the device {:?} has no containerEdits", device.name));
            }
            device.container_edits.check()?;
        }
        Ok(())
    }
}

impl Edits {
    fn is_empty(&self) -> bool {
        let Self { env, device_nodes, net_devices, hooks, mounts, intel_rdt, additional_gids } = self;
        env.is_empty()
            && device_nodes.is_empty()
            && net_devices.is_empty()
            && hooks.is_empty()
            && mounts.is_empty()
            && intel_rdt.is_none()
            && additional_gids.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        let hook_env = self.hooks.iter().flat_map(|hook| &hook.env);
        if let Some(pair) = self.env.iter().chain(hook_env).find(|pair| !is_pair(pair)) {
            return Err(format!("{pair:?} is no environment variable"));
        }
        for DeviceNode { path, kind, major, minor, permissions, .. } in &self.device_nodes {
            if path.is_empty() {
                return Err("a device node has no path".to_owned());
            }
            if !["", "b", "c", "u", "p"].contains(&kind.as_str()) {
                return Err(format!("the device node {path:?} cannot be of the type {kind:?}"));
            }
            if *major < 0 || *minor < 0 {
                return Err(format!("the device node {path:?} cannot have the number {major}:{minor}"));
            }
            if permissions != "none" && !permissions.chars().all(|c| "rwm".contains(c)) {
                return Err(format!("the device node {path:?} cannot have the permissions {permissions:?}"));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) || hook.path.is_empty() {
                return Err(format!("{:?} with the path {:?} is no hook", hook.hook_name, hook.path));
            }
        }
        if self.mounts.iter().any(|mount| mount.host_path.is_empty() || mount.container_path.is_empty()) {
            return Err("a mount has no hostPath or no containerPath".to_owned());
        }
        Ok(())
    }
}

fn is_pair(text: &str) -> bool {
    text.find('=').is_some_and(|at| at > 0)
}

/// A vendor or class.
fn is_label(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && is_name(text) && !text.contains(':')
}

fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    let outer = |end: char| end.is_ascii_alphanumeric();
    text.starts_with(outer) && text.ends_with(outer) && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(edits: &str) -> String {
        format!("cdiVersion: \"0.6.0\"\nkind: v.com/d\ndevices:\n- name: a\n  containerEdits:\n    {edits}\n")
    }

    #[test]
    fn a_spec_is_read_whole() {
        let text = r#"
cdiVersion: "0.8.0"
kind: "vendor1.com/device"
annotations:
  a.b/c: "d"
containerEdits:
  env: [ALL=1]
devices:
- name: "0"
  annotations: {x: y}
  containerEdits:
    env:
    - FOO=injected
    deviceNodes:
    - path: /dev/foo
      hostPath: /dev/null
      type: c
      major: 1
      minor: 3
      fileMode: 0666
      permissions: rw
      uid: 1
      gid: 2
    mounts:
    - hostPath: /opt
      containerPath: /mnt
      options: [ro, rbind]
    hooks:
    - hookName: createContainer
      path: /bin/hook
      args: [hook, one]
      env: [A=b]
      timeout: 3
    additionalGids: [5]
    netDevices:
    - hostInterfaceName: eth1
      name: net1
    intelRdt: {closID: x}
"#;
        let spec = Spec::parse(text).unwrap();
        assert_eq!(
            (spec.kind.as_str(), spec.container_edits.env.as_slice()),
            ("vendor1.com/device", ["ALL=1".to_owned()].as_slice())
        );
        let edits = &spec.devices[0].container_edits;
        let node = &edits.device_nodes[0];
        assert_eq!((node.file_mode, node.major, node.minor), (Some(0o666), 1, 3));
        assert_eq!((edits.mounts[0].options.len(), edits.additional_gids.as_slice()), (2, [5].as_slice()));
        assert_eq!(edits.hooks[0].hook_name, "createContainer");
        assert!(edits.intel_rdt.is_some() && edits.net_devices.len() == 1);
        let json = r#"{"cdiVersion":"0.3.0","kind":"v.com/d","devices":[{"name":"a","containerEdits":{"env":["A=1"]}}]}"#;
        assert_eq!(Spec::parse(json).unwrap().devices[0].container_edits.env, ["A=1"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let base = with("env: [A=1]");
        for (text, part) in [
            (base.replace("0.6.0", "9.0.0"), "version"),
            (base.replace("v.com/d", "v.com"), "VENDOR/CLASS"),
            (base.replace("v.com/d", "9v/d"), "VENDOR/CLASS"),
            (base.replace("name: a", "name: a b"), "no name"),
            (base.replace("devices:", "devises:"), "devises"),
            (with("{}"), "no containerEdits"),
            (with("env: [A]"), "no environment variable"),
            (with("deviceNodes: [{path: \"\"}]"), "no path"),
            (with("deviceNodes: [{path: /dev/x, type: d}]"), "type"),
            (with("deviceNodes: [{path: /dev/x, major: -1}]"), "number"),
            (with("deviceNodes: [{path: /dev/x, permissions: rwx}]"), "permissions"),
            (with("hooks: [{hookName: atStart, path: /x}]"), "no hook"),
            (with("mounts: [{hostPath: /x}]"), "no containerPath"),
            (with("unknown: 1"), "unknown"),
            ("cdiVersion: 0.6.0\nkind: v.com/d\ndevices: []\n".to_owned(), "no devices"),
            ("- a".to_owned(), ""),
        ] {
            let error = Spec::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}\n{error}");
        }
    }
}
