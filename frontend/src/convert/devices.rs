//! Which devices of the host a RUN gets: `--device`, what the host has, and what `--allow` grants.

use crate::ast::{Device, Run};
use crate::diagnostic::Diagnostic;
use crate::request::{Devices, HostDevice};
use crate::suggest;
use crate::value::fields;

use super::stage::StageBuilder;

/// `--allow device[=NAME[,alias=OTHER]]`, all of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Grants {
    all: bool,
    names: Vec<String>,
    /// What the Dockerfile says, and the device that it gets.
    aliases: Vec<(String, String)>,
}

impl Grants {
    /// Reads what was given with `--allow`; what is not about devices is left out.
    pub(super) fn parse(allow: &[String]) -> Result<Self, String> {
        let mut grants = Self::default();
        for text in allow {
            let (entitlement, device) = text.split_once('=').unwrap_or((text, ""));
            if entitlement != "device" {
                continue;
            }
            if device.is_empty() {
                grants.all = true;
                continue;
            }
            let invalid = |reason: &str| format!("invalid --allow {text:?}: {reason}");
            let mut parts = fields(device).map_err(invalid)?.into_iter();
            let name = parts.next().unwrap_or_default();
            let mut alias = None;
            for part in parts {
                match part.split_once('=') {
                    Some(("alias", value)) => alias = Some(value.to_owned()),
                    _ => return Err(invalid(&format!("{part:?} is not alias=NAME"))),
                }
            }
            match alias.filter(|alias| !alias.is_empty()) {
                Some(alias) => grants.aliases.push((alias, name)),
                None => grants.names.push(name),
            }
        }
        Ok(grants)
    }

    fn alias(&self, name: &str) -> Option<&str> {
        self.aliases.iter().rev().find(|(alias, _)| alias == name).map(|(_, device)| device.as_str())
    }
}

impl StageBuilder<'_, '_> {
    /// The full names of the devices that a RUN gets, each once.
    pub(super) fn devices(&self, run: &Run) -> Result<Vec<String>, Diagnostic> {
        let (Some(devices), Some(first)) = (&self.shared.request.devices, run.devices.first()) else {
            return Ok(Vec::new());
        };
        let error = |message: String| Diagnostic::error("device", first.span, message);
        let grants = Grants::parse(&self.shared.request.allow).map_err(error)?;
        let mut given: Vec<String> = Vec::new();
        for device in &run.devices {
            for name in granted(device, devices, &grants)? {
                if !given.contains(&name) {
                    given.push(name);
                }
            }
        }
        Ok(given)
    }
}

/// The host's devices that `device` means, if the build may have them.
fn granted(device: &Device, devices: &Devices, grants: &Grants) -> Result<Vec<String>, Diagnostic> {
    let required = |name| find(name, devices).map_err(|error| error.diagnostic(device, name, devices));
    let found = match (grants.all, grants.alias(&device.name)) {
        // An alias is a grant.
        (_, Some(name)) => return Ok(owned(required(name)?)),
        (all, None) => match find(&device.name, devices) {
            Err(NotFound::Unknown) if !device.required => return Ok(Vec::new()),
            Err(error) => return Err(error.diagnostic(device, &device.name, devices)),
            Ok(found) if all => return Ok(owned(found)),
            Ok(found) => found,
        },
    };
    let mut allowed: Vec<&HostDevice> = Vec::new();
    for name in &grants.names {
        allowed.extend(required(name)?);
    }
    let forbidden: Vec<&str> = found
        .iter()
        .filter(|found| !found.auto_allow && !allowed.contains(found))
        .map(|found| found.name.as_str())
        .collect();
    match forbidden.as_slice() {
        [] => Ok(owned(found)),
        [one] => Err(forbid(device, &format!("device {one} is"), one)),
        [one, ..] => Err(forbid(device, &format!("devices {} are", forbidden.join(", ")), one)),
    }
}

fn owned(devices: Vec<&HostDevice>) -> Vec<String> {
    devices.into_iter().map(|device| device.name.clone()).collect()
}

fn forbid(device: &Device, are: &str, one: &str) -> Diagnostic {
    Diagnostic::error("not-allowed", device.span, format!("{are} requested by the build but not allowed"))
        .with_help(format!("allow it with --allow device={one}, or all devices with --allow device"))
}

