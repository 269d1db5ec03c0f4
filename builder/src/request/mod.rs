//! What a build command means: flags and environment, parsed and checked. Everything the environment decides is read
//! here or in `main`.

mod call;
mod failed;
mod output;
mod secret;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Platform, Reference};
use solver::op::Network;
use worker::isolate::group::Resources;

use crate::attest::{self, Wanted};
use crate::cache::options::{CacheFrom, CacheTo};
use crate::cli::BuildArgs;
use crate::docker::Endpoint;
use crate::failure::Failure;

pub(crate) use call::Call;
pub(crate) use failed::{Look, OnError, When};
pub(crate) use output::{Output, OutputKind, check_deletes};
pub(crate) use secret::{SecretSource, secrets};
pub(crate) use text::{csv, parse_bool, parse_size};
use text::{pairs_from_environment, parse_duration, split_pair};

/// A build, as asked for.
#[derive(Debug)]
pub(crate) struct BuildRequest {
    /// What the caller has to know that is no error.
    pub(crate) warnings: Vec<String>,
    pub(crate) context: ContextSource,
    pub(crate) dockerfile: DockerfileSource,
    pub(crate) tags: Vec<Reference>,
    pub(crate) target: Option<String>,
    pub(crate) build_args: Vec<(String, String)>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) build_contexts: Vec<(String, String)>,
    pub(crate) platforms: Vec<Platform>,
    pub(crate) outputs: Vec<Output>,
    /// Where images are loaded that an output says to; found when there is one.
    pub(crate) docker: Option<Endpoint>,
    pub(crate) no_cache: bool,
    pub(crate) cache_from: Vec<CacheFrom>,
    pub(crate) cache_to: Vec<CacheTo>,
    /// Older records do not count.
    pub(crate) cache_ttl: Option<Duration>,
    /// How much may be kept after the build, bytes.
    pub(crate) store_max: Option<u64>,
    pub(crate) no_cache_filter: Vec<String>,
    pub(crate) pull: bool,
    pub(crate) secrets: BTreeMap<String, SecretSource>,
    pub(crate) ssh: BTreeMap<String, Vec<PathBuf>>,
    pub(crate) network: Network,
    pub(crate) extra_hosts: Vec<(String, String)>,
    pub(crate) allow: Vec<String>,
    pub(crate) shm_size: Option<u64>,
    pub(crate) ulimits: Vec<String>,
    pub(crate) cgroup_parent: Option<String>,
    /// `--resource`: limits of steps; `None` where they can have no control group of their own.
    pub(crate) resources: Option<Resources>,
    pub(crate) attestations: Wanted,
    pub(crate) call: Call,
    /// What to do when a step fails.
    pub(crate) on_error: OnError,
    /// `rbuild shell --before|--after`
    pub(crate) look: Option<Look>,
    /// Where timings go: a file, or standard error if empty.
    pub(crate) timings: Option<String>,
    pub(crate) explain: bool,
    /// `--debug`: warnings are shown with their lines.
    pub(crate) debug: bool,
    pub(crate) jobs: usize,
    pub(crate) progress: crate::progress::Mode,
    pub(crate) quiet: bool,
    pub(crate) iidfile: Option<PathBuf>,
    pub(crate) metadata_file: Option<PathBuf>,
    /// `BUILDX_METADATA_PROVENANCE`: how much of the provenance that has.
    pub(crate) metadata_provenance: Option<attest::Mode>,
    /// `BUILDX_METADATA_WARNINGS`: it has findings of the linter.
    pub(crate) metadata_warnings: bool,
    pub(crate) source_date_epoch: Option<i64>,
    pub(crate) proxy_env: Vec<(String, String)>,
}

/// Where the context comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContextSource {
    Directory(PathBuf),
    Stdin,
    /// git or http(s).
    Remote(String),
}

/// Where the Dockerfile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DockerfileSource {
    /// `Dockerfile` (or `dockerfile`) in the context.
    Default,
    /// A path given with `-f`.
    Path(PathBuf),
    Stdin,
    Remote(String),
}

