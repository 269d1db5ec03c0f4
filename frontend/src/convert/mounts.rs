//! `RUN --mount=...`: comma-separated fields to [`Mount`]s.

use solver::op::{Mount, MountKind, Sharing};

use crate::ast::{Span, Word};
use crate::diagnostic::Diagnostic;
use crate::suggest;
use crate::value::{boolean, fields};

use super::inputs::Inputs;
use super::path;
use super::plan::Origin;
use super::stage::StageBuilder;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARINGS: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
    "size",
    "env",
];

/// The stage, image or context a mount names; it is needed before variables have values, so it may have none.
pub(super) fn from_of(text: &str) -> Result<Option<String>, String> {
    let mut from = None;
    for field in fields(text).map_err(in_mounts)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 < value.len()) {
            return Err(format!("'{key}' doesn't support variable expansion, define alias stage instead"));
        }
        from = (!value.is_empty()).then(|| value.to_owned());
    }
    Ok(from)
}

fn in_mounts(reason: &str) -> String {
    format!("failed to parse csv mounts: {reason}")
}

/// What the fields say, before defaults.
#[derive(Debug, Default)]
struct Fields {
    kind: Kind,
    from: bool,
    source: String,
    target: String,
    readonly: Option<bool>,
    required: bool,
    size: Option<u64>,
    id: String,
    sharing: Option<Sharing>,
    mode: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Kind {
    fn name(self) -> &'static str {
        TYPES[self as usize]
    }
}

impl Fields {
    fn parse(
        text: &str,
        span: Span,
        mut expand: impl FnMut(&str) -> Result<String, Diagnostic>,
    ) -> Result<Self, Diagnostic> {
        let error = |message: String| Diagnostic::error("mount", span, message);
        let mut mount = Self::default();
        for field in fields(text).map_err(in_mounts).map_err(error)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(expand(value)?)),
                None => (field.to_lowercase(), None),
            };
            mount.set(&key, value.as_deref(), &field).map_err(|(message, word, options)| {
                suggest::help(error(message), &word, options.iter().copied())
            })?;
        }
        mount.check().map_err(error)?;
        Ok(mount)
    }

    fn set(
        &mut self,
        key: &str,
        value: Option<&str>,
        field: &str,
    ) -> Result<(), (String, String, &'static [&'static str])> {
        let plain = |message: String| (message, String::new(), &[][..]);
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => self.readonly = Some(true),
                "readwrite" | "rw" => self.readonly = Some(false),
                "required" if matches!(self.kind, Kind::Secret | Kind::Ssh) => self.required = true,
                "required" => return Err(plain(self.unexpected(key))),
                _ => return Err(plain(format!("invalid field '{field}' must be a key=value pair"))),
            }
            return Ok(());
        };
        let invalid = || plain(format!("invalid value for {key}: {value}"));
        let number = |radix| {
            u32::from_str_radix(value, radix).map_err(|_| plain(format!("invalid value {value} for {key}")))
        };
        match key {
            "type" => {
                self.kind = match value.to_lowercase().as_str() {
                    "bind" => Kind::Bind,
                    "cache" => Kind::Cache,
                    "tmpfs" => Kind::Tmpfs,
                    "secret" => Kind::Secret,
                    "ssh" => Kind::Ssh,
                    other => {
                        let message = format!("unsupported mount type {value:?}");
                        return Err((message, other.to_owned(), &TYPES));
                    }
                };
            }
            "from" => self.from = !value.is_empty(),
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "readonly" | "ro" => self.readonly = Some(boolean(value).ok_or_else(invalid)?),
            "readwrite" | "rw" => self.readonly = Some(!boolean(value).ok_or_else(invalid)?),
            "required" if matches!(self.kind, Kind::Secret | Kind::Ssh) => {
                self.required = boolean(value).ok_or_else(invalid)?;
            }
            "size" if self.kind == Kind::Tmpfs => self.size = Some(bytes(value).ok_or_else(invalid)?),
            "required" | "size" => return Err(plain(self.unexpected(key))),
            "id" => value.clone_into(&mut self.id),
            "sharing" => {
                self.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    other => {
                        let message = format!("unsupported sharing value {value:?}");
                        return Err((message, other.to_owned(), &SHARINGS));
                    }
                });
            }
            "mode" => {
                let mode = number(8)?;
                self.mode =
                    Some(u16::try_from(mode).ok().filter(|mode| *mode <= 0o7777).ok_or_else(invalid)?);
            }
            "uid" => self.uid = Some(number(10)?),
            "gid" => self.gid = Some(number(10)?),
            "env" if self.kind == Kind::Secret => self.env = Some(value.to_owned()),
            "env" => return Err(plain(self.unexpected(key))),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err((message, key.to_owned(), &KEYS));
            }
        }
        Ok(())
    }

    fn unexpected(&self, key: &str) -> String {
        format!("unexpected key '{key}' for mount type '{}'", self.kind.name())
    }

    fn check(&self) -> Result<(), String> {
        if matches!(self.kind, Kind::Bind | Kind::Tmpfs) {
            let set =
                [("mode", self.mode.is_some()), ("uid", self.uid.is_some()), ("gid", self.gid.is_some())];
            if let Some((key, _)) = set.iter().find(|(_, set)| *set) {
                return Err(format!("{key} not allowed for {:?} type mounts", self.kind.name()));
            }
        }
        if self.kind == Kind::Secret {
            if self.from {
                return Err("secret mount should not have a from".to_owned());
            }
            if self.sharing.is_some() {
                return Err("secret mount should not define sharing".to_owned());
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return Err("both source and id can't be set".to_owned());
            }
        }
        if self.sharing.is_some() && self.kind != Kind::Cache {
            return Err(format!("invalid cache sharing set for {} mount", self.kind.name()));
        }
        Ok(())
    }
}

