//! `rbuild run`: tries an image.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use image::config::ContainerConfig;
use image::{ImageConfig, Platform, Reference};
use solver::op::Security;
use store::registry::{Client, Progress};
use store::root::Root;
use worker::container::{Bind, Spec};
use worker::exec::interactive::{Container, Io, RunError, run_container};
use worker::exec::{Network, SpawnError, Status};
use worker::isolate::group::{Resources, Wanted};
use worker::isolate::limits;
use worker::isolate::network::Publish;
use worker::source::image::pull;
use worker::source::remote::{Access, Remotes};
use worker::source::resolve::{Images, Policy};
use worker::{Options, Worker};

use super::Session;
use crate::cli::RunArgs;
use crate::failure::{Class, Failure};
use crate::request::{parse_size, set_resource};

/// How long a container may take to end after it was asked to, as in Docker.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What rbuild's own failures exit with, so that they are told from the container's.
const OWN_FAILURE: u8 = 125;

/// `rbuild run`
pub(crate) fn run(session: &Session, args: &RunArgs) -> Result<(), Failure> {
    let root = session.open().map_err(own)?;
    let code = session.runtime().map_err(own)?.block_on(run_image(session, &root, args)).map_err(own)?;
    match code {
        0 => Ok(()),
        code => Err(Failure::new(Class::Exit(code), "")),
    }
}

fn own(failure: Failure) -> Failure {
    Failure { class: Class::Exit(OWN_FAILURE), ..failure }
}

async fn run_image(session: &Session, root: &Root, args: &RunArgs) -> Result<u8, Failure> {
    let platform: Platform = match &args.platform {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("{error}")))?,
        None => Platform::host(),
    };
    let client = Rc::new(crate::registry::client(&session.places)?);
    let policy = match args.pull.as_str() {
        "always" => Policy::Newest,
        "never" => Policy::Never,
        _ => Policy::Missing,
    };
    let images = Rc::new(Images::new(root.clone(), client.clone(), policy));
    let config = find(root, &images, &client, &args.image, &platform).await?;
    let mut spec = spec(args, &config, &|name| std::env::var(name).ok())?;
    if !spec.group.is_nothing()
        && let Err(error) = spec.group.try_out()
    {
        super::eprint(&format!("WARNING: limits of memory, CPUs and processes have no effect: {error}\n"));
        spec.group = Wanted::default();
    }

    let options = options(session, root, client);
    let worker = Worker::new(root.clone(), options, images, Rc::new(|_| {}));
    let publish = args.publish.iter().map(|text| port(text)).collect::<Result<_, _>>()?;
    let stop = args.stop_signal.as_deref().unwrap_or(&config.config.stop_signal);
    let stop_signal = signal(stop).ok_or_else(|| Failure::usage(format!("unknown signal {stop:?}")))?;
    let prepared = worker.prepare(spec).await.map_err(|error| Failure::from_worker(&error))?;
    let container = Container {
        plan: prepared.plan.clone(),
        io: io(args.tty, args.interactive)?,
        publish,
        stop_signal,
        stop_timeout: STOP_TIMEOUT,
    };
    to_its_end(container).await
}

/// A worker's, outside a build.
pub(super) fn options(session: &Session, root: &Root, client: Rc<Client>) -> Options {
    Options {
        contexts: Default::default(),
        secrets: Default::default(),
        agents: Default::default(),
        devices: Default::default(),
        default_network: Network::Host,
        remotes: Rc::new(Remotes::new(root.clone(), client, Access::default())),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        resources: None,
        no_steps: session.no_steps.clone(),
        keep_failed: None,
        elsewhere: None,
        mounts: None,
    }
}

