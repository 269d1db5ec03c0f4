//! One instruction: its keyword, flags, arguments and heredocs, checked as far as text alone can tell.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::device;
use super::flag;
use super::heredoc::{self, Opening};
use super::json::{self, Json};
use super::keyword::Keyword;
use super::line::{Lines, Logical};
use super::word;
use crate::ast::{
    ArgDefinition, Command, Copy, CopySource, Flag, From, Heredoc, Instruction, InstructionKind, Onbuild,
    Pairs, Run, Span, Word,
};
use crate::diagnostic::{Diagnostic, nearest};

/// What became of an instruction's text.
#[derive(Debug)]
pub(super) struct Parsed {
    /// `None` if it has an error.
    pub(super) instruction: Option<Instruction>,
    pub(super) span: Span,
    /// Its keyword is FROM: a stage starts here, even if the rest is wrong.
    pub(super) is_from: bool,
}

/// Parse a logical line, and the bodies of its heredocs from `lines`.
pub(super) fn parse(
    line: &Logical<'_>,
    lines: &mut Lines<'_>,
    escape: char,
    comments: Vec<Word>,
    errors: &mut Vec<Diagnostic>,
) -> Parsed {
    let text = line.text.trim();
    let statement = Statement::read(line, text);
    let trigger =
        (statement.keyword == Some(Keyword::Onbuild)).then(|| Statement::read(line, statement.arguments));

    let openings = if trigger.as_ref().unwrap_or(&statement).may_have_heredocs() {
        heredoc::openings(line)
    } else {
        Vec::new()
    };
    let mut bodies = heredoc::read_bodies(openings, lines);
    let end = bodies.end.unwrap_or(line.end).max(line.end);
    let span = Span { start: line.span(text).start, end };

    let known = errors.len();
    errors.append(&mut bodies.errors);
    let context = Context { line, escape, comments: &comments };
    let is_from = statement.keyword == Some(Keyword::From);
    let kind = match trigger {
        None => context.kind(&statement, bodies.heredocs, errors),
        Some(trigger) => context.onbuild(&statement, trigger, bodies.heredocs, &bodies.raw, end, errors),
    };
    let instruction = kind.filter(|_| errors.len() == known).map(|kind| Instruction {
        span,
        keyword: line.word(statement.name),
        original: text.to_owned(),
        comments,
        empty_continuation: line.empty_continuation,
        flags: statement.flags,
        kind,
    });
    Parsed { instruction, span, is_from }
}

/// A keyword, its flags and the rest: an instruction, or the trigger of ONBUILD.
#[derive(Debug)]
pub(super) struct Statement<'l> {
    text: &'l str,
    name: &'l str,
    keyword: Option<Keyword>,
    pub(super) flags: Vec<Flag>,
    pub(super) arguments: &'l str,
}

impl<'l> Statement<'l> {
    fn read(line: &Logical<'_>, text: &'l str) -> Self {
        let (name, rest) = word::split_first(text);
        let (flags, arguments) = flag::split(line, rest);
        Self { text, name, keyword: Keyword::parse(name), flags, arguments: arguments.trim() }
    }

    /// RUN, COPY and ADD in shell form have heredocs. So does what was probably meant to be one of them: its bodies are
    /// no instructions.
    fn may_have_heredocs(&self) -> bool {
        let keyword = self.keyword.or_else(|| Keyword::parse(self.nearest()?));
        matches!(keyword, Some(Keyword::Run | Keyword::Copy | Keyword::Add))
            && matches!(json::parse(self.arguments), Json::No)
    }

    fn nearest(&self) -> Option<&'static str> {
        Keyword::nearest(self.name)
    }
}

/// What the parsers of single instructions share.
pub(super) struct Context<'c, 'a> {
    pub(super) line: &'c Logical<'a>,
    escape: char,
    comments: &'c [Word],
}

/// A part of an instruction, or the first thing wrong with it.
pub(super) type Parse<T> = Result<T, Diagnostic>;