/// The environment that requests read, so that tests can give their own.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl BuildRequest {
    /// Checks `args` and fills in what the environment says.
    pub(crate) fn new(args: BuildArgs, environment: Environment<'_>) -> Result<Self, Failure> {
        let dockerfile = match args.file.as_deref() {
            None | Some("") => DockerfileSource::Default,
            Some("-") => DockerfileSource::Stdin,
            Some(url) if is_remote(url) => DockerfileSource::Remote(url.to_owned()),
            Some(path) => DockerfileSource::Path(PathBuf::from(path)),
        };
        let context = match args.context.as_str() {
            "" => return Err(Failure::usage("the context is empty: give a directory, a URL or -")),
            "-" => ContextSource::Stdin,
            url if is_remote(url) || (is_git_shorthand(url) && !Path::new(url).is_dir()) => {
                ContextSource::Remote(url.to_owned())
            }
            path => ContextSource::Directory(PathBuf::from(path)),
        };
        if context == ContextSource::Stdin && dockerfile == DockerfileSource::Stdin {
            return Err(Failure::usage("standard input can be the context or the Dockerfile, not both"));
        }
        let tags = args
            .tags
            .iter()
            .map(|tag| {
                let reference: Reference =
                    tag.parse().map_err(|error| Failure::usage(format!("invalid tag {tag:?}: {error}")))?;
                if reference.digest.is_some() {
                    return Err(Failure::usage(format!("invalid tag {tag:?}: a tag cannot have a digest")));
                }
                Ok(reference.with_default_tag())
            })
            .collect::<Result<Vec<_>, _>>()?;
        if args.no_cache && !args.no_cache_filter.is_empty() {
            return Err(Failure::usage("--no-cache and --no-cache-filter cannot be used together"));
        }
        for (flag, pairs) in [("--build-arg", &args.build_args), ("--label", &args.labels)] {
            if let Some(text) = pairs.iter().find(|text| text.is_empty() || text.starts_with('=')) {
                return Err(Failure::usage(format!("invalid {flag} {text:?}: the name is empty")));
            }
        }
        let mut warnings = args.ignored.warnings();
        let build_args = pairs_from_environment(&args.build_args, environment);
        let cache_to = cache_to(&args, &build_args)?;
        // A build argument is the frontend's: it may also name what has the time.
        let source_date_epoch = environment("SOURCE_DATE_EPOCH")
            .filter(|text| {
                !text.is_empty() && !build_args.iter().any(|(name, _)| name == "SOURCE_DATE_EPOCH")
            })
            .map(|text| {
                text.parse::<i64>().map_err(|_| {
                    Failure::usage(format!("SOURCE_DATE_EPOCH is not a number of seconds: {text:?}"))
                })
            })
            .transpose()?;
        let outputs = output::outputs(&args, !tags.is_empty())?;
        let iidfile = args.iidfile.filter(|path| !path.as_os_str().is_empty());
        let files = |output: &Output| matches!(output.kind, OutputKind::Local | OutputKind::Tar);
        if iidfile.is_some() && outputs.iter().any(files) {
            return Err(Failure::usage(
                "--iidfile cannot be used with --output type=local or type=tar: files have no ID",
            ));
        }
        for text in &args.ulimits {
            worker::isolate::limits::parse(text)
                .map_err(|error| Failure::usage(format!("invalid --ulimit: {error}")))?;
        }
        let mut secrets = BTreeMap::new();
        for text in args.secrets.iter().filter(|text| !text.is_empty()) {
            let (id, source) = secret::secret(text, environment)?;
            if let SecretSource::Env(name) = &source
                && environment(name).is_none()
            {
                warnings.push(format!("--secret {id} is empty: the variable {name} is not set"));
            }
            secrets.insert(id, source);
        }
        Ok(Self {
            warnings,
            outputs,
            docker: None,
            context,
            dockerfile,
            tags,
            target: args.target.filter(|target| !target.is_empty()),
            build_args,
            labels: args.labels.iter().map(|text| split_pair(text)).collect(),
            build_contexts: args
                .build_contexts
                .iter()
                .map(|text| match text.split_once('=') {
                    Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
                    _ => {
                        Err(Failure::usage(format!("invalid --build-context {text:?}: expected name=value")))
                    }
                })
                .collect::<Result<_, _>>()?,
            platforms: args
                .platform
                .iter()
                .filter(|text| !text.is_empty())
                .map(|text| match text.as_str() {
                    "local" => Ok(Platform::host()),
                    text => text.parse().map_err(|error| Failure::usage(format!("{error}"))),
                })
                .collect::<Result<_, _>>()?,
            no_cache: args.no_cache,
            cache_from: args
                .cache_from
                .iter()
                .filter(|text| !text.is_empty())
                .map(|text| CacheFrom::parse(text))
                .collect::<Result<_, _>>()?,
            cache_to,
            store_max: given(&args.store_max).map(|text| parse_size("--store-max", text)).transpose()?,
            cache_ttl: given(&args.cache_ttl).map(|text| parse_duration("--cache-ttl", text)).transpose()?,
            no_cache_filter: args.no_cache_filter,
            pull: args.pull,
            secrets,
            ssh: args.ssh.iter().map(|text| secret::ssh(text, environment)).collect::<Result<_, _>>()?,
            network: match args.network.as_str() {
                "none" => Network::None,
                "host" => Network::Host,
                _ => Network::Default,
            },
            extra_hosts: extra_hosts(&args.add_hosts)?,
            allow: args.allow.iter().map(|text| allow(text)).collect::<Result<Vec<_>, _>>()?.concat(),
            shm_size: given(&args.shm_size)
                .map(|text| parse_size("--shm-size", text))
                .transpose()?
                .filter(|size| *size > 0),
            ulimits: args.ulimits,
            cgroup_parent: args.cgroup_parent.filter(|name| !name.is_empty()),
            resources: Some(resources(args.resources.iter().chain(&args.limits.resources()))?),
            attestations: Wanted::new(args.provenance.as_deref(), args.sbom.as_deref(), &args.attest)?,
            call: call::call(&args.call, args.check)?,
            on_error: OnError::of(&args.on_error),
            look: None,
            timings: args.timings,
            explain: args.explain,
            debug: args.debug,
            jobs: args.jobs.filter(|&jobs| jobs > 0).unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2)
            }),
            progress: args.progress.parse().map_err(Failure::usage)?,
            quiet: args.quiet,
            iidfile,
            metadata_provenance: match environment("BUILDX_METADATA_PROVENANCE").as_deref() {
                Some("max") => Some(attest::Mode::Max),
                Some("disabled" | "false" | "0" | "f" | "F" | "FALSE" | "False") => None,
                _ => Some(attest::Mode::Min),
            },
            metadata_warnings: environment("BUILDX_METADATA_WARNINGS")
                .is_some_and(|text| !text.is_empty() && parse_bool("", &text).unwrap_or(false)),
            metadata_file: args.metadata_file.filter(|path| !path.as_os_str().is_empty()),
            source_date_epoch,
            proxy_env: Vec::new(),
        })
    }
}

