//! Variables, quotes and escapes in a word: `$v`, `${v:-w}`, `${v##p}`, `${v/p/r}`. Which words are expanded, and with
//! which environment, is `convert`'s decision.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;

mod pattern;

use pattern::Pattern;

/// What variables are worth.
pub trait Env {
    /// The value of `name`; `None` if it is unset.
    fn get(&self, name: &str) -> Option<Cow<'_, str>>;
}

impl<F: Fn(&str) -> Option<String>> Env for F {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self(name).map(Cow::Owned)
    }
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Self::get(self, name).map(|value| Cow::Borrowed(value.as_str()))
    }
}

impl<S: std::hash::BuildHasher> Env for HashMap<String, String, S> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Self::get(self, name).map(|value| Cow::Borrowed(value.as_str()))
    }
}

/// A later pair of the same name wins.
impl Env for [(String, String)] {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.iter().rev().find(|(key, _)| key == name).map(|(_, value)| Cow::Borrowed(value.as_str()))
    }
}

impl Env for Vec<(String, String)> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Env::get(self.as_slice(), name)
    }
}

/// No variable is set.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyEnv;

impl Env for EmptyEnv {
    fn get(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// An expanded word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The result.
    pub text: String,
    /// Names that were looked up and set.
    pub used: BTreeSet<String>,
    /// Names that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word that was split after its expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpandedWords {
    /// The words; none is empty.
    pub words: Vec<String>,
    /// Names that were looked up and set.
    pub used: BTreeSet<String>,
    /// Names that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word that cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("failed to process {word:?}: {cause}")]
pub struct ExpandError {
    /// The word, cut if it is long.
    pub word: String,
    /// What is wrong with it.
    pub cause: ExpandErrorKind,
}

/// What can be wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpandErrorKind {
    /// A quote or the end of `${v/p/r}`'s parts is missing.
    #[error("unexpected end of statement while looking for matching {0}")]
    UnexpectedEnd(&'static str),
    /// `${` without `}`.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${v/p` without the second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${:`, `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${v=x}` and the like.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${v:?message}` of a variable that is unset or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The word after `?`, or what is said without one.
        message: String,
    },
    /// A pattern after `#`, `%` or `/`.
    #[error("invalid pattern ({pattern}) in substitution: {cause}")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// Why.
        cause: String,
    },
    /// The result would pass [`MAX_VALUE`].
    #[error("the expanded value is larger than {MAX_VALUE} bytes")]
    TooLarge,
    /// Substitutions stand deeper in each other than [`MAX_DEPTH`].
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// The longest value that expansion makes: doubling a variable line by line must end somewhere.
pub const MAX_VALUE: usize = 1 << 20;

/// The bytes of values that one word may look at: those that are cut away again take time, too.
const MAX_READ: usize = 64 * MAX_VALUE;

/// How deep `${a:-${b:-...}}` may nest.
pub const MAX_DEPTH: usize = 100;

/// Expand a word: variables are replaced, quotes and escapes taken off, blanks kept.
pub fn expand_word(word: &str, escape: char, env: &dyn Env) -> Result<Expanded, ExpandError> {
    run(word, Mode { escape, ..Mode::WORD }, env).map(Output::into_expanded)
}

/// Expand a word, then split it at blanks: those of `$v`'s value count, those in quotes do not.
pub fn expand_words(word: &str, escape: char, env: &dyn Env) -> Result<ExpandedWords, ExpandError> {
    run(word, Mode { escape, ..Mode::WORD }, env).map(Output::into_words)
}

/// Expand a heredoc's body: quotes are text, and the escape character is always `\`.
pub fn expand_heredoc(body: &str, env: &dyn Env) -> Result<Expanded, ExpandError> {
    run(body, Mode { quotes: Quotes::Text, ..Mode::WORD }, env).map(Output::into_expanded)
}

/// Take quotes and escapes off a word, and leave variables as they are written.
pub fn unquote(word: &str, escape: char) -> Result<String, ExpandError> {
    run(word, Mode { escape, keep_unset: true, ..Mode::WORD }, &EmptyEnv).map(|output| output.text)
}

/// Expand a line for people to read: quotes and unset variables stay as they are written.
pub(crate) fn expand_shown(line: &str, escape: char, env: &dyn Env) -> Result<Expanded, ExpandError> {
    let mode = Mode { escape, quotes: Quotes::Keep, keep_unset: true, ..Mode::WORD };
    run(line, mode, env).map(Output::into_expanded)
}

/// Split a line at blanks outside quotes. Words stay as they are written.
pub(crate) fn split_raw(line: &str) -> Result<Vec<String>, ExpandError> {
    let mode = Mode { quotes: Quotes::Keep, raw_escapes: true, keep_unset: true, ..Mode::WORD };
    run(line, mode, &EmptyEnv).map(|output| output.into_words().words)
}

/// What happens to quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quotes {
    /// They group, and are taken off.
    Remove,
    /// They group, and stay.
    Keep,
    /// They are characters like any other.
    Text,
}

