//! `COPY` and `ADD`.

use image::tree::Chmod;
use solver::definition::Pick;
use solver::op::{self, File, FileAction, Owner, Source, Unpack};
use solver::{Input, Op, VertexId};

use crate::ast::{Copy, CopySource, Heredoc, Instruction, Span};
use crate::diagnostic::Diagnostic;
use crate::download::{file_name, is_http};
use crate::expand;
use crate::git::GitUrl;

use super::history;
use super::inputs::Inputs;
use super::lints;
use super::path;
use super::plan::Origin;
use super::stage::StageBuilder;

/// Name of a download whose URL has none.
const UNNAMED: &str = "__unnamed__";

/// Mode of inline files.
const INLINE_MODE: u16 = 0o644;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Copy,
    Add,
}

impl Kind {
    fn keyword(self) -> &'static str {
        match self {
            Self::Copy => "COPY",
            Self::Add => "ADD",
        }
    }
}

/// What all sources of one instruction share.
struct Common {
    destination: String,
    owner: Option<Owner>,
    mode: Option<String>,
    exclude: Vec<String>,
    /// Destination symlinks are followed: there is a base to follow them in.
    follow_destination: bool,
    span: Span,
}

impl StageBuilder<'_, '_> {
    /// `COPY`, of the context or of what `--from` means.
    pub(super) fn copy(
        &mut self,
        copy: &Copy,
        instruction: &Instruction,
        origin: Option<&Origin>,
        span: Span,
    ) -> Result<(), Diagnostic> {
        if let Some(checksum) = &copy.checksum {
            let message = "checksum can't be specified for COPY";
            return Err(Diagnostic::error("checksum", checksum.span, message));
        }
        self.copy_or_add(Kind::Copy, copy, instruction, origin, span)
    }

    /// `ADD`.
    pub(super) fn add(
        &mut self,
        copy: &Copy,
        instruction: &Instruction,
        span: Span,
    ) -> Result<(), Diagnostic> {
        self.copy_or_add(Kind::Add, copy, instruction, None, span)
    }

    fn copy_or_add(
        &mut self,
        kind: Kind,
        copy: &Copy,
        instruction: &Instruction,
        origin: Option<&Origin>,
        span: Span,
    ) -> Result<(), Diagnostic> {
        let destination_text = self.expand(&copy.destination.value, span)?;
        let chown = self.expand_flag(copy.chown.as_ref())?;
        let chmod = self.expand_flag(copy.chmod.as_ref())?;
        let checksum = self.expand_flag(copy.checksum.as_ref())?;
        let mut sources = Vec::new();
        let mut heredocs = Vec::new();
        for source in &copy.sources {
            match source {
                CopySource::Path(word) => sources.push((self.expand(&word.value, span)?, word.span)),
                CopySource::Heredoc(heredoc) => heredocs.push(heredoc),
            }
        }

        let destination = path::destination(&self.state.workdir, &destination_text);
        let changed_mode = match (&chmod, &copy.chmod) {
            (Some(chmod), Some(word)) => Some(
                chmod
                    .parse::<Chmod>()
                    .map_err(|error| Diagnostic::error("chmod", word.span, error.to_string()))?,
            ),
            _ => None,
        };
        if let (Some(_), Some(word)) = (&checksum, &copy.checksum) {
            check_checksum(&sources).map_err(|message| Diagnostic::error("checksum", word.span, message))?;
        }

        // As in BuildKit, --chmod and --link together are a copy without --link.
        let link = copy.link && chmod.is_none();
        let base = if link { None } else { self.state.vertex };
        let owner = chown.as_deref().map(owner);
        if let (None, Some(name), Some(word)) = (base, owner.as_ref().and_then(named), &copy.chown) {
            return Err(nobody_there("chown", word.span, name, link));
        }
        let mut text = kind.keyword().to_owned();
        for (flag, value) in [
            ("--parents", copy.parents.then_some("")),
            ("--chown", chown.as_deref()),
            ("--chmod", chmod.as_deref()),
        ] {
            match value {
                Some("") => text.push_str(&format!(" {flag}")),
                Some(value) => text.push_str(&format!(" {flag}={value}")),
                None => {}
            }
        }

        let shown = self.shown(&instruction.original, false);
        let name = self.progress_name(&shown);
        let mut inputs = base.map_or_else(Inputs::default, Inputs::with_base);
        let common = Common {
            destination,
            owner,
            mode: chmod,
            exclude: copy.exclude.iter().map(|word| word.value.clone()).collect(),
            follow_destination: !link,
            span,
        };
        let mut actions = Vec::with_capacity(copy.sources.len());
        for (source, source_span) in &sources {
            text.push(' ');
            text.push_str(source);
            let remote = remote(kind, copy, source, checksum.as_deref(), *source_span)?;
            let action = match remote {
                Some(remote) => self.copy_remote(copy, remote, &common, &name, &mut inputs),
                None => {
                    if copy.parents {
                        check_pivot(source, *source_span)?;
                    }
                    self.copy_path(kind, copy, source, origin, &common, &mut inputs)
                }
            };
            actions.push(FileAction::Copy(action));
        }
        for heredoc in heredocs {
            text.push_str(&format!(" <<{}", heredoc.name));
            actions.push(self.inline_file(heredoc, &common, changed_mode.as_ref())?);
        }
        text.push(' ');
        text.push_str(&destination_text);

        let (inputs, names) = inputs.finish();
        let file = Op::File(File { base: base.map(|_| 0), actions });
        let metadata = self.metadata(name, span, names);
        let vertex = self.add_vertex(file, inputs, metadata);
        self.state.vertex = Some(match self.state.vertex {
            Some(below) if link => self.linked(below, vertex, &shown, span),
            _ => vertex,
        });
        self.state.config.history.push(history::step_entry(text));
        Ok(())
    }

