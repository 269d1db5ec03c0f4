//! `push`, `pull`, `login` and `logout`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::rc::Rc;

use image::reference::DOCKER_HUB;
use image::{Descriptor, DiffId, Manifest, Platform, Reference};
use store::compress::{Algorithm, Compression};
use store::push;
use store::registry::{Client, Credential, Password};
use store::root::Root;
use worker::source::image::pull as pull_layers;
use worker::source::resolve::{Images, Policy};

use super::images::find;
use super::transfer::Transfers;
use super::{Session, print, until_stopped};
use crate::cli::{LoginArgs, LogoutArgs, PullArgs, PushArgs};
use crate::failure::{Class, Failure};
use crate::{prompt, registry};

/// The longest password that is read from standard input, bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// `rbuild push`
pub(crate) fn push(session: &Session, args: &PushArgs) -> Result<(), Failure> {
    let algorithm = match args.compression.as_str() {
        "zstd" => Algorithm::Zstd,
        "uncompressed" => Algorithm::None,
        _ => Algorithm::Gzip,
    };
    let compression = Compression::new(algorithm, args.compression_level)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let root = session.open()?;
    let name = parse(args.destination.as_deref().unwrap_or(&args.image))?;
    let targets: Vec<(Descriptor, Reference)> = match args.all_tags {
        false => {
            let target = name.clone().with_default_tag();
            if target.digest.is_some() {
                return Err(Failure::usage(format!(
                    "could not push to {}: a tag is needed",
                    target.familiar()
                )));
            }
            vec![(find(&root, &args.image)?, target)]
        }
        true => {
            without_tag(&name)?;
            let tags = root.tags().list()?.into_iter().filter(|tag| tag.reference.name() == name.name());
            let targets: Vec<_> = tags.map(|tag| (tag.descriptor, tag.reference)).collect();
            if targets.is_empty() {
                return Err(Failure::usage(format!("no image is called {}", name.familiar())));
            }
            targets
        }
    };
    let client = registry::client(&session.places)?;
    if !args.quiet {
        print(|out| writeln!(out, "The push refers to repository [{}]", name.name()))?;
    }
    for (image, target) in targets {
        let options = push::Options { compression, force: false, oci: !image.media_type.contains("docker") };
        let transfers = Transfers::new("Pushing", args.quiet);
        let pushed = session.runtime()?.block_on(until_stopped(async {
            Ok(push::push(&root, &client, &image, &target, &options, &transfers).await?)
        }))?;
        transfers.finish();
        root.flush()?;
        let tag = target.tag.as_deref().unwrap_or_default();
        print(|out| match args.quiet {
            true => writeln!(out, "{}", pushed.digest),
            false => writeln!(out, "{tag}: digest: {} size: {}", pushed.digest, pushed.size),
        })?;
    }
    Ok(())
}

/// A name that is to mean all of its tags.
fn without_tag(name: &Reference) -> Result<(), Failure> {
    match name.tag.is_some() || name.digest.is_some() {
        true => Err(Failure::usage(format!(
            "--all-tags is for a name without a tag, not for {}",
            name.familiar()
        ))),
        false => Ok(()),
    }
}

/// `rbuild pull`
pub(crate) fn pull(session: &Session, args: &PullArgs) -> Result<(), Failure> {
    let reference = parse(&args.image)?;
    let platform = match &args.platform {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("{error}")))?,
        None => Platform::host(),
    };
    let root = session.open()?;
    let client = registry::client(&session.places)?;
    if args.all_tags {
        without_tag(&reference)?;
        let tags =
            session.runtime()?.block_on(until_stopped(async { Ok(client.tags(&reference).await?) }))?;
        for tag in tags {
            let one = Reference { tag: Some(tag), ..reference.clone() };
            pull_one(session, &root, client.clone(), one, &platform, args.quiet)?;
        }
        return Ok(());
    }
    if !args.quiet && reference.tag.is_none() && reference.digest.is_none() {
        print(|out| writeln!(out, "Using default tag: latest"))?;
    }
    pull_one(session, &root, client, reference.with_default_tag(), &platform, args.quiet)
}

fn pull_one(
    session: &Session,
    root: &Root,
    client: Client,
    reference: Reference,
    platform: &Platform,
    quiet: bool,
) -> Result<(), Failure> {
    let transfers = Transfers::new("Downloading", quiet);
    let pulled = session.runtime()?.block_on(until_stopped(async {
        Pull { root, client, reference: &reference, platform, transfers: &transfers }.run().await
    }))?;
    transfers.finish();
    root.flush()?;
    let name = reference.familiar();
    print(|out| {
        if !quiet {
            writeln!(out, "Digest: {}", pulled.descriptor.digest)?;
            match pulled.new {
                true => writeln!(out, "Status: Downloaded newer image for {name}")?,
                false => writeln!(out, "Status: Image is up to date for {name}")?,
            }
        }
        writeln!(out, "{reference}")
    })
}

struct Pull<'a> {
    root: &'a Root,
    client: Client,
    reference: &'a Reference,
    platform: &'a Platform,
    transfers: &'a Transfers,
}