/// Runs a container; the exit code that a shell would give.
pub(super) async fn to_its_end(container: Container) -> Result<u8, Failure> {
    match run_container(container).await {
        Ok(exit) => Ok(match exit.status {
            Status::Code(code) => u8::try_from(code).unwrap_or(1),
            Status::Signal(number) => 128u8.wrapping_add(u8::try_from(number).unwrap_or(0)),
        }),
        Err(RunError::Spawn(error)) => refused(&error),
        Err(error) => Err(Failure::of(Class::Host, &error)),
    }
}

/// A program that cannot be executed ends like in a shell: 126 or 127.
fn refused(error: &SpawnError) -> Result<u8, Failure> {
    match error.exit_code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => {
            super::eprint(&format!("ERROR: could not run the container: {error}\n"));
            Ok(code)
        }
        None => Err(Failure::of(Class::Host, error)),
    }
}

/// The image's config; its layers are here when this returns.
pub(super) async fn find(
    root: &Root,
    images: &Images,
    client: &Client,
    text: &str,
    platform: &Platform,
) -> Result<ImageConfig, Failure> {
    let by_id = match text.parse::<Reference>() {
        Ok(reference) if root.tags().get(&reference.clone().with_default_tag())?.is_some() => None,
        _ => root.images().resolve(text).ok(),
    };
    let config = match by_id {
        Some(descriptor) => {
            let found = root.images().manifest(&descriptor, platform)?;
            let (_, manifest) =
                found.ok_or_else(|| Failure::usage(format!("{text} is not an image for {platform}")))?;
            root.images().config(&manifest.config)?
        }
        None => {
            let reference: Reference = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
            images.find(&reference, platform).await?.config.clone()
        }
    };
    pull(root, client, &config.rootfs.diff_ids, |_| Progress::none()).await?;
    Ok(config)
}

fn spec(
    args: &RunArgs,
    config: &ImageConfig,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Spec, Failure> {
    let image = &config.config;
    let command = Spec::command(image, args.entrypoint.as_deref(), &args.command);
    if command.is_empty() {
        return Err(Failure::usage("the image has no command: give one after its name"));
    }
    let network = match args.network.as_deref() {
        Some("none") => Network::None,
        _ => Network::Host,
    };
    let hostname = args.hostname.clone().unwrap_or_else(hostname);
    let mut binds = Vec::new();
    for text in &args.volumes {
        binds.extend(volume(text)?);
    }
    Ok(Spec {
        layers: config.rootfs.diff_ids.clone(),
        volumes: image.volumes.keys().cloned().collect(),
        args: command,
        env: environment(args, image, &hostname, variable)?,
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        cwd: args.workdir.clone().unwrap_or_else(|| image.working_dir.clone()),
        hostname,
        network,
        security: if args.privileged { Security::Insecure } else { Security::Sandbox },
        binds,
        tmpfs: args.tmpfs.iter().map(|text| text.split(':').next().unwrap_or(text).to_owned()).collect(),
        read_only: args.read_only,
        limits: args
            .ulimits
            .iter()
            .map(|text| {
                limits::parse(text).map_err(|error| Failure::usage(format!("invalid --ulimit: {error}")))
            })
            .collect::<Result<_, _>>()?,
        shm_size: args.shm_size.as_deref().map(|text| parse_size("--shm-size", text)).transpose()?,
        group: group(args)?,
        hosts: args.add_hosts.iter().map(|text| host(text)).collect::<Result<_, _>>()?,
    })
}

/// `--memory` and its like.
fn group(args: &RunArgs) -> Result<Wanted, Failure> {
    let given = [
        ("memory", &args.memory),
        ("memory-swap", &args.memory_swap),
        ("cpu-shares", &args.cpu_shares),
        ("cpu-period", &args.cpu_period),
        ("cpu-quota", &args.cpu_quota),
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
    ];
    let mut resources = Resources::default();
    for (name, value) in given {
        if let Some(value) = value {
            set_resource(&mut resources, name, value)
                .map_err(|why| Failure::usage(format!("invalid --{name} {value:?}: {why}")))?;
        }
    }
    if let Some(cpus) = args.cpus {
        if !(cpus > 0.0 && cpus < 100_000.0) {
            return Err(Failure::usage(format!("invalid --cpus {cpus}: expected a number above 0")));
        }
        (resources.cpu_period, resources.cpu_quota) = (Some(100_000), Some((cpus * 100_000.0) as i64));
    }
    resources.pids = args.pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
    Ok(Wanted { parent: args.cgroup_parent.clone(), resources })
}

/// The image's variables, then those of files, then those given; `TERM` and `HOSTNAME` as Docker sets them.
fn environment(
    args: &RunArgs,
    image: &ContainerConfig,
    hostname: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, Failure> {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut config = ContainerConfig { env: image.env.clone(), ..ContainerConfig::default() };
    if config.env("PATH").is_none() {
        config.set_env("PATH", PATH);
    }
    config.set_env("HOSTNAME", hostname);
    if args.tty {
        config.set_env("TERM", "xterm");
    }
    let mut given: Vec<String> = Vec::new();
    for path in &args.env_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("could not read {}: {error}", path.display())))?;
        let lines =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        given.extend(lines.map(str::to_owned));
    }
    given.extend(args.env.iter().cloned());
    for text in given {
        match text.split_once('=') {
            Some(("", _)) => {
                return Err(Failure::usage(format!("invalid variable {text:?}: it has no name")));
            }
            Some((name, value)) => config.set_env(name, value),
            None => {
                if let Some(value) = variable(&text) {
                    config.set_env(&text, &value);
                }
            }
        }
    }
    Ok(config.env)
}