impl Context<'_, '_> {
    /// The instruction itself; `None` with an error among `errors`.
    fn kind(
        &self,
        statement: &Statement<'_>,
        heredocs: Vec<Heredoc>,
        errors: &mut Vec<Diagnostic>,
    ) -> Option<InstructionKind> {
        let Some(keyword) = statement.keyword else {
            let span = self.line.span(statement.name);
            let message = format!("unknown instruction: {}", shorten(statement.name));
            let error = Diagnostic::error("unknown-instruction", span, message);
            errors.push(match statement.nearest() {
                Some(near) => error.with_help(format!("did you mean {}?", in_case_of(near, statement.name))),
                None => error,
            });
            return None;
        };
        // ARG and STOPSIGNAL never looked at their flags, and HEALTHCHECK NONE has none to look at.
        let disabled = keyword == Keyword::Healthcheck
            && word::split_first(statement.arguments).0.eq_ignore_ascii_case("NONE");
        if !matches!(keyword, Keyword::Arg | Keyword::StopSignal) && !disabled {
            flag::check(&statement.flags, keyword.flags(), errors);
        }
        match self.arguments(keyword, statement, heredocs) {
            Ok(kind) => Some(kind),
            Err(error) => {
                errors.push(error);
                None
            }
        }
    }

    fn arguments(
        &self,
        keyword: Keyword,
        statement: &Statement<'_>,
        heredocs: Vec<Heredoc>,
    ) -> Parse<InstructionKind> {
        Ok(match keyword {
            Keyword::From => InstructionKind::From(self.from(statement)?),
            Keyword::Run => InstructionKind::Run(self.run(statement, heredocs)?),
            Keyword::Cmd => InstructionKind::Cmd(self.command(statement.arguments)?),
            Keyword::Entrypoint => InstructionKind::Entrypoint(self.command(statement.arguments)?),
            Keyword::Shell => InstructionKind::Shell(self.shell(statement)?),
            Keyword::Copy | Keyword::Add => {
                let copy = self.copy(keyword, statement, heredocs)?;
                if keyword == Keyword::Copy {
                    InstructionKind::Copy(copy)
                } else {
                    InstructionKind::Add(copy)
                }
            }
            Keyword::Arg => InstructionKind::Arg(self.arg(statement)?),
            Keyword::Env => InstructionKind::Env(self.pairs(keyword, statement)?),
            Keyword::Label => InstructionKind::Label(self.pairs(keyword, statement)?),
            Keyword::Expose => InstructionKind::Expose(self.expose(statement)?),
            Keyword::Volume => InstructionKind::Volume(self.volume(statement)?),
            Keyword::User => InstructionKind::User(self.one(keyword, statement)?),
            Keyword::Workdir => InstructionKind::Workdir(self.one(keyword, statement)?),
            Keyword::StopSignal => InstructionKind::StopSignal(self.one(keyword, statement)?),
            Keyword::Maintainer => InstructionKind::Maintainer(self.one(keyword, statement)?),
            Keyword::Healthcheck => InstructionKind::Healthcheck(self.healthcheck(statement)?),
            Keyword::Onbuild => return Err(self.not_a_trigger(keyword, statement)),
        })
    }

