//! What a build command means: flags and environment, parsed and checked. Everything the environment decides is read
//! here or in `main`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Platform, Reference};
use solver::op::Network;

use crate::attest::Wanted;
use crate::cache::options::{CacheFrom, CacheTo};
use crate::cli::BuildArgs;
use crate::export::options::annotation_flag;
use crate::failure::Failure;

/// A build, as asked for.
#[derive(Debug)]
pub(crate) struct BuildRequest {
    pub(crate) context: ContextSource,
    pub(crate) dockerfile: DockerfileSource,
    pub(crate) tags: Vec<Reference>,
    pub(crate) target: Option<String>,
    pub(crate) build_args: Vec<(String, String)>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) build_contexts: Vec<(String, String)>,
    pub(crate) platforms: Vec<Platform>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) no_cache: bool,
    pub(crate) cache_from: Vec<CacheFrom>,
    pub(crate) cache_to: Vec<CacheTo>,
    /// Older records do not count.
    pub(crate) cache_ttl: Option<Duration>,
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
    /// `--resource`: limits of steps, by name.
    pub(crate) resources: BTreeMap<String, String>,
    pub(crate) attestations: Wanted,
    pub(crate) call: Call,
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

/// Where a secret's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretSource {
    File(PathBuf),
    Env(String),
}

/// `--call`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Build,
    Check {
        json: bool,
        /// Findings do not make it fail.
        ignore_status: bool,
    },
    Outline {
        json: bool,
    },
    Targets {
        json: bool,
    },
    /// Which calls there are.
    Describe {
        json: bool,
    },
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) kind: OutputKind,
    /// `dest`; `None` is standard output where that is possible.
    pub(crate) dest: Option<PathBuf>,
    /// What else was said, by key.
    pub(crate) options: BTreeMap<String, String>,
}

/// `type` of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// Into the local store, and pushed with `push=true`.
    Image,
    Oci,
    Docker,
    Local,
    Tar,
    /// Nothing but the cache.
    CacheOnly,
}

impl Output {
    /// A boolean option.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        self.options.get(key).map(|text| parse_bool(key, text)).transpose()
    }
}

/// The environment that requests read, so that tests can give their own.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl BuildRequest {
    /// Checks `args` and fills in what the environment says.
    pub(crate) fn new(args: BuildArgs, environment: Environment<'_>) -> Result<Self, Failure> {
        let dockerfile = match args.file.as_deref() {
            None => DockerfileSource::Default,
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
        if args.push && args.load {
            return Err(Failure::usage("--push and --load cannot be used together: give two --output"));
        }
        let build_args = pairs_from_environment(&args.build_args, environment);
        let cache_to = cache_to(&args, &build_args)?;
        let source_date_epoch = build_args
            .iter()
            .rev()
            .find(|(name, _)| name == "SOURCE_DATE_EPOCH")
            .map(|(_, value)| value.clone())
            .or_else(|| environment("SOURCE_DATE_EPOCH"))
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<i64>().map_err(|_| {
                    Failure::usage(format!("SOURCE_DATE_EPOCH is not a number of seconds: {text:?}"))
                })
            })
            .transpose()?;
        Ok(Self {
            outputs: outputs(&args, !tags.is_empty())?,
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
                .map(|text| CacheFrom::parse(text))
                .collect::<Result<_, _>>()?,
            cache_to,
            cache_ttl: args
                .cache_ttl
                .as_deref()
                .map(|text| parse_duration("--cache-ttl", text))
                .transpose()?,
            no_cache_filter: args.no_cache_filter,
            pull: args.pull,
            secrets: args.secrets.iter().map(|text| secret(text, environment)).collect::<Result<_, _>>()?,
            ssh: args.ssh.iter().map(|text| ssh(text, environment)).collect::<Result<_, _>>()?,
            network: match args.network.as_str() {
                "none" => Network::None,
                "host" => Network::Host,
                _ => Network::Default,
            },
            extra_hosts: args.add_hosts.iter().map(|text| extra_host(text)).collect::<Result<_, _>>()?,
            allow: args
                .allow
                .iter()
                .map(|name| match name.split('=').next().unwrap_or(name) {
                    "network.host" | "security.insecure" | "device" => Ok(name.clone()),
                    _ => Err(Failure::usage(format!(
                        "unknown --allow {name:?}: expected network.host, security.insecure or device"
                    ))),
                })
                .collect::<Result<_, _>>()?,
            shm_size: args.shm_size.as_deref().map(|text| parse_size("--shm-size", text)).transpose()?,
            ulimits: args.ulimits,
            cgroup_parent: args.cgroup_parent,
            resources: resources(args.resources.iter().chain(&args.limits.resources()))?,
            attestations: Wanted::new(args.provenance.as_deref(), args.sbom.as_deref(), &args.attest)?,
            call: call(&args.call, args.check)?,
            timings: args.timings,
            explain: args.explain,
            debug: args.debug,
            jobs: args.jobs.filter(|&jobs| jobs > 0).unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2)
            }),
            progress: args.progress.parse().map_err(Failure::usage)?,
            quiet: args.quiet,
            iidfile: args.iidfile,
            metadata_file: args.metadata_file,
            source_date_epoch,
            proxy_env: Vec::new(),
        })
    }
}

