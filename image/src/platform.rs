//! Platforms: `os/architecture[/variant]`, normalised and matched as containerd does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and CPU, with the names of image-spec, `config.md` (Go's `GOOS` and `GOARCH`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture: `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// Operating system: `linux`, ...
    #[serde(default)]
    pub os: String,
    /// Version of the operating system; only Windows images have it.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system; only Windows images have them.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// CPU variant: `v7`, `v8`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform of these parts, normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normalise(architecture, variant.unwrap_or(""));
        Self {
            os: os.to_ascii_lowercase(),
            architecture,
            os_version: None,
            os_features: Vec::new(),
            variant: (!variant.is_empty()).then_some(variant),
        }
    }

    /// The platform this binary was compiled for, which is the one it runs on.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// How well an image for `self` serves a request for `wanted`: `None` if not at all, 0 if it is the same, and the
    /// larger the older the CPU variant (an `arm/v6` image runs on `arm/v7`, `arm/v7` is better).
    pub fn serves(&self, wanted: &Self) -> Option<u32> {
        let (arch, variant) = normalise(&self.architecture, self.variant.as_deref().unwrap_or(""));
        let (want_arch, want_variant) =
            normalise(&wanted.architecture, wanted.variant.as_deref().unwrap_or(""));
        if self.os != wanted.os {
            return None;
        }
        if arch == want_arch && variant == want_variant {
            return Some(0);
        }
        let number = |arch: &str, variant: &str| -> Option<u32> {
            match (arch, variant.strip_prefix('v')) {
                ("amd64", None) if variant.is_empty() => Some(1),
                ("arm64", None) if variant.is_empty() => Some(8),
                (_, Some(n)) => n.parse().ok(),
                _ => None,
            }
        };
        let (have, want) = (number(&arch, &variant)?, number(&want_arch, &want_variant)?);
        match (arch.as_str(), want_arch.as_str()) {
            (a, b) if a == b && have < want => Some(want - have),
            // A 64-bit ARM runs 32-bit images, but only if there is nothing better.
            ("arm", "arm64") => Some(100 + 8u32.saturating_sub(have)),
            _ => None,
        }
    }
}

/// Maps the many names of an architecture to Go's; the variant that a name implies is left out.
fn normalise(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        ("powerpc64le" | "powerpc64el", variant) => ("ppc64le", variant),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {0:?}: expected os/architecture[/variant], for example linux/arm64")]
pub struct PlatformError(pub String);

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses `os/arch[/variant]`, `os`, `arch`, or `local`; what is not said is taken from this machine.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let host = Self::host();
        let bad = || PlatformError(text.to_owned());
        let valid = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        if text == "local" {
            return Ok(host);
        }
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| valid(part)) {
            return Err(bad());
        }
        match parts[..] {
            [os] if matches!(os, "linux" | "windows" | "darwin" | "freebsd") => {
                Ok(Self::new(os, &host.architecture, host.variant.as_deref()))
            }
            [one] => {
                let platform = Self::new("linux", one, None);
                const KNOWN: [&str; 12] = [
                    "386", "amd64", "arm", "arm64", "ppc64le", "s390x", "riscv64", "mips64le", "mips64",
                    "ppc64", "loong64", "wasm",
                ];
                if KNOWN.contains(&platform.architecture.as_str()) { Ok(platform) } else { Err(bad()) }
            }
            [os, arch] => Ok(Self::new(os, arch, None)),
            [os, arch, variant] => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (text, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("arm64", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("Linux/AMD64", "linux/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected);
        }
        for bad in ["", "linux/", "linux/amd64/v1/x", "what?", "linux//v7"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_variant_is_the_best() {
        let p = |text: &str| text.parse::<Platform>().unwrap();
        assert_eq!(p("linux/amd64").serves(&p("linux/amd64")), Some(0));
        assert_eq!(p("linux/arm/v6").serves(&p("linux/arm/v7")), Some(1));
        assert_eq!(p("linux/arm/v7").serves(&p("linux/arm/v6")), None);
        assert!(p("linux/arm/v7").serves(&p("linux/arm64")).unwrap() > 10);
        assert_eq!(p("linux/arm64").serves(&p("linux/amd64")), None);
        assert_eq!(p("linux/amd64").serves(&p("linux/amd64/v3")), Some(2));
    }
}