/// `64`, `10k`, `1.5GiB`: powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    Some((number * (1u64 << shift) as f64) as u64)
}

impl StageBuilder<'_, '_> {
    /// All mounts of a RUN; what they read is added to `inputs`.
    pub(super) fn mounts(
        &mut self,
        words: &[Word],
        origins: &[Option<Origin>],
        inputs: &mut Inputs,
    ) -> Result<Vec<Mount>, Diagnostic> {
        let mut mounts = Vec::with_capacity(words.len());
        let mut sockets = 0;
        for (word, origin) in words.iter().zip(origins) {
            let span = word.span;
            let fields = Fields::parse(&word.value, span, |value| self.expand(value, span))?;
            mounts.push(self.mount(fields, origin.as_ref(), span, inputs, &mut sockets)?);
        }
        Ok(mounts)
    }

    fn mount(
        &mut self,
        fields: Fields,
        origin: Option<&Origin>,
        span: Span,
        inputs: &mut Inputs,
        sockets: &mut usize,
    ) -> Result<Mount, Diagnostic> {
        let in_workdir = |target: &str| path::absolute(&self.state.workdir, target);
        let source = path::rooted(&fields.source);
        let (uid, gid) = (fields.uid.unwrap_or(0), fields.gid.unwrap_or(0));
        let (target, kind) = match fields.kind {
            Kind::Bind => {
                let target = in_workdir(&fields.target);
                let input = self.mount_input(origin, true, &source, inputs);
                let writable = fields.readonly == Some(false);
                (target, MountKind::Bind { input, source, writable })
            }
            Kind::Cache => {
                let target = in_workdir(&fields.target);
                let id = if fields.id.is_empty() { path::clean(&fields.target) } else { fields.id };
                let namespace = self.shared.args.given("BUILDKIT_CACHE_MOUNT_NS").unwrap_or("");
                let kind = MountKind::Cache {
                    id: format!("{namespace}/{id}"),
                    sharing: fields.sharing.unwrap_or_default(),
                    input: self.mount_input(origin, false, &source, inputs),
                    source,
                    mode: fields.mode.unwrap_or(0o755),
                    uid,
                    gid,
                    readonly: fields.readonly == Some(true),
                };
                (target, kind)
            }
            Kind::Tmpfs => {
                let kind = MountKind::Tmpfs { size: fields.size, readonly: fields.readonly == Some(true) };
                (in_workdir(&fields.target), kind)
            }
            Kind::Secret => {
                let id = [&fields.id, &fields.source]
                    .into_iter()
                    .find(|id| !id.is_empty())
                    .cloned()
                    .unwrap_or_else(|| path::base(&fields.target).to_owned());
                // A variable alone makes no file.
                let target = match (fields.target.is_empty(), &fields.env) {
                    (false, _) => in_workdir(&fields.target),
                    (true, None) => format!("/run/secrets/{}", path::base(&id)),
                    (true, Some(_)) => String::new(),
                };
                let mode = fields.mode.unwrap_or(0o400);
                (target, MountKind::Secret { id, env: fields.env, required: fields.required, mode, uid, gid })
            }
            Kind::Ssh => {
                let target = if fields.target.is_empty() {
                    format!("/run/buildkit/ssh_agent.{sockets}")
                } else {
                    in_workdir(&fields.target)
                };
                *sockets += 1;
                let id = [fields.id, fields.source]
                    .into_iter()
                    .find(|id| !id.is_empty())
                    .unwrap_or_else(|| "default".to_owned());
                let mode = fields.mode.unwrap_or(0o600);
                (target, MountKind::Ssh { id, required: fields.required, mode, uid, gid })
            }
        };
        if target == "/" {
            return Err(Diagnostic::error("mount", span, format!("invalid mount target {target:?}"))
                .with_help("give a directory: target=/path"));
        }
        Ok(Mount { target, kind })
    }

