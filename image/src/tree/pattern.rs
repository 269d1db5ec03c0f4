//! Two kinds of pattern that Docker has: [`Glob`], the wildcards of COPY and ADD (Go's `filepath.Match`), and
//! [`Patterns`], the lines of a .dockerignore file and of `--exclude` (moby's patternmatcher: `**`, `!`, a pattern
//! that matches a directory matches all below it).
//!
//! `*`, `?` and classes never match a `/`. Names need not be UTF-8: a byte that is no character counts as one.

use bstr::ByteSlice;
use regex::bytes::Regex;

use super::path;

/// Text that is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {0:?}: {1}")]
pub struct PatternError(pub String, pub &'static str);

/// A pattern of Go's `filepath.Match`, split at `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Part>,
}

/// The pattern of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Exactly this name.
    Name(String),
    /// Names that match.
    Wild(Vec<Token>),
}

/// An element of a wildcard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// This character.
    Char(char),
    /// `?`: any one character.
    Any,
    /// `*`: any characters, none as well.
    Star,
    /// `[a-z]`, `[^a-z]`.
    Class {
        /// Everything but these.
        negated: bool,
        /// First and last character of each range.
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Reads a pattern. Leading, trailing and doubled slashes mean nothing.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let parts = pattern
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| Part::new(part).map_err(|why| PatternError(pattern.to_owned(), why)))
            .collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }

    /// Whether the whole of `path` matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names = path::components(path);
        self.parts.len() == names.clone().count()
            && self.parts.iter().zip(names).all(|(part, name)| part.matches(name))
    }

    /// The components, outermost first.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// Whether `path` has a wildcard that is not escaped.
pub fn has_wildcard(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

impl Part {
    fn new(text: &str) -> Result<Self, &'static str> {
        let tokens = tokens(text)?;
        let name = tokens.iter().map(|token| if let Token::Char(char) = token { Some(*char) } else { None });
        Ok(name.collect::<Option<String>>().map_or(Self::Wild(tokens), Self::Name))
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Name(exact) => exact.as_bytes() == name,
            Self::Wild(tokens) => matches(tokens, name),
        }
    }
}

/// Matches with a step back to the last star only: linear for a star, never exponential.
fn matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match tokens.get(token) {
            Some(Token::Star) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(one) => {
                let (char, length) = bstr::decode_utf8(&name[at..]);
                (length > 0 && one.takes(char.unwrap_or(char::REPLACEMENT_CHARACTER))).then_some(length)
            }
            None if at == name.len() => return true,
            None => None,
        };
        if let Some(length) = step {
            token += 1;
            at += length;
            continue;
        }
        let Some((at_star, from)) = star else { return false };
        let (_, length) = bstr::decode_utf8(&name[from..]);
        if length == 0 {
            return false;
        }
        star = Some((at_star, from + length));
        (token, at) = (at_star + 1, from + length);
    }
}

impl Token {
    fn takes(&self, char: char) -> bool {
        match self {
            Self::Char(this) => *this == char,
            Self::Any | Self::Star => true,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&char)) != *negated
            }
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut chars = text.chars();
    let mut tokens = Vec::new();
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Char(chars.next().ok_or("nothing follows the last \\")?),
            '[' => class(&mut chars)?,
            char => Token::Char(char),
        });
    }
    // Stars in a row are one star.
    tokens.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
    Ok(tokens)
}