#[derive(Clone, Copy, Debug)]
struct Mode {
    escape: char,
    quotes: Quotes,
    // Escape characters stay in the result.
    raw_escapes: bool,
    // An unset variable stays as it is written.
    keep_unset: bool,
}

impl Mode {
    const WORD: Self = Self { escape: '\\', quotes: Quotes::Remove, raw_escapes: false, keep_unset: false };
}

fn run(word: &str, mode: Mode, env: &dyn Env) -> Result<Output, ExpandError> {
    let mut lexer =
        Lexer { rest: word, mode, env, depth: 0, read: 0, used: BTreeSet::new(), unmatched: BTreeSet::new() };
    let mut words = Words::default();
    match lexer.until(None, mode.raw_escapes, Some(&mut words)) {
        Ok(text) => Ok(Output { text, words: words.finish(), used: lexer.used, unmatched: lexer.unmatched }),
        Err(cause) => {
            let cut = crate::text::floor_boundary(word, 200);
            Err(ExpandError { word: word[..cut].to_owned(), cause })
        }
    }
}

#[derive(Debug)]
struct Output {
    text: String,
    words: Vec<String>,
    used: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl Output {
    fn into_expanded(self) -> Expanded {
        Expanded { text: self.text, used: self.used, unmatched: self.unmatched }
    }

    fn into_words(self) -> ExpandedWords {
        ExpandedWords { words: self.words, used: self.used, unmatched: self.unmatched }
    }
}

/// Splits what is written to it at blanks.
#[derive(Debug, Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    /// Text whose blanks end the word.
    fn split(&mut self, text: &str) {
        for character in text.chars() {
            if !character.is_whitespace() {
                self.word.push(character);
            } else if !self.word.is_empty() {
                self.done.push(std::mem::take(&mut self.word));
            }
        }
    }

    /// Text whose blanks are part of the word.
    fn keep(&mut self, text: &str) {
        self.word.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

type Outcome<T> = Result<T, ExpandErrorKind>;

struct Lexer<'w, 'e> {
    rest: &'w str,
    mode: Mode,
    env: &'e dyn Env,
    depth: usize,
    // Bytes of all values so far.
    read: usize,
    used: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl Lexer<'_, '_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.rest = &self.rest[character.len_utf8()..];
        Some(character)
    }

    /// Expand up to the end of the text, or up to and with `stop`, which must come.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
        mut words: Option<&mut Words>,
    ) -> Outcome<String> {
        let mut result = String::new();
        let quotes = self.mode.quotes != Quotes::Text;
        while let Some(character) = self.peek() {
            if stop == Some(character) {
                self.next();
                return Ok(result);
            }
            match character {
                '$' => {
                    let value = self.dollar()?;
                    append(&mut result, &value)?;
                    if let Some(words) = words.as_deref_mut() {
                        words.split(&value);
                    }
                }
                '\'' | '"' if quotes => {
                    let quoted = if character == '"' {
                        self.double_quoted(raw_escapes)?
                    } else {
                        self.single_quoted()?
                    };
                    append(&mut result, &quoted)?;
                    if let Some(words) = words.as_deref_mut() {
                        words.keep(&quoted);
                    }
                }
                _ => {
                    self.next();
                    let mut buffer = [0; 4];
                    if character != self.mode.escape {
                        let text = character.encode_utf8(&mut buffer);
                        append(&mut result, text)?;
                        if let Some(words) = words.as_deref_mut() {
                            words.split(text);
                        }
                        continue;
                    }
                    let start = if raw_escapes { Some(character) } else { None };
                    for character in start.into_iter().chain(self.next()) {
                        let text = character.encode_utf8(&mut buffer);
                        append(&mut result, text)?;
                        if let Some(words) = words.as_deref_mut() {
                            words.keep(text);
                        }
                    }
                }
            }
        }
        match stop {
            None => Ok(result),
            Some('/') => Err(ExpandErrorKind::MissingSlash),
            Some(_) => Err(ExpandErrorKind::MissingBrace),
        }
    }

    /// `'...'`: nothing is special in it.
    fn single_quoted(&mut self) -> Outcome<String> {
        let inner = &self.rest[1..];
        let Some(end) = inner.find('\'') else {
            self.rest = "";
            return Err(ExpandErrorKind::UnexpectedEnd("single-quote"));
        };
        let text = if self.mode.quotes == Quotes::Keep { &self.rest[..end + 2] } else { &inner[..end] };
        self.rest = &inner[end + 1..];
        Ok(text.to_owned())
    }