    fn from(&self, statement: &Statement<'_>) -> Parse<From> {
        let words = word::plain_words(statement.arguments);
        let (image, name) = match *words.as_slice() {
            [image] => (image, None),
            [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => (image, Some((keyword, name))),
            _ => {
                let error = self.error(statement, "FROM requires either one or three arguments");
                return Err(error.with_help("write FROM IMAGE or FROM IMAGE AS NAME"));
            }
        };
        if let Some((_, name)) = name
            && !is_stage_name(&name.to_lowercase())
        {
            let message = format!(
                "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
                shorten(name)
            );
            return Err(Diagnostic::error("invalid-stage-name", self.line.span(name), message)
                .with_help("start it with a letter, and go on with letters, digits, '_', '.' and '-'"));
        }
        Ok(From {
            platform: flag::text(&statement.flags, "platform"),
            image: self.line.word(image),
            name: name.map(|(_, name)| self.line.word(name)),
            as_keyword: name.map(|(keyword, _)| self.line.word(keyword)),
        })
    }

    fn run(&self, statement: &Statement<'_>, heredocs: Vec<Heredoc>) -> Parse<Run> {
        let flags = &statement.flags;
        let network = flag::text(flags, "network");
        one_of(&network, &["default", "none", "host"], |mode| format!("invalid network mode {mode:?}"))?;
        let security = flag::text(flags, "security");
        one_of(&security, &["sandbox", "insecure"], |mode| format!("security {mode:?} is not valid"))?;
        Ok(Run {
            command: self.command(statement.arguments)?,
            heredocs,
            mounts: flag::list(flags, "mount"),
            network,
            security,
            devices: flag::list(flags, "device").iter().map(device::parse).collect::<Parse<_>>()?,
        })
    }

    /// Shell or exec form. Without arguments it is the shell form of an empty line, as the peers have it.
    pub(super) fn command(&self, arguments: &str) -> Parse<Command> {
        Ok(match self.json(arguments)? {
            Some(strings) => Command::Exec(strings.into_iter().map(|word| word.value).collect()),
            None => Command::Shell(self.line.word(arguments)),
        })
    }

    fn shell(&self, statement: &Statement<'_>) -> Parse<Vec<String>> {
        match self.json(statement.arguments)? {
            Some(strings) if !strings.is_empty() => Ok(strings.into_iter().map(|word| word.value).collect()),
            Some(_) => Err(self.missing_argument(Keyword::Shell, statement)),
            None if statement.arguments.is_empty() => Err(self.missing_argument(Keyword::Shell, statement)),
            None => {
                let error = self.error(statement, "SHELL requires the arguments to be in JSON form");
                Err(error.with_help("write SHELL [\"executable\", \"argument\"]"))
            }
        }
    }

    fn copy(&self, keyword: Keyword, statement: &Statement<'_>, heredocs: Vec<Heredoc>) -> Parse<Copy> {
        let name = keyword.name();
        let exec = self.json(statement.arguments)?;
        let is_exec = exec.is_some();
        let mut words = exec.unwrap_or_else(|| self.plain_words(statement.arguments));
        let Some(destination) = words.pop().filter(|_| !words.is_empty()) else {
            let message = format!(
                "{name} requires at least two arguments, but only one was provided. \
                 Destination could not be determined"
            );
            return Err(self
                .error(statement, message)
                .with_help(format!("write {name} SOURCE... DESTINATION")));
        };
        let opening = |word: &Word| if is_exec { None } else { Opening::parse(&word.value) };
        if opening(&destination).is_some() {
            let message = format!("{name} cannot accept a heredoc as a destination");
            return Err(Diagnostic::error("heredoc-destination", destination.span, message));
        }
        let mut heredocs = heredoc::ByName::new(heredocs);
        let mut sources = Vec::with_capacity(words.len());
        for word in words {
            sources.push(match opening(&word) {
                None => CopySource::Path(word),
                Some(opening) => match heredocs.take(&opening.name) {
                    Some(heredoc) => CopySource::Heredoc(heredoc),
                    None => {
                        return Err(Diagnostic::error(
                            "unterminated-heredoc",
                            word.span,
                            "unterminated heredoc",
                        ));
                    }
                },
            });
        }
        let flags = &statement.flags;
        let from = flag::text(flags, "from");
        if let Some(from) = &from
            && from.value.contains('$')
        {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG \
                           from global scope as a workaround";
            return Err(Diagnostic::error("variable-in-from", from.span, message));
        }
        Ok(Copy {
            sources,
            destination,
            from,
            chown: flag::text(flags, "chown"),
            chmod: flag::text(flags, "chmod"),
            link: flag::switch(flags, "link").unwrap_or(false),
            parents: flag::switch(flags, "parents").unwrap_or(false),
            exclude: flag::list(flags, "exclude"),
            keep_git_dir: flag::switch(flags, "keep-git-dir"),
            checksum: flag::text(flags, "checksum"),
            unpack: flag::switch(flags, "unpack"),
        })
    }

    fn arg(&self, statement: &Statement<'_>) -> Parse<Vec<ArgDefinition>> {
        let words = word::quoted_words(statement.arguments, self.escape);
        if words.is_empty() {
            return Err(self.missing_argument(Keyword::Arg, statement));
        }
        let comments = self.doc_comments();
        words
            .into_iter()
            .map(|word| {
                let (name, value) = match word.split_once('=') {
                    Some(("", _)) => return Err(self.blank_name(Keyword::Arg, word)),
                    Some((name, value)) => (name, Some(self.line.word(value))),
                    None => (word, None),
                };
                Ok(ArgDefinition {
                    name: self.line.word(name),
                    value,
                    comment: comments.get(name).map(|&text| text.to_owned()),
                })
            })
            .collect()
    }

    fn pairs(&self, keyword: Keyword, statement: &Statement<'_>) -> Parse<Pairs> {
        let words = word::quoted_words(statement.arguments, self.escape);
        let Some(first) = words.first() else { return Err(self.missing_argument(keyword, statement)) };
        if !first.contains('=') {
            let (name, value) = word::split_first(statement.arguments);
            if value.is_empty() {
                let name = keyword.name();
                let error = self.error(statement, format!("{name} must have two arguments"));
                return Err(error.with_help(format!("write {name} KEY=VALUE")));
            }
            let pairs = vec![(self.line.word(name), self.line.word(value))];
            return Ok(Pairs { pairs, legacy: true });
        }
        let mut pairs = Vec::with_capacity(words.len());
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                let message = format!(
                    "Syntax error - can't find = in {:?}. Must be of the form: name=value",
                    shorten(word)
                );
                let error = Diagnostic::error("missing-equals", self.line.span(word), message);
                return Err(error.with_help("put a value with blanks in quotes"));
            };
            if name.is_empty() {
                return Err(self.blank_name(keyword, word));
            }
            pairs.push((self.line.word(name), self.line.word(value)));
        }
        Ok(Pairs { pairs, legacy: false })
    }

    fn expose(&self, statement: &Statement<'_>) -> Parse<Vec<Word>> {
        let words = self.plain_words(statement.arguments);
        if words.is_empty() {
            return Err(self.missing_argument(Keyword::Expose, statement));
        }
        Ok(words)
    }

    fn volume(&self, statement: &Statement<'_>) -> Parse<Vec<Word>> {
        let words = match self.json(statement.arguments)? {
            Some(words) => words,
            None => self.plain_words(statement.arguments),
        };
        if words.is_empty() {
            return Err(self.missing_argument(Keyword::Volume, statement));
        }
        words
            .into_iter()
            .map(|word| match word.value.trim() {
                "" => {
                    let message = "VOLUME specified can not be an empty string";
                    Err(Diagnostic::error("empty-volume", word.span, message))
                }
                path => Ok(Word { value: path.to_owned(), span: word.span }),
            })
            .collect()
    }

    /// The rest of the line as one argument.
    fn one(&self, keyword: Keyword, statement: &Statement<'_>) -> Parse<Word> {
        if statement.arguments.is_empty() {
            let message = format!("{} requires exactly one argument", keyword.name());
            return Err(self.error(statement, message).with_help(format!("write {}", keyword.form())));
        }
        Ok(self.line.word(statement.arguments))
    }

    fn onbuild(
        &self,
        statement: &Statement<'_>,
        trigger: Statement<'_>,
        heredocs: Vec<Heredoc>,
        raw_heredocs: &str,
        end: usize,
        errors: &mut Vec<Diagnostic>,
    ) -> Option<InstructionKind> {
        flag::check(&statement.flags, &[], errors);
        if trigger.name.is_empty() {
            errors.push(self.missing_argument(Keyword::Onbuild, statement));
            return None;
        }
        if let Some(keyword @ (Keyword::Onbuild | Keyword::Maintainer | Keyword::From)) = trigger.keyword {
            errors.push(self.not_a_trigger(keyword, &trigger));
            return None;
        }
        let span = Span { start: self.line.span(trigger.text).start, end };
        let text = Word { value: format!("{}{raw_heredocs}", trigger.text), span };
        let mut own = Vec::new();
        let kind = self.kind(&trigger, heredocs, &mut own);
        let instruction = match (kind, own.into_iter().next()) {
            (Some(kind), None) => Ok(Box::new(Instruction {
                span,
                keyword: self.line.word(trigger.name),
                original: trigger.text.to_owned(),
                comments: Vec::new(),
                empty_continuation: None,
                flags: trigger.flags,
                kind,
            })),
            // As in BuildKit, where the words of these are taken apart at once.
            (_, Some(error)) if matches!(trigger.keyword, Some(Keyword::Env | Keyword::Label)) => {
                errors.push(error);
                return None;
            }
            (_, Some(error)) => Err(Box::new(error)),
            (None, None) => return None,
        };
        Some(InstructionKind::Onbuild(Onbuild { text, instruction }))
    }

    fn not_a_trigger(&self, keyword: Keyword, trigger: &Statement<'_>) -> Diagnostic {
        let message = match keyword {
            Keyword::Onbuild => "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned(),
            _ => format!("{} isn't allowed as an ONBUILD trigger", keyword.name()),
        };
        Diagnostic::error("invalid-trigger", self.line.span(trigger.name), message)
            .with_help("a trigger is one other instruction than FROM, ONBUILD and MAINTAINER")
    }

    /// The strings of a JSON array with their places; `None` if the arguments are none.
    fn json(&self, arguments: &str) -> Parse<Option<Vec<Word>>> {
        match json::parse(arguments) {
            Json::No => Ok(None),
            Json::Strings(strings) => Ok(Some(
                strings
                    .into_iter()
                    .map(|(value, literal)| Word { value, span: self.line.span(literal) })
                    .collect(),
            )),
            Json::NotStrings => {
                let message = "when using JSON array syntax, arrays must be comprised of strings only";
                let error = Diagnostic::error("json-not-strings", self.line.span(arguments), message);
                Err(error.with_help("put every argument in double quotes"))
            }
        }
    }

    fn plain_words(&self, arguments: &str) -> Vec<Word> {
        word::plain_words(arguments).into_iter().map(|word| self.line.word(word)).collect()
    }

    /// `# NAME text` above an instruction, by name; the first of a name counts.
    fn doc_comments(&self) -> HashMap<&str, &str> {
        self.comments.iter().rev().filter_map(|comment| comment.value.split_once(' ')).collect()
    }

    fn blank_name(&self, keyword: Keyword, word: &str) -> Diagnostic {
        let message = format!("{} names can not be blank", keyword.name());
        Diagnostic::error("blank-name", self.line.span(word), message)
            .with_help(format!("write {}", keyword.form()))
    }

    pub(super) fn missing_argument(&self, keyword: Keyword, statement: &Statement<'_>) -> Diagnostic {
        self.error(statement, format!("{} requires at least one argument", keyword.name()))
            .with_help(format!("write {}", keyword.form()))
    }

    /// An error about the arguments as a whole.
    pub(super) fn error(&self, statement: &Statement<'_>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error("invalid-arguments", self.line.span(statement.text), message)
    }
}

