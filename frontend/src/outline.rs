//! `--call=outline` and `--call=targets`: what a Dockerfile can be asked for, as data, text and JSON. Nothing is pulled
//! for it: base images count as having no config.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use base64::Engine as _;
use image::{Digest, ImageConfig};
use serde::{Serialize, Serializer};
use solver::op::Source;

use crate::ast::{Dockerfile, Span};
use crate::convert::{AskedMount, convert_and_ask};
use crate::diagnostic::Diagnostic;
use crate::lint::report::Location;
use crate::request::{Conversion, Request, ResolvedImage};
use crate::stages::{Stage, Stages};
use crate::text::LineIndex;

/// What building a target asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// Name of the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its doc comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Build args, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
    /// Secrets of mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Mount>,
    /// SSH agents of mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Mount>,
    /// Cache mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<Cache>,
    /// The Dockerfile; locations count in it.
    #[serde(serialize_with = "base64_list")]
    pub sources: Vec<Vec<u8>>,
}

/// A build arg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// Its doc comment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The value it would have.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Where it is declared.
    pub location: Location,
}

/// A secret or an SSH agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Its id.
    pub name: String,
    /// The build fails without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Where it is used first.
    pub location: Location,
}

/// A cache mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Where it is used first.
    pub location: Location,
}

/// The stages of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// In the order of the file.
    pub targets: Vec<Target>,
    /// The Dockerfile; locations count in it.
    #[serde(serialize_with = "base64_list")]
    pub sources: Vec<Vec<u8>>,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It is built if no target is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// Its doc comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What is after FROM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// `--platform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Where it starts.
    pub location: Location,
}

/// What building the request's target asks for.
pub fn outline(dockerfile: &Dockerfile, text: &str, request: &Request) -> Result<Outline, Vec<Diagnostic>> {
    let stages = Stages::of(dockerfile);
    let target = stages.target(request.target.as_deref()).map_err(|error| vec![error])?;
    let mut request = request.without_running();
    let mut images = HashMap::new();
    let asked = loop {
        match convert_and_ask(dockerfile, &request, &images)? {
            (Conversion::Complete(_), asked) => break asked,
            (Conversion::NeedsTime(source), _) => {
                request.times.insert(*source, None);
            }
            (Conversion::NeedsImages(needed), _) => {
                images.extend(needed.into_iter().map(|image| (image.source.clone(), unknown(&image.source))));
            }
        }
    };
    let index = LineIndex::new(text);
    let mut args: Vec<(Span, Arg)> = asked
        .args
        .into_iter()
        .map(|(name, arg)| {
            let location = Location::lines(&index, arg.span);
            let description = arg.description.unwrap_or_default();
            (arg.span, Arg { name, description, value: arg.value, location })
        })
        .collect();
    args.sort_by_key(|(span, _)| *span);
    let mut caches: Vec<(String, Span)> = asked.caches.into_iter().collect();
    caches.sort_by_key(|(_, span)| *span);
    let cache = caches.into_iter().map(|(id, span)| Cache { id, location: Location::lines(&index, span) });
    Ok(Outline {
        name: target.name.clone(),
        description: description(target),
        args: args.into_iter().map(|(_, arg)| arg).collect(),
        secrets: mounts(asked.secrets, &index),
        ssh: mounts(asked.ssh, &index),
        cache: cache.collect(),
        sources: vec![text.as_bytes().to_vec()],
    })
}

/// The stages that can be built.
pub fn targets(dockerfile: &Dockerfile, text: &str) -> Targets {
    let stages = Stages::of(dockerfile);
    let index = LineIndex::new(text);
    let last = stages.stages.len();
    let targets = stages.stages.iter().map(|stage| Target {
        name: stage.name.clone(),
        default: stage.index + 1 == last,
        description: description(stage),
        base: stage.from.image.value.clone(),
        platform: stage.from.platform.as_ref().map(|word| word.value.clone()),
        location: Location::lines(&index, stage.instruction.span),
    });
    Targets { targets: targets.collect(), sources: vec![text.as_bytes().to_vec()] }
}

impl Outline {
    /// Tables for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut head = Vec::new();
        for (title, value) in [("TARGET:", &self.name), ("DESCRIPTION:", &self.description)] {
            if let Some(value) = value {
                head.push(vec![title.to_owned(), value.clone()]);
            }
        }
        table(&mut text, &head, 1);
        if !self.args.is_empty() {
            let mut rows = vec![row(&["BUILD ARG", "VALUE", "DESCRIPTION"])];
            rows.extend(self.args.iter().map(|arg| row(&[&arg.name, &arg.value, &arg.description])));
            table(&mut text, &rows, 3);
        }
        for (title, mounts) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            if !mounts.is_empty() {
                let mut rows = vec![row(&[title, "REQUIRED"])];
                rows.extend(
                    mounts.iter().map(|mount| row(&[&mount.name, if mount.required { "true" } else { "" }])),
                );
                table(&mut text, &rows, 3);
            }
        }
        text
    }

    /// JSON as `docker buildx build --call=outline,format=json` prints it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data with string keys")
    }
}

