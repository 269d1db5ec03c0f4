//! What the environment says: where state and configuration are. Read here once, and nowhere else.

use std::path::{Path, PathBuf};

/// Places that commands need.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The state directory.
    pub(crate) root: PathBuf,
    /// `config.json` of Docker: credentials and proxies.
    pub(crate) docker_config: PathBuf,
    /// Further credential files, read only.
    pub(crate) other_auth_files: Vec<PathBuf>,
    /// Directories with certificates, one a registry.
    pub(crate) certs_dirs: Vec<PathBuf>,
    /// `rbuild.toml`, the user's before the system's.
    pub(crate) config_files: Vec<PathBuf>,
    /// The configuration file was given: there is no other, and it has to be there.
    pub(crate) config_is_given: bool,
    /// `rbuild.toml`, `buildkitd.toml` and `daemon.json`: what they say of registries.
    pub(crate) daemon_files: Vec<PathBuf>,
}

impl Places {
    /// `root` and `config` are what was given on the command line. Call it before a user namespace is entered: `uid` is
    /// the user's.
    pub(crate) fn find(
        root: Option<PathBuf>,
        config: Option<&Path>,
        uid: u32,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = PathBuf::from(set("HOME").unwrap_or_else(|| "/".to_owned()));
        let root = root.unwrap_or_else(|| match (uid, set("XDG_DATA_HOME")) {
            (0, _) => PathBuf::from("/var/lib/rbuild"),
            (_, Some(data)) => PathBuf::from(data).join("rbuild"),
            (_, None) => home.join(".local/share/rbuild"),
        });
        let docker = set("DOCKER_CONFIG").map_or_else(|| home.join(".docker"), PathBuf::from);
        let runtime = set("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("containers/auth.json"));
        let registry_auth = set("REGISTRY_AUTH_FILE").map(PathBuf::from);
        // The user's own configuration goes before the system's.
        let user = set("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        let config_files: Vec<PathBuf> = match config {
            Some(path) => vec![path.to_owned()],
            None => vec![user.join("rbuild/rbuild.toml"), "/etc/rbuild/rbuild.toml".into()],
        };
        let configs: Vec<PathBuf> = match uid {
            0 => vec!["/etc".into()],
            _ => vec![user, "/etc".into()],
        };
        let below = |names: [&str; 2]| -> Vec<PathBuf> {
            configs.iter().flat_map(|dir| names.map(|name| dir.join(name))).collect()
        };
        Self {
            root,
            docker_config: docker.join("config.json"),
            other_auth_files: registry_auth.into_iter().chain(runtime).collect(),
            certs_dirs: below(["docker/certs.d", "containers/certs.d"]),
            daemon_files: config_files
                .iter()
                .cloned()
                .chain(below(["buildkit/buildkitd.toml", "docker/daemon.json"]))
                .collect(),
            config_files,
            config_is_given: config.is_some(),
        }
    }
}

/// The proxies of this process, for the programs it starts.
pub(crate) fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    let names = names.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_uppercase()]);
    names.filter_map(|name| variable(&name).map(|value| (name, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_others_keep_their_state_in_the_usual_places() {
        let find = |uid, vars: &[(&str, &str)]| {
            let vars: std::collections::HashMap<String, String> =
                vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Places::find(None, None, uid, |name| vars.get(name).cloned())
        };
        assert_eq!(find(0, &[("HOME", "/root")]).root, PathBuf::from("/var/lib/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h")]).root, PathBuf::from("/h/.local/share/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]).root, PathBuf::from("/d/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h")]).docker_config, PathBuf::from("/h/.docker/config.json"));
        assert_eq!(find(7, &[("DOCKER_CONFIG", "/c")]).docker_config, PathBuf::from("/c/config.json"));
        assert_eq!(find(7, &[("HOME", "/h")]).certs_dirs[0], PathBuf::from("/h/.config/docker/certs.d"));
        assert_eq!(find(0, &[]).certs_dirs[0], PathBuf::from("/etc/docker/certs.d"));
    }
}