/// What is after the `[`.
fn class(chars: &mut std::str::Chars<'_>) -> Result<Token, &'static str> {
    let negated = chars.as_str().starts_with('^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    while ranges.is_empty() || !chars.as_str().starts_with(']') {
        let low = bound(chars)?;
        let high = if chars.as_str().starts_with('-') {
            chars.next();
            bound(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    chars.next();
    Ok(Token::Class { negated, ranges })
}

fn bound(chars: &mut std::str::Chars<'_>) -> Result<char, &'static str> {
    match chars.next() {
        Some('-' | ']') => Err("a bare - or ] stands where a character of a class is expected"),
        Some('\\') => chars.next().ok_or("a [ is not closed"),
        Some(char) => Ok(char),
        None => Err("a [ is not closed"),
    }
}

/// Patterns in order: the last that matches decides, and one that starts with `!` takes back.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    /// As given.
    text: String,
    /// Starts with `!`.
    exception: bool,
    how: How,
    /// Components for [`Rule::may_match_below`]; `None` at a component with `**`, where anything goes.
    parts: Vec<Option<Part>>,
}

/// How a rule is matched. What has no `**` in a strange place needs no regular expression.
#[derive(Clone, Debug)]
enum How {
    /// The path is this.
    Exact(String),
    /// `dir/**`: the path starts with this.
    Prefix(String),
    /// `**/name`: the path ends with this, or is this without its slash.
    Suffix(String),
    /// The path's components match.
    Glob(Glob),
    /// `**/*.c`: the path's last components match.
    Last(Glob),
    /// Any other use of `**`.
    Regex(Regex),
}

/// Which rules matched a directory or one above it: what its children start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// One per rule; empty above the root.
    rules: Vec<bool>,
}

impl Patterns {
    /// Reads patterns; blank ones are skipped.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut rules = Vec::new();
        for text in patterns {
            let text = text.as_ref().trim();
            if !text.is_empty() {
                rules.push(Rule::new(text)?);
            }
        }
        Ok(Self { rules })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether `path` is matched, and what to pass on for paths right below it. `parent` is what this gave for the
    /// directory that `path` is in, [`Matched::default`] for the root.
    pub fn matches(&self, path: &[u8], parent: &Matched) -> (bool, Matched) {
        let (decided, matched) = self.decide(path, parent);
        (decided.is_some_and(|rule| !self.rules[rule].exception), matched)
    }

    /// Whether `path` is matched by itself or through a directory above it; by which pattern.
    pub fn matching(&self, path: &[u8]) -> Option<&str> {
        let mut matched = Matched::default();
        let mut decided = None;
        for end in path.find_iter("/").chain([path.len()]) {
            (decided, matched) = self.decide(&path[..end], &matched);
        }
        decided.map(|rule| &self.rules[rule]).filter(|rule| !rule.exception).map(|rule| rule.text.as_str())
    }

    /// Whether something below the matched directory `dir` could be taken back by a `!` pattern. If not, nobody needs
    /// to look into it.
    pub fn may_except_below(&self, dir: &[u8], matched: &Matched) -> bool {
        self.rules.iter().enumerate().any(|(index, rule)| {
            rule.exception && !matched.rules.get(index).is_some_and(|done| *done) && rule.may_match_below(dir)
        })
    }

    /// Whether something below the directory `dir`, which itself is not matched, could be.
    pub fn may_match_below(&self, dir: &[u8]) -> bool {
        self.rules.iter().any(|rule| !rule.exception && rule.may_match_below(dir))
    }

    /// The rule that decides. This is moby's evaluation step by step, its shortcut too: a rule that cannot change the
    /// outcome so far is not evaluated and counts as not matching, also for what is below.
    fn decide(&self, path: &[u8], parent: &Matched) -> (Option<usize>, Matched) {
        let mut decided: Option<usize> = None;
        let mut rules = vec![false; self.rules.len()];
        for (index, rule) in self.rules.iter().enumerate() {
            let so_far = decided.is_some_and(|rule| !self.rules[rule].exception);
            let matches = parent.rules.get(index).is_some_and(|above| *above)
                || (rule.exception == so_far && rule.matches(path));
            if matches {
                rules[index] = true;
                decided = Some(index);
            }
        }
        (decided, Matched { rules })
    }
}

impl Rule {
    fn new(text: &str) -> Result<Self, PatternError> {
        let bad = |why| PatternError(text.to_owned(), why);
        let cleaned = clean(text);
        let (pattern, exception) = match cleaned.strip_prefix('!') {
            Some("") => return Err(bad("a ! with nothing after it")),
            Some(rest) => (rest, true),
            None => (cleaned.as_str(), false),
        };
        tokens(pattern).map_err(bad)?;
        let parts = pattern
            .split('/')
            .map(|part| if part.contains("**") { Ok(None) } else { Part::new(part).map(Some) })
            .collect::<Result<Vec<_>, _>>()
            .map_err(bad)?;
        let plain = |text: &str| !text.contains(['*', '?', '[', ']', '\\']);
        let how = if plain(pattern) {
            How::Exact(pattern.to_owned())
        } else if let Some(start) =
            pattern.strip_suffix("**").filter(|start| plain(start) && !start.is_empty())
        {
            How::Prefix(start.to_owned())
        } else if let Some(end) = pattern.strip_prefix("**").filter(|end| plain(end)) {
            How::Suffix(end.to_owned())
        } else if !pattern.contains("**") && !pattern.starts_with('/') {
            How::Glob(Glob::new(pattern)?)
        } else if let Some(end) = pattern.strip_prefix("**/").filter(|end| !end.contains("**")) {
            How::Last(Glob::new(end)?)
        } else {
            let regex = regex(pattern).map_err(bad)?;
            How::Regex(Regex::new(&regex).map_err(|_| bad("too large"))?)
        };
        Ok(Self { text: text.to_owned(), exception, how, parts })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match &self.how {
            How::Exact(exact) => path == exact.as_bytes(),
            How::Prefix(start) => path.starts_with(start.as_bytes()),
            How::Suffix(end) => {
                path.ends_with(end.as_bytes())
                    || end.strip_prefix('/').is_some_and(|name| path == name.as_bytes())
            }
            How::Glob(glob) => glob.matches(path),
            How::Last(glob) => {
                let count = path::components(path).count();
                let skip = count.checked_sub(glob.parts.len());
                skip.is_some_and(|skip| {
                    let last = path::components(path).skip(skip);
                    glob.parts.iter().zip(last).all(|(part, name)| part.matches(name))
                })
            }
            How::Regex(regex) => regex.is_match(path),
        }
    }

    fn may_match_below(&self, dir: &[u8]) -> bool {
        let mut names = path::components(dir);
        for part in &self.parts {
            match (part, names.next()) {
                // Still in the pattern when the directory ends: its next component may be one of the children.
                (None, _) | (_, None) => return true,
                (Some(part), Some(name)) if !part.matches(name) => return false,
                _ => {}
            }
        }
        false
    }
}

/// Go's `path.Clean` of a relative or absolute path, `!` being an ordinary character.
fn clean(text: &str) -> String {
    let absolute = text.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    match (absolute, parts.join("/")) {
        (true, joined) => format!("/{joined}"),
        (false, joined) if joined.is_empty() => ".".to_owned(),
        (false, joined) => joined,
    }
}

fn regex(pattern: &str) -> Result<String, &'static str> {
    let mut regex = String::from(r"\A");
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' if chars.as_str().starts_with('*') => {
                chars.next();
                if chars.as_str().starts_with('/') {
                    chars.next();
                }
                regex.push_str(if chars.as_str().is_empty() { "(?s-u:.)*" } else { "(?:(?s-u:.)*/)?" });
            }
            '*' => regex.push_str("(?-u:[^/])*"),
            '?' => regex.push_str("[^/]"),
            '\\' => literal(&mut regex, chars.next().ok_or("nothing follows the last \\")?),
            '[' => {
                let Token::Class { negated, ranges } = class(&mut chars)? else { unreachable!("it is one") };
                regex.push_str(if negated { "[^/" } else { "[" });
                for (low, high) in ranges {
                    if low > high {
                        return Err("a range of a class is backwards");
                    }
                    literal(&mut regex, low);
                    regex.push('-');
                    literal(&mut regex, high);
                }
                regex.push(']');
            }
            char => literal(&mut regex, char),
        }
    }
    regex.push_str(r"\z");
    Ok(regex)
}