fn is_stage_name(name: &str) -> bool {
    static NAME: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^[a-z][a-z0-9_.-]*$").expect("it is a valid pattern"));
    NAME.is_match(name)
}

/// Refuse a value that is none of those allowed.
fn one_of(value: &Option<Word>, allowed: &[&str], message: impl Fn(&str) -> String) -> Parse<()> {
    let Some(value) = value else { return Ok(()) };
    if allowed.contains(&value.value.as_str()) {
        return Ok(());
    }
    let error = Diagnostic::error("invalid-flag-value", value.span, message(&shorten(&value.value)));
    Err(match nearest(&value.value, allowed.iter().copied()) {
        Some(near) => error.with_help(format!("did you mean {near}?")),
        None => error.with_help(format!("it is one of {}", allowed.join(", "))),
    })
}

/// `keyword`, in lower case if that is how the other is written.
fn in_case_of(keyword: &str, written: &str) -> String {
    if written.chars().any(char::is_uppercase) { keyword.to_owned() } else { keyword.to_lowercase() }
}

/// Text for a message: what is too long to read is cut.
pub(super) fn shorten(text: &str) -> String {
    let cut = crate::text::floor_boundary(text, 100);
    if cut == text.len() { text.to_owned() } else { format!("{}...", &text[..cut]) }
}