/// `host:container[:options]`; `container` alone is a directory of the container's own, which it has anyway.
fn volume(text: &str) -> Result<Option<Bind>, Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid --volume {text:?}: {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [host, target] => (host, target, ""),
        [host, target, options] => (host, target, options),
        _ => return Err(invalid("expected host:container[:ro]")),
    };
    if !target.starts_with('/') {
        return Err(invalid("the path in the container is not absolute"));
    }
    let mut readonly = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            "rw" | "z" | "Z" | "nocopy" | "cached" | "delegated" | "consistent" | "rprivate" | "private" => {}
            _ => return Err(invalid("the options are ro and rw")),
        }
    }
    if host.is_empty() {
        return Ok(None);
    }
    let path = Path::new(host);
    if !path.is_absolute() && !host.starts_with('.') {
        return Err(invalid("named volumes are not kept: give a directory"));
    }
    let host = std::path::absolute(path).map_err(|error| invalid(&error.to_string()))?;
    Ok(Some(Bind { host, target: target.to_owned(), readonly }))
}

/// `[address:][host:]container[/tcp]`
fn port(text: &str) -> Result<Publish, Failure> {
    let invalid = |why: &str| Failure::usage(format!("invalid --publish {text:?}: {why}"));
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol != "tcp" {
        return Err(invalid("only tcp is supported"));
    }
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid("a port is a number up to 65535"));
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), number(container)?),
        None => (None, number(ports)?),
    };
    let (address, host) = match rest.map(|rest| rest.rsplit_once(':').unwrap_or(("", rest))) {
        None | Some(("", "")) => ("", 0),
        Some((address, "")) => (address, 0),
        Some((address, host)) => (address, number(host)?),
    };
    let address = match address.trim_start_matches('[').trim_end_matches(']') {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => text.parse().map_err(|_| invalid("expected [address:][host:]container"))?,
    };
    Ok(Publish { host: SocketAddr::new(address, host), port: container })
}

fn host(text: &str) -> Result<(String, String), Failure> {
    let pair = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) =
        pair.ok_or_else(|| Failure::usage(format!("invalid --add-host {text:?}: expected host:address")))?;
    let address = if address == "host-gateway" { "127.0.0.1" } else { address.trim_matches(['[', ']']) };
    match address.parse::<IpAddr>() {
        Ok(_) => Ok((name.to_owned(), address.to_owned())),
        Err(_) => Err(Failure::usage(format!("invalid --add-host {text:?}: {address:?} is no IP address"))),
    }
}

