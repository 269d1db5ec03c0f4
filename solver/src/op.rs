//! Ops: the nodes of the build graph, as data. Names and meaning are those of BuildKit's LLB
//! (`solver/pb/ops.proto`), so that a definition can be converted to and from LLB.
//!
//! Two rules keep the cache right. What an op *does* is in here and hashed into its key ([`Op::digest`]); what must
//! not be in the key (secret values, proxies, addresses of extra hosts) is in [`Unkeyed`]. Files that an op *reads* are
//! in the definition's [`crate::Input`]s.

use std::collections::BTreeMap;

use image::{ContentDigest, Digest, Platform, Reference};
use serde::{Deserialize, Serialize};

/// Index into the vertex's list of inputs.
pub type InputIndex = usize;

/// What a vertex does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Brings files in from outside.
    Source(Source),
    /// Runs a process.
    Exec(Exec),
    /// Changes files without running anything.
    File(File),
    /// Lays the inputs over each other, first at the bottom. Makes no layer of its own. Without inputs it is an empty
    /// tree: the root of a RUN in a stage from `scratch`, or what such a stage gives to `COPY --from`.
    Merge,
    /// The layers of input 1 that are not in input 0. Makes no layer of its own.
    Diff,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// An image: `docker-image://`.
    Image {
        /// Its name; pinned by digest once resolved.
        reference: Reference,
        /// Which manifest of an index.
        platform: Platform,
    },
    /// An image in an OCI layout directory on this host: `oci-layout://`.
    OciLayout {
        /// The directory.
        path: String,
        /// Tag in its `index.json`; `None` for the only one.
        tag: Option<String>,
        /// Or by digest.
        digest: Option<Digest>,
        /// Which manifest of an index.
        platform: Platform,
    },
    /// A local directory: `local://`. It has no result digest: it is always read through selectors.
    Local {
        /// `context`, or the name of a named context. What directory that is the builder knows.
        name: String,
        /// Patterns of `.dockerignore`, in order, `!` and all.
        ignore: Vec<String>,
    },
    /// A git repository: `git://`.
    Git {
        /// Remote, without fragment and query.
        remote: String,
        /// Branch, tag, full ref or commit.
        reference: Option<String>,
        /// Directory in the repository that becomes the root.
        subdir: Option<String>,
        /// Keep `.git`.
        keep_git_dir: bool,
        /// Commit (or prefix of one) that it must be.
        checksum: Option<String>,
        /// Fetch submodules.
        submodules: bool,
    },
    /// A file from the web: `http://`, `https://`.
    Http {
        /// The URL.
        url: String,
        /// Digest that its bytes must have.
        checksum: Option<Digest>,
        /// Name of the file in the result.
        filename: String,
        /// Permission bits of the file.
        mode: Option<u16>,
        /// Owner and group of the file.
        owner: Option<(u32, u32)>,
    },
}

/// A process in a sandbox. Input 0 is its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; the program is looked up in `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// Mounts besides the root, in order.
    pub mounts: Vec<Mount>,
    /// Network.
    pub network: Network,
    /// Sandbox.
    pub security: Security,
    /// CDI devices of the host, by full name: `vendor/class=name`.
    pub devices: Vec<String>,
    /// Host name; `None` for the default `buildkitsandbox`.
    pub hostname: Option<String>,
    /// Names of extra hosts. Their addresses are in [`Unkeyed::hosts`].
    pub extra_hosts: Vec<String>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// `name=soft:hard`.
    pub ulimits: Vec<String>,
    /// Parent cgroup.
    pub cgroup_parent: Option<String>,
    /// Inline files made for this run only (heredoc scripts): absolute path to content. Not left in the layer.
    pub scripts: BTreeMap<String, String>,
    /// The platform whose binaries run.
    pub platform: Platform,
    /// Not part of the key.
    #[serde(skip)]
    pub unkeyed: Unkeyed,
}

impl Exec {
    /// Runs `args` as root in the sandbox, with nothing else said.
    pub fn new(args: Vec<String>, platform: Platform) -> Self {
        Self {
            args,
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            mounts: Vec::new(),
            network: Network::Default,
            security: Security::Sandbox,
            devices: Vec::new(),
            hostname: None,
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            scripts: BTreeMap::new(),
            platform,
            unkeyed: Unkeyed::default(),
        }
    }
}

/// What an [`Exec`] needs and its key must not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unkeyed {
    /// `HTTP_PROXY=..` and the like.
    pub proxy_env: Vec<String>,
    /// Extra hosts: name and address.
    pub hosts: Vec<(String, String)>,
}

/// `--network` of a RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// What the builder does by default: the host's.
    #[default]
    Default,
    /// Nothing but loopback.
    None,
    /// The host's, explicitly.
    Host,
}

/// `--security` of a RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Docker's defaults.
    #[default]
    Sandbox,
    /// Everything allowed; needs `--allow security.insecure`.
    Insecure,
}

