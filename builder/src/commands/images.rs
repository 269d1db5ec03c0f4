//! `images`, `rmi`, `tag`, `history` and `inspect`: what is in the store.

use image::manifest::Document;
use image::{Descriptor, Reference};
use serde_json::{Value, json};
use store::error::StoreError;
use store::root::{Root, now};
use store::tag::{ListedImage, ListedManifest};

use super::{Session, print};
use crate::cli::{HistoryArgs, ImagesArgs, InspectArgs, RmiArgs, TagArgs};
use crate::failure::{Class, Failure, OrFail as _};
use crate::show;

/// `rbuild images`
pub(crate) fn images(session: &Session, args: &ImagesArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let wanted = args.name.as_deref().map(name_filter).transpose()?;
    let now = now();
    let mut rows = Vec::new();
    for image in root.images().list().or_fail(Class::Internal)? {
        let mut names: Vec<Option<&Reference>> = image.tags.iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for name in names {
            if wanted.as_ref().is_none_or(|wanted| name.is_some_and(wanted)) {
                rows.push(ImageRow::new(&image, name, now));
            }
        }
    }
    let id = |row: &ImageRow| if args.no_trunc { row.id.clone() } else { short(&row.id) };
    if args.quiet {
        return print(|out| rows.iter().try_for_each(|row| writeln!(out, "{}", id(row))));
    }
    if args.format == "json" {
        return print(|out| rows.iter().try_for_each(|row| writeln!(out, "{}", row.json())));
    }
    let mut header = vec!["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
    if !args.digests {
        header.remove(2);
    }
    let mut table = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for row in &rows {
        let mut cells = vec![row.repository.clone(), row.tag.clone()];
        if args.digests {
            cells.push(row.digest.clone());
        }
        cells.extend([id(row), row.created.clone(), show::size(row.size)]);
        table.push(cells);
    }
    print(|out| show::table(out, &table))
}

struct ImageRow {
    repository: String,
    tag: String,
    digest: String,
    id: String,
    created: String,
    created_at: Option<String>,
    size: u64,
}

impl ImageRow {
    fn new(image: &ListedImage, name: Option<&Reference>, now: i64) -> Self {
        let none = || "<none>".to_owned();
        let first: Option<&ListedManifest> = image.manifests.first();
        let created_at = first.and_then(|manifest| manifest.config.created.clone());
        let seconds = created_at.as_deref().and_then(show::parse_rfc3339);
        Self {
            repository: name.map_or_else(none, |name| Reference { tag: None, ..name.clone() }.familiar()),
            tag: name.and_then(|name| name.tag.clone()).unwrap_or_else(none),
            digest: image.descriptor.digest.to_string(),
            id: first.map_or(image.descriptor.digest, |manifest| manifest.id).to_string(),
            created: seconds.map_or_else(|| "N/A".to_owned(), |seconds| show::ago(now - seconds)),
            created_at,
            size: image.manifests.iter().map(|manifest| manifest.size).sum(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "Repository": self.repository, "Tag": self.tag, "Digest": self.digest, "ID": self.id,
            "CreatedAt": self.created_at, "CreatedSince": self.created, "Size": self.size,
        })
    }
}

/// `name` or `name:tag`: which images are meant.
fn name_filter(text: &str) -> Result<impl Fn(&Reference) -> bool, Failure> {
    let wanted: Reference = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    Ok(move |name: &Reference| {
        name.registry == wanted.registry
            && name.repository == wanted.repository
            && (wanted.tag.is_none() || wanted.tag == name.tag)
    })
}

/// `rbuild rmi`
pub(crate) fn rmi(session: &Session, args: &RmiArgs) -> Result<(), Failure> {
    let root = session.open()?;
    for text in &args.images {
        for line in remove(&root, text, args.force)? {
            print(|out| writeln!(out, "{line}"))?;
        }
    }
    Ok(())
}

/// Removes a name, or all names of an ID; the image itself goes with its last name.
fn remove(root: &Root, text: &str, force: bool) -> Result<Vec<String>, Failure> {
    let descriptor = find(root, text)?;
    let names: Vec<Reference> = root
        .tags()
        .list()
        .or_fail(Class::Internal)?
        .into_iter()
        .filter(|tag| tag.descriptor.digest == descriptor.digest)
        .map(|tag| tag.reference)
        .collect();
    let named = text.parse::<Reference>().ok().map(Reference::with_default_tag);
    let untag: Vec<Reference> = match names.iter().find(|name| named.as_ref() == Some(name)) {
        Some(name) => vec![name.clone()],
        None if names.len() > 1 && !force => {
            let names: Vec<String> = names.iter().map(Reference::familiar).collect();
            let message =
                format!("could not remove {text}: the image has more than one name: {}", names.join(", "));
            return Err(Failure::new(Class::Usage, message).hint("remove names one by one, or give --force"));
        }
        None => names.clone(),
    };
    let mut lines = Vec::new();
    for name in &untag {
        root.tags().remove(name).or_fail(Class::Internal)?;
        lines.push(format!("Untagged: {}", name.familiar()));
    }
    if untag.len() == names.len() {
        root.images().remove(&descriptor.digest).or_fail(Class::Internal)?;
        lines.push(format!("Deleted: {}", descriptor.digest));
    }
    Ok(lines)
}

/// `rbuild tag`
pub(crate) fn tag(session: &Session, args: &TagArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let target: Reference = args.target.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    if target.digest.is_some() {
        return Err(Failure::usage(format!("could not tag {:?}: a name cannot have a digest", args.target)));
    }
    let descriptor = find(&root, &args.source)?;
    root.tags().set(&target.with_default_tag(), &descriptor).or_fail(Class::Internal)
}

/// `rbuild history`
pub(crate) fn history(session: &Session, args: &HistoryArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let descriptor = find(&root, &args.image)?;
    let (_, manifest) =
        root.images().manifests(&descriptor).or_fail(Class::Internal)?.into_iter().next().ok_or_else(
            || Failure::new(Class::Usage, format!("{} has no manifest on this host", args.image)),
        )?;
    let config = root.images().config(&manifest.config).or_fail(Class::Internal)?;
    let mut sizes = root.images().layer_sizes(&manifest, &config).or_fail(Class::Internal)?.into_iter();
    let now = now();
    let mut entries: Vec<Value> = Vec::new();
    for entry in &config.history {
        let size = if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
        entries.push(json!({
            "CreatedAt": entry.created, "CreatedBy": entry.created_by.as_deref().unwrap_or(""),
            "Size": size, "Comment": entry.comment.as_deref().unwrap_or(""), "ID": "<missing>",
        }));
    }
    entries.reverse();
    if let Some(top) = entries.first_mut() {
        top["ID"] = Value::String(manifest.config.digest.to_string());
    }
    if args.format == "json" {
        return print(|out| entries.iter().try_for_each(|entry| writeln!(out, "{entry}")));
    }
    let mut table = vec![["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"].map(str::to_owned).to_vec()];
    for entry in &entries {
        let text = |key: &str| entry[key].as_str().unwrap_or("").to_owned();
        let created = show::parse_rfc3339(&text("CreatedAt"));
        let by = text("CreatedBy").replace(['\t', '\n'], " ");
        table.push(vec![
            if args.no_trunc { text("ID") } else { short(&text("ID")) },
            created.map_or_else(|| "N/A".to_owned(), |seconds| show::ago(now - seconds)),
            if args.no_trunc { by } else { show::shorten(&by, 45) },
            show::size(entry["Size"].as_u64().unwrap_or(0)),
            text("Comment"),
        ]);
    }
    print(|out| show::table(out, &table))
}

/// `rbuild inspect`
pub(crate) fn inspect(session: &Session, args: &InspectArgs) -> Result<(), Failure> {
    let root = session.open()?;
    let mut all = Vec::new();
    for text in &args.images {
        let descriptor = find(&root, text)?;
        if args.raw {
            let bytes = root.blobs().read(&descriptor.digest).or_fail(Class::Internal)?;
            print(|out| out.write_all(&bytes))?;
            continue;
        }
        all.extend(describe(&root, &descriptor).or_fail(Class::Internal)?);
    }
    if args.raw {
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&all).expect("JSON values can be written");
    print(|out| writeln!(out, "{text}"))
}

/// What `docker image inspect` shows of an image, an object a platform.
fn describe(root: &Root, descriptor: &Descriptor) -> Result<Vec<Value>, StoreError> {
    let names: Vec<String> = root
        .tags()
        .list()?
        .into_iter()
        .filter(|tag| tag.descriptor.digest == descriptor.digest)
        .map(|tag| tag.reference.familiar())
        .collect();
    let is_index = matches!(root.images().document(descriptor)?, Document::Index(_));
    let mut all = Vec::new();
    for (manifest_descriptor, manifest) in root.images().manifests(descriptor)? {
        let config = root.images().config(&manifest.config)?;
        let size: u64 = root.images().layer_sizes(&manifest, &config)?.iter().sum();
        let mut value = json!({
            "Id": manifest.config.digest,
            "RepoTags": names,
            "Digest": manifest_descriptor.digest,
            "Created": config.created,
            "Author": config.author,
            "Architecture": config.architecture,
            "Variant": config.variant,
            "Os": config.os,
            "Size": size,
            "Config": config.config,
            "RootFS": { "Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids },
            "Manifest": manifest,
        });
        if is_index {
            value["Index"] = json!(descriptor.digest);
        }
        all.push(value);
    }
    Ok(all)
}

/// The image that a user means.
pub(crate) fn find(root: &Root, text: &str) -> Result<Descriptor, Failure> {
    root.images().resolve(text).map_err(|error| {
        if error.is_missing() {
            return Failure::new(Class::Usage, format!("no such image: {text}"))
                .hint("`rbuild images` lists them");
        }
        Failure::of(Class::Internal, &error)
    })
}

/// The first 12 hex digits of a digest, as Docker shows IDs.
fn short(id: &str) -> String {
    match id.split_once(':') {
        Some((_, hex)) => hex.chars().take(12).collect(),
        None => id.to_owned(),
    }
}