/// A flag's value; an empty one is what a script leaves of a variable that is not set.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|text| !text.is_empty())
}

/// `--allow`: several with commas between them. A device's name may be followed by a comma and options.
fn allow(text: &str) -> Result<Vec<String>, Failure> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let (one, rest) = match text.split_once(',') {
        Some((one, rest)) if !one.starts_with("device=") => (one, Some(rest)),
        _ => (text, None),
    };
    let known = ["network.host", "security.insecure", "device", output::LOCAL_DELETE];
    if !known.contains(&one) && !one.starts_with("device=") {
        let known = known.join(", ");
        return Err(Failure::usage(format!(
            "unknown --allow {one:?}: expected one of {known} or device=NAME"
        )));
    }
    let mut all = vec![one.to_owned()];
    if let Some(rest) = rest {
        all.extend(allow(rest)?);
    }
    Ok(all)
}

/// `--cache-to`, and the build argument that asks for an inline cache.
fn cache_to(args: &BuildArgs, build_args: &[(String, String)]) -> Result<Vec<CacheTo>, Failure> {
    let given = args.cache_to.iter().filter(|text| !text.is_empty());
    let mut caches = given.map(|text| CacheTo::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let asked = build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_INLINE_CACHE");
    if let Some((name, value)) = asked
        && parse_bool(name, value)?
    {
        caches.push(CacheTo::parse("type=inline")?);
    }
    Ok(caches)
}

impl BuildRequest {
    /// Whether the context or the Dockerfile is on another host.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.context, ContextSource::Remote(_))
            || matches!(self.dockerfile, DockerfileSource::Remote(_))
    }

    /// Whether caches of other builders are read or written.
    pub(crate) fn shares_caches(&self) -> bool {
        !self.cache_from.is_empty() || !self.cache_to.is_empty()
    }

    /// A build argument that is true or false; false if it is not given.
    pub(crate) fn flag_arg(&self, name: &str) -> Result<bool, Failure> {
        let given = self.build_args.iter().rev().find(|(known, _)| known == name);
        given.map_or(Ok(false), |(_, value)| parse_bool(name, value))
    }
}

fn resources<'a>(texts: impl Iterator<Item = &'a String>) -> Result<Resources, Failure> {
    let mut all = Resources::default();
    for text in texts.filter(|text| !text.is_empty()) {
        let invalid = |why: &str| Failure::usage(format!("invalid --resource {text:?}: {why}"));
        for field in csv(text).map_err(|error| invalid(&error))? {
            let (name, value) = field.split_once('=').ok_or_else(|| invalid("expected key=value"))?;
            set_resource(&mut all, name.trim(), value).map_err(|why| invalid(&why))?;
        }
    }
    Ok(all)
}