    /// `--link`: the layer was made on its own and is laid on top.
    fn linked(&mut self, below: VertexId, layer: VertexId, shown: &str, span: Span) -> VertexId {
        let name = self.progress_name_again(&format!("LINK {shown}"));
        let all = |vertex| Input { vertex, selector: None };
        let names = vec!["base".to_owned(), "link".to_owned()];
        let metadata = self.metadata(name, span, names);
        self.add_vertex(Op::Merge, vec![all(below), all(layer)], metadata)
    }

    fn expand_flag(&mut self, word: Option<&crate::ast::Word>) -> Result<Option<String>, Diagnostic> {
        let Some(word) = word else { return Ok(None) };
        let value = self.expand(&word.value, word.span)?;
        Ok((!value.is_empty()).then_some(value))
    }

    /// A path of the context or of another stage.
    fn copy_path(
        &mut self,
        kind: Kind,
        copy: &Copy,
        written: &str,
        origin: Option<&Origin>,
        common: &Common,
        inputs: &mut Inputs,
    ) -> op::Copy {
        let (vertex, name) = match origin {
            Some(origin) => {
                let vertex = self.shared.origin_vertex(origin, common.span);
                (vertex.unwrap_or_else(|| self.shared.empty()), self.shared.origin_name(origin))
            }
            None => {
                let keyword = if kind == Kind::Add { "Add" } else { "Copy" };
                let shared = &mut *self.shared;
                lints::ignored_file(keyword, written, &shared.ignored, common.span, &mut shared.warnings);
                (self.shared.context(), "context".to_owned())
            }
        };
        let (source, parents) = if copy.parents {
            // What is before the pivot is not kept.
            let (root, pattern) = written.split_once("/./").unwrap_or(("/", written));
            (path::rooted(root), Some(path::rooted(pattern)))
        } else {
            (path::rooted(written), None)
        };
        let whole = match &parents {
            Some(pattern) => path::absolute(&source, pattern.trim_start_matches('/')),
            None => source.clone(),
        };
        let wildcard = path::has_wildcards(&whole);
        let pick = Pick {
            path: whole,
            wildcard,
            follow_symlinks: true,
            exclude: common.exclude.clone(),
            parents: copy.parents,
        };
        let unpack = copy.unpack.unwrap_or(kind == Kind::Add);
        op::Copy {
            input: inputs.read(&self.shared.definition, vertex, pick, name),
            source,
            destination: common.destination.clone(),
            wildcard,
            allow_empty: wildcard,
            follow_symlinks: true,
            contents_only: true,
            unpack: if unpack { Unpack::IfArchive } else { Unpack::Never },
            parents: parents.map(|pattern| pattern.trim_start_matches('/').to_owned()),
            exclude: common.exclude.clone(),
            owner: common.owner.clone(),
            mode: common.mode.clone(),
            required: !wildcard,
            follow_destination: common.follow_destination,
        }
    }

    fn copy_remote(
        &mut self,
        copy: &Copy,
        source: Source,
        common: &Common,
        name: &str,
        inputs: &mut Inputs,
    ) -> op::Copy {
        let (path, contents_only, unpack) = match &source {
            Source::Http { filename, .. } => (path::rooted(filename), false, copy.unpack.unwrap_or(false)),
            _ => ("/".to_owned(), true, false),
        };
        let input_name = self.shared.origin_name(&Origin::Source(source.clone()));
        let span = Some((common.span.start, common.span.end));
        let vertex = self.shared.source(source, name.to_owned(), span);
        // All there is of a download or checkout is copied, so its own digest is enough to know: nothing is fetched for it.
        let pick = Pick {
            path: "/".to_owned(),
            wildcard: false,
            follow_symlinks: false,
            exclude: common.exclude.clone(),
            parents: false,
        };
        op::Copy {
            input: inputs.read(&self.shared.definition, vertex, pick, input_name),
            source: path,
            destination: common.destination.clone(),
            wildcard: false,
            allow_empty: false,
            follow_symlinks: false,
            contents_only,
            unpack: if unpack { Unpack::IfArchive } else { Unpack::Never },
            parents: None,
            exclude: common.exclude.clone(),
            owner: common.owner.clone(),
            mode: common.mode.clone(),
            required: true,
            follow_destination: common.follow_destination,
        }
    }