/// What a pull came to.
struct Pulled {
    descriptor: Descriptor,
    new: bool,
}

impl Pull<'_> {
    async fn run(self) -> Result<Pulled, Failure> {
        let Self { root, client, reference, platform, transfers } = self;
        let top = client.head(reference).await?;
        let before = match reference.digest {
            None => root.tags().get(reference)?,
            Some(digest) => root.images().get(&digest)?,
        };
        if let Some(before) = before.filter(|before| before.digest == top.digest)
            && let Some(diff_ids) = here(root, &before, platform)?
        {
            pull_layers(root, &client, &diff_ids, |diff_id| transfers.begin_pull(root, diff_id)).await?;
            return Ok(Pulled { descriptor: before, new: false });
        }
        let client = Rc::new(client);
        let images = Images::new(root.clone(), client.clone(), Policy::Newest);
        let found = images.find(reference, platform).await?;
        let served = found.config.platform();
        if served.serves(platform).is_none() {
            let name = reference.familiar();
            return Err(Failure::usage(format!("image {name} is for {served}, not for {platform}")));
        }
        // It may have moved in between; then what was found is what there is.
        let descriptor = match root.blobs().contains(&top.digest)? {
            true => top,
            false => found.descriptor.clone(),
        };
        transfers.start(reference);
        pull_layers(root, &client, &found.config.rootfs.diff_ids, |diff_id| {
            transfers.begin_pull(root, diff_id)
        })
        .await?;
        root.images().add(&descriptor)?;
        if reference.digest.is_none() {
            root.tags().set(reference, &descriptor)?;
        }
        Ok(Pulled { descriptor, new: true })
    }
}

/// The layers of an image for `platform` whose documents are here.
fn here(root: &Root, descriptor: &Descriptor, platform: &Platform) -> Result<Option<Vec<DiffId>>, Failure> {
    let images = root.images();
    let found = images.manifest(descriptor, platform).and_then(|found| {
        let Some((_, Manifest { config, .. })) = found else { return Ok(None) };
        let config = images.config(&config)?;
        Ok(config.platform().serves(platform).map(|_| config.rootfs.diff_ids))
    });
    match found {
        Err(error) if error.is_missing() => Ok(None),
        found => Ok(found?),
    }
}

/// `rbuild login`
pub(crate) fn login(session: &Session, args: &LoginArgs) -> Result<(), Failure> {
    let name = registry_name(args.registry.as_deref());
    let needs_user = || Failure::usage("could not log in: a user name is needed").hint("give -u NAME");
    let username = match &args.username {
        Some(name) => name.clone(),
        None if args.password_stdin || !io::stdin().is_terminal() => return Err(needs_user()),
        None => prompt::line("Username: ")?,
    };
    if username.is_empty() {
        return Err(needs_user());
    }
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => password.clone(),
        (None, true) => password_from_stdin()?,
        (None, false) if !io::stdin().is_terminal() => {
            return Err(Failure::usage("could not log in: a password is needed")
                .hint("give it on standard input with --password-stdin"));
        }
        (None, false) => prompt::password("Password: ")?,
    };
    if password.is_empty() {
        return Err(Failure::usage("could not log in: the password is empty"));
    }
    let credential = Credential::Password { username, password: Password::new(password) };
    let client = registry::client(&session.places)?;
    let kept = session.runtime()?.block_on(until_stopped(async {
        client.login(name, credential.clone()).await?;
        let config = client.config();
        Ok(config.credentials.store(name, &credential, config.timing.token).await?)
    }))?;
    if !kept.starts_with("docker-credential-") {
        let mut err = io::stderr().lock();
        // Nobody is there to be warned: fine.
        let _ = writeln!(err, "WARNING: the password is stored unencrypted in {kept}");
    }
    print(|out| writeln!(out, "Login Succeeded"))
}

/// `rbuild logout`
pub(crate) fn logout(session: &Session, args: &LogoutArgs) -> Result<(), Failure> {
    let name = registry_name(args.registry.as_deref());
    let config = registry::config(&session.places)?;
    let erased = session
        .runtime()?
        .block_on(until_stopped(async { Ok(config.credentials.erase(name, config.timing.token).await?) }))?;
    print(|out| match erased {
        true => writeln!(out, "Removing login credentials for {name}"),
        false => writeln!(out, "Not logged in to {name}"),
    })
}

/// The registry that a user means: a host, with or without a scheme; nothing is Docker Hub.
fn registry_name(text: Option<&str>) -> &str {
    let text = text.unwrap_or(DOCKER_HUB);
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    match host.split('/').next().unwrap_or(host) {
        "" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn password_from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .take(MAX_PASSWORD)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(Class::Usage, format!("could not read the password: {error}")))?;
    // `echo` and editors add a line's end that is not part of it.
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn parse(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| Failure::usage(format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_by_their_host() {
        for (text, name) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("docker.io"), "docker.io"),
            (Some("ghcr.io"), "ghcr.io"),
            (Some("http://localhost:5000/"), "localhost:5000"),
        ] {
            assert_eq!(registry_name(text), name);
        }
    }
}