/// `--cache-to`, and the build argument that asks for an inline cache.
fn cache_to(args: &BuildArgs, build_args: &[(String, String)]) -> Result<Vec<CacheTo>, Failure> {
    let mut caches = args.cache_to.iter().map(|text| CacheTo::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let asked = build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_INLINE_CACHE");
    if let Some((name, value)) = asked
        && parse_bool(name, value)?
    {
        caches.push(CacheTo::parse("type=inline")?);
    }
    Ok(caches)
}

/// A time span: `90s`, `30m`, `24h`, `14d`, `2w`, or several of these one after the other; a lone number is seconds.
pub(crate) fn parse_duration(what: &str, text: &str) -> Result<Duration, Failure> {
    let bad =
        || Failure::usage(format!("invalid {what} {text:?}: expected a time such as 90s, 30m, 24h or 14d"));
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let mut chars = tail.chars();
        let unit = match chars.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            _ => return Err(bad()),
        };
        total = number.checked_mul(unit).and_then(|span| total.checked_add(span)).ok_or_else(bad)?;
        rest = chars.as_str();
    }
    if text.is_empty() { Err(bad()) } else { Ok(Duration::from_secs(total)) }
}

impl BuildRequest {
    /// A build argument that is true or false; false if it is not given.
    pub(crate) fn flag_arg(&self, name: &str) -> Result<bool, Failure> {
        let given = self.build_args.iter().rev().find(|(known, _)| known == name);
        given.map_or(Ok(false), |(_, value)| parse_bool(name, value))
    }
}

/// `--output`, `--push` and `--load` together. Without any of them the image goes into the local store.
fn outputs(args: &BuildArgs, tagged: bool) -> Result<Vec<Output>, Failure> {
    let mut outputs = args.outputs.iter().map(|text| output(text)).collect::<Result<Vec<_>, _>>()?;
    if args.push {
        match outputs.iter_mut().find(|output| output.kind == OutputKind::Image) {
            Some(output) => {
                output.options.insert("push".to_owned(), "true".to_owned());
            }
            None => outputs.push(Output {
                kind: OutputKind::Image,
                dest: None,
                options: BTreeMap::from([("push".to_owned(), "true".to_owned())]),
            }),
        }
    }
    if outputs.is_empty() {
        outputs.push(Output { kind: OutputKind::Image, dest: None, options: BTreeMap::new() });
    }
    for text in &args.annotations {
        let pairs = annotation_flag(text)?;
        for output in &mut outputs {
            if matches!(output.kind, OutputKind::Image | OutputKind::Oci | OutputKind::Docker) {
                output.options.extend(pairs.iter().cloned());
            }
        }
    }
    let pushes = |output: &Output| output.options.get("push").is_some_and(|push| push == "true");
    let named = tagged || outputs.iter().any(|output| output.options.contains_key("name"));
    if outputs.iter().any(pushes) && !named {
        return Err(Failure::usage("a tag is needed to push: give -t NAME"));
    }
    Ok(outputs)
}