/// Why a name is no device.
#[derive(Debug, PartialEq, Eq)]
enum NotFound {
    /// It cannot be one.
    Invalid(&'static str),
    /// This host has none.
    Unknown,
}

impl NotFound {
    fn diagnostic(&self, device: &Device, name: &str, devices: &Devices) -> Diagnostic {
        let error = |message| Diagnostic::error("device", device.span, message);
        match self {
            Self::Invalid(reason) => error(format!("invalid device {name:?}: {reason}"))
                .with_help("write --device=VENDOR/CLASS or --device=VENDOR/CLASS=NAME"),
            Self::Unknown => {
                let error = error(format!("required device {name:?} is not registered"));
                let known = || devices.list.iter().map(|device| device.name.as_str());
                if let Some(near) = suggest::nearest(name, known()) {
                    return error.with_help(format!("did you mean {near}?"));
                }
                let problems = devices.problems.iter().map(|problem| format!("; {problem}"));
                error.with_help(format!(
                    "devices are what the CDI specs in {} describe{}{}",
                    devices.directories.join(", "),
                    if devices.list.is_empty() { "; there is none" } else { "" },
                    problems.collect::<String>(),
                ))
            }
        }
    }
}

/// The devices that a name means: of `vendor/class` the first, of `vendor/class=*` all, else the one of that name, and if
/// there is none, those of a class of that name.
fn find<'a>(name: &str, devices: &'a Devices) -> Result<Vec<&'a HostDevice>, NotFound> {
    let (kind, device) = name.split_once('=').unwrap_or((name, ""));
    let (vendor, class) = kind.split_once('/').unwrap_or(("", kind));
    if vendor.is_empty() || class.is_empty() {
        return Err(NotFound::Invalid("it lacks a vendor or a class"));
    }
    if !is_label(vendor) || !is_label(class) {
        return Err(NotFound::Invalid(
            "vendor and class are letters, digits, '-', '_' and '.', from a letter to a letter or digit",
        ));
    }
    let of_kind = || {
        let of_kind = |other: &&HostDevice| other.name.split_once('=').is_some_and(|(of, _)| of == kind);
        devices.list.iter().filter(of_kind)
    };
    let found: Vec<&HostDevice> = match device {
        "" => of_kind().take(1).collect(),
        "*" => of_kind().collect(),
        device => match of_kind().find(|other| other.name == name) {
            Some(found) => vec![found],
            None => of_kind().filter(|other| other.class.as_deref() == Some(device)).collect(),
        },
    };
    if found.is_empty() { Err(NotFound::Unknown) } else { Ok(found) }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Devices {
        let device = |name: &str, class: Option<&str>, auto_allow| HostDevice {
            name: name.to_owned(),
            class: class.map(str::to_owned),
            auto_allow,
        };
        Devices {
            directories: vec!["/etc/cdi".to_owned()],
            list: vec![
                device("v.com/gpu=0", Some("fast"), false),
                device("v.com/gpu=1", Some("fast"), false),
                device("v.com/gpu=2", Some("slow"), true),
                device("w.com/gpu=0", None, false),
            ],
            problems: vec!["could not read /etc/cdi/x.yaml: it is no YAML".to_owned()],
        }
    }

    fn given(name: &str, required: bool, allow: &[&str]) -> Result<String, Diagnostic> {
        let allow: Vec<String> = allow.iter().map(|&text| text.to_owned()).collect();
        let device = Device { name: name.to_owned(), required, span: Default::default() };
        granted(&device, &host(), &Grants::parse(&allow).unwrap()).map(|names| names.join(" "))
    }

    #[test]
    fn names_classes_and_wildcards_are_found() {
        let all = ["device"];
        for (name, found) in [
            ("v.com/gpu=1", "v.com/gpu=1"),
            ("v.com/gpu", "v.com/gpu=0"),
            ("v.com/gpu=*", "v.com/gpu=0 v.com/gpu=1 v.com/gpu=2"),
            ("v.com/gpu=fast", "v.com/gpu=0 v.com/gpu=1"),
            // It may be absent.
            ("v.com/gpu=7", ""),
            ("v.com/gp", ""),
        ] {
            assert_eq!(given(name, false, &all).unwrap(), found, "{name}");
        }
        for (name, message) in [
            ("v.com/gpu=7", "required device \"v.com/gpu=7\" is not registered"),
            ("gpu", "invalid device \"gpu\": it lacks a vendor or a class"),
            ("", "invalid device \"\": it lacks a vendor or a class"),
        ] {
            assert_eq!(given(name, true, &all).unwrap_err().message, message, "{name}");
        }
        assert!(given("v.com/g-", false, &all).unwrap_err().message.starts_with("invalid device"));
        let help = |name| given(name, true, &all).unwrap_err().help.unwrap();
        assert_eq!(help("v.com/gqu=0"), "did you mean v.com/gpu=0?");
        assert_eq!(
            help("other.org/thing"),
            "devices are what the CDI specs in /etc/cdi describe; could not read /etc/cdi/x.yaml: it is no YAML"
        );
    }

    #[test]
    fn devices_need_permission() {
        for (name, allow, expected) in [
            ("v.com/gpu=0", &["device"][..], Ok("v.com/gpu=0")),
            ("v.com/gpu=0", &["device=v.com/gpu=0"], Ok("v.com/gpu=0")),
            ("v.com/gpu=0", &["device=v.com/gpu=fast", "network.host"], Ok("v.com/gpu=0")),
            // Its spec allows it.
            ("v.com/gpu=2", &[], Ok("v.com/gpu=2")),
            // Nothing is had, so nothing must be allowed.
            ("v.com/gpu=9", &[], Ok("")),
            ("mine", &["device=v.com/gpu=1,alias=mine"], Ok("v.com/gpu=1")),
            ("v.com/gpu=0", &[], Err("device v.com/gpu=0 is requested by the build but not allowed")),
            (
                "v.com/gpu=0",
                &["network.host"],
                Err("device v.com/gpu=0 is requested by the build but not allowed"),
            ),
            (
                "v.com/gpu=*",
                &["device=w.com/gpu=0"],
                Err("devices v.com/gpu=0, v.com/gpu=1 are requested by the build but not allowed"),
            ),
            (
                "v.com/gpu=0",
                &["device=v.com/gpu=7"],
                Err("required device \"v.com/gpu=7\" is not registered"),
            ),
        ] {
            let given = given(name, false, allow).map_err(|error| error.message);
            assert_eq!(given.as_deref().map_err(String::as_str), expected, "{name} {allow:?}");
        }
        for wrong in ["device=a/b=c,x", "device=a/b=c,x=y", "device=\"a"] {
            assert!(Grants::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