/// `--mount` of a RUN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where in the sandbox: absolute, clean. Empty only for a secret that is an environment variable alone.
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// The kinds of mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// Files of another input.
    Bind {
        /// Which input; `None` for an empty directory.
        input: Option<InputIndex>,
        /// Path in it, absolute, clean.
        source: String,
        /// Writes are possible, and discarded.
        writable: bool,
    },
    /// A directory that outlives the build.
    Cache {
        /// Its name, already with its namespace.
        id: String,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// What it holds at first.
        input: Option<InputIndex>,
        /// Path in `input`.
        source: String,
        /// Mode of the directory when it is made.
        mode: u16,
        /// Owner of the directory when it is made.
        uid: u32,
        /// Group of the directory when it is made.
        gid: u32,
        /// Mounted read-only.
        readonly: bool,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// Largest size in bytes.
        size: Option<u64>,
        /// Nothing can be written.
        readonly: bool,
    },
    /// A secret as a file, a variable, or both.
    Secret {
        /// Its name.
        id: String,
        /// Variable to set.
        env: Option<String>,
        /// Fail if it is not given.
        required: bool,
        /// Mode of the file.
        mode: u16,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// An SSH agent socket.
    Ssh {
        /// Its name.
        id: String,
        /// Fail if it is not given.
        required: bool,
        /// Mode of the socket.
        mode: u16,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

/// `sharing` of a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Any number of steps at once.
    #[default]
    Shared,
    /// Each step that runs at the same time has its own.
    Private,
    /// One step at a time; others wait.
    Locked,
}

/// File actions, applied in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// What is changed; `None` starts from nothing.
    pub base: Option<InputIndex>,
    /// The changes.
    pub actions: Vec<FileAction>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAction {
    /// Copies from another input.
    Copy(Copy),
    /// Writes a file.
    Mkfile {
        /// Absolute path.
        path: String,
        /// Its content.
        data: Vec<u8>,
        /// Permission bits.
        mode: u16,
        /// Permission bits of the directories that are made on the way to it.
        parents_mode: u16,
        /// Owner; root if none.
        owner: Option<Owner>,
        /// Path is a destination of COPY: if it ends in `/` or is a directory, the file goes into it under this name.
        name: Option<String>,
    },
    /// Makes a directory with its parents. One that is there already is left as it is.
    Mkdir {
        /// Absolute path.
        path: String,
        /// Permission bits.
        mode: u16,
        /// Owner of what is made; root if none.
        owner: Option<Owner>,
    },
    /// Removes a path and all below it.
    Rm {
        /// Absolute path.
        path: String,
        /// It need not exist.
        allow_missing: bool,
    },
}

/// COPY or ADD of files that an input has. The rules are those of the Dockerfile reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Where from.
    pub input: InputIndex,
    /// Source path, absolute in the input, clean, wildcards allowed if `wildcard`.
    pub source: String,
    /// Absolute destination; a trailing `/` means a directory.
    pub destination: String,
    /// `source` is a pattern of Go's `filepath.Match`.
    pub wildcard: bool,
    /// A `source` that matches nothing is fine.
    pub allow_empty: bool,
    /// Follow a symbolic link that `source` itself is.
    pub follow_symlinks: bool,
    /// Copy what is in a directory rather than the directory.
    pub contents_only: bool,
    /// Unpack the file if it is a tar archive, plain or compressed.
    pub unpack: Unpack,
    /// `--parents`: a path or pattern (`**` allowed) below `source`, with no slash in front; its directories are kept below
    /// the destination. `source` is what stands before `/./`, or `/`, and is dropped.
    pub parents: Option<String>,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// `--chown`; `None` keeps 0:0 for contexts and the source's owner for `--from`.
    pub owner: Option<Owner>,
    /// `--chmod`: octal or symbolic, as written and expanded.
    pub mode: Option<String>,
    /// Source paths are required to exist in the context; named in the message if not.
    pub required: bool,
    /// Destination symlinks are followed in the base (never with `--link`).
    pub follow_destination: bool,
}

impl Copy {
    /// All that the directory `source` of `input` holds, to the root, with its owners, modes and times.
    pub fn all(input: InputIndex, source: &str) -> Self {
        Self {
            input,
            source: source.to_owned(),
            destination: "/".to_owned(),
            wildcard: false,
            allow_empty: true,
            follow_symlinks: true,
            contents_only: true,
            unpack: Unpack::Never,
            parents: None,
            exclude: Vec::new(),
            owner: None,
            mode: None,
            required: false,
            follow_destination: false,
        }
    }
}

/// What ADD does with archives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unpack {
    /// COPY: never.
    #[default]
    Never,
    /// ADD: if it is an archive, else it is copied.
    IfArchive,
}

/// `user[:group]` of `--chown`: names are looked up in the base's `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name or number.
    pub user: String,
    /// Name or number; `None` for the user's number (numeric user) or primary group.
    pub group: Option<String>,
}

impl Op {
    /// The digest of everything in the op that its key must know.
    pub fn digest(&self) -> ContentDigest {
        // JSON of plain data with ordered fields and maps: the same op gives the same bytes. `serde(skip)` keeps
        // `Unkeyed` out.
        let bytes = serde_json::to_vec(self).expect("ops have string keys only and no failing serialisers");
        ContentDigest::of(&bytes)
    }
}

/// A URL as it may be shown: without the password in it.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        // A name alone is no secret: `ssh://git@host/`.
        Some((user, host)) if user.contains(':') || scheme.starts_with("http") => {
            format!("{scheme}://xxxxx:xxxxx@{host}{}", &rest[end..])
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_tell_no_password() {
        for (url, shown) in [
            ("https://user:token@h/r.git#main", "https://xxxxx:xxxxx@h/r.git#main"),
            ("https://token@h/r.git", "https://xxxxx:xxxxx@h/r.git"),
            ("ssh://git@h/r.git", "ssh://git@h/r.git"),
            ("https://h/a@b", "https://h/a@b"),
            ("git@h:r.git", "git@h:r.git"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