    /// The input a mount reads at `source`; `None` for an empty one. Without `from`, a bind mount reads the context.
    fn mount_input(
        &mut self,
        origin: Option<&Origin>,
        context: bool,
        source: &str,
        inputs: &mut Inputs,
    ) -> Option<usize> {
        let (vertex, name) = match origin {
            Some(origin) => (self.shared.origin_vertex(origin, self.at)?, self.shared.origin_name(origin)),
            None if context => (self.shared.context(), "context".to_owned()),
            None => return None,
        };
        let pick = solver::definition::Pick {
            path: source.to_owned(),
            wildcard: false,
            follow_symlinks: true,
            exclude: Vec::new(),
            parents: false,
        };
        Some(inputs.read(&self.shared.definition, vertex, pick, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Fields, Diagnostic> {
        Fields::parse(text, Span::default(), |value| Ok(value.replace("$X", "expanded")))
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, size) in [("64", 64), ("10k", 10 << 10), ("1.5GiB", 3 << 29), ("2MB", 2 << 20)] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        assert_eq!((bytes("x"), bytes("1y")), (None, None));
    }

    #[test]
    fn values_are_expanded_and_checked() {
        let mount = parse("type=cache,target=/$X,sharing=locked,mode=0700,uid=5").unwrap();
        assert_eq!((mount.kind, mount.target.as_str(), mount.mode), (Kind::Cache, "/expanded", Some(0o700)));
        for (text, message, help) in [
            ("z", "invalid field 'z' must be a key=value pair", None),
            ("type=cahce", "unsupported mount type \"cahce\"", Some("did you mean cache?")),
            ("tagret=/x", "unexpected key 'tagret' in 'tagret=/x'", Some("did you mean target?")),
            ("type=bind,uid=1", "uid not allowed for \"bind\" type mounts", None),
            ("type=secret", "invalid secret mount. one of source, target required", None),
            ("type=secret,id=a,src=b", "both source and id can't be set", None),
            ("type=bind,required", "unexpected key 'required' for mount type 'bind'", None),
            ("type=bind,sharing=shared", "invalid cache sharing set for bind mount", None),
            (
                "type=cache,sharing=lokced",
                "unsupported sharing value \"lokced\"",
                Some("did you mean locked?"),
            ),
            ("type=cache,ro=maybe", "invalid value for ro: maybe", None),
            ("type=cache,uid=-1", "invalid value -1 for uid", None),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.message.as_str(), error.help.as_deref()), (message, help), "{text}");
        }
    }

    #[test]
    fn from_is_known_before_variables_are() {
        assert_eq!(from_of("type=bind,from=a,target=/x").unwrap().as_deref(), Some("a"));
        assert_eq!(from_of("type=bind,from=,target=$x").unwrap(), None);
        assert!(from_of("from=$stage").is_err());
    }
}