    fn inline_file(
        &mut self,
        heredoc: &Heredoc,
        common: &Common,
        mode: Option<&Chmod>,
    ) -> Result<FileAction, Diagnostic> {
        let path = path::rooted(&heredoc.name);
        if path == "/" || path::base(&path).len() + 1 != path.len() {
            let message =
                format!("{:?} is no file name, but names the file that the heredoc is", heredoc.name);
            return Err(Diagnostic::error("heredoc-name", common.span, message)
                .with_help("write the directory into the destination"));
        }
        let content = if heredoc.expand {
            let expanded = expand::expand_heredoc(&heredoc.text(), &self.state.variables)
                .map_err(|error| error.diagnostic(common.span))?;
            self.warn_undefined(&expanded.unmatched);
            expanded.text
        } else {
            heredoc.text().into_owned()
        };
        Ok(FileAction::Mkfile {
            path: common.destination.clone(),
            data: content.into_bytes(),
            mode: mode.map_or(INLINE_MODE, |mode| mode.apply(INLINE_MODE, false)),
            parents_mode: Chmod::of_parents(mode),
            owner: common.owner.clone(),
            name: Some(heredoc.name.clone()),
        })
    }
}

/// The source of a URL; `None` for a path.
pub(super) fn remote(
    kind: Kind,
    copy: &Copy,
    written: &str,
    checksum: Option<&str>,
    span: Span,
) -> Result<Option<Source>, Diagnostic> {
    let error = |message: String| Diagnostic::error("remote-source", span, message);
    if let Some(git) = GitUrl::parse(written) {
        let mut git = git.map_err(|cause| error(cause.to_string()))?;
        if kind == Kind::Copy {
            return Err(error("source can't be a git ref for COPY".to_owned()));
        }
        match (copy.keep_git_dir, git.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(error("inconsistent keep-git-dir configuration".to_owned()));
            }
            (flag, query) => git.keep_git_dir = query.or(flag),
        }
        match (checksum, &git.checksum) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(error(format!("checksum mismatch {flag:?} != {query:?}")));
            }
            (Some(flag), None) => git.checksum = Some(flag.to_owned()),
            _ => {}
        }
        return Ok(Some(git.into_source()));
    }
    if !is_http(written) {
        return Ok(None);
    }
    if kind == Kind::Copy {
        return Err(error("source can't be a URL for COPY".to_owned()).with_help("use ADD"));
    }
    let checksum = match checksum {
        Some(text) => Some(text.parse().map_err(|cause| error(format!("{cause}")))?),
        None => None,
    };
    Ok(Some(Source::Http {
        url: written.to_owned(),
        checksum,
        filename: file_name(written).unwrap_or_else(|| UNNAMED.to_owned()),
        mode: None,
        owner: None,
    }))
}

/// `--parents a/./`: with nothing behind the pivot nothing is picked, and a source that picks nothing is not there.
fn check_pivot(written: &str, span: Span) -> Result<(), Diagnostic> {
    match written.split_once("/./") {
        Some((root, rest)) if path::rooted(rest) == "/" && !path::has_wildcards(root) => {
            let message =
                format!("{:?}: not found: nothing is named behind the pivot /./", path::rooted(root));
            Err(Diagnostic::error("copy-parents", span, message).with_help(format!("write {root}/./*")))
        }
        _ => Ok(()),
    }
}

/// The user and group of `--chown` or USER, for what is made. An empty one that is given is root, and root is 0 in any
/// image.
pub(super) fn owner(chown: &str) -> Owner {
    let named = |name: &str| if matches!(name, "" | "root") { "0".to_owned() } else { name.to_owned() };
    match chown.split_once(':') {
        Some((user, group)) => Owner { user: named(user), group: Some(named(group)) },
        None => Owner { user: named(chown), group: None },
    }
}

/// The first of the two that must be looked up in an image, if any.
pub(super) fn named(owner: &Owner) -> Option<&str> {
    let mut names = std::iter::once(owner.user.as_str()).chain(owner.group.as_deref());
    names.find(|name| name.parse::<i32>().is_err())
}

/// An owner's name where there is nothing that it could be looked up in.
pub(super) fn nobody_there(code: &'static str, span: Span, name: &str, link: bool) -> Diagnostic {
    let (message, help) = match link {
        true => (
            format!("--chown with --link cannot look up {name:?}: the layer is made without the image"),
            "write numbers, or leave --link out",
        ),
        false => (
            format!("could not look up {name:?}: the image is empty and has no /etc/passwd and /etc/group"),
            "write numbers",
        ),
    };
    Diagnostic::error(code, span, message).with_help(help)
}

fn check_checksum(sources: &[(String, Span)]) -> Result<(), String> {
    match sources {
        [(source, _)] if is_http(source) || GitUrl::parse(source).is_some() => Ok(()),
        [_] => Err("checksum requires HTTP(S) or Git sources".to_owned()),
        _ => Err("checksum can't be specified for multiple sources".to_owned()),
    }
}