/// Twelve hex digits, as Docker names containers that nobody names.
fn hostname() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    image::Digest::of(format!("{} {now}", std::process::id()).as_bytes()).short()
}

/// The caller's terminal, or its streams.
pub(super) fn io(tty: bool, interactive: bool) -> Result<Io, Failure> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|error| Failure::new(Class::Host, format!("could not use standard streams: {error}")))
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    if tty {
        return Ok(Io::Terminal { input: copy(stdin.as_fd())?, output: copy(stdout.as_fd())? });
    }
    let input: OwnedFd = match interactive {
        true => copy(stdin.as_fd())?,
        false => std::fs::File::open(PathBuf::from("/dev/null"))
            .map_err(|error| Failure::new(Class::Host, format!("could not open /dev/null: {error}")))?
            .into(),
    };
    Ok(Io::Streams([input, copy(stdout.as_fd())?, copy(stderr.as_fd())?]))
}

/// The number of `SIGTERM`, `TERM` or `15`; of nothing, that of `SIGTERM`.
fn signal(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if name.is_empty() {
        return signal("TERM");
    }
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN+") {
        return offset
            .parse::<i32>()
            .ok()
            .map(|offset| 34 + offset)
            .filter(|number| (34..=64).contains(number));
    }
    let index = NAMES.iter().position(|known| *known == bare)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_and_ports_are_spelled_as_dockers() {
        let bind = volume("/a:/b:ro").unwrap().unwrap();
        assert_eq!((bind.host.as_path(), bind.target.as_str(), bind.readonly), (Path::new("/a"), "/b", true));
        assert_eq!(volume("/data").unwrap(), None);
        assert!(volume("./x:/y").unwrap().unwrap().host.is_absolute());
        for bad in ["name:/x", "/a:b", "/a:/b:odd", "a:b:c:d"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let publish = |text: &str| port(text).map(|publish| (publish.host.to_string(), publish.port));
        assert_eq!(publish("8080:80").unwrap(), ("0.0.0.0:8080".to_owned(), 80));
        assert_eq!(publish("80").unwrap(), ("0.0.0.0:0".to_owned(), 80));
        assert_eq!(publish("127.0.0.1:8080:80/tcp").unwrap(), ("127.0.0.1:8080".to_owned(), 80));
        assert_eq!(publish("127.0.0.1::80").unwrap(), ("127.0.0.1:0".to_owned(), 80));
        for bad in ["x", "80:x", "80/udp", "1:2:3:4", "70000"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, number) in
            [("", 15), ("SIGTERM", 15), ("int", 2), ("9", 9), ("SIGRTMIN+3", 37), ("SYS", 31)]
        {
            assert_eq!(signal(name), Some(number), "{name}");
        }
        for name in ["SIGWHAT", "0", "65", "RTMIN+99"] {
            assert_eq!(signal(name), None, "{name}");
        }
    }

    #[test]
    fn given_variables_win_over_files_and_those_over_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# no\nA=file\nB=file\n\nFROM_HERE\n").unwrap();
        let args = RunArgs {
            env: vec!["B=flag".into(), "UNSET".into()],
            env_file: vec![file],
            ..RunArgs::default()
        };
        let image = ContainerConfig { env: vec!["A=image".into(), "C=image".into()], ..Default::default() };
        let variable = |name: &str| (name == "FROM_HERE").then(|| "here".to_owned());
        let env = environment(&args, &image, "h", &variable).unwrap();
        for pair in ["A=file", "B=flag", "C=image", "FROM_HERE=here", "HOSTNAME=h"] {
            assert!(env.contains(&pair.to_owned()), "{pair}: {env:?}");
        }
        assert!(!env.iter().any(|pair| pair.starts_with("UNSET") || pair.starts_with("TERM=")));
    }
}