fn literal(regex: &mut String, char: char) {
    regex.push_str(&format!(r"\x{{{:X}}}", u32::from(char)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_match_as_go_does() {
        for (pattern, path, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("ab[!c]", "abc", true),
            ("ab[!c]", "ab!", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a\u{263a}b", true),
            ("a[^a]b", "a\u{263a}b", true),
            ("a???b", "a\u{263a}b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("{a,b}", "{a,b}", true),
            ("*x", "xxx", true),
            ("a?b", "a/b", false),
            ("**", "a", true),
            ("**", "a/b", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().matches(path.as_bytes()), want, "{pattern} {path}");
        }
        for pattern in ["[", "[^", "[a", "[]a]", "[-]", "[x-]", "[-x]", "a[", "\\"] {
            assert!(Glob::new(pattern).is_err(), "{pattern}");
        }
        assert!(Glob::new("a?b").unwrap().matches(b"a\xffb"));
        assert!(Glob::new("a*b").unwrap().matches(b"a\xff\xfeb"));
    }

    #[test]
    fn ignore_patterns_match_as_moby_does() {
        for (pattern, path, want) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/afile", true),
            ("**/file", "dir/afile", false),
            ("**/file*.txt", "dir/dir/file1.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc?def", "abcZdef", true),
            ("a\\*", "a*", true),
            ("a\\", "a\\", false),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/dir2/foo/bar", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", "bar.foo", false),
            ("./bar.*", "bar.txt", true),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("dist/proxy.py-2.4.0rc3-py3-none.whl", "dist/proxy.py-2.4.0rc3-py3-none.whl", true),
            ("docs/", "docs/a/b", true),
            ("foo/../bar", "bar", true),
            ("/foo", "foo", false),
            ("a**b[c]", "ab/x/bc", true),
        ] {
            let Ok(patterns) = Patterns::new([pattern]) else {
                assert_eq!(pattern, "a\\");
                continue;
            };
            assert_eq!(patterns.matching(path.as_bytes()).is_some(), want, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_match_decides() {
        for (patterns, path, want) in [
            (&["**", "!util/docker/web"][..], "util/docker/web/foo", false),
            (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
            (&["**", "!dist/proxy.py-2.4*.whl"], "dist/proxy.py-2.4.0.whl", false),
            (&["**/c", "!a/b/c/x"], "a/b/c/x", false),
            (&["**/c", "!a/b/c/x"], "a/b/c/y", true),
            (&["a", "!a/b", "a/b/c"], "a/b/c/d", true),
            (&["a", "!a/b", "a/b/c"], "a/b/x", false),
            (&["!a", "a"], "a", true),
            (&["*.md", "!README*.md", "README-secret.md"], "README-secret.md", true),
            (&["*.md", "!README*.md"], "README.md", false),
            (&["", "  ", "x"], "x", true),
        ] {
            let got = Patterns::new(patterns).unwrap().matching(path.as_bytes()).is_some();
            assert_eq!(got, want, "{patterns:?} {path}");
        }
        assert!(Patterns::new(["!"]).is_err());
        assert!(Patterns::new(["[a"]).is_err());
    }

    proptest! {
        /// The shortcuts of [`How`] and the regular expression are the same matcher.
        #[test]
        fn shortcuts_agree_with_the_regex(pattern in "(\\*\\*/)?[ab*?]{1,3}(/(\\*\\*|[ab*]{1,2})){0,2}", path in "[ab]{1,3}(/[ab]{1,3}){0,3}") {
            let rule = Rule::new(&pattern).unwrap();
            let regex = Regex::new(&regex(&clean(&pattern)).unwrap()).unwrap();
            // `dir/**` and `**name` are wider in moby than their expression.
            if !matches!(rule.how, How::Prefix(_) | How::Suffix(_)) {
                prop_assert_eq!(rule.matches(path.as_bytes()), regex.is_match(path.as_bytes()));
            }
        }

        /// Not looking below a directory never misses anything.
        #[test]
        fn pruning_is_safe(patterns in proptest::collection::vec("!?(\\*\\*/)?[ab*]{1,2}(/(\\*\\*|[ab*]{1,2})){0,2}", 1..4), path in "[ab]{1,2}(/[ab]{1,2}){1,3}") {
            let patterns = Patterns::new(&patterns).unwrap();
            let mut matched = Matched::default();
            let mut pruned = false;
            for end in path.as_bytes().find_iter("/") {
                let dir = &path.as_bytes()[..end];
                let (yes, next) = patterns.matches(dir, &matched);
                pruned |= yes && !patterns.may_except_below(dir, &next);
                matched = next;
            }
            let (yes, _) = patterns.matches(path.as_bytes(), &matched);
            prop_assert!(!pruned || yes);
        }

        #[test]
        fn no_pattern_panics(pattern in "\\PC{0,12}", path in "\\PC{0,12}") {
            if let Ok(patterns) = Patterns::new([&pattern]) {
                patterns.matching(path.as_bytes());
            }
            if let Ok(glob) = Glob::new(&pattern) {
                glob.matches(path.as_bytes());
            }
        }
    }
}