fn output(text: &str) -> Result<Output, Failure> {
    if text == "-" {
        return Ok(Output { kind: OutputKind::Tar, dest: None, options: BTreeMap::new() });
    }
    let fields = csv(text).map_err(|error| Failure::usage(format!("invalid --output {text:?}: {error}")))?;
    // A lone value without `=` is a directory.
    if let [only] = &fields[..]
        && !only.contains('=')
    {
        return Ok(Output { kind: OutputKind::Local, dest: Some(only.into()), options: BTreeMap::new() });
    }
    let mut kind = None;
    let mut dest = None;
    let mut options = BTreeMap::new();
    for field in &fields {
        let (key, value) = field.split_once('=').ok_or_else(|| {
            Failure::usage(format!("invalid --output {text:?}: expected key=value, got {field:?}"))
        })?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = Some(value.to_owned()),
            "dest" => dest = Some(value.to_owned()),
            // Annotations keep their case.
            _ => {
                options.insert(key.trim().to_owned(), value.to_owned());
            }
        }
    }
    let kind = match kind.as_deref() {
        Some("image") => OutputKind::Image,
        Some("registry") => {
            options.insert("push".to_owned(), "true".to_owned());
            OutputKind::Image
        }
        Some("oci") => OutputKind::Oci,
        Some("docker") => OutputKind::Docker,
        Some("local") => OutputKind::Local,
        Some("tar") => OutputKind::Tar,
        Some("cacheonly") => OutputKind::CacheOnly,
        Some(other) => {
            let known = ["image", "registry", "oci", "docker", "local", "tar", "cacheonly"];
            return Err(Failure::usage(format!(
                "unknown type {other:?} in --output: expected one of {}",
                known.join(", ")
            )));
        }
        None => return Err(Failure::usage(format!("invalid --output {text:?}: type is missing"))),
    };
    let dest = match dest.as_deref() {
        Some("-") | None => None,
        Some(path) => Some(PathBuf::from(path)),
    };
    match (kind, &dest) {
        (OutputKind::Local, None) => {
            Err(Failure::usage("dest is required for --output type=local: give a directory"))
        }
        _ => Ok(Output { kind, dest, options }),
    }
}

fn call(text: &str, check: bool) -> Result<Call, Failure> {
    let fields = csv(text).map_err(|error| Failure::usage(format!("invalid --call {text:?}: {error}")))?;
    let mut name = "";
    let mut json = false;
    let mut ignore_status = false;
    for field in &fields {
        match field.split_once('=') {
            Some(("ignorestatus", value)) => ignore_status = parse_bool("ignorestatus", value)?,
            None if field == "ignorestatus" => ignore_status = true,
            Some(("format", "json")) => json = true,
            Some(("format", "text")) => {}
            Some(("name", value)) => name = value,
            Some(_) => {
                return Err(Failure::usage(format!("invalid --call {text:?}: unknown option {field:?}")));
            }
            None => name = field,
        }
    }
    match (name, check) {
        ("build" | "check" | "lint" | "", true) | ("check" | "lint", false) => {
            Ok(Call::Check { json, ignore_status })
        }
        ("build" | "", false) => Ok(Call::Build),
        ("outline", false) => Ok(Call::Outline { json }),
        ("targets", false) => Ok(Call::Targets { json }),
        ("subrequests.describe", false) => Ok(Call::Describe { json }),
        (_, true) => Err(Failure::usage("--check and --call cannot be used together")),
        (other, false) => Err(Failure::usage(format!(
            "unknown --call {other:?}: expected build, check, outline, targets or subrequests.describe"
        ))),
    }
}

fn secret(text: &str, environment: Environment<'_>) -> Result<(String, SecretSource), Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid --secret {text:?}: {why}"));
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in csv(text).map_err(|error| invalid(&error))? {
        let (key, value) = field.split_once('=').ok_or_else(|| invalid("expected key=value"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => file = Some(value.to_owned()),
            "env" => variable = Some(value.to_owned()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            "type" => return Err(invalid("type is file or env")),
            other => return Err(invalid(&format!("unknown key {other:?}"))),
        }
    }
    let id = id.ok_or_else(|| invalid("id is missing"))?;
    let source = match (file, variable, kind.as_deref()) {
        (None, Some(variable), _) => SecretSource::Env(variable),
        (Some(name), None, Some("env")) => SecretSource::Env(name),
        (Some(path), None, _) => SecretSource::File(path.into()),
        (None, None, Some("env")) => SecretSource::Env(id.clone()),
        (None, None, None) if environment(&id).is_some() => SecretSource::Env(id.clone()),
        (None, None, _) => SecretSource::File(id.clone().into()),
        (Some(_), Some(_), _) => return Err(invalid("src and env cannot be used together")),
    };
    match &source {
        SecretSource::File(path) if !path.is_file() => {
            Err(invalid(&format!("there is no file {}", path.display())))
        }
        SecretSource::Env(name) if environment(name).is_none() => {
            Err(invalid(&format!("the variable {name} is not set")))
        }
        _ => Ok((id, source)),
    }
}

fn ssh(text: &str, environment: Environment<'_>) -> Result<(String, Vec<PathBuf>), Failure> {
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    let mut paths: Vec<PathBuf> =
        paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let agent = environment("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).ok_or_else(|| {
            Failure::usage(format!(
                "invalid --ssh {text:?}: SSH_AUTH_SOCK is not set and no socket or key is given"
            ))
        })?;
        paths.push(agent.into());
    }
    // Whether it is a socket or a key is `agent`'s business: a step sees a socket, never a key.
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Failure::usage(format!("invalid --ssh {text:?}: there is no {}", missing.display())));
    }
    Ok((if id.is_empty() { "default" } else { id }.to_owned(), paths))
}

