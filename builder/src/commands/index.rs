//! `rbuild index create` and `inspect`: several images under one name, made in the registry; no layer comes here.

use image::manifest::{Document, media_type};
use image::{Descriptor, ImageConfig, Index, Platform, Reference};
use store::copy::copy;
use store::registry::{Client, Resolved};

use super::{Session, print, until_stopped};
use crate::cli::{IndexArgs, IndexCommand, IndexCreateArgs, IndexInspectArgs};
use crate::failure::{Class, Failure, OrFail as _};
use crate::registry;

/// Configs are read up to this length, bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// `rbuild index`
pub(crate) fn index(session: &Session, args: &IndexArgs) -> Result<(), Failure> {
    let client = registry::client(&session.places)?;
    session.runtime()?.block_on(until_stopped(async {
        match &args.command {
            IndexCommand::Create(args) => create(&client, args).await,
            IndexCommand::Inspect(args) => inspect(&client, args).await,
        }
    }))
}

/// A manifest for the index, and where it is now.
#[derive(Clone, Debug)]
struct Member {
    from: Reference,
    descriptor: Descriptor,
}

async fn create(client: &Client, args: &IndexCreateArgs) -> Result<(), Failure> {
    let targets = args.tags.iter().map(|tag| parse(tag)).collect::<Result<Vec<_>, _>>()?;
    let mut sources = args.sources.iter().map(|source| parse(source)).collect::<Result<Vec<_>, _>>()?;
    if let (true, Some(first)) = (args.append, targets.first()) {
        sources.insert(0, first.clone());
    }
    let platforms = args
        .platform
        .iter()
        .map(|text| text.parse::<Platform>().map_err(|error| Failure::usage(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut members: Vec<Member> = Vec::new();
    for source in &sources {
        for member in gather(client, source).await? {
            members.retain(|known| known.descriptor.digest != member.descriptor.digest);
            members.push(member);
        }
    }
    if !platforms.is_empty() {
        keep(&mut members, &platforms);
    }
    if members.is_empty() {
        return Err(Failure::usage("there is nothing to put into the index"));
    }
    let mut annotations = std::collections::BTreeMap::new();
    for text in &args.annotations {
        let pair = text.strip_prefix("index:").unwrap_or(text).split_once('=');
        let (name, value) = pair
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Failure::usage(format!("invalid --annotation {text:?}: expected name=value")))?;
        annotations.insert(name.to_owned(), value.to_owned());
    }
    let docker = members.iter().all(|member| member.descriptor.media_type == media_type::DOCKER_MANIFEST);
    let index = Index {
        schema_version: 2,
        media_type: match docker && annotations.is_empty() {
            true => media_type::DOCKER_INDEX.to_owned(),
            false => media_type::OCI_INDEX.to_owned(),
        },
        manifests: members.iter().map(|member| member.descriptor.clone()).collect(),
        annotations,
    };
    let bytes = serde_json::to_vec_pretty(&index).expect("an index has string keys only");
    if args.dry_run {
        return print(|out| out.write_all(&bytes));
    }
    for target in &targets {
        for member in &members {
            copy(client, &member.from, &member.descriptor, target).await?;
        }
        let pushed = client.put_manifest(target, &index.media_type, bytes.clone().into()).await?;
        print(|out| writeln!(out, "{}: digest: {}", target.familiar(), pushed.digest))?;
    }
    Ok(())
}

/// The manifests of a source, each with its platform.
async fn gather(client: &Client, source: &Reference) -> Result<Vec<Member>, Failure> {
    let found = client.resolve(source).await?;
    let descriptors = match &found.document {
        Document::Index(index) => index.manifests.clone(),
        Document::Manifest(manifest) => {
            let config = client.blob_bytes(source, &manifest.config, MAX_CONFIG).await?;
            let config: ImageConfig = serde_json::from_slice(&config).map_err(|error| {
                let message = format!("could not read the config of {}: {error}", source.familiar());
                Failure::new(Class::Network, message)
            })?;
            vec![Descriptor { platform: Some(config.platform()), ..found.descriptor.clone() }]
        }
    };
    Ok(descriptors.into_iter().map(|descriptor| Member { from: source.clone(), descriptor }).collect())
}

/// Keeps manifests of these platforms, and what is said about them.
fn keep(members: &mut Vec<Member>, platforms: &[Platform]) {
    let is_kept = |member: &Member| {
        member.descriptor.platform.as_ref().is_some_and(|platform| platforms.contains(platform))
    };
    let kept: Vec<String> =
        members.iter().filter(|member| is_kept(member)).map(|m| m.descriptor.digest.to_string()).collect();
    members.retain(|member| {
        let about = member.descriptor.annotations.get("vnd.docker.reference.digest");
        is_kept(member) || about.is_some_and(|about| kept.contains(about))
    });
}

async fn inspect(client: &Client, args: &IndexInspectArgs) -> Result<(), Failure> {
    let reference = parse(&args.image)?;
    let Resolved { descriptor, bytes, document } = client.resolve(&reference).await?;
    if args.raw {
        return print(|out| out.write_all(&bytes));
    }
    print(|out| {
        writeln!(out, "Name:      {reference}")?;
        writeln!(out, "MediaType: {}", descriptor.media_type)?;
        writeln!(out, "Digest:    {}", descriptor.digest)?;
        let Document::Index(index) = &document else { return Ok(()) };
        writeln!(out, "\nManifests:")?;
        for manifest in &index.manifests {
            writeln!(out, "  Name:      {}", reference.by_digest(manifest.digest))?;
            writeln!(out, "  MediaType: {}", manifest.media_type)?;
            if let Some(platform) = &manifest.platform {
                writeln!(out, "  Platform:  {platform}")?;
            }
            for (name, value) in &manifest.annotations {
                writeln!(out, "    {name}: {value}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    })
}

fn parse(text: &str) -> Result<Reference, Failure> {
    let reference: Reference = text.parse().or_fail(Class::Usage)?;
    Ok(reference.with_default_tag())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_kept_with_what_is_said_about_it() {
        let member = |text: &str, platform: &str, about: Option<&Descriptor>| {
            let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, text.as_bytes());
            descriptor.platform = Some(platform.parse().unwrap());
            if let Some(about) = about {
                let key = "vnd.docker.reference.digest".to_owned();
                descriptor.annotations.insert(key, about.digest.to_string());
            }
            Member { from: "x".parse().unwrap(), descriptor }
        };
        let (arm, amd) = (member("arm", "linux/arm64", None), member("amd", "linux/amd64", None));
        let about_arm = member("a", "unknown/unknown", Some(&arm.descriptor));
        let about_amd = member("b", "unknown/unknown", Some(&amd.descriptor));
        let mut members = vec![arm.clone(), amd, about_arm.clone(), about_amd];
        keep(&mut members, &["linux/arm64".parse().unwrap()]);
        let digests: Vec<_> = members.iter().map(|member| member.descriptor.digest).collect();
        assert_eq!(digests, [arm.descriptor.digest, about_arm.descriptor.digest]);
    }
}
