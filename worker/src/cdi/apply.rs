//! What devices do to a plan.

use std::path::PathBuf;

use super::spec::{DeviceNode, Edits, Mount as MountEdit};
use super::{Entry, Registry};
use crate::exec::{DeviceNumber, Mount, Plan, Source};

/// Why a step cannot have a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CdiError {
    /// It was there when the build began.
    #[error("could not find the device {0:?}: its CDI spec is gone")]
    Gone(String),
    /// Its spec asks for what rbuild does not do.
    #[error("could not give the step the device {device:?}: its CDI spec asks for {what}")]
    Unsupported {
        /// The device.
        device: String,
        /// What its spec asks for.
        what: String,
    },
}

impl Registry {
    /// Does what the specs of `devices` (full names) say; what they share is done once.
    pub fn apply(&self, devices: &[String], plan: &mut Plan) -> Result<(), CdiError> {
        let mut done: Vec<*const super::Spec> = Vec::new();
        for name in devices {
            let entry: &Entry = self.devices.get(name).ok_or_else(|| CdiError::Gone(name.clone()))?;
            let spec = std::rc::Rc::as_ptr(&entry.spec);
            if !done.contains(&spec) {
                done.push(spec);
                apply(name, &entry.spec.container_edits, plan)?;
            }
            apply(name, &entry.device().container_edits, plan)?;
        }
        plan.sort_mounts();
        Ok(())
    }
}

fn apply(device: &str, edits: &Edits, plan: &mut Plan) -> Result<(), CdiError> {
    let unsupported = |what: String| CdiError::Unsupported { device: device.to_owned(), what };
    if let Some(hook) = edits.hooks.first() {
        return Err(unsupported(format!(
            "the {} hook {:?}, and rbuild runs no hooks",
            hook.hook_name, hook.path
        )));
    }
    if !edits.net_devices.is_empty() {
        return Err(unsupported("network interfaces of the host".to_owned()));
    }
    if edits.intel_rdt.is_some() {
        return Err(unsupported("resources of Intel RDT".to_owned()));
    }
    for pair in &edits.env {
        let name = &pair[..=pair.find('=').unwrap_or(pair.len() - 1)];
        plan.env.retain(|other| !other.starts_with(name));
        plan.env.push(pair.clone());
    }
    for node in &edits.device_nodes {
        let mount = device_node(node, plan).map_err(unsupported)?;
        add(mount, plan);
    }
    for edit in &edits.mounts {
        add(mount(edit).map_err(unsupported)?, plan);
    }
    for &gid in &edits.additional_gids {
        if gid != 0 && !plan.identity.groups.contains(&gid) {
            plan.identity.groups.push(gid);
        }
    }
    Ok(())
}

/// In place of what there is on that path.
fn add(mount: Mount, plan: &mut Plan) {
    plan.mounts.retain(|other| other.target != mount.target);
    plan.mounts.push(mount);
}

/// A node of the step's own, which belongs to its user unless the spec says otherwise.
fn device_node(node: &DeviceNode, plan: &Plan) -> Result<Mount, String> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    if node.kind == "p" {
        return Err(format!("the named pipe {host:?} as a device"));
    }
    let given = !node.kind.is_empty() && node.major > 0;
    let number = given.then(|| DeviceNumber {
        block: node.kind == "b",
        major: node.major as u32,
        minor: node.minor as u32,
    });
    let source = Source::Device {
        host: PathBuf::from(host),
        number,
        mode: node.file_mode.map_or(0o666, |mode| (mode & 0o7777) as u16),
        uid: node.uid.unwrap_or(plan.identity.uid),
        gid: node.gid.unwrap_or(plan.identity.gid),
    };
    Ok(Mount { target: node.path.clone(), source, readonly: false })
}

fn mount(edit: &MountEdit) -> Result<Mount, String> {
    let target = edit.container_path.clone();
    let readonly = edit.options.iter().any(|option| option == "ro");
    let source = match edit.kind.as_str() {
        "" | "bind" | "rbind" | "none" => Source::Host(PathBuf::from(&edit.host_path)),
        "tmpfs" => Source::Tmpfs { size: None },
        kind => return Err(format!("a mount of the type {kind:?} on {target:?}")),
    };
    Ok(Mount { target, source, readonly })
}