fn resources<'a>(texts: impl Iterator<Item = &'a String>) -> Result<BTreeMap<String, String>, Failure> {
    let known =
        ["memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"];
    let mut all = BTreeMap::new();
    for text in texts {
        let invalid = |why: &str| Failure::usage(format!("invalid --resource {text:?}: {why}"));
        for field in csv(text).map_err(|error| invalid(&error))? {
            let (name, value) = field.split_once('=').ok_or_else(|| invalid("expected key=value"))?;
            match name {
                "memory" | "memory-swap" if value != "-1" => {
                    parse_size(name, value)?;
                }
                "cpu-shares" | "cpu-period" | "cpu-quota" => {
                    value.parse::<i64>().map_err(|_| invalid(&format!("{value:?} is no number")))?;
                }
                name if known.contains(&name) => {}
                _ => return Err(invalid(&format!("expected one of {}", known.join(", ")))),
            }
            all.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(all)
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

/// `NAME=value`, or `NAME` alone for the environment's value; one that is not set is left out.
fn pairs_from_environment(texts: &[String], environment: Environment<'_>) -> Vec<(String, String)> {
    texts
        .iter()
        .filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => Some((text.clone(), environment(text)?)),
        })
        .collect()
}

fn split_pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

fn is_remote(text: &str) -> bool {
    ["http://", "https://", "git://", "ssh://"].iter().any(|scheme| text.starts_with(scheme))
        || (text.starts_with("git@") && text.contains(':'))
}

/// `github.com/user/repository` is a git context without a scheme.
fn is_git_shorthand(text: &str) -> bool {
    text.starts_with("github.com/")
}

pub(crate) fn parse_bool(key: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "true" | "1" | "t" | "T" | "TRUE" | "True" | "" => Ok(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
        _ => Err(Failure::usage(format!("{key} is true or false, not {text:?}"))),
    }
}

/// A size with a unit, in bytes: `64m`, `1.5gb`, `1GiB`, `512`. Units are powers of 1024, as in Docker's flags.
pub(crate) fn parse_size(what: &str, text: &str) -> Result<u64, Failure> {
    let bad =
        || Failure::usage(format!("{what}: {text:?} is no size: expected a number and b, k, m, g or t"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().map_err(|_| bad())?;
    let shift = match lower[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    Ok((number * (1u64 << shift) as f64) as u64)
}

/// Splits comma-separated fields; a field in double quotes may hold commas, and `""` is a quote in it (RFC 4180).
pub(crate) fn csv(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        chars.next();
                        field.push('"');
                    }
                    Some((at, '"')) => break at + 1,
                    Some((_, c)) => field.push(c),
                    None => return Err("a quote is not closed".to_owned()),
                }
            };
            rest = &quoted[end..];
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err("text after a closing quote".to_owned());
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_have_units() {
        let seconds = |text: &str| parse_duration("x", text).ok().map(|span| span.as_secs());
        for (text, expected) in
            [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("14d", 1_209_600), ("2w", 1_209_600)]
        {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for bad in ["", "h", "1", "1x", "-1h", "1h2", "99999999999999999999h", "99999999999999999w"] {
            assert!(bad == "1" || seconds(bad).is_none(), "{bad}");
        }
    }

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
    fn what_contradicts_itself_is_refused() {
        assert!(request(|args| args.push = true).is_err());
        assert!(request(|args| (args.push, args.tags) = (true, vec!["x".into()])).is_ok());
        assert!(request(|args| (args.context, args.file) = ("-".into(), Some("-".into()))).is_err());
        assert!(request(|args| args.tags = vec!["UPPER".into()]).is_err());
        assert!(request(|args| args.allow = vec!["everything".into()]).is_err());
        assert!(request(|args| args.secrets = vec!["id=x,env=UNSET".into()]).is_err());
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

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("64m", 64 << 20), ("1.5gb", 3 << 29), ("512", 512), ("1 KiB", 1024)] {
            assert_eq!(parse_size("x", text).unwrap(), bytes);
        }
        assert!(parse_size("x", "much").is_err());
    }

    #[test]
    fn quoted_fields_hold_commas() {
        assert_eq!(csv(r#"a,"b,c",d"#).unwrap(), ["a", "b,c", "d"]);
        assert_eq!(csv(r#""a""b""#).unwrap(), [r#"a"b"#]);
        assert_eq!(csv("").unwrap(), [""]);
        assert!(csv(r#""a"#).is_err());
        assert!(csv(r#""a"b"#).is_err());
    }
}
