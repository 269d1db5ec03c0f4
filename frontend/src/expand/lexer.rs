//! The lexer behind all ways to expand a word. It reads the text once, and only substitutions make it recurse.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::pattern::Pattern;
use super::{Env, ExpandError, ExpandErrorKind, Expanded, ExpandedWords, MAX_DEPTH, MAX_VALUE};

/// The bytes of values that one word may look at: those that are cut away again take time, too.
const MAX_READ: usize = 64 * MAX_VALUE;

/// What happens to quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// They group, and are taken off.
    Remove,
    /// They group, and stay.
    Keep,
    /// They are characters like any other.
    Text,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) escape: char,
    pub(super) quotes: Quotes,
    /// Escape characters stay in the result.
    pub(super) raw_escapes: bool,
    /// An unset variable stays as it is written.
    pub(super) keep_unset: bool,
}

impl Mode {
    pub(super) const WORD: Self =
        Self { escape: '\\', quotes: Quotes::Remove, raw_escapes: false, keep_unset: false };
}

/// Expand a word in a mode.
pub(super) fn run(word: &str, mode: Mode, env: &dyn Env) -> Result<Output, ExpandError> {
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
pub(super) struct Output {
    pub(super) text: String,
    words: Vec<String>,
    used: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl Output {
    pub(super) fn into_expanded(self) -> Expanded {
        Expanded { text: self.text, used: self.used, unmatched: self.unmatched }
    }

    pub(super) fn into_words(self) -> ExpandedWords {
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

impl<'w> Lexer<'w, '_> {
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
                '<' => {
                    let text = self.less();
                    append(&mut result, text)?;
                    if let Some(words) = words.as_deref_mut() {
                        words.keep(text);
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

    /// `<`, or `<<` with the blanks between it and a heredoc's name: they do not part the two.
    fn less(&mut self) -> &'w str {
        let rest = self.rest;
        let after = match rest.strip_prefix("<<") {
            Some(after) => after.trim_start(),
            None => &rest[1..],
        };
        self.rest = after;
        &rest[..rest.len() - after.len()]
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

pub(super) fn append(result: &mut String, text: &str) -> Outcome<()> {
    if result.len() + text.len() > MAX_VALUE {
        return Err(ExpandErrorKind::TooLarge);
    }
    result.push_str(text);
    Ok(())
}
