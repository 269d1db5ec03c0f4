//! The typed syntax tree of a Dockerfile. Text is as written: nothing is expanded, quotes and escapes stand.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;

/// A byte range of the Dockerfile's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Past the last byte.
    pub end: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

/// An unexpanded word.
pub type Word = Spanned<String>;

/// A parsed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// Parser directives at its top.
    pub directives: Directives,
    /// All instructions in order. The first stage starts at the first FROM; only ARG may come before it.
    pub instructions: Vec<Instruction>,
}

/// `# syntax=`, `# escape=`, `# check=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// The frontend asked for. Recognised, never pulled.
    pub syntax: Option<Word>,
    /// `` ` `` if the escape character was changed; `\` otherwise.
    pub escape: Option<Spanned<char>>,
    /// Text after `# check=`.
    pub check: Option<Word>,
}

impl Directives {
    /// The escape character in force.
    pub fn escape_char(&self) -> char {
        self.escape.as_ref().map_or('\\', |escape| escape.value)
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// From its keyword to the end of its last line, heredoc bodies included, no trailing line break.
    pub span: Span,
    /// The keyword as written (`From`), to check its casing.
    pub keyword: Word,
    /// The logical line, keyword included, continuation lines joined as BuildKit joins them, heredoc bodies left out.
    pub original: String,
    /// Text of comment lines directly above it, without `#`: doc comments and `# check=skip=`.
    pub comments: Vec<Word>,
    /// The first blank line between its continuation lines.
    pub empty_continuation: Option<Span>,
    /// Flags in order, as written, for lint and suggestions; those with a meaning are in `kind` too.
    pub flags: Vec<Flag>,
    /// What it says.
    pub kind: InstructionKind,
}

/// `--name[=value]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// All of it.
    pub span: Span,
    /// Without the dashes.
    pub name: String,
    /// After `=`; `None` without one.
    pub value: Option<Word>,
}

/// The instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    /// `FROM [--platform=p] image [AS name]`
    From(From),
    /// `RUN`
    Run(Run),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `SHELL ["a", "b"]`
    Shell(Vec<String>),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Copy),
    /// `ARG a=1 b`
    Arg(Vec<ArgDefinition>),
    /// `ENV a=1 b=2` or `ENV a rest of line`
    Env(Pairs),
    /// `LABEL`, the same forms
    Label(Pairs),
    /// `EXPOSE 80 90/udp`
    Expose(Vec<Word>),
    /// `VOLUME /a /b` or JSON
    Volume(Vec<Word>),
    /// `USER user[:group]`
    User(Word),
    /// `WORKDIR path`
    Workdir(Word),
    /// `STOPSIGNAL signal`
    StopSignal(Word),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD instruction`
    Onbuild(Onbuild),
    /// `MAINTAINER name`
    Maintainer(Word),
}

/// `FROM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// `--platform`.
    pub platform: Option<Word>,
    /// Image, stage or named context.
    pub image: Word,
    /// Stage name, as written.
    pub name: Option<Word>,
    /// The word `AS` as written, to check its casing.
    pub as_keyword: Option<Word>,
}

/// Shell or exec form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The rest of the line, given to the shell.
    Shell(Word),
    /// A JSON array.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run. With heredocs: the command line without their bodies.
    pub command: Command,
    /// Heredocs in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, unparsed: `convert` expands and parses them.
    pub mounts: Vec<Word>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--security`.
    pub security: Option<Word>,
    /// `--device`.
    pub devices: Vec<Device>,
}

/// `--device` of a RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class` or `vendor/class=device`; not checked.
    pub name: String,
    /// The build fails if there is none.
    pub required: bool,
    /// The flag's value.
    pub span: Span,
}

/// `<<EOF` and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// Name without quotes.
    pub name: String,
    /// The whole word, `5<<-"EOF"`.
    pub word: Word,
    /// Descriptor before `<<`.
    pub fd: Option<u32>,
    /// Expand variables in the body: the name had no quotes.
    pub expand: bool,
    /// `<<-`: leading tabs are no part of what is written.
    pub chomp: bool,
    /// The body as it stands, each line with its line break.
    pub content: String,
    /// Where the body stands.
    pub content_span: Span,
}

impl Heredoc {
    /// The body as a file or script has it: for `<<-` without leading tabs.
    pub fn text(&self) -> Cow<'_, str> {
        static TABS: LazyLock<Regex> =
            LazyLock::new(|| Regex::new("(?m)^\t+").expect("it is a valid pattern"));
        if self.chomp { TABS.replace_all(&self.content, "") } else { Cow::Borrowed(&self.content) }
    }
}

/// `COPY` and `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Sources in order.
    pub sources: Vec<CopySource>,
    /// Destination.
    pub destination: Word,
    /// `COPY --from`.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `COPY --parents`.
    pub parents: bool,
    /// `--exclude` values.
    pub exclude: Vec<Word>,
    /// `ADD --keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `ADD --checksum`.
    pub checksum: Option<Word>,
    /// `ADD --unpack`.
    pub unpack: Option<bool>,
}

/// A source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path, pattern or URL.
    Path(Word),
    /// An inline file.
    Heredoc(Heredoc),
}

/// `name[=default]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDefinition {
    /// Name.
    pub name: Word,
    /// Default, as written.
    pub value: Option<Word>,
    /// The doc comment above it.
    pub comment: Option<String>,
}

/// Pairs of ENV and LABEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// Name and value, as written.
    pub pairs: Vec<(Word, Word)>,
    /// `K rest of line`, the legacy form.
    pub legacy: bool,
}

/// `HEALTHCHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`
    None,
    /// `CMD`
    Check {
        /// The command.
        command: Command,
        /// Nanoseconds; 0 if not given.
        interval: i64,
        /// Nanoseconds; 0 if not given.
        timeout: i64,
        /// Nanoseconds; 0 if not given.
        start_period: i64,
        /// Nanoseconds; 0 if not given.
        start_interval: i64,
        /// 0 if not given.
        retries: i64,
    },
}

/// `ONBUILD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The trigger's text: what is stored in the image and parsed when it fires.
    pub text: Word,
    /// The trigger, parsed, or why it cannot be: an error where it fires, and only there.
    pub instruction: Result<Box<Instruction>, Box<Diagnostic>>,
}