    /// `"..."`: variables are expanded; the escape character acts before `"`, `$` and itself.
    fn double_quoted(&mut self, raw_escapes: bool) -> Outcome<String> {
        let mut result = String::new();
        let keep = self.mode.quotes == Quotes::Keep;
        self.next();
        if keep {
            result.push('"');
        }
        loop {
            match self.peek() {
                None => return Err(ExpandErrorKind::UnexpectedEnd("double-quote")),
                Some('"') => {
                    self.next();
                    if keep {
                        result.push('"');
                    }
                    return Ok(result);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    append(&mut result, &value)?;
                }
                Some(character) => {
                    self.next();
                    let mut character = character;
                    if character == self.mode.escape {
                        // Kept escapes are doubled before a character that needs none: in a pattern, that is the
                        // character itself.
                        if raw_escapes {
                            result.push(character);
                        }
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == self.mode.escape => {
                                self.next();
                                character = next;
                            }
                            Some(_) => {}
                        }
                    }
                    let mut buffer = [0; 4];
                    append(&mut result, character.encode_utf8(&mut buffer))?;
                }
            }
        }
    }

    /// `$name` or `${...}`.
    fn dollar(&mut self) -> Outcome<String> {
        if self.depth == MAX_DEPTH {
            return Err(ExpandErrorKind::TooDeep);
        }
        self.depth += 1;
        self.next();
        let value = if self.peek() == Some('{') {
            self.next();
            self.braces()
        } else {
            self.plain()
        };
        self.depth -= 1;
        value
    }

    fn plain(&mut self) -> Outcome<String> {
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.look_up(&name)? {
            None if self.mode.keep_unset => format!("${name}"),
            value => value.unwrap_or_default(),
        })
    }

    fn braces(&mut self) -> Outcome<String> {
        match self.peek() {
            None => return Err(ExpandErrorKind::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandErrorKind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let Some(mut operator) = self.next() else { return Err(ExpandErrorKind::MissingBrace) };
        let mut written = operator.to_string();
        match operator {
            '}' => match self.look_up(&name)? {
                None if self.mode.keep_unset => Ok(format!("${{{name}}}")),
                value => Ok(value.unwrap_or_default()),
            },
            '/' => self.replace(&name),
            ':' | '+' | '-' | '?' | '#' | '%' => {
                let empty_is_unset = operator == ':';
                if empty_is_unset {
                    operator = self.next().ok_or(ExpandErrorKind::MissingBrace)?;
                    written.push(operator);
                }
                let word = self.until(Some('}'), matches!(operator, '#' | '%'), None)?;
                let value = self.look_up(&name)?;
                if self.mode.keep_unset && value.is_none() {
                    return Ok(format!("${{{name}{written}{word}}}"));
                }
                let usable = value.as_deref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
                match operator {
                    '-' if usable => Ok(value.unwrap_or_default()),
                    '-' => Ok(word),
                    '+' if usable => Ok(word),
                    '+' => Ok(String::new()),
                    '?' if usable => Ok(value.unwrap_or_default()),
                    '?' => {
                        let message = match (word.is_empty(), value.is_some()) {
                            (false, _) => word,
                            (true, false) => "is not allowed to be unset".to_owned(),
                            (true, true) => "is not allowed to be empty".to_owned(),
                        };
                        Err(ExpandErrorKind::Required { name, message })
                    }
                    '#' | '%' => trim(operator, &word, &value.unwrap_or_default()),
                    _ => Err(ExpandErrorKind::UnsupportedModifier(written)),
                }
            }
            _ => Err(ExpandErrorKind::UnsupportedModifier(written)),
        }
    }

    /// `${name/pattern/replacement}`, `${name//pattern/replacement}`.
    fn replace(&mut self, name: &str) -> Outcome<String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.until(Some('/'), true, None)?;
        let replacement = self.until(Some('}'), true, None)?;
        let value = self.look_up(name)?;
        if self.mode.keep_unset && value.is_none() {
            let slash = if all { "//" } else { "/" };
            return Ok(format!("${{{name}{slash}{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let compiled = Pattern::parse(&pattern)?;
        if all {
            compiled.replace_all(&value, &replacement)
        } else {
            compiled.replace_first(&value, &replacement)
        }
    }

    /// A name, a number, or one of the shell's special parameters; empty if none stands here.
    fn name(&mut self) -> String {
        let rest = self.rest;
        let length = match self.peek() {
            Some(first) if first.is_numeric() => {
                rest.find(|character: char| !character.is_numeric()).unwrap_or(rest.len())
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest
                .find(|character: char| !character.is_alphanumeric() && character != '_')
                .unwrap_or(rest.len()),
        };
        self.rest = &rest[length..];
        rest[..length].to_owned()
    }

    fn look_up(&mut self, name: &str) -> Outcome<Option<String>> {
        let value = self.env.get(name).map(Cow::into_owned);
        self.read += value.as_ref().map_or(0, String::len);
        if self.read > MAX_READ {
            return Err(ExpandErrorKind::TooLarge);
        }
        let names = if value.is_some() { &mut self.used } else { &mut self.unmatched };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        Ok(value)
    }
}

/// `#p`, `##p`, `%p`, `%%p`: `word` is what follows the first sign.
fn trim(sign: char, word: &str, value: &str) -> Outcome<String> {
    let (word, longest) = match word.strip_prefix(sign) {
        Some(word) => (word, true),
        None => (word, false),
    };
    let pattern = Pattern::parse(word)?;
    if sign == '#' { pattern.trim_prefix(value, longest) } else { pattern.trim_suffix(value, longest) }
}

fn append(result: &mut String, text: &str) -> Outcome<()> {
    if result.len() + text.len() > MAX_VALUE {
        return Err(ExpandErrorKind::TooLarge);
    }
    result.push_str(text);
    Ok(())
}

#[cfg(test)]
mod tests;