/// Sets one of `--resource`'s keys; 0 is no limit.
pub(crate) fn set_resource(resources: &mut Resources, name: &str, value: &str) -> Result<(), String> {
    let size = || parse_size(name, value).map_err(|failure| failure.message);
    let number = || value.parse::<i64>().map_err(|_| format!("{value:?} is no number"));
    let positive = || match number()? {
        number if number < 0 => Err(format!("{value:?} is below 0")),
        number => Ok(u64::try_from(number).ok().filter(|number| *number > 0)),
    };
    match name {
        "memory" => resources.memory = Some(size()?).filter(|size| *size > 0),
        "memory-swap" if value == "-1" => resources.memory_swap = Some(-1),
        "memory-swap" => {
            let size = i64::try_from(size()?).map_err(|_| format!("{value:?} is too much"))?;
            resources.memory_swap = Some(size).filter(|size| *size > 0);
        }
        "cpu-shares" => resources.cpu_shares = positive()?,
        "cpu-period" => resources.cpu_period = positive()?,
        "cpu-quota" => resources.cpu_quota = Some(number()?).filter(|quota| *quota != 0),
        "cpuset-cpus" => resources.cpuset_cpus = Some(value.to_owned()).filter(|list| !list.is_empty()),
        "cpuset-mems" => resources.cpuset_mems = Some(value.to_owned()).filter(|list| !list.is_empty()),
        _ => {
            return Err(
                "expected one of memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// `--add-host`: several with commas between them.
fn extra_hosts(texts: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut hosts = Vec::new();
    for text in texts {
        let fields =
            csv(text).map_err(|error| Failure::usage(format!("invalid --add-host {text:?}: {error}")))?;
        for field in fields.iter().filter(|field| !field.is_empty()) {
            hosts.push(extra_host(field)?);
        }
    }
    Ok(hosts)
}

fn extra_host(text: &str) -> Result<(String, String), Failure> {
    let pair = text.split_once('=').or_else(|| text.split_once(':'));
    match pair {
        Some((name, address)) if !name.is_empty() => {
            let bare = address.trim_start_matches('[').trim_end_matches(']');
            if address != "host-gateway" && bare.parse::<std::net::IpAddr>().is_err() {
                return Err(Failure::usage(format!(
                    "invalid --add-host {text:?}: {address:?} is no IP address"
                )));
            }
            let address = if address == "host-gateway" { "127.0.0.1" } else { bare };
            Ok((name.to_owned(), address.to_owned()))
        }
        _ => Err(Failure::usage(format!("invalid --add-host {text:?}: expected host:address"))),
    }
}

fn is_remote(text: &str) -> bool {
    ["http://", "https://", "git://", "ssh://"].iter().any(|scheme| text.starts_with(scheme))
        || (text.starts_with("git@") && text.contains(':'))
}

/// `github.com/user/repository` is a git context without a scheme.
fn is_git_shorthand(text: &str) -> bool {
    text.starts_with("github.com/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut BuildArgs)) -> Result<BuildRequest, Failure> {
        let mut args = BuildArgs {
            context: ".".to_owned(),
            call: "build".to_owned(),
            network: "default".to_owned(),
            ..BuildArgs::default()
        };
        change(&mut args);
        BuildRequest::new(args, &|name| (name == "FROM_ENV").then(|| "value".to_owned()))
    }

    #[test]
    fn outputs_are_what_buildx_takes() {
        let outputs = |text: &str| request(|args| args.outputs = vec![text.to_owned()]).map(|r| r.outputs);
        let one = |text: &str| outputs(text).unwrap().remove(0);
        assert_eq!(one("out").kind, OutputKind::Local);
        assert_eq!(one("-").kind, OutputKind::Tar);
        assert_eq!(one("type=tar,dest=-").dest, None);
        let oci = one("type=oci,dest=a.tar,\"name=x:1,y:2\",annotation.Key=v");
        assert_eq!(oci.dest, Some("a.tar".into()));
        assert_eq!(oci.options["name"], "x:1,y:2");
        assert_eq!(oci.options["annotation.Key"], "v");
        assert_eq!(one("type=docker").kind, OutputKind::Load);
        assert_eq!(one("type=docker,dest=-").kind, OutputKind::Docker);
        assert_eq!(one("type=registry,name=localhost:5000/x").options["push"], "true");
        for bad in ["type=what", "dest=x,foo=y", "type=local", "type=oci,x", "type=registry"] {
            assert!(outputs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn build_args_without_a_value_come_from_the_environment() {
        let request = request(|args| {
            args.build_args = vec!["A=1=2".into(), "FROM_ENV".into(), "UNSET".into()];
        });
        let expected = [("A".to_owned(), "1=2".to_owned()), ("FROM_ENV".to_owned(), "value".to_owned())];
        assert_eq!(request.unwrap().build_args, expected);
    }

    #[test]
    fn empty_values_are_as_good_as_none() {
        let empty = || vec![String::new()];
        let request = request(|args| {
            (args.file, args.target, args.cgroup_parent) =
                (Some(String::new()), Some(String::new()), Some(String::new()));
            (args.platform, args.outputs, args.secrets, args.allow) = (empty(), empty(), empty(), empty());
            (args.cache_from, args.cache_to, args.add_hosts) = (empty(), empty(), empty());
            (args.annotations, args.attest, args.provenance) = (empty(), empty(), Some(String::new()));
            (args.iidfile, args.metadata_file, args.shm_size) =
                (Some("".into()), Some("".into()), Some(String::new()));
            args.network = String::new();
        });
        let request = request.unwrap();
        assert_eq!(request.dockerfile, DockerfileSource::Default);
        assert!(
            request.iidfile.is_none() && request.metadata_file.is_none() && request.cgroup_parent.is_none()
        );
        assert_eq!(request.outputs.len(), 1);
        assert_eq!(request.outputs[0].kind, OutputKind::Image);
        assert_eq!(request.attestations, Wanted::default());
    }

    #[test]
    fn resources_are_those_of_buildx() {
        let request = request(|args| {
            args.resources =
                vec!["memory=64m,cpu-quota=50000".into(), "cpuset-cpus=0".into(), "memory-swap=-1".into()];
        });
        let resources = request.unwrap().resources.unwrap();
        assert_eq!((resources.memory, resources.memory_swap), (Some(64 << 20), Some(-1)));
        assert_eq!((resources.cpu_quota, resources.cpuset_cpus.as_deref()), (Some(50_000), Some("0")));
        let mut none = Resources::default();
        for (name, value) in [("memory", "0"), ("cpu-shares", "0"), ("cpuset-mems", "")] {
            set_resource(&mut none, name, value).unwrap();
        }
        assert!(none.is_empty());
        for (name, value) in [("memory", "much"), ("cpu-shares", "-1"), ("cpus", "1"), ("cpu-period", "x")] {
            assert!(set_resource(&mut none, name, value).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn hosts_may_stand_in_one_flag() {
        let request =
            request(|args| args.add_hosts = vec!["a:1.2.3.4,b=::1".into(), "c:[::2]".into()]).unwrap();
        let names: Vec<&str> = request.extra_hosts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(request(|args| args.push = true).is_err());
        let both =
            request(|args| (args.push, args.load, args.tags) = (true, true, vec!["x".into()])).unwrap();
        assert_eq!(
            both.outputs.iter().map(|output| output.kind).collect::<Vec<_>>(),
            [OutputKind::Image, OutputKind::Load]
        );
        assert!(request(|args| args.build_args = vec!["=x".into()]).is_err());
        assert!(request(|args| args.labels = vec![String::new()]).is_err());
        assert!(request(|args| args.ulimits = vec!["files=1".into()]).is_err());
        assert!(
            request(|args| (args.outputs, args.iidfile) = (vec!["out".into()], Some("i".into()))).is_err()
        );
        assert!(request(|args| (args.push, args.tags) = (true, vec!["x".into()])).is_ok());
        assert!(request(|args| (args.context, args.file) = ("-".into(), Some("-".into()))).is_err());
        assert!(request(|args| args.tags = vec!["UPPER".into()]).is_err());
        assert!(request(|args| args.allow = vec!["everything".into()]).is_err());
        let unset = request(|args| args.secrets = vec!["id=x,env=UNSET".into()]).unwrap();
        assert_eq!(unset.warnings, ["--secret x is empty: the variable UNSET is not set"]);
        assert!(request(|args| args.secrets = vec!["id=FROM_ENV".into()]).is_ok());
        assert!(request(|args| args.call = "dance".into()).is_err());
    }

    #[test]
    fn agents_and_keys_of_ssh_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "secret").unwrap();
        let ssh = |text: String| request(|args| args.ssh = vec![text]).map(|request| request.ssh);
        let given = ssh(format!("x={}", key.display())).unwrap();
        assert_eq!(given["x"], std::slice::from_ref(&key));
        assert!(ssh("default=/none".to_owned()).is_err());
        assert!(ssh("default".to_owned()).is_err());
    }
}