impl Targets {
    /// A table for people.
    pub fn to_text(&self) -> String {
        let mut rows = vec![row(&["TARGET", "DESCRIPTION"])];
        for target in &self.targets {
            let name = match (&target.name, target.default) {
                (Some(name), true) => format!("{name} (default)"),
                (Some(name), false) => name.clone(),
                (None, true) => "(default)".to_owned(),
                (None, false) => String::new(),
            };
            rows.push(row(&[&name, target.description.as_deref().unwrap_or("")]));
        }
        let mut text = String::new();
        table(&mut text, &rows, 1);
        text.pop();
        text
    }

    /// JSON as `docker buildx build --call=targets,format=json` prints it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data with string keys")
    }
}

/// An image that nobody looked at.
fn unknown(source: &Source) -> ResolvedImage {
    let platform = match source {
        Source::Image { platform, .. } | Source::OciLayout { platform, .. } => platform.clone(),
        _ => image::Platform::host(),
    };
    ResolvedImage { digest: Digest::of(b""), config: ImageConfig::scratch(&platform) }
}

/// `# NAME text` above `FROM .. AS NAME`.
fn description(stage: &Stage<'_>) -> Option<String> {
    let name = stage.name.as_deref()?;
    stage.instruction.comments.iter().find_map(|comment| {
        let (first, rest) = comment.value.split_once(char::is_whitespace)?;
        first.eq_ignore_ascii_case(name).then(|| rest.trim().to_owned())
    })
}

fn mounts(asked: BTreeMap<String, AskedMount>, index: &LineIndex<'_>) -> Vec<Mount> {
    let mut mounts: Vec<(String, AskedMount)> = asked.into_iter().collect();
    mounts.sort_by_key(|(_, mount)| mount.span);
    mounts
        .into_iter()
        .map(|(name, mount)| Mount {
            name,
            required: mount.required,
            location: Location::lines(index, mount.span),
        })
        .collect()
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Columns as wide as their widest cell and `gap`, the last one as it is; a blank line below.
fn table(text: &mut String, rows: &[Vec<String>], gap: usize) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + gap;
    let widths: Vec<usize> = (0..columns.saturating_sub(1)).map(width).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let _ = write!(text, "{cell:width$}");
        }
        text.push('\n');
    }
    if !rows.is_empty() {
        text.push('\n');
    }
}

/// Bytes in JSON are base64, as Go writes them.
fn base64_list<S: Serializer>(list: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = concat!(
        "# VERSION of the base\n",
        "ARG VERSION=3 UNUSED=x\n",
        "ARG TAG=v$VERSION\n",
        "FROM base:$TAG AS dep\n",
        "# build makes it\n",
        "FROM base AS build\n",
        "# MODE how\n",
        "ARG MODE=fast\n",
        "ARG VERSION\n",
        "RUN --mount=type=secret,id=tok,required=true --mount=type=ssh --mount=type=cache,target=/c \\\n x\n",
        "COPY --from=dep / /\n",
        "FROM other\n",
    );

    fn parsed() -> Dockerfile {
        let (dockerfile, diagnostics) = crate::parse(TEXT.as_bytes());
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        dockerfile
    }

    #[test]
    fn an_outline_lists_what_the_target_asks_for() {
        let request = Request {
            target: Some("build".to_owned()),
            build_args: vec![("MODE".to_owned(), "slow".to_owned())],
            ..Request::default()
        };
        let outline = outline(&parsed(), TEXT, &request).unwrap();
        assert_eq!(
            outline.to_text(),
            concat!(
                "TARGET:      build\n",
                "DESCRIPTION: makes it\n\n",
                "BUILD ARG   VALUE   DESCRIPTION\n",
                "VERSION     3       of the base\n",
                "TAG         v3      \n",
                "MODE        slow    how\n\n",
                "SECRET   REQUIRED\n",
                "tok      true\n\n",
                "SSH       REQUIRED\n",
                "default   \n\n",
            )
        );
        assert_eq!(outline.cache[0].id, "//c");
        let lines = &outline.secrets[0].location.ranges;
        assert_eq!(lines.iter().map(|range| range.start.line).collect::<Vec<_>>(), [10, 11]);
        let json: serde_json::Value = serde_json::from_str(&outline.to_json()).unwrap();
        assert_eq!(json["args"][2]["value"], "slow");
        assert_eq!(json["secrets"][0]["required"], true);
        assert!(json["ssh"][0].get("required").is_none());
    }

    #[test]
    fn targets_are_the_stages_with_a_name() {
        let targets = targets(&parsed(), TEXT);
        assert_eq!(targets.to_text(), "TARGET    DESCRIPTION\ndep       \nbuild     makes it\n(default) \n");
        assert_eq!(targets.targets[0].base, "base:$TAG");
        let json: serde_json::Value = serde_json::from_str(&targets.to_json()).unwrap();
        assert_eq!(json["targets"][2]["default"], true);
    }
}
