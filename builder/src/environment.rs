//! What the environment says: where state and configuration are. Read here once, and nowhere else.

use std::path::PathBuf;

/// Places that commands need.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The state directory.
    pub(crate) root: PathBuf,
    /// `config.json` of Docker: credentials and proxies.
    pub(crate) docker_config: PathBuf,
    /// Further credential files, read only.
    pub(crate) other_auth_files: Vec<PathBuf>,
}

impl Places {
    /// `root` is what was given on the command line. Call it before a user namespace is entered: `uid` is the user's.
    pub(crate) fn find(root: Option<PathBuf>, uid: u32, variable: impl Fn(&str) -> Option<String>) -> Self {
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
        Self {
            root,
            docker_config: docker.join("config.json"),
            other_auth_files: registry_auth.into_iter().chain(runtime).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_others_keep_their_state_in_the_usual_places() {
        let find = |uid, vars: &[(&str, &str)]| {
            let vars: std::collections::HashMap<String, String> =
                vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Places::find(None, uid, |name| vars.get(name).cloned())
        };
        assert_eq!(find(0, &[("HOME", "/root")]).root, PathBuf::from("/var/lib/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h")]).root, PathBuf::from("/h/.local/share/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]).root, PathBuf::from("/d/rbuild"));
        assert_eq!(find(7, &[("HOME", "/h")]).docker_config, PathBuf::from("/h/.docker/config.json"));
        assert_eq!(find(7, &[("DOCKER_CONFIG", "/c")]).docker_config, PathBuf::from("/c/config.json"));
    }
}
